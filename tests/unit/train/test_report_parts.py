"""The drawings of the report page: safe text, round ticks, smoothing, colours that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from filbert.train import report_parts as parts


@given(st.text(max_size=400), st.integers(0, 50))
def test_shown_is_safe_for_any_text(text: str, limit: int) -> None:
    result = parts.shown(text, limit)
    assert not set(result) & set("<>\"'\x00\x1b")
    result.encode("utf-8")


def test_shown_keeps_what_is_harmless() -> None:
    assert parts.shown("naïve 中文 🎉\n\tmore") == "naïve 中文 🎉\n\tmore"
    assert parts.shown("\x00\x1b") == "␀␛"
    assert parts.shown("a\u202eb") == "a[U+202E]b"
    assert parts.shown("abcdef", 3) == "abc …"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.84, 0.99, [0.85, 0.9, 0.95]),
        (0, 3000, [0, 1000, 2000, 3000]),
        (-1.2, 6.1, [0, 2, 4, 6]),
        (0, 5.3e-5, [0, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
        (2, 2, [2]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert parts.ticks(low, high) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@given(
    st.floats(-1e9, 1e9, allow_nan=False, allow_subnormal=False),
    st.floats(1e-9, 1e9, allow_nan=False, allow_subnormal=False),
)
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    assume(width > 1e-6 * abs(low))  # a narrower range is drawn as one value
    high = low + width
    values = parts.ticks(low, high)
    assert len(values) <= 6
    for value in values:
        assert low - 1e-6 * width <= value <= high + 1e-6 * width
    texts, _ = parts.tick_texts(values)
    assert len(set(texts)) == len(texts)


def test_tick_texts() -> None:
    assert parts.tick_texts([0.85, 0.9, 0.95]) == (["0.85", "0.90", "0.95"], 0)
    assert parts.tick_texts([0, 1000, 2000]) == (["0", "1,000", "2,000"], 0)
    assert parts.tick_texts([0, 2e-5, 4e-5]) == (["0", "2", "4"], -5)
    assert parts.tick_texts([5e-6, 1e-5, 1.5e-5]) == (["0.5", "1.0", "1.5"], -5)
    assert parts.tick_texts([2.5]) == (["2.5"], 0)
    assert parts.with_power("rate", -5) == "rate (×10⁻⁵)"
    assert parts.with_power("rate", 0) == "rate"


def test_smoothing_by_hand() -> None:
    constant = [(float(k), 3.0) for k in range(100)]
    assert parts.smoothed(constant) == constant
    # 80 points: two neighbours on either side, fewer at the ends
    points = [(float(k), float(k * k)) for k in range(80)]
    result = parts.smoothed(points)
    assert result[10] == pytest.approx((10.0, (64 + 81 + 100 + 121 + 144) / 5))
    assert result[0] == pytest.approx((0.0, (0 + 1 + 4) / 3))
    assert len(result) == 80
    assert parts.smoothed([(1.0, 2.0)]) == [(1.0, 2.0)]


def test_thinning_keeps_the_mean() -> None:
    points = [(float(k), float(k % 7)) for k in range(8000)]
    thin = parts.thinned(points, 400)
    assert len(thin) == 400
    assert sum(y for _, y in thin) / 400 == pytest.approx(sum(y for _, y in points) / 8000)
    assert parts.thinned(points[:400], 400) == points[:400]


def test_axes_map_the_corners() -> None:
    axes = parts.Axes((0.0, 10.0), (1.0, 2.0), height=200)
    assert (axes.right(0.0), axes.right(10.0)) == (parts.LEFT, parts.WIDTH - parts.RIGHT)
    assert (axes.up(1.0), axes.up(2.0)) == (parts.TOP + 200, parts.TOP)


def test_contrast_of_known_pairs() -> None:
    assert parts.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert parts.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


def test_every_text_can_be_read_on_its_ground() -> None:
    rules = re.findall(
        r"background:rgb\((\d+),(\d+),(\d+)\);color:rgb\((\d+),(\d+),(\d+)\)", parts.heat_css()
    )
    assert len(rules) == 44  # 11 levels, right and wrong, light and dark
    for rule in rules:
        r, g, b, *levels = map(int, rule)
        assert parts.contrast((r, g, b), (levels[0], levels[1], levels[2])) >= 4.5
    style = (Path(parts.__file__).with_name("report.css")).read_text()
    for theme in re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL):
        color = {
            name: (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16))
            for name, code in re.findall(r"--(\w+): #(\w{6})", theme)
        }
        for ink in ("text", "soft", "a", "b"):
            for ground in ("page", "card"):
                assert parts.contrast(color[ink], color[ground]) >= 4.5, (ink, ground)
