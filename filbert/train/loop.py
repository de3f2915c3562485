"""The training loop, the only one: pre-training and every fine-tuning task pass through `fit`.

A step is a pure function of the weights and (seed, step): the plan says what it computes, the
dropout comes from a generator seeded anew at each step. So a run that is killed at any moment and
resumed ends with the same bits as one that was not (same device, same threads, same number of
processes). Only a run by the clock (`Budget`) depends on how fast the machine is.

The task gives its functions; the loop knows nothing of texts, labels or masks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.device import training_path
from filbert.tasks.metrics import lower_is_better
from filbert.train import state
from filbert.train.optim import Average, Optimizer
from filbert.train.options import RunOptions
from filbert.train.parallel import World
from filbert.train.schedule import learning_rate, learning_rate_at
from filbert.train.sharded import padded
from filbert.train.signals import SignalFlag, Stopped
from filbert.train.track import Tracker

SAVE_SECONDS = 120.0  # time between checkpoints where no number of steps is given
LOG_ROWS = 500  # about this many rows of training loss in metrics.jsonl
LOG_SECONDS = 5.0  # by the clock: time between them
RESERVE = 0.01  # share of a budget kept for the last evaluation and saving, before they were timed


class Interrupted(FilbertError):
    """SIGINT or SIGTERM arrived; a checkpoint was saved."""

    exit_code = 130


@dataclass
class Progress:
    """Where a run stands; saved with each checkpoint."""

    step: int = 0
    samples: int = 0  # drawn so far, over all processes
    best_step: int = 0
    best_value: float | None = None
    best_scores: dict[str, Any] = field(default_factory=dict)
    without_gain: int = 0
    stopped: bool = False  # by early stopping
    done: float = 0.0  # share of the run that lies behind: of its steps, or of its time
    tallies: list[float] = field(default_factory=list)  # since the last row of the log
    tokens: int = 0  # likewise
    mean_loss: float | None = None  # running, to tell a spike by
    skipped: int = 0  # steps whose loss was a spike or no number
    marks: int = 0  # evaluations due so far, where they are spread over the run
    step_seconds: float = 0.0  # in training steps, evaluation and saving left out
    seconds: float = 0.0  # in all, over all sessions of this run
    unassessed: bool = False  # an evaluation was due at this step and was broken off
    # once memory ran out: the tokens of a batch as the options say, and as they are since then
    halved: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """What one step computes. `batches`: those of this process. `weight`: of each unit of loss.
    `samples`: of this step, over all processes; `tokens`: of this one."""

    batches: list[Any]
    weight: float
    samples: int
    tokens: int
    epoch_ends: bool = False


class Plan(Protocol):
    """Which work each step has. A pure function of the options and where the run stands."""

    seed: int

    @property
    def total_steps(self) -> int | None:
        """Of the whole run; None: as many as the budget allows."""
        ...

    def work(self, progress: Progress) -> Work:
        """The next step's."""
        ...

    def epoch(self, progress: Progress) -> float:
        """Passes over the data so far."""
        ...


@dataclass
class Budget:
    """Wall-clock seconds for a run; it ends so that the last evaluation and saving fit in."""

    seconds: float
    evaluation: float = 0.0  # what the last one took
    assessed: float = 0.0  # when that was over, in seconds of the run
    saving: float = 0.0

    def share(self, elapsed: float) -> float:
        """How much of the time for training lies behind, 0 to 1."""
        reserve = max(RESERVE * self.seconds, 1.2 * (self.evaluation + self.saving))
        return min(1.0, elapsed / max(self.seconds - reserve, 1e-9))

    def affords(self, elapsed: float) -> bool:
        """Whether another evaluation leaves nine tenths of the time to training."""
        return elapsed - self.assessed >= 9 * self.evaluation


@dataclass(frozen=True)
class Limits:
    """What to bear. `spike`: by how much a step's loss may exceed the running mean (0: no limit);
    `skipped`: how many steps may be passed over for that, or for a loss that is no number."""

    spike: float = 0.0
    skipped: int = 0


def fit(
    model: nn.Module,
    *,
    optimizer: Optimizer,
    plan: Plan,
    batch_loss: Callable[[nn.Module, Any], tuple[Tensor, Tensor]],
    summary: Callable[[NDArray[np.float64]], dict[str, float]],
    names: Callable[[Any], list[str]],
    evaluate: Callable[[nn.Module], dict[str, Any]],
    metric: str,
    options: RunOptions,
    run: Path,
    tracker: Tracker,
    resumed: state.Checkpoint | None = None,
    world: World | None = None,
    budget: Budget | None = None,
    limits: Limits | None = None,
    split: Callable[[Any, Progress], list[Any]] | None = None,
    evaluations: int = 0,
) -> Progress:
    """Train `model` in place; at the end it holds the best evaluated weights (in the first process,
    and not where the weights are in parts: see `take_best`).

    batch_loss: of a batch, the loss to differentiate (a scalar, a sum over its units) and what is
    to be logged, (k,) float64 that can be added up. summary: the sums of a while in words, with
    `loss` among them. names: how a person finds the samples of a batch again. evaluate: scores on
    the development set, with `metric` among them. resumed: the checkpoint to go on from. split:
    halves of a batch, for when one does not fit into memory; it may note that in the progress.
    evaluations: how many are spread over the run where `options.eval_every` is 0, fewer where a
    budget is short for them; at 0 there is one at the end of each epoch.
    Raises `Interrupted` after a signal, `FilbertError` when a loss is not a number.
    """
    world, limits = world or World(), limits or Limits()
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
        optimizer.load(resumed.tensors, progress.step - progress.skipped)
        if average is not None:
            average.load({n: resumed.tensors[f"average/{n}"] for n in average.weights()})
        of = "" if plan.total_steps is None else f" of {plan.total_steps}"
        tracker.message(f"resumed at step {progress.step}{of}")
    if world.first:
        state.clear_unfinished(run)

    def elapsed() -> float:
        return before + time.monotonic() - started

    def save_best() -> None:
        weights = optimizer.whole(average.weights() if average else optimizer.weights())
        if world.first:
            state.save(run, f"best-{progress.best_step:09d}", weights, {})

    def save() -> None:
        saving = time.monotonic()
        tensors = optimizer.state()
        if average is not None:
            tensors |= {f"average/{name}": value for name, value in average.weights().items()}
        tensors = optimizer.whole(tensors)
        progress.seconds = elapsed()
        if world.first:
            state.save(run, f"step-{progress.step:09d}", tensors, {"progress": vars(progress)})
            state.prune(run, keep_best=f"best-{progress.best_step:09d}")
        world.wait()
        if budget is not None:
            budget.saving = time.monotonic() - saving

    def assess() -> None:
        assessing = time.monotonic()
        progress.unassessed = True
        with (
            average.in_model() if average else nullcontext(),
            signals.breaking() if alone else nullcontext(),
        ):
            scores = evaluate(model)
        progress.unassessed = False
        model.train()
        value = scores[metric]
        value = -math.inf if value is None or math.isnan(value) else float(value)
        gain = -value if lower_is_better(metric) else value
        tracker.evaluation(progress.step, plan.epoch(progress), scores)
        # Equal scores (BLEU of a few short lines is 0 for a long time): the lower loss is better.
        rank = (gain, -float(scores.get("loss", 0.0)))
        best = (progress.best_value, -float(progress.best_scores.get("loss", 0.0)))
        if progress.best_value is None or rank > best:
            progress.best_step, progress.best_value = progress.step, gain
            progress.best_scores, progress.without_gain = scores, 0
            save_best()
        else:
            progress.without_gain += 1
            progress.stopped = 0 < options.patience <= progress.without_gain
        if budget is not None:
            budget.evaluation, budget.assessed = time.monotonic() - assessing, elapsed()

    def compute(work: Work) -> Tensor:
        """The gradients of a step; returns its tallies. Batches that do not fit are halved."""
        tallies: Tensor | None = None
        waiting = list(work.batches)
        part, own = 0, len(waiting)
        if optimizer.shards is not None:
            waiting, own = padded(waiting, world)
        while waiting:
            if alone and signals.arrived:  # a step may take minutes, and is done again as it was
                raise Stopped
            torch.manual_seed(step_seed(plan.seed, progress.step, part, world.rank))
            try:
                loss, counted = batch_loss(model, waiting[0])
                (loss * (work.weight if part < own else 0.0)).backward()
            except torch.OutOfMemoryError:
                if optimizer.shards is not None:  # the others would not halve theirs
                    raise FilbertError(
                        f"process {world.rank} has not enough memory for a batch; give a smaller "
                        "--batch-tokens (with --parallel fsdp it is not halved by itself)"
                    ) from None
                halves = [] if split is None else split(waiting[0], progress)
                if len(halves) < 2:
                    raise FilbertError(
                        "the device's memory does not hold a single sample of this length; choose "
                        "a smaller model or length, or --gradient-checkpointing"
                    ) from None
                own += len(halves) - 1
                optimizer.drop_gradients()
                torch.cuda.empty_cache()
                tracker.message("out of memory: the batch is computed in two halves from here on")
                waiting[:1] = halves
                continue
            if part or len(waiting) > 1:
                optimizer.gather()
            if part < own:
                tallies = counted if tallies is None else tallies + counted
            waiting.pop(0)
            part += 1
        assert tallies is not None
        return tallies

    def interrupted() -> Interrupted:
        of = "" if plan.total_steps is None else f" of {plan.total_steps}"
        return Interrupted(
            f"stopped by {signals.arrived or 'a signal'} at step {progress.step}{of}; saved. Go on "
            "with --resume"
        )

    @contextmanager
    def saving_when_stopped() -> Iterator[None]:
        try:
            yield
        except Stopped:  # within a step, or an evaluation: what is of it is dropped
            optimizer.drop_gradients()
            save()
            raise interrupted() from None

    started, before, saved_at = time.monotonic(), progress.seconds, time.monotonic()
    logged_at = time.monotonic()
    log_every = max(1, plan.total_steps // LOG_ROWS) if plan.total_steps is not None else 1
    model.train()
    if (path := training_path(model)) is not None:
        tracker.message(path)
    # several processes stop together, after a step
    signals, alone = SignalFlag(), world.size == 1
    with signals, saving_when_stopped():
        if progress.unassessed:
            assess()
        while progress.done < 1 and not progress.stopped:
            step_started = time.monotonic()
            rate: dict[str, Any] = {
                "peak": options.lr, "warmup": options.warmup, "decay": options.decay,
                "schedule": options.schedule,
            }  # fmt: skip
            if plan.total_steps is None:
                lr = learning_rate_at(progress.done, **rate)
            else:
                lr = learning_rate(progress.step, total=plan.total_steps, **rate)
            work = plan.work(progress)
            tallies = compute(work)
            lasted = elapsed() if world.first else 0.0  # the first one's clock decides for all
            share = budget.share(lasted) if world.first and budget is not None else 0.0
            affords = float(world.first and (budget is None or budget.affords(lasted)))
            told = [float(signals.arrived is not None), lasted, share, affords, work.tokens]
            reduced = world.sum(torch.cat([tallies, tallies.new_tensor(told)]))
            *values, signalled, seconds, share, affords, tokens = reduced.tolist()
            loss = summary(np.array(values))["loss"]
            norm = optimizer.gradient_norm(world)
            mean = progress.mean_loss
            bad = not (math.isfinite(loss) and math.isfinite(norm))
            if bad or (limits.spike and mean is not None and loss > mean + limits.spike):
                progress.skipped += 1
                own_loss = summary(tallies.cpu().numpy())["loss"]
                held = [name for batch in work.batches for name in names(batch)]
                if math.isfinite(own_loss) and not math.isfinite(loss):
                    held = []  # another process holds the bad sample
                held = [t for text in world.texts("\n".join(held)) for t in text.split("\n") if t]
                saved = any((run / "checkpoints").glob("step-*"))
                told_bad(loss if not math.isfinite(loss) or not bad else norm, mean, progress, held,
                         limits, tracker, saved=saved)  # fmt: skip
                optimizer.drop_gradients()
            else:
                optimizer.step(lr, clip=options.clip, norm=norm)
                if average is not None:
                    average.update()
                progress.mean_loss = loss if mean is None else 0.98 * mean + 0.02 * loss
                kept = progress.tallies or [0.0] * len(values)
                progress.tallies = [a + b for a, b in zip(kept, values, strict=True)]
            progress.step += 1
            progress.samples += work.samples
            progress.tokens += int(tokens)
            if plan.total_steps is not None:
                progress.done = progress.step / plan.total_steps
            else:
                progress.done = share
            progress.step_seconds += time.monotonic() - step_started
            ended = progress.done >= 1
            due = progress.step % log_every == 0
            if plan.total_steps is None:
                due = time.monotonic() - logged_at > LOG_SECONDS
            if (due or ended) and progress.tallies:
                parts = summary(np.array(progress.tallies))
                tracker.train(
                    progress.step,
                    epoch=plan.epoch(progress),
                    loss=parts.pop("loss"),
                    parts=parts,
                    lr=lr,
                    grad_norm=norm,
                    tokens=progress.tokens,
                    seconds=progress.step_seconds,
                    done=progress.done,
                )
                progress.tallies, progress.tokens, logged_at = [], 0, time.monotonic()
            evaluated = work.epoch_ends
            if options.eval_every:
                evaluated = progress.step % options.eval_every == 0
            elif evaluations:
                marks = int(progress.done * evaluations)
                if evaluated := marks > progress.marks and affords > 0:
                    progress.marks = marks
            if evaluated or ended:
                assess()
            # every process must come to the same answer, so the first one's clock decides
            due = seconds - before - (saved_at - started) > SAVE_SECONDS
            if options.save_every:
                due = progress.step % options.save_every == 0
            if (due and not ended) or signalled:
                save()
                saved_at = started + (seconds - before)
            if signalled:
                raise interrupted()
        if progress.best_value is None:
            assess()  # nothing was left to train, and nothing was evaluated
    progress.seconds = elapsed()
    world.wait()
    if world.first and optimizer.shards is None:
        take_best(model, run, progress)
    return progress


@torch.no_grad()
def take_best(model: nn.Module, run: Path, progress: Progress) -> None:
    """Set `model` to the weights of the best evaluation, float32."""
    best = state.read(run / "checkpoints" / f"best-{progress.best_step:09d}")
    model.float()
    for name, parameter in model.named_parameters():
        parameter.copy_(best.tensors[name])
    model.eval()


def step_seed(seed: int, step: int, part: int, rank: int = 0) -> int:
    """The seed of a batch's dropout, well mixed: (seed, step, part, rank) -> 63 bits."""
    parts = [seed, step, part, rank] if rank else [seed, step, part]
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def told_bad(
    value: float,
    mean: float | None,
    progress: Progress,
    samples: list[str],
    limits: Limits,
    tracker: Tracker,
    *,
    saved: bool,
) -> None:
    """Tell a step whose loss or gradient is a spike or no number, with the samples it held; raise
    `FilbertError` if there were too many of them. saved: whether there is a checkpoint."""
    shown = ", ".join(samples[:20]) + (" ..." if len(samples) > 20 else "")
    what = f"the loss or its gradient became {value:.6g}"
    if math.isfinite(value):
        what = f"the loss jumped from about {mean:.3f} to {value:.3f}"
    if progress.skipped > limits.skipped:
        often = f" ({progress.skipped} steps so far)" if limits.skipped else ""
        kept = "Checkpoints are whole" if saved else "There is no checkpoint yet"
        raise FilbertError(
            f"{what} at step {progress.step}{often}; the batch held: {shown}. "
            f"Look at these rows, lower --lr, or try --precision float32. {kept}"
        )
    tracker.message(
        f"{what} at step {progress.step}: this step is passed over "
        f"({progress.skipped} of at most {limits.skipped}); the batch held: {shown}"
    )


def counted(losses: Tensor, count: int) -> Tensor:
    """(2,) float64: the sum of losses and of how many, for tasks with one loss."""
    return torch.stack([losses.detach().double().sum(), losses.new_tensor(count).double()])


def mean_loss(tallies: NDArray[np.float64]) -> dict[str, float]:
    """The summary of what `counted` counts."""
    return {"loss": float(tallies[0] / max(tallies[1], 1.0))}
