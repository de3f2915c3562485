"""How fast this machine multiplies matrices, the best that was seen: what MFU is a share of.

    ceiling = Ceiling(dtype, device, processes=world.size)
    ceiling.look(after=START)            # at several moments of the start
    ceiling.look(after=AGAIN)            # at each evaluation

One measurement of 0.3 s that falls on a busy moment reads too low, and all shares of it then read
too high. So it is taken again later, and the maximum counts. (A machine that is busy all the time
lowers both what is measured and what the run reaches; nothing here can tell.)
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from filbert.model.device import matmul_rate

START = 2.0  # seconds between two tries while a run starts
AGAIN = 30.0  # and while it trains: at most 1 % of the time


@dataclass
class Ceiling:
    """The best rate so far: `best`, in floating-point operations a second of all processes, each of
    which is taken to be as fast as this one."""

    dtype: torch.dtype
    device: torch.device
    processes: int = 1
    best: float = 0.0
    tried: float = -math.inf  # when, on the monotonic clock

    def look(self, *, after: float) -> float:
        """The best rate; measured again if the last try began `after` seconds ago or earlier."""
        now = time.monotonic()
        if now - self.tried >= after:
            self.tried = now
            rate = 1e9 * matmul_rate(self.dtype, self.device) * self.processes
            self.best = max(self.best, rate)
        return self.best
