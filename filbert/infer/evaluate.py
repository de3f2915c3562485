"""Evaluate: how good a trained bundle is on a file of labelled rows.

    filbert evaluate runs/reviews --data test.csv
    filbert evaluate runs/reviews --data test.csv --json

The file is read as training reads it; logits come from the path that prediction takes. Scores are
of calibrated probabilities; the calibration error before the temperature is told beside the one
after it (Guo et al. 2017, arXiv 1706.04599).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from filbert.data.examples import read_examples
from filbert.errors import FilbertError, UsageError
from filbert.infer.predict import load
from filbert.tasks import classify, metrics

if TYPE_CHECKING:
    from rich.console import RenderableType


def evaluate(
    name: str | PathLike[str],
    data: str | PathLike[str],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = 4096,
    threads: int | None = None,
    worst: int = 20,
) -> dict[str, Any]:
    """Score the bundle `name` on the labelled rows of `data`.

    Returns plain data: `bundle`, `data`, `rows`, `problem_type`, `labels`, `scores` (`loss` and the
    field's measures as plain numbers, None where undefined), `per_class`, `confusion` (rows gold),
    `calibration` (temperature, expected calibration error before and after it), `worst` (at most
    `worst` mistakes, the surest first), `seconds`. Raises `FilbertError` for a label that the model
    does not know, for rows that do not fit it (pairs, label type), and for an unreadable file.
    """
    if worst < 0:
        raise UsageError(f"worst must be 0 or more, got {worst}")
    classifier = load(
        name, device=device, precision=precision, batch_tokens=batch_tokens, threads=threads
    )
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
    where = {"bundle": str(name), "data": examples.source}
    return {**where, **record, "seconds": round(seconds, 3)}


def evaluation_table(result: Mapping[str, Any]) -> RenderableType:
    """What `evaluate` returned, for `rich.console.Console().print`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = metrics.score_table(
        {**result["scores"], "per_class": result["per_class"], "confusion": result["confusion"]}
    )
    parts: list[RenderableType] = [tables]
    calibration = result["calibration"]
    if calibration:
        parts.append(
            f"calibration: temperature {calibration['temperature']:.3f}; expected calibration "
            f"error {calibration['ece_before']:.4f} before it, {calibration['ece_after']:.4f} "
            "after it"
        )
    if result["worst"]:
        table = Table(
            "row", "text", "gold", "answer", title="surest mistakes", title_justify="left"
        )
        table.add_column("probability", justify="right")
        for item in result["worst"]:
            text = item["text"] if item["pair"] is None else f"{item['text']} | {item['pair']}"
            probability = "" if item["probability"] is None else f"{item['probability']:.3f}"
            number = str(item["id"]).rpartition(":")[2]
            gold, answer = _shown(item["gold"]), _shown(item["predicted"])
            table.add_row(number, Text(_clip(text)), Text(gold), Text(answer), probability)
        parts.append(table)
    parts.append(f"{result['rows']:,} rows of {result['data']} in {result['seconds']:.1f} s")
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _clip(text: str, longest: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
