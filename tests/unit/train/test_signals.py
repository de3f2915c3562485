"""Signals while training: noted, an echo passed over, a second request obeyed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from filbert.train import signals
from filbert.train.signals import SignalFlag


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of before the test, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)  # Python runs the handler before the next line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_echo_is_passed_over(number: signal.Signals) -> None:
    with SignalFlag() as flag:
        assert flag.arrived is None
        send(number)
        assert flag.arrived == number.name
        send(number)
        send(signal.SIGTERM)
        assert flag.arrived == number.name


def test_a_second_request_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    with SignalFlag() as flag:
        send(signal.SIGTERM)
        now = 101.9
        send(signal.SIGINT)  # an echo; it does not begin a new span
        now = 102.1
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert flag.arrived == "SIGTERM"


def test_what_was_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once if nothing arrived; else when no echo is to be awaited any more."""
    now, seen = 100.0, []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with SignalFlag():
        pass
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    with SignalFlag():
        send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    now = 103.0
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM] * 3


def test_in_another_thread_nothing_is_caught() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with SignalFlag():
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
