"""The drawings of the report page: small functions that return SVG or HTML as text.

No plotting library and no script: a chart is an `<svg>` with classes, and `report.css` gives the
classes their colours in the light and in the dark. Blue and orange are told apart by every kind of
colour vision (Okabe & Ito 2008, "Color Universal Design").

Every text that came from a user goes through `shown`: it escapes markup and makes control
characters visible.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Point = tuple[float, float]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 400, 62, 20, 12, 40  # of a chart, in its own units
MOST_POINTS = 400  # of a line: more than a screen can show

# Characters that a page must not pass on: controls, and marks that reorder the text around them.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)}
_VISIBLE |= {13: " ", 127: "\u2421", 0x85: " ", 0x2028: " ", 0x2029: " "}
_VISIBLE |= {code: "\ufffd" for code in (*range(0x80, 0xA0), 0xFFFE, 0xFFFF) if code != 0x85}
_VISIBLE |= {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


class Line(NamedTuple):
    """A line of a chart: `style` is a class of `report.css` (`a`, `b`, `faint`)."""

    name: str
    points: Sequence[Point]
    style: str = "a"


def shown(text: object, limit: int = 300) -> str:
    """`text` as safe HTML, at most `limit` characters of it, then "…"."""
    whole = text if isinstance(text, str) else str(text)
    part = whole if len(whole) <= limit else whole[:limit].rstrip()
    # a lone surrogate (from "\\ud800" in JSON) cannot be written as UTF-8
    part = part.encode("utf-8", "replace").decode("utf-8").translate(_VISIBLE)
    return html.escape(part) + ("" if len(whole) <= limit else " …")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1, 2, 5, 10):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(k * step, 12 - math.floor(math.log10(step))) for k in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> tuple[list[str], int]:
    """Texts for ticks, with just the digits they need, and the power of ten taken out of them."""
    largest = max((abs(value) for value in values), default=0.0)
    power = math.floor(math.log10(largest)) if largest else 0
    power = power if power < -2 or power > 5 else 0
    scaled = [value / 10.0**power for value in values]
    step = min((b - a for a, b in itertools.pairwise(scaled)), default=0.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 3
    texts = [f"{value:,.{digits}f}" for value in scaled]
    if step <= 0:
        texts = [text.rstrip("0").rstrip(".") if "." in text else text for text in texts]
    return texts, power


def with_power(label: str, power: int) -> str:
    """An axis label that tells the power of ten its numbers were divided by."""
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{label} (×10{digits})" if power else label


def widened(low: float, high: float) -> tuple[float, float]:
    """A range to draw: never empty, with a little air, down to 0 where that is near."""
    if low == high:
        air = abs(low) * 0.1 or 1.0
        return (low - air, high + air)
    if 0 < low < 0.4 * high:
        low = 0.0
    air = 0.06 * (high - low)
    return (low if low == 0 else low - air, high + air)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means of equally many neighbours each."""
    size = math.ceil(len(points) / most) or 1
    if size == 1:
        return list(points)
    groups = (points[k : k + size] for k in range(0, len(points), size))
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Each point as the mean of its 5 % nearest in time; centred, so that it does not lag."""
    half = len(points) // 40
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    result = []
    for k, (x, _) in enumerate(points):
        first, last = max(0, k - half), min(len(points), k + half + 1)
        result.append((x, (sums[last] - sums[first]) / (last - first)))
    return result


class Axes:
    """The frame of a chart: it turns data into positions and draws ticks, grid and labels."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        top: float = TOP,
        height: float = 200.0,
        whole: bool = False,
    ) -> None:
        """`whole`: the values of `x` are counted, so its ticks are whole numbers."""
        self.whole = whole
        self.x, self.y, self.top, self.height = x, y, top, height
        self.width = WIDTH - LEFT - RIGHT

    def right(self, value: float) -> float:
        """The horizontal position of a value."""
        return LEFT + self.width * (value - self.x[0]) / (self.x[1] - self.x[0])

    def up(self, value: float) -> float:
        """The vertical position of a value."""
        return self.top + self.height * (self.y[1] - value) / (self.y[1] - self.y[0])

    def frame(
        self,
        x_label: str,
        y_label: str,
        *,
        x_ticks: bool = True,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> str:
        """Grid lines, ticks and axis labels; `y_ticks` (value, text) replaces round numbers."""
        parts = []
        bottom = self.top + self.height
        if y_ticks is None:
            values = ticks(*self.y)
            texts, power = tick_texts(values)
            y_ticks, y_label = list(zip(values, texts, strict=True)), with_power(y_label, power)
        for value, text in y_ticks:
            at = self.up(value)
            parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="end" x="{LEFT - 6}" y="{at + 4:.1f}">{text}</text>')
        if x_ticks:
            values = ticks(*self.x)
            if self.whole:
                values = [value for value in values if value == int(value)]
            texts, power = tick_texts(values)
            for value, text in zip(values, texts, strict=True):
                at = self.right(value)
                parts.append(f'<path class="grid" d="M{at:.1f} {bottom:.1f}v4"/>')
                parts.append(f'<text class="mid" x="{at:.1f}" y="{bottom + 16:.1f}">{text}</text>')
            middle = LEFT + self.width / 2
            label = shown(with_power(x_label, power))
            parts.append(
                f'<text class="mid name" x="{middle}" y="{bottom + 34:.1f}">{label}</text>'
            )
        parts.append(f'<path class="axis" d="M{LEFT} {self.top}V{bottom:.1f}H{WIDTH - RIGHT}"/>')
        middle = self.top + self.height / 2
        parts.append(
            f'<text class="mid name" transform="translate(13 {middle:.1f}) rotate(-90)">'
            f"{shown(y_label)}</text>"
        )
        return "".join(parts)


def svg(body: str, height: float, label: str) -> str:
    """The drawing `body` as an `<svg>` that scales with the page; `label` is read aloud."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{shown(label)}">'
        f"{body}</svg>"
    )


def figure(title: str, drawing: str, legend: Sequence[tuple[str, str]] = (), note: str = "") -> str:
    """A chart with its title, the meaning of its colours (style, name) and a note."""
    keys = "".join(f'<span class="key {style}">{shown(name)}</span>' for style, name in legend)
    keys = f'<span class="keys">{keys}</span>' if keys else ""
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<figure><figcaption>{shown(title)}{keys}</figcaption>{drawing}{note}</figure>"


def line_chart(
    title: str, lines: Sequence[Line], *, y_label: str, best: Point | None = None
) -> str:
    """Lines over optimizer steps; `best` is ringed and named under the chart."""
    points = [point for line in lines for point in line.points]
    steps = [x for x, _ in points]
    x = (min(0.0, *steps), max(steps)) if max(steps) > 0 else (0.0, 1.0)
    axes = Axes(x, widened(min(y for _, y in points), max(y for _, y in points)), whole=True)
    parts = [axes.frame("optimizer step", y_label)]
    for line in lines:
        at = [(axes.right(x), axes.up(y)) for x, y in thinned(line.points)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        parts.append(f'<path class="line {line.style}" d="M{path}"/>')
        if len(line.points) <= 40 and line.style != "faint":
            dots = (f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
                    for x, y in at)  # fmt: skip
            parts.extend(dots)
    note = ""
    if best is not None:
        left, top = axes.right(best[0]), axes.up(best[1])
        parts.append(f'<circle class="ring" cx="{left:.1f}" cy="{top:.1f}" r="6"/>')
        note = f'<span class="best">best</span> {best[1]:.4f} after step {best[0]:,.0f}'
    legend = [(line.style, line.name) for line in lines] if len(lines) > 1 else []
    label = f"{title}: {len(lines[0].points)} points, last {lines[-1].points[-1][1]:.4g}"
    return figure(title, svg("".join(parts), 200 + TOP + BOTTOM, label), legend, note)


def reliability(
    title: str, bins: Sequence[tuple[float | None, float | None, int]], *, labels: tuple[str, str]
) -> str:
    """Accuracy at each level of confidence above the number of rows at that level (log scale).

    `bins`: (mean confidence, accuracy, count) of equal slices of (0, 1]. `labels`: of the two axes.
    """
    axes = Axes((0.0, 1.0), (0.0, 1.0), height=210)
    most = max(count for _, _, count in bins)
    decades = math.ceil(math.log10(max(most, 10)))
    counts = Axes((0.0, 1.0), (0.0, decades + 0.2), top=TOP + 210 + 14, height=62)
    marks = [(k + 0.0, f"{10**k:,}") for k in range(0, decades + 1, 1 + decades // 4)]
    parts = [
        axes.frame("", labels[1], x_ticks=False),
        counts.frame(labels[0], "count", y_ticks=marks),
    ]
    width = axes.right(1 / len(bins)) - axes.right(0) - 2
    for k, (confidence, accuracy, count) in enumerate(bins):
        if not count or confidence is None or accuracy is None:
            continue
        left, top = axes.right(k / len(bins)) + 1, axes.up(accuracy)
        tip = f"{count:,} at confidence {confidence:.3f}: {accuracy:.3f} right"
        few = ' class="few"' if count < 10 else ""
        bar = f'x="{left:.1f}" width="{width:.1f}"'
        parts.append(f'<g{few}><title>{tip}</title><rect class="bar" {bar} y="{top:.1f}" ')
        parts.append(f'height="{max(axes.up(0) - top, 0.5):.1f}"/>')
        parts.append(
            f'<circle class="dot b" cx="{axes.right(confidence):.1f}" cy="{top:.1f}" r="3"/>'
        )
        top = counts.up(math.log10(count) + 0.1)
        parts.append(f'<rect class="count" {bar} y="{top:.1f}" ')
        parts.append(f'height="{counts.up(0) - top:.1f}"/></g>')
    corner = f"M{axes.right(0)} {axes.up(0)}L{axes.right(1)} {axes.up(1)}"
    parts.append(f'<path class="ideal" d="{corner}"/>')
    return figure(title, svg("".join(parts), TOP + 210 + 14 + 62 + BOTTOM, title))


def scatter(title: str, pairs: Sequence[Point], *, labels: tuple[str, str]) -> str:
    """Points on two axes of the same range, with the diagonal on which they ought to lie."""
    every = math.ceil(len(pairs) / 2000)
    low, high = min(map(min, pairs)), max(map(max, pairs))
    span = widened(low, high)
    axes = Axes(span, span, height=300)
    parts = [axes.frame(*labels)]
    corner = f"M{axes.right(span[0]):.1f} {axes.up(span[0]):.1f}"
    parts.append(f'<path class="ideal" d="{corner}L{axes.right(span[1]):.1f} {TOP}"/>')
    parts.extend(
        f'<circle class="point" cx="{axes.right(x):.1f}" cy="{axes.up(y):.1f}" r="2.4"/>'
        for x, y in pairs[::every]
    )
    return figure(title, svg("".join(parts), 300 + TOP + BOTTOM, f"{title}, {len(pairs):,} points"))


def heat_map(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """A confusion matrix as a table: rows gold, columns predicted, colour the share of the row."""
    # upright names where lying ones would make the table wider than a telephone
    tall = ' class="tall"' if len(labels) > 6 or sum(map(len, labels)) > 20 else ""
    head = "".join(f"<th scope=col><span{tall}>{shown(name, 40)}</span></th>" for name in labels)
    dense = " dense" if len(labels) > 10 else ""
    rows = []
    for k, (name, row) in enumerate(zip(labels, matrix, strict=True)):
        total = sum(row)
        cells = []
        for j, count in enumerate(row):
            share = count / total if total else 0.0
            kind = "r" if j == k else "w"
            level = f"{kind}{round(10 * share)}" if count else "zero"
            tip = f"gold {name}, predicted {labels[j]}: {count:,} of {total:,}"
            text = f"{count:,}<small>{share:.0%}</small>" if count else "·"
            cells.append(f'<td class="{level}" title="{shown(tip, 200)}">{text}</td>')
        cells.append(f'<td class="total">{total:,}</td>')
        rows.append(f"<tr><th scope=row>{shown(name, 40)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll fit"><table class="heat{dense}"><thead><tr>'
        f'<th class="corner">gold ↓ predicted →</th>{head}'
        f"<th scope=col><span{tall}>rows</span></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, style: str = "") -> str:
    """A table of finished HTML cells; on a narrow screen each row becomes a block of its own.

    A column whose name starts with "#" holds numbers.
    """
    names = [name.removeprefix("#") for name in columns]
    classes = [' class="number"' if name.startswith("#") else "" for name in columns]
    head = "".join(
        f"<th scope=col{kind}>{name}</th>" for name, kind in zip(names, classes, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{kind} data-name="{name}">{cell}</td>'
            for name, kind, cell in zip(names, classes, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def meter(share: float) -> str:
    """A number from 0 to 1 with a small bar behind it."""
    at = min(max(share, 0.0), 1.0)
    return (
        f'{share:.3f}<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" '
        f'aria-hidden="true"><path d="M0 0h{100 * at:.0f}v8H0z"/></svg>'
    )


def heat_css() -> str:
    """Style rules for the cells of the heat map, eleven levels of right (blue) and wrong (orange).

    In the light and in the dark; each level gets the text colour that is easier to read on it.
    """
    return f"{_levels(LIGHT_HEAT)}@media(prefers-color-scheme:dark){{{_levels(DARK_HEAT)}}}"


LIGHT_HEAT = {"card": (255, 255, 255), "r": (0, 114, 178), "w": (213, 94, 0)}
DARK_HEAT = {"card": (26, 32, 41), "r": (86, 180, 233), "w": (240, 163, 64)}
Color = tuple[int, int, int]


def _levels(colors: dict[str, Color]) -> str:
    rules = []
    for kind in ("r", "w"):
        for level in range(11):
            share = 0.07 + 0.93 * level / 10
            card, full = colors["card"], colors[kind]
            back: Color = tuple(  # type: ignore[assignment]
                round(a + share * (b - a)) for a, b in zip(card, full, strict=True)
            )
            text = max(((255, 255, 255), (0, 0, 0)), key=lambda ink: contrast(ink, back))
            rules.append(f".heat .{kind}{level}{{background:rgb{back};color:rgb{text}}}")
    return "".join(rules).replace(" ", "").replace(".heat", ".heat ")


def contrast(one: Color, other: Color) -> float:
    """The contrast of two sRGB colours, 1 to 21 (WCAG 2.2, "contrast ratio"); text needs 4.5."""

    def luminance(color: Color) -> float:
        linear = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
