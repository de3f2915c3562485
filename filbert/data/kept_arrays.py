"""Arrays that are kept in a file between two calls, with what they belong to.

    keep(path, {"vectors": vectors}, stamp)      # written beside and renamed: whole or not at all
    found = kept(path, stamp)                    # {"vectors": ...}, or None where there is no file

The file is safetensors, so nothing in it can run. Its header holds `stamp`, a text, and a sha256 of
the arrays: what was made for something else is a `StaleError`, a damaged file a `FilbertError`,
and a safetensors file of another program, such as a model, a `ForeignError`: it is not ours to
replace.
Two processes that write it at once leave the whole file of one of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from filbert.atomic import atomic_path, make_folder
from filbert.errors import FilbertError, UsageError
from filbert.layout import MAX_HEADER, check_safetensors, strict_json

Arrays = dict[str, NDArray[Any]]


class StaleError(FilbertError):
    """The file was made for something else."""


class ForeignError(UsageError):
    """The file was written by another program."""


def keep(path: Path, arrays: Mapping[str, NDArray[Any]], stamp: str) -> None:
    """Write these arrays and what they belong to. Raises `FilbertError`."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    make_folder(path.parent)
    with atomic_path(path) as temp:
        try:
            save_file(whole, temp, metadata={"stamp": stamp, "sha256": _digest(whole)})
        except SafetensorError as error:  # such as a full disk
            raise FilbertError(f"could not write {path}: {error}") from None


def kept(path: Path, stamp: str, wanted: Mapping[str, int]) -> Arrays | None:
    """The arrays of a file that `keep` wrote for the same stamp, None where there is no file.

    wanted: the arrays that it must hold, each with its number of dimensions. Raises `ForeignError`
    for a safetensors file that `keep` did not write, `StaleError` for another stamp, `FilbertError`
    for a file that cannot be read, is not as it was written, or holds other arrays.
    """
    while os.path.isfile(path):
        before = _identity(path)
        try:
            return _read(path, stamp, wanted)
        except StaleError:
            raise
        except FilbertError:
            if _identity(path) == before:  # else another process replaced it while it was read
                raise
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file stands there; a new one has another."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(path: Path, stamp: str, wanted: Mapping[str, int]) -> Arrays:
    """The arrays of a file that is there; see `kept`."""
    if _foreign(path):
        raise ForeignError(
            f"{path} is not of filbert, so it is not replaced; move it away, or name another folder"
        )
    shapes = check_safetensors(path)
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            arrays: Arrays = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise FilbertError(f"{path}: {error}") from None
    if told.get("stamp") != stamp:
        raise StaleError(f"{path} belongs to something else")
    if told.get("sha256") != _digest(arrays):
        raise FilbertError(f"{path}: its content is not what was written")
    if {name: array.ndim for name, array in arrays.items()} != wanted:
        raise FilbertError(f"{path}: it holds other arrays than {', '.join(wanted)}")
    return arrays


def _foreign(path: Path) -> bool:
    """Whether a file is safetensors, whole or cut, by another hand than `keep`'s."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                return False
            header = strict_json(file.read(length), what="the header")
    except (OSError, ValueError):
        return False
    told = header.get("__metadata__") if isinstance(header, dict) else None
    return not (isinstance(told, dict) and {"stamp", "sha256"} <= told.keys())


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()
