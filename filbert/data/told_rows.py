"""Rows as a message names them: how many, the first few numbers, what is wrong with the first.

rows = ToldRows()
rows.add(17, "'text' is int")
str(rows), rows.what                 # "row 17", "'text' is int"
"""

from __future__ import annotations


class ToldRows:
    """Rows in a message: how many, the first five numbers, and what is wrong with the first."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.count = self.last = 0
        self.what = ""

    def add(self, number: int, what: str = "") -> None:
        """Count row `number`; a second flaw of the row just counted is left out."""
        if self.last == number:
            return
        self.count += 1
        self.last = number
        self.what = self.what or what
        self.first += [number] * (self.count <= 5)

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.first)) + (", ..." if self.count > 5 else "")
        return f"row {listed}" if self.count == 1 else f"{self.count:,} rows ({listed})"
