"""The folder of a run: made, guarded against mixing two runs, and described for later readers."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import filbert
from filbert.atomic import LOCK, clear_leftovers, write_file
from filbert.bundle import MANIFEST
from filbert.data.examples import Examples
from filbert.errors import FilbertError, UsageError
from filbert.train.options import RunOptions, parse_options, read_recipe

RECIPE = "recipe.toml"
ENVIRONMENT = "environment.json"
SEEDS = "seeds.json"
WRITTEN = "# written by filbert: the options of the run in this folder"
BUNDLE_FILES = {
    MANIFEST, "README.md", "config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt", "special_tokens_map.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "generation_config.json", "model.safetensors.index.json",
}  # fmt: skip
BUNDLE_FOLDERS = {"1_Pooling", "2_Normalize", "decoder_tokenizer"}  # of one task or another
# the shards of large weights, and the runs of several seeds
NUMBERED = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|seed-\d{1,20}")
RUN_FILES = {RECIPE, ENVIRONMENT, SEEDS, "metrics.jsonl", "evaluation.json", "report.html"}
# Options that may differ when a run is resumed: they do not change what is learned.
FREE = {
    *("resume", "overwrite", "out", "keep_checkpoints", "tensorboard", "threads", "save_every"),
    *("workers", "parallel", "compile"),  # up to rounding
}


def check_folder(
    out: Path,
    options: RunOptions,
    *,
    free: Set[str] = frozenset(),
    rounding: Set[str] = frozenset(),
) -> list[str]:
    """Refuse to mix two runs, to write among files that are not of a run, or to overwrite what the
    new run is to learn from. Changes nothing.

    free, rounding: names of options that may differ as well where this run is resumed; those of
    `rounding` change the result a little. Returns what is to be told of them."""
    if options.resume and options.overwrite:
        raise UsageError("--resume goes on with a run, --overwrite starts it again; give one")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    content = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    content = [name for name in content if not leftover(name)]
    if not content:
        return []
    if not is_run(out):
        raise UsageError(
            f"--out {out} holds files that are not of a filbert run ({content[0]} ...); "
            "choose another folder"
        )
    if not (options.resume or options.overwrite):
        raise UsageError(
            f"--out {out} is not empty; --resume goes on with it, --overwrite starts again"
        )
    if options.overwrite:
        foreign = [name for name in content if not is_ours(name)]
        if foreign:
            raise UsageError(
                f"--overwrite: {out} also holds {', '.join(foreign[:5])}, which no run wrote; "
                "take it out first, or choose another folder"
            )
        for name in READ:
            value = getattr(options, name, None)
            if (
                value
                and os.path.exists(value)
                and Path(value).resolve().is_relative_to(out.resolve())
            ):
                raise UsageError(
                    f"--overwrite: --{name.replace('_', '-')} {value} lies in --out {out} and "
                    "would be deleted; choose another folder for the new run"
                )
        return []
    before = parse_options(read_recipe(out / RECIPE), type(options), source=str(out / RECIPE))
    changed = {
        name: f"{name} {getattr(before, name)!r}, now {getattr(options, name)!r}"
        for name in type(options).model_fields
        if name not in FREE | free and getattr(before, name) != getattr(options, name)
    }
    if refused := [text for name, text in changed.items() if name not in rounding]:
        raise UsageError(f"--resume: {out} was started with other settings: {', '.join(refused)}")
    return [
        f"resumed with other settings: {', '.join(changed.values())}. The samples of each step "
        "stay the same; dropout and rounding do not, so the result differs in the last bits or more"
    ] if changed else []  # fmt: skip


def is_run(out: Path) -> bool:
    """Whether filbert wrote the recipe in this folder; one written by a person does not count."""
    try:
        with open(out / RECIPE, encoding="utf-8") as file:
            return file.readline().rstrip() == WRITTEN
    except (OSError, UnicodeDecodeError):
        return False


# options that name what a run reads, perhaps as a path
READ = (
    "base", "data", "dev", "test", "teacher", "unlabelled", "decoder",
    "target_data", "target_dev", "target_test", "target_vocab",
)  # fmt: skip


def is_ours(name: str) -> bool:
    """Whether a run writes a file or folder of this name."""
    known = RUN_FILES | BUNDLE_FILES | BUNDLE_FOLDERS | {"checkpoints", "tensorboard"}
    return name in known or NUMBERED.fullmatch(name) is not None


def leftover(name: str) -> bool:
    """Whether this is what a killed writer leaves (see filbert.atomic), or the lock of a run."""
    return name == LOCK or (name.startswith(".") and name.endswith(".tmp"))


def claim_folder(out: Path, options: RunOptions) -> None:
    """Make the folder this run's: clear an older run away, keep the recipe."""
    if out.is_dir():
        for path in out.iterdir():
            if options.overwrite and is_ours(path.name):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        clear_leftovers(out)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / RECIPE, recipe_text(options))


def recipe_text(options: RunOptions) -> str:
    """The options as TOML, those that are set."""
    return "\n".join([WRITTEN, *(f"{k} = {toml(v)}" for k, v in values(options).items())]) + "\n"


def values(options: RunOptions) -> dict[str, Any]:
    """The options that are set."""
    return {name: value for name, value in options.model_dump().items() if value is not None}


def toml(value: Any) -> str:
    """A value as TOML; a table stands in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def environment(device: torch.device, dtype: torch.dtype, reason: str) -> dict[str, Any]:
    """Where a run took place."""
    return {
        "filbert": filbert.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "precision": f"{dtype} ({reason})",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def record_environment(
    out: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    reason: str,
    data: str,
    resume: bool,
    warn: Callable[[str], None],
    processes: int = 1,
) -> None:
    """Write `environment.json`; a resumed run must have the data it was started with."""
    path = out / ENVIRONMENT
    if resume and path.is_file():
        try:
            started = dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError):
            warn(f"{path} is damaged; whether the rows are the same cannot be checked")
            started = {}
        before = started.get("data_sha256")
        for name, now in (
            ("threads", torch.get_num_threads()),
            ("torch", torch.__version__),
            ("processes", processes),
        ):
            if name in started and started[name] != now:
                was = started.get(name)
                warn(f"resumed with {name} {now}, started with {was}: the last bits may differ")
        if before is not None and before != data:
            raise FilbertError(
                f"--resume: the rows are not those that {out} was started with (their checksum "
                "differs); train on the same files, or start again with --overwrite"
            )
    described = {
        **environment(device, dtype, reason), "processes": processes, "data_sha256": data
    }  # fmt: skip
    write_file(path, json.dumps(described, indent=2) + "\n")


def digest_of_examples(*parts: Examples) -> str:
    """A sha256 of all texts and labels, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr((part.texts, part.pairs, part.labels)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
