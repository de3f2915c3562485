"""Every option of `filbert train few-shot`, once. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from filbert.train.options import TuneOptions


class FewShotOptions(TuneOptions):
    """How many examples a class, how many pairs of them, where text and label stand."""

    shots: int = Field(8, gt=0, le=1000, description="At most so many examples a class, drawn")
    iterations: int = Field(20, gt=0, le=1000, description="Pairs of each kind an example")
    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    label_column: str | None = Field(None, description="Column of the label")
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = Field(
        None, description="File format (otherwise from the name)"
    )
    header: bool | None = Field(None, description="First row holds the column names")

    epochs: float = Field(1.0, gt=0, le=100_000, description="Passes over the pairs")
    batch_size: int | None = Field(16, gt=0, description="Pairs in a batch")
    batch_tokens: int = Field(8192, gt=0, description="Most tokens in a batch: the memory limit")
    lr: float = Field(2e-5, gt=0, le=1e3, description="Highest learning rate")
