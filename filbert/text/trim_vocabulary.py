"""A vocabulary cut down to what a corpus uses: the same tokens for the corpus, under new numbers.

Kept are the tokens that occur, all special and added ones, and every single character, so that a
word that the corpus does not have can still be spelled as far as its characters are known.

WordPiece takes the longest piece at each place, so a word whose pieces are all kept gets the same
pieces again: no longer one was there before. A word that has become [UNK] needs more: pieces that
were found before the search failed are kept too, or another way through the word might now succeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from filbert.errors import FilbertError
from filbert.text.pieces import Pieces
from filbert.text.pretrained import _finish
from filbert.text.tokenizer import BertTokenizer

LONGEST_WORD = 100  # characters; WordPiece makes a longer word [UNK]


class UsedTokens:
    """Collects which tokens of a tokenizer occur in texts."""

    def __init__(self, tokenizer: BertTokenizer) -> None:
        self.tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self._vocabulary = tokenizer.get_vocab()
        self.seen: NDArray[np.bool_] = np.zeros(max(self._vocabulary.values()) + 1, dtype=bool)
        self.tokens = 0  # that were read

    def add(self, texts: list[str]) -> None:
        """Note the tokens of these texts."""
        lines = _lines(texts)
        coded = self._pieces.encode(lines)
        self.seen[coded.ids] = True
        self.tokens += len(coded.ids)
        unknown = self.tokenizer.unk_token_id
        if not (coded.ids == unknown).any():
            return
        ends = np.cumsum(coded.lengths)
        hit = np.searchsorted(ends, np.flatnonzero(coded.ids == unknown), side="right")
        for number in np.unique(hit):
            self._add_failed(lines[number])

    def _add_failed(self, line: str) -> None:
        """The pieces of each word up to where none fitted."""
        full = self.tokenizer._full
        text = line if full.normalizer is None else full.normalizer.normalize_str(line)
        for word, _ in full.pre_tokenizer.pre_tokenize_str(text):
            begin, found = 0, list[int]()
            while begin < len(word) <= LONGEST_WORD:
                end = len(word)
                mark = "##" if begin else ""
                while end > begin and mark + word[begin:end] not in self._vocabulary:
                    end -= 1
                if end == begin:  # [UNK]: the search got this far
                    self.seen[found] = True
                    break
                found.append(self._vocabulary[mark + word[begin:end]])
                begin = end

    def kept(self) -> list[int]:
        """The ids to keep, in rising order: what occurred, special and added tokens, characters."""
        keep = self.seen.copy()
        keep[list(self.tokenizer.get_added_vocab().values())] = True
        keep[self.tokenizer.all_special_ids] = True
        single = [i for token, i in self._vocabulary.items() if len(token.removeprefix("##")) == 1]
        keep[single] = True
        ids: list[int] = np.flatnonzero(keep).tolist()
        names = set(self._vocabulary.values())
        return [number for number in ids if number in names]


def trim_tokenizer(tokenizer: BertTokenizer, kept: list[int]) -> BertTokenizer:
    """The tokenizer with these tokens alone, numbered in this order from 0."""
    place = {old: new for new, old in enumerate(kept)}
    content = json.loads(tokenizer._full.to_str())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {
        token: place[index] for token, index in vocabulary.items() if index in place
    }
    content["added_tokens"] = [
        {**token, "id": place[token["id"]]} for token in content["added_tokens"]
    ]
    content["post_processor"] = None  # names ids; put on anew
    full = Tokenizer.from_str(json.dumps(content))
    settings = replace(
        tokenizer.settings,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )
    _finish(full, settings)
    trimmed = BertTokenizer.__new__(BertTokenizer)
    trimmed._adopt(full, settings)
    for token in tokenizer.all_special_tokens:
        if trimmed._id(token) != place[tokenizer._id(token)]:
            raise FilbertError(f"the special token {token!r} did not keep its place")
    return trimmed


def check_same(
    old: BertTokenizer, new: BertTokenizer, kept: list[int], texts: Iterable[list[str]]
) -> int:
    """Read these texts with both tokenizers; returns how many. Raises `FilbertError` for one that
    they take apart in different ways."""
    before, after = Pieces(old), Pieces(new)
    ids = np.asarray(kept)
    count = 0
    for block in texts:
        lines = _lines(block)
        a, b = before.encode(lines), after.encode(lines)
        if not np.array_equal(a.ids, ids[b.ids]):
            differs = next(
                line for line in lines
                if not np.array_equal(before.encode([line]).ids, ids[after.encode([line]).ids])
            )  # fmt: skip
            raise FilbertError(
                f"the trimmed vocabulary would read a text in another way: {differs!r:.200}. "
                "This tokenizer has rules of its own and cannot be trimmed"
            )
        count += len(block)
    return count


def _lines(texts: list[str]) -> list[str]:
    return [line for text in texts for line in text.split("\n") if line]
