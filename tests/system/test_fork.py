"""Processes that fork or spawn after they have computed with several threads, and many threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import filbert
from tests.tiny_bundle import tiny_bundle
from tests.tiny_tasks import task_bundle

ROOT = Path(__file__).resolve().parents[2]
FORKS = """
import os, sys
import torch
import filbert
torch.set_num_threads(2)
predictor = filbert.load(sys.argv[1], device="cpu", precision="float32")
rows = ["the river bank " * 10, "free prize call now " * 8] * 100
wanted = [answer["score"] for answer in predictor(rows)]
child = os.fork()
if child == 0:
    found = [answer["score"] for answer in predictor(rows)]
    near = all(abs(one - other) < 1e-5 for one, other in zip(found, wanted, strict=True))
    os._exit(0 if near and torch.get_num_threads() == 1 else 3)
_, status = os.waitpid(child, 0)
print(torch.get_num_threads())
sys.exit(os.waitstatus_to_exitcode(status))
"""
SPAWNS = """
import multiprocessing, sys
import filbert

def answers(folder, rows):
    return filbert.load(folder, device="cpu", precision="auto", threads=2)(rows)

if __name__ == "__main__":
    rows = ["free prize call now", "the river bank " * 9, ""] * 20
    mine = answers(sys.argv[1], rows)  # its threads are at work already
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for theirs in pool.starmap(answers, [(sys.argv[1], rows)] * 3):
            for one, other in zip(mine, theirs, strict=True):
                assert one["label"] == other["label"]
                assert abs(one["score"] - other["score"]) < 1e-6, (one, other)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_answers_as_its_parent(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", hidden_size=256, intermediate_size=1024)
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS, str(bundle)], cwd=ROOT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, told = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the child that hangs, too
        process.communicate()
        pytest.fail("the forked child hangs")
    assert (process.returncode, out.split()) == (0, ["2"]), told
    assert told.count("computes with 1 thread") == 1


def test_spawned_children_answer_as_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "spawns.py"  # spawn reads it again in every child
    script.write_text(SPAWNS, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_bundle(tmp_path / "bundle"))], cwd=ROOT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["classify", "embed", "tag", "answer"])
def test_sixteen_threads_share_one_model(tmp_path: Path, task: str) -> None:
    """Without an engine: each its own rows, the answers of one call after the other, bit by bit."""
    model = filbert.load(task_bundle(tmp_path / task, task), device="cpu")
    texts = [f"the {word} bank , call {word} now " * n for n, word in enumerate("abcdefgh", 1)] * 2
    rows = [("who ?", text) if model.manifest.pair else text for text in texts]
    wanted = [model.answer_rows([row]) for row in rows]
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            assert list(pool.map(lambda row: model.answer_rows([row]), rows)) == wanted
