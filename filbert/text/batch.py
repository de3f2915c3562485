"""What a caller may hand to the tokenizer, made one form: lists of texts, with errors that point.

The Rust library says only that some input is wrong; people need to know which one and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from filbert.errors import FilbertError

# A text, or its words where it comes split.
Text = str | Sequence[str]


class Batch(NamedTuple):
    """First texts, second texts or None, and whether the caller gave a batch or a single text."""

    first: list[Text]
    second: list[Text] | None
    batched: bool


def read_batch(text: Any, text_pair: Any, *, split: bool) -> Batch:
    """Tell a text from a batch, and a batch of pairs from one of texts.

    `split`: a text is a list of words. Pairs come as two lists or as one list of pairs. Raises
    `FilbertError` naming the position of what is no text, or two lists of different lengths.
    """
    many = isinstance(text, list | tuple)
    if split:
        many = many and bool(text) and isinstance(text[0], list | tuple)
    if not many:
        _check(text, "text", split=split)
        if text_pair is not None:
            _check(text_pair, "text_pair", split=split)
        return Batch([text], None if text_pair is None else [text_pair], False)
    first, second = list(text), None
    if text_pair is not None:
        if not isinstance(text_pair, list | tuple):
            raise FilbertError(
                f"text is a list of {len(text)} texts, so text_pair must be a list of as many, not "
                f"{_kind(text_pair)}"
            )
        second = list(text_pair)
        if len(first) != len(second):
            raise FilbertError(
                f"text has {len(first)} texts and text_pair {len(second)}; each text needs its pair"
            )
    elif first and _is_pair(first[0], split=split):
        for index, pair in enumerate(first):
            if not _is_pair(pair, split=split):
                raise FilbertError(
                    f"text[{index}] is no pair of texts, but text[0] is; a batch has only one kind"
                )
        first, second = [pair[0] for pair in text], [pair[1] for pair in text]
    for index, item in enumerate(first):
        _check(item, f"text[{index}]", split=split)
    for index, item in enumerate(second or ()):
        _check(item, f"text_pair[{index}]", split=split)
    return Batch(first, second, True)


def check_texts(texts: Any, name: str) -> None:
    """Hold a list of texts to its type; raises `FilbertError` naming the first wrong position."""
    if not isinstance(texts, list | tuple):
        raise FilbertError(f"{name}: expected a list of texts, not {_kind(texts)}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            _check(text, f"{name}[{index}]", split=False)


def encoding_error(texts: Sequence[Text], name: str, *, offset: int = 0) -> FilbertError | None:
    """The error for the first text that is not Unicode, which the library refuses; None if all are.

    `offset` is added to positions. Lone surrogates come from bytes decoded with
    `errors="surrogateescape"` and from JSON escapes cut in half.
    """
    for index, text in enumerate(texts):
        for word in [text] if isinstance(text, str) else text:
            try:
                word.encode("utf-8")
            except UnicodeEncodeError as error:
                return FilbertError(
                    f"{name}[{offset + index}], character {error.start}: a lone surrogate "
                    f"(U+{ord(word[error.start]):04X}) is half a character, not text. Read the "
                    "file with its own encoding or drop it: text.encode('utf-8', 'ignore').decode()"
                )
    return None


def _check(item: Any, where: str, *, split: bool) -> None:
    if not split:
        if not isinstance(item, str):
            words = isinstance(item, list | tuple)
            hint = "; for texts split into words pass is_split_into_words=True" if words else ""
            raise FilbertError(f"{where}: expected a string, not {_kind(item)}{hint}")
        return
    if not isinstance(item, list | tuple):
        raise FilbertError(
            f"{where}: with is_split_into_words=True a text is a list of words, not {_kind(item)}"
        )
    for index, word in enumerate(item):
        if not isinstance(word, str):
            raise FilbertError(f"{where}, word {index}: expected a string, not {_kind(word)}")


def _is_pair(item: Any, *, split: bool) -> bool:
    inner = list | tuple if split else str
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(t, inner) for t in item)
    )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({str(value)[:40]!r})"
