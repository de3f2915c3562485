"""Summarise: a trained bundle becomes a function from a document to its most telling sentences.

    from filbert import load
    summarize = load("runs/sum")
    summarize("A long text ...")                              # {"summary": ..., "sentences": [...]}
    summarize(["One text ...", "Another ..."], sentences=1)   # a list of such answers, in order
    summarize([["A document.", "As sentences."]])             # a list of documents of sentences

Each sentence carries its `score` (0 to 1; a probability of being chosen only where the model was
trained by binary labels, else it orders the sentences of a document), its `number` in the document
and, of a text, `start` and `end`: text[start:end] is the sentence to the character. Documents of
any length are read in windows of whole sentences. A bundle of the task that writes summaries
instead (an encoder-decoder) is opened by `filbert.infer.translate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from filbert.bundle import MANIFEST, Bundle
from filbert.data.summaries import (
    document_problem,
    read_documents,
    sentence_spans,
    sentences_of,
    stream_documents,
)
from filbert.errors import FilbertError
from filbert.infer.predict import Answer, check_rows, shown, text_problem
from filbert.model.device import for_inference
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.tasks import summarize
from filbert.tasks.rouge import is_word_alone
from filbert.tasks.select_sentences import Limits, cut_off, select

BLOCK_CHARACTERS = 4_000_000  # of the documents that are encoded together


class Settings(BaseModel):
    """What the manifest of an extractive summariser says beyond the common fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sentences: int = Field(3, gt=0)
    blocking: bool = True
    stem: bool = False


def Summarizer(bundle: Bundle, **options: Any) -> Any:
    """What answers for a bundle of the task: an `Extractor`, or a `Translator` where the model
    writes its summaries."""
    if isinstance(bundle.model, BertForExtractiveSummary):
        return Extractor(bundle, **options)
    from filbert.infer.translate import Translator

    return Translator(bundle, **options)


class Extractor:
    """A bundle of extractive summarisation, ready to answer. Calls from several threads are safe.

    Attributes: `manifest`, `settings` (sentences, blocking, stem), `model`, `tokenizer`, `folder`,
    `device`, `dtype`, and `reason`, why this precision was chosen.
    """

    OPTIONS = frozenset({"sentences", "max_characters", "max_words", "blocking"})

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        reason: str = "asked for",
        batch_tokens: int = 4096,
    ) -> None:
        assert isinstance(bundle.model, BertForExtractiveSummary)
        try:
            self.settings = Settings.model_validate(bundle.manifest.settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise FilbertError(
                f"{bundle.folder / MANIFEST}: 'settings.{where}': {first['msg']}"
            ) from None
        self.folder = bundle.folder
        self.manifest = bundle.manifest
        self.tokenizer = bundle.tokenizer
        self.model = for_inference(bundle.model, device, dtype, head="classifier")
        self.device = device
        self.dtype = dtype
        self.reason = reason
        self.batch_tokens = batch_tokens

    def __call__(self, documents: Any, **options: Any) -> Answer | list[Answer]:
        """Summarise one text, or a list of documents, each a text or a list of sentences.

        One text gives one answer, a list gives a list in the same order. `options`: `sentences`
        (how many; as trained), `max_characters` and `max_words` of the whole summary (a Chinese
        character is a word; without `sentences` there may then be any number), `blocking` (pass
        over sentences that repeat three words). Raises `FilbertError` that names the position of an
        item that is no document, `UsageError` for a limit that is no whole number above 0.
        """
        if isinstance(documents, str):
            check_rows(self, [documents])
            return self.answer_rows([documents], **options)[0]
        if not isinstance(documents, Iterable) or isinstance(documents, bytes | dict):
            raise FilbertError(f"expected a text or a list of documents, got {shown(documents)}")
        rows = list(documents)
        check_rows(self, rows)
        return self.answer_rows(rows, **options)

    def problem(self, row: Any) -> str | None:
        """What is wrong with a document, in words; None for a good one."""
        if told := document_problem(row):
            return told
        return next(filter(None, map(text_problem, [row] if isinstance(row, str) else row)), None)

    def rows(self, path: str | PathLike[str], **reading: Any) -> Iterator[tuple[Any, Any, None]]:
        """(row, document, None) of each document of a file; a text file is one document."""
        return stream_documents(path, **reading)

    def limits(
        self,
        *,
        sentences: int | None = None,
        max_characters: int | None = None,
        max_words: int | None = None,
        blocking: bool | None = None,
    ) -> Limits:
        """How long a summary may be: what was asked for, else as the model was trained."""
        if sentences is None and max_characters is None and max_words is None:
            sentences = self.settings.sentences
        blocking = self.settings.blocking if blocking is None else blocking
        return Limits(sentences, max_characters, max_words, blocking)

    def answer_rows(self, rows: Sequence[Any], **options: Any) -> list[Answer]:
        """Answers of documents that `problem` found good, in order; `options` as for a call."""
        limits = self.limits(**options)
        answers: list[Answer] = []
        for block in _blocks(rows):
            documents = [sentences_of(row) for row in block]
            logits, ends = self.logits(documents)
            answers += [
                answer_of(row, sentences, logits[ends[place] : ends[place + 1]], limits=limits)
                for place, (row, sentences) in enumerate(zip(block, documents, strict=True))
            ]
        return answers

    def logits(self, documents: list[list[str]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(sentences,) float32 raw outputs over all documents, and (documents + 1,) where those of
        each document begin."""
        encoded = self.encode(documents)
        found = summarize.predict_logits(self.model, encoded, batch_tokens=self.batch_tokens)
        return found, encoded.document_sentences

    def encode(self, documents: list[list[str]]) -> summarize.EncodedDocuments:
        """The documents as training encodes them."""
        return summarize.encode(
            self.tokenizer,
            documents,
            max_length=self.manifest.max_length,
            stride=self.manifest.stride,
            segments=self.model.config.type_vocab_size > 1,
        )

    def line(self, answer: Answer, row: Any = None) -> str:
        """An answer as one line for people: the summary."""
        return " ".join(answer["summary"].split())

    def evaluate(
        self,
        data: str | PathLike[str],
        *,
        text_column: str | None = None,
        summary_column: str | None = None,
        format: str | None = None,
        encoding: str = "utf-8",
        header: bool | None = None,
        sentences: int | None = None,
        blocking: bool | None = None,
        stem: bool | None = None,
    ) -> dict[str, Any]:
        """ROUGE on the documents of `data` that have reference summaries.

        Returns `data`, `rows`, `scores`: `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (F-measures, 0
        to 1), and the same of the first sentences (`lead_...`) and of the oracle (`oracle_...`);
        `notes`.
        Raises `FilbertError` for an unreadable file and for rows without a summary.
        """
        documents = read_documents(
            data, text_column=text_column, summary_column=summary_column, format=format,
            encoding=encoding, header=header,
        )  # fmt: skip
        most = self.settings.sentences if sentences is None else sentences
        stem = self.settings.stem if stem is None else stem
        limits = self.limits(sentences=most, blocking=blocking)
        encoded = self.encode(documents.sentences)
        logits = summarize.predict_logits(self.model, encoded, batch_tokens=self.batch_tokens)
        chosen = summarize.decode(logits, documents.sentences, encoded, limits=limits)
        _, oracle = summarize.targets(documents, most=most, stem=stem)
        scores = summarize.score(documents, chosen, stem=stem)
        scores |= summarize.baselines(documents, oracle, sentences=most, stem=stem)
        notes, limit = [*documents.notes], self.manifest.max_length
        cut = summarize.cut_off(self.tokenizer, documents.sentences, encoded, limit=limit)
        if cut:
            notes.append(
                f"{documents.source}: {cut:,} sentences have more than the {limit} tokens of a "
                "window; their ends are cut off"
            )
        return {"data": documents.source, "rows": len(documents), "scores": scores, "notes": notes}


def answer_of(
    document: str | Sequence[str],
    sentences: list[str],
    logits: NDArray[np.float32],
    *,
    limits: Limits,
) -> Answer:
    """The answer for one document. sentences: `sentences_of` it; logits: (sentences,)."""
    if not sentences:
        return {"summary": "", "sentences": []}
    spans = sentence_spans(document) if isinstance(document, str) else None
    chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found: list[dict[str, Any]] = []
    chosen = select(logits, sentences, limits=limits)
    for place in chosen:
        text = sentences[place] if len(chosen) > 1 else cut_off(sentences[place], limits=limits)
        one = {"text": text, "number": place, "score": float(chances[place])}
        if spans is not None:
            one |= {"start": spans[place][0], "end": spans[place][0] + len(text)}
        found.append(one)
    return {"summary": join([one["text"] for one in found]), "sentences": found}


def join(sentences: Sequence[str]) -> str:
    """Sentences as one text: a blank between them, none where Chinese or Japanese meets itself."""
    text = ""
    for sentence in sentences:
        close = text and sentence and _is_wide(text[-1]) and _is_wide(sentence[0])
        text += sentence if close or not text else f" {sentence}"
    return text


def _is_wide(character: str) -> bool:
    """Chinese or Japanese, or their punctuation (Korean separates words)."""
    if "\uac00" <= character <= "\ud7a3":
        return False
    wide = "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef"
    return wide or is_word_alone(character) or character in "“”‘’…—"


def _blocks(rows: Sequence[Any]) -> Iterator[list[Any]]:
    """Runs of documents of so many characters that their encoding stays small."""
    block: list[Any] = []
    used = 0
    for row in rows:
        size = len(row) if isinstance(row, str) else sum(map(len, row))
        if block and used + size > BLOCK_CHARACTERS:
            yield block
            block, used = [], 0
        block.append(row)
        used += size
    if block:
        yield block
