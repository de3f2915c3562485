"""Many texts to bare arrays, cut off or in windows: how training and bulk prediction read text.

What is longer than the model takes is either cut off or read in windows: each as long as the model
takes, each repeating the last `stride` tokens of the one before. Texts are encoded in chunks, so
memory beyond the result stays bounded, and laid out in numpy without a step per token in Python.

    flat = tokenizer.encode_flat(texts, max_length=512, windows=True, stride=64)
    flat.ids[flat.window_starts[3] : flat.window_starts[4]]      # the fourth window
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from filbert.errors import FilbertError
from filbert.text.batch import check_texts, encoding_error
from filbert.text.known_words import BLANK, KnownWords, words_are_independent

Ints = NDArray[np.int64]

# The library's records take some 160 bytes a character; these bound what is alive at one time.
_CHUNK_TEXTS = 1000
_CHUNK_CHARACTERS = 1_000_000
_HIGHEST = 2**31 - 1  # of an int32


class Flat(NamedTuple):
    """Sequences of many examples end to end, without padding.

    `ids` (tokens,) int32; `token_type_ids` (tokens,) int8; `window_starts` (windows + 1,) int64:
    window w is ids[window_starts[w] : window_starts[w + 1]]; `example_windows` (examples + 1,)
    int64: example e has the windows example_windows[e] to example_windows[e + 1] (exclusive).
    """

    ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int8]
    window_starts: Ints
    example_windows: Ints


def encode_flat(
    bare: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    cls_id: int,
    sep_id: int,
    max_length: int,
    windows: bool,
    stride: int,
    side: str,
    known: KnownWords | None = None,
) -> Flat:
    """Encode texts or pairs with `bare`, which adds no special tokens, and `assemble` them.

    `known`: the words that this tokenizer has met; without them every text is encoded."""
    if known is not None and not known.serves(bare):
        known = None
    if max(cls_id, sep_id) > _HIGHEST:
        raise _beyond(max(cls_id, sep_id))
    check_texts(texts, "texts")
    if pairs is not None:
        check_texts(pairs, "pairs")
        if len(texts) != len(pairs):
            raise FilbertError(
                f"there are {len(texts)} texts and {len(pairs)} pairs; each text needs its pair"
            )
    specials = 2 if pairs is None else 3
    room = max_length - specials
    if room < 1:
        raise FilbertError(
            f"max_length={max_length} leaves no room for text beside {specials} special tokens"
        )
    # Of a pair, the text that moves has at least half of the room (rounded up).
    least = room if pairs is None else room - room // 2
    if windows and not 0 <= stride < least:
        raise FilbertError(
            f"stride={stride}: windows of max_length={max_length} hold {least} tokens of the text "
            f"that moves through them, so the stride must be from 0 to {least - 1}"
        )
    parts = []
    for begin, end in _chunks(texts, pairs):
        body, first = _ids(bare, texts[begin:end], "texts", begin, known)
        second = None
        if pairs is not None:
            second_ids, second = _ids(bare, pairs[begin:end], "pairs", begin, known)
            body = np.concatenate([body, second_ids])
        part = assemble(
            body,
            first,
            second,
            cls_id=cls_id,
            sep_id=sep_id,
            max_length=max_length,
            windows=windows,
            stride=stride if windows else 0,
            side=side,
        )
        parts.append(part)
    return _join(parts)


def assemble(
    body: NDArray[np.int32],
    first: Ints,
    second: Ints | None,
    *,
    cls_id: int,
    sep_id: int,
    max_length: int,
    windows: bool,
    stride: int,
    side: str,
) -> Flat:
    """Lay texts out as [CLS] A [SEP] or [CLS] A [SEP] B [SEP], each window at most `max_length`.

    `body`: ids without special tokens, all first texts end to end, then all second texts.
    `first`, `second`: (examples,) int64, their lengths. Without `windows` the `side` of texts that
    are too long is cut off, the longer text of a pair first. With `windows` the longer text of a
    pair (the second, if equal) moves through them, and each repeats the other one, which is kept
    whole up to half of the room and cut off beyond. Needs stride < half of the room.
    """
    pair = second is not None
    room = max_length - (3 if pair else 2)
    if not pair and len(first) == 1 and len(body) <= room:  # one text: the same by a shorter way
        size = len(body) + 2
        ids = np.empty(size, dtype=np.int32)
        ids[0], ids[1:-1], ids[-1] = cls_id, body, sep_id
        return Flat(ids, np.zeros(size, np.int8), np.array([0, size]), np.arange(2))
    if not pair and int(first.max(initial=0)) <= room:  # many, by a shorter way
        starts = _starts(first + 2)
        ids = np.empty(starts[-1], dtype=np.int32)
        inner = np.ones(len(ids), dtype=bool)
        for place, special in ((starts[:-1], cls_id), (starts[1:] - 1, sep_id)):
            ids[place], inner[place] = special, False
        ids[inner] = body
        return Flat(ids, np.zeros(len(ids), dtype=np.int8), starts, np.arange(len(first) + 1))
    others = np.zeros_like(first) if second is None else second
    first_start = _starts(first)[:-1]
    second_start = _starts(others)[:-1] + first.sum()

    # (examples,): which text is long, what of the short one is kept, how many tokens remain for it
    swapped = (others >= first) & pair
    long, short = np.maximum(first, others), np.minimum(first, others)
    long_start = np.where(swapped, second_start, first_start)
    short_start = np.where(swapped, first_start, second_start)
    kept = np.minimum(short, room // 2)
    slot = room - kept
    step = slot - stride
    beyond = np.maximum(long - slot, 0)
    count = 1 + (-(-beyond // step) if windows else np.zeros_like(beyond))
    if side == "left":
        short_start = short_start + short - kept
        if not windows:
            long_start = long_start + beyond

    # (windows,): where the two parts of each begin in `body`, and their lengths
    example_windows = _starts(count)
    owner = np.repeat(np.arange(len(first)), count)
    offset = (np.arange(len(owner)) - example_windows[:-1][owner]) * step[owner]
    long_from = long_start[owner] + offset
    long_length = np.minimum(long[owner] - offset, slot[owner])
    short_from, short_length = short_start[owner], kept[owner]
    is_swapped = swapped[owner]
    a_from = np.where(is_swapped, short_from, long_from)
    a_length = np.where(is_swapped, short_length, long_length)
    b_from = np.where(is_swapped, long_from, short_from)
    b_length = np.where(is_swapped, long_length, short_length)

    window_starts = _starts(a_length + b_length + (3 if pair else 2))
    begin = window_starts[:-1]
    ids = np.full(window_starts[-1], sep_id, dtype=np.int32)  # texts overwrite all but the [SEP]s
    ids[begin] = cls_id
    ids[_ragged(begin + 1, a_length)] = body[_ragged(a_from, a_length)]
    types = np.zeros(len(ids), dtype=np.int8)
    if pair:
        ids[_ragged(begin + a_length + 2, b_length)] = body[_ragged(b_from, b_length)]
        types[_ragged(begin + a_length + 2, b_length + 1)] = 1
    return Flat(ids, types, window_starts, example_windows)


def _join(parts: list[Flat]) -> Flat:
    """The examples of several parts, in order, as one."""
    if len(parts) == 1:
        return parts[0]
    return Flat(
        np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, np.int8), *(part.token_type_ids for part in parts)]),
        _starts(
            np.concatenate([np.empty(0, np.int64), *(np.diff(p.window_starts) for p in parts)])
        ),
        _starts(
            np.concatenate([np.empty(0, np.int64), *(np.diff(p.example_windows) for p in parts)])
        ),
    )


def _chunks(texts: Sequence[str], pairs: Sequence[str] | None) -> Iterator[tuple[int, int]]:
    """(begin, end) of runs of examples that are encoded together."""
    begin = characters = 0
    for index, text in enumerate(texts):
        size = len(text) + (len(pairs[index]) if pairs is not None else 0)
        if index > begin and (
            characters + size > _CHUNK_CHARACTERS or index - begin == _CHUNK_TEXTS
        ):
            yield begin, index
            begin, characters = index, 0
        characters += size
    if len(texts) > begin:
        yield begin, len(texts)


def _ids(
    bare: Tokenizer, texts: Sequence[str], name: str, offset: int, known: KnownWords | None
) -> tuple[NDArray[np.int32], Ints]:
    """Ids without special tokens end to end, (tokens,), and the length of each text, (texts,)."""
    if len(texts) > 1:
        return _encode(bare, texts, name, offset, known)
    # A text longer than a chunk is a chunk of its own, and goes piece by piece.
    parts = [_encode(bare, [piece], name, offset, known)[0] for piece in _pieces(bare, texts[0])]
    ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return ids, np.array([len(ids)])


def _encode(
    bare: Tokenizer, texts: Sequence[str], name: str, offset: int, known: KnownWords | None
) -> tuple[NDArray[np.int32], Ints]:
    try:
        if known is not None:
            ids, lengths = known.encode(bare, texts)
        else:
            records = bare.encode_batch_fast(texts, add_special_tokens=False)
            lengths = np.fromiter(map(len, records), np.int64, len(records))
            ids = list(itertools.chain.from_iterable(record.ids for record in records))
    except (TypeError, UnicodeError) as error:
        raise encoding_error(texts, name, offset=offset) or error from None
    try:
        return np.fromiter(ids, np.int32, len(ids)), lengths
    except OverflowError:
        raise _beyond(max(ids)) from None


def _beyond(number: int) -> FilbertError:
    return FilbertError(
        f"the tokenizer gives the id {number}, but ids go up to {_HIGHEST:,}: its files are "
        "damaged. Save it again, or take it from where it came"
    )


def _pieces(bare: Tokenizer, text: str) -> Iterator[str]:
    """A very long text in pieces that have the same tokens: cut after a blank."""
    begin = 0
    if len(text) > _CHUNK_CHARACTERS and words_are_independent(bare):
        while blank := BLANK.search(text, begin + _CHUNK_CHARACTERS):
            yield text[begin : blank.end()]
            begin = blank.end()
    yield text[begin:]


def _starts(lengths: Ints) -> Ints:
    """(n + 1,) where each of n runs begins, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _ragged(starts: Ints, lengths: Ints) -> Ints:
    """The positions starts[i], starts[i] + 1, ... of all runs, end to end."""
    ends = _starts(lengths)
    return np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])
