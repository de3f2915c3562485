"""Taking parts out of a model: layers, attention heads, rows of the vocabulary.

What is left opens anywhere. Layers and words are gone from the weights; heads cannot be: the size
of a head is hidden_size / num_attention_heads in every reader of a BERT's or ModernBERT's
configuration, and no key says how many heads a layer has (Transformers 5 has dropped the
`pruned_heads` of its older versions). So a head is silenced: its weights become zero, and with
them what it adds. The model answers as if it were gone, at its old size and speed.

Which parts to take out: `filbert/infer/prune.py` measures that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError, UsageError
from filbert.model.modern_config import ModernBertConfig
from filbert.model.pretrained import PretrainedModel

# ids in a configuration that name a token of the vocabulary
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")


def layers_of(model: PretrainedModel) -> list[nn.Module]:
    """The blocks of the encoder, the first one first."""
    return list(_stack(model.base_model))


def _stack(encoder: Any) -> nn.ModuleList:
    stack = encoder.layers if hasattr(encoder, "layers") else getattr(encoder, "encoder", None)
    stack = getattr(stack, "layer", stack)
    if not isinstance(stack, nn.ModuleList):
        raise FilbertError(f"a {type(encoder).__name__} has no stack of layers that can be pruned")
    return stack


@contextmanager
def only_layers(model: PretrainedModel, kept: Sequence[int]) -> Iterator[PretrainedModel]:
    """The model without its other layers, for as long as the block runs; see `keep_layers`."""
    layers, config = layers_of(model), model.config
    try:
        keep_layers(model, kept)
        yield model
    finally:
        _put_layers(model, layers, config)


def keep_layers(model: PretrainedModel, kept: Sequence[int]) -> None:
    """Leave only these layers, numbers from 0 in rising order. Changes the model.

    Every layer adds to what it gets, so any of them can be left out. The first one of a ModernBERT
    stays: it has no norm of its own and could not stand elsewhere. Raises `UsageError`.
    """
    layers, config = layers_of(model), model.config
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= len(layers):
        raise UsageError(f"layers {list(kept)}: expected rising numbers below {len(layers)}")
    changes: dict[str, Any] = {"num_hidden_layers": len(kept)}
    if isinstance(config, ModernBertConfig):
        if kept[0] != 0:
            raise UsageError("the first layer of a ModernBERT cannot be left out")
        changes["layer_types"] = [config.kinds[number] for number in kept]
    _put_layers(model, [layers[number] for number in kept], config.replace(**changes))


def _put_layers(model: PretrainedModel, layers: list[nn.Module], config: Any) -> None:
    encoder: Any = model.base_model
    stack = nn.ModuleList(layers)
    if hasattr(encoder, "layers"):
        encoder.layers = stack
    else:
        encoder.encoder.layer = stack
    encoder.config = model.config = config


def _outputs(model: PretrainedModel) -> list[nn.Linear]:
    """Of each layer the matrix that takes the heads' results side by side, W^O."""
    return [
        layer.attn.Wo if hasattr(layer, "attn") else layer.attention.output.dense  # type: ignore
        for layer in layers_of(model)
    ]


@contextmanager
def head_gates(model: PretrainedModel) -> Iterator[list[Tensor]]:
    """Gates of one on every head, whose gradient tells what the head does for the loss.

    While the block runs, a forward pass leaves a gate for each layer in the list, (rows, heads) of
    ones that its heads' results were multiplied by; rows are the tokens, or the texts where a
    layer computes first tokens alone. Clear the list before the next pass.
    """
    gates: list[Tensor] = []
    heads = model.config.num_attention_heads

    def gate(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context = inputs[0]  # (rows, heads * head_size)
        ones = context.new_ones(len(context), heads).requires_grad_()
        gates.append(ones)
        return ((context.unflatten(-1, (heads, -1)) * ones[..., None]).flatten(-2), *inputs[1:])

    hooks = [output.register_forward_pre_hook(gate) for output in _outputs(model)]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def silence_heads(model: PretrainedModel, heads: Mapping[int, Sequence[int]]) -> None:
    """Set the weights of these heads to zero, layer -> heads, counted from 0. Changes the model."""
    config, layers = model.config, layers_of(model)
    size = config.head_size
    for number, chosen in heads.items():
        layer: Any = layers[number]
        for head in chosen:
            rows = slice(head * size, (head + 1) * size)
            _outputs(model)[number].weight[:, rows] = 0
            if hasattr(layer, "attn"):  # queries, keys and values stand in one matrix
                starts = (part * config.hidden_size + head * size for part in range(3))
                targets = [(layer.attn.Wqkv, slice(start, start + size)) for start in starts]
            else:
                inner = layer.attention.self
                targets = [(part, rows) for part in (inner.query, inner.key, inner.value)]
            for part, place in targets:
                part.weight[place] = 0
                if part.bias is not None:
                    part.bias[place] = 0


@torch.no_grad()
def keep_words(model: PretrainedModel, kept: Sequence[int]) -> None:
    """Leave only these rows of the vocabulary, in this order: of the embedding, and of the matrix
    and the bias of a head that predicts words. Changes the model.

    The other weights stay as they are, so a text of kept tokens gets the same answer. Raises
    `FilbertError` if [PAD] is not among them.
    """
    config = model.config
    place = {old: new for new, old in enumerate(kept)}
    if config.pad_token_id is not None and config.pad_token_id not in place:
        raise FilbertError(f"the padding token (id {config.pad_token_id}) has to be kept")
    whole = model.get_input_embeddings()
    rows = torch.tensor(list(kept), dtype=torch.int64)
    pad = None if whole.padding_idx is None else place[whole.padding_idx]
    small = nn.Embedding(len(rows), whole.embedding_dim, padding_idx=pad)
    small.weight.copy_(whole.weight[rows])
    model.set_input_embeddings(small)
    for name in ("cls.predictions", "decoder"):
        head: Any = _submodule(model, name)
        if head is not None and getattr(head, "bias", None) is not None:
            head.bias = nn.Parameter(head.bias[rows].clone())
    for name in ("cls.predictions.decoder", "decoder"):
        matrix: Any = _submodule(model, name)
        if matrix is not None:
            matrix.out_features = len(rows)
    model.tie_weights()
    carried = {
        name: place[value] if name in _TOKEN_IDS and value in place else value
        for name, value in config.bookkeeping.items()
        if name not in _TOKEN_IDS or value is None or value in place
    }
    padding = None if config.pad_token_id is None else place[config.pad_token_id]
    small_config = config.replace(vocab_size=len(rows), pad_token_id=padding, bookkeeping=carried)
    model.base_model.config = model.config = small_config


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
