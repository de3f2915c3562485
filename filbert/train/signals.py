"""SIGINT and SIGTERM while training: noted, so that the step ends and a checkpoint is saved."""

from __future__ import annotations

import signal
import threading
from typing import Any


class SignalFlag:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one is not caught."""

    def __init__(self) -> None:
        self.arrived: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.arrived is not None:
            raise KeyboardInterrupt
        self.arrived = signal.Signals(number).name

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
