"""Lines of standard input as rows of a model, and their answers in order.

A line that cannot be read (not UTF-8, no tab between two texts, whatever `problem` refuses) is
answered by an error in its place, and the others go on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from filbert.data.tables import BadRow
from filbert.errors import FilbertError
from filbert.infer.predict import Answer, windows


def typed_rows(stream: TextIO | None, *, pairs: bool) -> Iterator[Any]:
    """Texts of standard input, one a line; with `pairs` two of them with a tab between. A line
    without one, or that is not UTF-8, is a `BadRow`.

    Raises `FilbertError` for None, which is what Python has for a closed standard input.
    """
    if stream is None:
        raise FilbertError("standard input is closed; give texts, a --file, or lines by a pipe")
    if stream.isatty():
        what = "text<TAB>second text" if pairs else "a text"
        print(f"Type {what} and Enter; Ctrl-D ends.", file=sys.stderr)
    for raw in stream.buffer:
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield BadRow("not UTF-8; convert the text to UTF-8 first")
            continue
        if not pairs:
            yield line
            continue
        first, tab, second = line.partition("\t")
        if tab:
            yield first, second
        else:
            yield BadRow("this model compares two texts; expected text<TAB>second text")


def answered_lines(
    predictor: Any, rows: Iterable[Any], *, window: int, strict: bool = False, **options: Any
) -> Iterator[tuple[Any, Answer]]:
    """Each row of `typed_rows` with its answer, in order; `{"error": ...}` for a line that the
    model cannot read. Raises `FilbertError` for such a line with `strict`, and at the end where no
    line could be answered."""
    number, answered, first = 0, 0, ""
    for block in windows(rows, window):
        problems = [row if isinstance(row, BadRow) else predictor.problem(row) for row in block]
        good = [row for row, problem in zip(block, problems, strict=True) if problem is None]
        answers = iter(predictor.answer_rows(good, **options) if good else [])
        answered += len(good)
        for row, problem in zip(block, problems, strict=True):
            number += 1
            if problem is None:
                yield row, next(answers)
                continue
            told = f"standard input, line {number}: {problem}"
            if strict:
                raise FilbertError(told)
            first = first or told
            yield row, {"error": told}
    if first and not answered:
        raise FilbertError(f"no line could be answered. {first}")
    if first:
        count = number - answered
        lines = "1 line has" if count == 1 else f"{count:,} lines have"
        print(f"{lines} no answer but an error. {first}", file=sys.stderr)
