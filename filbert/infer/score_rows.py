"""The scores of a classifier on a file of labelled rows.

The file is read as training reads it; logits come from the path that prediction takes. Scores are
of calibrated probabilities; the calibration error before the temperature is told beside the one
after it (Guo et al. 2017, arXiv 1706.04599).
"""

from __future__ import annotations

import time
from os import PathLike
from typing import Any

from filbert.data.examples import REGRESSION, check_known_labels, read_examples
from filbert.errors import FilbertError, UsageError
from filbert.tasks import classify, metrics


def score_rows(
    classifier: Any,
    data: str | PathLike[str],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    worst: int = 5,
) -> dict[str, Any]:
    """Score a classifier on the labelled rows of `data`.

    Returns `data`, `rows`, `problem_type`, `labels`, `scores` (`loss` and the field's measures as
    plain numbers, None where undefined), `per_class`, `confusion` (rows gold), `calibration`
    (temperature, expected calibration error before and after it), `worst` (at most `worst`
    mistakes, the surest first), `seconds`, `notes`. Raises `FilbertError` for a label that the
    model does not know, for rows that do not fit it (pairs, label type), and for an unreadable
    file.
    """
    if worst < 0:
        raise UsageError(f"worst must be 0 or more, got {worst}")
    manifest = classifier.manifest
    assert manifest.problem_type is not None  # a classifier has one
    examples = read_examples(
        str(data),
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        format=format,
        encoding=encoding,
        header=header,
        need_labels=True,
        problem_type=manifest.problem_type,
        label_separator=label_separator,
    )
    if manifest.pair and examples.pairs is None:
        raise FilbertError(
            f"{examples.source}: this model compares two texts; name the second one's column "
            "with --pair-column"
        )
    if not manifest.pair and examples.pairs is not None:
        raise FilbertError(
            f"{examples.source}: rows are pairs of texts, but this model takes one text"
        )
    assert examples.labels is not None
    if manifest.problem_type != REGRESSION:
        check_known_labels(examples, manifest.labels)
    gold = classify.targets(examples.labels, manifest.labels, manifest.problem_type)
    began = time.monotonic()
    logits = classifier.logits(examples.texts, examples.pairs)
    seconds = time.monotonic() - began
    record = metrics.examine(
        logits,
        gold,
        problem_type=manifest.problem_type,
        labels=manifest.labels,
        texts=examples.texts,
        ids=[f"{examples.source}:{number}" for number in examples.numbers],
        pairs=examples.pairs,
        temperature=manifest.temperature,
        thresholds=manifest.thresholds,
        worst=worst,
    )
    record.pop("scatter", None)
    scores = record["scores"]
    loss = scores["mse"] if manifest.problem_type == "regression" else scores["log_loss"]
    record["scores"] = {"loss": loss, **scores}
    for bins in ("bins_before", "bins_after"):  # the report page draws them; here they are noise
        if record["calibration"]:
            record["calibration"].pop(bins, None)
    return {
        "data": examples.source, **record, "seconds": round(seconds, 3), "notes": examples.notes,
    }  # fmt: skip
