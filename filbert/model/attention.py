"""Attention, equation 1 of Vaswani et al. 2017, by three paths that give the same numbers.

    softmax(Q K^T / sqrt(d_k)) V

- `eager`: written out, the reference; the only path that also returns the attention weights.
- `sdpa`: PyTorch's fused kernel on padded batches.
- `packed`: tokens of all sequences lie end to end; no padding token exists anywhere. Sequences of
  equal length that stand side by side share a call of the kernel; a text never sees another.

In half precision on a GPU, packed sequences of any lengths are one call (flash attention of
variable length, Dao 2023, arXiv 2307.08691, as PyTorch has it); `why_no_varlen` says where not.
Training on a CPU without dropout, short packed sequences take batched matrix products
(`ProductAttention`) in the kernel's place.

tests/unit/model/test_attention.py holds the three to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filbert.model.dropout import dropout as drop

PATHS = ("packed", "sdpa", "eager")
LONGEST_PRODUCT = 256  # tokens up to which training on a CPU keeps the attention weights
WIDEST_HEAD = 256  # numbers of a head that flash attention takes at most
WIDEST_HEAD_TRAINED = 192  # whose gradients it has on every GPU that it serves


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
    bounds: Tensor | None = None  # (sequences + 1,) int32, on a GPU: where sequences begin and end
    longest: int = 0  # at most so many tokens has a sequence; with `bounds`


def pack_layout(lengths: Tensor, counts: list[int] | None = None) -> PackedLayout:
    """Find the runs of equal lengths. lengths: (sequences,) int64, on the CPU or a GPU; counts: the
    same numbers, where they are known already (a GPU has to be waited for).

    Every run is one call of the kernel: a batch that is sorted by length, as `plan_epoch` and
    `plan_once` make them, has few.
    """
    if counts is None:
        counts = lengths.tolist()
    runs = tuple((len(list(run)), length) for length, run in groupby(counts))
    ends = torch.cumsum(lengths, 0)
    if lengths.device.type != "cuda":
        return PackedLayout(lengths, ends - lengths, runs)
    bounds = F.pad(ends, (1, 0)).to(torch.int32)
    return PackedLayout(lengths, ends - lengths, runs, bounds, max(counts, default=0))


@cache
def varlen_kernel() -> Callable[..., Any] | str:
    """Flash attention of variable length, with `window_size`; or why this PyTorch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"PyTorch {torch.__version__} has no attention of variable length"
    if "window_size" not in varlen_attn.__annotations__:
        return f"PyTorch {torch.__version__} has no windows in attention of variable length"
    return varlen_attn


@cache
def why_no_varlen(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why packed sequences are not one call on this device; None if they are."""
    if device.type != "cuda":
        return f"{device.type} has no flash attention of variable length"
    if dtype not in (torch.bfloat16, torch.float16):
        return "flash attention computes in half precision"
    if head_size % 8 or head_size > WIDEST_HEAD:
        return (
            f"flash attention takes heads of a multiple of 8 up to {WIDEST_HEAD}, not {head_size}"
        )
    if torch.cuda.is_available():
        if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
            return "this PyTorch was built without flash attention for CUDA"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "flash attention needs a GPU of compute capability 8.0"
    kernel = varlen_kernel()
    return kernel if isinstance(kernel, str) else None


def in_one_call(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, reach: int | None = None
) -> Tensor | None:
    """Attention of all packed sequences by one kernel, (tokens or sequences, heads, head_size);
    None where that does not serve. reach: a token sees those at most so many places away."""
    if layout.bounds is None or why_no_varlen(query.device, query.dtype, query.shape[-1]):
        return None
    if torch.is_grad_enabled() and query.requires_grad and query.shape[-1] > WIDEST_HEAD_TRAINED:
        return None
    kernel = varlen_kernel()
    assert not isinstance(kernel, str)
    asking, most = layout.bounds, layout.longest
    if len(query) != len(key):  # the first tokens alone
        asking = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        most = 1
    window = (-1, -1) if reach is None else (reach, reach)
    out: Tensor = kernel(
        query, key, value, asking, layout.bounds, most, layout.longest, window_size=window
    )
    return out


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
    if not dropout and (context := in_one_call(query, key, value, layout)) is not None:
        return context
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
