"""Prediction of extractive summaries: exact places, every kind of bad input, long documents."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from filbert.bundle import Manifest, save_bundle
from filbert.errors import FilbertError, UsageError
from filbert.infer.predict import load
from filbert.infer.summarize import Extractor, answer_of, join
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.tasks.select_sentences import Limits
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config

MIXED = "  The river. Call now!\n\n你好世界。世界银行 like it。 Free prize.  No end"


def make(folder: Path, **settings: object) -> Path:
    torch.manual_seed(11)
    model = BertForExtractiveSummary(tiny_config()).eval()
    manifest = Manifest(
        task="summarize", max_length=40, stride=10,
        settings={"sentences": 2, "blocking": True, "stem": False, **settings},
    )  # fmt: skip
    return save_bundle(folder, model=model, tokenizer=BertTokenizer(VOCABULARY), manifest=manifest)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory) -> Extractor:
    return load(make(tmp_path_factory.mktemp("bundle")), device="cpu", precision="float32")


def test_places_point_into_the_raw_text(extractor) -> None:
    for sentences in range(1, 8):
        answer = extractor(MIXED, sentences=sentences)
        found = answer["sentences"]
        assert len(found) == min(sentences, 6)
        assert all(MIXED[one["start"] : one["end"]] == one["text"] for one in found)
        assert [one["start"] for one in found] == sorted(one["start"] for one in found)
        assert all(0 <= one["score"] <= 1 for one in found)
    assert answer["summary"] == (
        "The river. Call now! 你好世界。世界银行 like it。 Free prize. No end"
    )


def test_the_highest_scores_are_chosen(extractor) -> None:
    everything = extractor(MIXED, sentences=6)["sentences"]
    best = sorted(everything, key=lambda one: -one["score"])[:2]
    assert extractor(MIXED)["sentences"] == sorted(best, key=lambda one: one["start"])


def test_a_list_of_sentences_is_taken_as_it_is(extractor) -> None:
    [answer] = extractor([["The river", "Call now", "like it"]], sentences=3)
    assert answer["summary"] == "The river Call now like it"
    assert [one["number"] for one in answer["sentences"]] == [0, 1, 2]
    assert "start" not in answer["sentences"][0]


def test_limits(extractor) -> None:
    answer = extractor(MIXED, max_characters=20)
    assert 0 < sum(len(one["text"]) for one in answer["sentences"]) <= 20
    assert len(extractor("The river. Like it. Call now.", max_words=4)["sentences"]) == 2
    one = extractor("word " * 100, max_words=3)
    assert one["summary"] == "word word word" and one["sentences"][0]["end"] == 14
    with pytest.raises(UsageError, match="sentences must be a whole number of at least 1"):
        extractor(MIXED, sentences=0)


def test_edges(extractor) -> None:
    nothing = {"summary": "", "sentences": []}
    assert extractor("") == extractor(" \n\t ") == nothing
    assert extractor([[], ["", " "]]) == [nothing, nothing]
    assert extractor([]) == []
    assert extractor("Just one")["summary"] == "Just one"
    twice = extractor("Call now! Call now! Call now!", sentences=3)
    assert twice["summary"] == "Call now!" and len(twice["sentences"]) == 1
    assert extractor.line({"summary": "a\nb"}) == "a b"


def test_what_is_no_document_is_told(extractor) -> None:
    with pytest.raises(FilbertError, match="item 1: expected a text or a list of sentences, got"):
        extractor(["a", 5])
    with pytest.raises(FilbertError, match="item 0: sentence 1 is int"):
        extractor([["a", 5]])
    with pytest.raises(FilbertError, match="expected a text or a list of documents"):
        extractor({"text": "a"})


def test_a_document_of_a_megabyte(extractor) -> None:
    text = "".join(f"the river bank {i}. Like it! 世界银行{i}。\n" for i in range(7_500))
    text += "call now " * 60_000  # no end mark
    assert len(text) > 750_000
    begin = time.process_time()
    answer = extractor(text, sentences=3)
    assert len(answer["sentences"]) == 3
    assert all(text[one["start"] : one["end"]] == one["text"] for one in answer["sentences"])
    assert time.process_time() - begin < 60


def test_answers_do_not_depend_on_their_neighbours(extractor) -> None:
    documents = [MIXED, "", ["like it", "bank"], "One sentence."]
    together = extractor(documents)
    for document, answer in zip(documents, together, strict=True):
        [alone] = extractor([document])
        assert alone["summary"] == answer["summary"]
        for one, other in zip(alone["sentences"], answer["sentences"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_evaluation_tells_lead_and_oracle(extractor, tmp_path) -> None:
    pytest.importorskip("rouge_score", reason="the package rouge-score is not installed")
    rows = [
        {"text": "The river. Free prize now. Like it.", "summary": "free prize now"},
        {"text": ["你好", "世界银行"], "summary": ["世界银行", "银行"]},
    ]
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    record = extractor.evaluate(file, sentences=1)
    scores = record["scores"]
    assert record["rows"] == 2
    assert scores["lead_rouge1"] == 0.0 and scores["oracle_rouge1"] == 1.0
    chosen = [extractor(["The river. Free prize now. Like it.", ["你好", "世界银行"]], sentences=1)]
    right = sum(a["summary"] in ("Free prize now.", "世界银行") for a in chosen[0])
    assert scores["rouge1"] == pytest.approx(right / 2)


def test_settings_of_another_make_are_refused(tmp_path) -> None:
    folder = make(tmp_path, sentences="many")
    with pytest.raises(FilbertError, match=r"filbert.json: 'settings.sentences'"):
        load(folder, device="cpu")


def test_a_folder_without_a_manifest_answers_too(tmp_path) -> None:
    (make(tmp_path) / "filbert.json").unlink()
    assert len(load(tmp_path, device="cpu")(MIXED)["sentences"]) == 3


def test_joining() -> None:
    assert join(["One.", "Two."]) == "One. Two."
    assert join(["一。", "二。"]) == "一。二。"
    assert join(["一。", "Two.", "三。"]) == "一。 Two. 三。"
    assert join(["안녕.", "그래"]) == "안녕. 그래"
    assert join([]) == ""


def test_equal_scores_take_the_earlier_sentence() -> None:
    answer = answer_of("A. B.", ["A.", "B."], np.zeros(2, np.float32), limits=Limits(sentences=1))
    assert answer["sentences"] == [{"text": "A.", "number": 0, "score": 0.5, "start": 0, "end": 2}]


def test_documents_in_any_iterable(extractor) -> None:
    texts = [MIXED, "The river. Call now!"]
    wanted = extractor(texts)
    assert extractor(text for text in texts) == wanted
    assert extractor(np.array(texts)) == wanted
    alone = extractor({texts[1]})
    scores = [
        [sentence.pop("score") for sentence in one["sentences"]] for one in alone + wanted[1:]
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)  # the last digit is the batch's
    assert alone == wanted[1:]
    for wrong in (3, None, b"a", {"text": "a"}):
        with pytest.raises(FilbertError, match="expected a text or a list of documents"):
            extractor(wrong)
