"""`filbert pretrain` in which something befalls one process alone, for test_parallel.py.

    python -m torch.distributed.run ... tests/system/parallel_child.py WHAT STEP pretrain ...

WHAT: `error` (data that cannot be read) or `nan` (a loss that is no number), in process 1, at its
training batch number STEP. `late` is `error` while process 0 is slow to find out who failed, so
that torchrun's SIGTERM reaches it before it can say so.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from torch import Tensor

from filbert.cli import main
from filbert.errors import FilbertError
from filbert.tasks import pretrain as task
from filbert.train import parallel

WORDS = "train-00001/tokens.npy cannot be read"


def befall(what: str, at: int) -> None:
    """Put a loss in the place of the task's that fails at the batch `at` of process 1."""
    sound, seen = task.loss, 0

    def loss(model: Any, batch: task.Batch, **options: Any) -> tuple[Tensor, Tensor]:
        nonlocal seen
        value, tallies = sound(model, batch, **options)
        seen += model.training
        if model.training and seen == at:
            if what != "nan":
                raise FilbertError(WORDS)
            print("held:", *batch.numbers.tolist(), file=sys.stderr, flush=True)
            value, tallies = value * float("nan"), tallies * float("nan")
        return value, tallies

    task.loss = loss


def dawdle(seconds: float) -> None:
    """Let this process take its time before it asks who failed."""
    prompt = parallel.Watch.ask

    def ask(watch: parallel.Watch) -> tuple[int, int, str]:
        time.sleep(seconds)
        return prompt(watch)

    parallel.Watch.ask = ask  # type: ignore[method-assign]


if __name__ == "__main__":
    what, at = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    if os.environ["RANK"] == "1":
        befall(what, at)
    elif what == "late":
        dawdle(2.0)
    main()
