"""The peer of `filbert train tag`: `transformers`' own token-classification recipe, same weights.

    python benchmarks/tag_peer.py --data DIR/wnut17 --seed 42
    python benchmarks/tag_peer.py --data DIR/msra_ner --train train.txt.gz \
        --test test.txt.gz --base filbert-mini-zh --batch-size 44 --lr 3e-4 --seed 42

What its example run_ner.py does: AutoModelForTokenClassification, words given split, the label on
the first piece of each word, padding by batch, Trainer with a linear schedule and no warm-up, the
best epoch by F1 on the dev set, seqeval. Epochs, batch and learning rate are filbert's recipe's
(recipes/tag-wnut17.toml). Prints one line of JSON with precision, recall and F1 on the test set.

Without --dev a tenth of the training sentences picks the epoch, the tenth that `filbert train tag`
holds out. --rows N trains on the first N of the others.

Words that the tokenizer drops have no prediction in that recipe; here they count as O, so that
both are scored on the same words.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from filbert.data.tagged import Tagged, read_tagged, split_holdout  # noqa: E402
from filbert.sources import resolve  # noqa: E402

WNUT = {"train": "wnut17train.conll", "dev": "emerging.dev.conll",
        "test": "emerging.test.annotated"}  # fmt: skip


def encode(tokenizer: Any, part: Tagged, number: dict[str, int]) -> tuple[Any, list[list[int]]]:
    """Features as the recipe makes them, and the words that have a prediction, by example."""
    from datasets import Dataset

    encoded = tokenizer(part.words, is_split_into_words=True, truncation=True)
    labels, seen = [], []
    for row, tags in enumerate(part.tags):
        before, own, words = None, [], []
        for word in encoded.word_ids(row):
            fresh = word is not None and word != before
            own.append(number[tags[word]] if fresh else -100)
            words += [word] if fresh else []
            before = word
        labels.append(own)
        seen.append(words)
    return Dataset.from_dict({**encoded, "labels": labels}), seen


def scores(logits: Any, gold: Any, names: list[str], part: Tagged, seen: Any) -> dict[str, float]:
    """Entity-level scores over all words of the file."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    predicted = []
    best = np.asarray(logits).argmax(-1)
    for row, words in enumerate(seen):
        tags = ["O"] * len(part.words[row])
        places = [i for i, label in enumerate(gold[row]) if label != -100]
        for word, place in zip(words, places, strict=True):
            tags[word] = names[best[row, place]]
        predicted.append(tags)
    return {
        "f1": f1_score(part.tags, predicted),
        "precision": precision_score(part.tags, predicted),
        "recall": recall_score(part.tags, predicted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the files")
    parser.add_argument("--train", help="WNUT-17's unless given")
    parser.add_argument("--dev")
    parser.add_argument("--test")
    parser.add_argument("--rows", type=int, help="Train on the first N sentences")
    parser.add_argument("--base", default="all-MiniLM-L6-v2")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--bf16", action="store_true", help="As filbert computes where it is fast")
    given = parser.parse_args()

    import torch
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(given.seed)
    files = {"train": given.train, "dev": given.dev, "test": given.test} if given.train else WNUT
    parts = {name: read_tagged(given.data / file) for name, file in files.items() if file}
    if "dev" not in parts:
        parts["train"], parts["dev"] = split_holdout(parts["train"], fraction=0.1, seed=0)
    if given.rows:
        parts["train"] = parts["train"].select(range(given.rows))
    names = sorted({tag for part in parts.values() for tags in part.tags for tag in tags})
    number = {name: place for place, name in enumerate(names)}
    base = str(resolve(given.base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForTokenClassification.from_pretrained(
        base, num_labels=len(names), id2label=dict(enumerate(names)), label2id=number
    )
    sets = {name: encode(tokenizer, part, number) for name, part in parts.items()}

    def dev_scores(output: Any) -> dict[str, float]:
        return scores(output.predictions, output.label_ids, names, parts["dev"], sets["dev"][1])

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder, num_train_epochs=given.epochs, learning_rate=given.lr,
                per_device_train_batch_size=given.batch_size, per_device_eval_batch_size=32,
                eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
                metric_for_best_model="f1", save_total_limit=2, seed=given.seed, report_to=[],
                bf16=given.bf16, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
                logging_steps=100,
            ),
            train_dataset=sets["train"][0], eval_dataset=sets["dev"][0],
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_metrics=dev_scores, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        seconds = time.monotonic() - began
        trainer.compute_metrics = None  # those of the dev set
        output = trainer.predict(sets["test"][0])
    found = scores(output.predictions, output.label_ids, names, parts["test"], sets["test"][1])
    print(json.dumps({"peer": "transformers", "seed": given.seed, **found, "seconds": seconds}))


if __name__ == "__main__":
    main()
