"""The weights of a layer as `filbert_encoder_layer` takes them (`filbert/native/encoder.cpp`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from filbert.errors import FilbertError
from filbert.model.bert import BertLayer


def layer_weights(layer: BertLayer) -> list[Tensor]:
    """A layer's weights in the order of `filbert_encoder_layer`."""
    own, out = layer.attention.self, layer.attention.output
    parts = (own.query, own.key, own.value)
    return [
        torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]),
        out.dense.weight, out.dense.bias,
        layer.intermediate.dense.weight, layer.intermediate.dense.bias,
        layer.output.dense.weight, layer.output.dense.bias,
        out.LayerNorm.weight, out.LayerNorm.bias,
        layer.output.LayerNorm.weight, layer.output.LayerNorm.bias,
    ]  # fmt: skip


def check_numbers(what: str, weights: list[Tensor]) -> None:
    """In int8 every weight becomes a number; nothing in the answers would tell of those that were
    none. Raises `FilbertError`."""
    if not all(math.isfinite(value) for weight in weights for value in weight.aminmax()):
        raise FilbertError(
            f"the weights of {what} hold NaN or infinity: they are damaged. Fetch or copy the "
            "model again, or train it anew"
        )


def plain(weight: Tensor) -> Tensor:
    """The numbers of a weight, float32, one after the other."""
    return weight.detach().float().contiguous()
