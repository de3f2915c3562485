"""A very small BERT bundle with drawn weights, made in a fraction of a second: for tests of what
happens around a model, where its answers need only be definite."""

from __future__ import annotations

from pathlib import Path

import torch

from filbert.bundle import Manifest, save_bundle
from filbert.model.bert import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)
from filbert.text import BertTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["free", "prize", "call", "now", "lunch", "home", "the", "river", "bank", "like", "it"]
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *WORDS,
    *".,!?<>&",
    *"你好世界银行",
]

TEXTS = ["free prize call now", "lunch home", "", "the river bank", "你好世界", "Zebra!", "a " * 9]


def tiny_config(**changes: object) -> BertConfig:
    values: dict[str, object] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
        "initializer_range": 0.5,  # so that texts differ
    }
    return BertConfig(**{**values, **changes})  # type: ignore[arg-type]


def tiny_bundle(
    folder: Path,
    *,
    labels: tuple[str, ...] = ("ham", "spam"),
    problem_type: str = "single_label_classification",
    pair: bool = False,
    temperature: float = 1.5,
    thresholds: list[float] | None = None,
    **changes: object,
) -> Path:
    """A whole bundle with a classification head."""
    torch.manual_seed(7)
    names = labels if problem_type != "regression" else ("score",)
    config = tiny_config(id2label=dict(enumerate(names)), problem_type=problem_type, **changes)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.bias.uniform_(-0.5, 0.5)
    manifest = Manifest(
        task="classify",
        problem_type=problem_type,  # type: ignore[arg-type]
        labels=list(labels) if problem_type != "regression" else [],
        pair=pair,
        max_length=config.max_position_embeddings,
        windows=True,
        stride=8,
        temperature=temperature,
        thresholds=thresholds,
    )
    return save_bundle(folder, model=model, tokenizer=BertTokenizer(VOCABULARY), manifest=manifest)


def tiny_encoder(folder: Path, kind: type = BertModel, **options: bool) -> Path:
    """A folder without a classification head: BertModel, BertForMaskedLM or BertForPreTraining."""
    torch.manual_seed(7)
    assert kind in (BertModel, BertForMaskedLM, BertForPreTraining)
    kind(tiny_config(), **options).save_pretrained(folder)
    BertTokenizer(VOCABULARY).save_pretrained(folder)
    return folder
