"""An inspection on the terminal: tokens, stations, attention as shaded cells, the prediction.

    filbert inspect all-MiniLM-L6-v2 "The bank of the river."

Numbers stand in every cell, so that nothing hangs on colour; texts longer than the window is wide
show, for each token, the tokens that it attends to most.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.style import Style
from rich.table import Table
from rich.text import Text

from filbert.infer.attention_picture import clip, shade, write_picture
from filbert.infer.inspect import Inspection

if TYPE_CHECKING:
    from rich.console import Console

CELL = 4  # characters of a cell with its gap
MOST = 5  # tokens named for each query where the full table would be too wide
BLOCKS = " ░▒▓█"


def show(found: Inspection, console: Console) -> None:
    """Print all of `found`."""
    title = f"{found.model}: {found.kind}, {found.parameters:,} parameters"
    console.print(Text(title, style="bold"))
    console.print(tokens_table(found))
    console.print(stations_table(found))
    title = f"attention of layer {found.layer}, head {found.head}"
    console.print(Text(f"{title}: rows are queries, columns keys, in per cent", style="italic"))
    console.print(attention_table(found, width=console.width))
    for line in prediction_lines(found):
        console.print(Text(line))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="italic"))


def draw(found: Inspection, out: str | PathLike[str]) -> Path:
    """Write the attention as a picture (.svg, .html); returns its path."""
    return write_picture(
        out,
        found.attention,
        [token.token for token in found.tokens],
        title=f"Attention of layer {found.layer}, head {found.head}",
        note=f"{found.model}; numbers are per cent" if len(found.tokens) <= 24 else found.model,
    )


def tokens_table(found: Inspection) -> Table:
    """One row a position; offsets are characters of the raw text."""
    table = Table(title="tokens", title_justify="left", box=SIMPLE_HEAD)
    for name in ("position", "token", "id", "characters", "in the text", "segment", "mask"):
        right = name in ("position", "id", "segment", "mask")
        table.add_column(name, justify="right" if right else "left")
    for token in found.tokens:
        raw = (found.text, found.pair or "")[token.segment][token.start : token.end]
        table.add_row(
            str(token.position),
            Text(token.token, style="dim" if token.special else ""),
            str(token.id),
            "" if token.special else f"{token.start}-{token.end}",
            Text("" if token.special else raw),
            str(token.segment),
            str(token.mask),
        )
    return table


def stations_table(found: Inspection) -> Table:
    """One row a step of the forward pass, by part of the model."""
    table = Table(
        title="stations",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption=SOURCES,
        caption_justify="left",
    )
    table.add_column("module", no_wrap=True)
    table.add_column(Text("what it computes [source]"), overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    last = ""
    for station in found.stations:
        part, name = split_name(station.name)
        if part and part != last:
            table.add_row(Text(part, style="bold"))
        last = part
        shape = " x ".join(map(str, station.shape))
        number = f"{station.parameters:,}" if station.parameters else ""
        formula = Text.assemble(station.formula, (f" [{station.source}]", "dim"))
        table.add_row(Text(f"  {name}" if part else name), formula, shape, number)
    table.add_section()
    table.add_row(Text("all", style="bold"), "", "", f"{found.parameters:,}")
    return table


def split_name(name: str) -> tuple[str, str]:
    """A module's name in two: the part that it belongs to, as `encoder.layer.5`, and the rest."""
    match = re.fullmatch(r"((?:bert\.)?(?:embeddings|encoder\.layer\.[0-9]+))\.(.+)", name)
    return (match[1], match[2]) if match else ("", name)


SOURCES = Text(
    "V17: Vaswani et al. 2017, arXiv 1706.03762. D19: Devlin et al. 2019, arXiv 1810.04805. "
    "B16: Ba et al. 2016, arXiv 1607.06450. H16: Hendrycks and Gimpel 2016, arXiv 1606.08415. "
    "L16: Lample et al. 2016, arXiv 1603.01360. LL19: Liu and Lapata 2019, arXiv 1908.08345."
)


def attention_table(found: Inspection, *, width: int) -> Table:
    """Rows are queries, columns keys, cells per cent of the row; a narrow window: the top keys."""
    table = Table(box=None, padding=(0, 0))
    names = [clip(token.token) for token in found.tokens]
    widest = max(Text(name).cell_len for name in names)
    if len(names) * CELL + widest + 6 <= width:
        table.add_column("", justify="right")
        for position in range(len(names)):
            table.add_column(str(position), justify="right", min_width=CELL)
        for position, row in enumerate(found.attention.tolist()):
            label = Text(f"{names[position]} {position:>2} ")
            table.add_row(label, *(cell(weight) for weight in row))
        return table
    table.add_column("query", justify="right")
    table.add_column("  keys with the most weight", overflow="fold")
    for position, row in enumerate(found.attention.tolist()):
        best = sorted(range(len(row)), key=lambda key: -row[key])[:MOST]
        keys = Text("  ").join(
            Text.assemble((f" {names[key]} ", ink(row[key])), f" {row[key] * 100:.0f}")
            for key in best
        )
        table.add_row(Text(f"{names[position]} {position:>3}"), Text("  ") + keys)
    return table


def cell(weight: float) -> Text:
    """A weight in per cent on its shade; a block stands for the shade where there is no colour."""
    block = BLOCKS[min(len(BLOCKS) - 1, round(weight * (len(BLOCKS) - 1) + 0.3))]
    return Text(f"{weight * 100:>3.0f}{block}", style=ink(weight))


def ink(weight: float) -> Style:
    """Dark ink on a pale shade, light ink on a deep one."""
    return Style(color="#ffffff" if weight > 0.3 else "#1f2933", bgcolor=shade(weight))


def prediction_lines(found: Inspection) -> list[str]:
    """The prediction in words, empty where the model has no head to predict with."""
    prediction: dict[str, Any] = found.prediction or {}
    lines = []
    if "labels" in prediction:
        lines.append(f"prediction: {', '.join(prediction['labels']) or '(no label)'}")
    elif "label" in prediction:
        lines.append(f"prediction: {prediction['label']} ({prediction['score']:.4f})")
    elif "score" in prediction:
        lines.append(f"prediction: {prediction['score']:.4f}")
    scores = prediction.get("scores") or {}
    lines += [
        f"  {label}: {score:.4f}" for label, score in sorted(scores.items(), key=lambda x: -x[1])
    ]
    for mask in prediction.get("masks", []):
        words = ", ".join(f"{word['token']} {word['score']:.3f}" for word in mask["words"])
        lines.append(f"prediction at {mask['position']}: {words}")
    if "second_text_follows" in prediction:
        lines.append(f"the second text follows the first: {prediction['second_text_follows']:.4f}")
    return lines
