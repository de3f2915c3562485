"""The arithmetic of benchmarks/engine.py, soak.py and bulk.py, on numbers made by hand and models
that are none."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from filbert import load
from filbert.infer import benchmark as bench
from tests.tiny_bundle import VOCABULARY, tiny_bundle, tiny_encoder

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


engine, soak, bulk = script("engine"), script("soak"), script("bulk")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_scripts_import_names_that_exist(path: Path) -> None:
    # most of their imports stand in functions, where a renamed one would show hours later
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    found = [
        node
        for node in tree
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("filbert")
    ]
    for node in found:
        module = importlib.import_module(str(node.module))
        for name in node.names:
            if not hasattr(module, name.name):
                importlib.import_module(f"{node.module}.{name.name}")  # a module, or it is an error


# --- engine.py -----------------------------------------------------------------------------------


def arm(precision: str, *seconds: float) -> dict[str, Any]:
    return {"way": "w", "precision": precision, "seconds": list(seconds),
            "processor": [2 * taken for taken in seconds], "apart": {"relative": 0.0}}  # fmt: skip


def test_engine_divides_by_peers_of_the_same_precision() -> None:
    found = {
        "texts": 12, "tokens": 120, "operations": 1e9, "rates": [{"x": 10.0}] * 2, "left_out": [],
        "arms": {
            "filbert": arm("bf16", 1.0, 2.0), "filbert, int8": arm("int8", 0.5, 1.0),
            "filbert, float32": arm("float32", 8.0, 8.0), "openvino bf16": arm("bf16", 2.0, 3.0),
            "transformers bf16": arm("bf16", 4.0, 2.4),
            "onnxruntime float32": arm("float32", 16.0, 24.0),
            engine.PLAIN: arm("float32", 32.0, 40.0),
        },
    }  # fmt: skip
    rows = {line.split(" | ")[0]: line.split(" | ") for line in engine.table(found).splitlines()}
    # by hand: 2 / 1 and 2.4 / 2; 32 / 1 and 40 / 2; 16 / 8 and 24 / 8
    assert rows["| filbert"][4:7] == [
        "**1.60** (2.00, 1.20)", "**1.60** (2.00, 1.20)", "**26.00** (32.00, 20.00)",
    ]  # fmt: skip
    assert rows["| filbert, float32"][4] == "**2.50** (2.00, 3.00)"
    assert rows["| filbert, int8"][4:6] == ["-", "-"]
    assert "filbert, int8, to filbert: **2.00** (2.00, 2.00)" in rows


def test_engine_reads_the_precision_off_the_name() -> None:
    names = ("filbert", "filbert, PyTorch", "filbert, int8", "openvino bf16", engine.PLAIN)
    found = [engine.precision_of(name, "bf16") for name in names]
    assert found == ["bf16", "bf16", "int8", "bf16", "float32"]


def test_engine_forgets_words_before_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.measure, "ceiling", lambda *_: {"a guess": 100.0})
    predictor = load(sentence_model(tmp_path), device="cpu", precision="float32")
    known: list[int] = []

    def call(rows: Any) -> Any:
        known.append(len(predictor.tokenizer._known._ids))
        return predictor.vectors(rows)

    texts = ["free prize call now", "lunch at home"]
    one = engine.Arm("filbert", {"packed": call}, call, call)
    truth = predictor.vectors(texts)
    found = engine.many([one], [predictor], truth, texts, Namespace(rounds=3, threads=1))
    assert known[-3:] == [0, 0, 0] and known[-4] == 7  # the last before the rounds warms up
    assert found["arms"]["filbert"]["precision"] == "float32"
    assert found["arms"]["filbert"]["apart"]["largest"] == 0
    known.clear()
    engine.single([one], [predictor], {2: "the bank"}, Namespace(rounds=1, repeats=2))
    assert known == [0, 2, 0, 2]


def test_engine_has_transformers_as_they_come(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    predictor = load(sentence_model(tmp_path), device="cpu", precision="float32")
    (tmp_path / "scratch").mkdir()
    subject = bench.subject_of(predictor, tmp_path / "scratch", 1)
    texts = [" ".join(["bank"] * size) for size in range(1, 38)]  # a batch and a part
    found = engine.as_they_come(subject).few(texts)
    assert np.abs(found - predictor.vectors(texts)).max() < 1e-5


def sentence_model(folder: Path) -> Path:
    """A tiny model of sentence vectors: mean pooling."""
    tiny_encoder(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path,
         "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
    return folder


# --- soak.py -------------------------------------------------------------------------------------


def test_soak_growth_by_hand() -> None:
    rising = [(20.0 + 10 * n, 200 + 2 * n) for n in range(20)]  # a line from 200 to 238
    assert soak.growth(rising)["line"] == pytest.approx(19)
    # tenths of two samples: 201 and 237
    assert soak.growth(rising)["medians"] == pytest.approx(100 * 36 / 201)
    assert soak.growth([(30.0, 5), (40.0, 5)]) == pytest.approx({"line": 0, "medians": 0}, abs=1e-9)
    peak = [(float(n), 100 + 50 * (n == 10)) for n in range(21)]  # one sample in the middle
    assert soak.growth(peak) == pytest.approx({"line": 0, "medians": 0}, abs=1e-9)
    assert (soak.warm_up(60), soak.warm_up(6000)) == (20, 600)


def test_soak_asks_for_texts_of_all_lengths() -> None:
    texts = soak.texts_of(["a", "b"], seed=3)
    sizes = [len(text.split()) for text in texts]
    assert len(texts) == soak.TEXTS and texts == soak.texts_of(["a", "b"], seed=3)
    assert (min(sizes), max(sizes), sizes.count(0)) == (0, 500, 3)
    # evenly on a logarithmic scale: the middle one lies near the root of 500, which is 22
    assert 10 < sorted(sizes)[len(sizes) // 2] < 40


def test_soak_holds_answers_to_known_numbers() -> None:
    known = np.array([0.25, 0.75])
    assert soak.distance({"label": "b", "score": 0.75, "scores": {"a": 0.3, "b": 0.7}}, known) == (
        pytest.approx(0.05)
    )
    assert soak.distance({"vector": [0.25, 0.5]}, known) == 0.25
    assert soak.distance({"score": 12.0}, np.array([10.0])) == pytest.approx(0.2)  # relative
    assert soak.distance({"error": "item 3"}, known) == float("inf")


class Lengths:
    """A predictor without a model: a vector of a text's length. `off`: what it adds after 400 rows
    have been answered."""

    OPTIONS: frozenset[str] = frozenset()
    manifest = SimpleNamespace(pair=False)
    tokenizer = SimpleNamespace(get_vocab=lambda: dict.fromkeys(["one", "two", "##s", "[CLS]"], 0))

    def __init__(self, off: float = 0.0) -> None:
        self.off, self.done, self.model = off, 0, torch.nn.Linear(1, 1)

    def problem(self, row: Any) -> str | None:
        return None if isinstance(row, str) and row.isascii() else "no text"

    def answer_rows(self, rows: Sequence[str]) -> list[dict[str, Any]]:
        self.done += len(rows)
        if self.off == float("inf") and self.done > 400:
            raise RuntimeError("the model is damaged")
        off = self.off if self.done > 400 else 0.0
        return [{"vector": [len(row) / 1e4 + off]} for row in rows]


def test_soak_counts_what_clients_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY", 0.1)
    found, samples = soak.soak(Lengths(), 0.5, seed=0)
    assert found.requests > 0 and found.answers > found.requests and found.refused > 0
    assert (found.differing, found.largest) == (0, 0.0)
    # a busy machine takes fewer than every tenth of a second
    assert 1 <= len(samples) <= 6 and samples[-1][0] >= 0.5 and samples[-1][1] > 2**20
    found, _ = soak.soak(Lengths(off=0.5), 0.3, seed=0)
    assert found.differing > 0 and found.largest == pytest.approx(0.5)
    with pytest.raises(RuntimeError, match="damaged"):
        soak.soak(Lengths(off=float("inf")), 60, seed=0)


@pytest.mark.parametrize(
    ("differing", "last", "code"), [(0, 1005, 0), (0, 1020, 1), (1, 1000, 1)]
)  # fmt: skip
def test_soak_ends_with_what_it_found(
    differing: int, last: int, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    samples = [(10.0, 1), (20.5, 1000), (30.5, 1000), (40.5, (1000 + last) // 2), (50.0, last)]
    counted = soak.Counted(requests=2, answers=3, differing=differing)
    monkeypatch.setattr(soak, "soak", lambda *_: (counted, samples))
    monkeypatch.setattr(sys, "argv", ["soak.py", "--minutes", "1", "--bundle",
                                      str(tiny_bundle(tmp_path / "b")), "--threads",
                                      str(torch.get_num_threads()), "--json",
                                      str(tmp_path / "a.json")])  # fmt: skip
    with pytest.raises(SystemExit) as left:
        soak.main()
    assert left.value.code == code
    grown = json.loads((tmp_path / "a.json").read_text("utf-8"))["growth_percent"]
    assert grown["medians"] == pytest.approx((last - 1000) / 10)
    assert ("NOT GOOD" in capsys.readouterr().out) == (code == 1)


def test_soak_refuses_less_time_than_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    for minutes in ("0.5", "nan"):
        with pytest.raises(SystemExit):
            soak.parse_arguments(["--minutes", minutes, "--bundle", "x"])
        assert "warm-up and two samples take 0.67" in capsys.readouterr().err


# --- bulk.py -------------------------------------------------------------------------------------


def test_bulk_lets_the_engine_answer_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "SAMPLE", 5)
    monkeypatch.setattr("filbert.infer.benchmark_measure.seconds_of", lambda call, rows: 0.5)
    rows = tmp_path / "rows.jsonl"
    texts = [f"bank {VOCABULARY[5 + n]}" for n in range(20)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    model = str(tiny_bundle(tmp_path / "bundle"))
    assert bulk.engine_rate(model, rows, 20, torch.get_num_threads()) == 10.0  # 5 rows, 0.5 s
