"""Predict a whole file: rows in, answers out, in order, in constant memory, and resumable.

    filbert predict runs/reviews --file in.jsonl --out out.jsonl
    filbert predict runs/reviews --file in.jsonl --out out.jsonl --resume    # go on

Answers go to OUT.partial, one line a row, and the file takes its name when the last row is
answered. Beside it OUT.partial.json says which input, model and options it belongs to, so that a
run never goes on in a file that another one began. A row without a usable text is answered with
an `error` and the others go on; `strict` stops instead. An empty text has a `note` in its answer.
Of questions the ids are held in memory, to know one that comes twice.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any

from filbert.data.examples import stream_texts
from filbert.data.questions import has_id
from filbert.data.tables import Row
from filbert.errors import FilbertError, UsageError
from filbert.infer.answer_files import check_first, layout_of, rows_in, with_ids, write_layout
from filbert.infer.empty_texts import empty_note, told
from filbert.infer.overlap import in_order, workers_for
from filbert.infer.predict import WINDOW, Answer, Classifier, as_json_text, windows

COUNTED = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class FileReport:
    """What was done: rows in the output, those answered in this session, and of these the rows
    without an answer and the empty ones."""

    rows: int
    answered: int
    failed: list[int]  # numbers of the rows that carry an `error`, the first 1,000
    failures: int
    seconds: float
    empty: Sequence[int] = ()  # numbers of the rows whose text is empty, the first 1,000
    empties: int = 0

    def summary(self, out: str | PathLike[str] | None) -> str:
        """What was done, in words; rows without an answer are named."""
        rate = self.answered / max(self.seconds, 1e-6)
        text, now = f"{self.rows:,} rows, {self.seconds:.1f} s, {rate:,.0f} rows/s", ""
        if self.answered < self.rows:  # resumed; the flaws below are those of this session too
            now = "in this session "
            text = f"{now}{self.answered:,} rows, {self.seconds:.1f} s, {rate:,.0f} rows/s"
        text = f"{out}: {text}" if out is not None else text
        if self.failures:
            one = self.failures == 1
            text += (
                f"\n{now}{self.failures:,} {'row' if one else 'rows'} could not be answered and "
            )
            text += (
                f"{'carries' if one else 'carry'} an error: {_listed(self.failed, self.failures)}"
            )
        if self.empties:
            text += f"\n{now}{told(self.empties)}: {_listed(self.empty, self.empties)}"
        return text


def _listed(first: Sequence[int], count: int) -> str:
    return ", ".join(map(str, first[:20])) + (" ..." if count > 20 else "")


def predict_file(
    model: Any,
    source: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    window: int = WINDOW,
    progress: bool = True,
    **options: Any,
) -> FileReport:
    """Answer every row of `source` (any format that training reads) in `out`.

    `out` is JSONL, or CSV where its name ends in .csv, or one of the layouts of `answer_files`;
    None writes JSONL to standard output. A line holds `row`, the row's number in the input, counted
    from 1, the `id` of a question that has one, and the answer as the model's `answer_rows` gives
    it for `options`, or `error`. CSV is for classifiers. Raises `UsageError`
    where `out` exists (`overwrite`), or where a partial one is there that `resume` was not asked
    for or does not belong to; where `out` is the input. With `resume` and nothing unfinished, it
    says so and does nothing.
    `FilbertError` for an unreadable input, a full disk, or with `strict` for the first bad row.
    """
    reading: dict[str, Any] = {
        "text_column": text_column,
        "pair_column": pair_column,
        "format": format,
        "encoding": encoding,
        "header": header,
    }
    if not model.manifest.pair and pair_column is not None:
        raise UsageError(f"--pair-column {pair_column}: this model takes one text, not pairs")
    rows = rows_of(model, source, **reading)
    head = list(islice(rows, 1))  # an input that cannot be read is told before anything is written
    rows = chain(head, rows)
    began = time.monotonic()
    flaws = _Flaws()

    def report(rows: int, answered: int) -> FileReport:
        failed, empty = flaws.failed, flaws.empty
        return FileReport(
            rows, answered, failed, flaws.failures, time.monotonic() - began, empty, flaws.empties
        )

    if out is None:
        written = 0

        def shown(block: list[tuple[Row, Any, Any]]) -> tuple[str, list[Answer]]:
            answers = _answer(model, block, options, strict, source)
            return "".join(as_json_text(answer) + "\n" for answer in answers), answers

        workers = workers_for(model.model)
        blocks = windows(rows, window)
        for block, (text, answers) in in_order(shown, blocks, workers=workers, full=window):
            sys.stdout.write(text)
            flaws.add(answers)
            sys.stdout.flush()
            written += len(block)
        return report(written, written)

    if not os.fspath(out):
        raise UsageError("--out is empty; expected the name of a file")
    target = Path(out)
    _check_not_the_input(target, source)
    sheet = target.suffix.lower() == ".csv"
    if sheet and not isinstance(model, Classifier):
        raise UsageError(
            f"--out {out}: answers of the task {model.manifest.task} do not fit into a table; "
            "name a .jsonl file"
        )
    layout = layout_of(model.manifest.task, target)
    if layout and head:
        check_first(layout, head[0][0], head[0][1], target)
        if layout == ".json":
            rows = with_ids(rows)
    stamp = {
        "source": _stamp(source),
        "model": _stamp(model.folder / "model.safetensors"),
        "options": {**reading, **options, "csv": sheet},
    }
    if resume and not overwrite and target.is_file() and not _partial(target).exists():
        written = rows_in(target, layout)
        _say(f"{target} is finished already; --overwrite answers anew")
        written -= sheet and written > 0  # the header
        return report(written, 0)
    partial, done = _begin(target, stamp, resume=resume, overwrite=overwrite)
    if done:
        _say(f"going on after row {done:,} of {partial}")
    line = _sheet_line(model, **options) if sheet else _json_line
    written = done
    try:
        bar = _progress(source, done, progress, count=format is None)
        with open(partial, "ab") as file, bar as advance:
            if sheet and not done and file.tell() == 0:
                file.write(line(None))

            def answered(block: list[tuple[Row, Any, Any]]) -> tuple[bytes, list[Answer]]:
                answers = _answer(model, block, options, strict, source)
                if layout == ".conll":
                    for answer, (_, given, _) in zip(answers, block, strict=True):
                        if "error" not in answer:
                            answer["tokens"] = given["tokens"]
                return b"".join(line(answer) for answer in answers), answers

            blocks = windows(islice(rows, done, None), window)
            workers = workers_for(model.model)
            for block, (lines, answers) in in_order(answered, blocks, workers=workers):
                file.write(lines)
                file.flush()
                flaws.add(answers)
                written += len(block)
                advance(written)
            os.fsync(file.fileno())
        if layout:
            write_layout(layout, partial, target)
            partial.unlink()
        else:
            os.replace(partial, target)
        _sidecar(partial).unlink(missing_ok=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; {written:,} rows are safe in {partial}. "
            "To go on, repeat the command with --resume"
        ) from None
    except OSError as error:
        raise FilbertError(
            f"{error.filename or partial}: {error.strerror or error}; {written:,} rows are safe "
            f"in {partial}. Mend the cause, then repeat the command with --resume"
        ) from None
    finally:
        if not written:  # nothing to keep: the next try needs neither --resume nor --overwrite
            partial.unlink(missing_ok=True)
            _sidecar(partial).unlink(missing_ok=True)
    return report(written, written - done)


def rows_of(
    model: Any,
    source: str | PathLike[str],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    **reading: Any,
) -> Iterator[tuple[Row, Any, Any]]:
    """(row, text, second text or None) of each row of a file: by the model's own `rows` where it
    has them, else by `stream_texts`. reading: `format`, `encoding`, `header` of `read_rows`.

    Raises `UsageError` for pairs of texts where the model takes one text.
    """
    reading["text_column"] = text_column
    if model.manifest.pair:
        reading["pair_column"] = pair_column
    if hasattr(model, "rows"):
        rows = model.rows(source, **reading)
    else:
        rows = stream_texts(source, **reading, need_pair=model.manifest.pair)
    if model.manifest.pair:
        return rows
    return _single(rows, source, named=text_column is not None)


def _single(
    rows: Iterator[tuple[Row, Any, Any]], source: str | PathLike[str], *, named: bool
) -> Iterator[tuple[Row, Any, Any]]:
    """Rows for a model of single texts; refuses pairs unless the text's column is named."""
    for row, text, pair in rows:
        if pair is not None and not named:
            raise UsageError(
                f"{source}: the rows look like pairs of texts, but this model takes one text; "
                "name its column with --text-column"
            )
        yield row, text, None


class _Flaws:
    """Counts rows without an answer and empty ones; keeps the first numbers only, memory stays
    constant."""

    def __init__(self) -> None:
        self.failures = self.empties = 0
        self.failed: list[int] = []
        self.empty: list[int] = []

    def add(self, answers: list[Answer]) -> None:
        failed = [answer["row"] for answer in answers if "error" in answer]
        empty = [answer["row"] for answer in answers if "note" in answer]
        self.failures += len(failed)
        self.empties += len(empty)
        self.failed += failed[: 1000 - len(self.failed)]
        self.empty += empty[: 1000 - len(self.empty)]


def _answer(
    model: Any,
    block: list[tuple[Row, Any, Any]],
    options: dict[str, Any],
    strict: bool,
    source: str | PathLike[str],
) -> list[Answer]:
    """Answers of a block of (row, text, second text): good ones together, bad ones told."""
    rows = [(text, pair) if model.manifest.pair else text for _, text, pair in block]
    problems = [model.problem(row) for row in rows]
    good = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
    answers = iter(model.answer_rows(good, **options))
    out: list[Answer] = []
    for (row, _, _), given, problem in zip(block, rows, problems, strict=True):
        name = {"row": row.number}
        if model.manifest.task == "answer" and has_id(row):
            name["id"] = row.values["id"]
        if problem is None:
            note = empty_note(given)
            out.append({**name, **next(answers), **({"note": note} if note else {})})
            continue
        if strict:
            raise FilbertError(f"{source}: row {row.number}: {problem}")
        out.append({**name, "error": problem})
    return out


def _json_line(answer: Answer | None) -> bytes:
    return (json.dumps(answer, ensure_ascii=False) + "\n").encode()


def _sheet_line(model: Classifier, *, all_scores: bool = False) -> Callable[[Answer | None], bytes]:
    """A function from an answer (None: the header) to one line of CSV."""
    manifest = model.manifest
    several = manifest.problem_type == "multi_label_classification"
    single = manifest.problem_type == "single_label_classification"
    columns = ["row"] + (["labels"] if several else ["label", "score"] if single else ["score"])
    listed = manifest.labels if several or (single and all_scores) else []

    def line(answer: Answer | None) -> bytes:
        if answer is None:
            cells = [*columns, *(f"score:{label}" for label in listed), "error", "note"]
        else:
            plain = {**answer, "labels": "|".join(answer.get("labels", []))}
            scores = answer.get("scores") or {}
            cells = [plain.get(name, "") for name in columns]
            cells += [scores.get(label, "") for label in listed]
            cells += [answer.get("error", ""), answer.get("note", "")]
        text = io.StringIO()
        # one row is one line, so that a torn file is mended by its last line feed
        csv.writer(text, lineterminator="\n").writerow([_flat(cell) for cell in cells])
        return text.getvalue().encode()

    return line


def _flat(cell: Any) -> Any:
    return " ".join(cell.splitlines()) if isinstance(cell, str) else cell


def _begin(
    target: Path, stamp: dict[str, Any], *, resume: bool, overwrite: bool
) -> tuple[Path, int]:
    """The partial file to append to, whole lines only, and how many rows it holds already."""
    partial = _partial(target)
    beside = _sidecar(partial)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; --out names a file")
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target} exists already; name another --out, or --overwrite to replace it"
        )
    if partial.exists() and not resume and not overwrite:
        raise UsageError(
            f"{partial} is there from an unfinished run; --resume goes on with it, "
            "--overwrite begins anew"
        )
    if partial.exists() and resume:
        try:
            earlier = json.loads(beside.read_text("utf-8"))
        except (OSError, ValueError):
            raise UsageError(
                f"{partial} has no {beside.name} beside it that says what it belongs to; "
                "--overwrite begins anew"
            ) from None
        for part, words in (("source", "input file"), ("model", "model"), ("options", "options")):
            if earlier.get(part) != stamp[part]:
                raise UsageError(
                    f"{partial} was begun with another {words} ({earlier.get(part)}) than this "
                    f"run's ({stamp[part]}); --overwrite begins anew"
                )
        lines = _mend(partial)
        return partial, max(0, lines - 1) if stamp["options"]["csv"] else lines
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        beside.write_text(json.dumps(stamp) + "\n", "utf-8")
        partial.touch()
    except OSError as error:
        raise UsageError(f"cannot write {partial}: {error.strerror or error}") from None
    return partial, 0


def _mend(path: Path) -> int:
    """Cut a torn last line off; count the whole ones."""
    lines = 0
    end = place = 0
    with open(path, "rb+") as file:
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
            last = block.rfind(b"\n")
            end = place + last + 1 if last >= 0 else end
            place += len(block)
        file.truncate(end)
    return lines


def _check_not_the_input(target: Path, source: str | PathLike[str]) -> None:
    """`UsageError` where writing the answers would replace the rows that they are for."""
    for path in (target, _partial(target), _sidecar(_partial(target))):
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise UsageError(
                f"--out {target}: {path} is the input, which the answers would replace; name "
                "another --out"
            )


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _sidecar(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _stamp(source: str | PathLike[str]) -> dict[str, Any]:
    """What a file is known by: its name, size and time of change."""
    try:
        status = os.stat(source)
    except OSError:  # a data set of the hub: its name is all there is
        return {"name": str(source)}
    path = str(Path(source).resolve())
    return {"name": path, "bytes": status.st_size, "changed": status.st_mtime_ns}


@contextmanager
def _progress(
    source: str | PathLike[str], done: int, shown: bool, *, count: bool
) -> Iterator[Callable[[int], None]]:
    """A function that shows how many rows are answered: a bar, or elsewhere a line a minute.
    count: whether the lines of the source are its rows."""
    if not shown:
        yield lambda rows: None
        return
    began = last = time.monotonic()

    def rate(rows: int) -> str:
        return f"{(rows - done) / max(time.monotonic() - began, 1e-6):,.0f}"

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        speed = TextColumn("{task.fields[speed]} rows/s")
        columns = (BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            total = _count(source) if count else None
            task = bar.add_task("rows", total=total, completed=done, speed="-")
            yield lambda rows: bar.update(task, completed=rows, speed=rate(rows))
        return

    def tell(rows: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 60:
            last = now
            _say(f"{rows:,} rows, {rate(rows)} rows/s")

    yield tell


def _count(source: str | PathLike[str]) -> int | None:
    """Lines of a plain file: the rows, or near them (a quoted cell may hold a line feed)."""
    path = Path(source)
    if path.suffix.lower() not in COUNTED or not path.is_file():
        return None
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
