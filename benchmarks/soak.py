"""Hours of mixed requests through the engine: is its memory flat, and is each answer still right?

Four clients ask at once for one text, for a few at a time, or for a stream of up to 200 with rows
that are no texts among them. Texts have 1 to 500 words of the model's vocabulary, short ones more
often; some are empty. What each text gives is computed alone at the start; every answer is held to
that.

Run:

    python benchmarks/soak.py --minutes 120 --bundle all-MiniLM-L6-v2 --json soak.json
    python benchmarks/soak.py --minutes 1 --bundle all-MiniLM-L6-v2              # a quick look

BUNDLE: a classifier, a ranker or a model of sentence vectors. After a warm-up (a tenth of the time,
at least 20 s) memory, the resident set of this process, is sampled every 10 s. Its growth from the
end of the warm-up to the end, in percent, is told twice: by a line of least squares, and by the
medians of the first and the last tenth of the samples. Exit code 1 if one of them is above 1 %, or
if an answer differs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert import load
from filbert.infer import benchmark as bench
from filbert.infer.benchmark_memory import resident
from filbert.infer.engine import Engine

TEXTS, LONGEST = 300, 500  # texts that are asked for, and words of the longest
EMPTY = ("", " ", "\n\t")
NO_TEXTS: tuple[Any, ...] = (None, 7, b"bytes", ["a", "b", "c"], {"text": "a"}, "\ud800")
CLIENTS, FEW, BULK = 4, 8, 200
EVERY, WARM, WARM_SHARE = 10.0, 20.0, 0.1  # seconds between samples; seconds and share of warm-up
MOST_GROWTH = 1.0  # percent
TOLERANCE = 0.01  # of a number, relative where it is larger than 1: precisions round by batch

Floats = NDArray[np.float64]
Samples = list[tuple[float, int]]  # seconds, bytes


@dataclass
class Counted:
    """What the clients saw. refused: rows that are no texts, and were told so; differing: answers
    that are not what the text gave alone; largest: how far an answer lay from that, at most."""

    requests: int = 0
    answers: int = 0
    refused: int = 0
    differing: int = 0
    largest: float = 0.0


# --- what is asked -------------------------------------------------------------------------------


def texts_of(words: Sequence[str], seed: int) -> list[str]:
    """`TEXTS` texts: the shortest and the longest, empty ones, and others whose numbers of words
    are drawn evenly on a logarithmic scale."""
    draw = random.Random(seed)
    count = TEXTS - len(EMPTY) - 2
    sizes = [1, LONGEST, *(round(LONGEST ** draw.random()) for _ in range(count))]
    return [*EMPTY, *(" ".join(draw.choices(words, k=size)) for size in sizes)]


def rows_of(predictor: Any, seed: int) -> list[Any]:
    """The texts, in pairs for a model of pairs."""
    vocabulary = predictor.tokenizer.get_vocab()
    texts = texts_of(sorted(word for word in vocabulary if word.isalpha()), seed)
    return list(zip(texts, reversed(texts), strict=True)) if predictor.manifest.pair else texts


def numbers(answer: dict[str, Any]) -> Floats:
    """A vector, the probability of each label, or the one number of a regression."""
    if "vector" in answer:
        return np.asarray(answer["vector"])
    return np.asarray(list(answer["scores"].values()) if "scores" in answer else [answer["score"]])


def distance(answer: dict[str, Any], known: Floats) -> float:
    """How far an answer lies from the known numbers, the largest; infinite for an error."""
    if "error" in answer:
        return math.inf
    return float((np.abs(numbers(answer) - known) / np.maximum(1, np.abs(known))).max())


# --- asking --------------------------------------------------------------------------------------


def client(
    engine: Engine, rows: list[Any], known: list[Floats], options: dict[str, Any],
    stop: threading.Event, seed: int,
) -> Counted:  # fmt: skip
    """Ask until `stop` is set."""
    draw, found = random.Random(seed), Counted()

    def one(places: list[int]) -> list[Any]:
        return [engine(rows[place], **options) for place in places]

    def few(places: list[int]) -> list[Any]:
        futures = [engine.submit(rows[place], **options) for place in places]
        return [future.result() for future in futures]

    def bulk(places: list[int]) -> list[Any]:
        given = [rows[place] if place >= 0 else draw.choice(NO_TEXTS) for place in places]
        return list(engine.stream(given, errors="answer", **options))

    kinds: list[tuple[Callable[[list[int]], list[Any]], int, int]] = [
        (one, 0, 1), (few, 0, FEW), (bulk, -len(rows) // 20, BULK),
    ]  # fmt: skip
    while not stop.is_set():
        ask, first, most = draw.choices(kinds, weights=(80, 15, 5))[0]
        places = [draw.randrange(first, len(rows)) for _ in range(draw.randint(1, most))]
        answers = ask(places)
        found.requests += 1
        for place, answer in zip(places, answers, strict=True):
            if place < 0:
                found.refused += "error" in answer
                found.differing += "error" not in answer
                continue
            apart = distance(answer, known[place])
            found.answers += 1
            found.differing += not apart <= TOLERANCE  # NaN as well
            found.largest = max(found.largest, apart)
    return found


def sampled(clients: list[Future[Counted]], seconds: float) -> Samples:
    """The memory of this process every `EVERY` seconds; ends early when a client fails."""
    samples: Samples = []
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        if wait(clients, min(EVERY, seconds - passed), FIRST_EXCEPTION).done:
            break
        samples.append((time.monotonic() - began, resident("VmRSS")))
    return samples


def soak(predictor: Any, seconds: float, seed: int) -> tuple[Counted, Samples]:
    """All clients for so many seconds: what they saw together, and the memory of this process."""
    options = {"all_scores": True} if "all_scores" in predictor.OPTIONS else {}
    rows, stop = rows_of(predictor, seed), threading.Event()
    with Engine(predictor) as engine, ThreadPoolExecutor(CLIENTS) as pool:
        known = [numbers(engine(row, **options)) for row in rows]
        try:
            clients = [
                pool.submit(client, engine, rows, known, options, stop, seed + 1 + number)
                for number in range(CLIENTS)
            ]
            samples = sampled(clients, seconds)
        finally:
            stop.set()
        return together([one.result() for one in clients]), samples


def together(counts: list[Counted]) -> Counted:
    """Sums, and the largest distance of all."""
    found = Counted()
    for one in counts:
        for name, value in asdict(one).items():
            before = getattr(found, name)
            setattr(found, name, max(before, value) if name == "largest" else before + value)
    return found


# --- the memory ----------------------------------------------------------------------------------


def warm_up(seconds: float) -> float:
    """Seconds before memory counts."""
    return max(WARM, WARM_SHARE * seconds)


def growth(samples: Samples) -> dict[str, float]:
    """Percent from the first sample to the last: of a line of least squares (`line`), and from the
    median of the first tenth to that of the last (`medians`)."""
    times, sizes = np.array(samples, np.float64).T
    slope, start = np.polyfit(times - times[0], sizes, 1)
    tenth = max(1, len(samples) // 10)
    first, last = np.median(sizes[:tenth]), np.median(sizes[-tenth:])
    return {
        "line": float(100 * slope * (times[-1] - times[0]) / start),
        "medians": float(100 * (last / first - 1)),
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--threads", type=int, help="of the CPU; all without it")
    parser.add_argument("--seed", type=int, default=0, help="of texts and requests")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    given = parser.parse_args(arguments)
    least = (WARM + 2 * EVERY) / 60
    if not given.minutes >= least:
        parser.error(f"--minutes {given.minutes:g}: warm-up and two samples take {least:.2f}")
    return given


def main() -> None:
    """Ask, measure, tell."""
    given = parse_arguments()
    predictor = load(given.bundle, threads=given.threads)
    if not bench.has_peers(predictor):
        raise SystemExit(
            f"{given.bundle}: a model of the task {predictor.manifest.task}; name a classifier, a "
            "ranker or a model of sentence vectors"
        )
    seconds, machine, path = 60 * given.minutes, bench.machine(), bench.path_of(predictor)
    threads = torch.get_num_threads()
    print(f"{machine}\n{given.bundle}: {path}, {threads} threads\n", flush=True)
    found, samples = soak(predictor, seconds, given.seed)
    kept = [sample for sample in samples if sample[0] >= warm_up(seconds)]
    grown = growth(kept)
    good = found.differing == 0 and max(grown.values()) <= MOST_GROWTH
    print(
        f"{found.requests:,} requests of {CLIENTS} clients in {seconds:,.0f} s: {found.answers:,} "
        f"answers held to those given alone, {found.differing:,} differ (largest distance "
        f"{found.largest:.1e}, tolerance {TOLERANCE:g}); {found.refused:,} rows that are no texts "
        f"refused\nmemory {kept[0][1] / 2**20:.1f} MB after the warm-up, {kept[-1][1] / 2**20:.1f} "
        f"MB at the end, {len(kept)} samples: growth {grown['line']:+.2f} % by the line, "
        f"{grown['medians']:+.2f} % by medians (at most {MOST_GROWTH:g} %): "
        f"{'good' if good else 'NOT GOOD'}"
    )
    if given.json:
        report = {
            "machine": machine, "bundle": given.bundle, "path": path, "threads": threads,
            "seconds": seconds, **asdict(found), "growth_percent": grown, "good": good,
            "samples": samples,
        }  # fmt: skip
        given.json.write_text(json.dumps(report, indent=1), "utf-8")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
