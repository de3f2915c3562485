"""The count of floating-point operations against PyTorch's own counter, and windows by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from filbert.model.bert import BertForMaskedLM
from filbert.model.config import BertConfig
from filbert.model.modern import ModernBertForMaskedLM
from filbert.model.modern_config import ModernBertConfig
from filbert.model.pretrained import PretrainedModel
from filbert.tasks.pretrain import flops_per_token

SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def counted(model: PretrainedModel, *, length: int, texts: int = 2) -> float:
    """What matrix products cost for a token, forward and backward, when all words are predicted."""
    model.eval().set_attention("eager")
    ids = torch.randint(1, 101, (texts, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids)["loss"].backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize("length", [1, 17, 64])
def test_a_bert_by_the_counter_of_pytorch(length: int) -> None:
    for width in (None, 8):  # and with narrow embeddings
        model = BertForMaskedLM(BertConfig(**SIZES, embedding_size=width))
        expected = pytest.approx(counted(model, length=length))
        assert flops_per_token(model, length=length, masked=1.0) == expected


@pytest.mark.parametrize("length", [1, 17, 64])
def test_a_modernbert_by_the_counter_of_pytorch(length: int) -> None:
    """All layers global: the slow path multiplies the whole square in a local one."""
    model = ModernBertForMaskedLM(ModernBertConfig(**SIZES, global_attn_every_n_layers=1))
    expected = pytest.approx(counted(model, length=length))
    assert flops_per_token(model, length=length, masked=1.0) == expected


@pytest.mark.parametrize("length", [1, 5, 6, 7, 64])
def test_windows_by_counting_pairs(length: int) -> None:
    every = ModernBertForMaskedLM(ModernBertConfig(**SIZES, global_attn_every_n_layers=1))
    local = ModernBertForMaskedLM(ModernBertConfig(**SIZES, local_attention=12))  # 6 on either side
    pairs = sum(abs(a - b) <= 6 for a in range(length) for b in range(length))
    more = flops_per_token(every, length=length, masked=0.15)
    less = flops_per_token(local, length=length, masked=0.15)
    # two of three layers; query by key and weight by value, 2 operations each, three passes
    assert more - less == pytest.approx(2 * 3 * 4 * 32 * (length - pairs / length))


@pytest.mark.parametrize("width", [32, 8])
def test_fewer_words_cost_less(width: int) -> None:
    """The word head alone: 32 to the width of the embeddings, and 101 rows of that width. What
    brings narrow embeddings up to 32 is computed for every token."""
    model = BertForMaskedLM(BertConfig(**SIZES, embedding_size=width))
    all_words, some = (flops_per_token(model, length=9, masked=share) for share in (1.0, 0.25))
    assert all_words - some == pytest.approx(0.75 * 6 * (32 * width + 101 * width))
