"""Nearest vectors, exactly, and how good an order of answers is: recall, MRR, nDCG. Numpy alone.

    places, scores = nearest(queries, vectors, top=10)       # both (queries, 10), best first
    ranking_scores([gains_of_the_first_query, ...])          # gains in the order that was answered

Used by the training and the evaluation of sentence vectors, by `filbert search` and by `filbert
rank`. The measures are those of trec_eval: gains count as they are in nDCG (not 2^gain - 1).
Source: Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from filbert.errors import FilbertError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BLOCK_BYTES = 1 << 26  # of similarities that are held at once
CUTS = (1, 5, 10)  # of recall
DEPTH = 10  # of MRR and nDCG


def nearest(queries: Floats, vectors: Floats, *, top: int) -> tuple[Ints, Floats]:
    """The `top` rows of `vectors` with the highest dot product, for each query, best first.

    queries (q, d), vectors (n, d) float32; both normalised, so that the product is the cosine.
    Returns places (q, k) int64 and products (q, k) float32, k = min(top, n); of equal products the
    earlier row comes first. Every pair is computed, in blocks: memory beyond the inputs and the
    result is 64 MiB or so, whatever n is.
    """
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise FilbertError(
            f"queries {queries.shape} and vectors {vectors.shape}: (rows, the same dimensions) "
            "were expected"
        )
    keep = min(top, len(vectors))
    if keep < 1:
        return np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    places = np.zeros((len(queries), keep), np.int64)
    scores = np.zeros((len(queries), keep), np.float32)
    rows = max(1, min(len(vectors), BLOCK_BYTES // 4))
    at_once = max(1, BLOCK_BYTES // 4 // rows)
    for first in range(0, len(queries), at_once):
        some = queries[first : first + at_once]
        best_scores = np.zeros((len(some), 0), np.float32)
        best_places = np.zeros((len(some), 0), np.int64)
        for start in range(0, len(vectors), rows):
            products = some @ vectors[start : start + rows].T  # (queries, rows)
            found = _highest(products, keep)
            best_scores = np.hstack([best_scores, np.take_along_axis(products, found, axis=1)])
            best_places = np.hstack([best_places, found + start])
            order = np.lexsort((best_places, -best_scores), axis=1)[:, :keep]
            best_scores = np.take_along_axis(best_scores, order, axis=1)
            best_places = np.take_along_axis(best_places, order, axis=1)
        places[first : first + at_once], scores[first : first + at_once] = best_places, best_scores
    return places, scores


def _highest(products: Floats, keep: int) -> Ints:
    """(queries, keep') places of the highest of each row, in no order; of equals the earlier."""
    if products.shape[1] <= keep:
        return np.broadcast_to(np.arange(products.shape[1]), products.shape)
    limit = -np.partition(-products, keep - 1, axis=1)[:, keep - 1 : keep]  # (queries, 1)
    found = np.empty((len(products), keep), np.int64)
    for row, (line, lowest) in enumerate(zip(products, limit, strict=True)):
        above = np.flatnonzero(line > lowest)
        equal = np.flatnonzero(line == lowest)[: keep - len(above)]
        found[row] = np.concatenate([above, equal])
    return found


def ranking_scores(
    gains: Sequence[ArrayLike], *, ideal: Sequence[ArrayLike] | None = None
) -> dict[str, Any]:
    """Scores of answers in order: recall@1, @5, @10, mrr@10, ndcg@10, and how many queries.

    gains: of each query, the relevance of its answers, best-placed first; 0 is irrelevant. ideal:
    all relevances above 0 that there are, where `gains` is only the top of the list. Means over
    the queries; `FilbertError` where a query has nothing relevant, as no order is then right.
    """
    recalls: dict[int, list[float]] = {cut: [] for cut in CUTS}
    reciprocal, gained = [], []
    for number, given in enumerate(gains):
        row = np.asarray(given, dtype=np.float64)
        best = row if ideal is None else np.asarray(ideal[number], dtype=np.float64)
        best = np.sort(best[best > 0])[::-1]
        if not len(best):
            raise FilbertError(f"query {number + 1}: no relevant answer, so no order is right")
        for cut, values in recalls.items():
            values.append(np.count_nonzero(row[:cut] > 0) / len(best))
        hits = np.flatnonzero(row[:DEPTH] > 0)
        reciprocal.append(1.0 / (hits[0] + 1) if len(hits) else 0.0)
        gained.append(_dcg(row[:DEPTH]) / _dcg(best[:DEPTH]))
    if not gained:
        raise FilbertError("no queries to score")
    scores: dict[str, Any] = {f"recall@{cut}": float(np.mean(v)) for cut, v in recalls.items()}
    scores[f"mrr@{DEPTH}"] = float(np.mean(reciprocal))
    scores[f"ndcg@{DEPTH}"] = float(np.mean(gained))
    scores["queries"] = len(gained)
    return scores


def _dcg(gains: NDArray[np.float64]) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def worst_first(scores: NDArray[Any], gains: NDArray[Any]) -> Ints:
    """The order by score, highest first; of equal scores the irrelevant first, so that a model
    that says the same of everything earns nothing by the order of the rows. All (n,)."""
    return np.lexsort((gains, -scores))


def retrieval_scores(
    queries: Floats, corpus: Floats, relevant: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Scores of finding, for each query, its `relevant` rows of `corpus` among all of them.

    queries (q, d), corpus (n, d) float32, normalised; relevant: of each query, places in `corpus`.
    Keys as `ranking_scores`. A row that scores like a relevant one counts as placed before it.
    """
    gains = []
    for first in range(0, len(queries), 256):
        some = queries[first : first + 256]
        places, scores = nearest(some, corpus, top=4 * DEPTH)
        for row, (line, values) in enumerate(zip(places, scores, strict=True)):
            gain = np.isin(line, relevant[first + row]).astype(np.float64)
            gains.append(gain[worst_first(values, gain)])
    return ranking_scores(gains, ideal=[np.ones(len(places)) for places in relevant])
