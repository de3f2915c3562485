"""What is wrong with a record that CSV does not allow, and where, so that a person finds the quote.

Python's reader says only that a record broke, often millions of characters behind the cause.

    raise bad_record("reviews.csv", 17, ['"never closed,1\\n'], error)
"""

from __future__ import annotations

import csv

from filbert.errors import FilbertError


def bad_record(shown: str, start: int, pending: list[str], error: csv.Error) -> FilbertError:
    """The error for a record that CSV does not allow, with the line where its quote opens."""
    last = start + len(pending) - 1
    if "new-line" in str(error):
        return FilbertError(
            f"{shown}, line {last}: a carriage return in a cell without quotes. End lines with a "
            "line feed, and put cells that hold one between quotes"
        )
    opened, balanced = open_quote(start, pending)
    if balanced and len(pending) == 1 and "no end" in str(error):
        return FilbertError(
            f"{shown}, line {start}: the row is too long, {len(pending[0]):,} characters "
            f"({error}). Cut its text into parts, or write the rows as JSONL"
        )
    return FilbertError(
        f"{shown}, line {opened}: the quote that opens a cell here is unbalanced; reading came to "
        f'line {last} ({error}). Close it; a quote inside a quoted cell is written twice ("")'
    )


def open_quote(start: int, pending: list[str]) -> tuple[int, bool]:
    """Where the last quoted cell of a broken record begins, by the rules of RFC 4180.

    Returns the number of its line, and whether every quote of the record is closed.
    """
    opened = start
    state = "start"
    for number, line in enumerate(pending, start):
        for character in line:
            if state == "quoted":
                state = "closed" if character == '"' else "quoted"
            elif character == '"' and state == "start":
                state, opened = "quoted", number
            elif character == '"' and state == "closed":
                state = "quoted"  # a doubled quote
            elif character in ",\r\n":
                state = "start"
            elif state == "closed":
                return opened, False  # something stands behind the closing quote
            else:
                state = "plain"
    return opened, state != "quoted"
