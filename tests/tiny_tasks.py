"""A very small bundle of every task with drawn weights, for tests of what happens around models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from filbert.bundle import Manifest, save_bundle
from filbert.model.bert import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.model.seq2seq_config import Seq2SeqConfig
from filbert.model.span_head import BertForQuestionAnswering
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config

ENTITIES = ["O", "B-PER", "I-PER"]
# task -> the model, and what its manifest says
TASKS: dict[str, tuple[type, dict[str, Any]]] = {
    "classify": (
        BertForSequenceClassification,
        {"problem_type": "single_label_classification", "labels": ["ham", "spam"]},
    ),
    "rank": (BertForSequenceClassification, {"problem_type": "regression", "pair": True}),
    "tag": (BertForTokenClassification, {"labels": ENTITIES}),
    "answer": (BertForQuestionAnswering, {"pair": True}),
    "summarize": (BertForExtractiveSummary, {"settings": {"sentences": 1}}),
    "translate": (BertForSeq2SeqLM, {"settings": {"max_tokens": 6, "beams": 1}}),
    "fill": (BertForMaskedLM, {}),
    "pretrain": (BertForPreTraining, {}),
    "embed": (BertModel, {"settings": {"pooling": "mean", "normalize": True}}),
    "encode": (BertModel, {}),
}


def task_bundle(folder: Path, task: str, *, kind: type | None = None, **changes: Any) -> Path:
    """A whole bundle of this task; kind: another model of it; changes: of its manifest."""
    torch.manual_seed(7)
    usual, values = TASKS[task]
    values = {"max_length": 40, "stride": 8, **values, **changes}
    names = values.get("labels") or ["score"]
    config: Any = tiny_config(id2label=dict(enumerate(names)))
    if (kind or usual) is BertForSeq2SeqLM:
        config = Seq2SeqConfig(
            encoder=config, decoder=tiny_config(), decoder_start_token_id=2, eos_token_id=3,
            pad_token_id=0,
        )  # fmt: skip
    model = (kind or usual)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("classifier.bias"):  # else one label may take all words
                weight.uniform_(-0.5, 0.5)
    manifest = Manifest(task=task, **values)  # type: ignore[arg-type]
    return save_bundle(folder, model=model, tokenizer=BertTokenizer(VOCABULARY), manifest=manifest)
