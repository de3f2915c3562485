"""Fine-tune the same weights on the same rows with filbert and with transformers' Trainer.

Why: a claim of speed is worth something only beside a peer, on the same machine, in the same run;
this is that run. Each arm trains in a fresh process; the order of the arms rotates from seed to
seed, so that a machine which slows down hurts none more than another; ratios are taken per seed.

Run (needs `pip install 'filbert[demo,bench]'`):

    python benchmarks/finetune.py --data DIR              # DIR holds SST-2's train.tsv and dev.tsv
    python benchmarks/finetune.py --data DIR --rows 500 --seeds 1      # a quick look: does it work?

The arms:

    trainer-float32   the Trainer's defaults: float32, 32 sentences a batch, dynamic padding
    trainer-bf16      the Trainer with `bf16=True` and batches grouped by length
    filbert           `filbert.train.classify.train_classify`, precision chosen by itself
    filbert-float32   the same in float32 (only if named by --arms)

All arms share weights, rows, epochs, learning rate and its schedule, weight decay, clipping,
dropout and threads. filbert counts a batch in tokens, not in sentences: its budget is 32 times the
mean length of a sentence, so an epoch takes (nearly) as many steps in each arm; steps are printed.

"train" is the time from texts in memory to trained weights: tokenising, building the trainer and
all steps; not start-up, reading and loading the weights, nor evaluation: the Trainer neither logs,
saves, reports nor evaluates meanwhile, and its dev score is taken afterwards; of filbert the steps
are counted, with their log, and not the dev score after the epoch and the checkpoint of the best.
"process" is the wall time of the whole process, start-up to dev score (and, for filbert, the
finished bundle and its report).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

ARMS = ("trainer-float32", "trainer-bf16", "filbert")
GOALS = {"trainer-float32": 4.0, "trainer-bf16": 2.0}  # how much faster filbert wants to be
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue" / "SST-2"


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run of one arm: all that a worker process needs to know."""

    arm: str
    seed: int
    train: str
    dev: str
    base: str
    out: str
    rows: int
    epochs: float
    lr: float
    warmup: float
    weight_decay: float
    clip: float
    batch_size: int
    batch_tokens: int
    max_length: int
    threads: int


def read_sst2(path: str, rows: int | None = None) -> tuple[list[str], list[int]]:
    """The first `rows` sentences and 0/1 labels of a GLUE SST-2 file (tab-separated, header)."""
    with open(path, encoding="utf-8") as file:
        next(file)
        pairs = [line.rstrip("\n").rsplit("\t", 1) for line in file if line.strip()]
    pairs = pairs[:rows]
    return [text for text, _ in pairs], [int(label) for _, label in pairs]


# --- the worker's side ---------------------------------------------------------------------------


def train_with_trainer(job: Job) -> dict[str, Any]:
    """The peer: seconds of tokenising and training, steps, and accuracy on the dev rows."""
    import numpy as np
    import torch
    import transformers

    bf16 = job.arm == "trainer-bf16"
    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    transformers.set_seed(job.seed)
    texts, labels = read_sst2(job.train, job.rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        job.base, num_labels=2, dtype=torch.float32
    )

    def encode(sentences: list[str], gold: list[int]) -> list[dict[str, Any]]:
        # One call for all rows, and plain lists: the fastest way to feed the Trainer.
        encoded = tokenizer(sentences, truncation=True, max_length=job.max_length)
        names, columns = [*encoded, "labels"], [*encoded.values(), gold]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    start = time.perf_counter()
    arguments = transformers.TrainingArguments(
        output_dir=job.out,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        learning_rate=job.lr,
        lr_scheduler_type="linear",
        warmup_steps=job.warmup,  # below 1: a share of all steps
        weight_decay=job.weight_decay,
        max_grad_norm=job.clip,
        seed=job.seed,
        bf16=bf16,
        train_sampling_strategy="group_by_length" if bf16 else "random",
        use_cpu=True,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,  # there is no GPU to pin for; spares a warning
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=encode(texts, labels),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    output = trainer.train()
    seconds = time.perf_counter() - start

    dev_texts, dev_labels = read_sst2(job.dev)
    # Grouped by length, the Trainer predicts in another order than the rows': its labels follow it.
    told = trainer.predict(encode(dev_texts, dev_labels))
    right = (np.asarray(told.predictions).argmax(-1) == np.asarray(told.label_ids)).mean()
    return {"train_seconds": seconds, "steps": output.global_step, "accuracy": float(right)}


def train_with_filbert(job: Job) -> dict[str, Any]:
    """filbert through its public function; the same figures as for the peer."""
    from filbert.tasks import classify
    from filbert.text import BertTokenizer
    from filbert.train.classify import train_classify
    from filbert.train.options import ClassifyOptions, parse_options

    same = {"base", "dev", "out", "epochs", "batch_tokens", "lr", "warmup", "weight_decay"}
    same |= {"clip", "seed", "max_length", "threads"}
    values = {name: getattr(job, name) for name in same} | {
        "data": job.train,
        "limit": job.rows,
        "windows": False,
        "text_column": "sentence",
        "label_column": "label",
        "schedule": "linear",
        "device": "cpu",
        "precision": "float32" if job.arm == "filbert-float32" else "auto",
    }
    result = train_classify(parse_options(values, ClassifyOptions, source=__file__), quiet=True)
    # The bundle tells the time of the steps; that of tokenising is taken by doing it once more.
    bundle = json.loads((Path(job.out) / "filbert.json").read_text(encoding="utf-8"))
    loop = bundle["provenance"]["step_seconds"]
    texts, _ = read_sst2(job.train, job.rows)
    start = time.perf_counter()
    tokenizer = BertTokenizer.from_pretrained(job.base)
    classify.encode(tokenizer, texts, None, max_length=job.max_length, windows=False, stride=0)
    seconds = time.perf_counter() - start + loop
    score = result.scores["accuracy"]
    return {"train_seconds": seconds, "steps": result.steps, "accuracy": score}


WORKERS = {
    "trainer-float32": train_with_trainer,
    "trainer-bf16": train_with_trainer,
    "filbert": train_with_filbert,
    "filbert-float32": train_with_filbert,
}


# --- the parent's side ---------------------------------------------------------------------------


def run_job(job: Job, folder: Path) -> dict[str, Any]:
    """Train in a fresh process; its figures, seconds (wall, CPU) and peak memory (MB).

    Raises `SystemExit` with the end of the worker's output if it failed.
    """
    job_file, result_file, log_file = folder / "job", folder / "result", folder / "log"
    job_file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    load = os.getloadavg()[0]
    with open(log_file, "wb") as log:
        start = time.perf_counter()
        worker = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(job_file), str(result_file)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
        )
        try:
            # wait4 and not wait: it alone gives the memory of exactly this child.
            _, status, usage = os.wait4(worker.pid, 0)
        except BaseException:
            worker.kill()
            raise
        seconds = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        tail = log_file.read_text("utf-8", "replace")[-3000:]
        raise SystemExit(f"{job.arm}, seed {job.seed}: the worker ended with {code}\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    figures: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    return {
        "arm": job.arm,
        "seed": job.seed,
        **figures,
        "ms_per_step": 1000 * figures["train_seconds"] / figures["steps"],
        "process_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * unit / 1e6,
        "load_before": load,
    }


def rotation(arms: tuple[str, ...], turn: int) -> list[str]:
    """The arms in the order of this turn: each stands in each place equally often."""
    turn %= len(arms)
    return [*arms[turn:], *arms[:turn]]


def mean_tokens(base: Path, texts: list[str], max_length: int) -> float:
    """Mean number of real tokens in a text, [CLS] and [SEP] included, cut at `max_length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return statistics.fmean(min(len(item), max_length) for item in tokenizer.encode_batch(texts))


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, what it computes bf16 with, versions and commit: what a figure depends on."""
    processor, flags = platform.processor() or platform.machine(), list[str]()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            processor = value.strip()
        elif name.strip() == "flags":
            flags = value.split()
    versions = {}
    for name in ("filbert", "torch", "transformers", "accelerate", "tokenizers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "(not installed)"
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": processor,
        "bf16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags],
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip() or "(no git)",
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each arm, and the arms' times over filbert's, paired seed by seed."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_arm.setdefault(run["arm"], []).append(run)
    summary: dict[str, Any] = {"arms": {}, "ratios": {}}
    for arm, own in by_arm.items():
        row = {name: [run[name] for run in own] for name in own[0] if name not in ("arm", "seed")}
        medians = ("train_seconds", "process_seconds", "ms_per_step", "steps")
        summary["arms"][arm] = {
            **{name: statistics.median(row[name]) for name in medians},
            "accuracy": statistics.fmean(row["accuracy"]),
            "peak_mb": max(row["peak_mb"]),
            "each": row,
        }
        if arm != "filbert" and "filbert" in by_arm:
            summary["ratios"][arm] = {
                name: [
                    peer[name] / ours[name]
                    for peer, ours in zip(own, by_arm["filbert"], strict=True)
                ]
                for name in ("train_seconds", "process_seconds")
            }
    return summary


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown, ready for RESULTS.md."""
    head = "train s (each seed) | process s | steps | ms/step | dev accuracy (each seed) | peak MB"
    lines = [f"| arm | {head} |", "|---|---|---|---|---|---|---|"]
    for arm, row in summary["arms"].items():
        seconds = ", ".join(f"{value:.1f}" for value in row["each"]["train_seconds"])
        scores = ", ".join(f"{100 * value:.2f}" for value in row["each"]["accuracy"])
        lines.append(
            f"| {arm} | **{row['train_seconds']:.1f}** ({seconds}) | {row['process_seconds']:.1f}"
            f" | {row['steps']:.0f} | {row['ms_per_step']:.1f}"
            f" | **{100 * row['accuracy']:.2f}** ({scores}) | {row['peak_mb']:.0f} |"
        )
    if summary["ratios"]:
        head = "| filbert is faster than | train (each seed) | process | goal |"
        lines += ["", head, "|---|---|---|---|"]
    for arm, ratio in summary["ratios"].items():
        each = ", ".join(f"{value:.2f}" for value in ratio["train_seconds"])
        train, process = (
            statistics.median(ratio[f"{name}_seconds"]) for name in ("train", "process")
        )
        goal = f"{GOALS[arm]:.0f}x" if arm in GOALS else "-"
        lines.append(f"| {arm} | **{train:.2f}x** ({each}) | {process:.2f}x | {goal} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with train.tsv")
    parser.add_argument("--dev", type=Path, help="dev file (DATA/dev.tsv)")
    parser.add_argument("--base", default="all-MiniLM-L6-v2", help="weights to start from")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows (the first N)")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(WORKERS))
    numbers = {"seeds": 3, "epochs": 1.0, "lr": 5e-5, "warmup": 0.1, "weight-decay": 0.01}
    numbers |= {"clip": 1.0, "batch-size": 32, "max-length": 128}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"({default})")
    parser.add_argument("--threads", type=int, default=cores, help="all cores")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Run all arms, or one job of one arm (`--worker JOB RESULT`), and print the tables."""
    if sys.argv[1:2] == ["--worker"]:
        job = Job(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        Path(sys.argv[3]).write_text(json.dumps(WORKERS[job.arm](job)), encoding="utf-8")
        return

    from filbert.sources import resolve

    options = parse_arguments()
    train, dev = options.data / "train.tsv", options.dev or options.data / "dev.tsv"
    if missing := [path for path in (train, dev) if not path.is_file()]:
        raise SystemExit(f"no file {missing[0]}: give the folder of GLUE's SST-2 with --data DIR")
    base = resolve(options.base)
    texts, _ = read_sst2(str(train), options.rows)
    mean = mean_tokens(base, texts, options.max_length)
    batch_tokens = round(options.batch_size * mean)
    machine = describe_machine(options.threads)
    print(f"{machine['date']}, commit {machine['commit']}; {machine['processor']}, ", end="")
    print(f"{machine['threads']} threads, bf16: {machine['bf16']}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print(
        f"{len(texts)} rows, {mean:.2f} tokens a row; {options.batch_size} rows or {batch_tokens}"
        f" tokens a batch; {options.epochs:g} epochs, lr {options.lr:g}, {options.seeds} seeds\n"
    )

    fields = {field.name for field in dataclasses.fields(Job)}
    common = {name: value for name, value in vars(options).items() if name in fields}
    common |= {"train": str(train), "dev": str(dev), "base": str(base)}
    common["batch_tokens"] = batch_tokens
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for arm in rotation(tuple(options.arms), seed):
            with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
                job = Job(arm=arm, seed=seed, out=f"{folder}/run", **common)
                run = run_job(job, Path(folder))
            runs.append(run)
            print(
                f"seed {seed} {arm:16} train {run['train_seconds']:7.1f} s, {run['steps']} steps,"
                f" {run['ms_per_step']:6.1f} ms each; process {run['process_seconds']:7.1f} s;"
                f" accuracy {100 * run['accuracy']:.2f} %; peak {run['peak_mb']:.0f} MB;"
                f" load before {run['load_before']:.1f}",
                flush=True,
            )

    summary = summarise(runs)
    print("\n" + tables(summary))
    if options.json:
        settings = {**vars(options), "mean_tokens": mean, "batch_tokens": batch_tokens}
        report = {"machine": machine, "options": settings, "runs": runs, "summary": summary}
        options.json.write_text(json.dumps(report, indent=2, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
