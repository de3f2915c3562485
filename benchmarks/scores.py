"""Fine-tune with every recipe, several seeds each, and print what they score on public data.

Why: a recipe claims a score; this is the command behind the claim. Each run is the command that a
user would type (`filbert train classify --recipe ...`, then `filbert evaluate` on the finished
bundle), in processes of its own. score_tasks.py beside this file lists what is typed.

Run (needs `pip install 'filbert[demo,tasks]'` and the data; README.md here tells its layout):

    python benchmarks/scores.py --data-root DIR --out runs/scores
    python benchmarks/scores.py --data-root DIR --out runs/scores --only sms-spam rte --seeds 1

    python benchmarks/scores.py --data-root DIR --only mini-sst2 --random   # without pre-training
    python benchmarks/scores.py --data-root DIR --only embed-stsb --base filbert-mini-en

`--random` starts from random weights of the architecture of the recipe's base, another draw with
each seed, so that the difference tells what pre-training gave (`filbert train translate` has
`--random-encoder` for it). `--base` starts from another model than the recipe's.

All of it takes a day on a laptop. Stop it at any moment: the same command goes on where it was.
A finished run leaves a JSON file in OUT and is not repeated unless its recipe changed. The table
stands in OUT/scores.md, all figures in OUT/scores.json (with --random: scores-random, with --base
scores-NAME).

What the scores mean:

- GLUE's tests are not public, so GLUE tasks are scored on their dev sets, as are SQuAD and CMRC
  2018. The kept epoch is the best one on those same rows, which flatters a little; the last epoch's
  score stands beside it.
- Test files are scored once. The epoch is picked on the dev file (WNUT-17, SciTLDR, Multi30k), or
  where there is none on a part of the training rows that is held out: a tenth, the same one in all
  runs (Banking77, AG News, MSRA, DRCD), a twentieth by a hash of the source (Tatoeba, whose test
  set is another twentieth, likewise).
- SMS spam has no split. A fifth of it is set aside as its test by `split_holdout` with seed 0, the
  same in all runs; the rest is treated as the training file of the tasks above.
- The model that answer-cmrc gives is scored on the test questions of DRCD too, whose training file
  is not at hand; answer-drcd trains on DRCD's dev questions instead.
- few-shot: 8 rows a class, drawn anew with each seed; nothing picks a checkpoint (few-shot-sst2 is
  given the dev file as its test).
- embed-untouched: the vectors of the base as it comes (one step whose learning rate is nil).
- distil-sst2: one teacher for all seeds, the run of the recipe sst2 with seed 0;
  distil-sst2-alone has as many steps without it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from score_tasks import TASKS, Files, Task  # beside this file

from filbert.train.options import read_recipe

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_DATA = ROOT.parent / "shared" / "data"
HUNDREDS = {"bleu", "chrf"}  # of 100 already
CORRELATIONS = {"mcc", "pearson", "spearman"}  # shown times 100, as GLUE does
NOTES = """\
GLUE, SQuAD, CMRC: dev sets; the kept epoch is the best on the same rows ("last epoch": without that
choice). Others: test rows that picked nothing. MRPC's training file is one row short of the
official 3,668. AG News: 55 of the 10,001 training rows share their first 60 characters with a test
row."""


def random_base(name: str, seed: int, folder: Path) -> Path:
    """A folder with the architecture and the vocabulary of a model, and random weights."""
    import torch

    from filbert.bundle import open_bundle

    out = folder / f"random-{Path(name).name}-{seed}"
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
        "summary_column",
        "source_column",
        "target_column",
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


def files_of(task: Task, recipe: dict[str, Any], options: argparse.Namespace) -> Files:
    """The files of a task, all there; those that have to be made are made."""
    files = {option: options.data_root / name for option, name in task.files.items()}
    for path in (*files.values(), *(options.data_root / name for name in task.also.values())):
        if not path.is_file():
            raise SystemExit(f"no file {path}: give the folder of the data with --data-root")
    return task.prepare(files, options.out, recipe) if task.prepare else files


def train_verb(task: Task, recipe: Path, files: Files, *, seed: int, out: Path) -> list[str]:
    """The command that a user would type, without what this script changes."""
    verb = ["train", task.verb, "--recipe", str(recipe)]
    for option, path in files.items():
        verb += ["--" + option.replace("_", "-"), str(path)]
    verb += [*task.typed, "--seed", str(seed), "--out", str(out)]
    if out.exists():  # it was stopped half-way, or before it was evaluated
        verb.append("--resume")
    return verb


def recipe_file(name: str) -> Path:
    """Where the recipe of a task stands."""
    return ROOT / "recipes" / f"{TASKS[name].recipe or name}.toml"


def teacher_of(name: str, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The finished bundle of another task, its seed 0, and its scores; trained if need be."""
    task, recipe = TASKS[name], read_recipe(recipe_file(name))
    out = options.out / f"teacher-{name}-{digest_of(recipe)}"
    verb = train_verb(task, recipe_file(name), files_of(task, recipe, options), seed=0, out=out)
    trained = filbert([*verb, "--threads", str(options.threads)], quiet=options.quiet)
    return out, trained["scores"]


def run_once(
    name: str, seed: int, recipe: dict[str, Any], options: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """Train with one seed and evaluate; the record that is kept as JSON."""
    task = TASKS[name]
    machine = ["--threads", str(options.threads)]
    files = files_of(task, recipe, options)
    read = recipe if name != "sms-spam" else {**recipe, "encoding": "utf-8"}  # as it was made
    verb = train_verb(task, recipe_file(name), files, seed=seed, out=out)
    verb += ["--encoding", read.get("encoding", "utf-8")]
    teacher: dict[str, Any] = {}
    if task.teacher:
        folder, teacher = teacher_of(task.teacher, options)
        verb += ["--teacher", str(folder)]
    base = options.base or recipe["base"]
    if options.random and task.verb == "translate":
        verb.append("--random-encoder")
    elif options.random:
        base = str(random_base(base, seed, options.out))
    if base != recipe["base"]:
        verb += ["--base", base]
    began = time.monotonic()
    trained = filbert(verb + machine, quiet=options.quiet)
    seconds = time.monotonic() - began

    def scored(data: Path, *more: str) -> dict[str, Any]:
        verb = ["evaluate", str(out), "--data", str(data), *reading_options(read), *more]
        if task.verb in ("classify", "few-shot"):
            verb += ["--worst", "0"]
        found = filbert(verb + machine, quiet=options.quiet)
        kept = {metric: found["scores"][metric] for metric in task.metrics}
        return {"rows": found["rows"], "scores": kept}

    if task.scored not in files:  # held out by the run itself
        own = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["scores"]
        kept = {metric: trained["scores"][metric] for metric in task.metrics}
        record: dict[str, Any] = {"rows": own["rows"], "scores": kept}
    else:
        targets = files.get(f"target_{task.scored}")
        record = scored(
            files[task.scored], *(() if targets is None else ("--target-data", str(targets)))
        )
    also = {told: scored(options.data_root / file) for told, file in task.also.items()}
    if teacher:
        kept = {metric: teacher[metric] for metric in task.metrics}
        also["dev (teacher)"] = {"rows": record["rows"], "scores": kept}
    return {
        "task": name,
        "seed": seed,
        **record,
        **({"also": also} if also else {}),
        "last_epoch": last_epoch(out, task.metrics[0]) if task.is_dev else None,
        "best_step": trained["best_step"],
        "steps": trained["steps"],
        "process_seconds": seconds,
        "base": base,
        "recipe": recipe,
        "typed": task.typed,
    }


def rows_of(name: str, records: list[dict[str, Any]], scored: str) -> list[str]:
    """The lines of one task in the table. `scored`: on what, in words."""
    lines = []
    for place, metric in enumerate(TASKS[name].metrics):
        factor = 1 if metric in HUNDREDS else 100
        values = [factor * record["scores"][metric] for record in records]
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        last = [r["last_epoch"] for r in records if r["last_epoch"] is not None]
        shown_last = f"{factor * statistics.fmean(last):.2f}" if last and not place else "-"
        minutes = statistics.median(record["process_seconds"] for record in records) / 60
        shown = f"{metric} %"
        if metric in HUNDREDS:
            shown = metric
        elif metric in CORRELATIONS or "rouge" in metric:
            shown = f"{metric} x 100"
        each = ", ".join(f"{value:.2f}" for value in values)
        mean = statistics.fmean(values)
        lines.append(
            f"| {name} | {records[0]['rows']:,} {scored} | {shown} | **{mean:.2f}** | {spread} | "
            f"{each} | {shown_last} | {minutes:.1f} |"
        )
    return lines


def table(records: list[dict[str, Any]]) -> str:
    """Mean, deviation and each seed of every task's metrics, as Markdown."""
    lines = [
        "| recipe | scored on | metric | mean | sd | each seed | last epoch | minutes a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        own = sorted((r for r in records if r["task"] == name), key=lambda r: r["seed"])
        if not own:
            continue
        lines += rows_of(name, own, f"{'dev' if task.is_dev else 'test'} rows")
        for other in own[0].get("also", {}):
            also = [{**record, **record["also"][other], "last_epoch": None} for record in own]
            lines += rows_of(name, also, f"{other} rows")
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
    parser.add_argument("--base", help="start from this model, not from that of the recipe")
    parser.add_argument("--random", action="store_true", help="start from random weights")
    parser.add_argument("--keep", action="store_true", help="keep the trained bundles (90 MB each)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(arguments)


def digest_of(values: Any) -> str:
    """A short name of values: other values, another name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def marks_of(options: argparse.Namespace) -> str:
    """What sets these runs apart from those of the recipes as they are, for names of files."""
    base = f"-{Path(options.base).name}" if options.base else ""
    return ("-random" if options.random else "") + base


def folder_of(
    name: str, recipe: dict[str, Any], seed: int | str, options: argparse.Namespace
) -> Path:
    """The folder of a run. Its name follows the recipe's values: another recipe is another run."""
    typed = TASKS[name].typed
    digest = digest_of([recipe, *typed] if typed else recipe)
    folder: Path = options.out / f"{name}{marks_of(options)}-{digest}-seed{seed}"
    return folder


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
    report = {"machine": describe_machine(options.threads), "runs": records}
    target = options.out / f"scores{marks_of(options)}"
    Path(f"{target}.md").write_text(text, encoding="utf-8")
    Path(f"{target}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return text


def main() -> None:
    """Do the runs that are missing; write the tables after each."""
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    recipes = {name: read_recipe(recipe_file(name)) for name in TASKS}
    for name in options.only:
        for seed in range(options.seeds):
            out = folder_of(name, recipes[name], seed, options)
            result = out.parent / f"{out.name}.json"
            if result.exists():
                continue
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            record = run_once(name, seed, recipes[name], options, out)
            part = result.parent / f"{out.name}.part"
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
