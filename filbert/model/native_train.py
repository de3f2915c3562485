"""Training in C++ on processors with AMX: forward and backward of a whole stack of BERT layers.

`BertEncoder.forward` asks `stack_of` whether `filbert/native/train.hpp` serves: packed batches in
training, on the CPU, in bfloat16. Everything else takes its own loop over layers, the slow twin;
tests/numerics/test_native_train.py holds the two to each other. `FILBERT_NATIVE_TRAIN=0` in the
environment leaves the native path out, to compare.

An encoder is here whatever has the parts of a `BertEncoder`, which imports this file.

The stack is one `torch.autograd.Function` of the hidden states and all weights. What its backward
needs is kept by the library, in memory that is used again from step to step.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from filbert.errors import FilbertError
from filbert.model.activation import ACTIVATION
from filbert.model.native_library import ACTIVATIONS, Pointer, failure, library

PIECE = 256  # tokens that go through all layers together
LONGEST = 512  # tokens of a text
SWITCH = "FILBERT_NATIVE_TRAIN"
OWN = "filbert.model.bert"  # the module of the layers' classes, which imports this one
_NO_MEMORY = "not enough memory for a batch; give a smaller --batch-tokens"


class NativeStack:
    """The library's side of an encoder: its shape, threads and memory, no weights."""

    def __init__(self, encoder: Any) -> None:
        lib = library()
        assert not isinstance(lib, str)  # says why_not
        self.shape = shape_of(encoder)
        layers, *sizes, eps, activation = self.shape
        handle = lib.filbert_train_new((ctypes.c_int * 6)(layers, *sizes, activation), eps)
        if not handle:
            raise FilbertError("no memory to train with")
        self.handle, self.lib, self.layers = handle, lib, layers
        self.dropped = (0, 0)  # of 65,536 attention weights, and of what is added to the states
        # at the end of the process threads may still compute; its memory goes by itself
        weakref.finalize(self, _free, lib, handle, os.getpid()).atexit = False

    def forward(
        self,
        hidden: Tensor,
        weights: list[Tensor],
        lengths: Tensor,
        wanted: Tensor | None,
        seed: int,
        *,
        threads: int | None = None,
    ) -> tuple[Tensor, _Kept]:
        """Hidden states after the last layer, of all tokens or those `wanted`, and what `backward`
        needs. lengths, wanted: int32."""
        out = hidden.new_empty(len(hidden) if wanted is None else len(wanted), hidden.shape[1])
        places = None
        if wanted is not None:  # an empty tensor's address is null, which stands for all tokens
            places = (wanted if len(wanted) else lengths).data_ptr()
        threads = threads or torch.get_num_threads()
        number = self.lib.filbert_train_forward(
            self.handle, _pointers(weights), hidden.data_ptr(), lengths.data_ptr(), len(lengths),
            places, 0 if wanted is None else len(wanted), seed, (ctypes.c_int * 2)(*self.dropped),
            out.data_ptr(), threads, PIECE,
        )  # fmt: skip
        if number < 0:
            raise failure(-number, memory=_NO_MEMORY, threads=threads)
        return out, _Kept(self, number)

    def backward(
        self,
        kept: _Kept,
        weights: list[Tensor],
        given: Tensor,
        needed: list[bool],
        *,
        threads: int | None = None,
    ) -> list[Tensor | None]:
        """Gradients of the hidden states and of each weight, None where not `needed`. given: the
        gradient of what `forward` returned; its rows and those of `hidden` are bfloat16."""
        kept.check()
        wanted = [w for w, need in zip(weights, needed[1:], strict=True) if need]
        grads: list[Tensor | None] = [
            torch.empty_like(w, memory_format=torch.contiguous_format) if need else None
            for w, need in zip(weights, needed[1:], strict=True)
        ]
        lowest = 0
        if not needed[0] and wanted:
            lowest = needed[1:].index(True) // (len(weights) // self.layers)
        by_hidden = given.new_empty(kept.shape) if needed[0] else None
        threads = threads or torch.get_num_threads()
        code = self.lib.filbert_train_backward(
            self.handle, kept.number, _pointers(weights), given.data_ptr(),
            None if by_hidden is None else by_hidden.data_ptr(), _pointers(grads), lowest, threads,
        )  # fmt: skip
        if code:
            raise failure(code, memory=_NO_MEMORY, threads=threads)
        return [by_hidden, *grads]


class _Kept:
    """What a forward pass left in the library; let go by `release`, or when nobody holds it."""

    def __init__(self, stack: NativeStack, number: int) -> None:
        self.stack, self.number = stack, number
        self.shape = torch.Size()
        self.release = weakref.finalize(self, _release, stack, stack.lib, stack.handle, number)
        self.release.atexit = False

    def check(self) -> None:
        """Raise `FilbertError` where it was let go."""
        if not self.release.alive:
            raise FilbertError(
                "the gradient was asked for twice: the native layers let go of what they kept "
                f"after the first time. Compute the loss again, or set {SWITCH}=0"
            )


def _free(lib: ctypes.CDLL, handle: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has no helpers whose end could be waited for
        lib.filbert_train_free(handle)


def _release(stack: NativeStack, lib: ctypes.CDLL, handle: int, number: int) -> None:
    lib.filbert_train_release(handle, number)  # the stack, an argument, still holds the handle


class _Stack(torch.autograd.Function):
    """All layers at once."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: NativeStack,
        lengths: Tensor,
        wanted: Tensor | None,
        seed: int,
        hidden: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """hidden: (tokens, hidden) bfloat16. Returns (tokens or wanted, hidden)."""
        out, ctx.kept = stack.forward(hidden, list(weights), lengths, wanted, seed)
        ctx.kept.shape = hidden.shape
        ctx.stack = stack
        ctx.save_for_backward(*weights)  # so that torch tells if one was changed before `backward`
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the hidden states and of all weights."""
        weights = list(ctx.saved_tensors)
        needed = list(ctx.needs_input_grad[4:])
        grads = ctx.stack.backward(ctx.kept, weights, given[0].contiguous(), needed)
        ctx.kept.release()
        return (None, None, None, None, *grads)


def run_stack(
    stack: NativeStack,
    encoder: Any,
    hidden: Tensor,
    lengths: Tensor,
    wanted: Tensor | None,
) -> Tensor:
    """The hidden states after the last layer. lengths: (sequences,) int64; wanted: (n,) int64
    places of tokens, or None for all. One draw from torch's generator seeds the dropout."""
    if wanted is not None and len(wanted):
        lowest, highest = wanted.aminmax()
        if int(lowest) < 0 or int(highest) >= len(hidden):
            raise IndexError(f"a place is not one of {len(hidden)} tokens")
    seed = 0
    if any(stack.dropped):
        seed = int(torch.randint(2**62, (), dtype=torch.int64))
    out: Tensor = _Stack.apply(
        stack,
        lengths.to(torch.int32).contiguous(),
        None if wanted is None else wanted.to(torch.int32).contiguous(),
        seed,
        hidden.contiguous(),
        *weights_of(encoder),
    )
    return out


_stacks: weakref.WeakKeyDictionary[nn.Module, NativeStack] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _after_fork() -> None:
    global _making
    _making = threading.Lock()  # the thread that held it did not come along


os.register_at_fork(after_in_child=_after_fork)


def stack_of(encoder: Any, hidden: Tensor, lengths: Tensor) -> NativeStack | None:
    """The native stack of an encoder that is being trained, if it serves for this batch."""
    if (
        not torch.is_grad_enabled() or hidden.device.type != "cpu" or hidden.dim() != 2
        or hidden.dtype != torch.bfloat16 or int(lengths.max()) > LONGEST
        or why_not(encoder) is not None
    ):  # fmt: skip
        return None
    with _making:
        stack = _stacks.get(encoder)
        if stack is None or stack.shape != shape_of(encoder):
            stack = _stacks[encoder] = NativeStack(encoder)
        layer = encoder.layer[0]
        stack.dropped = dropped(layer.attention.self.dropout_prob, layer.output.dropout_prob)
    return stack


def why_not(encoder: Any) -> str | None:
    """Why an encoder, as it stands, is not trained natively; None if it is."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    lib = library()
    if isinstance(lib, str):
        return lib
    if encoder.gradient_checkpointing:
        return "gradient checkpointing recomputes layer by layer"
    for module in encoder.layer.modules():
        if module.training != encoder.training:
            return "some of its layers are in training and some are not"
        if module._compiled_call_impl is not None:
            return "its parts are compiled (--compile)"
    if (reason := unlike(encoder)) is not None:
        return reason
    for weight in weights_of(encoder):
        if type(weight) is not nn.Parameter or weight.device.type != "cpu":
            return "its weights are divided among processes, or not on the CPU"
        if weight.dtype != torch.bfloat16:
            return f"it computes in bfloat16, not {str(weight.dtype).removeprefix('torch.')}"
        if not weight.is_contiguous():
            return "a weight is not contiguous"
    outputs = [part for layer in encoder.layer for part in (layer.attention.output, layer.output)]
    if (
        len({layer.attention.self.dropout_prob for layer in encoder.layer}) > 1
        or len({part.dropout_prob for part in outputs}) > 1
    ):
        return "its layers differ in dropout"
    _, hidden, _, head, inner, _, _ = shape_of(encoder)
    if hidden % 32 or head % 32 or inner % 32:
        return f"hidden, head and inner size are {hidden}, {head}, {inner}: not multiples of 32"
    return None


def unlike(encoder: Any) -> str | None:
    """Why the layers of an encoder do not compute, in training or for answers, what their weights
    and the configuration say; None if they do, and the library can stand in for them."""
    config = encoder.config
    if config.hidden_act not in ACTIVATIONS:
        return f"it has no activation {config.hidden_act!r}"
    for layer in encoder.layer:
        for module in layer.modules():
            if (reason := touched(module)) is not None:
                return reason
        own, inner = layer.attention.self, layer.intermediate
        if not same_function(inner.activation, ACTIVATION[config.hidden_act]):
            return f"the activation of a layer is not {config.hidden_act!r}"
        shapes = [None if weight is None else tuple(weight.shape) for weight in _weights(layer)]
        if (
            shapes != _shapes(config.hidden_size, config.intermediate_size)
            or (own.num_heads, own.head_size) != (config.num_attention_heads, config.head_size)
            or layer.attention.output.LayerNorm.eps != config.layer_norm_eps
            or layer.output.LayerNorm.eps != config.layer_norm_eps
        ):
            return "its layers differ in size or epsilon from the configuration"
    return None


def touched(module: nn.Module) -> str | None:
    """Why a part may compute something else than the class of its kind would; None if it is one."""
    if (
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    ):  # fmt: skip
        return "there are hooks inside the layers"
    known = type(module) in (nn.Linear, nn.LayerNorm, nn.Embedding)
    if "forward" in vars(module) or not (known or type(module).__module__ == OWN):
        return f"{type(module).__name__} stands in the place of one of its parts"
    return None


def same_function(one: Any, other: Any) -> bool:
    """A copied model has copies of those that are `functools.partial`."""
    first, second = (
        (f.func, f.args, f.keywords) if isinstance(f, functools.partial) else f
        for f in (one, other)
    )
    return bool(first == second)


def _shapes(hidden: int, inner: int) -> list[tuple[int, ...]]:
    """Of a layer's weights, in the order of the library."""
    square, row = (hidden, hidden), (hidden,)
    return [*[square, row] * 4, (inner, hidden), (inner,), (hidden, inner), *[row] * 5]


def shape_of(encoder: Any) -> tuple[int, int, int, int, int, float, int]:
    """Layers, hidden size, heads, head size, inner size, epsilon of the norms, activation."""
    layer, own = encoder.layer[0], encoder.layer[0].attention.self
    inner, hidden = layer.intermediate.dense.weight.shape
    return (
        len(encoder.layer), hidden, own.num_heads, own.head_size, inner,
        layer.output.LayerNorm.eps, ACTIVATIONS[encoder.config.hidden_act],
    )  # fmt: skip


def weights_of(encoder: Any) -> list[Tensor]:
    """All weights of the layers, in the order of the library."""
    return [weight for layer in encoder.layer for weight in _weights(layer)]


def _parts(layer: Any) -> tuple[Any, ...]:
    own, out, last = layer.attention.self, layer.attention.output, layer.output
    return (
        own.query, own.key, own.value, out.dense, layer.intermediate.dense, last.dense,
        out.LayerNorm, last.LayerNorm,
    )  # fmt: skip


def _weights(layer: Any) -> Iterator[Tensor]:
    for module in _parts(layer):
        yield module.weight
        yield module.bias


def dropped(weights: float, updates: float) -> tuple[int, int]:
    """How many of 65,536 random values mean that an element is dropped, as in `dropout`."""
    return (min(round(weights * 65536), 65535), min(round(updates * 65536), 65535))


def kept_elements(
    seed: int, *, layer: int, site: int, head: int, token: int, dropped: int, count: int
) -> Tensor:
    """(count,) bool: the mask of a row of elements, to check the library's by. site: 0 attention
    weights (of the query `token`), 1 what attention adds, 2 what the feed-forward part adds."""
    lib = library()
    assert not isinstance(lib, str)
    out = torch.empty(count, dtype=torch.uint8)
    lib.filbert_train_mask(seed, layer, site, head, token, dropped, count, out.data_ptr())
    return out.bool()


def _pointers(tensors: list[Tensor] | list[Tensor | None]) -> Any:
    return (Pointer * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
