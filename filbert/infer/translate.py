"""Translate: a trained encoder-decoder becomes a function from a text to the text it writes.

    from filbert import load
    translate = load("runs/en-de")
    translate("A dog runs.")                      # {"text": "Ein Hund rennt.", "score": -0.31}
    translate(["A dog runs.", "Two men."], beams=1, max_tokens=40)
    translate("A dog runs.", best=3)              # with "others": the next best, each with a score
    translate("A dog runs.", alignments=True)     # with "alignment": which word looked at which
    translate("A dog runs.", sample=True, top_p=0.9, seed=7)

Bundles of abstractive summaries (task `summarize`) are the same. Texts are packed by length, and
each is written with the encoding and the decoding of training (`filbert/tasks/translate.py`). A
folder of Transformers' `EncoderDecoderModel` opens too, with the tokenizer that lies in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
import torch

from filbert.bundle import Bundle, fit_tokenizer
from filbert.data.pairs import read_pairs, stream_sources
from filbert.data.tables import Row
from filbert.errors import FilbertError, UsageError
from filbert.infer.predict import WINDOW, Answer, check_rows, shown, text_problem
from filbert.model.device import for_inference
from filbert.model.generate import Search, Written
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.tasks import translate as task
from filbert.text import BertTokenizer

SEARCH = frozenset(
    {"beams", "max_tokens", "min_tokens", "length_penalty", "no_repeat_ngram", "early_stopping",
     "best", "sample", "temperature", "top_k", "top_p", "seed"}
)  # fmt: skip
logger = logging.getLogger("filbert")
EXAMPLES = 20  # shown by `evaluate`


class Translator:
    """A bundle that writes texts, ready to answer. Calls from several threads are safe.

    Attributes: `manifest`, `settings` (how it writes), `model`, `tokenizer` (of sources), `writer`
    (of targets), `folder`, `device`, `dtype`, and `reason`, why this precision was chosen.
    """

    OPTIONS = SEARCH | {"alignments"}

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        reason: str = "asked for",
        batch_tokens: int = 4096,
    ) -> None:
        self.folder, self.manifest = bundle.folder, bundle.manifest
        self.tokenizer = self.writer = bundle.tokenizer
        if not isinstance(bundle.model, BertForSeq2SeqLM):
            raise FilbertError(
                f"{bundle.folder} holds a {type(bundle.model).__name__}, which writes no text. "
                "Train an encoder-decoder first with filbert train translate --base"
            )
        if (other := bundle.folder / task.TARGET_TOKENIZER).is_dir():
            self.writer = BertTokenizer.from_pretrained(other)
            fit_tokenizer(self.writer, bundle.model.config.decoder)
        self.settings = task.settings_of(bundle.manifest.settings, source=str(bundle.folder))
        config = bundle.model.config
        words = max(self.writer.get_vocab().values(), default=0) + 1
        if words > config.decoder.vocab_size:
            raise FilbertError(
                f"{bundle.folder}: the tokenizer of the targets has {words} words, but the decoder "
                f"writes {config.decoder.vocab_size}; the two do not belong together"
            )
        for name, own in (("decoder_start_token_id", self.writer.cls_token_id),
                          ("eos_token_id", self.writer.sep_token_id),
                          ("pad_token_id", self.writer.pad_token_id)):  # fmt: skip
            if getattr(config, name) is None:  # a folder that was made elsewhere
                setattr(config, name, own)
        self.model = for_inference(bundle.model, device, dtype)
        self.device, self.dtype, self.reason = device, dtype, reason
        self.batch_tokens = batch_tokens
        self._told_cut = False

    def __call__(self, texts: Any, **options: Any) -> Any:
        """What the model writes for a text, or for each of a list.

        options: those of `filbert.model.generate.Search` (`beams`, `max_tokens`, `length_penalty`,
        `no_repeat_ngram`, `best`, `sample`, `temperature`, `top_k`, `top_p`, `seed` ...), else the
        bundle's own; `alignments`: with the attention of each written piece over the source's. One
        text gives one answer, a list gives a list in the same order. Raises `FilbertError` that
        names the position of an item that is no text, `UsageError` for an option that cannot be.
        """
        single = isinstance(texts, str)
        if not single and (not isinstance(texts, Iterable) or isinstance(texts, bytes | dict)):
            raise FilbertError(f"expected a text or a list of texts, got {shown(texts)}")
        rows = [texts] if single else list(texts)
        check_rows(self, rows)
        answers = self.answer_rows(rows, **options)
        return answers[0] if single else answers

    def problem(self, row: Any) -> str | None:
        """What is wrong with a row, in words; None for a good one."""
        if isinstance(row, tuple | list):
            return "this model reads one text and writes another; got a list"
        if told := text_problem(row):
            return told
        return None if row.strip() else "the text is empty; there is nothing to write about"

    def rows(self, path: str | PathLike[str], **reading: Any) -> Iterator[tuple[Row, Any, None]]:
        """(row, text, None) of each row of a table, or line of a text; see `stream_sources`."""
        return stream_sources(fspath(path), target=self.settings.language, **reading)

    def answer_rows(
        self, rows: Sequence[str], *, alignments: bool = False, **options: Any
    ) -> list[Answer]:
        """Answers of rows that `problem` found good, in order: `text`, `score`; `cut` where the
        source was longer than the model reads, `cut_off` where the text came to no end."""
        search = self.search(**options)
        answers: list[Answer] = []
        for start in range(0, len(rows), WINDOW):
            block = list(rows[start : start + WINDOW])
            encoded = task.encode(self.tokenizer, block, max_length=self.manifest.max_length)
            numbers = [task.draw_number(row) for row in block] if search.sample else None
            written = task.write(
                self.model, encoded, search=search, batch_tokens=self.batch_tokens, numbers=numbers
            )
            cut = set(
                task.cut_off(self.tokenizer, block, encoded, self.manifest.max_length).tolist()
            )
            if cut:
                self._tell_cut()
            for number, texts in enumerate(written):
                answer = self._answer(texts)
                if number in cut:
                    answer["cut"] = True  # its source was longer than the model reads
                if alignments:
                    span = slice(*encoded.window_starts[number : number + 2].tolist())
                    answer["alignment"] = self.align(encoded.input_ids[span].tolist(), texts[0])
                answers.append(answer)
        return answers

    def _tell_cut(self) -> None:
        if not self._told_cut:
            self._told_cut = True
            logger.warning(
                "a text has more than the %d tokens that the model reads; what is beyond them was "
                "cut off, and its answer says cut. Give it in parts (told once)",
                self.manifest.max_length,
            )

    def search(self, **options: Any) -> Search:
        """The bundle's way of writing, with these changes."""
        wrong = sorted(set(options) - SEARCH)
        if wrong:
            raise UsageError(f"no option {wrong[0]!r}; there are {', '.join(sorted(SEARCH))}")
        return task.default_search(self.settings, self.model.config, **options)

    @torch.no_grad()
    def align(self, source: list[int], written: Written) -> dict[str, Any]:
        """How much each written piece looked at each piece of the source: `source`, `written`
        (pieces) and `weights` (written, source), the mean over heads and layers."""
        ids = [*written.tokens, *([self.writer.sep_token_id] if written.finished else [])]
        before = torch.tensor([[self.model.config.decoder_start_token_id, *ids[:-1]]])
        out = self.model(
            torch.tensor([source], device=self.device), decoder_input_ids=before.to(self.device),
            output_attentions=True,
        )  # fmt: skip
        weights = torch.stack(out.cross_attentions).float().mean((0, 1, 2))  # (written, source)
        return {
            "source": self.tokenizer.convert_ids_to_tokens(source),
            "written": self.writer.convert_ids_to_tokens(ids),
            "weights": [[round(x, 4) for x in row] for row in weights.tolist()],
        }

    def line(self, answer: Answer, row: Any = None) -> str:
        """An answer as one line for people: the text, and its source behind a tab; then the next
        best texts, and of `alignments` each piece with the one that it looked at most, a line each.
        """
        text = " ".join(answer["text"].split())
        lines = [text if row is None else f"{text}\t{' '.join(row.split())}"]
        lines += [f"  {self.line(one)}" for one in answer.get("others", ())]
        if found := answer.get("alignment"):
            looked = [found["source"][int(np.argmax(row))] for row in found["weights"]]
            lines += [f"  {a} <- {b}" for a, b in zip(found["written"], looked, strict=True)]
        return "\n".join(lines)

    def evaluate(
        self,
        data: str | PathLike[str],
        *,
        target_data: str | None = None,
        source_column: str | None = None,
        target_column: str | None = None,
        format: str | None = None,
        encoding: str = "utf-8",
        header: bool | None = None,
        empty: str = "refuse",
        language: str | None = None,
        stem: bool | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Scores on the pairs of a file (`target_data`: its targets, line by line): `scores`, their
        `signatures`, `rows`, some `examples`, `notes`. `stem`: of ROUGE, as trained where it is
        None; `options` as in a call."""
        if empty not in ("refuse", "skip"):
            raise UsageError(f"empty: expected refuse or skip, got {empty!r}")
        kind: Literal["translate", "summarize"] = (
            "summarize" if self.manifest.task == "summarize" else "translate"
        )
        stem = self.settings.stem if stem is None else stem
        task.check_stem(stem, kind)
        pairs = read_pairs(
            str(data), target_data, source_column=source_column, target_column=target_column,
            format=format, encoding=encoding, header=header,
            empty="skip" if empty == "skip" else "refuse", task=kind,
        )  # fmt: skip
        texts = [answer["text"] for answer in self.answer_rows(pairs.sources, **options)]
        scores, signatures = task.score(
            texts, pairs.all_references(), task=kind,
            language=language or self.settings.language, stem=stem,
        )  # fmt: skip
        shown_rows = np.linspace(0, len(pairs) - 1, min(EXAMPLES, len(pairs))).astype(int).tolist()
        return {
            "scores": scores, "signatures": signatures, "rows": len(pairs), "notes": pairs.notes,
            "examples": [
                {"id": pairs.id(i), "source": pairs.sources[i], "target": pairs.targets[i],
                 "written": texts[i]}
                for i in shown_rows
            ],
        }  # fmt: skip

    def _answer(self, texts: list[Written]) -> Answer:
        made = [
            {"text": task.decode(one, self.writer, self.settings.spacing),
             "score": round(one.score, 4)}
            for one in texts
        ]  # fmt: skip
        for one, text in zip(made, texts, strict=True):
            if not text.finished:
                one["cut_off"] = True  # it came to no end within max_tokens
        return {**made[0], "others": made[1:]} if len(made) > 1 else made[0]
