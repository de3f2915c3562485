"""`filbert prepare` and what a person would lose or not see: shards that are replaced, a signal,
damage, text of which the vocabulary knows little."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert.cli_verbs import _verify
from filbert.data import prepare as prepare_module
from filbert.data.prepare import prepare
from filbert.data.prepare_options import PrepareOptions
from filbert.data.shards import MANIFEST, open_shards
from filbert.errors import FilbertError, UsageError
from filbert.stopping import stoppable
from filbert.text import BertTokenizer
from tests.tiny import VOCABULARY

pytest.importorskip("rensa", reason="pip install 'filbert[pretrain]'")

WORDS = VOCABULARY[5:-1]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    BertTokenizer([*VOCABULARY, "."]).save_pretrained(tmp_path / "vocab")
    return tmp_path / "vocab"


def corpus(path: Path, count: int, *, seed: int = 0) -> Path:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=20)) + "." for _ in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def options(path: Path, vocab: Path, out: Path, **changes: Any) -> PrepareOptions:
    given = {"corpus": [str(path)], "vocab": str(vocab), "out": str(out), "processes": 1}
    return PrepareOptions(**{**given, "shard_tokens": 1000, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- shards that are replaced ---------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"", b'{"text": "a"}\n{"text": "\xff"}\n', b'{"txet": "a"}\n'])
def test_shards_stay_until_the_new_ones_are_whole(tmp_path: Path, vocab: Path, bad: bytes) -> None:
    out = tmp_path / "o"
    prepare(options(corpus(tmp_path / "c.jsonl", 200), vocab, out), quiet=True)
    before = content(out)
    (tmp_path / "bad.jsonl").write_bytes(bad)
    with pytest.raises(FilbertError):
        prepare(options(tmp_path / "bad.jsonl", vocab, out, overwrite=True), quiet=True)
    assert content(out) == before
    assert not (tmp_path / ".o.new").exists()
    other = corpus(tmp_path / "d.jsonl", 100, seed=1)
    prepare(options(other, vocab, out, overwrite=True), quiet=True)
    prepare(options(other, vocab, tmp_path / "p"), quiet=True)
    assert content(out) == content(tmp_path / "p")
    assert not (tmp_path / ".o.new").exists()


def test_a_broken_off_replacement_goes_on(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same command; with another one, or where the work is damaged, it begins again."""
    out, new = tmp_path / "o", tmp_path / ".o.new"
    prepare(options(corpus(tmp_path / "c.jsonl", 200), vocab, out), quiet=True)
    before = content(out)
    other = corpus(tmp_path / "d.jsonl", 400, seed=1)
    given = options(other, vocab, out, overwrite=True)
    taken, begun = prepare_module._Gatherer.take, []

    def take(self: Any, chunk: Any, place: Any) -> None:
        begun.append(place.documents)
        if place.documents > 150 and stop:
            raise KeyboardInterrupt
        taken(self, chunk, place)

    monkeypatch.setattr(prepare_module._Gatherer, "take", take)
    monkeypatch.setattr(prepare_module, "COMMIT_SECONDS", 0.0)
    for damage in ("", ".work/hashes", "train-00000/tokens.npy"):
        stop = True
        with pytest.raises(KeyboardInterrupt):
            prepare(given, quiet=True)
        assert content(out) == before
        if damage:
            assert (new / damage).is_file()
            (new / damage).write_bytes(b"")
        stop, first = False, begun[0]
        begun.clear()
        prepare(given, quiet=True)
        assert (begun[0] == first) == bool(damage)  # from the beginning
        begun.clear()
        plain = tmp_path / f"plain{len(damage)}"
        prepare(options(other, vocab, plain), quiet=True)
        assert content(out) == content(plain)
        before = content(out)
        begun.clear()
    stop = True
    with pytest.raises(KeyboardInterrupt):
        prepare(given, quiet=True)
    stop = False
    prepare(given.model_copy(update={"min_chars": 9}), quiet=True)
    assert open_shards(out, verify="full").manifest.options["min_chars"] == 9


def test_a_place_that_takes_nothing_beside_it(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus(tmp_path / "c.jsonl", 20)
    prepare(options(path, vocab, tmp_path / "o"), quiet=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "o")
    with pytest.raises(UsageError, match="does not take them; empty the folder"):
        prepare(options(path, vocab, tmp_path / "o", overwrite=True), quiet=True)
    assert (tmp_path / "o" / MANIFEST).is_file()


# --- signals --------------------------------------------------------------------------------------


def test_a_signal_is_told_and_leaves_no_lock(tmp_path: Path, vocab: Path) -> None:
    path = corpus(tmp_path / "c.jsonl", 60_000)
    out = tmp_path / "o"
    words = ["prepare", str(path), "--vocab", str(vocab), "--out", str(out), "--processes", "1"]
    running = subprocess.Popen(
        [sys.executable, "-m", "filbert", *words, "--shard-tokens", "5000"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (out / ".work" / "state.json").exists():
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped by SIGTERM; the same command goes on from there" in told
    assert not (out / ".lock").exists()
    assert (out / ".work" / "state.json").exists()


def test_an_echo_of_a_signal_is_passed_over_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM; so"), stoppable("so"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# --- damage ---------------------------------------------------------------------------------------


def test_a_finished_folder_is_looked_at(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    given = options(corpus(tmp_path / "c.jsonl", 50), vocab, out)
    prepare(given, quiet=True)
    prepare(given)
    told = capsys.readouterr().err
    assert (
        "is finished already (checked: the sizes of all files, the checksums of the small" in told
    )
    path = out / "train-00000" / "sources.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x00" if whole[-1] else whole[:-2] + b"\x01\x00")
    with pytest.raises(FilbertError, match=r"sources\.npy is damaged"):
        prepare(given, quiet=True)
    path.unlink()
    for call in (lambda: prepare(given, quiet=True), lambda: _verify(str(out), {}, None, False)):
        with pytest.raises(FilbertError, match=r"sources\.npy is damaged: it is not there"):
            call()


# --- text of which the vocabulary knows little ----------------------------------------------------


def unknown_texts(count: int) -> list[str]:
    """Documents of 30 words that no vocabulary of ours has, all different."""
    draw = random.Random(3)
    letters = "qzxwvkj"
    return [
        " ".join("".join(draw.choices(letters, k=6)) for _ in range(30)) + "." for _ in range(count)
    ]


def test_unknown_words_make_no_duplicates(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = unknown_texts(40)
    near = texts[0].rsplit(" ", 1)[0] + " other."
    (tmp_path / "c.txt").write_text("\n".join([*texts, near]), "utf-8")
    manifest = prepare(options(tmp_path / "c.txt", vocab, tmp_path / "o"))
    assert (manifest.counts.documents, manifest.counts.near_duplicates) == (40, 1)
    # 30 words and a full stop in each
    assert manifest.counts.tokens == 40 * 31
    assert manifest.counts.unknown_tokens == 40 * 30
    told = capsys.readouterr().err
    assert f"97% of the tokens are [UNK]; is {vocab} the vocabulary for this text?" in told


def test_a_few_unknown_words_are_left_out_of_the_likeness(tmp_path: Path, vocab: Path) -> None:
    draw = random.Random(1)
    words = draw.choices(WORDS, k=100)
    other = [*words[:50], "qzx", *words[50:]]  # one of 101, which takes five of 97 runs apart
    (tmp_path / "c.txt").write_text(" ".join(words) + "\n" + " ".join(other), "utf-8")
    given = options(tmp_path / "c.txt", vocab, tmp_path / "o", near=1.0, holdout=0)
    assert prepare(given, quiet=True).counts.near_duplicates == 1


def test_a_vocabulary_that_does_not_say_how_text_is_read(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = corpus(tmp_path / "c.jsonl", 20)
    prepare(options(path, vocab, tmp_path / "o", holdout=0.5))
    assert "note:" not in capsys.readouterr().err
    for file in vocab.iterdir():
        if file.name != "vocab.txt":
            file.unlink()
    prepare(options(path, vocab, tmp_path / "p"))
    assert "has a vocab.txt alone" in capsys.readouterr().err
    (vocab / "vocab.txt").write_bytes(b"")
    with pytest.raises(FilbertError, match=r"vocab\.txt is empty"):
        prepare(options(path, vocab, tmp_path / "q"), quiet=True)


def test_ids_of_older_manifests(tmp_path: Path, vocab: Path) -> None:
    """A manifest without the count of [UNK] opens."""
    out = tmp_path / "o"
    prepare(options(corpus(tmp_path / "c.jsonl", 20), vocab, out), quiet=True)
    found = json.loads((out / MANIFEST).read_text())
    del found["counts"]["unknown_tokens"]
    (out / MANIFEST).write_text(json.dumps(found))
    assert open_shards(out).manifest.counts.unknown_tokens == 0
    assert np.all(open_shards(out).shards[0].tokens < 100)


@pytest.mark.parametrize("told", [0, 1])
def test_too_few_held_out_documents_are_told(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str], told: int
) -> None:
    """With two there is nothing to tell; which documents are held out is a function of their text
    and the seed, so one is looked for."""
    path = corpus(tmp_path / "c.jsonl", 20)
    for seed in range(100):
        out = tmp_path / str(seed)
        manifest = prepare(options(path, vocab, out, holdout=0.05, seed=seed), quiet=True)
        there = sum(entry.documents for entry in manifest.shards if entry.split == "dev")
        prepare(options(path, vocab, out, holdout=0.05, seed=seed))
        note = f"note: {there} of 20 documents are held out"
        found = capsys.readouterr().err
        assert (note in found and "larger --holdout, such as 0.05" in found) == (there < 2)
        if there == told:
            return
    raise AssertionError(f"no seed holds out {told}")
