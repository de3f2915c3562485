"""A fine-tuning run: from files to a bundle, through the task and the loop.

runs/reviews/   the finished bundle (see filbert.bundle), and beside it
    recipe.toml environment.json   what was asked for and where it ran
    metrics.jsonl tensorboard/     loss and scores by step
    evaluation.json report.html    the final scores, and a page to look at
    checkpoints/                   while training lasts
    seed-42/ seed-43/ ...          with --seeds: each run; the best one's bundle is copied up
"""

from __future__ import annotations

import copy
import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import filbert
from filbert.atomic import locked, write_file
from filbert.bundle import MANIFEST, Manifest, check_tokenizer, read_manifest, save_bundle
from filbert.data.examples import (
    Examples,
    check_known_labels,
    infer_problem_type,
    label_names,
    split_holdout,
)
from filbert.data.packing import Encoded, Ids
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.model.device import choose_device, choose_precision
from filbert.model.modern_config import read_any_config
from filbert.sources import resolve
from filbert.tasks import classify, metrics
from filbert.tasks.calibrate import fit_temperature, fit_thresholds
from filbert.text import BertTokenizer
from filbert.train import folder, loop, state
from filbert.train.optim import make_optimizer, unused_row_factor
from filbert.train.options import ClassifyOptions
from filbert.train.plan import Plan
from filbert.train.report import write_report
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


@dataclass
class Data:
    """The examples of a run and what they are about."""

    train: Examples
    dev: Examples
    test: Examples | None
    problem_type: str
    labels: list[str]

    @property
    def parts(self) -> list[Examples]:
        """Training, dev and, if there is one, test examples."""
        return [self.train, self.dev, *([self.test] if self.test is not None else [])]

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        return list(dict.fromkeys(note for part in self.parts for note in part.notes))


def train_classify(options: ClassifyOptions, *, quiet: bool = False) -> TrainResult:
    """Fine-tune a classifier as `options` say and write its bundle to `options.out`.

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
    data = read_data(options)
    check_metric(options.metric, data)
    # whatever a wrong option or base can break, breaks here, before anything is written
    ready = prepare(options, data)
    with locked(out, doing="trains in"):
        folder.claim_folder(out, options)
        if options.seeds == 1:
            return run_seed(options, data, out, ready=ready, quiet=quiet)
        del ready  # each seed draws a head of its own
        return run_seeds(options, data, out, quiet=quiet)


def run_seeds(options: ClassifyOptions, data: Data, out: Path, *, quiet: bool) -> TrainResult:
    """One run for each seed, each in a folder of its own."""
    results = []
    for seed in range(options.seed, options.seed + options.seeds):
        place = out / f"seed-{seed}"
        place.mkdir(exist_ok=True)
        one = options.model_copy(update={"seed": seed, "seeds": 1, "out": str(place)})
        write_file(place / folder.RECIPE, folder.recipe_text(one))
        results.append(run_seed(one, data, place, quiet=quiet))
    return combine_seeds(options, out, results)


def read_data(options: ClassifyOptions) -> Data:
    """Read the files, settle the kind of label, hold out a dev set where none is given."""
    train = classify.read(options.data, options)
    if options.limit is not None:
        train = train.select(range(min(options.limit, len(train))))
    assert train.labels is not None
    kind = options.problem_type or infer_problem_type(train.labels)
    known = options.model_copy(update={"problem_type": kind})
    others = {}
    for name, path in (("dev", options.dev), ("test", options.test)):
        if path is not None:
            others[name] = classify.read(path, known)
            if (others[name].pairs is None) != (train.pairs is None):
                raise FilbertError(
                    f"{options.data} and {path} differ: one holds pairs of texts, the other single "
                    "texts; name the columns with --text-column and --pair-column"
                )
    if "dev" not in others:
        train, others["dev"] = split_holdout(
            train, fraction=options.holdout, seed=0, problem_type=kind
        )
    assert train.labels is not None
    labels = label_names(train.labels, kind)
    if kind != "regression":
        for part in others.values():
            check_known_labels(part, labels)
    return Data(train, others["dev"], others.get("test"), kind, labels)


def check_metric(metric: str | None, data: Data) -> None:
    """`UsageError` for a score that this kind of label does not have."""
    binary = len(data.labels) == 2
    names = {"loss", *metrics.names_of(data.problem_type, binary=binary)}
    if metric is not None and metric not in names:
        raise UsageError(
            f"--metric {metric!r}: for {data.problem_type} there are {', '.join(sorted(names))}."
            f"{did_you_mean(metric, names)}"
        )


@dataclass
class Ready:
    """A model and its data, made from the options; nothing is written yet."""

    device: torch.device
    dtype: torch.dtype
    reason: str  # for this precision, in words
    base: Path
    tokenizer: BertTokenizer
    model: classify.Classifier
    trimmed: TrimmedEmbedding
    reading: dict[str, Any]  # max_length, windows, stride
    encoded: list[Encoded]  # of Data.parts
    gold: list[NDArray[Any]]  # likewise
    weights: Tensor | None  # of classes


def prepare(options: ClassifyOptions, data: Data) -> Ready:
    """Choose the machine, open the base, encode the texts. Raises before anything is written."""
    device = choose_device(options.device)
    dtype, reason = choose_precision(options.precision, device)
    base = resolve(options.base, revision=options.revision)
    tokenizer = BertTokenizer.from_pretrained(base)
    torch.manual_seed(options.seed)  # decides the new head
    changes: dict[str, Any] = {}
    if options.dropout is not None:
        names = read_any_config(base).dropouts
        changes = dict.fromkeys((n for n in names if n != "classifier_dropout"), options.dropout)
    model = classify.head(str(base), labels=data.labels, problem_type=data.problem_type, **changes)
    check_tokenizer(tokenizer, model.config, source=str(base))
    limit = model.config.max_position_embeddings
    max_length = min(options.max_length or limit, limit)
    stride = min(options.stride, max(0, (max_length - 4) // 2))
    reading: dict[str, Any] = {
        "max_length": max_length,
        "windows": options.windows,
        "stride": stride,
    }
    encoded = [classify.encode(tokenizer, part.texts, part.pairs, **reading) for part in data.parts]
    gold = [
        classify.targets(part.labels or [], data.labels, data.problem_type) for part in data.parts
    ]
    trimmed = TrimmedEmbedding(model.base_model, *encoded)
    encoded = [trimmed.encode(part) for part in encoded]
    weights = classify.class_weights(options.class_weights, gold[0], data.labels, data.problem_type)
    return Ready(
        device, dtype, reason, base, tokenizer, model, trimmed, reading, encoded, gold,
        None if weights is None else weights.to(device),
    )  # fmt: skip


def run_seed(
    options: ClassifyOptions, data: Data, out: Path, *, ready: Ready | None = None, quiet: bool
) -> TrainResult:
    """One run with one seed."""
    if options.resume and (out / MANIFEST).is_file():
        return finished(out)

    def warn(text: str) -> None:
        print(text, file=sys.stderr)

    started = time.monotonic()
    ready = prepare(options, data) if ready is None else ready
    device, dtype, model, trimmed = ready.device, ready.dtype, ready.model, ready.trimmed
    encoded, gold, weights = ready.encoded, ready.gold, ready.weights
    folder.record_environment(
        out, device=device, dtype=dtype, reason=ready.reason, resume=options.resume, warn=warn,
        data=folder.digest_of_examples(*data.parts),
    )  # fmt: skip
    mean, spread = scale_of(gold[0]) if data.problem_type == "regression" else (0.0, 1.0)
    targets = torch.from_numpy(
        gold[0] if data.problem_type != "regression" else (gold[0] - mean) / spread
    )
    model.to(device=device, dtype=dtype)
    model.gradient_checkpointing_enable(options.gradient_checkpointing)
    model.set_attention(options.attention)

    def batch_loss(trained: nn.Module, examples: Ids) -> tuple[Tensor, Tensor]:
        assert isinstance(trained, classify.Classifier)
        losses = classify.loss(
            classify.logits_of(trained, encoded[0].gather(examples)),
            targets[torch.from_numpy(examples)].to(device),
            problem_type=data.problem_type,
            weights=weights,
            label_smoothing=options.label_smoothing,
        )  # fmt: skip
        return losses.sum(), loop.counted(losses, len(examples))

    def predict(trained: nn.Module, part: Encoded) -> NDArray[np.float32]:
        assert isinstance(trained, classify.Classifier)
        logits = classify.predict_logits(trained, part, batch_tokens=options.batch_tokens)
        return logits * spread + mean

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        logits = predict(trained, encoded[1])
        scores = classify.score(logits, gold[1], problem_type=data.problem_type, labels=data.labels)
        losses = classify.loss(
            torch.from_numpy(logits), torch.from_numpy(gold[1]), problem_type=data.problem_type
        )
        return {"loss": float(losses.mean()), **numbers(scores)}

    metric = options.metric or metrics.main_metric(data.problem_type)
    plan = Plan(encoded[0].tokens, options, options.seed)
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
        tracker.message(
            f"{len(data.train):,} training rows, {len(data.dev):,} dev rows, "
            f"{int(encoded[0].tokens.sum()):,} tokens a pass, {plan.total_steps:,} steps"
        )
        tracker.message(
            f"{str(dtype).removeprefix('torch.')} on {device} ({ready.reason}), attention "
            f"{options.attention}, {torch.get_num_threads()} threads, "
            f"{len(trimmed.used):,} embedding rows in use"
        )
        progress = loop.fit(
            model, optimizer=optimizer, plan=plan, batch_loss=batch_loss, summary=loop.mean_loss,
            evaluate=evaluate, metric=metric, options=options,
            names=lambda examples: [data.train.id(int(i)) for i in examples], run=out,
            tracker=tracker, resumed=resumed,
        )  # fmt: skip
    # the model itself now holds the float32 weights; scores are taken as `load` will compute
    computing = classify.for_inference(copy.deepcopy(model), device, dtype)
    logits = [predict(computing, part) for part in encoded[1:]]
    del computing
    model.cpu()
    trimmed.restore(
        unused_row_factor(
            progress.best_step,
            total=plan.total_steps,
            options=options,
            layers=model.config.num_hidden_layers,
        )
    )
    if data.problem_type == "regression":  # the head learned (score - mean) / spread
        with torch.no_grad():
            model.classifier.weight.mul_(spread)
            model.classifier.bias.mul_(spread).add_(mean)
    manifest = describe(options, data, ready.reading, dev_logits=logits[0], dev_gold=gold[1])
    record = assess(data, manifest, logits[-1], gold[-1])
    manifest.scores = numbers(record["scores"])
    manifest.provenance |= {
        "base_sha256": digest_of(ready.base),
        "steps": progress.step, "best_step": progress.best_step,
        "seconds": round(progress.seconds, 1),
        "step_seconds": round(progress.step_seconds, 1), "gain": progress.best_value,
    }  # fmt: skip
    write_file(out / "evaluation.json", json.dumps(record, ensure_ascii=False) + "\n")
    save_bundle(out, model=model, tokenizer=ready.tokenizer, manifest=manifest)
    if not options.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    write_report(out)
    return TrainResult(
        out, manifest.scores, progress.best_step, progress.step, time.monotonic() - started,
        data.notes,
        [{"seed": options.seed, "dev": numbers(progress.best_scores), "scores": manifest.scores}],
        manifest.provenance["gain"],
    )  # fmt: skip


def describe(
    options: ClassifyOptions,
    data: Data,
    reading: dict[str, Any],
    *,
    dev_logits: NDArray[np.float32],
    dev_gold: NDArray[Any],
) -> Manifest:
    """The manifest of the finished bundle: calibrated on the dev set, thresholds fitted there."""
    scored = data.parts[-1]
    manifest = Manifest(
        task="classify",
        problem_type=data.problem_type,  # type: ignore[arg-type]
        labels=data.labels if data.problem_type != "regression" else [],
        pair=data.train.pairs is not None,
        **reading,
    )
    if data.problem_type != "regression":
        manifest.temperature = fit_temperature(dev_logits, dev_gold, data.problem_type)
    if data.problem_type == "multi_label_classification":
        manifest.thresholds = fit_thresholds(dev_logits / manifest.temperature, dev_gold)
    manifest.provenance = {
        "filbert": filbert.__version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": options.base,
        "data": Path(options.data).name,
        "rows": len(data.train),
        "scored_on": f"{'test' if data.test else 'dev'} set, {len(scored):,} rows",
        "seed": options.seed,
    }
    return manifest


def assess(
    data: Data, manifest: Manifest, logits: NDArray[np.float32], gold: NDArray[Any]
) -> dict[str, Any]:
    """What `evaluation.json` holds: scores on the test set, or on the dev set where none is."""
    part = data.parts[-1]
    return metrics.examine(
        logits[:, 0] if data.problem_type == "regression" else logits,
        gold,
        problem_type=data.problem_type,
        labels=data.labels,
        texts=part.texts,
        pairs=part.pairs,
        ids=[part.id(i) for i in range(len(part))],
        temperature=manifest.temperature,
        thresholds=manifest.thresholds,
    )


def scale_of(gold: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of the training values; regression learns the rescaled ones."""
    return float(gold.mean()), float(gold.std()) or 1.0


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
    origin = manifest.provenance
    note = f"{out} is finished already; nothing was left to do"
    return TrainResult(
        out, dict(manifest.scores), origin.get("best_step", 0), origin.get("steps", 0), 0.0,
        [note], [{"seed": origin.get("seed"), "dev": {}, "scores": dict(manifest.scores)}],
        float(origin.get("gain", "-inf")),
    )  # fmt: skip


def combine_seeds(options: ClassifyOptions, out: Path, results: list[TrainResult]) -> TrainResult:
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
