"""Ranking by a cross-encoder: a model that reads query and text together says how well they fit.

The model is a classifier of pairs (`filbert train classify --pair-column ...`): of a regression
the number is the score, of labels the calibrated probability of one of them. So training and its
`encode`, `head`, `loss` are those of `filbert/tasks/classify.py`; here is what ranking adds:
`read`, `decode`, `score`.

Nogueira and Cho 2019, "Passage re-ranking with BERT" (arXiv 1901.04085).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from filbert.data.examples import SINGLE, read_examples
from filbert.data.tables import is_number
from filbert.data.told_rows import ToldRows
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.tasks.calibrate import probabilities
from filbert.tasks.retrieval import ranking_scores, worst_first

if TYPE_CHECKING:
    from filbert.bundle import Manifest

# labels that say "fits", in any case, where nobody names one
YES = ("1", "true", "yes", "relevant", "entailment", "equivalent", "duplicate", "positive", "pos")


@dataclass(frozen=True)
class Judged:
    """Queries with judged texts. pairs: (query, text) of each row; gains: (rows,) float64, above 0
    where a text is relevant; query: (rows,) int64, equal for rows of one query."""

    pairs: list[tuple[str, str]]
    gains: NDArray[np.float64]
    query: NDArray[np.int64]
    source: str


def read(path: str | os.PathLike[str], **reading: Any) -> Judged:
    """Rows of query, text and relevance (a number, 0 for irrelevant); a query's rows may stand
    anywhere. `reading`: what `read_examples` takes. Raises `FilbertError`."""
    examples = read_examples(path, problem_type=SINGLE, **reading)
    if examples.pairs is None:
        raise UsageError(
            f"{examples.source}: a query and a text were expected in each row; name their columns "
            "with --text-column and --pair-column"
        )
    wrong = ToldRows()
    values = []
    for row, label in zip(examples.numbers, examples.labels or [], strict=True):
        value = float(label) if is_number(label) else -1.0
        if not 0 <= value < math.inf:
            wrong.add(row, f"{label!r:.40}")
        values.append(value)
    if wrong.count:
        raise FilbertError(
            f"{examples.source}: a relevance was expected in each row, a number, 0 for a text that "
            f"does not fit the query; there is none in {wrong}: {wrong.what}. Name the column with "
            "--label-column, or write numbers"
        )
    gains = np.asarray(values, np.float64)
    number: dict[str, int] = {}
    query = [number.setdefault(text, len(number)) for text in examples.texts]
    pairs = list(zip(examples.texts, examples.pairs, strict=True))
    return Judged(pairs, gains, np.asarray(query, np.int64), examples.source)


def label_of(manifest: Manifest, label: str | None) -> int:
    """The column of the logits that scores: of a regression the only one, else that of `label`, or
    of the one label that says "fits". `UsageError` where none is plain, or there is no such."""
    names = manifest.labels
    if manifest.problem_type == "regression":
        if label is not None:
            raise UsageError(f"--label {label!r}: this model gives a number, it has no labels")
        return 0
    if label is None:
        found = [place for place, name in enumerate(names) if name.lower() in YES]
        if len(found) == 1:
            return found[0]
        raise UsageError(
            f"which label says that a text fits? There are {', '.join(names[:20])}; say --label"
        )
    if label not in names:
        raise UsageError(
            f"--label {label!r}: there are {', '.join(names[:20])}.{did_you_mean(label, names)}"
        )
    return names.index(label)


def decode(logits: NDArray[np.float32], manifest: Manifest, column: int) -> NDArray[np.float64]:
    """(n,) scores of (n, labels) logits: the number itself, or the probability of `column`."""
    assert manifest.problem_type is not None
    if manifest.problem_type == "regression":
        return logits[:, 0].astype(np.float64)
    return probabilities(logits, manifest.problem_type, manifest.temperature)[:, column]


def score(values: NDArray[np.float64], judged: Judged) -> dict[str, Any]:
    """recall@k, mrr@10 and ndcg@10 of the order of each query's rows by `values` (rows,).

    Queries without any relevant row cannot be ranked well or badly and are left out, counted in
    `left_out`. Rows of equal score count in the worst order.
    """
    gains, left_out = [], 0
    for rows in np.split(
        np.argsort(judged.query, kind="stable"),
        np.flatnonzero(np.diff(np.sort(judged.query))) + 1,
    ):
        own = judged.gains[rows]
        if own.max() <= 0:
            left_out += 1
            continue
        gains.append(own[worst_first(values[rows], own)])
    if not gains:
        raise FilbertError(f"{judged.source}: no query has a relevant text")
    return {**ranking_scores(gains), "left_out": left_out}
