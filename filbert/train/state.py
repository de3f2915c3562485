"""Checkpoints of a run: atomic, checksummed, rotated. A kill at any moment leaves a whole one.

    run/checkpoints/step-000000400/state.safetensors   weights (float32), moments, averages
    run/checkpoints/step-000000400/state.json          position, running sums, best so far, sha256
                                                       of the weights and of the record itself
    run/checkpoints/best-000000300/...                 weights of the best evaluation

A checkpoint is written under a temporary name, synced and renamed; the one before is removed only
after that. Random numbers need no saving: each step's generator is a function of (seed, step).
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from filbert.atomic import cannot_write, replace_folder
from filbert.errors import FilbertError

KEEP = 2
OWN = "record_sha256"  # the checksum of state.json itself; the first versions wrote none


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back and found whole."""

    folder: Path
    record: dict[str, Any]
    tensors: dict[str, Tensor]


def save(run: Path, name: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Write `run/checkpoints/<name>` whole or not at all. Raises `FilbertError` if the disk is
    full; the checkpoints before stay as they were."""
    parent = run / "checkpoints"
    target, temporary = parent / name, parent / f".{name}.writing"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        weights = temporary / "state.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, weights)
        record = {**record, "sha256": digest(weights)}
        text = json.dumps({**record, OWN: digest_of_record(record)})
        (temporary / "state.json").write_text(text, "utf-8")
    except SafetensorError as error:  # the library's word for a failed write
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(target, OSError(errno.ENOSPC, str(error))) from error
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(target, error) from error
    replace_folder(temporary, target)
    return target


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint. Raises `FilbertError` naming the file that is broken."""
    weights = folder / "state.safetensors"
    try:
        record = dict(json.loads((folder / "state.json").read_text("utf-8")))
        own = record.pop(OWN, None)
        if own is not None and own != digest_of_record(record):
            raise FilbertError(f"{folder / 'state.json'} does not match its checksum")
        if digest(weights) != record.pop("sha256"):
            raise FilbertError(f"{weights} does not match its checksum")
        return Checkpoint(folder, record, load_file(weights))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FilbertError(f"checkpoint {folder} is broken: {error}") from None


def newest(run: Path, *, warn: Any) -> Checkpoint | None:
    """The newest whole checkpoint of a run, None if it has none yet; a broken one is told through
    `warn` and passed over. Raises `FilbertError` where every one is broken."""
    folders = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    for number, folder in enumerate(folders):
        try:
            found = read(folder)
            progress = found.record.get("progress")
            if isinstance(progress, dict) and "step" in progress:
                return found
            raise FilbertError(f"{folder / 'state.json'} does not say where the run stood")
        except FilbertError as error:
            last = number == len(folders) - 1
            warn(str(error) if last else f"{error}; going back to the one before")
    if folders:
        raise FilbertError(
            f"no whole checkpoint is left in {run / 'checkpoints'}; start again with --overwrite"
        )
    return None


def clear_unfinished(run: Path) -> None:
    """Remove what saves that were killed left; no other process may be saving."""
    for half in (run / "checkpoints").glob(".*.writing"):
        shutil.rmtree(half, ignore_errors=True)  # a rest harms nobody


def prune(run: Path, *, keep_best: str | None) -> None:
    """Remove all but the newest `KEEP` checkpoints and the best weights named."""
    parent = run / "checkpoints"
    for old in sorted(parent.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    for old in parent.glob("best-*"):
        if old.name != keep_best:
            shutil.rmtree(old)


def digest_of_record(record: dict[str, Any]) -> str:
    """The sha256 of a record as JSON; the same for one that was read back."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
