"""A prepared corpus on disk: shards of token ids, memory-mapped, each file with its checksum.

    shards/manifest.json      written last: with it the folder is whole
    shards/vocab/             the tokenizer
    shards/train-00000/       and so on; dev-00000/ ... hold the held-out documents
        tokens.npy            (tokens,) uint16, or uint32 where the vocabulary has more than 65,536
        joins.npy             (tokens / 8 rounded up,) uint8: a bit a token, lowest first, 1 where
                              it continues the word before it
        sentences.npy         (sentences + 1,) int64: where sentences begin in tokens.npy
        documents.npy         (documents + 1,) int64: where documents begin in sentences.npy
        sources.npy           (documents,) uint16: numbers of names in the manifest

No [CLS] or [SEP], no sentence without a token, no document without a sentence. The files are plain
.npy of version 1.0, which numpy opens by itself.

    shards = open_shards("shards/")
    shard = shards.split("train")[0]
    shard.tokens[shard.sentences[7] : shard.sentences[8]]          # the eighth sentence
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from filbert.errors import FilbertError, UsageError
from filbert.layout import plain, strict_json
from filbert.text.pretrained import read_vocabulary

FORMAT = 1
MANIFEST = "manifest.json"
VOCAB = "vocab"
FILES = ("tokens.npy", "joins.npy", "sentences.npy", "documents.npy", "sources.npy")
INDEX = FILES[2:]  # small beside the others
NAME = re.compile(r"(?:train|dev)-[0-9]{5,9}")
_BLOCK = 1 << 20  # elements, or bytes, looked at in one go
_MAX_MANIFEST = 1 << 28  # bytes; a shard takes some 600

Ids = NDArray[np.int64]
Split = Literal["train", "dev"]
SPLITS: tuple[Split, ...] = ("train", "dev")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Counts(_Closed):
    """What was read and what was kept. `documents` to `bytes` (UTF-8) are of the kept text, and
    `unknown_tokens`: how many of the tokens are [UNK]."""

    documents: int = Field(default=0, ge=0)
    sentences: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)
    unknown_tokens: int = Field(default=0, ge=0)
    duplicates: int = Field(default=0, ge=0)
    near_duplicates: int = Field(default=0, ge=0)
    filtered: dict[str, int] = Field(default_factory=dict)  # reason -> documents


class ShardEntry(_Closed):
    """A shard as the manifest lists it; `files`: name -> sha256."""

    name: str
    split: Split
    documents: int = Field(ge=1)
    sentences: int = Field(ge=1)
    tokens: int = Field(ge=1)
    files: dict[str, str]


class Manifest(_Closed):
    """`manifest.json`."""

    format: int
    filbert: str
    vocab_size: int = Field(ge=1)
    vocab_sha256: str
    options: dict[str, Any]
    sources: list[str]
    counts: Counts
    shards: list[ShardEntry]


@dataclass(frozen=True)
class Shard:
    """The arrays of one shard, mapped from its files; shapes as told above."""

    name: str
    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    joins: NDArray[np.uint8]
    sentences: Ids
    documents: Ids
    sources: NDArray[np.uint16]

    def joined(self, start: int, stop: int) -> NDArray[np.bool_]:
        """(stop - start,) True where a token continues the word before it."""
        first = start // 8
        bits = np.unpackbits(self.joins[first : (stop + 7) // 8], bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].astype(bool)


@dataclass(frozen=True)
class Shards:
    """An open folder of shards."""

    folder: Path
    manifest: Manifest
    shards: list[Shard]

    def split(self, name: Split) -> list[Shard]:
        """The shards of "train" or "dev" (which may have none)."""
        return [
            shard
            for shard, entry in zip(self.shards, self.manifest.shards, strict=True)
            if entry.split == name
        ]

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(s, Path(name).stem).nbytes for s in self.shards for name in FILES)

    @property
    def vocab(self) -> Path:
        """The folder of the tokenizer."""
        return self.folder / VOCAB


def open_shards(
    folder: str | os.PathLike[str], *, verify: Literal["sizes", "index", "full"] = "sizes"
) -> Shards:
    """Open a folder that `filbert prepare` wrote.

    "sizes" holds every file to its size, type and shape, the index (sentences and documents) to its
    bounds, the vocabulary to its checksum, without reading tokens; "index" also reads the index and
    the sources against their checksums, "full" every file. Raises `UsageError` for what is no such
    folder, `FilbertError` naming the file for what is damaged or of another version.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    _check_vocab(place, manifest)
    if verify != "sizes":
        check_files(place, manifest.shards, FILES if verify == "full" else INDEX)
    shards = [_open_shard(place / entry.name, entry, manifest) for entry in manifest.shards]
    return Shards(place, manifest, shards)


def check_files(folder: Path, shards: Iterable[ShardEntry], names: tuple[str, ...] = FILES) -> None:
    """Read the files with these names of these shards. Raises `FilbertError` naming the first whose
    content is not what its checksum says."""
    for entry in shards:
        for name in names:
            path = folder / entry.name / name
            if not path.is_file():
                raise _damaged(path, "it is not there")
            if digest(path) != entry.files[name]:
                raise _damaged(path, "its content is not what its checksum says")


def read_manifest(folder: Path) -> Manifest:
    """The manifest, checked against its schema and itself."""
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / ".work").is_dir():
            raise UsageError(
                f"{folder}: these shards are not finished; run the same `filbert prepare` again, "
                "it goes on where it was"
            )
        raise UsageError(f"{folder} holds no shards (no {MANIFEST}); make some: filbert prepare")
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise _damaged(path, f"it is larger than {_MAX_MANIFEST:,} bytes")
        found = strict_json(path.read_bytes(), what=str(path))
    except OSError as error:
        raise FilbertError(f"could not read {path}: {error.strerror or error}") from error
    version = found.get("format") if isinstance(found, dict) else None
    if type(version) is not int:
        raise _damaged(path, "it does not say which format it has")
    if version != FORMAT:
        raise FilbertError(
            f"{path} is of format {version}, this filbert reads format {FORMAT}: prepare the "
            "corpus again, or take the filbert that wrote it"
        )
    try:
        manifest = Manifest(**found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"'{plain(where)}': {plain(first['msg'])}") from None
    _check_entries(path, manifest)
    return manifest


def _check_entries(path: Path, manifest: Manifest) -> None:
    names = [entry.name for entry in manifest.shards]
    if len(set(names)) != len(names):
        raise _damaged(path, "it names a shard twice")
    for entry in manifest.shards:
        if not NAME.fullmatch(entry.name) or not entry.name.startswith(entry.split):
            raise _damaged(path, f"'{plain(entry.name)}' is no name of a {entry.split} shard")
        if set(entry.files) != set(FILES):
            raise _damaged(path, f"shard {entry.name} must have the files {', '.join(FILES)}")
    for what in ("documents", "sentences", "tokens"):
        total = sum(getattr(entry, what) for entry in manifest.shards)
        if total != getattr(manifest.counts, what):
            raise _damaged(path, f"its shards have {total} {what}, its counts say otherwise")
    if not manifest.sources:
        raise _damaged(path, "it names no source")


def _check_vocab(folder: Path, manifest: Manifest) -> None:
    path = folder / VOCAB / "vocab.txt"
    if not path.is_file() or digest(path) != manifest.vocab_sha256:
        raise _damaged(path, "it is not the vocabulary that the tokens were made with")
    full = path.with_name("tokenizer.json")  # where there is one, it is what a run reads
    if full.is_file():
        try:
            words = dict(json.loads(full.read_text("utf-8"))["model"]["vocab"])
        except (ValueError, KeyError, TypeError):
            raise _damaged(full, "it holds no tokenizer") from None
        lines = read_vocabulary(path)  # where a word is repeated, more than the words
        if any(lines.get(word) != number for word, number in words.items()):
            raise _damaged(full, "its words are not those of the vocab.txt beside it")


def _open_shard(folder: Path, entry: ShardEntry, manifest: Manifest) -> Shard:
    tokens = np.dtype(token_type(manifest.vocab_size))
    expected = {
        "tokens.npy": (tokens, entry.tokens),
        "joins.npy": (np.dtype("u1"), (entry.tokens + 7) // 8),
        "sentences.npy": (np.dtype("<i8"), entry.sentences + 1),
        "documents.npy": (np.dtype("<i8"), entry.documents + 1),
        "sources.npy": (np.dtype("<u2"), entry.documents),
    }
    found = {name: _map(folder / name, *what) for name, what in expected.items()}
    _check_offsets(folder / "sentences.npy", found["sentences.npy"], entry.tokens)
    _check_offsets(folder / "documents.npy", found["documents.npy"], entry.sentences)
    sources = found["sources.npy"]
    if int(sources.max()) >= len(manifest.sources):
        raise _damaged(folder / "sources.npy", "it has numbers that stand for no source")
    return Shard(entry.name, *(found[name] for name in FILES))


def _map(path: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """Map a .npy file of exactly this type and length."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise _damaged(path, "it is not there") from None
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, plain(error)) from None
    if not isinstance(found, np.memmap) or found.dtype != dtype or found.shape != (length,):
        shape = getattr(found, "shape", "?")
        raise _damaged(
            path,
            f"it holds {getattr(found, 'dtype', '?')} of shape {shape}, "
            f"the manifest wants {dtype} of shape ({length},)",
        )
    if path.stat().st_size != found.offset + found.nbytes:
        raise _damaged(path, "it has more bytes than its header says")
    return found.view(np.ndarray)  # slices of a memmap are slower


def _check_offsets(path: Path, offsets: Ids, end: int) -> None:
    """Offsets begin with 0, grow at each step and end with `end`."""
    if offsets[0] != 0 or offsets[-1] != end:
        raise _damaged(path, f"it must lead from 0 to {end}")
    for begin in range(0, len(offsets), _BLOCK):
        part = offsets[begin : begin + _BLOCK + 1]
        if not (part[1:] > part[:-1]).all():
            raise _damaged(path, "its numbers do not grow")


def token_type(vocab_size: int) -> str:
    """The type of token ids on disk."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FilbertError(f"could not read {path}: {error.strerror or error}") from error


def _damaged(path: Path, reason: str) -> FilbertError:
    return FilbertError(
        f"{path} is damaged: {reason}. Copy the shards again, or prepare the corpus again with "
        "--overwrite"
    )
