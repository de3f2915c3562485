"""The ceiling of MFU: the best of several tries, none of them too often."""

from __future__ import annotations

import pytest
import torch

from filbert.train import ceiling as module
from filbert.train.ceiling import Ceiling


def test_a_busy_moment_does_not_lower_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rates = 50.0, iter([27.0, 130.0, 90.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module, "matmul_rate", lambda dtype, device: next(rates))
    ceiling = Ceiling(torch.float32, torch.device("cpu"), processes=2)
    assert ceiling.look(after=2.0) == 54e9  # measured while the machine was busy
    now = 51.0
    assert ceiling.look(after=2.0) == 54e9  # too soon
    now = 52.0
    assert ceiling.look(after=2.0) == 260e9
    now = 80.0
    assert ceiling.look(after=30.0) == 260e9
    now = 82.0
    assert ceiling.look(after=30.0) == 260e9  # measured again, and lower: the best stands
    assert next(rates, None) is None
