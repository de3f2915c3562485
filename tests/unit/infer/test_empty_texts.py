"""Which rows count as empty."""

from __future__ import annotations

from typing import Any

import pytest

from filbert.infer.empty_texts import empty_note


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a", None), ("", "the row has no text"), ("\u3000\n", "the row has no text"),
        (("a", "b"), None), (("", "b"), "the first text is empty"),
        (("a", " "), "the second text is empty"), (("", ""), "the row has no text"),
        (["a", ""], None), ({"tokens": ["", "a"]}, None),
        ({"tokens": []}, "the list of words"), ({"tokens": [" "]}, "the list of words"),
        ({"question": "", "context": ""}, None),  # refused elsewhere
    ],
)  # fmt: skip
def test_what_is_empty(row: Any, words: str | None) -> None:
    note = empty_note(row)
    assert note is None if words is None else note is not None and note.startswith(words)
