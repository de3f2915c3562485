"""Calibration: hand-calculated errors, temperatures that are known, thresholds tried one by one."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from filbert.errors import FilbertError
from filbert.tasks import calibrate

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, classes) and classes (rows,) drawn from their softmax: well calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(rows, classes))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gold = (p.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return logits, np.minimum(gold, classes - 1)


def test_softmax_and_sigmoid_by_hand() -> None:
    p = calibrate.probabilities([[0.0, math.log(3.0)]], SINGLE)
    assert p.tolist()[0] == pytest.approx([0.25, 0.75], abs=1e-15)
    # dividing by a temperature of 2 takes the square root of the odds: 1 : sqrt(3)
    p = calibrate.probabilities([[0.0, math.log(3.0)]], SINGLE, 2.0)
    assert p[0, 1] == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)), abs=1e-15)
    p = calibrate.probabilities([[math.log(4.0), -math.log(4.0)]], MULTI)
    assert p.tolist()[0] == pytest.approx([0.8, 0.2], abs=1e-15)
    assert calibrate.probabilities([[3.5]], "regression", 9.0).tolist() == [[3.5]]


@pytest.mark.filterwarnings("error")
def test_extreme_logits_do_not_overflow() -> None:
    p = calibrate.probabilities([[1e4, -1e4]], SINGLE)
    assert p.tolist() == [[1.0, 0.0]]
    assert calibrate.probabilities([[1e4, -1e4]], MULTI).tolist() == [[1.0, 0.0]]


def test_a_single_row_is_the_same_row_of_a_batch() -> None:
    logits, _ = drawn(5, 4)
    batch = calibrate.probabilities(logits, SINGLE, 1.3)
    assert calibrate.probabilities(logits[2], SINGLE, 1.3).tolist() == batch[2].tolist()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(FilbertError, match="expected a number above 0"):
        calibrate.probabilities([[1.0, 2.0]], SINGLE, temperature)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_temperature_that_is_known_is_found(factor: float, classes: int) -> None:
    logits, gold = drawn(20_000, classes)
    found = calibrate.fit_temperature(logits * factor, gold, SINGLE)
    assert found == pytest.approx(factor, rel=0.03)
    p = calibrate.probabilities(logits * factor, SINGLE, found)
    assert (p.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert calibrate.expected_calibration_error(p, gold) < 0.015


def test_temperature_is_the_lowest_point_of_a_grid() -> None:
    logits, gold = drawn(300, 3, seed=4)
    found = calibrate.fit_temperature(logits * 2.5, gold, SINGLE)

    def loss(temperature: float) -> float:
        return calibrate.negative_log_likelihood(logits * 2.5 / temperature, gold, SINGLE)

    grid = [loss(t) for t in np.linspace(0.05, 20, 4000)]
    assert loss(found) <= min(grid) + 1e-9


def test_temperature_of_several_labels() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2.0, size=(8000, 3))
    gold = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)
    assert calibrate.fit_temperature(logits * 4, gold, MULTI) == pytest.approx(4.0, rel=0.03)


def test_temperature_stays_1_where_nothing_can_be_learned() -> None:
    logits, gold = drawn(19, 2)
    assert calibrate.fit_temperature(logits * 5, gold, SINGLE) == 1.0  # too few rows
    logits, _ = drawn(500, 3)
    assert calibrate.fit_temperature(logits, logits.argmax(axis=1), SINGLE) == 1.0  # no mistake
    assert calibrate.fit_temperature(logits, (logits > 0).astype(int), MULTI) == 1.0
    assert (
        calibrate.fit_temperature(logits[:, :1], gold=logits[:, 0], problem_type="regression") == 1
    )


def test_temperature_is_bounded_where_everything_is_wrong() -> None:
    logits = np.tile([9.0, 0.0], (100, 1))
    found = calibrate.fit_temperature(logits, np.ones(100, dtype=int), SINGLE)
    assert found == pytest.approx(20.0, rel=1e-3)
    assert found <= 20.0


def test_calibration_error_by_hand() -> None:
    # 5 bins; rows with confidence .55 (right), .6 (wrong; edges close above: bin 3), .9 .95 (right)
    p = np.array([[0.55, 0.45], [0.4, 0.6], [0.9, 0.1], [0.05, 0.95]])
    gold = np.array([0, 0, 0, 1])
    bins = calibrate.reliability_bins(p, gold, bins=5)
    assert [part["count"] for part in bins] == [0, 0, 2, 0, 2]
    assert bins[2]["confidence"] == pytest.approx(0.575)
    assert bins[2]["accuracy"] == 0.5
    assert bins[0] == {"confidence": None, "accuracy": None, "count": 0}
    expected = (2 * abs(0.5 - 0.575) + 2 * abs(1.0 - 0.925)) / 4
    assert calibrate.expected_calibration_error(p, gold, bins=5) == pytest.approx(expected)


def test_calibration_error_of_several_labels_by_hand() -> None:
    p = np.array([[0.2, 0.8], [0.2, 0.6]])
    gold = np.array([[0, 1], [1, 1]])
    # bins of 0.5: (0, .5] mean .2, half have the label; (.5, 1] mean .7, all have it
    error = calibrate.expected_calibration_error(p, gold, bins=2)
    assert error == pytest.approx((2 * 0.3 + 2 * 0.3) / 4)


def test_a_certain_model_that_is_right_has_no_calibration_error() -> None:
    assert calibrate.expected_calibration_error([[0.0, 1.0]] * 3, [1, 1, 1]) == 0.0
    assert calibrate.expected_calibration_error([[0.0, 1.0]] * 3, [0, 0, 0]) == 1.0


def test_logits_where_probabilities_belong_are_refused() -> None:
    with pytest.raises(FilbertError, match="look like logits"):
        calibrate.reliability_bins([[3.0, -1.0]], [0])


def test_threshold_by_hand() -> None:
    p = np.array([0.1, 0.3, 0.35, 0.8])
    logits = np.log(p / (1 - p))[:, None]
    gold = np.array([[0], [1], [0], [1]])
    # given from .3 up: 2 of 3 right, all found, F1 = .8; only .8: F1 = 2/3. Middle of .1 and .3
    assert calibrate.fit_thresholds(logits, gold) == pytest.approx([0.2])
    # separable with 0.5 in the gap: 0.5 itself
    gold = np.array([[0], [0], [0], [1]])
    assert calibrate.fit_thresholds(logits, gold) == [0.5]
    # a label without rows, and one that every row has (all are given: below the lowest score)
    assert calibrate.fit_thresholds(logits, np.zeros((4, 1), dtype=int)) == [0.5]
    assert calibrate.fit_thresholds(logits, np.ones((4, 1), dtype=int)) == pytest.approx([0.05])


def test_thresholds_are_the_best_of_all_cuts() -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(120, 4)).round(1)  # rounded, so that scores tie
    gold = (rng.random(logits.shape) < 1 / (1 + np.exp(1 - logits))).astype(int)
    p = calibrate.probabilities(logits, MULTI)
    for k, threshold in enumerate(calibrate.fit_thresholds(logits, gold)):
        found = f1_score(gold[:, k], p[:, k] >= threshold)
        tried = [f1_score(gold[:, k], p[:, k] >= cut) for cut in np.unique(p[:, k])]
        assert found == pytest.approx(max(tried), abs=1e-12)
        assert 0 < threshold < 1


def test_threshold_between_neighbouring_floats() -> None:
    # the middle of two adjacent floats is one of the two: it must not fall on the lower one
    low = 0.7
    scores = np.array([low, np.nextafter(low, 1)])
    threshold = calibrate._best_threshold(scores, np.array([0, 1]))
    assert (scores >= threshold).tolist() == [False, True]


@pytest.mark.parametrize(
    ("logits", "gold", "message"),
    [
        ([[1.0, math.nan]], [0], "NaN or infinite"),
        ([[1.0, math.inf]], [0], "NaN or infinite"),
        ([1.0, 2.0], [0, 1], "expected two dimensions"),
        (np.zeros((0, 2)), [], "no rows to score"),
        ([[1.0, 2.0]], [0, 1], "1 rows of logits but 2 gold"),
        ([[1.0, 2.0]], [2], "the model has 2 classes"),
        ([[1.0, 2.0]], [-1], "the model has 2 classes"),
        ([[1.0, 2.0]], [0.5], "expected one class index"),
    ],
)
def test_bad_input_is_told(logits: list[list[float]], gold: list[int], message: str) -> None:
    with pytest.raises(FilbertError, match=message):
        calibrate.fit_temperature(logits, gold, SINGLE)


def test_bad_multilabel_gold_is_told() -> None:
    with pytest.raises(FilbertError, match=r"expected \(1, 2\) like the logits"):
        calibrate.fit_thresholds([[1.0, 2.0]], [[0, 2]])
    with pytest.raises(FilbertError, match="unknown problem type 'multiclass'"):
        calibrate.fit_temperature([[1.0, 2.0]], [0], "multiclass")


def test_importing_is_light() -> None:
    code = (
        "import sys; import filbert.tasks.metrics, filbert.tasks.calibrate; "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'rich') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.strip() == "[]"
