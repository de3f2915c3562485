"""What a run tells while it trains: a progress bar, `metrics.jsonl`, TensorBoard events.

`metrics.jsonl` is the record that everything else is drawn from (the report page, a plot of your
own): one JSON object a line, flushed as it is written, so that a killed run keeps every line. A
resumed run first drops the rows that came after its checkpoint and ends with the same rows as a run
that was never broken, timings apart.

    with Tracker(run, total_steps=1200, tensorboard=True) as tracker:
        tracker.train(step, epoch, loss, lr, grad_norm, tokens, seconds)
        tracker.evaluation(step, epoch, {"loss": 0.21, "accuracy": 0.93})

Progress goes to standard error: a bar on a terminal, a plain line now and then elsewhere.
TensorBoard's own record writer is used, never its `SummaryWriter`, which would import TensorFlow
where that is installed. Watch a run with `tensorboard --logdir runs/`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from filbert.atomic import atomic_path
from filbert.errors import FilbertError

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
LINE_SHARE = 0.1  # without a terminal: a line every tenth of the run ...
LINE_SECONDS = 30.0  # ... and at least every half minute


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a `metrics.jsonl`, and the numbers (from 1) of the lines that are no rows.

    A last line torn by a kill is left out without being counted: that is what a kill does.
    """
    rows, bad = [], []
    for number, line, whole in _lines(path):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif whole and line.strip():
            bad.append(number)
    return rows, bad


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    if path.exists():
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line, line.endswith(b"\n")


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    well_formed = isinstance(row, dict) and "kind" in row and isinstance(row.get("step"), int)
    return row if well_formed else None


def _plain(value: Any) -> float | int | None:
    """A number that JSON can hold: NaN and infinity, which it cannot, become None (null)."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class Tracker:
    """Records and shows one run; a context manager.

    `run`: the run folder (made if missing). `total_steps`: optimizer steps of the whole run, None
    where a clock ends it. `resume_step`: the step of the checkpoint that training goes on from, 0
    for a new run; rows with a higher step are dropped, a row that is already there is not written
    twice. `quiet`: show nothing, record all the same; `silent`: neither, for the other processes of
    a run. `flops_per_token` and `ceiling` (floating-point operations a second that the machine was
    seen to reach) give the share of it that is used. Raises `FilbertError` where the disk is full
    or not writable.
    """

    def __init__(
        self,
        run: Path,
        *,
        total_steps: int | None,
        tensorboard: bool = True,
        resume_step: int = 0,
        quiet: bool = False,
        silent: bool = False,
        flops_per_token: float = 0.0,
        ceiling: float = math.inf,
    ) -> None:
        """Keep the settings; files are opened on entering."""
        self.flops_per_token, self.ceiling = flops_per_token, ceiling
        self._silent = silent
        self.run = Path(run)
        self.total_steps = total_steps
        self.resume_step = resume_step
        self._tensorboard = tensorboard
        self._quiet = quiet
        self._files = contextlib.ExitStack()
        self._metrics: BinaryIO | None = None
        self._events: Any = None  # tensorboard's RecordWriter
        self._bar: Progress | None = None
        self._already: set[tuple[str, int]] = set()
        self._seconds = 0.0  # of training at the last row
        self._loss = self._rate = math.nan  # smoothed, for the display only
        self._started = self._line_time = time.monotonic()
        self._line_done: float | None = None  # a clock's share is known with the first row only
        if total_steps is not None:
            self._line_done = resume_step / max(total_steps, 1)
        self._first_done = self._line_done or 0.0

    def __enter__(self) -> Tracker:
        """Cut the record back to the checkpoint, open the files, show the bar."""
        if self._silent:
            self._quiet = True
            return self
        path = self.run / METRICS_FILE
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            bad = self._cut_back(path)
            self._metrics = self._files.enter_context(open(path, "ab"))
            if self._tensorboard:
                self._open_events()
        except OSError as error:
            self._close()
            raise self._cannot_write(error) from error
        self._started = self._line_time = time.monotonic()
        if not self._quiet:
            self._open_bar()
        if bad:
            self.message(f"{path}: unreadable lines left out: {', '.join(map(str, bad[:10]))}")
        if self._tensorboard and self._events is None:
            self.message(
                "tensorboard is not installed, so no events are written "
                f"({METRICS_FILE} and the report page are); pip install 'filbert[tensorboard]'"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files and the bar; what was recorded is on disk already."""
        self._close()

    def train(
        self,
        step: int,
        epoch: float,
        loss: float,
        lr: float,
        grad_norm: float,
        tokens: int,
        seconds: float,
        *,
        parts: Mapping[str, float] | None = None,
        done: float | None = None,
    ) -> None:
        """Record an optimizer step. `step` counts from 1; `epoch` is the number of passes done.

        `parts`: what else the task tells beside its loss. `tokens`: how many were computed since
        the last call. `seconds`: how long the run has trained so far, sessions before a resume
        included. `done`: share of the run that lies behind, where its number of steps is not known.
        Need not be called for every step.
        """
        rate = tokens / (seconds - self._seconds) if seconds > self._seconds else None
        self._seconds = seconds
        row = {
            "epoch": epoch,
            "loss": loss,
            **(parts or {}),
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": tokens,
            "tokens_per_second": rate,
            "seconds": seconds,
        }
        if self.flops_per_token:
            row["mfu"] = rate * self.flops_per_token / self.ceiling if rate is not None else None
        self._write("train", step, row)
        self._loss = loss if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * loss
        if rate is not None:
            self._rate = rate if math.isnan(self._rate) else 0.95 * self._rate + 0.05 * rate
        if self._bar is not None:
            task = self._bar.task_ids[0]
            completed = step if self.total_steps is not None else done
            of = "" if self.total_steps is None else f"/{self.total_steps:,}"
            self._bar.update(
                task,
                completed=completed,
                step=f"{step:,}{of}",
                loss=f"{self._loss:.4f}",
                rate=self._rate_text(),
            )
        elif not self._quiet:
            share = step / max(self.total_steps, 1) if self.total_steps is not None else done or 0.0
            self._line(step, epoch, lr, share)

    def evaluation(self, step: int, epoch: float, scores: Mapping[str, Any]) -> None:
        """Record an evaluation after `step`: the numbers among `scores` (tables are left out)."""
        numbers = {
            name: value
            for name, value in scores.items()
            if value is None or not isinstance(value, str | Mapping | list | tuple)
        }
        self._write("eval", step, {"epoch": epoch, **numbers})
        shown = [
            f"{name} {value:.4f}"
            for name, value in numbers.items()
            if isinstance(value, float) and math.isfinite(value)
        ]
        self.message(f"evaluation after step {step:,}: " + "  ".join(shown))

    def message(self, text: str) -> None:
        """Show a line of text above the bar; nothing is recorded."""
        if self._quiet:
            return
        if self._bar is not None:
            # no markup: a file name or label with [brackets] must come out as it is
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _cut_back(self, path: Path) -> list[int]:
        """Drop the rows after `resume_step`, atomically; return the numbers of unreadable lines."""
        if not path.exists():
            return []
        bad = []
        # line by line: the record of a long pre-training run need not fit into memory
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            for number, line, whole in _lines(path):
                row = _row(line)
                if row is None:
                    if whole and line.strip():
                        bad.append(number)
                elif self.resume_step > 0 and row["step"] <= self.resume_step:
                    file.write(line.rstrip(b"\r\n") + b"\n")
                    if isinstance(seconds := row.get("seconds"), float):
                        self._seconds = seconds
                    if row["step"] == self.resume_step:
                        self._already.add((str(row["kind"]), self.resume_step))
        return bad

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a row to the record, and its numbers to TensorBoard as `kind/name`."""
        if self._silent:
            return
        if self._metrics is None:
            raise RuntimeError("Tracker is a context manager: use it inside `with Tracker(...)`")
        # The checkpoint may have been taken before the evaluation at its own step, or after.
        if (kind, step) in self._already:
            return
        numbers = {name: _plain(value) for name, value in values.items()}
        row = {"kind": kind, "step": step, **numbers}
        try:
            self._metrics.write((json.dumps(row, allow_nan=False) + "\n").encode())
            self._metrics.flush()
            if self._events is not None:
                scalars = {f"{kind}/{name}": value for name, value in numbers.items()}
                self._events.write(_event(step, scalars))
                self._events.flush()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> FilbertError:
        return FilbertError(
            f"could not write the record of the run in {self.run}: {error.strerror or error}. "
            "Make room (or the folder writable), then go on from the last checkpoint with --resume"
        )

    def _open_events(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = self.run / EVENTS_FOLDER
        folder.mkdir(exist_ok=True)
        older = sorted(path.name for path in folder.glob("events.out.tfevents.*"))
        # Readers take the files in the order of their names; two within a second must not swap.
        stamp = int(time.time())
        if older and older[-1].split(".")[3].isdigit():
            stamp = max(stamp, int(older[-1].split(".")[3]) + 1)
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        file: BinaryIO = self._files.enter_context((folder / name).open("wb"))
        self._events = RecordWriter(file)
        now = time.time()
        first = Event(wall_time=now, file_version="brain.Event:2")
        self._events.write(first.SerializeToString())
        if older:
            # Tells the reader to forget every event from this step on (its "purge" rule).
            start = Event(
                wall_time=now,
                step=self.resume_step + 1 if self.resume_step else 0,
                session_log=SessionLog(status=SessionLog.START),
            )
            self._events.write(start.SerializeToString())
        self._events.flush()

    def _open_bar(self) -> None:
        console = Console(stderr=True)
        if not console.is_terminal or console.is_dumb_terminal:
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f} %  step {task.fields[step]}"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            refresh_per_second=4,
            redirect_stdout=False,  # standard output is for results; it must not move to stderr
        )
        self._bar.add_task(
            "",
            total=self.total_steps or 1.0,
            completed=self.resume_step if self.total_steps else 0,
            step=f"{self.resume_step:,}",
            loss="-",
            rate="",
        )
        self._bar.start()

    def _rate_text(self) -> str:
        if math.isnan(self._rate):
            return ""
        text = f"{self._rate:,.0f} tokens/s"
        if self.flops_per_token:
            text += f"  MFU {self._rate * self.flops_per_token / self.ceiling:.0%}"
        return f"{text}  {memory_in_use() / 1e9:.1f} GB"

    def _line(self, step: int, epoch: float, lr: float, done: float) -> None:
        """A plain line of progress, if the last one is long enough ago."""
        now = time.monotonic()
        if self._line_done is None:  # the first row of this session
            self._line_done = self._first_done = done
            self._started = now
        far = done - self._line_done >= LINE_SHARE
        if not (far or now - self._line_time >= LINE_SECONDS or done >= 1):
            return
        self._line_done, self._line_time = done, now
        gained = done - self._first_done
        left = f"{clock((now - self._started) / gained * (1 - done))} left" if gained > 0 else ""
        of = "" if self.total_steps is None else f"/{self.total_steps:,}"
        self.message(
            f"step {step:,}{of} ({done:.0%})  epoch {epoch:.2f}  loss {self._loss:.4f}  "
            f"lr {lr:.2e}  {self._rate_text()}  {left}".rstrip()
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        # Every row was flushed; a flush that failed has been told as `FilbertError` already.
        with contextlib.suppress(OSError):
            self._files.close()
        self._metrics = self._events = self._bar = None


def clock(seconds: float) -> str:
    """A duration as people read it: 0:07, 3:20, 1:05:00."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def memory_in_use() -> int:
    """Bytes this process holds in memory (Linux), else the most it ever held."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _event(step: int, values: Mapping[str, float | int | None]) -> bytes:
    """A TensorBoard event with scalars, serialized; undefined ones are left out."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [
        Summary.Value(tag=tag, simple_value=float(value))
        for tag, value in values.items()
        if value is not None
    ]
    event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
    return bytes(event.SerializeToString())
