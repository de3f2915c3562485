"""Texts, or words that are given, to pieces that know their item: what labels of words are tied to.

An *item* is what a label belongs to: a given word, or in raw text a part as BERT's own rules cut
it: a run of letters and digits, a mark, a Chinese character. A given word may hold several parts
(`Coca-Cola` has three) and keeps its one label. No item is ever without a piece: what the tokenizer
drops (zero-width characters, NUL, nothing at all) is read as [UNK] where it was given as a word, so
labels never move to a neighbour.

    pieces = parts_of_texts(tokenizer, ["Barack Obama was born in Hawaii."])
    pieces.chars[pieces.begins]       # where each item starts in the raw text, and where its
                                      # first piece ends
    pieces = parts_of_words(tokenizer, [["Coca-Cola", "Inc", "."]])
    pieces.item                       # [0, 0, 0, 0, 1, 2], as many pieces as each word has
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from filbert.errors import FilbertError
from filbert.text.batch import check_texts, encoding_error
from filbert.text.tokenizer import BertTokenizer
from filbert.text.words import HAN

Ints = NDArray[np.int64]

_CHUNK = 1000  # texts whose records, some 160 bytes a character, are alive at one time


class Pieces(NamedTuple):
    """Pieces of many examples end to end, without special tokens.

    ids: (pieces,) int32. counts: (examples,) int64 pieces of each. items: (examples,) int64 items
    of each. item: (pieces,) int64 the item of each piece, counted over all examples. begins:
    (pieces,) bool, True where a part begins. chars: (items, 2) int64, start and end of each item in
    its raw text; None where words were given.
    """

    ids: NDArray[np.int32]
    counts: Ints
    items: Ints
    item: Ints
    begins: NDArray[np.bool_]
    chars: Ints | None


def parts_of_texts(tokenizer: BertTokenizer, texts: Sequence[str]) -> Pieces:
    """Raw texts; the items are their parts. Raises `FilbertError` for what is no text."""
    check_texts(texts, "texts")
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    offsets: list[Ints] = [np.empty((0, 2), np.int64)]
    counts: list[int] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        records = _encode(tokenizer, chunk, "texts", start)
        counts += map(len, records)
        ids.append(np.fromiter(itertools.chain.from_iterable(r.ids for r in records), np.int32))
        pairs = itertools.chain.from_iterable(r.offsets for r in records)
        flat = np.fromiter(itertools.chain.from_iterable(pairs), np.int64)
        offsets.append(flat.reshape(-1, 2))
    body, chars = np.concatenate(ids), np.concatenate(offsets)
    lengths = np.asarray(counts, dtype=np.int64)
    begins = _starts_part(tokenizer)[body]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    begins |= np.diff(owner, prepend=-1) > 0  # the first piece of a text
    item = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(body)) - 1
    spans = np.stack([chars[first, 0], chars[last, 1]], axis=1) if len(body) else chars
    return Pieces(body, lengths, np.bincount(owner[first], minlength=len(lengths)).astype(np.int64),
                  item, begins, spans)  # fmt: skip


def parts_of_words(tokenizer: BertTokenizer, sentences: Sequence[Sequence[str]]) -> Pieces:
    """Words that are given, each encoded by itself; the items are these words.

    Raises `FilbertError` that names the sentence and word for what is no word.
    """
    for number, words in enumerate(sentences):
        check_texts(words, f"sentence {number}")
    different = list(dict.fromkeys(itertools.chain.from_iterable(sentences)))
    coded: dict[str, bytes] = {}
    for start in range(0, len(different), _CHUNK):
        chunk = different[start : start + _CHUNK]
        for word, record in zip(chunk, _encode(tokenizer, chunk, "words", start), strict=True):
            ids = record.ids or [tokenizer.unk_token_id]
            coded[word] = np.asarray(ids, dtype=np.int32).tobytes()
    found = [coded[word] for words in sentences for word in words]
    sizes = np.fromiter(map(len, found), np.int64, len(found)) // 4  # (items,)
    items = np.fromiter(map(len, sentences), np.int64, len(sentences))
    body = np.frombuffer(b"".join(found), dtype=np.int32)
    item = np.repeat(np.arange(len(found)), sizes)
    begins = _starts_part(tokenizer)[body] | (np.diff(item, prepend=-1) > 0)
    owner = np.repeat(np.arange(len(items)), items)  # of items
    counts = np.bincount(owner, weights=sizes, minlength=len(items)).astype(np.int64)
    return Pieces(body, counts, items, item, begins, None)


def _encode(tokenizer: BertTokenizer, texts: list[str], name: str, start: int) -> list[Any]:
    try:
        return list(tokenizer._bare.encode_batch(texts, add_special_tokens=False))
    except (TypeError, UnicodeError) as error:
        raise encoding_error(texts, name, offset=start) or FilbertError(str(error)) from None


def _starts_part(tokenizer: BertTokenizer) -> NDArray[np.bool_]:
    """(ids,) whether a piece begins a part: all but `##` pieces, and of these a Chinese character
    too, for a tokenizer that does not set such characters apart."""
    vocabulary = tokenizer.get_vocab()
    starts = np.ones(max(vocabulary.values(), default=0) + 1, dtype=bool)
    for token, index in vocabulary.items():
        if token.startswith("##") and len(token) > 2:
            starts[index] = len(token) == 3 and is_han(token[2])
    return starts


def is_han(character: str) -> bool:
    """Whether a character is in one of the ranges of `filbert.text.words.HAN`."""
    return any(low <= character <= high for low, high in _HAN)


_HAN = [(HAN[place], HAN[place + 2]) for place in range(0, len(HAN), 3)]  # "a-b" after "a-b"
