"""The folder of `filbert prepare`: what may stand there, and what it was begun with.

Nothing that is not of shards is ever touched, and no folder is gone on with under other options, on
another corpus or with another vocabulary: what differs is named.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from filbert.atomic import LOCK
from filbert.data.prepare_options import PrepareOptions
from filbert.data.prepare_work import WORK, State, Streams, read_state
from filbert.data.shards import (
    FILES,
    INDEX,
    MANIFEST,
    NAME,
    VOCAB,
    check_files,
    open_shards,
    read_manifest,
)
from filbert.errors import FilbertError, UsageError

READ_TOKENS = 2**30  # of finished shards that are read whole before unfinished work goes on


def check_folder(out: Path, options: PrepareOptions) -> None:
    """Refuse to write among files that are not of shards."""
    if not out.is_dir():
        return
    names = sorted(path.name for path in out.iterdir())
    ours = {MANIFEST, VOCAB, WORK, LOCK}
    foreign = [
        name for name in names if not (name in ours or NAME.fullmatch(name) or _is_leftover(name))
    ]
    if foreign:
        raise UsageError(
            f"--out {out} holds files that are not of shards ({', '.join(foreign[:5])}); "
            "choose another folder"
        )
    vocab = Path(options.vocab)
    if options.overwrite and vocab.exists() and vocab.resolve().is_relative_to(out.resolve()):
        raise UsageError(
            f"--overwrite: --vocab {vocab} lies in --out {out} and would be deleted; choose "
            "another folder for the shards"
        )
    wrong = [name for name in names if name in ours and _wrong_kind(out / name)]
    wrong += [name for name in names if NAME.fullmatch(name) and not (out / name).is_dir()]
    if wrong and not options.overwrite:
        raise UsageError(
            f"--out {out}: {wrong[0]} is not what was written there; --overwrite replaces it"
        )
    begun = (out / MANIFEST).is_file() or (out / WORK).is_dir()
    if names and not begun and not options.overwrite and any(NAME.fullmatch(n) for n in names):
        raise UsageError(f"--out {out} holds shards without a manifest; --overwrite replaces them")


def _is_leftover(name: str) -> bool:
    return name.startswith(".") and name.endswith((".tmp", ".previous"))


def clear(out: Path) -> None:
    """Take away what an earlier call wrote, the manifest first."""
    remove(out / MANIFEST)
    clear_shards(out)
    for name in (WORK, VOCAB):
        remove(out / name)


def remove(path: Path) -> None:
    """Take away what stands there, if anything: a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _wrong_kind(path: Path) -> bool:
    """Whether one of the names that are ours is a file in place of a folder, or the reverse."""
    return not (path.is_dir() if path.name in (WORK, VOCAB) else path.is_file())


def beside(out: Path) -> Path:
    """The folder in which what is to replace `out` is made. Raises `UsageError` where it cannot be
    put in its place at the end."""
    real = Path(os.path.realpath(out))
    if os.path.ismount(real) or not os.access(real.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"--overwrite: new shards are made beside {out} until they are whole, and "
            f"{real.parent} does not take them; empty the folder first, or choose another one"
        )
    return real.with_name(f".{real.name}.new")


def goes_on(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the folder holds sound work that was begun with the same `record`."""
    try:
        if (folder / MANIFEST).is_file():
            before = read_manifest(folder).model_dump()
            open_shards(folder, verify="index")
        else:
            state = read_state(folder / WORK)
            if state is None:
                return False
            Streams(folder / WORK, state.streams)
            check_finished(folder, state)
            before = state.record.model_dump()
        refuse_changes(before, record, folder)
    except (FilbertError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return True


def check_finished(folder: Path, state: State) -> None:
    """Hold the finished shards of unfinished work to their checksums: all their files, or the index
    alone where they are many. Raises `FilbertError` naming the first that is damaged."""
    few = sum(entry.tokens for entry in state.shards) <= READ_TOKENS
    check_files(folder, state.shards, FILES if few else INDEX)


def clear_shards(out: Path) -> None:
    """Take the shards away."""
    for path in sorted(out.iterdir()):
        if NAME.fullmatch(path.name):
            remove(path)


def refuse_changes(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """`UsageError` that names what is other than when the folder was begun."""
    then, options = before["options"], now["options"]
    changed = [
        f"{name} {then.get(name)!r}, now {options[name]!r}"
        for name in options
        if name != "corpus" and then.get(name) != options[name]
    ]
    changed += _changed_files(then.get("corpus", []), options["corpus"])
    changed += [
        f"{told} is another"
        for key, told in (("vocab_sha256", "the vocabulary"), ("filbert", "the version of filbert"))
        if before[key] != now[key]
    ]
    if changed:
        raise UsageError(
            f"--out {out} was begun with other settings: {'; '.join(changed[:5])}. --overwrite "
            "starts again, or choose another folder"
        )


def _changed_files(before: list[list[Any]], now: list[list[Any]]) -> list[str]:
    """What to tell of a corpus whose files are others, or not the same. Items as `fingerprints`."""
    names, others = [str(file[0]) for file in before], [str(file[0]) for file in now]
    if names != others:
        return [f"the corpus was {_some(names)}, is now {_some(others)}"]
    return [
        f"{one[0]} has other content"
        for one, other in zip(before, now, strict=True)
        if one != other
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
