"""Whole runs: every loss on small data, few shots, Chinese, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert import load
from filbert.bundle import open_bundle, read_manifest
from filbert.errors import FilbertError, UsageError
from filbert.model import sentence_folder
from filbert.train.embed import train_embed
from filbert.train.embed_options import EmbedOptions
from filbert.train.few_shot import train_few_shot
from filbert.train.few_shot_options import FewShotOptions
from filbert.train.options import parse_options
from filbert.train.tune import TrainResult
from tests.tiny import WORDS, reviews, save_base

GOOD, BAD, THINGS = WORDS[:5], WORDS[5:10], WORDS[10:15]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def sentence(draw: random.Random, moods: list[str]) -> str:
    filler = " ".join(draw.choice(["the", "a", *THINGS]) for _ in range(draw.randint(1, 4)))
    return f"{filler} was {draw.choice(moods)}"


def rows(path: Path, kind: str, count: int, *, seed: int = 0) -> Path:
    """Sentences of one mood belong together: scored pairs, pairs, triples, or single ones."""
    draw = random.Random(seed)
    lines = {"scored": ["sentence1\tsentence2\tscore"], "pairs": ["query\tanswer"],
             "triples": ["query\tanswer\tnegative"], "sentences": []}[kind]  # fmt: skip
    for _ in range(count):
        one, other = draw.sample([GOOD, BAD], 2)
        first = sentence(draw, one)
        same = draw.random() < 0.5
        match kind:
            case "scored":
                second = sentence(draw, one if same else other)
                lines.append(f"{first}\t{second}\t{5 if same else 0}")
            case "pairs":
                thing = draw.choice(THINGS)
                lines.append(f"{first} {thing}\t{thing} {sentence(draw, one)}")
            case "triples":
                lines.append(f"{first}\t{sentence(draw, one)}\t{sentence(draw, other)}")
            case _:
                lines.append(first)
    path.write_text("\n".join(lines) + "\n")
    return path


def train(base: Path, data: Path, out: Path, **changes: Any) -> TrainResult:
    values: dict[str, Any] = {
        "data": str(data), "base": str(base), "out": str(out), "epochs": 10.0, "lr": 3e-3,
        "eval_every": 1000,
        "batch_size": 16, "threads": 1, "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    return train_embed(parse_options({**values, **changes}, EmbedOptions, source="x"), quiet=True)


@pytest.mark.parametrize("loss", ["cosine", "cosent"])
def test_scored_pairs(base: Path, tmp_path: Path, loss: str) -> None:
    result = train(base, rows(tmp_path / "a.tsv", "scored", 240), tmp_path / "run", loss=loss,
                   dimensions=[8])  # fmt: skip
    # gold is 0 or 5 alone; a model that knows the moods has the rank correlation of two groups
    assert result.scores["spearman"] > 0.8 and result.scores["spearman of 8"] > 0.8
    assert result.scores["pearson"] > 0.9
    out = tmp_path / "run"
    manifest = read_manifest(out)
    assert manifest.task == "embed" and manifest.provenance["loss"] == loss
    assert manifest.settings == {"pooling": "mean", "normalize": True, "dimensions": [8]}
    assert sentence_folder.read(out) == sentence_folder.SentenceSettings("mean", True, 32)
    embed = load(out, device="cpu", precision="float32")
    one, two, other = embed(["the film was good", "a hotel was superb", "a hotel was awful"])
    assert one @ two > one @ other + 0.3
    short = embed(["the film was good", "a hotel was superb", "a hotel was awful"], dimensions=8)
    assert short[0] @ short[1] > short[0] @ short[2] + 0.3
    dev = rows(tmp_path / "dev.tsv", "scored", 60, seed=9)
    measured = embed.evaluate(dev)
    assert measured["rows"] == 60 and measured["scores"]["spearman"] > 0.8
    # no vector passes through the pooler: it is that of the base, not a decayed one
    pooler = open_bundle(base).model.base_model.pooler.dense.weight  # type: ignore[union-attr]
    np.testing.assert_array_equal(
        open_bundle(out).model.pooler.dense.weight.detach(), pooler.detach()  # type: ignore[union-attr]
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pairs", "triples"])
def test_in_batch_negatives(base: Path, tmp_path: Path, kind: str) -> None:
    result = train(base, rows(tmp_path / "a.tsv", kind, 200), tmp_path / "run",
                   dev=str(rows(tmp_path / "dev.tsv", "scored", 80, seed=5)))  # fmt: skip
    assert read_manifest(tmp_path / "run").provenance["loss"] == "pairs"
    assert result.scores["spearman"] > 0.6


def test_pairs_are_scored_by_retrieval_and_held_out(base: Path, tmp_path: Path) -> None:
    result = train(base, rows(tmp_path / "a.tsv", "pairs", 120), tmp_path / "run", pooling="cls")
    assert set(result.scores) >= {"recall@1", "mrr@10", "ndcg@10"}
    assert 0 < result.scores["ndcg@10"] <= 1
    found = load(tmp_path / "run", device="cpu").evaluate(rows(tmp_path / "b.tsv", "pairs", 30))
    assert found["kind"] == "pairs" and found["scores"]["queries"] == 30
    assert read_manifest(tmp_path / "run").settings["pooling"] == "cls"


def test_simcse_on_bare_sentences(base: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "a.txt", "sentences", 300)
    result = train(base, data, tmp_path / "run", epochs=2.0, lr=1e-3)
    assert read_manifest(tmp_path / "run").provenance["loss"] == "simcse"
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row.get("lr")]
    assert losses[-1] < losses[0] and result.scores["loss"] < np.log(16)


def test_seeds_leave_a_whole_bundle(base: Path, tmp_path: Path) -> None:
    result = train(base, rows(tmp_path / "a.tsv", "scored", 80), tmp_path / "run", seeds=2,
                   epochs=1.0)  # fmt: skip
    assert len(result.seeds) == 2
    assert sentence_folder.read(tmp_path / "run") is not None
    assert load(tmp_path / "run", device="cpu")("good").shape == (32,)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("pairs", {"loss": "cosine"}, "which column is the score"),
        ("scored", {"metric": "ndcg@10"}, "--metric 'ndcg@10'"),
        ("scored", {"dimensions": [64]}, "from 1 to 32"),
        ("scored", {"label_smoothing": 0.1}, "no meaning"),
        ("pairs", {"batch_size": 1}, "batch_size"),
    ],
)
def test_what_is_refused(
    base: Path, tmp_path: Path, kind: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        train(base, rows(tmp_path / "a.tsv", kind, 40), tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_a_row_alone_in_its_batch_is_told_from_nothing(base: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "one.tsv", "pairs", 1)
    dev = rows(tmp_path / "dev.tsv", "pairs", 4)
    with pytest.raises(UsageError, match="every batch has one row"):
        train(base, data, tmp_path / "run", dev=str(dev))


def test_scores_that_no_cosine_reaches_are_refused(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "scores.tsv"
    lines = ["first\tsecond\tscore", "good\tnice\t0.5", "bad\tgood\t-3", "bad\tpoor\t1"]
    data.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(UsageError, match="row 2 is -3, and 1 of 3 rows lie outside -1 to 1"):
        train(base, data, tmp_path / "run", loss="cosine", dev=str(data))


def few(base: Path, data: Path, out: Path, **changes: Any) -> TrainResult:
    values: dict[str, Any] = {
        "data": str(data), "base": str(base), "out": str(out), "lr": 1e-3, "iterations": 8,
        "threads": 1, "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    return train_few_shot(
        parse_options({**values, **changes}, FewShotOptions, source="x"), quiet=True
    )


def test_few_shots_make_a_classifier(base: Path, tmp_path: Path) -> None:
    test = reviews(tmp_path / "test.csv", 100, seed=3)
    result = few(base, reviews(tmp_path / "a.csv", 200), tmp_path / "run", test=str(test),
                 shots=16, epochs=4.0, lr=3e-3)  # fmt: skip
    assert result.scores["accuracy"] > 0.75  # by guessing 0.5; the base knows nothing of words
    out = tmp_path / "run"
    manifest = read_manifest(out)
    assert manifest.task == "classify" and manifest.labels == ["neg", "pos"]
    assert manifest.provenance["rows"] == 32
    classify = load(out, device="cpu", precision="float32")
    assert [a["label"] for a in classify(["the film was superb", "a hotel was awful"])] == [
        "pos", "neg"
    ]  # fmt: skip
    scores = classify.evaluate(test)["scores"]
    assert scores["accuracy"] == pytest.approx(result.scores["accuracy"], abs=0.02)


def test_few_shots_without_other_rows_and_with_dev(base: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "a.csv", 60)
    alone = few(base, data, tmp_path / "alone", shots=4)
    assert "training set" in read_manifest(alone.out).provenance["scored_on"]
    dev = reviews(tmp_path / "dev.csv", 40, seed=4)
    with_dev = few(base, data, tmp_path / "dev", shots=4, dev=str(dev))
    assert "dev set, 40" in read_manifest(with_dev.out).provenance["scored_on"]
    with pytest.raises(UsageError, match="need --dev"):
        few(base, data, tmp_path / "x", metric="accuracy")
    pairs = rows(tmp_path / "p.tsv", "scored", 20)
    with pytest.raises(FilbertError, match="single texts"):
        few(base, pairs, tmp_path / "x")


def test_chinese(tmp_path: Path) -> None:
    """The small Chinese model learns from bare sentences (SimCSE), and finds what was meant."""
    subjects = ["我的银行卡", "这家酒店", "今天的天气", "这本书", "那部电影", "新手机"]
    says = [
        "丢了怎么办",
        "非常好",
        "不太好",
        "多少钱",
        "在哪里",
        "为什么这么贵",
        "很有意思",
        "坏了",
    ]
    lines = [f"{a}{b}{end}" for a in subjects for b in says for end in "。!?"]
    (tmp_path / "zh.txt").write_text("\n".join(lines) + "\n", "utf-8")
    result = train(Path("filbert-mini-zh"), tmp_path / "zh.txt", tmp_path / "run", epochs=1.0,
                   lr=3e-5, max_length=24)  # fmt: skip
    assert result.scores["loss"] < np.log(16)
    embed = load(tmp_path / "run", device="cpu")
    asked, near, far = embed(["银行卡丢了", "我的银行卡丢了怎么办?", "这本书很有意思。"])
    assert asked @ near > asked @ far


def test_simcse_needs_drop_out(base: Path, tmp_path: Path) -> None:
    """Gao et al. 2021: the two views of a text are two drop-outs; without any they are equal."""
    from filbert.model.config import BertConfig
    from filbert.model.modern_config import read_any_config

    dry = tmp_path / "dry"
    shutil.copytree(base, dry)
    config = json.loads((dry / "config.json").read_text("utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (dry / "config.json").write_text(json.dumps(config), "utf-8")
    data = rows(tmp_path / "s.txt", "sentences", 40)
    with pytest.raises(UsageError, match="--dropout 0: --loss simcse"):
        train(dry, data, tmp_path / "none", dropout=0.0, epochs=1.0)
    train(dry, data, tmp_path / "run", epochs=1.0)
    train(dry, data, tmp_path / "asked", dropout=0.1, epochs=1.0)
    found = read_any_config(tmp_path / "run")
    assert isinstance(found, BertConfig) and found.hidden_dropout_prob == 0.1
    one, other = (tmp_path / name / "model.safetensors" for name in ("run", "asked"))
    assert one.read_bytes() == other.read_bytes()
