"""The tokenizer beside the one of transformers: ids, offsets, masks and maps must be identical.

    pytest tests/numerics/test_tokenizer_parity.py

Three vocabularies (MiniLM's own uncased one, a cased one and a Chinese one that are made here) over
more than 20,000 lines of real text where ../shared is at hand, and hostile strings everywhere.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from filbert.text import BertTokenizer

transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

PLAIN = [
    "The quick brown fox jumps over the lazy dog.",
    "Two hours I will never get back; it's unbelievably, unforgivably dull!",
    "I haven't seen a better film since 1994 (and I've seen 1,024 of them).",
    "Ärger über Öl: die größte Straße heißt 'Königsallee'.",
    "L'été dernier, l'élève a mangé une crème brûlée à Besançon.",
    "今天天气很好,我们去公园散步吧。",
    "這家酒店的服務員態度非常好,早餐也不錯!",
    "Mail me at first.last@example.org or see https://example.org/a?b=c&d=%20",
]

HOSTILE = [
    "",
    " ",
    "\t\r\n \u00a0\u2003\u3000",
    "\x00",
    "nul\x00inside a\x00word",
    "bell\x07 escape\x1b[31m delete\x7f c1\x85\x9f",
    "\ufeffbyte order mark",
    "zero\u200bwidth\u200cjoiners\u200d and\u2060word\u00adbreaks",
    "right\u200fto\u202eleft\u202c marks",
    "line\u2028and paragraph\u2029separators\x0b\x0c",
    "replacement \ufffd\ufffd characters",
    "private use \ue000\uf8ff \U000f0000 and unassigned \u0378 \U0003fffe",
    "e\u0301 vs \u00e9, A\u030a vs \u00c5 vs \u212b, o\u0302\u0323 vs o\u0323\u0302 vs \u1ed9",
    "\u0301\u0302\u0303 marks alone, a\u0301\u0302\u0303\u0304\u0305b stacked Z\u0334\u0335a\u0336",
    "İstanbul ıssız DŽ Dž dž ẞß ŒŒ ﬁ ﬂ Ǆ ΑΣ ΑΣ. ΌΣΟΣ",
    "ＦＵＬＬ　ｗｉｄｔｈ，１２３。 ½ ² ① Ⅷ ㎏ ﷺ",
    "한국어 각 가\u11a8 ᄀᄁ ทดสอบภาษาไทย नमस्ते दुनिया العربية עִבְרִית ქართული",
    "ひらがなカタカナ漢字混じり文ｶﾞ が は゛ ー々〆",
    "𠀀𠀁𪛖 extension B 㐀㐁 A 豈更 compatibility 丽 supplement 〇",
    "😀😂👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷 #️⃣ ❤️ ✈︎",
    "mixed中文and英文words混在一起2023年test测试",
    "a,b;c:d!e?f-g_h=i+j*k/l\\m|n~o`p^q(r)s[t]u{v}w<x>y'z\"1@2#3$4%5&6",
    "。，、；：？！…—·ˉ¨‘’“”々～‖∶＂＇｀｜〃〔〕〈〉《》「」『』．〖〗【】（）［］｛｝",
    "¿Qué? ¡No! €5 £6 ¥7 © ® ™ § ¶ † ‡ • ‰ ∑ ∞ ≠ ← → ░ ☃",
    "[CLS] a [SEP] b [MASK] c [PAD] d [UNK] [CLS][SEP][MASK]",
    "[cls] [ Mask ] [MASK [MASK]] x[MASK]y [mask]",
    "un##able ## ##ing ### #",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "é" * 60 + " " + "é" * 101 + " " + "e\u0301" * 51,
    "x" * 5000,
    "中" * 300,
    "!" * 300,
    " " * 500 + "end",
    "word " * 700,
    "\u0301" * 300,
    "1234567890" * 30,
    "don't can't won't 'tis rock'n'roll it''s ''",
    "\U0001d400\U0001d401 \U0001f170 \U00010330 math and gothic",
    "a\u0340b\u0341c\u0343d \u0344 \u0374 \u037e",
]


def real_lines(folder: Path) -> list[str]:
    """Over 20,000 lines, each once: English, Chinese, German, French, mixed script, spoiled."""

    def column(path: str, index: int, delimiter: str, encoding: str = "utf-8") -> Iterator[str]:
        with open(folder / path, encoding=encoding, newline="") as file:
            quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
            for row in csv.reader(file, delimiter=delimiter, quoting=quoting):
                if len(row) > index:
                    yield row[index]

    def some(lines: Iterator[str], count: int) -> list[str]:
        return list(itertools.islice(lines, count))

    english = some(column("glue/SST-2/train.tsv", 0, "\t"), 6500)
    english += some(column("agnews/train.tsv", 0, "\t"), 2000)
    english += some(column("sms_spam/spam.csv", 1, ",", "latin-1"), 2500)
    english += some(column("banking77/train.csv", 0, ","), 2500)
    chinese = some(column("tnews/train.tsv", 0, "\t"), 4500)
    chinese += some(column("chnsenticorp/train.tsv", 0, "\t"), 700)
    european = []
    for name in ("de", "fr"):
        with gzip.open(folder / f"multi30k/train.{name}.gz", "rt", encoding="utf-8") as file:
            european += some((line.rstrip("\n") for line in file), 1500)
    chance = random.Random(0)
    mixed = [
        chance.choice(english)[:80] + chance.choice(["", " ", "，"]) + chance.choice(chinese)[:40]
        for _ in range(1000)
    ]
    spice = [
        "\x00",
        "\u0301",
        "\u200d",
        "😀",
        "👩‍👩‍👧",
        "\t",
        "\x1b",
        "中",
        "[MASK]",
        "\ufffd",
        "İ",
        "x" * 120,
    ]
    spoiled = []
    for line in chance.choices(english + chinese + european, k=1000):
        for _ in range(3):
            cut = chance.randint(0, len(line))
            line = line[:cut] + chance.choice(spice) + line[cut:]
        spoiled.append(line)
    return list(dict.fromkeys([*english, *chinese, *european, *mixed, *spoiled, *HOSTILE]))


def cased_vocabulary(lines: list[str]) -> list[str]:
    """A WordPiece vocabulary of cased text, trained by the tokenizers library."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=4000, special_tokens=SPECIAL, show_progress=False, limit_alphabet=400
    )
    tokenizer.train_from_iterator(lines, trainer)
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def chinese_vocabulary(lines: list[str]) -> list[str]:
    """Google's way: characters, each also as a later piece of a word, and bits of English."""
    characters = sorted({c for line in lines for c in line.lower() if not c.isspace()})[:6000]
    english = ["the", "test", "and", "##ing", "##ed", "20", "##19", "words"]
    return [*SPECIAL, *characters, *(f"##{c}" for c in characters), *english]


Pair = tuple[BertTokenizer, Any]


@pytest.fixture(scope="module")
def lines(request: pytest.FixtureRequest) -> list[str]:
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    return real_lines(folder) if folder.is_dir() else PLAIN + HOSTILE


@pytest.fixture(scope="module", params=["uncased", "cased", "chinese"])
def pair(request: pytest.FixtureRequest, lines: list[str]) -> Pair:
    """(ours, theirs) of one vocabulary."""
    if request.param == "uncased":
        folder = request.getfixturevalue("minilm")
        return BertTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(
            str(folder)
        )
    cased = request.param == "cased"
    make = cased_vocabulary if cased else chinese_vocabulary
    vocab = make(lines[::3] + PLAIN)
    theirs = transformers.BertTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        do_lower_case=not cased,
        model_max_length=512,
    )
    return BertTokenizer(vocab, do_lower_case=not cased), theirs


def assert_same(pair: Pair, text: Any, text_pair: Any = None, *, maps: bool = True, **options: Any):
    """All that both tokenizers return, key by key, and the maps of each sequence."""
    ours, theirs = pair
    asked = {
        "return_offsets_mapping": True,
        "return_special_tokens_mask": True,
        "return_length": True,
        "verbose": False,
        **options,
    }
    mine, other = ours(text, text_pair, **asked), theirs(text, text_pair, **asked)
    assert set(mine) == set(other.keys())
    for key in mine:
        assert mine[key] == other[key], key
    assert len(mine.encodings) == len(other.encodings)
    for index in range(len(mine.encodings) if maps else 0):
        assert mine.tokens(index) == other.tokens(index)
        assert mine.word_ids(index) == other.word_ids(index)
        assert mine.sequence_ids(index) == other.sequence_ids(index)
    return mine


def test_real_lines(pair: Pair, lines: list[str], shared_data: Path) -> None:
    assert len(lines) >= 20_000
    for begin in range(0, len(lines), 1000):
        assert_same(pair, lines[begin : begin + 1000], maps=False)


def test_hostile_strings(pair: Pair) -> None:
    assert_same(pair, HOSTILE + PLAIN)
    for text in HOSTILE:
        assert_same(pair, text)
        assert pair[0].tokenize(text) == pair[1].tokenize(text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_unicode(texts: list[str]) -> None:
    assert_same(_small(), texts)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(max_size=80),
    st.text(min_size=1, max_size=80),
    st.integers(min_value=6, max_value=24),
    st.sampled_from(["left", "right"]),
)
def test_any_pair_truncated(first: str, second: str, max_length: int, side: str) -> None:
    pair = _small()
    with _sides(pair, truncation=side):
        assert_same(pair, first, second, truncation=True, max_length=max_length)


def _small(made: list[Pair] = []) -> Pair:  # noqa: B006 - one pair for all examples
    if not made:
        vocab = chinese_vocabulary(PLAIN + HOSTILE)
        theirs = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})
        made.append((BertTokenizer(vocab, model_max_length=10**30), theirs))
    return made[0]


class _sides:
    """Both tokenizers cut or pad on a side for a while."""

    def __init__(self, pair: Pair, *, truncation: str = "right") -> None:
        self.pair, self.side = pair, truncation

    def __enter__(self) -> None:
        for tokenizer in self.pair:
            tokenizer.truncation_side = self.side

    def __exit__(self, *_: object) -> None:
        for tokenizer in self.pair:
            tokenizer.truncation_side = "right"


LONG = " ".join(PLAIN)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stride", [0, 1, 5])
@pytest.mark.parametrize("max_length", [16, 17, 40])
def test_windows_of_single_texts(pair: Pair, side: str, stride: int, max_length: int) -> None:
    options = {"truncation": True, "max_length": max_length, "stride": stride}
    with _sides(pair, truncation=side):
        for padding in (False, True, "max_length"):
            assert_same(
                pair,
                [LONG, "short", "", *PLAIN],
                return_overflowing_tokens=True,
                padding=padding,
                **options,
            )
        assert_same(pair, LONG, **options)
        assert_same(pair, LONG, return_overflowing_tokens=True, **options)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
def test_truncation_of_pairs(pair: Pair, strategy: str, side: str) -> None:
    def fits(text: str) -> bool:
        return len(pair[0].tokenize(text)) < 56

    texts = [LONG, "short", "a b c", "", *PLAIN]
    # The text that stays whole must leave room for the other one.
    pairs = [
        (first, second)
        for first, second in itertools.product(texts, texts)
        if strategy == "longest_first" or fits(second if strategy == "only_first" else first)
    ]
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    with _sides(pair, truncation=side):
        for max_length, stride, overflow in itertools.product((63, 70), (0, 3), (False, True)):
            mine = assert_same(
                pair,
                firsts,
                seconds,
                truncation=strategy,
                max_length=max_length,
                stride=stride,
                return_overflowing_tokens=overflow,
            )
            assert max(mine["length"]) == max_length
            assert_same(pair, *pairs[0], truncation=strategy, max_length=max_length)


def test_no_special_tokens(pair: Pair) -> None:
    assert_same(pair, PLAIN, add_special_tokens=False)
    assert_same(pair, PLAIN, PLAIN[::-1], add_special_tokens=False)
    assert_same(
        pair,
        PLAIN,
        PLAIN[::-1],
        add_special_tokens=False,
        truncation=True,
        max_length=11,
        padding=True,
    )


def test_padding(pair: Pair) -> None:
    for padding in (True, "longest", "max_length", "do_not_pad"):
        for side in ("left", "right"):
            for multiple in (None, 8):
                assert_same(
                    pair,
                    PLAIN,
                    PLAIN[::-1],
                    padding=padding,
                    padding_side=side,
                    pad_to_multiple_of=multiple,
                    truncation=True,
                    max_length=48,
                )
    assert_same(pair, "one text", padding=True, pad_to_multiple_of=5)
    assert_same(pair, "one text", padding="max_length")


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_tensors(pair: Pair, kind: str) -> None:
    ours, theirs = pair
    for text in ("one", ["one", "two three"]):
        options = {"padding": True, "return_tensors": kind, "return_offsets_mapping": True}
        mine, other = ours(text, **options), theirs(text, **options)
        for key in mine:
            assert type(mine[key]) is type(other[key])
            assert mine[key].dtype == other[key].dtype
            assert mine[key].shape == other[key].shape
            assert mine[key].tolist() == other[key].tolist()


def test_split_words(pair: Pair) -> None:
    words = [line.split() for line in PLAIN] + [[""], ["a", " ", "b c", "中文", "don't"]]
    assert_same(pair, words, is_split_into_words=True)
    assert_same(pair, words[0], is_split_into_words=True)
    assert_same(pair, [], is_split_into_words=True)
    assert_same(pair, words, words[::-1], is_split_into_words=True)
    assert_same(
        pair,
        words,
        words[::-1],
        is_split_into_words=True,
        truncation=True,
        max_length=16,
        return_overflowing_tokens=True,
    )


def test_batch_of_pairs_in_one_list(pair: Pair) -> None:
    assert_same(pair, list(zip(PLAIN, PLAIN[::-1], strict=True)))
    words = [(line.split(), line.split()[::-1]) for line in PLAIN]
    assert_same(pair, words, is_split_into_words=True)


def test_maps_between_text_and_tokens(pair: Pair) -> None:
    ours, theirs = pair
    mine, other = ours(PLAIN, HOSTILE[: len(PLAIN)]), theirs(PLAIN, HOSTILE[: len(PLAIN)])
    for row, (text, second) in enumerate(zip(PLAIN, HOSTILE, strict=False)):
        for sequence, content in enumerate((text, second)):
            for char in range(0, len(content), 3):
                assert mine.char_to_token(row, char, sequence) == other.char_to_token(
                    row, char, sequence
                )
                assert mine.char_to_word(row, char, sequence) == other.char_to_word(
                    row, char, sequence
                )
        for token in range(len(mine.encodings[row])):
            assert mine.token_to_chars(row, token) == other.token_to_chars(row, token)
            assert mine.token_to_word(row, token) == other.token_to_word(row, token)
            assert mine.token_to_sequence(row, token) == other.token_to_sequence(row, token)
        assert mine.word_to_tokens(row, 2) == other.word_to_tokens(row, 2)
        assert mine.word_to_chars(row, 2) == other.word_to_chars(row, 2)
    assert mine.token_to_word(-2) == mine.token_to_word(len(mine.encodings[0]) - 2)
    assert mine.n_sequences == other.n_sequences == 2


def test_ids_back_to_text(pair: Pair) -> None:
    ours, theirs = pair
    ids = [theirs(text)["input_ids"] for text in PLAIN + HOSTILE]
    for skip, clean in itertools.product((False, True), (None, False, True)):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        assert ours.batch_decode(ids, **options) == theirs.batch_decode(ids, **options)
        assert ours.decode(ids[0], **options) == theirs.decode(ids[0], **options)
        assert ours.decode(np.asarray(ids[0]), **options) == theirs.decode(ids[0], **options)
    assert ours.decode(ids[0][1]) == theirs.decode(ids[0][1])
    for row in ids:
        tokens = theirs.convert_ids_to_tokens(row)
        assert ours.convert_ids_to_tokens(row) == tokens
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == row
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
        assert ours.convert_ids_to_tokens(row, skip_special_tokens=True) == (
            theirs.convert_ids_to_tokens(row, skip_special_tokens=True)
        )
    assert ours.convert_tokens_to_ids("no such token") == theirs.convert_tokens_to_ids(
        "no such token"
    )


def test_names_and_sizes(pair: Pair) -> None:
    ours, theirs = pair
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.model_max_length == theirs.model_max_length == 512
    for name in ("unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    for pairs in (False, True):
        assert ours.num_special_tokens_to_add(pairs) == theirs.num_special_tokens_to_add(pairs)
    assert ours.encode(PLAIN[0], PLAIN[1]) == theirs.encode(PLAIN[0], PLAIN[1])


@pytest.mark.parametrize("added", [False, True])
def test_saved_folder_opens_in_transformers(pair: Pair, tmp_path: Path, added: bool) -> None:
    pair[0].save_pretrained(tmp_path / "first")
    ours = BertTokenizer.from_pretrained(tmp_path / "first")
    theirs = pair[1]
    if added:
        assert ours.add_tokens(["filbertish", "two words", "[MASK]"]) == 2
        assert ours.add_tokens(["<extra>"], special_tokens=True) == 1
    ours.save_pretrained(tmp_path / "second")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "second"))
    assert type(theirs).__name__ == "BertTokenizer"
    again = BertTokenizer.from_pretrained(tmp_path / "second")
    assert len(theirs) == len(ours) == len(again)
    assert theirs.model_max_length == 512
    texts = [*PLAIN, *HOSTILE, "a filbertish two words <extra> two  words Filbertish xfilbertishx"]
    for opened in (ours, again):
        assert_same((opened, theirs), texts)
        assert_same(
            (opened, theirs), PLAIN, PLAIN[::-1], truncation=True, max_length=20, padding=True
        )
        ids = theirs(texts)["input_ids"]
        for skip in (False, True):
            assert opened.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(
                ids, skip_special_tokens=skip
            )


def test_folder_of_transformers_opens_here(pair: Pair, tmp_path: Path) -> None:
    pair[1].save_pretrained(str(tmp_path))
    assert_same((BertTokenizer.from_pretrained(tmp_path), pair[1]), PLAIN + HOSTILE)


def test_bare_vocabulary_opens_as_in_transformers(pair: Pair, tmp_path: Path) -> None:
    ours, _ = pair
    ours.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    theirs = transformers.BertTokenizer.from_pretrained(str(tmp_path))
    assert_same((BertTokenizer.from_pretrained(tmp_path), theirs), PLAIN + HOSTILE)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    opened = BertTokenizer.from_pretrained(tmp_path)  # the case is guessed from the vocabulary
    assert opened.do_lower_case == config["do_lower_case"]
    assert_same((opened, theirs), PLAIN + HOSTILE)


def test_old_folder_with_added_tokens(tmp_path: Path) -> None:
    vocab = chinese_vocabulary(PLAIN)
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), "utf-8")
    added = {"<a>": len(vocab) + 1, "newword": len(vocab)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    names = {"cls_token": {"content": "[CLS]", "lstrip": False}, "extra_special_tokens": ["<a>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}', "utf-8")
    theirs = transformers.BertTokenizer.from_pretrained(str(tmp_path))
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert_same((ours, theirs), [*PLAIN, "x <a> newword NEWWORD <A> <a>newword"])
    assert ours.all_special_tokens == theirs.all_special_tokens


@pytest.mark.parametrize("side", ["right", "left"])
def test_flat_truncation(pair: Pair, side: str) -> None:
    ours, theirs = pair
    texts, pairs = [*PLAIN, *HOSTILE, LONG], [LONG, *HOSTILE[::-1], *PLAIN]
    with _sides(pair, truncation=side):
        for second, max_length in itertools.product((None, pairs), (9, 33, 512)):
            flat = ours.encode_flat(texts, second, max_length=max_length, windows=False, stride=0)
            wanted = theirs(texts, second, truncation=True, max_length=max_length)
            assert flat.ids.dtype == np.int32 and flat.token_type_ids.dtype == np.int8
            assert flat.ids.tolist() == [i for row in wanted["input_ids"] for i in row]
            assert flat.token_type_ids.tolist() == [
                i for row in wanted["token_type_ids"] for i in row
            ]
            assert np.diff(flat.window_starts).tolist() == [len(row) for row in wanted["input_ids"]]
            assert flat.example_windows.tolist() == list(range(len(texts) + 1))


def test_flat_windows(pair: Pair) -> None:
    ours, theirs = pair
    texts = [*PLAIN, *HOSTILE, LONG]
    for max_length, stride in ((6, 0), (16, 5), (17, 14), (64, 32)):
        flat = ours.encode_flat(texts, max_length=max_length, windows=True, stride=stride)
        wanted = theirs(
            texts,
            truncation=True,
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
        )
        assert flat.ids.tolist() == [i for row in wanted["input_ids"] for i in row]
        assert np.diff(flat.window_starts).tolist() == [len(row) for row in wanted["input_ids"]]
        owners = np.repeat(np.arange(len(texts)), np.diff(flat.example_windows))
        assert owners.tolist() == wanted["overflow_to_sample_mapping"]


def test_flat_windows_of_pairs_move_through_the_longer_text(pair: Pair) -> None:
    ours, theirs = pair
    question, context = "short question", LONG
    options = {"max_length": 40, "stride": 8, "return_overflowing_tokens": True}
    flat = ours.encode_flat([question], [context], max_length=40, windows=True, stride=8)
    wanted = theirs(question, context, truncation="only_second", **options)
    assert flat.ids.tolist() == [i for row in wanted["input_ids"] for i in row]
    assert flat.token_type_ids.tolist() == [i for row in wanted["token_type_ids"] for i in row]
    flat = ours.encode_flat([context], [question], max_length=40, windows=True, stride=8)
    wanted = theirs(context, question, truncation="only_first", **options)
    assert flat.ids.tolist() == [i for row in wanted["input_ids"] for i in row]
    assert flat.token_type_ids.tolist() == [i for row in wanted["token_type_ids"] for i in row]
