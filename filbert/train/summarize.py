"""Training an extractive summariser: what `tune` needs of it.

    filbert train summarize --data train.jsonl --dev dev.jsonl --base MODEL --out runs/sum

Reads documents and summaries, labels the sentences by ROUGE, opens the base, encodes; the meaning
of it all is in `filbert/tasks/summarize.py`. An example of the plan is a window of a document, so
that long documents train in bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filbert.bundle import Manifest
from filbert.data.packing import Ids
from filbert.data.summaries import Documents, hold_out
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.model.device import for_inference
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.tasks import summarize
from filbert.tasks.rouge import KINDS
from filbert.tasks.select_sentences import Limits
from filbert.train import loop
from filbert.train.summarize_options import SummarizeOptions
from filbert.train.trim import TrimmedEmbedding
from filbert.train.tune import Job, Machine, TrainResult, open_base, tune

METRIC = "rouge1"  # picks the best checkpoint


@dataclass
class Part:
    """Documents; marks: (sentences,) float32, 1 for those of the oracle; aims: what the loss
    learns, the marks or `summarize.values`; oracle: the numbers of the marked sentences."""

    documents: Documents
    marks: summarize.Floats
    aims: summarize.Floats
    oracle: list[list[int]]


@dataclass
class Data:
    """The documents of a run: training, dev and, if there is one, test."""

    parts: list[Part]

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        return list(dict.fromkeys(note for part in self.parts for note in part.documents.notes))

    def digest(self) -> str:
        """Of all documents and references, in order."""
        return "-".join(part.documents.digest() for part in self.parts)


def train_summarize(options: SummarizeOptions, *, quiet: bool = False) -> TrainResult:
    """Train an extractive summariser as `options` say and write its bundle; see `tune`."""
    return tune(options, read=read_data, build=build, quiet=quiet)


def read_data(options: SummarizeOptions) -> Data:
    """Read the files, hold out a dev set where none is given, compute the labels."""
    names = ("loss", *KINDS)
    if options.metric is not None and options.metric not in names:
        raise UsageError(
            f"--metric {options.metric!r}: for summaries there are {', '.join(names)}."
            f"{did_you_mean(options.metric, names)}"
        )
    train = summarize.read(options.data, options)
    if options.limit is not None:
        train = train.select(range(min(options.limit, len(train))))
    others = [summarize.read(path, options) for path in (options.dev, options.test) if path]
    if options.dev is None:
        train, dev = hold_out(train, fraction=options.holdout)
        others.insert(0, dev)
    parts = []
    for documents in (train, *others):
        marks, oracle = summarize.targets(documents, most=options.sentences, stem=options.stem)
        aims = marks
        if is_listwise(options):
            aims = summarize.values(documents, stem=options.stem)
        parts.append(Part(documents, marks, aims, oracle))
    if not parts[0].marks.any():
        raise FilbertError(
            f"{options.data}: no sentence of any document has a word in common with its summary, "
            "so there is nothing to learn; are the columns the right ones?"
        )
    return Data(parts)


def is_listwise(options: SummarizeOptions) -> bool:
    """Whether sentences of a document compete: as asked for, else where one is wanted."""
    return (options.loss or ("listwise" if options.sentences == 1 else "binary")) == "listwise"


def build(options: SummarizeOptions, data: Data, machine: Machine) -> Job:
    """The model with a new head, the encoded documents, and what the loop asks of them."""
    device = machine.device
    base = open_base(options)
    model = summarize.head(str(base.folder), sentence_pooling=options.pooling, **base.changes)
    reading: dict[str, Any] = {"max_length": base.max_length, "stride": base.stride}
    encoded = [
        summarize.encode(
            base.tokenizer, part.documents.sentences, **reading,
            segments=model.config.type_vocab_size > 1,
        )
        for part in data.parts
    ]  # fmt: skip
    trimmed = TrimmedEmbedding(model.base_model, *(part.encoded for part in encoded))
    encoded = [summarize.trim(part, trimmed.encode(part.encoded)) for part in encoded]
    aims = [torch.from_numpy(part.aims) for part in data.parts]
    loss_of = summarize.listwise_loss if is_listwise(options) else summarize.loss
    limits = Limits(sentences=options.sentences, blocking=options.blocking)

    def batch_loss(trained: nn.Module, windows: Ids) -> tuple[Tensor, Tensor]:
        assert isinstance(trained, BertForExtractiveSummary)
        batch = encoded[0].gather(windows)
        losses = loss_of(
            summarize.logits_of(trained, batch),
            aims[0][torch.from_numpy(batch.numbers)].to(device),
            torch.from_numpy(batch.counts).to(device),
            label_smoothing=options.label_smoothing,
        )
        return losses.sum(), loop.counted(losses, len(windows))

    def assess(trained: nn.Module, place: int) -> dict[str, float]:
        assert isinstance(trained, BertForExtractiveSummary)
        part = data.parts[place]
        logits = summarize.predict_logits(
            trained, encoded[place], batch_tokens=options.batch_tokens
        )
        chosen = summarize.decode(logits, part.documents.sentences, encoded[place], limits=limits)
        counts = torch.from_numpy(np.diff(encoded[place].document_sentences))
        losses = loss_of(torch.from_numpy(logits), aims[place], counts[counts > 0])
        mean = float(losses.mean()) if len(losses) else 0.0
        return {"loss": mean, **summarize.score(part.documents, chosen, stem=options.stem)}

    def finish(best: BertForExtractiveSummary) -> tuple[Manifest, dict[str, Any]]:
        computing = for_inference(best, device, machine.dtype, head="classifier")
        last = len(data.parts) - 1
        part = data.parts[last]
        scores = assess(computing, last)
        scores |= summarize.baselines(
            part.documents, part.oracle, sentences=options.sentences, stem=options.stem
        )
        manifest = Manifest(
            task="summarize",
            **reading,
            settings={
                "sentences": options.sentences, "blocking": options.blocking, "stem": options.stem
            },
            provenance={
                "rows": len(data.parts[0].documents),
                "scored_on": f"{'test' if options.test else 'dev'} set, "
                f"{len(part.documents):,} rows",
            },
        )  # fmt: skip
        return manifest, {"scores": scores, "rows": len(part.documents)}

    documents = data.parts[0].documents
    sentences = sum(map(len, documents.sentences))
    return Job(
        model=model, tokenizer=base.tokenizer, base=base.folder,
        tokens=encoded[0].encoded.tokens, batch_loss=batch_loss,
        evaluate=lambda trained: assess(trained, 1), metric=METRIC,
        names=lambda windows: [documents.id(int(encoded[0].owners[w])) for w in windows],
        finish=finish, trimmed=trimmed,
        lines=[
            f"{len(documents):,} documents of {sentences / max(1, len(documents)):.1f} sentences, "
            f"{data.parts[0].marks.mean():.0%} of them labelled; "
            f"{len(data.parts[1].documents):,} dev documents"
        ],
    )  # fmt: skip
