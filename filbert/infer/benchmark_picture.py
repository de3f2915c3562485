"""A benchmark's report as a table in Markdown and as a picture, one self-contained SVG.

The picture: texts a second of each arm; on a scale of powers of ten the milliseconds of one text at
a time and of texts that arrive at a rate (dot: the median, line: to the 95th and the 99th
percentile); and how filbert's own time is made up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from filbert.infer.attention_picture import FONTS, INK, LINE, clean

WIDTH, LEFT, RIGHT, ROW = 820, 220, 90, 24
OURS, OTHERS, MARK = "#0072b2", "#9fb3c8", "#b34d00"  # told apart by every kind of colour vision
STAGES = {"pre": ("tokenizer", "#9fb3c8"), "core": ("encoder", "#0072b2"),
          "post": ("the rest", "#e0a458")}  # fmt: skip


def as_markdown(report: dict[str, Any]) -> str:
    """What was measured, in tables that can stand in a document."""
    machine, ceiling = report["machine"], report["ceiling"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{report['bundle']} ({report['task']}) on {report['rows']:,} texts of {report['data']}, "
        f"{report['tokens']:,} tokens; {report['rounds']} rounds, {report['threads']} threads, "
        f"{report['device']}, {report['precision']} ({report['reason']}); {report['path']}",
        "",
        f"{machine['date']}; {machine['processor']}; {versions}",
        "",
        f"ceiling: {ceiling['gflops']:,.0f} GFLOP/s ({ceiling['by']}); at a rate: "
        f"{report['rate']:.3g} texts/s",
        "",
        "| arm | way | texts/s | tokens/s | filbert is faster: wall, processor | of ceiling | "
        "one text: p50 / p95 / p99 ms | at a rate: p50 / p95 / p99 ms | busy | "
        "largest, relative difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in report["arms"].items():
        texts, faster, share = (
            arm[key] for key in ("texts_per_second", "filbert_is_faster", "share_of_ceiling")
        )
        apart = arm["difference"]
        cells = [
            name,
            arm["way"],
            f"**{texts['median']:,.1f}** ({texts['q1']:,.1f} to {texts['q3']:,.1f})",
            f"{arm['tokens_per_second']['median']:,.0f}",
            f"{faster['median']:.2f}x, {arm['filbert_is_faster_processor']['median']:.2f}x",
            "" if share is None else f"{share['median']:.1%}",
            _three(arm["one_by_one_ms"]),
            _three(arm["at_rate_ms"]),
            f"{arm['busy_at_rate']:.0%}",
            "" if apart is None else f"{apart['largest']:.1e}, {apart['relative']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    whole = sum(report["stages"].values())
    parts = [f"{STAGES[name][0]} {1000 * taken:,.1f} ms ({taken / whole:.0%})"
             for name, taken in report["stages"].items()]  # fmt: skip
    lines += ["", f"filbert's time for all texts, by one worker: {', '.join(parts)}"]
    if report["memory"] is not None:
        sizes = {name: f"{size / 1e6:,.0f} MB" for name, size in report["memory"].items()}
        lines += ["", f"memory of a process of its own: {sizes['libraries']} with its libraries, "
                  f"{sizes['loaded']} with the model, {sizes['peak']} at most"]  # fmt: skip
    lines += [line for text in report["left_out"] for line in ("", f"left out: {text}")]
    return "\n".join(lines)


def _three(found: dict[str, float]) -> str:
    return " / ".join(f"{value:.3g}" for value in found.values())


def draw(report: dict[str, Any]) -> str:
    """The SVG text."""
    arms = report["arms"]
    name, threads = report["bundle"].rstrip("/").rpartition("/")[2], report["threads"]
    title = f"{name}: {report['rows']:,} texts, {threads} thread{'s' * (threads > 1)}"
    parts = [_text(14, 28, title, size=17, weight=600)]
    place = 46.0
    parts.append(_text(14, place, f"{report['machine']['processor']}; {report['path']}", size=12))
    speeds = {name: arm["texts_per_second"] for name, arm in arms.items()}
    place = _bars(parts, place + 34, "texts a second (line: quartiles)", speeds)
    for key, label in (
        ("one_by_one_ms", "milliseconds, one text at a time (dot p50, ends p95 and p99)"),
        ("at_rate_ms", f"milliseconds, {report['rate']:.3g} texts/s arrive (dot p50, ends p95 "
         "and p99)"),
    ):  # fmt: skip
        place = _ranges(parts, place + 34, label, {name: arm[key] for name, arm in arms.items()})
    place = _stacked(parts, place + 34, report["stages"])
    height = place + 16
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-family="{FONTS}" font-size="13" '
        f'fill="{INK}"><title>{clean(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def _bars(
    parts: list[str], top: float, label: str, found: dict[str, dict[str, float]]
) -> float:  # fmt: skip
    """A bar for each arm, with a line from quartile to quartile; returns where it ends."""
    parts.append(_text(14, top, label, weight=600))
    scale = (WIDTH - LEFT - RIGHT) / max(max(one["q3"] for one in found.values()), 1e-9)
    for number, (name, one) in enumerate(found.items()):
        y = top + 12 + number * ROW
        parts.append(_text(LEFT - 8, y + 14, name, anchor="end"))
        parts.append(
            f'<rect x="{LEFT}" y="{y:.1f}" width="{one["median"] * scale:.1f}" '
            f'height="{ROW - 6}" fill="{_colour(name)}"/>'
        )
        first, last = LEFT + one["q1"] * scale, LEFT + one["q3"] * scale
        parts.append(_line(first, y + 9, last, y + 9, MARK, 2))
        parts.append(_text(max(last, LEFT + 4) + 6, y + 14, f"{one['median']:,.1f}"))
    return top + 12 + len(found) * ROW


def _ranges(
    parts: list[str], top: float, label: str, found: dict[str, dict[str, float]]
) -> float:  # fmt: skip
    """For each arm a dot and a line on a scale of powers of ten; returns where it ends."""
    parts.append(_text(14, top, label, weight=600))
    low = math.log10(max(min(one["p50"] for one in found.values()), 1e-6)) - 0.1
    high = math.log10(max(max(one["p99"] for one in found.values()), 1e-5)) + 0.1
    end = top + 12 + len(found) * ROW

    def at(value: float) -> float:
        share = (math.log10(max(value, 1e-6)) - low) / max(high - low, 1e-9)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    for value in _ticks(low, high):
        parts.append(_line(at(value), top + 10, at(value), end, LINE, 1))
        parts.append(_text(at(value), end + 14, f"{value:g}", size=11, anchor="middle"))
    for number, (name, one) in enumerate(found.items()):
        y = top + 12 + number * ROW + ROW / 2
        colour = _colour(name)
        parts.append(_text(LEFT - 8, y + 4, name, anchor="end"))
        parts.append(_line(at(one["p50"]), y, at(one["p99"]), y, colour, 3))
        for key in ("p95", "p99"):
            parts.append(_line(at(one[key]), y - 5, at(one[key]), y + 5, colour, 2))
        parts.append(f'<circle cx="{at(one["p50"]):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        parts.append(_text(at(one["p99"]) + 8, y + 4, f"{one['p50']:.3g}", size=12))
    return end + 18


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two powers; powers alone where that were many."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps: Sequence[int] = (1, 2, 5) if high - low < 2.5 else (1,)
    values = [step * 10.0**decade for decade in decades for step in steps]
    return [value for value in values if low <= math.log10(value) <= high]


def _stacked(parts: list[str], top: float, stages: dict[str, float]) -> float:
    """One bar of filbert's stages, their shares below it; returns where it ends."""
    parts.append(_text(14, top, "filbert's time, by one worker", weight=600))
    whole, x = sum(stages.values()) or 1.0, float(LEFT)
    for number, (name, taken) in enumerate(stages.items()):
        label, colour = STAGES[name]
        size = (WIDTH - LEFT - RIGHT) * max(taken, 0.0) / whole
        parts.append(
            f'<rect x="{x:.1f}" y="{top + 12:.1f}" width="{size:.1f}" height="18" fill="{colour}"/>'
        )
        key = LEFT + number * 170
        parts.append(f'<rect x="{key}" y="{top + 40:.1f}" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(key + 17, top + 50, f"{label} {taken / whole:.0%}", size=12))
        x += size
    return top + 54


def _colour(name: str) -> str:
    return OURS if name.startswith("filbert") else OTHERS


def _text(
    x: float, y: float, text: str, *, size: int = 13, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{clean(text)}</text>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, width: float) -> str:
    return (
        f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"/>'
    )
