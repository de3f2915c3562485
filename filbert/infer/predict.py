"""Predict: a trained bundle becomes a function from text to answers.

`load` opens any bundle; what it gives depends on the task (`PREDICTORS`). This file holds that of
classification, and what all of them share. A predictor has `manifest`, `tokenizer`, `folder`,
`device`, `dtype`, `reason`, and

    OPTIONS                        the names of what `answer_rows` and `stream` take beyond rows
    __call__(...)                  for people: one input gives one answer, a list gives a list
    problem(row)                   what is wrong with an input, in words; None for a good one
    answer_rows(rows, **options)   answers (plain data) of good inputs, in order
    line(answer, row)              an answer as one line for people
    evaluate(path, **options)      scores on a labelled file
    rows(path, **reading)          (row, input, second input or None) of each row of a file; only
                                   where `stream_texts` does not do

    from filbert import load
    classify = load("runs/reviews")
    classify("Great film.")                        # {"label": "positive", "score": 0.998}
    classify(["Great film.", "Dull."])             # a list of such answers, in order
    classify([("A man eats.", "He is eating.")])   # pairs, for a model that compares two texts

Texts are taken in windows of 1,024, packed by length inside a window and answered in the order in
which they came, so memory does not grow with the number of texts. The encoding and the decoding
are those of training (`filbert/tasks/classify.py`). Whole files: `filbert/infer/predict_file.py`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.bundle import Bundle, open_bundle
from filbert.data.tables import BadRow
from filbert.errors import FilbertError, UsageError
from filbert.infer.cut_texts import tell_cut
from filbert.infer.difference import check_compared, difference
from filbert.infer.overlap import BLOCK, in_blocks, in_order, until_failure, workers_for
from filbert.infer.warm_up import warm_up as warmed
from filbert.model import graphs, native
from filbert.model.device import choose_device, choose_precision, for_inference
from filbert.model.runtime import IN_PYTORCH, check_core, machine_of
from filbert.tasks import classify

logger = logging.getLogger("filbert")
WINDOW = 1024
BATCH_TOKENS = 4096  # computed at once, unless said
BATCH_TOKENS_GPU = 32768  # which is busy for some milliseconds with them
MOST_THREADS = 1024  # far more than helps; a mistyped number must not exhaust the machine

Answer = dict[str, Any]
# task -> what answers; a module is imported when a bundle of its task is opened
PREDICTORS = {
    "classify": "filbert.infer.predict:Classifier",
    "rank": "filbert.infer.predict:Classifier",
    "tag": "filbert.infer.tag:Tagger",
    "answer": "filbert.infer.answer:Answerer",
    "embed": "filbert.infer.embed:Embedder",
    "fill": "filbert.infer.fill:Filler",
    "pretrain": "filbert.infer.fill:Filler",
    "summarize": "filbert.infer.summarize:Summarizer",
    "translate": "filbert.infer.translate:Translator",
}


def load(
    name: str | PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
    core: str = "auto",
    compare: Sequence[Any] | None = None,
    warm_up: bool = False,
    compile: bool = False,
) -> Any:
    """Open a bundle for prediction: a `Classifier`, or what `PREDICTORS` has for its task.

    `name` is a run folder, a Hugging Face folder, a hub name or an installed name. `batch_tokens`
    bounds the tokens computed at once (4,096; on a GPU 32,768); `threads` sets the CPU threads of
    this process. `core`: `auto` is PyTorch with the native encoder where it serves, `torch` PyTorch
    alone; `onnxruntime` or `openvino` computes a folder that `filbert export` made, in float32 on
    the CPU. `compare`: rows, as `answer_rows` takes them, that are computed in float32 as well; the
    attribute `difference` then says how far the two lie apart (`filbert/infer/difference.py`).
    `warm_up`: see `filbert/infer/warm_up.py`. `compile`: torch.compile where PyTorch computes, some
    20 s at the first answer. Raises `FilbertError` where `name` cannot be found or has no head to
    answer with, or for unreadable rows, `UsageError` for what this machine or the core lacks.
    """
    if not isinstance(name, str | PathLike):
        raise FilbertError(f"expected a folder or the name of a model, got {shown(name)}")
    if not isinstance(device, str | torch.device):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {shown(device)}")
    for option, value in (("warm_up", warm_up), ("compile", compile)):
        if not isinstance(value, bool):
            raise UsageError(f"{option}: expected True or False, got {shown(value)}")
    if batch_tokens is not None:
        check_count("batch_tokens", batch_tokens)
    if threads is not None:
        check_count("threads", threads, most=MOST_THREADS)
        torch.set_num_threads(threads)
    place = choose_device(device)
    check_core(core)
    if core in IN_PYTORCH:
        dtype, reason = choose_precision(precision, place)
    else:
        place, dtype, reason = machine_of(core, str(device), precision)
    bundle = open_bundle(name, core=core, threads=threads)
    if bundle.manifest.task not in PREDICTORS:
        raise FilbertError(
            f"{bundle.folder} holds a {type(bundle.model).__name__}, an encoder without a head to "
            "answer with. Fine-tune it first (filbert train --help), or look into it with filbert "
            "inspect"
        )
    chosen = bundle.manifest.int8
    follows = core == "auto" and precision in ("auto", "int8") and place.type == "cpu"
    if chosen is not None and follows:
        if (without := native.why_not(bundle.model.base_model)) is None:
            dtype, reason = torch.int8, "chosen by filbert quantize"
            bundle.model.int8_products = [  # type: ignore[assignment]
                sum(native.PRODUCTS[name] for name in layer) for layer in chosen.layers
            ]
        else:
            logger.info("int8 of %s is left: %s", bundle.folder, without)
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS_GPU if place.type == "cuda" else BATCH_TOKENS
    predictor = predictor_of(bundle, place, dtype, reason, batch_tokens)
    if place.type == "cuda" and core == "auto":
        graphs.attach(predictor.model)
    if compile and core in IN_PYTORCH:  # of which the native encoder leaves little to PyTorch
        predictor.model.compile_parts()
    if compare is not None:
        check_compared(compare, core)
        check_rows(predictor, compare, what="compare, item")
        exact = load(name, device=device, precision="float32", batch_tokens=batch_tokens, core=core)
        predictor.difference = difference(predictor, exact, compare)
    if warm_up:
        warmed(predictor)
    return predictor


def predictor_of(
    bundle: Bundle, device: torch.device, dtype: torch.dtype, reason: str, batch_tokens: int
) -> Any:
    """What `PREDICTORS` has for the task of this bundle, which it takes over."""
    module, kind = PREDICTORS[bundle.manifest.task].split(":")
    predictor = getattr(import_module(module), kind)(
        bundle, device=device, dtype=dtype, reason=reason, batch_tokens=batch_tokens
    )
    predictor.difference = None  # of `load(compare=...)`
    return predictor


class Classifier:
    """A bundle of classification, ready to answer. Calls from several threads are safe.

    Attributes: `manifest` (task, labels, thresholds, temperature), `model`, `tokenizer`, `folder`,
    `device`, `dtype`, and `reason`, why this precision was chosen.
    """

    OPTIONS = frozenset({"all_scores"})

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
        assert isinstance(bundle.model, classify.Classifier)
        self.model = for_inference(bundle.model, device, dtype, head="classifier")
        self.device = device
        self.dtype = dtype
        self.reason = reason
        self.batch_tokens = batch_tokens
        self.told_cut = False  # see `tell_cut`

    @overload
    def __call__(
        self,
        texts: str,
        pairs: str | None = None,
        *,
        top_k: int | None = None,
        all_scores: bool = False,
    ) -> Answer: ...

    @overload
    def __call__(
        self,
        texts: list[str] | list[tuple[str, str]],
        pairs: Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        all_scores: bool = False,
    ) -> list[Answer]: ...

    def __call__(
        self, texts: Any, pairs: Any = None, *, top_k: int | None = None, all_scores: bool = False
    ) -> Answer | list[Answer]:
        """Classify one text, or a list of texts or of (text, second text).

        One text gives one answer, a list gives a list in the same order. An answer holds `label`
        and `score` (its calibrated probability); of a multi-label model `labels` and `scores`; of
        a regression `score` alone. `all_scores` adds `scores` of every label, `top_k` those of
        the best k. Raises `FilbertError` that names the position of an item that is not a text.
        """
        if top_k is not None:
            check_count("top_k", top_k)
        rows, single = as_rows(texts, pairs, pair_model=self.manifest.pair)
        first, second = self.split(rows)
        answers = self.answers(first, second, all_scores=all_scores or top_k is not None)
        if top_k is not None:
            answers = [_best(answer, top_k) for answer in answers]
        return answers[0] if single else answers

    def stream(
        self,
        rows: Iterable[str | tuple[str, str]],
        *,
        window: int = WINDOW,
        all_scores: bool = False,
    ) -> Iterator[Answer]:
        """Answer an endless iterable, in order and in constant memory.

        `window` rows are held at once, three times as many where blocks overlap (from 256 on). The
        first windows are small, so that the first answers come at once. Raises as a call does;
        positions count from the beginning of the stream.
        """
        return stream(self, rows, window=window, all_scores=all_scores)

    def answer_rows(self, rows: Sequence[Any], *, all_scores: bool = False) -> list[Answer]:
        """Answers of rows that `problem` found good, in order."""
        return self.answers(*self.split(rows), all_scores=all_scores)

    def line(self, answer: Answer, row: Any = None) -> str:
        """An answer as one line for people."""
        return answer_text(answer, row)

    def evaluate(self, data: str | PathLike[str], **options: Any) -> dict[str, Any]:
        """Scores on the labelled rows of a file; see `filbert.infer.score_rows`."""
        from filbert.infer.score_rows import score_rows

        return score_rows(self, data, **options)

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The raw outputs of the head, (texts, labels) float32, windows of long texts pooled.

        Raises `FilbertError` where they are no finite numbers.
        """

        def block(rows: range) -> NDArray[np.float32]:
            cut = slice(rows.start, rows.stop)
            first, second = list(texts[cut]), None if pairs is None else list(pairs[cut])
            encoded = classify.encode(
                self.tokenizer,
                first,
                second,
                max_length=self.manifest.max_length,
                windows=self.manifest.windows,
                stride=self.manifest.stride,
            )
            tell_cut(
                self, encoded, first, second, longest=self.manifest.max_length,
                windows=self.manifest.windows,
            )  # fmt: skip
            found = classify.predict_logits(self.model, encoded, batch_tokens=self.batch_tokens)
            return finite(found, self.folder)

        return in_blocks(block, len(texts), self.model, width=self.model.config.num_labels)

    def answers(
        self, texts: Sequence[str], pairs: Sequence[str] | None, *, all_scores: bool = False
    ) -> list[Answer]:
        """Answers for texts that are known to be good; see `split`."""
        if not texts:
            return []
        return classify.decode(self.logits(texts, pairs), self.manifest, all_scores=all_scores)

    def split(self, rows: Sequence[Any], *, start: int = 0) -> tuple[list[str], list[str] | None]:
        """Check rows and part them into texts and second texts; see `check_rows`."""
        check_rows(self, rows, start=start)
        if not self.manifest.pair:
            return list(rows), None
        return [row[0] for row in rows], [row[1] for row in rows]

    def problem(self, row: Any) -> str | None:
        """What is wrong with a row, in words; None for a good one."""
        if self.manifest.pair:
            if isinstance(row, str):
                return "this model compares two texts; give (text, second text), or pairs=, --pair"
            if not (isinstance(row, tuple | list) and len(row) == 2):
                return f"expected a pair (text, second text), got {shown(row)}"
            return text_problem(row[0]) or text_problem(row[1])
        if is_pair(row):
            return "this model takes one text, got a pair"
        return text_problem(row)


def check_rows(predictor: Any, rows: Sequence[Any], *, start: int = 0, what: str = "item") -> None:
    """Raise `FilbertError` for a row that the model cannot read, naming its position (plus
    `start`) and `what` it is one of."""
    for index, row in enumerate(rows, start=start):
        problem = predictor.problem(row)
        if problem:
            raise FilbertError(f"{what} {index}: {problem}")


def stream(
    predictor: Any, rows: Iterable[Any], *, window: int = WINDOW, **options: Any
) -> Iterator[Answer]:
    """Answers of an endless iterable of rows by any predictor, in order and in constant memory.

    `window` rows are held at once, three times as many where blocks overlap (from 256 on); the
    first windows are small, so that the first answers come at once. Raises as `check_rows` does;
    positions count from the beginning of the stream. What stands before a bad row, or before the
    iterable fails, is answered.
    """
    check_count("window", window)
    if isinstance(rows, str | bytes | dict) or not isinstance(rows, Iterable):
        raise FilbertError(f"expected an iterable of texts, got {shown(rows)}")

    failed: list[Exception] = []

    def checked() -> Iterator[list[Any]]:
        start = 0
        for block in windows(until_failure(rows, failed), window):
            bad = next((place for place, row in enumerate(block) if predictor.problem(row)), None)
            yield block if bad is None else block[:bad]
            if bad is not None:
                check_rows(predictor, block[bad:], start=start + bad)
            start += len(block)

    answer: Callable[[list[Any]], list[Answer]] = partial(predictor.answer_rows, **options)
    workers = workers_for(predictor.model) if window >= BLOCK else 1  # few rows are to be quick
    for _, answers in in_order(answer, checked(), workers=workers, full=window):
        yield from answers
    if failed:
        raise failed[0]


def finite(numbers: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    """These numbers; raises `FilbertError` where they are none."""
    if not np.isfinite(numbers).all():
        raise FilbertError(
            f"{folder}: the model answers with NaN or infinity, so its weights are damaged. Fetch "
            "or copy the model again, or train it anew"
        )
    return numbers


def as_rows(texts: Any, pairs: Any, *, pair_model: bool) -> tuple[list[Any], bool]:
    """The forms that a call takes, as rows, and whether it was a single text or pair."""
    if isinstance(texts, str):
        if isinstance(pairs, list | tuple):
            raise FilbertError(f"one text but {len(pairs)} second texts in pairs")
        return [texts if pairs is None else (texts, pairs)], True
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | dict):
        raise FilbertError(f"expected a text or a list of texts, got {shown(texts)}")
    if isinstance(pairs, str):
        raise FilbertError(
            "pairs is one text but texts is a list; give as many second texts as texts"
        )
    rows = list(texts)
    if pairs is None:
        # To a model of pairs a bare tuple of two texts is one pair: a list of texts means nothing.
        lone = isinstance(texts, tuple) and [type(row) for row in rows] == [str, str]
        return ([tuple(rows)], True) if pair_model and lone else (rows, False)
    seconds = list(pairs)
    if len(seconds) != len(rows):
        raise FilbertError(f"{len(rows)} texts but {len(seconds)} second texts in pairs")
    return list(zip(rows, seconds, strict=True)), False


def windows(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` rows; the first hold 16, 32, 64 ... so that answers begin to flow early."""
    block: list[Any] = []
    limit = min(16, size)
    for row in rows:
        block.append(row)
        if len(block) == limit:
            yield block
            block, limit = [], min(limit * 2, size)
    if block:
        yield block


def answer_text(answer: Answer, row: Any = None) -> str:
    """An answer as one line for people, tab-separated; with `row`, the text it belongs to."""
    if "labels" in answer:
        chosen = ", ".join(answer["labels"]) or "(none)"
        parts = [
            chosen,
            ", ".join(f"{label} {score:.4f}" for label, score in answer["scores"].items()),
        ]
    elif "label" in answer:
        parts = [answer["label"], f"{answer['score']:.4f}"]
        if "scores" in answer:
            parts.append(
                ", ".join(f"{label} {score:.4f}" for label, score in answer["scores"].items())
            )
    else:
        parts = [f"{answer['score']:.4f}"]
    if row is not None:
        parts.append(row if isinstance(row, str) else " | ".join(row))
    return "\t".join(parts)


def as_json_text(answer: Answer) -> str:
    """An answer as one line of JSON that standard output can encode."""
    plain = "utf" not in (sys.stdout.encoding or "utf-8").lower()
    return json.dumps(answer, ensure_ascii=plain)


def check_count(name: str, value: Any, *, most: int = 2**31 - 1) -> None:
    """Raise `UsageError` unless `value` is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UsageError(
            f"{name} must be at least 1 and at most {most:,}, a whole number, got {shown(value)}"
        )


def _best(answer: Answer, count: int) -> Answer:
    scores = answer.get("scores")
    if scores is None:  # a regression has one number
        return answer
    ranked = sorted(scores.items(), key=lambda item: -item[1])[:count]
    return {**answer, "scores": dict(ranked)}


def is_pair(row: Any) -> bool:
    """Whether a row is two texts, which a model of single texts is told of in these words."""
    return isinstance(row, tuple | list) and [type(part) for part in row] == [str, str]


def text_problem(value: Any) -> str | None:
    """What is wrong with a text, in words; None for a good one. Every `problem` asks it: one text
    that the tokenizer refuses fails all that share its batch."""
    if isinstance(value, BadRow):
        return str(value)
    if not isinstance(value, str):
        return f"expected a text (str), got {shown(value)}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"half of a surrogate pair (U+{ord(value[error.start]):04X}, character "
            f"{error.start + 1}) is no character; write the character itself, or both halves"
        )
    return None


def shown(value: Any) -> str:
    """A value and its type, short, for a message."""
    if value is None:
        return "None (a missing value)"
    try:
        return f"{type(value).__name__} {value!r:.60}"
    except Exception:  # noqa: BLE001 - whatever a caller's class does there
        return f"{type(value).__name__}, whose repr() fails"
