"""Every option of `filbert train tag`, once: for the command line, recipes and run folders."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from filbert.train.options import TaughtOptions


class TagOptions(TaughtOptions):
    """Labels for words: where they stand in the file, which tokens carry them, how they are
    chosen."""

    data: str = Field(description="Training file (CoNLL, or JSON lines of tokens or spans; .gz)")
    format: Literal["conll", "jsonl"] | None = Field(
        None, description="File format (otherwise from the name)"
    )
    word_column: int = Field(1, description="CoNLL: column of the word, from 1 (or -1: the last)")
    tag_column: int = Field(-1, description="CoNLL: column of the tag")
    slots: Literal["parts", "first", "all"] = Field(
        "parts", description="Tokens that carry a label: first of each part, of each word, or all"
    )
    crf: bool = Field(False, description="Learn which label follows which (a CRF on top)")
