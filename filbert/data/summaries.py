"""Documents and their summaries out of a table: what summarisation learns from and is scored on.

    {"text": "First sentence. Second one.", "summary": "A reference."}
    {"source": ["First sentence.", "Second one."], "target": ["A reference.", "Another one."]}

A document is a text, cut here by `filbert.text.sentences`, or a list of its sentences. A summary is
one text or a list of references, each of which counts (SciTLDR comes in the second layout; keys
that are not named here are passed over). CSV, TSV and Parquet work alike, with
one reference in a cell. The columns are found by name (`TEXTS`, `SUMMARIES`) or given.

    documents = read_documents("train.jsonl")
    train, dev = hold_out(documents, fraction=0.1, seed=0)
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from filbert.data import tables
from filbert.data.tables import Row, kind_of, read_rows, shown_name
from filbert.data.told_rows import ToldRows
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.text.sentences import split_sentences

TEXTS = (
    *("text", "source", "document", "article", "content", "dialogue", "body", "abstract"),
    *("正文", "文本", "内容"),
)
SUMMARIES = (
    *("summary", "target", "highlights", "summaries", "references", "reference", "tldr", "title"),
    *("摘要", "标题"),
)
LONGEST = 1000  # characters of a sentence; what has no end mark for longer is cut at a comma
_CLAUSES = ",，、;；:："


@dataclass
class Documents:
    """Documents as sentences, in the order of the file.

    `references` holds one or more for each document; None where they were not asked for.
    """

    sentences: list[list[str]]
    references: list[list[str]] | None
    source: str
    numbers: list[int]  # row numbers in the source, from 1
    notes: list[str] = field(default_factory=list)  # what was guessed or looks odd, for people

    def __len__(self) -> int:
        return len(self.sentences)

    def id(self, index: int) -> str:
        """What people call document `index`: source and row number, as in `train.jsonl:17`."""
        return f"{self.source}:{self.numbers[index]}"

    def select(self, indices: Iterable[int]) -> Documents:
        """The documents at `indices`, in that order."""
        keep = list(indices)
        references = None if self.references is None else [self.references[i] for i in keep]
        return Documents(
            [self.sentences[i] for i in keep], references, self.source,
            [self.numbers[i] for i in keep], list(self.notes),
        )  # fmt: skip

    def digest(self) -> str:
        """A sha256 of all sentences and references, in order."""
        content = repr((self.sentences, self.references)).encode("utf-8", "surrogatepass")
        return hashlib.sha256(content).hexdigest()


def read_documents(
    path: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    summary_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
) -> Documents:
    """All documents of `path` (any format of `read_rows`) with their reference summaries.

    A document without text is kept and told in the notes, as is a summary that is not shorter than
    its text. Raises `UsageError` for a column that is not there, `FilbertError` with row numbers
    for a text or summary of another kind, for a summary that is missing or empty, and where most
    summaries are not shorter than their texts.
    """
    source = shown_name(os.fspath(path))
    rows = read_rows(path, format=format, encoding=encoding, header=header)
    head = list(islice(rows, tables.HEAD))
    if not head:
        raise FilbertError(f"{source} has no rows; expected documents with summaries")
    names = list(dict.fromkeys(name for row in head for name in row.values))
    text = _column(text_column, TEXTS, names, source, what="text")
    summary = _column(
        summary_column, [name for name in SUMMARIES if name != text.lower()], names, source,
        what="summary",
    )  # fmt: skip
    if text == summary:
        raise UsageError(
            f"{source}: text and summary are the same column, '{text}'; name two with "
            "--text-column and --summary-column"
        )
    documents = Documents([], [], source, [])
    assert documents.references is not None
    wrong, lacking, empty, long = ToldRows(), ToldRows(), ToldRows(), ToldRows()
    for row in chain(head, rows):
        cell, references = row.values.get(text), _texts(row.values.get(summary))
        if problem := document_problem(cell):
            wrong.add(row.number, f"'{text}': {problem}")
            continue
        assert cell is not None  # or it were a problem
        if references is None:
            lacking.add(row.number, f"'{summary}' is {type(row.values.get(summary)).__name__}")
            continue
        if not references or not all(reference.strip() for reference in references):
            lacking.add(row.number, f"'{summary}' is empty")
            continue
        sentences = sentences_of(cell)
        if not sentences:
            empty.add(row.number)
        elif not is_shorter(" ".join(sentences), references):
            long.add(row.number)
        documents.sentences.append(sentences)
        documents.references.append(references)
        documents.numbers.append(row.number)
    if wrong.count:
        raise FilbertError(f"{source}: {wrong}: {wrong.what}")
    if lacking.count:
        raise FilbertError(
            f"{source}: {lacking}: {lacking.what}; expected a summary, or a list of references"
        )
    if text_column is None or summary_column is None:
        documents.notes.append(f"{source}: documents from '{text}', summaries from '{summary}'")
    if empty.count:
        documents.notes.append(f"{source}: {empty} without text")
    documents.notes += told_longer(
        long, len(documents), source,
        "Are the columns swapped? Name them with --text-column and --summary-column",
    )  # fmt: skip
    return documents


def is_shorter(text: str, summaries: Sequence[str]) -> bool:
    """Whether one of the summaries has fewer characters than its text, runs of white space as one
    blank."""
    return min(len(" ".join(one.split())) for one in summaries) < len(" ".join(text.split()))


def told_longer(long: ToldRows, rows: int, source: str, advice: str) -> list[str]:
    """A note on the rows that are not `is_shorter`, if there are any; raises `FilbertError` where
    they are more than half of `rows`. advice: what to look at and what to type."""
    if not long.count:
        return []
    told = f"{source}: the summary is not shorter than its text in {long}"
    if 2 * long.count > rows:
        raise FilbertError(f"{told}, of {rows:,} in all. {advice}")
    return [f"{told}. {advice}"]


def stream_documents(
    path: str | os.PathLike[str], *, text_column: str | None = None, **reading: Any
) -> Iterator[tuple[Row, Any, None]]:
    """Documents to summarise one by one, as (row, text or list of sentences, None).

    A plain text file is one document. In a table the column is found as in `read_documents`;
    summaries need not be there. `reading`: `format`, `encoding`, `header` of `read_rows`.
    """
    source = shown_name(os.fspath(path))
    kind = reading.get("format") or (None if str(path) == "-" else kind_of(os.fspath(path)))
    rows = read_rows(path, lenient=True, **reading)
    if kind == "text":
        lines = [row.values["text"] for row in rows]
        yield Row(1, {"text": "\n".join(lines)}), "\n".join(lines), None
        return
    head = list(islice(rows, 1))
    if head and list(head[0].values) != ["text"]:  # else nothing to find out: lines as they come in
        head += islice(rows, tables.HEAD - 1)
    if not head:
        return
    names = list(dict.fromkeys(name for row in head for name in row.values))
    column = names[0]
    if text_column is not None or len(names) > 1:
        column = _column(text_column, TEXTS, names, source, what="text")
    for row in chain(head, rows):
        yield row, row.cell(column), None


def document_problem(value: Any) -> str | None:
    """What is wrong with a document, in words; None for a text or a list of sentences."""
    if isinstance(value, str):
        return None
    if not isinstance(value, list | tuple):
        return f"expected a text or a list of sentences, got {type(value).__name__}"
    for place, sentence in enumerate(value):
        if not isinstance(sentence, str):
            return f"sentence {place} is {type(sentence).__name__}, not a text"
    return None


def sentences_of(document: str | Sequence[str]) -> list[str]:
    """The sentences of a document; of a list, its items as they are, empty ones left out."""
    if isinstance(document, str):
        return [document[start:end] for start, end in sentence_spans(document)]
    return [" ".join(sentence.split()) for sentence in document if sentence.strip()]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence in `text`, in order; only white space lies between them.

    What has no end mark for more than `LONGEST` characters is cut behind the last comma or before
    the last blank among them, else at that length. Linear in the text.
    """
    spans = []
    place = 0
    for sentence in split_sentences(text):
        while text[place].isspace():
            place += 1
        assert text.startswith(sentence, place), "a sentence is a piece of its text"
        end = place + len(sentence)
        while end - place > LONGEST:
            cut = _cut(text, place, place + LONGEST)
            spans.append((place, place + len(text[place:cut].rstrip())))
            place = cut
            while text[place].isspace():
                place += 1
        spans.append((place, end))
        place = end
    return spans


def _cut(text: str, start: int, end: int) -> int:
    """Where a piece that begins at `start` and may reach to `end` is cut off."""
    comma = max(text.rfind(mark, start + LONGEST // 4, end) for mark in _CLAUSES)
    if comma > start:
        return comma + 1
    blank = text.rfind(" ", start + LONGEST // 4, end)
    return blank if blank > start else end


def hold_out(
    documents: Documents, *, fraction: float, seed: int = 0
) -> tuple[Documents, Documents]:
    """Training and held-out documents, each in file order; a pure function of data and `seed`.

    About `fraction` of the documents, at least one; the same document is never on both sides.
    Raises `FilbertError` where there are not two different ones.
    """
    copies: dict[bytes, list[int]] = defaultdict(list)
    for place, sentences in enumerate(documents.sentences):
        plain = "".join("".join(sentences).lower().split())
        copies[hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()].append(place)
    groups = list(copies.values())
    if len(groups) < 2:
        raise FilbertError(
            f"{documents.source}: nothing can be held out of {len(documents)} rows with "
            f"{len(groups)} different documents. Give development data with --dev"
        )
    numbers = random.Random(seed)
    order = sorted((numbers.random(), number) for number in range(len(groups)))
    wanted = max(1, round(fraction * len(documents)))
    held: set[int] = set()
    for _, number in order[:-1]:  # one group stays in any case
        if len(held) + len(groups[number]) <= wanted or not held:
            held.update(groups[number])
    places = range(len(documents))
    return (
        documents.select(i for i in places if i not in held),
        documents.select(i for i in places if i in held),
    )


def _column(
    given: str | None, known: Sequence[str], names: list[str], source: str, *, what: str
) -> str:
    if given is not None:
        if given not in names:
            raise UsageError(
                f"{source} has no column '{given}'; there are {', '.join(names[:20])}."
                f"{did_you_mean(given, names)}"
            )
        return given
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in known if name in lower), None)
    if found is None:
        raise UsageError(
            f"{source}: no column is called {', '.join(known[:4])} or the like; there are "
            f"{', '.join(names[:20])}. Name the {what}'s with --{what}-column"
        )
    return found


def _texts(value: Any) -> list[str] | None:
    """References as a list; None where the cell holds something else."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    return None
