"""Every option of `filbert prepare`, once, for the command line and for Python.

Imports nothing heavy: the command line reads it to print its help.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PrepareOptions(BaseModel):
    """Which texts, how they are cleaned and sifted, and where the shards go."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    corpus: list[str] = Field(
        min_length=1, description="Files, folders, globs or hub:owner/name data sets"
    )
    vocab: str = Field(description="Tokenizer: a folder of `filbert vocab`, a hub or model name")
    out: str = Field(description="Folder of the shards")
    overwrite: bool = Field(False, description="Replace the shards in the output folder")

    # reading
    text_column: str | None = Field(None, description="Column of the text ['text']")
    source_column: str | None = Field(
        None, description="Column that names the source ['source'; none: no column]"
    )
    document: Literal["auto", "lines", "line", "file"] = Field(
        "auto", description="What one document is in plain text"
    )
    encoding: str = Field("utf-8", description="Text encoding of the files")
    limit: int | None = Field(None, gt=0, description="Read only the first N documents")

    # cleaning and sifting
    markup: bool = Field(False, description="Take HTML tags and entities out")
    boilerplate: bool = Field(False, description="Take notices, menus and repeated lines out")
    language: Literal["en", "zh", "none"] = Field("none", description="Keep only this language")
    min_chars: int = Field(1, ge=1, description="Leave shorter documents out")
    near: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Similarity from which documents are duplicates (0: equal ones)",
    )

    # shards
    words: Literal["auto", "chinese", "none"] = Field(
        "auto", description="Mark the words of Chinese (auto: if the vocabulary is Chinese)"
    )
    holdout: float = Field(0.005, ge=0, lt=1, description="Share of documents held out for scoring")
    seed: int = Field(
        0,
        ge=0,
        lt=2**62,
        description="Which documents are held out (with --inspect: the seed of the run, else 42)",
    )
    shard_tokens: int = Field(
        32_000_000, ge=1000, le=2**40, description="Tokens from which a shard is full"
    )

    # machine
    processes: int | None = Field(None, gt=0, le=1024, description="Processes (else one a core)")


# Options that do not change a byte of the result.
FREE = frozenset({"out", "overwrite", "processes"})
