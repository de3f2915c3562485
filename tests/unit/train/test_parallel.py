"""SIGTERM in a process of several; tests/system/test_parallel.py starts real ones."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from filbert.train import parallel


@pytest.fixture
def arrived() -> Iterator[list[int]]:
    """What reached the handler that stood before."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def watch(failed: Any) -> Any:
    return SimpleNamespace(failed=lambda: failed)


def test_without_a_failure_the_former_handler_has_it(arrived: list[int]) -> None:
    parallel._heed_unless_failed(watch(None))
    signal.raise_signal(signal.SIGTERM)
    assert arrived == [signal.SIGTERM]


def test_after_a_failure_there_is_time_to_speak_but_not_for_ever(
    arrived: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel._heed_unless_failed(watch((1, 1, "it failed")))
    signal.raise_signal(signal.SIGTERM)
    assert arrived == []
    monkeypatch.setattr(parallel, "GRACE", -1.0)
    signal.raise_signal(signal.SIGTERM)
    assert arrived == [signal.SIGTERM]


def test_the_former_handler_comes_back(arrived: list[int]) -> None:
    restore = parallel._heed_unless_failed(watch((1, 1, "it failed")))
    restore()
    signal.raise_signal(signal.SIGTERM)
    assert arrived == [signal.SIGTERM]
