"""Rows of a table, one at a time in constant memory.

CSV, TSV, JSON Lines, Parquet, plain text, the text ones also as .gz, .xz and .zst, the layouts of
GLUE as they come, standard input, and data sets of the hub. Whatever cannot be read exactly is an
error that names the file and the line; nothing is skipped, repaired or guessed in silence.

    for row in read_rows("reviews.csv"):
        print(row.number, row.values)

The format comes from the name, never from a look at the content. Quotes mean something in CSV
(RFC 4180) and nothing in TSV, as in GLUE. A first row is taken for column names by `has_header`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filbert.data.parquet import parquet_rows
from filbert.data.quotes import bad_record
from filbert.errors import FilbertError, UsageError, did_you_mean

FORMATS = ("csv", "tsv", "jsonl", "parquet", "text", "cola", "mrpc")
SUFFIXES = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "text"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"},
}
# What the first bytes of a file say that is not the text its name promises.
SIGNATURES = {
    b"\x1f\x8b": "is compressed by gzip; let its name end in .gz",
    b"\xfd7zXZ": "is compressed by xz; let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; let its name end in .zst",
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save it as CSV (UTF-8)",
    b"PAR1": "is a Parquet file; name it .parquet, or add --format parquet",
    b"\xff\xfe": "is UTF-16 text; add --encoding utf-16",
    b"\xfe\xff": "is UTF-16 text; add --encoding utf-16",
}
COMPRESSED = (".gz", ".xz", ".zst")
MAX_LINE = 1 << 26  # bytes; a file without line ends must not fill the memory
MAX_CELL = 1 << 22  # characters of one CSV row; more means that a quote was never closed
MIB = 1 << 20
HEAD = 200  # rows looked at to tell a header, or a column of labels

# What columns are called in the wild, in the order of preference; compared in lower case.
PAIRS = (
    *(("sentence1", "sentence2"), ("text_a", "text_b"), ("question1", "question2")),
    *(("premise", "hypothesis"), ("#1 string", "#2 string"), ("text1", "text2")),
    *(("question", "sentence"), ("question", "passage"), ("query", "passage")),
    *(("question", "context"), ("question", "answer"), ("query", "document"), ("query", "answer")),
    *(("anchor", "positive"), ("sent0", "sent1"), ("prompt", "response"), ("query", "response")),
)
TEXTS = (
    *("text", "sentence", "content", "review", "message", "comment", "tweet", "utterance", "sms"),
    *("query", "question", "body", "document", "abstract", "title", "headline"),
    *("文本", "内容", "评论", "句子", "标题", *(first for first, _ in PAIRS)),
)
LABELS = (
    *("label", "labels", "gold_label", "category", "class", "intent", "target", "sentiment"),
    *("quality", "is_duplicate", "score", "stars", "rating", "topic", "emotion", "标签", "类别"),
    *("similarity", "similarity_score"),
)
OTHERS = ("id", "idx", "index", "guid", "qid", "qid1", "qid2", "#1 id", "#2 id")
KNOWN = {*TEXTS, *LABELS, *OTHERS, "hard_neg", *(second for _, second in PAIRS)}
KNOWN -= {"positive"}  # far more often a label than a name


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number among the data rows, from 1, and its cells by column name."""

    number: int
    values: dict[str, Any]
    wrong: BadRow | None = None  # in place of values, where a bad row is no error

    def cell(self, name: str) -> Any:
        """The value of a column, None where there is none; of a bad row what is wrong with it."""
        return self.values.get(name) if self.wrong is None else self.wrong


class BadRow(str):
    """What is wrong with a row that cannot be read, in place of its text: it is answered by an
    error, and the others go on."""


def read_rows(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    columns: Sequence[str] | None = None,
    progress: Callable[[int], object] | None = None,
    lenient: bool = False,
) -> Iterator[Row]:
    """The rows of `path` one by one; memory does not grow with the file.

    `path` is a file, `-` for standard input (plain text unless `format` says otherwise), or
    `hub:owner/name[/config][:split]` (split "train" if not said). Cells of CSV and TSV are strings,
    those of JSONL and Parquet keep their types; a Parquet column of classes that carries their
    names gives names. Plain text has one column, "text". Without a header columns are named "1",
    "2", ... Of Parquet only `columns` are read, where they are there. `progress` is told now and
    then how many bytes of the file, compressed as it is, have been read (no standard input, no
    hub). `lenient`: half of a surrogate pair in JSON, and a line behind the first object that is no
    object (`Row.wrong`), are handed on, for whoever tells them row by row. Raises `UsageError` at
    once for a wrong name or option, `FilbertError` on the way for content that cannot be read, with
    its line.
    """
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        hint = did_you_mean(format, FORMATS)
        raise UsageError(f"unknown format '{format}'; there are {', '.join(FORMATS)}.{hint}")
    if name.startswith("hub:"):
        return _hub_rows(name, format, encoding, header, lenient)
    if name != "-":
        _check_path(Path(name))
    kind = format or ("text" if name == "-" else _format_of(name))
    if kind == "parquet":
        if name == "-":
            raise UsageError("Parquet cannot be read from standard input; name a file")
        rows = parquet_rows(name, columns=columns, progress=progress)
        return (Row(number, values) for number, values in enumerate(rows, 1))
    try:
        "a".encode(encoding)
    except LookupError:
        raise UsageError(f"unknown --encoding '{encoding}'; try utf-8, latin-1, gb18030") from None
    lines = _lines(name, encoding, progress)
    shown = shown_name(name)
    if kind == "text":
        texts = (line.removesuffix("\n").removesuffix("\r") for line in lines)
        return (Row(number, {"text": text}) for number, text in enumerate(texts, 1))
    if kind == "jsonl":
        return _json_rows(lines, shown, lenient)
    if kind == "csv":
        return _table(_comma_cells(lines, shown), shown, "csv", header)
    header = {"cola": False, "mrpc": True}.get(kind, header)
    return _table(_tab_cells(lines), shown, kind, header)


def shown_name(name: str) -> str:
    """What a source is called in messages: its name, or "standard input"."""
    return "standard input" if name == "-" else name


# --- where the bytes come from -------------------------------------------------------------------


def _check_path(path: Path) -> None:
    """`UsageError` with what there is instead, unless `path` is a file that exists."""
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name one file of it{_data_files(path)}")
        if path.exists():
            return
        if not path.parent.is_dir():
            raise UsageError(f"no file {path}: the folder {path.parent} does not exist")
        near = did_you_mean(path.name, [item.name for item in path.parent.iterdir()])
        raise UsageError(f"no file {path}.{near}{_data_files(path.parent, ' There is')}")
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror or error}") from None


def _data_files(folder: Path, word: str = "") -> str:
    names = sorted(item.name for item in folder.iterdir() if kind_of(item.name))
    more = ", ..." if len(names) > 6 else ""
    return f"{word}: {', '.join(names[:6])}{more}" if names else ""


def kind_of(name: str) -> str | None:
    """The format that a file's name tells, or None."""
    stem, last = os.path.splitext(name.lower())
    kind = SUFFIXES.get(os.path.splitext(stem)[1] if last in COMPRESSED else last)
    return None if kind == "parquet" and last in COMPRESSED else kind


def _format_of(name: str) -> str:
    if kind := kind_of(name):
        return kind
    hint = "; a .json of one object a line is jsonl" if ".json" in name.lower() else ""
    raise UsageError(
        f"{name}: the format cannot be told from the name, which may end in {', '.join(SUFFIXES)} "
        f"(text ones also with .gz, .xz or .zst behind). Add --format {', '.join(FORMATS)}{hint}"
    )


@contextmanager
def _open(name: str) -> Iterator[tuple[Any, Any]]:
    """The bytes of a file, unpacked, and the open file under them, whose place tells progress."""
    if name == "-":
        if sys.stdin is None:
            raise FilbertError("standard input is closed; name a file, or lead rows in by a pipe")
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    with open(name, "rb") as raw:
        file: Any = raw
        match os.path.splitext(name)[1].lower():
            case ".gz":
                file = gzip.GzipFile(fileobj=raw)
            case ".xz":
                file = lzma.LZMAFile(raw)  # noqa: SIM115 - `raw` is closed above, and holds it all
            case ".zst":
                import pyarrow as pa

                file = io.BufferedReader(pa.CompressedInputStream(raw, "zstd"), MIB)
        yield file, raw


def _lines(
    name: str, encoding: str, progress: Callable[[int], object] | None = None
) -> Iterator[str]:
    """The decoded lines of a file with their line ends, without a byte order mark."""
    shown = shown_name(name)
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    number = 0
    place = 0  # bytes before this line
    due = MIB  # `place` at which progress is told next
    raw: Any = b""
    try:
        with _open(name) as (file, packed):
            start = b"" if wide else file.peek(6)
            for mark in filter(start.startswith, SIGNATURES):
                raise FilbertError(f"{shown} {SIGNATURES[mark]}")
            # where a character takes two bytes, line ends cannot be found in the bytes
            stream: Any = io.TextIOWrapper(file, encoding, newline="\n") if wide else file
            while raw := stream.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    raise FilbertError(f"{shown}, line {number}: longer than {MAX_LINE:,} bytes")
                line = raw if wide else raw.decode(encoding)
                if "\0" in line:
                    raise FilbertError(
                        f"{shown}, line {number}: a NUL character, which no text has; the file is "
                        "damaged, binary, or UTF-16 (then add --encoding utf-16)"
                    )
                yield line.removeprefix("\ufeff") if number == 1 else line
                place += len(raw)
                if progress is not None and place >= due:
                    progress(packed.tell())
                    due = place + MIB
            if progress is not None:
                progress(packed.tell())
    except UnicodeError as error:
        raise _undecodable(shown, number, place, raw, error) from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise FilbertError(f"cannot read {shown}: {error.strerror or error}") from None
        raise FilbertError(
            f"{shown}: the compressed data is broken or cut short after line {number} ({error}); "
            "fetch or compress the file again"
        ) from None
    if not number:
        raise FilbertError(f"{shown} is empty; rows of text were expected")


def _undecodable(
    shown: str, number: int, place: int, raw: Any, error: UnicodeError
) -> FilbertError:
    """Where the first wrong byte is, and the encodings that the line could be in."""
    if not isinstance(error, UnicodeDecodeError) or error.object != raw:  # decoded in blocks
        return FilbertError(f"{shown}, after line {number}: not of that --encoding ({error})")
    could = []
    for other, script in (("utf-8", "most files"), ("gb18030", "Chinese"), ("latin-1", "Western")):
        with suppress(UnicodeDecodeError):
            raw.decode(other)
            could.append(f"--encoding {other} ({script})")
    return FilbertError(
        f"{shown}, line {number}, byte {error.start + 1} of the line ({place + error.start + 1} of "
        f"the file): 0x{raw[error.start]:02X} is not {error.encoding}. Convert the file, or say "
        f"what it is: {' or '.join(could)}"
    )


# --- rows out of lines ---------------------------------------------------------------------------


def _tab_cells(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a TSV; quotes are text. Empty lines are no rows."""
    for number, line in enumerate(lines, 1):
        if line := line.removesuffix("\n").removesuffix("\r"):
            yield number, line.split("\t")


def _comma_cells(lines: Iterable[str], shown: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each record of a CSV; cells may span lines."""
    pending: list[str] = []  # lines of the record being read
    size = 0

    def feed() -> Iterator[str]:
        nonlocal size
        for line in lines:
            pending.append(line)
            size += len(line)
            if size > MAX_CELL:
                raise csv.Error(f"no end after {MAX_CELL:,} characters")
            yield line

    # The limit belongs to the process; it is raised for long cells, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    reader = csv.reader(feed(), strict=True)
    while True:
        start = reader.line_num + 1
        pending.clear()
        size = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise bad_record(shown, start, pending, error) from None
        if cells:
            yield start, cells


def _table(
    rows: Iterator[tuple[int, list[str]]], shown: str, kind: str, header: bool | None
) -> Iterator[Row]:
    """Named cells of numbered lines; each row must be as wide as the first."""
    head = list(islice(rows, HEAD + 1))
    if not head:
        raise FilbertError(f"{shown} holds no rows, only empty lines")
    first = head[0][1]
    width = len(first)
    if kind == "cola" and width != 4:
        raise FilbertError(
            f"{shown}: CoLA has 4 columns, the first row has {width}: {_clip(first)}"
        )
    if header is None and (header := has_header([cells for _, cells in head])) is None:
        raise UsageError(
            f"{shown}: is the first row a row of column names? It "
            f"{'has one column and ' if width == 1 else ''}reads {_clip(first)}. "
            "Add --header if it is, --no-header if it is data"
        )
    names = [str(number) for number in range(1, width + 1)]
    if header:
        names = [cell.strip() or number for cell, number in zip(head.pop(0)[1], names, strict=True)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise FilbertError(
                f"{shown}: the header names {twice} more than once; rename them, or add "
                "--no-header if the first row is data"
            )
        if not head:
            raise FilbertError(f"{shown} has a header ({_clip(names)}) but no rows")
    for number, (line, cells) in enumerate(chain(head, rows), 1):
        if len(cells) != width:
            first_is = "the header" if header else "the first row"
            way = "cells are missing"
            if len(cells) > width:
                way = "a tab splits a text" if kind != "csv" else "a text with a comma needs quotes"
            raise FilbertError(
                f"{shown}, line {line}: {len(cells)} cells, {first_is} has {width} "
                f"({_clip(names if header else first)}); {way}: {_clip(cells)}"
            )
        yield Row(number, dict(zip(names, cells, strict=True)))


def _clip(cells: list[str]) -> str:
    """A row for a message, long cells cut."""
    shown = [repr(cell if len(cell) <= 40 else cell[:37] + "...") for cell in cells[:6]]
    return ", ".join(shown + ["..."] * (len(cells) > 6))


def has_header(rows: list[list[str]]) -> bool | None:
    """Whether the first of `rows` holds column names; None where the signs do not agree.

    A name is short, no number, no sentence, and does not come back in its own column. Two known
    names (`KNOWN`) are a header whatever else; one is, where all cells look like names. Without a
    known name, a header must differ from what stands below: a column of numbers, or of texts much
    longer than its name.
    """
    first = [cell.strip() for cell in rows[0]]
    while len(first) > 1 and not first[-1]:  # spare columns of a spreadsheet
        first.pop()
    below = [[row[place] for row in rows[1:] if place < len(row)] for place in range(len(first))]
    known = sum(cell.lower() in KNOWN for cell in first)
    alike = all(map(_like_name, first)) and len(set(first)) == len(first)
    unique = not any(cell in column for cell, column in zip(first, below, strict=True))
    if known >= 2 or (known and alike and unique):
        return True
    if not alike or not unique:
        return None if known and (alike or unique) else False
    for cell, column in zip(first, below, strict=True):
        length = sum(map(len, column)) / max(len(column), 1)
        if column and (all(map(is_number, column)) or length >= max(20, 2 * len(cell))):
            return True
    return None


def _like_name(cell: str) -> bool:
    """One to three words that are no number and no sentence; at most 12 characters in Chinese."""
    return (
        any(map(str.isalpha, cell))
        and _SENTENCE.isdisjoint(cell)
        and cell[-1] != "."
        and len(cell) <= (40 if cell.isascii() else 12)
        and len(cell.split()) <= 3
        and not is_number(cell)
    )


_SENTENCE = set(',;:!?"\t\n|<>{}，。；：！？、…')


def is_number(cell: str | float) -> bool:
    """Whether Python reads `cell` as a number (NaN and infinity count)."""
    try:
        return len(str(cell)) < 64 and isinstance(float(cell), float)
    except ValueError:
        return False


def _json_rows(lines: Iterable[str], shown: str, lenient: bool) -> Iterator[Row]:
    number = 0
    values: Any
    wanted = 'each line must be one object, such as {"text": "...", "label": "..."}'
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        values, wrong = {}, ""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            wrong = f"no JSON ({error}); {wanted}. It begins {line[:40].strip()!r}"
        if not isinstance(values, dict):
            way = ". One big array becomes lines by: jq -c '.[]' FILE" if number == 0 else ""
            wrong = f"{type(values).__name__}; {wanted}{way}"
        elif not lenient and ("\\ud" in line or "\\uD" in line) and (half := _lone(values)):
            wrong = (
                f"half of a surrogate pair ({half} alone), which is no character; "
                "write the character itself, or both halves"
            )
        if wrong and not (lenient and number):  # the first line says of what kind the file is
            raise FilbertError(f"{shown}, line {line_number}: {wrong}")
        number += 1
        if wrong:
            yield Row(number, {}, BadRow(f"line {line_number}: {wrong}"))
        else:
            yield Row(number, values)
    if not number:
        raise FilbertError(f"{shown} holds no rows, only empty lines")


def _lone(values: dict[str, Any]) -> str:
    """The first half of a pair that stands alone, as JSON writes it; empty where there is none."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x}"
    return ""


def _hub_rows(
    name: str, format: str | None, encoding: str, header: bool | None, lenient: bool
) -> Iterator[Row]:
    """Rows of all files of one split of a hub data set, numbered through."""
    reading: dict[str, Any] = {
        "format": format, "encoding": encoding, "header": header, "lenient": lenient
    }  # fmt: skip
    rows = chain.from_iterable(read_rows(file, **reading) for file in hub_files(name))
    return (replace(row, number=number) for number, row in enumerate(rows, 1))


def hub_files(name: str) -> list[Path]:
    """The local files of `hub:owner/name[/config][:split]`, fetched if need be, in order."""
    repository, _, split = name.removeprefix("hub:").partition(":")
    parts = repository.split("/")
    if not all(parts) or len(parts) > 3:
        raise UsageError(f"'{name}' names no data set; it is hub:owner/name[/config][:split]")
    from filbert.sources import dataset_files

    config = parts[2] if len(parts) == 3 else None
    return dataset_files("/".join(parts[:2]), config=config, split=split or "train")
