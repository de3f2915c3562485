"""Every option of a question-answering run, for the command line, recipes and run folders."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from filbert.train.options import TuneOptions


class AnswerOptions(TuneOptions):
    """Answers that stand in a text: layout, windows, scoring. A batch holds windows."""

    data: str = Field(
        description="Training file: SQuAD JSON (.gz), JSONL, Parquet, or hub:owner/name"
    )
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of texts held out without --dev")
    mismatch: Literal["skip", "refuse"] = Field(
        "skip", description="Answers that do not stand at their offset: skip or refuse"
    )
    max_length: int | None = Field(384, gt=4, description="Tokens in a window")
    stride: int = Field(128, ge=0, description="Tokens that neighbouring windows share")
    max_answer_tokens: int = Field(30, ge=1, le=512, description="Longest answer, in tokens")
    scoring: Literal["auto", "squad", "cmrc"] = Field(
        "auto", description="Rule of EM and F1 (cmrc for Chinese texts)"
    )
    epochs: float = Field(2.0, gt=0, le=100_000, description="Passes over the training windows")
    batch_tokens: int = Field(4096, gt=0, description="Token budget of a batch")
