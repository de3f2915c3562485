"""Documents of a corpus, one at a time in constant memory: files, folders, globs, the hub.

    for path in corpus_files(["corpus/", "more/**/*.jsonl.zst", "hub:owner/name"]):
        for document in read_documents(path):
            print(document.name, document.source, document.text[:60])

JSON Lines, Parquet and tables hold a document a row, in the column `text`; a column `source` names
where it comes from (a number or a boolean by its text; white space and line ends become a blank,
characters that nobody sees go). Plain text has three layouts: `lines`, a sentence (or paragraph) a
line with an empty line between documents, as google-research/bert reads it; `line`, each line a
document; `file`, the whole file one document. `auto` takes `lines` where the first MiB of the file
has an empty line, else `line`; a book with empty lines between its paragraphs wants `file`, which
nobody can tell from the bytes. Paragraphs of a document stay apart by a newline.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

from filbert.data.parquet import column_names
from filbert.data.tables import (
    COMPRESSED,
    MAX_LINE,
    MIB,
    SUFFIXES,
    Row,
    hub_files,
    kind_of,
    read_rows,
)
from filbert.errors import FilbertError, UsageError, did_you_mean

Layout = Literal["auto", "lines", "line", "file"]
Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Document:
    """One text: `source` names its origin ("": not said), `name` its place for messages."""

    text: str
    source: str = ""
    name: str = ""


def corpus_files(paths: list[str]) -> list[str]:
    """The files that `paths` name, in the order given, each once however often it is named.

    A path is a file; a folder, read with the folders in it, hidden ones and links to folders left
    out; a glob, with `**` for any folders; or `hub:owner/name[/config][:split]`, which is fetched.
    In folders and globs files of other formats are passed over, and names are sorted. Raises
    `UsageError` for a path that leads to no file.
    """
    if not paths:
        raise UsageError("no corpus is given; name files, folders, globs or hub:owner/name")
    found: dict[str, str] = {}  # real path -> path as named
    for path in paths:
        files = _files_of(path)
        if not files:
            raise UsageError(f"'{path}' leads to no file of a corpus; {_formats()}")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _files_of(path: str) -> list[str]:
    if path.startswith("hub:"):
        return [os.fspath(file) for file in hub_files(path)]
    if not path or path == "-":
        raise UsageError("a corpus is read more than once, so it is a file, not standard input")
    if os.path.isdir(path):
        return _folder_files(path)
    if os.path.exists(path):
        if kind_of(path) is None:
            raise UsageError(f"{path}: the name does not tell the format; {_formats()}")
        return [path]
    if glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        # `**` gives folders and, one by one, what is in them.
        return [m for m in matches if os.path.isfile(m) and kind_of(m)] or [
            file for match in matches if os.path.isdir(match) for file in _folder_files(match)
        ]
    parent = os.path.dirname(path) or "."
    near = did_you_mean(path, map(_joined(parent), _listed(parent)))
    raise UsageError(f"no file, folder or glob {path}.{near} {_formats().capitalize()}")


def _joined(parent: str) -> Callable[[str], str]:
    return lambda name: name if parent == "." else os.path.join(parent, name)


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _folder_files(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot open {error.filename}: {error.strerror or error}") from None

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(place, name)
            for name in names
            if not name.startswith(".") and kind_of(name)
        ]
    return sorted(found)


def _formats() -> str:
    return (
        f"names of files end in {', '.join(SUFFIXES)}; all but Parquet also with "
        f"{', '.join(COMPRESSED)} behind"
    )


def read_documents(
    path: str,
    *,
    text_column: str | None = None,
    source_column: str | None = None,
    document: Layout = "auto",
    encoding: str = "utf-8",
    progress: Progress | None = None,
) -> Iterator[Document]:
    """The documents of one file, in its order; memory does not grow with the file.

    `text_column` is "text" if not given, and must be there; `source_column` is "source" if not
    given, and only a given one must be there; "" and "none" turn it off. `document` is the layout
    of plain text. A text may be empty, for the caller to count. `progress` is told how many bytes
    of the file, compressed as it is, lie behind, after each MiB of text and at the end. An empty
    file has no documents. Raises `UsageError` for a wrong name, `FilbertError` with file and line
    for what cannot be read.
    """
    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            return iter(())
    except OSError as error:
        raise FilbertError(f"cannot read {path}: {error.strerror or error}") from None
    text = text_column or "text"
    source = None if source_column in ("", "none") else source_column or "source"
    if document not in get_args(Layout):
        hint = did_you_mean(document, get_args(Layout))
        raise UsageError(f"--document '{document}' is none of {', '.join(get_args(Layout))}.{hint}")
    kind = kind_of(path)
    rows = read_rows(
        path,
        encoding=encoding,
        header=True if kind in ("csv", "tsv") else None,  # its columns are asked for by name
        columns=(text,) if source is None else (text, source),
        progress=progress,
    )
    if kind == "text":
        if text_column is not None or (source is not None and source_column is not None):
            given = "--text-column" if text_column is not None else "--source-column"
            raise UsageError(f"{path} is plain text, which has no columns; leave {given} out")
        return _text_documents(path, rows, document)
    return _row_documents(path, rows, text, source, must=source_column is not None)


def _row_documents(
    path: str, rows: Iterator[Row], text: str, source: str | None, *, must: bool
) -> Iterator[Document]:
    for row in rows:
        values, name = row.values, f"{path}#{row.number}"
        for column, needed in ((text, True), (source, must)):
            if needed and column is not None and column not in values:
                option = "--text-column" if column == text else "--source-column"
                there = column_names(path) if kind_of(path) == "parquet" else list(values)
                raise UsageError(
                    f"{path}, row {row.number}: no column '{column}'; there are "
                    f"{', '.join(map(repr, there[:12]))}. "
                    f"Name one by {option}.{did_you_mean(column, there)}"
                )
        yield Document(
            _string(values[text], text, path, row.number),
            "" if source is None else _source(values.get(source), source, path, row.number),
            name,
        )


def _string(value: Any, column: str, path: str, number: int) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise FilbertError(
        f"{path}, row {number}: '{column}' is {type(value).__name__} ({str(value)[:40]!r}); "
        "a string was expected"
    )


def _source(value: Any, column: str, path: str, number: int) -> str:
    """The name of a source, fit to be shown in a line."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise FilbertError(
            f"{path}, row {number}: '{column}' is {type(value).__name__} ({str(value)[:40]!r}), "
            "which names no source; name another column by --source-column, or none by "
            "--source-column none"
        )
    return " ".join("".join(c for c in " ".join(value.split()) if c.isprintable()).split())


def _text_documents(path: str, rows: Iterator[Row], layout: Layout) -> Iterator[Document]:
    if layout == "auto":
        head, blank = _head(rows)
        layout, rows = ("lines" if blank else "line"), chain(head, rows)
    if layout == "line":
        for row in rows:
            yield Document(row.values["text"], "", f"{path}:{row.number}")
        return
    lines: list[str] = []
    first = size = 0
    for row in rows:
        line: str = row.values["text"]
        if layout == "lines" and not line.strip():
            if lines:
                yield Document("\n".join(lines), "", f"{path}:{first}")
            lines, size = [], 0
            continue
        first = first if lines else row.number
        size += len(line) + 1
        if size > MAX_LINE:
            raise FilbertError(
                f"{path}: the document that begins at line {first} has more than {MAX_LINE:,} "
                "characters; put empty lines between documents, or give --document line"
            )
        lines.append(line)
    if lines:
        yield Document("\n".join(lines), "", f"{path}:{first}")


def _head(rows: Iterator[Row]) -> tuple[list[Row], bool]:
    """The rows of the first MiB, or up to an empty line, and whether there was one."""
    head: list[Row] = []
    size = 0
    for row in rows:
        head.append(row)
        size += len(row.values["text"]) + 1
        if not row.values["text"].strip():
            return head, True
        if size >= MIB:
            break
    return head, False
