"""How far a precision's outputs lie from float32: by hand, and against predictions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from filbert.infer import evaluate as layer
from filbert.infer.predict import load
from filbert.model.native import library
from filbert.tasks.calibrate import probabilities
from tests.tiny_bundle import tiny_bundle

ROWS = "text,label\nfree prize,spam\nlunch at home,ham\nthe river bank,ham\ncall now,spam\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS, "utf-8")
    return path


def test_distances_by_hand(tmp_path: Path) -> None:
    model = load(tiny_bundle(tmp_path / "a", temperature=2.0), device="cpu")
    flat = np.zeros((1, 2), np.float32)
    # of logits 0 and 2 log 3 at temperature 2: 0.25 and 0.75; of equal ones: 0.5 and 0.5
    found = [flat, np.array([[0.0, 2 * math.log(3)]], np.float32)]
    apart = layer.of_outputs(model, found, [flat, flat])
    assert apart["of"] == "probabilities"
    assert (apart["largest"], apart["mean"]) == pytest.approx((0.25, 0.125))
    model = load(tiny_bundle(tmp_path / "b", problem_type="regression"), device="cpu")
    apart = layer.of_outputs(model, [np.array([[3.0], [1.0]])], [np.array([[2.5], [1.0]])])
    assert apart == {"of": "scores", "largest": 0.5, "mean": 0.25}


def test_the_table_tells_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """float32 beside itself, so that this runs everywhere."""
    monkeypatch.setattr(layer, "REDUCED", ("float32",))
    bundle = tiny_bundle(tmp_path / "bundle")
    record = layer.evaluate(bundle, data, precision="float32", device="cpu")
    none = {"of": "probabilities", "largest": 0.0, "mean": 0.0}
    assert record["against_float32"]["outputs"] == none
    Console(width=200).print(layer.evaluation_table(record))
    shown = capsys.readouterr().out
    assert "largest difference of probabilities" in shown and "0.0e+00" in shown


@pytest.mark.skipif(isinstance(library(), str), reason=f"no native encoder here: {library()}")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_distances_are_those_of_predictions(data: Path, tmp_path: Path, precision: str) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    record = layer.evaluate(bundle, data, precision=precision, device="cpu")
    texts = [line.partition(",")[0] for line in ROWS.splitlines()[1:]]
    found, exact = (
        probabilities(load(bundle, precision=name, device="cpu").logits(texts),
                      "single_label_classification", 1.5)
        for name in (precision, "float32")
    )  # fmt: skip
    apart = np.abs(found - exact)
    wanted = {"largest": apart.max(), "mean": apart.mean()}
    outputs = record["against_float32"]["outputs"]
    assert outputs.pop("of") == "probabilities"
    assert outputs == pytest.approx(wanted) and outputs["largest"] > 0
