"""Scores of a classifier: the reference scorers, called, with their edge cases settled.

Everything is computed from logits by scikit-learn and scipy; results are plain Python numbers that
go into JSON as they are. A score that is undefined on these rows (AUC where a class has no row,
correlation with a constant) is None, never NaN and never a warning.

    scores = classification_scores(logits, gold, labels=["ham", "spam"])
    Console().print(score_table(scores))

`examine` adds what the report page shows: calibration, worst mistakes, scatter.
Needs numpy; scikit-learn, scipy and rich load on the first call.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from filbert.errors import FilbertError
from filbert.tasks.calibrate import (
    Floats,
    Integers,
    check_finite,
    check_problem_type,
    checked_gold,
    checked_logits,
    checked_multilabel_gold,
    expected_calibration_error,
    negative_log_likelihood,
    probabilities,
    reliability_bins,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
MAIN_METRICS = {SINGLE: "accuracy", MULTI: "f1_micro", "regression": "pearson"}
LOWER_IS_BETTER = frozenset({"loss", "log_loss", "ece", "mse", "mae", "perplexity", "per_word"})
LARGEST_SHOWN_MATRIX = 20

Mistake = tuple[int, Any, Any, float | None]  # row, gold, predicted, probability


def main_metric(problem_type: str) -> str:
    """The score that picks the best checkpoint unless the user names another."""
    check_problem_type(problem_type)
    return MAIN_METRICS[problem_type]


def names_of(problem_type: str, *, binary: bool) -> tuple[str, ...]:
    """The scores that the functions below give; f1 is only for two classes."""
    check_problem_type(problem_type)
    if problem_type == "regression":
        return ("pearson", "spearman", "mse", "mae")
    common = ("accuracy", "f1_macro", "f1_micro", "auc", "ece", "log_loss")
    if problem_type == MULTI:
        return common
    return (*common, "mcc", "f1") if binary else (*common, "mcc")


def lower_is_better(metric: str) -> bool:
    """True for errors, losses and perplexities."""
    return metric in LOWER_IS_BETTER


def classification_scores(
    logits: ArrayLike, gold: ArrayLike, *, labels: Sequence[str]
) -> dict[str, Any]:
    """Scores where each row has exactly one label.

    `logits` (n, classes) float, divided by the temperature if calibrated scores are wanted; `gold`
    (n,) class indices; `labels` the class names in the order of the logits.
    Keys: accuracy, f1_macro (over classes that occur in gold or predictions, as in scikit-learn),
    f1_micro, f1 (two classes only; the positive one is class 1), mcc, auc (two classes, or the mean
    of one against the rest; None if a class has no row), ece (15 bins), log_loss (nats), rows,
    per_class {label: {precision, recall, f1, support}}, confusion (classes x classes, rows gold).
    Raises `FilbertError` for NaN logits, wrong shapes, no rows.
    """
    from sklearn import metrics

    values = checked_logits(logits, rows=len(np.asarray(gold)))
    classes = values.shape[1]
    _check_labels(labels, classes)
    answers = checked_gold(gold, classes)
    if classes < 2:
        raise FilbertError("a classifier needs at least 2 classes; this one has 1")
    predicted = values.argmax(axis=1)
    p = probabilities(values, SINGLE)
    scores: dict[str, Any] = {
        "accuracy": float(metrics.accuracy_score(answers, predicted)),
        "f1_macro": float(metrics.f1_score(answers, predicted, average="macro", zero_division=0)),
        "f1_micro": float(metrics.f1_score(answers, predicted, average="micro", zero_division=0)),
    }
    if classes == 2:
        scores["f1"] = float(metrics.f1_score(answers, predicted, zero_division=0))
    # R_K for many classes; 0 by convention where one side is constant (scikit-learn would warn)
    varied = np.ptp(answers) > 0 and np.ptp(predicted) > 0
    scores["mcc"] = float(metrics.matthews_corrcoef(answers, predicted)) if varied else 0.0
    scores["auc"] = _single_label_auc(values, p, answers)
    scores["ece"] = expected_calibration_error(p, answers)
    scores["log_loss"] = negative_log_likelihood(values, answers, SINGLE)
    scores["rows"] = len(answers)
    by_class = _class_scores(answers, predicted, range(classes))
    scores["per_class"] = {str(k): row for k, row in zip(labels, by_class, strict=True)}
    matrix = metrics.confusion_matrix(answers, predicted, labels=np.arange(classes))
    scores["confusion"] = [[int(count) for count in row] for row in matrix]
    return scores


def multilabel_scores(
    logits: ArrayLike,
    gold: ArrayLike,
    *,
    labels: Sequence[str],
    thresholds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Scores where a row has any number of labels.

    `logits` (n, labels) float; `gold` (n, labels) of 0 and 1; `thresholds` (labels) on the
    probabilities, 0.5 each if None: a label is given where `sigmoid(logit) >= threshold`.
    Keys: f1_micro, f1_macro, accuracy (all labels of the row right), auc (mean over labels; None
    if a label is in all or in no rows), ece, log_loss (nats a decision), rows,
    per_class {label: {precision, recall, f1, support}}.
    """
    from sklearn import metrics

    values = checked_logits(logits, rows=len(np.asarray(gold)))
    _check_labels(labels, values.shape[1])
    answers = checked_multilabel_gold(gold, values.shape)
    p = probabilities(values, MULTI)
    predicted = (p >= _checked_thresholds(thresholds, values.shape[1])).astype(np.int64)
    share = answers.mean(axis=0)
    auc = None
    if ((share > 0) & (share < 1)).all():
        # on logits: the same order as probabilities, without their ties near 0 and 1
        columns = zip(answers.T, values.T, strict=True)
        auc = float(np.mean([metrics.roc_auc_score(has, score) for has, score in columns]))
    per_class = {
        str(label): _class_scores(answers[:, k], predicted[:, k], [1])[0]
        for k, label in enumerate(labels)
    }
    pooled = metrics.f1_score(answers.reshape(-1), predicted.reshape(-1), zero_division=0)
    return {
        "f1_micro": float(pooled),
        "f1_macro": float(np.mean([row["f1"] for row in per_class.values()])),
        "accuracy": float((answers == predicted).all(axis=1).mean()),
        "auc": auc,
        "ece": expected_calibration_error(p, answers),
        "log_loss": negative_log_likelihood(values, answers, MULTI),
        "rows": len(answers),
        "per_class": per_class,
    }


def regression_scores(values: ArrayLike, gold: ArrayLike) -> dict[str, Any]:
    """Scores of predicted numbers: pearson, spearman, mse, mae, rows.

    `values` and `gold` (n,), in the unit of the labels ((n, 1) is taken too). A correlation is None
    for fewer than 2 rows or where either side is constant.
    """
    from scipy import stats
    from sklearn import metrics

    predicted = _column(values, "predicted values")
    answers = _column(gold, "gold values")
    if len(predicted) != len(answers):
        raise FilbertError(f"{len(predicted)} predicted values but {len(answers)} gold values")
    scores: dict[str, Any] = {"pearson": None, "spearman": None}
    if len(answers) > 1 and np.ptp(answers) > 0 and np.ptp(predicted) > 0:
        with warnings.catch_warnings():
            # nearly constant: told by the result below, not by a warning that nobody reads
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            pearson = float(stats.pearsonr(predicted, answers).statistic)
            spearman = float(stats.spearmanr(predicted, answers).statistic)
        scores["pearson"] = pearson if math.isfinite(pearson) else None
        scores["spearman"] = spearman if math.isfinite(spearman) else None
    scores["mse"] = float(metrics.mean_squared_error(answers, predicted))
    scores["mae"] = float(metrics.mean_absolute_error(answers, predicted))
    scores["rows"] = len(answers)
    return scores


def examine(
    logits: ArrayLike,
    gold: ArrayLike,
    *,
    problem_type: str,
    labels: Sequence[str],
    texts: Sequence[str],
    ids: Sequence[str],
    pairs: Sequence[str] | None = None,
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
    worst: int = 50,
    longest_text: int = 2000,
) -> dict[str, Any]:
    """Everything that `evaluation.json` holds, from raw logits; the report page reads it.

    `logits`, `gold` as in the score functions ((n,) or (n, 1) values for a regression); scores are
    of calibrated probabilities, that is of `logits / temperature`, and `thresholds` are compared
    with those. `texts`, `pairs`, `ids` (n) name the rows; texts are cut to `longest_text`
    characters. Keys: problem_type, labels, rows, scores (numbers only), per_class, confusion,
    calibration {temperature, ece_before, ece_after, bins_before, bins_after}, worst (at most
    `worst` mistakes, the surest first: {id, text, pair, gold, predicted, probability}), scatter
    {gold, predicted}. What does not apply to the problem type is None.
    """
    check_problem_type(problem_type)
    mistakes: list[Mistake]
    record: dict[str, Any] = {
        "problem_type": problem_type,
        "labels": [str(label) for label in labels],
        "rows": len(texts),
        "scores": {},
        "per_class": None,
        "confusion": None,
        "calibration": None,
        "worst": [],
        "scatter": None,
    }
    if problem_type == "regression":
        scores = regression_scores(logits, gold)
        predicted, answers = _column(logits, "predicted values"), _column(gold, "gold values")
        order = np.argsort(-np.abs(predicted - answers), kind="stable")
        mistakes = [(int(i), float(answers[i]), float(predicted[i]), None) for i in order[:worst]]
        every = math.ceil(len(answers) / 5000)  # a picture needs no more points than that
        record["scatter"] = {
            "gold": [float(value) for value in answers[::every]],
            "predicted": [float(value) for value in predicted[::every]],
        }
    else:
        values = checked_logits(logits, rows=len(texts))
        before = probabilities(values, problem_type)
        after = probabilities(values, problem_type, temperature)
        if problem_type == SINGLE:
            scores = classification_scores(values / temperature, gold, labels=labels)
            mistakes = _single_label_mistakes(after, np.asarray(gold), labels, worst)
        else:
            scores = multilabel_scores(
                values / temperature, gold, labels=labels, thresholds=thresholds
            )
            cuts = _checked_thresholds(thresholds, values.shape[1])
            given = after >= cuts
            for row, cut in zip(scores["per_class"].values(), cuts, strict=True):
                row["threshold"] = float(cut)
            mistakes = _multilabel_mistakes(after, given, np.asarray(gold), labels, worst)
        record["calibration"] = {
            "temperature": float(temperature),
            "ece_before": expected_calibration_error(before, gold),
            "ece_after": expected_calibration_error(after, gold),
            "bins_before": reliability_bins(before, gold),
            "bins_after": reliability_bins(after, gold),
        }
    record["per_class"] = scores.pop("per_class", None)
    record["confusion"] = scores.pop("confusion", None)
    record["scores"] = scores
    record["worst"] = [
        {
            "id": str(ids[i]),
            "text": _cut(texts[i], longest_text),
            "pair": _cut(pairs[i], longest_text) if pairs is not None else None,
            "gold": right,
            "predicted": wrong,
            "probability": probability,
        }
        for i, right, wrong, probability in mistakes
    ]
    return record


def _cut(text: str, longest: int) -> str:
    """The start of a text; half a surrogate pair ("\\ud800" in JSON), unfit for files, is "?"."""
    return text[:longest].encode("utf-8", "replace").decode("utf-8")


def score_table(scores: Mapping[str, Any]) -> RenderableType:
    """The scores as tables for `rich.console.Console().print`: numbers, classes, confusion matrix.

    `scores` as the score functions return them; the matrix is shown up to 20 classes.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    numbers = Table("score", title="scores", title_justify="left")
    numbers.add_column("value", justify="right")
    for name, value in scores.items():
        if not isinstance(value, Mapping | list):
            numbers.add_row(name, _shown(value))
    parts: list[RenderableType] = [numbers]
    per_class = scores.get("per_class")
    if per_class:
        table = Table("class", title="by class", title_justify="left")
        for name in ("precision", "recall", "f1", "support"):
            table.add_column(name, justify="right")
        for label, row in per_class.items():
            # Text, not str: a label such as "[b]" must not be read as rich's markup
            table.add_row(Text(label), *(_shown(row[c.header]) for c in table.columns[1:]))
        parts.append(table)
    matrix = scores.get("confusion")
    if matrix and per_class and len(matrix) <= LARGEST_SHOWN_MATRIX:
        title = "confusion (rows: gold, columns: predicted)"
        table = Table("gold", title=title, title_justify="left")
        for label in per_class:
            table.add_column(Text(label), justify="right")
        for label, row in zip(per_class, matrix, strict=True):
            table.add_row(Text(label), *(str(count) for count in row))
        parts.append(table)
    return Group(*parts)


def _shown(value: float | int | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _check_labels(labels: Sequence[str], classes: int) -> None:
    if len(labels) != classes:
        raise FilbertError(
            f"{len(labels)} label names but {classes} columns of logits; they must be as many"
        )


def _checked_thresholds(thresholds: Sequence[float] | None, classes: int) -> Floats:
    if thresholds is None:
        return np.full(classes, 0.5)
    array = np.asarray(thresholds, dtype=np.float64)
    if array.shape != (classes,):
        raise FilbertError(f"{array.size} thresholds but {classes} labels; they must be as many")
    return array


def _column(values: ArrayLike, name: str) -> Floats:
    """Numbers of a regression as finite float64 (n,); (n, 1) is taken too."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise FilbertError(f"{name} have the shape {array.shape}, expected one number for each row")
    if len(array) == 0:
        raise FilbertError("there are no rows to score; give a file with at least one labelled row")
    check_finite(array, name)
    return array


def _single_label_auc(logits: Floats, p: Floats, gold: Integers) -> float | None:
    from sklearn.metrics import roc_auc_score

    if len(np.unique(gold)) < logits.shape[1]:
        return None
    if logits.shape[1] == 2:
        # the margin: the same order as the probability, without its ties near 0 and 1
        return float(roc_auc_score(gold, logits[:, 1] - logits[:, 0]))
    return float(roc_auc_score(gold, p, multi_class="ovr", average="macro"))


def _class_scores(
    gold: Integers, predicted: Integers, classes: Sequence[int]
) -> list[dict[str, float | int]]:
    """Precision, recall, F1 and support of each of `classes`; 0 where nothing was predicted."""
    from sklearn.metrics import precision_recall_fscore_support

    parts = precision_recall_fscore_support(
        gold, predicted, labels=classes, average=None, zero_division=0
    )
    return [
        {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for precision, recall, f1, support in zip(*parts, strict=True)
    ]


def _single_label_mistakes(
    p: Floats, gold: Integers, labels: Sequence[str], most: int
) -> list[Mistake]:
    predicted = p.argmax(axis=1)
    wrong = np.flatnonzero(predicted != gold)
    order = wrong[np.argsort(-p[wrong, predicted[wrong]], kind="stable")][:most]
    return [
        (int(i), str(labels[gold[i]]), str(labels[predicted[i]]), float(p[i, predicted[i]]))
        for i in order
    ]


def _multilabel_mistakes(
    p: Floats, given: np.ndarray, gold: Integers, labels: Sequence[str], most: int
) -> list[Mistake]:
    """Rows with a wrong decision; the probability is that of the surest wrong one."""
    sure = np.where(given, p, 1 - p)  # probability of the decision taken
    surest = np.where(given != (gold == 1), sure, -1.0).max(axis=1)
    order = np.argsort(-surest, kind="stable")[:most]
    return [
        (
            int(i),
            [str(label) for label, has in zip(labels, gold[i], strict=True) if has],
            [str(label) for label, has in zip(labels, given[i], strict=True) if has],
            float(surest[i]),
        )
        for i in order
        if surest[i] >= 0
    ]
