"""Which sentences make up a summary, from their scores: the best ones that do not repeat each
other, in the order of the document.

A sentence that shares three words in a row with one chosen before is passed over (trigram blocking,
Paulus et al. 2018, arXiv 1705.04304, section 2.5, as in Liu and Lapata 2019). Chinese words are not
separated; six characters in a row, about three words, stand for them. The same sentence again is
passed over however short it is.

    select([0.1, 2.0, 1.0], ["One.", "Two.", "Three."], limits=Limits(sentences=2))     # [1, 2]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from filbert.errors import UsageError

_HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_HAN}]|[^\\W{_HAN}]+")
_ALONE = re.compile(f"[{_HAN}]")
RUN, RUN_OF_CHARACTERS = 3, 6


@dataclass(frozen=True)
class Limits:
    """How long a summary may be; at least one limit is set.

    sentences: at most so many; characters, words: at most so many of all chosen sentences together
    (a Chinese character is a word). blocking: pass over sentences that repeat three words.
    """

    sentences: int | None = None
    characters: int | None = None
    words: int | None = None
    blocking: bool = True

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("sentences", "characters", "words")}
        if all(value is None for value in given.values()):
            raise UsageError("a summary needs a limit: sentences, characters or words")
        for name, value in given.items():
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")


def words_of(text: str) -> list[str]:
    """Words in lower case; each Chinese, Japanese or Korean character is one."""
    return _WORD.findall(text.lower())


def select(scores: ArrayLike, sentences: Sequence[str], *, limits: Limits) -> list[int]:
    """The numbers of the chosen sentences, ascending.

    scores: (sentences,), higher is better; of equal ones the earlier sentence is taken. A sentence
    that would exceed a limit is passed over and shorter ones may follow; where not even one fits,
    the best sentence is chosen alone, and the caller cuts it off (`cut_off`).
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable").tolist()
    chosen: list[int] = []
    runs: set[tuple[str, ...]] = set()
    characters = words = 0
    for place in order:
        if limits.sentences is not None and len(chosen) >= limits.sentences:
            break
        mine = words_of(sentences[place])
        if limits.characters is not None and characters + len(sentences[place]) > limits.characters:
            continue
        if limits.words is not None and words + len(mine) > limits.words:
            continue
        keys = _runs(mine)
        if limits.blocking and not runs.isdisjoint(keys):
            continue
        chosen.append(place)
        runs |= keys
        characters += len(sentences[place])
        words += len(mine)
    return sorted(chosen or order[:1])


def cut_off(sentence: str, *, limits: Limits) -> str:
    """The beginning of a sentence that alone is over a limit, up to it; others as they are."""
    if limits.words is not None:
        for number, found in enumerate(_WORD.finditer(sentence), 1):
            if number > limits.words:
                sentence = sentence[: found.start()].rstrip()
                break
    return sentence if limits.characters is None else sentence[: limits.characters].rstrip()


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    """What another sentence may not repeat: runs of words, and the sentence as a whole."""
    alone = sum(1 for word in words if _ALONE.match(word))
    size = RUN_OF_CHARACTERS if 2 * alone > len(words) else RUN
    runs = set(zip(*(words[i:] for i in range(size)), strict=False))
    runs.add(("", *words))  # the mark keeps a whole sentence apart from a run of the same words
    return runs
