"""New words behind those of a vocabulary: by hand, and what must not change."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from filbert.errors import FilbertError, UsageError
from filbert.text import BertTokenizer
from filbert.text.extend import check_plain, extend_pieces, is_chinese, next_id, with_words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "b", "##a", "##b", "ab", "##ab"]


def test_pairs_of_pieces_by_hand() -> None:
    """`aba` is ab ##a, `abab` is ab ##ab, `baab` is b ##a ##ab. The pair ab ##ab is seen 7 times;
    b ##a and ##a ##ab 5 times each, of which the one whose pieces stand first in the vocabulary is
    taken, then ba ##ab 5 times; ab ##a 3 times; b ##b once, which is too rare."""
    base = BertTokenizer(WORDS)
    words = {"aba": 3, "abab": 7, "baab": 5, "ab": 100, "bb": 1}
    found = extend_pieces(words, base, size=50)
    assert found.tokens == ["abab", "ba", "baab", "aba"]
    assert (found.letters, found.letters_left_out, found.words_left_out) == (0, 0, 0)
    assert extend_pieces(words, base, size=12).tokens == ["abab"]
    longer = with_words(base, found.tokens)
    assert [longer.tokenize(word) for word in words] == [["aba"], ["abab"], ["baab"], ["ab"],
                                                         ["b", "##b"]]  # fmt: skip


def test_missing_letters_come_first() -> None:
    base = BertTokenizer(WORDS)
    words = {"xa": 4, "ax": 2, "水": 9, "y": 1, "a" * 101: 5, "zb": 3}
    found = extend_pieces(words, base, size=50)
    # y is too rare; xa is x ##a, zb is z ##b, ax is a ##x
    assert found.tokens == ["水", "x", "z", "##x", "xa", "zb", "ax"]
    assert (found.letters, found.letters_left_out) == (4, 1)
    assert found.words_left_out == 1 + 5
    assert found.words == 24
    few = extend_pieces(words, base, size=50, max_letters=1)
    assert few.tokens == ["水"]
    assert (few.letters, few.letters_left_out) == (1, 4)
    assert few.words_left_out == 24 - 9
    assert extend_pieces(words, base, size=13).tokens == ["水", "x"]


def test_the_same_again() -> None:
    base = BertTokenizer(WORDS)
    words = {"".join("ab"[int(bit)] for bit in f"{number:b}"): number % 7 for number in range(500)}
    first = extend_pieces(words, base, size=120)
    backwards = dict(reversed(words.items()))
    assert all(extend_pieces(backwards, base, size=120) == first for _ in range(5))
    assert len(first.tokens) == len(set(first.tokens)) == 120 - 11
    assert not set(first.tokens) & set(WORDS)


def test_nothing_of_the_base_changes() -> None:
    """Its settings, its added words, and the numbers of what it knew."""
    base = BertTokenizer(WORDS, do_lower_case=False, strip_accents=True, model_max_length=77)
    base.add_tokens([AddedToken("covid-19", single_word=True)])
    assert next_id(base) == 12
    longer = with_words(base, ["abba", "水"])
    assert longer.get_vocab() == {**base.get_vocab(), "abba": 12, "水": 13}
    assert (longer.settings.strip_accents, longer.model_max_length) == (True, 77)
    for text in ("ab covid-19 abab", "áb xcovid-19", "AB", "[MASK] ab"):
        assert longer(text)["input_ids"] == base(text)["input_ids"]
    assert longer("abba 水")["input_ids"] == [2, 12, 13, 3]
    assert len(base) == 12


def test_what_cannot_be_extended() -> None:
    base = BertTokenizer(WORDS)
    check_plain(base, name="it")
    with pytest.raises(UsageError, match=r"--size 11 has no room behind the 11 tokens"):
        extend_pieces({"a": 1}, base, size=11)
    for name, other in (
        ("characters", BertTokenizer(WORDS, tokenize_chinese_chars=False)),
        ("normalizer", BertTokenizer(WORDS)),
    ):
        if name == "normalizer":
            state = json.loads(other._full.to_str())
            full = Tokenizer.from_str(json.dumps(state))
            full.normalizer = normalizers.NFC()
            other._adopt(full, other.settings)
        with pytest.raises(FilbertError, match="takes text apart in a way of its own"):
            check_plain(other, name="it")


def test_which_vocabulary_is_chinese() -> None:
    han = [chr(0x4E00 + number) for number in range(1000)]
    assert is_chinese(BertTokenizer([*SPECIAL, *han]))
    assert not is_chinese(BertTokenizer([*SPECIAL, *han[1:], "a"]))
