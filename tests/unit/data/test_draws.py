"""Random numbers by place: known values, even spread, orders that are orders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from filbert.data.draws import Draw, key_of, keys_of, mix, mixed, permute, uniforms


def test_the_hash_is_splitmix64() -> None:
    # the first outputs of the published generator with seed 1234567
    # (Vigna's splitmix64.c: state += golden ratio, then the finaliser)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    assert [mix((1234567 + n * golden) & mask) for n in range(3)] == expected


def test_arrays_and_single_numbers_agree() -> None:
    values = [0, 1, 2**63, 2**64 - 1, 1234567]
    assert mixed(np.array(values, dtype=np.uint64)).tolist() == [mix(v) for v in values]
    numbers = np.array([0, 5, 10**15])
    assert keys_of(key_of(3, 7), numbers).tolist() == [key_of(3, 7, int(n)) for n in numbers]
    draw = Draw(key_of(9))
    one_by_one = [draw.uniform() for _ in range(5)]
    keys = np.full(5, key_of(9), dtype=np.uint64)
    assert uniforms(keys, np.arange(5)).tolist() == one_by_one


def test_uniform_numbers_are_uniform() -> None:
    keys = np.full(200_000, key_of(1), dtype=np.uint64)
    numbers = uniforms(keys, np.arange(200_000))
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    # neighbours: neither along a counter nor from key to key
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    across = uniforms(keys_of(key_of(2), np.arange(200_000)), np.zeros(200_000, dtype=np.int64))
    assert stats.kstest(across, "uniform").pvalue > 1e-3


def test_below_and_heads_keep_their_chances() -> None:
    draw = Draw(key_of(4))
    counts = np.bincount([draw.below(7) for _ in range(70_000)], minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3
    heads = [draw.heads(100) for _ in range(5000)]
    assert max(heads) <= 100
    assert np.mean(heads) == pytest.approx(50, abs=0.4)  # sd of the mean: 5 / sqrt(5000) = 0.07
    assert np.var(heads) == pytest.approx(25, rel=0.1)
    assert draw.heads(0) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 65, 1000, 4097])
def test_an_order_holds_each_place_once(size: int) -> None:
    assert sorted(permute(np.arange(size), size, key_of(size)).tolist()) == list(range(size))


def test_orders_are_random_and_need_no_whole() -> None:
    whole = permute(np.arange(10_000), 10_000, key_of(1, 0))
    assert np.array_equal(permute(np.array([77, 9999, 0]), 10_000, key_of(1, 0)),
                          whole[[77, 9999, 0]])  # fmt: skip
    other = permute(np.arange(10_000), 10_000, key_of(1, 1))
    assert np.mean(whole == other) < 0.01
    assert abs(stats.spearmanr(np.arange(10_000), whole).statistic) < 0.04
    # where the first place goes, over many keys: even
    firsts = [int(permute(np.array([0]), 10, key_of(k))[0]) for k in range(20_000)]
    assert stats.chisquare(np.bincount(firsts, minlength=10)).pvalue > 1e-3


def test_an_order_of_a_million_million_things() -> None:
    size = 10**12
    found = permute(np.arange(1000) + 5 * 10**11, size, key_of(8))
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < size
