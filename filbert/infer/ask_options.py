"""Every option of `filbert ask`, once, for the command line and for Python.

Imports nothing heavy: the command line reads it to print its help.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AskOptions(BaseModel):
    """Which documents are asked, with which models, and how many answers come back."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    documents: str = Field(min_length=1, description="Folder of text files (.txt, .md, .rst)")
    question: list[str] = Field(min_length=1, description="A question, or several")
    bundle: str = Field(description="A model of the task answer")
    embed: str | None = Field(
        None, description="A model of sentence vectors, which puts the found passages in order"
    )
    index: str | None = Field(
        None,
        min_length=1,
        description="Folder that keeps the word index, and vectors, for the next questions",
    )
    top_k: int = Field(3, ge=1, le=1000, description="Answers for each question")
    passages: int = Field(20, ge=1, le=1000, description="Passages that are read for an answer")
    candidates: int = Field(
        100, ge=1, le=100_000, description="Passages of the word search that --embed puts in order"
    )
    encoding: str = Field("utf-8", description="Text encoding of the files")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "float32", "bf16", "fp16", "int8"] = Field(
        "auto", description="Compute precision"
    )
    batch_tokens: int | None = Field(
        None, gt=0, description="Token budget of a batch [4096; on a GPU 32768]"
    )
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads")
