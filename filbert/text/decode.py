"""Ids back to text, for people: word pieces joined, special tokens left out if asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from filbert.errors import FilbertError

# Blanks that word pieces leave before punctuation and English contractions.
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def decode(tokenizer: Tokenizer, ids: Any, *, skip_special_tokens: bool, clean_up: bool) -> Any:
    """The text of ids (an int, a list, an array, a tensor), or a list of texts of a batch of ids.

    Ids beyond the vocabulary have no text. Raises `FilbertError` for ids that cannot be.
    """
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if isinstance(ids, int):
        ids = [ids]
    if isinstance(ids, str | bytes | dict) or not isinstance(ids, Iterable):
        raise FilbertError(
            f"expected ids (an int, a list of ints, an array or a batch of them), got {_shown(ids)}"
        )
    ids = list(ids)
    if ids and not isinstance(ids[0], int):
        return [
            decode(tokenizer, row, skip_special_tokens=skip_special_tokens, clean_up=clean_up)
            for row in ids
        ]
    text = tokenizer.decode(as_ids(ids), skip_special_tokens=skip_special_tokens)
    for mark in _CLEAN_UP if clean_up else ():
        text = text.replace(mark, mark.strip())
    return text


def as_ids(ids: Sequence[Any]) -> list[int]:
    """Ids as ints of Python; raises `FilbertError` for a negative one, which is no token."""
    try:
        numbers = [int(number) for number in ids]
    except (TypeError, ValueError, OverflowError):
        bad = next(number for number in ids if not isinstance(number, int))
        raise FilbertError(f"expected ids, which are whole numbers, got {_shown(bad)}") from None
    for position, number in enumerate(numbers):
        if not 0 <= number < 2**32:
            hint = "; -100 marks labels to ignore, which have no text" if number == -100 else ""
            raise FilbertError(f"id {number} (position {position}) is no token{hint}")
    return numbers


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.40}"
