"""filbert takes plain text to a working BERT: it trains, evaluates, explains and predicts.

    from filbert import load

    classify = load("runs/reviews")
    classify("Two hours I will never get back.")

The names below are loaded when they are first used: `import filbert` alone loads neither torch nor
numpy and takes a few milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filbert.errors import FilbertError
    from filbert.infer.predict import load
    from filbert.model.bert import (
        BertForMaskedLM,
        BertForPreTraining,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
    )
    from filbert.model.config import BertConfig
    from filbert.model.modern import (
        ModernBertForMaskedLM,
        ModernBertForSequenceClassification,
        ModernBertModel,
    )
    from filbert.model.modern_config import ModernBertConfig
    from filbert.model.seq2seq import BertForSeq2SeqLM
    from filbert.model.span_head import BertForQuestionAnswering
    from filbert.text.tokenizer import BertTokenizer, BertTokenizerFast

__version__ = "0.1.0"

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSeq2SeqLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertTokenizer",
    "BertTokenizerFast",
    "FilbertError",
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "ModernBertModel",
    "__version__",
    "load",
]

# public name -> (module, name there)
_HOME = {
    "BertConfig": ("filbert.model.config", "BertConfig"),
    "BertForMaskedLM": ("filbert.model.bert", "BertForMaskedLM"),
    "BertForPreTraining": ("filbert.model.bert", "BertForPreTraining"),
    "BertForQuestionAnswering": ("filbert.model.span_head", "BertForQuestionAnswering"),
    "BertForSeq2SeqLM": ("filbert.model.seq2seq", "BertForSeq2SeqLM"),
    "BertForSequenceClassification": ("filbert.model.bert", "BertForSequenceClassification"),
    "BertForTokenClassification": ("filbert.model.bert", "BertForTokenClassification"),
    "BertModel": ("filbert.model.bert", "BertModel"),
    "BertTokenizer": ("filbert.text.tokenizer", "BertTokenizer"),
    "BertTokenizerFast": ("filbert.text.tokenizer", "BertTokenizerFast"),
    "FilbertError": ("filbert.errors", "FilbertError"),
    "ModernBertConfig": ("filbert.model.modern_config", "ModernBertConfig"),
    "ModernBertForMaskedLM": ("filbert.model.modern", "ModernBertForMaskedLM"),
    "ModernBertForSequenceClassification": (
        "filbert.model.modern",
        "ModernBertForSequenceClassification",
    ),
    "ModernBertModel": ("filbert.model.modern", "ModernBertModel"),
    "load": ("filbert.infer.predict", "load"),
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module at the first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'filbert' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, whether it was used yet or not."""
    return sorted(set(globals()) | set(__all__))
