"""A small BERT folder and small data sets that tests train on in seconds."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from filbert.model.bert import BertForPreTraining
from filbert.model.config import BertConfig
from filbert.text import BertTokenizer

WORDS = [
    *("good", "great", "fine", "nice", "superb"),
    *("bad", "poor", "awful", "weak", "dull"),
    *("film", "book", "food", "hotel", "show"),
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "the", "was", "a", "##s"]


def save_base(folder: Path, *, seed: int = 0, **changes: float) -> Path:
    """A random pre-trained-like BERT of 2 layers with its tokenizer."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    }
    config = BertConfig(**{**settings, **changes})  # type: ignore[arg-type]
    BertForPreTraining(config).save_pretrained(folder)
    BertTokenizer(VOCABULARY).save_pretrained(folder)
    return folder


def reviews(path: Path, rows: int, *, seed: int = 0) -> Path:
    """A CSV of `text,label` that a small model can learn."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for _ in range(rows):
        label = draw.choice(["pos", "neg"])
        mood = draw.choice(WORDS[:5] if label == "pos" else WORDS[5:10])
        filler = " ".join(draw.choice([*WORDS[10:], "the", "a"]) for _ in range(draw.randint(1, 9)))
        lines.append(f"{filler} was {mood},{label}")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
