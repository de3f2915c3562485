"""Texts that no tokenizer takes, and texts that are cut off: what every predictor tells."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from filbert.bundle import Manifest, open_bundle, save_bundle
from filbert.errors import FilbertError, UsageError
from filbert.infer.answer import Answerer
from filbert.infer.embed import Embedder, write_vectors
from filbert.infer.engine import Engine
from filbert.infer.predict import Classifier, load, text_problem
from filbert.infer.predict_file import predict_file
from filbert.infer.rank import Ranker, rank_file
from filbert.infer.rank_options import RankOptions
from filbert.infer.summarize import Extractor
from filbert.infer.tag import Tagger
from filbert.infer.translate import Translator
from filbert.model.bert import BertForMaskedLM
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_bundle, tiny_config, tiny_encoder

HALF = "call \ud83d now"
TOLD = "half of a surrogate pair (U+D83D, character 6)"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(
        tiny_bundle(tmp_path_factory.mktemp("one") / "sms"), device="cpu", precision="float32"
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tiny_bundle(tmp_path_factory.mktemp("two") / "pairs", labels=("no", "yes"), pair=True)
    return load(folder, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    base = open_bundle(tiny_encoder(tmp_path_factory.mktemp("tiny") / "base"))
    manifest = Manifest(
        task="embed", max_length=32, settings={"pooling": "mean", "normalize": True}
    )
    folder = save_bundle(base.folder, model=base.model, tokenizer=base.tokenizer, manifest=manifest)
    return load(folder, device="cpu", precision="float32")


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    texts = ["free prize", HALF, "你好世界", None, "lunch"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def test_what_is_wrong_with_a_text() -> None:
    told = text_problem(HALF)
    assert told is not None and told.startswith(TOLD)
    told.encode()  # it can be printed
    assert text_problem("\U0001f600 \ud7ff\ue000 \0") is None
    assert text_problem(None) == "expected a text (str), got None (a missing value)"


def test_every_predictor_refuses_half_a_character(
    classifier: Classifier, pairs: Classifier, embedder: Embedder, tmp_path: Path
) -> None:
    fill = load(tiny_encoder(tmp_path / "fill", BertForMaskedLM), precision="float32")
    model = BertForExtractiveSummary(tiny_config()).eval()
    manifest = Manifest(task="summarize", max_length=40, stride=10)
    folder = save_bundle(
        tmp_path / "sum", model=model, tokenizer=BertTokenizer(VOCABULARY), manifest=manifest
    )
    extract: Extractor = load(folder, device="cpu", precision="float32")
    nobody = cast(Any, None)  # what is wrong with the text is told before the model is asked
    for told in (
        classifier.problem(HALF),
        pairs.problem((HALF, "a")),
        pairs.problem(["a", HALF]),
        embedder.problem(HALF),
        fill.problem("[MASK] " + HALF[2:]),
        fill.scorer().problem(HALF),
        extract.problem(HALF),
        extract.problem(["One.", HALF]),
        Tagger.problem(nobody, HALF),
        Tagger.problem(nobody, {"tokens": ["a", HALF]}),
        Answerer.problem(nobody, (HALF, "a")),
        Answerer.problem(nobody, {"question": "who?", "context": HALF}),
        Translator.problem(nobody, HALF),
    ):
        assert told is not None and "half of a surrogate pair (U+D83D" in told
    with pytest.raises(FilbertError, match="item 0: half of a surrogate"):
        extract(HALF)


def test_one_bad_row_of_fifty_in_an_engine(classifier: Classifier, embedder: Embedder) -> None:
    rows = ["free prize call now", "lunch home"] * 25
    bad = [*rows[:17], HALF, *rows[18:]]
    cases: list[Any] = [(classifier, "score"), (embedder, "vector")]
    for predictor, name in cases:
        wanted = predictor.answer_rows(rows)
        with Engine(predictor) as engine:
            answers = list(engine.stream(bad, errors="answer"))
        assert answers[17]["error"].startswith(f"item 17: {TOLD}")
        for place in {*range(50)} - {17}:
            np.testing.assert_allclose(answers[place][name], wanted[place][name], atol=1e-5)


def test_the_place_is_that_in_the_whole_list(
    classifier: Classifier, pairs: Classifier, embedder: Embedder
) -> None:
    rows = ["a"] * 1500 + [HALF, "b"]  # the second block of 1,024, the sixth of 256
    calls: list[Any] = [
        lambda: classifier(rows),
        lambda: list(classifier.stream(rows)),
        lambda: embedder(rows),
        lambda: Ranker(pairs, label="yes")("call", rows),
    ]
    for call in calls:
        with pytest.raises(FilbertError, match="item 1500: half of a surrogate pair"):
            call()


def test_a_bad_row_of_a_file_is_one_row(
    classifier: Classifier, embedder: Embedder, halves: Path, tmp_path: Path
) -> None:
    wanted = classifier(["free prize", "你好世界", "lunch"])
    for name in ("out.jsonl", "out.csv"):
        report = predict_file(classifier, halves, tmp_path / name)
        assert (report.rows, report.failures, report.failed) == (5, 2, [2, 4])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[1]["error"].startswith(TOLD) and "None" in rows[3]["error"]
    found = [row["score"] for row in rows if "score" in row]
    assert found == pytest.approx([answer["score"] for answer in wanted], abs=1e-5)
    with pytest.raises(FilbertError, match=r"in\.jsonl: row 2: half of a surrogate pair"):
        predict_file(classifier, halves, tmp_path / "strict.jsonl", strict=True)
    with pytest.raises(FilbertError, match=r"in\.jsonl: row 2: half of a surrogate pair"):
        write_vectors(embedder, halves, tmp_path / "out.npy")


def test_ranking_tells_the_row(pairs: Classifier, halves: Path) -> None:
    ranker = Ranker(pairs, label="yes")
    options = RankOptions(bundle="x", query="call", file=str(halves))
    with pytest.raises(FilbertError, match=r"in\.jsonl, row 2: half of a surrogate pair"):
        rank_file(ranker, options)
    with pytest.raises(UsageError, match="the query: half of a surrogate pair"):
        rank_file(ranker, options.model_copy(update={"query": HALF}))
    with pytest.raises(FilbertError, match="query: half of a surrogate pair"):
        ranker(HALF, ["a"])


def test_the_shorter_text_of_a_pair_is_cut_off_in_windows_too(
    pairs: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "filbert")
    room = 37  # of 40 tokens, without three special ones: 18 for a text that stands in each window
    fits: list[tuple[str, str]] = [
        ("a " * 18, "b " * 100), ("a " * 100, "b " * 18), ("a " * 18, "b " * (room - 18)),
        ("a " * (room - 1), "b "), ("", "b " * 100),
    ]  # fmt: skip
    pairs.answer_rows(fits)
    assert caplog.messages == []
    one, other = pairs.answer_rows([("a " * 19, "b " * 100), ("a " * 19 + "free", "b " * 100)])
    (told,) = caplog.messages
    assert "the shorter one stands in every window with 18 tokens; what is beyond them was" in told
    assert one == other  # so it is
    pairs.told_cut = False
    pairs.answer_rows([*fits, ("b " * 100, "a " * 19)])
    assert len(caplog.messages) == 2


def test_what_is_cut_off_is_logged_once(
    classifier: Classifier, pairs: Classifier, embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    def bare(predictor: Classifier) -> Classifier:
        """The same one, without windows."""
        bundle = open_bundle(predictor.folder)
        manifest = bundle.manifest.model_copy(update={"windows": False})
        return Classifier(replace(bundle, manifest=manifest), device=torch.device("cpu"))

    caplog.set_level(logging.WARNING, "filbert")
    classifier("a " * 50)  # read in windows, to its end
    one, two = bare(classifier), bare(pairs)
    assert "cut off" not in caplog.text
    # a word is a token; [CLS] and [SEP] are two more, of a pair three
    cases: list[Any] = [
        (one, "a " * 38, "a " * 39, 40),
        (two, ("a " * 20, "b " * 17), ("a " * 20, "b " * 18), 40),
        (embedder, "a " * 30, "a " * 31, 32),
    ]
    for model, fits, longer, limit in cases:
        caplog.clear()
        model.answer_rows([fits, fits])
        assert caplog.messages == []
        model.answer_rows([fits, longer])
        model.answer_rows([longer])
        (told,) = caplog.messages
        assert f"a text has more than the {limit} tokens that the model reads" in told
