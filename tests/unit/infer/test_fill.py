"""Filling blanks and scoring texts: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert import load
from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForMaskedLM
from filbert.tasks.fill import ask, window_around
from tests.tiny_bundle import tiny_bundle, tiny_encoder


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fill")
    return load(tiny_encoder(folder / "m", BertForMaskedLM), precision="float32")


def test_the_raw_text_is_kept_around_the_words(fill: Any) -> None:
    answer = fill("The  RIVER [MASK]!  你好[MASK]。")
    before, after = answer["text"].split("!  你好")
    assert before.startswith("The  RIVER") and after.endswith("。")
    assert "[MASK]" not in answer["text"]
    assert 0 < answer["score"] < 1


def test_a_piece_within_a_word_joins_it() -> None:
    from filbert.tasks.fill import Blanks, fill_in

    row = Blanks("I am sing [MASK] .", np.zeros(0, np.int64), (), ((10, 16),))
    assert fill_in(row, ["##ing"]) == "I am singing ."
    assert fill_in(row, ["##"]) == "I am sing ## ."


def test_one_text_gives_one_answer_and_a_list_a_list(fill: Any) -> None:
    assert isinstance(fill("a [MASK]"), dict)
    both = fill(["the river [MASK]", "[MASK] it"])
    assert [answer["text"] for answer in both] == [
        fill("the river [MASK]")["text"], fill("[MASK] it")["text"],
    ]  # fmt: skip
    assert list(fill.stream(iter(["the river [MASK]", "[MASK] it"]))) == both
    assert fill([]) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no blank here", "no blank; write [MASK]"),
        ("a <mask> here", "'<mask>'"),
        ("我是___。", "'___'"),
        ("", "no blank"),
        (None, "got None (a missing value)"),
        (("a [MASK]", "b"), "takes one text"),
    ],
)
def test_what_is_no_text_with_a_blank_is_told_with_its_place(
    fill: Any, text: Any, words: str
) -> None:
    with pytest.raises(FilbertError, match="item 1: ") as caught:
        fill(["a [MASK]", text])
    assert words in str(caught.value)


@pytest.mark.parametrize("targets", [["é☃"], [""], [3], [], "river"])
def test_targets_that_cannot_be_scored_are_refused(fill: Any, targets: Any) -> None:
    with pytest.raises(UsageError, match="target"):
        fill("a [MASK]", targets=targets)


def test_targets_are_read_as_text_is(fill: Any) -> None:
    (blank,) = fill("the [MASK]", targets=["River", "river", "##a"])["blanks"]
    scores = {word["word"]: word["score"] for word in blank["words"]}
    assert scores["River"] == scores["river"] != scores["##a"]


def test_targets_at_several_blanks_leave_the_others_open(fill: Any) -> None:
    alone = fill("the [MASK] [MASK]", targets=["river", "cab"])
    assert "text" not in alone
    assert len(alone["blanks"]) == 2
    assert alone["blanks"][0]["words"] != alone["blanks"][1]["words"]


def test_windows_have_the_blank_in_their_middle() -> None:
    assert window_around(3, length=8, room=10) == (0, 8)
    assert window_around(50, length=100, room=10) == (45, 55)
    assert window_around(1, length=100, room=10) == (0, 10)
    assert window_around(99, length=100, room=10) == (90, 100)
    questions = ask(np.arange(100), [2, 3, 50, 98], max_length=12)
    assert [(q.start, q.stop, q.asked) for q in questions] == [
        (0, 10, (2, 3)), (45, 55, (50,)), (90, 100, (98,)),
    ]  # fmt: skip


def test_a_blank_in_a_long_text_is_asked_in_its_window(fill: Any) -> None:
    """The model reads 40 tokens: 19 words before the blank and 18 behind it."""
    before, after = ["river"] * 60 + ["bank"] * 19, ["free"] * 18 + ["home"] * 60
    long = fill(" ".join([*before, "[MASK]", *after]))["blanks"][0]["words"]
    short = fill(" ".join(["bank"] * 19 + ["[MASK]"] + ["free"] * 18))["blanks"][0]["words"]
    assert [w["word"] for w in long] == [w["word"] for w in short]
    assert [w["score"] for w in long] == pytest.approx([w["score"] for w in short], abs=1e-6)


def test_the_budget_does_not_change_answers(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "m", BertForMaskedLM)
    texts = ["the [MASK] now", "a [MASK] b [MASK] c", "home " * 30 + "[MASK]"]
    wide = load(folder, precision="float32")(texts)
    tight = load(folder, precision="float32", batch_tokens=8)(texts)
    for one, other in zip(wide, tight, strict=True):
        assert one["text"] == other["text"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)


def test_perplexity_counts(fill: Any) -> None:
    answer = fill.perplexity("RIVER bank cab ☃ 你好!", each=True)
    assert (answer["tokens"], answer["words"], answer["unknown"]) == (9, 7, 1)
    assert [p["piece"] for p in answer["pieces"]][2:5] == ["c", "##a", "##b"]
    assert (answer["pieces"][4]["start"], answer["pieces"][4]["end"]) == (13, 14)
    assert answer["per_word"] == pytest.approx(math.exp(-answer["log_likelihood"] / 7))
    longer = fill.perplexity("river bank " * 40)
    assert longer["tokens"] == 80


@pytest.mark.parametrize(
    ("text", "words"), [(" \n", "empty"), ("a [MASK]", "fill it first"), (5, "got int 5")]
)
def test_texts_that_cannot_be_scored_are_told(fill: Any, text: Any, words: str) -> None:
    with pytest.raises(FilbertError, match=f"item 1: .*{words}"):
        fill.perplexity(["a b", text])


def test_evaluation_is_that_of_the_whole_file(fill: Any, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("the river\n\nfree lunch at home\n", "utf-8")
    result = fill.evaluate(path)
    one, two = fill.perplexity(["the river", "free lunch at home"])
    tokens = one["tokens"] + two["tokens"]
    scores = result["scores"]
    assert result["rows"] == 2 and scores["empty_rows"] == 1 and scores["tokens"] == tokens
    assert scores["perplexity"] == pytest.approx(
        math.exp(-(one["log_likelihood"] + two["log_likelihood"]) / tokens)
    )
    assert scores["accuracy"] == (one["right"] + two["right"]) / tokens
    path.write_text("fine\na [MASK]\n", "utf-8")
    with pytest.raises(FilbertError, match="row 2"):
        fill.evaluate(path)


def test_lines_for_people(fill: Any) -> None:
    line = fill.line(fill("the [MASK] [MASK]", top_k=2))
    assert line.count("|") == 1 and line.count("\t") == 1 and line.startswith("the ")
    assert fill.line(fill("a [MASK]", targets=["it"]), "a [MASK]").startswith("a [MASK]\tit 0.")
    assert fill.scorer().line(fill.perplexity("a b"), "a b").endswith("\ta b")


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    fill = load(tiny_encoder(tmp_path / "m", BertForMaskedLM), precision="float32")
    with torch.no_grad():
        fill.model.cls.predictions.bias[3] = math.nan
    with pytest.raises(FilbertError, match="damaged"):
        fill("a [MASK]")
    with pytest.raises(FilbertError, match="damaged"):
        fill.perplexity("a b")


def test_another_model_cannot_fill(tmp_path: Path) -> None:
    from filbert.bundle import open_bundle
    from filbert.infer.fill import Filler

    bundle = open_bundle(tiny_bundle(tmp_path / "m"))
    with pytest.raises(FilbertError, match="no head for masked words"):
        Filler(bundle, device=torch.device("cpu"))
