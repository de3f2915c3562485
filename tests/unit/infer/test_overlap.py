"""Blocks on the way at once: in order, few at a time, errors in their place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from filbert.infer import overlap, predict
from filbert.infer.overlap import in_order


def slow(block: list[int]) -> list[int]:
    time.sleep(0.02 * (block[0] % 3))
    return [number * 2 for number in block]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_blocks_come_in_order(workers: int) -> None:
    blocks = [[n, n + 100] for n in range(12)]
    found = list(in_order(slow, blocks, workers=workers))
    assert found == [(block, slow(block)) for block in blocks]


def test_on_a_gpu_two_workers_share_wide_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    sizes = {}
    for kind, workers in (("cuda", 2), ("cpu", 1)):
        model: Any = SimpleNamespace(device=torch.device(kind))
        assert overlap.workers_for(model) == workers
        seen: list[int] = []

        def work(rows: range, seen: list[int] = seen) -> Any:
            seen.append(len(rows))
            return np.zeros((len(rows), 1), np.float32)

        assert overlap.in_blocks(work, 2500, model, width=1).shape == (2500, 1)
        sizes[kind] = sorted(seen)
    assert sizes == {"cuda": [452, 1024, 1024], "cpu": [452, 1024, 1024]}


def test_few_blocks_are_held() -> None:
    asked = 0

    def blocks() -> Iterator[list[int]]:
        nonlocal asked
        for asked in range(1, 50):
            yield [asked]

    for count, _ in enumerate(in_order(slow, blocks(), workers=2), start=1):
        assert asked <= count + 3


def test_the_first_short_blocks_wait_for_none() -> None:
    asked = 0

    def blocks() -> Iterator[list[int]]:
        nonlocal asked
        for size in (1, 2, 4, 4, 4, 1):
            asked += 1
            yield [0] * size

    answers = in_order(slow, blocks(), workers=2, full=4)
    assert next(answers)[0] == [0] and asked == 1
    assert next(answers)[0] == [0, 0] and asked == 2
    assert [len(block) for block, _ in answers] == [4, 4, 4, 1]


def test_an_error_comes_after_what_was_before_it() -> None:
    def work(block: list[int]) -> list[int]:
        if block[0] == 5:
            raise ValueError("five")
        return slow(block)

    seen = []
    with pytest.raises(ValueError, match="five"):
        for block, _ in in_order(work, [[n] for n in range(9)], workers=2):
            seen.append(block[0])
    assert seen == [0, 1, 2, 3, 4]

    def blocks() -> Iterator[list[int]]:
        yield from ([0], [1], [2])
        raise OSError("gone")

    seen = []
    with pytest.raises(OSError, match="gone"):
        for block, _ in in_order(slow, blocks(), workers=2):
            seen.append(block[0])
    assert seen == [0, 1, 2]


def test_no_thread_stays_behind() -> None:
    before = threading.active_count()
    answers = in_order(slow, [[n] for n in range(20)], workers=2)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("window", [1, 20])
def test_a_stream_of_small_windows_waits_for_no_further_rows(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "workers_for", lambda model: 2)
    taken = 0

    def rows() -> Iterator[str]:
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield "a"

    predictor = SimpleNamespace(model=None, problem=lambda row: None, answer_rows=list)
    for count, _ in enumerate(predict.stream(predictor, rows(), window=window), start=1):
        assert taken < count + window
