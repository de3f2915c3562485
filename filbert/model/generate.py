"""Generation: the words of a target text, one after another, from an encoder-decoder.

    written = generate(model, ids, lengths, search=Search(beams=4, length_penalty=1.0))
    written[0][0].tokens                      # the best text of the first source, as ids

Greedy (`beams=1`), beam search or sampling, in batches; sources are packed, a source whose text is
finished leaves the batch, and keys and values are cached (`filbert.model.cache`). Search follows
`generate` of Hugging Face Transformers in every rule, so that the same weights write the same text:
what counts as finished, the length penalty, when a search may stop, which n-grams are barred.

Sampling draws one number for each text and step from (seed, number of the text), so that a text
does not depend on which others stood in its batch. Where the number comes from the source, as in
`filbert.tasks.translate.draw_number`, neither does it depend on its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from filbert.errors import FilbertError, UsageError
from filbert.model.cache import Cache
from filbert.model.native_write import NativeWriter
from filbert.model.seq2seq import BertForSeq2SeqLM

NEVER = -1e9  # the score of what is not there, as Transformers has it
MOST_BEAMS = 64  # far more than helps; each costs as much memory as a text
# of the numbers of a search: the least, the most, the kind
RANGES: tuple[tuple[str, float, float, Any], ...] = (
    ("beams", 1, MOST_BEAMS, Integral),
    ("max_tokens", 1, 2**31 - 1, Integral),
    ("min_tokens", 0, 2**31 - 1, Integral),
    ("length_penalty", -10, 10, Real),
    ("no_repeat_ngram", 0, 100, Integral),
    ("best", 1, MOST_BEAMS, Integral),
    ("temperature", 0.001, 1000, Real),
    ("top_k", 0, 2**31 - 1, Integral),
    ("top_p", 0, 1, Real),
    ("seed", 0, 2**62, Integral),
)
BLOCKS = 64  # words that are compared at once when the best of a vocabulary are looked for


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to write.

    beams: texts kept at a time; 1 is greedy. max_tokens, min_tokens: of a text, the end token
    counted in the first. length_penalty: a text's log-probability is divided by its length to this
    power. no_repeat_ngram: no run of so many tokens twice in a text (0: off). early_stopping: stop
    a source when `beams` texts are finished (True), when the best running one cannot become better
    at its present length (False), or at any length ("never"). best: how many texts of each source.
    sample: draw words, at `temperature`, from the `top_k` likeliest (0: all) that make up `top_p`.
    """

    beams: int = 4
    max_tokens: int = 128
    min_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    early_stopping: bool | Literal["never"] = False
    best: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most, kind in RANGES:
            value = getattr(self, name)
            right = isinstance(value, kind) and not isinstance(value, bool)
            if not right or not least <= value <= most:  # NaN is in no range
                whole = "a whole number" if kind is Integral else "a number"
                raise UsageError(f"{name} must be {whole} from {least} to {most}, got {value!r}")
        wrong = [
            (self.min_tokens > self.max_tokens,
             f"min_tokens must be from 0 to max_tokens, {self.max_tokens}", self.min_tokens),
            (self.best > self.beams, f"best must be from 1 to beams, {self.beams}", self.best),
            (self.sample and self.beams > 1, "sampling writes one text, so beams must be 1",
             self.beams),
            (not 0 < self.top_p <= 1, "top_p must be over 0 and at most 1", self.top_p),
            (self.early_stopping not in (True, False, "never"),
             "early_stopping must be true, false or never", self.early_stopping),
        ]  # fmt: skip
        for is_wrong, what, value in wrong:
            if is_wrong:
                raise UsageError(f"{what}, got {value!r}")


@dataclass(frozen=True)
class Written:
    """A text: its `tokens` without start and end, `score`, the log-probability over length to the
    power of the penalty, and whether it came to an end by itself."""

    tokens: list[int]
    score: float
    finished: bool


@torch.no_grad()
def generate(
    model: BertForSeq2SeqLM,
    input_ids: Tensor,
    lengths: Tensor,
    *,
    token_type_ids: Tensor | None = None,
    search: Search | None = None,
    numbers: list[int] | None = None,
) -> list[list[Written]]:
    """The `search.best` texts of each source, best first.

    input_ids: (source tokens,) packed, lengths: (texts,), both int64; numbers: of the texts, for
    sampling (else 0, 1, 2 ...). Raises `FilbertError` where the configuration does not name the
    tokens that begin and end a text, or texts may become longer than the decoder's positions.
    """
    search = search or Search()
    config = model.config
    start, end = config.decoder_start_token_id, config.eos_token_id
    if start is None or end is None:
        raise FilbertError(
            "the configuration names no decoder_start_token_id or eos_token_id (BERT's are those "
            "of [CLS] and [SEP]): add them to config.json"
        )
    if search.max_tokens > config.decoder.max_position_embeddings:
        raise UsageError(
            f"max_tokens {search.max_tokens}: this decoder has positions for "
            f"{config.decoder.max_position_embeddings}"
        )
    states = model.encode(input_ids, token_type_ids=token_type_ids, lengths=lengths)
    cache = Cache(model.decoder, states, lengths, beams=search.beams)
    if search.beams > 1:
        return _beam_search(model, cache, search, start, end)
    return _one_each(model, cache, search, start, end, numbers or list(range(len(lengths))))


def _beam_search(
    model: BertForSeq2SeqLM, cache: Cache, search: Search, start: int, end: int
) -> list[list[Written]]:
    rows, beams, device = cache.rows, search.beams, model.device
    results: list[list[Written]] = [[] for _ in range(rows)]
    owner = torch.arange(rows, device=device)
    tokens = torch.full((rows, beams, search.max_tokens + 1), start, device=device)
    scores = torch.zeros(rows, beams, device=device)
    scores[:, 1:] = NEVER  # all beams are alike at first: only one of them counts
    # what is finished so far, best first
    done = torch.full_like(tokens, end)
    done_scores = torch.full((rows, beams), NEVER, device=device)
    done_lengths = torch.zeros(rows, beams, dtype=torch.int64, device=device)
    is_done = torch.zeros(rows, beams, dtype=torch.bool, device=device)
    first = torch.arange(2 * beams, device=device) < beams
    early = search.early_stopping is True
    for step in range(search.max_tokens):
        length, last = step + 1, step + 1 == search.max_tokens
        logits, sums = cache.words(tokens[:, :, step].flatten())
        total = sums.view(-1, beams)
        bar(logits, tokens[:, :, :length].flatten(0, 1), step=step, end=end, search=search)
        top, parents, words = best_words(
            logits.view(-1, beams, logits.shape[-1]),
            scores - total,
            count=2 * beams,
            native=cache.native,
        )  # each (rows, 2 * beams)
        ends = (words == end) | last
        # the best that are not finished go on
        running, order = (top + ends * NEVER).topk(beams)
        # the finished ones among the first `beams` join those that were finished before
        finished = top / length**search.length_penalty
        if early:
            finished = finished + is_done.all(1, keepdim=True) * NEVER
        new = ends & first
        if bool(new.any()):
            finished = finished + ~new * NEVER
            done_scores, place = torch.cat([done_scores, finished], 1).topk(beams)
            candidates = tokens.gather(1, _wide(parents, tokens))
            candidates[:, :, length] = words
            joined = torch.cat([done, candidates], 1)
            done = joined.gather(1, _wide(place, joined))
            both = torch.cat([done_lengths, torch.full_like(words, length)], 1)
            done_lengths = both.gather(1, place)
            is_done = torch.cat([is_done, new], 1).gather(1, place)
        scores, parents = running, parents.gather(1, order)
        tokens = tokens.gather(1, _wide(parents, tokens))
        tokens[:, :, length] = words.gather(1, order)
        cache.reorder(parents)
        # can a running text still become better than the worst of the finished?
        longest = length
        if search.early_stopping == "never" and search.length_penalty > 0:
            longest = search.max_tokens
        hope = scores[:, :1] / longest**search.length_penalty
        worst = torch.where(is_done, done_scores.min(1, keepdim=True)[0], NEVER)
        leaves = ~(hope > worst).any(1)
        if early:
            leaves |= is_done.all(1)
        if last:
            leaves[:] = True
        if bool(leaves.any()):
            for row in leaves.nonzero()[:, 0].tolist():
                results[int(owner[row])] = [
                    _written(done[row, n], done_lengths[row, n], done_scores[row, n], end)
                    for n in range(search.best)
                ]
            keep = cache.keep(~leaves)
            owner, tokens, scores = owner[keep], tokens[keep], scores[keep]
            done, done_scores, done_lengths = done[keep], done_scores[keep], done_lengths[keep]
            is_done = is_done[keep]
            if not len(keep):
                break
    return results


def _one_each(
    model: BertForSeq2SeqLM, cache: Cache, search: Search, start: int, end: int, numbers: list[int]
) -> list[list[Written]]:
    """Greedy search, and sampling."""
    rows, device = cache.rows, model.device
    results: list[list[Written]] = [[] for _ in range(rows)]
    owner = torch.arange(rows, device=device)
    tokens = torch.full((rows, search.max_tokens + 1), start, device=device)
    scores = torch.zeros(rows, device=device)
    draws = torch.zeros(rows, 0)
    if search.sample:
        draws = draw_numbers(search.seed, numbers, search.max_tokens).to(device)
    for step in range(search.max_tokens):
        length = step + 1
        logits, total = cache.words(tokens[:, step])
        bar(logits, tokens[:, :length], step=step, end=end, search=search)
        words = pick(logits, draws[:, step], search) if search.sample else logits.argmax(-1)
        scores = scores + logits.gather(1, words[:, None])[:, 0] - total
        tokens[:, length] = words
        leaves = words == end
        if length == search.max_tokens:
            leaves[:] = True
        if bool(leaves.any()):
            for row in leaves.nonzero()[:, 0].tolist():
                score = scores[row] / length**search.length_penalty
                size = torch.tensor(length)
                results[int(owner[row])] = [_written(tokens[row], size, score, end)]
            keep = cache.keep(~leaves)
            owner, tokens, scores = owner[keep], tokens[keep], scores[keep]
            draws = draws[keep] if search.sample else draws
            if not len(keep):
                break
    return results


def best_words(
    logits: Tensor, offsets: Tensor, *, count: int, native: NativeWriter | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest of logits + offsets of each row, best first: their scores, beams and
    words, each (rows, count).

    logits: (rows, beams, vocabulary); offsets: (rows, beams); native: who finds them in one pass.
    Without one, the highest lie in the `count` groups of words with the highest maxima, so that
    only those are sorted.
    """
    rows, beams, vocabulary = logits.shape
    if native is not None and count <= min(vocabulary, beams * vocabulary // BLOCKS):
        return native.best(logits, offsets, count=count)
    groups = vocabulary // BLOCKS
    if groups < count:
        scores, place = (logits + offsets[:, :, None]).flatten(1).topk(count)
        return scores, place // vocabulary, place % vocabulary
    whole = groups * BLOCKS  # group g holds the words g, g + groups, g + 2 * groups ...
    grouped = logits[:, :, :whole].unflatten(-1, (BLOCKS, groups))
    maxima = grouped.amax(-2) + offsets[:, :, None]  # (rows, beams, groups)
    chosen = maxima.flatten(1).topk(count, sorted=False)[1]
    beam, group = chosen // groups, chosen % groups
    row = torch.arange(rows, device=logits.device)[:, None]
    inside = grouped[row, beam, :, group] + offsets[row, beam][:, :, None]  # (rows, count, BLOCKS)
    number = group[:, :, None] + groups * torch.arange(BLOCKS, device=logits.device)
    tail = logits[:, :, whole:] + offsets[:, :, None]
    each = torch.arange(beams, device=logits.device)[None, :, None].expand(rows, beams, 1)
    last = torch.arange(whole, vocabulary, device=logits.device)
    scores = torch.cat([inside.flatten(1), tail.flatten(1)], 1)
    words = torch.cat([number.flatten(1), last.repeat(rows, beams)], 1)
    beams_of = torch.cat(
        [beam[:, :, None].expand(-1, -1, BLOCKS).flatten(1), each.expand_as(tail).flatten(1)], 1
    )
    scores, place = scores.topk(count)
    return scores, beams_of.gather(1, place), words.gather(1, place)


def bar(logits: Tensor, tokens: Tensor, *, step: int, end: int, search: Search) -> None:
    """Set to -inf, in place, what may not come next: the end before `min_tokens`, and words that
    would repeat an n-gram of `tokens`, (texts, step + 1) with the start token."""
    if step < search.min_tokens:
        logits[:, end] = -torch.inf
    size = search.no_repeat_ngram
    if not size or tokens.shape[1] < size:
        return
    runs = tokens.unfold(1, size, 1)  # (texts, runs, size)
    before = tokens[:, tokens.shape[1] - size + 1 :]  # the last size - 1 tokens
    text, run = (runs[:, :, :-1] == before[:, None]).all(-1).nonzero(as_tuple=True)
    logits[text, runs[text, run, -1]] = -torch.inf


def pick(logits: Tensor, draws: Tensor, search: Search) -> Tensor:
    """A word of each text by its number from 0 to 1, (texts,) int64. logits: (texts, words)."""
    kept, words = allowed(logits, search)
    chances = torch.softmax(kept, -1).double().cumsum(-1)
    place = torch.searchsorted(chances, draws.to(chances)[:, None] * chances[:, -1:], right=True)
    return words.gather(1, place.clamp_max(words.shape[1] - 1))[:, 0]


def allowed(logits: Tensor, search: Search) -> tuple[Tensor, Tensor]:
    """The logits that sampling may choose from, best first, -inf for the others, and their words,
    each (texts, words): temperature, then top-k, then top-p (Holtzman et al. 2020)."""
    count = min(search.top_k, logits.shape[-1]) if search.top_k else logits.shape[-1]
    kept, words = (logits / search.temperature).topk(count)
    if search.top_p < 1:
        chances = torch.softmax(kept, -1)
        over = chances.cumsum(-1) - chances >= search.top_p  # what comes before makes it up already
        kept = kept.masked_fill(over, -torch.inf)
    return kept, words


def draw_numbers(seed: int, numbers: list[int], steps: int) -> Tensor:
    """(texts, steps) uniform in [0, 1), each text's from (seed, its number) alone."""
    rows = [np.random.Generator(np.random.Philox(key=[seed, n])).random(steps) for n in numbers]
    return torch.from_numpy(np.stack(rows))


def _wide(index: Tensor, like: Tensor) -> Tensor:
    """(rows, n) -> (rows, n, length), to gather whole texts with."""
    return index[:, :, None].expand(-1, -1, like.shape[-1])


def _written(tokens: Tensor, length: Tensor, score: Tensor, end: int) -> Written:
    ids = tokens[1 : int(length) + 1].tolist()
    finished = bool(ids) and ids[-1] == end
    return Written(ids[:-1] if finished else ids, float(score), finished)
