"""Checkpoints: what is damaged is told and passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from filbert.errors import FilbertError
from filbert.train import state

RECORD = {"step": 12, "mean_loss": 0.1 + 0.2, "best_value": float("nan"), "best_scores": {"é": 1}}


def two(run: Path) -> Path:
    """A run with checkpoints of the steps 11 and 12; the `state.json` of the newer one."""
    for step in (11, 12):
        tensors = {"weight": torch.full((3,), float(step))}
        state.save(run, f"step-{step:09d}", tensors, {"progress": {**RECORD, "step": step}})
    return run / "checkpoints" / "step-000000012" / "state.json"


def found(run: Path) -> tuple[int, list[str]]:
    """The step of the newest whole checkpoint, and what was told."""
    told: list[str] = []
    newest = state.newest(run, warn=told.append)
    assert newest is not None
    step: int = newest.record["progress"]["step"]
    assert newest.tensors["weight"].tolist() == [step] * 3
    return step, told


def test_a_whole_one_is_taken(tmp_path: Path) -> None:
    two(tmp_path)
    assert found(tmp_path) == (12, [])


@pytest.mark.parametrize(
    ("here", "there"),
    [('"step": 12', '"step": 13'), ("0.30000000000000004", "0.30000000000000104")],
)
def test_a_flipped_digit_is_told(tmp_path: Path, here: str, there: str) -> None:
    path = two(tmp_path)
    text = path.read_text()
    assert here in text
    path.write_text(text.replace(here, there))
    step, told = found(tmp_path)
    assert step == 11
    assert len(told) == 1
    assert "step-000000012/state.json does not match its checksum; going back" in told[0]


def test_one_of_the_first_versions_is_taken(tmp_path: Path) -> None:
    """They wrote no checksum of the record."""
    path = two(tmp_path)
    record = json.loads(path.read_text())
    assert set(record) == {"progress", "sha256", "record_sha256"}
    del record["record_sha256"]
    path.write_text(json.dumps(record))
    assert found(tmp_path) == (12, [])


@pytest.mark.parametrize("progress", [None, {}, 5, ["step"]])
def test_a_record_without_a_place_is_passed_over(tmp_path: Path, progress: Any) -> None:
    path = two(tmp_path)
    record = {"progress": progress, "sha256": json.loads(path.read_text())["sha256"]}
    if progress is None:
        del record["progress"]
    path.write_text(json.dumps(record))
    step, told = found(tmp_path)
    assert step == 11
    assert "does not say where the run stood" in told[0]


@pytest.mark.parametrize("content", ["", "[]", "[1]", "5", "null", "{}"])
def test_a_record_that_is_none_is_passed_over(tmp_path: Path, content: str) -> None:
    path = two(tmp_path)
    path.write_text(content)
    step, told = found(tmp_path)
    assert step == 11
    assert "step-000000012 is broken" in told[0]
    (tmp_path / "checkpoints" / "step-000000011" / "state.json").write_text(content)
    with pytest.raises(FilbertError, match="no whole checkpoint is left"):
        state.newest(tmp_path, warn=told.append)
