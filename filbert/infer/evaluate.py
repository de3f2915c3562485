"""Evaluate: how good a trained bundle is on a file of labelled rows.

    filbert evaluate runs/reviews --data test.csv
    filbert evaluate runs/reviews --data test.csv --json
    filbert evaluate runs/reviews --data test.csv --precision int8   # and what that costs

Each task scores its own way; that of classification is `filbert/infer/score_rows.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import Parameter, signature
from os import PathLike
from typing import TYPE_CHECKING, Any

from filbert.errors import UsageError, did_you_mean
from filbert.infer.difference import noted, of_outputs
from filbert.infer.predict import Classifier, load
from filbert.infer.score_rows import score_rows
from filbert.tasks import metrics

if TYPE_CHECKING:
    from rich.console import RenderableType

REDUCED = ("bf16", "fp16", "int8")  # precisions that are held to float32
SHOWN = 5  # examples of written texts that people see; --json has more


def evaluate(
    name: str | PathLike[str],
    data: str | PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
    core: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Score the bundle `name` on the labelled rows of `data`, whatever its task.

    `options` are those of the task; for classification see `score_rows`. Returns plain data:
    `bundle`, `data`, `seconds`, `scores` (numbers by name, None where undefined), and more that
    the task has to tell. With a `precision` of bf16 or int8 by name everything is computed once
    more in float32, and `against_float32` holds those scores, by name, `change`, how much more
    the asked precision gives, and `outputs`, how far what the model gives lies apart (`of_outputs`;
    None for tasks other than classifying, ranking and embedding). Raises `FilbertError` for rows
    that do not fit the model and for an unreadable file, `UsageError` for an option that the task
    does not have.
    """
    model = load(
        name, device=device, precision=precision, batch_tokens=batch_tokens, threads=threads,
        core=core,
    )  # fmt: skip
    check_options(model, options)
    began = time.monotonic()
    reduced = precision in REDUCED
    noting: AbstractContextManager[Any] = noted(model) if reduced else nullcontext([])
    with noting as found:
        record = model.evaluate(data, **options)
    record.setdefault("seconds", round(time.monotonic() - began, 3))
    if reduced:
        exact = load(
            name, device=device, precision="float32", batch_tokens=batch_tokens, threads=threads,
            core=core,
        )  # fmt: skip
        with noted(exact) as truth:
            scores = exact.evaluate(data, **options)["scores"]
        record["against_float32"] = {
            "scores": scores, "change": changes(record["scores"], scores), "precision": precision,
            "outputs": of_outputs(model, found, truth) if found else None,
        }  # fmt: skip
    return {"bundle": str(name), "data": str(data), **record}


def check_options(model: Any, options: Iterable[str]) -> None:
    """Raise `UsageError` for an option that this predictor's `evaluate` does not have."""
    task = score_rows if isinstance(model, Classifier) else model.evaluate
    parameters = signature(task).parameters.values()
    known = [each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY]
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters):  # those of answering too
        known += sorted(model.OPTIONS)
    for option in options:
        if option not in known:
            raise UsageError(
                f"--{option.replace('_', '-')}: a model of the task {model.manifest.task} has no "
                f"such option.{did_you_mean(option, known)}"
            )


def changes(found: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, float]:
    """`found` less `exact`, of the numbers that both hold, the count of rows apart."""
    return {
        key: value - exact[key]
        for key, value in found.items()
        if key != "rows"
        and isinstance(value, int | float)
        and isinstance(exact.get(key), int | float)
    }


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
    if against := result.get("against_float32"):
        table = Table("score", title=f"{against['precision']} beside float32", title_justify="left")
        for column in (against["precision"], "float32", "change"):
            table.add_column(column, justify="right")
        for key, change in against["change"].items():
            found, exact = result["scores"][key], against["scores"][key]
            table.add_row(key, f"{found:.4f}", f"{exact:.4f}", f"{change:+.4f}")
        if outputs := against["outputs"]:
            for which in ("largest", "mean"):
                label = f"{which} difference of {outputs['of']}"
                table.add_row(label, "", "", f"{outputs[which]:.1e}")
        parts.append(table)
    if examples := result.get("examples"):
        table = Table("row", "source", "target", "written", title="examples", title_justify="left")
        for item in examples[:: -(-len(examples) // SHOWN)]:  # evenly from all of them
            texts = (Text(_clip(item[name])) for name in ("source", "target", "written"))
            table.add_row(str(item["id"]).rpartition(":")[2], *texts)
        parts.append(table)
    parts += [f"{name}: {text}" for name, text in result.get("signatures", {}).items()]
    rows = f"{result['rows']:,} rows of " if "rows" in result else ""
    parts.append(f"{rows}{result['data']} in {result['seconds']:.1f} s")
    parts += [f"note: {note}" for note in result.get("notes", ())]
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _clip(text: str, longest: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
