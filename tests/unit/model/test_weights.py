"""Weights: round trips with Transformers, damaged files, failed and killed writes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import runpy
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from filbert.errors import FilbertError
from filbert.layout import INDEX, SINGLE
from filbert.model.weights import load_into, read_weights, write_weights


def _tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "b.weight": torch.randn(3, 5, generator=generator),
        "a.weight": torch.randn(4, 2, generator=generator).to(torch.bfloat16),
        "a.ids": torch.arange(7),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0, 4),
        "flag": torch.tensor([True, False]),
    }


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


# --- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [10**9, 50, 1])
def test_what_is_written_is_read(tmp_path: Path, shard_bytes: int) -> None:
    write_weights(_tensors(), tmp_path, max_shard_bytes=shard_bytes)
    assert _equal(read_weights(tmp_path), _tensors())
    files = sorted(os.listdir(tmp_path))
    if shard_bytes == 10**9:
        assert files == [SINGLE]
    else:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"] == {"total_parameters": 33, "total_size": 142}
        assert sorted(index["weight_map"]) == sorted(_tensors())
        assert files == sorted({*index["weight_map"].values(), INDEX})
    assert stat.S_IMODE((tmp_path / files[0]).stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"first": base, "tied": base, "turned": base.T, "part": base[1:], "again": base[1:]}
    write_weights(tensors, tmp_path)
    read = read_weights(tmp_path)
    assert sorted(read) == ["first", "part", "turned"]
    assert torch.equal(read["turned"], base.T) and torch.equal(read["part"], base[1:])


def _bert(kind: str = "BertForMaskedLM", **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize("shard", ["5GB", "5KB"])
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_reads_what_transformers_writes(tmp_path: Path, kind: str, shard: str) -> None:
    model = _bert(kind)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / INDEX).exists() == (shard == "5KB")
    read = read_weights(tmp_path)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert read.keys() == state.keys() - tied
    other = _bert(kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    report = load_into(other, read, source="x")
    assert not report and report.loaded == len(read)
    assert _equal(dict(other.state_dict()), dict(state))


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
def test_transformers_reads_what_we_write(tmp_path: Path, shard_bytes: int) -> None:
    model = _bert()
    model.config.save_pretrained(tmp_path)
    write_weights(model.state_dict(), tmp_path, max_shard_bytes=shard_bytes)
    opened, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, model(ids).logits)
    # ... and names, tying and metadata are those that Transformers itself writes.
    from safetensors import safe_open

    theirs = tmp_path / "theirs"
    model.save_pretrained(theirs)
    assert read_weights(tmp_path).keys() == read_weights(theirs).keys()
    if shard_bytes == 10**9:
        with safe_open(tmp_path / SINGLE, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_real_weights(minilm: Path, tmp_path: Path) -> None:
    read = read_weights(minilm)
    assert len(read) == 104
    assert read["embeddings.word_embeddings.weight"].shape == (30522, 384)
    write_weights(read, tmp_path, max_shard_bytes=20_000_000)
    assert len(os.listdir(tmp_path)) > 4
    assert _equal(read_weights(tmp_path), read)


# --- writes that fail --------------------------------------------------------------------------


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to make any file of this process larger than `size` bytes."""
    resource = pytest.importorskip("resource", reason="needs setrlimit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("old_shards", [10**9, 50])
def test_a_write_that_the_kernel_refuses_keeps_the_old_weights(
    tmp_path: Path, old_shards: int
) -> None:
    write_weights(_tensors(), tmp_path, max_shard_bytes=old_shards)
    before = sorted(os.listdir(tmp_path))
    big = {str(n): torch.full((250, 250), float(n)) for n in range(4)}  # 250 kB each
    for new_shards in (10**9, 300_000, 600_000):
        with _largest_file(240_000), pytest.raises(FilbertError) as caught:
            write_weights(big, tmp_path, max_shard_bytes=new_shards)
        message = str(caught.value)
        assert "could not write" in message and "larger than" in message
        assert "whole and unchanged" in message
        assert sorted(os.listdir(tmp_path)) == before
        assert _equal(read_weights(tmp_path), _tensors())


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    write_weights(_tensors(), tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("filbert.model.weights.save_file", full)
    with pytest.raises(FilbertError, match=r"the disk is full .*model.safetensors is whole"):
        write_weights(_tensors(1), tmp_path)
    assert _equal(read_weights(tmp_path), _tensors())
    assert os.listdir(tmp_path) == [SINGLE]


@pytest.mark.parametrize("old", [10**9, 60])
@pytest.mark.parametrize("new", [10**9, 60])
def test_a_stop_between_any_two_steps_leaves_one_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int, new: int
) -> None:
    """The renames and removals of a save are stopped after each one in turn, as a kill would."""
    steps: list[Callable[..., Any]] = [os.replace, Path.unlink]
    outcomes = []
    for allowed in range(12):
        folder = tmp_path / str(allowed)
        folder.mkdir()
        write_weights(_tensors(0), folder, max_shard_bytes=old)
        count = 0

        def counted(step: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count > allowed:  # noqa: B023 - used inside this turn of the loop only
                    raise KeyboardInterrupt
                return step(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(steps[0]))
            patch.setattr(Path, "unlink", counted(steps[1]))
            with contextlib.suppress(KeyboardInterrupt):
                write_weights(_tensors(1), folder, max_shard_bytes=new)
        read = read_weights(folder)
        outcomes.append(_equal(read, _tensors(1)))
        assert outcomes[-1] or _equal(read, _tensors(0))
        write_weights(_tensors(2), folder, max_shard_bytes=new)  # and the next save cleans up
        assert _equal(read_weights(folder), _tensors(2))
        assert len(os.listdir(folder)) == (1 if new == 10**9 else 5)
    assert outcomes[0] is False and outcomes[-1] is True and outcomes == sorted(outcomes)


_KILLS = """
import itertools, os, random, signal, sys, time
import torch
from filbert.model.weights import read_weights, write_weights

folder, moments, seen = sys.argv[1], random.Random(1), []
write_weights({str(n): torch.zeros(200, 200) for n in range(4)}, folder)
for kill in range(20):
    child = os.fork()
    if child == 0:
        for i in itertools.count(kill * 10_000 + 1):
            tensors = {str(n): torch.full((200, 200), float(i)) for n in range(4)}
            write_weights(tensors, folder, max_shard_bytes=(10**9, 400_000)[i % 2])
    time.sleep(0.02 + moments.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    values = {float(v) for t in read_weights(folder).values() for v in t.unique()}
    assert len(values) == 1, values
    seen.append(values.pop())
print(len(seen), len(set(seen)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_kills_while_writing_never_tear_the_weights(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KILLS, str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    kills, states = map(int, run.stdout.split())
    assert kills == 20 and states > 10
    write_weights(_tensors(), tmp_path)
    assert os.listdir(tmp_path) == [SINGLE]


# --- damaged files ------------------------------------------------------------------------------


def test_corrupted_bytes_never_crash_and_never_pass_in_silence(tmp_path: Path) -> None:
    """600 damaged files (fixed seed): a FilbertError, or exactly the tensors that the bytes say."""
    good = tmp_path / "good"
    good.mkdir()
    write_weights(_tensors(), good)
    data = (good / SINGLE).read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    chance = random.Random(20)
    refused = passed = 0
    for _ in range(600):
        damaged = bytearray(data)
        kind = chance.randrange(4)
        if kind == 0:  # a few bytes anywhere in the header
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(header_end)] = chance.randrange(256)
        elif kind == 1:
            del damaged[chance.randrange(len(damaged)) :]
        elif kind == 2:  # a piece moved or doubled
            at, to = chance.randrange(len(damaged)), chance.randrange(len(damaged))
            damaged[to:to] = damaged[at : at + chance.randint(1, 30)]
        else:
            at = chance.randrange(header_end)
            damaged[at] ^= 1 << chance.randrange(8)
        (tmp_path / SINGLE).write_bytes(damaged)
        try:
            read = read_weights(tmp_path)
        except FilbertError:
            refused += 1
            continue
        passed += 1
        assert sum(tensor.nbytes for tensor in read.values()) + header_end == len(damaged)
    assert refused > 400 and passed > 0  # a changed letter of a name is no visible damage


# --- shards ------------------------------------------------------------------------------------


def _sharded(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    write_weights(_tensors(), folder, max_shard_bytes=60)
    return json.loads((folder / INDEX).read_text())


def test_a_link_out_of_the_folder_is_refused_but_the_hub_cache_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    index = _sharded(folder)
    shard = index["weight_map"]["flag"]
    outside = tmp_path / "outside.safetensors"
    os.rename(folder / shard, outside)
    (folder / shard).symlink_to(outside)
    with pytest.raises(FilbertError, match="leads out of its folder"):
        read_weights(folder)
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    index = _sharded(snapshot)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for number, name in enumerate(sorted(set(index["weight_map"].values()))):
        os.rename(snapshot / name, blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert _equal(read_weights(snapshot), _tensors())


def test_an_index_that_disagrees_with_its_shards(tmp_path: Path) -> None:
    index = _sharded(tmp_path)
    first, *_, last = sorted(set(index["weight_map"].values()))

    def refused(reason: str) -> None:
        with pytest.raises(FilbertError, match=reason):
            read_weights(tmp_path)

    def write(**changes: Any) -> None:
        changed = {**index, "weight_map": {**index["weight_map"], **changes}}
        (tmp_path / INDEX).write_text(json.dumps(changed))

    write(phantom=first)
    refused(f"{first} lacks 'phantom'")
    write(phantom="model-9.safetensors")
    refused(r"lacks 1 of the 5 files that .*: model-9.safetensors\. Copy or download")
    write()
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / last).read_bytes())
    write(flag="copy.safetensors")
    refused("which another shard holds too")
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", '{"weight_map": 1}'):
        (tmp_path / INDEX).write_text(text)
        refused("no 'weight_map'")
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    refused("'a' is given twice")
    (tmp_path / INDEX).write_bytes(b"\xff\xfe")
    refused("not valid JSON")


def test_folders_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(FilbertError, match=r"holds no weights: expected model.safetensors"):
        read_weights(tmp_path)
    (tmp_path / "bert_model.ckpt.index").touch()
    with pytest.raises(FilbertError, match="filbert convert FOLDER OUT"):
        read_weights(tmp_path)
    with pytest.raises(FilbertError, match="could not read the folder"):
        read_weights(tmp_path / "nowhere")


def test_pickles_are_refused_and_the_way_out_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _bert("BertForSequenceClassification")
    folder = tmp_path / "old model's"
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]
    (folder / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(
        FilbertError, match=r"only as pytorch_model.bin\. Such a file can"
    ) as caught:
        read_weights(folder)
    lines = str(caught.value).splitlines()
    script = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    (tmp_path / "convert.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("convert.py")
    assert _equal(read_weights(tmp_path / "converted"), dict(model.state_dict()))
