"""Evaluate: how good a trained bundle is on a file of labelled rows.

    filbert evaluate runs/reviews --data test.csv
    filbert evaluate runs/reviews --data test.csv --json

Each task scores its own way; that of classification is `filbert/infer/score_rows.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from inspect import signature
from os import PathLike
from typing import TYPE_CHECKING, Any

from filbert.errors import UsageError, did_you_mean
from filbert.infer.predict import Classifier, load
from filbert.infer.score_rows import score_rows
from filbert.tasks import metrics

if TYPE_CHECKING:
    from rich.console import RenderableType


def evaluate(
    name: str | PathLike[str],
    data: str | PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = 4096,
    threads: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score the bundle `name` on the labelled rows of `data`, whatever its task.

    `options` are those of the task; for classification see `score_rows`. Returns plain data:
    `bundle`, `data`, `seconds`, `scores` (numbers by name, None where undefined), and more that
    the task has to tell. Raises `FilbertError` for rows that do not fit the model and for an
    unreadable file, `UsageError` for an option that the task does not have.
    """
    model = load(
        name, device=device, precision=precision, batch_tokens=batch_tokens, threads=threads
    )
    known = list(
        signature(score_rows if isinstance(model, Classifier) else model.evaluate).parameters
    )
    for option in options:
        if option not in known:
            raise UsageError(
                f"--{option.replace('_', '-')}: a model of the task {model.manifest.task} has no "
                f"such option.{did_you_mean(option, known)}"
            )
    began = time.monotonic()
    record = model.evaluate(data, **options)
    return {
        "bundle": str(name), "data": str(data), **record,
        "seconds": record.get("seconds", round(time.monotonic() - began, 3)),
    }  # fmt: skip


def evaluation_table(result: Mapping[str, Any]) -> RenderableType:
    """What `evaluate` returned, for `rich.console.Console().print`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    more = {name: result[name] for name in ("per_class", "confusion") if name in result}
    parts: list[RenderableType] = [metrics.score_table({**result["scores"], **more})]
    calibration = result.get("calibration")
    if calibration:
        parts.append(
            f"calibration: temperature {calibration['temperature']:.3f}; expected calibration "
            f"error {calibration['ece_before']:.4f} before it, {calibration['ece_after']:.4f} "
            "after it"
        )
    if result.get("worst"):
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
    rows = f"{result['rows']:,} rows of " if "rows" in result else ""
    parts.append(f"{rows}{result['data']} in {result['seconds']:.1f} s")
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _clip(text: str, longest: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
