"""Which examples each step of a run takes: a pure function of (lengths, options, seed, step)."""

from __future__ import annotations

import math

from filbert.data.packing import Ids, plan_epoch
from filbert.train.loop import Progress, Work
from filbert.train.options import TuneOptions


class Plan:
    """The batches of every step of every epoch; epochs may end in a fraction."""

    def __init__(self, tokens: Ids, options: TuneOptions, seed: int) -> None:
        self.tokens, self.options, self.seed = tokens, options, seed
        self._epoch, self._batches = -1, list[Ids]()
        self.ends: list[int] = []  # the step at which each epoch ends
        whole, part = divmod(options.epochs, 1.0)
        for epoch in range(math.ceil(options.epochs)):
            steps = math.ceil(len(self.batches(epoch)) / options.accumulate)
            if epoch == whole and part:
                steps = max(1, math.ceil(steps * part - 1e-9))
            self.ends.append(steps + (self.ends[-1] if self.ends else 0))
        self.total_steps = self.ends[-1]

    def batches(self, epoch: int) -> list[Ids]:
        """The batches of an epoch; the last one asked for is kept."""
        if epoch != self._epoch:
            self._batches = plan_epoch(
                self.tokens, batch_tokens=self.options.batch_tokens,
                batch_size=self.options.batch_size, seed=self.seed, epoch=epoch,
            )  # fmt: skip
            self._epoch = epoch
        return self._batches

    def work(self, progress: Progress) -> Work:
        """The batches of the next step.

        The weight is one over the mean number of examples in a step, so that an example counts the
        same in a batch of many short texts as in a batch of few long ones.
        """
        epoch = next(i for i, end in enumerate(self.ends) if progress.step < end)
        batches = self.batches(epoch)
        size = self.options.accumulate
        place = progress.step - (self.ends[epoch - 1] if epoch else 0)
        taken = batches[place * size : (place + 1) * size]
        return Work(
            taken,
            weight=math.ceil(len(batches) / size) / len(self.tokens),
            samples=sum(map(len, taken)),
            tokens=sum(int(self.tokens[batch].sum()) for batch in taken),
            epoch_ends=progress.step + 1 == self.ends[epoch],
        )

    def epoch(self, progress: Progress) -> float:
        """Passes over the data so far."""
        start = 0
        for epoch, end in enumerate(self.ends):
            if progress.step <= end:
                return epoch + (progress.step - start) / (end - start)
            start = end
        return float(len(self.ends))
