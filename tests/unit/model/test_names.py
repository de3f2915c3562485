"""The table of names: every row in both directions, and the names of real files."""

from __future__ import annotations

import pytest
import torch

from filbert.model.bert import BertConfig, BertForPreTraining, BertForSequenceClassification
from filbert.model.names import (
    LAYOUTS,
    TABLE,
    from_google,
    from_layout,
    from_pytorch,
    is_training_state,
    to_google,
    to_layout,
    to_pytorch,
)

# As google-research/bert's modeling.py and run_*.py create them.
PAIRS = [
    ("bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings.weight", False),
    ("bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight", False),
    ("bert/embeddings/LayerNorm/beta", "bert.embeddings.LayerNorm.bias", False),
    (
        "bert/encoder/layer_11/attention/self/query/kernel",
        "bert.encoder.layer.11.attention.self.query.weight",
        True,
    ),
    (
        "bert/encoder/layer_0/attention/output/LayerNorm/gamma",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        False,
    ),
    (
        "bert/encoder/layer_23/intermediate/dense/bias",
        "bert.encoder.layer.23.intermediate.dense.bias",
        False,
    ),
    ("bert/pooler/dense/kernel", "bert.pooler.dense.weight", True),
    (
        "bert/encoder/embedding_hidden_mapping_in/kernel",
        "bert.embeddings.embedding_projection.weight",
        True,
    ),
    ("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight", True),
    ("cls/predictions/output_bias", "cls.predictions.bias", False),
    ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", False),
    ("output_weights", "classifier.weight", False),
    ("cls/squad/output_bias", "qa_outputs.bias", False),
]


@pytest.mark.parametrize(("google", "ours", "transposed"), PAIRS)
def test_known_names(google: str, ours: str, transposed: bool) -> None:
    assert from_google(google) == (ours, transposed)
    assert to_google(ours) == (google, transposed)


def test_every_row_is_reversible() -> None:
    assert len({row[0] for row in TABLE}) == len({row[1] for row in TABLE}) == len(TABLE)
    for number in ("0", "7", "123"):
        for our_row, google_row, transposed in TABLE:
            ours, google = our_row.replace("#", number), google_row.replace("#", number)
            assert from_google(google) == (ours, transposed)
            assert to_google(ours) == (google, transposed)


def test_every_tensor_of_our_models_has_a_google_name() -> None:
    config = BertConfig(num_hidden_layers=2, embedding_size=128)
    names: set[str] = set()
    with torch.device("meta"):
        for model in (BertForPreTraining, BertForSequenceClassification):
            names |= set(model(config).state_dict())
    names.remove("cls.predictions.decoder.weight")  # tied to the word embeddings
    google = {name: to_google(name) for name in names}
    assert [name for name, found in google.items() if found is None] == []
    assert {from_google(found[0])[0] for found in google.values() if found} == names  # type: ignore[index]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "global_step",
        "bert/encoder/layer_/output/dense/kernel",
        "bert/encoder/layer_01/output/dense/kernel",  # another spelling would not be reversible
        "bert/encoder/layer_99999/output/dense/kernel",
        "bert/encoder/layer_#/output/dense/kernel",
        "bert/encoder/layer_0/output/dense",
        "bert/encoder/layer_0/output/dense/kernel/adam_m",
        "BERT/pooler/dense/kernel",
    ],
)
def test_other_names_are_unknown(name: str) -> None:
    assert from_google(name) is None
    assert to_google(name.replace("/", ".")) is None


def test_training_state_is_told_from_weights() -> None:
    for name, _, _ in PAIRS:
        assert not is_training_state(name)
        for slot in ("adam_m", "adam_v", "AdamWeightDecayOptimizer_1", "Momentum", "lamb_v"):
            assert is_training_state(f"{name}/{slot}")
    assert is_training_state("global_step")
    assert is_training_state("beta1_power")
    assert not is_training_state("crf_loss/transitions")


@pytest.mark.parametrize(
    ("old", "ours"),
    [
        ("embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("encoder.layer.3.output.LayerNorm.beta", "bert.encoder.layer.3.output.LayerNorm.bias"),
        ("cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.weight"),
        ("pooler.dense.weight", "bert.pooler.dense.weight"),
        ("classifier.weight", "classifier.weight"),
        ("head.gamma", "head.gamma"),  # no LayerNorm: not ours to rename
    ],
)
def test_old_pytorch_names(old: str, ours: str) -> None:
    assert from_pytorch(old) == ours
    assert from_pytorch(ours) == ours
    prefix = old.startswith("bert.") or not ours.startswith("bert.")
    old_norm = old.endswith(("gamma", "beta"))
    assert to_pytorch(ours, prefix=prefix, old_norm=old_norm) == old


# As the models of Transformers name them.
LAYOUT_PAIRS = [
    ("roberta", "roberta.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.bias"),
    ("roberta", "lm_head.layer_norm.weight", "cls.predictions.transform.LayerNorm.weight"),
    ("roberta", "lm_head.decoder.weight", "cls.predictions.decoder.weight"),
    ("roberta", "lm_head.bias", "cls.predictions.bias"),
    ("roberta", "classifier.out_proj.weight", "classifier.weight"),
    (
        "distilbert",
        "distilbert.transformer.layer.11.attention.q_lin.bias",
        "bert.encoder.layer.11.attention.self.query.bias",
    ),
    (
        "distilbert",
        "distilbert.transformer.layer.0.sa_layer_norm.weight",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
    ),
    ("distilbert", "vocab_projector.bias", "cls.predictions.bias"),
    (
        "electra",
        "electra.embeddings_project.weight",
        "bert.embeddings.embedding_projection.weight",
    ),
    ("electra", "generator_lm_head.bias", "cls.predictions.bias"),
]


@pytest.mark.parametrize(("layout", "theirs", "ours"), LAYOUT_PAIRS)
def test_names_of_other_models(layout: str, theirs: str, ours: str) -> None:
    assert from_layout(layout, theirs) == ours
    assert to_layout(layout, ours) == theirs


def test_every_row_of_other_models_is_reversible() -> None:
    for layout, rows in LAYOUTS.items():
        assert len(set(rows.values())) == len(rows)
        for number in ("0", "7", "123"):
            for our_row, their_row in rows.items():
                ours, theirs = our_row.replace("#", number), their_row.replace("#", number)
                assert from_layout(layout, theirs) == ours
                assert to_layout(layout, ours) == theirs
        bare = f"{layout}.embeddings.word_embeddings.weight".removeprefix(f"{layout}.")
        assert from_layout(layout, bare) == "bert.embeddings.word_embeddings.weight"
        for unknown in ("pre_classifier.weight", "bert.encoder.layer.#.output.dense.weight", ""):
            assert from_layout(layout, unknown) is None
