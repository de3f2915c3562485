"""BertConfig: the numbers that define a BERT, read from and written to `config.json`.

Fields are those of the BERT configuration in Hugging Face Transformers and google-research/bert
(`bert_config.json`), plus `embedding_size` for factorised embeddings (ALBERT, arXiv 1909.11942,
section 3.1). The schema is closed: a key that is not listed here is kept in `extra` as data, told
once, and never acted on. Nothing in a configuration can name or run code. `EncoderConfig` is what
every encoder shares; the other one is `filbert.model.modern_config.ModernBertConfig`. A RoBERTa's,
a DistilBERT's or an ELECTRA's is read as the BERT that it is (`filbert.model.foreign`).

    >>> BertConfig.from_pretrained("all-MiniLM-L6-v2").hidden_size
    384
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from filbert.atomic import write_file
from filbert.errors import FilbertError, did_you_mean
from filbert.model.foreign import read_values_as_bert
from filbert.sources import resolve

logger = logging.getLogger("filbert")

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")
SENTENCE_POOLINGS = ("cls", "mean")  # of `BertForExtractiveSummary`
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip
# Keys that describe the file and not the network; written by other tools, safe to carry along.
BOOKKEEPING = {
    "transformers_version", "torch_dtype", "dtype", "_name_or_path", "finetuning_task",
    "gradient_checkpointing", "return_dict", "output_attentions", "output_hidden_states",
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "use_cache", "chunk_size_feed_forward",
    "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "tie_word_embeddings",
    "is_encoder_decoder",
    "cross_attention_hidden_size", "torchscript", "tie_encoder_decoder", "prefix", "tf_legacy_loss",
}  # fmt: skip

# What to say about a model of another kind.
HINTS = {
    "modernbert": ": open it with ModernBertModel, ModernBertForMaskedLM or "
    "ModernBertForSequenceClassification",
    "bert": ": open it with BertModel, BertForMaskedLM or another class of filbert.model.bert",
}


@dataclass(kw_only=True)
class EncoderConfig:
    """What the configurations of all encoders share. Open a `BertConfig` or a `ModernBertConfig`.

    Raises `FilbertError` for a value of the wrong type or out of range.
    """

    kind: ClassVar[str]  # the `model_type` of its files
    title: ClassVar[str]  # for messages
    dropouts: ClassVar[tuple[str, ...]]  # names of fields in [0, 1)
    fractions: ClassVar[tuple[str, ...]]  # names of fields in (0, 1)
    flags: ClassVar[tuple[str, ...]]  # names of fields that are true or false
    bookkept: ClassVar[set[str]] = BOOKKEEPING

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    initializer_range: float = 0.02
    pad_token_id: int | None
    problem_type: str | None = None
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    architectures: list[str] | None = None
    model_type: str
    bookkeeping: dict[str, Any] = field(default_factory=dict)  # known, carried along unread
    extra: dict[str, Any] = field(default_factory=dict)  # unknown: data, never acted on

    def __post_init__(self) -> None:
        for name in COUNTS:
            self._check_count(name, most=1000 if name == "num_hidden_layers" else 2**31 - 1)
        for name in self.dropouts:
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < 1:
                raise FilbertError(f"config: {name} must be a number in [0, 1), got {value!r}")
        for name in self.fractions:
            value = getattr(self, name)
            if not is_number(value) or not 0 < value < 1:
                raise FilbertError(f"config: {name} must be a number in (0, 1), got {value!r}")
        for name in self.flags:
            if not isinstance(getattr(self, name), bool):
                raise FilbertError(
                    f"config: {name} must be true or false, got {getattr(self, name)!r}"
                )
        if self.hidden_size % self.num_attention_heads:
            raise FilbertError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        pad = self.pad_token_id
        if pad is not None and (not isinstance(pad, int) or not 0 <= pad < self.vocab_size):
            raise FilbertError(
                f"config: pad_token_id {pad!r} is outside the vocabulary of {self.vocab_size}"
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise FilbertError(
                f"config: problem_type {self.problem_type!r} is none of {', '.join(PROBLEM_TYPES)}"
            )
        self.id2label = _read_labels(self.id2label)
        check_names(self.architectures)

    def _check_count(self, name: str, *, most: int = 2**31 - 1) -> None:
        value = getattr(self, name)  # a million layers would build for ever
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise FilbertError(f"config: {name} must be an integer from 1 to {most}, got {value!r}")

    def _check_activation(self, name: str) -> None:
        if (value := getattr(self, name)) not in ACTIVATIONS:
            raise FilbertError(f"config: {name} {value!r} is not one of {', '.join(ACTIVATIONS)}")

    @property
    def num_labels(self) -> int:
        """How many outputs a classification head has."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """The inverse of `id2label`."""
        return {label: index for index, label in self.id2label.items()}

    @property
    def head_size(self) -> int:
        """Width of one attention head, d_k in Vaswani et al. 2017."""
        return self.hidden_size // self.num_attention_heads

    def weight_sizes(self) -> dict[str, tuple[int, ...]]:
        """Ending of a tensor's name -> the shape that this configuration asks of it, for a few."""
        raise NotImplementedError

    @classmethod
    def translate(cls, values: dict[str, Any], *, source: str) -> dict[str, Any]:
        """Other spellings of this configuration as its own fields; here there are none."""
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "config") -> Self:
        """Read a parsed `config.json` or `bert_config.json`.

        Unknown keys go to `extra` and are told once, through the log. Raises `FilbertError` for
        another kind of model or a wrong value.
        """
        if not isinstance(values, dict):
            raise FilbertError(f"{source}: expected a JSON object, got {type(values).__name__}")
        values = cls.translate(values, source=source)
        kind = values.get("model_type", "bert")
        if kind != cls.kind:
            raise FilbertError(
                f"{source}: model_type {kind!r} is not supported; expected {cls.kind!r}"
                + HINTS.get(kind if isinstance(kind, str) else "", "")
            )
        known = {f.name for f in fields(cls)} - {"bookkeeping", "extra"}
        given = {key: value for key, value in values.items() if key in known}
        num_labels = values.get("num_labels")
        if "id2label" not in given and num_labels is not None:
            given["id2label"] = default_labels(num_labels)
        if given.get("id2label", 0) is None:
            del given["id2label"]
        rest = {k: v for k, v in values.items() if k not in known | {"num_labels", "label2id"}}
        bookkeeping = {k: v for k, v in rest.items() if k in cls.bookkept}
        extra = {k: v for k, v in rest.items() if k not in cls.bookkept}
        if extra:
            logger.warning(
                "%s: keys kept as data and not acted on: %s", source, ", ".join(sorted(extra))
            )
        try:
            return cls(**given, bookkeeping=bookkeeping, extra=extra)
        except FilbertError as error:
            raise FilbertError(f"{source}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, in the layout that Transformers reads."""
        out = {**self.extra, **self.bookkeeping}
        for f in fields(self):
            if f.name in ("bookkeeping", "extra"):
                continue
            value = getattr(self, f.name)
            if value is not None or f.name in ("classifier_dropout", "pad_token_id"):
                out[f.name] = value
        out["id2label"] = {str(index): label for index, label in self.id2label.items()}
        out["label2id"] = self.label2id
        out.pop("torch_dtype", None)
        out["dtype"] = "float32"
        return out

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; `num_labels=3` renames the labels to LABEL_0 ... 2."""
        num_labels = changes.pop("num_labels", None)
        changes.pop("label2id", None)
        if num_labels is not None and "id2label" not in changes and num_labels != self.num_labels:
            changes["id2label"] = default_labels(num_labels)
        known = {f.name for f in fields(self)}
        for key in changes:
            if key not in known:
                raise FilbertError(
                    f"unknown option {key!r} for a {self.title}.{did_you_mean(key, known)}"
                )
        return type(self)(**{**{name: getattr(self, name) for name in known}, **changes})

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], *, revision: str | None = None) -> Self:
        """Read the configuration of a folder, an installed name or a hub name."""
        folder = resolve(name, revision=revision, weights=False)
        values, source = read_values(folder)
        return cls.from_dict(values, source=source)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` into `folder`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        write_file(
            target / "config.json", json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        )


def dropouts(config: EncoderConfig, value: float) -> dict[str, float]:
    """Every dropout of the encoder set to `value`."""
    return {name: value for name in config.dropouts if name != "classifier_dropout"}


@dataclass(kw_only=True)
class BertConfig(EncoderConfig):
    """The shape of a BERT. Defaults are BERT-base, uncased English (arXiv 1810.04805, section 3).

    Raises `FilbertError` for a value of the wrong type or out of range.
    """

    kind: ClassVar[str] = "bert"
    title: ClassVar[str] = "BERT"
    dropouts: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    fractions: ClassVar[tuple[str, ...]] = ("initializer_range", "layer_norm_eps")
    flags: ClassVar[tuple[str, ...]] = ("is_decoder", "add_cross_attention")

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    embedding_size: int | None = None  # None: the same as hidden_size, no projection
    sentence_pooling: str | None = None  # what stands for a sentence of a document; None: cls
    model_type: str = "bert"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("type_vocab_size")
        own = self.classifier_dropout
        if own is not None and (not is_number(own) or not 0 <= own < 1):
            raise FilbertError(f"config: classifier_dropout must be in [0, 1), got {own!r}")
        if self.is_decoder or self.add_cross_attention:
            raise FilbertError(
                "config: is_decoder and add_cross_attention ask for a decoder; "
                "filbert's BERT is the encoder (set both to false)"
            )
        self._check_activation("hidden_act")
        if self.position_embedding_type != "absolute":
            raise FilbertError(
                f"config: position_embedding_type {self.position_embedding_type!r} is not "
                "supported; BERT's own is 'absolute'"
            )
        width = self.embedding_size
        if width is not None and (
            isinstance(width, bool) or not isinstance(width, int) or width < 1
        ):
            raise FilbertError(f"config: embedding_size must be a positive integer, got {width!r}")
        if self.sentence_pooling not in (None, *SENTENCE_POOLINGS):
            raise FilbertError(
                f"config: sentence_pooling {self.sentence_pooling!r} is none of "
                + ", ".join(SENTENCE_POOLINGS)
            )

    @property
    def factorised(self) -> bool:
        """Whether embeddings are narrower than the hidden states and projected up to them."""
        return self.embedding_size is not None and self.embedding_size != self.hidden_size

    def weight_sizes(self) -> dict[str, tuple[int, ...]]:
        """Ending of a tensor's name -> the shape that this configuration asks of it, for a few."""
        width, hidden = self.embedding_size or self.hidden_size, self.hidden_size
        return {
            "embeddings.word_embeddings.weight": (self.vocab_size, width),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, width),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, width),
            "layer.0.attention.self.query.weight": (hidden, hidden),
            "layer.0.intermediate.dense.weight": (self.intermediate_size, hidden),
            f"layer.{self.num_hidden_layers - 1}.attention.self.query.weight": (hidden, hidden),
        }

    @classmethod
    def translate(cls, values: dict[str, Any], *, source: str) -> dict[str, Any]:
        """A RoBERTa's, DistilBERT's or ELECTRA's configuration as a BERT's."""
        return read_values_as_bert(values, source=source)


def read_values(folder: Path) -> tuple[dict[str, Any], str]:
    """The parsed `config.json` of `folder`, else Google's `bert_config.json`, and its path."""
    for name in ("config.json", "bert_config.json"):
        path = folder / name
        if path.is_file():
            try:
                return json.loads(path.read_text("utf-8")), str(path)
            except (ValueError, RecursionError) as error:
                raise FilbertError(f"{path} is not valid JSON: {error}") from None
    raise FilbertError(f"{folder} holds no config.json: it is not a model folder")


def read_config(folder: Path) -> BertConfig:
    """The configuration of the BERT in `folder`; `modern_config.read_any_config` reads any."""
    values, source = read_values(folder)
    return BertConfig.from_dict(values, source=source)


def default_labels(count: Any) -> dict[int, str]:
    """Labels named as Transformers names them where nobody did."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= 1_000_000:
        raise FilbertError(f"num_labels must be a positive integer, got {count!r}")
    return {index: f"LABEL_{index}" for index in range(count)}


def _read_labels(value: Any) -> dict[int, str]:
    if not isinstance(value, dict) or not value:
        raise FilbertError(f"config: id2label must map numbers to names, got {value!r:.80}")
    try:
        labels = {int(index): str(label) for index, label in value.items()}
    except (TypeError, ValueError):
        raise FilbertError("config: id2label must map numbers to names") from None
    if sorted(labels) != list(range(len(labels))):
        raise FilbertError("config: id2label must number its labels 0, 1, 2 ... without a gap")
    return dict(sorted(labels.items()))


def check_names(architectures: Any) -> None:
    """Raise `FilbertError` unless these are names, or None."""
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise FilbertError(
            f"config: architectures must be a list of names, or null, got {architectures!r:.80}"
        )


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
