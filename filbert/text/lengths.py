"""How long the sequences of a call are: what is truncated, and what is padded to which length.

A BERT reads at most 512 tokens. Truncation works on the records that the tokenizers library makes
of each text, before special tokens are put around them; it gives what the library's own truncation
gives, but keeps no state in a tokenizer that threads share, and says what went wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Tokenizer

from filbert.errors import FilbertError, did_you_mean
from filbert.text.batch import Batch, encoding_error

logger = logging.getLogger(__name__)

# Models without a limit of their own say 10**30.
_NO_LIMIT = 10**20
# Pieces of two long texts, each with each, are a mistake rather than a wish beyond this.
_MOST_PIECES = 10_000


class Plan(NamedTuple):
    """What a call does about lengths, in tokens with special tokens."""

    padding: str | None  # longest | max_length | None
    strategy: str | None  # longest_first | only_first | only_second | None
    max_length: int | None
    multiple: int | None


def plan_lengths(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    multiple: int | None,
    *,
    limit: int,
) -> Plan:
    """Resolve the arguments of a call as transformers does; `limit` is the model's length.

    `max_length` alone truncates; beside `padding=True` without truncation it means nothing. Raises
    `FilbertError` for values that are none of the known ones.
    """
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise FilbertError(f"max_length: expected a positive int, not {max_length!r}")
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        raise FilbertError(f"pad_to_multiple_of: expected a positive int, not {multiple!r}")
    if max_length is not None and padding is False and truncation is None:
        truncation = "longest_first"
    pad = _choice("padding", padding, "longest", ("longest", "max_length"), "do_not_pad")
    strategies = ("longest_first", "only_first", "only_second")
    strategy = _choice("truncation", truncation, "longest_first", strategies, "do_not_truncate")
    if pad == "longest" and strategy is None and max_length is not None:
        logger.warning(
            "max_length=%d has no effect with padding=%r and no truncation; pass "
            "truncation=True to cut texts off or padding='max_length' to fill them up",
            max_length,
            padding,
        )
    if max_length is None and limit < _NO_LIMIT:
        max_length = limit
    elif max_length is None:
        strategy = None
        if pad == "max_length":
            raise FilbertError(
                "padding='max_length': the model has no limit, so pass max_length too"
            )
    if strategy and pad and multiple and max_length is not None and max_length % multiple:
        raise FilbertError(
            f"texts cut off at max_length={max_length} cannot be padded to a multiple of "
            f"{multiple}; use max_length={max_length - max_length % multiple or multiple}"
        )
    return Plan(pad, strategy, max_length, multiple)


def _choice(
    name: str, value: bool | str | None, default: str, known: tuple[str, ...], none: str
) -> str | None:
    if value is None or value is False or value == none:
        return None
    if value is True:
        return default
    if value not in known:
        raise FilbertError(
            f"{name}: expected True, False or one of {', '.join(known)}, not {value!r}."
            f"{did_you_mean(str(value), known)}"
        )
    return value


def encode_batch(
    full: Tokenizer,
    bare: Tokenizer,
    batch: Batch,
    plan: Plan,
    *,
    stride: int,
    side: str,
    add_special_tokens: bool,
    split: bool,
    overflow: bool,
) -> list[tokenizers.Encoding]:
    """The library's record of each text or pair: truncated, with special tokens, not padded.

    `full` puts special tokens around texts, `bare` is the same tokenizer without. `side`: the end
    that loses tokens. `split`: texts are lists of words. `overflow`: what is cut off is wanted, in
    `.overflowing`. Raises `FilbertError`.
    """
    if plan.strategy is None:
        inputs: Sequence[Any] = batch.first
        if batch.second is not None:
            inputs = list(zip(batch.first, batch.second, strict=True))
        return _run(full, inputs, batch, add_special_tokens=add_special_tokens, split=split)
    assert plan.max_length is not None, "plan_lengths() gives a length to truncate to"
    specials = full.num_special_tokens_to_add(batch.second is not None) if add_special_tokens else 0
    room = plan.max_length - specials
    if room < 0:
        raise FilbertError(
            f"max_length={plan.max_length} has no room for the {specials} special tokens; "
            f"use at least {specials + 1}, or add_special_tokens=False"
        )
    if not 0 <= stride < max(room, 1):
        raise FilbertError(
            f"stride={stride} must be from 0 to {max(0, room - 1)}, less than max_length "
            "without the special tokens, or the pieces of a text would not advance"
        )
    # Without special tokens first, so that truncation leaves those whole.
    firsts = _run(bare, batch.first, batch, add_special_tokens=False, split=split)
    seconds: Sequence[tokenizers.Encoding | None] = [None] * len(firsts)
    if batch.second is not None:
        seconds = _run(bare, batch.second, batch, add_special_tokens=False, split=split)
    sequences = []
    for index, (one, other) in enumerate(zip(firsts, seconds, strict=True)):
        where = f"text[{index}]" if batch.batched else "text"
        kept = share(len(one), len(other or ()), room=room, strategy=plan.strategy, where=where)
        if overflow:
            _cut_in_pieces(one, other, kept, stride=stride, side=side, where=where)
        else:
            _cut(one, kept[0], side=side)
            if other is not None:
                _cut(other, kept[1], side=side)
        sequences.append(full.post_process(one, other, add_special_tokens))
    return sequences


def segments(sequence: tokenizers.Encoding, *, add_special_tokens: bool) -> list[int]:
    """The token_type_ids of a pair: 1 for the second text and the [SEP] behind it, else 0.

    The library sets them before it truncates, so that of pieces that `encode_batch` cut off they
    are missing.
    """
    types = [int(text == 1) for text in sequence.sequence_ids]
    if add_special_tokens:
        types[-1 - sequence.attention_mask[::-1].index(1)] = 1  # the last token that is no padding
    return types


def _run(
    tokenizer: Tokenizer,
    inputs: Sequence[Any],
    batch: Batch,
    *,
    add_special_tokens: bool,
    split: bool,
) -> list[tokenizers.Encoding]:
    try:
        return tokenizer.encode_batch(
            inputs, is_pretokenized=split, add_special_tokens=add_special_tokens
        )
    except (TypeError, UnicodeError) as error:
        told = encoding_error(batch.first, "text")
        raise told or encoding_error(batch.second or (), "text_pair") or error from None


def pad(
    sequences: list[tokenizers.Encoding], plan: Plan, *, side: str, pad_id: int, pad_token: str
) -> None:
    """Fill the sequences up in place, on `side`, to the one length that `plan` asks for."""
    if side not in ("left", "right"):
        raise FilbertError(f"padding_side: expected 'left' or 'right', not {side!r}")
    if plan.padding is None or not sequences:
        return
    length = max(map(len, sequences)) if plan.padding == "longest" else plan.max_length
    assert length is not None, "plan_lengths() gives a length to pad to"
    if plan.multiple:
        length = -(-length // plan.multiple) * plan.multiple
    for sequence in sequences:
        sequence.pad(length, direction=side, pad_id=pad_id, pad_token=pad_token)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay where both together may have `room`.

    The longer one gives until both are equal, then both give in turn.
    """
    short = min(first, second, room // 2)
    if first <= second:
        return short, min(second, room - short)
    return min(first, room - short), short


def share(first: int, second: int, *, room: int, strategy: str, where: str) -> tuple[int, int]:
    """How many tokens of two texts stay where both together may have `room`; see `plan_lengths`.

    `where` names the text in the `FilbertError` for a strategy that cannot make them fit.
    """
    excess = first + second - room
    if excess <= 0:
        return first, second
    if strategy == "longest_first" or room == 0:
        return longest_first(first, second, room)
    if strategy == "only_first" and first > excess:
        return first - excess, second
    if strategy == "only_second" and second > excess:
        return first, second - excess
    raise FilbertError(
        f"{where}: truncation={strategy!r} cannot make {first} + {second} tokens fit into {room} "
        "(special tokens not counted); use truncation='longest_first'"
    )


def _cut(encoding: tokenizers.Encoding, kept: int, *, side: str) -> None:
    # The library keeps what is cut off, in pieces of the length that stays, and combines all pieces
    # of a pair with each other: of two long texts, millions. Halving leaves one.
    while len(encoding) > 2 * max(kept, 1):
        encoding.truncate((len(encoding) + 1) // 2, direction=side)
    encoding.truncate(kept, direction=side)


def _cut_in_pieces(
    first: tokenizers.Encoding,
    second: tokenizers.Encoding | None,
    kept: tuple[int, int],
    *,
    stride: int,
    side: str,
    where: str,
) -> None:
    """Truncate in place; what is cut off stays in pieces that share `stride` tokens."""
    pieces = 1
    for encoding, keep in zip((first, second), kept, strict=True):
        if encoding is None or keep >= len(encoding):
            continue
        if 0 < keep <= stride:
            raise FilbertError(
                f"{where}: stride={stride} leaves no progress in pieces of {keep} tokens; "
                f"use a stride below {keep} or a larger max_length"
            )
        pieces *= len(encoding) // max(keep - stride, 1) + 1
    if (
        second is not None
        and pieces > _MOST_PIECES
        and kept[0] < len(first)
        and kept[1] < len(second)
    ):
        raise FilbertError(
            f"{where}: both texts of the pair are cut, and all pieces of one with all of the other "
            f"make some {pieces:,} sequences; use truncation='only_first' or 'only_second'"
        )
    first.truncate(kept[0], stride=stride, direction=side)
    if second is not None:
        second.truncate(kept[1], stride=stride, direction=side)
