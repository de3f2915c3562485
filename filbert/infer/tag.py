"""Tag: a trained bundle finds the entities of a text, or labels its words.

    from filbert import load
    tag = load("runs/ner")
    tag("Barack Obama was born in Hawaii.")
    # {"spans": [{"start": 0, "end": 12, "text": "Barack Obama", "label": "person", "score": 0.98},
    #            {"start": 25, "end": 31, "text": "Hawaii", "label": "location", "score": 0.97}]}
    tag(["one text", "another"])                     # a list of such answers, in order
    tag({"tokens": ["Barack", "Obama", "spoke"]})    # words that are given stay as they are

`start` and `end` count characters of the text as it was given; the text of an answer is exactly
`text[start:end]`. Of given words the text is they joined (by blanks, none beside Chinese), and each
span also has `words`, [first, end). A model of plain labels answers `{"words": [...]}`, one for
each word. Answers go back into training as they are: `{"text": ..., "spans": [...]}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.bundle import Bundle
from filbert.data.packing import Ids
from filbert.data.tables import Row
from filbert.data.tag_layout import Laid
from filbert.data.tag_schemes import split_tag
from filbert.data.tagged import read_tagged, stream_untagged
from filbert.errors import FilbertError
from filbert.infer.overlap import expect
from filbert.infer.predict import WINDOW, check_rows, finite, shown, text_problem
from filbert.model.bert import BertForTokenClassification
from filbert.model.device import for_inference
from filbert.tasks import tag
from filbert.tasks.tag_examine import examine

Answer = dict[str, Any]


class Tagger:
    """A bundle of tagging, ready to answer. Calls from several threads are safe.

    Attributes: `manifest` (labels, settings, temperature), `model`, `tokenizer`, `folder`,
    `device`, `dtype`, and `reason`, why this precision was chosen.
    """

    OPTIONS: frozenset[str] = frozenset()

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
        if not isinstance(bundle.model, BertForTokenClassification):
            raise FilbertError(
                f"{bundle.folder} holds a {type(bundle.model).__name__}, not a tagger. Fine-tune "
                "it first with filbert train tag --base"
            )
        self.settings = tag.settings_of(bundle.manifest)
        self.model = for_inference(bundle.model, device, dtype, head="classifier")
        self.device = device
        self.dtype = dtype
        self.reason = reason
        self.batch_tokens = batch_tokens

    def __call__(self, texts: Any) -> Any:
        """The entities (or the labels of the words) of a text, or of each of a list.

        An item is a text, or words that are given: `{"tokens": [...]}`. One gives one answer, a
        list gives a list in the same order. Raises `FilbertError` that names the position of an
        item that is neither.
        """
        if isinstance(texts, str | dict):
            check_rows(self, [texts], start=0)
            return self.answer_rows([texts])[0]
        if not isinstance(texts, Iterable) or isinstance(texts, bytes):
            raise FilbertError(f"expected a text or a list of texts, got {shown(texts)}")
        rows = list(texts)
        check_rows(self, rows, start=0)
        return self.answer_rows(rows)

    def problem(self, row: Any) -> str | None:
        """What is wrong with a row, in words; None for a good one."""
        if isinstance(row, dict):
            words = row.get("tokens")
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                return f'expected {{"tokens": [words]}}, got {shown(row)}'
            return next(filter(None, map(text_problem, words)), None)
        if isinstance(row, tuple | list):
            return 'this model takes one text, got a list; words that are given: {"tokens": [...]}'
        return text_problem(row)

    def rows(self, path: str | PathLike[str], **reading: Any) -> Iterator[tuple[Row, Any, Any]]:
        """(row, text or `{"tokens": words}`, second text or None) of each row of a table or a text,
        or of each sentence of CoNLL; see `stream_untagged`."""
        return stream_untagged(path, **reading)

    def answer_rows(self, rows: Sequence[Any]) -> list[Answer]:
        """Answers of rows that `problem` found good, in order."""
        answers: list[Answer] = []
        for start in range(0, len(rows), WINDOW):
            block = rows[start : start + WINDOW]
            out: list[Answer] = [{} for _ in block]
            given = [place for place, row in enumerate(block) if isinstance(row, dict)]
            raw = [place for place, row in enumerate(block) if not isinstance(row, dict)]
            if raw:
                found = self._of_texts([block[place] for place in raw])
                for place, answer in zip(raw, found, strict=True):
                    out[place] = answer
            if given:
                found = self._of_words([block[place]["tokens"] for place in given])
                for place, answer in zip(given, found, strict=True):
                    out[place] = answer
            answers += out
        return answers

    def line(self, answer: Answer, row: Any = None) -> str:
        """An answer as one line for people: `person: Barack Obama (0.98)`, tab-separated; of plain
        labels `word/label`, by blanks."""
        if "words" in answer:
            parts = [" ".join(f"{item['text']}/{item['label']}" for item in answer["words"])]
        else:
            parts = [
                f"{item['label']}: {' '.join(item['text'].split())} ({item['score']:.2f})"
                for item in answer["spans"]
            ] or ["(none)"]
        if row is not None:
            parts.append(row if isinstance(row, str) else " ".join(row["tokens"]))
        return "\t".join(parts)

    def evaluate(
        self,
        data: str | PathLike[str],
        *,
        format: str | None = None,
        word_column: int = 1,
        tag_column: int = -1,
        encoding: str = "utf-8",
        strict: bool = False,
    ) -> dict[str, Any]:
        """Scores on a tagged file, read as training reads it: `scores`, `per_class`, `rows`,
        `calibration`, `worst`, `notes`. With `strict`, see `tag_scores.entity_scores`.

        Raises `FilbertError` for a file that cannot be read, or labels that the model lacks.
        """
        part = read_tagged(
            data, format=format, word_column=word_column, tag_column=tag_column, encoding=encoding
        )
        plain = self.settings.scheme == "plain"
        names = {name if plain else split_tag(name)[1] for name in self.manifest.labels} - {""}
        tag.check_labels(part, sorted(names), plain=plain)
        laid = tag.encode_part(self.tokenizer, part, **self._reading())
        gold, notes = tag.gold_tags(part, laid)
        record = examine(
            part, laid, gold, self._decoded(laid), labels=self.manifest.labels,
            settings=self.settings, temperature=self.manifest.temperature, strict=strict,
        )  # fmt: skip
        return {**record, "notes": [*part.notes, *notes]}

    def _reading(self) -> dict[str, Any]:
        manifest = self.manifest
        return {
            "max_length": manifest.max_length, "stride": manifest.stride,
            "slots": self.settings.slots,
        }  # fmt: skip

    def logits(self, laid: Laid) -> NDArray[np.float32]:
        """The raw outputs of the head, (slots, labels) float32. Raises `FilbertError` where they
        are no finite numbers."""
        found = tag.predict_logits(self.model, laid, batch_tokens=self.batch_tokens)
        return finite(found, self.folder)

    def _decoded(self, laid: Laid) -> tag.Decoded:
        return tag.decode(
            self.model, self.logits(laid), laid, labels=self.manifest.labels,
            scheme=self.settings.scheme, temperature=self.manifest.temperature,
        )  # fmt: skip

    def _of_texts(self, texts: list[str]) -> list[Answer]:
        expect(len(texts), self.model)
        laid = tag.encode(self.tokenizer, texts=texts, **self._reading())
        assert laid.chars is not None
        return self._answers(laid, texts, laid.chars)

    def _of_words(self, sentences: list[list[str]]) -> list[Answer]:
        expect(len(sentences), self.model)
        laid = tag.encode(self.tokenizer, words=sentences, **self._reading())
        joined = [tag.join_words(words) for words in sentences]
        places: Ids = np.concatenate([np.zeros((0, 2), np.int64), *(p for _, p in joined)])
        return self._answers(laid, [text for text, _ in joined], places, given=True)

    def _answers(
        self, laid: Laid, texts: list[str], chars: Ids, *, given: bool = False
    ) -> list[Answer]:
        return tag.answers(
            self._decoded(laid), laid, texts, chars, labels=self.manifest.labels,
            settings=self.settings, given=given,
        )  # fmt: skip
