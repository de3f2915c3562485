"""Documents that a corpus holds twice: equal ones, and near ones by MinHash.

Repeated text is learned by heart and, where a copy lands among the held-out documents, flatters the
score (Lee et al. 2022, "Deduplicating training data makes language models better"). Of documents
that are alike the first one read stays.

Equal: 128 bits of BLAKE2b of the cleaned text. Near: MinHash signatures of 128 values (Broder 1997)
over runs of five tokens, computed by rensa (Rust); documents whose signatures agree in one of the
bands are compared, and one whose estimated Jaccard similarity reaches the threshold is a
duplicate. Bands have as many rows as still find nine in ten of the pairs at the threshold: eight
for 0.8, which finds 95 %.

Memory: 16 bytes for each document read, and with near duplicates 128 more for each kept one at 0.8
(8 for each of 16 bands), a sixteenth more for a moment when tables grow. Signatures, 256 bytes
each, stay where the caller writes them, and those of candidates are read again.

    near = NearDuplicates(0.8, signatures)
    kept, remembered = near.keep(sketch(ids, lengths, near.rows))  # (documents,) bool
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from filbert.data.draws import mixed
from filbert.data.packing import runs
from filbert.errors import missing_extra

U64 = NDArray[np.uint64]
Keys = NDArray[np.uint64] | NDArray[np.uint32]

VALUES = 128  # of a signature
SHINGLE = 5  # tokens
_SEED = 3  # of the signatures
_CROWDED = 64  # documents under one key; more are not put there, so that templates cost no square
_NOWHERE = np.uint64(0)  # the key of a band under which a document was not put
_BLOCK = 1 << 16  # signatures compared in one go
_PARTS = 16  # of a table, by the first bits of the key: one at a time is merged
# Odd numbers, to tell the places within a run of tokens apart.
_FACTORS = np.array(
    [2 * n + 1 for n in (0x1F3A5C77, 0x2545F491, 0x3C6EF372, 0x5851F42D, 0x7F4A7C15)]
)


class Sketch(NamedTuple):
    """Of documents: `keys` (documents, bands) uint64, `values` (documents, 128) uint16."""

    keys: U64
    values: NDArray[np.uint16]


def rows_of_bands(threshold: float) -> int:
    """Rows of a band: the most that still find nine in ten of the pairs at the threshold."""
    for rows in (32, 16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (VALUES // rows) >= 0.9:
            return rows
    return 1


def sketch(ids: NDArray[Any], lengths: NDArray[np.int64], rows: int) -> Sketch:
    """MinHash signatures and band keys of documents.

    `ids` (tokens,): their tokens end to end; `lengths` (documents,), each 1 or more; `rows` of a
    band. Raises `FilbertError` where rensa is not installed.
    """
    try:
        import rensa
    except ImportError:
        raise missing_extra("rensa", "pretrain") from None
    ends = np.cumsum(lengths)
    begins = ends - lengths
    counts = np.maximum(lengths - (SHINGLE - 1), 1)  # runs of five; one of a shorter document
    padded = np.concatenate([ids, np.zeros(SHINGLE, ids.dtype)]).astype(np.uint64)
    hashes = np.zeros(len(ids), dtype=np.uint64)
    for place, factor in enumerate(_FACTORS.astype(np.uint64)):
        hashes += (padded[place : place + len(ids)] + np.uint64(1)) * mixed(factor[None])
    for document in np.flatnonzero(lengths < SHINGLE):
        own = padded[begins[document] : ends[document]]
        terms = (own + np.uint64(1)) * mixed(_FACTORS[: len(own)].astype(np.uint64))
        hashes[begins[document]] = terms.sum(dtype=np.uint64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    picked = runs(begins, counts)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        mixed(hashes[picked]), offsets.astype(np.uint64), VALUES, _SEED
    )
    values = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(lengths), VALUES)
    banded = values.reshape(len(lengths), VALUES // rows, rows)
    keys = np.broadcast_to(np.arange(VALUES // rows, dtype=np.uint64), banded.shape[:2])
    for row in range(rows):
        keys = mixed(keys ^ banded[:, :, row])
    return Sketch(np.ascontiguousarray(keys), (values & np.uint64(0xFFFF)).astype(np.uint16))


class SortedRuns:
    """A table key -> values for many keys at once: sorted arrays, merged as they grow.

    A Python dictionary takes ten times the memory. `value` is the type of the values; keys are
    uint64, or uint32 in all calls, and should fill their range.
    """

    def __init__(self, value: type[np.generic]) -> None:
        self._value = value
        self._parts: list[list[tuple[Keys, NDArray[Any]]]] = [[] for _ in range(_PARTS)]

    def add(self, keys: Keys, values: NDArray[Any]) -> None:
        """Put in `values` (n,) under `keys` (n,); a key may have several."""
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order].astype(self._value)
        for part, own in zip(self._parts, _slices(keys), strict=True):
            if own.start == own.stop:
                continue
            run = keys[own].copy(), values[own].copy()
            while part and len(part[-1][0]) < 2 * len(run[0]):
                other = part.pop()
                together = np.concatenate([other[0], run[0]])
                order = np.argsort(together, kind="stable")  # two sorted halves: one pass
                run = together[order], np.concatenate([other[1], run[1]])[order]
            part.append(run)

    def find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The pairs (place of the key in `keys`, value under it), in no particular order."""
        order = np.argsort(keys, kind="stable")
        queries, values = [np.zeros(0, np.int64)], [np.zeros(0, self._value)]
        for part, own in zip(self._parts, _slices(keys[order]), strict=True):
            places = order[own]
            for known, under in part:
                left = np.searchsorted(known, keys[places])
                hits = np.flatnonzero(known[np.minimum(left, len(known) - 1)] == keys[places])
                if not len(hits):
                    continue
                left = left[hits]
                counts = np.searchsorted(known, keys[places[hits]], side="right") - left
                queries.append(np.repeat(places[hits], counts))
                values.append(under[runs(left, counts)])
        return np.concatenate(queries), np.concatenate(values)


def _slices(keys: Keys) -> list[slice]:
    """Where the parts of a table stand among sorted keys."""
    step = (int(np.iinfo(keys.dtype).max) + 1) // _PARTS
    begins = np.searchsorted(keys, np.arange(_PARTS, dtype=np.uint64) * step).tolist()
    return [slice(*ends) for ends in zip(begins, [*begins[1:], len(keys)], strict=True)]


class EqualDocuments:
    """Which documents were seen before, by two halves of a hash of 128 bits."""

    def __init__(self) -> None:
        self._table = SortedRuns(np.uint64)

    def keep(self, hashes: U64) -> NDArray[np.bool_]:
        """(documents,) False for each that equals an earlier one; remembers the others.

        hashes: (documents, 2).
        """
        kept = np.ones(len(hashes), dtype=bool)
        queries, second = self._table.find(hashes[:, 0])
        kept[queries[hashes[queries, 1] == second]] = False
        seen: set[tuple[int, int]] = set()
        for place, pair in enumerate(map(tuple, hashes.tolist())):
            kept[place] &= pair not in seen
            seen.add(pair)
        self.remember(hashes[kept])
        return kept

    def remember(self, hashes: U64) -> None:
        """Take documents for seen: those of an earlier, interrupted call. hashes: (n, 2)."""
        if len(hashes):
            self._table.add(hashes[:, 0], hashes[:, 1])


class NearDuplicates:
    """Which documents are nearly like a kept one.

    `signatures(numbers)`, given numbers (n,) of kept documents in the order in which they were
    kept, returns the signatures (n, 128) uint16 that `keep` handed out for them.
    """

    def __init__(
        self, threshold: float, signatures: Callable[[NDArray[np.int64]], NDArray[np.uint16]]
    ) -> None:
        self.threshold, self.rows = threshold, rows_of_bands(threshold)
        self._signatures = signatures
        self._table = SortedRuns(np.uint32)
        self.documents = 0  # kept ones

    def keep(self, found: Sketch) -> tuple[NDArray[np.bool_], Sketch]:
        """(documents,) False for each that is nearly like an earlier kept one; and of the others
        the keys for `remember` and the signatures, which must be at hand for the next call.

        Looks at documents in their order: what is like a left-out document only, stays.
        """
        keys, values = found
        bands = keys.shape[1]
        flat = _short(keys.ravel())
        queries, others = self._table.find(flat)
        pairs = np.unique(
            (queries // bands).astype(np.uint64) << np.uint64(32) | others.astype(np.uint64)
        )
        mine, known = (pairs >> np.uint64(32)).astype(np.int64), pairs & np.uint64(0xFFFFFFFF)
        kept = np.ones(len(keys), dtype=bool)
        for begin in range(0, len(pairs), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            theirs = self._signatures(known[part].astype(np.int64))
            kept[mine[part][self._alike(values[mine[part]], theirs)]] = False
        self._among_themselves(keys, values, kept)
        crowd = np.bincount(queries, minlength=len(flat)).reshape(keys.shape)[kept]
        crowd += _ranks(keys[kept].ravel()).reshape(crowd.shape)
        remembered = Sketch(np.where(crowd < _CROWDED, keys[kept], _NOWHERE), values[kept])
        self.remember(remembered.keys)
        return kept, remembered

    def _among_themselves(
        self, keys: U64, values: NDArray[np.uint16], kept: NDArray[np.bool_]
    ) -> None:
        """Mark, in `kept`, what is like an earlier kept document of the same call."""
        _, inverse, counts = np.unique(keys[kept], return_inverse=True, return_counts=True)
        shared = (counts > 1)[inverse].reshape(-1, keys.shape[1])
        own = np.flatnonzero(kept)
        groups: dict[int, list[int]] = {}
        for row in np.flatnonzero(shared.any(axis=1)):
            document = own[row]
            mine = keys[document, shared[row]].tolist()
            others = sorted({other for key in mine for other in groups.get(key, ())})
            if others and self._alike(values[document], values[others]).any():
                kept[document] = False
                continue
            for key in mine:
                if len(group := groups.setdefault(key, [])) < _CROWDED:
                    group.append(int(document))

    def _alike(self, one: NDArray[np.uint16], other: NDArray[np.uint16]) -> NDArray[np.bool_]:
        return (one == other).mean(axis=-1) >= self.threshold

    def remember(self, keys: U64) -> None:
        """Take documents for kept, by the keys (documents, bands) that `keep` handed out."""
        numbers = np.arange(self.documents, self.documents + len(keys))
        put = keys != _NOWHERE
        self._table.add(_short(keys[put]), np.broadcast_to(numbers[:, None], put.shape)[put])
        self.documents += len(keys)


def _ranks(keys: U64) -> NDArray[np.int64]:
    """Of each key (n,) how many equal ones stand before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(ordered, ordered)
    return ranks


def _short(keys: U64) -> NDArray[np.uint32]:
    """Half of each key: enough for candidates, whose signatures are compared anyway."""
    return (keys >> np.uint64(32)).astype(np.uint32)
