"""Masks, drawn afresh at each pass: which tokens are hidden, and what stands in their place.

- `token`: BERT's original choice, any token (Devlin et al. 2019, appendix A.1).
- `whole_word`: all tokens of a word or none: English pieces (google-research/bert, release of
  2019-05-31), Chinese words of a segmenter (Cui et al. 2019, arXiv 1906.08101).
- `span`: runs of words, their number geometric, p = 0.2, at most 10 (SpanBERT, Joshi et al. 2020).
- `ngram`: runs of 1 to 4 words, 40, 30, 20 and 10 % (MacBERT, Cui et al. 2020, section 3.2).

Of the chosen tokens 80 % become [MASK], 10 % another token, 10 % stay (BERT paper, section 3.1); a
`span` does so as a whole (SpanBERT, section 3.1).
The choice follows google-research/bert's `create_masked_lm_predictions`: units in random order, one
that would exceed the number wanted is passed over. `choose_by_hand` is that rule written out, and
the twin that tests hold `choose` to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from filbert.data.draws import U64, uniforms
from filbert.errors import UsageError

Ids = NDArray[np.int64]
Masking = Literal["token", "whole_word", "span", "ngram"]

SPAN_LENGTHS = 0.2 * 0.8 ** np.arange(10)  # of 1 to 10 words; scaled to a sum of 1 below
NGRAM_LENGTHS = np.array([0.4, 0.3, 0.2, 0.1])

# Counters of the draws for a token, apart from each other whatever a sample's length.
_PRIORITY, _ACTION, _TOKEN, _LENGTH = (n << 40 for n in range(1, 5))


@dataclass(frozen=True)
class MaskRule:
    """How masks are drawn. `ordinary`: (n,) ids that may stand in for a token, special ones left
    out. `rate`: share of a sample's tokens, [CLS] and [SEP] counted in, as in the original."""

    mask_id: int
    ordinary: Ids
    rate: float = 0.15
    masking: Masking = "whole_word"
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        if self.masking not in get_args(Masking):
            raise UsageError(f"masking {self.masking!r}: there are {', '.join(get_args(Masking))}")


@dataclass(frozen=True)
class Masked:
    """input_ids: (tokens,) with masks in place; positions: (masked,) where something was chosen,
    in order; labels: (masked,) what stood there."""

    input_ids: Ids
    positions: Ids
    labels: Ids


def mask(
    input_ids: Ids,
    joins: NDArray[np.bool_],
    pieces: Ids,
    owners: Ids,
    keys: U64,
    *,
    rule: MaskRule,
) -> Masked:
    """Draw the masks of a packed batch.

    input_ids: (tokens,). joins: (tokens,), True where a token continues the word before it.
    pieces: (tokens,) number of the segment that a token stands in, rising, -1 for [CLS] and [SEP]:
    those are never masked, and no run of words goes over them. owners: (tokens,) number of its
    sample, from 0, rising. keys: (samples,) one for each: the masks of a sample depend on its own
    alone, not on its neighbours.
    """
    starts_of = np.flatnonzero(np.diff(owners, prepend=-1))  # (samples,) first tokens
    within = np.arange(len(input_ids)) - starts_of[owners]  # place of a token in its sample
    open_to = np.flatnonzero(pieces >= 0)  # tokens that may be chosen
    unit_starts = _units(joins, pieces, owners, within, keys, open_to, rule.masking)
    unit_of = np.cumsum(unit_starts) - 1  # (open,) unit of each token that may be chosen
    firsts = open_to[np.flatnonzero(unit_starts)]  # (units,)
    unit_owner = owners[firsts]
    sizes = np.bincount(unit_of, minlength=len(firsts))
    lengths = np.bincount(owners, minlength=len(starts_of))
    wanted = np.maximum(1, np.rint(lengths * rule.rate).astype(np.int64))
    priority = uniforms(keys[unit_owner], within[firsts] + _PRIORITY)
    chosen = choose(unit_owner, sizes, priority, wanted)
    units = unit_of[chosen[unit_of]]  # (masked,) the unit of each token that is chosen
    positions = open_to[chosen[unit_of]]
    acts = firsts[units] if rule.masking == "span" else positions  # whose draw decides
    action = uniforms(keys[owners[positions]], within[acts] + _ACTION)
    other = uniforms(keys[owners[positions]], within[positions] + _TOKEN)
    labels = input_ids[positions]
    replaced = np.where(action < rule.mask_share, rule.mask_id, labels)
    by_other = (action >= rule.mask_share) & (action < rule.mask_share + rule.random_share)
    tokens = rule.ordinary[(other * len(rule.ordinary)).astype(np.int64)]
    result = input_ids.copy()
    result[positions] = np.where(by_other, tokens, replaced)
    return Masked(result, positions, labels)


def _units(
    joins: NDArray[np.bool_],
    pieces: Ids,
    owners: Ids,
    within: Ids,
    keys: U64,
    open_to: Ids,
    masking: Masking,
) -> NDArray[np.bool_]:
    """(open,) True where a unit begins: a token, a word, or a run of words."""
    if masking == "token":
        return np.ones(len(open_to), dtype=bool)
    new_piece = np.diff(pieces[open_to], prepend=-1) != 0
    word_starts = ~joins[open_to] | new_piece
    if masking == "whole_word":
        return word_starts
    shares = SPAN_LENGTHS if masking == "span" else NGRAM_LENGTHS
    words = np.flatnonzero(word_starts)  # (words,) places in `open_to`
    tokens = open_to[words]
    draw = uniforms(keys[owners[tokens]], within[tokens] + _LENGTH)
    long = 1 + np.searchsorted(np.cumsum(shares / shares.sum()), draw, side="right")
    # From the first word of each piece, jump run by run: all pieces at once.
    first_words = np.flatnonzero(new_piece[words])
    ends = np.append(first_words[1:], len(words))
    begins = np.zeros(len(words), dtype=bool)
    at = first_words
    while len(at):
        begins[at] = True
        at = at + long[at]
        inside = at < ends
        at, ends = at[inside], ends[inside]
    unit_starts = np.zeros(len(open_to), dtype=bool)
    unit_starts[words[begins]] = True
    return unit_starts


def choose(
    owners: Ids, sizes: Ids, priority: NDArray[np.float64], wanted: Ids
) -> NDArray[np.bool_]:
    """(units,) True for the units taken: by rising priority within each sample, passing over one
    that would bring the sample's tokens above `wanted`.

    owners, sizes, priority: (units,), owners rising. wanted: (samples,). All samples at once: in
    each turn the first unit that does not fit says how much room is left, and every later one that
    is larger than this room is dropped with it, since the room can only shrink.
    """
    order = np.lexsort((priority, owners))
    owner, size = owners[order], sizes[order]
    first = np.searchsorted(owner, np.arange(len(wanted)))  # (samples,) place of the first unit
    alive = np.ones(len(order), dtype=bool)
    places = np.arange(len(order))
    while True:
        taken = np.cumsum(np.where(alive, size, 0))
        before = np.append(taken, 0)[first - 1]  # what earlier samples took; first[0] - 1 is -1
        before[first == 0] = 0
        total = taken - before[owner]
        failing = np.flatnonzero(alive & (total > wanted[owner]))
        if not len(failing):
            break
        who, at = np.unique(owner[failing], return_index=True)
        stop = np.full(len(wanted), len(order))
        stop[who] = failing[at]
        room = np.zeros(len(wanted), dtype=np.int64)
        room[who] = wanted[who] - (total[failing[at]] - size[failing[at]])
        alive &= ~((places >= stop[owner]) & (size > room[owner]))
    result = np.zeros(len(order), dtype=bool)
    result[order] = alive
    return result


def choose_by_hand(sizes: list[int], priority: list[float], wanted: int) -> list[bool]:
    """The rule of google-research/bert for one sample, one unit after another: the slow twin."""
    chosen, used = [False] * len(sizes), 0
    for unit in sorted(range(len(sizes)), key=priority.__getitem__):
        if used >= wanted:
            break
        if used + sizes[unit] <= wanted:
            chosen[unit] = True
            used += sizes[unit]
    return chosen
