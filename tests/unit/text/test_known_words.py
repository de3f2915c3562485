"""Ids by the parts between blanks against the tokenizers library on whole texts."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from tokenizers import AddedToken

from filbert.errors import FilbertError
from filbert.text import BertTokenizer, known_words
from filbert.text.known_words import KnownWords

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "un", "##do", "##ly",
              ",", ".", "!", "中", "文", "a", "b", "##b", "e", "'", "s", "σ"]  # fmt: skip
BITS = ["hello", "World", "undo", "undoly", " ", "  ", "\n", "\t", "\u00a0", "\u2028", "\x1c",
        "\x00", "\u200b", ",", ".", "!", "中文", "a", "é", "e\u0301", "\u0301", "[MASK]", "[mask]",
        "[SEP]", "b" * 120, "'s", "Σ", "Σσ", "x"]  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    return BertTokenizer(path)


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(BITS, k=draw.randint(0, 12))) for _ in range(count)]


def test_the_same_ids_as_from_whole_texts(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_words, "MOST", 40)  # so that it begins anew now and then
    known, bare = KnownWords(), tokenizer._bare
    assert known.serves(bare)
    for seed in range(60):
        given = texts(20, seed)
        ids, lengths = known.encode(bare, given)
        wanted = [record.ids for record in bare.encode_batch(given, add_special_tokens=False)]
        assert ids == [token for row in wanted for token in row]
        assert lengths.tolist() == [len(row) for row in wanted]
        assert len(known._ids) <= 40


def test_new_tokens_are_found(tokenizer: BertTokenizer) -> None:
    options = {"max_length": 16, "windows": False, "stride": 0}
    before = tokenizer.encode_flat(["a filbert"], **options)  # type: ignore[arg-type]
    tokenizer.add_tokens("filbert")
    after = tokenizer.encode_flat(["a filbert"], **options)  # type: ignore[arg-type]
    assert before.ids.tolist()[2] == 1 and after.ids.tolist()[2] == len(VOCABULARY)


@pytest.mark.parametrize("token", ["hello world", AddedToken("filbert", lstrip=True)])
def test_tokens_that_reach_over_blanks_are_left_to_the_library(
    tokenizer: BertTokenizer, token: str | AddedToken
) -> None:
    tokenizer.add_tokens(token)
    assert not tokenizer._known.serves(tokenizer._bare)
    flat = tokenizer.encode_flat(["a hello world"], max_length=16, windows=False, stride=0)
    assert flat.ids.tolist() == tokenizer("a hello world").input_ids


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2028", "\r"])
def test_any_white_space_in_a_token_is_a_blank_once_normalised(
    tokenizer: BertTokenizer, blank: str
) -> None:
    tokenizer.add_tokens(f"hello{blank}world")
    assert not tokenizer._known.serves(tokenizer._bare)
    flat = tokenizer.encode_flat(["a hello world"], max_length=16, windows=False, stride=0)
    assert flat.ids.tolist() == tokenizer("a hello world").input_ids


def test_a_lone_surrogate_is_told(tokenizer: BertTokenizer) -> None:
    with pytest.raises(FilbertError, match=r"texts\[1\], character 3: a lone surrogate"):
        tokenizer.encode_flat(["a", "ab \ud800"], max_length=16, windows=False, stride=0)


def test_long_parts_are_not_kept(tokenizer: BertTokenizer) -> None:
    known = KnownWords()
    known.encode(tokenizer._bare, ["a " + "b" * 33])
    assert list(known._ids) == ["a"]


def test_threads_share_it(tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_words, "MOST", 10)
    given = [texts(20, seed) for seed in range(8)]
    alone = [KnownWords().encode(tokenizer._bare, one)[0] for one in given]
    known, wrong = KnownWords(), []

    def work(number: int) -> None:
        for _ in range(20):
            if known.encode(tokenizer._bare, given[number])[0] != alone[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
