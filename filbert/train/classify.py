"""Fine-tuning a classifier: what `tune` needs of it.

    filbert train classify --data reviews.csv --base MODEL --out runs/reviews

Reads the files, settles the kind of label, opens the base, encodes the texts; the meaning of it all
is in `filbert/tasks/classify.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from filbert.bundle import Manifest
from filbert.data.examples import (
    check_known_labels,
    infer_problem_type,
    label_names,
    split_holdout,
)
from filbert.data.packing import Encoded, Ids
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.model.device import for_inference
from filbert.sources import resolve
from filbert.tasks import classify, metrics
from filbert.tasks.calibrate import fit_temperature, fit_thresholds
from filbert.train import distil, loop
from filbert.train.classify_data import Data
from filbert.train.options import ClassifyOptions
from filbert.train.trim import TrimmedEmbedding
from filbert.train.tune import Job, Machine, TrainResult, digest_of, numbers, open_base, tune


def train_classify(options: ClassifyOptions, *, quiet: bool = False) -> TrainResult:
    """Fine-tune a classifier as `options` say and write its bundle to `options.out`; see `tune`."""
    return tune(options, read=read_data, build=build, quiet=quiet)


def read_data(options: ClassifyOptions) -> Data:
    """Read the files, settle the kind of label, hold out a dev set where none is given."""
    distil.check(options)
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
    data = Data(train, others["dev"], others.get("test"), kind, labels)
    if options.teacher is not None:
        data.unlabelled = distil.read_unlabelled(options, train)
        data.teacher = digest_of(resolve(options.teacher))
    check_metric(options.metric, data)
    return data


def check_metric(metric: str | None, data: Data) -> None:
    """`UsageError` for a score that this kind of label does not have."""
    binary = len(data.labels) == 2
    names = {"loss", *metrics.names_of(data.problem_type, binary=binary)}
    if metric is not None and metric not in names:
        raise UsageError(
            f"--metric {metric!r}: for {data.problem_type} there are {', '.join(sorted(names))}."
            f"{did_you_mean(metric, names)}"
        )


def build(options: ClassifyOptions, data: Data, machine: Machine) -> Job:
    """The model with a new head, the encoded texts, and what the loop asks of them."""
    device, kind = machine.device, data.problem_type
    base = open_base(options)
    tokenizer = base.tokenizer
    model = classify.head(str(base.folder), labels=data.labels, problem_type=kind, **base.changes)
    reading: dict[str, Any] = {
        "max_length": base.max_length, "windows": options.windows, "stride": base.stride
    }  # fmt: skip
    texts = [data.training_texts, *((part.texts, part.pairs) for part in data.parts[1:])]
    encoded = [classify.encode(tokenizer, *part, **reading) for part in texts]
    gold = [classify.targets(part.labels or [], data.labels, kind) for part in data.parts]
    trimmed = TrimmedEmbedding(model.base_model, *encoded)
    encoded = [trimmed.encode(part) for part in encoded]
    weights = classify.class_weights(options.class_weights, gold[0], data.labels, kind)
    weights = None if weights is None else weights.to(device)
    # a regression learns (score - mean) / spread
    mean, spread = scale_of(gold[0]) if kind == "regression" else (0.0, 1.0)
    targets = torch.from_numpy(gold[0] if kind != "regression" else (gold[0] - mean) / spread)
    more = len(encoded[0]) - len(targets)  # without labels
    targets = torch.cat([targets, targets.new_zeros(more, *targets.shape[1:])])
    lesson = None
    if options.teacher is not None:
        lesson = distil.Lesson(
            options, data, machine, model, tokenizer, reading, scale=(mean, spread)
        )

    def hard(logits: Tensor, examples: Ids) -> Tensor:
        return classify.loss(
            logits, targets[torch.from_numpy(examples)].to(device),
            problem_type=kind, weights=weights, label_smoothing=options.label_smoothing,
        )  # fmt: skip

    def batch_loss(trained: nn.Module, examples: Ids) -> tuple[Tensor, Tensor]:
        assert isinstance(trained, classify.Classifier)
        batch = encoded[0].gather(examples)
        if lesson is None:
            losses = hard(classify.logits_of(trained, batch), examples)
        else:
            losses = lesson.losses(trained, batch, hard)
        return losses.sum(), loop.counted(losses, len(examples))

    def predict(trained: nn.Module, part: Encoded) -> NDArray[np.float32]:
        assert isinstance(trained, classify.Classifier)
        logits = classify.predict_logits(trained, part, batch_tokens=options.batch_tokens)
        return logits * spread + mean

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        logits = predict(trained, encoded[1])
        scores = classify.score(logits, gold[1], problem_type=kind, labels=data.labels)
        losses = classify.loss(
            torch.from_numpy(logits), torch.from_numpy(gold[1]), problem_type=kind
        )
        return {"loss": float(losses.mean()), **numbers(scores)}

    def finish(best: classify.Classifier) -> tuple[Manifest, dict[str, Any]]:
        computing = for_inference(best, device, machine.dtype, head="classifier")
        logits = [predict(computing, part) for part in encoded[1:]]
        manifest = describe(data, reading, dev_logits=logits[0], dev_gold=gold[1])
        if lesson is not None:
            manifest.provenance |= lesson.provenance(data)
        return manifest, assess(data, manifest, logits[-1], gold[-1])

    def settle(best: classify.Classifier) -> None:
        distil.forget(best)
        if kind == "regression":
            with torch.no_grad():
                best.classifier.weight.mul_(spread)
                best.classifier.bias.mul_(spread).add_(mean)

    return Job(
        model=model, tokenizer=tokenizer, base=base.folder, tokens=encoded[0].tokens,
        batch_loss=batch_loss, evaluate=evaluate, metric=metrics.main_metric(kind),
        names=lambda examples: [data.name(int(i)) for i in examples],
        finish=finish, settle=settle, trimmed=trimmed,
        lines=[
            f"{len(data.train):,} training rows, {len(data.dev):,} dev rows",
            *([] if lesson is None else lesson.lines),
        ],
    )  # fmt: skip


def describe(
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
        "rows": len(data.train),
        "scored_on": f"{'test' if data.test else 'dev'} set, {len(scored):,} rows",
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
