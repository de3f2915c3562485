"""Attention within a window: a token sees those at most `reach` places away, in its own text.

ModernBERT's local layers (arXiv 2412.13663, section 2.1.2), as in Longformer (arXiv 2004.05150).
The fast path cuts the queries of a text into blocks; a block looks at its own tokens and `reach`
more on either side, under a mask in the form of a band. So time and memory grow with the length of
a text and not with its square. In half precision on a GPU a packed batch is one call of flash
attention, which knows windows. The slow twin is `filbert.model.attention` on a padded batch with
one mask for the whole square: `local_layout` gives it for the `eager` path.

tests/numerics/test_modern_parity.py holds the two to each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from filbert.model.attention import PackedLayout, PaddedLayout, attention, in_one_call

BLOCK = 128  # queries of a block


@dataclass(frozen=True)
class Block:
    """Queries `first:last` of each sequence look at keys `low:high`, where `mask` is True."""

    first: int
    last: int
    low: int
    high: int
    mask: Tensor | None  # (1 or batch, 1, last - first, high - low)


@dataclass(frozen=True)
class LocalLayout:
    """A layout whose tokens see those at most `reach` places away."""

    whole: PackedLayout | PaddedLayout
    reach: int
    shape: torch.Size  # of the ids
    device: torch.device

    @cached_property
    def runs(self) -> tuple[tuple[int, int, tuple[Block, ...]], ...]:
        """(sequences, their length, blocks) of each run of equal lengths; a padded batch is one."""
        if isinstance(self.whole, PaddedLayout):
            batch, length = self.shape
            return ((batch, length, _blocks(length, self.reach, self.whole.mask, self.device)),)
        lengths = {length for _, length in self.whole.runs}
        cut = {length: _blocks(length, self.reach, None, self.device) for length in lengths}
        return tuple((count, length, cut[length]) for count, length in self.whole.runs)


def local_layout(
    layout: PackedLayout | PaddedLayout, *, reach: int, shape: torch.Size, device: torch.device
) -> PackedLayout | PaddedLayout | LocalLayout:
    """`layout` with everything more than `reach` places away hidden.

    shape: that of the ids, (batch, length) or (tokens,). Where no text is longer than the reach,
    nothing is hidden and `layout` itself comes back.
    """
    if isinstance(layout, PackedLayout):
        if all(length <= reach + 1 for _, length in layout.runs):
            return layout
        return LocalLayout(layout, reach, shape, device)
    length = shape[1]
    if length <= reach + 1:
        return layout
    if layout.path == "eager":
        return PaddedLayout(_visible(0, length, 0, length, reach, layout.mask, device), "eager")
    return LocalLayout(layout, reach, shape, device)


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: LocalLayout, *, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention in the blocks of `layout`; the context, shaped as the query.

    query, key, value: (batch, length, heads, head_size), or (tokens, heads, head_size) packed.
    """
    if isinstance(layout.whole, PaddedLayout):
        return _in_blocks(query, key, value, layout.runs[0][2], dropout)
    if not dropout:
        context = in_one_call(query, key, value, layout.whole, reach=layout.reach)
        if context is not None:
            return context
    tokens = [count * length for count, length, _ in layout.runs]
    parts = []
    for (count, _, blocks), *qkv in zip(
        layout.runs, query.split(tokens), key.split(tokens), value.split(tokens), strict=True
    ):
        q, k, v = (x.unflatten(0, (count, -1)) for x in qkv)  # (sequences, length, heads, head)
        parts.append(_in_blocks(q, k, v, blocks, dropout).flatten(0, 1))
    return torch.cat(parts)


def _in_blocks(
    query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], dropout: float
) -> Tensor:
    parts = [
        attention(
            query[:, b.first : b.last],
            key[:, b.low : b.high],
            value[:, b.low : b.high],
            PaddedLayout(b.mask, "sdpa"),
            dropout=dropout,
        )[0]
        for b in blocks
    ]
    return torch.cat(parts, dim=1)  # (sequences, length, heads, head)


def _blocks(
    length: int, reach: int, mask: Tensor | None, device: torch.device
) -> tuple[Block, ...]:
    blocks = []
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        low, high = max(0, first - reach), min(length, last + reach)
        seen = _visible(first, last, low, high, reach, mask, device)
        blocks.append(Block(first, last, low, high, seen))
    return tuple(blocks)


def _visible(
    first: int,
    last: int,
    low: int,
    high: int,
    reach: int,
    mask: Tensor | None,
    device: torch.device,
) -> Tensor:
    """(1 or batch, 1, last - first, high - low) True where a query may look at a key.

    A padding token far from all real ones would see nothing, and a softmax over nothing is no
    number; it sees itself instead. No real token looks at it.
    """
    query = torch.arange(first, last, device=device)[:, None]
    key = torch.arange(low, high, device=device)
    band = (query - key).abs() <= reach  # (queries, keys)
    if mask is None:
        return band[None, None]
    hidden = mask[..., low:high] if mask.shape[-2] == 1 else mask[..., first:last, low:high]
    seen = band & hidden
    return seen | ((query == key) & ~seen.any(-1, keepdim=True))
