"""Every option of `filbert rank`, once. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RankOptions(BaseModel):
    """Which model puts which texts in order, for what query; or is scored on judged rows."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    bundle: str = Field(min_length=1, description="Model that compares two texts (a run folder)")
    query: str | None = Field(None, description="What the texts are to fit")
    file: str | None = Field(None, description="Texts: one a line, or a column of a table")
    data: str | None = Field(
        None, description="Instead: rows of query, text, relevance, to score the model on"
    )
    top: int | None = Field(None, gt=0, description="Show the best N alone")
    label: str | None = Field(None, description="Label that says that a text fits")

    # reading
    text_column: str | None = Field(None, description="Column of the text; with --data, the query")
    pair_column: str | None = Field(None, description="With --data: column of the text")
    label_column: str | None = Field(None, description="With --data: column of the relevance")
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

    @model_validator(mode="after")
    def _one_of_two(self) -> RankOptions:
        if (self.data is None) == (self.query is None or self.file is None):
            raise ValueError("give a query and --file, or --data to score the model")
        if self.data is not None and (self.query or self.file):
            raise ValueError("--data goes with neither a query nor --file")
        return self
