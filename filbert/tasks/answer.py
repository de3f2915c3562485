"""Extractive question answering: the part of a text that answers a question, or that nothing does.

The six functions of a task, used alike in training, evaluation, prediction and serving: `read`,
`encode`, `head`, `loss`, `decode`, `score`. A text of any length is read in windows; an example of
training is a window. A span that begins at token i and ends at token j has the score
start[i] + end[j]; "no answer" has that of [CLS], the lowest of all windows. The best spans of all
windows compete (`filbert/tasks/answer_spans.py`).

    filbert train answer --data train-v2.0.json --dev dev-v2.0.json --base MODEL --out runs/qa

Devlin et al. 2019, sections 4.2 and 4.3.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from filbert.data.packing import Batch, Encoded, Ids, plan_once, runs
from filbert.data.questions import Questions, read_questions
from filbert.errors import FilbertError
from filbert.model.config import BertConfig
from filbert.model.inputs import as_grid
from filbert.model.modern_config import read_any_config
from filbert.model.span_head import BertForQuestionAnswering
from filbert.sources import resolve
from filbert.tasks.answer_scores import (
    Rule,
    best_threshold,
    fit_confidence,
    score_answers,
)
from filbert.tasks.answer_spans import AnswerSettings, Spans, best_spans, probabilities
from filbert.tasks.calibrate import calibration_record, expected_calibration_error
from filbert.text.passages import Passages, encode_passages

if TYPE_CHECKING:
    from filbert.bundle import Manifest
    from filbert.text import BertTokenizer

Floats = NDArray[np.float32]
Answer = dict[str, Any]

METRICS = ("f1", "exact_match", "loss")
N_BEST = 20  # spans of a question that compete, as in the field's scripts


def settings_of(manifest: Manifest) -> AnswerSettings:
    """The settings of a bundle; `FilbertError` for others than these."""
    try:
        return AnswerSettings.model_validate(manifest.settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FilbertError(f"filbert.json, settings, '{where}': {first['msg']}") from None


def read(path: str, options: Any) -> Questions:
    """Questions of a file; `options` carries `encoding` and `mismatch`."""
    return read_questions(path, encoding=options.encoding, mismatch=options.mismatch)


def encode(
    tokenizer: BertTokenizer, questions: Questions, *, max_length: int, stride: int
) -> Passages:
    """Windows of at most `max_length` tokens (specials included) of each question."""
    return encode_passages(
        tokenizer,
        questions.texts,
        questions.contexts,
        questions.owner,
        max_length=max_length,
        stride=stride,
    )


def windows_of(passages: Passages) -> Encoded:
    """The windows as examples of their own, for the packing of batches."""
    count = len(passages.context_at)
    return Encoded(
        passages.ids, passages.token_type_ids, passages.window_starts, np.arange(count + 1)
    )


def targets(passages: Passages, questions: Questions) -> tuple[Ids, NDArray[np.bool_]]:
    """What each window shall point to, and which windows can be learnt from.

    (windows, 2) int64: the places in the window of the answer's first and last token, 0 ([CLS])
    where the window does not hold all of it. (windows,) bool: False where the question has
    answers, but none whose place in the text is known. The first answer of each question counts.
    """
    known = np.ones(len(questions), dtype=bool)
    characters = np.zeros((len(questions), 2), dtype=np.int64)
    for place, answers in enumerate(questions.answers):
        gold = next((answer for answer in answers if answer.start is not None), None)
        if gold is not None and gold.start is not None:
            characters[place] = gold.start, gold.start + len(gold.text)
        known[place] = gold is not None or not answers
    has_answer = characters[:, 1] > 0

    # One search for all: the tokens of a context lie beyond those of the contexts before it.
    context = np.repeat(np.arange(len(questions.contexts)), np.diff(passages.context_starts))
    far = 1 + max((len(text) for text in questions.contexts), default=0)
    begins = passages.spans[:, 0] + context * far
    ends = passages.spans[:, 1] + context * far
    base = questions.owner * far
    first = np.searchsorted(ends, base + characters[:, 0], side="right")  # first that ends behind
    last = np.searchsorted(begins, base + characters[:, 1], side="left") - 1
    known &= ~has_answer | (first <= last)  # an answer of blanks alone has no token

    asked = passages.asked
    from_here = first[asked] - passages.token_from
    to_here = last[asked] - passages.token_from
    inside = has_answer[asked] & (from_here >= 0) & (to_here < passages.token_count)
    inside &= from_here <= to_here
    places = np.stack([from_here, to_here], axis=1) + passages.context_at[:, None]
    return np.where(inside[:, None], places, 0), known[asked]


def head(base: str, *, revision: str | None = None, **changes: Any) -> BertForQuestionAnswering:
    """The pre-trained encoder of `base` with a new span head, drawn from torch's seed."""
    folder = resolve(base, revision=revision)
    config = read_any_config(folder)
    if not isinstance(config, BertConfig):
        raise FilbertError(
            f"{base} is a {config.title}; answer trains BERT models (and RoBERTa, DistilBERT, "
            "ELECTRA, which are read as one). Choose another --base"
        )
    return BertForQuestionAnswering.from_pretrained(folder, new_head=True, **changes)


def logits_of(model: BertForQuestionAnswering, batch: Batch) -> tuple[Tensor, Tensor]:
    """Start and end logits of a packed batch, (tokens,) float32 each, on the model's device.

    The batch is computed packed, or as a padded grid if the model's attention path is another.
    """
    ids, types, lengths = (
        torch.from_numpy(x).to(model.device)
        for x in (batch.input_ids, batch.token_type_ids, batch.lengths)
    )
    if vars(model.base_model)["attention_path"] == "packed":
        out = model(input_ids=ids, token_type_ids=types, lengths=lengths)
        return out.start_logits.float(), out.end_logits.float()
    grid = as_grid(ids, types, lengths)
    out = model(**grid)
    real = grid["attention_mask"].bool()
    return out.start_logits.float()[real], out.end_logits.float()[real]  # -> (tokens,)


def loss(
    start: Tensor, end: Tensor, lengths: Tensor, gold: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """(windows,) loss of each: the mean cross-entropy of its first and its last token.

    start, end: (tokens,) float32 of a packed batch; lengths: (windows,); gold: (windows, 2).
    """
    longest = int(lengths.max())
    real = torch.arange(longest, device=start.device)[None] < lengths[:, None]  # (windows, longest)
    total = start.new_zeros(len(lengths))
    for logits, places in ((start, gold[:, 0]), (end, gold[:, 1])):
        grid = logits.new_full(real.shape, -torch.inf).masked_scatter(real, logits)
        chances = grid.log_softmax(-1)
        losses = -chances.gather(1, places[:, None])[:, 0]
        if label_smoothing:
            others = -chances.masked_fill(~real, 0.0).sum(-1) / lengths
            losses = (1 - label_smoothing) * losses + label_smoothing * others
        total = total + losses
    return total / 2


@torch.no_grad()
def predict_logits(
    model: BertForQuestionAnswering, encoded: Encoded, *, batch_tokens: int = 4096
) -> Floats:
    """(2, tokens) float32: start and end logits of all windows, in input order."""
    model.eval()
    out = np.empty((2, len(encoded.input_ids)), dtype=np.float32)
    for windows in plan_once(encoded.tokens, batch_tokens=batch_tokens):
        batch = encoded.gather(windows)
        both = torch.stack(logits_of(model, batch)).cpu().numpy()  # (2, tokens of the batch)
        out[:, runs(encoded.window_starts[windows], batch.lengths)] = both
    return out


def find(
    passages: Passages, logits: Floats, *, max_answer_tokens: int, n_best: int = N_BEST
) -> Spans:
    """The best spans of each question; see `best_spans`."""
    return best_spans(passages, logits, n_best=n_best, max_answer_tokens=max_answer_tokens)


def decode(
    spans: Spans,
    contexts: Sequence[str],
    settings: AnswerSettings,
    *,
    temperature: float = 1.0,
    n_best: int = 1,
) -> list[Answer]:
    """Answers for people: `{"answer", "start", "end", "score"}`, so that
    context[start:end] == answer; an empty answer without places where nothing answers.

    `contexts`: that of each question. `score` is a calibrated probability. With `n_best` above 1
    also `candidates`, that many such answers, the likeliest first.
    """
    chances = probabilities(spans, settings, temperature=temperature)
    silent = spans.silent(settings)
    answers = []
    for place, context in enumerate(contexts):
        listed = [
            _answer(context, a, b, float(p))
            for a, b, p in zip(
                spans.begin[place], spans.end[place], chances[place, 1:], strict=True
            )
            if a >= 0
        ]
        nothing = {"answer": "", "start": None, "end": None, "score": float(chances[place, 0])}
        best = nothing if silent[place] or not listed else listed[0]
        answer = dict(best)
        if n_best > 1:
            others = [nothing, *listed] if settings.no_answer else listed
            ranked = sorted(others, key=lambda item: -item["score"])
            answer["candidates"] = ranked[:n_best]
        answers.append(answer)
    return answers


def cut_out(context: str, begin: int, end: int) -> tuple[int, int]:
    """The characters of an answer whose tokens stand for `begin` to `end`: marks that combine with
    the last letter belong to it, though a tokenizer that strips accents leaves them behind."""
    begin, end = int(begin), int(end)
    while end < len(context) and unicodedata.category(context[end]) in ("Mn", "Me", "Mc"):
        end += 1
    return begin, end


def _answer(context: str, begin: int, end: int, score: float) -> Answer:
    begin, end = cut_out(context, begin, end)
    return {"answer": context[begin:end], "start": begin, "end": end, "score": score}


def fit(
    spans: Spans, questions: Questions, *, rule: Rule, no_answer: bool, max_answer_tokens: int
) -> tuple[AnswerSettings, float]:
    """Settings with the threshold that suits these questions best, and the temperature."""
    settings = AnswerSettings(no_answer=no_answer, max_answer_tokens=max_answer_tokens)
    contexts = [questions.contexts[number] for number in questions.owner]
    golds = [[gold.text for gold in answers] for answers in questions.answers]
    if no_answer:
        always = settings.model_copy(update={"no_answer": False})
        texts = [answer["answer"] for answer in decode(spans, contexts, always)]
        _, if_answered = score_answers(texts, golds, rule=rule)
        if_silent = np.asarray([not gold for gold in golds], dtype=np.float64)
        threshold = best_threshold(spans.gap, if_answered, if_silent)
        settings = settings.model_copy(update={"threshold": threshold})
    texts = [answer["answer"] for answer in decode(spans, contexts, settings)]
    exact, _ = score_answers(texts, golds, rule=rule)
    silent = spans.silent(settings)

    def confidence(temperature: float) -> NDArray[np.float64]:
        chances = probabilities(spans, settings, temperature=temperature)
        return np.where(silent, chances[:, 0], chances[:, 1])

    return settings, fit_confidence(confidence, exact > 0)


def score(answers: Sequence[Answer], questions: Questions, *, rule: Rule) -> dict[str, Any]:
    """The field's measures, 0 to 1: `f1`, `exact_match`, `ece` (how far the scores of the answers
    are from how often they are exactly right), and where some questions have no answer, F1 of
    those that have one and the share of the others that stayed unanswered; `rows`."""
    golds = [[gold.text for gold in gold_answers] for gold_answers in questions.answers]
    exact, f1 = score_answers([answer["answer"] for answer in answers], golds, rule=rule)
    chances = np.asarray([answer["score"] for answer in answers])
    scores: dict[str, Any] = {"f1": float(f1.mean()), "exact_match": float(exact.mean())}
    if questions.some_unanswerable:
        has = np.asarray([bool(gold) for gold in golds])
        scores["f1_answerable"] = float(f1[has].mean()) if has.any() else None
        scores["accuracy_unanswerable"] = float(f1[~has].mean())
    scores["ece"] = expected_calibration_error(
        np.clip(chances, 0, 1)[:, None], (exact > 0).astype(np.int64)[:, None]
    )
    scores["rows"] = len(answers)
    return scores


def calibration(
    spans: Spans, questions: Questions, settings: AnswerSettings, *, rule: Rule, temperature: float
) -> dict[str, Any] | None:
    """How often answers are exactly right at each level of their score, without the temperature and
    with it; what the report page draws."""
    contexts = [questions.contexts[number] for number in questions.owner]
    golds = [[gold.text for gold in answers] for answers in questions.answers]
    sides = [decode(spans, contexts, settings, temperature=t) for t in (1.0, temperature)]
    exact, _ = score_answers([answer["answer"] for answer in sides[0]], golds, rule=rule)
    before, after = (np.clip([answer["score"] for answer in side], 0, 1) for side in sides)
    return calibration_record(before, after, exact > 0, temperature=temperature)


def mistakes(
    answers: Sequence[Answer], questions: Questions, *, rule: Rule, count: int = 20
) -> list[dict[str, Any]]:
    """The surest answers that are not exactly right: `id`, `text` (the question), `pair` (None),
    `gold`, `predicted`, `probability`."""
    golds = [[gold.text for gold in gold_answers] for gold_answers in questions.answers]
    exact, _ = score_answers([answer["answer"] for answer in answers], golds, rule=rule)
    wrong = np.flatnonzero(exact == 0)
    surest = sorted(wrong.tolist(), key=lambda place: -answers[place]["score"])
    return [
        {
            "id": questions.ids[i],
            "text": questions.texts[i],
            "pair": None,
            "gold": " | ".join(dict.fromkeys(golds[i])) or "(no answer)",
            "predicted": answers[i]["answer"] or "(no answer)",
            "probability": answers[i]["score"],
        }
        for i in surest[:count]
    ]
