"""SIGTERM taken like Ctrl-C: work is left in order, and the last word says how to go on.

    with stoppable("the same command goes on from there"):
        ...

Without it SIGTERM ends a process on the spot: no message, no lock removed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

ECHO = 2.0  # seconds in which a further signal is taken for the first one's echo
_within = False  # a block of `stoppable`, whose handlers and words hold for those inside it


@contextlib.contextmanager
def stoppable(then: str) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise `KeyboardInterrupt`, with a text that names the
    signal and ends with `then`. Whatever else the block ends with after that (a library may have
    made an error of its own of it) is raised as this too. A signal that is ignored, as nohup does,
    stays so; only the main thread can do this, and in another one nothing changes."""
    global _within
    if _within or threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []
    words = ""

    def stop(number: int, frame: Any) -> None:
        nonlocal words
        if first and time.monotonic() - first[0] < ECHO:
            return  # managers signal the group and the process
        first.append(time.monotonic())
        words = f"stopped by {signal.Signals(number).name}; {then}"
        raise KeyboardInterrupt(words)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    _within = True
    try:
        yield
    except Exception as error:
        if first:
            raise KeyboardInterrupt(words) from error
        raise
    finally:
        _within = False
        for number, handler in before.items():
            signal.signal(number, handler)
