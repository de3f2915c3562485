"""Nearest vectors against plain sorting, and the ranking scores against scikit-learn and a hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from filbert.errors import FilbertError
from filbert.tasks import retrieval
from filbert.tasks.retrieval import nearest, ranking_scores, retrieval_scores, worst_first


@pytest.mark.parametrize("top", [1, 3, 50])
@pytest.mark.parametrize("block", [1 << 26, 64])
def test_nearest_is_plain_sorting(monkeypatch: pytest.MonkeyPatch, top: int, block: int) -> None:
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", block)
    draw = np.random.default_rng(0)
    vectors = draw.integers(-2, 3, (37, 4)).astype(np.float32)  # many ties
    queries = draw.integers(-2, 3, (5, 4)).astype(np.float32)
    places, scores = nearest(queries, vectors, top=top)
    products = queries @ vectors.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(products, expected, axis=1))


def test_nearest_of_nothing_and_of_other_sizes() -> None:
    empty = nearest(np.ones((2, 3), np.float32), np.zeros((0, 3), np.float32), top=4)
    assert empty[0].shape == empty[1].shape == (2, 0)
    with pytest.raises(FilbertError, match="same dimensions"):
        nearest(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32), top=1)


def test_ndcg_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    gains, values = draw.integers(0, 4, (20, 15)), draw.random((20, 15))
    gains[:, 0] = 1  # at least one relevant
    ordered = [row[worst_first(v, row)] for v, row in zip(values, gains, strict=True)]
    ours = ranking_scores(ordered)["ndcg@10"]
    assert ours == pytest.approx(ndcg_score(gains, values, k=10), abs=1e-12)


def test_by_hand() -> None:
    # second of two relevant answers at 3; the first query finds its one answer at place 2
    scores = ranking_scores([[0, 1, 0], [1, 0, 1, 0]])
    assert scores["recall@1"] == (0 + 0.5) / 2 and scores["recall@5"] == 1.0
    assert scores["mrr@10"] == (0.5 + 1.0) / 2 and scores["queries"] == 2
    ndcg = [1 / np.log2(3), (1 + 0.5) / (1 + 1 / np.log2(3))]
    assert scores["ndcg@10"] == pytest.approx(np.mean(ndcg))
    cut = ranking_scores([[0] * 10], ideal=[[1, 1]])  # not found among the first ten
    assert cut["recall@10"] == cut["mrr@10"] == cut["ndcg@10"] == 0.0
    with pytest.raises(FilbertError, match="query 1: no relevant"):
        ranking_scores([[0, 0]])


def test_a_model_that_says_the_same_of_all_earns_nothing() -> None:
    vectors = np.ones((50, 8), np.float32) / np.sqrt(8).astype(np.float32)
    scores = retrieval_scores(vectors, vectors, [[n] for n in range(50)])
    assert scores["mrr@10"] == 0.0


def test_a_perfect_model() -> None:
    eye = np.eye(12, dtype=np.float32)
    scores = retrieval_scores(eye, eye, [[n] for n in range(12)])
    assert {name: scores[name] for name in ("recall@1", "mrr@10", "ndcg@10")} == {
        "recall@1": 1.0, "mrr@10": 1.0, "ndcg@10": 1.0
    }  # fmt: skip
