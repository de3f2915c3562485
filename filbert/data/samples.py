"""Samples of pre-training: sample n of a run is a pure function of (corpus, options, seed, n).

The documents are divided into slots, as many to a document as it has room for; a pass visits every
slot once, in an order that a permutation gives without being stored. So nothing is replayed to
resume, and any number of processes see the same order. Memory: 8 bytes a document.

A sample of two segments is built as google-research/bert's `create_instances_from_document` builds
it. From a sentence on, sentences are taken until the wanted length is reached (the maximum; in 10 %
of the samples a length drawn from 2 to the maximum); then

- `next_sentence`: they are cut into A and B at a random sentence; in half of the samples, and
  always if there is only one sentence, B is text from another document, and the sentences it
  replaces come again in the next sample. Label 0 where B follows A, 1 where it does not (BERT
  paper, section 3.1; the numbers as in the released code);
- `sentence_order`: cut into A and B, in half of the samples swapped, label 1
  (ALBERT, Lan et al. 2020, section 3.1); no label if there is only one sentence.

The original walks through a document once and writes its samples down. Here each pass walks anew,
with draws of its own, and a long document is walked in sections, so that a sample costs a walk
through one of them. How many samples a walk gives depends on its draws, but slots must be counted
beforehand: they are the expected number, and are spread over the walk evenly.

`none` is one segment of consecutive text from the sentence under a random place of the slot on, up
to the end of its document (RoBERTa's DOC-SENTENCES, Liu et al. 2019, section 4.2).

tests/unit/data/test_samples.py holds lengths, labels and numbers to the original's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from filbert.data.draws import U64, Draw, key_of, keys_of, permute
from filbert.data.shards import Shard
from filbert.errors import FilbertError, UsageError

Ids = NDArray[np.int64]
Objective = Literal["next_sentence", "sentence_order", "none"]
NO_LABEL = -100

_ORDER, _WALK, _SAMPLE, _MASK = range(1, 5)  # what a key is for
SECTION = 8  # lengths of a sample that are walked through to find one
# How many samples a document gives: one for each so many lengths (with a random B only A is used
# up), and so many at its end, where what is left over comes again in smaller and smaller parts.
_EXPECTED = {"next_sentence": (0.78, 0.85), "sentence_order": (1.0, 0.5), "none": (1.0, 0.5)}


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of a shard: `start` up to, not including, `stop`."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sample is made of. `b` is None for a single segment; `label` is -100 without one."""

    number: int
    a: Piece
    b: Piece | None
    label: int

    @property
    def tokens(self) -> int:
        """Its length with [CLS] and [SEP]."""
        return len(self.a) + 2 + (len(self.b) + 1 if self.b is not None else 0)


@dataclass(frozen=True)
class Packed:
    """Samples end to end, before masking. All (tokens,) but the last three, (samples,)."""

    input_ids: Ids
    token_type_ids: Ids
    joins: NDArray[np.bool_]
    pieces: Ids  # number of the segment, -1 for [CLS] and [SEP]
    owners: Ids  # number of the sample within the batch
    lengths: Ids
    labels: Ids
    keys: U64  # for the masks


class Sampler:
    """Draws samples from shards.

    `weights` changes how often documents of a source are visited in a pass: 2 twice, 0 never. Then
    the B of a wrong pair is drawn by the same weights: else its source would tell the label.
    `vocab_size` bounds the numbers of tokens: one beyond it means that the shards in `origin` are
    damaged. Raises `UsageError` for options that the corpus cannot serve.
    """

    def __init__(
        self,
        shards: list[Shard],
        *,
        cls_id: int,
        sep_id: int,
        max_length: int,
        objective: Objective = "next_sentence",
        short_prob: float = 0.1,
        seed: int = 0,
        weights: NDArray[np.float64] | None = None,
        vocab_size: int | None = None,
        origin: str = "",
    ) -> None:
        if objective not in get_args(Objective):
            raise UsageError(f"objective {objective!r}: there are {', '.join(get_args(Objective))}")
        self.shards, self.objective, self.seed = shards, objective, seed
        self.vocab_size, self.origin = vocab_size, origin
        self.cls_id, self.sep_id, self.short_prob = cls_id, sep_id, short_prob
        self.max_length = max_length
        self.room = max_length - (2 if objective == "none" else 3)  # for words
        if self.room < 2:
            raise UsageError(f"max_length {max_length} leaves no room for words; give 16 or more")
        self.first_documents = np.cumsum([0, *(len(s.documents) - 1 for s in shards)])
        self.documents = int(self.first_documents[-1])
        if objective == "next_sentence" and self.documents < 2:
            raise UsageError(
                f"objective next_sentence draws its wrong answers from other documents, but there "
                f"is {self.documents} document; use --objective none, or a corpus with more"
            )
        slots = self._slots(weights)
        self.ends = np.cumsum(slots)  # (documents,) slots up to and with each
        self.size = int(self.ends[-1]) if self.documents else 0  # samples in a pass
        if not self.size and self.documents and weights is not None:
            raise UsageError(
                f"--mix leaves none of {self.documents:,} documents; give a source that the shards "
                "have a number above 0"
            )
        if not self.size:
            raise FilbertError("the shards hold no document to draw samples from")
        self.weighted = weights is not None
        if self.weighted and objective == "next_sentence" and np.count_nonzero(slots) < 2:
            raise UsageError(
                "objective next_sentence draws its wrong answers from other documents, but --mix "
                f"leaves 1 of {self.documents:,}; give a source more passes, or --objective none"
            )

    def _slots(self, weights: NDArray[np.float64] | None) -> Ids:
        """(documents,) how many samples a pass takes from each document."""
        lengths, at_end = _EXPECTED[self.objective]
        slots = []
        for shard in self.shards:
            tokens = np.diff(shard.sentences[shard.documents])
            wanted = np.maximum(1, np.rint(tokens / (self.room * lengths) + at_end))
            if weights is not None:
                # a fraction becomes one more slot in that share of the documents, evenly spread
                spread = np.arange(len(tokens)) * 0.6180339887498949 % 1.0
                wanted = np.floor(wanted * weights[shard.sources] + spread)
            slots.append(wanted.astype(np.int64))
        return np.concatenate(slots) if slots else np.zeros(0, dtype=np.int64)

    def samples(self, numbers: Ids) -> list[Sample]:
        """The samples with these numbers. Number n lies in pass n // size."""
        passes = numbers // self.size
        slots = np.empty(len(numbers), dtype=np.int64)
        for one in np.unique(passes):
            here = passes == one
            key = key_of(self.seed, _ORDER, int(one))
            slots[here] = permute(numbers[here] - one * self.size, self.size, key)
        found = np.searchsorted(self.ends, slots, side="right")
        return [
            self._sample(int(n), int(one), int(slot), int(document))
            for n, one, slot, document in zip(numbers, passes, slots, found, strict=True)
        ]

    def _sample(self, number: int, one_pass: int, slot: int, document: int) -> Sample:
        before = int(self.ends[document - 1]) if document else 0
        slot, slots = slot - before, int(self.ends[document]) - before
        shard, bounds = self._bounds(document)
        draw = Draw(key_of(self.seed, _SAMPLE, number))
        if self.objective == "none":
            shift = Draw(key_of(self.seed, _WALK, one_pass, document)).uniform()
            place = int((slot + shift) / slots * (bounds[-1] - bounds[0])) + int(bounds[0])
            first = int(np.searchsorted(bounds, min(place, bounds[-1] - 1), side="right")) - 1
            begin = int(bounds[first])
            target = self._target(draw)
            return Sample(
                number, Piece(shard, begin, min(begin + target, int(bounds[-1]))), None, NO_LABEL
            )
        first, cut, after, other = self._walk(bounds, one_pass, document, slot, slots, draw)
        a = Piece(shard, int(bounds[first]), int(bounds[cut]))
        if self.objective == "sentence_order":
            if cut == after:  # one sentence: nothing to order
                a = Piece(shard, a.start, min(a.stop, a.start + self.room))
                return Sample(number, a, None, NO_LABEL)
            b, label = Piece(shard, a.stop, int(bounds[after])), int(draw.uniform() < 0.5)
            if label:
                a, b = b, a
        elif other is not None:
            b, label = self._from_another(document, other - len(a), draw), 1
        else:
            b, label = Piece(shard, a.stop, int(bounds[after])), 0
        return Sample(number, *_shorten(a, b, self.room, draw), label)

    def _target(self, draw: Draw) -> int:
        """How many words a sample wants."""
        if draw.uniform() < self.short_prob:
            return 2 + draw.below(self.room - 1)
        return self.room

    def _walk(
        self, bounds: Ids, one_pass: int, document: int, slot: int, slots: int, draw: Draw
    ) -> tuple[int, int, int, int | None]:
        """Walk through the section of a slot as the original does; of the samples on the way, the
        one that the slot stands for: its first sentence, those behind A and behind B, and how many
        words it wants if B is to come from another document, else None."""
        size = int(bounds[-1] - bounds[0])
        sections = max(1, round(size / (SECTION * self.room)))
        section = slot * sections // slots
        low = -(-section * slots // sections)  # the first slot of the section
        high = -(-(section + 1) * slots // sections)
        begin, end = (int(bounds[0]) + part * size // sections for part in (section, section + 1))
        steps = Draw(key_of(self.seed, _WALK, one_pass, document, section))
        at = int(np.searchsorted(bounds, begin, side="left"))
        found: list[tuple[int, int, int, int | None]] = []
        while at < len(bounds) - 1 and (bounds[at] < end or not found):
            target = self._target(steps)
            after = _reach(bounds, at, target)
            cut = at + 1 + (steps.below(after - at - 1) if after - at > 1 else 0)
            wrong = self.objective == "next_sentence" and (cut == after or steps.uniform() < 0.5)
            found.append((at, cut, after, target if wrong else None))
            at = cut if wrong else after
        if not found:  # the section lies in the last sentence
            last = len(bounds) - 2
            return (
                last,
                last + 1,
                last + 1,
                self.room if self.objective == "next_sentence" else None,
            )
        return found[int((slot - low + draw.uniform()) / (high - low) * len(found))]

    def _from_another(self, document: int, wanted: int, draw: Draw) -> Piece:
        """Sentences from a random place of a random other document, up to `wanted` tokens. All
        others are as likely as in the original; with weights, each in proportion to its slots, so
        that B comes from the sources as A does."""
        if self.weighted:
            before = int(self.ends[document - 1]) if document else 0
            own = int(self.ends[document]) - before
            slot = draw.below(self.size - own)
            slot += own if slot >= before else 0
            other = int(np.searchsorted(self.ends, slot, side="right"))
        else:
            other = draw.below(self.documents - 1)
            other += other >= document
        shard, bounds = self._bounds(other)
        first = draw.below(len(bounds) - 1)
        return Piece(shard, int(bounds[first]), int(bounds[_reach(bounds, first, wanted)]))

    def _bounds(self, document: int) -> tuple[int, Ids]:
        """The shard of a document, and where its sentences begin and end, (sentences + 1,)."""
        shard = int(np.searchsorted(self.first_documents, document, side="right")) - 1
        where = self.shards[shard]
        local = document - int(self.first_documents[shard])
        return shard, where.sentences[where.documents[local] : where.documents[local + 1] + 1]

    def pack(self, samples: list[Sample]) -> Packed:
        """Read the tokens of samples and lay them end to end: [CLS] A [SEP], or [CLS] A [SEP] B
        [SEP] with token types 0 and 1. Raises `FilbertError` for a token of no vocabulary."""
        total = sum(sample.tokens for sample in samples)
        ids = np.empty(total, dtype=np.int64)
        types = np.zeros(total, dtype=np.int64)
        joins = np.zeros(total, dtype=bool)
        pieces = np.full(total, -1, dtype=np.int64)
        place = piece_number = 0
        for sample in samples:
            ids[place] = self.cls_id
            place += 1
            for kind, piece in enumerate((sample.a, sample.b)):
                if piece is None:
                    continue
                end = place + len(piece)
                shard = self.shards[piece.shard]
                ids[place:end] = shard.tokens[piece.start : piece.stop]
                joins[place:end] = shard.joined(piece.start, piece.stop)
                pieces[place:end] = piece_number
                ids[end] = self.sep_id
                types[place : end + 1] = kind
                place, piece_number = end + 1, piece_number + 1
        if self.vocab_size is not None and total and (most := int(ids.max())) >= self.vocab_size:
            raise FilbertError(
                f"the shards in {self.origin} are damaged: they hold the token {most:,}, the "
                f"vocabulary has {self.vocab_size:,}. filbert prepare --verify {self.origin} names "
                "the file"
            )
        lengths = np.array([sample.tokens for sample in samples], dtype=np.int64)
        numbers = np.array([sample.number for sample in samples], dtype=np.int64)
        return Packed(
            ids, types, joins, pieces, np.repeat(np.arange(len(samples)), lengths), lengths,
            np.array([sample.label for sample in samples], dtype=np.int64),
            keys_of(key_of(self.seed, _MASK), numbers),
        )  # fmt: skip


def _reach(bounds: Ids, first: int, wanted: int) -> int:
    """The sentence up to which one must read from `first` to have `wanted` tokens: at least one,
    at most all."""
    after = int(np.searchsorted(bounds, bounds[first] + wanted, side="left"))
    return min(max(after, first + 1), len(bounds) - 1)


def _shorten(a: Piece, b: Piece, room: int, draw: Draw) -> tuple[Piece, Piece]:
    """google-research/bert's `truncate_seq_pair`, without the loop: tokens are taken from the
    longer piece (of equal ones from B), each from its front or its back by the toss of a coin."""
    surplus = len(a) + len(b) - room
    if surplus <= 0:
        return a, b
    uneven = min(surplus, abs(len(a) - len(b)))
    from_a, from_b = (uneven, 0) if len(a) > len(b) else (0, uneven)
    rest = surplus - uneven
    from_a, from_b = from_a + rest // 2, from_b + rest - rest // 2
    return _trim(a, from_a, draw), _trim(b, from_b, draw)


def _trim(piece: Piece, count: int, draw: Draw) -> Piece:
    front = draw.heads(count)
    return Piece(piece.shard, piece.start + front, piece.stop - (count - front))
