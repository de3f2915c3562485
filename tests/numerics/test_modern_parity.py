"""ModernBERT against `transformers`: outputs, gradients and folders, padded and packed.

Everything is held to 1e-5 at unit rms in float32, on random weights and configurations, with texts
from one token to several windows and blocks.
"""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from filbert.errors import FilbertError
from filbert.model import modern as ours
from filbert.model import window
from filbert.model.bert import BertForMaskedLM, BertModel
from filbert.model.config import BertConfig
from filbert.model.modern_config import ModernBertConfig, read_any_config
from filbert.model.outputs import ModelOutput

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
# Its defaults lie outside a small vocabulary, which it would tell.
SMALL_VOCABULARY = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")}
LENGTHS = [[1], [1, 2, 3], [9, 9, 9], [31, 5, 17, 1], [140, 3, 77], [300, 1, 129]]


def random_config(seed: int, **changes: Any) -> ModernBertConfig:
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3])
    config = ModernBertConfig(
        vocab_size=draw.choice([7, 50, 211]),
        hidden_size=heads * draw.choice([2, 6, 16]),
        num_hidden_layers=draw.choice([1, 2, 4]),
        num_attention_heads=heads,
        intermediate_size=draw.choice([1, 17, 64]),
        hidden_activation=draw.choice(["gelu", "gelu_new", "silu"]),
        classifier_activation=draw.choice(["gelu", "relu"]),
        max_position_embeddings=512,
        initializer_range=0.1,
        pad_token_id=draw.choice([0, 6]),
        global_attn_every_n_layers=draw.choice([2, 3]),
        local_attention=draw.choice([1, 2, 7, 16, 128]),
        global_rope_theta=draw.choice([160_000.0, 10.0]),
        local_rope_theta=draw.choice([10_000.0, 10.0]),
        norm_bias=draw.choice([True, False]),
        attention_bias=draw.choice([True, False]),
        mlp_bias=draw.choice([True, False]),
        classifier_bias=draw.choice([True, False]),
        decoder_bias=draw.choice([True, False]),
        classifier_pooling=draw.choice(["cls", "mean"]),
        id2label={0: "a", 1: "b", 2: "c"},
    )
    return config.replace(**changes)


def noisy(model: ours.ModernBertPretrained) -> Any:
    """The model with every weight drawn, so that scales and biases are not one and zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


def reference(model: ours.ModernBertPretrained, *, attention: str = "eager") -> Any:
    """The same model in transformers, with our weights under our names."""
    values = model.config.to_dict()
    config = transformers.ModernBertConfig(
        **values, **SMALL_VOCABULARY, attn_implementation=attention
    )
    theirs = getattr(transformers, type(model).__name__)(config)
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


def batch(config: ModernBertConfig, lengths: list[int], *, left: bool, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, shape[1] - length if left else 0 : shape[1] if left else length] = 1
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def packed(grid: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts end to end."""
    real = grid["attention_mask"].bool()
    return {"input_ids": grid["input_ids"][real], "lengths": real.sum(1)}


@torch.no_grad()
def close(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference after scaling to unit rms."""
    scale = theirs.float().pow(2).mean().sqrt().clamp_min(1e-6)
    return float(((mine - theirs) / scale).abs().max())


@pytest.mark.parametrize("seed", range(18))
def test_masked_words_equal_reference(seed: int) -> None:
    model = noisy(ours.ModernBertForMaskedLM(random_config(seed)))
    theirs = reference(model)
    grid = batch(model.config, LENGTHS[seed % 6], left=seed % 2 == 1, seed=seed)
    real = grid["attention_mask"].bool()
    hidden = torch.rand(real.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    hidden[:, -1] = True
    labels = grid["input_ids"].where(real & hidden, torch.tensor(-100))
    with torch.no_grad():
        expected = theirs(**grid, labels=labels, output_hidden_states=True, output_attentions=True)
        eager = model(**grid, labels=labels, output_hidden_states=True, output_attentions=True)
        fused, ends = model(**grid, labels=labels), model(**packed(grid), labels=labels[real])
    assert len(eager.hidden_states) == len(expected.hidden_states)
    for mine, state in zip(eager.hidden_states, expected.hidden_states, strict=True):
        assert close(mine[real], state[real]) < TOLERANCE
    for mine, weights in zip(eager.attentions, expected.attentions, strict=True):
        rows = real[:, None, :, None].expand_as(mine)
        assert (mine[rows] - weights[rows]).abs().max() < TOLERANCE
    wanted = expected.logits[real]
    for out, picked in ((eager, real), (fused, real), (ends, ...)):
        assert close(out.logits[picked], wanted) < TOLERANCE
        assert torch.isfinite(out.logits).all()  # padding tokens too
    for out in (eager, fused, ends):
        assert abs(out.loss.item() - expected.loss.item()) < TOLERANCE * expected.loss.item()


@pytest.mark.parametrize("path", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("seed", range(100, 106))
def test_classes_and_gradients_equal_reference(seed: int, path: str) -> None:
    model = noisy(ours.ModernBertForSequenceClassification(random_config(seed)))
    theirs = reference(model)
    lengths = LENGTHS[seed % 6]
    grid = batch(model.config, lengths, left=False, seed=seed)
    labels = torch.arange(len(lengths)) % 3
    expected = theirs(**grid, labels=labels)
    expected.loss.backward()
    if path != "packed":
        model.set_attention(path)
    mine = model(**(packed(grid) if path == "packed" else grid), labels=labels)
    assert close(mine.logits, expected.logits) < TOLERANCE
    mine.loss.backward()
    compared = 0
    for (name, weight), wanted in zip(model.named_parameters(), theirs.parameters(), strict=True):
        if not name.endswith("Wqkv.bias"):  # of which a key's part is rounding noise in both
            assert weight.grad is not None and wanted.grad is not None
            largest = max(float(wanted.grad.abs().max()), 1.0)
            assert float((weight.grad - wanted.grad).abs().max()) <= TOLERANCE * largest, name
        compared += 1
    assert compared > 5


def test_real_sizes_beyond_every_window() -> None:
    """ModernBERT's own window, angles and depth order on a text of 1,500 tokens, SDPA in both."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=99, hidden_size=128, num_attention_heads=2, num_hidden_layers=4,
        intermediate_size=64, pad_token_id=0,
    )  # fmt: skip
    model = noisy(ours.ModernBertForMaskedLM(config))
    theirs = reference(model, attention="sdpa")
    grid = batch(config, [1500, 700, 65], left=False, seed=1)
    real = grid["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**grid).logits[real]
        assert close(model(**grid).logits[real], expected) < TOLERANCE
        assert close(model(**packed(grid)).logits, expected) < TOLERANCE


def test_a_far_token_is_seen_by_global_layers_alone() -> None:
    """By hand: with one local layer, a changed token moves the states of its window and no other;
    `local_attention` 8 reaches 4 places."""
    local = ["sliding_attention"]
    config = random_config(3, num_hidden_layers=1, layer_types=local, local_attention=8)
    model = noisy(ours.ModernBertModel(config))
    ids = torch.zeros(1, 200, dtype=torch.int64)
    other = ids.clone()
    other[0, 130] = 1
    for path in ("sdpa", "eager"):
        model.set_attention(path)
        with torch.no_grad():
            moved = (model(ids).last_hidden_state - model(other).last_hidden_state)[0].abs().sum(-1)
        assert torch.nonzero(moved > 1e-6).flatten().tolist() == list(range(126, 135))
    config = config.replace(layer_types=["full_attention"])
    model = noisy(ours.ModernBertModel(config))
    with torch.no_grad():
        moved = (model(ids).last_hidden_state - model(other).last_hidden_state)[0].abs().sum(-1)
    assert int((moved > 0).sum()) > 190


def test_rotation_by_hand() -> None:
    """Head of two numbers: one pair, frequency 1, so place p turns (1, 0) to (cos p, sin p); and a
    product of two turned heads depends on their distance alone."""
    angles = ours.rotary_angles(torch.tensor([0, 2]), theta=10_000.0, head_size=2)
    turned = ours.rotate(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]), angles)
    expected = torch.tensor([[[1.0, 0.0]], [[math.cos(2), math.sin(2)]]])
    assert torch.allclose(turned, expected, atol=1e-7)
    a, b = torch.randn(2, 1, 1, 8)
    products = []
    for start in (0, 5, 900):
        places = torch.tensor([[start], [start + 3]])
        cos, sin = ours.rotary_angles(places, theta=10_000.0, head_size=8)
        one, two = ours.rotate(a, (cos[0], sin[0])), ours.rotate(b, (cos[1], sin[1]))
        products.append(float((one * two).sum()))
    assert products == pytest.approx([products[0]] * 3, abs=1e-4)


def test_blocks_equal_one_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut into blocks changes nothing, whatever their size, masks of each query and padding
    tokens that see no text included."""
    model = noisy(ours.ModernBertModel(random_config(5, num_hidden_layers=3, local_attention=9)))
    grid = batch(model.config, [70, 70, 33], left=True, seed=3)
    real = grid["attention_mask"].bool()
    square = torch.rand(3, 70, 70, generator=torch.Generator().manual_seed(0)) < 0.6
    with torch.no_grad():
        model.set_attention("eager")
        expected = model(**grid).last_hidden_state
        expected_square = model(grid["input_ids"], square).last_hidden_state
        model.set_attention("packed")
        for size in (1, 7, 70, 999):
            monkeypatch.setattr(window, "BLOCK", size)
            assert close(model(**grid).last_hidden_state, expected) < TOLERANCE
            assert close(model(**packed(grid)).last_hidden_state, expected[real]) < TOLERANCE
            fused = model(grid["input_ids"], square).last_hidden_state
            assert close(fused, expected_square) < TOLERANCE


def test_a_text_answers_alike_alone_and_among_others() -> None:
    model = noisy(ours.ModernBertForSequenceClassification(random_config(9, local_attention=6)))
    grid = batch(model.config, [150, 30, 150, 1], left=False, seed=2)
    with torch.no_grad():
        together = model(**packed(grid), first_only=True).logits
        for row, length in enumerate([150, 30, 150, 1]):
            alone = model(grid["input_ids"][row : row + 1, :length]).logits
            assert close(together[row : row + 1], alone) < TOLERANCE


def test_words_at_some_places_and_first_tokens() -> None:
    model = noisy(ours.ModernBertForMaskedLM(random_config(11)))
    ends = packed(batch(model.config, [9, 4, 4], left=False, seed=2))
    places, labels = torch.tensor([0, 3, 12]), torch.tensor([1, 2, 3])
    with torch.no_grad():
        whole, some = model(**ends), model(**ends, predict_at=places, labels=labels)
        assert close(some.logits, whole.logits[places]) < TOLERANCE
        all_labels = torch.full((17,), -100)
        all_labels[places] = labels
        assert some.loss.item() == pytest.approx(model(**ends, labels=all_labels).loss.item())
        first = model.model(**ends, first_only=True).last_hidden_state
        assert torch.equal(first, model.model(**ends).last_hidden_state[[0, 9, 13]])
        types = model(**ends, token_type_ids=torch.ones(17, dtype=torch.int64))
    assert torch.equal(types.logits, whole.logits)


def test_gradient_checkpointing_changes_nothing() -> None:
    """Dropout included: the recomputed layer draws the same mask."""
    names = ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout")
    config = random_config(5, num_hidden_layers=3, **dict.fromkeys(names, 0.3))
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = ours.ModernBertForSequenceClassification(config).train()
        model.gradient_checkpointing_enable(enabled)
        torch.manual_seed(1)
        grid = batch(config, [140, 140, 3], left=False, seed=0)
        model(**packed(grid)).logits.sum().backward()
        grads.append(
            torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        )
    assert torch.equal(grads[0], grads[1])
    with torch.no_grad():
        assert not torch.equal(model(**grid).logits, model(**grid).logits)  # dropout is at work


def test_where_dropout_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Transformers: after the norm of the embeddings, on the attention weights and what
    attention writes, inside the feed-forward layer, before the classifier."""
    calls: list[tuple[int, float]] = []

    def record(inputs: Tensor, prob: float) -> Tensor:
        calls.append((inputs.shape[-1], prob))
        return inputs

    monkeypatch.setattr("filbert.model.modern.dropout", record)
    monkeypatch.setattr("filbert.model.attention.drop", record)
    config = random_config(
        5, num_hidden_layers=2, hidden_size=24, num_attention_heads=2, intermediate_size=7,
        attention_dropout=0.2, embedding_dropout=0.1, mlp_dropout=0.3, classifier_dropout=0.4,
    )  # fmt: skip
    model = ours.ModernBertForSequenceClassification(config)
    ids = torch.zeros(1, 5, dtype=torch.int64)
    model.train()(ids)
    layer = [(5, 0.2), (24, 0.2), (7, 0.3)]
    assert calls == [(24, 0.1), *layer, *layer, (24, 0.4)]
    calls.clear()
    model.eval()(ids)
    assert {prob for _, prob in calls} == {0.0}


def test_bf16_is_near_float32() -> None:
    config = ModernBertConfig(
        vocab_size=99, hidden_size=64, num_attention_heads=2, num_hidden_layers=3,
        intermediate_size=96, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ours.ModernBertModel(config).eval()
    ends = packed(batch(config, [500, 12, 133], left=False, seed=3))
    with torch.no_grad():
        exact = model(**ends).last_hidden_state
        rough = model.bfloat16()(**ends).last_hidden_state.float()
    assert float((rough - exact).norm() / exact.norm()) < 2e-2


def test_fresh_weights_have_the_spread_of_the_reference() -> None:
    """Each weight has the deviation of Transformers' own draw, and nothing beyond the cutoff."""
    config = ModernBertConfig(
        vocab_size=500, hidden_size=128, num_attention_heads=2, num_hidden_layers=4,
        intermediate_size=256, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ours.ModernBertForSequenceClassification(config)
    theirs = dict(
        transformers.ModernBertForSequenceClassification(
            transformers.ModernBertConfig(**config.to_dict(), **SMALL_VOCABULARY)
        ).named_parameters()
    )
    for name, weight in model.named_parameters():
        mine, wanted = float(weight.detach().std()), float(theirs[name].detach().std())
        assert mine == pytest.approx(wanted, rel=0.12, abs=1e-6), name
    cut = config.initializer_range * config.initializer_cutoff_factor
    assert float(model.model.layers[1].attn.Wqkv.weight.detach().abs().max()) <= cut
    assert float(model.model.embeddings.tok_embeddings.weight.detach()[0].abs().max()) == 0.0


@pytest.mark.parametrize(
    "name",
    ["ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"],
)
def test_folders_open_on_both_sides(name: str, tmp_path: Path) -> None:
    for seed in (21, 22):
        model = noisy(getattr(ours, name)(random_config(seed)))
        model.save_pretrained(tmp_path / "ours")
        theirs, told = getattr(transformers, name).from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
        assert not told["missing_keys"] and not told["unexpected_keys"]
        grid = batch(model.config, [150, 20], left=False, seed=1)
        field = "last_hidden_state" if name == "ModernBertModel" else "logits"
        with torch.no_grad():
            mine, expected = model(**grid)[field][:, :20], theirs(**grid)[field][:, :20]
            assert close(mine, expected) < TOLERANCE
            theirs.save_pretrained(tmp_path / "theirs")
            again = getattr(ours, name).from_pretrained(tmp_path / "theirs")
            assert torch.equal(again(**grid)[field], model(**grid)[field])
        assert again.config.kinds == model.config.kinds
        assert again.config.extra == {}


def test_heads_and_encoders_of_other_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pre-trained folder gives its encoder to a bare model and to a classifier; what is drawn
    afresh is told, unless a new head was asked for."""
    model = noisy(ours.ModernBertForMaskedLM(random_config(31)))
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        bare = ours.ModernBertModel.from_pretrained(tmp_path)
        fresh = ours.ModernBertForSequenceClassification.from_pretrained(
            tmp_path, new_head=True, num_labels=5
        )
        assert not caplog.records
        ours.ModernBertForSequenceClassification.from_pretrained(tmp_path)
        assert "classifier.weight" in caplog.text
    ends = packed(batch(model.config, [9, 4], left=False, seed=2))
    with torch.no_grad():
        expected = model.model(**ends).last_hidden_state
        assert torch.equal(bare(**ends).last_hidden_state, expected)
        assert torch.equal(fresh.model(**ends).last_hidden_state, expected)
    assert fresh(**ends).logits.shape == (2, 5)
    assert torch.equal(fresh.head.dense.weight, model.head.dense.weight)
    bare.save_pretrained(tmp_path / "bare")
    with torch.no_grad():
        again = ours.ModernBertForMaskedLM.from_pretrained(tmp_path / "bare")
        assert torch.equal(again.model(**ends).last_hidden_state, expected)


def test_words_can_be_swapped_in_either_encoder() -> None:
    """A grown word matrix is read with, and predicted with once it is tied again."""
    small = BertConfig(
        hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=9
    )
    for model in (BertForMaskedLM(small), ours.ModernBertForMaskedLM(random_config(3))):
        assert type(model.base_model).__name__ in ("BertModel", "ModernBertModel")
        assert model.base_model.base_model is model.base_model
        old = model.get_input_embeddings()
        assert old.weight.shape == (model.config.vocab_size, model.config.hidden_size)
        grown = torch.nn.Embedding(old.num_embeddings + 1, old.embedding_dim)
        model.set_input_embeddings(grown)
        model.tie_weights()
        assert model.base_model.get_input_embeddings() is grown
        names = {name for name, w in model.state_dict(keep_vars=True).items() if w is grown.weight}
        assert len(names) == 2 and any("decoder" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("single_label_classification", torch.tensor([2, 0])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
        ("regression", torch.tensor([[0.5, 1, 2], [0, 3, -1]])),
        ("regression of one", torch.tensor([0.5, 3.0])),
    ],
)
def test_losses_equal_reference(kind: str, labels: Tensor) -> None:
    config = random_config(7).replace(problem_type=kind.split()[0])
    if kind.endswith("one"):
        config = config.replace(num_labels=1)
    model = noisy(ours.ModernBertForSequenceClassification(config))
    grid = batch(config, [6, 3], left=False, seed=1)
    expected = reference(model)(**grid, labels=labels).loss
    assert abs(model(**grid, labels=labels).loss.item() - expected.item()) < TOLERANCE


# ModernBERT-base's config.json as answerdotai released it in December 2024.
RELEASED = {
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False,
    "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 50281,
    "decoder_bias": True, "deterministic_flash_attn": False, "embedding_dropout": 0.0,
    "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
    "gradient_checkpointing": False, "hidden_activation": "gelu", "hidden_size": 768,
    "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152,
    "layer_norm_eps": 1e-05, "local_attention": 128, "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0,
    "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12,
    "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute",
    "repad_logits_with_grad": False, "sep_token_id": 50282, "sparse_pred_ignore_index": -100,
    "sparse_prediction": False, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}  # fmt: skip


def test_the_released_configuration(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    config = ModernBertConfig.from_dict(RELEASED)
    assert not caplog.records and config.extra == {}
    assert config == ModernBertConfig(
        architectures=RELEASED["architectures"],  # type: ignore[arg-type]
        classifier_pooling="mean",
        bookkeeping=config.bookkeeping,
    )
    theirs = transformers.ModernBertConfig(**RELEASED)
    assert config.kinds == theirs.layer_types and config.kinds.count("full_attention") == 8
    config.save_pretrained(tmp_path)
    again = transformers.ModernBertConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == theirs.rope_parameters
    assert again.layer_types == theirs.layer_types
    assert again.sliding_window == theirs.sliding_window == 64
    assert read_any_config(tmp_path).kinds == config.kinds  # type: ignore[union-attr]


def test_both_spellings_of_layers_and_angles() -> None:
    new = {
        "model_type": "modernbert", "num_hidden_layers": 4, "local_attention": 16,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 7.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
        },
    }  # fmt: skip
    config = ModernBertConfig.from_dict(new)
    assert config.global_attn_every_n_layers == 2 and config.layer_types is None
    assert (config.global_rope_theta, config.local_rope_theta) == (7.0, 5.0)
    assert config.replace(num_hidden_layers=3).kinds == new["layer_types"][:3]  # type: ignore[index]
    odd = ["sliding_attention"] * 3 + ["full_attention"]
    assert ModernBertConfig.from_dict({**new, "layer_types": odd}).kinds == odd


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 36, "num_attention_heads": 12}, "must be even"),
        ({"hidden_size": 770}, "not a multiple"),
        ({"local_attention": 0}, "local_attention must be an integer"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers must be an integer"),
        ({"local_rope_theta": None}, "local_rope_theta must be a number"),
        ({"layer_types": ["full_attention"]}, "for each of the 22 layers"),
        ({"classifier_pooling": "max"}, "is not one of cls, mean"),
        ({"hidden_activation": "glu"}, "is not one of"),
        ({"mlp_dropout": 1.0}, r"mlp_dropout must be a number in \[0, 1\)"),
        ({"norm_bias": "no"}, "must be true or false"),
        ({"num_hidden_layers": 10**6}, "from 1 to 1000"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling .* not supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "supported are"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0, "factor": 2}}},
            "supported are",
        ),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(FilbertError, match=told):
        ModernBertConfig.from_dict({**RELEASED, **changes})


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    ours.ModernBertModel(random_config(1)).save_pretrained(tmp_path / "modern")
    small = BertConfig(
        hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=9
    )
    BertModel(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(FilbertError, match=r"'modernbert' is not supported.*ModernBertForMaskedLM"):
        BertModel.from_pretrained(tmp_path / "modern")
    with pytest.raises(FilbertError, match=r"'bert' is not supported.*open it with BertModel"):
        ours.ModernBertModel.from_pretrained(tmp_path / "bert")
    assert isinstance(read_any_config(tmp_path / "bert"), BertConfig)
    values = json.loads((tmp_path / "modern" / "config.json").read_text("utf-8"))
    wrong = {**values, "intermediate_size": 3}
    (tmp_path / "modern" / "config.json").write_text(json.dumps(wrong), "utf-8")
    with pytest.raises(FilbertError, match=r"Wi.weight is .* asks for \(6, "):
        ours.ModernBertModel.from_pretrained(tmp_path / "modern")


def test_batches_that_are_refused() -> None:
    model = ours.ModernBertModel(random_config(2, max_position_embeddings=20)).eval()
    ids, lengths = torch.zeros(21, dtype=torch.int64), torch.tensor([21])
    cases: list[tuple[str, dict[str, Any]]] = [
        ("a text of 21 tokens", {"input_ids": ids, "lengths": lengths}),
        ("a text of 21 tokens", {"input_ids": ids[None]}),
        ("a packed batch is", {"input_ids": ids, "lengths": torch.tensor([20])}),
        ("a packed batch is", {"input_ids": ids, "lengths": lengths, "output_attentions": True}),
        ("with lengths; got", {"input_ids": ids}),
        ("outside the model's vocabulary", {"input_ids": ids[None, :3] + 999}),
        ("give either", {}),
        ("is empty", {"input_ids": ids[None, :0]}),
        ("must be shaped", {"input_ids": ids[None, :3], "position_ids": ids[:2]}),
    ]
    for told, inputs in cases:
        with pytest.raises(FilbertError, match=told):
            model(**inputs)
    mean = random_config(2, classifier_pooling="mean")
    classifier = ours.ModernBertForSequenceClassification(mean)
    with pytest.raises(FilbertError, match="the mean over a text needs"):
        classifier(ids[None, :3], torch.ones(1, 3, 3))
    assert isinstance(model(ids[None, :3]), ModelOutput)
