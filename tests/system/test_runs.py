"""runs/cpu.sh, from raw text to a fine-tuned model, with sizes that take seconds."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "SIZE": "200",
    "WORDS": "4s",
    "PAIRS": "4s",
    "EPOCHS": "1",
    "RECIPE": str(ROOT / "recipes" / "bert-tiny.toml"),
    "PREPARE_ARGS": "--holdout 0.2 --processes 1",
    "PRETRAIN_ARGS": "--batch-size 8 --max-length 32 --eval-samples 20 --threads 1",
    "TRAIN_ARGS": "--threads 1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def start(work: Path) -> subprocess.CompletedProcess[str]:
    """`cpu.sh` from a folder that is not the checkout, with paths relative to that folder."""
    return subprocess.run(
        [str(ROOT / "runs" / "cpu.sh"), "corpus.txt", "rows.csv", "rows.csv", "out"],
        cwd=work,
        env={
            **os.environ, **SETTINGS, "FILBERT": str(work / "filbert"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_cpu_leads_from_text_to_a_fine_tuned_model_and_does_nothing_twice(tmp_path: Path) -> None:
    shim = tmp_path / "filbert"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m filbert "$@"\n')
    shim.chmod(0o755)
    draw = np.random.default_rng(0)
    words = ["river", "stone", "green", "walks", "under", "seven", "lamps", "quiet", "north"]
    lines = [
        "" if n % 5 == 0 else " ".join(draw.choice(words, size=8)).capitalize() + f" {n}."
        for n in range(300)
    ]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    rows = [f"{word} stone {n},{word}" for n in range(20) for word in ("green", "quiet")]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")

    done = start(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    tasks = [
        json.loads((tmp_path / "out" / name / "filbert.json").read_text())["task"]
        for name in ("words", "model", "tuned")
    ]
    assert tasks == ["fill", "pretrain", "classify"]  # words alone; pairs too

    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    times = [path.stat().st_mtime_ns for path in files]
    again = start(tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert [path.stat().st_mtime_ns for path in files] == times
