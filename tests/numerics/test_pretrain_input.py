"""Pre-training and what it is given: a base of another shape, damaged shards, too little time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert.errors import FilbertError, UsageError
from filbert.recipes import parse_options
from filbert.tasks import pretrain as task
from filbert.train import pretrain as layer
from filbert.train.loop import Progress
from filbert.train.parallel import World
from filbert.train.pretrain import pretrain
from filbert.train.pretrain_options import PretrainOptions
from tests.tiny_shards import tiny_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("input") / "shards")


def values(shards: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "data": str(shards), "out": str(out), "steps": 4, "max_length": 32, "batch_size": 8,
        "batch_tokens": 128, "threads": 1, "precision": "float32", "tensorboard": False,
        "eval_samples": 20,
    } | changes  # fmt: skip
    if "budget" in changes:
        given.pop("steps")
    return given


SHAPE = {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip


def run(shards: Path, out: Path, **changes: Any) -> Any:
    return pretrain(PretrainOptions(**values(shards, out, **SHAPE, **changes)), quiet=True)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_a_base_keeps_its_shape_and_says_so(
    shards: Path, tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe that names another shape is told, an option that was typed is refused."""
    base = tmp_path / "base"
    run(shards, base, architecture=architecture, objective="none")
    given = values(shards, tmp_path / "on", base=str(base), objective="none")
    given |= {"hidden_size": 64, "num_hidden_layers": 2}
    refused = parse_options(given, PretrainOptions, source="r.toml", typed={"hidden_size"})
    with pytest.raises(UsageError, match=r"^--hidden-size 64: .* has 32, .* leave the option"):
        pretrain(refused, quiet=True)
    assert not (tmp_path / "on").exists()
    typed = {"num_hidden_layers"}  # typed, but the same
    pretrain(parse_options(given, PretrainOptions, source="r.toml", typed=typed))
    told = capsys.readouterr().err
    assert "keeps its shape, whatever the recipe says: hidden_size 32 (not 64)\n" in told
    config = json.loads((tmp_path / "on" / "config.json").read_text())
    assert config["hidden_size"] == 32
    other = "modernbert" if architecture == "bert" else "bert"
    given |= {"architecture": other, "overwrite": True}
    with pytest.raises(UsageError, match=f"--architecture {other}: .* has {architecture}"):
        pretrain(parse_options(given, PretrainOptions, source="r", typed=given.keys()), quiet=True)


def flip(shards: Path, name: str, place: int, value: int) -> Path:
    """Put another token, of the vocabulary or not, at a place of a shard."""
    path = shards / name / "tokens.npy"
    tokens = np.load(path)
    assert tokens[place] != value
    tokens[place:] = value
    np.save(path, tokens)
    return path


def test_a_flipped_token_is_found_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that the vocabulary has, so that only its checksum tells."""
    shards = tiny_shards(tmp_path / "shards")
    tokens = np.load(shards / "train-00001" / "tokens.npy")
    path = flip(shards, "train-00001", len(tokens) - 1, 6 if tokens[-1] == 7 else 7)
    with pytest.raises(FilbertError, match="is damaged: its content is not what") as error:
        run(shards, tmp_path / "run")
    assert str(path) in str(error.value)
    assert not (tmp_path / "run").exists()
    # in several processes the first one of a machine looks
    given = PretrainOptions(**values(shards, tmp_path / "run", **SHAPE))
    monkeypatch.setenv("LOCAL_RANK", "1")
    layer.prepare(given, torch.device("cpu"), World())
    monkeypatch.delenv("LOCAL_RANK")
    # shards too large to be read at each start: a line says what was not checked
    monkeypatch.setattr(task, "VERIFIED", 1000)
    pretrain(given)
    told = capsys.readouterr().err
    assert f"checksums not; filbert prepare --verify {shards} reads them" in told


def test_shards_of_a_common_size_are_verified_fast(shards: Path) -> None:
    opened = task.read(shards)
    files = list(shards.rglob("*.npy"))
    # a header of 128 bytes in each file, beside what is counted
    assert opened.size == sum(path.stat().st_size for path in files) - 128 * len(files)
    assert task.VERIFIED >= 1e9  # a start of 10 s leaves room for hashing at 400 MB/s: 5 s
    assert task.VERIFIED <= 2e9


def test_a_token_of_no_vocabulary_is_told_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the checksums were not read."""
    shards = tiny_shards(tmp_path / "shards")
    flip(shards, "train-00001", 100, 61_234)  # the vocabulary has 60
    monkeypatch.setattr(task, "VERIFIED", 0)
    with pytest.raises(FilbertError, match=r"damaged: .* token 61,234, .* has 60.*--verify") as e:
        run(shards, tmp_path / "run")
    assert str(shards) in str(e.value)


@pytest.mark.parametrize(("objective", "needed"), [("next_sentence", 2), ("none", 1)])
def test_too_few_held_out_documents_are_told(tmp_path: Path, objective: str, needed: int) -> None:
    """The split and what to do; training has documents enough, so no other objective is advised."""
    for there in (1, 2):
        shards = tiny_shards(tmp_path / f"shards-{there}", dev_documents=there)
        out = tmp_path / f"run-{there}"
        if there < needed:
            with pytest.raises(UsageError, match="hold 1 document for evaluation") as error:
                run(shards, out, objective=objective)
            assert "larger --holdout, such as 0.05" in str(error.value)
            assert "--objective none" not in str(error.value)
        else:
            assert run(shards, out, objective=objective).steps == 4


def test_evaluation_can_have_masks_of_its_own(shards: Path, tmp_path: Path) -> None:
    """So that runs whose masks differ are scored on the same samples and masks."""

    def held_out(**changes: Any) -> tuple[list[int], list[int]]:
        given = PretrainOptions(**values(shards, tmp_path / "x", **SHAPE, **changes))
        ready = layer.prepare(given, torch.device("cpu"), World())
        batch = ready.plan.work(Progress()).batches[0]
        ready.plan.close()
        return ready.held_out[0].positions.tolist(), batch.positions.tolist()

    whole, tokens = (held_out(masking=masking) for masking in ("whole_word", "token"))
    assert whole[0] != tokens[0]  # as before: those of training
    mended = held_out(masking="token", eval_masking="whole_word")
    assert mended == (whole[0], tokens[1])


def test_mixing_shards_whose_corpus_named_no_source(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no source 'foo'; their corpus named none"):
        run(shards, tmp_path / "run", mix={"foo": 2})


def test_a_budget_for_one_step_is_told(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(layer, "seconds_of", lambda text: 1e-3)
    assert run(shards, tmp_path / "run", budget="1s").steps == 1
    told = capsys.readouterr().err
    assert "--budget 1s was enough for 1 step, at a learning rate of 0: nothing was" in told


def test_a_report_that_a_kill_prevented_is_written_later(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def killed(out: Path) -> None:
        raise Stop

    monkeypatch.setattr(layer, "write_report", killed)
    with pytest.raises(Stop):
        run(shards, tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run" / "filbert.json").is_file()
    run(shards, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "report.html").is_file()
