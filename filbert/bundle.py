"""The bundle: what training leaves and everything else opens. A folder in the Hugging Face layout.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  vocab.txt
    filbert.json     task, labels, limits, calibration, thresholds, scores, provenance
    README.md        the model card

`filbert.json` is written last: a folder that has it is whole. A folder made elsewhere, without it,
is understood through its `config.json`.
"""

from __future__ import annotations

import json
import os
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from filbert.atomic import make_folder, write_file
from filbert.errors import FilbertError
from filbert.model.config import EncoderConfig, read_values
from filbert.model.core import model_on
from filbert.model.modern_config import ModernBertConfig, read_any_config
from filbert.model.pretrained import PretrainedModel
from filbert.model.runtime import IN_PYTORCH, check_core, open_runtime, refuse_without_weights
from filbert.model.seq2seq_config import Seq2SeqConfig
from filbert.sources import resolve
from filbert.text import BertTokenizer

MANIFEST = "filbert.json"
# architecture in config.json -> the tasks that it can serve, the usual one first; its module
ARCHITECTURES: dict[str, tuple[tuple[str, ...], str]] = {
    "BertForSequenceClassification": (("classify", "rank"), "bert"),
    "BertForTokenClassification": (("tag",), "bert"),
    "BertCrfForTokenClassification": (("tag",), "crf"),
    "BertForQuestionAnswering": (("answer",), "span_head"),
    "BertForExtractiveSummary": (("summarize",), "sentence_head"),
    "BertForSeq2SeqLM": (("translate", "summarize"), "seq2seq"),
    "EncoderDecoderModel": (("translate", "summarize"), "seq2seq"),
    "BertForMaskedLM": (("fill",), "bert"),
    "BertForPreTraining": (("pretrain", "fill"), "bert"),
    "BertModel": (("encode", "embed"), "bert"),
    "ModernBertForSequenceClassification": (("classify", "rank"), "modern"),
    "ModernBertForMaskedLM": (("fill",), "modern"),
    "ModernBertModel": (("encode", "embed"), "modern"),
}
Task = Literal[
    "classify", "rank", "tag", "answer", "summarize", "translate", "fill", "pretrain", "embed",
    "encode",
]  # fmt: skip


Product = Literal["projections", "output", "inner", "outer"]  # of a layer, see model/native.py

PIPELINES = {  # as the model hub calls the tasks
    "classify": "text-classification", "rank": "text-ranking", "tag": "token-classification",
    "answer": "question-answering", "summarize": "summarization", "translate": "translation",
    "fill": "fill-mask", "embed": "sentence-similarity",
}  # fmt: skip
CALLS = {  # how a model is called, where not with a text
    "answer": '"Who wrote it?", "Mary Shelley wrote it."',
    "fill": '"a text with a [MASK]"', "pretrain": '"a text with a [MASK]"',
}  # fmt: skip
LABELLED = ("classify", "rank", "tag")  # a row of the head for each label
COMMANDS = {  # what asks a model of each task
    "classify": 'filbert predict {bundle} "a text"',
    "rank": 'filbert rank {bundle} "a query" --file FILE',
    "tag": 'filbert predict {bundle} "a text"',
    "answer": 'filbert predict {bundle} --context FILE "a question"',
    "summarize": "filbert predict {bundle} --file FILE",
    "translate": 'filbert predict {bundle} "a text"',
    "fill": 'filbert predict {bundle} "a text with a [MASK]"',
    "pretrain": 'filbert predict {bundle} "a text with a [MASK]"',
    "embed": 'filbert search FILE "a query" --bundle {bundle}',
    "encode": 'filbert inspect {bundle} "a text"',
}


class Int8(BaseModel):
    """Which products of the encoder `filbert quantize` left in int8, and what that changed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    layers: list[list[Product]]  # of each layer, the first one first; the others are bfloat16
    metric: str
    float32: float  # the score
    int8: float
    rows: int = Field(ge=0)
    data: str


class Manifest(BaseModel):
    """The content of `filbert.json`: what `config.json` cannot say. A closed schema."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    format: Literal[1] = 1
    task: Task
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    labels: list[str] = []
    pair: bool = False
    max_length: int = Field(default=512, gt=2)
    windows: bool = True
    stride: int = Field(default=64, ge=0)
    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)
    thresholds: list[float] | None = None
    settings: dict[str, JsonValue] = {}  # what one task alone needs; it checks them itself
    scores: dict[str, float | None] = {}
    provenance: dict[str, Any] = {}
    int8: Int8 | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = plain(self)
        if values.get("int8") is None:  # most bundles have none
            values.pop("int8", None)
        return values


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the model in evaluation mode, float32, on the CPU."""

    folder: Path
    manifest: Manifest
    model: PretrainedModel
    tokenizer: BertTokenizer


def is_bundle(names: set[str]) -> bool:
    """Whether a folder with these names in it is a bundle of filbert's."""
    return MANIFEST in names


def open_bundle(
    name: str | PathLike[str],
    *,
    revision: str | None = None,
    core: str = "auto",
    threads: int | None = None,
) -> Bundle:
    """Open a bundle, or any BERT folder, installed name or hub name.

    core: `auto`, `torch` (without the native encoder), or `onnxruntime` or `openvino` for a folder
    that `filbert export` made, with `threads` of the CPU. Raises `FilbertError` for a folder that
    is no model, or whose parts do not fit each other.
    """
    check_core(core)
    folder = resolve(name, revision=revision)
    manifest = read_manifest(folder)
    config = read_config(folder)
    if core in IN_PYTORCH:
        refuse_without_weights(folder)
        model = architecture(config).from_pretrained(folder)
    else:
        model = model_on(open_runtime(core, folder, threads=threads), architecture(config), config)
    model.may_go_native = core == "auto"
    tokenizer = BertTokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer, config, source=str(folder))
    fit_tokenizer(tokenizer, config)
    return Bundle(folder, manifest, model, tokenizer)


def check_tokenizer(tokenizer: BertTokenizer, config: EncoderConfig, *, source: str) -> None:
    """Raise `FilbertError` if the tokenizer gives ids that the embedding does not have."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= config.vocab_size:
        raise FilbertError(
            f"{source}: the tokenizer gives ids up to {highest} but the model's embedding has "
            f"{config.vocab_size} rows; the two do not belong together"
        )


def fit_tokenizer(tokenizer: BertTokenizer, config: EncoderConfig) -> None:
    """Let `truncation=True` cut texts at no more tokens than the model has positions for."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)


def read_config(folder: Path) -> EncoderConfig:
    """The configuration of an encoder, or of an encoder-decoder."""
    values, _ = read_values(folder)
    if isinstance(values, dict) and values.get("model_type") == Seq2SeqConfig.kind:
        return Seq2SeqConfig.from_folder(folder)
    return read_any_config(folder)


def read_manifest(folder: Path) -> Manifest:
    """`filbert.json`, or what `config.json` lets us say where there is none."""
    config = read_config(folder)
    tasks = tasks_of(config)
    path = folder / MANIFEST
    if not path.is_file():
        labels = list(config.id2label.values())
        kind = config.problem_type or (
            "regression" if len(labels) == 1 else "single_label_classification"
        )
        task = "embed" if (folder / "modules.json").is_file() and "embed" in tasks else tasks[0]
        return Manifest(
            task=task,  # type: ignore[arg-type]
            problem_type=kind if task in ("classify", "rank") else None,  # type: ignore[arg-type]
            labels=labels if task in LABELLED else [],
            max_length=config.max_position_embeddings,
            stride=min(64, config.max_position_embeddings // 4),
        )
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FilbertError(f"{path}: '{where}': {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise FilbertError(f"{path} is not valid JSON: {error}") from None
    task = manifest.task
    if task not in tasks:
        raise FilbertError(f"{path}: task {task!r}, but config.json says {' or '.join(tasks)}")
    labels, problem = manifest.labels, manifest.problem_type
    labelled = task in ("classify", "rank")
    if labelled and (problem is None or (problem == "regression") != (not labels)):
        raise FilbertError(
            f"{path}: problem_type {problem!r} with {len(labels)} labels; a regression has none, "
            "any other kind has its labels listed"
        )
    if len(set(labels)) != len(labels):
        raise FilbertError(f"{path}: a label stands twice among {', '.join(labels[:20])}")
    count = max(1, len(labels))
    if task in LABELLED and count != config.num_labels:
        raise FilbertError(
            f"{folder}: {MANIFEST} has {count} labels and config.json {config.num_labels}; "
            "they do not belong together"
        )
    if manifest.thresholds is not None and len(manifest.thresholds) != count:
        raise FilbertError(f"{path}: {len(manifest.thresholds)} thresholds for {count} labels")
    if manifest.int8 is not None and len(manifest.int8.layers) != config.num_hidden_layers:
        raise FilbertError(
            f"{path}: int8 names {len(manifest.int8.layers)} layers, config.json "
            f"{config.num_hidden_layers}; they do not belong together"
        )
    return manifest


def save_bundle(
    folder: str | PathLike[str],
    *,
    model: PretrainedModel,
    tokenizer: BertTokenizer,
    manifest: Manifest,
    name: str | None = None,
) -> Path:
    """Write a bundle into `folder`, each file atomically, `filbert.json` last. name: what its card
    calls it, where that is not the folder's own."""
    target = Path(folder)
    make_folder(target)
    (target / MANIFEST).unlink(missing_ok=True)
    model.save_pretrained(target)
    tokenizer = copy(tokenizer)  # the caller's stays as it is
    fit_tokenizer(tokenizer, model.config)
    tokenizer.save_pretrained(target)
    write_manifest(target, model, manifest, name=name)
    return target


def write_manifest(
    folder: Path, model: PretrainedModel, manifest: Manifest, *, name: str | None = None
) -> None:
    """Write what a bundle says of itself: its card, then `filbert.json`."""
    write_file(folder / "README.md", model_card(name or folder.name, model, manifest))
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False)
    write_file(folder / MANIFEST, text + "\n")


def model_card(name: str, model: PretrainedModel, manifest: Manifest) -> str:
    """The `README.md` of a bundle, with the metadata block that model hubs read."""
    config, origin = model.config, manifest.provenance
    parameters = sum(weight.numel() for weight in model.parameters())
    tag = PIPELINES.get(manifest.task, "feature-extraction")
    scores = "\n".join(
        f"| {key} | {value:.4f} |" for key, value in manifest.scores.items() if value is not None
    )
    base = str(origin.get("base", ""))
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {tag}",
        "tags: [bert, filbert]",
        *([f"base_model: {json.dumps(base)}"] if base else []),
        "---",
        "",
        f"# {name}",
        "",
        f"A BERT for `{manifest.task}`, made with filbert {origin.get('filbert', '')}".rstrip()
        + ".",
        "",
        f"- {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{parameters:,} parameters",
        *([f"- started from: `{base}`"] if base else []),
        *(
            [f"- trained on: `{origin['data']}` ({origin['rows']:,} rows)"]
            if "data" in origin
            else []
        ),
        *([f"- labels: {', '.join(manifest.labels[:50])}"] if manifest.labels else []),
        f"- reads up to {manifest.max_length} tokens at once; longer texts "
        + (
            f"in windows that share {manifest.stride} tokens" if manifest.windows else "are cut off"
        ),
        "",
        *(["| score | value |", "|---|---|", scores, ""] if scores else []),
        *([f"Scores are of the {origin['scored_on']}."] if "scored_on" in origin else []),
        "",
        "```python",
        *_snippet(name, type(model).__name__, manifest),
        "```",
        "",
    ]
    return "\n".join(lines)


def _snippet(name: str, kind: str, manifest: Manifest) -> list[str]:
    """Lines of Python that ask the bundle `name`, whose model is a `kind`."""
    if manifest.task == "encode":  # nothing answers
        return [
            f"from filbert import BertTokenizer, {kind}",
            f'tokenizer = BertTokenizer.from_pretrained("{name}")',
            f'model = {kind}.from_pretrained("{name}")',
            'model(**tokenizer("a text", return_tensors="pt")).last_hidden_state',
        ]
    usual = '"a text", "another text"' if manifest.pair else '"a text"'
    call = CALLS.get(manifest.task, usual)
    return ["from filbert import load", f'model = load("{name}")', f"model({call})"]


def what_fits(name: str | PathLike[str], manifest: Manifest) -> str:
    """The command that asks the bundle `name`, as the end of a message that refuses another."""
    command = COMMANDS[manifest.task].format(bundle=quote(os.fspath(name)))
    if manifest.pair and manifest.task == "classify":
        command += ' --pair "another text"'
    return f"What fits it: {command}"


def tasks_of(config: EncoderConfig) -> tuple[str, ...]:
    """What a model of this configuration can do, the usual thing first."""
    return ARCHITECTURES[_known(config)][0]


def architecture(config: EncoderConfig) -> type[PretrainedModel]:
    """The class of the model that `config.json` names; an encoder alone where it names none."""
    name = _known(config)
    module = import_module(f"filbert.model.{ARCHITECTURES[name][1]}")
    kind: type[PretrainedModel] = getattr(module, name)
    return kind


def _known(config: EncoderConfig) -> str:
    for name in config.architectures or []:
        if name in ARCHITECTURES:
            return name
    return "ModernBertModel" if isinstance(config, ModernBertConfig) else "BertModel"
