"""Labelled examples out of any table: which column holds what, the kind of label, a hold-out.

    examples = read_examples("reviews.csv")
    kind = infer_problem_type(examples.labels)
    train, dev = split_holdout(examples, fraction=0.1, seed=42, problem_type=kind)
    names = label_names(train.labels, kind)

A guess leaves a line in `Examples.notes`; where signs do not agree there is an error instead.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from filbert.data import tables
from filbert.data.tables import Row, is_number, read_rows, shown_name
from filbert.data.told_rows import ToldRows
from filbert.errors import FilbertError, UsageError, did_you_mean

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"

FEW_INTEGERS = 20  # up to this many different whole numbers are classes
MISSING = {"", "nan", "<na>"}  # cells of the label column that say "no label", in lower case
LONG_CELL = 50  # lines; a longer text in a CSV may have swallowed rows through a stray quote
REGRESSION_BINS = 10


@dataclass
class Examples:
    """Texts with their labels, in the order of the file.

    `pairs` is None for single texts, `labels` is None where they were not asked for. A label is a
    `str` (one class), a `list[str]` (several) or a `float` (regression)."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any] | None
    source: str
    numbers: list[int]  # row numbers in the source, from 1
    notes: list[str] = field(default_factory=list)  # what was guessed or looks odd, for people

    def __len__(self) -> int:
        return len(self.texts)

    def id(self, index: int) -> str:
        """What people call example `index`: source and row number, as in `train.csv:17`."""
        return f"{self.source}:{self.numbers[index]}"

    def select(self, indices: Iterable[int]) -> Examples:
        """The examples at `indices`, in that order."""
        keep = list(indices)
        texts = [self.texts[place] for place in keep]
        pairs = None if self.pairs is None else [self.pairs[place] for place in keep]
        labels = None if self.labels is None else [self.labels[place] for place in keep]
        numbers = [self.numbers[place] for place in keep]
        return Examples(texts, pairs, labels, self.source, numbers, list(self.notes))


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold the text, the second text of a pair and the label."""

    text: str
    pair: str | None = None
    label: str | None = None


def read_examples(
    path: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    need_labels: bool = True,
    problem_type: str | None = None,
    label_separator: str | None = None,
) -> Examples:
    """All examples of `path` (see `read_rows`), with checked texts and labels.

    Columns that are not named are found by `find_columns`. `problem_type` None: found by
    `infer_problem_type`; give the one of the training data for a dev or test file. With
    `label_separator` a cell holds several labels, and an empty cell none of them. Space around a
    label is dropped; numbers in JSON and Parquet become names ("1"), booleans "true" and "false".
    An empty text is allowed and told in the notes. `UsageError` for a column that is not there,
    `FilbertError` with row numbers for a text that is no string and for labels that are missing
    (empty, NaN, null) or not of the problem's kind.
    """
    source = shown_name(os.fspath(path))
    if label_separator == "" or (label_separator and problem_type not in (None, MULTI)):
        raise UsageError(
            f"--label-separator '{label_separator}', problem type {problem_type}: a mark such "
            f"as ',' between several labels of a row was expected, and {MULTI}"
        )
    rows = read_rows(path, format=format, encoding=encoding, header=header)
    head = list(islice(rows, tables.HEAD))
    given = Columns(text_column or "", pair_column, label_column)
    columns, notes = find_columns(head, given, source=source, need_label=need_labels)
    texts: dict[str, list[Any]] = {name: [] for name in (columns.text, columns.pair) if name}
    labels: list[Any] = []
    numbers: list[int] = []
    no_string, empty, long = ToldRows(), ToldRows(), ToldRows()
    for row in chain(head, rows):
        for column, cells in texts.items():
            cell = row.values.get(column)
            if not isinstance(cell, str):
                no_string.add(row.number, f"'{column}' is {type(cell).__name__}")
            elif not cell.strip():
                empty.add(row.number)
            elif cell.count("\n") > LONG_CELL:
                long.add(row.number)
            cells.append(cell)
        numbers.append(row.number)
        if need_labels:
            labels.append(_label(row.values.get(columns.label or ""), label_separator))
    if no_string.count:
        raise FilbertError(
            f"{source}: no text in {no_string}: {no_string.what}; write a string or drop these rows"
        )
    if empty.count:
        notes.append(f"{source}: empty text in {empty}")
    if long.count and ".csv" in source.lower():
        notes.append(
            f"{source}: more than {LONG_CELL} lines of text in {long}; if that is not meant, a "
            "quote is unbalanced there and has swallowed rows"
        )
    pairs = texts[columns.pair] if columns.pair else None
    examples = Examples(texts[columns.text], pairs, None, source, numbers, notes)
    if need_labels:
        where = f"{source}: column '{columns.label}'"
        if problem_type is None and not label_separator:
            _check_finite(labels, numbers, where)
        kind = problem_type or _inferred(labels, label_separator, source, notes)
        examples.labels = _settled(labels, numbers, kind, where, notes)
    return examples


def stream_texts(
    path: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    need_pair: bool = False,
) -> Iterator[tuple[Row, Any, Any]]:
    """`(row, text, second text or None)` of each row of `path`, for prediction in constant memory.

    What is no string (None for a missing key), or has half of a surrogate pair, is handed on as it
    is, a line that is no JSON as a `BadRow`: one bad row of millions has an error of its own. Else
    raises as `read_rows` and `find_columns`; with `need_pair` where no second texts are found."""
    rows = read_rows(path, format=format, encoding=encoding, header=header, lenient=True)
    head = list(islice(rows, 1))
    if list(head[0].values) != ["text"]:  # else nothing to find out: answer as lines come in
        head += islice(rows, tables.HEAD - 1)
    given = Columns(text_column or "", pair_column)
    columns, _ = find_columns(head, given, source=shown_name(os.fspath(path)), need_label=False)
    text, pair = columns.text, columns.pair
    if need_pair and not pair:
        told = f"{shown_name(os.fspath(path))}: one text is in '{text}' (or say --text-column), "
        raise _no_column(told + "where is the other?", [*head[0].values], head, "pair", "pair")
    return ((row, row.cell(text), pair and row.cell(pair)) for row in chain(head, rows))


# --- which column holds what ---------------------------------------------------------------------


def find_columns(
    head: list[Row], given: Columns, *, source: str, need_label: bool
) -> tuple[Columns, list[str]]:
    """`given`, completed from the first rows `head` of a table, and notes on what was guessed.

    Known names come first (`LABELS`, `PAIRS`, `TEXTS` in that order, any case); then the one column
    that is left beside a known one. Without a header: CoLA's four columns; or, of two columns, the
    label is the one of numbers, else the one with at most half as many different values, else the
    one at most half as long. A second text is used where it is asked for, or where no text column
    is given and both names of a pair are there. `UsageError` names the columns that there are.
    """
    names = list(dict.fromkeys(chain.from_iterable(row.values for row in head)))
    lower = {name.strip().lower(): name for name in reversed(names)}
    for option, name in (("text", given.text), ("pair", given.pair), ("label", given.label)):
        if name and name not in names:
            raise _no_column(f"{source}: no column '{name}'.", names, head, option, name)
    found = _by_name(given, lower)
    if not found.text and names == [str(number) for number in range(1, len(names) + 1)]:
        found = _by_content(found, head)
    used = (found.text, found.pair, found.label)
    spare = [name for name in names if name.lower() not in tables.OTHERS and name not in used]
    if not found.text and len(spare) == 1 and (found.label or len(names) == 1):
        found = replace(found, text=spare.pop())
    if need_label and found.text and not found.label and len(spare) == 1:
        found = replace(found, label=spare.pop())
    if not found.text or (need_label and not found.label):
        option = "label" if found.text else "text"
        raise _no_column(f"{source}: which column is the {option}?", names, head, option, option)
    if given.text and (given.label or not need_label):
        return found, []
    told = f"{source}: text from column '{found.text}'"
    told += f", second text from '{found.pair}'" if found.pair else ""
    return found, [told + (f", label from '{found.label}'" if need_label else "")]


def _by_name(given: Columns, lower: dict[str, str]) -> Columns:
    text, pair = given.text, given.pair
    known = [lower[name] for name in tables.LABELS if name in lower]
    label = given.label or next((name for name in known if name not in (text, pair)), None)
    if text:
        return Columns(text, pair, label)
    for first, second in tables.PAIRS:
        if first in lower and second in lower and pair in (None, lower[second]):
            return Columns(lower[first], lower[second], label)
    known = [lower[name] for name in tables.TEXTS if name in lower]
    return Columns(next((name for name in known if name not in (pair, label)), ""), pair, label)


def _by_content(found: Columns, head: list[Row]) -> Columns:
    """The text among numbered columns: CoLA's layout, or text and label in either order."""
    columns = {name: [row.values[name] for row in head] for name in head[0].values}
    if len(columns) == 4 and {*columns["2"]} <= {"0", "1"} and {*"".join(columns["3"])} <= {*"*?"}:
        return Columns("4", found.pair, found.label or "2")
    if len(columns) != 2 or found.label or found.pair:
        return found
    one, two = columns.values()
    words = [any(not is_number(cell) for cell in cells) for cells in (one, two)]
    sizes = [sum(map(len, cells)) for cells in (one, two)]
    for first, second in (words, (len(set(one)), len(set(two))), sizes):
        if 2 * min(first, second) <= max(first, second) and first != second:
            return Columns("2", None, "1") if first < second else Columns("1", None, "2")
    return found


def _no_column(
    problem: str, names: list[str], head: list[Row], option: str, wanted: str
) -> UsageError:
    near = next((name for name in names if name.lower() == wanted.lower()), None)
    hint = f" Did you mean '{near}'?" if near else did_you_mean(wanted, names)
    if len(names) == 1:
        seen = names[0] + str(head[0].values.get(names[0]))
        if mark := next((mark for mark in (";", "\t", "|") if mark in seen), None):
            hint += f" The cells seem to be separated by {mark!r}; .csv means commas, .tsv tabs."
    return UsageError(f"{problem} There are: {_listed(names)}.{hint} Say --{option}-column NAME")


def _listed(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join([*(f"'{name}'" for name in names[:limit]), *["..."] * (len(names) > limit)])


# --- labels --------------------------------------------------------------------------------------


def _label(value: Any, separator: str | None) -> Any:
    """One cell as str, list of str, or None where the label is missing."""
    if isinstance(value, str):
        name = value.strip()
        if separator is not None:
            parts = [part.strip() for part in name.split(separator)]
            return list(dict.fromkeys(part for part in parts if part))
        return None if name.lower() in MISSING else name
    if isinstance(value, (list, tuple)):
        parts = [_label(part, None) for part in value]
        return list(dict.fromkeys(parts)) if all(isinstance(part, str) for part in parts) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, float)) and value == value else None  # NaN is not


def _check_finite(labels: list[Any], numbers: list[int], where: str) -> None:
    """`FilbertError` for infinite labels in a column of numbers: they would pass for names."""
    infinite = ToldRows()
    for label, number in zip(labels, numbers, strict=True):
        if not isinstance(label, str | None):  # several labels
            return
        if label is None or (is_number(label) and math.isfinite(float(label))):
            continue
        if not is_number(label) and not label.removeprefix("-").isdecimal():  # a name
            return
        infinite.add(number, f"{label[:20]} is infinite or too large")
    if infinite.count:
        raise FilbertError(
            f"{where} holds numbers, but not in {infinite}: {infinite.what}. Mend these rows or "
            f"take them out; where numbers are names, say --problem-type {SINGLE}"
        )


def _inferred(labels: list[Any], separator: str | None, source: str, notes: list[str]) -> str:
    """The kind of the problem, with a note where it was read out of numbers."""
    labels = [label for label in labels if label is not None]
    kind = MULTI if separator else infer_problem_type(labels)
    distinct = set() if kind == MULTI else set(labels)
    if len(distinct) > FEW_INTEGERS * (kind == SINGLE) and all(map(is_number, distinct)):
        read, other = ("amounts", SINGLE) if kind == REGRESSION else ("classes", REGRESSION)
        notes.append(
            f"{source}: the labels are {len(distinct):,} different numbers, read as {read}; "
            f"otherwise say --problem-type {other}"
        )
    return kind


def infer_problem_type(labels: Sequence[Any]) -> str:
    """The kind of `labels` (str, list or float), in the words of transformers' `problem_type`.

    A list among them: multi-label. Anything that is no finite number: classes. A number with a
    fraction: regression. Whole numbers are classes if there are at most 20 different ones, or if
    they are 0..n or 1..n without a gap and come twice or more on average; else regression.
    Dev data may look different from training data: infer once, on the training labels."""
    if any(isinstance(label, (list, tuple)) for label in labels):
        return MULTI
    if not all(is_number(label) and math.isfinite(float(label)) for label in set(labels)):
        return SINGLE
    numbers = {float(label) for label in set(labels)}
    if not all(number.is_integer() for number in numbers):
        return REGRESSION
    if len(numbers) <= FEW_INTEGERS:
        return SINGLE
    gapless = min(numbers) in (0, 1) and max(numbers) - min(numbers) + 1 == len(numbers)
    return SINGLE if gapless and len(labels) >= 2 * len(numbers) else REGRESSION


def _settled(
    labels: list[Any], numbers: list[int], problem_type: str, where: str, notes: list[str]
) -> list[Any]:
    """`labels` in the one form of `problem_type`; an error names the rows that stand against it."""
    if problem_type not in (kinds := (SINGLE, MULTI, REGRESSION)):
        raise UsageError(f"unknown --problem-type '{problem_type}': {_listed(kinds)}")
    missing, wrong = ToldRows(), ToldRows()
    settled: list[Any] = []
    for label, number in zip(labels, numbers, strict=True):
        if label is None:
            missing.add(number)
        elif problem_type == MULTI:
            settled.append(label if isinstance(label, list) else [label])
        elif isinstance(label, list):
            wrong.add(number, f"several labels need --problem-type {MULTI}")
        elif problem_type == SINGLE:
            settled.append(label)
        elif is_number(label) and math.isfinite(float(label)):
            settled.append(float(label))
        else:
            wrong.add(number, f"{label!r} is no number, regression needs one")
    if missing.count:
        raise FilbertError(
            f"{where} holds no label in {missing} of {len(labels):,}: empty, NaN, null, or neither "
            "a name nor a number. Label these rows, or take them out"
        )
    if wrong.count:
        raise FilbertError(f"{where} does not fit in {wrong}: {wrong.what}")
    classes = len(set(settled)) if problem_type == SINGLE else 0
    if classes > max(FEW_INTEGERS, len(settled) // 2):
        notes.append(f"{where}: {classes:,} classes in {len(settled):,} rows; is it the label?")
    return settled


def label_names(labels: Sequence[Any], problem_type: str) -> list[str]:
    """The classes of training `labels` in their fixed order; whole numbers by value, names sorted.

    Regression has the one name "score", so that the length is always the number of outputs.
    `FilbertError` where there is nothing to tell apart: one class only, one number only."""
    rows = [set(label) if problem_type == MULTI else {label} for label in labels]
    names = set().union(*rows)
    if all(row == names for row in rows):
        only = " and ".join(repr(name) for name in sorted(names)) or "nothing"
        raise FilbertError(f"every row has the same label, {only}; learning needs two or more")
    if problem_type == REGRESSION:
        return ["score"]
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def check_known_labels(examples: Examples, names: Sequence[str]) -> None:
    """`FilbertError` where `examples` have labels that are not in `names`, the trained classes."""
    known = set(names)
    unknown: dict[str, ToldRows] = defaultdict(ToldRows)
    for label, number in zip(examples.labels or [], examples.numbers, strict=True):
        for name in label if isinstance(label, list) else [label]:
            if name not in known:
                unknown[name].add(number)
    if unknown:
        told = "; ".join(f"'{name}' in {rows}" for name, rows in list(unknown.items())[:5])
        raise FilbertError(
            f"{examples.source}: {len(unknown)} label(s) that the training data lacks: {told}."
            f"{did_you_mean(next(iter(unknown)), names)} It has {len(names)}: {_listed(names)}. "
            "Label these rows anew, or take them out"
        )


# --- hold-out ------------------------------------------------------------------------------------


def split_holdout(
    examples: Examples, *, fraction: float = 0.1, seed: int = 0, problem_type: str
) -> tuple[Examples, Examples]:
    """Training and held-out examples, each in file order; a pure function of the data and `seed`.

    About `fraction` of the rows are held out, of each class in proportion, and at least one row of
    each class that has two or more, as far as `fraction` allows; a class with one row stays in
    training. Several labels: a row counts for its rarest. Regression: bins of equal size by value.
    The same text (with its second text; case and space aside) is never on both sides; where its
    copies carry different classes they stay in training. `FilbertError` if nothing can be held out.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"--holdout {fraction}: a share between 0 and 1 was expected")
    assert examples.labels is not None
    copies: dict[bytes, list[int]] = defaultdict(list)
    for place in range(len(examples)):
        copies[_fingerprint(examples, place)].append(place)
    numbers = random.Random(seed)  # its random() is promised to stay the same in later Pythons
    strata: dict[Any, list[tuple[float, list[int]]]] = defaultdict(list)
    for stratum, group in _strata(list(copies.values()), examples.labels, problem_type):
        strata[stratum].append((numbers.random(), group))
    free = {
        name: sum(len(group) for _, group in groups)
        for name, groups in strata.items()
        if name is not None and len(groups) > 1
    }
    held: set[int] = set()
    for name, share in _shares(free, max(1, round(fraction * len(examples))), fraction).items():
        groups = [group for _, group in sorted(strata[name])]
        taken: list[int] = []
        for group in groups:
            taken += group if len(taken) + len(group) <= share else []
        if share and not taken:  # each text has more copies than the share has rows
            taken = min(groups, key=len)
        held.update(taken)
    if problem_type == MULTI:
        _give_back(held, examples.labels)
    if not held:
        raise FilbertError(
            f"{examples.source}: nothing can be held out of {len(examples)} rows with "
            f"{len(copies)} different texts, as no class has two. Give development data with --dev"
        )
    train = [place for place in range(len(examples)) if place not in held]
    return examples.select(train), examples.select(sorted(held))


def _fingerprint(examples: Examples, place: int) -> bytes:
    parts = [examples.texts[place], examples.pairs[place] if examples.pairs else ""]
    plain = "\0".join(" ".join(part.casefold().split()) for part in parts)
    return hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=16).digest()


def _strata(
    groups: list[list[int]], labels: list[Any], problem_type: str
) -> Iterator[tuple[Any, list[int]]]:
    """(stratum, rows of one text) for each text; stratum None: stays in training."""
    if problem_type == REGRESSION:
        means = [sum(labels[place] for place in group) / len(group) for group in groups]
        bins = min(REGRESSION_BINS, max(1, len(groups) // 2))
        for rank, index in enumerate(sorted(range(len(groups)), key=means.__getitem__)):
            yield rank * bins // len(groups), groups[index]
        return
    count = Counter(chain.from_iterable(labels) if problem_type == MULTI else ())
    for group in groups:
        label = labels[group[0]]
        same = all(labels[place] == label for place in group)
        if problem_type == MULTI:
            label = min(label, key=lambda name: (count[name], name), default="")
        yield label if same else None, group


def _shares(sizes: dict[Any, int], total: int, fraction: float) -> dict[Any, int]:
    """How many rows to take of each stratum: one each, the largest first, then in proportion."""
    order = sorted(sizes, key=lambda name: -sizes[name])
    shares = {name: int(place < total) for place, name in enumerate(order)}
    heap = [(1 - fraction * sizes[name], place) for place, name in enumerate(order)]
    heapq.heapify(heap)
    left = total - sum(shares.values())
    while left > 0 and heap:
        surplus, place = heapq.heappop(heap)  # the stratum that lies furthest below its share
        if shares[order[place]] < sizes[order[place]] - 1:
            shares[order[place]] += 1
            left -= 1
            heapq.heappush(heap, (surplus + 1, place))
    return shares


def _give_back(held: set[int], labels: list[list[str]]) -> None:
    """Return rows to training, the first of each label that training would otherwise lack."""
    there = {name for place, row in enumerate(labels) if place not in held for name in row}
    for place in sorted(held):
        if not there.issuperset(labels[place]):
            there.update(labels[place])
            held.discard(place)
