"""The fast path of encoding sentences against the tokenizer on whole sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filbert.text import BertTokenizer
from filbert.text.pieces import Pieces
from filbert.text.sentences import split_sentences
from filbert.text.words import ChineseWords

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(code) for code in range(97, 123)]
VOCABULARY = [
    *SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "##ing", "cafe", "café",
    *'.,!?"()[]-#', "。", "，", "“", "”", "’", "中", "国", "国", "人", "1", "##1",
]  # fmt: skip


def tokenizer_of(**options: bool) -> BertTokenizer:
    return BertTokenizer(list(dict.fromkeys(VOCABULARY)), **options)


WORDS = st.sampled_from([
    "the", "café", "Cafe\u0301", "mask", "[MASK]", "中国人", "中a国", "don’t", "x.y", "…", "ﬁ", "İ",
    "=\u0338", "\u0301", "豈", "𠀀", "1,1", "-", "“中”", "a" * 120, "한국", "\u00ad", "##ing",
])  # fmt: skip
SENTENCES = st.one_of(
    st.lists(WORDS, max_size=12).map(" ".join),
    st.lists(WORDS, max_size=12).map("".join),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])),
)


@pytest.mark.parametrize(
    "options",
    [{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}, {"strip_accents": False}],
    ids=str,
)
def test_fast_and_slow_give_the_same(options: dict[str, bool]) -> None:
    tokenizer = tokenizer_of(**options)
    fast, slow = Pieces(tokenizer), Pieces(tokenizer, slow=True)

    @settings(max_examples=120)
    @given(st.lists(SENTENCES, max_size=4), st.integers(0, 2**31))
    def check(sentences: list[str], seed: int) -> None:
        size = len("\n".join(sentences))
        starts = np.random.default_rng(seed).random(size) < 0.5
        for one, other in zip(
            fast.encode(sentences, starts=starts),
            slow.encode(sentences, starts=starts),
            strict=True,
        ):
            assert one.dtype == other.dtype
            assert one.tolist() == other.tolist()

    check()
    assert not fast.slow


def test_real_text_and_real_vocabulary(shared_data: Path, minilm: Path) -> None:
    from filbert.data.corpus import read_documents

    tokenizer = BertTokenizer.from_pretrained(minilm)
    fast, slow = Pieces(tokenizer), Pieces(tokenizer, slow=True)
    for name in ("corpus_en.jsonl.xz", "corpus_zh.jsonl.xz"):
        documents = read_documents(str(shared_data / name))
        for _ in range(60):
            sentences = split_sentences(next(documents).text)
            one, other = fast.encode(sentences), slow.encode(sentences)
            assert one.ids.tolist() == other.ids.tolist()
            assert one.lengths.tolist() == other.lengths.tolist()
            plain = tokenizer(sentences, add_special_tokens=False)["input_ids"]
            assert one.ids.tolist() == [index for ids in plain for index in ids]


def test_joins_of_english_are_the_pieces_behind_the_first() -> None:
    coded = Pieces(tokenizer_of()).encode(["the cat.", "asking"])
    # "the" "c" "##a" "##t" "." and "a" "##s" "##k" "##ing"
    assert coded.lengths.tolist() == [5, 4]
    assert coded.joins.astype(int).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 1]


def test_joins_of_chinese_are_characters_behind_the_first_of_their_word() -> None:
    pytest.importorskip("rjieba")
    sentences = ["中国人。", "“中国”"]
    starts = np.array([1, 0, 1, 1, 1, 1, 1, 0, 1], dtype=bool)  # 中国 人 。 \n “ 中国 ”
    coded = Pieces(tokenizer_of()).encode(sentences, starts=starts)
    assert coded.joins.astype(int).tolist() == [0, 1, 0, 0, 0, 0, 1, 0]
    own = ChineseWords().starts("中国人民")
    assert own.astype(int).tolist() in ([1, 0, 1, 0], [1, 0, 0, 0])


def test_names_of_special_tokens_in_a_text_are_text() -> None:
    tokenizer = tokenizer_of()
    coded = Pieces(tokenizer).encode(["the [MASK] [SEP]"])
    assert not set(coded.ids.tolist()) & set(tokenizer.convert_tokens_to_ids(["[MASK]", "[SEP]"]))


def test_a_sentence_without_tokens_has_none() -> None:
    coded = Pieces(tokenizer_of()).encode(["\u0301", "the", ""])
    assert coded.lengths.tolist() == [0, 1, 0]
    assert Pieces(tokenizer_of()).encode([]).ids.tolist() == []


def test_a_tokenizer_with_other_rules_is_taken_as_it_is(tmp_path: Path) -> None:
    tokenizer_of().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    path.write_text(json.dumps(content), "utf-8")
    pieces = Pieces(BertTokenizer.from_pretrained(tmp_path))
    assert pieces.slow
    assert len(pieces.encode(["the,the"]).ids) == 1  # one word of its own, here unknown


def test_added_words_are_found(tmp_path: Path) -> None:
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(["new.word"])
    pieces = Pieces(tokenizer)
    assert pieces.encode(["the new.word"]).ids.tolist() == tokenizer.encode(
        "the new.word", add_special_tokens=False
    )


def test_what_does_not_fit_the_dictionary_is_encoded_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("filbert.text.pieces._CACHED", 2)
    tokenizer = tokenizer_of()
    pieces = Pieces(tokenizer)
    for _ in range(2):
        for text in ("the cat sat on the mat", "a" * 70 + " the"):
            expected = tokenizer.encode(text, add_special_tokens=False)
            assert pieces.encode([text]).ids.tolist() == expected
    assert len(pieces._cache) == 2


def test_ids_are_as_wide_as_the_vocabulary_needs() -> None:
    assert Pieces(tokenizer_of()).dtype == np.dtype("<u2")
    wide = BertTokenizer([*SPECIAL, *(f"w{number}" for number in range(65_532))])  # 65,537 tokens
    assert Pieces(wide).encode(["w65531"]).ids.tolist() != []
    assert Pieces(wide).dtype == np.dtype("<u4")
    fits = BertTokenizer([*SPECIAL, *(f"w{number}" for number in range(65_531))])  # 65,536
    assert Pieces(fits).dtype == np.dtype("<u2")
