"""Progress through files, by bytes: a bar with rate and time left, or a plain line now and then.

    with Meter("counting words", files, quiet=False) as meter:
        for file in files:
            for document in read_documents(file, progress=meter.at):
                ...
            meter.next_file()

Bytes of the files as they lie on the disk, compressed or not, so that the end is known before the
beginning. Rate and time left are of this call: what an earlier one did counts as done alone. It
goes to standard error: standard output is for results.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from filbert.errors import FilbertError

LINE_SECONDS = 30.0  # between two plain lines


class Meter:
    """How far a reader is within `files`; a context manager. `quiet`: nothing is shown. `resumed`:
    work goes on somewhere behind the beginning, and the first place that is told is where."""

    def __init__(
        self, title: str, files: Sequence[str], *, quiet: bool, resumed: bool = False
    ) -> None:
        self.title = title
        try:
            self._sizes = [os.path.getsize(file) for file in files]
        except OSError as error:
            raise FilbertError(f"cannot read {error.filename}: {error.strerror or error}") from None
        self.total = sum(self._sizes)
        self.done = 0
        self._begun: int | None = None if resumed else 0
        self._file = self._before = 0
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Meter:
        self._started = self._told = time.monotonic()
        if not self._quiet and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=self._console,
                refresh_per_second=4,
                redirect_stdout=False,
            )
            self._bar.add_task(self.title, total=self.total)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, place: int, *, found: str = "") -> None:
        """The reader has read `place` bytes of the file at hand (of all, if `next_file` is not
        used). found: what it holds so far, in words."""
        self.done = self._before + place
        if self._begun is None:
            self._begun = self.done
            if self._bar is not None:
                self._bar.reset(self._bar.task_ids[0], total=self.total, completed=self.done)
        if self._bar is not None:
            title = f"{self.title}: {found}" if found else self.title
            self._bar.update(self._bar.task_ids[0], completed=self.done, description=title)
        elif not self._quiet and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            rate = (self.done - self._begun) / max(self._told - self._started, 1e-9)
            left = f"{(self.total - self.done) / rate:,.0f} s left" if rate else "time left unknown"
            share = self.done / max(self.total, 1)
            self.message(
                f"{self.title}: {share:.0%} of {self.total / 1e6:,.1f} MB, "
                + (f"{found}, " if found else "")
                + f"{rate / 1e6:,.1f} MB/s, {left}"
            )

    def message(self, text: str) -> None:
        """Tell a line, above the bar if there is one."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def next_file(self) -> None:
        """The file at hand is finished."""
        self.at(self._sizes[self._file])
        self._before = self.done
        self._file += 1
