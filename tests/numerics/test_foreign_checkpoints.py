"""RoBERTa, DistilBERT and ELECTRA folders, opened as the BERT inside, against `transformers`.

Random small configurations, every weight drawn. Hidden states and logits are held to 1e-5 at unit
rms, padded and packed, and once more after our own `save_pretrained`, in Transformers' BERT.
"""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from filbert.errors import FilbertError
from filbert.model import bert as ours
from filbert.model.config import BertConfig, read_config
from filbert.model.weights import read_weights, write_weights

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
KINDS = ("Roberta", "DistilBert", "Electra")


def foreign_config(kind: str, seed: int, **changes: Any) -> Any:
    draw = random.Random(seed)
    heads, pad = draw.choice([1, 2, 4]), draw.choice([0, 1, 3])
    hidden = heads * draw.choice([4, 8])
    activation = "gelu"
    values: dict[str, Any] = {
        "vocab_size": draw.choice([7, 50]),
        "initializer_range": 0.1,
        "pad_token_id": pad,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "max_position_embeddings": 40,
        "id2label": {0: "a", 1: "b", 2: "c"},
    }
    layers, inner = draw.choice([1, 3]), draw.choice([5, 32])
    if kind == "DistilBert":
        values |= {"dim": hidden, "n_heads": heads, "n_layers": layers, "hidden_dim": inner}
        values |= {"activation": draw.choice(["gelu", "relu"])}
    else:
        values |= {"hidden_size": hidden, "num_attention_heads": heads, "hidden_act": activation}
        values |= {"num_hidden_layers": layers, "intermediate_size": inner}
        values |= {"layer_norm_eps": draw.choice([1e-5, 1e-12])}
        values |= {"type_vocab_size": 1 if kind == "Roberta" else 2}
    if kind == "Electra":
        values |= {"embedding_size": draw.choice([hidden, 6])}
    return getattr(transformers, f"{kind}Config")(**{**values, **changes})


def foreign(name: str, seed: int, folder: Path, **changes: Any) -> Any:
    """A model of Transformers with every weight drawn, saved in `folder`."""
    kind = next(kind for kind in KINDS if name.startswith(kind))
    torch.manual_seed(seed)
    config = foreign_config(kind, seed, **changes)
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
    model.save_pretrained(folder)
    return model.eval()


def batch(config: BertConfig, *, segments: bool) -> dict[str, Tensor]:
    """Lengths 9, 4 and 1, padding behind the text; no real token is the padding token, as RoBERTa
    would give it no position."""
    mask = (torch.arange(9) < torch.tensor([9, 4, 1])[:, None]).long()
    ids = torch.randint(
        config.vocab_size - 1, mask.shape, generator=torch.Generator().manual_seed(0)
    )
    pad = config.pad_token_id
    assert pad is not None
    ids = (ids + (ids >= pad)).where(mask.bool(), torch.tensor(pad))
    grid = {"input_ids": ids, "attention_mask": mask}
    if segments:
        grid["token_type_ids"] = (torch.arange(9) > 2).long().expand(mask.shape).contiguous()
    return grid


def packed(grid: dict[str, Tensor]) -> dict[str, Tensor]:
    real = grid["attention_mask"].bool()
    rest = {name: grid[name][real] for name in grid if name != "attention_mask"}
    return {**rest, "lengths": real.sum(1)}


@torch.no_grad()
def close(mine: Tensor, theirs: Tensor) -> float:
    scale = theirs.pow(2).mean().sqrt().clamp_min(1e-6)
    return float(((mine - theirs) / scale).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_hidden_states_equal_reference(kind: str, seed: int, tmp_path: Path) -> None:
    theirs = foreign(f"{kind}Model", seed, tmp_path)
    model = ours.BertModel.from_pretrained(tmp_path)
    grid = batch(model.config, segments=kind == "Electra")
    real = grid["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**grid, output_hidden_states=True)
        mine = model(**grid, output_hidden_states=True)
        ends = model(**packed(grid))
    states = expected.hidden_states
    assert len(mine.hidden_states) == len(states) == model.config.num_hidden_layers + 1
    for one, other in zip(mine.hidden_states, states, strict=True):
        assert close(one[real], other[real]) < TOLERANCE
    assert close(ends.last_hidden_state, expected.last_hidden_state[real]) < TOLERANCE
    if kind == "Roberta":
        assert close(mine.pooler_output, expected.pooler_output) < TOLERANCE


WORD_MODELS = ("RobertaForMaskedLM", "DistilBertForMaskedLM", "ElectraForMaskedLM")


@pytest.mark.parametrize("name", WORD_MODELS)
@pytest.mark.parametrize("seed", range(5))
def test_words_equal_reference(
    name: str, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = foreign(name, seed, tmp_path)
    with caplog.at_level(logging.WARNING, logger="filbert"):
        model = ours.BertForMaskedLM.from_pretrained(tmp_path)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("filbert")] == []
    assert model.config.architectures == ["BertForMaskedLM"] and model.config.extra == {}
    assert model.config.model_type == "bert"
    grid = batch(model.config, segments=name.startswith("Electra"))
    real = grid["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**grid).logits[real]
        assert close(model(**grid).logits[real], expected) < TOLERANCE
        assert close(model(**packed(grid)).logits, expected) < TOLERANCE
        model.save_pretrained(tmp_path / "bert")
        again = ours.BertForMaskedLM.from_pretrained(tmp_path / "bert")
        assert torch.equal(again(**grid).logits, model(**grid).logits)
        if not model.config.factorised:  # which Transformers' BERT does not know
            foreign_again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "bert")
            assert close(foreign_again(**grid).logits[real], expected) < TOLERANCE


def test_the_longest_text_and_one_token_more(tmp_path: Path) -> None:
    """40 positions of a RoBERTa whose padding is token 1 are 38 tokens of text."""
    theirs = foreign("RobertaModel", 7, tmp_path, pad_token_id=1)
    model = ours.BertModel.from_pretrained(tmp_path)
    assert model.config.max_position_embeddings == 38
    ids = torch.full((1, 39), 3)
    with torch.no_grad():
        expected = theirs(ids[:, :38]).last_hidden_state
        assert close(model(ids[:, :38]).last_hidden_state, expected) < TOLERANCE
    with pytest.raises(FilbertError, match="a text of 39 tokens; this model takes at most 38"):
        model(ids)


def test_classes_of_a_roberta_equal_reference(tmp_path: Path) -> None:
    """Its head is BERT's pooler and classifier; an unused pooler beside it, as files of 2019 have,
    does not get in its way, whichever stands first."""
    theirs = foreign("RobertaForSequenceClassification", 3, tmp_path)
    model = ours.BertForSequenceClassification.from_pretrained(tmp_path)
    grid = batch(model.config, segments=False)
    with torch.no_grad():
        expected = theirs(**grid).logits
        assert close(model(**grid).logits, expected) < TOLERANCE
        assert close(model(**packed(grid)).logits, expected) < TOLERANCE
    tensors = read_weights(tmp_path)
    pooler = {
        f"roberta.pooler.dense.{last}": torch.randn_like(tensors[f"classifier.dense.{last}"])
        for last in ("weight", "bias")
    }
    write_weights({**pooler, **tensors}, tmp_path)
    again = ours.BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(**grid).logits, model(**grid).logits)


@pytest.mark.parametrize("kind", ["DistilBert", "Electra"])
def test_a_head_that_bert_has_no_place_for(kind: str, tmp_path: Path) -> None:
    """Refused; its encoder takes a new head, and nothing of the old one gets into it."""
    theirs = foreign(f"{kind}ForSequenceClassification", 5, tmp_path)
    with pytest.raises(FilbertError, match=r"classification head of this .* new_head=True"):
        ours.BertForSequenceClassification.from_pretrained(tmp_path)
    model = ours.BertForSequenceClassification.from_pretrained(tmp_path, new_head=True)
    assert torch.equal(model.classifier.bias, torch.zeros(3))
    grid = batch(model.config, segments=False)
    real = grid["attention_mask"].bool()
    bare = ours.BertModel.from_pretrained(tmp_path)
    with torch.no_grad():
        encoder = theirs.get_submodule(kind.lower())
        expected = encoder(**grid).last_hidden_state[real]
        for bert in (model.bert, bare):
            assert close(bert(**grid).last_hidden_state[real], expected) < TOLERANCE


def test_a_discriminator_is_read_as_its_encoder(tmp_path: Path) -> None:
    theirs = foreign("ElectraForPreTraining", 5, tmp_path, embedding_size=6)
    assert read_config(tmp_path).architectures == ["BertModel"]
    model = ours.BertModel.from_pretrained(tmp_path)
    grid = batch(model.config, segments=True)
    with torch.no_grad():
        expected = theirs.electra(**grid).last_hidden_state
    real = grid["attention_mask"].bool()
    assert close(model(**grid).last_hidden_state[real], expected[real]) < TOLERANCE


@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "ElectraForMaskedLM"])
def test_a_word_head_with_another_activation(name: str, tmp_path: Path) -> None:
    """Their word heads compute GELU whatever the layers do; the encoder alone can be read."""
    theirs = foreign(name, 2, tmp_path, hidden_act="relu")
    with pytest.raises(FilbertError, match="predicts words through GELU but its layers use 'relu'"):
        ours.BertForMaskedLM.from_pretrained(tmp_path)
    model = ours.BertModel.from_pretrained(tmp_path)
    grid = batch(model.config, segments=False)
    real = grid["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs.base_model(**grid).last_hidden_state
    assert close(model(**grid).last_hidden_state[real], expected[real]) < TOLERANCE


def test_training_goes_on_from_a_foreign_folder(tmp_path: Path) -> None:
    """Token types of a DistilBERT start at zero for both segments and then learn."""
    foreign("DistilBertForMaskedLM", 4, tmp_path)
    model = ours.BertForMaskedLM.from_pretrained(tmp_path, hidden_dropout_prob=0.0).train()
    grid = batch(model.config, segments=True)
    types = model.bert.embeddings.token_type_embeddings.weight
    assert types.shape[0] == 2 and not types.any()
    model(**packed(grid), labels=packed(grid)["input_ids"]).loss.backward()
    assert types.grad is not None and (types.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pad_token_id": None}, "pad_token_id must be an integer from 0"),
        ({"pad_token_id": True}, "pad_token_id must be an integer from 0"),
        ({"max_position_embeddings": 2}, "must be an integer over 2"),
        ({"max_position_embeddings": "514"}, "must be an integer over 2"),
        ({"model_type": "albert"}, "model_type 'albert' is not supported"),
        ({"model_type": ["roberta"]}, "is not supported"),
        ({"is_decoder": True}, "ask for a decoder"),
        ({"max_position_embeddings": 39}, r"is \(38, .* asks for \(37, "),
    ],
)
def test_configurations_that_are_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    foreign("RobertaModel", 1, tmp_path, pad_token_id=1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    with pytest.raises(FilbertError, match=told):
        ours.BertModel.from_pretrained(tmp_path)


def test_what_a_configuration_leaves_out() -> None:
    """The defaults of Transformers, which differ from BERT's for these keys."""
    for kind in KINDS:
        theirs = getattr(transformers, f"{kind}Config")()
        mine = BertConfig.from_dict({"model_type": kind.lower()})
        unused = 2 if kind == "Roberta" else 0
        assert mine.max_position_embeddings == theirs.max_position_embeddings - unused
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(mine, name) == getattr(theirs, name), (kind, name)
        assert mine.pad_token_id == theirs.pad_token_id
        inner = theirs.hidden_dim if kind == "DistilBert" else theirs.intermediate_size
        assert mine.intermediate_size == inner
        if kind == "Electra":
            assert mine.embedding_size == theirs.embedding_size
        if kind == "DistilBert":
            assert mine.classifier_dropout == theirs.seq_classif_dropout
