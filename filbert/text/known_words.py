"""Ids of texts, fast: what stands between blanks is looked up, and encoded once if new.

In BERT's tokenization no token reaches over a blank, so the ids of a text are those of its parts
between blanks, end to end. Language repeats its words: looking them up takes a tenth of the time
that the tokenizer takes with the text, and makes no object for a text.

    known = KnownWords()
    ids, lengths = known.encode(bare, ["A sentence.", "Another one."])

The slow twin is `encode_batch_fast` of the tokenizers library; tests/unit/text/test_known_words.py
holds the two to each other. Text without blanks (Chinese) is encoded as before.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers

BLANK = re.compile(r"[ \t\n]")
MOST = 60_000  # parts that are kept, some 15 MB; then all begins anew
LONGEST = 32  # characters of a part that is kept; longer ones seldom come again


class KnownWords:
    """The ids of parts of texts that one tokenizer has encoded. Calls from several threads are
    safe. A tokenizer that was given new tokens needs a new one."""

    def __init__(self) -> None:
        self._ids: dict[str, tuple[int, ...]] = {}
        self._independent: bool | None = None

    def serves(self, bare: Tokenizer) -> bool:
        """Whether texts of this tokenizer may be taken apart at blanks."""
        if self._independent is None:
            self._independent = words_are_independent(bare)
        return self._independent

    def encode(self, bare: Tokenizer, texts: Sequence[str]) -> tuple[list[int], NDArray[np.int64]]:
        """Ids without special tokens of all texts end to end, and how many each has, (texts,).

        Raises what the library raises for text that is not Unicode."""
        parts = " ".join(texts).split(" ")
        ids = self._ids  # another thread may begin anew
        found = list(map(ids.get, parts))
        if None in found:
            new = {part for part, own in zip(parts, found, strict=True) if own is None}
            records = bare.encode_batch_fast(list(new), add_special_tokens=False)
            fresh = {part: tuple(record.ids) for part, record in zip(new, records, strict=True)}
            found = [fresh[part] if own is None else own
                     for part, own in zip(parts, found, strict=True)]  # fmt: skip
            keep = {part: own for part, own in fresh.items() if len(part) <= LONGEST}
            if len(ids) + len(keep) > MOST:
                self._ids = dict(itertools.islice(keep.items(), MOST))
            else:
                ids.update(keep)
        rows = [own for own in found if own is not None]  # all, as the types have it
        if len(texts) == 1:
            all_ids = list(itertools.chain.from_iterable(rows))
            return all_ids, np.array([len(all_ids)])
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        parts_of = np.fromiter([text.count(" ") + 1 for text in texts], np.int64, len(texts))
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        last = np.cumsum(parts_of)
        lengths = ends[last] - ends[last - parts_of]
        return list(itertools.chain.from_iterable(rows)), lengths


def words_are_independent(bare: Tokenizer) -> bool:
    """Whether no token reaches over a blank: true unless a file or an added token asks for it."""
    return (
        isinstance(bare.normalizer, normalizers.BertNormalizer)
        and isinstance(bare.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and not any(
            token.lstrip or token.rstrip or any(map(str.isspace, token.content))
            for token in bare.get_added_tokens_decoder().values()
        )
    )
