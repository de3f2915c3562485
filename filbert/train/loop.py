"""The training loop, the only one: pre-training and every fine-tuning task pass through `fit`.

A step is a pure function of the weights and (seed, step): the batches come from `plan_epoch`, the
dropout from a generator seeded anew at each step. So a run that is killed at any moment and
resumed ends with the same bits as one that was not (same device, same threads).

The task gives four functions; the loop knows nothing of texts or labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filbert.data.packing import Ids
from filbert.errors import FilbertError
from filbert.tasks.metrics import lower_is_better
from filbert.train import state
from filbert.train.optim import AdamW, Average, learning_rate
from filbert.train.options import ClassifyOptions
from filbert.train.plan import Plan
from filbert.train.signals import SignalFlag
from filbert.train.track import Tracker

SAVE_SECONDS = 120.0  # time between checkpoints where no number of steps is given
LOG_ROWS = 500  # about this many rows of training loss in metrics.jsonl


class Interrupted(FilbertError):
    """SIGINT or SIGTERM arrived; a checkpoint was saved."""

    exit_code = 130


@dataclass
class Progress:
    """Where a run stands; saved with each checkpoint."""

    step: int = 0
    best_step: int = 0
    best_value: float | None = None
    best_scores: dict[str, Any] = field(default_factory=dict)
    without_gain: int = 0
    stopped: bool = False  # by early stopping
    loss_sum: float = 0.0  # since the last row of the log
    loss_count: int = 0
    tokens: int = 0  # likewise
    step_seconds: float = 0.0  # in training steps, evaluation and saving left out
    seconds: float = 0.0  # in all, over all sessions of this run


def fit(
    model: nn.Module,
    *,
    plan: Plan,
    batch_loss: Callable[[nn.Module, Ids], Tensor],
    names: Callable[[Ids], list[str]],
    evaluate: Callable[[nn.Module], dict[str, Any]],
    metric: str,
    options: ClassifyOptions,
    run: Path,
    tracker: Tracker,
    resumed: state.Checkpoint | None = None,
) -> Progress:
    """Train `model` in place; at the end it holds the best evaluated weights.

    plan: which examples each step takes. batch_loss: the losses (examples,) of the examples
    numbered. names: how a person finds those examples again. evaluate: scores on the development
    set, with `metric` among them. resumed: the checkpoint to go on from. Raises `Interrupted` after
    a signal, `FilbertError` when a loss is not a number.
    """
    optimizer = AdamW(model, weight_decay=options.weight_decay, layer_decay=options.layer_decay)
    average = Average(optimizer, options.ema) if options.ema else None
    progress = Progress()
    if resumed is not None:
        try:
            progress = Progress(**resumed.record["progress"])
        except TypeError:
            raise FilbertError(
                f"{resumed.folder} was written by another version of filbert; go on with that "
                "version, or start again with --overwrite"
            ) from None
        optimizer.load(resumed.tensors, progress.step)
        if average is not None:
            average.load({n: resumed.tensors[f"average/{n}"] for n in average.weights()})
        tracker.message(f"resumed at step {progress.step} of {plan.total_steps}")

    def save_best() -> None:
        weights = average.weights() if average else optimizer.weights()
        state.save(run, f"best-{progress.best_step:09d}", weights, {})

    def save() -> None:
        tensors = optimizer.state()
        if average is not None:
            tensors |= {f"average/{name}": value for name, value in average.weights().items()}
        progress.seconds = before + time.monotonic() - started
        state.save(run, f"step-{progress.step:09d}", tensors, {"progress": vars(progress)})
        state.prune(run, keep_best=f"best-{progress.best_step:09d}")

    def assess() -> None:
        with average.in_model() if average else nullcontext():
            scores = evaluate(model)
        model.train()
        value = scores[metric]
        value = -math.inf if value is None or math.isnan(value) else float(value)
        gain = -value if lower_is_better(metric) else value
        tracker.evaluation(progress.step, plan.epoch_at(progress.step), scores)
        if progress.best_value is None or gain > progress.best_value:
            progress.best_step, progress.best_value = progress.step, gain
            progress.best_scores, progress.without_gain = scores, 0
            save_best()
        else:
            progress.without_gain += 1
            progress.stopped = 0 < options.patience <= progress.without_gain

    started, before, saved_at = time.monotonic(), progress.seconds, time.monotonic()
    log_every = max(1, plan.total_steps // LOG_ROWS)
    model.train()
    with SignalFlag() as signals:
        while progress.step < plan.total_steps and not progress.stopped:
            step_started = time.monotonic()
            lr = learning_rate(
                progress.step, total=plan.total_steps, peak=options.lr,
                warmup=options.warmup, schedule=options.schedule,
            )  # fmt: skip
            micro_batches, weight, epoch_ends = plan.step(progress.step)
            for part, examples in enumerate(micro_batches):
                torch.manual_seed(step_seed(plan.seed, progress.step, part))
                loss = batch_loss(model, examples).sum()
                check_finite(loss.item(), progress.step, names(examples))
                (loss * weight).backward()
                if len(micro_batches) > 1:
                    optimizer.gather()
                progress.loss_sum += loss.item()
                progress.loss_count += len(examples)
                progress.tokens += int(plan.tokens[examples].sum())
            norm = optimizer.gradient_norm()
            check_finite(norm, progress.step, names(np.concatenate(micro_batches)))
            optimizer.step(lr, clip=options.clip, norm=norm)
            if average is not None:
                average.update()
            progress.step += 1
            progress.step_seconds += time.monotonic() - step_started
            done = progress.step == plan.total_steps
            if progress.step % log_every == 0 or done:
                tracker.train(
                    progress.step,
                    epoch=plan.epoch_at(progress.step),
                    loss=progress.loss_sum / progress.loss_count,
                    lr=lr,
                    grad_norm=norm,
                    tokens=progress.tokens,
                    seconds=progress.step_seconds,
                )
                progress.loss_sum, progress.loss_count, progress.tokens = 0.0, 0, 0
            evaluated = (
                progress.step % options.eval_every == 0 if options.eval_every else epoch_ends
            )
            if evaluated or done:
                assess()
            due = time.monotonic() - saved_at > SAVE_SECONDS
            if options.save_every:
                due = progress.step % options.save_every == 0
            if due or signals.arrived:
                save()
                saved_at = time.monotonic()
            if signals.arrived:
                raise Interrupted(
                    f"stopped by {signals.arrived} at step {progress.step} of {plan.total_steps}; "
                    f"saved. Go on with --resume"
                )
    if progress.best_value is None:
        assess()  # nothing was left to train, and nothing was evaluated
    progress.seconds = before + time.monotonic() - started
    best = state.read(run / "checkpoints" / f"best-{progress.best_step:09d}")
    model.float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(best.tensors[name])
    model.eval()
    return progress


def step_seed(seed: int, step: int, part: int) -> int:
    """The seed of a step's dropout, well mixed: (seed, step, part) -> 63 bits."""
    return int(
        np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def check_finite(value: float, step: int, examples: list[str]) -> None:
    """Raise `FilbertError` with the examples of the batch when a loss or gradient is no number."""
    if not math.isfinite(value):
        shown = ", ".join(examples[:20]) + (" ..." if len(examples) > 20 else "")
        raise FilbertError(
            f"the loss or its gradient became {value} at step {step}; the batch held: {shown}. "
            "Look at these rows, lower --lr, or try --precision float32. Checkpoints are whole"
        )
