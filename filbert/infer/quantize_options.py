"""Every option of `filbert quantize`, once, for the command line and for Python.

Imports nothing heavy: the command line reads it to print its help.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class QuantizeOptions(BaseModel):
    """Which bundle, what to measure it on, and how much it may lose."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    bundle: str = Field(min_length=1, description="Bundle, Hugging Face folder, hub or model name")
    data: str = Field(min_length=1, description="Labelled file that the loss is measured on")
    out: str = Field(min_length=1, description="Folder of the bundle with its choice")
    overwrite: bool = Field(False, description="Replace a bundle in the output folder")
    max_loss: float = Field(0.3, ge=0, le=100, description="Points of 100 that may be lost")
    metric: str | None = Field(None, description="Score that the loss is of (the task's main one)")

    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    pair_column: str | None = Field(None, description="Column of the second text of a pair")
    label_column: str | None = Field(None, description="Column of the label")
    score_column: str | None = Field(None, description="embed: column of the pair's score")
    format: str | None = Field(
        None, description="csv, tsv, jsonl, parquet, cola, mrpc (else from the name)"
    )
    encoding: str = Field("utf-8", description="Text encoding of the file")
    header: bool | None = Field(None, description="First row holds the column names")

    batch_tokens: int = Field(4096, gt=0, description="Tokens computed at once")
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads")
