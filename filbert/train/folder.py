"""The folder of a run: made, guarded against mixing two runs, and described for later readers."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import filbert
from filbert.atomic import write_file
from filbert.bundle import MANIFEST
from filbert.data.examples import Examples
from filbert.errors import FilbertError, UsageError
from filbert.train.options import ClassifyOptions, parse_options, read_recipe

RECIPE = "recipe.toml"
ENVIRONMENT = "environment.json"
SEEDS = "seeds.json"
BUNDLE_FILES = {
    MANIFEST, "README.md", "config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt", "special_tokens_map.json",
}  # fmt: skip
RUN_FILES = {RECIPE, ENVIRONMENT, SEEDS, "metrics.jsonl", "evaluation.json", "report.html"}
# Options that may differ when a run is resumed: they do not change what is learned.
FREE = {"resume", "overwrite", "out", "keep_checkpoints", "tensorboard", "threads", "save_every"}


def check_folder(out: Path, options: ClassifyOptions) -> None:
    """Refuse to mix two runs, or to write among files that are not of a run. Changes nothing."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    content = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = bool(content & {RECIPE, MANIFEST})
    if content and not (options.resume or options.overwrite):
        way = (
            "--resume goes on with it, --overwrite starts again"
            if ours
            else "choose another folder"
        )
        raise UsageError(f"--out {out} is not empty; {way}")
    if content and not ours:
        raise UsageError(
            f"--out {out} holds files that are not of a filbert run; choose another folder"
        )
    if options.resume and (out / RECIPE).is_file():
        before = parse_options(read_recipe(out / RECIPE), source=str(out / RECIPE))
        changed = [
            name
            for name in ClassifyOptions.model_fields
            if name not in FREE and getattr(before, name) != getattr(options, name)
        ]
        if changed:
            raise UsageError(
                f"--resume: {out} was started with other settings: "
                + ", ".join(
                    f"{n} {getattr(before, n)!r}, now {getattr(options, n)!r}" for n in changed
                )
            )


def claim_folder(out: Path, options: ClassifyOptions) -> None:
    """Make the folder this run's: clear an older run away, keep the recipe."""
    if options.overwrite and not options.resume and out.is_dir():
        for path in out.iterdir():
            known = path.name in RUN_FILES | BUNDLE_FILES | {"checkpoints", "tensorboard"}
            if known or path.name.startswith("seed-"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / RECIPE, recipe_text(options))


def recipe_text(options: ClassifyOptions) -> str:
    """The options as TOML, those that are set."""
    lines = [
        f"{k} = {json.dumps(v, ensure_ascii=False)}"
        for k, v in options.model_dump().items()
        if v is not None
    ]
    return "\n".join(lines) + "\n"


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
) -> None:
    """Write `environment.json`; a resumed run must have the data it was started with."""
    path = out / ENVIRONMENT
    if resume and path.is_file():
        started = json.loads(path.read_text("utf-8"))
        before = started.get("data_sha256")
        for name, now in (("threads", torch.get_num_threads()), ("torch", torch.__version__)):
            if started.get(name) != now:
                was = started.get(name)
                warn(f"resumed with {name} {now}, started with {was}: the last bits may differ")
        if before is not None and before != data:
            raise FilbertError(
                f"--resume: the rows are not those that {out} was started with (their checksum "
                "differs); train on the same files, or start again with --overwrite"
            )
    described = {**environment(device, dtype, reason), "data_sha256": data}
    write_file(path, json.dumps(described, indent=2) + "\n")


def digest_of_examples(*parts: Examples) -> str:
    """A sha256 of all texts and labels, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr((part.texts, part.pairs, part.labels)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
