"""Choosing sentences: by score, in order, without repetition, within limits."""

from __future__ import annotations

import time

import pytest

from filbert.errors import UsageError
from filbert.tasks.select_sentences import Limits, cut_off, select, words_of

TEXTS = ["The cat sat on it.", "Nothing new.", "A cat sat on it too.", "Rain fell.", "Nothing new."]


def test_best_sentences_in_the_order_of_the_document() -> None:
    assert select([0.1, 3.0, 0.2, 2.0, -1.0], TEXTS, limits=Limits(sentences=2)) == [1, 3]
    assert select([1.0, 1.0, 1.0], TEXTS[:3], limits=Limits(sentences=1)) == [0]  # ties: the first
    assert select([], [], limits=Limits(sentences=2)) == []


def test_three_words_in_a_row_are_not_repeated() -> None:
    scores = [3.0, 1.0, 2.0, 0.0, 0.5]
    assert select(scores, TEXTS, limits=Limits(sentences=2)) == [0, 1]  # not 2: "cat sat on it"
    assert select(scores, TEXTS, limits=Limits(sentences=2, blocking=False)) == [0, 2]


def test_a_short_sentence_is_not_chosen_twice() -> None:
    scores = [0.0, 3.0, 0.0, 1.0, 2.0]
    assert select(scores, TEXTS, limits=Limits(sentences=2)) == [1, 3]
    assert select([1.0, 0.5], ["Good good.", "Good!"], limits=Limits(sentences=2)) == [0, 1]


def test_chinese_blocks_on_six_characters() -> None:
    texts = ["本文提出了一种新的方法。", "我们提出了一种新的方法。", "本文的方法很好。"]
    assert select([3.0, 2.0, 1.0], texts, limits=Limits(sentences=2)) == [0, 2]
    # three characters alone, 的方法, do not block


def test_limits_of_length() -> None:
    texts = ["a b c d", "e f", "g"]
    assert select([3.0, 2.0, 1.0], texts, limits=Limits(words=5)) == [0, 2]
    assert select([3.0, 2.0, 1.0], texts, limits=Limits(characters=4)) == [1, 2]
    assert select([3.0, 2.0, 1.0], texts, limits=Limits(sentences=1, words=3)) == [1]
    assert words_of("用BERT模型, OK") == ["用", "bert", "模", "型", "ok"]


def test_where_nothing_fits_the_best_is_cut_off() -> None:
    texts = ["one two three four", "five six seven eight"]
    for limits, expected in (
        (Limits(words=2), "five six"),
        (Limits(characters=6), "five s"),
        (Limits(words=3, characters=5), "five"),
        (Limits(sentences=1), texts[1]),
    ):
        chosen = select([0.0, 1.0], texts, limits=limits)
        assert chosen == [1]
        assert cut_off(texts[1], limits=limits) == expected
    assert cut_off("中文没有空格", limits=Limits(words=3)) == "中文没"


@pytest.mark.parametrize("bad", [{}, {"sentences": 0}, {"words": -1}, {"characters": 1.5}])
def test_impossible_limits_are_told(bad) -> None:
    with pytest.raises(UsageError, match=r"limit|at least 1"):
        Limits(**bad)


def test_long_text_takes_linear_time() -> None:
    begin = time.process_time()
    select([1.0, 0.0], ["a" * 1_000_000, "a. " * 300_000], limits=Limits(sentences=2))
    assert time.process_time() - begin < 5
