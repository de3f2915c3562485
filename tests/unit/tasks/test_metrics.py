"""Scores against hand calculations and scikit-learn's own words; undefined ones are None."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics as reference

from filbert.errors import FilbertError
from filbert.tasks import metrics

pytestmark = pytest.mark.filterwarnings("error")

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"


def printed(scores: dict[str, object], width: int = 120) -> str:
    output = io.StringIO()
    Console(width=width, file=output).print(metrics.score_table(scores))
    return output.getvalue()


def test_two_classes_by_hand() -> None:
    # decisions 1 1 0 0 1 against 1 0 0 1 1: 2 true positives, 1 false, 1 missed, 1 true negative
    logits = [[0, 2.0], [0, 1.0], [3.0, 0], [1.0, 0], [0, 0.5]]
    scores = metrics.classification_scores(logits, [1, 0, 0, 1, 1], labels=["ham", "spam"])
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["f1_micro"] == pytest.approx(3 / 5)
    assert scores["mcc"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    # margins of gold 1: 2, -1, .5; of gold 0: 1, -3. Pairs in order: 2>1 2>-3 -1>-3 .5>-3 of 6
    assert scores["auc"] == pytest.approx(4 / 6)
    nll = [math.log1p(math.exp(-m)) for m in (2.0, -1.0, 3.0, -1.0, 0.5)]
    assert scores["log_loss"] == pytest.approx(sum(nll) / 5, abs=1e-12)
    assert scores["confusion"] == [[1, 1], [1, 2]]
    assert scores["rows"] == 5
    assert scores["per_class"]["spam"] == {
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "support": 3,
    }


def test_many_classes_equal_the_reference_scorer() -> None:
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 7, size=400)
    logits = rng.normal(size=(400, 7)) + 1.5 * np.eye(7)[gold]
    predicted = logits.argmax(axis=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = metrics.classification_scores(logits, gold, labels=list("abcdefg"))
    assert "f1" not in scores
    assert scores["accuracy"] == reference.accuracy_score(gold, predicted)
    assert scores["f1_macro"] == reference.f1_score(gold, predicted, average="macro")
    assert scores["mcc"] == reference.matthews_corrcoef(gold, predicted)
    auc = reference.roc_auc_score(gold, p, multi_class="ovr", average="macro")
    assert scores["auc"] == pytest.approx(auc, abs=1e-12)
    assert scores["log_loss"] == pytest.approx(reference.log_loss(gold, p), abs=1e-12)
    assert scores["confusion"] == reference.confusion_matrix(gold, predicted).tolist()


def test_class_absent_from_gold_has_no_auc() -> None:
    logits = [[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.5]]
    scores = metrics.classification_scores(logits, [0, 1, 1], labels=["a", "b", "c"])
    assert scores["auc"] is None
    assert scores["per_class"]["c"]["support"] == 0
    assert scores["per_class"]["c"]["f1"] == 0.0
    assert len(scores["confusion"]) == 3
    # as in scikit-learn, a class that occurs nowhere does not count in the macro average
    assert scores["f1_macro"] == reference.f1_score([0, 1, 1], [0, 1, 0], average="macro")


def test_constant_sides() -> None:
    logits = [[1.0, 0.0]] * 4
    scores = metrics.classification_scores(logits, [0, 0, 1, 1], labels=["a", "b"])
    assert scores["mcc"] == 0.0
    assert scores["f1"] == 0.0
    assert scores["auc"] == 0.5
    scores = metrics.classification_scores(logits, [0, 0, 0, 0], labels=["a", "b"])
    assert (scores["accuracy"], scores["mcc"], scores["auc"]) == (1.0, 0.0, None)


def test_a_sure_mistake_has_its_true_loss() -> None:
    scores = metrics.classification_scores([[1000.0, 0.0]], [1], labels=["a", "b"])
    assert scores["log_loss"] == 1000.0


def test_scores_are_plain_json() -> None:
    logits = np.array([[0.5, 1.5], [2.5, 0.5]], dtype=np.float32)
    scores = metrics.classification_scores(
        logits, np.array([1, 0], dtype=np.int32), labels=["a", "b"]
    )
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert all(type(v) in (float, int) for k, v in scores.items() if k not in EXTRAS)


EXTRAS = ("per_class", "confusion")


def test_several_labels_by_hand() -> None:
    logits = [[2.0, -1.0], [1.0, 1.0], [-1.0, -2.0], [-3.0, 0.0]]
    gold = [[1, 0], [0, 1], [1, 0], [0, 1]]
    scores = metrics.multilabel_scores(logits, gold, labels=["x", "y"])
    # x: given 1 1 0 0 against 1 0 1 0; y: given 0 1 0 1 (0.5 counts as given) against 0 1 0 1
    assert scores["per_class"]["x"]["f1"] == pytest.approx(0.5)
    assert scores["per_class"]["y"]["f1"] == 1.0
    assert scores["f1_macro"] == pytest.approx(0.75)
    assert scores["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert scores["accuracy"] == pytest.approx(0.5)
    # x: pairs (2, -1) above (1, -3): 2>1 2>-3 -1>-3 = 3 of 4; y: all 4 of 4
    assert scores["auc"] == pytest.approx((3 / 4 + 1) / 2)
    bce = [math.log1p(math.exp(z)) for z in (-2, -1, 1, -1, 1, -2, -3, 0)]
    assert scores["log_loss"] == pytest.approx(sum(bce) / 8, abs=1e-12)
    high = metrics.multilabel_scores(logits, gold, labels=["x", "y"], thresholds=[0.8, 0.6])
    assert high["per_class"]["x"] == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}
    assert high["per_class"]["y"]["recall"] == 0.5
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_several_labels_equal_the_reference_scorer() -> None:
    rng = np.random.default_rng(5)
    gold = rng.integers(0, 2, size=(200, 4))
    logits = rng.normal(size=(200, 4)) + gold
    scores = metrics.multilabel_scores(logits, gold, labels=list("abcd"))
    predicted = logits >= 0
    assert scores["f1_micro"] == pytest.approx(
        reference.f1_score(gold, predicted, average="micro"), abs=1e-12
    )
    assert scores["f1_macro"] == pytest.approx(
        reference.f1_score(gold, predicted, average="macro"), abs=1e-12
    )
    assert scores["auc"] == pytest.approx(reference.roc_auc_score(gold, logits), abs=1e-12)
    assert scores["accuracy"] == reference.accuracy_score(gold, predicted)


def test_several_labels_with_one_unused_and_only_one() -> None:
    scores = metrics.multilabel_scores([[1.0, -1.0]] * 2, [[1, 0], [0, 0]], labels=["x", "y"])
    assert scores["auc"] is None
    assert scores["per_class"]["y"]["support"] == 0
    one = metrics.multilabel_scores([[1.0], [-1.0]], [[1], [0]], labels=["x"])
    assert (one["f1_micro"], one["f1_macro"], one["auc"], one["accuracy"]) == (1, 1, 1, 1)


def test_numbers_by_hand() -> None:
    scores = metrics.regression_scores([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert scores["mse"] == pytest.approx((0 + 1 + 4) / 3)
    assert scores["mae"] == pytest.approx(1.0)
    # deviations -4/3 -1/3 5/3 and -1 1 0: 1 / sqrt(42/9 * 2); ranks 1 2 3 and 1 3 2
    assert scores["pearson"] == pytest.approx(1 / math.sqrt(42 / 9 * 2))
    assert scores["spearman"] == pytest.approx(0.5)
    column = metrics.regression_scores([[1.0], [2.0], [4.0]], [1.0, 3.0, 2.0])
    assert column == scores


@pytest.mark.parametrize(
    ("values", "gold"),
    [
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]),
        ([1.0], [2.0]),
        ([1e9, 1e9 + 1e-7, 1e9 + 2e-7], [1.0, 2.0, 3.0]),
    ],
)
def test_correlation_with_a_constant_is_none(values: list[float], gold: list[float]) -> None:
    scores = metrics.regression_scores(values, gold)
    assert scores["pearson"] is None or -1.0 <= scores["pearson"] <= 1.0
    if np.ptp(values) == 0 or np.ptp(gold) == 0:
        assert scores["pearson"] is None
        assert scores["spearman"] is None
    assert scores["mae"] > 0


def test_wrong_input_is_told() -> None:
    with pytest.raises(FilbertError, match=r"of 1 of 2 rows are NaN or infinite \(first: row 1"):
        metrics.classification_scores([[0, 1.0], [math.nan, 0]], [0, 1], labels=["a", "b"])
    with pytest.raises(FilbertError, match="3 label names but 2 columns"):
        metrics.classification_scores([[0, 1.0]], [0], labels=["a", "b", "c"])
    with pytest.raises(FilbertError, match="at least 2 classes"):
        metrics.classification_scores([[0.0]], [0], labels=["a"])
    with pytest.raises(FilbertError, match="NaN or infinite"):
        metrics.multilabel_scores([[math.inf]], [[1]], labels=["a"])
    with pytest.raises(FilbertError, match="2 thresholds but 1 labels"):
        metrics.multilabel_scores([[1.0]], [[1]], labels=["a"], thresholds=[0.5, 0.5])
    with pytest.raises(FilbertError, match="gold values of 1 of 1 rows are NaN"):
        metrics.regression_scores([1.0], [math.nan])
    with pytest.raises(FilbertError, match="2 predicted values but 1 gold"):
        metrics.regression_scores([1.0, 2.0], [1.0])
    with pytest.raises(FilbertError, match="no rows to score"):
        metrics.regression_scores([], [])


def test_main_metric_and_direction() -> None:
    assert [metrics.main_metric(t) for t in (SINGLE, MULTI, "regression")] == [
        "accuracy",
        "f1_micro",
        "pearson",
    ]
    assert metrics.lower_is_better("log_loss")
    assert not metrics.lower_is_better("accuracy")
    with pytest.raises(FilbertError, match="unknown problem type"):
        metrics.main_metric("ranking")


def test_examine_single_label() -> None:
    logits = [[3.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 4.0]]
    record = metrics.examine(
        logits,
        [0, 0, 1, 0],
        problem_type=SINGLE,
        labels=["ham", "spam"],
        texts=["one", "half \ud800", "three", "four" * 10],
        ids=[f"dev.csv:{n}" for n in (1, 2, 3, 4)],
        temperature=2.0,
        longest_text=8,
    )
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["confusion"] == [[1, 2], [1, 0]]
    # surest mistakes first; probabilities are calibrated: sigmoid of half the margin
    assert [(w["id"], w["gold"], w["predicted"]) for w in record["worst"]] == [
        ("dev.csv:4", "ham", "spam"),
        ("dev.csv:3", "spam", "ham"),
        ("dev.csv:2", "ham", "spam"),
    ]
    assert record["worst"][0]["probability"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert record["worst"][0]["text"] == "fourfour"
    assert record["worst"][0]["pair"] is None
    assert record["worst"][2]["text"] == "half ?"  # so that it can be written as UTF-8
    assert record["scores"]["accuracy"] == 0.25
    assert "confusion" not in record["scores"]
    assert record["calibration"]["temperature"] == 2.0
    assert sum(part["count"] for part in record["calibration"]["bins_before"]) == 4
    assert record["calibration"]["ece_after"] == record["scores"]["ece"]
    assert record["scatter"] is None


def test_examine_several_labels() -> None:
    record = metrics.examine(
        [[2.0, -2.0], [3.0, -1.0]],
        [[1, 0], [0, 1]],
        problem_type=MULTI,
        labels=["x", "y"],
        texts=["right", "wrong"],
        pairs=["p", "q"],
        ids=["1", "2"],
        thresholds=[0.5, 0.4],
    )
    (mistake,) = record["worst"]
    assert mistake == {
        "id": "2",
        "text": "wrong",
        "pair": "q",
        "gold": ["y"],
        "predicted": ["x"],
        "probability": pytest.approx(1 / (1 + math.exp(-3.0))),
    }
    assert sum(part["count"] for part in record["calibration"]["bins_after"]) == 4
    assert record["per_class"]["y"]["recall"] == 0.0
    assert record["per_class"]["y"]["threshold"] == 0.4
    assert record["confusion"] is None


def test_examine_regression() -> None:
    gold = np.linspace(0, 5, 12_000)
    record = metrics.examine(
        (gold + np.where(np.arange(12_000) == 700, 2.0, 0.1))[:, None],
        gold,
        problem_type="regression",
        labels=[],
        texts=[str(k) for k in range(12_000)],
        ids=[str(k) for k in range(12_000)],
        worst=3,
    )
    assert record["worst"][0]["text"] == "700"
    assert record["worst"][0]["predicted"] == pytest.approx(gold[700] + 2.0)
    assert record["worst"][0]["probability"] is None
    assert len(record["worst"]) == 3
    assert len(record["scatter"]["gold"]) == len(record["scatter"]["predicted"]) == 4000
    assert record["calibration"] is None
    assert record["scores"]["mae"] == pytest.approx(0.1, abs=1e-3)


def test_score_table_shows_classes_and_matrix() -> None:
    scores = metrics.classification_scores(
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 1, 1], labels=["[bold]ham", "spam"]
    )
    text = printed(scores)
    assert "[bold]ham" in text  # a label is text, never markup
    assert "accuracy" in text
    assert "0.6667" in text
    rows = [line for line in text.splitlines() if "spam" in line]
    assert any("1.0000" in line and "0.5000" in line for line in rows)  # precision, recall
    assert "confusion" in text
    undefined = printed(metrics.regression_scores([1.0, 1.0], [1.0, 2.0]))
    assert "undefined" in undefined


def test_score_table_leaves_out_a_large_matrix() -> None:
    rng = np.random.default_rng(0)
    labels = [f"class{k}" for k in range(21)]
    scores = metrics.classification_scores(
        rng.normal(size=(50, 21)), rng.integers(0, 21, size=50), labels=labels
    )
    text = printed(scores)
    assert "confusion" not in text
    assert "class20" in text
