"""Where the words of Chinese text begin, which its script does not show.

Whole-word masking hides a word at once, not one of its characters, whose neighbours would give it
away. Segmentation is by rjieba, a Rust port of jieba (dictionary and hidden Markov model). Its
dictionary is simplified; text in traditional characters is cut as its simplified twin, which
OpenCC's table of characters gives, one for one, so places stay the same. Documents count as
traditional from one traditional character in fifty on: some of those characters also occur in
simplified text, in which they must stay (显著).

    >>> ChineseWords().starts("我們學習語言。").astype(int).tolist()      # 我們 學習 語言 。
    [1, 0, 1, 0, 1, 0, 1]

Needs the extra `pretrain`. Whole-word masking of Chinese: Cui et al. 2019, "Pre-training with whole
word masking for Chinese BERT".
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.errors import FilbertError, missing_extra

# Characters that BERT's tokenizers make words of their own. (They know rarer blocks as well, whose
# characters are left in the company of their neighbours here, for the tokenizer to cut.)
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
_LOOKED_AT = 4000  # characters of a document that tell its script
_TRADITIONAL_SHARE = 0.02


class ChineseWords:
    """A segmenter; making one loads the dictionary (some 0.1 s, 60 MB)."""

    def __init__(self) -> None:
        """Raises `FilbertError` where the packages are not installed."""
        try:
            import rjieba
        except ImportError:
            raise missing_extra("rjieba", "pretrain") from None
        try:
            import opencc
        except ImportError:
            raise missing_extra("opencc", "pretrain") from None
        self._cut: Any = rjieba.cut
        self._simplified = _table(opencc)
        self._traditional = re.compile(f"[{''.join(map(chr, self._simplified))}]")

    def starts(self, text: str) -> NDArray[np.bool_]:
        """(characters,) True where a word begins; every mark and blank is one as well.

        A word never reaches over a line. Raises `FilbertError` should the segmenter not give back
        what it was given.
        """
        shown = text.translate(self._simplified) if self.is_traditional(text) else text
        lengths = np.fromiter(map(len, self._cut(shown)), dtype=np.int64)
        ends = np.cumsum(lengths)
        if len(text) != (int(ends[-1]) if len(ends) else 0):
            raise FilbertError(
                f"the segmenter rjieba changed the text {text[:40]!r}; report this with the text"
            )
        starts = np.zeros(len(text), dtype=bool)
        starts[ends - lengths] = True
        return starts

    def is_traditional(self, text: str) -> bool:
        """Whether the text is written in traditional characters, by its first 4,000 characters."""
        head = text[:_LOOKED_AT]
        return len(self._traditional.findall(head)) > _TRADITIONAL_SHARE * len(head)


def _table(opencc: Any) -> dict[int, int]:
    """Traditional character -> simplified one, of those that OpenCC maps one for one."""
    characters = [chr(code) for code in range(0x3400, 0xA000)]
    simplified = opencc.OpenCC("t2s").convert("\n".join(characters)).split("\n")
    return {
        ord(one): ord(other)
        for one, other in zip(characters, simplified, strict=True)
        if one != other and len(other) == 1
    }
