"""Memory and time of `filbert predict` over a large file: flat, and linear in tokens.

Rows are the sentences and phrases of SST-2 over and over (1 to 52 words, half of them up to 7, a
tenth over 21), a little changed so that no two are alike. A child process runs `filbert predict`;
this one samples its memory and how far its output has come, and draws both.

Run (needs `pip install 'filbert[demo]'`; DIR holds glue/SST-2):

    python benchmarks/bulk.py --data DIR --model runs/reviews --rows 1000000 --out bulk
    python benchmarks/bulk.py --data DIR --rows 20000 --out /tmp/bulk        # a quick look

Left in OUT: bulk.json, bulk.svg. Memory is the resident set of the child. `growth` is the median of
the last quarter of samples less that of the second quarter, when the libraries are in. Afterwards
the same model answers 10,000 of the rows in this process, three times, without files: the median is
the rate of the engine, and what reading, writing and starting cost is the rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import count, islice
from pathlib import Path
from typing import Any

MODEL = "all-MiniLM-L6-v2"
SAMPLE = 10_000  # rows that the engine answers alone


def write_rows(data: Path, target: Path, rows: int) -> int:
    """A file of `rows` lines; returns the words in it."""
    with open(data / "glue" / "SST-2" / "train.tsv", encoding="utf-8") as file:
        next(file)
        sentences = [line.rstrip("\n").rpartition("\t")[0] for line in file if line.strip()]
    words = 0
    with open(target, "w", encoding="utf-8") as file:
        for number in range(rows):
            text = f"{sentences[number % len(sentences)]} {number // len(sentences)}"
            words += len(text.split())
            file.write(json.dumps({"text": text}) + "\n")
    return words


def resident(process: int) -> int:
    """Bytes of the resident set; 0 once the process is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * 4096


def watched(command: list[str], partial: Path, every: float) -> list[dict[str, float]]:
    """Run a command; its seconds, memory and bytes of output, one sample after the other."""
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    child = subprocess.Popen(command)
    try:
        for turn in count(1):
            try:
                child.wait(max(0.0, began + turn * every - time.monotonic()))
                break
            except subprocess.TimeoutExpired:
                size = partial.stat().st_size if partial.is_file() else 0
                seconds = time.monotonic() - began
                samples.append({"seconds": seconds, "bytes": resident(child.pid), "written": size})
    finally:
        child.kill()  # where this process was interrupted; else it has ended
    if child.returncode:
        raise SystemExit(f"filbert predict ended with {child.returncode}")
    return samples


def engine_rate(model: str, path: Path, rows: int, threads: int) -> float:
    """Rows a second of the model alone, with `SAMPLE` rows evenly from all of them at hand."""
    from filbert import load
    from filbert.infer.benchmark import our_arm
    from filbert.infer.benchmark_measure import seconds_of

    with open(path, encoding="utf-8") as file:
        lines = islice(file, 0, None, max(1, rows // SAMPLE))
        texts = [json.loads(line)["text"] for line in lines]
    (call,) = our_arm(load(model, threads=threads)).ways.values()
    call(texts[:1000])  # warms up
    return len(texts) / statistics.median(seconds_of(call, texts) for _ in range(3))


def summary(samples: list[dict[str, float]], *, rows: int, words: int) -> dict[str, Any]:
    """Numbers of a run: rows a second, largest memory, and how much it grew."""
    working = [sample for sample in samples if sample["written"]]
    memory = [sample["bytes"] / 2**20 for sample in working]
    quarter = max(1, len(memory) // 4)
    growth = None
    if len(memory) >= 8:
        growth = statistics.median(memory[-quarter:]) - statistics.median(
            memory[quarter : 2 * quarter]
        )
    seconds = samples[-1]["seconds"] if samples else 0.0
    return {
        "rows": rows, "words": words, "seconds": seconds, "rows_per_second": rows / seconds,
        "most_mb": max(memory, default=0.0), "growth_mb": growth,
    }  # fmt: skip


def draw(samples: list[dict[str, float]], found: dict[str, Any], target: Path) -> None:
    """Memory over time, and time over what is done."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    while samples and not samples[-1]["written"]:  # the finished file has another name
        samples = samples[:-1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    seconds = [sample["seconds"] for sample in samples]
    left.plot(seconds, [sample["bytes"] / 2**20 for sample in samples])
    left.set(xlabel="seconds", ylabel="resident MB", ylim=(0, None))
    whole = max((sample["written"] for sample in samples), default=1) or 1
    done = [sample["written"] / whole * found["words"] / 1e6 for sample in samples]
    right.plot(done, seconds)
    right.set(xlabel="million words answered", ylabel="seconds", ylim=(0, None))
    figure.suptitle(f"filbert predict, {found['rows']:,} rows")
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="holds glue/SST-2")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between samples")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def main() -> None:
    """Make the rows, run, measure, draw."""
    given = parse_arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    rows, answers = given.out / "rows.jsonl", given.out / "answers.jsonl"
    words = write_rows(given.data, rows, given.rows)
    command = [sys.executable, "-m", "filbert", "predict", given.model, "--file", str(rows),
               "--out", str(answers), "--overwrite", "--threads", str(given.threads)]  # fmt: skip
    samples = watched(command, answers.with_name(answers.name + ".partial"), given.every)
    with open(answers, "rb") as file:
        lines = sum(1 for _ in file)
    if lines != given.rows:
        raise SystemExit(f"{lines:,} answers to {given.rows:,} rows")
    found = summary(samples, rows=given.rows, words=words)
    engine = engine_rate(given.model, rows, given.rows, given.threads)
    report = {
        **found, "model": given.model, "threads": given.threads,
        "engine_rows_per_second": engine, "samples": samples,
    }  # fmt: skip
    (given.out / "bulk.json").write_text(json.dumps(report, indent=1), "utf-8")
    draw(samples, found, given.out / "bulk.svg")
    answers.unlink()
    rows.unlink()
    grown = "-" if found["growth_mb"] is None else f"{found['growth_mb']:+.1f} MB"
    print(
        f"{found['rows']:,} rows in {found['seconds']:.1f} s, {found['rows_per_second']:,.0f} "
        f"rows/s, {found['rows_per_second'] / engine:.0%} of the engine alone ({engine:,.0f}); "
        f"memory {found['most_mb']:.0f} MB at most, {grown} from the second quarter to the last"
    )


if __name__ == "__main__":
    main()
