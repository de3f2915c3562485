"""TensorFlow checkpoints, read without TensorFlow.

Google published BERT as checkpoints of `tf.train.Saver` (format V2, a "tensor bundle"): one small
`.index` file, a sorted table from tensor names to where each tensor lies, and one or more
`.data-00000-of-00001` files that are the tensors' bytes end to end. This module reads both with
numpy alone, so that nobody installs TensorFlow to open a model from 2018.

    from filbert.model.tensorflow import list_tensors, read_tensorflow_checkpoint

    list_tensors("chinese_L-12_H-768_A-12/")                   # names, shapes, dtypes; no data read
    tensors = read_tensorflow_checkpoint("chinese_L-12_H-768_A-12/bert_model.ckpt")

`filbert convert DIR OUT` (`filbert.model.convert`) turns such a folder into a Hugging Face one.

A checkpoint is input from a stranger. Every offset, length and shape is checked against the real
size of the file before it is used, each block and tensor against its checksum; nothing is allocated
on the word of the file alone. Sources: TensorFlow's `tensor_bundle.proto` and `tensor_bundle.h`,
LevelDB's `doc/table_format.md`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.errors import FilbertError, did_you_mean
from filbert.layout import plain
from filbert.model.crc32c import crc32c, masked

MAX_INDEX_BYTES = 4 << 20  # BERT-large with its optimizer slots has an index of 60 kB
MAX_TENSORS, MAX_NAME_BYTES, MAX_ROW_BYTES = 1 << 16, 1 << 10, 1 << 16
MAX_RANK, MAX_ELEMENTS = 8, 1 << 40

# tensorflow/core/framework/types.proto: number -> (name, numpy type in the file).
_DTYPES = {
    1: ("float32", "<f4"), 2: ("float64", "<f8"), 3: ("int32", "<i4"), 4: ("uint8", "u1"),
    5: ("int16", "<i2"), 6: ("int8", "i1"), 9: ("int64", "<i8"), 10: ("bool", "u1"),
    14: ("bfloat16", "<u2"), 17: ("uint16", "<u2"), 19: ("float16", "<f2"),
    22: ("uint32", "<u4"), 23: ("uint64", "<u8"),
}  # fmt: skip
_STORED = dict(_DTYPES.values())
_STRING = 7  # the object graph of tf.train.Checkpoint is a string; no weight is one
_SHARD_SUFFIX = re.compile(r"\.data-[0-9]{5}-of-[0-9]{5}$")
_STATE_LINE = re.compile(rb'^model_checkpoint_path:[ \t]*"([^"\n]*)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies, and what it is: `dtype` is a name such as "float32"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int


class _Damaged(Exception):
    """Bytes that make no sense. Always turned into a FilbertError that names the file."""

    way_out = "it is damaged, or no index that TensorFlow wrote: copy or download it again"


class _NotRead(_Damaged):
    """Whole, but of a kind that is not read here."""

    way_out = "load it in TensorFlow and save it again, with tf.compat.v1.train.Saver's defaults"


def find_checkpoint(source: str | PathLike[str]) -> Path:
    """The prefix of a checkpoint: the path that `.index` and `.data-*` are appended to.

    `source` is a folder, the prefix itself, or one of its files. In a folder the file `checkpoint`
    decides, as in TensorFlow; only its last path component counts, since folders are moved.

    Raises `FilbertError` if there is no checkpoint, or several and nothing says which.
    """
    path = Path(source)
    if path.is_dir():
        latest = _latest_name(path / "checkpoint")
        if latest is not None and (path / f"{latest}.index").is_file():
            return path / latest
        found = sorted(p.name.removesuffix(".index") for p in path.glob("*.index") if p.is_file())
        if len(found) == 1:
            return path / found[0]
        if found:
            raise FilbertError(
                f"{path} holds {len(found)} TensorFlow checkpoints ({', '.join(found[:10])}) and "
                f"no file `checkpoint` that chooses one: give the one you mean, {path / found[-1]}"
            )
        raise FilbertError(
            f"{path} holds no TensorFlow checkpoint: expected a file NAME.index beside "
            "NAME.data-00000-of-00001"
        )
    name = _SHARD_SUFFIX.sub("", path.name).removesuffix(".index").removesuffix(".meta")
    prefix = path.with_name(name) if name else path
    if Path(f"{prefix}.index").is_file():
        return prefix
    if prefix.is_file():
        raise FilbertError(
            f"{prefix} has no {prefix.name}.index beside it; a TensorFlow checkpoint in one file "
            f"is of the old format V1: {_NotRead.way_out}"
        )
    near = [p.name.removesuffix(".index") for p in prefix.parent.glob("*.index")]
    raise FilbertError(
        f"{prefix}.index does not exist: expected the prefix of a TensorFlow checkpoint or its "
        f"folder.{did_you_mean(prefix.name, near)}"
    )


def list_tensors(source: str | PathLike[str]) -> dict[str, TensorEntry]:
    """The table of contents, sorted by name; no tensor is read, strings are left out.

    Raises `FilbertError`, with the name of the file, for an index that is damaged or hostile, or
    that asks for what is not read here: compressed blocks, big-endian data, partitioned variables.
    """
    return _read_index(find_checkpoint(source))[0]


def read_tensorflow_checkpoint(
    source: str | PathLike[str], *, names: Iterable[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Read the tensors of a checkpoint, all or those in `names`, by their TensorFlow names.

    Arrays are new, contiguous and in native byte order, with the dtype of the file; bfloat16, which
    numpy lacks, comes as float32 (exact). Every tensor is checked against its crc32c, at about half
    a gigabyte a second. Data files are mapped, so the peak is the arrays returned.

    Raises `FilbertError` as `list_tensors` does, and for a missing or too short data file, a wrong
    checksum, or a name that is not there.
    """
    prefix = find_checkpoint(source)
    entries, shards = _read_index(prefix)
    maps: dict[Path, NDArray[np.uint8]] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for name in entries if names is None else names:
        if name not in entries:
            raise FilbertError(f"{prefix} has no variable {name!r}.{did_you_mean(name, entries)}")
        entry = entries[name]
        path = _shard_path(prefix, entry.shard, shards)
        if entry.size and path not in maps:
            maps[path] = _map_shard(path)
        tensors[name] = _read_tensor(entry, maps.get(path, np.empty(0, np.uint8)), path)
    return tensors


def _read_tensor(entry: TensorEntry, data: NDArray[np.uint8], path: Path) -> NDArray[Any]:
    raw = data[entry.offset : entry.offset + entry.size]
    if raw.size != entry.size or masked(crc32c(raw)) != entry.crc32c:
        raise FilbertError(
            f"{path}: the bytes of variable {plain(entry.name)!r} do not match their checksum. "
            "The file is damaged: copy or download it again"
        )
    values = np.ascontiguousarray(raw).view(_STORED[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(entry.dtype)


def _latest_name(state: Path) -> str | None:
    """What the text file `checkpoint` calls the latest checkpoint, without folders."""
    line = _STATE_LINE.search(_first_bytes(state, 1 << 16)) if state.is_file() else None
    return re.split(r"[/\\]", line.group(1).decode("utf-8", "replace"))[-1] if line else None


def _shard_path(prefix: Path, shard: int, shards: int) -> Path:
    return Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")


def _map_shard(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError) as error:  # ValueError: it became empty
        raise FilbertError(f"cannot read {path}: {error}") from None


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise FilbertError(f"cannot read {path}: {error}") from None


# --- the index: a LevelDB table ---------------------------------------------------------------


def _read_index(prefix: Path) -> tuple[dict[str, TensorEntry], int]:
    """All entries and the number of shards, checked against the data files that are there."""
    path = Path(f"{prefix}.index")
    data = _first_bytes(path, MAX_INDEX_BYTES + 1)
    try:
        if len(data) > MAX_INDEX_BYTES:
            raise _Damaged(f"it is larger than {MAX_INDEX_BYTES >> 20} MB, no index of a BERT is")
        rows = _table_rows(data)
        key, value = next(rows, (b"?", b""))
        if key:
            raise _Damaged("it has no header")
        shards = _read_header(value)
        entries: dict[str, TensorEntry] = {}
        for count, (key, value) in enumerate(rows):
            if count == MAX_TENSORS:
                raise _Damaged(f"it lists more than {MAX_TENSORS} tensors")
            if key.startswith(b"\0"):
                continue  # a piece of a partitioned variable; the variable itself is refused below
            entry = _read_entry(key, value, shards)
            if entry is not None:
                entries[entry.name] = entry
        _check_places(entries.values(), prefix, shards)
    except _Damaged as error:
        raise FilbertError(f"{path} cannot be used: {error}; {error.way_out}") from None
    return entries, shards


def _table_rows(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table in order; keys strictly rise."""
    if len(data) < 48 or data[-8:] != (0xDB4775248B80FB57).to_bytes(8, "little"):
        raise _Damaged("it does not end as a table does (cut short, or another kind of file)")
    footer = data[-48:-8]
    index, _ = _read_handle(footer, _read_handle(footer, 0)[1])  # after the unused metaindex
    end, last = 0, None
    for _, value in _block_rows(data, index):
        handle, _ = _read_handle(value, 0)
        if handle[0] < end:  # each block once: a small file must not unfold into a large table
            raise _Damaged("its blocks overlap")
        end = sum(handle)
        for key, row in _block_rows(data, handle):
            if last is not None and key <= last:
                raise _Damaged("its names are not in order")
            last = key
            yield key, row


def _block_rows(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Rows of one block: keys share a prefix with the one before; then come restart points."""
    offset, size = handle
    if offset + size + 5 > len(data) or size < 4:
        raise _Damaged("a block lies outside the file")
    block = data[offset : offset + size]
    kind, checksum = data[offset + size], data[offset + size + 1 : offset + size + 5]
    if masked(crc32c(data[offset : offset + size + 1])) != int.from_bytes(checksum, "little"):
        raise _Damaged("a block does not match its checksum")
    if kind != 0:
        raise _NotRead("a block is compressed, which TensorFlow never does in a checkpoint")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise _Damaged("a block has more restart points than bytes")
    place, key = 0, b""
    while place < end:
        shared, place = _read_varint(block, place, end)
        fresh, place = _read_varint(block, place, end)
        length, place = _read_varint(block, place, end)
        if shared > len(key) or place + fresh + length > end:
            raise _Damaged("a row is longer than its block")
        if shared + fresh > MAX_NAME_BYTES or length > MAX_ROW_BYTES:
            raise _Damaged("a row is longer than any real one")
        key = key[:shared] + block[place : place + fresh]
        place += fresh
        yield key, block[place : place + length]
        place += length


def _read_handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """A block's (offset, size), and the place after them."""
    offset, place = _read_varint(data, place, len(data))
    size, place = _read_varint(data, place, len(data))
    return (offset, size), place


# --- its rows: protocol buffers ---------------------------------------------------------------


def _read_varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """A base-128 number of at most 64 bits, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise _Damaged("it breaks off in the middle of a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 and value < 1 << 64:
            return value, place
    raise _Damaged("a number has more than 64 bits")


def _read_message(data: bytes) -> dict[int, list[Any]]:
    """Field number -> its values: int for varint and fixed, bytes for length-delimited."""
    fields: dict[int, list[Any]] = {}
    place = 0
    value: int | bytes
    while place < len(data):
        tag, place = _read_varint(data, place, len(data))
        kind = tag & 7
        if kind == 0:
            value, place = _read_varint(data, place, len(data))
        elif kind in (1, 2, 5):
            length = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                length, place = _read_varint(data, place, len(data))
            if place + length > len(data):
                raise _Damaged("a field is longer than its message")
            raw = data[place : place + length]
            value = raw if kind == 2 else int.from_bytes(raw, "little")
            place += length
        else:
            raise _Damaged("a field has an unknown kind")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: dict[int, list[Any]], field: int) -> int:
    """The last value of a number field, 0 if it is absent (proto3)."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise _Damaged("a number is stored as text")
    return value


def _messages(fields: dict[int, list[Any]], field: int) -> list[dict[int, list[Any]]]:
    values = fields.get(field, [])
    if not all(isinstance(value, bytes) for value in values):
        raise _Damaged("a message is stored as a number")
    return [_read_message(value) for value in values]


def _read_header(data: bytes) -> int:
    """BundleHeaderProto: the number of shards."""
    fields = _read_message(data)
    shards = _number(fields, 1)
    if not 1 <= shards <= 99_999:
        raise _Damaged(f"it speaks of {shards} data files")
    if _number(fields, 2):
        raise _NotRead("its numbers are big-endian")
    if any(_number(version, 2) > 1 for version in _messages(fields, 3)):
        raise _NotRead("it is of a later format than V2")
    return shards


def _read_entry(key: bytes, data: bytes, shards: int) -> TensorEntry | None:
    """BundleEntryProto: one tensor. None for a string, which has no place in a model."""
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError:
        raise _Damaged(f"a name is not UTF-8: {key[:80]!r}") from None
    fields = _read_message(data)
    kind = _number(fields, 1)
    if kind == _STRING:
        return None
    what = f"variable {plain(name)!r}"
    if 7 in fields:
        raise _NotRead(f"{what} is partitioned into {len(fields[7])} slices")
    if kind not in _DTYPES:
        raise _NotRead(f"{what} has the dtype number {kind}, which no weight has")
    shape: list[int] = []
    for message in _messages(fields, 2)[-1:]:
        if _number(message, 3) or len(message.get(2, [])) > MAX_RANK:
            raise _Damaged(f"{what} has no definite shape, or over {MAX_RANK} dimensions")
        shape = [_number(dimension, 1) for dimension in _messages(message, 2)]
    # The second check is for a size of 0 among absurd others, which multiplies to nothing.
    if max(shape, default=0) > MAX_ELEMENTS or math.prod(n or 1 for n in shape) > MAX_ELEMENTS:
        raise _Damaged(f"{what} has the absurd shape {tuple(shape)}")
    dtype, stored = _DTYPES[kind]
    shard, offset, size = _number(fields, 3), _number(fields, 4), _number(fields, 5)
    if math.prod(shape) * np.dtype(stored).itemsize != size:
        raise _Damaged(f"{what} of {dtype} {tuple(shape)} cannot have {size} bytes")
    if shard >= shards:
        raise _Damaged(f"{what} lies in data file {shard} of {shards}")
    return TensorEntry(name, dtype, tuple(shape), shard, offset, size, _number(fields, 6))


def _check_places(entries: Iterable[TensorEntry], prefix: Path, shards: int) -> None:
    """Every tensor inside its data file, none over another."""
    path, size, end, last = prefix, 0, 0, -1
    for entry in sorted((e for e in entries if e.size), key=lambda e: (e.shard, e.offset)):
        if entry.shard != last:
            end, last = 0, entry.shard
            path = _shard_path(prefix, entry.shard, shards)
            if not path.is_file():
                raise FilbertError(f"{path} is missing: a checkpoint needs all its data files")
            size = path.stat().st_size
        if entry.offset + entry.size > size:
            raise FilbertError(
                f"{path} has {size} bytes, but variable {plain(entry.name)!r} ends at byte "
                f"{entry.offset + entry.size}: the file is cut short, or the index belongs to "
                "another checkpoint; copy or download both again"
            )
        if entry.offset < end:
            raise _Damaged(f"variable {plain(entry.name)!r} overlaps another one")
        end = entry.offset + entry.size
