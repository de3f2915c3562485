"""Processes that prepare the samples of pre-training: signals, kills, and who ends with whom."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from filbert.errors import FilbertError
from filbert.tasks import pretrain as task
from filbert.text import BertTokenizer
from filbert.train.loop import Progress
from filbert.train.pretrain import pretrain
from filbert.train.pretrain_options import PretrainOptions
from filbert.train.pretrain_plan import PretrainPlan, open_phases
from tests.tiny_shards import tiny_shards

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SECONDS = 120

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("workers") / "shards")


def options(shards: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": str(shards), "out": str(out), "steps": 300, "num_hidden_layers": 2,
        "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64,
        "max_length": 32, "batch_size": 8, "lr": 1e-3, "threads": 1, "precision": "float32",
        "eval_samples": 20, "save_every": 10_000, "eval_every": 150, "tensorboard": False,
        **changes,
    }  # fmt: skip


@contextmanager
def started(shards: Path, out: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run that has come to its first steps, in a group of its own, and its workers."""
    words = [sys.executable, "-m", "filbert", "pretrain", "--no-tensorboard"]
    values = options(shards, out, workers=1)
    del values["tensorboard"]
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    child = subprocess.Popen(
        words, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    found: list[int] = []
    try:
        wait_for_rows(child, out, 0)
        found = workers(child.pid)
        assert len(found) == 1
        yield child, found
    finally:
        for process in [*found, child.pid]:
            if running(process):
                os.kill(process, signal.SIGKILL)
        child.wait()
        if child.stderr:
            child.stderr.close()


def wait_for_rows(child: subprocess.Popen[str], out: Path, more: int) -> None:
    """Until `metrics.jsonl` has so many bytes more than now."""
    metrics, end = out / "metrics.jsonl", time.monotonic() + SECONDS
    before = metrics.stat().st_size if metrics.is_file() else 0
    while not (metrics.is_file() and metrics.stat().st_size > before + more):
        assert time.monotonic() < end
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        time.sleep(0.01)


def workers(parent: int) -> list[int]:
    """The processes that `parent` spawned through multiprocessing."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if above == parent and b"spawn_main" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def deaf(process: int) -> bool:
    """Whether it ignores SIGTERM, as a worker does once it is ready."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    ignored = next(line for line in lines if line.startswith("SigIgn:")).split()[1]
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


def test_signals_to_all_processes_save_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(shards, out) as (child, (worker,)):
        for number in (signal.SIGTERM, signal.SIGINT):  # to the worker, before all get them
            os.kill(worker, number)
        wait_for_rows(child, out, 1500)  # some ten steps: more than were prepared ahead
        assert running(worker)
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 130, errors[-3000:]
        assert "stopped by SIGINT at step" in errors
        assert "saved. Go on with --resume" in errors
        assert "Traceback" not in errors
        assert not running(worker)
    for name, resume in (("run", True), ("unbroken", False)):
        pretrain(PretrainOptions(**options(shards, tmp_path / name, resume=resume)), quiet=True)
    weights = [tmp_path / name / "model.safetensors" for name in ("run", "unbroken")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_that_was_killed_leaves_no_worker(shards: Path, tmp_path: Path) -> None:
    with started(shards, tmp_path / "run") as (child, (worker,)):
        child.kill()
        child.wait(timeout=30)
        end = time.monotonic() + 10
        while running(worker):
            assert time.monotonic() < end, "the worker is still there"
            time.sleep(0.05)


def test_a_worker_that_dies_is_told(shards: Path, tmp_path: Path) -> None:
    """And the other one, which is deaf to the SIGTERM of a broken pool, ends nevertheless."""
    given = PretrainOptions(**options(shards, tmp_path / "x", workers=2))
    opened = task.read(given.data)
    tokenizer = BertTokenizer.from_pretrained(opened.vocab)
    others = multiprocessing.active_children()
    plan = PretrainPlan(*open_phases(given, opened, tokenizer), given)
    progress = Progress()
    progress.samples += plan.work(progress).samples
    own = [process for process in multiprocessing.active_children() if process not in others]
    assert len(own) == 2
    end = time.monotonic() + SECONDS
    while not all(deaf(process.pid) for process in own if process.pid is not None):
        assert time.monotonic() < end
        time.sleep(0.05)
    own[0].kill()
    with pytest.raises(FilbertError, match=r"--workers 2\) ended by itself.* go on with --resume"):
        for _ in range(1000):
            progress.samples += plan.work(progress).samples
    begun = time.monotonic()
    plan.close()
    assert time.monotonic() - begun < 30
    assert not any(process.is_alive() for process in own)
