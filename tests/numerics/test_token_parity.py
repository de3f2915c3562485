"""The token classifier against `transformers`: logits, loss, gradients; padded and packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from filbert.model.bert import BertConfig, BertForTokenClassification
from filbert.text import BertTokenizer

transformers = pytest.importorskip("transformers")

LENGTHS = [[4, 1, 9], [17, 17, 3, 60]]


def config(seed: int) -> BertConfig:
    return BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=64, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        hidden_act=("gelu", "relu")[seed % 2], id2label=dict(enumerate("OBI")),
    )  # fmt: skip


def reference(model: BertForTokenClassification, folder: Path) -> Any:
    """The folder that we write, opened by transformers."""
    model.save_pretrained(folder)
    theirs, told = transformers.AutoModelForTokenClassification.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert set(theirs.state_dict()) == set(model.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("seed", range(4))
def test_logits_loss_and_gradients(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    model = BertForTokenClassification(config(seed)).eval()
    theirs = reference(model, tmp_path)
    lengths = LENGTHS[seed % 2]
    shape = len(lengths), max(lengths)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(50, shape) * mask
    labels = torch.randint(3, shape).masked_fill(torch.rand(shape) < 0.3, -100)
    labels = labels.masked_fill(mask == 0, -100)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    mine = model(input_ids=ids, attention_mask=mask, labels=labels)
    real = mask.bool()
    assert (mine.logits[real] - expected.logits[real]).abs().max() < 1e-5
    assert mine.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    packed = model(input_ids=ids[real], lengths=mask.sum(1), labels=labels[real])
    assert (packed.logits - expected.logits[real]).abs().max() < 1e-5
    assert packed.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    at = torch.tensor([3, 0, 7])
    some = model(input_ids=ids[real], lengths=mask.sum(1), predict_at=at)
    assert (some.logits - expected.logits[real][at]).abs().max() < 1e-5
    packed.loss.backward()
    expected.loss.backward()
    grads = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        if "key.bias" in name:  # it cancels in the softmax: rounding on both sides
            continue
        assert parameter.grad is not None
        difference = (parameter.grad - grads[name].grad).abs().max()
        assert difference <= 1e-5 * max(1.0, float(grads[name].grad.abs().max())), name


def test_real_weights(minilm: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForTokenClassification.from_pretrained(
        minilm, new_head=True, id2label=dict(enumerate("OBI"))
    )
    theirs = reference(model, tmp_path)
    tokenizer = BertTokenizer.from_pretrained(minilm)
    texts = ["Barack Obama was born in Hawaii.", "他出生在北京。", ""]
    grid = tokenizer(texts, padding=True, return_tensors="pt")
    real = grid["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**grid).logits[real]
        packed = model(input_ids=grid["input_ids"][real], lengths=real.sum(1)).logits
        assert (packed - expected).abs().max() < 1e-5
