"""Pieces and the words they belong to: exact places in raw text, given words never lost."""

from __future__ import annotations

import random

import numpy as np
import pytest

from filbert.errors import FilbertError
from filbert.text import BertTokenizer
from filbert.text.parts import is_han, parts_of_texts, parts_of_words

transformers = pytest.importorskip("transformers")

WORDS = [
    "oba",
    "##ma",
    "was",
    "in",
    "coca",
    "cola",
    "-",
    ".",
    "'",
    "s",
    "cafe",
    "北",
    "京",
    "a",
    "##b",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(VOCABULARY)


def words_of(tokenizer: BertTokenizer, text: str) -> list[str]:
    chars = parts_of_texts(tokenizer, [text]).chars
    assert chars is not None
    return [text[start:end] for start, end in chars]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Obama's Coca-Cola.", ["Obama", "'", "s", "Coca", "-", "Cola", "."]),
        ("在北京café", ["在", "北", "京", "café"]),  # without spaces, mixed
        ("  Obama\tin\n北 京 ", ["Obama", "in", "北", "京"]),
        ("Oba\u200bma \x00 in", ["Oba\u200bma", "in"]),  # dropped inside a word, and a dropped word
        ("\U0001f600 in", ["\U0001f600", "in"]),  # an emoji is unknown, and has its place
        ("İn", ["İn"]),  # lower-casing makes two characters of one
        ("", []),
        (" \u200b ", []),
    ],
)
def test_parts_of_raw_text_are_exact(
    tokenizer: BertTokenizer, text: str, expected: list[str]
) -> None:
    assert words_of(tokenizer, text) == expected


def test_several_texts_at_once(tokenizer: BertTokenizer) -> None:
    texts = ["Obama in", "", "北京", "ab"]
    pieces = parts_of_texts(tokenizer, texts)
    assert pieces.counts.tolist() == [3, 0, 2, 2]
    assert pieces.items.tolist() == [2, 0, 2, 1]
    assert pieces.item.tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert pieces.begins.tolist() == [True, False, True, True, True, True, False]
    assert pieces.chars is not None
    assert pieces.chars.tolist() == [[0, 5], [6, 8], [0, 1], [1, 2], [0, 2]]


def test_a_tokenizer_that_does_not_set_chinese_apart() -> None:
    words = [*VOCABULARY, "##京", "##北"]
    whole = BertTokenizer(words, tokenize_chinese_chars=False)
    assert whole.tokenize("北京") == ["北", "##京"]
    assert words_of(whole, "北京北") == ["北", "京", "北"]


def test_given_words_keep_their_pieces(tokenizer: BertTokenizer) -> None:
    sentences = [["Coca-Cola", "\u200b", "", "\x00", "北京", "obama in"], [], ["???"], ["ab"]]
    pieces = parts_of_words(tokenizer, sentences)
    assert pieces.items.tolist() == [6, 0, 1, 1]
    # no word is without a piece, so no label moves
    assert np.bincount(pieces.item).tolist() == [3, 1, 1, 1, 2, 3, 3, 2]
    unknown = tokenizer.unk_token_id
    assert pieces.ids[pieces.item == 1].tolist() == [unknown]
    assert pieces.begins.tolist() == [True] * 8 + [True, False, True, True, True, True, True, False]
    assert pieces.chars is None


def test_letters_given_one_by_one_are_not_joined(tokenizer: BertTokenizer) -> None:
    pieces = parts_of_words(tokenizer, [list("cafe")])
    assert pieces.items.tolist() == [4]
    assert "cafe" not in tokenizer.convert_ids_to_tokens(pieces.ids.tolist())


def test_pieces_of_given_words_are_those_of_transformers(tokenizer: BertTokenizer) -> None:
    """`is_split_into_words` there; words without pieces are left out on both sides."""
    theirs = transformers.BertTokenizer(
        vocab={token: number for number, token in enumerate(VOCABULARY)}, do_lower_case=True
    )
    draw = random.Random(0)
    stock = ["Obama", "cola.", "北京a", "\u200b", "x", "in", "abab", "'s", "Ob\u0301ama", "😀"]
    for _ in range(40):
        words = [draw.choice(stock) for _ in range(draw.randint(1, 8))]
        expected = theirs(words, is_split_into_words=True, add_special_tokens=False)
        pieces = parts_of_words(tokenizer, [words])
        kept = [words[item] != "\u200b" for item in pieces.item]
        assert pieces.ids[kept].tolist() == expected["input_ids"]
        assert pieces.item[kept].tolist() == expected.word_ids()


def test_what_is_no_text_is_named(tokenizer: BertTokenizer) -> None:
    with pytest.raises(FilbertError, match=r"sentence 1\[0\]"):
        parts_of_words(tokenizer, [["a"], [3]])  # type: ignore[list-item]
    with pytest.raises(FilbertError, match="surrogate"):
        parts_of_texts(tokenizer, ["\ud800"])


def test_is_han() -> None:
    assert [is_han(c) for c in "北\u3400\U00020000ab。あ"] == [True] * 3 + [False] * 4
