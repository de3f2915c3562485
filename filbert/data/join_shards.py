"""Folders of shards as one: parts of a corpus that were prepared on several machines.

    filbert prepare part-1/ part-2/ --join all/

Token files are not copied but linked where the file system can (they are never changed once they
are written), so joining a terabyte takes seconds and no room.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from filbert import __version__
from filbert.atomic import beside, replace_folder, write_file
from filbert.data.shards import (
    FILES,
    FORMAT,
    MANIFEST,
    SPLITS,
    VOCAB,
    Counts,
    Manifest,
    ShardEntry,
    Shards,
    digest,
    open_shards,
)
from filbert.errors import UsageError

SOURCES = "sources.npy"
MOST_SOURCES = 1 << 16  # their numbers are uint16


def join_shards(parts: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Manifest:
    """Write the new folder `out` with the shards of all `parts`, in their order, and return its
    manifest. The parts stay as they are; documents that two of them hold stay twice.

    Sizes and the index are checked, tokens are not read: `filbert prepare --verify` does that.
    Raises `UsageError` for fewer than two parts, parts that hold the same shards, another
    vocabulary or other marks of Chinese words, an `out` that is there or lies in a part;
    `FilbertError` for damaged parts and a full disk, `KeyboardInterrupt` for a signal.
    """
    out = Path(out)
    if not out.name:
        raise UsageError(f"--join {str(out)!r}: give the name of a new folder")
    if len(parts) < 2:
        raise UsageError(
            f"--join {out} needs two folders of shards or more, got {len(parts)}: "
            "filbert prepare PART-1 PART-2 --join ALL"
        )
    _check_target(out, parts)
    opened = [open_shards(part, verify="index") for part in parts]
    _check_alike(opened)
    sources = list(dict.fromkeys(name for part in opened for name in part.manifest.sources))
    if len(sources) > MOST_SOURCES:
        raise UsageError(
            f"the parts name {len(sources):,} sources; a folder of shards holds {MOST_SOURCES:,}"
        )
    with beside(out) as temp:
        shutil.copytree(opened[0].vocab, temp / VOCAB)
        entries = _link(opened, sources, temp)
        manifest = Manifest(
            format=FORMAT,
            filbert=__version__,
            vocab_size=opened[0].manifest.vocab_size,
            vocab_sha256=opened[0].manifest.vocab_sha256,
            options={"joined": [part.manifest.options for part in opened]},
            sources=sources,
            counts=_sum(part.manifest.counts for part in opened),
            shards=entries,
        )
        text = json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False)
        write_file(temp / MANIFEST, text + "\n")
        open_shards(temp)
        replace_folder(temp, out)
    return manifest


def _check_target(out: Path, parts: Sequence[str | os.PathLike[str]]) -> None:
    """Raise `UsageError` unless `out` is new and apart from the parts."""
    real = out.resolve()
    for part in parts:
        other = Path(part).resolve()
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise UsageError(
                f"--join {out} and the part {part} lie in each other; name a new folder beside it"
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"--join {out}: it is there already; name a new folder, or remove it first"
        )


def _check_alike(parts: Sequence[Shards]) -> None:
    """Raise `UsageError` unless the parts are different folders that one run may read together."""
    first, seen = parts[0], dict[str, Path]()
    for part in parts:
        same = {entry.files["tokens.npy"] for entry in part.manifest.shards}
        if known := same & seen.keys():
            other = seen[min(known)]
            twice = "was given twice"
            if other.resolve() != part.folder.resolve():
                twice = f"holds shards that {other} holds too"
            raise UsageError(f"{part.folder} {twice}; their texts would count twice")
        seen |= dict.fromkeys(same, part.folder)
        if part.manifest.vocab_sha256 != first.manifest.vocab_sha256:
            raise UsageError(
                f"{part.folder} was prepared with another vocabulary than {first.folder}: prepare "
                f"it again with --vocab {first.vocab}"
            )
        words, others = _words(part.manifest.options), _words(first.manifest.options)
        if words != others:
            raise UsageError(
                f"{part.folder} was prepared with --words {words}, {first.folder} with "
                f"{others}: whole words would be masked in a part of the texts alone. "
                "Prepare one of them again"
            )


def _words(options: dict[str, Any]) -> Any:
    while "joined" in options:  # a part that was joined itself; its own parts are alike
        options = options["joined"][0]
    return options.get("words")


def _link(parts: Sequence[Shards], sources: list[str], temp: Path) -> list[ShardEntry]:
    """The shards of all parts under `temp`, with new numbers, and their entries."""
    entries: list[ShardEntry] = []
    number_of = {name: number for number, name in enumerate(sources)}
    for split in SPLITS:
        count = 0
        for part in parts:
            renumbered = np.array([number_of[name] for name in part.manifest.sources], "<u2")
            moved = bool((renumbered != np.arange(len(renumbered))).any())
            for entry, shard in zip(part.manifest.shards, part.shards, strict=True):
                if entry.split != split:
                    continue
                name = f"{split}-{count:05d}"
                count += 1
                folder = temp / name
                folder.mkdir()
                files = dict(entry.files)
                for file in FILES:
                    if file == SOURCES and moved:
                        np.save(folder / file, renumbered[shard.sources])
                        files[file] = digest(folder / file)
                    else:
                        _link_file(part.folder / entry.name / file, folder / file)
                entries.append(entry.model_copy(update={"name": name, "files": files}))
    return entries


def _link_file(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy where the file system has no link between the two."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _sum(counts: Any) -> Counts:
    """What all parts read and kept."""
    total: dict[str, Any] = {}
    for each in counts:
        for name, value in each.model_dump().items():
            if isinstance(value, dict):
                known = total.setdefault(name, {})
                for reason, number in value.items():
                    known[reason] = known.get(reason, 0) + number
            else:
                total[name] = total.get(name, 0) + value
    return Counts(**total)
