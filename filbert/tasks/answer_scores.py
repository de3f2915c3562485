"""How good extracted answers are: exact match and F1 by the rules of SQuAD and of CMRC 2018.

`squad`: answers are compared in lower case, without punctuation and the words a, an, the; F1 counts
the words that two answers share (Rajpurkar et al. 2016, section 6.1; the published evaluate-v2.0
script). `cmrc`: without the marks of a fixed list; F1 by the longest run of units that two answers
have in common, a unit being a Chinese character or a word of what stands between them (Cui et al.
2019, section 4; the published cmrc2018_evaluate script). A question has the best value over its
right answers; one without an answer is right where nothing is answered. Also here: the threshold
from which on no answer is given, and the temperature that makes confidence true; both are fitted on
a dev set.

    exact, f1 = score_answers(["Paris"], [["in Paris", "Paris"]], rule="squad")
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from filbert.errors import missing_extra
from filbert.tasks.calibrate import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, SMALLEST_DEV

Floats = NDArray[np.float64]
Rule = Literal["squad", "cmrc"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_ASCII_MARKS = str.maketrans("", "", string.punctuation)
_HAN = re.compile("[\u4e00-\u9fa5]")
# The single marks of the CMRC script; its list has no full stop, comma or bracket of ASCII.
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN_SHARE = 0.2  # of characters; texts with more of them are scored as Chinese


def rule_for(texts: Sequence[str]) -> Rule:
    """`cmrc` for texts in Chinese characters, else `squad`."""
    sample = "".join(text[:2000] for text in texts[:200])
    return "cmrc" if len(_HAN.findall(sample)) > _HAN_SHARE * max(1, len(sample)) else "squad"


def score_answers(
    answers: Sequence[str], golds: Sequence[Sequence[str]], *, rule: Rule
) -> tuple[Floats, Floats]:
    """(questions,) exact match, 0 or 1, and (questions,) F1 of each, 0 to 1.

    `golds`: the right answers of each question; an empty list where nothing answers it.
    """
    units, exact, overlap = _rules(rule)
    scores = np.zeros((2, len(answers)))
    for place, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
        right = [text for text in gold if exact(text)] or [""]
        mine, mine_units = exact(answer), units(answer)
        scores[0, place] = any(mine == exact(text) for text in right)
        scores[1, place] = max(_f1(mine_units, units(text), overlap) for text in right)
    return scores[0], scores[1]


def _rules(
    rule: Rule,
) -> tuple[Callable[[str], list[str]], Callable[[str], str], Callable[[list[str], list[str]], int]]:
    """Units of a text, its form for exact match, and how many units two texts share."""
    if rule == "squad":
        return (
            lambda text: squad_form(text).split(),
            squad_form,
            lambda a, b: sum((Counter(a) & Counter(b)).values()),
        )
    return cmrc_units, cmrc_form, longest_run


def _f1(mine: list[str], gold: list[str], overlap: Callable[[list[str], list[str]], int]) -> float:
    if not mine or not gold:
        return float(mine == gold)
    shared = overlap(mine, gold)
    return 2 * shared / (len(mine) + len(gold))  # = 2 p r / (p + r)


def squad_form(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_ASCII_MARKS)).split())


def cmrc_form(text: str) -> str:
    """Lower case, without the marks of the CMRC script."""
    return "".join(mark for mark in text.lower().strip() if mark not in _CMRC_MARKS)


def cmrc_units(text: str) -> list[str]:
    """Chinese characters one by one, what stands between them as NLTK's words, without marks."""
    units: list[str] = []
    run = ""
    for mark in text.lower().strip():
        if mark in _CMRC_MARKS:
            continue
        if _HAN.match(mark):
            units += [*_words(run), mark]
            run = ""
        else:
            run += mark
    return units + _words(run)


def _words(run: str) -> list[str]:
    """The words of a run without Chinese characters, as nltk.word_tokenize cuts a sentence."""
    if not run.strip():
        return []
    if run.isdecimal():
        return [run]
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
    except ImportError:
        raise missing_extra("nltk", "tasks") from None
    words: list[str] = NLTKWordTokenizer().tokenize(run)
    return words


def longest_run(left: list[str], right: list[str]) -> int:
    """The length of the longest run of units that stands in both, without a gap."""
    best, before = 0, [0] * (len(right) + 1)
    for unit in left:
        row = [0] * (len(right) + 1)
        for place, other in enumerate(right):
            if unit == other:
                row[place + 1] = before[place] + 1
                best = max(best, row[place + 1])
        before = row
    return best


def best_threshold(gap: Floats, if_answered: Floats, if_silent: Floats) -> float:
    """The threshold that gives the highest mean score where a question stays unanswered if its gap
    is above it.

    All (questions,): `gap`, the score of "no answer" less that of the best answer; what a question
    earns if it is answered, and if it is not. The middle between two gaps; the published SQuAD 2.0
    script searches the same way.
    """
    order = np.argsort(gap, kind="stable")
    gaps = gap[order]
    gain = (if_answered - if_silent)[order]
    # answered: the first k in this order
    totals = np.concatenate([np.zeros(1), np.cumsum(gain)])
    possible = np.concatenate([np.ones(1, bool), gaps[1:] > gaps[:-1], np.ones(1, bool)])
    best = int(np.argmax(np.where(possible, totals, -np.inf)))
    if best == 0:
        return float(gaps[0]) - 1.0
    if best == len(gaps):
        return float(gaps[-1]) + 1.0
    return float(gaps[best - 1] + gaps[best]) / 2


def fit_confidence(confidence: Callable[[float], Floats], right: NDArray[np.bool_]) -> float:
    """The temperature in [0.05, 20] under which the answers are right as often as they say.

    `confidence(t)`: (questions,) the probability of each given answer at temperature t; `right`:
    whether it is. Maximum likelihood of right and wrong; 1.0 where there is nothing to learn from
    (fewer than 20 questions, or all alike). After Guo et al. 2017, section 4.2.
    """
    if len(right) < SMALLEST_DEV or right.all() or not right.any():
        return 1.0

    from scipy.optimize import minimize_scalar

    def surprise(log_t: float) -> float:
        p = np.clip(confidence(math.exp(log_t)), 1e-6, 1 - 1e-6)
        return float(-np.mean(np.where(right, np.log(p), np.log1p(-p))))

    bounds = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    # not surely of one valley: the best of a coarse walk, then a search around it
    walk = np.linspace(*bounds, 25)
    start = int(np.argmin([surprise(float(t)) for t in walk]))
    around = float(walk[max(start - 1, 0)]), float(walk[min(start + 1, 24)])
    found: Any = minimize_scalar(surprise, bounds=around, method="bounded")
    return math.exp(float(found.x))
