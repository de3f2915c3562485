"""Our AdamW against `torch.optim.AdamW`, averages by hand, and the trimmed embedding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from filbert.data.packing import Encoded
from filbert.model.bert import BertForSequenceClassification
from filbert.model.config import BertConfig
from filbert.tasks.classify import logits_of
from filbert.train import optim
from filbert.train.optim import Average, decays, depth_below_head, make_optimizer
from filbert.train.options import ClassifyOptions
from filbert.train.schedule import learning_rate
from filbert.train.trim import TrimmedEmbedding

TINY = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def texts(draw: np.random.Generator, count: int, vocabulary: int) -> Encoded:
    lengths = draw.integers(2, 9, count)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(
        draw.integers(1, vocabulary, starts[-1]).astype(np.int32),
        np.zeros(starts[-1], np.int8),
        starts,
        np.arange(count + 1),
    )


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_equals_torch(monkeypatch: pytest.MonkeyPatch, chunk: int, clip: float) -> None:
    """Twelve float32 steps of a small model: decay exclusions, clipping, a changing rate."""
    monkeypatch.setattr(optim, "CHUNK", chunk)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(BertForSequenceClassification(TINY))
    mine, theirs = models
    own = make_optimizer(mine, weight_decay=0.1)
    groups = [
        {"params": [w for n, w in theirs.named_parameters() if decays(n)], "weight_decay": 0.1},
        {"params": [w for n, w in theirs.named_parameters() if not decays(n)], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    for step in range(12):
        lr = 1e-2 / (step + 1)
        ids = torch.randint(40, (3, 6), generator=torch.Generator().manual_seed(step))
        for model in models:
            model(ids, labels=torch.tensor([0, 1, 1])).loss.backward()
        norm = own.gradient_norm()
        own.step(lr, clip=clip, norm=norm)
        for group in reference.param_groups:
            group["lr"] = lr
        exact = nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf).item()
        assert norm == pytest.approx(exact, rel=1e-5)
        reference.step()
        reference.zero_grad()
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max().item() < 2e-6, name


def test_decay_spares_biases_and_norms() -> None:
    spared = {n for n, _ in BertForSequenceClassification(TINY).named_parameters() if not decays(n)}
    assert "bert.encoder.layer.0.attention.self.query.bias" in spared
    assert "bert.embeddings.LayerNorm.weight" in spared
    assert "bert.encoder.layer.1.output.dense.weight" not in spared
    assert "bert.embeddings.word_embeddings.weight" not in spared
    assert "classifier.weight" not in spared


def test_layer_decay_counts_down_from_the_head() -> None:
    assert depth_below_head("classifier.weight", 12) == 0
    assert depth_below_head("bert.pooler.dense.weight", 12) == 0
    assert depth_below_head("bert.encoder.layer.11.output.dense.bias", 12) == 1
    assert depth_below_head("bert.encoder.layer.0.output.dense.bias", 12) == 12
    assert depth_below_head("bert.embeddings.word_embeddings.weight", 12) == 13


def test_accumulated_batches_equal_one_batch() -> None:
    ids = torch.randint(40, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0])
    results = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = BertForSequenceClassification(TINY)
        optimizer = make_optimizer(model, weight_decay=0.0)
        for part in range(parts):
            rows = slice(part * 4 // parts, (part + 1) * 4 // parts)
            (model(ids[rows], labels=labels[rows]).loss / parts).backward()
            if parts > 1:
                optimizer.gather()
        optimizer.step(1e-3, clip=0.0, norm=optimizer.gradient_norm())
        results.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    assert (results[0] - results[1]).abs().max().item() < 1e-6


def test_bf16_weights_are_rounded_masters() -> None:
    """A thousand updates far below bf16's resolution add up in the masters."""
    layer = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = make_optimizer(layer, weight_decay=0.0)
    for _ in range(1000):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step(1e-4, clip=0.0, norm=optimizer.gradient_norm())
    # a constant gradient moves AdamW by lr a step: 1 - 1000 * 1e-4
    assert optimizer.weights()["weight"].item() == pytest.approx(0.9, abs=1e-4)
    assert layer.weight.item() == pytest.approx(0.9, abs=4e-3)


def test_average_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = make_optimizer(layer, weight_decay=0.0)
    average = Average(optimizer, 0.75)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    average.update()
    assert average.weights()["weight"].item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    with average.in_model():
        assert layer.weight.item() == pytest.approx(1.5)
    assert layer.weight.item() == 3.0


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_trimmed_embedding_equals_the_whole_matrix(ema: float) -> None:
    """Ten steps with weight decay, trained whole and trimmed: every row ends the same."""
    options = ClassifyOptions(data="-", base="-", out="-", lr=1e-2, weight_decay=0.3, ema=ema)
    data = texts(np.random.default_rng(0), 6, 21)  # tokens 21 ... 39 never occur
    results = []
    for trim in (False, True):
        torch.manual_seed(0)
        model = BertForSequenceClassification(TINY)
        encoded = data
        trimmed = TrimmedEmbedding(model.bert, data) if trim else None
        if trimmed is not None:
            encoded = trimmed.encode(data)
            assert model.bert.embeddings.word_embeddings.num_embeddings < 22
        model.train()
        optimizer = make_optimizer(model, weight_decay=options.weight_decay)
        average = Average(optimizer, ema)
        for step in range(10):
            logits = logits_of(model, encoded.gather(np.arange(6)))
            nn.functional.cross_entropy(logits, torch.arange(6) % 2).backward()
            lr = learning_rate(step, total=10, peak=1e-2, warmup=0.1, schedule="linear")
            optimizer.step(lr, clip=0.0, norm=optimizer.gradient_norm())
            average.update()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(average.weights()[name])
        if trimmed is not None:
            trimmed.restore(optim.unused_row_factor(10, total=10, options=options, layers=2))
            assert model.bert.config.vocab_size == 40
        results.append(model.bert.embeddings.word_embeddings.weight.detach().clone())
    assert results[1].shape == (40, 16)
    assert (results[0] - results[1]).abs().max().item() < 1e-6
