"""Random numbers that are a function of their place: no generator, no state, nothing to replay.

A number is a hash of (key, counter), so the number of step 90,000 costs the same as that of step 0,
and any process, in any order, draws what a single process would have drawn. The hash is the
finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"); orders are permutations by a Feistel network with cycle walking (Black and Rogaway
2002, "Ciphers with arbitrary finite domains"). Neither is meant for secrets.

    >>> permute(np.arange(5), 5, key_of(7, 0)).tolist()    # an order of five, in constant memory
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 6


def mix(value: int) -> int:
    """64 bits well mixed; `mixed` is the same for arrays."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def mixed(values: U64) -> U64:
    """`mix` of each element; uint64 arithmetic wraps around, as it must."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))


def key_of(*parts: int) -> int:
    """A key of 64 bits from whole numbers (seed, epoch, place ...); their order matters."""
    key = 0
    for part in parts:
        key = mix(key ^ mix(part & _MASK))
    return key


def keys_of(key: int, numbers: NDArray[np.int64]) -> U64:
    """`key_of(..., n)` of each n, where `key` is `key_of(...)`. numbers: (n,) of 0 or more."""
    return mixed(np.uint64(key) ^ mixed(numbers.astype(np.uint64)))


def uniforms(keys: U64, counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """A number in [0, 1) for each pair of key and counter, 53 bits of it. Both (n,)."""
    bits = mixed(keys ^ mixed(counters.astype(np.uint64)))
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


class Draw:
    """The numbers of one key, one after another: counter 0, 1, 2 ... as `uniforms` counts them."""

    def __init__(self, key: int) -> None:
        self.key, self.counter = key, 0

    def bits(self) -> int:
        """The next 64 bits."""
        self.counter += 1
        return mix(self.key ^ mix(self.counter - 1))

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        return float((self.bits() >> 11) * 2.0**-53)

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1; by a product, so without a modulo's bias."""
        return (self.bits() * limit) >> 64

    def heads(self, coins: int) -> int:
        """How many of that many fair coins show heads."""
        count = 0
        for left in range(coins, 0, -64):
            count += (self.bits() & ((1 << min(left, 64)) - 1)).bit_count()
        return count


def permute(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Where each place goes in an order of `size` things that `key` decides.

    places: (n,) in [0, size). Returns (n,) in [0, size); distinct places give distinct results.
    Time and memory do not depend on `size`.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    round_keys = [np.uint64(key_of(key, turn)) for turn in range(_ROUNDS)]
    result = places.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():  # the network orders 4 ** half things; walk until inside the first `size`
        left, right = result[outside] >> shift, result[outside] & low
        for round_key in round_keys:
            left, right = right, left ^ (mixed(right ^ round_key) & low)
        result[outside] = (left << shift) | right
        outside = result >= np.uint64(size)
    return result.astype(np.int64)
