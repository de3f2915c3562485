"""The record of a run: what is written, what a kill and a resume leave, what people see."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filbert.errors import FilbertError
from filbert.train.track import Tracker, clock, read_metrics

ROOT = Path(__file__).resolve().parents[3]
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def work(tracker: Tracker, first: int, last: int) -> None:
    """Steps `first` to `last` of a made-up run that is evaluated every 4 steps."""
    for step in range(first, last + 1):
        tracker.train(step, step / 10, 1 / step, 5e-5, 0.25 * step, 100 * step, 0.5 * step)
        if step % 4 == 0:
            tracker.evaluation(step, step / 10, {"loss": 2 / step, "accuracy": 0.9, "auc": None})


def rows_of(run: Path) -> list[dict[str, Any]]:
    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def scalars_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads: tag -> (step, value)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_rows(tmp_path: Path) -> None:
    with Tracker(tmp_path / "new" / "run", total_steps=2, tensorboard=False, quiet=True) as tracker:
        tracker.train(1, 0.5, 0.25, 5e-5, 1.5, 1200, 0.5)
        tracker.evaluation(
            1,
            0.5,
            {"loss": 0.3, "accuracy": 0.75, "auc": None, "confusion": [[1]], "per_class": {}},
        )
        assert rows_of(tmp_path / "new" / "run") == [  # on disk already, before the end
            {
                "kind": "train",
                "step": 1,
                "epoch": 0.5,
                "loss": 0.25,
                "lr": 5e-5,
                "grad_norm": 1.5,
                "tokens": 1200,
                "tokens_per_second": 2400.0,
                "seconds": 0.5,
            },
            {"kind": "eval", "step": 1, "epoch": 0.5, "loss": 0.3, "accuracy": 0.75, "auc": None},
        ]


def test_what_json_cannot_hold_is_null(tmp_path: Path) -> None:
    with Tracker(tmp_path, total_steps=2, quiet=True) as tracker:
        tracker.train(1, 0.5, math.nan, 5e-5, math.inf, 0, 0.0)
    (row,) = rows_of(tmp_path)
    assert (row["loss"], row["grad_norm"], row["tokens_per_second"]) == (None, None, None)


@needs_tensorboard
def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    with Tracker(tmp_path, total_steps=8, quiet=True) as tracker:
        work(tracker, 1, 8)
        before_the_end = scalars_of(tmp_path)
    scalars = scalars_of(tmp_path)
    assert scalars == before_the_end  # flushed step by step
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 9))
    assert [value for _, value in scalars["train/loss"]] == pytest.approx(
        [1 / k for k in range(1, 9)]
    )
    assert scalars["train/tokens_per_second"][2] == (3, 600.0)
    assert [step for step, _ in scalars["eval/accuracy"]] == [4, 8]
    assert scalars["eval/accuracy"][0][1] == pytest.approx(0.9)
    assert "eval/auc" not in scalars


@needs_tensorboard
@pytest.mark.parametrize("checkpoint", [0, 3, 4, 9])
def test_resumed_run_has_the_rows_of_an_unbroken_one(tmp_path: Path, checkpoint: int) -> None:
    with Tracker(tmp_path / "whole", total_steps=12, quiet=True) as tracker:
        work(tracker, 1, 12)
    with Tracker(tmp_path / "broken", total_steps=12, quiet=True) as tracker:
        work(tracker, 1, 9)
    with Tracker(
        tmp_path / "broken", total_steps=12, resume_step=checkpoint, quiet=True
    ) as tracker:
        work(tracker, checkpoint + 1, 12)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    assert scalars_of(tmp_path / "broken") == scalars_of(tmp_path / "whole")


@needs_tensorboard
def test_evaluation_at_the_checkpoint_is_there_once(tmp_path: Path) -> None:
    with Tracker(tmp_path, total_steps=8, quiet=True) as tracker:
        work(tracker, 1, 4)
    with Tracker(tmp_path, total_steps=8, resume_step=4, quiet=True) as tracker:
        tracker.evaluation(4, 0.4, {"loss": 0.5, "accuracy": 0.9, "auc": None})  # done once more
        work(tracker, 5, 8)
    assert [row["step"] for row in rows_of(tmp_path) if row["kind"] == "eval"] == [4, 8]
    assert [step for step, _ in scalars_of(tmp_path)["eval/accuracy"]] == [4, 8]


@needs_tensorboard
def test_lines_torn_by_a_kill(tmp_path: Path) -> None:
    with Tracker(tmp_path, total_steps=6, quiet=True) as tracker:
        work(tracker, 1, 6)
    whole, expected = (tmp_path / "metrics.jsonl").read_bytes(), rows_of(tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    whole_events = events.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in range(last, len(whole) + 1, 7):
        (tmp_path / "metrics.jsonl").write_bytes(whole[:cut])
        for newer in sorted((tmp_path / "tensorboard").iterdir())[1:]:
            newer.unlink()
        events.write_bytes(whole_events[: -(cut - last + 1)])  # in the middle of a record, too
        with Tracker(tmp_path, total_steps=6, resume_step=5, quiet=True) as tracker:
            work(tracker, 6, 6)
        assert rows_of(tmp_path) == expected
        assert [step for step, _ in scalars_of(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_killed_process_keeps_every_row(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from filbert.train.track import Tracker\n"
        "with Tracker(Path(sys.argv[1]), total_steps=9, tensorboard=False, quiet=True) as t:\n"
        "    for k in range(1, 8): t.train(k, .1, .5, 1e-5, 1., 10, .1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_damaged_lines_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, total_steps=4, tensorboard=False, quiet=True) as tracker:
        work(tracker, 1, 3)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines[0] + b"\xff\xfe\x00\n" + lines[1] + b'{"kind": 1}\n[]\n' + lines[2])
    rows, bad = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert bad == [2, 4, 5]
    with Tracker(tmp_path, total_steps=4, tensorboard=False, resume_step=2):
        pass
    assert "unreadable lines left out: 2, 4, 5" in capsys.readouterr().err
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
    assert read_metrics(tmp_path / "nowhere.jsonl") == ([], [])


def test_without_tensorboard_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: Callable[[str], object] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "tensorboard" else found(name),
    )
    with Tracker(tmp_path, total_steps=1) as tracker:
        work(tracker, 1, 1)
    told = capsys.readouterr().err
    assert told.count("pip install 'filbert[tensorboard]'") == 1
    assert len(rows_of(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()


@needs_tensorboard
def test_tensorflow_is_never_imported(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('imported')")
    code = (
        "import sys; from pathlib import Path; from filbert.train.track import Tracker\n"
        "with Tracker(Path(sys.argv[1]), total_steps=1, quiet=True) as t:\n"
        "    t.train(1, .1, .5, 1e-5, 1., 10, .1)\n"
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, total_steps=200, tensorboard=False) as tracker:
        for step in range(1, 201):
            tracker.train(step, step / 100, 0.5, 1e-4, 1.0, 1000, 0.25 * step)
        tracker.evaluation(200, 2.0, {"loss": 0.25, "accuracy": 0.875, "rows": 40})
        tracker.message("best [checkpoint] kept")
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("step 20/200 (10%)  epoch 0.20  loss 0.5000  lr 1.00e-04  ")
    assert "4,000 tokens/s" in lines[0]
    assert lines[9].startswith("step 200/200 (100%)")
    assert lines[9].endswith("0:00 left")
    assert lines[10] == "evaluation after step 200: loss 0.2500  accuracy 0.8750"
    assert lines[11] == "best [checkpoint] kept"


def test_a_slow_run_shows_a_line_every_half_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Tracker(tmp_path, total_steps=1000, tensorboard=False, resume_step=500) as tracker:
        for step in range(501, 511):
            now[0] += 10.0
            tracker.train(step, 1.0, 0.5, 1e-4, 1.0, 1000, 10.0 * step)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["503/1,000", "506/1,000", "509/1,000"]
    # 3 steps took 30 s; 497 remain, counted from where this session began
    assert lines[0].endswith("1:22:50 left")


def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, total_steps=4, quiet=True) as tracker:
        work(tracker, 1, 4)
        tracker.message("hello")
    output = capsys.readouterr()
    assert output.out + output.err == ""


def test_bar_on_a_terminal_leaves_standard_output_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from filbert.train.track import Tracker\n"
        "with Tracker(Path(sys.argv[1]), total_steps=4, tensorboard=False) as t:\n"
        "    for k in range(1, 5):\n"
        "        t.train(k, .1, .5, 1e-5, 1., 1000, .5 * k)\n"
        "        print('result', k)\n"
        "    t.evaluation(4, 1., {'accuracy': .5})\n"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read() == b"result 1\nresult 2\nresult 3\nresult 4\n"
    assert process.wait() == 0
    text = shown.decode()
    assert "4/4" in text
    assert "loss 0.5000" in text
    assert "2,000 tokens/s" in text
    assert "evaluation after step 4: accuracy 0.5000" in text


def test_full_disk_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to stand for a full disk")
    with (
        Tracker(tmp_path, total_steps=4, tensorboard=False, quiet=True) as tracker,
        open("/dev/full", "ab") as full,
    ):
        work(tracker, 1, 1)
        tracker._metrics = full
        with pytest.raises(FilbertError, match=r"No space left on device.*--resume"):
            work(tracker, 2, 2)
        full.raw.close()  # or closing it would try, and fail, once more
    assert [row["step"] for row in rows_of(tmp_path)] == [1]


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(FilbertError, match="could not write the record of the run"),
        Tracker(tmp_path / "run", total_steps=4),
    ):
        pass


def test_clock() -> None:
    assert [clock(s) for s in (0, 7.4, 200, 3900, -1)] == [
        "0:00",
        "0:07",
        "3:20",
        "1:05:00",
        "0:00",
    ]
