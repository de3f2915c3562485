"""Tagged text out of files: words with a tag each, or texts with spans.

CoNLL: a word and its columns on a line, an empty line after each sentence; tabs or blanks between
columns; BIO, IOB1, BIOES, BMES, BILOU or plain labels. Chinese with one character a line is the
same layout. JSON Lines: `{"tokens": [...], "tags": [...]}`, or raw text with the characters of each
entity, `{"text": "...", "spans": [{"start": 0, "end": 5, "label": "PER"}]}`.

    part = read_tagged("train.conll")
    part.words[0], part.tags[0]        # ["Empire", "State"], ["B-location", "I-location"]
    part.id(0)                         # train.conll:1

Entity tags come out as BIO, whatever the file has. What breaks BIO is mended and told, with a
count; what cannot be read is an error with file and line. The format comes from the name (.jsonl,
.ndjson and their .gz, .xz, .zst; anything else is CoNLL) or from `format`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from filbert.data.examples import stream_texts
from filbert.data.tables import KNOWN, BadRow, Row, kind_of, read_rows, shown_name
from filbert.data.tag_schemes import Span, scheme_of, split_tag, to_bio
from filbert.data.told_rows import ToldRows
from filbert.errors import FilbertError, UsageError

TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "pos_tags", "upos")
SPANS = ("spans", "entities", "label", "labels")
LAYOUT = (
    "a file for tag has lines such as 'word TAG' with an empty line after each sentence, or JSON "
    'lines such as {"tokens": [...], "tags": [...]} or {"text": ..., "spans": [...]}'
)
_PARTIAL = re.compile(r"[0-9]+[-.][0-9]+")  # a line of CoNLL-U that is no word of its own
_JSON = (".jsonl", ".ndjson", ".json")


@dataclass
class Tagged:
    """Sentences of words with tags (`words`, `tags`), or texts with spans (`texts`, `spans`): the
    other two lists are empty. Spans are (first character, end, type), in order, without overlap."""

    source: str
    numbers: list[int]  # the first line, or the row, of each example in the source, from 1
    words: list[list[str]] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    spans: list[list[Span]] = field(default_factory=list)
    plain: bool = False  # labels of words, not parts of entities
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def split(self) -> bool:
        """Whether the words are given; else they are the tokenizer's to find."""
        return bool(self.words) or not self.texts

    def id(self, index: int) -> str:
        """What people call an example: source and line, as in `train.conll:17`."""
        return f"{self.source}:{self.numbers[index]}"

    def select(self, indices: Iterable[int]) -> Tagged:
        """The examples at `indices`, in that order."""
        keep = list(indices)

        def pick(values: list[Any]) -> list[Any]:
            return [values[i] for i in keep] if values else []

        return Tagged(
            self.source, pick(self.numbers), pick(self.words), pick(self.tags), pick(self.texts),
            pick(self.spans), self.plain, list(self.notes),
        )  # fmt: skip

    def labels(self) -> set[str]:
        """The types of entities that occur, or the plain labels."""
        if not self.split:
            return {name for spans in self.spans for _, _, name in spans}
        tags = {tag for sentence in self.tags for tag in sentence}
        return tags if self.plain else {split_tag(tag)[1] for tag in tags} - {""}

    def digest(self) -> str:
        """A sha256 of all words, tags, texts and spans, in order."""
        found = hashlib.sha256()
        for part in (self.words, self.tags, self.texts, self.spans):
            for row in part:
                found.update(json.dumps(row).encode() + b"\n")
            found.update(b"\n")
        return found.hexdigest()


def read_tagged(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    word_column: int = 1,
    tag_column: int = -1,
    encoding: str = "utf-8",
) -> Tagged:
    """All sentences of a file. `word_column`, `tag_column`: of CoNLL, from 1, or from -1 backwards.

    `format`: conll or jsonl, else from the name. Raises `UsageError` for a format or column that
    cannot be, `FilbertError` with file and line for a missing column, spans outside of their text,
    and rows of two kinds. Sentences without a word are left out and told.
    """
    name = os.fspath(path)
    if format not in (None, "conll", "jsonl"):
        raise UsageError(f"--format {format}: tagged text is conll or jsonl")
    if not word_column or not tag_column:
        raise UsageError("columns count from 1, or from the last one with -1; 0 is none of them")
    source = shown_name(name)
    bare = name.lower()
    for ending in (".gz", ".xz", ".zst"):
        bare = bare.removesuffix(ending)
    if format == "jsonl" or (format is None and bare.endswith(_JSON)):
        part = _json(read_rows(name, format="jsonl", encoding=encoding), source)
    else:
        if format is None and kind_of(name) in ("csv", "parquet"):
            if not os.path.exists(name):
                raise UsageError(f"no file {source}")
            raise UsageError(f"{source} is a table; {LAYOUT}")
        rows = read_rows(name, format="text", encoding=encoding)
        part = Tagged(source, [])
        for number, words, tags, _ in _sentences(rows, source, word_column, tag_column):
            part.numbers.append(number)
            part.words.append(words)
            part.tags.append(tags)
    if not len(part):
        raise FilbertError(f"{source} has no sentence; {LAYOUT}")
    return _settled(part) if part.split else part


def stream_untagged(
    path: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
) -> Iterator[tuple[Row, Any, Any]]:
    """What there is to tag, for prediction in constant memory, as (row, text or {"tokens": words},
    second text of a pair or None); tags need not be there.

    CoNLL (`format`, or a name that is not that of a table or a text) gives the words of each
    sentence, out of column 1 or the one that `text_column` numbers, or a `BadRow` for a sentence
    with a line that has not as many columns as the first. The rows of a table have a column of
    texts or, as the first row says, of lists of words: `text_column`, else one called text, tokens
    or words. Raises what `read_tagged` and `stream_texts` do.
    """
    name = os.fspath(path)
    table = name == "-" or name.startswith("hub:") or ".json" in name.lower() or kind_of(name)
    if format == "conll" or (format is None and not table):
        try:
            column = int(text_column or 1)
        except ValueError:
            column = 0
        if not column:
            raise UsageError(
                f"--text-column {text_column}: the columns of CoNLL have numbers, from 1, or from "
                "the last one with -1"
            )
        lines = read_rows(name, format="text", encoding=encoding)
        found = _sentences(lines, shown_name(name), column, None)
        number = 0
        for number, (_, words, _, wrong) in enumerate(found, 1):
            yield Row(number, {}), wrong or {"tokens": words}, None
        if not number:
            raise FilbertError(f"{shown_name(name)} has no sentence; {LAYOUT}")
        return
    reading: dict[str, Any] = {"format": format, "encoding": encoding, "header": header}
    if text_column is None and (os.path.isfile(name) or name.startswith("hub:")):
        first = next(read_rows(name, lenient=True, **reading)).values  # a pipe would lose it
        lists = [key for key in TOKENS if isinstance(first.get(key), list)]
        text_column = lists[0] if lists and "text" not in first else None
    split: bool | None = None  # whether the cells are lists of words
    for row, cell, pair in stream_texts(name, text_column=text_column, **reading):
        split = isinstance(cell, list) if split is None else split
        yield row, {"tokens": cell} if split and row.wrong is None else cell, pair


def split_holdout(part: Tagged, *, fraction: float, seed: int) -> tuple[Tagged, Tagged]:
    """(kept, held out): `fraction` of the examples, at least one of each side, drawn by `seed`."""
    if len(part) < 2:
        raise FilbertError(f"{part.source} has one sentence; give more, or a --dev file")
    order = list(range(len(part)))
    random.Random(seed).shuffle(order)
    count = min(len(part) - 1, max(1, round(fraction * len(part))))
    return part.select(sorted(order[count:])), part.select(sorted(order[:count]))


# --- CoNLL ---------------------------------------------------------------------------------------


def _sentences(
    rows: Iterable[Row], source: str, word_column: int, tag_column: int | None
) -> Iterator[tuple[int, list[str], list[str], BadRow | None]]:
    """(first line, words, tags, what is wrong) of each sentence. Without a tag_column there are no
    tags, and a line of another width spoils its sentence alone; with one it is an error. Blanks are
    ' ' and tab alone: an ideographic space or a no-break space may be a word."""
    words: list[str] = []
    tags: list[str] = []
    wrong: BadRow | None = None
    start = 0
    known: dict[str, str] = {}  # the few tags and the frequent words are kept once
    rows = iter(rows)
    head, first = _first_line(rows)
    if first is None:
        return
    shape: str = first.values["text"]
    tabs = "\t" in shape
    names = _cells(shape, tabs, 0)
    width = len(names)
    _check_columns(width, word_column, tag_column, source, first.number, shape)
    if width > 1 and all(name.strip().lower() in KNOWN for name in names):
        raise FilbertError(f"{source} is a table of {', '.join(names[:8])}; {LAYOUT}")
    for row in chain(head, rows):
        line = row.values["text"]
        if not line.strip(" \t"):
            if words or wrong:
                yield start, words, tags, wrong
                words, tags, wrong = [], [], None
            continue
        if line.startswith("-DOCSTART-"):
            continue
        cells = _cells(line, tabs, width)
        comment = "\t" not in line if tabs else not words
        if comment and line.startswith("#") and len(cells) != width:
            continue  # as CoNLL-U has them
        if len(cells) != width:
            between = "tabs" if tabs else "blanks"
            column = "column" if len(cells) == 1 else "columns"
            told = (
                f"line {row.number}: {len(cells)} {column}, but line {first.number} has "
                f"{width} (by {between}): {line[:60]!r}. "
                + ("Add what is missing" if len(cells) < width else "Is there a blank in a word?")
            )
            if tag_column is not None:
                raise FilbertError(f"{source}, {told}")
            wrong = wrong or BadRow(told)
            continue
        if word_column not in (1, -width) and _PARTIAL.fullmatch(cells[0]):
            continue
        if not words:
            start = row.number
        word = cells[word_column - (word_column > 0)]
        if tag_column is None:
            words.append(word)
            continue
        tag = cells[tag_column - (tag_column > 0)].strip()
        if not tag:
            raise FilbertError(f"{source}, line {row.number}: no tag beside {word!r}; write one")
        words.append(known.setdefault(word, word))
        tags.append(known.setdefault(tag, tag))
    if words or wrong:
        yield start, words, tags, wrong


def _first_line(rows: Iterator[Row]) -> tuple[list[Row], Row | None]:
    """The first rows, up to the first that is neither empty nor like a comment, and that one; where
    there is none, the first that is not empty, as a word may be `#`."""
    head, marks = [], []
    for row in rows:
        head.append(row)
        line: str = row.values["text"]
        if not line.strip(" \t") or line.startswith("-DOCSTART-"):
            continue
        if not line.startswith("#"):
            return head, row
        marks.append(row)
    return head, marks[0] if marks else None


def _cells(line: str, tabs: bool, width: int) -> list[str]:
    """The columns of a line; of one that is `width` wide, or of the first, a blank may be the
    word."""
    cells = line.split("\t") if tabs else [cell for cell in line.split(" ") if cell]
    if not tabs and line[0] == " " and width != 1 and len(cells) in (1, width - 1):
        cells.insert(0, " ")
    return cells


def _check_columns(
    width: int, word_column: int, tag_column: int | None, source: str, line: int, text: str
) -> None:
    """Raise `FilbertError` where the first line has not the columns asked for."""
    where = f"{source}, line {line}: {text[:60]!r} has {width} column{'s' * (width > 1)}"
    if tag_column is None:
        if abs(word_column) > width:
            raise FilbertError(f"{where}, so there is no --text-column {word_column}")
        return
    if width < 2:
        raise FilbertError(f"{where}; a word and its tag were expected, by a tab or blanks")
    for option, column in (("--word-column", word_column), ("--tag-column", tag_column)):
        if not 1 <= abs(column) <= width:
            raise FilbertError(f"{where}, so there is no {option} {column}")
    if (word_column - (word_column > 0)) % width == (tag_column - (tag_column > 0)) % width:
        raise FilbertError(f"{where}; --word-column and --tag-column are the same one")


def _settled(part: Tagged) -> Tagged:
    """The tags of a file in BIO, or known to be plain labels; what was mended is told."""
    try:
        scheme = scheme_of(part.tags)
    except FilbertError as error:
        raise FilbertError(f"{part.source}: {error}") from None
    part.plain = scheme == "plain"
    if part.plain:
        return part
    part.tags, repairs = to_bio(part.tags, scheme)
    if repairs.first is not None:
        sentence, place, tag = repairs.first
        word = part.words[sentence][place]
        part.notes.append(
            f"{part.source}: {repairs.count:,} tag{'s' * (repairs.count > 1)} went on with an "
            f"entity that had not begun and now begin{'s' * (repairs.count == 1)} one (first: "
            f"{tag} of {word!r} in the sentence of line {part.numbers[sentence]})"
        )
    return part


# --- JSON Lines ----------------------------------------------------------------------------------


def _json(rows: Iterable[Row], source: str) -> Tagged:
    part = Tagged(source, [])
    empty, overlaps = ToldRows(), ToldRows()
    kind: str | None = None  # "text", or what the words are called in the first row
    for row in rows:
        where = f"{source}, row {row.number}"
        token_key = next((key for key in TOKENS if key in row.values), None)
        kind = kind or token_key or "text"
        if (token_key or "text") != kind or kind not in row.values:
            wanted = "text and spans, or tokens and tags," if kind == "text" else f"{kind} and tags"
            raise FilbertError(
                f"{where} has {', '.join(row.values)}; expected {wanted} in each row"
            )
        if token_key is not None:
            words, tags = _tokens(row, token_key, where)
            if words:
                part.words.append(words)
                part.tags.append(tags)
        else:
            text = row.values["text"]
            if not isinstance(text, str):
                raise FilbertError(f"{where}: 'text' is {type(text).__name__}, expected a string")
            spans, dropped = _without_overlap(_spans(row, text, where))
            if dropped:
                overlaps.add(row.number, dropped)
            if text.strip():
                part.texts.append(text)
                part.spans.append(spans)
        if len(part.words) + len(part.texts) > len(part.numbers):
            part.numbers.append(row.number)
        else:
            empty.add(row.number)
    if empty.count:
        part.notes.append(f"{source}: no word in {empty}; left out")
    if overlaps.count:
        part.notes.append(
            f"{source}: overlapping spans in {overlaps}; of each such pair the longer one is "
            f"learned (first left out: {overlaps.what})"
        )
    return part


def _tokens(row: Row, key: str, where: str) -> tuple[list[str], list[str]]:
    tag_key = next((name for name in TAGS if name in row.values), "tags")
    words, tags = row.values[key], row.values.get(tag_key)
    for name, cells in ((key, words), (tag_key, tags)):
        if not isinstance(cells, list) or not all(isinstance(cell, str) for cell in cells):
            numbers = isinstance(cells, list) and any(isinstance(cell, int) for cell in cells)
            way = "; write the names in place of their numbers" if numbers else ""
            raise FilbertError(f"{where}: '{name}' must be a list of strings{way}")
    assert isinstance(words, list) and isinstance(tags, list)
    if len(words) != len(tags):
        raise FilbertError(f"{where}: {len(words)} words but {len(tags)} tags")
    return words, tags


def _spans(row: Row, text: str, where: str) -> list[Span]:
    """The spans of a row as (start, end, type), sorted; each lies in the text."""
    key = next((name for name in SPANS if isinstance(row.values.get(name), list)), None)
    if key is None:
        raise FilbertError(
            f'{where}: no spans; write "spans": [] for a text without any, and '
            '{"start": 0, "end": 5, "label": "PER"} for each'
        )
    spans: list[Span] = []
    for item in row.values[key]:
        if isinstance(item, dict):
            start, end = item.get("start"), item.get("end")
            name = item.get("label", item.get("type"))
            said = item.get("text")
        else:
            start, end, name = item if isinstance(item, list) and len(item) == 3 else (None,) * 3
            said = None
        if type(start) is not int or type(end) is not int or not isinstance(name, str) or not name:
            raise FilbertError(
                f"{where}: {json.dumps(item, ensure_ascii=False)[:80]} is no span; expected "
                '{"start": 0, "end": 5, "label": "PER"} or [0, 5, "PER"]'
            )
        if not 0 <= start < end <= len(text):
            raise FilbertError(
                f"{where}: the span {start} to {end} ({name}) is not inside its text of "
                f"{len(text)} characters; positions count characters from 0, the end is exclusive"
            )
        if isinstance(said, str) and said != text[start:end]:
            raise FilbertError(
                f"{where}: the span {start} to {end} is {text[start:end]!r}, but it says {said!r}; "
                "positions count characters (not bytes) of the text as it is"
            )
        spans.append((start, end, name))
    return sorted(spans)


def _without_overlap(spans: list[Span]) -> tuple[list[Span], str]:
    """The spans without those that overlap a longer one, and the first of these in words."""
    kept: list[Span] = []
    dropped = ""
    for span in spans:
        if kept and span[0] < kept[-1][1]:
            shorter = min(span, kept[-1], key=lambda s: s[1] - s[0])
            dropped = dropped or f"{shorter[0]} to {shorter[1]}, {shorter[2]}"
            kept[-1] = span if shorter is kept[-1] else kept[-1]
        else:
            kept.append(span)
    return kept, dropped
