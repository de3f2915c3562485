"""From logits to probabilities that can be believed, and from probabilities to decisions.

A fine-tuned encoder is right more or less often than its softmax says. One number fitted on the dev
set, the temperature, mends most of that without changing a single prediction (Guo et al. 2017, "On
Calibration of Modern Neural Networks", section 4.2). For several labels at once, a threshold for
each label is fitted on the dev set too. Both are kept in the bundle.

    temperature = fit_temperature(logits, gold, "single_label_classification")
    p = probabilities(logits, "single_label_classification", temperature)
    expected_calibration_error(p, gold)

Problem types are the words of the model config: `single_label_classification`,
`multi_label_classification`, `regression`. Needs numpy; scipy and scikit-learn load when fitting.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from filbert.errors import FilbertError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

# A dev set smaller than this says less about the temperature than the prior "it is 1".
SMALLEST_DEV = 20
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


def checked_logits(logits: ArrayLike, *, rows: int | None = None) -> Floats:
    """`logits` as float64 (n, classes), refused with `FilbertError` if empty or not finite.

    `rows`: how many there must be, that is, how many gold labels there are.
    """
    array = np.asarray(logits, dtype=np.float64)
    if array.ndim != 2:
        raise FilbertError(
            f"logits have the shape {array.shape}, expected two dimensions (rows, classes); "
            "give one row of logits for each example"
        )
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise FilbertError("there are no rows to score; give a file with at least one labelled row")
    if rows is not None and array.shape[0] != rows:
        raise FilbertError(
            f"{array.shape[0]} rows of logits but {rows} gold labels; they must be as many"
        )
    check_finite(array, "logits")
    return array


def check_finite(array: Floats, name: str) -> None:
    """Raise `FilbertError` that names the first row of `array` with a NaN or an infinity."""
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        bad = int(len(array) - finite.sum())
        raise FilbertError(
            f"{name} of {bad} of {len(array)} rows are NaN or infinite (first: row "
            f"{int(np.argmin(finite))}, counted from 0); the model has diverged or is damaged. "
            "Train again with a lower learning rate (--lr), or load another checkpoint"
        )


def checked_gold(gold: ArrayLike, classes: int) -> Integers:
    """Class indices as int64 (n,), each in [0, classes); `FilbertError` otherwise."""
    array = np.asarray(gold)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise FilbertError(
            f"gold labels have the shape {array.shape} and type {array.dtype}; "
            "expected one class index (a whole number) for each row"
        )
    if len(array) and (array.min() < 0 or array.max() >= classes):
        raise FilbertError(
            f"gold labels run from {array.min()} to {array.max()}, but the model has {classes} "
            f"classes (0 to {classes - 1}); use the labels the model was trained with"
        )
    return array.astype(np.int64)


def checked_multilabel_gold(gold: ArrayLike, shape: tuple[int, ...]) -> Integers:
    """Gold of 0 and 1 as int64 with the `shape` of the logits; `FilbertError` otherwise."""
    array = np.asarray(gold)
    if array.shape != shape or not np.isin(array, (0, 1)).all():
        raise FilbertError(
            f"gold labels have the shape {array.shape}, expected {shape} like the logits, "
            "with a 1 for each label of the row and 0 for the others"
        )
    return array.astype(np.int64)


def check_problem_type(problem_type: str) -> None:
    """Raise `FilbertError` unless `problem_type` is one of `PROBLEM_TYPES`."""
    if problem_type not in PROBLEM_TYPES:
        raise FilbertError(
            f"unknown problem type {problem_type!r}; expected one of {', '.join(PROBLEM_TYPES)}"
        )


def probabilities(logits: ArrayLike, problem_type: str, temperature: float = 1.0) -> Floats:
    """Probabilities of the classes, the same shape as `logits` (..., classes), float64.

    Softmax over the last axis, or a sigmoid for each label, of `logits / temperature`; the values
    of a regression come back as they are.
    """
    check_problem_type(problem_type)
    values = np.asarray(logits, dtype=np.float64)
    if problem_type == "regression":
        return values
    if not (math.isfinite(temperature) and temperature > 0):
        raise FilbertError(f"the temperature is {temperature}; expected a number above 0")
    values = values / temperature
    if problem_type == "single_label_classification":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)
    # exp of a negative number only: neither tail overflows
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def negative_log_likelihood(logits: Floats, gold: Integers, problem_type: str) -> float:
    """Mean cross-entropy in nats: over rows, or over rows and labels where there are several.

    `logits` (n, classes); `gold` (n,) class indices, or (n, classes) of 0 and 1. From logits, not
    from probabilities, so that a confident mistake is not clipped to what a float can hold.
    """
    if problem_type == "single_label_classification":
        shifted = logits - logits.max(axis=1, keepdims=True)
        of_gold = np.take_along_axis(shifted, gold[:, None], axis=1)[:, 0]
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - of_gold))
    return float(np.mean(np.logaddexp(0.0, logits) - gold * logits))


def fit_temperature(logits: ArrayLike, gold: ArrayLike, problem_type: str) -> float:
    """The temperature in [0.05, 20] under which `gold` is most likely; it never changes an argmax.

    `logits` (n, classes); `gold` (n,) class indices, or (n, classes) of 0 and 1 for
    `multi_label_classification`. The answer is 1.0 where there is nothing to learn from: fewer than
    20 rows, a regression, or a dev set without a mistake (its likelihood grows without end as the
    temperature falls to 0, so it says nothing about how often the model errs).
    Guo et al. 2017, section 4.2.
    """
    check_problem_type(problem_type)
    if problem_type == "regression":
        return 1.0
    values = checked_logits(logits, rows=len(np.asarray(gold)))
    single = problem_type == "single_label_classification"
    if single:
        answers = checked_gold(gold, values.shape[1])
        of_gold = np.take_along_axis(values, answers[:, None], axis=1)
        no_mistake = bool((of_gold >= values).all())
    else:
        answers = checked_multilabel_gold(gold, values.shape)
        no_mistake = bool(((values > 0) == (answers == 1)).all())
    if len(values) < SMALLEST_DEV or no_mistake:
        return 1.0

    from scipy.optimize import minimize_scalar

    # The loss is convex in 1/T, hence has one valley in log T as well: a bounded search finds it.
    found: Any = minimize_scalar(
        lambda log_t: negative_log_likelihood(values / math.exp(log_t), answers, problem_type),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = math.exp(float(found.x))
    return min(max(temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE)


def fit_thresholds(logits: ArrayLike, gold: ArrayLike) -> list[float]:
    """For each label the threshold on its probability that gives the highest F1 on these rows.

    `logits` (n, labels), already divided by the temperature if the thresholds shall be compared
    with calibrated probabilities; `gold` (n, labels) of 0 and 1. A label is given where
    `probability >= threshold`. Every distinct score is tried. Among equally good thresholds the one
    nearest 0.5 is taken, in the middle of the gap between two scores; a label that no row has
    gets 0.5.
    """
    values = checked_logits(logits, rows=len(np.asarray(gold)))
    answers = checked_multilabel_gold(gold, values.shape)
    scores = probabilities(values, "multi_label_classification")
    return [_best_threshold(scores[:, k], answers[:, k]) for k in range(scores.shape[1])]


def _best_threshold(scores: Floats, gold: Integers) -> float:
    """The threshold of one label: `scores` (n,) in [0, 1], `gold` (n,) of 0 and 1."""
    if not gold.any():
        return 0.5

    from sklearn.metrics import precision_recall_curve

    # `cuts` are the distinct scores, ascending; the curve has one point more (recall 0) at its end
    precision, recall, cuts = precision_recall_curve(gold, scores)
    total = (precision + recall)[:-1]
    f1 = np.divide(2 * (precision * recall)[:-1], total, out=np.zeros_like(total), where=total > 0)
    best = math.inf, 0.5
    for k in np.flatnonzero(f1 >= f1.max() - 1e-12):
        # every threshold in (below, cut] gives the same decisions on these rows
        below, cut = (float(cuts[k - 1]) if k else 0.0), float(cuts[k])
        middle = (below + cut) / 2
        inside = middle if below < middle else cut
        threshold = 0.5 if below < 0.5 <= cut else inside
        best = min(best, (abs(threshold - 0.5), threshold))
    return best[1]


def reliability_bins(
    probability: ArrayLike, gold: ArrayLike, bins: int = 15
) -> list[dict[str, float | int | None]]:
    """How often the model was right at each level of confidence: `bins` equal slices of (0, 1].

    `probability` (n, classes) with `gold` (n,) class indices: the confidence is the highest
    probability of the row. With `gold` (n, classes) of 0 and 1: each label of each row counts by
    itself, its confidence is its probability, "accuracy" the share of rows that have the label.
    Each slice: {"confidence": mean, "accuracy": share right, "count": rows}; None where empty.
    """
    values = checked_logits(probability, rows=len(np.asarray(gold)))
    if bins < 1:
        raise FilbertError(f"bins is {bins}; expected a whole number above 0")
    if values.min() < 0 or values.max() > 1 + 1e-9:
        raise FilbertError(
            f"probabilities run from {values.min():.4g} to {values.max():.4g}; expected 0 to 1 "
            "(these look like logits: call `probabilities` first)"
        )
    if np.ndim(gold) == 2:
        confidence = values.reshape(-1)
        right = checked_multilabel_gold(gold, values.shape).reshape(-1) == 1
    else:
        confidence = values.max(axis=1)
        right = values.argmax(axis=1) == checked_gold(gold, values.shape[1])
    # slices are open below and closed above, as in the paper: ((m-1)/M, m/M]
    edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    index = np.searchsorted(edges, confidence, side="left")
    counts = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=confidence, minlength=bins)
    hits = np.bincount(index, weights=right.astype(np.float64), minlength=bins)
    return [
        {"confidence": float(total / n), "accuracy": float(hit / n), "count": int(n)}
        if n
        else {"confidence": None, "accuracy": None, "count": 0}
        for n, total, hit in zip(counts, sums, hits, strict=True)
    ]


def expected_calibration_error(probability: ArrayLike, gold: ArrayLike, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by count, in [0, 1].

    Arguments as in `reliability_bins`. Guo et al. 2017, equation 3.
    """
    error = rows = 0.0
    for part in reliability_bins(probability, gold, bins):
        if part["confidence"] is not None and part["accuracy"] is not None and part["count"]:
            error += part["count"] * abs(part["accuracy"] - part["confidence"])
            rows += part["count"]
    return error / rows


def calibration_record(
    before: Floats, after: Floats, right: NDArray[np.bool_], *, temperature: float
) -> dict[str, Any] | None:
    """What the report draws of the scores of answers, entities or words: bins and calibration error
    of the model's own chances (n,) and of the mended ones. None where there is nothing to count."""
    if not len(right):
        return None
    gold = right[:, None].astype(np.int64)
    return {
        "temperature": temperature,
        "ece_before": expected_calibration_error(before[:, None], gold),
        "ece_after": expected_calibration_error(after[:, None], gold),
        "bins_before": reliability_bins(before[:, None], gold),
        "bins_after": reliability_bins(after[:, None], gold),
    }
