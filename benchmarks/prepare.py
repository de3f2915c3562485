"""Turn the same text into token ids with `filbert prepare` and with `datasets.map`.

Why: a claim of speed is worth something only beside a peer, on the same machine, in the same run.
Each arm works in a fresh process group; the arms alternate from round to round, so that a machine
which slows down hurts neither more; ratios are taken per round.

Run (needs `pip install 'filbert[pretrain,bench]'`, matplotlib for `--plot`):

    python benchmarks/prepare.py --corpus FILE.jsonl.xz --vocab FOLDER
    python benchmarks/prepare.py --megabytes 5 --rounds 1           # a quick look: does it work?
    python benchmarks/prepare.py --memory 50 100 250 500 1000 --plot benchmarks/prepare-memory.svg

The arms:

    datasets.map     `load_dataset("json")`, then `map(batched=True, num_proc=2)` with transformers'
                     BertTokenizerFast on whole documents, input ids alone, then `save_to_disk`
    filbert          cleaning, exact duplicates, sentences, ids, whole words, checksummed shards
    filbert-near     the same with near duplicates by MinHash (only if named by --arms)

Both read the same uncompressed JSON Lines and use the same vocabulary and number of processes.
filbert does more: the peer neither cleans nor splits sentences nor looks for duplicates. Time is
the wall time of the whole process, imports and start of the workers included; "MB/s" is the size of
the text in UTF-8 over that. "peak MB" is the largest sum of the proportional set sizes (PSS: shared
pages divided among those who share them) of the process and all its children, looked at ten times
a second. `--memory` makes corpora of these sizes (the corpus again and again, with a number that
makes each document another one) and takes the peak of `filbert` for each.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune import describe_machine, rotation

GOAL = 2.0  # times as fast as the peer
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "corpus_en.jsonl.xz"


def texts_of(corpus: Path) -> Iterator[str]:
    """The texts of a JSON Lines file, compressed or not, again and again; copies are marked."""
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(corpus.suffix, open)
    for turn in itertools.count():
        with opener(corpus, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file):
                text = json.loads(line)["text"]
                yield f"Copy {turn} of {number}.\n{text}" if turn else text


def write_corpus(corpus: Path, megabytes: float, path: Path) -> int:
    """Write about `megabytes` of text as JSON Lines; its size in bytes."""
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts_of(corpus):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size += len(text.encode())
            if size >= megabytes * 1e6:
                return size
    raise AssertionError("texts_of has no end")


# --- the worker's side ---------------------------------------------------------------------------


def with_filbert(job: dict[str, Any]) -> int:
    """Tokens written by `filbert prepare`."""
    from filbert.data.prepare import prepare
    from filbert.data.prepare_options import PrepareOptions

    options = PrepareOptions(
        corpus=[job["corpus"]],
        vocab=job["vocab"],
        out=job["out"],
        near=0.8 if job["arm"] == "filbert-near" else 0.0,
        processes=job["processes"],
    )
    return prepare(options, quiet=True).counts.tokens


def with_datasets(job: dict[str, Any]) -> int:
    """Tokens written by the peer."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(job["vocab"])

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(
            rows["text"],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return {"input_ids": encoded["input_ids"]}

    rows = datasets.load_dataset(
        "json", data_files=job["corpus"], split="train", cache_dir=f"{job['out']}-cache"
    )
    mapped = rows.map(
        encode, batched=True, num_proc=job["processes"], remove_columns=rows.column_names
    )
    mapped.save_to_disk(job["out"], num_proc=job["processes"])
    import pyarrow.compute

    return int(
        sum(
            pyarrow.compute.sum(pyarrow.compute.list_value_length(chunk)).as_py()
            for chunk in mapped.data.column("input_ids").chunks
        )
    )


ARMS = {"datasets.map": with_datasets, "filbert": with_filbert, "filbert-near": with_filbert}


# --- the parent's side ---------------------------------------------------------------------------


def proportional_set(process: int) -> int:
    """Bytes of memory of a process and all below it (Linux)."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(map(proportional_set, map(int, (task / "children").read_text().split())))
    except OSError:  # it has just ended
        pass
    return total


def run_job(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Work in a fresh process: seconds, tokens, peak memory of it and its children."""
    job_file, result_file, log_file = folder / "job", folder / "result", folder / "log"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    with open(log_file, "wb") as log:
        start = time.perf_counter()
        worker = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(job_file), str(result_file)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        peak = 0
        while worker.poll() is None:
            peak = max(peak, proportional_set(worker.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
    if worker.returncode != 0:
        tail = log_file.read_text("utf-8", "replace")[-3000:]
        raise SystemExit(f"{job['arm']}: the worker ended with {worker.returncode}\n{tail}")
    tokens = int(result_file.read_text(encoding="utf-8"))
    return {"arm": job["arm"], "seconds": seconds, "tokens": tokens, "peak_mb": peak / 1e6}


def compare(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All rounds of all arms on one corpus."""
    size = write_corpus(options.corpus, options.megabytes, folder / "corpus.jsonl")
    runs = []
    for number in range(options.rounds):
        for arm in rotation(tuple(options.arms), number):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                job = {"arm": arm, "corpus": str(folder / "corpus.jsonl"), "out": f"{place}/out"}
                job |= {"vocab": options.vocab, "processes": options.processes}
                run = {"round": number, **run_job(job, Path(place))}
            run["mb_s"] = size / 1e6 / run["seconds"]
            runs.append(run)
            print(
                f"round {number} {arm:13} {run['seconds']:7.1f} s, {run['mb_s']:5.2f} MB/s, "
                f"{run['tokens'] / 1e6:.2f} M tokens, peak {run['peak_mb']:.0f} MB",
                flush=True,
            )
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as Markdown, ready for RESULTS.md."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        arms.setdefault(run["arm"], []).append(run)
    lines = [
        "| arm | MB/s (each round) | peak MB | x datasets.map | goal |",
        "|---|---|---|---|---|",
    ]
    peers = {run["round"]: run["mb_s"] for run in arms.get("datasets.map", [])}
    for arm, own in arms.items():
        each = ", ".join(f"{run['mb_s']:.2f}" for run in own)
        ratio = [run["mb_s"] / peers[run["round"]] for run in own if run["round"] in peers]
        factor = f"**{statistics.median(ratio):.2f}**" if ratio and arm != "datasets.map" else "-"
        lines.append(
            f"| {arm} | **{statistics.median(run['mb_s'] for run in own):.2f}** ({each}) | "
            f"{max(run['peak_mb'] for run in own):.0f} | {factor} | "
            f"{f'{GOAL:.0f}x' if arm == 'filbert' else '-'} |"
        )
    return "\n".join(lines)


def memory(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The peak of `filbert` for corpora of several sizes."""
    found = []
    for megabytes in options.memory:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            corpus = Path(place, "corpus.jsonl")
            size = write_corpus(options.corpus, megabytes, corpus)
            job = {"arm": "filbert", "corpus": str(corpus), "out": f"{place}/out"}
            job |= {"vocab": options.vocab, "processes": options.processes}
            run = {"megabytes": size / 1e6, **run_job(job, Path(place))}
        found.append(run)
        print(
            f"{run['megabytes']:6.0f} MB of text: peak {run['peak_mb']:.0f} MB, "
            f"{run['seconds']:.0f} s, {run['megabytes'] / run['seconds']:.2f} MB/s",
            flush=True,
        )
    return found


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Peak memory over the size of the corpus."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    axes.plot([run["megabytes"] for run in found], [run["peak_mb"] for run in found], "o-")
    axes.set(xlabel="text, MB", ylabel="memory of all processes, MB", ylim=(0, None))
    axes.set_title("filbert prepare: peak memory by size of the corpus")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run all arms, or one job of one arm (`--worker JOB RESULT`), and print the tables."""
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        Path(sys.argv[3]).write_text(str(ARMS[job["arm"]](job)), encoding="utf-8")
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=DEFAULT, help="JSON Lines with a text field")
    parser.add_argument("--vocab", default="all-MiniLM-L6-v2", help="tokenizer, a folder or name")
    parser.add_argument("--megabytes", type=float, default=50, help="text that the arms read (50)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--processes", type=int, default=2, help="(2)")
    parser.add_argument(
        "--arms", nargs="+", default=["datasets.map", "filbert"], choices=list(ARMS)
    )
    parser.add_argument("--memory", nargs="+", type=float, help="sizes in MB: measure memory alone")
    parser.add_argument("--plot", type=Path, help="draw the memory into this file")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if not options.corpus.is_file():
        raise SystemExit(f"no file {options.corpus}: name a JSON Lines file with --corpus")
    from filbert.sources import resolve

    options.vocab = str(resolve(options.vocab))
    machine = describe_machine(options.processes)
    print(f"{machine['date']}, commit {machine['commit']}; {machine['processor']}")
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        if options.memory:
            runs = memory(options, Path(folder))
            if options.plot:
                plot(runs, options.plot)
        else:
            runs = compare(options, Path(folder))
            print("\n" + table(runs))
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        report = {"machine": machine, "options": settings, "runs": runs}
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
