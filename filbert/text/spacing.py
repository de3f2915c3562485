"""Words back to a text as people write it: where blanks stand, learned from texts.

BERT's tokenizer forgets blanks: `T-Shirt, 3.5` comes back as `T - Shirt , 3 . 5`, and Chinese with
a blank after each character. How a language sets marks differs (French has a blank before a
question mark), so no list of rules decides but the texts that a model learned from: for each gap
between two words, by what stands on both sides, the more frequent choice.

    spacing = learn_spacing(["Ein T-Shirt, 3.5 Meter."])
    join(["Ein", "Hut", ",", "2", ".", "5", "Meter", "."], spacing)        # "Ein Hut, 2.5 Meter."
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import pre_tokenizers

from filbert.text.words import HAN

Spacing = dict[str, bool]  # what stands around a gap -> whether there is a blank

MOST_TEXTS = 100_000  # that spacing is learned from
LEAST = 2  # times that something must be seen
_HAN = re.compile(f"([{HAN}])")
_EDGE = "^"
_BETWEEN = "\t"  # of the words of a key; no word holds one


def learn_spacing(texts: Iterable[str]) -> Spacing:
    """What texts say about blanks: a gap's two neighbours decide, and where the two beyond them
    tell more, all four. Only what differs from the simpler rule is kept."""
    near: Counter[tuple[str, bool]] = Counter()
    wide: Counter[tuple[str, bool]] = Counter()
    for number, text in enumerate(texts):
        if number == MOST_TEXTS:
            break
        words, gaps = split(text)
        for (two, four), gap in zip(_keys(words), gaps, strict=True):
            near[two, gap] += 1
            wide[four, gap] += 1
    spacing: Spacing = {}
    for counts in (near, wide):
        for key in sorted({key for key, _ in counts}):
            blanks, joins = counts[key, True], counts[key, False]
            if blanks + joins >= LEAST and blanks != joins:
                choice = blanks > joins
                if choice != _choose(key, spacing):
                    spacing[key] = choice
    return spacing


def join(words: Sequence[str], spacing: Mapping[str, bool]) -> str:
    """The text of words, blanks set as `spacing` says."""
    parts = [*words[:1]]
    for (two, four), word in zip(_keys(words), words[1:], strict=True):
        blank = spacing[four] if four in spacing else _choose(two, spacing)
        parts.append(f" {word}" if blank else word)
    return "".join(parts)


def split(text: str) -> tuple[list[str], list[bool]]:
    """The words that BERT's tokenizer makes of a text, and whether a blank is between each two."""
    words: list[str] = []
    gaps: list[bool] = []
    end = 0
    for word, (start, stop) in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text):
        pieces = [piece for piece in _HAN.split(word) if piece]
        gaps += [start > end] + [False] * (len(pieces) - 1)
        words += pieces
        end = stop
    return words, gaps[1:]


def _keys(words: Sequence[str]) -> list[tuple[str, str]]:
    """For each gap, its two neighbours and, with those beyond, its four."""
    kinds = [_EDGE, *_kinds(words), _EDGE]
    return [
        (_BETWEEN.join(kinds[i + 1 : i + 3]), _BETWEEN.join(kinds[i : i + 4]))
        for i in range(len(words) - 1)
    ]


def _kinds(words: Sequence[str]) -> list[str]:
    """A mark stands for itself, a straight quote with whether it opens or closes; a number, a
    Chinese character and any other word for their kind."""
    kinds, quotes = [], 0
    for word in words:
        if word == '"':
            quotes += 1
            kinds.append('"(' if quotes % 2 else ')"')
        elif len(word) == 1 and _HAN.match(word):
            kinds.append("汉")
        elif word.isdigit():
            kinds.append("0")
        elif word[0].isalnum() or len(word) > 1:
            kinds.append("w")
        else:
            kinds.append(word)
    return kinds


def _choose(key: str, spacing: Mapping[str, bool]) -> bool:
    """By the two nearest of a key; unknown: a blank, but none beside a Chinese character."""
    kinds = key.split(_BETWEEN)
    two = kinds[len(kinds) // 2 - 1 : len(kinds) // 2 + 1]
    return spacing.get(_BETWEEN.join(two), "汉" not in two)
