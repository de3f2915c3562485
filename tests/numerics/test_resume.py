"""Exact resume: a run that is killed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from filbert.errors import FilbertError, UsageError
from filbert.train import state
from filbert.train.classify import train_classify
from filbert.train.options import ClassifyOptions
from tests.tiny import reviews, save_base

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    save_base(folder / "base")
    reviews(folder / "train.csv", 400)
    reviews(folder / "dev.csv", 60, seed=1)
    return folder


def options(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    values = {
        "data": str(place / "train.csv"),
        "dev": str(place / "dev.csv"),
        "base": str(place / "base"),
        "out": str(place / name),
        "batch_tokens": 60,
        "epochs": 4.0,
        "lr": 1e-3,
        "eval_every": 40,
        "save_every": 3,
        "ema": 0.9,
        "tensorboard": False,
        "threads": 1,
    }
    return {**values, **changes}


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    timed = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def unbroken(place: Path) -> Path:
    command = [sys.executable, "-c", TRAIN, json.dumps(options(place, "unbroken"))]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=300, cwd=ROOT)
    return place / "unbroken"


TRAIN = (
    "import json, sys; from filbert.train.options import ClassifyOptions;"
    "from filbert.train.classify import train_classify;"
    "train_classify(ClassifyOptions(**json.loads(sys.argv[1])), quiet=True)"
)


def test_twenty_kills_change_no_bit(place: Path, unbroken: Path) -> None:
    """SIGKILL at 20 random moments, some in the middle of writing a checkpoint."""
    child = Path(__file__).with_name("resume_child.py")
    command = [
        sys.executable,
        str(child),
        json.dumps(options(place, "killed")),
        "20",
        "7",
        "classify",
    ]
    done = subprocess.run(
        command,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["killed"] == 20 and told["finished"]
    assert told["while_writing"] >= 3, told
    a, b = (run / "model.safetensors" for run in (place / "killed", unbroken))
    assert a.read_bytes() == b.read_bytes()
    assert rows(place / "killed") == rows(unbroken)
    ours, theirs = (
        json.loads((r / "filbert.json").read_text()) for r in (place / "killed", unbroken)
    )
    for key in ("made", "seconds", "step_seconds"):
        ours["provenance"].pop(key)
        theirs["provenance"].pop(key)
    assert ours == theirs
    assert not (place / "killed" / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_leaves(place: Path, unbroken: Path, number: signal.Signals) -> None:
    out = f"stopped-{number.name}"
    values = options(place, out, save_every=100_000)
    child = subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(values)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    metrics = place / out / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_bytes().splitlines()) > 10):
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert "saved. Go on with --resume" in errors and number.name in errors
    assert len(list((place / out / "checkpoints").glob("step-*"))) == 1
    values["resume"] = True
    command = [sys.executable, "-c", TRAIN, json.dumps(values)]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=300, cwd=ROOT)
    a, b = (run / "model.safetensors" for run in (place / out, unbroken))
    assert a.read_bytes() == b.read_bytes()


def train(**values: Any) -> Any:
    return train_classify(ClassifyOptions(**values), quiet=True)


class Stop(Exception):
    """Stands for a crash."""


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let the process "die" in the middle of its `call`-th checkpoint's commit."""
    calls = 0
    original = state.replace_folder

    def dying(temporary: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stop
        original(temporary, target)

    monkeypatch.setattr(state, "replace_folder", dying)


def test_broken_checkpoint_falls_back_loudly(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = options(place, "broken", epochs=1.0)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        crash_at(patch, 6)
        train(**values)
    newest = sorted((place / "broken" / "checkpoints").glob("step-*"))
    assert len(newest) == 2
    weights = newest[-1] / "state.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit
    weights.write_bytes(content)
    train(**{**values, "resume": True})
    told = capsys.readouterr().err
    assert "does not match its checksum; going back to the one before" in told
    train(**{**values, "out": str(place / "whole")})
    a, b = (place / run / "model.safetensors" for run in ("broken", "whole"))
    assert a.read_bytes() == b.read_bytes()


def test_a_run_without_a_whole_checkpoint_does_not_begin_again_by_itself(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = options(place, "lost", epochs=1.0)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        crash_at(patch, 6)
        train(**values)
    folders = sorted((place / "lost" / "checkpoints").glob("step-*"))
    assert len(folders) == 2
    for folder in folders:
        (folder / "state.safetensors").write_bytes(b"")
    before = sorted((place / "lost").rglob("*"))
    with pytest.raises(FilbertError, match=r"no whole checkpoint is left .* --overwrite") as error:
        train(**{**values, "resume": True})
    assert error.value.exit_code == 1
    assert capsys.readouterr().err.count("going back to the one before") == 1  # not of the last
    assert sorted((place / "lost").rglob("*")) == before
    train(**{**values, "overwrite": True})


def test_a_report_that_a_kill_prevented_is_written_later(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(place, "unreported", epochs=0.1)
    monkeypatch.setattr("filbert.train.tune.write_report", lambda out: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        train(**values)
    monkeypatch.undo()
    assert not (place / "unreported" / "report.html").exists()
    train(**{**values, "resume": True})
    assert (place / "unreported" / "report.html").is_file()


def test_full_disk_keeps_the_checkpoint_before(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(place, "full", epochs=1.0)
    original, calls = state.save_file, 0

    def failing(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(state, "save_file", failing)
    with pytest.raises(FilbertError, match="disk is full"):
        train(**values)
    found = state.newest(place / "full", warn=pytest.fail)
    assert found is not None and found.record["progress"]["step"] == 9
    assert not list((place / "full" / "checkpoints").glob(".*"))
    monkeypatch.setattr(state, "save_file", original)
    train(**{**values, "resume": True})
    assert (place / "full" / "filbert.json").is_file()


def test_resume_refuses_other_settings_and_other_data(place: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.csv", 50)
    values = options(place, "guarded", data=str(data), epochs=1.0, out=str(tmp_path / "out"))
    train(**values)
    with pytest.raises(UsageError, match="not empty"):
        train(**values)
    with pytest.raises(UsageError, match=r"lr 0\.001, now 0\.5"):
        train(**{**values, "resume": True, "lr": 0.5})
    base = place / "base"
    base.rename(place / "away")  # a finished run needs neither its base nor its rows
    try:
        finished = train(**{**values, "resume": True})
    finally:
        (place / "away").rename(base)
    assert "finished already" in finished.notes[0]
    (tmp_path / "out" / "filbert.json").unlink()
    reviews(data, 50, seed=9)
    with pytest.raises(FilbertError, match="not those that"):
        train(**{**values, "resume": True})


def test_overwrite_spares_files_of_others(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not of a filbert run"):
        train(**options(place, "x", out=str(tmp_path), overwrite=True))
    (tmp_path / "recipe.toml").write_text("epochs = 3  # a person's own recipe\n")
    with pytest.raises(UsageError, match="not of a filbert run"):
        train(**options(place, "x", out=str(tmp_path), overwrite=True))
    run = tmp_path / "run"
    train(**options(place, "x", out=str(run), epochs=0.1))
    (run / "seed-corpus").mkdir()
    with pytest.raises(UsageError, match="also holds seed-corpus"):
        train(**options(place, "x", out=str(run), overwrite=True))
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert (run / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": "typo-base"},
        {"class_weights": "spam=2"},
        {"device": "cuda:77"},
        {"metric": "acuracy"},
        {"data": "none.csv"},
    ],
)
def test_a_refused_overwrite_deletes_nothing(
    place: Path, tmp_path: Path, wrong: dict[str, str]
) -> None:
    run = tmp_path / "run"
    train(**options(place, "x", out=str(run), epochs=0.1))
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(FilbertError):
        train(**options(place, "x", out=str(run), overwrite=True, **wrong))
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_overwrite_refuses_to_delete_its_own_base(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(**options(place, "x", out=str(run), epochs=0.1))
    with pytest.raises(UsageError, match=r"--base .* would be deleted"):
        train(**options(place, "x", out=str(run), base=str(run), overwrite=True))
    with pytest.raises(UsageError, match="give one"):
        train(**options(place, "x", out=str(run), resume=True, overwrite=True))
    assert (run / "model.safetensors").is_file()


def test_two_processes_cannot_train_in_one_folder(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    from filbert.atomic import locked

    held = locked(tmp_path / "run", doing="trains in")
    with held, pytest.raises(UsageError, match=f"process \\({os.getpid()}\\)"):
        train(**options(place, "x", out=str(tmp_path / "run")))
    assert not any((tmp_path / "run").iterdir())


def test_nan_stops_with_the_rows(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(place / "base" / "model.safetensors")
    base = save_base(tmp_path / "base")
    weights["bert.embeddings.word_embeddings.weight"][5] = float("nan")  # the word "good"
    from filbert.model.weights import write_weights

    write_weights(weights, base)
    told = r"nan at step \d+; the batch held: .*train\.csv:\d+.*There is no checkpoint yet"
    with pytest.raises(FilbertError, match=told):
        train(**options(place, "x", base=str(base), out=str(tmp_path / "out"), save_every=100_000))
