"""Answers in the layouts that other programs read, made out of the finished JSONL of a file.

    X.json     of questions: {id: answer}, what the scorers of SQuAD and CMRC 2018 read
    X.txt      of models that write, and of summaries: a text a line
    X.conll    of words that were given: a word, a tab, its tag; an empty line after each sentence

A row that has an error in JSONL is left out of .json, and is an empty line in the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filbert.atomic import atomic_path
from filbert.data.questions import has_id
from filbert.data.tables import BadRow, Row
from filbert.data.tag_schemes import bio_of
from filbert.errors import FilbertError, UsageError

LAYOUTS = {"answer": ".json", "translate": ".txt", "summarize": ".txt", "tag": ".conll"}


def layout_of(task: str, target: Path) -> str | None:
    """The ending of `target` where it asks for one of these layouts, which the task has."""
    suffix = target.suffix.lower()
    if suffix == ".conll" and task != "tag":
        raise UsageError(f"--out {target}: answers of the task {task} are no tags; name a .jsonl")
    return suffix if LAYOUTS.get(task) == suffix else None


def check_first(layout: str, row: Row, given: Any, target: Path) -> None:
    """Raise `UsageError` where the first row lacks what the layout is made of."""
    if layout == ".json" and not has_id(row):
        raise UsageError(
            f"--out {target} becomes an object of ids and answers, but the questions have no id; "
            "add a column id, or name a .jsonl file"
        )
    if layout == ".conll" and not isinstance(given, dict | BadRow):
        raise UsageError(
            f"--out {target} becomes words with their tags, but the rows are texts; give words "
            '(CoNLL, or {"tokens": [...]}), or name a .jsonl file'
        )


def with_ids(rows: Iterable[tuple[Row, Any, Any]]) -> Iterator[tuple[Row, Any, Any]]:
    """Rows of questions for .json: one without an id has a `BadRow` in place of its text."""
    for row, text, pair in rows:
        if not has_id(row) and not isinstance(text, BadRow):
            text = BadRow("the question has no id, and .json holds answers by ids; add one")
        yield row, text, pair


def write_layout(layout: str, answers: Path, target: Path) -> None:
    """Write `target` in one step out of `answers`, JSONL as `predict_file` makes it.

    Of .conll each answer also holds its `tokens`. Raises `FilbertError` for an id that is missing
    or stands twice, and where the disk refuses.
    """
    make = {".json": _predictions, ".txt": _texts, ".conll": _tagged}[layout]
    with (
        atomic_path(target) as temp,
        open(answers, encoding="utf-8") as lines,
        open(temp, "w", encoding="utf-8", newline="\n") as file,
    ):
        file.writelines(make(map(json.loads, lines), answers))


def rows_in(path: Path, layout: str | None) -> int:
    """How many answers a finished file holds: lines, ids, or sentences."""
    with open(path, "rb") as file:
        if layout == ".json":
            return len(json.load(file))
        return sum(layout != ".conll" or line == b"\n" for line in file)


def _predictions(answers: Iterable[dict[str, Any]], source: Path) -> Iterator[str]:
    texts: dict[str, str] = {}
    for answer in answers:
        if "error" in answer:
            continue
        name = None if answer.get("id") is None else str(answer["id"])
        if name is None or name in texts:
            what = "has no id" if name is None else f"has the id {name!r} of another one"
            raise FilbertError(
                f"row {answer['row']:,} {what}; the scorers need ids that differ. Mend the input, "
                f"or take the answers out of {source}, which is JSONL"
            )
        texts[name] = answer["answer"]
    yield json.dumps(texts, ensure_ascii=False, indent=0) + "\n"


def _texts(answers: Iterable[dict[str, Any]], source: Path) -> Iterator[str]:
    for answer in answers:
        key = "text" if "text" in answer else "summary"
        yield ("" if "error" in answer else " ".join(answer[key].split())) + "\n"


def _tagged(answers: Iterable[dict[str, Any]], source: Path) -> Iterator[str]:
    for answer in answers:
        words = answer.get("tokens", [])  # none of a row with an error
        if "words" in answer:  # plain labels
            tags = [item["label"] for item in answer["words"]]
        else:
            spans = [(*item["words"], item["label"]) for item in answer.get("spans", [])]
            tags = bio_of(spans, len(words))
        for word, tag in zip(words, tags, strict=True):
            yield f"{' '.join(word.splitlines()).replace(chr(9), ' ')}\t{tag}\n"
        yield "\n"
