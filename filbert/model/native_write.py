"""Steps of a decoder that writes, in C++ on processors with AMX: `filbert/native/write.hpp`.

`filbert.model.cache` asks `serve` for a writer. In bfloat16 it computes a whole step, word head
included, from a copy of the weights that is made for each batch of texts (a few milliseconds), so
that weights may change between batches as they like. In float32 the products stay PyTorch's, and it
computes what lies between: the attentions, the sums over the vocabulary. The best words of a step
it finds in either.
Everything else, and everything with `FILBERT_NATIVE_WRITE=0`, takes `Cache.step`, the slow twin;
tests/numerics/test_native_write.py holds the two to each other.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, cast

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.activation import ACTIVATION
from filbert.model.bert import AddAndNorm, BertIntermediate, BertSelfAttention
from filbert.model.decoder import BertDecoder, DecoderAttention, DecoderLayer, WordHead
from filbert.model.native_library import ACTIVATIONS, Pointer, failure, library
from filbert.model.native_train import same_function

SWITCH = "FILBERT_NATIVE_WRITE"
_NO_MEMORY = "not enough memory to write these texts; give fewer sources at once, or fewer beams"
_PARTS = (
    nn.Linear, nn.LayerNorm, nn.ModuleDict, DecoderLayer, DecoderAttention, BertSelfAttention,
    AddAndNorm, BertIntermediate, WordHead,
)  # fmt: skip


def serve(decoder: BertDecoder, states: Tensor, lengths: Tensor) -> NativeWriter | None:
    """A writer for sources with these `states`, (source tokens, hidden), or None where the twin has
    to do it."""
    if (
        os.environ.get(SWITCH) == "0" or isinstance(library(), str) or decoder.training
        or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        or states.device.type != "cpu" or int(lengths.min()) < 1
        or why_not(decoder, states.dtype) is not None
    ):  # fmt: skip
        return None
    return NativeWriter(decoder)


def why_not(decoder: BertDecoder, dtype: torch.dtype) -> str | None:
    """Why the library does not compute what this decoder does in `dtype`; None if it does."""
    config: Any = decoder.config
    head = decoder.cls.predictions
    if dtype not in (torch.bfloat16, torch.float32):
        return f"it computes in bfloat16 or float32, not {dtype}"
    sizes = (config.hidden_size, config.head_size, config.intermediate_size)
    if any(size % 32 for size in sizes) or config.factorised:
        return f"sizes {sizes} are not multiples of 32, or the embeddings are factorised"
    if config.hidden_act not in ACTIVATIONS:
        return f"it has no activation {config.hidden_act!r}"
    layers: list[Any] = list(decoder.bert.encoder.layer)
    for module in (part for one in (*layers, head) for part in one.modules()):
        if (
            type(module) not in _PARTS or "forward" in vars(module)
            or module._forward_hooks or module._forward_pre_hooks
            or module._compiled_call_impl is not None
        ):  # fmt: skip
            return f"{type(module).__name__} was changed, or stands in the place of another part"
        if isinstance(module, nn.LayerNorm) and module.eps != config.layer_norm_eps:
            return "a norm's epsilon is not that of the configuration"
    heads = (config.num_attention_heads, config.head_size)
    attends = [part.self for one in layers for part in (one.attention, one.crossattention)]
    if any((part.num_heads, part.head_size) != heads for part in attends):
        return "its layers differ in heads from the configuration"
    activations = [head.activation, *(layer.intermediate.activation for layer in layers)]
    if not all(same_function(one, ACTIVATION[config.hidden_act]) for one in activations):
        return f"an activation is not {config.hidden_act!r}"
    hidden, inner = config.hidden_size, config.intermediate_size
    square, row = (hidden, hidden), (hidden,)
    words = len(head.decoder.weight)
    shapes = [[*[square, row] * 6, (inner, hidden), (inner,), (hidden, inner), *[row] * 7]]
    weights = [_layer_weights(layer) for layer in layers] + [_head_weights(head)]
    expected = shapes * len(layers) + [[square, row, row, row, (words, hidden), (words,)]]
    for given, wanted in zip(weights, expected, strict=True):
        if [None if weight is None else tuple(weight.shape) for weight in given] != wanted:
            return "its layers differ in size from the configuration"
        for weight in given:
            if type(weight) is not nn.Parameter or weight.device.type != "cpu":
                return "its weights are divided among processes, or not on the CPU"
            if weight.dtype != dtype or not weight.is_contiguous():
                return f"a weight is not contiguous {dtype}"
    return None


class NativeWriter:
    """The library's side of a batch of texts: memory, threads, and in bfloat16 the packed weights.
    For one thread at a time."""

    def __init__(self, decoder: BertDecoder) -> None:
        lib, config = library(), cast(Any, decoder.config)
        assert not isinstance(lib, str)  # says serve
        layers, head = list(decoder.bert.encoder.layer), decoder.cls.predictions
        shape = (
            len(layers), config.hidden_size, config.num_attention_heads, config.head_size,
            config.intermediate_size, ACTIVATIONS[config.hidden_act],
        )  # fmt: skip
        handle = lib.filbert_writer_new((ctypes.c_int * 6)(*shape), config.layer_norm_eps)
        if not handle:
            raise FilbertError(_NO_MEMORY)
        self._lib, self._handle, self.hidden = lib, handle, config.hidden_size
        weakref.finalize(self, _free, lib, handle, os.getpid()).atexit = False
        self.words = len(head.decoder.weight)
        self.whole = head.bias.dtype == torch.bfloat16  # serves whole steps
        if not self.whole:
            return
        self._logits = torch.empty(0)
        for number, layer in enumerate(layers):
            self._check(lib.filbert_writer_layer(handle, number, _pointers(_layer_weights(layer))))
        weights = _pointers(_head_weights(head))
        self._check(lib.filbert_writer_words(handle, self.words, weights))

    def step(
        self,
        hidden: Tensor,
        own: list[Tensor],
        source: list[tuple[Tensor, Tensor]],
        path: Tensor,
        lengths: Tensor,
        *,
        step: int,
        threads: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of the next words, (texts, words) float32, valid until the next step, and of each
        text the logarithm of the sum of their exponentials, (texts,).

        hidden: (texts, hidden) embeddings of the tokens that come in; own: of each layer keys and
        values, (2, rows, heads, slots, head_size), which get those of this step; source: of each
        layer, (rows, heads, longest, head_size); path: (rows, beams, room) int64, the entry of each
        step that a text descends from; lengths: (rows,) int64; step: how many tokens a text has."""
        texts, (_, beams, room) = len(hidden), path.shape
        _, rows, _, slots, _ = own[0].shape
        if len(self._logits) < texts:
            self._logits = torch.empty(texts, self.words)
        logits, totals = self._logits[:texts], torch.empty(texts)
        hidden = hidden.contiguous()
        layers = [part for mine, (key, value) in zip(own, source, strict=True)
                  for part in (mine, key, value)]  # fmt: skip
        sizes = (texts, beams, step, slots, room, rows, source[0][0].shape[2])
        code = self._lib.filbert_writer_step(
            self._handle, (ctypes.c_int * 7)(*sizes),
            _pointers([hidden, path, lengths, logits, totals, *layers]), *self._threads(threads),
        )  # fmt: skip
        self._check(code, *self._threads(threads))
        return logits, totals

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        beams: int,
        path: Tensor | None = None,
        entries: int = 0,
        lengths: Tensor | None = None,
        threads: int | None = None,
    ) -> Tensor:
        """Attention of (texts, hidden) float32 queries, `beams` of them a row, at keys and values
        (rows, heads, slots, head_size): the first `entries` that `path`, (rows, beams, room) int64,
        names, or the first `lengths`, (rows,) int64, of a row. Returns (texts, hidden)."""
        assert query.stride(1) == 1
        out = torch.empty(len(query), self.hidden)
        slots = keys.shape[2]
        room, entries = (0, slots) if path is None else (path.shape[2], entries)
        sizes = (len(query), beams, query.stride(0), slots, room, entries)
        code = self._lib.filbert_writer_attend(
            self._handle, (ctypes.c_int * 6)(*sizes), query.data_ptr(), keys.data_ptr(),
            values.data_ptr(), *(None if t is None else t.data_ptr() for t in (path, lengths)),
            out.data_ptr(), *self._threads(threads),
        )  # fmt: skip
        self._check(code, *self._threads(threads))
        return out

    def totals(self, logits: Tensor, *, threads: int | None = None) -> Tensor:
        """The logarithm of the sum of the exponentials of each text's logits, (texts, words)
        float32; (texts,)."""
        assert logits.is_contiguous()
        out = torch.empty(len(logits))
        code = self._lib.filbert_writer_totals(
            self._handle, logits.data_ptr(), *logits.shape, out.data_ptr(), *self._threads(threads)
        )
        self._check(code, *self._threads(threads))
        return out

    def best(
        self, logits: Tensor, offsets: Tensor, *, count: int, threads: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `best_words` of `filbert.model.generate`, in one pass; `count` is at most words."""
        rows, beams, words = logits.shape
        assert logits.is_contiguous() and count <= words
        offsets, scores = offsets.contiguous(), torch.empty(rows, count)
        beam, word = (torch.empty(rows, count, dtype=torch.int64) for _ in range(2))
        code = self._lib.filbert_writer_best(
            self._handle, (ctypes.c_int * 4)(rows, beams, words, count),
            *(part.data_ptr() for part in (logits, offsets, scores, beam, word)),
            *self._threads(threads),
        )  # fmt: skip
        self._check(code, *self._threads(threads))
        return scores, beam, word

    @staticmethod
    def _threads(threads: int | None) -> tuple[int]:
        return (threads or torch.get_num_threads(),)

    @staticmethod
    def _check(code: int, threads: int = 1) -> None:
        if code:
            raise failure(code, memory=_NO_MEMORY, threads=threads)


def _layer_weights(layer: Any) -> list[Tensor]:
    """A layer's weights in the order of `filbert_writer_layer`."""
    own, across = layer.attention, layer.crossattention
    linears = (
        own.self.query, own.self.key, own.self.value, own.output.dense, across.self.query,
        across.output.dense, layer.intermediate.dense, layer.output.dense,
    )  # fmt: skip
    norms = (own.output.LayerNorm, across.output.LayerNorm, layer.output.LayerNorm)
    return [weight for part in (*linears, *norms) for weight in (part.weight, part.bias)]


def _head_weights(head: WordHead) -> list[Tensor]:
    """The word head's, in the order of `filbert_writer_words`."""
    dense, norm = (cast(Any, head.transform[name]) for name in ("dense", "LayerNorm"))
    return [dense.weight, dense.bias, norm.weight, norm.bias, head.decoder.weight, head.bias]


def _pointers(tensors: list[Tensor]) -> Any:
    return (Pointer * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _free(lib: ctypes.CDLL, handle: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has no helpers whose end could be waited for
        lib.filbert_writer_free(handle)
