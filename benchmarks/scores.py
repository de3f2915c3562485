"""Fine-tune with every recipe, several seeds each, and print what they score on public data.

Why: a recipe claims a score; this is the command behind the claim. Each run is the command that a
user would type (`filbert train classify --recipe ...`, then `filbert evaluate` on the finished
bundle), in processes of its own.

Run (needs `pip install 'filbert[demo]'` and the data; README.md here tells its layout):

    python benchmarks/scores.py --data-root DIR --out runs/scores
    python benchmarks/scores.py --data-root DIR --out runs/scores --only sms-spam rte --seeds 1

    python benchmarks/scores.py --data-root DIR --only mini-sst2 --random   # without pre-training

`--random` starts from random weights of the architecture of the recipe's base, another draw with
each seed, so that the difference tells what pre-training gave.

All of it takes hours on a laptop. Stop it at any moment: the same command goes on where it was.
A finished run leaves a JSON file in OUT and is not repeated unless its recipe changed. The table
stands in OUT/scores.md, all figures in OUT/scores.json (with --random: scores-random).

What the scores mean:

- GLUE's tests are not public, so GLUE tasks are scored on their dev sets. The kept epoch is the
  best one on those same rows, which flatters a little; the last epoch's score stands beside it.
- Banking77 and AG News: scored on their test files, once; the epoch is picked on a tenth of the
  training rows that is held out (another one with each seed), so training sees nine tenths.
- SMS spam has no split. A fifth of it is set aside as its test by `split_holdout` with seed 0, the
  same in all runs; the rest is treated as the training file of the tasks above.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filbert.data.examples import read_examples, split_holdout
from filbert.train.options import read_recipe

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_DATA = ROOT.parent / "shared" / "data"
SMS_TEST = 0.2  # share of the messages that is set aside: 1,114 messages, one is 0.09 points
CORRELATIONS = {"mcc", "pearson", "spearman"}  # shown times 100, as GLUE does
NOTES = """\
GLUE: dev sets; the kept epoch is the best on the same rows ("last epoch": without that choice).
Others: test rows that picked nothing. MRPC's training file is one row short of the official 3,668.
AG News: 55 of the 10,001 training rows share their first 60 characters with a test row."""


@dataclass(frozen=True)
class Task:
    """Where the rows of a recipe lie below the data root, and what is told of the outcome."""

    train: str
    scored: str  # the file that the score is of
    metrics: tuple[str, ...]  # the first one is the task's own
    is_dev: bool = True  # `scored` also picks the epoch


TASKS = {
    "sms-spam": Task("sms_spam/spam.csv", "(a fifth of it)", ("accuracy", "f1"), is_dev=False),
    "sst2": Task("glue/SST-2/train.tsv", "glue/SST-2/dev.tsv", ("accuracy",)),
    "mrpc": Task("glue/MRPC/train.tsv", "glue/MRPC/dev.tsv", ("accuracy", "f1")),
    "rte": Task("glue/RTE/train.tsv", "glue/RTE/dev.tsv", ("accuracy",)),
    "stsb": Task("glue/STS-B/train.tsv", "glue/STS-B/dev.tsv", ("pearson", "spearman")),
    "cola": Task("glue/CoLA/train.tsv", "glue/CoLA/dev.tsv", ("mcc",)),
    "banking77": Task(
        "banking77/train.csv", "banking77/test.csv", ("accuracy", "f1_macro"), is_dev=False
    ),
    "agnews": Task("agnews/train.tsv", "agnews/test.tsv", ("accuracy", "f1_macro"), is_dev=False),
    "mini-chnsenticorp": Task("chnsenticorp/train.tsv", "chnsenticorp/dev.tsv", ("accuracy",)),
    "mini-tnews": Task("tnews/train.tsv", "tnews/dev.tsv", ("accuracy",)),
}
# the recipes of the models that filbert carries: the same files, another base
TASKS |= {f"mini-{name}": TASKS[name] for name in ("sst2", "mrpc", "rte", "cola", "stsb")}


def split_sms(source: Path, folder: Path, recipe: dict[str, Any]) -> tuple[Path, Path]:
    """The fixed split of the SMS Spam Collection, as two UTF-8 files with the recipe's columns."""
    train, test = folder / "sms-train.csv", folder / "sms-test.csv"
    text, label = recipe["text_column"], recipe["label_column"]
    examples = read_examples(
        str(source),
        text_column=text,
        label_column=label,
        encoding=recipe["encoding"],
        header=recipe["header"],
    )
    parts = split_holdout(
        examples, fraction=SMS_TEST, seed=0, problem_type="single_label_classification"
    )
    for path, part in zip((train, test), parts, strict=True):
        assert part.labels is not None
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow([text, label])
            writer.writerows(zip(part.texts, part.labels, strict=True))
    return train, test


def random_base(name: str, seed: int, folder: Path) -> Path:
    """A folder with the architecture and the vocabulary of a model, and random weights."""
    import torch

    from filbert.bundle import open_bundle

    out = folder / f"random-{name}-{seed}"
    if not (out / "model.safetensors").exists():
        bundle = open_bundle(name)
        torch.manual_seed(seed)
        drawn = type(bundle.model)(bundle.model.config)
        bundle.tokenizer.save_pretrained(out)
        drawn.save_pretrained(out)
    return out


def filbert(verb: Sequence[str], *, quiet: bool) -> dict[str, Any]:
    """What `filbert VERB --json` prints. Its progress stays visible unless `quiet`.

    Raises `SystemExit` with filbert's own message if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "filbert", *verb, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(
            f"filbert {' '.join(verb)} ended with {done.returncode}\n{(done.stderr or '')[-3000:]}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def reading_options(recipe: dict[str, Any]) -> list[str]:
    """The options of `filbert evaluate` that say how the recipe's files are read."""
    options: list[str] = []
    for key in (
        "text_column",
        "pair_column",
        "label_column",
        "label_separator",
        "format",
        "encoding",
    ):
        if key in recipe:
            options += ["--" + key.replace("_", "-"), str(recipe[key])]
    if "header" in recipe:
        options.append("--header" if recipe["header"] else "--no-header")
    return options


def last_epoch(run: Path, metric: str) -> float | None:
    """The dev score after the last epoch, from the run's log."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return next((row.get(metric) for row in reversed(rows) if row["kind"] == "eval"), None)


def run_once(
    name: str, seed: int, recipe: dict[str, Any], options: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """Train with one seed and evaluate; the record that is kept as JSON."""
    task = TASKS[name]
    train, scored = options.data_root / task.train, options.data_root / task.scored
    read = recipe
    if name == "sms-spam":
        train, scored = split_sms(train, options.out, recipe)
        read = {**recipe, "encoding": "utf-8"}
    for path in (train, scored):
        if not path.is_file():
            raise SystemExit(f"no file {path}: give the folder of the data with --data-root")
    verb = ["train", "classify", "--recipe", str(ROOT / "recipes" / f"{name}.toml")]
    verb += ["--data", str(train), "--dev" if task.is_dev else "--test", str(scored)]
    verb += ["--seed", str(seed), "--out", str(out), "--encoding", read.get("encoding", "utf-8")]
    if options.random:
        verb += ["--base", str(random_base(recipe["base"], seed, options.out))]
    if out.exists():  # it was stopped half-way, or before it was evaluated
        verb.append("--resume")
    machine = ["--threads", str(options.threads)]
    began = time.monotonic()
    trained = filbert(verb + machine, quiet=options.quiet)
    seconds = time.monotonic() - began
    verb = ["evaluate", str(out), "--data", str(scored), *reading_options(read), "--worst", "0"]
    evaluated = filbert(verb + machine, quiet=options.quiet)
    return {
        "task": name,
        "seed": seed,
        "rows": evaluated["rows"],
        "scores": {metric: evaluated["scores"][metric] for metric in task.metrics},
        "last_epoch": last_epoch(out, task.metrics[0]) if task.is_dev else None,
        "best_step": trained["best_step"],
        "process_seconds": seconds,
        "recipe": recipe,
    }


def table(records: list[dict[str, Any]]) -> str:
    """Mean, deviation and each seed of every task's metrics, as Markdown."""
    lines = [
        "| recipe | scored on | metric | mean | sd | each seed | last epoch | minutes a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        own = sorted((r for r in records if r["task"] == name), key=lambda r: r["seed"])
        for place, metric in enumerate(task.metrics if own else ()):
            values = [100 * record["scores"][metric] for record in own]
            spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
            last = [r["last_epoch"] for r in own if r["last_epoch"] is not None]
            shown_last = f"{100 * statistics.fmean(last):.2f}" if last and not place else "-"
            minutes = statistics.median(record["process_seconds"] for record in own) / 60
            scored = f"{own[0]['rows']:,} {'dev' if task.is_dev else 'test'} rows"
            shown = f"{metric} x 100" if metric in CORRELATIONS else f"{metric} %"
            each = ", ".join(f"{value:.2f}" for value in values)
            lines.append(
                f"| {name} | {scored} | {shown} | **{statistics.fmean(values):.2f}** | {spread}"
                f" | {each} | {shown_last} | {minutes:.1f} |"
            )
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, default=DEFAULT_DATA, help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs/scores"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run (all)")
    parser.add_argument("--random", action="store_true", help="start from random weights")
    parser.add_argument("--keep", action="store_true", help="keep the trained bundles (90 MB each)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(arguments)


def folder_of(name: str, recipe: dict[str, Any], seed: int | str, options: Any) -> Path:
    """The folder of a run. Its name follows the recipe's values: another recipe is another run."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    start = "-random" if options.random else ""
    return options.out / f"{name}{start}-{digest}-seed{seed}"


def write_tables(recipes: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """Write scores.md and scores.json over all finished runs of today's recipes."""
    from finetune import describe_machine  # beside this file

    found = [
        path
        for name, recipe in recipes.items()
        for path in sorted(options.out.glob(folder_of(name, recipe, "*", options).name + ".json"))
    ]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in found]
    text = f"{table(records)}\n\n{NOTES}\n"
    (options.out / f"scores{'-random' if options.random else ''}.md").write_text(
        text, encoding="utf-8"
    )
    report = {"machine": describe_machine(options.threads), "runs": records}
    content = json.dumps(report, indent=2) + "\n"
    (options.out / f"scores{'-random' if options.random else ''}.json").write_text(
        content, encoding="utf-8"
    )
    return text


def main() -> None:
    """Do the runs that are missing; write the tables after each."""
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    recipes = {name: read_recipe(ROOT / "recipes" / f"{name}.toml") for name in TASKS}
    for name in options.only:
        for seed in range(options.seeds):
            out = folder_of(name, recipes[name], seed, options)
            result = out.with_suffix(".json")
            if result.exists():
                continue
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            record = run_once(name, seed, recipes[name], options, out)
            part = result.with_suffix(".part")
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            part.replace(result)
            if not options.keep:
                shutil.rmtree(out)
            write_tables(recipes, options)
    print(write_tables(recipes, options))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
