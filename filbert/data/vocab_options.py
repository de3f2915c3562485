"""Every option of `filbert vocab`, once, for the command line and for Python.

Imports nothing heavy: the command line reads it to print its help.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class VocabOptions(BaseModel):
    """Which texts are read, what becomes a token, where the tokenizer goes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    corpus: list[str] = Field(
        min_length=1, description="Files, folders, globs or hub:owner/name data sets"
    )
    out: str = Field(min_length=1, description="Folder of the tokenizer")
    overwrite: bool = Field(False, description="Replace the vocabulary in the output folder")

    # what becomes a token
    extend: str | None = Field(
        None, min_length=1, description="Model whose words come first, new ones behind them"
    )
    size: int = Field(30522, ge=6, le=1 << 22, description="Tokens in the vocabulary")
    kind: Literal["uncased", "cased", "chinese"] | None = Field(
        None,
        description="Letters as written, or lower-cased (Chinese too) [uncased, or the base's]",
    )
    min_frequency: int = Field(2, ge=1, description="Rarest letter or piece that becomes a token")
    limit_alphabet: int | None = Field(
        None,
        ge=1,
        description="Most letters [1000; Chinese: 3/4 of the size; of what is new 3/4 or 1/4]",
    )
    unused: int = Field(
        0, ge=0, le=100_000, description="[unusedN] tokens; from 99 on, ids as in Google's releases"
    )
    special: list[str] = Field([], description="A special token more (may be given repeatedly)")

    # reading
    sample: float = Field(
        1.0, gt=0, le=1, description="Share of documents read, chosen by a hash of their text"
    )
    text_column: str | None = Field(None, description="Column of the text ['text']")
    document: Literal["auto", "lines", "line", "file"] = Field(
        "auto", description="What one document is in plain text"
    )
    encoding: str = Field("utf-8", description="Text encoding of the files")
