"""Words counted and pieces learned: by hand, against the tokenizers library, on any threads.

The order of merges in the small examples was worked out by hand from the counts of pairs.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from filbert.errors import FilbertError, UsageError
from filbert.text import BertTokenizer, vocabulary
from filbert.text.vocabulary import WordCounter, learn_pieces, special_tokens, words_of

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def learned(words: dict[str, int], *, size: int = 100, **options: int) -> list[str]:
    return learn_pieces(words, size=size, special=SPECIAL, **options).tokens[len(SPECIAL) :]


def some_text(seed: int, words: int = 6000) -> str:
    """Invented words whose pieces come back, in Zipf's proportions."""
    draw = random.Random(seed)
    syllables = ["ba", "ko", "mi", "tu", "re", "so", "né", "li", "an", "ter", "ing", "ed", "über"]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(900)]
    shares = [1 / rank for rank in range(1, 901)]
    return " ".join(draw.choices(lexicon, shares, k=words)) + " 你好，世界!"


# --- special tokens ------------------------------------------------------------------------------


def test_special_tokens_stand_as_in_the_released_models() -> None:
    assert special_tokens() == SPECIAL
    assert special_tokens(unused=2, extra=["[E]"]) == [
        *("[PAD]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[E]"),
    ]
    # bert-base-cased and bert-base-chinese: [unused1] 1 ... [unused99] 99, [UNK] 100 ... 103
    released = special_tokens(unused=101)
    assert [released.index(token) for token in SPECIAL] == [0, 100, 101, 102, 103]
    assert (released[1], released[99]) == ("[unused1]", "[unused99]")
    assert released[104:] == ["[unused100]", "[unused101]"]
    with pytest.raises(UsageError, match=r"more than once: \[SEP\]"):
        special_tokens(extra=["[SEP]"])


# --- words ---------------------------------------------------------------------------------------


def whole(text: str, *, lower: bool) -> Counter[str]:
    """What BERT's normalizer and pre-tokenizer make of the whole text at once."""
    normalizer = normalizers.BertNormalizer(lowercase=lower)
    words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))
    return Counter(word for word, _ in words)


def test_words_by_hand() -> None:
    counter = WordCounter(lower=True)
    counter.add("Don't stop, Café!\tstop\n")
    counter.add("汉字STOP，1.5\u3000stop")
    assert counter.words() == {
        **{"don": 1, "'": 1, "t": 1, "stop": 4, ",": 1, "cafe": 1, "!": 1},
        **{"汉": 1, "字": 1, "，": 1, "1": 1, ".": 1, "5": 1},
    }
    assert words_of(["Café"], lower=False) == {"Café": 1}


EDGES = "aZ0 .'\t\r\n\x00\x1c\x85\xa0\u2028\u3000\u200b\ufeff\ufffd\u0301\u3099éßİΣς한\u1100\u1161"
CHARACTERS = st.one_of(
    st.sampled_from(EDGES + "汉字\u4e00\u9fff\u3400\uf900\U00020000，。ｆ\u2f00½"),
    st.characters(exclude_categories=["Cs"]),
)


@settings(max_examples=400, deadline=None)
@given(st.text(CHARACTERS, max_size=60), st.booleans())
def test_words_are_those_of_the_whole_text(text: str, lower: bool) -> None:
    assert words_of([text], lower=lower) == whole(text, lower=lower)


def test_words_of_real_text(shared_data: Path) -> None:
    from filbert.data.corpus import read_documents

    for name in ("corpus_en.jsonl.xz", "corpus_zh.jsonl.xz"):
        for number, document in enumerate(read_documents(str(shared_data / name))):
            assert words_of([document.text], lower=True) == whole(document.text, lower=True)
            if number == 100:
                break


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(FilbertError, match=r"character 3 .* \(U\+D83D\)"):
        WordCounter(lower=True).add("ab\ud83d")


def test_the_rarest_words_are_forgotten_when_there_are_too_many() -> None:
    counter = WordCounter(lower=True, max_words=3)
    counter.add("a a a b b c c c d e")
    assert counter.words() == {"a": 3, "b": 2, "c": 3}
    assert counter.forgotten == 2
    counter.add("f f g g h h a")  # six words, three of them seen twice or less are too many
    assert counter.words() == {"a": 4, "c": 3}
    assert counter.forgotten == 2 + 2 + 6


# --- pieces --------------------------------------------------------------------------------------


def test_merges_by_hand() -> None:
    # pairs: a ##b 8, ##b ##c 3, b ##c 1; then ab ##c 3; b ##c is too rare
    words = {"ab": 5, "abc": 3, "bc": 1}
    letters = ["a", "b", "c", "##b", "##c"]
    assert learned(words) == [*letters, "ab", "abc"]
    assert learned(words, size=11) == [*letters, "ab"]
    assert learned(words, size=10) == letters
    assert learned(words, min_frequency=1) == [*letters, "ab", "abc", "bc"]


def test_of_equal_pairs_the_first_letters_win() -> None:
    assert learned({"cd": 2, "ab": 2}, size=12)[-1:] == ["ab"]
    assert learned({"zd": 2, "yb": 2}, size=12)[-1:] == ["yb"]


def test_rare_letters_and_their_words_are_left_out() -> None:
    words = {"ab": 5, "aq": 1, "a": 2, "z" * 101: 50}
    found = learn_pieces(words, size=100, special=SPECIAL)
    assert found.tokens[5:] == ["a", "b", "##b", "ab"]
    assert (found.letters, found.letters_left_out) == (2, 1)
    assert (found.words, found.words_left_out) == (58, 51)
    found = learn_pieces(words, size=100, special=SPECIAL, max_letters=1)
    assert found.tokens[5:] == ["a"]
    assert (found.letters_left_out, found.words_left_out) == (2, 56)


def test_no_room_for_the_letters_and_nothing_to_learn_from() -> None:
    with pytest.raises(UsageError, match=r"--size 9 has no room .* \(10 tokens\)"):
        learned({"ab": 5, "abc": 3, "bc": 1}, size=9)
    with pytest.raises(FilbertError, match="of 1 letters none occurs 2 times"):
        learned({"a": 1})
    with pytest.raises(FilbertError, match="longer than 100"):
        learned({"a" * 101: 9})


def test_counts_of_a_huge_corpus_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_MAX_TAUGHT", 40)
    told = Counter(" ".join(vocabulary.repeated({"a": 300, "b": 95, "c": 4})).split())
    assert told == {"a": 30, "b": 10}  # 399 words over 40: a tenth of each, rounded


def test_the_words_told_are_the_words_counted() -> None:
    words = words_of([some_text(0)], lower=True)
    words["the"] = 12_345  # more than one string of them
    assert Counter(" ".join(vocabulary.repeated(words)).split()) == words


def test_pieces_are_those_of_the_trainer_alone() -> None:
    """Up to the order of ties, which the trainer leaves to its hash table."""
    text = some_text(1, words=20_000)
    alone = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    alone.normalizer = normalizers.BertNormalizer()
    alone.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, min_frequency=1, special_tokens=SPECIAL, show_progress=False
    )
    alone.train_from_iterator([text], trainer)
    ours = learn_pieces(
        words_of([text], lower=True), size=400, special=SPECIAL, min_frequency=1
    ).tokens
    assert len(ours) == len(set(ours)) == 400
    assert len(set(ours) & set(alone.get_vocab())) >= 396


PROGRAM = """
import sys
from filbert.text.vocabulary import learn_pieces, special_tokens, words_of
words = words_of([sys.stdin.read()], lower=True)
sys.stdout.write("\\n".join(learn_pieces(words, size=600, special=special_tokens()).tokens))
"""


def test_the_same_text_gives_the_same_bytes_whatever_the_threads() -> None:
    text = some_text(2, words=8000)
    digests = set()
    for threads, seed in (("1", "0"), ("2", "1"), ("5", "2"), ("2", "3")):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=text.encode(),
            capture_output=True,
            check=True,
            cwd=ROOT,
            env=environment | {"TOKENIZERS_PARALLELISM": "true", "PYTHONIOENCODING": "utf-8"},
        )
        assert done.stdout.count(b"\n") == 599
        digests.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(digests) == 1


def test_the_order_of_texts_does_not_matter() -> None:
    texts = [some_text(seed, words=500) for seed in range(4)]
    one = learn_pieces(words_of(texts, lower=True), size=500, special=SPECIAL)
    other = learn_pieces(words_of(texts[::-1], lower=True), size=500, special=SPECIAL)
    assert one == other


def test_what_was_learned_reads_the_text_without_loss() -> None:
    text = some_text(3)
    tokens = learn_pieces(words_of([text], lower=True), size=600, special=SPECIAL, min_frequency=1)
    pieces = BertTokenizer(tokens.tokens).tokenize(text)
    assert "[UNK]" not in pieces
    joined = "".join(piece.removeprefix("##") for piece in pieces)
    plain = text.replace("é", "e").replace("ü", "u").replace(" ", "")
    assert joined == plain
    # frequent words whole: fewer tokens than letters, and the most frequent word is one token
    assert len(pieces) < len(plain) / 2
    word = Counter(text.split()).most_common(1)[0][0]
    assert len(BertTokenizer(tokens.tokens).tokenize(word)) == 1
