"""Blanks between words, learned from texts."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from filbert.text.spacing import join, learn_spacing, split


def test_the_example_of_the_module() -> None:
    spacing = learn_spacing(["Ein T-Shirt, 3.5 Meter.", "Ein T-Shirt, 9.5 Meter."])
    words = ["Ein", "Hut", ",", "2", ".", "5", "Meter", "."]
    assert join(words, spacing) == "Ein Hut, 2.5 Meter."


def test_quotes_open_and_close() -> None:
    spacing = learn_spacing(['He said "go now" and left.'] * 2)
    words = ["She", "said", '"', "wait", "here", '"', "and", "stayed", "."]
    assert join(words, spacing) == 'She said "wait here" and stayed.'


def test_languages_differ() -> None:
    french = learn_spacing(["Tu viens ?", "Il part !"] * 2)
    german = learn_spacing(["Kommst du?", "Er geht!"] * 2)
    assert join(["Où", "vas", "tu", "?"], french) == "Où vas tu ?"
    assert join(["Wohin", "gehst", "du", "?"], german) == "Wohin gehst du?"


def test_chinese_has_no_blanks() -> None:
    spacing = learn_spacing(["你好，我是湯姆。", "我有3本书。"] * 2)
    assert join([*"我有", "5", *"本书", "，", "你", "呢", "？"], spacing) == "我有5本书，你呢？"
    assert join([*"你好"], {}) == "你好"


def test_nothing_and_one_word() -> None:
    assert join([], {}) == ""
    assert join(["Hut"], {}) == "Hut"
    assert learn_spacing([]) == {}
    assert split("") == ([], [])


@pytest.mark.parametrize("language", ["de", "en"])
def test_real_sentences_come_back_as_they_were(shared_data: Path, language: str) -> None:
    folder = shared_data / "multi30k"
    read = [
        gzip.decompress((folder / f"{part}.{language}.gz").read_bytes()).decode().split("\n")
        for part in ("train", "val")
    ]
    spacing = learn_spacing(read[0][:6000])
    wrong = [text for text in read[1][:500] if join(split(text)[0], spacing) != text.strip()]
    assert len(wrong) <= 10  # 2 %
