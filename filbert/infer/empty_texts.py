"""Texts without a word: a model answers them, but not because of anything that they say.

A classifier labels an empty text and a tagger finds nothing in it; `filbert predict` notes it in
the answer, and counts such rows at the end.
"""

from __future__ import annotations

from typing import Any

NOTE = "has no text; the answer rests on nothing"


def empty_note(row: Any) -> str | None:
    """What of a row that a model can answer is empty, in words; None where all of it has text."""
    if isinstance(row, dict) and "tokens" in row:
        return None if any(map(str.strip, row["tokens"])) else f"the list of words {NOTE}"
    if isinstance(row, str):
        return None if row.strip() else f"the row {NOTE}"
    if isinstance(row, tuple | list):
        bare = [n for n, text in enumerate(row) if isinstance(text, str) and not text.strip()]
        if bare and len(bare) == len(row):
            return f"the row {NOTE}"
        if bare and isinstance(row, tuple) and len(row) == 2:
            return f"the {('first', 'second')[bare[0]]} text is empty"
    return None


def told(count: int) -> str:
    """How many rows were empty, for the end of a run."""
    rows = "1 row has" if count == 1 else f"{count:,} rows have"
    return f"{rows} an empty text and {'is' if count == 1 else 'are'} answered all the same"
