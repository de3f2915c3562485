"""Every option of `filbert train embed`, once. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from filbert.train.options import TuneOptions

Format = Literal["csv", "tsv", "jsonl", "parquet", "text", "mrpc"]


class EmbedOptions(TuneOptions):
    """What the rows are, which loss they teach with, how states become a vector."""

    loss: Literal["cosine", "cosent", "pairs", "simcse"] | None = Field(
        None,
        description="What to learn (else: scores cosine, pairs and triples pairs, texts simcse)",
    )
    text_column: str | None = Field(None, description="Column of the (first) text")
    pair_column: str | None = Field(None, description="Column of the second text")
    negative_column: str | None = Field(None, description="Column of what is not meant")
    score_column: str | None = Field(None, description="Column of the score of a pair")
    format: Format | None = Field(None, description="File format (otherwise from the name)")
    header: bool | None = Field(None, description="First row holds the column names")
    highest: float | None = Field(
        None, gt=0, description="Score of equal meaning [1, 5, 10 or 100, as the scores fit]"
    )
    scale: float = Field(20.0, gt=0, le=1000, description="Factor on cosines (1 / temperature)")
    pooling: Literal["mean", "cls", "max"] | None = Field(
        None, description="How states become a vector [the base's, else mean]"
    )
    dimensions: list[int] = Field(
        [], description="Also train the first N numbers alone (Matryoshka; may be repeated)"
    )

    # a row has as many wrong answers as its batch has others, so their number is fixed
    batch_size: int | None = Field(64, gt=1, description="Examples in a batch")
    batch_tokens: int = Field(16_384, gt=0, description="Most tokens in a batch: the memory limit")
    epochs: float = Field(1.0, gt=0, le=100_000, description="Passes over the training rows")
    lr: float = Field(2e-5, gt=0, le=1e3, description="Highest learning rate")

    @field_validator("label_smoothing")
    @classmethod
    def _no_smoothing(cls, value: float) -> float:
        if value:
            raise ValueError("has no meaning for sentence vectors")
        return value
