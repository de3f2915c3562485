"""`filbert benchmark` on tiny models: counts by hand, stages that add up, arrivals, peers that are
held against filbert's own numbers, and what is left out is told."""

from __future__ import annotations

import json
import os
import threading
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert import load
from filbert.errors import FilbertError, UsageError
from filbert.infer import benchmark as bench
from filbert.infer import benchmark_measure as measure
from filbert.infer import benchmark_memory, benchmark_peers, overlap
from filbert.infer.benchmark_options import PEERS, BenchmarkOptions
from filbert.infer.benchmark_picture import as_markdown, draw
from filbert.infer.export import export
from filbert.infer.export_options import ExportOptions
from filbert.model.native_library import library, units
from tests.tiny_bundle import tiny_bundle, tiny_encoder

TEXTS = ["free prize call now", "lunch at home", "the river bank", "it", "i like the bank!"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("benchmark") / "bundle")


@pytest.fixture
def texts(tmp_path: Path) -> str:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    return str(tmp_path / "texts.txt")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ceiling in no time, and no process for the memory."""
    monkeypatch.setattr(measure, "ceiling", lambda *_: {"a guess": 100.0})
    sizes = {"libraries": 1, "loaded": 2, "peak": 3}
    monkeypatch.setattr(bench.benchmark_memory, "measure", lambda *_, **__: sizes)


def options(bundle: Path | str, data: str, **changes: Any) -> BenchmarkOptions:
    small = {"rounds": 2, "single": 3, "rate": 2000.0, "device": "cpu", "peers": "none"}
    return BenchmarkOptions(bundle=str(bundle), data=data, **{**small, **changes})


def test_a_report_of_filbert_alone(classifier: Path, texts: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = bench.benchmark(options(classifier, texts, out=str(out)))
    assert list(report["arms"]) == ["filbert"]
    arm = report["arms"]["filbert"]
    assert report["rows"] == 5 and len(arm["seconds"]) == 2
    tokens = load(classifier).tokenizer(TEXTS)["input_ids"]
    assert report["tokens"] == sum(map(len, tokens))
    assert min(report["stages"].values()) > 0
    assert arm["one_by_one_ms"]["p50"] <= arm["one_by_one_ms"]["p99"]
    assert arm["filbert_is_faster"]["median"] == 1.0
    assert json.loads((out / "benchmark.json").read_text("utf-8")) == report
    assert "| filbert | packed |" in (out / "benchmark.md").read_text("utf-8")
    xml.fromstring((out / "benchmark.svg").read_text("utf-8"))
    with pytest.raises(UsageError, match="--overwrite"):
        bench.benchmark(options(classifier, texts, out=str(out)))


def test_stages_count_what_went_through_the_encoder(classifier: Path) -> None:
    predictor = load(classifier, device="cpu", precision="float32")
    with measure.staged(predictor) as stages:
        answers = predictor(TEXTS)
    sizes = np.array([len(ids) for ids in predictor.tokenizer(TEXTS)["input_ids"]])
    assert (stages.tokens, stages.sequences) == (sizes.sum(), 5)
    assert stages.squares == (sizes**2).sum() and stages.first_only
    assert stages.pre > 0 and stages.core > 0 and stages.post > 0
    assert stages.whole == pytest.approx(stages.pre + stages.core + stages.post)
    assert predictor(TEXTS) == answers  # nothing of the clock is left
    assert stages.tokens == sizes.sum()
    # by hand: 2 layers, hidden 16, intermediate 24; two operations for each weight and token,
    # 4 * hidden for each pair of tokens; in the last layer first tokens alone but keys and values
    whole = 2 * (4 * 16 * 16 + 2 * 16 * 24)
    last = 2 * 2 * 16 * 16
    first = 2 * (2 * 16 * 16 + 2 * 16 * 24)
    wanted = (whole + last) * sizes.sum() + first * 5 + 64 * ((sizes**2).sum() + sizes.sum())
    assert measure.operations(predictor.model, stages) == wanted


def test_stages_of_many_texts_are_those_of_one_worker(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two workers answer blocks of 256 rows, stages of one would be counted to the other."""
    monkeypatch.setattr(overlap, "serves", lambda encoder: True)
    monkeypatch.setattr(overlap.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    predictor = load(classifier, device="cpu", precision="float32")
    seen: set[int] = set()
    predictor.model.base_model.register_forward_pre_hook(lambda *_: seen.add(threading.get_ident()))
    rows, began = TEXTS * 120, time.perf_counter()
    with measure.staged(predictor) as stages:
        predictor(rows)
    taken = time.perf_counter() - began
    assert seen == {threading.get_ident()}
    assert min(stages.pre, stages.core, stages.post) >= 0
    assert stages.pre + stages.core + stages.post <= taken and stages.sequences == 600
    seen.clear()
    predictor(rows)
    assert len(seen - {threading.get_ident()}) == len(seen) > 0  # workers again


def test_timed_rounds_have_no_hooks_and_know_no_words(
    classifier: Path, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load(classifier, device="cpu", precision="float32")
    found: list[tuple[int, bool, int]] = []
    clocked = measure.clocked

    def watched(*given: Any) -> None:
        encoder, tokenizer = predictor.model.base_model, predictor.tokenizer
        hooks = len(encoder._forward_hooks) + len(encoder._forward_pre_hooks)
        found.append((hooks, "encode_flat" in vars(tokenizer), len(tokenizer._known._ids)))
        clocked(*given)

    monkeypatch.setattr(measure, "clocked", watched)
    arms = [bench.our_arm(predictor)]
    seen = bench.run(
        arms, predictor, TEXTS, options(classifier, texts), threads=1, say=lambda text: None
    )
    assert found == [(0, False, 0)] * 2
    assert predictor.tokenizer._known._ids  # what `forget_words` empties is in use
    assert len(seen.stages) == 2 and min(one.whole for one in seen.stages) > 0


@pytest.mark.skipif(isinstance(library(), str), reason=f"no native encoder here: {library()}")
def test_int8_is_measured(classifier: Path, texts: str) -> None:
    report = bench.benchmark(options(classifier, texts, precision="int8"))
    assert report["precision"] == "int8" and report["path"] == f"native encoder ({units()})"
    assert report["arms"]["filbert"]["share_of_ceiling"]["median"] > 0


def test_the_core_is_that_of_predict(
    classifier: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores: list[str] = []
    monkeypatch.setattr(
        bench.benchmark_memory, "measure", lambda *_, **machine: cores.append(machine["core"])
    )
    report = bench.benchmark(options(classifier, texts, core="torch"))
    assert report["path"].startswith("PyTorch: ") and cores == ["torch"]
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    out = tmp_path / "onnx"
    export(ExportOptions(bundle=str(classifier), out=str(out), format="onnx"))
    report = bench.benchmark(options(out, texts, core="onnxruntime"))
    assert report["path"] == "onnxruntime" and report["precision"] == "float32"
    assert min(report["stages"].values()) > 0 and report["tokens"] > 0
    assert report["gflop"] is None and "| filbert | packed |" in as_markdown(report)
    with pytest.raises(UsageError, match="precision int8: the core onnxruntime"):
        bench.benchmark(options(out, texts, core="onnxruntime", precision="int8"))


@pytest.mark.parametrize(
    ("peer", "task"),
    [
        ("transformers", "pair"),
        ("sentence_transformers", "pair"),
        ("onnxruntime", "pair"),
        ("onnxruntime", "embed"),
        ("openvino", "embed"),
        ("ctranslate2", "pair"),
        ("ctranslate2", "embed"),
    ],
)
def test_peers_compute_the_same(peer: str, task: str, tmp_path: Path) -> None:
    pytest.importorskip(peer)
    rows: list[Any] = TEXTS
    folder = tmp_path / "bundle"
    if task == "embed":
        tiny_encoder(folder)
        (folder / "modules.json").write_text(MODULES, "utf-8")
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
    else:
        tiny_bundle(folder, pair=True)
        rows = list(zip(TEXTS, TEXTS[::-1], strict=True))
    predictor = load(folder, device="cpu", precision="float32", threads=1)
    truth = bench.outputs(predictor, rows)
    subject = bench.subject_of(predictor, tmp_path, 1)
    arms, told = benchmark_peers.arms_of(peer.replace("_", "-"), subject)
    assert told is None and arms[0].name.endswith("float32")
    for arm in arms:
        for call in [*arm.ways.values(), arm.few]:
            found = measure.difference(call(rows), truth)
            exact = arm.name.endswith("float32")
            assert found["relative"] < (1e-5 if exact else 0.3), arm.name


MODULES = json.dumps(
    [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
)


def test_a_peer_beside_filbert(classifier: Path, texts: str) -> None:
    pytest.importorskip("transformers")
    asked = options(classifier, texts, peers="transformers,sentence-transformers")
    report = bench.benchmark(asked)
    assert "transformers float32" in report["arms"]
    assert report["arms"]["transformers float32"]["difference"]["relative"] < 1e-5
    assert report["left_out"] == ["sentence-transformers: it has no classifier of single texts"]
    assert "left out: sentence-transformers" in as_markdown(report)
    assert draw(report).count("transformers float32") == 3


def test_a_peer_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_peers.importlib.util, "find_spec", lambda name: None)
    arms, told = benchmark_peers.arms_of("openvino", None)  # type: ignore[arg-type]
    assert arms == [] and told == "openvino: the package openvino is not installed"


def test_a_peer_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Any) -> Any:
        raise RuntimeError("no such\noperator")

    monkeypatch.setitem(benchmark_peers.BUILDERS, "transformers", broken)
    arms, told = benchmark_peers.arms_of("transformers", None)  # type: ignore[arg-type]
    assert arms == [] and told is not None and "RuntimeError: no such operator" in told


def test_a_wrong_answer_shows() -> None:
    truth = np.array([[3.0, 4.0]], np.float32)
    found = measure.difference(np.array([[3.0, 4.5]], np.float32), truth)
    assert found == {"largest": 0.5, "relative": 0.1}


def test_arms_of_other_shapes_are_left_out() -> None:
    arms = [
        measure.Arm("good", {"a": lambda rows: np.ones((len(rows), 2))}, len),
        measure.Arm("flat", {"a": lambda rows: np.ones(len(rows))}, len),
    ]
    kept, found, told = bench.checked(arms, ["x", "y"], np.ones((2, 2), np.float32))
    assert [arm.name for arm in kept] == ["good"] and found["good"]["largest"] == 0
    assert len(told) == 1 and "(2,)" in told[0]


def test_the_fastest_way_is_taken() -> None:
    ways = {"slow": lambda rows: time.sleep(0.01), "fast": lambda rows: None}
    assert measure.pick(measure.Arm("x", ways, len), ["a"]) == "fast"


class Clock:
    """Time that passes by sleeping alone, in place of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten texts within microseconds, each call 5 ms for all that wait: the first text alone, then
    the nine others. Of texts 50 ms apart none waits for another but by chance."""
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    calls: list[int] = []

    def answer(rows: Any) -> None:
        calls.append(len(rows))
        clock.sleep(0.005)

    waits, busy = measure.at_rate(answer, list(range(10)), rate=1e6, seed=0)
    arrivals = np.cumsum(np.random.Generator(np.random.PCG64(0)).exponential(1e-6, 10))
    assert calls == [1, 9]
    assert waits[0] == pytest.approx(0.005)
    assert waits[1:] == pytest.approx(arrivals[0] + 0.01 - arrivals[1:])
    assert busy == pytest.approx(0.01 / (0.01 + arrivals[0]))
    begin = clock.now
    waits, busy = measure.at_rate(answer, list(range(4)), rate=20.0, seed=0)
    assert min(waits) == pytest.approx(0.005) and max(waits) < 0.01
    assert busy == pytest.approx(0.005 * (len(calls) - 2) / (clock.now - begin))
    assert busy < 0.3


def test_arrivals_are_those_of_the_seed() -> None:
    draw_ = np.random.Generator(np.random.PCG64(3)).exponential(0.001, 2000)
    assert draw_.mean() == pytest.approx(0.001, rel=0.1)
    assert measure.rotated("abc", 4) == ["b", "c", "a"]  # type: ignore[arg-type]
    assert measure.spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert measure.percentiles([0.001] * 3) == {"p50": 1.0, "p95": 1.0, "p99": 1.0}


def test_long_texts_are_left_out_beside_peers(classifier: Path, tmp_path: Path) -> None:
    predictor = load(classifier, device="cpu", precision="float32")
    subject = bench.subject_of(predictor, tmp_path, 1)
    long = "bank " * 60
    kept, told = bench.whole_rows(subject, ["it", long])
    assert kept == ["it"] and told == ["1 texts of more than 40 tokens, which peers cut off"]
    with pytest.raises(FilbertError, match="--peers none"):
        bench.whole_rows(subject, [long])


def test_the_memory_of_a_process_of_its_own(classifier: Path) -> None:
    found = _measure(str(classifier), TEXTS, device="cpu", precision="float32")
    if found is None:
        pytest.skip("this system does not tell")
    assert 0 < found["libraries"] <= found["peak"] and found["loaded"] <= found["peak"]
    with pytest.raises(FilbertError, match="memory"):
        _measure(str(classifier / "none"), TEXTS)


_measure = benchmark_memory.measure  # before `short` puts another one in its place


def test_the_ceiling_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    multiplied: list[torch.dtype] = []
    monkeypatch.setattr(measure, "matmul_rate", lambda dtype, _: multiplied.append(dtype) or 50.0)

    class Library:
        def filbert_tile_rate(self, steps: int, loads: int) -> float:
            assert (steps, loads) == (measure.TILE_STEPS, 1)
            return 7.0

    monkeypatch.setattr(measure, "library", Library)
    cpu = torch.device("cpu")
    assert list(measure.ceiling(torch.bfloat16, cpu, 3).values()) == [50.0, 21.0]
    assert list(measure.ceiling(torch.float32, cpu, 3).values()) == [50.0]
    of_int8 = measure.ceiling(torch.int8, cpu, 3)
    assert of_int8 == measure.ceiling(torch.bfloat16, cpu, 3)
    assert all("bf16" in name for name in of_int8) and torch.int8 not in multiplied
    monkeypatch.setattr(measure, "library", lambda: "none here")
    assert list(measure.ceiling(torch.bfloat16, cpu, 3).values()) == [50.0]


def test_options() -> None:
    asked = BenchmarkOptions(bundle="x", data="y")
    assert asked.peer_names == PEERS
    assert asked.model_copy(update={"peers": "none"}).peer_names == ()
    named = BenchmarkOptions(bundle="x", data="y", peers="openvino, transformers")
    assert named.peer_names == ("transformers", "openvino")
    asked = BenchmarkOptions(bundle="x", data="y", precision="int8", core="openvino")
    assert (asked.precision, asked.core) == ("int8", "openvino")
    with pytest.raises(ValueError, match="no peer 'tensorrt'"):
        BenchmarkOptions(bundle="x", data="y", peers="tensorrt")


def test_no_row_to_answer(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n', "utf-8")
    with pytest.raises(FilbertError, match="no row that this model can answer"):
        bench.benchmark(options(classifier, str(tmp_path / "a.jsonl")))
