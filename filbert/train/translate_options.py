"""Every option of `filbert train translate`, and of abstractive summaries; loads no torch.

A recipe is a TOML file whose keys are these fields, and those of `TuneOptions`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from filbert.train.options import TuneOptions


class TranslateOptions(TuneOptions):
    """Pairs of texts, the decoder to write with, how to search and to score."""

    lr: float = Field(5e-4, gt=0, le=1e3, description="Highest learning rate")
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        "cosine", description="Decay of it (wsd: warm-up, stable, decay)"
    )
    epochs: float = Field(20.0, gt=0, le=100_000, description="Passes over the training rows")
    batch_tokens: int = Field(
        2048, gt=0, description="Token budget of a batch, source and target together"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Mass given to the other words")

    # the pairs
    task: Literal["translate", "summarize"] = Field(
        "translate", description="What the pairs are: decides the scores and the bundle's task"
    )
    target_data: str | None = Field(None, description="Targets of --data, line by line")
    target_dev: str | None = Field(None, description="Targets of --dev, line by line")
    target_test: str | None = Field(None, description="Targets of --test, line by line")
    source_column: str | None = Field(None, description="Column of the source (guessed if plain)")
    target_column: str | None = Field(None, description="Column of the target (guessed if plain)")
    format: Literal["csv", "tsv", "jsonl", "parquet", "text"] | None = Field(
        None, description="File format (otherwise from the name)"
    )
    header: bool | None = Field(None, description="First row holds the column names")
    empty: Literal["refuse", "skip"] = Field("refuse", description="Pairs with an empty side")
    holdout: float = Field(0.05, gt=0, lt=1, description="Share held out as dev set without --dev")
    holdout_test: float = Field(
        0.0, ge=0, lt=1, description="Share held out as test set too, by hash of the source"
    )
    max_target: int = Field(128, gt=2, description="Tokens of a target; longer ones are cut off")

    # the decoder
    decoder: str = Field(
        "random", description="random, share (the encoder's weights), or a BERT to start from"
    )
    random_encoder: bool = Field(False, description="Encoder drawn at random too, for comparison")
    target_vocab: str | None = Field(
        None, description="Target vocabulary: a tokenizer's folder or name, or learn"
    )
    target_vocab_size: int = Field(8000, gt=100, description="Words of a vocabulary to learn")
    target_lower: bool = Field(False, description="Learn a lower-case vocabulary")
    decoder_layers: int = Field(3, gt=0, le=1000, description="Layers of a random decoder")
    decoder_hidden: int | None = Field(None, gt=0, description="Its width (else the encoder's)")
    decoder_heads: int | None = Field(None, gt=0, description="Its heads (else the encoder's)")
    decoder_intermediate: int | None = Field(None, gt=0, description="Its inner width (else 4 x)")

    # writing and scoring
    eval_rows: int = Field(
        1000, ge=0, description="Dev rows that an evaluation writes greedily (0: all)"
    )
    beams: int = Field(4, gt=0, le=64, description="Beams of the last scoring, and of the bundle")
    length_penalty: float = Field(1.0, ge=-10, le=10, description="Power of the length")
    no_repeat_ngram: int = Field(0, ge=0, le=100, description="No n-gram twice (0: off)")
    min_tokens: int = Field(0, ge=0, description="Shortest text to write")
    language: str | None = Field(
        None, description="Language of the targets, such as zh (decides how BLEU cuts words)"
    )
    stem: bool = Field(False, description="summarize: ROUGE on stems of English words (Porter)")
