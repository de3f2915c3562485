"""SIGINT and SIGTERM while training: noted, so that a checkpoint is saved when the state is whole.

Process managers (torchrun, Slurm, a shell with Ctrl-C) send the same signal to the group and to the
process itself. So whatever comes soon after the first counts as that one; a person who has waited,
and asks again, is obeyed at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

ECHO = 2.0  # seconds in which a further signal is taken for the first one's echo


class Stopped(BaseException):
    """Raised in the midst of what a signal may break off: no `Exception`, so that nothing takes it
    for a failure of its own."""


class SignalFlag:
    """Notes SIGINT and SIGTERM instead of dying of them, within a `with` block. Another one after
    `ECHO` seconds raises `KeyboardInterrupt`. An echo that comes when the block was left is passed
    over as well: the process is on its way out, with something to say."""

    def __init__(self) -> None:
        self.arrived: str | None = None
        self._first = 0.0  # when
        self._left = False
        self._breaks = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """What stands within ends at once with `Stopped`, now or when a signal comes."""
        try:
            self._breaks = True
            if self.arrived is not None:
                raise Stopped
            yield
        finally:
            self._breaks = False

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.arrived is None:
            self.arrived, self._first = signal.Signals(number).name, now
            if self._breaks:
                raise Stopped
        elif now - self._first > ECHO:
            if not self._left:
                raise KeyboardInterrupt
            self._restore()
            signal.raise_signal(number)

    def __exit__(self, *details: object) -> None:
        self._left = True
        if self.arrived is None:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
