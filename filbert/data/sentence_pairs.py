"""What sentence vectors are learned from: pairs, triples, pairs with a score, or sentences alone.

    data = read_sentences("train.tsv")            # STS-B as GLUE gives it: pairs with scores
    data = read_sentences("corpus.txt", kind="sentences")       # one a line

| kind      | columns                                | known names                              |
|-----------|----------------------------------------|------------------------------------------|
| scored    | first, second, score                   | sentence1, sentence2, score ...          |
| pairs     | first, second                          | anchor, positive; query, answer ...      |
| triples   | first, second, what is not meant       | ..., negative; sent0, sent1, hard_neg    |
| sentences | one text                               | text, sentence ...; or a line of a .txt  |

Every different text is kept once: rows hold numbers of texts, so that a text that occurs in many
rows is encoded once, and equal texts are known to be equal. No torch.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.data import tables
from filbert.data.packing import Ids
from filbert.data.tables import Row, read_rows, shown_name
from filbert.data.told_rows import ToldRows
from filbert.errors import FilbertError, UsageError, did_you_mean

KINDS = ("scored", "pairs", "triples", "sentences")
FIRST = ("anchor", "sent0", "query", "question", "sentence1", "text1", "text_a", "premise")
SECOND = (
    *("positive", "pos", "sent1", "answer", "passage", "document", "sentence2", "text2", "text_b"),
    *("hypothesis", "response"),
)
NEGATIVE = ("negative", "neg", "hard_neg", "hard_negative")
LABELS = ("label", "labels")  # scores if they are numbers; words are common there too
SCORE = ("score", "similarity", "similarity_score", *LABELS)


@dataclass
class Sentences:
    """Rows of texts. texts: every different one; members (rows, 1 to 3) int64: places in it, of
    the columns above in their order; scores (rows,) float64 where they are scored."""

    texts: list[str]
    members: Ids
    scores: NDArray[np.float64] | None
    source: str
    numbers: list[int]  # row numbers in the source, from 1
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.scores is not None:
            return "scored"
        return {1: "sentences", 2: "pairs", 3: "triples"}[self.members.shape[1]]

    def id(self, index: int) -> str:
        """What people call row `index`: source and row number, as in `train.tsv:17`."""
        return f"{self.source}:{self.numbers[index]}"

    def select(self, rows: Iterable[int]) -> Sentences:
        """The rows at these places, in that order, with the texts that they hold."""
        keep = np.fromiter(rows, dtype=np.int64)
        used, members = np.unique(self.members[keep], return_inverse=True)
        return Sentences(
            [self.texts[place] for place in used],
            members.reshape(len(keep), self.members.shape[1]),
            None if self.scores is None else self.scores[keep],
            self.source,
            [self.numbers[place] for place in keep],
            list(self.notes),
        )

    def digest(self) -> str:
        """A sha256 of all texts, rows and scores, in order."""
        seen = hashlib.sha256()
        for text in self.texts:
            raw = text.encode("utf-8", "surrogatepass")
            seen.update(len(raw).to_bytes(8, "little") + raw)
        seen.update(np.ascontiguousarray(self.members).tobytes())
        if self.scores is not None:
            seen.update(self.scores.tobytes())
        return seen.hexdigest()


def read_sentences(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    negative_column: str | None = None,
    score_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
) -> Sentences:
    """All rows of `path` (see `filbert.data.tables.read_rows`).

    `kind` None: what the columns make of it, a score before a third text. Columns that are not
    named are found by their names (the table above), else by their order in a table of two
    columns, or of three; where text and pair are named, a third column is not taken by its order.
    Lines and rows without any text are left out and told, except in a scored file, whose every row
    counts. Raises `UsageError` for columns that are not there, `FilbertError` with row numbers for
    a text that is none and a score that is no number.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"unknown kind of rows {kind!r}; there are {', '.join(KINDS)}")
    source = shown_name(os.fspath(path))
    rows = read_rows(path, format=format, encoding=encoding, header=header)
    head = list(islice(rows, tables.HEAD))
    given = {
        "text": text_column, "pair": pair_column, "negative": negative_column,
        "score": score_column,
    }  # fmt: skip
    columns, notes = _columns(head, given, kind, source)
    score = columns.pop("score", None)
    number_of: dict[str, int] = {}
    members: list[list[int]] = []
    scores: list[float] = []
    numbers: list[int] = []
    no_text, empty, no_score = ToldRows(), ToldRows(), ToldRows()
    for row in chain(head, rows):
        cells = [row.values.get(column) for column in columns.values()]
        for column, cell in zip(columns.values(), cells, strict=True):
            if not isinstance(cell, str):
                no_text.add(row.number, f"'{column}' is {type(cell).__name__}")
        if score is None and any(isinstance(cell, str) and not cell.strip() for cell in cells):
            empty.add(row.number)
            continue
        if score is not None:
            value = _number(row.values.get(score))
            if value is None:
                no_score.add(row.number, f"'{score}' is {row.values.get(score)!r:.40}")
            scores.append(value or 0.0)
        members.append([number_of.setdefault(str(cell), len(number_of)) for cell in cells])
        numbers.append(row.number)
    if no_text.count:
        raise FilbertError(
            f"{source}: no text in {no_text}: {no_text.what}; write a string or drop these rows"
        )
    if no_score.count:
        raise FilbertError(f"{source}: no score in {no_score}: {no_score.what}; write a number")
    if empty.count:
        notes.append(f"{source}: left out, as a text is empty: {empty}")
    if not members:
        raise FilbertError(f"{source}: no row has any text")
    return Sentences(
        list(number_of), np.asarray(members, np.int64),
        None if score is None else np.asarray(scores, np.float64), source, numbers, notes,
    )  # fmt: skip


def split_off(data: Sentences, *, fraction: float, seed: int = 0) -> tuple[Sentences, Sentences]:
    """Training and held-out rows, each in file order; a pure function of the data and `seed`.

    Rows that share a text stay on one side, so that nothing held out was seen. Raises
    `FilbertError` where all rows hang together or there is but one.
    """
    if len(data) == 1:
        raise FilbertError(
            f"{data.source}: there is one row, and none to hold out. Give more, or --dev"
        )
    group = _groups(data.members, len(data.texts))
    order = list(dict.fromkeys(group.tolist()))
    random.Random(seed).shuffle(order)
    wanted = max(1, round(fraction * len(data)))
    sizes = np.bincount(group, minlength=len(data.texts))
    held: set[int] = set()
    taken = 0
    for name in order:
        if taken + sizes[name] <= wanted:
            held.add(name)
            taken += int(sizes[name])
    if not held or taken == len(data):
        raise FilbertError(
            f"{data.source}: nothing can be held out of {len(data)} rows, as too many share a "
            "text. Give development data with --dev"
        )
    out = np.isin(group, list(held))
    return data.select(np.flatnonzero(~out)), data.select(np.flatnonzero(out))


def _groups(members: Ids, texts: int) -> Ids:
    """(rows,) a number for each row, equal where rows are linked through texts that they share."""
    parent = list(range(texts))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for first, *others in members.tolist():
        for other in others:
            parent[root(other)] = root(first)
    return np.asarray([root(first) for first in members[:, 0].tolist()], np.int64)


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _columns(
    head: list[Row], given: dict[str, str | None], kind: str | None, source: str
) -> tuple[dict[str, str], list[str]]:
    """The columns of text, pair, negative and score, as far as `kind` has them, and a note."""
    names = list(dict.fromkeys(chain.from_iterable(row.values for row in head)))
    for option, name in given.items():
        if name is not None and name not in names:
            raise UsageError(
                f"{source}: no column {name!r} (--{option}-column). There are: "
                f"{', '.join(names[:20])}.{did_you_mean(name, names)}"
            )
    lower = {name.strip().lower(): name for name in reversed(names)}
    alone = kind == "sentences" or (kind is None and len(names) == 1)
    found = {option: name for option, name in given.items() if name is not None}
    if alone:
        single = (*tables.TEXTS, *FIRST)
        text = found.get("text") or next((lower[n] for n in single if n in lower), None)
        text = names[0] if text is None and len(names) == 1 else text
        if text is None:
            raise _missing("text", names, source)
        return {"text": text}, _note(source, {"text": text}, given)
    for option, known in (("text", FIRST), ("pair", SECOND)):
        taken = set(found.values())
        free = (lower[n] for n in known if n in lower and lower[n] not in taken)
        if option not in found and (name := next(free, None)) is not None:
            found[option] = name
    if "text" not in found and "pair" not in found:
        pairs = (p for p in tables.PAIRS if p[0] in lower and p[1] in lower)
        if (pair := next(pairs, None)) is not None:
            found["text"], found["pair"] = lower[pair[0]], lower[pair[1]]
        elif len(names) in (2, 3) and not found:
            found["text"], found["pair"] = names[:2]
    for option in ("text", "pair"):
        if option not in found:
            raise _missing(option, names, source)
    rest = [name for name in names if name not in found.values()]
    last = rest[0] if len(names) == 3 and len(rest) == 1 else None
    numbers = last is not None and _mostly_numbers(head, last)
    two = given["text"] is not None and given["pair"] is not None  # who names two means two
    if "score" not in found and kind in (None, "scored"):
        score = next((lower[n] for n in SCORE if n in lower and lower[n] in rest), None)
        score = last if score is None and numbers and (kind == "scored" or not two) else score
        # without being asked for, only a column of numbers is one of scores
        if score is not None and (kind == "scored" or _mostly_numbers(head, score)):
            found["score"] = score
        elif score is not None and score.strip().lower() not in LABELS:
            raise FilbertError(
                f"{source}: column '{score}' holds few numbers, as {_a_cell(head, score)}; write "
                "numbers (5.0, not 5,0), or take the column out to learn from the pairs alone"
            )
    if kind == "scored" and "score" not in found:
        raise _missing("score", names, source)
    if kind in ("pairs", "triples") and given["score"] is None:
        found.pop("score", None)
    if "score" not in found and "negative" not in found and kind in (None, "triples"):
        negative = next((lower[n] for n in NEGATIVE if n in lower and lower[n] in rest), None)
        if last is not None and not numbers and last.lower() not in SCORE and not two:
            negative = negative or last
        if negative is not None:
            found["negative"] = negative
    if kind == "triples" and "negative" not in found:
        raise _missing("negative", names, source)
    if "score" in found and "negative" in found:
        raise UsageError(f"{source}: rows have either a score or a third text that is not meant")
    wanted = {option: found[option] for option in given if option in found}
    return wanted, _note(source, wanted, given)


def _mostly_numbers(head: list[Row], name: str) -> bool:
    """More numbers than other things: what is none is then a mistake, and told as one."""
    return 2 * sum(_number(row.values.get(name)) is not None for row in head) > len(head)


def _a_cell(head: list[Row], name: str) -> str:
    """The first cell of a column that is no number, with its row."""
    row = next(row for row in head if _number(row.values.get(name)) is None)
    return f"{row.values.get(name)!r:.40} in row {row.number}"


def _missing(option: str, names: list[str], source: str) -> UsageError:
    return UsageError(
        f"{source}: which column is the {option}? There are: {', '.join(names[:20])}. "
        f"Say --{option}-column NAME"
    )


def _note(source: str, found: dict[str, str], given: dict[str, str | None]) -> list[str]:
    guessed = [f"{option} from '{name}'" for option, name in found.items() if not given[option]]
    return [f"{source}: {', '.join(guessed)}"] if guessed and found != {"text": "text"} else []
