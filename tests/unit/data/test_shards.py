"""The shards folder: what is read is what was written, and damage is told with the file's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert.data.prepare_work import Streams, write_shard
from filbert.data.shards import MANIFEST, VOCAB, Counts, Manifest, digest, open_shards
from filbert.errors import FilbertError, UsageError

TOKENS = [5, 6, 7, 8, 9, 5, 5, 6, 9, 9, 10, 11]
JOINS = [0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0]
SENTENCES = [2, 3, 4, 3]  # tokens of each
DOCUMENTS = [1, 3]  # sentences of each


def make(folder: Path) -> Path:
    """A folder of one shard, written by the parts that `prepare` uses."""
    work = folder / ".work"
    work.mkdir(parents=True)
    streams = Streams(work, {})
    streams.append("train.tokens", np.array(TOKENS, dtype="<u2"))
    streams.append("train.joins", np.array(JOINS, dtype=bool))
    streams.append("train.sentences", np.array(SENTENCES, dtype="<u4"))
    streams.append("train.documents", np.array(DOCUMENTS, dtype="<u4"))
    streams.append("train.sources", np.array([1, 0], dtype="<u2"))
    entry = write_shard(streams, folder, split="train", number=0, tokens="<u2")
    streams.close()
    shutil.rmtree(work)
    (folder / VOCAB).mkdir()
    (folder / VOCAB / "vocab.txt").write_text("[PAD]\n", "utf-8")
    manifest = Manifest(
        format=1,
        filbert="0",
        vocab_size=12,
        vocab_sha256=digest(folder / VOCAB / "vocab.txt"),
        options={},
        sources=["a", "b"],
        counts=Counts(documents=2, sentences=4, tokens=12, bytes=40),
        shards=[entry],
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump()), "utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "shards")


def test_what_was_written_is_read(folder: Path) -> None:
    opened = open_shards(folder, verify="full")
    (shard,) = opened.split("train")
    assert opened.split("dev") == []
    assert shard.tokens.tolist() == TOKENS
    assert shard.sentences.tolist() == [0, 2, 5, 9, 12]
    assert shard.documents.tolist() == [0, 1, 4]
    assert [opened.manifest.sources[n] for n in shard.sources] == ["b", "a"]
    for start in range(13):
        for stop in range(start, 13):
            assert shard.joined(start, stop).tolist() == list(map(bool, JOINS[start:stop]))
    # the format, as the contract of the folder says: bit 0 first
    assert shard.joins.tolist() == [0b11010010, 0b0100]
    assert shard.tokens.base is not None  # mapped, not read
    for name, size in (("tokens", 24), ("joins", 2), ("sentences", 40), ("sources", 4)):
        path = folder / "train-00000" / f"{name}.npy"
        assert path.read_bytes()[:8] == b"\x93NUMPY\x01\x00"
        assert path.stat().st_size % 64 == size % 64
        np.load(path, allow_pickle=False)


FILES = ["tokens.npy", "joins.npy", "sentences.npy", "documents.npy", "sources.npy"]


@pytest.mark.parametrize("name", FILES)
def test_a_shorter_or_longer_file_is_named(folder: Path, name: str) -> None:
    path = folder / "train-00000" / name
    content = path.read_bytes()
    for damaged in (content[:-1], content[:60], b"", content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(FilbertError, match=f"{name} is damaged"):
            open_shards(folder)
    path.unlink()
    with pytest.raises(FilbertError, match=f"{name} is damaged: it is not there"):
        open_shards(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_by_the_checksum(folder: Path, name: str) -> None:
    path = folder / "train-00000" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(bytes(content))
    with pytest.raises(FilbertError, match=f"{name} is damaged"):
        open_shards(folder, verify="full")


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("sentences.npy", [0, 5, 5, 9, 12], "do not grow"),
        ("sentences.npy", [0, 9, 5, 11, 12], "do not grow"),
        ("sentences.npy", [1, 2, 5, 9, 12], "from 0 to 12"),
        ("sentences.npy", [0, 2, 5, 9, 13], "from 0 to 12"),
        ("documents.npy", [0, 4, 4], "do not grow"),
        ("documents.npy", [0, 1, 3], "from 0 to 4"),
    ],
)
def test_offsets_that_lead_astray_are_refused(
    folder: Path, name: str, values: list[int], told: str
) -> None:
    np.save(folder / "train-00000" / name, np.array(values, dtype="<i8"))
    with pytest.raises(FilbertError, match=f"{name} is damaged.*{told}"):
        open_shards(folder)


def test_another_type_is_refused(folder: Path) -> None:
    np.save(folder / "train-00000" / "tokens.npy", np.array(TOKENS, dtype="<i2"))
    with pytest.raises(FilbertError, match=r"tokens.npy is damaged: it holds int16"):
        open_shards(folder)
    np.save(folder / "train-00000" / "tokens.npy", np.array(TOKENS, dtype=object))
    with pytest.raises(FilbertError, match=r"tokens.npy is damaged"):
        open_shards(folder)


def test_a_source_without_a_name_is_refused(folder: Path) -> None:
    np.save(folder / "train-00000" / "sources.npy", np.array([0, 2], dtype="<u2"))
    with pytest.raises(FilbertError, match=r"sources.npy is damaged"):
        open_shards(folder)


def test_another_vocabulary_is_told(folder: Path) -> None:
    (folder / VOCAB / "vocab.txt").write_text("[PAD]\n[UNK]\n", "utf-8")
    with pytest.raises(FilbertError, match="not the vocabulary"):
        open_shards(folder)


def test_a_tokenizer_of_other_words_is_told(folder: Path) -> None:
    """It is what a run reads, so it must say what the checked vocab.txt says."""
    full = folder / VOCAB / "tokenizer.json"
    content = {"model": {"vocab": {"[PAD]": 0}}}
    full.write_text(json.dumps(content), "utf-8")
    open_shards(folder)
    content["model"] = {"vocab": {"[PAD]": 1, "the": 0}}
    full.write_text(json.dumps(content), "utf-8")
    with pytest.raises(FilbertError, match=r"tokenizer.json is damaged: its words are not those"):
        open_shards(folder)
    full.write_text('{"model": []}', "utf-8")
    with pytest.raises(FilbertError, match="it holds no tokenizer"):
        open_shards(folder)


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}), "utf-8")


def entry(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    return [{**json.loads((folder / MANIFEST).read_text("utf-8"))["shards"][0], **changes}]


def test_manifests_that_do_not_fit(folder: Path) -> None:
    content = (folder / MANIFEST).read_text("utf-8")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": 2}, "format 2, this filbert reads format 1"),
        ({"format": "1"}, "does not say which format"),
        ({"extra": 1}, "'extra'"),
        ({"sources": []}, "names no source"),
        ({"counts": {"documents": 3, "sentences": 4, "tokens": 12, "bytes": 1}}, "2 documents"),
        ({"shards": entry(folder, name="../train-00000")}, "no name of a train shard"),
        ({"shards": entry(folder, name="dev-00000")}, "no name of a train shard"),
        ({"shards": entry(folder) * 2}, "names a shard twice"),
        ({"shards": entry(folder, files={"tokens.npy": "0"})}, "must have the files"),
        ({"shards": entry(folder, tokens=0)}, "shards.0.tokens"),
        ({"shards": entry(folder, documents="2")}, "shards.0.documents"),
    ]
    for changes, told in cases:
        edit(folder, **changes)
        with pytest.raises(FilbertError, match=told):
            open_shards(folder)
        (folder / MANIFEST).write_text(content, "utf-8")
    for damaged in ("", "[]", content[:-9], content.replace('"format"', '"format": 1, "format"')):
        (folder / MANIFEST).write_text(damaged, "utf-8")
        with pytest.raises(FilbertError, match=r"manifest\.json"):
            open_shards(folder)


def test_what_is_no_folder_of_shards(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no shards"):
        open_shards(tmp_path)
    (tmp_path / ".work").mkdir()
    with pytest.raises(UsageError, match="not finished"):
        open_shards(tmp_path)
