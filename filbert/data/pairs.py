"""Pairs of texts, a source and its target, for translation and summaries.

Three layouts, told apart by the options and the name:

- two parallel files, line n of one belonging to line n of the other (Multi30k, WMT, OPUS);
- a table with two columns, by name or number (Tatoeba's TSV has no header: columns 1 and 2);
- JSON Lines: two keys, or `{"translation": {"en": ..., "de": ...}}` as the hub has it. A source
  that is a list of sentences is joined; a target that is a list holds several references, of which
  the first is learned from.

    pairs = read_pairs("train.en.gz", "train.de.gz")
    pairs = read_pairs("cmn.txt", format="tsv", header=False)      # Tatoeba: columns 1 and 2

`split_pairs` holds pairs out by a hash of their source, so the split never depends on the order
of a file, and no text of either side is in two parts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from filbert.data.summaries import TEXTS, is_shorter, told_longer
from filbert.data.tables import HEAD, OTHERS, Row, kind_of, read_rows, shown_name
from filbert.data.told_rows import ToldRows
from filbert.errors import FilbertError, UsageError, did_you_mean

# What the two columns are called in the wild, in the order of preference.
NAMES = (
    ("source", "target"), ("src", "tgt"), ("src", "trg"), ("article", "highlights"),
    ("document", "summary"), ("text", "summary"), ("content", "title"), ("abst", "title"),
)  # fmt: skip
NESTED = "translation"


@dataclass
class Pairs:
    """Sources with their targets. numbers: the row of each in its file, from 1; references: all
    targets of a source, where a file has several; notes: what reading gave to say."""

    sources: list[str]
    targets: list[str]
    numbers: list[int]
    path: str
    references: list[list[str]] | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    def id(self, index: int) -> str:
        """File and row of a pair, for messages."""
        return f"{Path(self.path).name}:{self.numbers[index]}"

    def select(self, indices: list[int]) -> Pairs:
        """The pairs of these indices, in this order."""
        several = self.references
        return Pairs(
            [self.sources[i] for i in indices],
            [self.targets[i] for i in indices],
            [self.numbers[i] for i in indices],
            self.path,
            None if several is None else [several[i] for i in indices],
            self.notes,
        )

    def all_references(self) -> list[list[str]]:
        """The targets that an answer to each source may be compared with."""
        return self.references or [[target] for target in self.targets]

    def digest(self) -> str:
        """The sha256 of all texts, in order."""
        digest = sha256()
        for source, targets in zip(self.sources, self.all_references(), strict=True):
            for text in (source, *targets):
                digest.update(f"{len(text)} {text}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def read_pairs(
    path: str,
    target_path: str | None = None,
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    empty: Literal["refuse", "skip"] = "refuse",
    task: Literal["translate", "summarize"] = "translate",
) -> Pairs:
    """Read the pairs of a table, or of two files that run side by side.

    Raises `UsageError` for columns that are not there, `FilbertError` that names file and line for
    an empty side (or leaves such pairs out and says how many, with `empty="skip"`), for a cell that
    is no text, and where one of two files is longer. A summary (`task`) that is not shorter than
    its text is told in the notes; where most are not, that is an error.
    """
    if target_path is not None:
        if source_column or target_column:
            raise UsageError("two parallel files have no columns; leave the column options out")
        for name in (path, target_path):
            if format not in (None, "text") or kind_of(name) not in (None, "text"):
                raise UsageError(
                    f"{shown_name(name)} is a table, which holds both sides; give it alone, "
                    "without the file of targets. Parallel files are plain text, a text a line"
                )
        rows = _parallel(path, target_path, encoding)
    else:
        rows = _columns(path, source_column, target_column, format, encoding, header)
    sources, targets, numbers, several, skipped = [], [], [], [], 0
    long = ToldRows()
    for number, source, references in rows:
        source, references = source.strip(), [text.strip() for text in references if text.strip()]
        if not source or not references:
            if empty == "refuse":
                side = "target" if source else "source"
                file = target_path if side == "target" and target_path else path
                raise FilbertError(
                    f"{shown_name(file)}, row {number}: the {side} is empty; fill it in, or leave "
                    "such pairs out with --empty skip"
                )
            skipped += 1
            continue
        if task == "summarize" and not is_shorter(source, references):
            long.add(number)
        sources.append(source)
        targets.append(references[0])
        several.append(references)
        numbers.append(number)
    if not sources:
        raise FilbertError(f"{shown_name(path)} holds no pair of texts")
    notes = (
        [f"{shown_name(path)}: {skipped:,} pairs with an empty side left out"] if skipped else []
    )
    advice = "Are the columns swapped? Name them with --source-column and --target-column"
    if target_path is not None:
        advice = f"Are the two files swapped? The summaries come from {shown_name(target_path)}"
    notes += told_longer(long, len(sources), shown_name(path), advice)
    some = several if any(len(row) > 1 for row in several) else None
    return Pairs(sources, targets, numbers, path, some, notes)


def stream_sources(
    path: str,
    *,
    text_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    target: str | None = None,
) -> Iterator[tuple[Row, Any, None]]:
    """The sources alone, for prediction in constant memory, as (row, text, None): the lines of a
    text (any name that is not that of a table), or a column of a table; see `_source_column`.

    A list of sentences is joined; what is no text is handed on as it is, so that one bad row can be
    answered with its own error. target: the language written, which names no source. Raises what
    `read_rows` does, and `UsageError` where it is not plain which column is meant.
    """
    format = _format(path, format)
    plain = kind_of(path) is None and not path.startswith("hub:") and ".json" not in path.lower()
    rows = read_rows(
        path, format="text" if format is None and plain else format, encoding=encoding,
        header=header, lenient=True,
    )  # fmt: skip
    head = list(islice(rows, 1))
    if head and list(head[0].values) != ["text"]:  # else nothing to find out: lines as they come in
        head += islice(rows, HEAD - 1)
    column = _source_column(path, head, text_column, target)
    for row in chain(head, rows):
        value = _cell(row, column)
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            value = " ".join(value)
        yield row, value, None


def split_pairs(
    pairs: Pairs, *, dev: float, test: float = 0.0, salt: str = "filbert"
) -> tuple[Pairs, Pairs, Pairs | None]:
    """Training, dev and test pairs, in the order of the file; which is which depends on a hash of
    the source alone (letters and digits, without case).

    Training pairs whose target is held out as well are left out, and dev pairs whose target is in
    the test set, so that no part has seen a text of another. The note says how many.
    """
    parts: list[list[int]] = [[], [], []]
    for index, source in enumerate(pairs.sources):
        place = _share(source, salt)
        parts[2 if place < test else 1 if place < test + dev else 0].append(index)
    held_out: set[str] = set()
    left_out = 0
    for number in (2, 1, 0):
        kept = [i for i in parts[number] if _plain(pairs.targets[i]) not in held_out]
        left_out += len(parts[number]) - len(kept)
        parts[number] = kept
        held_out |= {_plain(pairs.targets[i]) for i in kept}
    if not parts[0] or not parts[1]:
        raise FilbertError(
            f"{shown_name(pairs.path)}: {len(pairs):,} pairs are too few to hold {dev:.0%} of them "
            "out; give a development file with --dev"
        )
    train, held, last = (pairs.select(part) for part in parts)
    train.notes = [
        *pairs.notes,
        f"split by a hash of the source: {len(train):,} train, {len(held):,} dev, {len(last):,} "
        f"test; {left_out:,} pairs left out whose target is in another part",
    ]
    held.notes = last.notes = []
    return train, held, last if test else None


def _parallel(path: str, other: str, encoding: str) -> Iterator[tuple[int, str, list[str]]]:
    sides = [read_rows(name, format="text", encoding=encoding) for name in (path, other)]
    for number, (source, target) in enumerate(zip_longest(*sides), 1):
        if source is None or target is None:
            longer, shorter = (other, path) if source is None else (path, other)
            raise FilbertError(
                f"{shown_name(path)} and {shown_name(other)} do not run side by side: "
                f"{shown_name(shorter)} ends after {number - 1:,} lines, and line {number:,} of "
                f"{shown_name(longer)} has no partner"
            )
        yield number, source.values["text"], [target.values["text"]]


def _columns(
    path: str, source: str | None, target: str | None, format: str | None, encoding: str,
    header: bool | None,
) -> Iterator[tuple[int, str, list[str]]]:  # fmt: skip
    names: tuple[str, str] | None = None
    if format is None and kind_of(path) is None and Path(path).is_file():
        raise UsageError(
            f"{path}: the name is not that of a table (.tsv, .csv, .jsonl, .parquet). Where it "
            "holds a source a line, name the file of their targets with --target-data "
            "(--target-dev, --target-test); for a table add --format"
        )
    for row in read_rows(path, format=_format(path, format), encoding=encoding, header=header):
        if names is None:
            names = _pick(path, row, source, target)
        found = _cell(row, names[1])
        references = found if isinstance(found, list) else [_one(path, row, names[1])]
        if not all(isinstance(text, str) for text in references):
            raise FilbertError(f"{shown_name(path)}, row {row.number}: a target is no text")
        yield row.number, _one(path, row, names[0]), references


def _format(path: str, format: str | None) -> str | None:
    """Tatoeba's `cmn.txt` is a TSV that is called a text."""
    return "tsv" if format is None and path.endswith(("cmn.txt", ".tsv.txt")) else format


def _source_column(path: str, head: list[Row], asked: str | None, target: str | None) -> str:
    """The column of the sources: the one asked for; that of a known pair of names that is there
    (`NAMES`); a known name; the only one beside ids and, inside of "translation", beside the
    language `target`."""
    nested = [row.values[NESTED] for row in head if isinstance(row.values.get(NESTED), dict)]
    inside = list(dict.fromkeys(name for cells in nested for name in cells))
    names = list(dict.fromkeys(name for row in head for name in row.values))
    columns = [*(name for name in names if not (nested and name == NESTED)), *inside]
    if asked is not None:
        if asked not in columns:
            raise UsageError(
                f"{shown_name(path)} has no column {asked!r}; there are "
                f"{', '.join(columns[:20])}.{did_you_mean(asked, columns)}"
            )
        return asked
    for one, other in NAMES:
        if {one, other} <= {*columns}:
            return one
    lower = {name.lower(): name for name in reversed(columns)}
    for known in (*TEXTS, "src", "abst", "sentence"):
        if known in lower:
            return lower[known]
    rest = [name for name in inside or columns if name.lower() not in OTHERS and name != target]
    if len(rest) == 1:
        return rest[0]
    raise UsageError(
        f"{shown_name(path)}: which of the columns {', '.join(columns[:20])} is the text to write "
        "about? Name it with --text-column"
    )


def _pick(path: str, row: Row, source: str | None, target: str | None) -> tuple[str, str]:
    """The names of the two columns: those asked for, else known names, else the only two."""
    values = row.values
    if isinstance(values.get(NESTED), dict):
        values = {**values, **values[NESTED]}
    columns = [name for name in values if name != NESTED]
    if columns == ["text"]:
        raise UsageError(
            f"{shown_name(path)} has one column, so the targets are missing: name the file that "
            "holds them, line by line, with --target-data (--target-dev, --target-test)"
        )
    for asked in (source, target):
        if asked is not None and asked not in columns:
            raise UsageError(
                f"{shown_name(path)} has no column {asked!r}; there are "
                f"{', '.join(columns[:20])}.{did_you_mean(asked, columns)}"
            )
    if source is not None and target is not None:
        if source == target:
            raise UsageError(f"source and target are the same column, {source!r}")
        return source, target
    for one, other in NAMES:
        if source in (None, one) and target in (None, other) and {one, other} <= {*columns}:
            return one, other
    rest = [name for name in columns if name not in (source, target)]
    if len(columns) == 2:
        return source or rest[0], target or rest[-1]
    if columns[:2] == ["1", "2"]:  # no header: what stands behind them is attribution
        return source or "1", target or "2"
    raise UsageError(
        f"{shown_name(path)}: which of the columns {', '.join(columns[:20])} are source and "
        "target? Name them with --source-column and --target-column"
    )


def _cell(row: Row, name: str) -> Any:
    nested = row.values.get(NESTED)
    if name not in row.values and isinstance(nested, dict):
        return nested.get(name)
    return row.cell(name)


def _one(path: str, row: Row, name: str) -> str:
    value = _cell(row, name)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        value = " ".join(value)
    if not isinstance(value, str):
        what = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
        raise FilbertError(
            f"{shown_name(path)}, row {row.number}: column {name!r} holds {what}, not a text"
        )
    return value


def _plain(text: str) -> str:
    """Letters and digits without case: what two spellings of a sentence have in common."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum()) or folded


def _share(text: str, salt: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    digest = blake2b(
        _plain(text).encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()
    )
    return int.from_bytes(digest.digest(), "big") / 2**64
