"""The loss of words over a large vocabulary in C++ on processors with AMX, forward and backward.

`word_loss` asks `serves` whether `filbert/native/train_words.hpp` does: bfloat16 on the CPU, with a
gradient wanted. Everything else takes `WordLoss`, the slow twin, as does all training with
`FILBERT_NATIVE_TRAIN=0`; tests/numerics/test_native_words.py holds the two to each other.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from filbert.errors import FilbertError
from filbert.model.native_library import failure, library
from filbert.model.native_train import SWITCH

_NO_MEMORY = "not enough memory for the words of a batch; give a smaller --batch-tokens"


def serves(hidden: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the loss of these rows, with its gradient, is computed natively."""
    return (
        torch.is_grad_enabled() and hidden.requires_grad
        and len(hidden) > 0 and hidden.shape[1] % 32 == 0
        and all(
            type(given) in (Tensor, nn.Parameter)
            and given.device.type == "cpu" and given.dtype == torch.bfloat16
            for given in (hidden, weight, bias)
        )
        and weight.is_contiguous() and bias.is_contiguous()
        and os.environ.get(SWITCH) != "0" and not isinstance(library(), str)
    )  # fmt: skip


def native_word_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `word_loss`, where `serves` says so."""
    lowest, highest = labels.aminmax()
    if int(lowest) < 0 or int(highest) >= len(weight):
        raise IndexError(f"a label is not one of {len(weight)} words")
    loss, right = _Words.apply(
        hidden.contiguous(), weight, bias, labels.to(torch.int64).contiguous(), smoothing
    )
    return loss, right


def words_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float, *, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss, how many are right, and for each row the logarithm of its sum."""
    kept = hidden.new_empty(len(hidden), dtype=torch.float32)
    loss, right = kept.new_empty(()), labels.new_empty(())
    lib, handle = _trainer()
    code = lib.filbert_words_forward(
        handle, _sizes(hidden, weight), smoothing, hidden.data_ptr(), weight.data_ptr(),
        bias.data_ptr(), labels.data_ptr(), kept.data_ptr(), loss.data_ptr(), right.data_ptr(),
        threads,
    )  # fmt: skip
    if code:
        raise failure(code, memory=_NO_MEMORY, threads=threads)
    return loss, right, kept


def words_backward(
    tensors: list[Tensor], smoothing: float, scale: float, needed: list[bool], *, threads: int
) -> list[Tensor | None]:
    """Gradients of hidden states, weight and bias, None where not `needed`. tensors: those and
    labels, and what `words_forward` kept. scale: the gradient of the loss."""
    hidden, weight = tensors[:2]
    grads = [
        torch.empty_like(given, memory_format=torch.contiguous_format) if need else None
        for given, need in zip(tensors[:3], needed, strict=True)
    ]
    lib, handle = _trainer()
    code = lib.filbert_words_backward(
        handle, _sizes(hidden, weight), smoothing, *(given.data_ptr() for given in tensors), scale,
        *(None if grad is None else grad.data_ptr() for grad in grads), threads,
    )  # fmt: skip
    if code:
        raise failure(code, memory=_NO_MEMORY, threads=threads)
    return grads


class _Words(torch.autograd.Function):
    """Loss and number right."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Keeps a number a row."""
        loss, right, kept = words_forward(
            hidden, weight, bias, labels, smoothing, threads=torch.get_num_threads()
        )
        ctx.save_for_backward(hidden, weight, bias, labels, kept)
        ctx.mark_non_differentiable(right)
        ctx.smoothing = smoothing
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the logits again."""
        grads = words_backward(
            list(ctx.saved_tensors), ctx.smoothing, float(given[0]),
            list(ctx.needs_input_grad[:3]), threads=torch.get_num_threads(),
        )  # fmt: skip
        return (*grads, None, None)


@functools.cache
def _trainer() -> tuple[ctypes.CDLL, int]:
    """The library and its side of this, memory and threads, kept as long as the process."""
    lib = library()
    assert not isinstance(lib, str)  # says serves
    handle = lib.filbert_words_new()
    if not handle:
        raise FilbertError("no memory to train with")
    return lib, handle


def _sizes(hidden: Tensor, weight: Tensor) -> Any:
    return (ctypes.c_int * 3)(len(hidden), len(weight), hidden.shape[1])
