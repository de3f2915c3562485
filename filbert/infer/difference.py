"""How far what a model gives in one precision lies from what it gives in float32.

    classify = load("runs/reviews", precision="int8", compare=["Great film.", "Dull."])
    classify.difference["states"]          # {"largest": 0.03, "mean": 0.004, "relative": 0.008}
    classify.difference["probabilities"]   # {"largest": 0.002, "mean": 0.001}

`filbert evaluate --precision int8` tells the same of the rows that it scores.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.errors import UsageError
from filbert.model.runtime import IN_PYTORCH
from filbert.tasks.calibrate import probabilities

logger = logging.getLogger("filbert")
GIVES = {  # what else is compared
    "classify": "logits", "rank": "logits", "tag": "logits", "answer": "logits", "embed": "vectors",
}  # fmt: skip
PARTLY = ("first_only", "mean", "predict_at")  # a call that asks for some states alone

Floats = NDArray[np.float32]


def check_compared(rows: Any, core: str) -> None:
    """Raise `UsageError` for what is no list of rows, and for a core of exported models."""
    if core not in IN_PYTORCH:
        raise UsageError(
            f"compare: the core {core} computes in float32 itself, and filbert export held it to "
            "its source (export.json); leave compare out"
        )
    if not isinstance(rows, list | tuple) or not rows:
        raise UsageError(
            f"compare: expected a list of texts, one or more, got {type(rows).__name__} "
            f"{rows!r:.60}"
        )


def difference(predictor: Any, exact: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """What `predictor` computes of these good rows beside what `exact`, the same model in float32,
    does; raises `UsageError` where no row has a token. By name, each with the `largest` and the
    `mean` absolute difference of single numbers:

    `states`, the last hidden states of all tokens, with the `relative` norm of the difference too;
    of classifying and ranking `logits`, and `probabilities` or the `scores` of a regression; of
    entities the same of each place that is read, before labels bind each other; of answering the
    `logits` of starts and ends; of embedding `vectors`. Further `precision` and the number of
    `rows`. One line of the log tells it.
    """
    with noted(predictor) as found, _calls(predictor.model) as calls:
        predictor.answer_rows(rows)
    if not calls:
        raise UsageError(
            "compare: none of the texts has a token, so nothing was computed; give some with words"
        )
    parts = {"states": _of_states(predictor.model, exact.model, calls)}
    if found:
        with noted(exact) as truth:
            exact.answer_rows(rows)
        outputs = of_outputs(predictor, found, truth)
        if GIVES[predictor.manifest.task] == "logits":
            parts["logits"] = _apart(np.concatenate(found), np.concatenate(truth))
        parts[outputs.pop("of")] = outputs
    precision = str(predictor.dtype).removeprefix("torch.")
    told = "; ".join(
        f"{name} by {one['largest']:.1e} at most, {one['mean']:.1e} on average"
        for name, one in parts.items()
    )
    logger.info(
        "%s: %s beside float32 on %d rows: %s", predictor.folder, precision, len(rows), told
    )
    return {"precision": precision, "rows": len(rows), **parts}


@contextlib.contextmanager
def noted(model: Any) -> Iterator[list[Floats]]:
    """Inside, a list fills with the logits or vectors of rows as the predictor `model` computes
    them; of other tasks it stays empty."""
    found: list[Floats] = []
    name = GIVES.get(model.manifest.task)
    if name is None:
        yield found
        return
    compute = getattr(model, name)

    def noting(*rows: Any, **options: Any) -> Any:
        found.append(compute(*rows, **options))
        return found[-1]

    setattr(model, name, noting)
    try:
        yield found
    finally:
        delattr(model, name)  # that of its class again


def of_outputs(model: Any, found: Sequence[Floats], truth: Sequence[Floats]) -> dict[str, Any]:
    """The `largest` and the `mean` absolute difference of single numbers, and what they are `of`:
    probabilities, scores of a regression, logits of answers, or vectors. found, truth: logits or
    vectors, (rows, d).
    """
    numbers = [np.concatenate(part).astype(np.float64) for part in (found, truth)]
    manifest = model.manifest
    kind, temperature = GIVES[manifest.task], manifest.temperature
    if kind == "logits" and manifest.task != "answer":
        problem = manifest.problem_type or "single_label_classification"  # of a place: tags
        kind = "scores" if problem == "regression" else "probabilities"
        numbers = [probabilities(part, problem, temperature) for part in numbers]
    return {"of": kind, **_apart(*numbers)}


def _apart(found: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    apart = np.abs(found.astype(np.float64) - truth)
    return {"largest": float(apart.max()), "mean": float(apart.mean())}


@contextlib.contextmanager
def _calls(model: Any) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Inside, a list fills with the inputs of the encoder in `model`, as (args, kwargs)."""
    found: list[tuple[Any, dict[str, Any]]] = []

    def note(_: torch.nn.Module, args: Any, given: dict[str, Any]) -> None:
        found.append((args, {name: x for name, x in given.items() if name not in PARTLY}))

    hook = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


@torch.inference_mode()
def _of_states(model: Any, exact: Any, calls: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """The difference of the last states of all tokens that went through the encoder."""
    largest, total, squares, size, count = 0.0, 0.0, 0.0, 0.0, 0
    for args, given in calls:
        mine, wanted = (
            each.base_model(*args, **given).last_hidden_state.double() for each in (model, exact)
        )
        apart = (mine - wanted).abs()
        largest = max(largest, float(apart.max()))
        total, count = total + float(apart.sum()), count + apart.numel()
        squares, size = squares + float(apart.square().sum()), size + float(wanted.square().sum())
    relative = (squares / size) ** 0.5 if size else 0.0
    return {"largest": largest, "mean": total / count, "relative": relative}
