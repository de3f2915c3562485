"""Questions over texts with their answers, in the layouts of SQuAD.

SQuAD 1.1 and 2.0 (one JSON of articles, paragraphs and questions; CMRC 2018 and DRCD are the same),
and the flat rows that data sets of the hub have (`context`, `question`, `answers`; JSONL, Parquet,
hub:owner/name). An answer is a text and the number of the character where it begins; the two must
agree. Errors name the article, the paragraph and the question.

    questions = read_questions("dev-v1.1.json")
    questions.contexts[questions.owner[3]], questions.texts[3], questions.answers[3]

Rajpurkar et al. 2016 (SQuAD), 2018 (SQuAD 2.0); Cui et al. 2019 (CMRC 2018); Shao et al. 2018
(DRCD).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from filbert.data.tables import BadRow, Row, kind_of, read_rows, shown_name
from filbert.errors import FilbertError, UsageError

Ids = NDArray[np.int64]
Mismatch = Literal["skip", "refuse"]

LAYOUT = (
    'expected {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., '
    '"question": ..., "answers": [{"text": ..., "answer_start": ...}]}]}]}]}'
)


class Gold(NamedTuple):
    """A right answer: its text, and where it begins in the context (None: not where it says)."""

    text: str
    start: int | None


@dataclass(frozen=True)
class Questions:
    """Questions in file order. `owner` (questions,) int64: the number of each one's context.

    `answers`: the right answers of each, none for a question that its context does not answer;
    `places`: where each stands in the file, for messages; `notes`: what reading gave to say.
    """

    contexts: list[str]
    owner: Ids
    texts: list[str]
    ids: list[str]
    answers: list[list[Gold]]
    places: list[str]
    source: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def some_unanswerable(self) -> bool:
        """Whether there is a question without an answer, as in SQuAD 2.0."""
        return not all(self.answers)

    def name(self, index: int) -> str:
        """The name of a question in messages, such as `dev.json, article 3, ... (id 5a1)`."""
        return f"{self.source}, {self.places[index]} (id {self.ids[index]})"

    def select(self, indices: Iterable[int]) -> Questions:
        """The questions at `indices`, in that order, with the contexts that they need."""
        keep = [int(index) for index in indices]
        used, owner = np.unique(self.owner[keep], return_inverse=True)
        return Questions(
            [self.contexts[number] for number in used],
            owner.astype(np.int64).reshape(-1),
            [self.texts[i] for i in keep], [self.ids[i] for i in keep],
            [self.answers[i] for i in keep], [self.places[i] for i in keep],
            self.source, list(self.notes),
        )  # fmt: skip

    def digest(self) -> str:
        """A sha256 of all contexts, questions and answers, in order."""
        content = repr((self.contexts, self.owner.tolist(), self.texts, self.ids, self.answers))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def read_questions(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    mismatch: Mismatch = "skip",
) -> Questions:
    """The questions of a file: .json (also .gz, .xz, .zst), .jsonl, .parquet, or hub:owner/name.

    An answer whose text does not stand at its place is told and counted in `notes` and keeps its
    text without the place (`skip`), or is an error (`refuse`). A question must say what answers it,
    or that nothing does. Raises `FilbertError` naming article, paragraph and question for another
    layout, an empty context, an empty question or an id that comes twice; `UsageError` for a file
    that is not there.
    """
    name = os.fspath(path)
    shown = shown_name(name)
    reader = _Reader(shown, mismatch)
    if name.startswith("hub:") or kind_of(name) in ("jsonl", "parquet"):
        for row in read_rows(name, encoding=encoding):
            place = f"row {row.number}"
            reader.question(row.values, row.values.get("context"), place)
    else:
        for title, context, questions, place in _paragraphs(name, shown, encoding):
            for number, item in enumerate(questions, 1):
                reader.question(item, context, f"{place}, question {number}", title=title)
    return reader.result()


def stream_unanswered(
    path: str | os.PathLike[str], *, encoding: str = "utf-8"
) -> Iterator[tuple[Row, Any, Any]]:
    """(row with its `id`, question, context) of each question of a SQuAD file, for prediction: what
    answers them is not looked at. A question that cannot be read (empty, without a context, with
    the id of another one) has a `BadRow` in its place, which names article, paragraph and question.

    Raises `FilbertError` for another layout, `UsageError` for a file that is not there.
    """
    name = os.fspath(path)
    shown = shown_name(name)
    reader = _Reader(shown, "skip")
    row = 0
    for title, context, questions, place in list(_paragraphs(name, shown, encoding)):
        for number, item in enumerate(questions, 1):
            at = f"{place}, question {number}"
            row += 1
            try:
                key, text, _ = reader.checked(item, context, at, title=title)
            except FilbertError as error:
                given = item.get("id") if isinstance(item, dict) else None
                key = at if given is None else str(given)
                yield Row(row, {"id": key}), BadRow(str(error).removeprefix(f"{shown}, ")), ""
            else:
                yield Row(row, {"id": key}), text, context
    if not row:
        raise FilbertError(f"{shown} holds no questions; {LAYOUT}")


def has_id(row: Row) -> bool:
    """Whether a question has an id; null, and an empty cell of a table, are none."""
    return row.values.get("id") not in (None, "")


def ids_once(rows: Iterable[tuple[Row, Any, Any]]) -> Iterator[tuple[Row, Any, Any]]:
    """The same (row, question, context), but a question with the id of an earlier one has a
    `BadRow` in its place. The ids are held in memory."""
    seen: dict[str, int] = {}
    for row, text, context in rows:
        if has_id(row) and not isinstance(text, BadRow):
            name = str(row.values["id"])
            if (first := seen.setdefault(name, row.number)) != row.number:
                text = BadRow(
                    f"the id {name!r} stands at row {first} too; scores need ids that differ. "
                    "Rename one of them"
                )
        yield row, text, context


def _paragraphs(name: str, shown: str, encoding: str) -> Iterator[tuple[str, Any, list[Any], str]]:
    """(title, context, questions, place in words) of each paragraph of a SQuAD file; `FilbertError`
    for another layout."""
    lines = [row.values["text"] for row in read_rows(name, format="text", encoding=encoding)]
    try:
        content = json.loads("\n".join(lines))
    except (ValueError, RecursionError) as error:
        raise FilbertError(f"{shown} is no JSON ({error}); {LAYOUT}") from None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        kind = "a list" if isinstance(content, list) else "no data of articles"
        if isinstance(content, dict):
            kind = f"an object with the keys {', '.join(map(str, list(content)[:8])) or '(none)'}"
        raise FilbertError(f"{shown} holds {kind}; {LAYOUT}")
    for number, article in enumerate(articles, 1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise FilbertError(f'{shown}, article {number}: no list "paragraphs"; {LAYOUT}')
        title = str(article.get("title", ""))
        for place, paragraph in enumerate(paragraphs, 1):
            where = f"article {number}, paragraph {place}"
            if not isinstance(paragraph, dict):
                raise FilbertError(f"{shown}, {where}: not an object; {LAYOUT}")
            questions = paragraph.get("qas")
            if not isinstance(questions, list):
                raise FilbertError(f'{shown}, {where}: no list "qas"; {LAYOUT}')
            yield title, paragraph.get("context"), questions, where


class _Reader:
    """Collects questions, holding each to what it must be."""

    def __init__(self, shown: str, mismatch: Mismatch) -> None:
        self.shown, self.mismatch = shown, mismatch
        self.contexts: dict[str, int] = {}
        self.seen: dict[str, str] = {}  # id -> place
        self.rows: list[tuple[int, str, str, list[Gold], str]] = []
        self.wrong: list[str] = []
        self.empty: list[str] = []
        self.all_answers = 0

    def question(self, item: Any, context: Any, place: str, *, title: str = "") -> None:
        name, text, where = self.checked(item, context, place, title=title)
        answers = self.answers(item, context, where, name)
        number = self.contexts.setdefault(context, len(self.contexts))
        self.rows.append((number, text, name, answers, place))

    def checked(
        self, item: Any, context: Any, place: str, *, title: str = ""
    ) -> tuple[str, str, str]:
        """(id, question, place for messages) of a question that can be asked; `FilbertError`."""
        where = f"{self.shown}, {place}" + (f" ({title[:40]})" if title else "")
        if not isinstance(item, dict):
            raise FilbertError(f"{where}: not an object; {LAYOUT}")
        if not isinstance(context, str):
            raise FilbertError(f'{where}: no text "context"; {LAYOUT}')
        if not context.strip():
            raise FilbertError(f"{where}: the context is empty; give the text that is asked")
        text = item.get("question")
        if not isinstance(text, str) or not text.strip():
            raise FilbertError(f'{where}: "question" is {text!r:.40}; a text was expected')
        name = str(place if item.get("id") is None else item["id"])
        if name in self.seen:
            raise FilbertError(
                f"{where}: the id {name!r} stands at {self.seen[name]} too; scores need ids that "
                "differ. Rename one of them"
            )
        self.seen[name] = place
        for value, what in ((context, "context"), (text, "question")):
            _check_unicode(value, what, where)
        return name, text, where

    def answers(self, item: dict[str, Any], context: str, where: str, name: str) -> list[Gold]:
        given = item.get("answers")
        if isinstance(given, dict):  # the hub's columns: {"text": [...], "answer_start": [...]}
            texts, starts = list(given.get("text", ())), list(given.get("answer_start", ()))
            if len(texts) != len(starts):
                raise FilbertError(f"{where}: {len(texts)} answer texts but {len(starts)} places")
            given = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        if item.get("is_impossible") is True:
            return []
        if not isinstance(given, list):
            raise FilbertError(
                f'{where} (id {name}): no list "answers"; {LAYOUT}, or [] where the context does '
                "not answer"
            )
        found = []
        for answer in given:
            text = answer.get("text") if isinstance(answer, dict) else None
            start = answer.get("answer_start") if isinstance(answer, dict) else None
            if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
                raise FilbertError(
                    f"{where} (id {name}): the answer {answer!r:.80} has no text or no whole "
                    f"number answer_start; {LAYOUT}"
                )
            self.all_answers += 1
            if not text.strip():
                told = f"{where} (id {name}): an answer has the text {text!r:.20}"
                if self.mismatch == "refuse":
                    raise FilbertError(
                        f"{told}. Write the answer, or [] for a question without one; or leave "
                        "such answers out with --mismatch skip"
                    )
                self.empty.append(told)
                continue
            if start >= 0 and context.startswith(text, start):
                found.append(Gold(text, start))
                continue
            there = context[max(start, 0) : max(start, 0) + len(text)]
            told = (
                f"{where} (id {name}): the answer {text!r:.60} is not at {start}, but {there!r:.60}"
            )
            if self.mismatch == "refuse":
                raise FilbertError(
                    f"{told}. Mend answer_start (it counts characters from 0), or leave such "
                    "answers out with --mismatch skip"
                )
            self.wrong.append(told)
            found.append(Gold(text, None))
        return found

    def result(self) -> Questions:
        if not self.rows:
            raise FilbertError(f"{self.shown} holds no questions; {LAYOUT}")
        notes = []
        if self.wrong:
            notes.append(
                f"{len(self.wrong):,} of {self.all_answers:,} answers do not stand where "
                f"answer_start says; nothing is trained on them. First: {self.wrong[0]}"
            )
        if self.empty:
            notes.append(
                f"{len(self.empty):,} of {self.all_answers:,} answers are empty; a question with "
                f"no other counts as one that its text does not answer. First: {self.empty[0]}"
            )
        owner, texts, ids, answers, places = zip(*self.rows, strict=True)
        return Questions(
            list(self.contexts), np.asarray(owner, np.int64), list(texts), list(ids),
            list(answers), list(places), self.shown, notes,
        )  # fmt: skip


def _check_unicode(text: str, what: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FilbertError(
            f"{where}: character {error.start} of the {what} is half of a surrogate pair, which "
            "is no text; write the character itself, or both halves"
        ) from None


def split_by_context(
    questions: Questions, *, fraction: float, seed: int = 0
) -> tuple[Questions, Questions]:
    """Training and held-out questions, in file order: about `fraction` of the contexts are held
    out with all their questions, so no text is on both sides. `FilbertError` for one context."""
    if not 0 < fraction < 1:
        raise UsageError(f"--holdout {fraction}: a share between 0 and 1 was expected")
    count = len(questions.contexts)
    if count < 2:
        raise FilbertError(
            f"{questions.source}: nothing can be held out of one context; give --dev"
        )
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held = np.zeros(count, dtype=bool)
    held[order[: min(count - 1, max(1, round(fraction * count)))]] = True
    chosen = held[questions.owner]
    train: Sequence[int] = np.flatnonzero(~chosen).tolist()
    return questions.select(train), questions.select(np.flatnonzero(chosen).tolist())
