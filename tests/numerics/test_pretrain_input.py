"""Pre-training and what it is given: a base of another shape, damaged shards, too little time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert.errors import FilbertError, UsageError
from filbert.recipes import parse_options
from filbert.train import pretrain as layer
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


def test_a_token_of_no_vocabulary_is_told_as_damage(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    path = shards / "train-00001" / "tokens.npy"
    tokens = np.load(path)
    tokens[len(tokens) // 3 :] = 61_234  # the vocabulary has 60
    np.save(path, tokens)
    with pytest.raises(FilbertError, match=r"damaged: .* token 61,234, .* has 60.*--verify") as e:
        run(shards, tmp_path / "run")
    assert str(shards) in str(e.value)


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
