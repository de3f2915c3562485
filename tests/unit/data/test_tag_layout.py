"""Slots: where labels are learned and read, in windows too, against a plain loop."""

from __future__ import annotations

import random

import numpy as np
import pytest

from filbert.data.tag_layout import Laid, lay_out, slot_targets, tags_of_spans
from filbert.errors import FilbertError
from filbert.text import BertTokenizer
from filbert.text.parts import parts_of_texts, parts_of_words

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##x", "-", "北", "京"]
LABELS = ["O", "B-P", "I-P"]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(VOCABULARY)


def laid(tokenizer: BertTokenizer, words: list[list[str]], **options: object) -> Laid:
    settings: dict[str, object] = {"max_length": 32, "stride": 4, **options}
    return lay_out(parts_of_words(tokenizer, words), tokenizer, **settings)  # type: ignore[arg-type]


def tokens_at(tokenizer: BertTokenizer, found: Laid) -> list[str]:
    return tokenizer.convert_ids_to_tokens(found.encoded.input_ids[found.slot_tokens].tolist())


def test_the_three_kinds_of_slots(tokenizer: BertTokenizer) -> None:
    words = [["ax-bx", "c"], [], ["dxx"]]
    expected = {
        "first": (["a", "c", "d"], [0, 1, 2], [True] * 3),
        "parts": (["a", "-", "b", "c", "d"], [0, 0, 0, 1, 2], [True, False, False, True, True]),
        "all": (
            ["a", "##x", "-", "b", "##x", "c", "d", "##x", "##x"],
            [0, 0, 0, 0, 0, 1, 2, 2, 2],
            [True, False, False, False, False, True, True, False, False],
        ),
    }
    for slots, (tokens, items, first) in expected.items():
        found = laid(tokenizer, words, slots=slots)
        assert tokens_at(tokenizer, found) == tokens
        assert found.slot_items.tolist() == items
        assert found.first.tolist() == first
        assert found.example_items.tolist() == [0, 2, 2, 3]
        targets = slot_targets(found, [["B-P", "O"], [], ["I-P"]], LABELS)
        # a word's later slots go on with its entity: one entity begins once
        assert targets.tolist() == [
            {"B": 1, "I": 2, "O": 0}[("B", "O", "I")[item] if new or item else "I"]
            for item, new in zip(items, first, strict=True)
        ]
    with pytest.raises(FilbertError, match="expected one of parts, first, all"):
        laid(tokenizer, words, slots="last")


@pytest.mark.parametrize("seed", range(12))
def test_windows_show_each_piece_where_it_has_most_context(
    tokenizer: BertTokenizer, seed: int
) -> None:
    draw = random.Random(seed)
    words = [[draw.choice("abcdefgh") for _ in range(draw.randint(0, 40))] for _ in range(5)]
    max_length = draw.randint(6, 14)
    stride = draw.randint(0, max_length - 3)
    found = laid(tokenizer, words, max_length=max_length, stride=stride)
    encoded = found.encoded
    assert np.diff(encoded.window_starts).max() <= max_length
    number = 0
    for example, sentence in enumerate(words):
        first, last = encoded.example_windows[example], encoded.example_windows[example + 1]
        step = max_length - 2 - stride
        for place, word in enumerate(sentence):
            best: tuple[int, int] | None = None
            for window in range(first, last):
                begin, end = encoded.window_starts[window : window + 2].tolist()
                token = begin + 1 + place - (window - first) * step
                if begin < token < end - 1:
                    context = min(token - begin, end - 1 - token)
                    if best is None or context > best[0]:
                        best = context, token
            assert best is not None
            assert found.slot_tokens[number] == best[1]
            token_id = encoded.input_ids[best[1]]
            assert tokenizer.convert_ids_to_tokens(int(token_id)) == word
            number += 1
    assert number == len(found.slot_tokens)


def test_a_batch_holds_the_slots_of_its_examples_in_order(tokenizer: BertTokenizer) -> None:
    words = [["a", "bx"], [], ["c"] * 20, ["d", "e", "f"], ["g"]]
    found = laid(tokenizer, words, max_length=10, stride=3, slots="all")
    for examples in ([3], [4, 2, 1, 0], [1], [2, 3]):
        batch, at = found.gather(np.asarray(examples))
        tokens = tokenizer.convert_ids_to_tokens(batch.input_ids[at].tolist())
        expected = [
            t for e in examples for w in words[e] for t in (["b", "##x"] if w == "bx" else [w])
        ]
        assert tokens == expected
        rows = found.rows(np.asarray(examples))
        assert found.encoded.input_ids[found.slot_tokens[rows]].tolist() == (
            batch.input_ids[at].tolist()
        )


def test_windows_that_would_not_advance(tokenizer: BertTokenizer) -> None:
    for options in ({"max_length": 2}, {"max_length": 10, "stride": 8}, {"stride": -1}):
        with pytest.raises(FilbertError, match="the stride must be"):
            laid(tokenizer, [["a"]], **options)


def test_wrong_tags(tokenizer: BertTokenizer) -> None:
    found = laid(tokenizer, [["a", "b"]])
    with pytest.raises(FilbertError, match="1 tags for 2 words"):
        slot_targets(found, [["O"]], LABELS)
    with pytest.raises(FilbertError, match="'B-Q' is none of O, B-P, I-P"):
        slot_targets(found, [["O", "B-Q"]], LABELS)


def test_spans_of_characters_to_tags(tokenizer: BertTokenizer) -> None:
    texts = ["ax-bx c 北京", "", "a b"]
    pieces = parts_of_texts(tokenizer, texts)
    found = lay_out(pieces, tokenizer, max_length=16, stride=2)
    spans = [
        [(0, 2, "P"), (3, 5, "P"), (8, 10, "L")],  # ax, bx, 北京
        [],
        [(0, 3, "P")],
    ]
    tags, widened, lost = tags_of_spans(found, spans)
    assert tags == [["B-P", "O", "B-P", "O", "B-L", "I-L"], [], ["B-P", "I-P"]]
    assert (widened, lost) == (0, 0)


def test_spans_that_cut_words_are_widened_and_those_of_nothing_are_lost(
    tokenizer: BertTokenizer,
) -> None:
    found = lay_out(parts_of_texts(tokenizer, ["ax  bxx c"]), tokenizer, max_length=16, stride=2)
    # "x  b" cuts two words; then "xx" has only a word that is taken; the blank holds none
    tags, widened, lost = tags_of_spans(found, [[(1, 5, "P"), (5, 7, "Q"), (7, 8, "R")]])
    assert tags == [["B-P", "I-P", "O"]]
    assert (widened, lost) == (1, 2)
    # blanks at the ends of a span change nothing and are no cut
    tags, widened, lost = tags_of_spans(found, [[(2, 8, "P")]])
    assert (tags, widened, lost) == ([["O", "B-P", "O"]], 0, 0)
