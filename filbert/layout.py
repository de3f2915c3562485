"""The files of a model folder that come from strangers, checked before any library opens them.

A downloaded checkpoint is untrusted input. Nothing here runs code from one: JSON is parsed
strictly, a safetensors header must describe its file exactly (no overlap, no hole, no overflow),
an index may name only files beside it, and pickle files (`pytorch_model.bin`) are never opened.
No torch here, so downloads are checked without it.

The safetensors format: 8 bytes little-endian header size, a JSON object
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, then the bytes of the tensors.
Source: https://github.com/huggingface/safetensors (README, "Format").

    >>> check_safetensors(Path("model/model.safetensors"))["bert.pooler.dense.bias"]
    ('F32', (384,))
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from filbert.errors import FilbertError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Bytes. The format allows a header of 100 MB, but parsing one of that size takes minutes and
# gigabytes; the header of a BERT of 24 layers has 0.05 MB.
MAX_HEADER = 10_000_000
_MAX_INDEX = 10_000_000
_MAX_DIMENSIONS = 8  # a BERT has two; more than this is no weight of one

# Bytes of one element; the types that torch can hold.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
    "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip

# Files that hold weights in a form that filbert does not open.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHERS = ("tf_model.h5", "flax_model.msgpack")
_TENSORFLOW = (".ckpt.index", ".ckpt.meta")


def plain(text: object, *, limit: int = 120) -> str:
    """A name out of an untrusted file, fit to be printed: no control characters, not too long."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def strict_json(data: bytes, *, what: str) -> Any:
    """Parse JSON from an untrusted file; `what` names it in the error.

    Raises `FilbertError` for bytes that are not UTF-8 JSON, for a key given twice (two readers
    might each believe another one), for NaN and Infinity, and for nesting without end.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FilbertError(
                f"{what} is damaged or hostile: the key '{plain(twice)}' is given twice"
            )
        return found

    def constant(name: str) -> NoReturn:
        raise FilbertError(f"{what} is damaged: {name} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except FilbertError:
        raise
    except RecursionError:
        raise FilbertError(
            f"{what} is damaged or hostile: its JSON is nested without end"
        ) from None
    except ValueError as error:  # not UTF-8, not JSON, a number of thousands of digits
        raise FilbertError(f"{what} is damaged: it is not valid JSON ({plain(error)})") from error


def check_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Hold a safetensors file against its own header; name -> (dtype, shape) if all is well.

    Only the header is read. Raises `FilbertError` naming the file, and the tensor, where the header
    does not describe the file exactly: a truncated download, damage, or an attack.
    """
    size = _size_of_file(path)
    if size < 8:
        raise _bad(path, f"it has {size} bytes, too few for a safetensors file")
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise _bad(path, f"its header claims {length} bytes; at most {MAX_HEADER} are read")
            if length > size - 8:
                raise _bad(
                    path,
                    f"its header claims {length} bytes, the file has {size - 8} after the first 8",
                )
            raw = file.read(length)
    except OSError as error:
        raise FilbertError(f"could not read {path}: {error.strerror or error}") from error
    if len(raw) != length:
        raise _bad(path, "it became shorter while it was read")
    if raw[:1] != b"{":
        raise _bad(path, "its header is no JSON object")
    header = strict_json(raw, what=f"the header of {path}")
    if not isinstance(header, dict):
        raise _bad(path, "its header is no JSON object")
    _check_metadata(path, header.pop("__metadata__", {}))
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _check_entry(path, name, entry)
        tensors[name] = dtype, shape
        spans.append((begin, end, name))
    _check_spans(path, sorted(spans), size - 8 - length)
    return tensors


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "its __metadata__ must map text to text")


def _check_entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    where = f"tensor '{plain(name)}'"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise _bad(
            path,
            f"{where} has the unknown dtype '{plain(dtype)}'; known are {', '.join(ITEM_SIZES)}",
        )
    if not _are_sizes(shape):
        raise _bad(
            path, f"{where} has the shape {plain(shape)}; expected a list of whole numbers from 0"
        )
    # A zero would hide absurd neighbours in the product, and torch multiplies them all the same.
    if len(shape) > _MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= 2**60:
        raise _bad(path, f"{where} has the absurd shape {plain(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, f"{where} has the data_offsets {plain(offsets)}; expected [begin, end]")
    begin, end = offsets
    needed = math.prod(shape) * ITEM_SIZES[dtype]  # Python's integers do not overflow
    if needed != end - begin:
        raise _bad(
            path,
            f"{where} of shape {shape} and dtype {dtype} needs {needed} bytes, "
            f"its data_offsets give {end - begin}",
        )
    return dtype, tuple(shape), begin, end


def _are_sizes(value: Any) -> bool:
    # `type`, for True and False are whole numbers to isinstance.
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], available: int) -> None:
    position = 0
    for begin, end, name in spans:
        if begin < position:
            raise _bad(
                path,
                f"tensor '{plain(name)}' overlaps the tensor before it (byte {begin} < {position})",
            )
        if begin > position:
            raise _bad(
                path,
                f"bytes {position} to {begin} before tensor '{plain(name)}' belong to no tensor",
            )
        position = end
    if position > available:
        raise _bad(
            path,
            f"its tensors need {position} bytes of data, the file has {available}: it is truncated",
        )
    if position < available:
        raise _bad(path, f"{available - position} bytes at its end belong to no tensor")


def read_index(path: Path) -> dict[str, str]:
    """The map tensor name -> shard file of a sharded checkpoint's index, every name checked.

    A shard is a plain `.safetensors` name beside the index: no folder, no `..`. That the files are
    there is for the caller to check. Raises `FilbertError`.
    """
    if _size_of_file(path) > _MAX_INDEX:
        raise _bad(path, f"it is larger than {_MAX_INDEX} bytes")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FilbertError(f"could not read {path}: {error.strerror or error}") from error
    index = strict_json(data, what=str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(path, "it has no 'weight_map' from tensor names to files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_shard_name(shard):
            raise _bad(
                path,
                f"it puts tensor '{plain(name)}' into '{plain(shard)}'; only .safetensors files "
                f"beside the index are read",
            )
    return weight_map


def is_shard_name(name: str) -> bool:
    """Whether `name` is a plain file name of a shard, which cannot lead out of its folder."""
    return (
        name.endswith(".safetensors")
        and not name.startswith(".")
        and len(name) < 200
        and not any(c in '/\\:*?"<>|' or not c.isprintable() for c in name)
    )


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, with links followed, lies in `folder`, or in the hub cache around `folder`.

    That cache keeps files as links, `models--x/snapshots/<commit>/file` -> `../../blobs/<hash>`,
    and those may link to a store at the root of the cache.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parents[2]
    return path.resolve().is_relative_to(root)


def refuse_other_weights(source: str, files: Iterable[str]) -> FilbertError:
    """The error for a model without safetensors, and what to do about the weights that it has.

    `source` is the folder or hub name, `files` are the names of the files that it holds.
    """
    names = sorted({plain(name) for name in files})
    if any(name.endswith(_TENSORFLOW) for name in names):
        return FilbertError(
            f"'{plain(source)}' holds a TensorFlow checkpoint, not {SINGLE}. "
            f"Convert it once: filbert convert FOLDER OUT (no TensorFlow is needed), then use OUT."
        )
    pickles = [name for name in names if name.endswith(_PICKLES) or name in _OTHERS]
    if not pickles:
        return FilbertError(
            f"'{plain(source)}' holds no weights: expected {SINGLE}, or {INDEX} with its shards. "
            f"It has: {', '.join(names[:12]) or 'nothing'}."
        )
    return FilbertError(
        f"'{plain(source)}' holds its weights only as {', '.join(pickles[:3])}. Such a file can "
        f"run any code when it is opened, so filbert opens none. Convert it once, in a container "
        f"without anything of value (pip install transformers torch), with this script:\n\n"
        f"    import transformers\n"
        f"    name = {plain(source)!r}  # there: the folder with the files\n"
        f"    config = transformers.AutoConfig.from_pretrained(name)\n"
        f"    kind = getattr(transformers, (config.architectures or ['AutoModel'])[0])\n"
        f"    kind.from_pretrained(name).save_pretrained('converted')\n"
        f"    transformers.AutoTokenizer.from_pretrained(name).save_pretrained('converted')\n\n"
        f"Then use the folder 'converted'. On the hub a converted copy often waits as a pull "
        f"request: look there first, and give its revision (such as refs/pr/1)."
    )


def _size_of_file(path: Path) -> int:
    try:
        status = os.stat(path)
    except OSError as error:
        raise FilbertError(f"could not read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
        raise FilbertError(f"{path} must be a file, but is {kind}")
    return status.st_size


def _bad(path: Path, reason: str) -> FilbertError:
    return FilbertError(
        f"{path} is damaged or hostile: {reason}. Get the file again, or another copy of it."
    )
