"""Sentences to ids, fast: words are looked up, and encoded once if new.

In BERT's tokenization no token reaches over a blank, or from a Chinese character or a mark of
punctuation to its neighbour, so the ids of a sentence are those of its parts end to end. A corpus
repeats its parts: nearly all are in a dictionary after the first few thousand sentences, which
makes this several times as fast as the tokenizer on whole sentences (`slow=True`, which gives the
same ids, and is what a tokenizer with other rules gets). The names of special tokens in a text are
text: no [SEP] and no [MASK] comes out of a corpus.

    pieces = Pieces(BertTokenizer.from_pretrained("vocab/"))
    coded = pieces.encode(["A sentence.", "Another one."])
    coded.ids, coded.lengths, coded.joins

Whole words, for masks: `joins` tells for each token whether it continues the word before it: `##`
pieces, and, where a segmenter told where words begin (filbert/text/words.py), the characters of a
Chinese word but its first.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from filbert.text.tokenizer import BertTokenizer
from filbert.text.words import HAN

# Marks that every BERT tokenizer cuts off: all of ASCII, and some that are frequent elsewhere.
_MARKS = (
    r"!-/:-@\[-`{-~\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u3001\u3002\u3008-\u3011\uff01"
    r"\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
)
_PARTS = re.compile(f"[^{HAN}{_MARKS} ]+|[{HAN}{_MARKS}]")
_WORDS = re.compile(f"[^{_MARKS} ]+|[{_MARKS}]")
_HAN = re.compile(f"[{HAN}]")
_OTHER, _CHINESE, _MARK, _BLANK = range(4)  # kinds of characters
_CACHED = 100_000  # parts; some 20 MB
_LONGEST = 64  # characters of a part that is worth keeping


def word_like(text: str) -> list[str]:
    """The words, Chinese characters and marks of a text, lower-cased, whatever the vocabulary."""
    return _PARTS.findall(text.lower().replace("\n", " ")) or [text]


class Coded(NamedTuple):
    """Tokens of sentences end to end: `ids` (tokens,) uint16 or uint32, `lengths` (sentences,)
    int64, 0 where nothing of a sentence is known to the tokenizer, `joins` (tokens,) bool."""

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    lengths: NDArray[np.int64]
    joins: NDArray[np.bool_]


class Pieces:
    """Encodes sentences without [CLS] and [SEP]; `dtype` is the type of its ids."""

    def __init__(self, tokenizer: BertTokenizer, *, slow: bool = False) -> None:
        bare = tokenizer._bare
        self._tokenizer = Tokenizer(bare.model)
        self._tokenizer.normalizer = bare.normalizer
        self._tokenizer.pre_tokenizer = bare.pre_tokenizer
        added = [t for t in bare.get_added_tokens_decoder().values() if not t.special]
        self._tokenizer.add_tokens(added)
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        self.dtype: np.dtype[Any] = np.dtype("<u2" if size <= 1 << 16 else "<u4")
        self._continues = np.zeros(size, dtype=bool)  # (vocabulary,)
        for token, index in vocabulary.items():
            self._continues[index] = token.startswith("##") and len(token) > 2
        self.slow = slow or not (
            isinstance(bare.normalizer, normalizers.BertNormalizer)
            and isinstance(bare.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
            and not added
        )
        self._han_apart = tokenizer.settings.tokenize_chinese_chars
        self._cache: dict[str, bytes] = {}

    def encode(self, sentences: Sequence[str], *, starts: NDArray[np.bool_] | None = None) -> Coded:
        """Encode sentences that hold no line end.

        `starts`: (characters,) of the sentences joined by one line end, where words begin.
        """
        text = "\n".join(sentences)
        han = self._han_apart and not text.isascii() and _HAN.search(text) is not None
        if self.slow:
            return self._encode_slowly(sentences, starts if han else None)
        parts = list(map((_PARTS if han else _WORDS).findall, sentences))
        counts = np.fromiter(map(len, parts), np.int64, len(parts))
        flat = list(itertools.chain.from_iterable(parts))
        coded = self._look_up(flat)
        ids = np.frombuffer(b"".join(coded), dtype=self.dtype)
        sizes = np.fromiter(map(len, coded), np.int64, len(coded)) // self.dtype.itemsize
        ends = _ends(sizes)  # of parts, in tokens
        joins = self._continues[ids]
        if han and starts is not None:
            begins, inside = ends[:-1][sizes > 0], _inside(text, starts)[sizes > 0]
            joins[begins[inside]] = True
        return Coded(ids, np.diff(ends[_ends(counts)]), joins)

    def _look_up(self, parts: list[str]) -> list[bytes]:
        """The ids of each part, as bytes."""
        cache = self._cache
        new = list(set(parts).difference(cache))
        room = _CACHED - len(cache)
        if new:
            records = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
            for part, record in zip(new, records, strict=True):
                cache[part] = np.array(record.ids, dtype=self.dtype).tobytes()
        coded = list(map(cache.__getitem__, parts))
        for number, part in enumerate(new):
            if number >= room or len(part) > _LONGEST:
                del cache[part]
        return coded

    def _encode_slowly(self, sentences: Sequence[str], starts: NDArray[np.bool_] | None) -> Coded:
        """The tokenizer on whole sentences; the words of Chinese text by its offsets."""
        records = self._tokenizer.encode_batch(list(sentences), add_special_tokens=False)
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        ids = np.fromiter(itertools.chain.from_iterable(r.ids for r in records), self.dtype)
        joins = self._continues[ids]
        if starts is not None:
            token = character = 0
            for sentence, record in zip(sentences, records, strict=True):
                for number, (begin, _) in enumerate(record.offsets, token):
                    if _HAN.match(sentence, begin) and not starts[character + begin]:
                        joins[number] = True
                token, character = token + len(record), character + len(sentence) + 1
        return Coded(ids, lengths, joins)


def _inside(text: str, starts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(parts,) True for Chinese characters that do not begin their word; parts as `_PARTS` cuts."""
    kinds = _kinds()[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")]  # (characters,)
    after = np.concatenate([[True], kinds[:-1] != _OTHER])
    single = (kinds == _CHINESE) | (kinds == _MARK)
    places = np.flatnonzero(single | ((kinds == _OTHER) & after))  # of parts
    return (kinds[places] == _CHINESE) & ~starts[places]


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) 0 and the end of each of n runs."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """(characters of Unicode,) what each is to `_PARTS`."""
    kinds = np.full(0x110000, _OTHER, dtype=np.uint8)
    known = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x2A6E0))))
    for kind, pattern in ((_CHINESE, f"[{HAN}]"), (_MARK, f"[{_MARKS}]"), (_BLANK, "[ \n]")):
        kinds[[ord(character) for character in re.findall(pattern, known)]] = kind
    return kinds
