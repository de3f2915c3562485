"""Training an extractive summariser in seconds, with each loss and pooling, and its bundle."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from filbert.bundle import open_bundle
from filbert.infer.predict import load
from filbert.train.summarize import is_listwise, train_summarize
from filbert.train.summarize_options import SummarizeOptions
from tests.tiny import WORDS, save_base

pytest.importorskip("rouge_score", reason="the package rouge-score is not installed")


def documents(path: Path, rows: int, *, seed: int = 0) -> Path:
    """JSONL of three to five sentences; the summary is the one that praises, wherever it stands."""
    draw = random.Random(seed)
    lines = []
    for _ in range(rows):
        thing = draw.choice(WORDS[10:])
        sentences = [
            f"the {draw.choice(WORDS[10:])} was {draw.choice(WORDS[5:10])}"
            for _ in range(draw.randint(2, 4))
        ]
        praise = f"a {thing} was {draw.choice(WORDS[:5])}"
        sentences.insert(draw.randint(0, len(sentences)), praise)
        lines.append(json.dumps({"source": sentences, "target": [praise, f"a {thing}"]}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def options(folder: Path, **changes: object) -> SummarizeOptions:
    values: dict[str, object] = {
        "data": str(documents(folder / "train.jsonl", 200)),
        "dev": str(documents(folder / "dev.jsonl", 40, seed=1)),
        "base": str(save_base(folder / "base", max_position_embeddings=64)),
        "out": str(folder / "out"),
        "sentences": 1,
        "epochs": 4,
        "lr": 3e-3,
        "dropout": 0.0,
        "batch_tokens": 256,
        "device": "cpu",
        "precision": "float32",
        "tensorboard": False,
    }
    return SummarizeOptions(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "pooling"), [(None, "mean"), ("listwise", "cls"), ("binary", "mean")]
)
def test_learns_and_answers_alike(tmp_path: Path, loss: str | None, pooling: str) -> None:
    given = options(tmp_path, loss=loss, pooling=pooling)
    result = train_summarize(given, quiet=True)
    assert result.scores["rouge1"] > 0.95  # the oracle has 1, the first sentence below 0.7
    assert result.scores["oracle_rouge1"] == pytest.approx(1.0)
    assert result.scores["lead_rouge1"] is not None and result.scores["lead_rouge1"] < 0.7
    config = open_bundle(given.out).model.config
    assert getattr(config, "sentence_pooling", None) == pooling
    summarize = load(given.out, device="cpu", precision="float32")
    # what is answered is what was scored
    found = summarize.evaluate(given.dev)["scores"]
    assert found == pytest.approx({name: result.scores[name] for name in found})
    [answer] = summarize([["the film was dull", "a book was great", "the show was poor"]])
    assert answer["summary"] == "a book was great"
    assert len(summarize(["a book was great. the show was poor."])[0]["sentences"]) == 1


def test_one_sentence_is_learned_listwise() -> None:
    def listwise(**given: object) -> bool:
        values: dict[str, object] = {"data": "a", "base": "b", "out": "c", **given}
        return is_listwise(SummarizeOptions(**values))  # type: ignore[arg-type]

    assert listwise(sentences=1) and not listwise(sentences=2) and not listwise()
    assert listwise(loss="listwise") and not listwise(sentences=1, loss="binary")
    with pytest.raises(ValidationError, match="loss"):
        listwise(loss="pairwise")
    with pytest.raises(ValidationError, match="pooling"):
        listwise(pooling="max")


def test_documents_without_sentences_and_without_likeness(tmp_path: Path) -> None:
    rows = [
        {"source": [], "target": ["good"]},
        {"source": ["the film", "a book"], "target": ["superb"]},
        {"source": ["the film was good", "dull " * 40, "a show"], "target": ["good film"]},
    ]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = train_summarize(
        options(tmp_path, data=str(path), dev=str(path), epochs=1, max_length=24), quiet=True
    )
    assert result.scores["rouge1"] is not None and 0 <= result.scores["rouge1"] <= 1
