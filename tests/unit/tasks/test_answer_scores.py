"""Exact match and F1 of answers, against hand calculation; the whole rules are in
`test_answer_rules.py`."""

from __future__ import annotations

import numpy as np
import pytest

from filbert.tasks.answer_scores import (
    best_threshold,
    cmrc_form,
    cmrc_units,
    fit_confidence,
    longest_run,
    rule_for,
    score_answers,
    squad_form,
)


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("The Beatles!", ["beatles"], 1, 1),
        ("in Paris", ["Paris", "Lyon"], 0, 2 / 3),  # p 1/2, r 1/1
        ("a b c b", ["b b d"], 0, 4 / 6),  # "a" is an article: b c b; shares b b: p 2/3, r 2/3
        ("", ["Paris"], 0, 0),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("the", ["The", "x"], 0, 0),  # nothing is left of the first gold, so only x counts
        ("1,000 km", ["1000 km."], 1, 1),
    ],
)
def test_squad_rule(answer: str, golds: list[str], exact: float, f1: float) -> None:
    found = score_answers([answer], [golds], rule="squad")
    assert found[0].tolist() == [exact]
    assert found[1][0] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("《村雨城》", ["村雨城"], 1, 1),
        ("任天堂村雨城", ["村雨城", "任天"], 0, 2 * 3 / (6 + 3)),
        ("村X雨城", ["村雨城"], 0, 2 * 2 / (4 + 3)),  # the run must not have a gap: 雨城
        ("2001年", ["2001"], 0, 2 * 1 / (2 + 1)),  # units: 2001, 年
        ("光荣和ω-Force", ["光荣和ω-force"], 1, 1),
        ("倫敦", ["巴黎"], 0, 0),
    ],
)
def test_cmrc_rule(answer: str, golds: list[str], exact: float, f1: float) -> None:
    found = score_answers([answer], [golds], rule="cmrc")
    assert found[0].tolist() == [exact]
    assert found[1][0] == pytest.approx(f1)


def test_forms_and_units() -> None:
    assert squad_form("  The  cat's\tA-b ") == "cats ab"
    assert cmrc_form(" 《Ａb》，c.·") == "ａbc."  # lower() lowers full-width letters too
    assert cmrc_units("iPhone 6s（2015年）发布") == ["iphone", "6s2015", "年", "发", "布"]
    assert longest_run(list("abcab"), list("zabcz")) == 3
    assert longest_run([], ["a"]) == 0


def test_the_rule_follows_the_script() -> None:
    assert rule_for(["The BERT paper."]) == "squad"
    assert rule_for(["BERT是谷歌提出的模型。"]) == "cmrc"
    assert rule_for([]) == "squad"


def test_best_threshold_by_trying_all() -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        size = int(draw.integers(1, 30))
        gap = draw.integers(-5, 6, size).astype(float)  # with ties
        answered, silent = draw.random(size), draw.integers(0, 2, size).astype(float)
        found = best_threshold(gap, answered, silent)
        got = np.where(gap > found, silent, answered).mean()
        tried = [np.where(gap > t, silent, answered).mean() for t in np.arange(-6.5, 7)]
        assert got == pytest.approx(max(tried))


def test_confidence_is_fitted() -> None:
    # 70 % are right whatever the model says with 0.9: p = 1 / (1 + 9^(-1/t)) = 0.7 at
    # t = ln 9 / ln (7/3)
    right = np.arange(1000) % 10 < 7
    found = fit_confidence(lambda t: np.full(1000, 1 / (1 + 9 ** (-1 / t))), right)
    assert found == pytest.approx(np.log(9) / np.log(7 / 3), rel=1e-3)
    assert fit_confidence(lambda t: np.full(1000, 0.9), np.ones(1000, bool)) == 1.0
    assert fit_confidence(lambda t: np.full(5, 0.9), np.arange(5) > 2) == 1.0
