"""Samples: pure functions of their number, and distributed as google-research/bert's."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy import stats

from filbert.data.samples import NO_LABEL, Piece, Sampler
from filbert.errors import FilbertError, UsageError

CLS, SEP = 2, 3
Document = list[list[int]]


@dataclass
class Memory:
    """A shard in memory. Each token is its own number, so that a sample tells where it is from."""

    tokens: Any
    sentences: Any
    documents: Any
    sources: Any

    def joined(self, start: int, stop: int) -> Any:
        return np.arange(start, stop) % 3 == 1


def shards_of(documents: list[Document], *, parts: int = 3) -> list[Any]:
    shards = []
    for some in (documents[n::parts] for n in range(parts)):
        lengths = [len(sentence) for document in some for sentence in document]
        shards.append(
            Memory(
                np.array([t for d in some for s in d for t in s], dtype=np.uint32),
                np.cumsum([0, *lengths]),
                np.cumsum([0, *map(len, some)]),
                np.array([n % 2 for n in range(len(some))], dtype=np.uint16),
            )
        )
    return shards


def corpus(count: int, *, seed: int = 0) -> list[Document]:
    """Documents of 1 to about 60 sentences of 3 to 60 tokens; token = place in the corpus + 100."""
    draw, place, documents = random.Random(seed), 100, []
    for _ in range(count):
        document = []
        for _ in range(max(1, int(draw.expovariate(1 / 20)))):
            size = min(60, 3 + int(draw.expovariate(1 / 18)))
            document.append(list(range(place, place + size)))
            place += size
        documents.append(document)
    return documents


def sampler(documents: list[Document], **options: Any) -> Sampler:
    return Sampler(
        shards_of(documents), **{"cls_id": CLS, "sep_id": SEP, "max_length": 128, **options}
    )


# --- the original's algorithm, as its source describes it, for one pass --------------------------


def original(documents: list[Document], *, room: int, short: float, seed: int) -> list[Any]:
    """(A, B, random next) of every instance: google-research/bert, create_pretraining_data.py."""
    draw, instances = random.Random(seed), []
    for number, document in enumerate(documents):
        target = draw.randint(2, room) if draw.random() < short else room
        chunk: list[list[int]] = []
        length = i = 0
        while i < len(document):
            chunk.append(document[i])
            length += len(document[i])
            if i == len(document) - 1 or length >= target:
                cut = draw.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                a = [token for sentence in chunk[:cut] for token in sentence]
                b: list[int] = []
                random_next = len(chunk) == 1 or draw.random() < 0.5
                if random_next:
                    other = number
                    while other == number:
                        other = draw.randint(0, len(documents) - 1)
                    start = draw.randint(0, len(documents[other]) - 1)
                    for sentence in documents[other][start:]:
                        b.extend(sentence)
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - cut  # what was not used comes again
                else:
                    b = [token for sentence in chunk[cut:] for token in sentence]
                while len(a) + len(b) > room:
                    longer = a if len(a) > len(b) else b
                    del longer[0 if draw.random() < 0.5 else -1]
                instances.append((a, b, random_next))
                chunk, length = [], 0
                target = draw.randint(2, room) if draw.random() < short else room
            i += 1
    return instances


def test_next_sentence_is_distributed_as_the_original() -> None:
    documents = corpus(3000)
    theirs = original(documents, room=125, short=0.1, seed=1)
    ours = sampler(documents, seed=1)
    samples = ours.samples(np.arange(ours.size))
    assert ours.size == pytest.approx(len(theirs), rel=0.1)  # samples in a pass
    for measure in (
        lambda a, b: a + b,
        lambda a, b: a,
        lambda a, b: b,
        lambda a, b: a - b,
    ):
        mine = [measure(len(s.a), len(s.b)) for s in samples if s.b is not None]
        its = [measure(len(a), len(b)) for a, b, _ in theirs]
        # the largest difference of the two distribution functions; a document gives a fixed number
        # of samples here and a drawn one there, so they are near, not equal
        assert stats.ks_2samp(mine, its).statistic < 0.05
    wrong = np.mean([s.label for s in samples])
    # nearer to one half than the original, whose walks with many wrong pairs are the longer ones
    assert 0.5 <= wrong <= np.mean([r for _, _, r in theirs]) <= wrong + 0.06
    full = np.mean([s.tokens == 128 for s in samples])
    assert full == pytest.approx(np.mean([len(a) + len(b) == 125 for a, b, _ in theirs]), abs=0.03)


def test_half_of_the_pairs_are_wrong() -> None:
    """Of samples with more than one sentence: exactly the toss of a coin."""
    documents = [d for d in corpus(3000) if len(d) > 30]
    ours = sampler(documents, short_prob=0.0)
    labels = [s.label for s in ours.samples(np.arange(6000))]
    # a sample of one sentence is always wrong: about 2 % at the ends of these documents
    assert np.mean(labels) == pytest.approx(0.51, abs=0.03)


def test_a_pair_is_what_its_label_says() -> None:
    documents = corpus(500)
    owner = {t: n for n, d in enumerate(documents) for s in d for t in s}
    ours = sampler(documents)
    packed = ours.pack(samples := ours.samples(np.arange(2000)))
    ends = np.cumsum(packed.lengths)
    for sample, start, end in zip(samples, ends - packed.lengths, ends, strict=True):
        ids, types = packed.input_ids[start:end], packed.token_type_ids[start:end]
        assert ids[0] == CLS
        assert ids[-1] == SEP
        assert len(ids) <= 128
        a = ids[(types == 0)][1:-1].tolist()
        b = ids[types == 1][:-1].tolist()
        assert SEP not in a + b
        for piece in (a, b):  # consecutive text of one document
            assert piece == list(range(piece[0], piece[0] + len(piece)))
            assert len({owner[t] for t in piece}) == 1
        same = owner[a[0]] == owner[b[0]]
        assert same == (sample.label == 0)
        if same:
            assert b[0] > a[-1]


def test_sentence_order() -> None:
    documents = corpus(500)
    ours = sampler(documents, objective="sentence_order")
    samples = ours.samples(np.arange(4000))
    packed = ours.pack(samples)
    firsts = np.r_[0, np.cumsum(packed.lengths)[:-1]]
    for sample, first in zip(samples, firsts, strict=True):
        if sample.b is None:
            assert sample.label == NO_LABEL
        else:
            assert sample.a.shard == sample.b.shard
            assert (sample.a.start > sample.b.start) == (sample.label == 1)
        assert packed.input_ids[first] == CLS
    labels = Counter(s.label for s in samples)
    assert labels[1] / (labels[0] + labels[1]) == pytest.approx(0.5, abs=0.035)


def test_plain_text_covers_every_token_about_once() -> None:
    documents = corpus(800)
    ours = sampler(documents, objective="none", short_prob=0.0)
    seen = Counter()
    for sample in ours.samples(np.arange(ours.size)):
        shard = ours.shards[sample.a.shard]
        seen.update(shard.tokens[sample.a.start : sample.a.stop].tolist())
        assert sample.label == NO_LABEL
    total = sum(len(s) for d in documents for s in d)
    assert sum(seen.values()) / total == pytest.approx(1.05, abs=0.1)
    assert len(seen) / total > 0.75
    # over three passes, with beginnings drawn anew, hardly a token is left out
    for sample in ours.samples(np.arange(ours.size, 4 * ours.size)):
        shard = ours.shards[sample.a.shard]
        seen.update(shard.tokens[sample.a.start : sample.a.stop].tolist())
    assert len(seen) / total > 0.97


def test_a_sample_is_a_function_of_its_number() -> None:
    documents = corpus(200)
    one, other = sampler(documents, seed=3), sampler(documents, seed=3)
    numbers = np.arange(5 * one.size)
    whole = one.samples(numbers)
    later = other.samples(np.array([4 * one.size + 7, 3, one.size]))
    assert later == [whole[4 * one.size + 7], whole[3], whole[one.size]]
    keys = one.pack(whole[:5]).keys
    assert np.array_equal(one.pack([whole[4]]).keys, keys[4:])
    assert sampler(documents, seed=4).samples(numbers[:50]) != whole[:50]


def test_a_pass_visits_every_document_and_each_pass_anew() -> None:
    documents = corpus(200)
    ours = sampler(documents, objective="none")
    owner = {t: n for n, d in enumerate(documents) for s in d for t in s}

    def visited(one: int) -> list[int]:
        samples = ours.samples(np.arange(one * ours.size, (one + 1) * ours.size))
        return [owner[int(ours.shards[s.a.shard].tokens[s.a.start])] for s in samples]

    first, second = visited(0), visited(1)
    assert set(first) == set(range(200))
    assert Counter(first) == Counter(second)
    assert first != second


def test_sources_weigh_as_asked() -> None:
    documents = corpus(400)
    plain = sampler(documents, objective="none")
    mixed = sampler(documents, objective="none", weights=np.array([2.5, 0.0]))
    of_source = [
        sum(
            int(np.ceil(n / 126))
            for n, source in zip(np.diff(s.sentences[s.documents]), s.sources, strict=True)
            if source == 0
        )
        for s in plain.shards
    ]
    assert mixed.size == pytest.approx(2.5 * sum(of_source), rel=0.01)
    for sample in mixed.samples(np.arange(500)):
        shard = mixed.shards[sample.a.shard]
        sentence = np.searchsorted(shard.sentences, sample.a.start, side="right") - 1
        document = np.searchsorted(shard.documents, sentence, side="right") - 1
        assert shard.sources[document] == 0


def source_of(ours: Sampler, piece: Piece) -> int:
    shard = ours.shards[piece.shard]
    sentence = np.searchsorted(shard.sentences, piece.start, side="right") - 1
    return int(shard.sources[np.searchsorted(shard.documents, sentence, side="right") - 1])


def even(count: int) -> list[Document]:
    """Documents of ten sentences of 25 tokens."""
    return [[list(range(25))] * 10 for _ in range(count)]


@pytest.mark.parametrize(
    ("weights", "share"),
    # by hand: a document of 250 tokens has rint(250 / (125 * 0.78) + 0.85) = 3 slots, so 9 with a
    # weight of 3; of the slots 9 in 12 are of source 0, which has half of the documents
    [([3.0, 1.0], 0.75), ([1.0, 0.0], 1.0), ([0.0, 2.0], 0.0), (None, 0.5)],
)
def test_wrong_next_sentences_come_from_the_sources_as_the_first_ones_do(
    weights: list[float] | None, share: float
) -> None:
    ours = sampler(even(402), weights=None if weights is None else np.array(weights))
    samples = ours.samples(np.arange(4000))
    first = np.mean([source_of(ours, s.a) == 0 for s in samples])
    wrong = [source_of(ours, s.b) == 0 for s in samples if s.label == 1 and s.b is not None]
    assert len(wrong) > 1800
    bound = 4 * np.sqrt(share * (1 - share) / len(wrong))  # standard deviations of a count
    assert abs(np.mean(wrong) - share) <= bound
    assert abs(first - share) <= bound


def test_a_wrong_next_sentence_is_of_another_document_with_weights_too() -> None:
    documents = corpus(12)
    owner = {t: n for n, d in enumerate(documents) for s in d for t in s}
    ours = sampler(documents, weights=np.array([2.0, 0.5]))
    for sample in ours.samples(np.arange(3000)):
        assert sample.b is not None
        a, b = (
            owner[int(ours.shards[p.shard].tokens[p.start])] for p in (sample.a, sample.b)
        )  # fmt: skip
        assert (a == b) == (sample.label == 0)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("next_sentence", "bf002ebebc836b03"),
        ("sentence_order", "9c6b687d005ed347"),
        ("none", "4254397291a7f679"),
    ],
)
def test_samples_without_weights_stay_what_they_were(objective: str, expected: str) -> None:
    """A run that is resumed sees the samples that it was begun with: their places, as the sha256 of
    what the version of 2026-11-28 drew, before weights decided on wrong next sentences too."""
    shards = []
    for part in range(3):
        sizes = [2 + (part + 2 * document) % 9 for document in range(30)]  # sentences of each
        lengths = [3 + (part * 5 + sentence * 7) % 40 for sentence in range(sum(sizes))]
        ends = np.cumsum([0, *lengths]), np.cumsum([0, *sizes])
        shards.append(Memory(np.arange(sum(lengths)), *ends, np.arange(30) % 2))
    ours = Sampler(
        shards, cls_id=CLS, sep_id=SEP, max_length=128, objective=objective, seed=7
    )  # fmt: skip
    places = [
        [s.label, *((p.shard, p.start, p.stop) if p is not None else (-1, -1, -1))]
        for s in ours.samples(np.arange(3 * ours.size))
        for p in (s.a, s.b)
    ]
    rows = [one + other[1:] for one, other in zip(places[::2], places[1::2], strict=True)]
    found = hashlib.sha256(np.array(rows, dtype="<i8").tobytes()).hexdigest()
    assert found.startswith(expected)


def test_one_sentence_longer_than_a_sample() -> None:
    ours = sampler([[list(range(100, 900))], [[5, 6, 7]]], objective="next_sentence")
    for sample in ours.samples(np.arange(40)):
        assert sample.tokens <= 128
        assert sample.label == 1  # one sentence: there is no next one
        assert len(sample.a) > 0
        assert sample.b is not None
        assert len(sample.b) > 0


def test_what_cannot_be_sampled_is_told() -> None:
    with pytest.raises(UsageError, match="--objective none"):
        sampler([[[5, 6], [7]]])
    shard = Memory(np.arange(9), np.array([0, 4, 9]), np.array([0, 2]), np.array([0]))
    with pytest.raises(UsageError, match="--mix leaves none of 1 documents"):
        Sampler([shard], cls_id=2, sep_id=3, max_length=16, objective="none", weights=np.zeros(1))
    with pytest.raises(UsageError, match="--mix leaves 1 of 3"):  # each in a shard of its own
        Sampler(
            [
                Memory(np.arange(9), np.array([0, 4, 9]), np.array([0, 2]), np.array([int(n > 0)]))
                for n in range(3)
            ],
            cls_id=CLS, sep_id=SEP, max_length=128, weights=np.array([1.0, 0.0]),
        )  # fmt: skip
    with pytest.raises(UsageError, match="no room"):
        sampler(corpus(5), max_length=4)
    with pytest.raises(UsageError, match="sentence_order"):
        sampler(corpus(5), objective="sop")
    with pytest.raises(FilbertError, match="no document"):
        sampler([], objective="none")
