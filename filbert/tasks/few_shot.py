"""Classification from a few examples a class: draw them, pair them, fit a linear head.

First the encoder learns from pairs of the examples, alike within a class and unlike across, so
that few texts give many pairs; then logistic regression on the vectors is the head (Tunstall et
al. 2022, SetFit, arXiv 2209.11055).

The result is an ordinary `BertForSequenceClassification`, whose head reads the first token alone,
whereas sentence vectors are the mean of all tokens. `as_classifier` therefore appends one layer
that does nothing but take that mean: its queries and keys are zero, so attention looks at all
tokens alike; its values are handed on as they are, 1,024 times as large as the first token's own
state beside them; its feed-forward part adds nothing. A head that is fitted to what this model
computes is exact, whatever the layer's rounding, and any program that opens BERT opens the bundle.
"""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from filbert.data.packing import Encoded, Ids, plan_once
from filbert.errors import FilbertError
from filbert.model.bert import BertForSequenceClassification, BertLayer

Floats = NDArray[np.float32]

MEAN_FACTOR = 1024.0  # a power of two: exact in any precision
POOLER_FACTOR = 1 / 64  # keeps tanh nearly straight
STRENGTH = 100.0  # C of logistic regression on vectors of length 1


@dataclass(frozen=True)
class Pairs:
    """Pairs of examples. members (pairs, 2) int64; same (pairs,) float32, 1 within a class."""

    members: Ids
    same: Floats


def draw_shots(labels: Sequence[str], *, shots: int, seed: int) -> list[int]:
    """Places of at most `shots` examples of each class, drawn by `seed`, in the order given."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[label].append(place)
    if len(places) < 2:
        raise FilbertError(f"a classifier needs at least 2 classes; there is {list(places)}")
    draw = random.Random(seed)
    return sorted(
        place
        for label in sorted(places)
        for place in draw.sample(places[label], min(shots, len(places[label])))
    )


def draw_pairs(gold: Ids, *, iterations: int, seed: int) -> Pairs:
    """For each example `iterations` partners of its class and as many of others.

    gold (n,) int64 classes. An example that is alone in its class has no partner there.
    """
    draw = np.random.Generator(np.random.PCG64([seed, 0x5E7]))
    members: list[tuple[int, int]] = []
    for place, label in enumerate(gold.tolist()):
        same = np.flatnonzero(gold == label)
        for partners in (same[same != place], np.flatnonzero(gold != label)):
            if len(partners):
                members += [(place, int(p)) for p in draw.choice(partners, iterations)]
    array = np.asarray(members, np.int64)
    return Pairs(array, (gold[array[:, 0]] == gold[array[:, 1]]).astype(np.float32))


@torch.no_grad()
def as_classifier(model: BertForSequenceClassification, *, pooling: str) -> None:
    """Let `model`'s pooled vector be a sentence vector: for `mean` by one more layer, for `cls`
    without. The pooler scales it down alone; the head is to be fitted after this. In place."""
    eye = torch.eye(model.config.hidden_size, device=model.device)
    if pooling == "mean":
        layer = BertLayer(model.config).to(model.device)  # type: ignore[arg-type]
        for weight in layer.parameters():
            weight.zero_()
        layer.attention.self.value.weight.copy_(eye)
        layer.attention.output.dense.weight.copy_(eye * MEAN_FACTOR)
        layer.attention.output.LayerNorm.weight.fill_(1.0)
        layer.output.LayerNorm.weight.fill_(1.0)
        layer.train(model.training)
        model.bert.encoder.layer.append(layer)
        for part in (model, model.bert):
            part.config = part.config.replace(num_hidden_layers=part.config.num_hidden_layers + 1)
    elif pooling != "cls":
        raise FilbertError(f"pooling {pooling!r}: a classifier can be made of mean and cls alone")
    assert model.bert.pooler is not None
    model.bert.pooler.dense.weight.copy_(eye * POOLER_FACTOR)
    model.bert.pooler.dense.bias.zero_()


@torch.no_grad()
def features(
    model: BertForSequenceClassification, encoded: Encoded, *, batch_tokens: int = 4096
) -> Floats:
    """(texts, hidden) float32: what the head of `model` reads of each text of one window."""
    model.eval()
    out = np.empty((len(encoded), model.config.hidden_size), np.float32)
    for texts in plan_once(encoded.tokens, batch_tokens=batch_tokens):
        batch = encoded.gather(texts)
        ids, types, lengths = (
            torch.from_numpy(x).to(model.device)
            for x in (batch.input_ids, batch.token_type_ids, batch.lengths)
        )
        pooled: Tensor = model.bert(
            input_ids=ids, token_type_ids=types, lengths=lengths, first_only=True
        ).pooler_output
        out[texts] = pooled.float().cpu().numpy()
    return out


def fit_head(vectors: Floats, gold: Ids, *, classes: int) -> tuple[Floats, Floats]:
    """The weight (classes, d) and bias (classes,) of logistic regression on `vectors` (n, d).

    The regularisation is that of vectors of length 1, whatever the scale of these.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scale = float(np.sqrt((vectors.astype(np.float64) ** 2).sum(1).mean())) or 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its last digits change no answer
        found = LogisticRegression(C=STRENGTH, max_iter=1000).fit(
            vectors.astype(np.float64) / scale, gold
        )
    weight = np.zeros((classes, vectors.shape[1]))
    bias = np.zeros(classes)
    if len(found.classes_) == 2:  # one row then, of the second class against the first
        weight[found.classes_[1]], bias[found.classes_[1]] = found.coef_[0], found.intercept_[0]
    else:
        weight[found.classes_], bias[found.classes_] = found.coef_, found.intercept_
    return (weight / scale).astype(np.float32), bias.astype(np.float32)


@torch.no_grad()
def put_head(model: BertForSequenceClassification, weight: Floats, bias: Floats) -> None:
    """Set the classification layer of `model`."""
    model.classifier.weight.copy_(torch.from_numpy(weight))
    model.classifier.bias.copy_(torch.from_numpy(bias))
