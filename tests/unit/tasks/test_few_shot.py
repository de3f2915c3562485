"""Few shots: the draw, the pairs, and the layer that takes a mean, held to the mean itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from filbert.errors import FilbertError
from filbert.model.bert import BertForSequenceClassification
from filbert.model.sentence_folder import SentenceSettings
from filbert.tasks import classify, embed, few_shot
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_encoder

TEXTS = ["call now", "the river bank", "你好", "lunch like home", "free prize call", "it"]


def test_the_draw() -> None:
    labels = ["a"] * 20 + ["b"] * 3 + ["c"] * 9
    places = few_shot.draw_shots(labels, shots=5, seed=1)
    assert [[labels[p] for p in places].count(x) for x in "abc"] == [5, 3, 5]
    assert places == few_shot.draw_shots(labels, shots=5, seed=1)
    assert places != few_shot.draw_shots(labels, shots=5, seed=2)
    with pytest.raises(FilbertError, match="at least 2 classes"):
        few_shot.draw_shots(["a", "a"], shots=1, seed=0)


def test_the_pairs() -> None:
    gold = np.array([0, 0, 0, 1, 1, 2])
    pairs = few_shot.draw_pairs(gold, iterations=4, seed=0)
    first, second = pairs.members.T
    assert (pairs.same == (gold[first] == gold[second])).all() and (first != second).all()
    # 4 partners of its class for all but the last example, which is alone; 4 others for each
    assert pairs.same.sum() == 5 * 4 and len(pairs.same) == 5 * 4 + 6 * 4
    assert (np.bincount(first) == [8, 8, 8, 8, 8, 4]).all()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path / "base")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_classifier_reads_the_sentence_vector(base: Path, pooling: str) -> None:
    model = classify.head(str(base), labels=["x", "y"], problem_type="single_label_classification")
    assert isinstance(model, BertForSequenceClassification)
    encoded = embed.encode(BertTokenizer(VOCABULARY), TEXTS, max_length=16)
    settings = SentenceSettings(pooling, False, 16)  # type: ignore[arg-type]
    vectors = embed.predict_vectors(model.bert, encoded, settings)
    few_shot.as_classifier(model, pooling=pooling)
    found = few_shot.features(model, encoded) / few_shot.POOLER_FACTOR
    if pooling == "mean":  # the layer's norm takes off the mean of the numbers and scales them
        vectors = (vectors - vectors.mean(1, keepdims=True)) / vectors.std(1, keepdims=True)
    assert np.abs(found - vectors).max() < 0.01  # tanh, and 1/1024 of the first token's state
    layers = 2 + (pooling == "mean")
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == layers
    assert model.bert.config.num_hidden_layers == layers


def test_a_maximum_is_refused(base: Path) -> None:
    model = classify.head(str(base), labels=["x", "y"], problem_type="single_label_classification")
    with pytest.raises(FilbertError, match="mean and cls alone"):
        few_shot.as_classifier(model, pooling="max")  # type: ignore[arg-type]


def test_it_is_an_ordinary_bert(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = classify.head(str(base), labels=["x", "y"], problem_type="single_label_classification")
    assert isinstance(model, BertForSequenceClassification)
    few_shot.as_classifier(model, pooling="mean")
    draw = np.random.default_rng(0)
    weight, bias = draw.normal(size=(2, 16)), draw.normal(size=2)
    few_shot.put_head(model, (50 * weight).astype(np.float32), bias.astype(np.float32))
    model.save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    encoded = embed.encode(BertTokenizer(VOCABULARY), TEXTS, max_length=16)
    ours = classify.predict_logits(model, encoded)
    again = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(classify.predict_logits(again, encoded), ours, atol=1e-5)
    for n in range(len(TEXTS)):
        ids = torch.from_numpy(encoded.gather(np.array([n])).input_ids)[None]
        with torch.no_grad():
            np.testing.assert_allclose(theirs.eval()(ids).logits[0].numpy(), ours[n], atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_is_scikit_learns_whatever_the_scale(classes: int) -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(40, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gold = np.arange(40) % classes
    reference = LogisticRegression(C=few_shot.STRENGTH, max_iter=1000).fit(vectors, gold)
    for scale in (1.0, 0.02):
        weight, bias = few_shot.fit_head(vectors * np.float32(scale), gold, classes=classes)
        logits = torch.from_numpy(vectors * np.float32(scale) @ weight.T + bias)
        np.testing.assert_allclose(
            logits.softmax(-1).numpy(), reference.predict_proba(vectors), atol=1e-3
        )
