"""Weights on disk and into a model: safetensors, whole or in shards, in the Hugging Face layout.

`read_weights` and `write_weights` know files, `load_into` knows names: which tensor of a checkpoint
belongs to which of the model, and what to say about the rest. A file from a stranger is held
against its own header (`filbert/layout.py`) before the safetensors library maps it into memory;
pickle files are never opened. A write leaves the earlier weights whole until the new ones are on
the disk, shards included.

    >>> tensors = read_weights(Path("model"))
    >>> print(load_into(model, tensors, source="model", may_be_missing=("classifier.",)))
    >>> write_weights(model.state_dict(), Path("out"))
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from filbert.atomic import cannot_write, sync
from filbert.errors import FilbertError
from filbert.layout import (
    INDEX,
    SINGLE,
    check_safetensors,
    plain,
    read_index,
    refuse_other_weights,
    stays_inside,
)
from filbert.model.names import from_pytorch

Names = Callable[[str], bool] | tuple[str, ...]  # a test of a name, or beginnings of names

_TEMPORARY = ".weights.saving"  # one fixed name: what a killed save leaves, the next one removes
_OS_ERROR = re.compile(r"\(os error ([0-9]{1,5})\)")
# Constants that some versions of Transformers kept among the weights.
_CONSTANTS = ("embeddings.position_ids", "embeddings.token_type_ids")
_WORDS = "embeddings.word_embeddings.weight"
_OURS = re.compile(
    r"model(-[0-9]+)?-[0-9]{5}-of-[0-9]{5}\.safetensors|model\.safetensors(\.index\.json)?"
)
_DRAWN = "keeps its initial values"
_MAX_ROWS = 40  # another architecture would fill the screen


def read_weights(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a model folder by name, on the CPU, mapped from the file where possible.

    Reads `model.safetensors`, else `model.safetensors.index.json` and the shards that it names.
    Raises `FilbertError` naming file and tensor for anything damaged, hostile or absent; for a
    folder with pickled or TensorFlow weights alone it says how to convert them.
    """
    folder = Path(folder)
    if (folder / SINGLE).exists():
        return _read_file(folder / SINGLE)
    if (folder / INDEX).exists():
        return _read_shards(folder)
    try:
        present = os.listdir(folder)
    except OSError as error:
        raise FilbertError(f"could not read the folder {folder}: {error.strerror}") from error
    raise refuse_other_weights(str(folder), present)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    weight_map = read_index(folder / INDEX)
    shards = sorted(set(weight_map.values()))
    lacking = [shard for shard in shards if not (folder / shard).exists()]
    if lacking:
        raise FilbertError(
            f"{folder} lacks {len(lacking)} of the {len(shards)} files that {INDEX} names: "
            f"{', '.join(lacking[:5])}. Copy or download them into the folder."
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        path = folder / shard
        if not stays_inside(path, folder):
            raise FilbertError(
                f"{path} is a link that leads out of its folder; copy the file there"
            )
        content = _read_file(path)
        twice = tensors.keys() & content.keys()
        if twice:
            raise FilbertError(f"{path} holds '{plain(min(twice))}', which another shard holds too")
        absent = [
            name for name, home in weight_map.items() if home == shard and name not in content
        ]
        if absent:
            raise FilbertError(f"{path} lacks '{plain(absent[0])}', which {INDEX} places there")
        tensors.update(content)
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    names = check_safetensors(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise FilbertError(f"could not read {path}: {plain(error)}") from error


def write_weights(
    tensors: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the tensors of a model to an existing folder as Transformers does.

    One `model.safetensors`, or shards of at most `max_shard_bytes` with their index. Of tensors
    that share their memory (tied weights) the first is written alone. Weights that were in the
    folder stay whole and readable until the new ones are on the disk, and are removed then.

    Raises `FilbertError` where they cannot be written (disk full); nothing has changed then.
    """
    folder = Path(folder)
    shards = _split(_without_twins(tensors), max_shard_bytes)
    names = _shard_names(folder, len(shards))
    temp = folder / _TEMPORARY
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir()
        for name, shard in zip(names, shards, strict=True):
            _save(shard, temp / name)
        if len(shards) > 1:
            (temp / INDEX).write_text(_index(names, shards), encoding="utf-8")
            sync(temp / INDEX)
        # Shards have names of their own, so the old weights are readable up to the last rename.
        for name in names:
            os.replace(temp / name, folder / name)
        if len(shards) > 1:
            sync(folder)
            os.replace(temp / INDEX, folder / INDEX)
        sync(folder)
        _remove_others(folder, names)
    except OSError as error:
        there = INDEX if (folder / INDEX).exists() else SINGLE
        raise cannot_write(folder / there, error) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _without_twins(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[object, ...]] = set()
    storages: set[tuple[str, int]] = set()
    kept: dict[str, Tensor] = {}
    for name, given in tensors.items():
        tensor = given.detach()
        assert tensor.device.type != "meta", f"{name} has no data"
        storage = (str(tensor.device), tensor.untyped_storage().data_ptr())
        view = (*storage, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in seen:
            continue
        seen.add(view)
        # Two views of one memory that are not the same view: each gets its own copy.
        kept[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}


def _split(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = max_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _shard_names(folder: Path, count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    start, again = "model", 1
    while (folder / f"{start}-00001-of-{count:05}.safetensors").exists():
        again += 1
        start = f"model-{again}"
    return [f"{start}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _index(names: Sequence[str], shards: Sequence[dict[str, Tensor]]) -> str:
    every = [tensor for shard in shards for tensor in shard.values()]
    metadata = {
        "total_parameters": sum(tensor.numel() for tensor in every),
        "total_size": sum(tensor.nbytes for tensor in every),
    }
    places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    weight_map = dict(sorted(places.items()))
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n"


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with open(path, "wb") as file:  # the library would keep the file from everybody else (0600)
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = _OS_ERROR.search(str(error))
        raise OSError(int(code[1]) if code else None, str(error)) from error
    os.chmod(path, mode)
    sync(path)


def _remove_others(folder: Path, names: Sequence[str]) -> None:
    """Remove the weights that were there before, the one that readers look for first at first."""
    old = sorted(entry.name for entry in folder.iterdir() if _OURS.fullmatch(entry.name))
    for name in sorted(old, key=lambda name: name != SINGLE):
        if name not in names and not (name == INDEX and len(names) > 1):
            (folder / name).unlink()


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors: `str()` is a table, `bool()` says if there is one.

    `missing`, `unexpected` and `mismatched` are names: the first and the last the model's, the
    other the checkpoint's. `rows` are the table's: tensor, there, here, what happens.
    """

    source: str
    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        title = f"{plain(self.source)}: {self.loaded} tensors loaded"
        if not self.rows:
            return f"{title}, and nothing else to tell"
        head = ("tensor", "in the checkpoint", "in the model", "what happens")
        shown = [head, *self.rows[:_MAX_ROWS]]
        widths = [max(len(row[column]) for row in shown) for column in range(4)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in shown
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        if len(self.rows) > _MAX_ROWS:
            lines.append(f"... and {len(self.rows) - _MAX_ROWS} more")
        return "\n".join([f"{title}; the others:", *lines])


def load_into(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    may_be_missing: Names = (),
    ignore_unexpected: Names = (),
) -> LoadReport:
    """Copy a checkpoint's tensors into a model in place, in the model's types and on its devices.

    Names may be ours or those of older PyTorch files (no `bert.`, `gamma` / `beta`). What the model
    has and the checkpoint lacks, or has in another shape, keeps its initial values if
    `may_be_missing` allows it. What only the checkpoint has is left out, and told unless
    `ignore_unexpected` says not to. Of tied weights one is enough.

    Raises `FilbertError` with the table, and leaves the model as it was, if an encoder's weight is
    missing or mis-shaped.
    """
    ours: dict[str, Tensor] = model.state_dict(keep_vars=True)
    found, report = _match_names(ours, tensors, source=source, ignore=ignore_unexpected)
    _check_words(ours, tensors, found, source=source)
    homes: dict[int, str] = {}  # id of a tensor of the model -> the name it is loaded by
    for name, tensor in ours.items():
        given = tensors.get(found.get(name, ""))
        if given is None:
            continue
        if given.shape != tensor.shape or given.is_floating_point() != tensor.is_floating_point():
            report.mismatched.append(name)
            report.rows.append((plain(name), _describe(given), _describe(tensor), _DRAWN))
        elif id(tensor) not in homes:
            homes[id(tensor)] = name
        elif not torch.equal(tensors[found[homes[id(tensor)]]], given):
            report.unexpected.append(found[name])
            told = f"left out: the model shares {homes[id(tensor)]}"
            report.rows.append((plain(found[name]), _describe(given), "the same", told))
    for name, tensor in ours.items():
        if id(tensor) not in homes and name not in found:
            report.missing.append(name)
            report.rows.append((plain(name), "-", _describe(tensor), _DRAWN))
    wrong = [n for n in (*report.missing, *report.mismatched) if not _fits(n, may_be_missing)]
    if wrong:
        raise FilbertError(
            f"the weights of '{plain(source)}' do not fit {type(model).__name__}: {len(wrong)} of "
            f"its {len(ours)} tensors are missing or mis-shaped, '{wrong[0]}' for one. Check that "
            f"config.json and weights belong together and are a BERT's.\n{report}"
        )
    with torch.no_grad():
        for name in homes.values():
            ours[name].copy_(tensors[found[name]])
    report.loaded = len(homes)
    return report


def _match_names(
    ours: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str, ignore: Names
) -> tuple[dict[str, str], LoadReport]:
    """Our name -> the checkpoint's; what matches no name of ours goes into the report."""
    found = {name: name for name in tensors if name in ours}
    report = LoadReport(source)
    for name in tensors:
        full = from_pytorch(name)
        # With and without the model's name in front, a BERT's and a ModernBERT's.
        spelt = (full, full.removeprefix("bert."), f"model.{name}", name.removeprefix("model."))
        free = (n for n in spelt if n in ours and n not in found)
        if name in ours or name.endswith(_CONSTANTS):
            continue
        if (match := next(free, None)) is not None:
            found[match] = name
        elif not _fits(name, ignore) and not _fits(full, ignore):
            report.unexpected.append(name)
            report.rows.append((plain(name), _describe(tensors[name]), "-", "left out"))
    return found, report


def _check_words(
    ours: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    found: Mapping[str, str],
    *,
    source: str,
) -> None:
    for name in found:
        given, own = tensors[found[name]].shape, ours[name].shape
        if name.endswith(_WORDS) and len(given) == 2 and given[0] != own[0]:
            raise FilbertError(
                f"'{plain(source)}' has word embeddings of {given[0]} tokens, but its config says "
                f"vocab_size {own[0]}. Use the config.json that belongs to these weights."
            )


def check_vocabulary(tokens: int, rows: int, *, source: str) -> None:
    """Hold the number of tokens of a vocabulary against the rows of the word embeddings.

    Rows beyond the vocabulary are accepted where they round it up to a multiple of 8, fewer than
    128 of them, as trainings on GPUs do. Raises `FilbertError` naming both numbers.
    """
    if tokens == rows or (tokens < rows < tokens + 128 and rows % 8 == 0):
        return
    reason = "longer" if tokens > rows else "shorter"
    raise FilbertError(
        f"the vocabulary of '{plain(source)}' is {reason} than its word embeddings: {tokens} "
        f"tokens, {rows} rows. Use the tokenizer files that belong to these weights."
    )


def _fits(name: str, names: Names) -> bool:
    return name.startswith(names) if isinstance(names, tuple) else names(name)


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
