"""Whole runs on small data: every kind of label, long texts, seeds, early stopping, readers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert import load
from filbert.bundle import open_bundle, read_manifest
from filbert.errors import FilbertError, UsageError
from filbert.train.classify import TrainResult, train_classify
from filbert.train.options import ClassifyOptions, parse_options
from tests.tiny import WORDS, reviews, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def train(base: Path, data: Path, out: Path, **changes: Any) -> TrainResult:
    values = {
        "data": str(data),
        "base": str(base),
        "out": str(out),
        "batch_tokens": 200,
        "epochs": 8.0,
        "lr": 3e-3,
        "threads": 1,
        "tensorboard": False,
    }
    return train_classify(ClassifyOptions(**{**values, **changes}), quiet=True)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_one_label(base: Path, tmp_path: Path, precision: str) -> None:
    data = reviews(tmp_path / "train.csv", 300)
    result = train(base, data, tmp_path / "run", precision=precision)
    assert result.scores["accuracy"] == 1.0  # a word decides; anything less is a defect
    out = tmp_path / "run"
    answers = load(out)(["the film was superb", "a hotel was awful"])
    assert [answer["label"] for answer in answers] == ["pos", "neg"]
    for name in ("metrics.jsonl", "report.html", "recipe.toml", "environment.json", "README.md"):
        assert (out / name).stat().st_size > 0
    assert not (out / "checkpoints").exists()
    manifest = read_manifest(out)
    assert manifest.labels == ["neg", "pos"] and manifest.provenance["rows"] == 270


def test_bundle_opens_in_transformers(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    train(base, reviews(tmp_path / "train.csv", 60), tmp_path / "run", epochs=1.0)
    out = tmp_path / "run"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(str(out)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(out))
    assert theirs.config.id2label == {0: "neg", 1: "pos"}
    texts = ["the film was superb", "a book", "hotel show was dull dull dull"]
    with torch.no_grad():
        expected = theirs(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        ours = open_bundle(out)
        grid = ours.tokenizer(texts, padding=True, return_tensors="pt")
        mine = ours.model(**grid).logits
    assert (mine - expected).abs().max().item() < 1e-5
    classifier = load(out, precision="float32")
    np.testing.assert_allclose(classifier.logits(texts), expected.numpy(), atol=1e-5)


def test_several_labels(base: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = []
    for _ in range(400):
        words = draw.sample(WORDS, 4)
        labels = [name for name in ("film", "book", "hotel") if name in words]
        rows.append(json.dumps({"text": " ".join(words), "labels": labels}))
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(rows))
    result = train(base, data, tmp_path / "run", epochs=15.0, class_weights="balanced")
    assert result.scores["f1_micro"] > 0.95
    manifest = read_manifest(tmp_path / "run")
    assert manifest.problem_type == "multi_label_classification"
    assert manifest.thresholds is not None and len(manifest.thresholds) == 3
    answer = load(tmp_path / "run")("good film and book")
    assert sorted(answer["labels"]) == ["book", "film"]


def test_regression_learns_numbers_of_any_size(base: Path, tmp_path: Path) -> None:
    """Prices around 100,000: learned rescaled, answered in the user's own unit."""
    draw = random.Random(0)
    lines = ["text\tscore"]
    for _ in range(400):
        count = draw.randint(0, 4)
        words = ["good"] * count + ["film"] * (4 - count)
        draw.shuffle(words)
        lines.append(f"{' '.join(words)}\t{100_000.5 + 1000 * count}")
    data = tmp_path / "train.tsv"
    data.write_text("\n".join(lines) + "\n")
    result = train(base, data, tmp_path / "run", epochs=20.0, problem_type="regression")
    assert result.scores["pearson"] > 0.97
    value = load(tmp_path / "run")("good good good film")["score"]
    assert abs(value - 103_000.5) < 500
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "run"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "run"))
    theirs.eval()
    with torch.no_grad():
        told = theirs(**tokenizer("good good good film", return_tensors="pt")).logits.item()
    assert abs(told - 103_000.5) < 500  # the rescaling is in the weights, not in filbert.json


def test_pairs_and_long_texts(base: Path, tmp_path: Path) -> None:
    """Same or different last word; one side far over the model's 32 tokens goes in windows."""
    draw = random.Random(0)
    lines = ["sentence1,sentence2,label"]
    for _ in range(60):
        first, second = draw.choice(WORDS[10:]), draw.choice(WORDS[10:])
        lines.append(f"{'the a ' * 40}{first},{second},{'same' if first == second else 'other'}")
    data = tmp_path / "train.csv"
    data.write_text("\n".join(lines) + "\n")
    train(base, data, tmp_path / "run", epochs=1.0)
    manifest = read_manifest(tmp_path / "run")
    assert manifest.pair and manifest.windows and manifest.max_length == 32
    answer = load(tmp_path / "run")([("the a " * 500 + "film", "film")])
    assert answer[0]["label"] in {"same", "other"}


def test_several_seeds(base: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.csv", 80)
    result = train(base, data, tmp_path / "run", seeds=3, epochs=1.0)
    summary = json.loads((tmp_path / "run" / "seeds.json").read_text())
    each = [seed["scores"]["accuracy"] for seed in summary["seeds"]]
    assert [seed["seed"] for seed in summary["seeds"]] == [42, 43, 44]
    assert summary["scores"]["accuracy"]["mean"] == pytest.approx(np.mean(each))
    assert summary["scores"]["accuracy"]["sd"] == pytest.approx(np.std(each, ddof=1))
    assert summary["scores"]["accuracy"]["best"] == max(each)
    assert result.scores["accuracy"] == pytest.approx(np.mean(each))
    best = tmp_path / "run" / summary["best"]
    copied = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert copied == (best / "model.safetensors").read_bytes()


def test_early_stopping_keeps_the_best(base: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.csv", 200)
    result = train(base, data, tmp_path / "run", epochs=50.0, eval_every=5, patience=3)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    values = [row["accuracy"] for row in evaluations]
    first_best = values.index(max(values))
    assert len(values) == first_best + 1 + 3  # three without gain, then the end
    assert result.best_step == evaluations[first_best]["step"]
    assert result.steps == evaluations[-1]["step"]


def test_fraction_of_an_epoch_and_test_file(base: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.csv", 200)
    test = reviews(tmp_path / "test.csv", 40, seed=5)
    whole = train(base, data, tmp_path / "one", epochs=1.0, test=str(test))
    half = train(base, data, tmp_path / "half", epochs=0.5, test=str(test))
    assert half.steps == -(-whole.steps // 2)
    assert read_manifest(tmp_path / "one").provenance["scored_on"] == "test set, 40 rows"


def test_gradient_checkpointing_and_padded_paths_learn_the_same(base: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.csv", 60)
    options = {"epochs": 1.0, "dropout": 0.0, "precision": "float32"}
    weights = []
    for name, more in (
        ("packed", {}),
        ("recomputed", {"gradient_checkpointing": True}),
        ("sdpa", {"attention": "sdpa"}),
        ("eager", {"attention": "eager"}),
    ):
        train(base, data, tmp_path / name, **options, **more)
        weights.append(open_bundle(tmp_path / name).model.state_dict())
    for other in weights[1:]:
        for name, value in weights[0].items():
            # AdamW turns the sign of a near-zero gradient into a step of lr: compare the bulk
            assert (value - other[name]).abs().mean().item() < 2e-4, name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("text,label\n", "no data rows|no rows|is empty"),
        ("", "empty"),
        ("text,label\ngood,pos\nfine,pos\n", "the same label, 'pos'"),
        ("text,label\ngood,pos\nbad,\n", "label"),
        ("title2,mark\ngood,pos\nbad,neg\n", "column"),
    ],
)
def test_bad_files_are_told_in_words(base: Path, tmp_path: Path, content: str, told: str) -> None:
    data = tmp_path / "train.csv"
    data.write_text(content)
    with pytest.raises(FilbertError, match=told):
        train(base, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing is claimed before the data is read


def test_label_only_in_dev_and_unknown_metric(base: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.csv", 60)
    dev = tmp_path / "dev.csv"
    dev.write_text("text,label\ngood,pos\nbad,mixed\n")
    with pytest.raises(FilbertError, match="'mixed'"):
        train(base, data, tmp_path / "run", dev=str(dev))
    with pytest.raises(UsageError, match="Did you mean 'accuracy'"):
        train(base, data, tmp_path / "run", metric="acuracy")


def test_recipes_are_strict() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'epoch'.*Did you mean 'epochs'"):
        parse_options(
            {"data": "a", "base": "b", "out": "c", "epoch": 3}, ClassifyOptions, source="r.toml"
        )
    with pytest.raises(UsageError, match=r"'base' is required \(--base\)"):
        parse_options({"data": "a", "out": "c"}, ClassifyOptions, source="r.toml")
