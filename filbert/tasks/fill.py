"""Blanks: the words that a model expects at each `[MASK]` of a text.

    load("filbert-mini-en")("The capital of France is [MASK].")

Each blank gets its own list of words, from one look at the text with all blanks open. Where a text
has several, it is also filled as a whole: the blank that the model is surest of first, then the
others anew with that word in place, so that the words fit each other (the easy-first order of
Ghazvininejad et al. 2019, arXiv 1904.09324, with one word a round).

A target word that is several pieces is scored piece by piece, each one seeing those before it
while those behind it are hidden (Kauf and Ivanova 2023, arXiv 2305.10588, within one word): the
product is the probability of the word, given that so many pieces stand there.

A blank in a text over the model's length is asked in the window that has it in the middle. Only
the asked places go through the matrix of the vocabulary, and no place is ever padding. Devlin et
al. 2019, section 3.1 (task 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from filbert.data.packing import Ids, cut
from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForMaskedLM, BertForPreTraining
from filbert.model.device import go_native
from filbert.model.modern import ModernBertForMaskedLM

if TYPE_CHECKING:
    from filbert.text import BertTokenizer

WordModel = BertForMaskedLM | BertForPreTraining | ModernBertForMaskedLM
Answer = dict[str, Any]
MOST_ROWS = 256  # places whose (vocabulary,) scores are held at once
_NEAR_MASKS = ("[mask]", "<mask>", "[Mask]", "[blank]", "___", "＿＿")


@dataclass(frozen=True)
class Blanks:
    """A text with blanks. ids: (tokens,) without special tokens around them; places: numbers of the
    blanks among them; spans: their characters in the raw text."""

    text: str
    ids: Ids
    places: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class Question(NamedTuple):
    """Which word stands at each of `asked`, for a reader who sees ids[start:stop] without what is
    at the places `hidden`. Places count in `ids`."""

    ids: Ids
    start: int
    stop: int
    asked: tuple[int, ...]
    hidden: tuple[int, ...] = ()


def problem(tokenizer: BertTokenizer, text: Any) -> str | None:
    """What is wrong with a text to fill, in words; None for a good one."""
    if not isinstance(text, str):
        return f"expected a text (str), got {type(text).__name__} {text!r:.60}"
    mask = tokenizer.mask_token
    if mask is None:
        return "the model's vocabulary has no mask token, so it cannot fill blanks"
    if mask not in text:
        near = next((mark for mark in _NEAR_MASKS if mark in text), None)
        hint = "" if near is None else f" The text has {near!r}; write {mask} instead."
        return f"the text has no blank; write {mask} where a word is missing.{hint}"
    return None


def read_blanks(tokenizer: BertTokenizer, text: str) -> Blanks:
    """The ids of a text and where its blanks are; see `problem` for what is refused."""
    told = problem(tokenizer, text)
    if told:
        raise FilbertError(told)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(coded["input_ids"], dtype=np.int64)
    places = tuple(np.flatnonzero(ids == tokenizer.mask_token_id).tolist())
    offsets = coded["offset_mapping"]
    return Blanks(text, ids, places, tuple(offsets[place] for place in places))


def window_around(place: int, *, length: int, room: int) -> tuple[int, int]:
    """First and last + 1 of the `room` tokens that have `place` in their middle, of `length`."""
    start = min(max(0, place - room // 2), max(0, length - room))
    return start, min(length, start + room)


def ask(ids: Ids, places: Sequence[int], *, max_length: int) -> list[Question]:
    """Questions for these places, in their order: one for all where the text fits the model."""
    spans: dict[tuple[int, int], list[int]] = {}
    for place in places:
        span = window_around(place, length=len(ids), room=max_length - 2)
        spans.setdefault(span, []).append(place)
    return [Question(ids, *span, tuple(asked)) for span, asked in spans.items()]


@torch.no_grad()
def word_chances(
    model: WordModel,
    tokenizer: BertTokenizer,
    questions: Sequence[Question],
    *,
    batch_tokens: int = 4096,
) -> Iterator[tuple[Ids, Tensor]]:
    """The log-probabilities of all words at the asked places, batch by batch.

    Yields (rows,) numbers of asked places, counted over all questions end to end, and (rows,
    vocabulary) float32; every place once, in the order of computation. Questions of equal length
    share a batch, of at most `batch_tokens` tokens and `MOST_ROWS` places (a question with more
    of either goes alone).
    """
    assert tokenizer.mask_token_id is not None
    model.eval()
    counts = np.asarray([len(question.asked) for question in questions], dtype=np.int64)
    sizes = np.asarray([q.stop - q.start + 2 for q in questions], dtype=np.int64)
    firsts = np.cumsum(counts) - counts  # (questions,) number of each one's first place
    cost = np.maximum(sizes, counts * max(1, batch_tokens // MOST_ROWS))
    order = np.argsort(-sizes, kind="stable")
    device = model.device
    for batch in cut(order, cost, batch_tokens=batch_tokens, batch_size=None):
        ids, at, begin = [], [], 0
        for number in batch.tolist():
            question = questions[number]
            body = question.ids[question.start : question.stop]
            if question.hidden:
                body = body.copy()
                body[[place - question.start for place in question.hidden]] = (
                    tokenizer.mask_token_id
                )
            ids += [[tokenizer.cls_token_id], body, [tokenizer.sep_token_id]]
            at += [begin + 1 + place - question.start for place in question.asked]
            begin += len(body) + 2
        output = model(
            input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device),
            lengths=torch.from_numpy(sizes[batch]).to(device),
            predict_at=torch.tensor(at, device=device),
        )
        logits = output.prediction_logits if "prediction_logits" in output else output.logits
        numbers = np.concatenate([firsts[n] + np.arange(counts[n]) for n in batch])
        yield numbers, torch.log_softmax(logits.float(), -1)  # (rows, vocabulary)


def for_inference(model: WordModel, device: torch.device, dtype: torch.dtype) -> WordModel:
    """Move `model` to where and how it computes answers. The matrix of the vocabulary stays float32
    where the encoder does not: half-precision scores would tie like words."""
    if dtype == torch.float32:
        go_native(model.to(device=device).eval(), dtype)
        return model
    modern, head = isinstance(model, ModernBertForMaskedLM), model.get_submodule
    biased: Any = head("decoder" if modern else "cls.predictions")
    decoder: Any = head("decoder" if modern else "cls.predictions.decoder")
    before = head("head" if modern else "cls.predictions.transform.LayerNorm")
    # copies: the matrix is that of the embedding, which will be rounded
    weight, bias = decoder.weight.detach().clone(), biased.bias
    bias = None if bias is None else bias.detach().clone()
    model.to(device=device).eval()
    go_native(model, dtype)
    decoder.weight = nn.Parameter(weight.to(device), requires_grad=False)
    if bias is not None:
        biased.bias = nn.Parameter(bias.to(device), requires_grad=False)
    before.register_forward_hook(_out_float32)
    return model


def _out_float32(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def target_pieces(tokenizer: BertTokenizer, word: Any) -> list[int]:
    """The ids of a target word: one where the vocabulary holds it, as it is or as text is prepared.

    Raises `UsageError` for a word that the vocabulary cannot spell.
    """
    if not isinstance(word, str) or not word.strip():
        raise UsageError(f"targets: expected words, got {word!r:.60}")
    known = tokenizer.get_vocab().get(word)
    if known is not None:
        return [known]
    ids: list[int] = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise UsageError(
            f"target {word!r}: the model's vocabulary cannot spell it, so it has no probability; "
            "leave it out, or ask a model that knows its characters"
        )
    return ids


def fill(
    model: WordModel,
    tokenizer: BertTokenizer,
    rows: Sequence[Blanks],
    *,
    max_length: int,
    top_k: int = 5,
    targets: Sequence[str] | None = None,
    batch_tokens: int = 4096,
) -> list[Answer]:
    """An answer for each text, in order.

    `blanks`: for each blank its characters in the text, `start` and `end`, and `words`, the best
    `top_k` or all `targets`, each with `word` and `score` (a probability), the best first; a
    target of several pieces also has `pieces`. `text`: the text with all blanks filled, and
    `score`, the probability of what was filled in, word after word; not with `targets`.
    """
    options = {"max_length": max_length, "batch_tokens": batch_tokens}
    pieces = None if targets is None else {t: target_pieces(tokenizer, t) for t in targets}
    questions = [q for row in rows for q in ask(row.ids, row.places, max_length=max_length)]
    asked = sum(len(question.asked) for question in questions)
    words: list[list[Answer]] = [[] for _ in range(asked)]
    best: list[tuple[float, int]] = [(0.0, 0)] * asked
    special = torch.tensor(tokenizer.all_special_ids, device=model.device)
    for numbers, chances in word_chances(model, tokenizer, questions, batch_tokens=batch_tokens):
        if pieces is None:
            found = _top(tokenizer, chances, top_k)
        else:
            found = _single_targets(chances, pieces)
        for number, row_words in zip(numbers.tolist(), found, strict=True):
            words[number] = row_words
        for number, one in zip(numbers.tolist(), _surest(chances, special), strict=True):
            best[number] = one
    if pieces is not None:
        _spell_targets(model, tokenizer, rows, pieces, words, **options)
    answers: list[Answer] = []
    first = 0
    firsts = []
    for row in rows:
        blanks = [
            {"start": start, "end": end, "words": words[first + number]}
            for number, (start, end) in enumerate(row.spans)
        ]
        answers.append({"blanks": blanks})
        firsts.append(best[first : first + len(row.places)])
        first += len(row.places)
    if pieces is None:
        filled = _fill_together(model, tokenizer, rows, firsts, special, **options)
        answers = [{**new, **old} for new, old in zip(filled, answers, strict=True)]
    return answers


def _top(tokenizer: BertTokenizer, chances: Tensor, top_k: int) -> list[list[Answer]]:
    values, ids = chances.topk(min(top_k, chances.shape[1]), dim=-1)
    return [
        [
            {"word": word, "score": score}
            for word, score in zip(tokenizer.convert_ids_to_tokens(row), scores, strict=True)
        ]
        for row, scores in zip(ids.tolist(), values.exp().tolist(), strict=True)
    ]


def _single_targets(chances: Tensor, pieces: dict[str, list[int]]) -> list[list[Answer]]:
    """Targets of one piece; the others come later, see `_spell_targets`."""
    single = {word: ids[0] for word, ids in pieces.items() if len(ids) == 1}
    scores = chances[:, list(single.values())].exp().tolist()
    return [
        [{"word": word, "score": score} for word, score in zip(single, row, strict=True)]
        for row in scores
    ]


def _spell_targets(
    model: WordModel,
    tokenizer: BertTokenizer,
    rows: Sequence[Blanks],
    pieces: dict[str, list[int]],
    words: list[list[Answer]],
    *,
    max_length: int,
    batch_tokens: int,
) -> None:
    """Score the targets of several pieces at every blank and put each list in order."""
    questions, wanted, owners = [], [], []
    number = 0
    for row in rows:
        for place in row.places:
            for word, ids in pieces.items():
                if len(ids) == 1:
                    continue
                if len(ids) > max_length - 2:
                    raise UsageError(f"target {word!r:.60} has more pieces than the model reads")
                for step, piece in enumerate(ids):
                    body = np.concatenate([row.ids[:place], ids, row.ids[place + 1 :]])
                    body[place + step : place + len(ids)] = tokenizer.mask_token_id
                    questions += ask(body, [place + step], max_length=max_length)
                    wanted.append(piece)
                    owners.append((number, word))
            number += 1
    totals = dict.fromkeys(owners, 0.0)
    for numbers, chances in word_chances(model, tokenizer, questions, batch_tokens=batch_tokens):
        columns = torch.tensor([wanted[n] for n in numbers], device=chances.device)
        scores = chances.gather(1, columns[:, None])[:, 0].tolist()
        for place, score in zip(numbers.tolist(), scores, strict=True):
            totals[owners[place]] += score
    for (number, word), total in totals.items():
        spelled = tokenizer.convert_ids_to_tokens(pieces[word])
        words[number].append({"word": word, "score": float(np.exp(total)), "pieces": spelled})
    for found in words:
        found.sort(key=lambda answer: -answer["score"])


def _surest(chances: Tensor, special: Tensor) -> list[tuple[float, int]]:
    """(log-probability, id) of the best word of each row that is no special token."""
    values, ids = chances.index_fill(1, special, -torch.inf).max(-1)
    return list(zip(values.tolist(), ids.tolist(), strict=True))


def _fill_together(
    model: WordModel,
    tokenizer: BertTokenizer,
    rows: Sequence[Blanks],
    best: list[list[tuple[float, int]]],
    special: Tensor,
    *,
    max_length: int,
    batch_tokens: int,
) -> list[Answer]:
    """Fill each text's surest blank, look again at those that are left, until none is. `best`: of
    each text the surest word of each blank, all blanks being open."""
    ids = [row.ids.copy() for row in rows]
    chosen: list[dict[int, int]] = [{} for _ in rows]  # place -> word
    totals = [0.0] * len(rows)
    open_places = [list(row.places) for row in rows]
    now = [dict(zip(row.places, found, strict=True)) for row, found in zip(rows, best, strict=True)]
    while True:
        for number, left in enumerate(open_places):
            if left:
                place = max(left, key=lambda p, found=now[number]: found[p][0])  # type: ignore[misc]
                value, word = now[number][place]
                chosen[number][place] = ids[number][place] = word
                totals[number] += value
                left.remove(place)
        questions, owners = [], []
        for number, left in enumerate(open_places):
            for question in ask(ids[number], left, max_length=max_length):
                questions.append(question)
                owners += [(number, place) for place in question.asked]
        if not questions:
            break
        for numbers, chances in word_chances(
            model, tokenizer, questions, batch_tokens=batch_tokens
        ):
            for asked, one in zip(numbers.tolist(), _surest(chances, special), strict=True):
                number, place = owners[asked]
                now[number][place] = one
    return [
        {
            "text": fill_in(
                row,
                tokenizer.convert_ids_to_tokens([words[place] for place in row.places]),
            ),
            "score": float(np.exp(total)),
        }
        for row, words, total in zip(rows, chosen, totals, strict=True)
    ]


def fill_in(row: Blanks, words: Sequence[str]) -> str:
    """The raw text with words in place of its blanks; a `##` piece joins what stands before it."""
    parts: list[str] = []
    end = 0
    for (start, stop), word in zip(row.spans, words, strict=True):
        before = row.text[end:start]
        if word.startswith("##") and len(word) > 2:
            before, word = before.rstrip(), word[2:]
        parts += [before, word]
        end = stop
    return "".join([*parts, row.text[end:]])
