"""What fine-tuning for questions gives: filbert beside the Trainer recipe of transformers.

Why: a score is worth something only beside a peer's, from the same weights and the same rows. The
peer does what the example script run_qa.py does: windows of 384 tokens that share 128, an answer
that is not whole in a window points at its first token, AutoModelForQuestionAnswering, Trainer,
AdamW with a linear schedule; answers as `recipe` in answer.py beside this file takes them.

Run (needs `pip install 'filbert[demo,bench]'`; DIR holds SQuAD's two files, .json or .json.gz):

    python benchmarks/answer_train_peer.py --data DIR --rows 8000
    python benchmarks/answer_train_peer.py --data DIR --rows 200 --dev-rows 50 --epochs 1   # a look
    python benchmarks/answer_train_peer.py --data DIR --seeds 3 --json answers.json   # all rows

The first `--rows` questions of the training file and the first `--dev-rows` of the dev file, the
same for both. Same weights, epochs, windows in a batch, learning rate, schedule, warm-up, weight
decay, clipping, dropout, precision, threads; each head is drawn at random by its own library.
Neither picks a checkpoint: the weights after the last step are scored, by filbert's F1 and EM,
which tests hold equal to those of the published script. The Trainer pads to the longest window of a
batch and sorts by length, which is the faster of its ways. Seconds are those of training alone,
tokenising included; filbert's contain its one dev score.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from answer import LENGTH, STRIDE, recipe  # beside this file

from filbert.data.questions import Questions, read_questions
from filbert.sources import resolve
from filbert.tasks.answer_scores import score_answers

WARMUP, WEIGHT_DECAY, CLIP = 0.1, 0.01, 1.0
METRICS = ("f1", "exact_match")
ARMS = ("filbert", "transformers")


def find(folder: Path, name: str) -> Path:
    """A file of SQuAD, packed or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise SystemExit(f"no {name} or {name}.gz in {folder}")


def first_rows(path: Path, rows: int | None) -> Questions:
    """The first questions of a file."""
    found = read_questions(path)
    return found.select(range(min(rows or len(found), len(found))))


def write_rows(questions: Questions, path: Path) -> None:
    """Questions as flat rows, which `filbert train answer` takes."""
    with open(path, "w", encoding="utf-8") as file:
        for place, text in enumerate(questions.texts):
            gold = questions.answers[place]
            row = {
                "id": questions.ids[place],
                "context": questions.contexts[questions.owner[place]],
                "question": text,
                "answers": {
                    "text": [answer.text for answer in gold],
                    "answer_start": [answer.start for answer in gold],
                },
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def train_ours(data: Path, dev: Path, out: Path, seed: int, given: argparse.Namespace) -> Any:
    """The command that a user would type, in a process of its own."""
    verb = [
        *("train", "answer", "--data", str(data), "--dev", str(dev), "--out", str(out)),
        *("--base", given.base, "--seed", str(seed), "--epochs", str(given.epochs)),
        *("--lr", str(given.lr), "--warmup", str(WARMUP), "--weight-decay", str(WEIGHT_DECAY)),
        *("--clip", str(CLIP), "--max-length", str(LENGTH), "--stride", str(STRIDE)),
        # windows alone bound a batch, and the end alone is scored
        *("--batch-size", str(given.batch_size), "--batch-tokens", str(given.batch_size * LENGTH)),
        *("--eval-every", str(10**9), "--precision", "bf16" if given.bf16 else "float32"),
        *("--threads", str(given.threads), "--device", "cpu", "--json"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "filbert", *verb],
        stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"filbert {' '.join(verb)} ended with {done.returncode}")
    found = json.loads(done.stdout)
    return {
        **{metric: found["scores"][metric] for metric in METRICS},
        "steps": found["steps"], "seconds": found["seconds"],
    }  # fmt: skip


def windows_of(tokenizer: Any, questions: Questions) -> list[dict[str, Any]]:
    """What the training of run_qa.py reads: windows, with the first and last token of the answer,
    or the first token of all where the answer is not whole in the window."""
    encoded = tokenizer(
        questions.texts, [questions.contexts[number] for number in questions.owner],
        truncation="only_second", max_length=LENGTH, stride=STRIDE,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    names = ("input_ids", "token_type_ids", "attention_mask")
    windows = []
    for place, row in enumerate(encoded["overflow_to_sample_mapping"]):
        gold = questions.answers[row][0]
        begin, end = gold.start, gold.start + len(gold.text)
        own = [
            (token, span)
            for token, (kind, span) in enumerate(
                zip(encoded.sequence_ids(place), encoded["offset_mapping"][place], strict=True)
            )
            if kind == 1
        ]
        first = last = 0
        if own and own[0][1][0] <= begin and own[-1][1][1] >= end:
            first = max(token for token, span in own if span[0] <= begin)
            last = min(token for token, span in own if span[1] >= end)
        windows.append(
            {name: encoded[name][place] for name in names}
            | {"start_positions": first, "end_positions": last}
        )
    return windows


def train_peer(
    train: Questions, dev: Questions, out: Path, seed: int, given: argparse.Namespace
) -> Any:
    """The Trainer on the same rows, and its answers to the dev questions."""
    import torch
    import transformers

    torch.set_num_threads(given.threads)
    transformers.set_seed(seed)
    base = str(resolve(given.base))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(base)
    began = time.monotonic()
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(out), num_train_epochs=given.epochs, learning_rate=given.lr,
            per_device_train_batch_size=given.batch_size, lr_scheduler_type="linear",
            warmup_steps=WARMUP, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP, seed=seed,
            bf16=given.bf16, train_sampling_strategy="group_by_length", use_cpu=True,
            eval_strategy="no", save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=windows_of(tokenizer, train),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    steps = trainer.train().global_step
    seconds = time.monotonic() - began
    trainer.save_model(str(out))
    tokenizer.save_pretrained(str(out))
    pairs = [
        (text, dev.contexts[number]) for text, number in zip(dev.texts, dev.owner, strict=True)
    ]
    answers = recipe(str(out), dtype=torch.float32, pad_all=False)(pairs)
    golds = [[gold.text for gold in several] for several in dev.answers]
    exact, f1 = score_answers(answers, golds, rule="squad")
    return {
        "f1": float(f1.mean()), "exact_match": float(exact.mean()), "steps": steps,
        "seconds": seconds,
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and deviation of each arm, as Markdown."""
    lines = [
        "| arm | F1 | EM | each F1 | steps | seconds of training |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        if not own:
            continue
        means = [100 * statistics.fmean(run[metric] for run in own) for metric in METRICS]
        each = ", ".join(f"{100 * run['f1']:.2f}" for run in own)
        seconds = statistics.median(run["seconds"] for run in own)
        lines.append(
            f"| {arm} | {means[0]:.2f} | {means[1]:.2f} | {each} | {own[0]['steps']:,} | "
            f"{seconds:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train both arms with each seed; print a line of JSON after each run, the table at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of SQuAD 1.1")
    parser.add_argument("--base", default="all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, help="training questions (all)")
    parser.add_argument("--dev-rows", type=int, help="dev questions (all)")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=24, help="windows in a batch")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="one alone, say")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    train = first_rows(find(given.data, "train-v1.1.json"), given.rows)
    dev = first_rows(find(given.data, "dev-v1.1.json"), given.dev_rows)
    runs: list[dict[str, Any]] = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for arm in given.arms[:: -1 if seed % 2 else 1]:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                if arm == "filbert":
                    files = folder / "train.jsonl", folder / "dev.jsonl"
                    for part, path in zip((train, dev), files, strict=True):
                        write_rows(part, path)
                    found = train_ours(*files, folder / "run", seed, given)
                else:
                    found = train_peer(train, dev, folder / "run", seed, given)
            runs.append({"arm": arm, "seed": seed, "rows": len(train), "dev": len(dev), **found})
            print(json.dumps(runs[-1]), flush=True)
            if given.json:
                given.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(train):,} training and {len(dev):,} dev questions, {vars(given)}\n")
    print(table(runs))


if __name__ == "__main__":
    main()
