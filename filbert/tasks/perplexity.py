"""Pseudo-perplexity: how expected a text is to a model of masked words.

    load("filbert-mini-en").perplexity("The river flows into the sea.")

Each token of the text is hidden in turn and the model asked for it; the sum of the logarithms of
its answers is the pseudo-log-likelihood of the text, exp(-sum / tokens) the pseudo-perplexity
(Salazar et al. 2020, arXiv 1910.14659, equations 1 and 3). [CLS] and [SEP] are not scored.

Perplexities of models with different vocabularies differ by the vocabulary already; `per_word` does
not: it counts words as every BERT tokenizer cuts them before it looks at its vocabulary (at blanks
and punctuation, each Chinese character being one). A text of n tokens costs n passes over n
tokens, in packed batches; a token of a text over the model's length is asked in the window that has
it in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from filbert.tasks.fill import Answer, Question, WordModel, window_around, word_chances

if TYPE_CHECKING:
    from filbert.text import BertTokenizer

TEXTS = 64  # whose questions are held at once


def problem(tokenizer: BertTokenizer, text: Any) -> str | None:
    """What is wrong with a text to score, in words; None for a good one."""
    if not isinstance(text, str):
        return f"expected a text (str), got {type(text).__name__} {text!r:.60}"
    if tokenizer.mask_token is None:
        return "the model's vocabulary has no mask token, so it cannot score texts"
    if tokenizer.mask_token in text:
        return (
            f"the text has a blank ({tokenizer.mask_token}), so it is no whole text to score; "
            "fill it first, or ask for its words without --perplexity"
        )
    if not text.strip():
        return "the text is empty: there is no word to score"
    return None


def pseudo_perplexity(
    model: WordModel,
    tokenizer: BertTokenizer,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_tokens: int = 4096,
    each: bool = False,
) -> list[Answer]:
    """An answer for each text, in order; texts are held to `problem` before.

    `log_likelihood` (the sum, in nats), `tokens`, `words`, `perplexity` (per token), `per_word`,
    `right` (tokens that the model's first guess hits) and `unknown`, how many tokens are [UNK]:
    their likelihood says nothing of the text. With `each` also `pieces`: for every token its
    `piece`, `start`, `end` in the text and `log_probability`. A text of which the tokenizer
    keeps nothing (control characters alone) has no tokens, and None for both perplexities.
    """
    answers: list[Answer] = []
    for first in range(0, len(texts), TEXTS):
        block = list(texts[first : first + TEXTS])
        answers += _scored(model, tokenizer, block, max_length, batch_tokens, each)
    return answers


def _scored(
    model: WordModel,
    tokenizer: BertTokenizer,
    texts: list[str],
    max_length: int,
    batch_tokens: int,
    each: bool,
) -> list[Answer]:
    coded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    questions: list[Question] = []
    ids_of = [np.asarray(ids, dtype=np.int64) for ids in coded["input_ids"]]
    for ids in ids_of:
        for place in range(len(ids)):
            span = window_around(place, length=len(ids), room=max_length - 2)
            questions.append(Question(ids, *span, (place,), hidden=(place,)))
    gold = np.concatenate(ids_of) if questions else np.zeros(0, np.int64)  # (tokens,)
    scores = np.empty(len(gold), np.float64)
    right = np.empty(len(gold), bool)
    for numbers, chances in word_chances(model, tokenizer, questions, batch_tokens=batch_tokens):
        words = torch.from_numpy(gold[numbers]).to(chances.device)
        scores[numbers] = chances.gather(1, words[:, None])[:, 0].cpu().numpy()
        right[numbers] = (chances.argmax(-1) == words).cpu().numpy()
    answers, begin = [], 0
    for number, ids in enumerate(ids_of):
        part = scores[begin : begin + len(ids)]
        numbers_of_words = {word for word in coded.word_ids(number) if word is not None}
        answer = summary(
            log_likelihood=float(part.sum()),
            tokens=len(ids),
            words=len(numbers_of_words),
            right=int(right[begin : begin + len(ids)].sum()),
            unknown=int((ids == tokenizer.unk_token_id).sum()),
        )
        if each:
            pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
            answer["pieces"] = [
                {"piece": piece, "start": start, "end": end, "log_probability": float(score)}
                for piece, (start, end), score in zip(
                    pieces, coded["offset_mapping"][number], part, strict=True
                )
            ]
        answers.append(answer)
        begin += len(ids)
    return answers


def summary(
    *, log_likelihood: float, tokens: int, words: int, right: int, unknown: int
) -> dict[str, Any]:
    """The counts with what follows from them."""
    return {
        "log_likelihood": log_likelihood,
        "tokens": tokens,
        "words": words,
        "perplexity": _exp(-log_likelihood, tokens),
        "per_word": _exp(-log_likelihood, words),
        "right": right,
        "unknown": unknown,
    }


def total(answers: Iterable[Answer]) -> dict[str, Any]:
    """The answers of several texts as that of one corpus (Salazar et al., equation 3): all
    log-likelihoods over all tokens, so that a long text counts for more than a short one."""
    names = ("log_likelihood", "tokens", "words", "right", "unknown")
    sums: dict[str, Any] = dict.fromkeys(names, 0)
    for answer in answers:
        for name in names:
            sums[name] += answer[name]
    return summary(**{**sums, "log_likelihood": float(sums["log_likelihood"])})


def _exp(loss: float, count: int) -> float | None:
    if not count:
        return None
    try:
        return math.exp(loss / count)
    except OverflowError:
        return None
