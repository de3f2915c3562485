"""Arrays that are kept in a file between two calls, with what they belong to.

    keep(path, {"vectors": vectors}, stamp)      # written beside and renamed: whole or not at all
    found = kept(path, stamp)                    # {"vectors": ...}, or None where there is no file

The file is safetensors, so nothing in it can run. Its header holds `stamp`, a text, and a sha256 of
the arrays: what was made for something else is a `StaleError`, a damaged file a `FilbertError`.
Two processes that write it at once leave the whole file of one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from filbert.atomic import atomic_path, make_folder
from filbert.errors import FilbertError
from filbert.layout import check_safetensors

Arrays = dict[str, NDArray[Any]]


class StaleError(FilbertError):
    """The file was made for something else, or by another program."""


def keep(path: Path, arrays: Mapping[str, NDArray[Any]], stamp: str) -> None:
    """Write these arrays and what they belong to. Raises `FilbertError`."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    make_folder(path.parent)
    with atomic_path(path) as temp:
        save_file(whole, temp, metadata={"stamp": stamp, "sha256": _digest(whole)})


def kept(path: Path, stamp: str) -> Arrays | None:
    """The arrays of a file that `keep` wrote for the same stamp, None where there is no file.

    Raises `StaleError` for another stamp, `FilbertError` for a file that cannot be read or is not
    as it was written.
    """
    if not path.exists():
        return None
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
    return arrays


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()
