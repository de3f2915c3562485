"""Every option of a training run, once: for the command line, recipes and run folders.

A recipe is a TOML file whose keys are these fields; an unknown key is an error that names the
nearest valid one. Options typed on the command line win over the recipe.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from filbert.recipes import parse_options as parse_options
from filbert.recipes import read_recipe as read_recipe

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


class RunOptions(BaseModel):
    """What every training run has: where to write, how to optimise, when to save, on what machine.

    `TuneOptions` and `PretrainOptions` add what to learn from."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    # where to write
    out: str = Field(description="Folder of the run and of the finished bundle")
    overwrite: bool = Field(False, description="Replace what is in the output folder")
    resume: bool = Field(False, description="Go on from the newest checkpoint in the folder")

    # optimisation
    lr: float = Field(5e-5, gt=0, le=1e3, description="Highest learning rate")
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        "linear", description="Decay of it (wsd: warm-up, stable, decay)"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of steps that warm up")
    decay: float = Field(0.2, gt=0, le=1, description="Share of steps that decay, for wsd")
    weight_decay: float = Field(0.01, ge=0, le=1e3, description="Decay (not of biases, norms)")
    layer_decay: float = Field(1.0, gt=0, le=1, description="Learning rate factor a layer down")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm (0: no clipping)")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of averaged weights (0: off)")
    dropout: float | None = Field(None, ge=0, le=0.99, description="Dropout (else the model's own)")
    seed: int = Field(42, ge=0, lt=2**62, description="Seed of everything that is drawn")

    # evaluation and files
    eval_every: int = Field(0, ge=0, description="Steps between evaluations (0: each epoch)")
    patience: int = Field(0, ge=0, description="Stop after N evaluations without gain (0: off)")
    save_every: int = Field(0, ge=0, description="Steps between checkpoints (0: by the clock)")
    keep_checkpoints: bool = Field(False, description="Keep checkpoints after the end")
    tensorboard: bool = Field(True, description="Write TensorBoard events")

    # machine
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="Compute precision")
    gradient_checkpointing: bool = Field(False, description="Less memory for more compute")
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads")


class TuneOptions(RunOptions):
    """What every fine-tuning run has beyond it: what to learn from, what to start with."""

    # what to learn from
    data: str = Field(
        description="Training file (CSV, TSV, JSONL, Parquet, .gz), or hub:owner/name"
    )
    dev: str | None = Field(None, description="Development file; without one, rows are held out")
    test: str | None = Field(None, description="Test file, scored once at the end")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of rows held out without --dev")
    limit: int | None = Field(None, gt=0, description="Use only the first N training rows")
    encoding: str = Field("utf-8", description="Text encoding of the files")

    # what to start with
    base: str = Field(description="Folder, hub name or installed name of the model to start from")
    revision: str | None = Field(None, description="Revision of a hub model")

    # texts
    max_length: int | None = Field(None, gt=2, description="Tokens in a window (model's limit)")
    stride: int = Field(64, ge=0, description="Tokens that neighbouring windows share")

    # optimisation
    epochs: float = Field(3.0, gt=0, le=100_000, description="Passes over the training rows")
    batch_tokens: int = Field(1024, gt=0, description="Token budget of a batch")
    batch_size: int | None = Field(None, gt=0, description="At most this many examples in a batch")
    accumulate: int = Field(1, gt=0, description="Batches for each optimizer step")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Mass given to the other labels")
    seeds: int = Field(
        1, gt=0, le=10_000, description="Train this many seeds; report mean, deviation, best"
    )

    # evaluation
    metric: str | None = Field(None, description="Score that picks the best checkpoint")

    # machine
    attention: Literal["packed", "sdpa", "eager"] = Field("packed", description="Attention path")


class TaughtOptions(TuneOptions):
    """A teacher's answers beside the labels: filbert/tasks/distil.py."""

    teacher: str | None = Field(None, description="Bundle whose answers are learned too")
    distil_weight: float = Field(
        0.5, ge=0, le=1, description="Share of the teacher's answers in the loss"
    )
    distil_temperature: float = Field(
        2.0, ge=0.1, le=100, description="Both answers are softened by it"
    )


class ClassifyOptions(TaughtOptions):
    """Labels for texts: columns, kind of label, weights."""

    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    pair_column: str | None = Field(None, description="Column of the second text of a pair")
    label_column: str | None = Field(None, description="Column of the label")
    label_separator: str | None = Field(None, description="Several labels in one cell: their mark")
    format: Literal["csv", "tsv", "jsonl", "parquet", "cola", "mrpc"] | None = Field(
        None, description="File format (otherwise from the name)"
    )
    header: bool | None = Field(None, description="First row holds the column names")
    problem_type: ProblemType | None = Field(None, description="Kind of label (guessed if plain)")
    windows: bool = Field(True, description="Longer texts: several windows; else cut off")
    class_weights: str = Field("none", description="none, balanced, or label=weight,label=weight")

    # more from the teacher
    unlabelled: str | None = Field(None, description="More texts, which only the teacher answers")
    distil_hidden: float = Field(
        0.0, ge=0, le=1000, description="Weight of the teacher's hidden states (0: not learned)"
    )
    distil_attention: float = Field(
        0.0, ge=0, le=1000, description="Weight of its attention maps; needs the same vocabulary"
    )
