"""What the tokenizer returns: a dictionary whose keys are attributes too, with maps to the text.

    encoding = tokenizer("Great film.", return_tensors="pt")
    model(**encoding)                       # a dictionary
    encoding.input_ids                      # and attributes
    encoding.char_to_token(6)               # the token that holds character 6 of the raw text

Names and answers are those of `transformers.BatchEncoding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from filbert.errors import FilbertError, did_you_mean


class CharSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of the raw text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a sequence."""

    start: int
    end: int


class Encoding(dict[str, Any]):
    """Token ids and masks of one text or a batch: lists, numpy arrays or torch tensors.

    `encodings` holds the library's own record of each sequence, from which the methods answer.
    Methods that take an index can be called as `f(index)` (the first sequence) or `f(row, index)`.
    """

    def __init__(
        self, data: Mapping[str, Any], *, encodings: Sequence[tokenizers.Encoding] = ()
    ) -> None:
        super().__init__(data)
        self.encodings = list(encodings)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"there is no {name!r} here.{did_you_mean(name, self)} There is: {', '.join(self)}"
            ) from None

    def to(self, device: Any) -> Encoding:
        """Move the torch tensors to `device` (a string or torch.device), in place; returns itself.

        Raises `FilbertError` where there are no torch tensors.
        """
        if not all(hasattr(value, "to") for value in self.values()):
            raise FilbertError(
                "only torch tensors can move to a device; pass return_tensors='pt' to the tokenizer"
            )
        for name, value in self.items():
            self[name] = value.to(device)
        return self

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None for an empty batch."""
        return self.encodings[0].n_sequences if self.encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a sequence as strings."""
        return self._sequence(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the number of its word in the text; None for special tokens."""
        return self._sequence(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 (first text) or 1 (second text); None for special tokens."""
        return self._sequence(batch_index).sequence_ids

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """0 or 1: the text that a token comes from; None for a special token."""
        sequence, index = self._at(batch_or_token_index, token_index)
        return sequence.token_to_sequence(index)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """The number of the word that a token is part of; None for a special token."""
        sequence, index = self._at(batch_or_token_index, token_index)
        return sequence.token_to_word(index)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """The characters of the raw text that a token stands for; None for a special token."""
        sequence, index = self._at(batch_or_token_index, token_index)
        span = sequence.token_to_chars(index)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that holds a character; None for blanks and what the normalizer removes.

        `sequence_index`: 0 for a character of the first text, 1 for one of the second.
        """
        sequence, index = self._at(batch_or_char_index, char_index)
        return sequence.char_to_token(index, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that holds a character of the raw text, or None."""
        sequence, index = self._at(batch_or_char_index, char_index)
        return sequence.char_to_word(index, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word, or None where none of them is in the sequence."""
        sequence, index = self._at(batch_or_word_index, word_index)
        span = sequence.word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of the raw text that a word stands for, or None."""
        sequence, index = self._at(batch_or_word_index, word_index)
        span = sequence.word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def _sequence(self, batch_index: int) -> tokenizers.Encoding:
        try:
            return self.encodings[batch_index]
        except IndexError:
            raise FilbertError(
                f"there is no sequence {batch_index}; this encoding has {len(self.encodings)}"
            ) from None

    def _at(self, first: int, second: int | None) -> tuple[tokenizers.Encoding, int]:
        """(sequence, index in it) of `(index,)` or `(row, index)`; negative ones from the end."""
        sequence = self._sequence(0 if second is None else first)
        index = first if second is None else second
        index = index + len(sequence) if index < 0 else index
        if index < 0:
            raise FilbertError(
                f"index {first if second is None else second} is out of the sequence"
            )
        return sequence, index


def as_tensors(data: Mapping[str, list[Any]], kind: str) -> dict[str, Any]:
    """A batch's lists as int64 arrays, (sequences, tokens), of numpy (`"np"`) or torch (`"pt"`).

    Raises `FilbertError` for sequences of different lengths or another `kind`.
    """
    if kind not in ("np", "pt"):
        raise FilbertError(f"return_tensors: expected None, 'np' or 'pt', not {kind!r}")
    lengths = {len(ids) for ids in data["input_ids"]}
    if len(lengths) > 1:
        raise FilbertError(
            f"sequences of {min(lengths)} to {max(lengths)} tokens do not make one array; pass "
            "padding=True (and truncation=True where texts may be longer than the model takes)"
        )
    arrays = {name: np.asarray(value, dtype=np.int64) for name, value in data.items()}
    if not lengths:  # an empty batch: no sequences of no tokens
        arrays = {name: np.zeros((0, 0), dtype=np.int64) for name in data}
    if kind == "np":
        return arrays
    import torch  # only here: text is prepared without torch everywhere else

    return {name: torch.from_numpy(array) for name, array in arrays.items()}
