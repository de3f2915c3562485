"""Scores of a tagger, by the reference scorers: seqeval for entities, scikit-learn for labels.

    scores = entity_scores(gold, predicted)        # lists of BIO tags of each sentence
    scores["f1"], scores["per_class"]["PER"]["recall"]

An entity counts as found where its words and its type are right (Tjong Kim Sang and De Meulder
2003). Numbers are plain Python and go into JSON as they are. seqeval needs the extra `tasks`.
`fit_confidence` makes the score of an entity a probability that can be believed: Platt 1999,
"Probabilistic outputs for support vector machines", on the entities found in the dev set.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.errors import FilbertError, missing_extra
from filbert.tasks.calibrate import SMALLEST_DEV

Floats = NDArray[np.float64]
Tags = Sequence[Sequence[str]]

ENTITY_SCORES = ("f1", "precision", "recall", "f1_macro", "accuracy")
LABEL_SCORES = ("accuracy", "f1_macro")


def check_scorer() -> None:
    """Raise `FilbertError` with the line to type where seqeval is not installed."""
    try:
        import seqeval.metrics  # noqa: F401
    except ImportError:
        raise missing_extra("seqeval", "tasks") from None


def entity_scores(gold: Tags, predicted: Tags, *, strict: bool = False) -> dict[str, Any]:
    """Entity-level scores of BIO tags, one list a sentence.

    Keys: f1, precision, recall (micro: over all entities), f1_macro (over types), accuracy (of
    tags), rows, entities, per_class {type: {precision, recall, f1, support}}. A broken sequence is
    read as conlleval reads it; with `strict` an entity counts only if it begins with `B-`. For
    sequences that are not broken the two agree. Raises `FilbertError` for sentences that differ in
    length, or if there are none.
    """
    check_scorer()
    from seqeval.metrics import accuracy_score, classification_report
    from seqeval.scheme import IOB2

    if not len(gold):
        raise FilbertError("there are no sentences to score; give a file with at least one")
    for number, (one, other) in enumerate(zip(gold, predicted, strict=True)):
        if len(one) != len(other):
            raise FilbertError(f"sentence {number}: {len(one)} gold tags, {len(other)} predicted")
    given, answers = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    mode: dict[str, Any] = {"mode": "strict", "scheme": IOB2} if strict else {}
    empty = {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0}
    report: dict[str, Any] = {}
    if any(tag != "O" for tags in (*given, *answers) for tag in tags):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about averages of no type
            report = classification_report(
                given, answers, output_dict=True, zero_division=0, **mode
            )
    whole, macro = report.pop("micro avg", empty), report.pop("macro avg", empty)
    report.pop("weighted avg", None)
    return {
        "f1": float(whole["f1-score"]),
        "precision": float(whole["precision"]),
        "recall": float(whole["recall"]),
        "f1_macro": float(macro["f1-score"]),
        "accuracy": float(accuracy_score(given, answers)),
        "rows": len(given),
        "entities": int(whole["support"]),
        "per_class": {
            name: {
                "precision": float(row["precision"]), "recall": float(row["recall"]),
                "f1": float(row["f1-score"]), "support": int(row["support"]),
            }
            for name, row in report.items()
        },
    }  # fmt: skip


def label_scores(gold: Tags, predicted: Tags) -> dict[str, Any]:
    """Scores of plain labels of words: accuracy, f1_macro (over labels that occur), rows, words,
    per_class. Raises `FilbertError` where there are no words."""
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    given = [tag for tags in gold for tag in tags]
    answers = [tag for tags in predicted for tag in tags]
    if not given:
        raise FilbertError("there are no words to score; give a file with at least one")
    names = sorted({*given, *answers})
    parts = precision_recall_fscore_support(
        given, answers, labels=names, average=None, zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(given, answers)),
        "f1_macro": float(f1_score(given, answers, average="macro", zero_division=0)),
        "rows": len(gold),
        "words": len(given),
        "per_class": {
            name: {
                "precision": float(precision), "recall": float(recall), "f1": float(f1),
                "support": int(support),
            }
            for name, precision, recall, f1, support in zip(names, *parts, strict=True)
        },
    }  # fmt: skip


def log_odds(chances: Floats) -> Floats:
    """The log-odds of probabilities, finite at 0 and 1."""
    inside = np.clip(chances, 1e-9, 1 - 1e-9)
    return np.log(inside) - np.log1p(-inside)


def believed(chances: Floats, confidence: tuple[float, float]) -> Floats:
    """Probabilities mended by a scale and a shift of their log-odds."""
    scale, shift = confidence
    return np.asarray(1 / (1 + np.exp(-(scale * log_odds(chances) + shift))), dtype=np.float64)


def fit_confidence(chances: Floats, right: NDArray[np.bool_]) -> tuple[float, float]:
    """The scale and shift of log-odds under which `right` (n,) is most likely, given the model's
    own `chances` (n,); (1, 0) with fewer than 20 to learn from, none right, none wrong, or where
    the model's own order would be turned around. Targets are Platt's, not 0 and 1."""
    if len(right) < SMALLEST_DEV or right.all() or not right.any():
        return 1.0, 0.0
    from scipy.optimize import minimize

    yes, no = int(right.sum()), int((~right).sum())
    target = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))
    odds = log_odds(chances)

    def cost(values: Floats) -> float:
        z = values[0] * odds + values[1]
        return float(np.mean(np.logaddexp(0.0, z) - target * z))

    found: Any = minimize(cost, np.array([1.0, 0.0]), method="Nelder-Mead")
    scale, shift = (float(value) for value in found.x)
    return (scale, shift) if 0.01 <= scale <= 100 and abs(shift) <= 100 else (1.0, 0.0)
