"""Folders of shards joined into one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from filbert.data.join_shards import join_shards
from filbert.data.shards import open_shards
from filbert.errors import FilbertError, UsageError
from tests.tiny_shards import WORDS, tiny_shards


def rename_sources(folder: Path, names: list[str]) -> None:
    """Give the sources of shards other names."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["sources"] = names
    path.write_text(json.dumps(manifest), "utf-8")


def test_all_documents_are_there_in_order(tmp_path: Path) -> None:
    one, two = tiny_shards(tmp_path / "one"), tiny_shards(tmp_path / "two", seed=1, documents=20)
    rename_sources(one, ["books"])
    rename_sources(two, ["news"])  # number 0 there, 1 in the whole
    manifest = join_shards([one, two], tmp_path / "all")
    joined = open_shards(tmp_path / "all", verify="full")
    parts = [open_shards(one), open_shards(two)]
    assert manifest.sources == ["books", "news"]
    for split in ("train", "dev"):
        before = [shard for part in parts for shard in part.split(split)]
        after = joined.split(split)
        assert [shard.name for shard in after] == [f"{split}-{n:05d}" for n in range(len(before))]
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old.tokens, new.tokens)
            np.testing.assert_array_equal(old.documents, new.documents)
    assert [int(shard.sources[0]) for shard in joined.split("train")] == [0, 0, 1, 1]
    counted = [part.manifest.counts.tokens for part in parts]
    assert manifest.counts.tokens == sum(counted)
    train = (tmp_path / "all" / "train-00002" / "tokens.npy").stat()
    assert train.st_ino == (two / "train-00000" / "tokens.npy").stat().st_ino  # no copy


def test_a_whole_may_be_a_part(tmp_path: Path) -> None:
    parts = [tiny_shards(tmp_path / str(n), seed=n) for n in range(3)]
    join_shards(parts[:2], tmp_path / "two")
    manifest = join_shards([tmp_path / "two", parts[2]], tmp_path / "three")
    assert len(manifest.shards) == 9


def test_a_run_trains_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from filbert.cli import main

    parts = [str(tiny_shards(tmp_path / str(n), seed=n)) for n in range(2)]
    with pytest.raises(SystemExit) as left:
        main(["prepare", *parts, "--join", str(tmp_path / "all"), "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 144
    with pytest.raises(SystemExit) as left:
        main(["prepare", "--inspect", str(tmp_path / "all")])
    assert left.value.code == 0


def test_what_cannot_be_joined_is_told(tmp_path: Path) -> None:
    one, out = tiny_shards(tmp_path / "one"), tmp_path / "all"
    with pytest.raises(UsageError, match="two folders of shards or more, got 1"):
        join_shards([one], out)
    with pytest.raises(UsageError, match="given twice"):
        join_shards([one, tmp_path / "." / "one"], out)
    other = tiny_shards(tmp_path / "other", seed=9, words=[*WORDS[:-1], "##z"])
    with pytest.raises(UsageError, match="another vocabulary"):
        join_shards([one, other], out)
    chinese = tiny_shards(tmp_path / "chinese", seed=3)
    path = chinese / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["options"]["words"] = "chinese"
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(UsageError, match="--words chinese"):
        join_shards([one, chinese], out)
    two = tiny_shards(tmp_path / "two", seed=1)
    for inside in (tmp_path, one, one / "all", two / "train-00000" / "all"):
        with pytest.raises(UsageError, match="lie in each other"):
            join_shards([one, two], inside)
    for name in (".", ""):
        with pytest.raises(UsageError, match="the name of a new folder"):
            join_shards([one, two], name)
    with pytest.raises(UsageError, match="there already"):
        join_shards([one, two], chinese)
    copied = shutil.copytree(one, tmp_path / "copied")
    with pytest.raises(UsageError, match=r"holds shards that .* holds too"):
        join_shards([copied, two, one], out)
    index = two / "train-00000" / "sources.npy"
    index.write_bytes(index.read_bytes()[:-2] + b"\x01\x00")
    with pytest.raises(FilbertError, match=r"sources.npy is damaged"):
        join_shards([one, two], out)
    assert not out.exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]
