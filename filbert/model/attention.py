"""Attention, equation 1 of Vaswani et al. 2017, by three paths that give the same numbers.

    softmax(Q K^T / sqrt(d_k)) V

- `eager`: written out, the reference; the only path that also returns the attention weights.
- `sdpa`: PyTorch's fused kernel on padded batches.
- `packed`: tokens of all sequences lie end to end; no padding token exists anywhere. Sequences of
  equal length that stand side by side share a call of the kernel; a text never sees another.

Training on a CPU without dropout, short packed sequences take batched matrix products
(`ProductAttention`) in the kernel's place.

tests/unit/model/test_attention.py holds the three to each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filbert.model.dropout import dropout as drop

PATHS = ("packed", "sdpa", "eager")
LONGEST_PRODUCT = 256  # tokens up to which training on a CPU keeps the attention weights


@dataclass(frozen=True)
class PaddedLayout:
    """Tokens stand in a (batch, length) grid. `mask` is True where a query may look at a key:
    (batch, 1, 1, length) or (batch, 1, length, length); None if nothing is hidden."""

    mask: Tensor | None
    path: str  # "sdpa" or "eager"


@dataclass(frozen=True)
class PackedLayout:
    """Tokens of all sequences end to end, as runs of sequences of equal length."""

    lengths: Tensor  # (sequences,) tokens of each
    first: Tensor  # (sequences,) place of each sequence's first token
    runs: tuple[tuple[int, int], ...]  # (number of sequences, their length) of each run, in order


def pack_layout(lengths: Tensor) -> PackedLayout:
    """Find the runs of equal lengths. lengths: (sequences,) int64, on the CPU or a GPU.

    Every run is one call of the kernel: a batch that is sorted by length, as `plan_epoch` and
    `plan_once` make them, has few.
    """
    runs = tuple((len(list(run)), length) for length, run in groupby(lengths.tolist()))
    return PackedLayout(lengths, torch.cumsum(lengths, 0) - lengths, runs)


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
    tokens = [sequences * length for sequences, length in layout.runs]
    first_only = len(query) != len(key)
    trains_on_cpu = query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad
    asking = [sequences for sequences, _ in layout.runs] if first_only else tokens
    parts = []
    for (sequences, _), *qkv in zip(
        layout.runs, query.split(asking), key.split(tokens), value.split(tokens), strict=True
    ):
        q, k, v = (x.unflatten(0, (sequences, -1)).transpose(1, 2) for x in qkv)
        # each (sequences, heads, length, head), no copy; the query's length may be 1
        if trains_on_cpu and not dropout and q.shape[2] == k.shape[2] <= LONGEST_PRODUCT:
            context = ProductAttention.apply(q, k, v)
        else:
            context = _fused(q, k, v, None, dropout)
        parts.append(context.transpose(1, 2).reshape(-1, heads, size))  # (tokens, heads, head)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class ProductAttention(torch.autograd.Function):
    """Attention by batched matrix products, for training on a CPU: with short sequences the weights
    are small, and keeping them is cheaper than the fused kernel, which computes them again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (sequences, heads, length, head). Keeps the softmax."""
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
        scores = torch.baddbmm(
            q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5
        )  # (sequences * heads, length, length)
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The derivative of softmax(Q K^T / sqrt(d)) V by its three parts."""
        q, k, v, weights = ctx.saved_tensors
        shape, out = grad[0].shape, grad[0].reshape(q.shape)
        by_value = torch.bmm(weights.transpose(1, 2), out)
        by_scores = torch._softmax_backward_data(
            torch.bmm(out, v.transpose(1, 2)), weights, -1, weights.dtype
        ).mul_(q.shape[-1] ** -0.5)
        by_query, by_key = torch.bmm(by_scores, k), torch.bmm(by_scores.transpose(1, 2), q)
        return by_query.view(shape), by_key.view(shape), by_value.view(shape)
