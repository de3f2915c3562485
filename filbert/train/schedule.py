"""What a run changes as it goes: the learning rate and the number of samples a step.

Both are pure functions of how far the run is, so a resumed run finds them again without replay.
How far is a step of a known number of steps (`learning_rate`), or a share of the run
(`learning_rate_at`), which a clock can give as well as a count.

`wsd` is warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): the rate stays at its peak and
falls to zero over the last share of the run, along a line or as 1 - sqrt (Haegele et al. 2024,
arXiv 2405.18392). tests/numerics/test_schedule.py holds all of them to values worked out by hand.
"""

from __future__ import annotations

import math
from typing import Literal

from filbert.errors import UsageError

DecayShape = Literal["linear", "sqrt"]


def learning_rate(
    step: int,
    *,
    total: int,
    peak: float,
    warmup: float,
    schedule: str,
    decay: float = 0.2,
    shape: DecayShape = "linear",
) -> float:
    """The rate of update `step` (0-based) of `total`: linear warm-up over the share `warmup`, then
    `linear` or `cosine` to zero, `constant`, or `wsd` with its last share `decay` falling in
    `shape`, no earlier than the warm-up ends. Raises `UsageError` for an unknown schedule."""
    warm = math.ceil(total * warmup)
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    left, after = total - step, max(1, total - warm)
    return _after_warmup(left / after, left / total, peak, after / total, schedule, decay, shape)


def learning_rate_at(
    done: float,
    *,
    peak: float,
    warmup: float,
    schedule: str,
    decay: float = 0.2,
    shape: DecayShape = "linear",
) -> float:
    """The same where the share `done` of the run lies behind, for a run that follows the clock.

    Give the share at the middle of the step: at 0 a warm-up has the rate zero, at 1 a decay has.
    Shares outside 0 ... 1 count as the nearer of the two.
    """
    done = min(1.0, max(0.0, done))
    if done < warmup:
        return peak * done / warmup
    left, after = 1.0 - done, 1.0 - warmup
    return _after_warmup(left / after, left, peak, after, schedule, decay, shape)


def _after_warmup(
    left: float,
    left_of_all: float,
    peak: float,
    after: float,
    schedule: str,
    decay: float,
    shape: DecayShape,
) -> float:
    """left: share still to do of what follows the warm-up; left_of_all: of the whole run; after:
    share of the run that follows the warm-up."""
    if schedule == "linear":
        return peak * left
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (1 - left)))
    if schedule == "constant":
        return peak
    if schedule == "wsd":
        fall = min(1.0, left_of_all / min(decay, after))  # 1 until the decay, then down to 0
        return peak * (fall if shape == "linear" else 1.0 - math.sqrt(1.0 - fall))
    raise UsageError(f"unknown schedule {schedule!r}; expected linear, cosine, constant or wsd")


def batch_size_at(done: float, *, full: int, start: int, warmup: float, multiple: int = 1) -> int:
    """Samples of a step where the share `done` of the run (step / steps, or time) lies behind.

    Grows along a line from `start` to `full` over the share `warmup`, in multiples of `multiple`
    (rounded down, at least one); `full` itself from there on.
    """
    if done >= warmup:
        return full
    size = round(start + (full - start) * (max(0.0, done) / warmup))
    return max(multiple, size // multiple * multiple)
