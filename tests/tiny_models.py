"""Very small models of every kind with drawn weights, biases too, and a packed batch for them."""

from __future__ import annotations

from typing import Any

import torch

from filbert.model.config import BertConfig
from filbert.model.modern_config import ModernBertConfig
from filbert.model.pretrained import PretrainedModel

VOCABULARY = 40
LENGTHS = [1, 7, 30, 7, 18]


def built(kind: type[PretrainedModel], **changes: Any) -> PretrainedModel:
    torch.manual_seed(3)
    labels = {number: f"L{number}" for number in range(3)}
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
        "initializer_range": 0.3, "id2label": labels, "pad_token_id": 0,
    }  # fmt: skip
    if kind.__name__.startswith("Modern"):
        sizes |= {"local_attention": 6, "global_attn_every_n_layers": 2}
        config: Any = ModernBertConfig(**{**sizes, **changes})
    else:
        config = BertConfig(**{**sizes, **changes})
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases too
            weight.add_(torch.randn_like(weight) * 0.05)
    return model


def packed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (sum(LENGTHS),), generator=draw)
    return ids, torch.randint(0, 2, ids.shape, generator=draw), torch.tensor(LENGTHS)
