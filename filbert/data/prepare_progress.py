"""How far `filbert prepare` is: a bar on a terminal, a line now and then elsewhere.

The share and the time left are by bytes of the corpus, compressed as it is; the rate counts the
plain text that was kept.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from filbert.data.shards import Counts

_LINE_SECONDS = 30.0


class Meter:
    """Shows progress on standard error; a context manager."""

    def __init__(self, files: list[str], *, shown: bool) -> None:
        self._total = sum(os.path.getsize(file) for file in files)
        self._started = self._told = time.monotonic()
        self._first: int | None = None  # bytes of text when this call began
        self._bar: Progress | None = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("prepare"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=self._total)

    def __enter__(self) -> Meter:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def update(self, behind: int, counts: Counts) -> None:
        """`behind`: bytes of the corpus files that were worked on."""
        if self._first is None:
            self._first = counts.bytes
        now = time.monotonic()
        rate = (counts.bytes - self._first) / 1e6 / max(now - self._started, 1e-9)
        text = (
            f"{counts.documents:,} documents, {counts.tokens / 1e6:,.1f} M tokens, {rate:.1f} MB/s"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=behind, description=text)
        elif self._shown and now - self._told >= _LINE_SECONDS:
            self._told = now
            share = behind / max(self._total, 1)
            print(f"prepare: {100 * share:.0f} %, {text}", file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
