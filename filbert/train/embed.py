"""Fine-tuning sentence vectors: what `tune` needs of it.

    filbert train embed --data pairs.tsv --loss pairs --base MODEL --out runs/vectors

| loss     | a row                | learns                                                         |
|----------|----------------------|----------------------------------------------------------------|
| `cosine` | two texts, a score   | cosine = score / highest                                       |
| `cosent` | two texts, a score   | the order of the cosines within a batch                        |
| `pairs`  | two texts, or three  | its second text, among those of the batch and all third ones   |
| `simcse` | one text             | itself under another drop-out, among the batch's other texts   |

An example is a row; all texts of a batch are computed in one packed forward, a text that occurs
twice only once (with `simcse` twice, that is the point of it). With `pairs` and `simcse` the rows
of a batch are each other's wrong answers, so `batch_size` decides what is learned, and
`batch_tokens` only bounds the memory; where it cuts batches short, that is told. Rows with the same
first or second text are never each other's wrong answers. `filbert/tasks/vector_losses.py` has the
losses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filbert.bundle import Manifest
from filbert.data.packing import Encoded, Ids, plan_epoch, plan_once
from filbert.data.sentence_pairs import Sentences, split_off
from filbert.errors import UsageError, did_you_mean
from filbert.model import sentence_folder
from filbert.model.config import dropouts
from filbert.model.device import for_inference
from filbert.model.modern_config import read_any_config
from filbert.model.sentence_folder import SentenceSettings
from filbert.tasks import embed
from filbert.tasks.vector_losses import cosent_loss, cosine_loss, negatives_loss, over_prefixes
from filbert.train import loop
from filbert.train.embed_options import EmbedOptions
from filbert.train.trim import TrimmedEmbedding
from filbert.train.tune import Base, Job, Machine, TrainResult, numbers, open_base, tune

Lookup = Callable[[Ids], Tensor]
LOSS_OF = {"scored": "cosine", "pairs": "pairs", "triples": "pairs", "sentences": "simcse"}
VIEWS_DROPOUT = 0.1
FITS = {"cosine": ("scored",), "cosent": ("scored",), "pairs": ("pairs", "triples"),
        "simcse": ("sentences",)}  # fmt: skip
SCORES = {"scored": ("spearman", "pearson"), "sentences": ()}
RETRIEVAL = ("recall@1", "recall@5", "recall@10", "mrr@10", "ndcg@10")


@dataclass
class Data:
    """The rows of a run. `highest`: the score of equal meaning, 1 where there are none."""

    train: Sentences
    dev: Sentences
    test: Sentences | None
    loss: str
    highest: float

    @property
    def parts(self) -> list[Sentences]:
        """Training, dev and, if there is one, test rows."""
        return [self.train, self.dev, *([self.test] if self.test is not None else [])]

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        return list(dict.fromkeys(note for part in self.parts for note in part.notes))

    def digest(self) -> str:
        """A sha256 of all rows, in order."""
        return " ".join(part.digest() for part in self.parts)


def train_embed(options: EmbedOptions, *, quiet: bool = False) -> TrainResult:
    """Train sentence vectors as `options` say and write the bundle to `options.out`; see `tune`."""
    return tune(options, read=read_data, build=build, quiet=quiet)


def read_data(options: EmbedOptions) -> Data:
    """Read the files, settle the loss, hold out dev rows where no file is given."""
    kind = {"cosine": "scored", "cosent": "scored", "simcse": "sentences"}.get(options.loss or "")
    train = embed.read(options.data, options, kind=kind)
    if options.loss == "pairs" and train.kind not in FITS["pairs"]:
        train = embed.read(options.data, options, kind="pairs")
    loss = options.loss or LOSS_OF[train.kind]
    if options.limit is not None:
        train = train.select(range(min(options.limit, len(train))))
    others = {}
    for name, path in (("dev", options.dev), ("test", options.test)):
        if path is not None:
            others[name] = read_other(path, options, train.kind)
    if "dev" not in others:
        train, others["dev"] = split_off(train, fraction=options.holdout)
    data = Data(train, others["dev"], others.get("test"), loss, 1.0)
    if train.scores is not None:
        data.highest = options.highest or highest_of(train)
        if loss == "cosine":
            check_scores(train, data.highest)
    names = {"loss", *SCORES.get(data.dev.kind, RETRIEVAL)}
    if options.metric is not None and options.metric not in names:
        raise UsageError(
            f"--metric {options.metric!r}: for {data.dev.kind} there are "
            f"{', '.join(sorted(names))}.{did_you_mean(options.metric, names)}"
        )
    return data


def read_other(path: str, options: EmbedOptions, kind: str) -> Sentences:
    """Dev or test rows. They may be of another kind than the training rows; then their columns are
    found by name, not where the options say that those of the training rows are."""
    if kind == "sentences":
        plain = {"text_column": None, "pair_column": None, "format": None, "header": None}
        options = options.model_copy(update={**plain, "score_column": None})
        return embed.read(path, options, kind=None)
    return embed.read(path, options, kind="scored" if kind == "scored" else None)


def highest_of(data: Sentences) -> float:
    """The smallest usual top of a scale that is not below the highest score."""
    assert data.scores is not None
    top = float(data.scores.max())
    usual = next((value for value in (1.0, 5.0, 10.0, 100.0) if value >= top), top)
    data.notes.append(
        f"{data.source}: scores from {data.scores.min():g} to {top:g}; {usual:g} is taken for "
        "equal meaning (--highest says otherwise)"
    )
    return usual


def check_scores(data: Sentences, highest: float) -> None:
    """Refuse scores that no cosine can reach."""
    assert data.scores is not None
    far = np.flatnonzero(np.abs(data.scores) > highest)
    if len(far):
        row = far[0]
        raise UsageError(
            f"{data.source}: the score in row {data.numbers[row]} is {data.scores[row]:g}, and "
            f"{len(far):,} of {len(data):,} rows lie outside -{highest:g} to {highest:g}; a cosine "
            "cannot learn them. Mend the rows, give --highest, or --loss cosent (order alone)"
        )


def build(options: EmbedOptions, data: Data, machine: Machine) -> Job:
    """The model, the encoded texts, and what the loop asks of them."""
    base = open_base(options)
    views = two_views(options, data, base)
    model = embed.head(str(base.folder), **base.changes)
    own = embed.settings_of(
        base.folder, limit=model.config.max_position_embeddings, tokenizer=base.tokenizer
    )
    settings = SentenceSettings(
        options.pooling or own.pooling,
        own.normalize,
        own.max_length if options.max_length is None else base.max_length,
    )
    assert settings.max_length is not None
    embed.check_dimensions(options.dimensions, hidden_size=model.config.hidden_size)
    encoded = [
        embed.encode(base.tokenizer, part.texts, max_length=settings.max_length)
        for part in data.parts
    ]
    trimmed = TrimmedEmbedding(model, *encoded)
    encoded = [trimmed.encode(part) for part in encoded]
    pooler: Any = copy.deepcopy(getattr(model, "pooler", None))
    members = data.train.members
    main = {"scored": embed.SCORED_METRIC, "sentences": "loss"}
    metric = main.get(data.dev.kind, embed.RETRIEVAL_METRIC)
    tokens = encoded[0].tokens[members].sum(1) * (2 if data.loss == "simcse" else 1)
    computing = partial(batch_losses, options=options, loss=data.loss, highest=data.highest)

    def live(trained: Any, part: Encoded) -> Lookup:
        return lambda texts: embed.vectors_of(trained, part, texts, settings.pooling)

    def batch_loss(trained: nn.Module, examples: Ids) -> tuple[Tensor, Tensor]:
        losses = computing(live(trained, encoded[0]), data.train, examples)
        return losses.sum(), loop.counted(losses, len(examples))

    def vectors(trained: Any, part: Encoded) -> embed.Floats:
        return embed.predict_vectors(trained, part, settings, batch_tokens=options.batch_tokens)

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        lookup = live(trained, encoded[1])
        if data.dev.kind != "sentences":
            known = vectors(trained, encoded[1])
            scores = numbers(embed.score(known, data.dev))
            if data.loss != "simcse":
                lookup = torch.from_numpy(known).__getitem__
        # of rows for which the training loss has no meaning, what is missing of the main score
        loss = 1 - float(scores.get(metric) or 0.0)
        if data.dev.kind in FITS[data.loss]:
            loss = dev_loss(trained, lookup, computing, encoded[1], data, options)
        return {"loss": loss, **scores}

    def finish(best: Any) -> tuple[Manifest, dict[str, Any]]:
        model = for_inference(best, machine.device, machine.dtype)
        part, texts = data.parts[-1], encoded[-1]
        if part.kind == "sentences":
            scores = {"loss": evaluate(model)["loss"]}
        else:
            scores = numbers(embed.score(vectors(model, texts), part))
            for count in options.dimensions:
                short = vectors(model, texts)[:, :count]
                scores |= {f"{k} of {count}": v for k, v in
                           numbers(embed.score(short, part)).items() if k != "queries"}  # fmt: skip
        return describe(data, settings, options, scores), {"rows": len(part), "scores": scores}

    def settle(best: Any) -> None:
        if pooler is not None:  # no vector passes through it: it stays as it was
            best.pooler.load_state_dict(pooler.state_dict())

    def write_extra(folder: Path) -> None:
        sentence_folder.write(folder, settings, hidden_size=model.config.hidden_size)

    return Job(
        model=model, tokenizer=base.tokenizer, base=base.folder, tokens=tokens,
        batch_loss=batch_loss, evaluate=evaluate,
        metric=metric, names=lambda examples: [data.train.id(int(i)) for i in examples],
        finish=finish, settle=settle, write_extra=write_extra, trimmed=trimmed,
        lines=[*told(data, tokens, options, settings), *views],
    )  # fmt: skip


def batch_losses(
    lookup: Lookup,
    data: Sentences,
    examples: Ids,
    *,
    options: EmbedOptions,
    loss: str,
    highest: float,
) -> Tensor:
    """(examples,) the loss of each. lookup: (n,) numbers of texts to (n, hidden) vectors."""
    members = data.members[examples]  # (examples, 1 to 3)
    if loss == "simcse":
        first, second = lookup(np.concatenate([members[:, 0], members[:, 0]])).chunk(2)
        known = torch.from_numpy(members[:, 0]).to(first.device)
        alike = known[:, None] == known[None, :]
        return over_prefixes(
            lambda v: negatives_loss(v[0], v[1], alike, scale=options.scale),
            [first, second], options.dimensions,
        )  # fmt: skip
    texts, inverse = np.unique(members, return_inverse=True)
    vectors = lookup(texts)
    place = torch.from_numpy(inverse.reshape(members.shape)).to(vectors.device)
    parts = [vectors[column] for column in place.T]  # each (examples, hidden)
    if loss == "pairs":
        alike = same_meaning(place)
        return over_prefixes(
            lambda v: negatives_loss(v[0], torch.cat(v[1:]), alike, scale=options.scale),
            parts, options.dimensions,
        )  # fmt: skip
    assert data.scores is not None
    gold = torch.from_numpy(data.scores[examples] / highest).float().to(vectors.device)
    if loss == "cosent":
        return over_prefixes(
            lambda v: cosent_loss(v[0], v[1], gold, scale=options.scale), parts, options.dimensions
        )
    return over_prefixes(lambda v: cosine_loss(v[0], v[1], gold), parts, options.dimensions)


def same_meaning(place: Tensor) -> Tensor:
    """(rows, others) bool: which of the second and third texts are no wrong answers of a row.

    place (rows, 2 or 3) int64, equal for equal texts. No wrong answer is a text that is the row's
    own first or second text, nor the second text of a row with the same first text.
    """
    others = torch.cat([place[:, column] for column in range(1, place.shape[1])])
    alike = (others == place[:, :1]) | (others == place[:, 1:2])
    siblings = place[:, :1] == place[:, 0][None, :]  # (rows, rows)
    alike[:, : len(place)] |= siblings
    return alike


@torch.no_grad()
def dev_loss(
    model: nn.Module,
    lookup: Lookup,
    computing: Callable[[Lookup, Sentences, Ids], Tensor],
    encoded: Encoded,
    data: Data,
    options: EmbedOptions,
) -> float:
    """The training loss on the dev rows. For `simcse`, whose pairs are made by it, drop-out is
    drawn, the same in each evaluation."""
    tokens = encoded.tokens[data.dev.members].sum(1)
    total, count = 0.0, 0
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model.train(data.loss == "simcse")
        size = options.batch_size or len(tokens)
        for batch in plan_once(tokens, batch_tokens=options.batch_tokens):
            for start in range(0, len(batch), size):
                losses = computing(lookup, data.dev, batch[start : start + size])
                total, count = total + float(losses.double().sum()), count + len(losses)
        model.eval()
    return total / count


def two_views(options: EmbedOptions, data: Data, base: Base) -> list[str]:
    """SimCSE tells a text's two drop-outs from other texts. A base that was trained without any
    gets the paper's 0.1 (Gao et al. 2021, section 3), and a line says so; `UsageError` where none
    is asked for."""
    config = read_any_config(base.folder)
    changes = dropouts(config, VIEWS_DROPOUT)
    if data.loss != "simcse" or any(base.changes.get(n, getattr(config, n)) for n in changes):
        return []
    if options.dropout is not None:
        raise UsageError(
            "--dropout 0: --loss simcse learns from two drop-outs of a text, which would be equal; "
            "give more, such as 0.1"
        )
    base.changes.update(changes)
    return [f"drop-out {VIEWS_DROPOUT}, as {options.base} has none and simcse needs some"]


def told(data: Data, tokens: Ids, options: EmbedOptions, settings: SentenceSettings) -> list[str]:
    """What a run says at its start. `UsageError` where no row has another in its batch."""
    lines = [
        f"{len(data.train):,} training rows ({data.train.kind}), {len(data.dev):,} dev rows "
        f"({data.dev.kind}), loss {data.loss}; {settings.pooling} of at most "
        f"{settings.max_length} tokens"
    ]
    if data.loss in ("pairs", "simcse", "cosent"):
        plan = plan_epoch(
            tokens, batch_tokens=options.batch_tokens, batch_size=options.batch_size,
            seed=options.seed, epoch=0,
        )  # fmt: skip
        size = max(map(len, plan))
        if size == 1 and data.train.kind != "triples":
            raise UsageError(
                f"{data.train.source}: by --loss {data.loss} a row is told from others of its "
                "batch, and every batch has one row. Give more rows, or a larger --batch-tokens"
            )
        short = sum(len(batch) < size for batch in plan)
        line = (
            f"{len(plan):,} batches a pass; a row is told from the {size - 1} others of its batch"
        )
        if short > 1:
            line += f"; {short} batches hold fewer (--batch-tokens {options.batch_tokens})"
        lines.append(line)
    return lines


def describe(
    data: Data, settings: SentenceSettings, options: EmbedOptions, scores: dict[str, Any]
) -> Manifest:
    """The manifest of the finished bundle."""
    scored = data.parts[-1]
    assert settings.max_length is not None
    return Manifest(
        task="embed",
        max_length=settings.max_length,
        windows=False,
        stride=0,
        settings={
            "pooling": settings.pooling,
            "normalize": settings.normalize,
            "dimensions": list(options.dimensions),
        },
        provenance={
            "rows": len(data.train),
            "loss": data.loss,
            "scored_on": f"{'test' if data.test else 'dev'} set, {len(scored):,} rows",
        },
    )
