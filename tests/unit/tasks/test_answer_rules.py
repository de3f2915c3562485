"""The scorers of answers against the published rules, said again here in the plainest way.

SQuAD: the evaluation scripts v1.1 and v2.0 of Rajpurkar et al. (2016, 2018). CMRC 2018: the script
of Cui et al. (2019). No package of the development environment carries either of them.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable

import pytest

from filbert.tasks.answer_scores import Rule, score_answers

PAIRS = 2000  # of each kind
ENGLISH = (
    *("the", "The", "a", "an", "An", "cat", "Cat,", "cats", "dog's", "U.S.", "1,000", "1000"),
    *("café", "über", "Paris", "paris.", "(Paris)", "New", "York", "-", "--", "theme", "a.m."),
    *("“quoted”", "it’s", "ΑΘΗΝΑ", "İstanbul", "10%", "$5", "x_y", "a-b", "\u00a0", "\t", "李白"),
)
CHINESE = (
    *("村雨城", "任天堂", "任天堂村雨城", "北京", "北京大学", "年", "月", "2001年", "三月", "的"),
    *("李白", "倫敦", "iPhone", "ω-Force", "NBA", "6s", "2001", "3.5%", "1,000", "it's", "ＡＢＣ"),
    *("（", "）", "《", "》", "，", "。", "、", "：", "！", "？", "“", "”", "·", "……", "－", "～"),
    *(",", "(", ")", " ", "-", "/", "㐀"),
)
# the list of the script; "……" in it is two characters long, so no single character is that
CMRC_MARKS = [
    *("-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "="),
    *("，", "。", "：", "？", "！", "“", "”", "；", "’", "《", "》", "……", "·", "、"),
    *("「", "」", "（", "）", "－", "～", "『", "』"),
]


def normalized(text: str) -> str:
    """Lower case, then no punctuation, then no articles, then single blanks."""
    text = text.lower()
    text = "".join(mark for mark in text if mark not in set(string.punctuation))
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def shared(left: list[str], right: list[str]) -> int:
    """How many words two lists have in common, each copy counted once."""
    rest, count = list(right), 0
    for word in left:
        if word in rest:
            rest.remove(word)
            count += 1
    return count


def harmonic(both: int, mine: int, gold: int) -> float:
    if not both:
        return 0.0
    precision, recall = both / mine, both / gold
    return 2 * precision * recall / (precision + recall)


def squad_v1(answer: str, golds: list[str]) -> tuple[float, float]:
    """Of v1.1: each question has an answer."""
    exact = max(float(normalized(answer) == normalized(gold)) for gold in golds)
    mine = normalized(answer).split()
    words = [normalized(gold).split() for gold in golds]
    return exact, max(harmonic(shared(mine, gold), len(mine), len(gold)) for gold in words)


def squad_v2(answer: str, golds: list[str]) -> tuple[float, float]:
    """Of v2.0: golds of which nothing is left do not count; none at all asks for silence."""
    usable = [gold for gold in golds if normalized(gold)] or [""]

    def f1(gold: str) -> float:
        mine, right = normalized(answer).split(), normalized(gold).split()
        if not mine or not right:
            return float(mine == right)
        return harmonic(shared(mine, right), len(mine), len(right))

    exact = max(float(normalized(answer) == normalized(gold)) for gold in usable)
    return exact, max(f1(gold) for gold in usable)


def segmented(text: str) -> list[str]:
    """Characters of the block 4E00 to 9FA5 one by one, the runs between them in NLTK's words; marks
    of the list are passed over and do not end a run."""
    nltk = pytest.importorskip("nltk")
    units: list[str] = []
    run = ""
    for mark in text.lower().strip():
        if mark in CMRC_MARKS:
            continue
        if 0x4E00 <= ord(mark) <= 0x9FA5:
            units += nltk.word_tokenize(run, preserve_line=True) if run else []
            units.append(mark)
            run = ""
        else:
            run += mark
    # preserve_line: a run is one sentence; the script has NLTK look for several in it
    return units + (nltk.word_tokenize(run, preserve_line=True) if run else [])


def longest_common(left: list[str], right: list[str]) -> int:
    """The longest run of `left` that stands in `right`, by trying all."""
    for size in range(min(len(left), len(right)), 0, -1):
        there = {tuple(right[at : at + size]) for at in range(len(right) - size + 1)}
        if any(tuple(left[at : at + size]) in there for at in range(len(left) - size + 1)):
            return size
    return 0


def cmrc(answer: str, golds: list[str]) -> tuple[float, float]:
    """Each question has an answer; equal without marks, F1 of the longest common run."""

    def bare(text: str) -> str:
        return "".join(mark for mark in text.lower().strip() if mark not in CMRC_MARKS)

    mine = segmented(answer)
    f1 = 0.0
    for gold in golds:
        right = segmented(gold)
        f1 = max(f1, harmonic(longest_common(mine, right), len(mine), len(right)))
    return float(any(bare(answer) == bare(gold) for gold in golds)), f1


def drawn(words: tuple[str, ...], joint: str, *, silent: bool) -> list[tuple[str, list[str]]]:
    """(answer, golds): each gold holds a letter; answers are golds, changed golds, or others."""
    draw = random.Random(7)

    def text(most: int = 6) -> str:
        return joint.join(draw.choices(words, k=draw.randint(1, most)))

    found = []
    while len(found) < PAIRS:
        golds = [text() for _ in range(draw.randint(0 if silent else 1, 3))]
        if not silent and not all(any(map(str.isalnum, normalized(gold))) for gold in golds):
            continue
        kind = draw.random()
        answer = text()
        if golds and kind < 0.6:
            answer = draw.choice(golds)
            if kind < 0.4:  # a word more, or the first or last one less
                parts = answer.split(joint) if joint else list(answer)
                answer = joint.join([parts[1:], parts[:-1], [*parts, text(1)]][draw.randrange(3)])
        found.append(("" if kind > 0.95 else answer, golds))
    return found


@pytest.mark.parametrize(
    ("rule", "said", "words", "joint", "silent"),
    [
        ("squad", squad_v1, ENGLISH, " ", False),
        ("squad", squad_v2, ENGLISH, " ", True),
        ("squad", squad_v2, CHINESE, "", True),
        ("cmrc", cmrc, CHINESE, "", False),
        ("cmrc", cmrc, (*CHINESE, *ENGLISH), " ", False),
    ],
)
def test_scores_are_those_of_the_published_rules(
    rule: Rule, said: Callable[[str, list[str]], tuple[float, float]], words: tuple[str, ...],
    joint: str, silent: bool,
) -> None:  # fmt: skip
    if rule == "cmrc":
        pytest.importorskip("nltk")
    pairs = drawn(words, joint, silent=silent)
    exact, f1 = score_answers(*map(list, zip(*pairs, strict=True)), rule=rule)
    kinds = set()
    for (answer, golds), found_exact, found_f1 in zip(pairs, exact, f1, strict=True):
        wanted_exact, wanted_f1 = said(answer, golds)
        assert found_exact == wanted_exact, (answer, golds)
        assert found_f1 == pytest.approx(wanted_f1, abs=1e-12), (answer, golds)
        kinds.add((wanted_exact, "none" if not wanted_f1 else "all" if wanted_f1 == 1 else "some"))
    # the draw reaches right, half right and wrong answers
    assert {(1.0, "all"), (0.0, "some"), (0.0, "none")} <= kinds
