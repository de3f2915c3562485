"""The encoder in C++ for processors with AMX or AVX-512-BF16, or in float32 with AVX-512:
`filbert/native`, called through ctypes.

`attach` puts it in the place of an encoder's computation where it serves: a packed batch on the
CPU, no gradient, no hidden states or attention maps asked for. Everything else, and every machine
without these or without the compiled library, takes `BertModel.forward`, the slow twin.
tests/numerics/test_native.py and test_native_float32.py hold the two to each other.

Weights are copied: laid out once, for the tiles rounded to bfloat16. If they
are changed afterwards, the copy is made again at the next call; what is written into `.data` of a
weight in place is not seen.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.bert import BertEmbeddings, BertLayer, BertModel
from filbert.model.config import BertConfig
from filbert.model.inputs import check_places
from filbert.model.native_library import (
    LIBRARY,
    UNSOUND,
    Closed,
    Pointer,
    Unsound,
    failure,
    library,
    library_float32,
)
from filbert.model.native_train import shape_of, touched, unlike
from filbert.model.native_weights import check_numbers, layer_weights, plain
from filbert.model.outputs import ModelOutput
from filbert.model.watch import Watch

__all__ = [
    "LIBRARY",
    "PRODUCTS",
    "NativeEncoder",
    "attach",
    "close",
    "keep_float32",
    "library",
    "library_float32",
    "serves",
    "why_not",
]

logger = logging.getLogger("filbert")
PRODUCTS = {"projections": 1, "output": 2, "inner": 4, "outer": 8}  # of a layer, to be added up
ALL = sum(PRODUCTS.values())
CHUNK = 384  # tokens that go through all layers together, from weights that are read once for them
CHUNK_FLOAT32 = 128  # whose activations are to fit the cache beside a panel
SWITCH = "FILBERT_NATIVE_FLOAT32"


def why_not(model: Any, *, float32: bool = False) -> str | None:
    """Why the native encoder cannot serve here, or this model as it stands; None if it can."""
    lib = library_float32() if float32 else library()
    if isinstance(lib, str):
        return lib
    if float32 and os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 leaves float32 to PyTorch"
    if not isinstance(model, BertModel) or not isinstance(model.config, BertConfig):
        return f"it computes BERT, not {type(model).__name__}"
    own = [] if model.config.factorised else list(model.embeddings.modules())
    for module in (model.encoder, *own):
        if (reason := touched(module)) is not None:
            return reason
    if own and not _whole(model.embeddings, model.config):
        return "its embeddings differ in size or epsilon from the configuration"
    return unlike(model.encoder)


def _whole(embeddings: BertEmbeddings, config: BertConfig) -> bool:
    """Whether the tables have the rows and columns that the library reads."""
    tables = (
        (embeddings.word_embeddings, config.vocab_size),
        (embeddings.position_embeddings, config.max_position_embeddings),
        (embeddings.token_type_embeddings, config.type_vocab_size),
    )
    norm = embeddings.LayerNorm
    return (
        all(len(table.weight) >= rows for table, rows in tables)
        and all(table.weight.shape[1] == config.hidden_size for table, _ in tables)
        and tuple(norm.normalized_shape) == (config.hidden_size,)
        and norm.elementwise_affine and norm.bias is not None
        and norm.eps == config.layer_norm_eps
    )  # fmt: skip


class NativeEncoder:
    """A copy of an encoder's weights, and the call that computes with them. `int8`: which products
    of a layer are int8 instead of bfloat16, see `PRODUCTS`; or those of each layer. `float32`: all
    is computed in float32.

    Calls from several threads are safe; they take turns. `close` frees the memory, as does the
    collector."""

    def __init__(
        self, bert: BertModel, int8: int | Sequence[int] = 0, *, float32: bool = False
    ) -> None:
        lib, config = library_float32() if float32 else library(), bert.config
        reason = why_not(bert, float32=float32)
        if isinstance(lib, str) or reason is not None:
            raise FilbertError(f"no native encoder: {reason}")
        assert isinstance(config, BertConfig)  # says why_not
        layers, *sizes, eps, activation = shape_of(bert.encoder)
        self.int8 = [int8] * layers if isinstance(int8, int) else [*int8, *[0] * layers][:layers]
        self.config, self._lib, self.float32 = config, lib, float32
        shape = (ctypes.c_int * 6)(layers, *sizes, activation)
        handle = lib.filbert_encoder_new(shape, eps, int(float32))
        if not handle:
            raise FilbertError("no memory for the native encoder's weights")
        self._handle: int | None = handle
        self._turn = threading.Lock()  # nobody frees the weights while another computes with them
        e = bert.embeddings
        tables = (e.word_embeddings, e.token_type_embeddings, e.position_embeddings)
        self._rows = [len(table.weight) for table in tables]
        self._free = weakref.finalize(self, lib.filbert_encoder_free, handle)
        # at the end of the process threads may still compute; its memory goes by itself
        self._free.atexit = False
        _alive.add(self)
        # without a factorised embedding the look-up is native as well; the tables stay float32
        self._tables: list[Tensor] = []
        self._embeddings = bert.embeddings
        if not config.factorised:
            self._tables = [
                plain(weight)
                for weight in (
                    e.word_embeddings.weight, e.position_embeddings.weight,
                    e.token_type_embeddings.weight, e.LayerNorm.weight, e.LayerNorm.bias,
                )
            ]  # fmt: skip
            if any(self.int8):
                check_numbers("the embeddings", self._tables)
            self._check(lib.filbert_encoder_embeddings(handle, *map(_address, self._tables)))
        for number, layer in enumerate(bert.encoder.layer):
            self.pack(number, layer, self.int8[number])

    def __call__(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        first_only: bool = False,
        mean: bool = False,
        threads: int | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Hidden states of a packed batch, float32: (tokens, hidden), or with `first_only` those of
        first tokens, with `mean` the mean of each sequence's, (sequences, hidden).

        input_ids, token_type_ids: (tokens,) int64; lengths: (sequences,) int64. threads: those of
        torch by default. chunk: tokens computed at once. Raises `Unsound` for ids or types that
        the tables do not have, lengths that are not positive, too long, or sum to other than the
        tokens."""
        size, tokens = self.config.hidden_size, len(input_ids)
        chunk = chunk or (CHUNK_FLOAT32 if self.float32 else CHUNK)
        counts = lengths.contiguous()
        which = 1 if first_only else 2 if mean else 0
        out = torch.empty(len(counts) if which else tokens, size)
        ids = types = hidden = None
        if self._tables:
            ids = input_ids.contiguous()
            types = None if token_type_ids is None else token_type_ids.contiguous()
        else:
            hidden = self._embed(input_ids, token_type_ids, lengths)
            if hidden.shape != (tokens, size):
                raise FilbertError(
                    f"the embeddings gave {tuple(hidden.shape)}, expected ({tokens}, {size}): "
                    "the model's parts do not fit together"
                )
        threads = threads or torch.get_num_threads()
        with self._turn:
            if self._handle is None:
                raise Closed("this native encoder is closed")
            code = self._lib.filbert_encoder_run(
                self._handle, *map(_address, (ids, types, hidden)), _address(counts), len(counts),
                tokens, (ctypes.c_int64 * 3)(*self._limits()), _address(out), which, threads, chunk,
            )  # fmt: skip
        if code == UNSOUND:
            raise Unsound
        self._check(code, threads)
        return out

    def rouse(self) -> None:
        """Wake the threads for a call that follows soon. Where a call is under way they are awake;
        of threads that cannot be had the call itself tells."""
        if self._turn.locked():
            return
        with self._turn:
            if self._handle is not None:
                self._lib.filbert_encoder_rouse(self._handle, torch.get_num_threads())

    def pack(self, number: int, layer: nn.Module, int8: int) -> None:
        """Take a layer's weights, with these products in int8; no call may be under way."""
        assert isinstance(layer, BertLayer) and self._handle is not None
        weights = [plain(weight) for weight in layer_weights(layer)]
        if int8:
            check_numbers(f"layer {number}", weights)
        pointers = (Pointer * len(weights))(*map(_address, weights))
        code = self._lib.filbert_encoder_layer(self._handle, number, pointers, int8)
        if code:
            self.close()  # half packed, it is of no use
        self._check(code)
        self.int8[number] = int8

    def close(self) -> None:
        """Free the weights, after a call that is under way. Further calls raise `FilbertError`."""
        with self._turn:
            self._handle = None
            self._free()

    def _limits(self) -> tuple[int, int, int]:
        """Words, kinds and places that there are, and that the configuration allows."""
        config, (words, kinds, places) = self.config, self._rows
        return (
            min(words, config.vocab_size), min(kinds, config.type_vocab_size),
            min(places, config.max_position_embeddings),
        )  # fmt: skip

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor | None, lengths: Tensor) -> Tensor:
        """The embeddings that are not looked up natively."""

        def within(values: Tensor | None, low: int, limit: int) -> bool:
            return values is None or bool(((values >= low) & (values < limit)).all())

        words, kinds, longest = self._limits()
        if not (
            within(lengths, 1, longest + 1) and int(lengths.sum()) == len(input_ids)
            and within(input_ids, 0, words) and within(token_type_ids, 0, kinds)
        ):  # fmt: skip
            raise Unsound
        starts = torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
        places = torch.arange(len(input_ids)) - starts
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        words = self._embeddings.word_embeddings(input_ids)
        return plain(self._embeddings(words, types, places))

    def _forked(self) -> None:
        """In a forked child, whose parent may have been inside a call."""
        self._turn = threading.Lock()
        if self._handle is not None:
            self._lib.filbert_encoder_forked(self._handle)

    @staticmethod
    def _check(code: int, threads: int = 1) -> None:
        if code:
            memory = "the native encoder ran out of memory; give a smaller batch"
            raise failure(code, memory=memory, threads=threads)


_alive: weakref.WeakSet[NativeEncoder] = weakref.WeakSet()
_forwards: weakref.WeakSet[_Forward] = weakref.WeakSet()


def _after_fork() -> None:
    for native in list(_alive):
        native._forked()
    for forward in list(_forwards):  # another thread may have held it
        forward._packing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def attach(model: nn.Module, dtype: torch.dtype) -> str | None:
    """Let the native encoder compute for every BERT encoder in `model`, from its present weights,
    in `dtype` (bfloat16, int8 or float32); for the first two the model's own weights are rounded to
    bfloat16. Returns why it does not, None if it does."""
    encoders = [module for module in model.modules() if isinstance(module, BertModel)]
    if dtype not in (torch.bfloat16, torch.int8, torch.float32):
        return f"it computes in bfloat16, int8 or float32, not {str(dtype).removeprefix('torch.')}"
    float32 = dtype == torch.float32
    if not encoders:
        return "there is no BERT encoder in this model"
    for bert in encoders:
        reason = why_not(bert, float32=float32)
        if reason is not None:
            return reason
        if any(weight.device.type != "cpu" for weight in bert.parameters()):
            return "the model is not on the CPU"
    chosen = getattr(model, "int8_products", None)  # of each layer, as filbert.json says
    int8 = (chosen or ALL) if dtype == torch.int8 else 0
    # from weights not yet rounded
    natives = [NativeEncoder(bert, int8, float32=float32) for bert in encoders]
    model.to(torch.float32 if float32 else torch.bfloat16)
    for bert, native in zip(encoders, natives, strict=True):
        # an attribute of the module itself stands before the method of its class
        bert.forward = _Forward(bert, native)  # type: ignore[method-assign]
    return None


def close(model: nn.Module) -> None:
    """Free what `attach` holds for `model`, which goes back to the slow twin."""
    for bert in model.modules():
        forward = vars(bert).get("forward")
        if isinstance(forward, _Forward):
            del bert.forward
            forward.free()


def release(model: nn.Module) -> None:
    """Free the weights that `attach` laid out for `model`; a call that still comes lays them out
    again, in bfloat16 from rounded ones. Those in int8 stay as long as the model does: made of
    rounded weights they would be others."""
    for bert in model.modules():
        forward = vars(bert).get("forward")
        if isinstance(forward, _Forward) and not any(forward.int8):
            forward.free()


def serves(model: nn.Module) -> bool:
    """Whether the native encoder computes for this encoder, which then takes `mean=True`: a row a
    sequence, the mean of its states, in place of the states."""
    return isinstance(vars(model).get("forward"), _Forward)


def rouse(model: nn.Module) -> None:
    """Say that `model` gets a small batch soon, so that the native encoder, if it serves, wakes its
    threads while the batch is made."""
    forward = vars(getattr(model, "base_model", model)).get("forward")
    native = forward.native if isinstance(forward, _Forward) else None
    if native is not None:
        native.rouse()


def keep_float32(model: nn.Module) -> None:
    """Let what `attach` put into `model` hand its states on as they are, float32, to a head that
    computes in float32, and whose weights were put in place since: the layers did not change."""
    for bert in model.modules():
        forward = vars(bert).get("forward")
        if isinstance(forward, _Forward):
            forward.exact = True
            forward.watch()


class _Forward:
    """`BertModel.forward` with the native encoder in it. Hooks inside the layers are run, by the
    slow twin, as long as they are there. A copy of a model packs its weights at its first call, as
    does the next call after they were freed."""

    def __init__(self, bert: BertModel, native: NativeEncoder) -> None:
        self.bert, self.exact = bert, False
        self.native: NativeEncoder | None = native
        self.int8, self.float32, self._serves = native.int8, native.float32, True
        self._packing = threading.Lock()
        self.watch()
        _forwards.add(self)

    def watch(self) -> None:
        """Take the model as it is now for the one that the native encoder has."""
        self.seen: Watch | None = Watch(self.bert, self.bert.embeddings, self.bert.encoder)

    def __getstate__(self) -> dict[str, Any]:
        names = ("bert", "exact", "int8", "float32")
        return {name: vars(self)[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(
            state, native=None, _serves=True, seen=None, _packing=threading.Lock()
        )  # fmt: skip
        _forwards.add(self)

    def free(self) -> None:
        """Free the weights, after a call that is under way."""
        with self._packing:
            native, self.native = self.native, None
        if native is not None:
            native.close()

    def _present(self) -> NativeEncoder | None:
        """The native encoder with the model's weights of now, None where it does not serve. The one
        before goes when its last call has ended."""
        with self._packing:
            gone = self._serves and self.native is None
            if gone or self.seen is None or self.seen.changed():
                reason = why_not(self.bert, float32=self.float32)
                if reason is None:
                    self.native = NativeEncoder(self.bert, self.int8, float32=self.float32)
                else:
                    self.native = None
                    logger.warning("the model was changed: no native encoder any more: %s", reason)
                self._serves = reason is None
                self.watch()
            return self.native

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        first_only: bool = False,
        predict_at: Tensor | None = None,
        mean: bool = False,
    ) -> ModelOutput:
        """As `BertModel.forward`; `mean`: see `serves`."""
        bert, seen = self.bert, self.seen

        def slow() -> ModelOutput:
            out = BertModel.forward(
                bert, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
                lengths=lengths, output_attentions=output_attentions,
                output_hidden_states=output_hidden_states, first_only=first_only,
                predict_at=predict_at,
            )  # fmt: skip
            if mean:
                states = out.last_hidden_state.float()
                means = torch.segment_reduce(states, "mean", lengths=lengths, axis=0, unsafe=True)
                return ModelOutput(last_hidden_state=means)
            return out

        if (
            input_ids is None or lengths is None or attention_mask is not None
            or position_ids is not None or inputs_embeds is not None or output_attentions
            or output_hidden_states or bert.training or torch.is_grad_enabled()
            or (seen is not None and seen.hooked())
            or not _packed(input_ids, lengths, token_type_ids)
            or (native := self._present()) is None
        ):  # fmt: skip
            return slow()
        check_places(predict_at, lengths, others=first_only)
        while True:
            try:
                hidden = native(
                    input_ids, lengths, token_type_ids, first_only=first_only, mean=mean
                )
                break
            except Unsound:
                return slow()
            except Closed:  # by another thread, before this one had its turn
                with self._packing:
                    if self.native is native:
                        self.native = None
                if (native := self._present()) is None:
                    return slow()
        if not (self.exact or mean):
            hidden = hidden.to(bert.embeddings.LayerNorm.weight.dtype)
        pooled = None
        if bert.pooler is not None and not mean:
            first = hidden
            if not first_only:
                first = hidden.index_select(0, torch.cumsum(lengths, 0) - lengths)
            # a pooler that nobody made exact computes in bfloat16
            pooled = bert.pooler(first.to(bert.pooler.dense.weight.dtype))
        if predict_at is not None:
            hidden = hidden.index_select(0, predict_at)
        return ModelOutput(
            last_hidden_state=hidden, pooler_output=pooled, hidden_states=None, attentions=None
        )


def _packed(input_ids: Tensor, lengths: Tensor, types: Tensor | None) -> bool:
    """Whether these look like a packed batch on the CPU."""
    return (
        input_ids.dim() == 1 and lengths.dim() == 1
        and input_ids.dtype == lengths.dtype == torch.int64
        and input_ids.is_cpu and lengths.is_cpu
        and (types is None or (types.dtype == torch.int64 and types.shape == input_ids.shape))
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
