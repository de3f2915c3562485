"""Ranking: which logit scores, and scores of judged rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert.bundle import Manifest
from filbert.errors import FilbertError, UsageError
from filbert.tasks import rank

SINGLE: Any = "single_label_classification"


def manifest(*labels: str, kind: Any = SINGLE) -> Manifest:
    return Manifest(task="classify", problem_type=kind, labels=list(labels), pair=True)


def test_which_label_says_that_a_text_fits() -> None:
    assert rank.label_of(manifest("0", "1"), None) == 1
    assert rank.label_of(manifest("entailment", "not_entailment"), None) == 0
    assert rank.label_of(manifest("a", "b"), "b") == 1
    assert rank.label_of(manifest(kind="regression"), None) == 0
    with pytest.raises(UsageError, match="say --label"):
        rank.label_of(manifest("a", "b"), None)
    with pytest.raises(UsageError, match="no labels"):
        rank.label_of(manifest(kind="regression"), "a")
    with pytest.raises(UsageError, match="Did you mean 'good'"):
        rank.label_of(manifest("good", "bad"), "goood")


def test_scores_are_numbers_or_probabilities() -> None:
    logits = np.array([[0.0, np.log(3.0)], [2.0, 2.0]], np.float32)
    np.testing.assert_allclose(rank.decode(logits, manifest("0", "1"), 1), [0.75, 0.5])
    regression = manifest(kind="regression")
    np.testing.assert_allclose(rank.decode(logits[:, :1], regression, 0), [0.0, 2.0])


def test_judged_rows_in_any_order_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "judged.tsv"
    lines = ["query\tpassage\tlabel", "q1\ta\t1", "q2\tb\t0", "q1\tc\t0", "q2\td\t2", "q3\te\t0"]
    path.write_text("\n".join(lines) + "\n")
    judged = rank.read(path)
    assert judged.query.tolist() == [0, 1, 0, 1, 2] and judged.pairs[3] == ("q2", "d")
    scores = rank.score(np.array([0.1, 0.2, 0.9, 0.2, 0.5]), judged)
    # q1: its answer is the second; q2: a tie counts in the worst order; q3 has nothing to find
    assert scores["mrr@10"] == 0.5 and scores["recall@1"] == 0.0 and scores["left_out"] == 1
    assert scores["ndcg@10"] == pytest.approx(1 / np.log2(3))
    with pytest.raises(FilbertError, match="no query has a relevant"):
        rank.score(np.zeros(5), rank.Judged(judged.pairs, np.zeros(5), judged.query, "x"))
    path.write_text("\n".join([*lines, "q3\tf\t-1"]) + "\n")
    with pytest.raises(FilbertError, match="there is none in row 6: '-1'"):
        rank.read(path)
    path.write_text("query\tpassage\tlabel\nq1\ta\tgood\nq1\tb\tbad\n")
    with pytest.raises(FilbertError, match=r"a relevance was expected .* 2 rows \(1, 2\): 'good'"):
        rank.read(path)
