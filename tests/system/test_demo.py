"""`filbert demo`: learns the real messages well enough, is ready at once the second time, goes on
after an interruption. The whole training runs once (about half a minute on two free cores)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from filbert import demo
from filbert.errors import FilbertError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def start(*words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "filbert", "demo", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> tuple[Path, str]:
    """The folder of one whole demo, and what it printed."""
    cache = tmp_path_factory.mktemp("cache")
    process = start("--text", "win cash now, text WIN to 80085", XDG_CACHE_HOME=str(cache))
    told, _ = process.communicate(timeout=900)
    assert process.returncode == 0, told
    return cache / "filbert" / "demo", told


def test_it_learns_the_filter(trained: tuple[Path, str]) -> None:
    folder, told = trained
    record = json.loads((folder / "model" / "evaluation.json").read_text("utf-8"))
    assert record["rows"] == 1034
    assert record["scores"]["accuracy"] >= 0.985
    assert f"{record['scores']['accuracy']:.4f}" in told
    assert "spam" in told.splitlines()[-3] and "win cash now" in told.splitlines()[-3]
    assert "5,572 real text messages" in told and "CC BY 4.0" in told


def test_no_test_message_was_learned_from(trained: tuple[Path, str]) -> None:
    parts: dict[str, list[dict[str, str]]] = {}
    for name in ("train", "dev", "test"):
        with open(trained[0] / "data" / f"{name}.csv", encoding="utf-8", newline="") as file:
            parts[name] = list(csv.DictReader(file))
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 3618,
        "dev": 517,
        "test": 1034,
    }
    texts = [row["text"] for rows in parts.values() for row in rows]
    assert len(set(texts)) == len(texts) == 5169
    shares = [sum(row["label"] == "spam" for row in rows) / len(rows) for rows in parts.values()]
    assert max(shares) - min(shares) < 0.002  # stratified


def test_the_second_start_uses_it_at_once(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    weights = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    began = time.monotonic()
    process = start("--out", str(folder))
    told, _ = process.communicate(
        "URGENT claim your prize 08001234567\nsee you at six\n\n", timeout=120
    )
    assert process.returncode == 0, told
    assert "Using the filter trained earlier" in told
    assert time.monotonic() - began < 60
    lines = [
        line.split() for line in told.splitlines() if "claim your prize" in line or "at six" in line
    ]
    assert [line[0] for line in lines] == ["spam", "ham"]
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == weights


# --- the rest trains a few steps only ------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minilm: Path) -> Path:
    """The demo on 300 messages for a few steps; gives a folder to use."""
    small = tmp_path / "small.csv.gz"
    with gzip.open(demo.asset(), "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[:301]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    small.write_bytes(gzip.compress(text.getvalue().encode()))
    monkeypatch.setattr(demo, "asset", lambda: small)
    monkeypatch.setattr(demo, "RECIPE", {**demo.RECIPE, "epochs": 0.25})
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path / "demo"


def test_a_damaged_filter_is_trained_again(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.run(short)
    assert "Trained in" in capsys.readouterr().out
    weights = short / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    demo.run(short)
    told = capsys.readouterr().out
    assert "is damaged" in told and "Trained in" in told
    demo.run(short)
    assert "Using the filter trained earlier" in capsys.readouterr().out
    demo.run(short, retrain=True)
    assert "Trained in" in capsys.readouterr().out


def test_another_recipe_is_trained_anew(
    short: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.run(short)
    monkeypatch.setattr(demo, "RECIPE", {**demo.RECIPE, "seed": 7})
    demo.run(short)
    told = capsys.readouterr().out
    assert told.count("Trained in") == 2 and "earlier" not in told


def test_an_interrupted_training_goes_on(tmp_path: Path, minilm: Path) -> None:
    folder = tmp_path / "demo"
    metrics = folder / "model" / "metrics.jsonl"

    def interrupt(after: int) -> str:
        process = start("--out", str(folder))
        limit = time.monotonic() + 180
        while not (metrics.is_file() and metrics.read_text("utf-8").count("\n") > after):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 130 and "Traceback" not in told
        assert "`filbert demo` goes on there" in told
        return told

    interrupt(2)
    steps = metrics.read_text("utf-8").count("\n")
    assert "resumed at step" in interrupt(steps + 2)


def test_a_strange_folder_is_left_alone(short: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(UsageError, match="not empty and not of an earlier demo"):
        demo.run(strange)
    with pytest.raises(UsageError, match="is a file"):
        demo.run(strange / "thesis.txt")
    assert [path.name for path in strange.iterdir()] == ["thesis.txt"]


def test_without_the_extra_the_pip_line_is_told(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "surely-not-installed")
    with pytest.raises(FilbertError, match=r"pip install 'filbert\[demo\]'"):
        demo.run(short)
    assert not short.exists()


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.default_folder() == tmp_path / "filbert" / "demo"
    for wrong in ("", "relative"):  # the specification: ignore it
        monkeypatch.setenv("XDG_CACHE_HOME", wrong)
        assert demo.default_folder() == Path.home() / ".cache" / "filbert" / "demo"


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, None])
def test_typing_ends_cleanly(
    monkeypatch: pytest.MonkeyPatch,
    end: type[BaseException] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def typed() -> Iterator[str]:
        yield from ["one", "two"]
        if end is not None:
            raise end
        yield from [" ", "three"]

    lines = typed()
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def classify(text: str) -> dict[str, Any]:
        return {"label": text, "score": 0.5}

    demo.converse(cast(Any, classify))
    assert capsys.readouterr().out.split() == ["one", "50.0%", "one", "two", "50.0%", "two"]


def test_answers_are_aligned() -> None:
    answer: dict[str, Any] = {"label": "ham", "score": 0.9971}
    assert demo.answer_line(answer, "hi") == "  ham    99.7%  hi"
