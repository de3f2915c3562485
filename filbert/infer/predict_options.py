"""The options of `filbert predict` and `filbert evaluate`, those of every task among them.

An option that the bundle's task does not have is refused by name, so None means "not typed".
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BUNDLE = "Folder of a trained model, or its name"


class ModelOptions(BaseModel):
    """On what machine a model computes, and how a file of rows is read."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    text_column: str | None = Field(None, description="Column of the text (guessed if plain)")
    pair_column: str | None = Field(None, description="Column of the second text of a pair")
    format: str | None = Field(
        None,
        description="csv, tsv, jsonl, parquet, text, cola, mrpc; tag: conll (else from the name)",
    )
    encoding: str = Field("utf-8", description="Text encoding of the file")
    header: bool | None = Field(None, description="First row holds the column names")

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "float32", "bf16", "fp16", "int8"] = Field(
        "auto", description="Compute precision"
    )
    batch_tokens: int | None = Field(
        None, description="Tokens computed at once [4096; on a GPU 32768]"
    )
    threads: int | None = Field(None, description="CPU threads")
    core: Literal["auto", "torch", "onnxruntime", "openvino"] = Field(
        "auto",
        description="What computes: auto is the native encoder where it serves, else torch; the "
        "last two open folders of filbert export",
    )


class PredictOptions(ModelOptions):
    """What is asked, of which bundle, and where the answers go."""

    bundle: str = Field(description=BUNDLE)
    texts: list[str] = Field([], description="Texts; none: standard input, one a line")
    pair: str | None = Field(None, description="Second text, for a model of pairs")
    context: str | None = Field(None, description="File of the text that is asked (answer)")
    file: str | None = Field(None, description="Answer every row of a file")
    out: str | None = Field(
        None,
        description="Where to (.jsonl, .csv; embed .npy; answer .json, tag .conll, translate and "
        "summarize .txt, as others read them); none: standard output",
    )
    resume: bool = Field(False, description="Go on with an unfinished --out")
    overwrite: bool = Field(False, description="Replace --out")
    strict: bool = Field(False, description="Stop at a row without a text")

    # of one task or another
    all_scores: bool | None = Field(None, description="classify: the score of every label")
    top: int | None = Field(None, description="fill, answer: how many answers each")
    targets: list[str] = Field([], description="fill: score these words alone (repeatable)")
    perplexity: bool = Field(False, description="fill: how expected the texts are, no blanks")
    threshold: float | None = Field(None, description="answer: higher answers more often")
    dimensions: int | None = Field(None, description="embed: the first N numbers alone")
    sentences: int | None = Field(None, description="summarize: sentences of a summary")
    max_words: int | None = Field(None, description="summarize: at most so many words")
    max_characters: int | None = Field(None, description="summarize: at most so many characters")
    blocking: bool | None = Field(None, description="summarize: pass over what repeats")
    best: int | None = Field(None, description="translate: so many texts each, at most --beams")
    beams: int | None = Field(None, description="translate: beams of the search")
    max_tokens: int | None = Field(None, description="translate: longest text written")
    min_tokens: int | None = Field(None, description="translate: shortest text written")
    length_penalty: float | None = Field(None, description="translate: power of the length")
    no_repeat_ngram: int | None = Field(None, description="translate: no n-gram twice")
    early_stopping: Literal["true", "false", "never"] | None = Field(
        None,
        description="translate: end a search at the first --beams whole texts (true), once none is "
        "likely to be better (false), once none can be (never)",
    )
    sample: bool | None = Field(None, description="translate: draw words instead of searching")
    temperature: float | None = Field(None, description="translate: of drawing")
    top_k: int | None = Field(None, description="translate: draw from the K likeliest words")
    top_p: float | None = Field(None, description="translate: draw from this share of the mass")
    seed: int | None = Field(None, description="translate: of drawing")
    alignments: bool | None = Field(None, description="translate: what each word looked at")


class EvaluateOptions(ModelOptions):
    """Which bundle is scored on which labelled file."""

    bundle: str = Field(description=BUNDLE)
    data: str = Field(description="Labelled file: CSV, TSV, JSONL, Parquet, CoNLL, SQuAD JSON, .gz")
    label_column: str | None = Field(None, description="Column of the label")
    label_separator: str | None = Field(None, description="Several labels in one cell: their mark")
    worst: int | None = Field(None, description="How many of the surest mistakes to show")

    # of one task or another
    word_column: int | None = Field(None, description="tag: column of the word, from 1")
    tag_column: int | None = Field(None, description="tag: column of the tag (-1: the last)")
    strict: bool | None = Field(None, description="tag: strict scores of entities")
    scoring: Literal["auto", "squad", "cmrc"] | None = Field(
        None, description="answer: rule of EM and F1"
    )
    threshold: float | None = Field(None, description="answer: higher answers more often")
    score_column: str | None = Field(None, description="embed: column of the score of a pair")
    negative_column: str | None = Field(None, description="embed: column of what is not meant")
    dimensions: int | None = Field(None, description="embed: the first N numbers alone")
    summary_column: str | None = Field(None, description="summarize: column of the summary")
    sentences: int | None = Field(None, description="summarize: sentences of a summary")
    blocking: bool | None = Field(None, description="summarize: pass over what repeats")
    stem: bool | None = Field(None, description="summarize: ROUGE on stems of English words")
    source_column: str | None = Field(None, description="translate: column of the source")
    target_column: str | None = Field(None, description="translate: column of the target")
    target_data: str | None = Field(None, description="translate: targets of --data, line by line")
    language: str | None = Field(None, description="translate: language of the targets")
    empty: Literal["refuse", "skip"] | None = Field(
        None, description="translate: pairs with an empty side"
    )
    beams: int | None = Field(None, description="translate: beams of the search")
    max_tokens: int | None = Field(None, description="translate: longest text written")
    min_tokens: int | None = Field(None, description="translate: shortest text written")
    length_penalty: float | None = Field(None, description="translate: power of the length")
    no_repeat_ngram: int | None = Field(None, description="translate: no n-gram twice")
