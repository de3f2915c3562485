"""Benchmark: how fast a bundle answers on this machine, where the time goes, and beside whom.

    filbert benchmark runs/reviews --data reviews.csv --out bench
    filbert benchmark all-MiniLM-L6-v2 --data texts.txt --peers onnxruntime,openvino --threads 2

Every bundle is measured for itself. Classifiers (rankers among them) and models of sentence vectors
are measured beside the peers that are installed, in the same process, taking turns; each peer's
numbers are held against those that filbert computes in float32, so that nobody is fast by being
wrong. What is measured, and how, stands in `benchmark_measure.py`; the peers in
`benchmark_peers.py`; memory in `benchmark_memory.py`; the picture in `benchmark_picture.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from filbert import __version__
from filbert.atomic import cannot_write, write_file
from filbert.errors import FilbertError, UsageError
from filbert.infer import benchmark_measure as measure
from filbert.infer import benchmark_memory
from filbert.infer.benchmark_measure import Arm, Call, Floats, Rows, Stages, Timed
from filbert.infer.benchmark_options import BenchmarkOptions
from filbert.infer.benchmark_peers import arms_of, hushed
from filbert.infer.benchmark_picture import as_markdown, draw
from filbert.infer.benchmark_subject import Subject
from filbert.infer.embed import Embedder
from filbert.infer.predict import Classifier, load
from filbert.infer.predict_file import rows_of
from filbert.model.device import native_bf16, path_on_gpu
from filbert.model.native import serves, why_not
from filbert.model.native_library import units

OURS = "filbert"
REPORT = "benchmark.json"
SHARE_OF_SINGLE = 0.5  # of what one by one manages: the rate of arrivals if none is given
PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino",
            "ctranslate2")  # fmt: skip


def benchmark(options: BenchmarkOptions, *, quiet: bool = True) -> dict[str, Any]:
    """Measure; returns the report, plain data, and writes it with a table and a picture into
    `options.out`. `quiet`: without a line on standard error for each thing done.

    Raises `UsageError` for an output folder that holds another benchmark and for a device or a
    precision that is not here, `FilbertError` for a bundle or a file that cannot be read.
    """
    if options.out is not None and (Path(options.out) / REPORT).exists() and not options.overwrite:
        raise UsageError(
            f"{options.out} holds a benchmark already; name another --out, or add --overwrite"
        )
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    predictor = _load(options, options.precision)
    rows, left_out = read_rows(predictor, options)
    threads = options.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="filbert-benchmark-") as scratch:
        arms = [our_arm(predictor)]
        truth: Floats | None = None
        if has_peers(predictor) and options.peer_names:
            subject = subject_of(predictor, Path(scratch), threads)
            rows, told = whole_rows(subject, rows)
            left_out += told
            truth = outputs(_load(options, "float32"), rows)
            for peer in options.peer_names:
                say(f"{peer}: opening")
                found, reason = arms_of(peer, subject)
                arms += found
                left_out += [reason] if reason else []
        elif options.peers is not None and options.peer_names:
            left_out.append(
                f"peers: none computes a model of the task {predictor.manifest.task} here"
            )
        arms, differences, told = checked(arms, rows, truth)
        left_out += told
        seen = run(arms, predictor, rows, options, threads=threads, say=say)
    report = {
        "bundle": options.bundle, "task": predictor.manifest.task, "data": options.data,
        "machine": machine(), "device": str(predictor.device), "threads": threads,
        "precision": measure.name_of(predictor.dtype), "reason": predictor.reason,
        "path": path_of(predictor), "rounds": options.rounds,
        **summary(seen, predictor, differences),
        "left_out": left_out,
        "memory": benchmark_memory.measure(
            options.bundle, list(rows), device=options.device, precision=options.precision,
            batch_tokens=options.batch_tokens, threads=threads, core=options.core,
        ),
    }  # fmt: skip
    if options.out is not None:
        write(Path(options.out), report)
    return report


def _load(options: BenchmarkOptions, precision: str) -> Any:
    return load(options.bundle, device=options.device, precision=precision,
                batch_tokens=options.batch_tokens, threads=options.threads,
                core=options.core)  # fmt: skip


def write(out: Path, report: dict[str, Any]) -> None:
    """benchmark.json, benchmark.md and benchmark.svg in `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "benchmark.md", as_markdown(report) + "\n")
        write_file(out / "benchmark.svg", draw(report))
        write_file(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise cannot_write(out, error) from error


# --- what is answered ----------------------------------------------------------------------------


def read_rows(predictor: Any, options: BenchmarkOptions) -> tuple[list[Any], list[str]]:
    """The first rows of the file that the predictor can answer, and what was left out, in words."""
    if options.pair_column is not None and not predictor.manifest.pair:
        raise UsageError(f"--pair-column {options.pair_column}: this model takes one text")
    found = list(islice(_rows(predictor, options), options.limit))
    rows = [row for row in found if predictor.problem(row) is None]
    if not rows:
        raise FilbertError(
            f"{options.data}: no row that this model can answer; the first: "
            f"{predictor.problem(found[0]) if found else 'there is none'}"
        )
    lost = len(found) - len(rows)
    return rows, [f"{lost:,} rows that this model cannot answer"] if lost else []


def _rows(predictor: Any, options: BenchmarkOptions) -> Iterator[Any]:
    reading = {name: getattr(options, name)
               for name in ("text_column", "format", "encoding", "header")}  # fmt: skip
    pairs = predictor.manifest.pair
    for _, text, other in rows_of(
        predictor, options.data, pair_column=options.pair_column, **reading
    ):
        yield (text, other) if pairs else text


def whole_rows(subject: Subject, rows: Rows) -> tuple[list[Any], list[str]]:
    """Rows that one window holds: peers cut off what is longer, which would be less work."""
    if subject.settings is not None:  # filbert cuts off as well
        return list(rows), []
    whole = Tokenizer.from_str(subject.tokenizer.to_str())
    whole.no_truncation()
    sizes = [len(item) for item in whole.encode_batch_fast(list(rows))]
    kept = [row for row, size in zip(rows, sizes, strict=True) if size <= subject.max_length]
    if not kept:
        raise FilbertError(
            f"all texts have more than {subject.max_length} tokens, where peers cut them off and "
            "filbert reads on; add --peers none"
        )
    lost = len(rows) - len(kept)
    told = f"{lost:,} texts of more than {subject.max_length} tokens, which peers cut off"
    return kept, [told] if lost else []


# --- who answers ---------------------------------------------------------------------------------


def has_peers(predictor: Any) -> bool:
    """Whether there are peers for a predictor: text to logits or to vectors."""
    return isinstance(predictor, Classifier | Embedder)


def our_arm(predictor: Any, name: str = OURS) -> Arm:
    """filbert: whole answers; of a model of vectors the vectors."""
    call: Call = predictor.vectors if isinstance(predictor, Embedder) else predictor.answer_rows
    found = (lambda rows: outputs(predictor, rows)) if has_peers(predictor) else None
    return Arm(name, {"packed": call}, call, found)


def outputs(predictor: Any, rows: Rows) -> Floats:
    """(rows, d) float32: logits, or vectors."""
    if isinstance(predictor, Embedder):
        return predictor.vectors(rows)
    found: Floats = predictor.logits(*predictor.split(rows))
    return found


def subject_of(predictor: Any, scratch: Path, threads: int) -> Subject:
    """The bundle as its peers see it."""
    settings = predictor.settings if isinstance(predictor, Embedder) else None
    length = predictor.manifest.max_length if settings is None else settings.max_length
    assert length is not None  # an Embedder's settings have one
    predictor.tokenizer.save_pretrained(scratch / "tokenizer")
    tokenizer = Tokenizer.from_file(str(scratch / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return Subject(
        predictor.folder, predictor.model.base_model.config, predictor.manifest.pair, length,
        settings, tokenizer, scratch, predictor.device, threads,
        native_bf16(predictor.device)[0],
    )  # fmt: skip


def checked(
    arms: list[Arm], rows: Rows, truth: Floats | None
) -> tuple[list[Arm], dict[str, dict[str, float]], list[str]]:
    """The arms that answer, how far each lies from filbert in float32, and those that fail."""
    if truth is None:
        return arms, {}, []
    kept, found, told = [], {}, []
    for arm in arms:
        try:
            with hushed():
                values = np.asarray((arm.outputs or next(iter(arm.ways.values())))(rows))
                if values.shape != truth.shape:
                    raise FilbertError(f"answers {values.shape} where {truth.shape} is expected")
        except Exception as error:
            if arm.name == OURS:
                raise
            words = " ".join(str(error).split())[:300]
            told.append(f"{arm.name} fails on these texts: {type(error).__name__}: {words}")
            continue
        kept.append(arm)
        found[arm.name] = measure.difference(values, truth)
    return kept, found, told


# --- the rounds ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Seen:
    """All that was measured: arms, stages of each round, rates of the machine of each round."""

    arms: dict[str, Timed]
    stages: list[Stages]
    rates: list[dict[str, float]]
    rate: float
    rows: int


def run(
    arms: list[Arm], predictor: Any, rows: Rows, options: BenchmarkOptions, *, threads: int,
    say: Any,
) -> Seen:  # fmt: skip
    """Warm up, choose each arm's way, then the rounds; arms take turns in each of them. All texts
    are new to the tokenizer whenever they are answered at once: peers remember no words."""
    by_name = {arm.name: arm for arm in arms}
    seen: dict[str, Timed] = {}
    few = measure.spread(rows, options.single)
    with hushed():
        for arm in arms:
            seen[arm.name] = Timed(measure.pick(arm, rows))
            arm.ways[seen[arm.name].way](rows)  # some prepare themselves for each shape of a batch
            for row in few[:5]:
                arm.few([row])
        ours = [measure.seconds_of(by_name[OURS].few, [row]) for row in few]
        rate = options.rate or SHARE_OF_SINGLE / statistics.median(ours)
        stages, rates = [], []
        for turn in range(options.rounds):
            say(f"round {turn + 1} of {options.rounds}")
            rates.append(measure.ceiling(predictor.dtype, predictor.device, threads))
            order = measure.rotated(list(by_name), turn)
            predictor.tokenizer.forget_words()
            for name in order:
                measure.clocked(seen[name], by_name[name].ways[seen[name].way], rows)
            predictor.tokenizer.forget_words()
            with measure.staged(predictor) as staged:
                by_name[OURS].ways[seen[OURS].way](rows)
            stages.append(staged)
            for name in order:
                call = by_name[name].few
                seen[name].singles += [measure.seconds_of(call, [row]) for row in few]
            for name in order:
                waits, busy = measure.at_rate(
                    by_name[name].few, few, rate=rate, seed=options.seed + turn
                )
                seen[name].waits += waits
                seen[name].busy.append(busy)
    return Seen(seen, stages, rates, rate, len(rows))


def summary(seen: Seen, predictor: Any, differences: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The figures of the report: of the texts, the ceiling, the stages and each arm."""
    tokens, work = seen.stages[0].tokens, measure.operations(predictor.model, seen.stages[0])
    by = max(seen.rates[0], key=lambda name: statistics.median(rate[name] for rate in seen.rates))
    ours = seen.arms[OURS]
    arms: dict[str, Any] = {}
    for name, timed in seen.arms.items():
        shares = [
            work / taken / 1e9 / rate[by]
            for taken, rate in zip(timed.seconds, seen.rates, strict=True)
        ] if work else []  # fmt: skip
        arms[name] = {
            "way": timed.way,
            "seconds": timed.seconds,
            "texts_per_second": measure.quartiles([seen.rows / taken for taken in timed.seconds]),
            "tokens_per_second": measure.quartiles([tokens / taken for taken in timed.seconds]),
            "filbert_is_faster": _ratios(timed.seconds, ours.seconds),
            "processor_seconds": timed.processor,
            "filbert_is_faster_processor": _ratios(timed.processor, ours.processor),
            "share_of_ceiling": measure.quartiles(shares) if shares else None,
            "one_by_one_ms": measure.percentiles(timed.singles),
            "at_rate_ms": measure.percentiles(timed.waits),
            "busy_at_rate": statistics.median(timed.busy),
            "difference": differences.get(name),
        }
    return {
        "rows": seen.rows, "tokens": tokens, "rate": seen.rate,
        "gflop": None if work is None else work / 1e9,
        "ceiling": {
            "by": by, "gflops": statistics.median(rate[by] for rate in seen.rates),
            "each_round": seen.rates,
        },
        "stages": {name: statistics.median(getattr(one, name) for one in seen.stages)
                   for name in ("pre", "core", "post")},
        "arms": arms,
    }  # fmt: skip


def _ratios(theirs: list[float], ours: list[float]) -> dict[str, float]:
    return measure.quartiles([a / max(b, 1e-9) for a, b in zip(theirs, ours, strict=True)])


# --- where it was measured -----------------------------------------------------------------------


def path_of(predictor: Any) -> str:
    """What computes the encoder, in words."""
    encoder, dtype = predictor.model.base_model, measure.name_of(predictor.dtype)
    if (call := measure.of_another_core(predictor.model)) is not None:
        return call.runtime.name
    if predictor.device.type == "cuda":
        return f"PyTorch: {path_on_gpu(predictor.model)}"
    float32 = dtype == "float32"
    if serves(encoder):
        return f"native encoder ({'AVX-512' if float32 else units()})"
    reason = why_not(encoder, float32=float32)
    return f"PyTorch: {reason or 'the native encoder is switched off'}"


def machine() -> dict[str, Any]:
    """Date, processor, system and versions: what a figure depends on."""
    processor, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
        processor = named[1].strip() if named else processor
    versions = {"filbert": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": processor, "system": platform.platform(), "versions": versions,
    }  # fmt: skip
