"""Fill: words for the blanks of a text, and how expected a text is, from a model of masked words.

    from filbert import load
    fill = load("filbert-mini-en")
    fill("The capital of France is [MASK].")                      # best words, and the text filled
    fill("Who is [MASK] [MASK]?", top_k=3)                        # each blank has its own list
    fill("She is a [MASK].", targets=["doctor", "nurse"])         # these words alone, scored
    fill.perplexity("The river flows into the sea.")              # pseudo-perplexity

    filbert predict filbert-mini-en "The capital of France is [MASK]."
    filbert predict filbert-mini-en --perplexity --file texts.txt --out scores.jsonl

What the numbers mean stands in `filbert/tasks/fill.py` and `filbert/tasks/perplexity.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch

from filbert.bundle import Bundle
from filbert.data.examples import stream_texts
from filbert.errors import FilbertError, UsageError
from filbert.infer import predict
from filbert.infer.predict import (
    WINDOW,
    Answer,
    check_count,
    check_rows,
    finite,
    is_pair,
    shown,
    text_problem,
)
from filbert.tasks import fill, perplexity


class Filler:
    """A bundle that fills blanks. Calls from several threads are safe.

    Attributes: `manifest`, `model`, `tokenizer`, `folder`, `device`, `dtype`, and `reason`, why
    this precision was chosen.
    """

    OPTIONS = frozenset({"top_k", "targets"})

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        reason: str = "asked for",
        batch_tokens: int = 4096,
    ) -> None:
        self.folder = bundle.folder
        self.manifest = bundle.manifest
        self.tokenizer = bundle.tokenizer
        if not isinstance(bundle.model, fill.WordModel):
            raise FilbertError(
                f"{bundle.folder} holds a {type(bundle.model).__name__}, which has no head for "
                "masked words; blanks are filled by BertForMaskedLM, BertForPreTraining and "
                "ModernBertForMaskedLM"
            )
        self.model = fill.for_inference(bundle.model, device, dtype)
        self.device = device
        self.dtype = dtype
        self.reason = reason
        self.batch_tokens = batch_tokens

    def __call__(
        self, texts: Any, *, top_k: int = 5, targets: Sequence[str] | None = None
    ) -> Answer | list[Answer]:
        """Fill the blanks of one text, or of each of a list; see `answer_rows` for an answer.

        Raises `FilbertError` that names the position of an item that is no text with a blank,
        `UsageError` for a target that the vocabulary cannot spell.
        """
        rows, single = _as_list(texts)
        check_rows(self, rows)
        answers = self.answer_rows(rows, top_k=top_k, targets=targets)
        return answers[0] if single else answers

    def perplexity(self, texts: Any, *, each: bool = False) -> Answer | list[Answer]:
        """The pseudo-perplexity of one text, or of each of a list; see `TextScorer`."""
        return self.scorer()(texts, each=each)

    def scorer(self) -> TextScorer:
        """The same model, asked how expected whole texts are."""
        return TextScorer(self)

    def problem(self, row: Any) -> str | None:
        """What is wrong with a row, in words; None for a good one."""
        if is_pair(row):
            return "this model takes one text, got a pair"
        return text_problem(row) or fill.problem(self.tokenizer, row)

    def answer_rows(
        self, rows: Sequence[str], *, top_k: int = 5, targets: Sequence[str] | None = None
    ) -> list[Answer]:
        """Answers of texts that `problem` found good, in order.

        `text`: the text with its blanks filled, `score`: the probability of that; not with
        `targets`. `blanks`: of each blank its characters, `start` and `end`, and `words`, each with
        `word` and `score`, the best first; see `filbert.tasks.fill.fill`.
        """
        check_count("top_k", top_k)
        if targets is not None and (isinstance(targets, str) or not targets):
            raise UsageError(f"targets: expected a list of words, got {shown(targets)}")
        answers: list[Answer] = []
        for start in range(0, len(rows), WINDOW):
            blanks = [fill.read_blanks(self.tokenizer, row) for row in rows[start : start + WINDOW]]
            answers += fill.fill(
                self.model,
                self.tokenizer,
                blanks,
                max_length=self.manifest.max_length,
                top_k=top_k,
                targets=targets,
                batch_tokens=self.batch_tokens,
            )
        for answer in answers:
            best = [blank["words"][0]["score"] for blank in answer["blanks"]]
            finite(np.asarray(best), self.folder)
        return answers

    def stream(
        self, rows: Iterable[str], *, window: int = WINDOW, **options: Any
    ) -> Iterator[Answer]:
        """Answer an endless iterable, in order and in constant memory; options as for a call."""
        return predict.stream(self, rows, window=window, **options)

    def line(self, answer: Answer, row: Any = None) -> str:
        """An answer as one line for people: the filled text, then the words of each blank."""
        blanks = " | ".join(
            ", ".join(f"{word['word']} {word['score']:.4f}" for word in blank["words"])
            for blank in answer["blanks"]
        )
        text = answer.get("text", row)
        return blanks if text is None else f"{text}\t{blanks}"

    def evaluate(
        self,
        data: str | PathLike[str],
        *,
        text_column: str | None = None,
        format: str | None = None,
        encoding: str = "utf-8",
        header: bool | None = None,
    ) -> dict[str, Any]:
        """The pseudo-perplexity of the texts of a file; see `TextScorer.evaluate`."""
        return self.scorer().evaluate(
            data, text_column=text_column, format=format, encoding=encoding, header=header
        )


class TextScorer:
    """How expected texts are to the model of a `Filler`, with the same interface."""

    OPTIONS = frozenset({"each"})

    def __init__(self, filler: Filler) -> None:
        self.folder, self.manifest = filler.folder, filler.manifest
        self.model, self.tokenizer = filler.model, filler.tokenizer
        self.device, self.dtype, self.reason = filler.device, filler.dtype, filler.reason
        self.batch_tokens = filler.batch_tokens

    def __call__(self, texts: Any, *, each: bool = False) -> Answer | list[Answer]:
        """Score one text, or each of a list; see `answer_rows`. Raises `FilbertError` that names
        the position of an item that cannot be scored."""
        rows, single = _as_list(texts)
        check_rows(self, rows)
        answers = self.answer_rows(rows, each=each)
        return answers[0] if single else answers

    def problem(self, row: Any) -> str | None:
        """What is wrong with a row, in words; None for a good one."""
        if is_pair(row):
            return "this model takes one text, got a pair"
        return text_problem(row) or perplexity.problem(self.tokenizer, row)

    def answer_rows(self, rows: Sequence[str], *, each: bool = False) -> list[Answer]:
        """Answers of texts that `problem` found good, in order: `log_likelihood`, `tokens`,
        `words`, `perplexity` (per token), `per_word` and more, with `each` token by token; see
        `filbert.tasks.perplexity.pseudo_perplexity`."""
        answers = perplexity.pseudo_perplexity(
            self.model,
            self.tokenizer,
            rows,
            max_length=self.manifest.max_length,
            batch_tokens=self.batch_tokens,
            each=each,
        )
        finite(np.asarray([answer["log_likelihood"] for answer in answers]), self.folder)
        return answers

    def stream(
        self, rows: Iterable[str], *, window: int = WINDOW, **options: Any
    ) -> Iterator[Answer]:
        """Answer an endless iterable, in order and in constant memory."""
        return predict.stream(self, rows, window=window, **options)

    def line(self, answer: Answer, row: Any = None) -> str:
        """An answer as one line for people: perplexity per token, then per word."""
        parts = [
            f"perplexity {_number(answer['perplexity'])}",
            f"per word {_number(answer['per_word'])}",
            f"{answer['tokens']} tokens",
        ]
        return "\t".join(parts if row is None else [*parts, row])

    def evaluate(
        self,
        data: str | PathLike[str],
        *,
        text_column: str | None = None,
        format: str | None = None,
        encoding: str = "utf-8",
        header: bool | None = None,
    ) -> dict[str, Any]:
        """The pseudo-perplexity of all texts of a file together; texts need no labels.

        Returns `data`, `rows` and `scores`: `perplexity` and `per_word` of the corpus, `accuracy`,
        the share of tokens that the model's first guess hits, and the counts. Raises `FilbertError`
        that names the row that cannot be scored; empty rows are left out and counted.
        """
        rows = stream_texts(
            data, text_column=text_column, format=format, encoding=encoding, header=header
        )
        count, empty = 0, 0

        def texts() -> Iterator[str]:
            nonlocal count, empty
            for row, text, _ in rows:
                if isinstance(text, str) and not text.strip():
                    empty += 1
                    continue
                if told := self.problem(text):
                    raise FilbertError(f"{data}, row {row.number}: {told}")
                count += 1
                yield text

        sums = perplexity.total(self.stream(texts()))
        if not sums["tokens"]:
            raise FilbertError(f"{data}: no text to score; every row is empty")
        right, tokens = sums.pop("right"), sums["tokens"]
        scores = {**sums, "accuracy": right / tokens, "empty_rows": empty}
        return {"data": str(data), "rows": count, "scores": scores}


def _as_list(texts: Any) -> tuple[list[Any], bool]:
    if isinstance(texts, str):
        return [texts], True
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | dict):
        raise FilbertError(f"expected a text or a list of texts, got {shown(texts)}")
    return list(texts), False


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"
