"""A process that works for another one goes when that one is gone, however it went."""

from __future__ import annotations

import os
import threading
from multiprocessing import connection, parent_process

GRACE = 5.0  # seconds to leave by oneself after the parent closed its end of the pipe


def follow_parent(over: connection.Connection | None = None) -> None:
    """Make this process, one of multiprocessing, end with its parent: one that was killed cannot
    say so, and its pipes stay open. over: it also ends, `GRACE` seconds later, where the parent
    closes the other end of this pipe."""
    threading.Thread(target=_follow, args=(over,), daemon=True).start()


def _follow(over: connection.Connection | None) -> None:
    parent = parent_process()
    if parent is not None:
        told = connection.wait([parent.sentinel] if over is None else [parent.sentinel, over])
        if parent.sentinel not in told:
            connection.wait([parent.sentinel], timeout=GRACE)
        os._exit(1)
