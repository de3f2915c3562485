"""A trimmed vocabulary reads its corpus as the whole one did."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from filbert.errors import FilbertError
from filbert.text import BertTokenizer
from filbert.text.trim_vocabulary import UsedTokens, check_same, trim_tokenizer

TEXTS = [
    "The river flows, unbelievably, into the sea.\nA second line; with ½ and é and naïve!",
    "今天天气很好，我们去北京。The 2,000 people",
    "[MASK] and [SEP] in a text, " + "x" * 101 + " ☃ and the zz☃zz",
]


def trimmed(tokenizer: BertTokenizer, texts: list[str]) -> tuple[BertTokenizer, list[int]]:
    used = UsedTokens(tokenizer)
    used.add(texts)
    kept = used.kept()
    return trim_tokenizer(tokenizer, kept), kept


@pytest.mark.parametrize("name", ["filbert-mini-en", "filbert-mini-zh"])
def test_the_same_tokens_under_new_numbers(name: str, tmp_path: Path) -> None:
    old = BertTokenizer.from_pretrained(name)
    new, kept = trimmed(old, TEXTS)
    assert len(new) == len(kept) < len(old)
    assert check_same(old, new, kept, [TEXTS]) == len(TEXTS)
    for text in TEXTS:
        assert new.tokenize(text) == old.tokenize(text)
        assert [kept[i] for i in new.encode(text)] == old.encode(text)
    assert new.all_special_tokens == old.all_special_tokens
    new.save_pretrained(tmp_path)
    for again in (
        BertTokenizer.from_pretrained(tmp_path),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    ):
        for text in TEXTS[:2]:
            assert again(text)["input_ids"] == new(text)["input_ids"]
    assert len((tmp_path / "vocab.txt").read_text("utf-8").splitlines()) == len(kept)


def test_characters_are_kept_so_that_other_words_can_be_spelled() -> None:
    new, _ = trimmed(BertTokenizer.from_pretrained("filbert-mini-en"), ["the sea"])
    assert new.tokenize("the sea") == ["the", "sea"]
    assert new.tokenize("river") == ["r", "##i", "##v", "##e", "##r"]


def test_a_word_without_a_way_stays_without_one() -> None:
    """ "abc" is [UNK]: "ab" is the longest piece, and nothing goes on from there. Without "ab" it
    would be "a" and "##bc"; so "ab", which occurs nowhere, is kept."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    old = BertTokenizer([*special, "ab", "a", "##bc", "abd", "xbc", "x"])
    assert old.tokenize("abc xbc") == ["[UNK]", "xbc"]
    new, kept = trimmed(old, ["abc xbc abc", "a"])
    assert new.tokenize("abc xbc") == ["[UNK]", "xbc"]
    assert 5 in kept and 8 not in kept
    new, kept = trimmed(old, ["xbc"])
    assert 5 not in kept


def test_added_tokens_stay() -> None:
    old = BertTokenizer.from_pretrained("filbert-mini-en")
    old.add_tokens(["covid19"])
    old.add_tokens(["<q>"], special_tokens=True)
    new, kept = trimmed(old, ["the covid19 <q> sea"])
    assert new.tokenize("the covid19 sea") == ["the", "covid19", "sea"]
    assert [kept[i] for i in new.encode("a <q> covid19")] == old.encode("a <q> covid19")


def test_a_difference_is_told() -> None:
    old = BertTokenizer.from_pretrained("filbert-mini-en")
    new, kept = trimmed(old, ["the sea"])
    with pytest.raises(FilbertError, match="in another way: 'the river'"):
        check_same(old, new, kept, [["the sea"], ["the sea", "the river"]])
