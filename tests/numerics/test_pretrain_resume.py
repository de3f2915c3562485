"""Going on with a pre-training run: what may differ, what a kill left, what memory taught."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert.errors import FilbertError, UsageError
from filbert.tasks import pretrain as task
from filbert.train import state
from filbert.train.loop import Interrupted
from filbert.train.pretrain import pretrain
from filbert.train.pretrain_options import PretrainOptions
from tests.tiny_shards import tiny_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("resume") / "shards")


def run(shards: Path | str, out: Path, **changes: Any) -> Any:
    values = {
        "data": str(shards), "out": str(out), "steps": 20, "num_hidden_layers": 2,
        "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64,
        "max_length": 32, "batch_size": 8, "batch_tokens": 128, "lr": 1e-3, "threads": 1,
        "precision": "float32", "tensorboard": False, "eval_samples": 20, "save_every": 4,
        **changes,
    }  # fmt: skip
    return pretrain(PretrainOptions(**values), quiet=True)


class Stop(Exception):
    """Stands for a crash."""


def broken_off(monkeypatch: pytest.MonkeyPatch, *given: Any, **changes: Any) -> None:
    """A run that dies after its second checkpoint, that of step 8."""
    original = state.prune

    def dying(out: Path, *, keep_best: str | None) -> None:
        original(out, keep_best=keep_best)
        if (out / "checkpoints" / "step-000000008").exists():
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(state, "prune", dying)
        run(*given, **changes)


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


# --- what may differ ------------------------------------------------------------------------------


def test_the_same_shards_in_another_place(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(shards, tmp_path / "whole")
    for name in ("slash", "copy"):
        broken_off(monkeypatch, shards, tmp_path / name)
    other = tiny_shards(tmp_path / "other", seed=1)
    with pytest.raises(FilbertError, match="not those that"):
        run(other, tmp_path / "copy", resume=True)
    run(f"{shards}/", tmp_path / "slash", resume=True)
    run(shutil.copytree(shards, tmp_path / "moved"), tmp_path / "copy", resume=True)
    assert weights(tmp_path / "slash") == weights(tmp_path / "whole")
    assert weights(tmp_path / "copy") == weights(tmp_path / "whole")


def test_how_a_step_is_computed_may_differ_and_is_told(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(shards, tmp_path / "whole", dropout=0.0)
    out = tmp_path / "run"
    broken_off(monkeypatch, shards, out, dropout=0.0)
    changes = {"batch_tokens": 64, "gradient_checkpointing": True, "device": "cpu"}
    with pytest.raises(UsageError, match=r"other settings: lr 0\.001, now 0\.5$"):
        run(shards, out, dropout=0.0, resume=True, lr=0.5, **changes)
    numbers: list[int] = []
    original = task.loss

    def loss(model: Any, batch: task.Batch, **rest: Any) -> Any:
        if model.training:
            assert len(batch.input_ids) <= 64
            numbers.extend(batch.numbers)
        return original(model, batch, **rest)

    monkeypatch.setattr(task, "loss", loss)
    result = run(shards, out, dropout=0.0, resume=True, **changes)
    (told,) = [note for note in result.notes if "resumed with other settings" in note]
    assert "batch_tokens 128, now 64" in told
    assert "differs in the last bits" in told
    # steps 8 to 19 take the samples 64 to 159, however they are cut
    assert sorted(numbers) == list(range(64, 160))
    assert result.scores["loss"] == pytest.approx(whole.scores["loss"], rel=1e-4)


# --- what a kill left -----------------------------------------------------------------------------


def test_what_a_killed_save_left_is_cleared(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    broken_off(monkeypatch, shards, out)
    half = out / "checkpoints" / ".step-000000011.writing"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    run(shards, out, resume=True, keep_checkpoints=True)
    assert not half.exists()
    assert list((out / "checkpoints").glob("step-*"))


# --- memory ---------------------------------------------------------------------------------------


def test_memory_that_ran_out_is_remembered(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on cuts its batches as the one that stopped did, so it ends with the same
    bits, dropout and all; another `batch_tokens` is tried anew."""
    original, refused = task.loss, [0]

    def scarce(model: Any, batch: task.Batch, **rest: Any) -> Any:
        if len(batch.input_ids) > 100 and model.training:
            refused[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, **rest)

    monkeypatch.setattr(task, "loss", scarce)
    run(shards, tmp_path / "whole", batch_tokens=100_000)
    for name in ("same", "other"):
        broken_off(monkeypatch, shards, tmp_path / name, batch_tokens=100_000)
    refused[0] = 0
    run(shards, tmp_path / "same", batch_tokens=100_000, resume=True)
    assert refused[0] == 0
    assert weights(tmp_path / "same") == weights(tmp_path / "whole")
    run(shards, tmp_path / "other", batch_tokens=90_000, resume=True)
    assert refused[0] > 0


# --- phases ---------------------------------------------------------------------------------------


def test_words_weigh_as_much_in_both_phases(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of word losses is divided by the masks of a full sample: by hand round(0.15 * 32) = 5
    and, in the last phase, round(0.15 * 48) = 7."""
    original, full = task.loss, {5: 0, 7: 0}

    def loss(model: Any, batch: task.Batch, **rest: Any) -> Any:
        total, tallies = original(model, batch, **rest)
        if model.training:
            last = int(batch.numbers[0]) >= 7 * 8  # 7 of 10 steps, 8 samples each
            length, masks = (48, 7) if last else (32, 5)
            word, pair = float(tallies[0]), float(tallies[3])
            assert total.item() == pytest.approx(word / masks + pair, rel=1e-5)
            ends = np.cumsum(batch.lengths)
            counts = np.diff(np.searchsorted(batch.positions, ends), prepend=0)
            assert (counts[batch.lengths == length] == masks).all()
            full[masks] += int((batch.lengths == length).sum())
        return total, tallies

    monkeypatch.setattr(task, "loss", loss)
    run(
        shards, tmp_path / "run", steps=10, last_length=48, last_share=0.3, short_prob=0.0,
        masking="token",
    )  # fmt: skip
    assert full[5] > 30 and full[7] > 10  # of 56 and 24 samples


# --- signals --------------------------------------------------------------------------------------


def test_a_signal_breaks_a_long_step_off(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of several batches does not end first: the step is done again when the run goes on."""
    run(shards, tmp_path / "whole", save_every=0)
    original, calls = task.loss, 0

    def loss(model: Any, batch: task.Batch, **rest: Any) -> Any:
        nonlocal calls
        if model.training:
            calls += 1
            if batch.numbers[0] == 5 * 8:  # the first batch of the sixth step
                signal.raise_signal(signal.SIGTERM)
        return original(model, batch, **rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM at step 5 of"):
        patch.setattr(task, "loss", loss)
        run(shards, tmp_path / "cut", save_every=0)
    assert calls < 6 * 3  # a step has three batches or more
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").glob("step-*")] == [
        "step-000000005"
    ]
    run(shards, tmp_path / "cut", resume=True, save_every=0)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_signal_breaks_an_evaluation_off(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    """It is done again, from its beginning, before the run goes on."""
    changes: dict[str, Any] = {"eval_every": 5, "ema": ema, "save_every": 0}
    run(shards, tmp_path / "whole", **changes)
    original, calls = task.evaluate, 0

    def evaluate(*given: Any, **rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (2, 5):  # of steps 10 and 20, the last
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the evaluation went on")
        return original(*given, **rest)

    monkeypatch.setattr(task, "evaluate", evaluate)
    with pytest.raises(Interrupted, match="SIGINT at step 10 of 20"):
        run(shards, tmp_path / "cut", **changes)
    assert state.read(tmp_path / "cut" / "checkpoints" / "step-000000010").record["progress"][
        "unassessed"
    ]
    with pytest.raises(Interrupted, match="SIGINT at step 20 of 20"):
        run(shards, tmp_path / "cut", resume=True, **changes)
    run(shards, tmp_path / "cut", resume=True, **changes)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    rows = [
        [(row["step"], row["loss"]) for row in map(json.loads, log.read_text().splitlines())
         if row["kind"] == "eval"]
        for log in (tmp_path / name / "metrics.jsonl" for name in ("whole", "cut"))
    ]  # fmt: skip
    assert rows[0] == rows[1] and [step for step, _ in rows[0]] == [5, 10, 15, 20]
