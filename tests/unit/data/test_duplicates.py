"""Duplicates: the estimate against exact Jaccard, and the tables against Python's own."""

from __future__ import annotations

import random

import numpy as np
import pytest

from filbert.data import duplicates
from filbert.data.duplicates import (
    EqualDocuments,
    NearDuplicates,
    Sketch,
    SortedRuns,
    rows_of_bands,
    sketch,
)  # fmt: skip

pytest.importorskip("rensa", reason="pip install 'filbert[pretrain]'")


def documents_of(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([token for text in texts for token in text], dtype=np.uint16),
        np.array([len(text) for text in texts], dtype=np.int64),
    )


def jaccard(one: list[int], other: list[int]) -> float:
    runs = [{tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def changed(text: list[int], words: int, draw: random.Random) -> list[int]:
    copy = list(text)
    for place in draw.sample(range(len(copy)), words):
        copy[place] = 60_000 + draw.randrange(5000)
    return copy


class Table:
    """Near duplicates whose signatures are kept in memory."""

    def __init__(self, threshold: float) -> None:
        self.values = np.zeros((0, 128), np.uint16)
        self.near = NearDuplicates(threshold, lambda numbers: self.values[numbers])
        self.rows = self.near.rows

    def keep(self, found: Sketch) -> tuple[np.ndarray, Sketch]:
        kept, remembered = self.near.keep(found)
        self.values = np.concatenate([self.values, remembered.values])
        return kept, remembered

    def remember(self, log: list[Sketch]) -> None:
        self.near.remember(np.concatenate([part.keys for part in log]))
        self.values = np.concatenate([part.values for part in log])


def test_rows_of_bands_by_hand() -> None:
    # 1 - (1 - 0.8**8)**16 = 0.947, but 1 - (1 - 0.8**16)**8 = 0.204
    assert rows_of_bands(0.8) == 8
    # 1 - (1 - 0.5**4)**32 = 0.873, 1 - (1 - 0.5**2)**64 = 1.0
    assert rows_of_bands(0.5) == 2
    assert rows_of_bands(1.0) == 32


def test_the_estimate_is_near_the_exact_similarity() -> None:
    draw = random.Random(0)
    errors = []
    for words in (0, 5, 10, 20, 40, 80):
        for _ in range(20):
            one = [draw.randrange(50_000) for _ in range(400)]
            other = changed(one, words, draw)
            values = sketch(*documents_of([one, other]), 8).values
            errors.append((values[0] == values[1]).mean() - jaccard(one, other))
    # the deviation of an estimate of 128 values is at most sqrt(0.25 / 128) = 0.044
    assert np.abs(errors).max() < 4 * 0.044
    assert abs(np.mean(errors)) < 3 * 0.044 / np.sqrt(len(errors))


def test_near_duplicates_go_and_the_first_stays() -> None:
    draw = random.Random(1)
    base = [[draw.randrange(50_000) for _ in range(600)] for _ in range(30)]
    near = [changed(text, 6, draw) for text in base]  # 6 words: some 30 of 600 runs, 0.9
    far = [changed(text, 200, draw) for text in base]
    assert min(jaccard(a, b) for a, b in zip(base, near, strict=True)) > 0.85
    assert max(jaccard(a, b) for a, b in zip(base, far, strict=True)) < 0.5
    table = Table(0.8)
    first, _ = table.keep(sketch(*documents_of(base + near[:15]), table.rows))
    assert first.tolist() == [True] * 30 + [False] * 15  # within one call
    second, _ = table.keep(sketch(*documents_of(near[15:] + far), table.rows))
    assert second.tolist() == [False] * 15 + [True] * 30  # and across calls
    assert table.near.documents == 60


def test_other_chunks_and_a_resumed_table_decide_the_same() -> None:
    draw = random.Random(2)
    template = [draw.randrange(50_000) for _ in range(80)]
    texts = [changed(template, draw.randrange(12), draw) for _ in range(300)]
    found = sketch(*documents_of(texts), rows_of_bands(0.7))
    whole, _ = Table(0.7).keep(found)
    assert 20 < whole.sum() < 280
    table = Table(0.7)
    kept: list[bool] = []
    log: list[Sketch] = []
    for begin in range(0, 300, 50):
        own, remembered = table.keep(Sketch(*(array[begin : begin + 50] for array in found)))
        kept += own.tolist()
        log.append(remembered)
        # what an interrupted call wrote down is enough to go on
        table = Table(0.7)
        table.remember(log)
    assert kept == whole.tolist()


def test_short_documents() -> None:
    found = sketch(*documents_of([[1, 2], [1, 2], [2, 1], [7], [1, 2, 3, 4, 5]]), 8)
    kept, _ = Table(0.8).keep(found)
    assert kept.tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("at_once", [1, 5])
def test_many_of_one_template_do_not_crowd_a_key(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicates, "_CROWDED", 2)
    values = np.random.default_rng(0).integers(0, 65_536, (5, 128)).astype(np.uint16)
    keys = np.full((5, 16), 9 << 32, dtype=np.uint64)  # half of a key counts
    keys[:, 1:] += np.arange(1, 16, dtype=np.uint64) << np.uint64(40)
    table = Table(0.8)
    for row in range(0, 5, at_once):
        kept, _ = table.keep(Sketch(keys[row : row + at_once], values[row : row + at_once]))
        assert kept.all()
    _, documents = table.near._table.find(np.array([9], dtype=np.uint32))
    assert sorted(documents.tolist()) == [0, 1]
    assert table.near.documents == 5


def test_templates_cost_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    common = draw.integers(0, 50_000, 7).tolist()
    texts = [[*common, *draw.integers(0, 50_000, 3).tolist()] for _ in range(3000)]
    table = Table(0.5)
    compared: list[int] = []
    alike = table.near._alike

    def counted(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        compared.append(len(other))
        return alike(one, other)

    monkeypatch.setattr(table.near, "_alike", counted)
    for _ in range(2):
        kept, _ = table.keep(sketch(*documents_of(texts), table.near.rows))
        texts = [[*common, *draw.integers(0, 50_000, 3).tolist()] for _ in range(3000)]
        assert kept.sum() > 2500  # Jaccard is a third
    assert sum(compared) < 4_000_000  # 64 of a band at most; without that limit 18,000,000


@pytest.mark.parametrize(("kind", "step"), [(np.uint64, 1), (np.uint64, 2**58), (np.uint32, 2**26)])
def test_sorted_runs_against_a_dictionary(kind: type[np.unsignedinteger], step: int) -> None:
    draw = np.random.default_rng(3)
    table, known = SortedRuns(np.uint32), dict[int, list[int]]()
    for size in (1, 5, 0, 200, 3, 50, 50, 50, 1):
        keys = draw.integers(0, 60, size).astype(kind) * kind(step)
        values = draw.integers(0, 1000, size)
        table.add(keys, values)
        for key, value in zip(keys.tolist(), values.tolist(), strict=True):
            known.setdefault(key, []).append(value)
        asked = draw.integers(0, 64, 40).astype(kind) * kind(step)
        queries, found = table.find(asked)
        expected = [(i, v) for i, key in enumerate(asked.tolist()) for v in known.get(key, [])]
        assert sorted(zip(queries.tolist(), found.tolist(), strict=True)) == sorted(expected)


def test_equal_documents_need_all_128_bits() -> None:
    table = EqualDocuments()
    first = np.array([[1, 1], [1, 2], [1, 1], [2, 1]], dtype=np.uint64)
    assert table.keep(first).tolist() == [True, True, False, True]
    assert table.keep(np.array([[2, 1], [2, 2], [1, 3]], dtype=np.uint64)).tolist() == [
        *(False, True, True),
    ]
