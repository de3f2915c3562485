"""Every option of `filbert search`, once. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SearchOptions(BaseModel):
    """What is searched, for what, with which model."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    file: str = Field(min_length=1, description="Texts: one a line, or a column of a table")
    query: str = Field(description="What to look for")
    bundle: str = Field("all-MiniLM-L6-v2", description="Model of sentence vectors")
    top: int = Field(10, gt=0, le=100_000, description="How many rows to show")
    index: str | None = Field(
        None, min_length=1, description="File that keeps the vectors (.safetensors) for next time"
    )
    dimensions: int | None = Field(None, gt=0, description="Use the first N numbers alone")

    # reading
    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    format: Literal["csv", "tsv", "jsonl", "parquet", "text"] | None = Field(
        None, description="File format (otherwise from the name)"
    )
    encoding: str = Field("utf-8", description="Text encoding of the file")
    header: bool | None = Field(None, description="First row holds the column names")

    # machine
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "float32", "bf16", "fp16", "int8"] = Field(
        "auto", description="Compute precision"
    )
    core: Literal["auto", "torch", "onnxruntime", "openvino"] = Field(
        "auto", description="What computes; the last two open folders of filbert export"
    )
    batch_tokens: int | None = Field(
        None, gt=0, description="Token budget of a batch [4096; on a GPU 32768]"
    )
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads")
