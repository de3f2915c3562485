"""Every option of `filbert train summarize`, once: for the command line and recipes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from filbert.train.options import TuneOptions


class SummarizeOptions(TuneOptions):
    """Documents with their summaries: columns, how long a summary is, how it is scored."""

    text_column: str | None = Field(None, description="Column of the document (guessed if plain)")
    summary_column: str | None = Field(None, description="Column of the summary, or references")
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = Field(
        None, description="File format (otherwise from the name)"
    )
    header: bool | None = Field(None, description="First row holds the column names")
    sentences: int = Field(3, gt=0, le=1000, description="Sentences of a summary, and of labels")
    pooling: Literal["mean", "cls"] = Field(
        "mean", description="A sentence is read from the mean of its tokens, or from its [CLS]"
    )
    loss: Literal["listwise", "binary"] | None = Field(
        None, description="Which sentence of a document (for one), or each by itself (for several)"
    )
    blocking: bool = Field(True, description="Pass over sentences that repeat three words")
    stem: bool = Field(False, description="ROUGE on stems of English words (Porter)")
