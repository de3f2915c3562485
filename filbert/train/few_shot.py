"""Fine-tuning a classifier on a few examples a class: what `tune` needs of it.

    filbert train few-shot --data labelled.csv --shots 8 --base all-MiniLM-L6-v2 --out runs/few

Each seed draws its own examples. The rows that were not drawn are not looked at; give --test to
know how good the result is, and --dev only where more labelled rows are at hand than are drawn.
The method is in `filbert/tasks/few_shot.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filbert.bundle import Manifest
from filbert.data.examples import (
    SINGLE,
    Examples,
    check_known_labels,
    label_names,
    read_examples,
)
from filbert.data.packing import Encoded, Ids
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.model.bert import BertForSequenceClassification
from filbert.model.device import for_inference
from filbert.tasks import classify, embed, few_shot, metrics
from filbert.tasks.calibrate import fit_temperature
from filbert.tasks.vector_losses import cosine_loss
from filbert.train import folder, loop
from filbert.train.few_shot_options import FewShotOptions
from filbert.train.trim import TrimmedEmbedding
from filbert.train.tune import Job, Machine, TrainResult, numbers, open_base, tune

LOSS_PAIRS = 512  # of the training pairs, for the loss where there is no dev file


@dataclass
class Data:
    """The labelled rows to draw from, and others to score on."""

    pool: Examples
    dev: Examples | None
    test: Examples | None
    labels: list[str]

    @property
    def parts(self) -> list[Examples]:
        """The rows of the files."""
        return [part for part in (self.pool, self.dev, self.test) if part is not None]

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        return list(dict.fromkeys(note for part in self.parts for note in part.notes))

    def digest(self) -> str:
        """A sha256 of all texts and labels, in order."""
        return folder.digest_of_examples(*self.parts)


def train_few_shot(options: FewShotOptions, *, quiet: bool = False) -> TrainResult:
    """Train a classifier on a few examples as `options` say and write its bundle to `options.out`;
    see `tune`."""
    return tune(options, read=read_data, build=build, quiet=quiet)


def read_data(options: FewShotOptions) -> Data:
    """Read the files and check their labels."""

    def read(path: str | None) -> Examples | None:
        if path is None:
            return None
        found = read_examples(
            path, text_column=options.text_column, label_column=options.label_column,
            format=options.format, encoding=options.encoding, header=options.header,
            problem_type=SINGLE,
        )  # fmt: skip
        if found.pairs is not None:
            raise FilbertError(f"{found.source}: pairs of texts; few-shot takes single texts")
        return found

    pool = read(options.data)
    assert pool is not None and pool.labels is not None
    if options.limit is not None:
        pool = pool.select(range(min(options.limit, len(pool))))
    assert pool.labels is not None
    data = Data(pool, read(options.dev), read(options.test), label_names(pool.labels, SINGLE))
    for part in data.parts[1:]:
        check_known_labels(part, data.labels)
    names = {"loss"}
    if data.dev is not None:
        names |= set(metrics.names_of(SINGLE, binary=len(data.labels) == 2))
    if options.metric is not None and options.metric not in names:
        raise UsageError(
            f"--metric {options.metric!r}: there are {', '.join(sorted(names))}, and all but the "
            f"loss need --dev.{did_you_mean(options.metric, names)}"
        )
    return data


def build(options: FewShotOptions, data: Data, machine: Machine) -> Job:
    """The encoder under a classifier's head, the drawn examples and their pairs."""
    base = open_base(options)
    model = classify.head(str(base.folder), labels=data.labels, problem_type=SINGLE, **base.changes)
    if not isinstance(model, BertForSequenceClassification):
        raise UsageError(f"--base {options.base}: few-shot needs a BERT; fine-tune it instead")
    own = embed.settings_of(
        base.folder, limit=model.config.max_position_embeddings, tokenizer=base.tokenizer
    )
    if own.pooling == "max":
        raise UsageError(f"--base {options.base}: its vectors are maxima; mean or cls is needed")
    length = own.max_length if options.max_length is None else base.max_length
    assert length is not None and data.pool.labels is not None
    drawn = data.pool.select(
        few_shot.draw_shots(data.pool.labels, shots=options.shots, seed=options.seed)
    )
    parts = [drawn, *data.parts[1:]]
    encoded = [embed.encode(base.tokenizer, part.texts, max_length=length) for part in parts]
    gold: list[Any] = [
        classify.targets(part.labels or [], data.labels, SINGLE) for part in parts
    ]  # each (rows,) int64
    trimmed = TrimmedEmbedding(model.base_model, *encoded)
    encoded = [trimmed.encode(part) for part in encoded]
    pairs = few_shot.draw_pairs(gold[0], iterations=options.iterations, seed=options.seed)
    head: list[embed.Floats] = []  # weight and bias, from `finish` to `settle`

    def losses_of(trained: Any, examples: Ids) -> Tensor:
        texts, inverse = np.unique(pairs.members[examples], return_inverse=True)
        vectors = embed.vectors_of(trained.bert, encoded[0], texts, own.pooling)
        place = torch.from_numpy(inverse.reshape(-1, 2)).to(vectors.device)
        same = torch.from_numpy(pairs.same[examples]).to(vectors.device)
        return cosine_loss(vectors[place[:, 0]], vectors[place[:, 1]], same)

    def batch_loss(trained: nn.Module, examples: Ids) -> tuple[Tensor, Tensor]:
        losses = losses_of(trained, examples)
        return losses.sum(), loop.counted(losses, len(examples))

    @torch.no_grad()
    def evaluate(trained: Any) -> dict[str, Any]:
        trained.eval()
        if data.dev is None:
            some = np.arange(min(LOSS_PAIRS, len(pairs.same)))
            losses = [losses_of(trained, some[i : i + 16]) for i in range(0, len(some), 16)]
            return {"loss": float(torch.cat(losses).mean())}
        vectors = [
            embed.normalized(embed.predict_vectors(
                trained.bert, part, own, batch_tokens=options.batch_tokens
            )) for part in encoded[:2]
        ]  # fmt: skip
        weight, bias = few_shot.fit_head(vectors[0], gold[0], classes=len(data.labels))
        logits = vectors[1] @ weight.T + bias
        scores = numbers(classify.score(logits, gold[1], problem_type=SINGLE, labels=data.labels))
        return {"loss": scores["log_loss"], **scores}

    def finish(best: Any) -> tuple[Manifest, dict[str, Any]]:
        few_shot.as_classifier(best, pooling=own.pooling)
        found = few_shot.features(best, encoded[0], batch_tokens=options.batch_tokens)
        head[:] = few_shot.fit_head(found, gold[0], classes=len(data.labels))
        few_shot.put_head(best, *head)
        computing = for_inference(best, machine.device, machine.dtype, head="classifier")
        logits = [
            classify.predict_logits(computing, part, batch_tokens=options.batch_tokens)
            for part in encoded
        ]
        manifest = Manifest(
            task="classify", problem_type="single_label_classification", labels=data.labels,
            max_length=length, windows=False, stride=0,
        )  # fmt: skip
        if data.dev is not None:
            manifest.temperature = fit_temperature(logits[1], gold[1], SINGLE)
        scored = parts[-1]
        where = "test" if data.test is not None else "dev" if data.dev is not None else "training"
        manifest.provenance = {
            "rows": len(drawn), "scored_on": f"{where} set, {len(scored):,} rows"
        }  # fmt: skip
        return manifest, metrics.examine(
            logits[-1], gold[-1], problem_type=SINGLE, labels=data.labels, texts=scored.texts,
            ids=[scored.id(i) for i in range(len(scored))], temperature=manifest.temperature,
        )  # fmt: skip

    def settle(best: Any) -> None:
        few_shot.as_classifier(best, pooling=own.pooling)
        few_shot.put_head(best, *head)

    return Job(
        model=model, tokenizer=base.tokenizer, base=base.folder,
        tokens=tokens_of(encoded[0], pairs), batch_loss=batch_loss, evaluate=evaluate,
        metric="loss" if data.dev is None else metrics.main_metric(SINGLE),
        names=lambda examples: [
            drawn.id(int(i)) for i in np.unique(pairs.members[examples])
        ],
        finish=finish, settle=settle, trimmed=trimmed, lines=told(options, data, drawn, pairs),
    )  # fmt: skip


def tokens_of(encoded: Encoded, pairs: few_shot.Pairs) -> Ids:
    """(pairs,) tokens of both texts."""
    tokens: Ids = encoded.tokens[pairs.members].sum(1)
    return tokens


def told(options: FewShotOptions, data: Data, drawn: Examples, pairs: few_shot.Pairs) -> list[str]:
    """What a run says at its start."""
    lines = [
        f"{len(drawn):,} of {len(data.pool):,} rows drawn, at most {options.shots} of each of "
        f"{len(data.labels)} classes; {len(pairs.same):,} pairs of them"
    ]
    if data.dev is None and data.test is None:
        lines.append("no --dev and no --test: the scores are those of the drawn rows themselves")
    return lines
