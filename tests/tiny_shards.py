"""A small folder of shards, written by hand: random sentences over the vocabulary of tests/tiny."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from filbert.text import BertTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40)),
         *(f"##{n}" for n in range(15))]  # fmt: skip


def tiny_shards(
    folder: Path,
    *,
    documents: int = 60,
    dev_documents: int = 12,
    seed: int = 0,
    words: list[str] | None = None,
) -> Path:
    """Two training shards and one held-out shard. A word is followed by its neighbour, mostly, so
    that there is something to learn."""
    folder.mkdir(parents=True)
    words = words or WORDS
    vocab = folder / "vocab"
    BertTokenizer(words).save_pretrained(vocab)
    draw = np.random.default_rng(seed)
    entries = []
    half = documents // 2
    counts = {"train-00000": half, "train-00001": documents - half, "dev-00000": dev_documents}
    for name, count in counts.items():
        tokens, sentences, starts = [], [0], [0]
        for _ in range(count):
            for _ in range(int(draw.integers(2, 12))):
                word = int(draw.integers(5, 45))
                for _ in range(int(draw.integers(3, 20))):
                    tokens.append(word)
                    step = 1 if draw.random() < 0.8 else int(draw.integers(40))
                    word = 5 + (word - 5 + step) % 40
                    if draw.random() < 0.2:
                        tokens.append(int(draw.integers(45, 60)))
                sentences.append(len(tokens))
            starts.append(len(sentences) - 1)
        place = folder / name
        place.mkdir()
        ids = np.array(tokens)
        arrays = {
            "tokens.npy": ids.astype("<u2"),
            "joins.npy": np.packbits(ids >= 45, bitorder="little"),
            "sentences.npy": np.array(sentences, dtype="<i8"),
            "documents.npy": np.array(starts, dtype="<i8"),
            "sources.npy": np.zeros(count, dtype="<u2"),
        }
        files = {}
        for file, array in arrays.items():
            np.save(place / file, array)
            files[file] = hashlib.sha256((place / file).read_bytes()).hexdigest()
        entries.append(
            {
                "name": name, "split": name.split("-")[0], "documents": count,
                "sentences": len(sentences) - 1, "tokens": len(tokens), "files": files,
            }
        )  # fmt: skip
    totals = {key: sum(e[key] for e in entries) for key in ("documents", "sentences", "tokens")}
    manifest = {
        "format": 1, "filbert": "0", "vocab_size": len(words),
        "vocab_sha256": hashlib.sha256((vocab / "vocab.txt").read_bytes()).hexdigest(),
        "options": {}, "sources": [""],
        "counts": {**totals, "bytes": 0, "duplicates": 0, "near_duplicates": 0, "filtered": {}},
        "shards": entries,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
