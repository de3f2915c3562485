"""torch.compile of what works on each token alone: the same numbers, forward and backward, for
batches of any size."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert import load
from filbert.errors import UsageError
from filbert.model.bert import BertConfig, BertModel
from filbert.model.modern import ModernBertConfig, ModernBertModel

COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler for torch.compile"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # both are Dynamo's own
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


def models() -> list[Any]:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return [BertModel(BertConfig(**shape, **dropouts)), ModernBertModel(ModernBertConfig(**shape))]


@pytest.mark.parametrize("number", [0, 1], ids=["bert", "modernbert"])
def test_compiled_parts_equal_those_that_are_not(number: int) -> None:
    plain = models()[number].train()
    compiled = copy.deepcopy(plain)
    compiled.compile_parts()
    for lengths in ([5, 1, 9], [40], [3] * 30):
        ids = torch.arange(sum(lengths)) % 35 + 3
        found = []
        for model in (plain, compiled):
            model.zero_grad()
            out = model(ids, lengths=torch.tensor(lengths)).last_hidden_state
            out.square().sum().backward()
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            with torch.inference_mode():
                answer = model.eval()(ids, lengths=torch.tensor(lengths)).last_hidden_state
            model.train()
            found.append((out.detach(), torch.cat(grads), answer))
        for slow, fast in zip(*found, strict=True):
            assert (slow - fast).abs().max() < 2e-5 * slow.abs().max()


def test_a_loaded_model(minilm: Path) -> None:
    texts = ["Great film.", "A dull and long story about nothing."]
    plain = load(minilm, core="torch", precision="float32")
    compiled = load(minilm, core="torch", precision="float32", compile=True)
    assert np.abs(compiled(texts) - plain(texts)).max() < 1e-6
    with pytest.raises(UsageError, match="compile: expected True or False, got"):
        load(minilm, compile="yes")  # type: ignore[arg-type]
