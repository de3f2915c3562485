"""Windows of questions over contexts: as Transformers lays them out, and back to characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filbert.errors import FilbertError
from filbert.text import BertTokenizer
from filbert.text.passages import encode_passages

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "caf", "##e", *"臺灣大學"]


def test_windows_by_hand() -> None:
    tokenizer = BertTokenizer(VOCABULARY)
    flat = encode_passages(
        tokenizer, ["a", "a b"], ["c d e f g h", "臺灣"], np.array([0, 1]), max_length=8, stride=1
    )
    ids = [
        tokenizer.convert_ids_to_tokens(flat.ids[a:b].tolist())
        for a, b in zip(flat.window_starts[:-1], flat.window_starts[1:], strict=True)
    ]
    # 8 - 3 specials - 1 = 4 tokens of the context, sharing one
    assert ids == [
        ["[CLS]", "a", "[SEP]", "c", "d", "e", "f", "[SEP]"],
        ["[CLS]", "a", "[SEP]", "f", "g", "h", "[SEP]"],
        ["[CLS]", "a", "b", "[SEP]", "臺", "灣", "[SEP]"],
    ]
    assert flat.token_type_ids.tolist() == [0] * 3 + [1] * 5 + [0] * 3 + [1] * 4 + [0] * 4 + [1] * 3
    assert flat.question_windows.tolist() == [0, 2, 3]
    assert flat.asked.tolist() == [0, 0, 1]
    assert flat.context_at.tolist() == [3, 3, 4]
    assert flat.token_from.tolist() == [0, 3, 6] and flat.token_count.tolist() == [4, 3, 2]
    assert flat.spans[6:].tolist() == [[0, 1], [1, 2]]
    assert flat.cut.tolist() == [0, 0]


def test_long_question_is_cut_to_half_of_the_room() -> None:
    flat = encode_passages(
        BertTokenizer(VOCABULARY), ["a b c d e f"], ["g h"], np.array([0]), max_length=9, stride=1
    )
    assert flat.cut.tolist() == [3] and flat.context_at.tolist() == [5]


@pytest.mark.parametrize(("length", "stride"), [(4, 0), (20, 9), (20, -1)])
def test_windows_that_cannot_move(length: int, stride: int) -> None:
    with pytest.raises(FilbertError, match=f"max_length={length}, stride={stride}"):
        encode_passages(
            BertTokenizer(VOCABULARY), ["a"], ["b"], np.array([0]), max_length=length, stride=stride
        )


def test_nothing_and_no_unicode() -> None:
    tokenizer = BertTokenizer(VOCABULARY)
    none = encode_passages(tokenizer, [], [], np.empty(0, np.int64), max_length=20, stride=2)
    assert none.questions == 0 and len(none.ids) == 0
    blank = encode_passages(tokenizer, ["a"], ["\u0301"], np.array([0]), max_length=20, stride=2)
    assert blank.token_count.tolist() == [0] and len(blank.ids) == 4
    with pytest.raises(FilbertError, match=r"contexts\[1\].*lone surrogate"):
        encode_passages(tokenizer, ["a"], ["b", "x\ud800"], np.array([1]), max_length=20, stride=2)


CONTEXTS = [
    "Cafe\u0301 noir — 👩\u200d💻 said: “naïve”  İstanbul\x00 2001!",
    "臺灣大學（NTU）於１９２８年成立，　簡稱ＮＴＵ。한국어도 있다. " * 9,
    "The quick brown fox, unbelievably long-winded, jumped " * 30,
    "x",
]


@pytest.mark.parametrize(("length", "stride"), [(48, 12), (128, 0), (384, 128)])
def test_as_transformers(minilm: Path, length: int, stride: int) -> None:
    from transformers import BertTokenizerFast

    theirs = BertTokenizerFast.from_pretrained(str(minilm))
    questions = ["Who said so?", "臺灣大學何時成立？", "What jumped over it, and why not?", "?"]
    owner = np.array([0, 1, 2, 3, 2])
    asked = [*questions, "Why?"]
    mine = encode_passages(
        BertTokenizer.from_pretrained(minilm), asked, CONTEXTS, owner,
        max_length=length, stride=stride,
    )  # fmt: skip
    want = theirs(
        asked, [CONTEXTS[i] for i in owner], truncation="only_second", max_length=length,
        stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert len(want["input_ids"]) == len(mine.context_at)
    assert want["overflow_to_sample_mapping"] == mine.asked.tolist()
    for w, (ids, types, offsets) in enumerate(
        zip(want["input_ids"], want["token_type_ids"], want["offset_mapping"], strict=True)
    ):
        a, b = mine.window_starts[w], mine.window_starts[w + 1]
        assert mine.ids[a:b].tolist() == ids
        assert mine.token_type_ids[a:b].tolist() == types
        first = mine.context_at[w]
        spans = mine.spans[mine.token_from[w] : mine.token_from[w] + mine.token_count[w]]
        assert [tuple(span) for span in spans.tolist()] == offsets[first : len(ids) - 1]


def test_a_megabyte_is_one_context(minilm: Path) -> None:
    text = "word " * 200_000 + "needle"
    flat = encode_passages(
        BertTokenizer.from_pretrained(minilm), ["Where?"], [text, "b"], np.array([0]),
        max_length=384, stride=128,
    )  # fmt: skip
    begin, end = flat.spans[flat.context_starts[1] - 1]
    assert text[begin:end] == "needle"
    assert len(flat.context_at) == 1 + -(-(200_001 - 379) // (379 - 128))
