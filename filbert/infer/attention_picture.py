"""The attention of one head as a picture: a heat map in one self-contained SVG or HTML file.

    filbert inspect MODEL "text" --layer 3 --head 5 --out attention.svg

A row is a query, a column a key, a cell the weight that equation 1 of Vaswani et al. 2017 gives
the key; rows sum to 1. Cells of one shade are one path, so that 512 tokens make a file of a few
megabytes and not of a hundred.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from filbert.atomic import write_file
from filbert.errors import UsageError

SHADES = 24
NUMBERS_UP_TO = 24  # tokens; beyond, percentages in the cells would be too small to read
LONGEST = 24  # characters of a label
PALE, DEEP = (247, 250, 252), (13, 71, 121)  # one hue, light to dark: order survives grey printing
INK, LINE = "#1f2933", "#d5dde5"
FONTS = (
    "'Noto Sans','DejaVu Sans','Noto Sans CJK SC','PingFang SC','Microsoft YaHei',"
    "'Source Han Sans SC',sans-serif"
)


def write_picture(
    out: str | PathLike[str],
    weights: NDArray[np.float32],
    tokens: Sequence[str],
    *,
    title: str,
    note: str = "",
) -> Path:
    """Draw `weights`, (tokens, tokens) with rows that sum to 1, into a .svg or .html file.

    Returns the path. Raises `UsageError` for another ending or a place that cannot be written.
    """
    path = Path(out)
    kind = path.suffix.lower()
    if kind not in (".svg", ".html", ".htm"):
        raise UsageError(f"--out {path}: a picture ends in .svg or .html, not '{path.suffix}'")
    svg = heat_map(weights, tokens, title=title, note=note)
    if kind != ".svg":
        svg = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{clean(title)}</title><style>body{{margin:1rem;background:#fff}}"
            f"svg{{max-width:100%;height:auto}}</style></head>\n<body>\n{svg}</body></html>\n"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, svg)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def heat_map(
    weights: NDArray[np.float32], tokens: Sequence[str], *, title: str, note: str = ""
) -> str:
    """The SVG text. weights: (n, n); tokens: n labels, in rows (queries) and columns (keys)."""
    count = len(tokens)
    if weights.shape != (count, count):
        raise ValueError(f"weights {weights.shape} for {count} tokens")
    cell = 30 if count <= NUMBERS_UP_TO else 18 if count <= 64 else 12
    font = 13 if count <= 64 else 9
    labels = [clip(token) for token in tokens]
    side = max(width(label) for label in labels) * font * 0.62 + 14
    top = 64 + side * 0.83 + 14  # column labels lean by 60 degrees: sin(60) = 0.87, less the clip
    grid = count * cell
    full_width = max(side + grid + side * 0.5 + 24, 470.0)
    height = top + grid + 76
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full_width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {full_width:.0f} {height:.0f}" role="img" font-family="{FONTS}" '
        f'font-size="{font}" fill="{INK}">',
        f"<title>{clean(title)}</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="14" y="26" font-size="16" font-weight="600">{clean(title)}</text>',
        '<text x="14" y="46" font-size="12">rows: queries; columns: keys; '
        "softmax(QK^T / sqrt(d_k)), rows sum to 1</text>",
        f'<g transform="translate({side:.1f} {top:.1f})">',
        f'<rect width="{grid}" height="{grid}" fill="{shade(0)}"/>',
    ]
    levels = np.rint(np.sqrt(np.clip(weights, 0, 1)) * (SHADES - 1)).astype(int)
    for level in range(1, SHADES):
        rows, columns = np.nonzero(levels == level)
        if len(rows):
            cells = "".join(
                f"M{x * cell} {y * cell}h{cell}v{cell}h-{cell}z"
                for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
            )
            parts.append(f'<path fill="{shade((level / (SHADES - 1)) ** 2)}" d="{cells}"/>')
    lines = "".join(f"M0 {i * cell}H{grid}M{i * cell} 0V{grid}" for i in range(count + 1))
    parts.append(f'<path d="{lines}" stroke="{LINE}" stroke-width="0.6" fill="none"/>')
    if count <= NUMBERS_UP_TO:
        parts.append('<g font-size="10.5" text-anchor="middle">')
        for y, row in enumerate(weights.tolist()):
            for x, weight in enumerate(row):
                if round(weight * 100):
                    colour = ' fill="#fff"' if weight > 0.3 else ""
                    at = f'x="{(x + 0.5) * cell:g}" y="{(y + 0.5) * cell + 3.5:g}"'
                    parts.append(f"<text {at}{colour}>{weight * 100:.0f}</text>")
        parts.append("</g>")
    for i, label in enumerate(labels):
        middle = (i + 0.5) * cell
        lean = f"translate({middle + font * 0.3:g} -8) rotate(-60)"
        parts.append(
            f'<text x="-7" y="{middle + font * 0.35:g}" text-anchor="end">{clean(label)}</text>'
            f'<text transform="{lean}">{clean(label)}</text>'
        )
    parts += ["</g>", *_legend(side, top + grid + 20, note), "</svg>\n"]
    return "\n".join(parts)


def _legend(x: float, y: float, note: str) -> list[str]:
    """The scale of shades, whose middle is 25 % (see `shade`), and the note under it."""
    colours = [shade((i / (SHADES - 1)) ** 2) for i in range(SHADES)]
    swatches = [
        f'<rect x="{x + i * 8:.1f}" y="{y:.1f}" width="8" height="10" fill="{colour}"/>'
        for i, colour in enumerate(colours)
    ]
    end = x + SHADES * 8
    middle = f'x="{(x + end) / 2:.1f}" y="{y + 22:.1f}" text-anchor="middle"'
    return [
        *swatches,
        f'<text x="{x - 6:.1f}" y="{y + 9:.1f}" font-size="11" text-anchor="end">0 %</text>',
        f'<text x="{end + 6:.1f}" y="{y + 9:.1f}" font-size="11">100 %</text>',
        f'<text {middle} font-size="11">25 %</text>',
        f'<text x="14" y="{y + 42:.1f}" font-size="11">{clean(note)}</text>',
    ]


def shade(weight: float) -> str:
    """The colour of a weight in [0, 1]; the square root spreads the small ones apart."""
    mix = max(0.0, min(1.0, weight)) ** 0.5
    return "#" + "".join(f"{round(a + (b - a) * mix):02x}" for a, b in zip(PALE, DEEP, strict=True))


def width(text: str) -> float:
    """Width in narrow characters: a Chinese character counts 1.6, a combining mark nothing."""
    return sum(
        0.0 if unicodedata.combining(c) else 1.6 if unicodedata.east_asian_width(c) in "WF" else 1.0
        for c in text
    )


def clip(text: str) -> str:
    """At most 24 characters of a label."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def clean(text: str) -> str:
    """Escaped for XML, which has no control characters even as references."""
    shown = "".join(
        c
        if c >= " " and unicodedata.category(c) not in ("Cc", "Cs", "Cn")
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
    return escape(shown)
