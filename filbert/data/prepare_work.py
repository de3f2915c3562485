"""The unfinished part of `filbert prepare`: files that only grow, and a state that says how far.

Under `.work/` every stream of the open shards, and what is remembered of documents to know their
duplicates, is appended to a file of its own. Now and then all are forced to the disk and
`state.json` notes their lengths, their checksums and the place in the corpus, in one atomic write.
Killed at any moment, the next call cuts the files back to the noted lengths, refuses those whose
bytes are others, and goes on from there; what it then appends is what would have been appended. A
full shard is written beside, put into its place by one rename, and its streams begin anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from filbert.atomic import cannot_write, replace_folder, write_file
from filbert.data.shards import FILES, Counts, ShardEntry, Split, digest
from filbert.errors import FilbertError
from filbert.layout import plain, strict_json

WORK = ".work"
STATE = "state.json"
OWN = "sha256"  # of state.json without it
_BLOCK = 1 << 20  # bytes copied in one go; divisible by 8, and by the keys of a document


class Record(BaseModel):
    """What decides on the bytes that a call writes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    filbert: str
    vocab_size: int = Field(ge=1)
    vocab_sha256: str
    options: dict[str, Any]


class Stream(BaseModel):
    """How much of a stream counts: bytes, and their CRC-32."""

    model_config = ConfigDict(extra="forbid", strict=True)

    length: int = Field(default=0, ge=0)
    sum: int = Field(default=0, ge=0, lt=1 << 32)


class State(BaseModel):
    """`state.json`: how far a call was. `place`: see `Place` in prepare_feed.py."""

    model_config = ConfigDict(extra="forbid", strict=True)

    record: Record
    place: list[int] = Field(min_length=3, max_length=3)
    counts: Counts
    sources: list[str]
    shards: list[ShardEntry]
    streams: dict[str, Stream]


class Streams:
    """Files under `folder` that only grow. `append` writes, `commit` makes it last."""

    def __init__(self, folder: Path, noted: dict[str, Stream]) -> None:
        """Go on from what was `noted`, reading it once: files are cut back to their length, those
        without an entry are emptied. Raises `FilbertError` for a file that is not what it was."""
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self.noted = {name: stream.model_copy() for name, stream in noted.items()}
        for name, stream in noted.items():
            path, left, found = folder / name, stream.length, 0
            for block in self.blocks(name) if left and path.is_file() else ():
                left, found = left - len(block), zlib.crc32(block, found)
            if left or found != stream.sum:
                raise FilbertError(
                    f"{path} is {'shorter than it was' if left else 'not as it was written'}: the "
                    "unfinished work is damaged. Start again with --overwrite"
                )

    def _open(self, name: str) -> BinaryIO:
        if name not in self._files:
            path = self.folder / name
            with writing(path):
                file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
                file.truncate(self.length(name))
                file.seek(0, os.SEEK_END)
            self._files[name] = file
            self.noted.setdefault(name, Stream())
        return self._files[name]

    def append(self, name: str, array: NDArray[Any]) -> None:
        """Add the bytes of `array`, little-endian."""
        file = self._open(name)
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        with writing(self.folder / name):
            file.write(content)
        stream = self.noted[name]
        stream.length += array.nbytes
        stream.sum = zlib.crc32(content, stream.sum)

    def read(self, name: str, dtype: Any) -> NDArray[Any]:
        """All that a file holds."""
        self._flush(name)
        return np.fromfile(self.folder / name, dtype=dtype, count=self.count(name, dtype))

    def rows(self, name: str, dtype: str, width: int, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Some of the rows (n, width) that a file holds, without what lies between in memory."""
        if not len(numbers):
            return np.zeros((0, width), dtype)
        self._flush(name)
        shape = self.count(name, dtype) // width, width
        return np.array(np.memmap(self.folder / name, dtype, mode="r", shape=shape)[numbers])

    def blocks(self, name: str) -> Iterator[bytes]:
        """All that a file holds, a piece at a time."""
        self._flush(name)
        with open(self.folder / name, "rb") as file:
            left = self.length(name)
            while left and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block

    def count(self, name: str, dtype: Any) -> int:
        """How many elements a file holds."""
        return self.length(name) // np.dtype(dtype).itemsize

    def length(self, name: str) -> int:
        """How many bytes a file holds."""
        return self.noted[name].length if name in self.noted else 0

    def empty(self, prefix: str) -> None:
        """Begin the files of a prefix anew."""
        for name in [name for name in self.noted if name.startswith(prefix)]:
            if name in self._files:
                self._files.pop(name).close()
            self.noted[name] = Stream()

    def _flush(self, name: str) -> None:
        if name in self._files:
            with writing(self.folder / name):
                self._files[name].flush()

    def commit(self, state: State) -> None:
        """Force all files to the disk, then write `state`, which notes them."""
        for name, file in self._files.items():
            with writing(self.folder / name):
                file.flush()
                os.fsync(file.fileno())
        noted = state.model_dump()
        write_file(self.folder / STATE, json.dumps({**noted, OWN: _digest_of(noted)}))

    def close(self) -> None:
        """Close the files, whatever they say: what was not committed does not count."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()


def write_shard(
    streams: Streams, out: Path, *, split: Split, number: int, tokens: str
) -> ShardEntry:
    """Write the open shard of a split as `out/<split>-<number>/` and begin the next.

    `tokens` is the type of the ids. Commit before anything more is appended: the files stay as they
    are until then, so that a kill in between writes the same shard once more.
    """
    name = f"{split}-{number:05d}"
    temp = out / WORK / name
    shutil.rmtree(temp, ignore_errors=True)
    stream = {part: f"{split}.{part}" for part in ("tokens", "joins", "sentences", "documents")}
    count = streams.count(stream["tokens"], tokens)
    counts = {part: streams.count(stream[part], "<u4") for part in ("sentences", "documents")}
    with writing(out / name):
        temp.mkdir(parents=True)
        _write(temp / "tokens.npy", tokens, count, streams.blocks(stream["tokens"]))
        packed = (
            np.packbits(np.frombuffer(block, np.uint8), bitorder="little").tobytes()
            for block in streams.blocks(stream["joins"])
        )
        _write(temp / "joins.npy", "|u1", (count + 7) // 8, packed)
        for part, number_of in counts.items():
            offsets = _offsets(streams.blocks(stream[part]))
            _write(temp / f"{part}.npy", "<i8", number_of + 1, offsets)
        sources = streams.blocks(f"{split}.sources")
        _write(temp / "sources.npy", "<u2", counts["documents"], sources)
    entry = ShardEntry(
        name=name,
        split=split,
        documents=counts["documents"],
        sentences=counts["sentences"],
        tokens=count,
        files={file: digest(temp / file) for file in FILES},
    )
    replace_folder(temp, out / name)
    streams.empty(f"{split}.")
    return entry


def _offsets(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Where runs begin, and the end of the last, as int64, of their lengths as uint32."""
    end = 0
    yield np.zeros(1, dtype="<i8").tobytes()
    for block in blocks:
        ends = end + np.cumsum(np.frombuffer(block, dtype="<u4"), dtype=np.int64)
        end = int(ends[-1])
        yield ends.astype("<i8").tobytes()


def _write(path: Path, dtype: str, length: int, blocks: Iterable[bytes]) -> None:
    """A .npy file of version 1.0 with `length` elements, from their bytes."""
    with open(path, "wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An `OSError` of the block becomes a `FilbertError` that says how to go on."""
    try:
        yield
    except OSError as error:
        told = cannot_write(path, error)
        raise FilbertError(f"{told} The same command goes on from there.") from error


def read_state(folder: Path) -> State | None:
    """The state of an unfinished call, None if there is none."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        found = strict_json(path.read_bytes(), what=str(path))
        own = found.pop(OWN, None) if isinstance(found, dict) else None
        state = State.model_validate(found)
        if own != _digest_of(found):
            raise FilbertError(f"{path} is damaged: it does not match its own checksum")
        return state
    except OSError as error:
        raise FilbertError(
            f"could not read {path}: {error.strerror or error}; start again with --overwrite"
        ) from None
    except FilbertError as error:
        raise FilbertError(f"{error}; start again with --overwrite") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FilbertError(
            f"{path} is damaged, or of another version of filbert ('{plain(where)}': "
            f"{plain(first['msg'])}); start again with --overwrite"
        ) from None


def _digest_of(noted: dict[str, Any]) -> str:
    """The same for a state that was read back."""
    return hashlib.sha256(json.dumps(noted).encode()).hexdigest()
