"""A process that forks after it has computed with several threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_bundle import tiny_bundle

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
