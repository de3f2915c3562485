"""Attention, equation 1 of Vaswani et al. 2017, by three paths that give the same numbers.

    softmax(Q K^T / sqrt(d_k)) V

- `eager`: written out, the reference; the only path that also returns the attention weights.
- `sdpa`: PyTorch's fused kernel on padded batches.
- `packed`: tokens of all sequences lie end to end; no padding token exists in any linear layer.
  Attention runs over groups of sequences of nearly equal length, so that a text never sees
  another and long texts do not pad short ones.

tests/unit/model/test_attention.py holds the three to each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from filbert.model.dropout import dropout as drop

PATHS = ("packed", "sdpa", "eager")
MAX_PADDING = 0.25  # a group of packed sequences may hold this share of padding, in attention only


@dataclass(frozen=True)
class PaddedLayout:
    """Tokens stand in a (batch, length) grid. `mask` is True where a query may look at a key:
    (batch, 1, 1, length) or (batch, 1, length, length); None if nothing is hidden."""

    mask: Tensor | None
    path: str  # "sdpa" or "eager"


@dataclass(frozen=True)
class Group:
    """Sequences that one attention call takes together, padded to `length`."""

    rows: Tensor | None  # (sequences * length,) token of each cell; None: cells are the tokens
    members: Tensor | None  # (sequences,) their numbers in the batch; None: all, in order
    sequences: int
    length: int
    mask: Tensor | None  # (sequences, 1, 1, length), None where no sequence is shorter


@dataclass(frozen=True)
class PackedLayout:
    """Tokens of all sequences end to end. `back` finds each token among the cells of the groups,
    `back_sequences` each sequence among their members; None where the order is the same."""

    first: Tensor  # (sequences,) place of each sequence's first token
    groups: tuple[Group, ...]
    back: Tensor | None = None  # (tokens,)
    back_sequences: Tensor | None = None  # (sequences,)


def pack_layout(lengths: Tensor) -> PackedLayout:
    """Group packed sequences by length. lengths: (sequences,) int64, on the CPU or a GPU."""
    counts = lengths.tolist()
    device = lengths.device
    starts = torch.cumsum(lengths, 0) - lengths  # (sequences,)
    if len(set(counts)) == 1:
        return PackedLayout(starts, (Group(None, None, len(counts), counts[0], None),))
    order = sorted(range(len(counts)), key=lambda i: -counts[i])
    groups: list[list[int]] = []
    used = 0
    for i in order:  # longest first: a group takes shorter ones while its padding stays small
        if groups:
            first = counts[groups[-1][0]]
            cells = first * (len(groups[-1]) + 1)
            if cells - used - counts[i] <= MAX_PADDING * cells:
                groups[-1].append(i)
                used += counts[i]
                continue
        groups.append([i])
        used = counts[i]
    built: list[Group] = []
    back = torch.empty(sum(counts), dtype=torch.int64, device=device)
    offset = 0
    for members in groups:
        index = torch.tensor(members, device=device)
        longest = counts[members[0]]
        place = torch.arange(longest, device=device)
        real = place[None, :] < lengths[index][:, None]  # (sequences, longest)
        rows = starts[index][:, None] + place[None, :]
        cells = offset + torch.arange(rows.numel(), device=device).view_as(rows)
        back[rows[real]] = cells[real]
        # a padding cell reads its sequence's first token; the mask hides it
        rows = torch.where(real, rows, starts[index][:, None])
        mask = None if bool(real.all()) else real[:, None, None, :]
        built.append(Group(rows.reshape(-1), index, len(members), longest, mask))
        offset += rows.numel()
    return PackedLayout(starts, tuple(built), back, torch.tensor(order, device=device).argsort())


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PaddedLayout | PackedLayout,
    *,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention.

    query, key, value: (batch, length, heads, head_size) with a `PaddedLayout`,
    (tokens, heads, head_size) with a `PackedLayout`, where the query may also be that of each
    sequence's first token alone, (sequences, heads, head_size). `dropout` falls on the attention
    weights, as in the reference. Returns the context, shaped as the query, and on the eager path
    the weights after the softmax, before dropout, (batch, heads, length, length).
    """
    if isinstance(layout, PackedLayout):
        return _packed(query, key, value, layout, dropout), None
    query, key, value = (
        x.transpose(1, 2) for x in (query, key, value)
    )  # (batch, heads, length, head)
    if layout.path == "eager":
        context, weights = _eager(query, key, value, layout.mask, dropout)
        return context.transpose(1, 2), weights
    return _fused(query, key, value, layout.mask, dropout).transpose(1, 2), None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """PyTorch's kernel. With dropout it has none for a CPU and would write the weights out as well,
    so the written-out path serves there."""
    if dropout and query.device.type == "cpu":
        return _eager(query, key, value, mask, dropout)[0]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _eager(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    scores = (
        query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    )  # (batch, heads, length, length)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1)  # computed in float32 inside, whatever the type
    return drop(weights, dropout) @ value, weights


def _packed(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, dropout: float
) -> Tensor:
    heads, size = query.shape[1:]
    first_only = len(query) != len(key)
    parts = []
    for group in layout.groups:
        places = group.members if first_only else group.rows
        q = query if places is None else query.index_select(0, places)
        k, v = (x if group.rows is None else x.index_select(0, group.rows) for x in (key, value))
        q, k, v = (
            x.reshape(group.sequences, -1, heads, size).transpose(1, 2) for x in (q, k, v)
        )  # (sequences, heads, length, head); the query's length may be 1
        context = _fused(q, k, v, group.mask, dropout)
        parts.append(context.transpose(1, 2).reshape(-1, heads, size))  # (cells, heads, head)
    cells = parts[0] if len(parts) == 1 else torch.cat(parts)
    back = layout.back_sequences if first_only else layout.back
    return cells if back is None else cells.index_select(0, back)  # (tokens, heads, head)
