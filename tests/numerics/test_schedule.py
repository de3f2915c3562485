"""The schedules against values by hand, by the step and by the clock."""

from __future__ import annotations

import math

import pytest

from filbert.errors import UsageError
from filbert.train.schedule import batch_size_at, learning_rate, learning_rate_at


def rates(schedule: str, warmup: float, *, steps: int = 10, **more: object) -> list[float]:
    return [
        learning_rate(s, total=steps, peak=1.0, warmup=warmup, schedule=schedule, **more)  # type: ignore[arg-type]
        for s in range(steps)
    ]


def test_constant_linear_and_cosine_by_hand() -> None:
    assert rates("constant", 0.0) == [1.0] * 10
    assert rates("linear", 0.0) == pytest.approx([1 - s / 10 for s in range(10)])
    assert rates("linear", 0.2)[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 7 / 8])
    cosine = rates("cosine", 0.0)
    assert cosine[0] == 1.0 and cosine[5] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bits_of_finished_runs_stay(schedule: str) -> None:
    """The formulas as fine-tuning has had them from the start: a run begun then ends the same."""
    for step in range(97):
        left = (97 - step) / (97 - 10)
        expected = 3e-4 * left
        if schedule == "cosine":
            expected = 3e-4 * 0.5 * (1 + math.cos(math.pi * (1 - left)))
        if step < 10:
            expected = 3e-4 * (step + 1) / (10 + 1)
        got = learning_rate(step, total=97, peak=3e-4, warmup=0.1, schedule=schedule)
        assert got == expected


def test_wsd_by_hand() -> None:
    up, top = [1 / 3, 2 / 3], [1.0] * 4
    assert rates("wsd", 0.2, decay=0.4) == pytest.approx([*up, *top, 1.0, 0.75, 0.5, 0.25])
    falling = [1.0, 1 - math.sqrt(0.25), 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    assert rates("wsd", 0.2, decay=0.4, shape="sqrt") == pytest.approx([*up, *top, *falling])


def test_wsd_never_decays_before_it_is_warm() -> None:
    assert rates("wsd", 0.2, decay=1.0) == pytest.approx(rates("linear", 0.2))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_the_clock_gives_what_the_steps_give(schedule: str, shape: str) -> None:
    """With steps of equal length the two lie within half a step of each other."""
    steps = 2000
    by_step = rates(schedule, 0.1, steps=steps, decay=0.3, shape=shape)
    by_clock = [
        learning_rate_at(
            (step + 0.5) / steps,
            peak=1.0,
            warmup=0.1,
            schedule=schedule,
            decay=0.3,
            shape=shape,  # type: ignore[arg-type]
        )
        for step in range(steps)
    ]
    # the root is steep where the decay begins: half a step of 600 there is sqrt(1 / 1200)
    steepest = math.sqrt(0.5 / 600) if (schedule, shape) == ("wsd", "sqrt") else 0.6 / 200
    assert max(abs(a - b) for a, b in zip(by_step, by_clock, strict=True)) <= steepest * 1.0001
    assert min(by_clock) > 0


def test_a_clock_that_runs_off_its_ends() -> None:
    def at(done: float) -> float:
        return learning_rate_at(done, peak=2.0, warmup=0.25, schedule="wsd", decay=0.5)

    assert [at(x) for x in (-1.0, 0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 7.0)] == pytest.approx(
        [0.0, 0.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0]
    )


def test_unknown_schedule() -> None:
    with pytest.raises(UsageError, match="unknown schedule 'cubic'; expected linear"):
        learning_rate(3, total=9, peak=1.0, warmup=0.0, schedule="cubic")


def test_batch_grows_by_hand() -> None:
    def sizes(**more: int) -> list[int]:
        return [
            batch_size_at(step / 10, full=260, start=32, warmup=0.4, **more) for step in range(10)
        ]

    assert sizes() == [32, 89, 146, 203, *[260] * 6]
    assert sizes(multiple=16) == [32, 80, 144, 192, *[260] * 6]
    assert batch_size_at(-0.5, full=64, start=4, warmup=0.5, multiple=16) == 16
    assert batch_size_at(0.0, full=64, start=4, warmup=0.0) == 64
