"""CRC-32C, the checksum of TensorFlow's and LevelDB's files, fast in numpy alone.

Python's `zlib.crc32` is another polynomial, and a loop over bytes takes minutes for a model. The
checksum is linear over GF(2): that of A then B is that of A, moved over len(B) zero bytes, xor
that of B. So the words of a block are folded pairwise, half as many after each step, and a step is
one move of a known length for a whole array at once: four table look-ups. About half a gigabyte a
second.

Source: RFC 3720, appendix B.4 (test vectors); the masking is LevelDB's (`util/crc32c.h`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """The CRC-32C (Castagnoli) of `data`, as in RFC 3720: `crc32c(b"123456789") == 0xE3069283`."""
    array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    state = np.full(1, 0xFFFFFFFF, np.uint32)
    step = 1 << 20
    for start in range(0, array.size, step):
        block = array[start : start + step]
        power = max(2, (block.size - 1).bit_length())
        if block.size < 1 << power:  # zeros in front leave a checksum that starts at 0 as it is
            block = np.concatenate([np.zeros((1 << power) - block.size, np.uint8), block])
        words = np.ascontiguousarray(block).view("<u4").astype(np.uint32, copy=False)
        for k in range(2, power):  # neighbours of 2**k bytes each
            words = _move(_tables(k), words[0::2]) ^ words[1::2]
        length = min(step, array.size - start)
        for k in range(length.bit_length()):
            if length >> k & 1:
                state = _move(_tables(k), state)
        state = state ^ _move(_tables(2), words)
    return int(state[0]) ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """As LevelDB and TensorFlow store it: rotated and shifted, so that a checksum can be summed."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _tables(k: int) -> NDArray[np.uint32]:
    """(4, 256): what each byte of the state becomes after 2**k zero bytes."""
    if k:
        return _move(_tables(k - 1), _tables(k - 1))
    low = np.arange(256, dtype=np.uint32)
    values = low
    for _ in range(8):
        values = np.where(values & 1, values >> 1 ^ np.uint32(0x82F63B78), values >> 1)
    # Byte 0 leaves the register through the table, the others move down by one place.
    return np.stack([values, low, low << 8, low << 16]).astype(np.uint32)


def _move(tables: NDArray[np.uint32], state: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """`state` after the zero bytes that `tables` stand for; any shape."""
    moved = tables[0].take(state & 0xFF)
    for byte in (1, 2, 3):
        moved ^= tables[byte].take(state >> (8 * byte) & 0xFF)
    return moved
