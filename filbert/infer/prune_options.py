"""Every option of `filbert prune`, once, for the command line and for Python.

Imports nothing heavy: the command line reads it to print its help.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PruneOptions(BaseModel):
    """Which bundle, what to leave of it, and what to measure that on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    bundle: str = Field(min_length=1, description="Bundle, Hugging Face folder, hub or model name")
    out: str = Field(min_length=1, description="Folder of the smaller bundle")
    overwrite: bool = Field(False, description="Replace a bundle in the output folder")

    # what to leave
    layers: int | None = Field(None, ge=1, description="Layers that are left")
    heads: int | None = Field(
        None, ge=1, description="Attention heads that are left, of all layers together"
    )
    vocab: list[str] = Field(
        [], description="Keep only tokens of these texts: files, folders, globs (repeatable)"
    )
    corpus_column: str | None = Field(None, description="Column of --vocab's texts ['text']")

    # what to measure on
    data: str | None = Field(None, description="Labelled file that importance is measured on")
    test: str | None = Field(None, description="Labelled file for the scores told [that of --data]")
    limit: int | None = Field(
        None, gt=0, le=2**31, description="Use only the first N rows of --data"
    )
    metric: str | None = Field(None, description="Score that layers are chosen by")
    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    pair_column: str | None = Field(None, description="Column of the second text of a pair")
    label_column: str | None = Field(None, description="Column of the label")
    label_separator: str | None = Field(None, description="Several labels in one cell: their mark")
    format: Literal["csv", "tsv", "jsonl", "parquet", "cola", "mrpc"] | None = Field(
        None, description="File format (otherwise from the name)"
    )
    header: bool | None = Field(None, description="First row holds the column names")
    encoding: str = Field("utf-8", description="Text encoding of the files")

    # machine
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    batch_tokens: int = Field(4096, gt=0, description="Token budget of a batch")
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads")
