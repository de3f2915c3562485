"""Answer questions over texts of any length with a trained bundle.

    from filbert import load
    answer = load("runs/qa")
    answer("Who wrote it?", context)     # {"answer": "...", "start": 17, "end": 28, "score": 0.9}
    answer(["Who?", "When?"], context)   # a list; the context is read once
    answer([("Who?", text), ("When?", other)], n_best=5)
    answer(question="Who?", context=text)

    filbert predict runs/qa --context file.txt "Who wrote it?"

context[start:end] is the answer, to the character. Of a model that was trained with questions
without an answer, an empty answer (start and end None) says that nothing answers; `score` is then
the chance of that. The encoding and the decoding are those of training (`filbert/tasks/answer.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.bundle import Bundle
from filbert.data.examples import stream_texts
from filbert.data.questions import Questions, ids_once, read_questions, stream_unanswered
from filbert.data.tables import BadRow, Row
from filbert.errors import FilbertError, UsageError
from filbert.infer.overlap import expect
from filbert.infer.predict import (
    WINDOW,
    check_count,
    check_rows,
    finite,
    shown,
    stream,
    text_problem,
)
from filbert.model.device import for_inference
from filbert.model.span_head import BertForQuestionAnswering
from filbert.tasks import answer as task
from filbert.tasks.answer_scores import rule_for
from filbert.tasks.answer_spans import AnswerSettings, Spans
from filbert.text.passages import Passages

Answer = dict[str, Any]
MOST_CONTEXT = 100_000_000  # characters of a file that is asked at once
SQUAD = re.compile(r"\.json(\.gz|\.xz|\.zst)?$", re.I)


class Answerer:
    """A bundle of question answering, ready to answer. Calls from several threads are safe.

    Attributes: `manifest`, `settings` (no_answer, threshold, max_answer_tokens), `model`,
    `tokenizer`, `folder`, `device`, `dtype`, and `reason`, why this precision was chosen.
    """

    OPTIONS = frozenset({"n_best", "threshold"})

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        reason: str = "asked for",
        batch_tokens: int = 4096,
    ) -> None:
        assert isinstance(bundle.model, BertForQuestionAnswering)
        self.folder, self.manifest = bundle.folder, bundle.manifest
        self.tokenizer = bundle.tokenizer
        self.settings = task.settings_of(bundle.manifest)
        self.model = for_inference(bundle.model, device, dtype, head="qa_outputs")
        self.device, self.dtype, self.reason = device, dtype, reason
        self.batch_tokens = batch_tokens
        # a window holds half of the room of the question, and moves by what the stride leaves
        self.longest_question = (self.manifest.max_length - 3) // 2

    def __call__(
        self,
        questions: Any = None,
        contexts: Any = None,
        *,
        question: Any = None,
        context: Any = None,
        n_best: int = 1,
        threshold: float | None = None,
    ) -> Answer | list[Answer]:
        """Answer a question over a context, several over one, or a list of (question, context).
        `question` and `context` are other names of the first two.

        One question gives one answer, a list gives a list in the same order. `n_best` adds
        `candidates`, that many, the likeliest first; `threshold` stands in for the fitted one of
        a model that may stay silent (higher: it answers more often). Raises `FilbertError` naming
        the position of a pair that cannot be read: no text, empty, or a question that is longer
        than half a window.
        """
        for name, one, other in (("question", question, questions), ("context", context, contexts)):
            if one is not None and other is not None:
                raise FilbertError(f"{name} is given twice, by its name and by its place")
        rows, single = pairs_of(
            questions if question is None else question, contexts if context is None else context
        )
        check_rows(self, rows)
        answers = self.answer_rows(rows, n_best=n_best, threshold=threshold)
        return answers[0] if single else answers

    def stream(self, rows: Any, *, window: int = WINDOW, **options: Any) -> Iterator[Answer]:
        """Answer an endless iterable of (question, context), in order and in constant memory."""
        return stream(self, rows, window=window, **options)

    def problem(self, row: Any) -> str | None:
        """What is wrong with a row, in words; None for a good one."""
        if isinstance(row, Mapping):
            if not {"question", "context"} <= row.keys():
                return f"expected the keys question and context, got {', '.join(map(str, row))}"
            row = (row["question"], row["context"])
        if not (isinstance(row, tuple | list) and len(row) == 2):
            return f"expected a pair (question, context), got {shown(row)}"
        if isinstance(row[0], BadRow):
            return str(row[0])
        for text, what in zip(row, ("question", "context"), strict=True):
            if told := text_problem(text):
                return f"{what}: {told}"
            if not text.strip():
                return f"the {what} is empty"
        if len(row[0]) > self.longest_question:  # a token has a character or more
            count = len(self.tokenizer.encode(row[0], add_special_tokens=False, verbose=False))
            if count > self.longest_question:
                return (
                    f"the question has {count} tokens; beside a context a window holds "
                    f"{self.longest_question}. Ask in fewer words, and put what explains them into "
                    "the context"
                )
        # a model that always answers needs a token to answer with
        marks_alone = not self.settings.no_answer and not any(map(str.isalnum, row[1]))
        if marks_alone and not self.tokenizer.tokenize(row[1]):
            return f"the context {row[1]!r:.40} holds nothing that can be read"
        return None

    def rows(
        self,
        path: str | PathLike[str],
        *,
        text_column: str | None = None,
        pair_column: str | None = None,
        format: str | None = None,
        encoding: str = "utf-8",
        header: bool | None = None,
    ) -> Iterator[tuple[Row, Any, Any]]:
        """(row, question, context) of each question of a file: SQuAD's layout (.json), read whole,
        or a table with two such columns, of which the ids alone are held in memory. A row may have
        an `id`; one with that of an earlier row has a `BadRow` in place of its question.

        Raises what `stream_unanswered` and `stream_texts` do.
        """
        if format is not None or not SQUAD.search(os.fspath(path)):
            rows = stream_texts(
                path, text_column=text_column, pair_column=pair_column, format=format,
                encoding=encoding, header=header, need_pair=True,
            )  # fmt: skip
            yield from ids_once(rows)
            return
        if text_column is not None or pair_column is not None:
            raise UsageError(
                f"{path}: --text-column and --pair-column are for tables; a .json is read in the "
                "layout of SQuAD. Leave them out, or add --format jsonl for an object a line"
            )
        yield from stream_unanswered(path, encoding=encoding)

    def answer_rows(
        self, rows: Sequence[Any], *, n_best: int = 1, threshold: float | None = None
    ) -> list[Answer]:
        """Answers of rows that `problem` found good, in order."""
        check_count("n_best", n_best, most=1000)
        if not rows:
            return []
        pairs = [
            (row["question"], row["context"]) if isinstance(row, Mapping) else row for row in rows
        ]
        questions = as_questions(pairs)
        spans = self.spans(questions, n_best=max(n_best, task.N_BEST))
        return task.decode(
            spans, [context for _, context in pairs], self.settings_with(threshold),
            temperature=self.manifest.temperature, n_best=n_best,
        )  # fmt: skip

    def settings_with(self, threshold: float | None) -> AnswerSettings:
        """The settings of the bundle, with another threshold where one is given."""
        if threshold is None:
            return self.settings
        if not self.settings.no_answer:
            raise UsageError(
                f"{self.folder} was trained without unanswerable questions and always answers; "
                "--threshold is for models that were trained with some, as in SQuAD 2.0"
            )
        if not np.isfinite(threshold):
            raise UsageError(f"threshold is {threshold}; expected a finite number")
        return self.settings.model_copy(update={"threshold": float(threshold)})

    def spans(self, questions: Questions, *, n_best: int = task.N_BEST) -> Spans:
        """The best spans of each question. Raises `FilbertError` where the model's answers are no
        finite numbers."""
        expect(len(questions), self.model)
        return self.spans_in(self.encode(questions), n_best=n_best)

    def encode(self, questions: Questions) -> Passages:
        """The questions in windows, as training encodes them."""
        limit = (self.manifest.max_length - 4) // 2
        return task.encode(
            self.tokenizer, questions, max_length=self.manifest.max_length,
            stride=max(0, min(self.manifest.stride, limit)),
        )  # fmt: skip

    def spans_in(self, passages: Passages, *, n_best: int = task.N_BEST) -> Spans:
        """The best spans of each question in these windows; see `spans`."""
        most = self.settings.max_answer_tokens
        found = self.logits(passages).T
        return task.find(passages, found, max_answer_tokens=most, n_best=n_best)

    def logits(self, passages: Passages) -> NDArray[np.float32]:
        """The raw outputs of the head, (tokens of all windows, 2) float32: start and end. Raises
        `FilbertError` where they are no finite numbers."""
        found = task.predict_logits(
            self.model, task.windows_of(passages), batch_tokens=self.batch_tokens
        )
        return finite(found, self.folder).T

    def line(self, answer: Answer, row: Any = None) -> str:
        """An answer as one line for people: text, place, score, and the question."""
        place = "" if answer["start"] is None else f"{answer['start']}-{answer['end']}"
        text = " ".join(answer["answer"].split()) or "(no answer)"
        parts = [text, place, f"{answer['score']:.4f}"]
        if row is not None:
            parts.append(row["question"] if isinstance(row, Mapping) else row[0])
        lines = ["\t".join(parts)]
        for other in answer.get("candidates", ())[1:]:
            lines.append("  " + self.line(other))
        return "\n".join(lines)

    def evaluate(
        self,
        data: str | PathLike[str],
        *,
        encoding: str = "utf-8",
        scoring: str = "auto",
        threshold: float | None = None,
        worst: int = 5,
    ) -> dict[str, Any]:
        """Scores on a file of questions with answers (SQuAD JSON and its kin).

        `scoring`: `squad`, `cmrc`, or `auto`, which takes cmrc for Chinese texts. Returns `data`,
        `rows`, `scores`, `scoring`, `settings`, `notes`, and the `worst` surest mistakes.
        """
        if scoring not in ("auto", "squad", "cmrc"):
            raise UsageError(f"scoring {scoring!r}: expected auto, squad or cmrc")
        if worst < 0:
            raise UsageError(f"worst must be 0 or more, got {worst}")
        questions = read_questions(data, encoding=encoding)
        rule = rule_for(questions.contexts) if scoring == "auto" else scoring
        settings = self.settings_with(threshold)
        contexts = [questions.contexts[number] for number in questions.owner]
        passages = self.encode(questions)
        answers = task.decode(
            self.spans_in(passages), contexts, settings, temperature=self.manifest.temperature
        )
        notes, cut = [*questions.notes], int((passages.cut > 0).sum())
        if cut:
            notes.append(
                f"{questions.source}: {cut:,} questions are longer than half a window "
                f"({self.longest_question} tokens); their ends are cut off"
            )
        scores = task.score(answers, questions, rule=rule)  # type: ignore[arg-type]
        mistakes = task.mistakes(answers, questions, rule=rule, count=worst)  # type: ignore[arg-type]
        return {
            "data": os.fspath(data), "rows": scores.pop("rows"), "scores": scores,
            "scoring": rule, "settings": settings.model_dump(), "notes": notes,
            "worst": mistakes,
        }  # fmt: skip


def pairs_of(questions: Any, contexts: Any) -> tuple[list[Any], bool]:
    """The forms that a call takes, as rows, and whether it was a single question. Raises
    `FilbertError` for what is none of them."""
    if isinstance(questions, str):
        return [(questions, contexts)], True
    if isinstance(questions, Mapping) and contexts is None:
        return [questions], True
    for what, given in (("questions", questions), ("contexts", contexts)):
        listed = isinstance(given, Iterable) and not isinstance(given, bytes | Mapping)
        if not listed and not (what == "contexts" and given is None):
            raise FilbertError(
                f"{what}: expected a question with its context, or a list of pairs (question, "
                f"context), got {shown(given)}"
            )
    rows = list(questions)
    if contexts is None:  # a bare tuple of two texts is one pair
        lone = isinstance(questions, tuple) and [type(row) for row in rows] == [str, str]
        return ([tuple(rows)], True) if lone else (rows, False)
    if isinstance(contexts, str):
        return [(question, contexts) for question in rows], False
    others = list(contexts)
    if len(rows) != len(others):
        raise FilbertError(f"{len(rows)} questions but {len(others)} contexts")
    return list(zip(rows, others, strict=True)), False


def as_questions(pairs: Sequence[tuple[str, str]]) -> Questions:
    """Pairs (question, context) in the form of a file; a context that comes twice is read once."""
    numbers: dict[str, int] = {}
    owner = [numbers.setdefault(context, len(numbers)) for _, context in pairs]
    count = len(pairs)
    return Questions(
        list(numbers), np.asarray(owner, np.int64), [question for question, _ in pairs],
        list(map(str, range(count))), [[] for _ in range(count)], [""] * count, "questions",
    )  # fmt: skip


def read_context(path: str | PathLike[str], *, encoding: str = "utf-8") -> str:
    """The text of a file, character for character, so that offsets in it hold.

    Raises `UsageError` for a file that is not there, `FilbertError` for one that is empty, too
    long or not of that encoding.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise UsageError(f"unknown --encoding '{encoding}'; try utf-8, gb18030") from None
    except UnicodeError as error:
        raise FilbertError(f"{path} is not {encoding} ({error}); say --encoding") from None
    if not text.strip():
        raise FilbertError(f"{path} is empty; give a text that can be asked")
    if len(text) > MOST_CONTEXT:
        raise FilbertError(
            f"{path} has {len(text):,} characters, more than {MOST_CONTEXT:,}; cut it into files "
            "and ask the folder with filbert ask"
        )
    return text
