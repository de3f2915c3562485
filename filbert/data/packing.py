"""Packed batches: texts end to end under a token budget, in shuffled length buckets, no padding.

The plan of an epoch is a pure function of (lengths, seed, epoch). Nothing has to be replayed to
resume, and every process computes the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

SORT_WINDOW = 16_384  # examples that are sorted by length together; buckets come out of a window


@dataclass(frozen=True)
class Encoded:
    """Token ids of many examples. An example is one window or, if its text is long, several.

    input_ids, token_type_ids: (tokens,), all windows end to end; window_starts: (windows + 1,)
    places in them; example_windows: (examples + 1,), example e holds the windows
    example_windows[e] ... example_windows[e + 1] - 1.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int8]
    window_starts: Ids
    example_windows: Ids

    def __len__(self) -> int:
        return len(self.example_windows) - 1

    @cached_property
    def tokens(self) -> Ids:
        """(examples,) tokens of each example, all its windows together."""
        return np.diff(self.window_starts[self.example_windows])

    def by_window(self) -> Encoded:
        """The same, each window an example of its own."""
        windows = len(self.window_starts) - 1
        if windows == len(self):  # no example has several, and none has none
            return self
        return replace(self, example_windows=np.arange(windows + 1))

    def gather(self, examples: Ids) -> Batch:
        """The packed batch of these examples, in this order."""
        picked = np.asarray(examples)
        if len(self) == len(picked) == 1:  # one text: all there is
            return Batch(
                input_ids=self.input_ids.astype(np.int64),
                token_type_ids=self.token_type_ids.astype(np.int64),
                lengths=np.diff(self.window_starts),
                owners=np.zeros(len(self.window_starts) - 1, np.int64),
                examples=picked,
            )
        first = self.example_windows[picked]
        counts = self.example_windows[picked + 1] - first  # (examples,) windows of each
        windows = runs(first, counts)
        starts = self.window_starts[windows]
        lengths = self.window_starts[windows + 1] - starts
        places = runs(starts, lengths)
        return Batch(
            input_ids=self.input_ids[places].astype(np.int64),
            token_type_ids=self.token_type_ids[places].astype(np.int64),
            lengths=lengths,
            owners=np.repeat(np.arange(len(picked)), counts),
            examples=picked,
        )


@dataclass(frozen=True)
class Batch:
    """A packed batch. input_ids, token_type_ids: (tokens,); lengths: (windows,), sums to tokens;
    owners: (windows,) place in `examples` of the example that a window belongs to;
    examples: (examples,) numbers in the data set. All int64."""

    input_ids: Ids
    token_type_ids: Ids
    lengths: Ids
    owners: Ids
    examples: Ids


def runs(starts: Ids, lengths: Ids) -> Ids:
    """starts[i], starts[i] + 1, ... of all runs of these lengths, end to end."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def plan_epoch(
    tokens: Ids, *, batch_tokens: int, batch_size: int | None, seed: int, epoch: int
) -> list[Ids]:
    """Batches of example numbers for one pass, each example in exactly one batch.

    tokens: (examples,) length of each. A batch holds examples of nearly equal length whose tokens
    sum to at most `batch_tokens` (a longer example goes alone) and at most `batch_size` of them.
    """
    draw = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = draw.permutation(len(tokens))
    batches: list[Ids] = []
    for start in range(0, len(order), SORT_WINDOW):
        window = order[start : start + SORT_WINDOW]
        window = window[np.argsort(tokens[window], kind="stable")]  # equal lengths stay shuffled
        batches += cut(window, tokens, batch_tokens=batch_tokens, batch_size=batch_size)
    return [batches[i] for i in draw.permutation(len(batches))]


def cut(order: Ids, tokens: Ids, *, batch_tokens: int, batch_size: int | None) -> list[Ids]:
    """Cut `order` into runs whose tokens fit the budget."""
    batches: list[Ids] = []
    first, used = 0, 0
    for place, count in enumerate(tokens[order].tolist()):
        full = batch_size is not None and place - first >= batch_size
        if place > first and (full or used + count > batch_tokens):
            batches.append(order[first:place])
            first, used = place, 0
        used += count
    if first < len(order):
        batches.append(order[first:])
    return batches


def plan_once(tokens: Ids, *, batch_tokens: int) -> list[Ids]:
    """Batches for evaluation: longest first, so that the largest need of memory comes at once."""
    if len(tokens) == 1:
        return [np.zeros(1, np.int64)]
    order = np.argsort(-tokens, kind="stable")
    return cut(order, tokens, batch_tokens=batch_tokens, batch_size=None)
