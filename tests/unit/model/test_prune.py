"""Parts taken out of a model: against models built without them, and by transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification
from filbert.model.modern import ModernBertForMaskedLM, ModernBertForSequenceClassification
from filbert.model.modern_config import ModernBertConfig
from filbert.model.prune import (
    head_gates,
    keep_layers,
    keep_words,
    layers_of,
    only_layers,
    silence_heads,
)
from tests.tiny_bundle import tiny_config

IDS = torch.tensor([2, 36, 60, 61, 62, 40, 3, 2, 70, 71, 3])
LENGTHS = torch.tensor([7, 4])


def modern_config(**changes: Any) -> ModernBertConfig:
    values: dict[str, Any] = {
        "vocab_size": 81, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 24, "max_position_embeddings": 40, "local_attention": 4,
        "pad_token_id": 0, "initializer_range": 0.5, "attention_bias": True,
        "bookkeeping": {"cls_token_id": 2, "sep_token_id": 3},
    }  # fmt: skip
    return ModernBertConfig(**{**values, **changes})


def make(kind: type, **changes: Any) -> Any:
    torch.manual_seed(11)
    modern = kind in (ModernBertForMaskedLM, ModernBertForSequenceClassification)
    config = modern_config(**changes) if modern else tiny_config(num_hidden_layers=4, **changes)
    model = kind(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.uniform_(-0.5, 0.5)
    return model


@torch.no_grad()
def answer(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    out = model(input_ids=ids, lengths=LENGTHS)
    return out.prediction_logits if "prediction_logits" in out else out.logits


CLASSIFIERS = [BertForSequenceClassification, ModernBertForSequenceClassification]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_layers_left_are_those_of_a_model_built_so(kind: type, tmp_path: Path) -> None:
    model = make(kind)
    whole = answer(model)
    tensors = model.state_dict()
    keep_layers(model, [0, 2])
    assert model.config.num_hidden_layers == 2 == len(layers_of(model))
    modern = kind is ModernBertForSequenceClassification
    prefix = "model.layers" if modern else "bert.encoder.layer"
    if modern:  # layers 0 and 3 of 4 see the whole text
        assert model.config.kinds == ["full_attention", "sliding_attention"]
    built = kind(model.config).eval()
    names = {
        name: tensors[name.replace(f"{prefix}.1.", f"{prefix}.2.")] for name in built.state_dict()
    }
    built.load_state_dict(names)
    assert torch.equal(answer(model), answer(built))
    assert not torch.allclose(answer(model), whole)
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = theirs(input_ids=IDS[None, :7]).logits
    assert torch.allclose(logits, answer(model)[:1], atol=1e-5)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_trial_leaves_the_model_as_it_was(kind: type) -> None:
    model = make(kind)
    whole = answer(model)
    with pytest.raises(RuntimeError), only_layers(model, [0, 3]):
        assert len(layers_of(model)) == 2
        raise RuntimeError
    assert torch.equal(answer(model), whole)
    assert model.config.num_hidden_layers == model.base_model.config.num_hidden_layers == 4


@pytest.mark.parametrize("kept", [[], [4], [1, 0], [-1], [0, 0]])
def test_layers_that_are_not_there(kept: list[int]) -> None:
    with pytest.raises(UsageError, match="rising numbers below 4"):
        keep_layers(make(BertForSequenceClassification), kept)


def test_the_first_layer_of_a_modernbert_stays() -> None:
    with pytest.raises(UsageError, match="first layer"):
        keep_layers(make(ModernBertForSequenceClassification), [1, 2])


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_silenced_head_adds_nothing(kind: type, tmp_path: Path) -> None:
    """As if its result were multiplied by zero; transformers agrees."""
    model = make(kind)
    gated = copy.deepcopy(model)
    silent = {0: [1, 3], 2: [0]}
    hooks = []
    for number, heads in silent.items():
        layer: Any = layers_of(gated)[number]
        output = layer.attn.Wo if hasattr(layer, "attn") else layer.attention.output.dense

        def close(_: Any, inputs: Any, heads: list[int] = heads) -> Any:
            context = inputs[0].unflatten(-1, (4, 4)).clone()
            context[..., heads, :] = 0
            return (context.flatten(-2),)

        hooks.append(output.register_forward_pre_hook(close))
    silence_heads(model, silent)
    assert torch.allclose(answer(model), answer(gated), atol=1e-6)
    for hook in hooks:
        hook.remove()
    assert not torch.allclose(answer(model), answer(gated), atol=1e-3)
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = theirs(input_ids=IDS[None, :7]).logits
    assert torch.allclose(logits, answer(model)[:1], atol=1e-5)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_gates_gradient_is_that_of_turning_the_head_down(kind: type) -> None:
    """Against differences: the head's rows of W^O scaled a little up and down."""
    model = make(kind).double()
    wanted = torch.tensor([0, 1])

    def loss() -> torch.Tensor:
        logits = model(input_ids=IDS, lengths=LENGTHS).logits
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")

    with head_gates(model) as gates:
        slopes = torch.autograd.grad(loss(), gates)
        assert [slope.shape[1] for slope in slopes] == [4, 4, 4, 4]
    # the rotation of a ModernBERT computes in float32, which forbids a small step
    step, near = (1e-2, 5e-3) if kind is ModernBertForSequenceClassification else (1e-5, 1e-6)
    for number in (0, 3):
        layer: Any = layers_of(model)[number]
        output = layer.attn.Wo if hasattr(layer, "attn") else layer.attention.output.dense
        for head in (0, 2):
            rows, values = slice(head * 4, head * 4 + 4), []
            for sign in (1, -1):
                with torch.no_grad():
                    old = output.weight.clone()
                    output.weight[:, rows] *= 1 + sign * step
                    values.append(loss().item())
                    output.weight.copy_(old)
            difference = (values[0] - values[1]) / (2 * step)
            assert slopes[number][:, head].sum().item() == pytest.approx(difference, abs=near)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining, ModernBertForMaskedLM])
def test_words_left_have_the_scores_that_they_had(kind: type, tmp_path: Path) -> None:
    model = make(kind)
    kept = [0, 1, 2, 3, 4, 36, 40, 60, 61, 62, 70, 71, 80]
    before = answer(model)
    place = {old: new for new, old in enumerate(kept)}
    keep_words(model, kept)
    ids = torch.tensor([place[i] for i in IDS.tolist()])
    after = answer(model, ids)
    assert torch.allclose(after, before[:, kept], atol=1e-5)
    assert model.config.vocab_size == len(kept) and model.config.pad_token_id == 0
    assert model.get_input_embeddings().weight.shape == (len(kept), 16)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert torch.equal(answer(again, ids), after)
    auto = transformers.AutoModelForPreTraining if kind is BertForPreTraining else (
        transformers.AutoModelForMaskedLM
    )  # fmt: skip
    theirs = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        out = theirs(input_ids=ids[None, :7])
    logits = out.prediction_logits if kind is BertForPreTraining else out.logits
    assert torch.allclose(logits[0], after[:7], atol=1e-4)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_answers_to_the_bit(kind: type) -> None:
    model = make(kind)
    before = answer(model)
    kept = [0, 1, 3, 2, 36, 40, 60, 61, 62, 70, 71]  # in any order
    keep_words(model, kept)
    ids = torch.tensor([kept.index(i) for i in IDS.tolist()])
    assert torch.equal(answer(model, ids), before)
    if kind is ModernBertForSequenceClassification:  # ids that the configuration names follow
        assert model.config.bookkeeping == {"cls_token_id": 3, "sep_token_id": 2}


def test_padding_has_to_stay() -> None:
    with pytest.raises(FilbertError, match="padding token"):
        keep_words(make(BertForMaskedLM), [1, 2, 3])
