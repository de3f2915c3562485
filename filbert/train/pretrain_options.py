"""Every option of `filbert pretrain`, once: for the command line, recipes and run folders."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from filbert.train.options import RunOptions

DURATION = re.compile(r"(?:(\d{1,5})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s)?")


def seconds_of(text: str) -> float:
    """`45m`, `1h30m` or `90s` in seconds. Raises `ValueError` for anything else."""
    found = DURATION.fullmatch(text.strip().lower())
    parts = [int(part or 0) for part in found.groups()] if found else [0]
    total = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not total:
        raise ValueError(f"{text!r} is no duration; write for example 45m, 1h30m or 90s")
    return float(total)


class PretrainOptions(RunOptions):
    """What to read, what to build or to go on from, what to learn, for how long."""

    # one that is typed replaces the other of a recipe
    EITHER: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "budget"),)
    _typed: frozenset[str] = PrivateAttr(frozenset())  # the names of what was typed

    # what to learn from
    data: str = Field(description="Shards that `filbert prepare` wrote")
    mix: dict[str, float] = Field({}, description="Passes by source, as reviews=2,news=0.5")

    # what to build, or to go on from
    base: str | None = Field(None, description="Model to go on from (else a new one is drawn)")
    revision: str | None = Field(None, description="Revision of a hub model")
    architecture: Literal["bert", "modernbert"] = Field("bert", description="Kind of encoder")
    num_hidden_layers: int = Field(12, gt=0, le=1000, description="Layers")
    hidden_size: int = Field(768, gt=0, le=65536, description="Width of the hidden states")
    num_attention_heads: int = Field(12, gt=0, le=1024, description="Attention heads")
    intermediate_size: int | None = Field(
        None,
        gt=0,
        le=2**20,
        description="Width inside the feed-forward (4 times the hidden size; 1.5 in ModernBERT)",
    )
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = Field(
        "gelu", description="Activation"
    )
    max_position_embeddings: int = Field(512, gt=2, le=2**20, description="Longest text it reads")

    # what to learn
    objective: Literal["next_sentence", "sentence_order", "none"] = Field(
        "next_sentence", description="Sentence objective beside the masked words"
    )
    masking: Literal["token", "whole_word", "span", "ngram"] = Field(
        "whole_word", description="What is masked together"
    )
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Share of tokens masked in training")
    eval_mask_rate: float = Field(0.15, gt=0, lt=1, description="Share masked in evaluation")
    eval_masking: Literal["token", "whole_word", "span", "ngram"] | None = Field(
        None, description="Masked together in evaluation (else as in training)"
    )
    short_prob: float = Field(0.1, ge=0, le=1, description="Share of samples cut short")

    # how much, and in what batches
    steps: int | None = Field(None, gt=0, le=10**9, description="Optimizer steps in all")
    budget: str | None = Field(None, description="Wall-clock time in their place, as 45m or 1h30m")
    max_length: int = Field(128, ge=16, le=2**20, description="Tokens of a sample")
    batch_size: int = Field(256, gt=0, le=2**24, description="Samples a step, over all processes")
    last_length: int | None = Field(
        None, ge=16, le=2**20, description="Tokens of a sample in the last phase"
    )
    last_share: float = Field(0.1, gt=0, lt=1, description="Share of steps in the last phase")
    last_batch_size: int | None = Field(None, gt=0, description="Samples a step in the last phase")
    batch_start: int | None = Field(None, gt=0, description="Samples a step at the start")
    batch_warmup: float = Field(0.0, ge=0, lt=1, description="Share of steps to the full batch")
    batch_tokens: int = Field(8192, ge=16, description="Tokens computed at once (halved if needed)")

    # optimisation
    optimizer: Literal["adamw", "lamb", "muon"] = Field("adamw", description="Kind of update")
    lr: float = Field(1e-4, gt=0, le=1e3, description="Highest learning rate")
    warmup: float = Field(0.01, ge=0, lt=1, description="Share of steps that warm up")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the running squared gradients")
    eps: float = Field(1e-6, gt=0, lt=1, description="Added to their root")
    spike: float = Field(
        2.0, ge=0, description="Skip a step whose loss exceeds the mean by this (0: off)"
    )
    max_skipped: int = Field(20, ge=0, description="Stop after so many skipped steps")

    # evaluation
    eval_every: int = Field(0, ge=0, description="Steps between evaluations (0: 20 in the run)")
    eval_samples: int = Field(2000, gt=0, le=10**7, description="Held-out samples to score")

    # machine
    compile: bool = Field(False, description="torch.compile for what lies between the products")
    workers: int = Field(
        0, ge=0, le=256, description="Processes that prepare batches (0: a thread)"
    )
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="How several processes share")

    @field_validator("mix", mode="before")
    @classmethod
    def _mix(cls, value: object) -> object:
        """`reviews=2,news=0.5`, as it is typed, or a table of a recipe. The last `=` counts: a
        source may have one in its name. One with a comma can stand in the table alone."""
        if not isinstance(value, str):
            return value
        pairs = [part.rpartition("=") for part in value.split(",") if part.strip()]
        if any(not equals for _, equals, _ in pairs):
            raise ValueError(
                "write it as source=passes,source=passes; a source with a comma in its name goes "
                'into a recipe: mix = {"a, b" = 2}'
            )
        return {name.strip(): passes for name, _, passes in pairs}

    @field_validator("mix")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= passes <= 1000 for passes in value.values()):
            raise ValueError("passes are from 0 to 1000")
        return value

    @field_validator("budget")
    @classmethod
    def _duration(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> PretrainOptions:
        if (self.steps is None) == (self.budget is None):
            raise ValueError("give either steps or budget (a time such as 45m)")
        if self.batch_start is not None and self.batch_start > self.batch_size:
            raise ValueError(
                f"batch_start {self.batch_start} is more than batch_size {self.batch_size}, to "
                "which it grows; give a smaller one"
            )
        longest = max(self.max_length, self.last_length or 0)
        if self.base is None and longest > self.max_position_embeddings:
            raise ValueError(
                f"samples of {longest} tokens, but max_position_embeddings "
                f"{self.max_position_embeddings}"
            )
        if self.base is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        return self


class InspectOptions(PretrainOptions):
    """Options of a run whose samples are to be shown, and which of them."""

    sample: int = Field(0, ge=0, lt=2**62, description="Number of the first sample shown")
