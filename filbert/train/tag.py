"""Fine-tuning a tagger: what `tune` needs of it.

    filbert train tag --data train.conll --dev dev.conll --base MODEL --out runs/ner

Reads the files, settles the labels, opens the base, lays the sentences out; the meaning of it all
is in `filbert/tasks/tag.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from filbert.bundle import Manifest
from filbert.data.packing import Ids
from filbert.data.tag_layout import Laid, slot_targets
from filbert.data.tag_schemes import entity_labels
from filbert.data.tagged import Tagged, split_holdout
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.model.bert import BertForTokenClassification
from filbert.model.device import for_inference
from filbert.sources import resolve
from filbert.tasks import distil as teaching
from filbert.tasks import tag
from filbert.tasks.calibrate import fit_temperature
from filbert.tasks.tag_examine import examine, judged
from filbert.tasks.tag_scores import ENTITY_SCORES, LABEL_SCORES, check_scorer, fit_confidence
from filbert.train import distil, loop
from filbert.train.tag_options import TagOptions
from filbert.train.trim import TrimmedEmbedding
from filbert.train.tune import Job, Machine, TrainResult, digest_of, numbers, open_base, tune


@dataclass
class Data:
    """The sentences of a run and the labels of their words."""

    parts: list[Tagged]  # training, dev and, if there is one, test
    plain: bool
    labels: list[str]
    teacher: str | None = None  # its digest
    taught: NDArray[np.float32] | None = None  # what it says of each training word
    more_notes: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        return list(dict.fromkeys([*(n for p in self.parts for n in p.notes), *self.more_notes]))

    def digest(self) -> str:
        """A sha256 of all sentences and tags, in order."""
        digests = [*(part.digest() for part in self.parts), self.teacher or ""]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def train_tag(options: TagOptions, *, quiet: bool = False) -> TrainResult:
    """Fine-tune a tagger as `options` say and write its bundle to `options.out`; see `tune`."""
    return tune(options, read=read_data, build=build, quiet=quiet)


def read_data(options: TagOptions) -> Data:
    """Read the files, settle the labels, hold out a dev set where none is given."""
    distil.check_named(options)
    if options.teacher is not None and options.crf:
        raise UsageError(
            "--teacher: a tagger with --crf does not learn word by word; leave one out"
        )
    train = tag.read(options.data, options)
    if options.limit is not None:
        train = train.select(range(min(options.limit, len(train))))
    others = [tag.read(path, options) for path in (options.dev, options.test) if path is not None]
    names = train.labels()  # of all rows: a rare type may lie in those that are held out
    if options.dev is None:
        train, held = split_holdout(train, fraction=options.holdout, seed=0)
        others.insert(0, held)
    if not names:
        raise FilbertError(
            f"{options.data} holds no entity: every word is outside. Is --tag-column the right one?"
        )
    for part in others:
        tag.check_labels(part, sorted(names), plain=train.plain)
    data = Data(
        [train, *others], train.plain, sorted(names) if train.plain else entity_labels(names)
    )
    if train.plain:
        data.more_notes.append(
            f"{len(names)} labels without B- and I-: each word is labelled by itself"
        )
    else:
        check_scorer()
    if options.teacher is not None:
        data.teacher = digest_of(resolve(options.teacher))
    known = {"loss", *(LABEL_SCORES if data.plain else ENTITY_SCORES)}
    if options.metric is not None and options.metric not in known:
        raise UsageError(
            f"--metric {options.metric!r}: for these labels there are {', '.join(sorted(known))}."
            f"{did_you_mean(options.metric, known)}"
        )
    return data


def build(options: TagOptions, data: Data, machine: Machine) -> Job:
    """The model with a new head, the sentences laid out, and what the loop asks of them."""
    device = machine.device
    base = open_base(options)
    model = tag.head(str(base.folder), labels=data.labels, crf=options.crf, **base.changes)
    reading: dict[str, Any] = {
        "max_length": base.max_length, "stride": base.stride, "slots": options.slots
    }  # fmt: skip
    laid = [tag.encode_part(base.tokenizer, part, **reading) for part in data.parts]
    gold, notes = [], []
    for part, layout in zip(data.parts, laid, strict=True):
        tags, told = tag.gold_tags(part, layout)
        gold.append(tags)
        notes += told
    trimmed = TrimmedEmbedding(model.base_model, *(layout.encoded for layout in laid))
    laid = [layout.with_encoded(trimmed.encode(layout.encoded)) for layout in laid]
    targets = [
        torch.from_numpy(slot_targets(layout, tags, data.labels))
        for layout, tags in zip(laid, gold, strict=True)
    ]
    train = laid[0]
    slots = np.diff(train.example_slots)
    mean_slots = max(1.0, float(slots.mean()))  # a slot weighs the same in every batch
    scheme = "plain" if data.plain else "bio"
    taught = None
    if options.teacher is not None:
        if data.taught is None:  # once for all seeds
            data.taught = distil.word_answers(options, data.parts[0], train, data.labels, machine)
        taught = torch.from_numpy(data.taught)

    def with_teacher(hard: Tensor, logits: Tensor, rows: Ids) -> Tensor:
        """The losses of slots, with what the teacher says of each word at its first."""
        assert taught is not None
        first = torch.from_numpy(train.first[rows]).to(device)
        words = torch.from_numpy(train.slot_items[rows][train.first[rows]])
        soft = teaching.loss(
            logits[first], taught[words].to(device), problem_type=tag.SINGLE,
            temperature=options.distil_temperature,
        )  # fmt: skip
        weight = options.distil_weight
        return hard.masked_scatter(first, (1 - weight) * hard[first] + weight * soft)

    def batch_loss(trained: nn.Module, examples: Ids) -> tuple[Tensor, Tensor]:
        assert isinstance(trained, BertForTokenClassification)
        batch, at = train.gather(examples)
        logits, rows = tag.logits_of(trained, batch, at), train.rows(examples)
        losses = tag.loss(
            trained, logits, targets[0][torch.from_numpy(rows)].to(device),
            torch.from_numpy(slots[examples]).to(device),
            label_smoothing=options.label_smoothing,
        )  # fmt: skip
        if taught is not None:
            losses = with_teacher(losses, logits, rows)
        return losses.sum() / mean_slots, loop.counted(losses, len(at))

    def predict(trained: Any, number: int, temperature: float = 1.0) -> tuple[Any, tag.Decoded]:
        logits = tag.predict_logits(trained, laid[number], batch_tokens=options.batch_tokens)
        return logits, tag.decode(
            trained, logits, laid[number], labels=data.labels, scheme=scheme,
            temperature=temperature,
        )  # fmt: skip

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        assert isinstance(trained, BertForTokenClassification)
        logits, decoded = predict(trained, 1)
        with torch.no_grad():
            losses = tag.loss(
                trained, torch.from_numpy(logits).to(device), targets[1].to(device),
                torch.from_numpy(np.diff(laid[1].example_slots)).to(device),
            )  # fmt: skip
        scores = tag.score(gold[1], decoded.tags, plain=data.plain)
        counts = ("rows", "words", "entities")
        told = {name: value for name, value in scores.items() if name not in counts}
        return {"loss": float(losses.sum()) / max(len(logits), 1), **numbers(told)}

    def finish(best: BertForTokenClassification) -> tuple[Manifest, dict[str, Any]]:
        computing = for_inference(best, device, machine.dtype, head="classifier")
        manifest = Manifest(
            task="tag", labels=data.labels, max_length=base.max_length, stride=base.stride
        )
        _, decoded = predict(computing, 1)
        manifest.temperature = fit_temperature(
            decoded.raw, items_of(laid[1], gold[1], data.labels), tag.SINGLE
        )
        settings = tag.TagSettings(scheme=scheme, slots=options.slots)  # type: ignore[arg-type]
        if not data.plain:
            _, decoded = predict(computing, 1, manifest.temperature)
            chances, right = judged(decoded, gold[1], data.labels)
            settings.confidence = fit_confidence(chances, right)
        manifest.settings = settings.model_dump(mode="json")
        last = len(laid) - 1
        _, decoded = predict(computing, last, manifest.temperature)
        manifest.provenance = {
            "rows": len(data.parts[0]),
            "scored_on": f"{('dev', 'test')[last - 1]} set, {len(laid[last]):,} sentences",
        }
        if options.teacher is not None:
            manifest.provenance |= {
                "teacher": options.teacher, "teacher_sha256": data.teacher,
                "distil_weight": options.distil_weight,
                "distil_temperature": options.distil_temperature,
            }  # fmt: skip
        record = examine(
            data.parts[last], laid[last], gold[last], decoded, labels=data.labels,
            settings=settings, temperature=manifest.temperature,
        )  # fmt: skip
        return manifest, record

    lines = [
        f"{len(part):,} {name} sentences" for part, name in zip(data.parts, NAMES, strict=False)
    ]
    windows = len(train.encoded.window_starts) - 1
    if windows > len(train):
        lines.append(f"{windows - len(train):,} more windows for sentences over the limit")
    return Job(
        model=model, tokenizer=base.tokenizer, base=base.folder, tokens=train.encoded.tokens,
        batch_loss=batch_loss, evaluate=evaluate, metric="accuracy" if data.plain else "f1",
        names=lambda examples: [data.parts[0].id(int(i)) for i in examples],
        finish=finish, trimmed=trimmed, lines=[", ".join(lines), *notes],
    )  # fmt: skip


NAMES = ("training", "dev", "test")


def items_of(laid: Laid, tags: list[list[str]], labels: list[str]) -> Ids:
    """(items,) the number of each item's label."""
    return slot_targets(laid, tags, labels)[laid.first]
