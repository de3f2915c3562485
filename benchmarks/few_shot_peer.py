"""The peer of `filbert train few-shot`: SetFit itself, on the very rows that filbert draws.

    pip install setfit
    python benchmarks/few_shot_peer.py --data DIR/train.csv --test DIR/test.csv \
        --text-column text --label-column category --seeds 0 1 2

SetFit's Trainer with its defaults (cosine loss over pairs, 2e-5, batches of 16, one epoch, a tenth
of the steps for warm-up, logistic regression on the vectors) and 20 iterations of pairs, as in
recipes/few-shot-*.toml. Prints one line of JSON for each seed with the accuracy on the test rows;
scores.py gives filbert's with the same seeds. Published figures of SetFit for Banking77 and SST-2
with 8 rows a class and this base were not at hand, hence this script.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from filbert.data.examples import SINGLE, Examples, label_names, read_examples  # noqa: E402
from filbert.sources import resolve  # noqa: E402
from filbert.tasks.few_shot import draw_shots  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="Labelled rows to draw from")
    parser.add_argument("--test", required=True, help="Rows to score on")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--base", default="all-MiniLM-L6-v2")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()

    import torch
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from transformers import set_seed

    if given.threads:
        torch.set_num_threads(given.threads)

    def read(path: str) -> Examples:
        return read_examples(
            path, text_column=given.text_column, label_column=given.label_column,
            problem_type=SINGLE,
        )  # fmt: skip

    pool, test = read(given.data), read(given.test)
    assert pool.labels is not None and test.labels is not None
    number = {str(name): i for i, name in enumerate(label_names(pool.labels, SINGLE))}

    def table(rows: Examples) -> Dataset:
        labels = [number[str(label)] for label in rows.labels or []]
        return Dataset.from_dict({"text": list(rows.texts), "label": labels})

    for seed in given.seeds:
        set_seed(seed)
        drawn = pool.select(draw_shots(pool.labels, shots=given.shots, seed=seed))
        model = SetFitModel.from_pretrained(str(resolve(given.base)))
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=folder, num_iterations=given.iterations, seed=seed,
                    report_to="none", show_progress_bar=False,
                ),
                train_dataset=table(drawn),
            )  # fmt: skip
            trainer.train()
            seconds = time.monotonic() - began
        rows = table(test)
        right = [
            int(found) == label
            for found, label in zip(
                model.predict(list(rows["text"])), list(rows["label"]), strict=True
            )
        ]
        found = {"seed": seed, "accuracy": sum(right) / len(right), "seconds": seconds}
        print(json.dumps({"peer": "setfit", **found}), flush=True)


if __name__ == "__main__":
    main()
