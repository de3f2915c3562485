"""The encoder and its heads against `transformers`: outputs and gradients, padded and packed.

Hidden states are held to 1e-5 at unit rms, in float32 (see docs/architecture.md, numerics).
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from filbert.model import bert as ours
from filbert.model.config import BertConfig

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5


def random_config(seed: int) -> BertConfig:
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4])
    return BertConfig(
        vocab_size=draw.choice([7, 50, 211]),
        hidden_size=heads * draw.choice([1, 5, 8, 16]),
        num_hidden_layers=draw.choice([1, 2, 3]),
        num_attention_heads=heads,
        intermediate_size=draw.choice([1, 17, 64]),
        hidden_act=draw.choice(["gelu", "gelu_new", "relu", "silu"]),
        max_position_embeddings=512,
        type_vocab_size=draw.choice([1, 2]),
        layer_norm_eps=draw.choice([1e-12, 1e-5]),
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict.fromkeys(range(draw.choice([1, 2, 5])), ""),
    )


def reference(name: str, config: BertConfig, weights: dict[str, Tensor]) -> Any:
    """The same model in transformers, with our weights."""
    values = config.to_dict()
    values["id2label"] = {i: f"L{i}" for i in range(config.num_labels)}
    values["label2id"] = {f"L{i}": i for i in range(config.num_labels)}
    values.pop("embedding_size", None)
    model = getattr(transformers, name)(
        transformers.BertConfig(**values, attn_implementation="eager")
    )
    own = model.state_dict()
    renamed = {k: v for k, v in weights.items() if k in own}
    if "cls.predictions.decoder.bias" in own:
        renamed["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all("position_ids" in name or "token_type_ids" in name for name in missing), missing
    assert len(renamed) >= len(weights)
    return model.eval()


def batch(config: BertConfig, lengths: list[int], *, left: bool, seed: int) -> dict[str, Tensor]:
    """A padded grid with random ids and segments, padding before or after the text."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, shape[1] - length if left else 0 : shape[1] if left else length] = 1
    return {
        "input_ids": torch.randint(config.vocab_size, shape, generator=generator) * mask,
        "token_type_ids": torch.randint(config.type_vocab_size, shape, generator=generator),
        "attention_mask": mask,
    }


def packed(grid: dict[str, Tensor], **more: Tensor) -> dict[str, Tensor]:
    """The same texts end to end. Positions are those of the grid, so that the two compare."""
    real = grid["attention_mask"].bool()
    places = torch.arange(real.shape[1]).expand(real.shape)
    return {
        "input_ids": grid["input_ids"][real],
        "token_type_ids": grid["token_type_ids"][real],
        "position_ids": places[real],
        "lengths": real.sum(1),
        **more,
    }


@torch.no_grad()
def close(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference after scaling to unit rms."""
    scale = theirs.float().pow(2).mean().sqrt().clamp_min(1e-6)
    return float(((mine - theirs) / scale).abs().max())


LENGTHS = [[1], [1, 2, 3], [9, 9, 9], [31, 5, 17, 1], [128, 3, 77], [512, 1, 200]]


@pytest.mark.parametrize("seed", range(18))
def test_encoder_equals_reference(seed: int) -> None:
    config = random_config(seed)
    torch.manual_seed(seed)
    model = ours.BertModel(config).eval()
    theirs = reference("BertModel", config, model.state_dict())
    grid = batch(config, LENGTHS[seed % 6], left=seed % 2 == 1, seed=seed)
    real = grid["attention_mask"].bool()
    expected = theirs(**grid, output_hidden_states=True, output_attentions=True)

    eager = model(**grid, output_hidden_states=True, output_attentions=True)
    for mine, reference_state in zip(eager.hidden_states, expected.hidden_states, strict=True):
        assert close(mine[real], reference_state[real]) < TOLERANCE
    for mine, weights in zip(eager.attentions, expected.attentions, strict=True):
        rows = real[:, None, :, None].expand_as(mine)
        assert (mine[rows] - weights[rows]).abs().max() < TOLERANCE
    sdpa = model(**grid)
    assert close(sdpa.last_hidden_state[real], expected.last_hidden_state[real]) < TOLERANCE
    if seed % 2 == 0:  # the pooler reads the first cell, which is padding in a left-padded grid
        assert close(sdpa.pooler_output, expected.pooler_output) < TOLERANCE
    ends = model(**packed(grid))
    assert close(ends.last_hidden_state, expected.last_hidden_state[real]) < TOLERANCE
    first = expected.last_hidden_state[torch.arange(len(real)), real.int().argmax(1)]
    assert close(ends.pooler_output, theirs.pooler(first[:, None])) < TOLERANCE


@pytest.mark.parametrize("path", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("seed", range(6))
def test_gradients_equal_reference(seed: int, path: str) -> None:
    config = random_config(seed + 100).replace(num_labels=3)
    torch.manual_seed(seed)
    model = ours.BertForSequenceClassification(config)
    theirs = reference("BertForSequenceClassification", config, model.state_dict())
    grid = batch(config, LENGTHS[seed], left=False, seed=seed)
    labels = torch.arange(len(LENGTHS[seed])) % 3
    theirs(**grid, labels=labels).loss.backward()
    if path == "packed":
        model(**packed(grid), labels=labels).loss.backward()
    else:
        model.set_attention(path)
        model(**grid, labels=labels).loss.backward()
    expected = dict(theirs.named_parameters())
    compared = 0
    for name, weight in model.named_parameters():
        wanted = expected[name].grad
        got = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        wanted = wanted if wanted is not None else torch.zeros_like(weight)
        # a key's bias has no influence on the softmax: its gradient is rounding noise in both
        if not name.endswith("self.key.bias"):
            largest = float(wanted.abs().max())
            assert float((got - wanted).abs().max()) <= TOLERANCE * max(largest, 1.0), name
        compared += 1
    assert compared == len(expected)


def test_pretraining_and_masked_words_equal_reference() -> None:
    for seed, name in enumerate(["BertForPreTraining", "BertForMaskedLM"]):
        config = random_config(seed + 40)
        torch.manual_seed(seed)
        model = getattr(ours, name)(config).eval()
        theirs = reference(name, config, model.state_dict())
        grid = batch(config, [9, 4], left=False, seed=seed)
        labels = grid["input_ids"].where(grid["attention_mask"].bool(), torch.tensor(-100))
        labels[:, ::2] = -100
        more = {"next_sentence_label": torch.tensor([0, 1])} if seed == 0 else {}
        mine, expected = model(**grid, labels=labels, **more), theirs(**grid, labels=labels, **more)
        field = "prediction_logits" if seed == 0 else "logits"
        real = grid["attention_mask"].bool()
        assert close(mine[field][real], expected[field][real]) < TOLERANCE
        assert abs(mine.loss.item() - expected.loss.item()) < TOLERANCE
        if seed == 0:
            got, wanted = mine.seq_relationship_logits, expected.seq_relationship_logits
            assert close(got, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("single_label_classification", torch.tensor([2, 0])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
        ("regression", torch.tensor([[0.5, 1, 2], [0, 3, -1]])),
    ],
)
def test_losses_equal_reference(kind: str, labels: Tensor) -> None:
    config = random_config(7).replace(num_labels=3, problem_type=kind)
    if kind == "regression":
        config, labels = config.replace(num_labels=1), torch.tensor([0.5, 3.0])
    model = ours.BertForSequenceClassification(config).eval()
    theirs = reference("BertForSequenceClassification", config, model.state_dict())
    grid = batch(config, [6, 3], left=False, seed=1)
    expected = theirs(**grid, labels=labels).loss
    assert abs(model(**grid, labels=labels).loss.item() - expected.item()) < TOLERANCE


def test_a_mask_for_each_query() -> None:
    """A (batch, length, length) mask hides exactly the pairs that it marks."""
    config = random_config(3)
    model = ours.BertModel(config).eval()
    grid = batch(config, [6, 6], left=False, seed=2)
    triangle = torch.ones(6, 6, dtype=torch.int64).tril().expand(2, 6, 6)
    out = model(grid["input_ids"], triangle, output_attentions=True)
    hidden_pairs = triangle[:, None].expand_as(out.attentions[0]) == 0
    assert out.attentions[0][hidden_pairs].abs().max().item() == 0.0
    fused = model(grid["input_ids"], triangle)
    assert close(fused.last_hidden_state, out.last_hidden_state) < TOLERANCE


def test_real_weights(minilm: Path) -> None:
    """MiniLM-L6 itself, lengths 1 to 512, and its gradients."""
    theirs = transformers.BertModel.from_pretrained(str(minilm), attn_implementation="eager").eval()
    model = ours.BertModel.from_pretrained(minilm)
    lengths = [512, 1, 129]
    grid = batch(model.config, lengths, left=False, seed=5)
    grid["token_type_ids"][:, 20:] = 1
    real = grid["attention_mask"].bool()
    expected = theirs(**grid)
    exact = copy.deepcopy(theirs).double()(**grid).last_hidden_state[real].float()
    # MiniLM's states have an rms of 0.17, and six layers of float32 rounding put the reference
    # itself 2.7e-5 (at unit rms) from its own float64 result. So: 1e-5 in absolute terms, and no
    # farther from the float64 result than the reference is.
    own_error = (expected.last_hidden_state[real] - exact).norm().item()
    for out, picked in ((model(**grid), real), (model(**packed(grid)), None)):
        hidden = out.last_hidden_state if picked is None else out.last_hidden_state[picked]
        assert (hidden - expected.last_hidden_state[real]).abs().max().item() < TOLERANCE
        assert (hidden - exact).norm().item() < own_error * 1.2
        assert (out.pooler_output - expected.pooler_output).abs().max().item() < TOLERANCE
    direction = torch.randn(len(lengths), 384, generator=torch.Generator().manual_seed(0))
    (expected.pooler_output * direction).sum().backward()
    (model(**packed(grid)).pooler_output * direction).sum().backward()
    for name, weight in theirs.named_parameters():
        got = dict(model.named_parameters())[name].grad
        assert weight.grad is not None and got is not None
        if not name.endswith("self.key.bias"):
            assert ((got - weight.grad).norm() / weight.grad.norm()).item() < 2e-5, name


def test_first_only_equals_the_whole_last_layer() -> None:
    for lengths in ([3, 9, 1, 30, 7], [4, 4]):
        config = random_config(11)
        model = ours.BertModel(config).eval()
        ends = packed(batch(config, lengths, left=False, seed=1))
        whole, short = model(**ends), model(**ends, first_only=True)
        assert short.last_hidden_state.shape == (len(lengths), config.hidden_size)
        assert close(short.pooler_output, whole.pooler_output) < TOLERANCE


def test_gradient_checkpointing_changes_nothing() -> None:
    """Dropout included: the recomputed layer draws the same mask."""
    config = random_config(5).replace(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = ours.BertForSequenceClassification(config).train()
        model.gradient_checkpointing_enable(enabled)
        torch.manual_seed(1)
        grid = batch(config, [7, 7, 3], left=False, seed=0)
        model(**packed(grid)).logits.sum().backward()
        grads.append(
            torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        )
    assert torch.equal(grads[0], grads[1])


def test_bf16_is_near_float32(minilm: Path) -> None:
    model = ours.BertModel.from_pretrained(minilm)
    grid = batch(model.config, [64, 12, 33], left=False, seed=3)
    with torch.no_grad():
        exact = model(**packed(grid)).last_hidden_state
        rough = model.bfloat16()(**packed(grid)).last_hidden_state.float()
    assert float((rough - exact).norm() / exact.norm()) < 2e-2
