"""A fine-tuning run, whatever the task: from options to a bundle, through the loop.

runs/reviews/   the finished bundle (see filbert.bundle), and beside it
    recipe.toml environment.json   what was asked for and where it ran
    metrics.jsonl tensorboard/     loss and scores by step
    evaluation.json report.html    the final scores, and a page to look at
    checkpoints/                   while training lasts
    seed-42/ seed-43/ ...          with --seeds: each run; the best one's bundle is copied up

A task hands over two functions: `read` takes the options and returns its data, once for all seeds;
`build` makes of them a `Job`: a model and what the loop asks for. `filbert/train/classify.py` is
the one to read first.
"""

from __future__ import annotations

import copy
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

import filbert
from filbert.atomic import locked, write_file
from filbert.bundle import MANIFEST, Manifest, check_tokenizer, read_manifest, save_bundle
from filbert.data.packing import Ids
from filbert.errors import UsageError
from filbert.model.config import dropouts
from filbert.model.device import choose_device, choose_precision
from filbert.model.modern_config import read_any_config
from filbert.model.pretrained import PretrainedModel
from filbert.sources import resolve
from filbert.tasks import metrics
from filbert.text import BertTokenizer
from filbert.train import folder, loop, state
from filbert.train.optim import make_optimizer, unused_row_factor
from filbert.train.options import TuneOptions
from filbert.train.plan import Plan
from filbert.train.report import REPORT_FILE, write_report
from filbert.train.track import Tracker
from filbert.train.trim import TrimmedEmbedding


@dataclass
class TrainResult:
    """What a run gave. `scores` are of the test set if there is one, else of the dev set."""

    out: Path
    scores: dict[str, Any]
    best_step: int
    steps: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    seeds: list[dict[str, Any]] = field(default_factory=list)  # seed, dev scores, scores of each
    gain: float = float("-inf")  # the dev score that picked the best step; higher is better


@dataclass(frozen=True)
class Machine:
    """Where and in what precision a run computes; `reason` tells why, in words."""

    device: torch.device
    dtype: torch.dtype
    reason: str


class TaskData(Protocol):
    """The examples of a run: each task has its own kind, with these two in common."""

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say."""
        ...

    def digest(self) -> str:
        """A sha256 of all examples, in order: a resumed run must have the same."""
        ...


def nothing(model: PretrainedModel) -> None:
    """The usual last change of a trained model: none."""


@dataclass
class Job:
    """What a task hands to the run, for one seed. Nothing is written yet when it is made.

    model: float32, on the CPU. tokens: (examples,) int64 tokens of each training example, all its
    windows together: what the plan packs into batches. batch_loss: the sum of the losses of these
    examples, and `loop.counted` of them. evaluate: scores on the dev set, `loss` and `metric` among
    them. names: of examples, for messages. lines: told at the start. finish: the manifest and what
    `evaluation.json` holds ("scores" among it), from the best weights in computing precision; in
    that order of time: after training, before `settle`, the last change of the float32 weights.
    """

    model: PretrainedModel
    tokenizer: BertTokenizer
    base: Path
    tokens: Ids
    batch_loss: Callable[[nn.Module, Ids], tuple[Tensor, Tensor]]
    evaluate: Callable[[nn.Module], dict[str, Any]]
    metric: str
    names: Callable[[Ids], list[str]]
    finish: Callable[[Any], tuple[Manifest, dict[str, Any]]]
    lines: list[str] = field(default_factory=list)
    trimmed: TrimmedEmbedding | None = None
    settle: Callable[[Any], None] = nothing
    write_extra: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Base:
    """What a run starts from: the folder, its tokenizer, the changes that options make to its
    configuration, and how it reads a text."""

    folder: Path
    tokenizer: BertTokenizer
    changes: dict[str, Any]
    max_length: int
    stride: int


def open_base(options: TuneOptions) -> Base:
    """The base of a run. Raises `FilbertError` where there is none, or its parts do not fit."""
    base = resolve(options.base, revision=options.revision)
    tokenizer = BertTokenizer.from_pretrained(base)
    config = read_any_config(base)
    check_tokenizer(tokenizer, config, source=str(base))
    changes: dict[str, Any] = {}
    if options.dropout is not None:
        changes |= dropouts(config, options.dropout)
    limit = config.max_position_embeddings
    length = min(options.max_length or limit, limit)
    return Base(base, tokenizer, changes, length, min(options.stride, max(0, (length - 4) // 2)))


Options = TypeVar("Options", bound=TuneOptions)
Data = TypeVar("Data", bound=TaskData)
Build = Callable[[Options, Data, Machine], Job]


def tune(
    options: Options, *, read: Callable[[Options], Data], build: Build[Options, Data],
    quiet: bool = False,
) -> TrainResult:  # fmt: skip
    """Train as `options` say and write the bundle to `options.out`.

    With `options.seeds` above one, that many runs with consecutive seeds; the best on the dev set
    becomes the bundle. Raises `FilbertError` with what to mend; `loop.Interrupted` after a signal,
    with a checkpoint saved.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if not options.out:
        raise UsageError("--out is empty; give a folder")
    out = Path(options.out)
    folder.check_folder(out, options)
    if options.resume and (out / MANIFEST).is_file():
        return finished(out)
    data = read(options)
    device = choose_device(options.device)
    machine = Machine(device, *choose_precision(options.precision, device))
    # whatever a wrong option or base can break, breaks here, before anything is written
    torch.manual_seed(options.seed)  # decides the new head
    job = build(options, data, machine)
    with locked(out, doing="trains in"):
        folder.claim_folder(out, options)
        if options.seeds == 1:
            return run_seed(options, data, job, machine, out, quiet=quiet)
        del job  # each seed draws a head of its own
        results = []
        for seed in range(options.seed, options.seed + options.seeds):
            place = out / f"seed-{seed}"
            place.mkdir(exist_ok=True)
            one = options.model_copy(update={"seed": seed, "seeds": 1, "out": str(place)})
            write_file(place / folder.RECIPE, folder.recipe_text(one))
            if options.resume and (place / MANIFEST).is_file():
                results.append(finished(place))
                continue
            torch.manual_seed(seed)
            job = build(one, data, machine)
            results.append(run_seed(one, data, job, machine, place, quiet=quiet))
        return combine_seeds(options, out, results)


def run_seed(
    options: TuneOptions, data: TaskData, job: Job, machine: Machine, out: Path, *, quiet: bool
) -> TrainResult:
    """One run with one seed."""

    def warn(text: str) -> None:
        print(text, file=sys.stderr)

    started = time.monotonic()
    device, dtype, model = machine.device, machine.dtype, job.model
    folder.record_environment(
        out, device=device, dtype=dtype, reason=machine.reason, resume=options.resume, warn=warn,
        data=data.digest(),
    )  # fmt: skip
    model.to(device=device, dtype=dtype)
    model.gradient_checkpointing_enable(options.gradient_checkpointing)
    model.set_attention(options.attention)
    plan = Plan(job.tokens, options, options.seed)
    optimizer = make_optimizer(
        model, weight_decay=options.weight_decay, layer_decay=options.layer_decay
    )
    resumed = state.newest(out, warn=warn)
    with Tracker(
        out, total_steps=plan.total_steps, tensorboard=options.tensorboard, quiet=quiet,
        resume_step=0 if resumed is None else resumed.record["progress"]["step"],
    ) as tracker:  # fmt: skip
        for note in data.notes:
            tracker.message(note)
        for line in job.lines:
            tracker.message(line)
        tracker.message(
            f"{len(job.tokens):,} training examples, {int(job.tokens.sum()):,} tokens a pass, "
            f"{plan.total_steps:,} steps"
        )
        rows = "" if job.trimmed is None else f", {len(job.trimmed.used):,} embedding rows in use"
        tracker.message(
            f"{str(dtype).removeprefix('torch.')} on {device} ({machine.reason}), attention "
            f"{options.attention}, {torch.get_num_threads()} threads{rows}"
        )
        progress = loop.fit(
            model, optimizer=optimizer, plan=plan, batch_loss=job.batch_loss,
            summary=loop.mean_loss, evaluate=job.evaluate, metric=options.metric or job.metric,
            options=options, names=job.names, run=out, tracker=tracker, resumed=resumed,
        )  # fmt: skip
    # the model itself now holds the float32 weights; scores are taken as `load` will compute
    manifest, record = job.finish(copy.deepcopy(model))
    model.cpu()
    if job.trimmed is not None:
        job.trimmed.restore(
            unused_row_factor(
                progress.best_step,
                total=plan.total_steps,
                options=options,
                layers=model.config.num_hidden_layers,
            )
        )
    job.settle(model)
    manifest.scores = numbers(record["scores"])
    manifest.provenance |= {
        "filbert": filbert.__version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": options.base,
        "data": Path(options.data).name,
        "seed": options.seed,
        "base_sha256": digest_of(job.base),
        "steps": progress.step, "best_step": progress.best_step,
        "seconds": round(progress.seconds, 1),
        "step_seconds": round(progress.step_seconds, 1), "gain": progress.best_value,
    }  # fmt: skip
    write_file(out / "evaluation.json", json.dumps(record, ensure_ascii=False) + "\n")
    if job.write_extra is not None:
        job.write_extra(out)
    save_bundle(out, model=model, tokenizer=job.tokenizer, manifest=manifest)
    if not options.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    write_report(out)
    return TrainResult(
        out, manifest.scores, progress.best_step, progress.step, time.monotonic() - started,
        data.notes,
        [{"seed": options.seed, "dev": numbers(progress.best_scores), "scores": manifest.scores}],
        manifest.provenance["gain"],
    )  # fmt: skip


def numbers(scores: dict[str, Any]) -> dict[str, float | None]:
    """The scores that are numbers, or None where one is not defined; not the count of rows."""
    return {
        name: value
        for name, value in scores.items()
        if name != "rows" and (value is None or isinstance(value, int | float))
    }


def finished(out: Path) -> TrainResult:
    """The result of a run whose bundle is there already."""
    manifest = read_manifest(out)
    if not (out / REPORT_FILE).is_file():  # killed just before its end
        write_report(out)
    origin = manifest.provenance
    note = f"{out} is finished already; nothing was left to do"
    return TrainResult(
        out, dict(manifest.scores), origin.get("best_step", 0), origin.get("steps", 0), 0.0,
        [note], [{"seed": origin.get("seed"), "dev": {}, "scores": dict(manifest.scores)}],
        float(origin.get("gain", "-inf")),
    )  # fmt: skip


def combine_seeds(options: TuneOptions, out: Path, results: list[TrainResult]) -> TrainResult:
    """Mean, deviation and best of several seeds; the bundle that is best on dev goes to `out`."""
    table = {}
    for name in results[0].scores:
        values = [value for r in results if (value := r.scores[name]) is not None]
        if len(values) == len(results):
            lower = metrics.lower_is_better(name)
            table[name] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values),
                "best": min(values) if lower else max(values),
            }
    best = max(results, key=lambda result: result.gain)
    for name in sorted(
        folder.BUNDLE_FILES - {MANIFEST}
        | {"evaluation.json", "report.html", "metrics.jsonl", folder.ENVIRONMENT}
    ):
        if (best.out / name).is_file():
            shutil.copy2(best.out / name, out / name)
    for name in sorted(folder.BUNDLE_FOLDERS):
        if (best.out / name).is_dir():
            shutil.copytree(best.out / name, out / name, dirs_exist_ok=True)
    seeds = [seed for result in results for seed in result.seeds]
    summary = {"best": str(best.out.name), "seeds": seeds, "scores": table}
    write_file(out / folder.SEEDS, json.dumps(summary, indent=2) + "\n")
    write_file(out / MANIFEST, (best.out / MANIFEST).read_bytes())
    return TrainResult(
        out, {name: row["mean"] for name, row in table.items()}, best.best_step, best.steps,
        sum(result.seconds for result in results), results[0].notes, seeds, best.gain,
    )  # fmt: skip


def digest_of(folder: Path) -> str | None:
    """The sha256 of the base model's weights, for the record."""
    weights = folder / "model.safetensors"
    return state.digest(weights) if weights.is_file() else None
