"""`filbert prepare` from text to shards: what is kept, the same bytes however it ran, bad input."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert.data import meter
from filbert.data import prepare as prepare_module
from filbert.data.prepare import prepare
from filbert.data.prepare_options import PrepareOptions
from filbert.data.shards import MANIFEST, Manifest, open_shards
from filbert.errors import FilbertError, UsageError
from filbert.recipes import parse_options
from filbert.text import BertTokenizer
from tests.tiny import VOCABULARY

pytest.importorskip("rensa", reason="pip install 'filbert[pretrain]'")

WORDS = VOCABULARY[5:-1]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocab")
    BertTokenizer([*VOCABULARY, ".", *"abcdefgh"]).save_pretrained(folder)
    return folder


def texts_of(count: int, *, seed: int = 0) -> list[str]:
    """Documents of 1 to 9 sentences; a tenth of them are copies."""
    draw = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and draw.random() < 0.1:
            texts.append(draw.choice(texts))
            continue
        sentences = [
            " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 12))).capitalize() + "."
            for _ in range(draw.randint(1, 9))
        ]
        texts.append(" ".join(sentences))
    return texts


def write(path: Path, texts: list[str], source: str = "s") -> Path:
    rows = [{"text": text, "source": f"{source}{i % 3}"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def options(corpus: Path, vocab: Path, out: Path, **changes: Any) -> PrepareOptions:
    given = {"corpus": [str(corpus)], "vocab": str(vocab), "out": str(out), "processes": 1}
    return parse_options({**given, **changes}, PrepareOptions, source="prepare")


def content(folder: Path) -> dict[str, str]:
    """Path -> checksum of all that a folder holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decoded(folder: Path, split: str = "train") -> list[list[str]]:
    """The sentences of each document."""
    opened = open_shards(folder, verify="full")
    tokenizer = BertTokenizer.from_pretrained(opened.vocab)
    documents = []
    for shard in opened.split(split):  # type: ignore[arg-type]
        for first, after in pairwise(shard.documents):
            bounds = shard.sentences[first : after + 1]
            documents.append(
                [tokenizer.decode(shard.tokens[a:b].tolist()) for a, b in pairwise(bounds)]
            )
    return documents


def test_small_corpus_by_hand(tmp_path: Path, vocab: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    texts = ["The film was good. A book.\nFood", "the  show", "", "x", "the show", "The film was"]
    rows = [{"text": text, "source": "ab"[i % 2]} for i, text in enumerate(texts)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    manifest = prepare(options(corpus, vocab, tmp_path / "o", holdout=0, min_chars=2), quiet=True)
    assert decoded(tmp_path / "o") == [
        ["the film was good.", "a book.", "food"],
        ["the show"],
        ["the film was"],
    ]
    assert manifest.sources == ["a", "b"]
    assert manifest.counts.model_dump() == {
        "documents": 3,
        "sentences": 5,
        "tokens": 5 + 3 + 1 + 2 + 3,
        "bytes": len("The film was good. A book.\nFood") + len("the show") + len("The film was"),
        "unknown_tokens": 0,
        "duplicates": 1,
        "near_duplicates": 0,
        "filtered": {"empty": 1, "short": 1},
    }
    (shard,) = open_shards(tmp_path / "o").split("train")
    assert shard.sources.tolist() == [0, 1, 1]
    (file,) = manifest.options["corpus"]
    assert file[:2] == ["c.jsonl", corpus.stat().st_size]
    assert not (tmp_path / "o" / ".work").exists()


def test_the_same_bytes_for_any_number_of_processes(tmp_path: Path, vocab: Path) -> None:
    (tmp_path / "c").mkdir()
    write(tmp_path / "c" / "1.jsonl", texts_of(300))
    write(tmp_path / "c" / "2.jsonl", texts_of(200, seed=1), source="t")
    for processes in (1, 2, 3):
        prepare(
            options(
                tmp_path / "c", vocab, tmp_path / str(processes), shard_tokens=2000,
                processes=processes, holdout=0.1,
            ),
            quiet=True,
        )  # fmt: skip
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")
    opened = open_shards(tmp_path / "1", verify="full")
    assert len(opened.split("train")) > 3
    assert opened.split("dev")
    counts = opened.manifest.counts
    assert counts.documents + counts.duplicates + counts.near_duplicates == 500
    assert counts.duplicates > 20
    assert sorted(opened.manifest.sources) == ["s0", "s1", "s2", "t0", "t1", "t2"]
    # every shard but the last of its split is full, and none by much
    sizes = [shard.tokens for shard in opened.manifest.shards if shard.split == "train"]
    assert all(2000 <= size < 3000 for size in sizes[:-1])


def test_which_documents_are_held_out_is_a_function_of_their_text(
    tmp_path: Path, vocab: Path
) -> None:
    texts = list(dict.fromkeys(texts_of(600)))
    one, other = write(tmp_path / "1.jsonl", texts), write(tmp_path / "2.jsonl", texts[::-2])
    for corpus in (one, other):
        prepare(options(corpus, vocab, tmp_path / corpus.stem, holdout=0.2, near=0), quiet=True)
    held = {tuple(document) for document in decoded(tmp_path / "1", "dev")}
    again = {tuple(document) for document in decoded(tmp_path / "2", "dev")}
    kept = {tuple(document) for document in decoded(tmp_path / "2")}
    assert again <= held
    assert not kept & held
    assert 0.12 < len(held) / len(texts) < 0.28  # of 540: 0.2, deviation 0.017


def test_whole_folders_are_left_alone_and_others_refused(tmp_path: Path, vocab: Path) -> None:
    corpus, out = write(tmp_path / "c.jsonl", texts_of(50)), tmp_path / "o"
    first = prepare(options(corpus, vocab, out), quiet=True)
    before = content(out)
    stamp = (out / MANIFEST).stat().st_mtime_ns
    assert prepare(options(corpus, vocab, out, processes=2), quiet=True) == first
    assert (out / MANIFEST).stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match=r"near 0\.8, now 0\.5"):
        prepare(options(corpus, vocab, out, near=0.5), quiet=True)
    write(corpus, texts_of(51))
    with pytest.raises(UsageError, match=r"c\.jsonl has other content"):
        prepare(options(corpus, vocab, out), quiet=True)
    other = write(tmp_path / "d.jsonl", texts_of(50))
    with pytest.raises(UsageError, match=r"the corpus was c\.jsonl, is now d\.jsonl"):
        prepare(options(other, vocab, out), quiet=True)
    assert content(out) == before
    prepare(options(corpus, vocab, out, near=0.5, overwrite=True), quiet=True)
    assert open_shards(out).manifest.options["near"] == 0.5


def test_chinese_words_are_marked(tmp_path: Path) -> None:
    pytest.importorskip("rjieba")
    characters = sorted(set("我们学习语言他在北京大学工作，。"))
    BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]).save_pretrained(
        tmp_path / "v"
    )
    (tmp_path / "c.txt").write_text("我们学习语言。他在北京大学工作。\n", "utf-8")
    prepare(
        options(tmp_path / "c.txt", tmp_path / "v", tmp_path / "o", words="chinese", holdout=0),
        quiet=True,
    )
    (shard,) = open_shards(tmp_path / "o").split("train")
    # 我们 学习 语言 。 / 他 在 北京大学 工作 。
    assert shard.joined(0, 16).astype(int).tolist() == [
        *(0, 1, 0, 1, 0, 1, 0),
        *(0, 0, 0, 1, 1, 1, 0, 1, 0),
    ]
    prepare(
        options(tmp_path / "c.txt", tmp_path / "v", tmp_path / "p", holdout=0), quiet=True
    )  # a vocabulary of a dozen characters is no Chinese one by itself
    assert not open_shards(tmp_path / "p").split("train")[0].joined(0, 16).any()


# --- killed, full, shared ------------------------------------------------------------------------

CHILD = """
import sys
from filbert.data import prepare as module
from filbert.data.prepare_options import PrepareOptions
import json
module.COMMIT_SECONDS = 0.0
if __name__ == "__main__":
    module.prepare(PrepareOptions(**json.loads(sys.argv[1])), quiet=True)
"""


def child(given: PrepareOptions, folder: Path) -> subprocess.Popen[bytes]:
    script = folder / "child.py"
    script.write_text(CHILD, "utf-8")
    root = Path(__file__).resolve().parents[3]
    return subprocess.Popen(
        [sys.executable, str(script), given.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
    )


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path, vocab: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", texts_of(4000))
    changes: dict[str, Any] = {"shard_tokens": 5000, "holdout": 0.05}
    prepare(options(corpus, vocab, tmp_path / "whole", **changes), quiet=True)
    given = options(corpus, vocab, tmp_path / "killed", **changes)
    draw, kills, places = random.Random(5), 0, set()
    for processes in (1, 1, 2, 1, 1, 1):
        running = child(given.model_copy(update={"processes": processes}), tmp_path)
        state = tmp_path / "killed" / ".work" / "state.json"
        before = state.read_bytes() if state.exists() else b""
        while running.poll() is None and (not state.exists() or state.read_bytes() == before):
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.communicate()
        if state.exists():
            places.add(json.loads(state.read_bytes())["place"][1])
        assert not (tmp_path / "killed" / MANIFEST).exists() or running.returncode == 0
    assert kills >= 3
    assert len(places) >= 3  # it did go on, and did not begin again
    prepare(given, quiet=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_processes_end_with_a_killed_parent(tmp_path: Path, vocab: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", texts_of(20_000))
    running = child(
        options(corpus, vocab, tmp_path / "o", processes=2, shard_tokens=5000), tmp_path
    )
    listed = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    state = tmp_path / "o" / ".work" / "state.json"
    while running.poll() is None and not state.exists():
        time.sleep(0.01)
    workers = listed.read_text().split()
    running.kill()
    running.communicate()
    assert len(workers) >= 2
    until = time.monotonic() + 20
    while any(_lives(worker) for worker in workers):
        assert time.monotonic() < until, "a process outlives its parent"
        time.sleep(0.05)


def _lives(process: str) -> bool:
    """Whether it runs; one that ended and waits for somebody to ask does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def interrupted(given: PrepareOptions, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Run until some chunks were noted, then break off."""
    taken = prepare_module._Gatherer.take

    def take(self: Any, chunk: Any, place: Any) -> None:
        if place.documents > after:
            raise KeyboardInterrupt
        taken(self, chunk, place)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module._Gatherer, "take", take)
        patch.setattr(prepare_module, "COMMIT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            prepare(given, quiet=True)


def test_near_copies_of_documents_from_before_a_break_are_known(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(7)
    texts = [" ".join(draw.choice(WORDS) for _ in range(120)) + "." for _ in range(1000)]
    near = [text.rsplit(" ", 2)[0] + " " + WORDS[0] + "." for text in texts]
    corpus = write(tmp_path / "c.jsonl", [*texts, *near])
    whole = prepare(options(corpus, vocab, tmp_path / "whole"), quiet=True)
    assert whole.counts.near_duplicates + whole.counts.duplicates == 1000
    assert whole.counts.near_duplicates > 900
    given = options(corpus, vocab, tmp_path / "broken")
    interrupted(given, monkeypatch, after=700)
    # what was appended after the last note does not count
    for name in ("near.keys", "near.values"):
        with open(tmp_path / "broken" / ".work" / name, "ab") as file:
            file.write(b"\x01" * 100)
    prepare(given, quiet=True)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_damaged_unfinished_work_is_told(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "c.jsonl", texts_of(500))
    given = options(corpus, vocab, tmp_path / "o", shard_tokens=3000, holdout=0.3)
    prepare(given.model_copy(update={"out": str(tmp_path / "whole")}), quiet=True)
    interrupted(given, monkeypatch, after=200)
    work = tmp_path / "o" / ".work"
    streams = sorted(path for path in work.iterdir() if path.suffix != ".json" and path.is_file())
    filled = [path for path in streams if path.stat().st_size]
    assert len(filled) >= 8  # of a split, and what is remembered of documents
    for path in filled:
        whole = path.read_bytes()
        for damaged, told in (
            (bytes([whole[0] ^ 1]) + whole[1:], "not as it was written"),
            (whole[:-1], "shorter than it was"),
        ):
            path.write_bytes(damaged)
            with pytest.raises(FilbertError, match=f"{path.name} is {told}.*--overwrite"):
                prepare(given, quiet=True)
        path.write_bytes(whole)
    shard = next((tmp_path / "o").glob("train-*/tokens.npy"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FilbertError, match=r"tokens.npy is damaged.*--overwrite"):
        prepare(given, quiet=True)
    shard.unlink()
    with pytest.raises(FilbertError, match=r"tokens.npy is damaged: it is not there.*--overwrite"):
        prepare(given, quiet=True)
    shard.write_bytes(whole)
    state = work / "state.json"
    whole_state = json.loads(state.read_text("utf-8"))
    cases: list[Any] = [{}, [], None, {**whole_state, "place": [0]}, {**whole_state, "more": 1}]
    cases += [{**whole_state, "streams": {"hashes": {"length": -16}}}]
    cases += [{**whole_state, "record": {}}, {**whole_state, "place": [0, 1, 1]}]
    for case in [*map(json.dumps, cases), "{"]:
        state.write_text(case, "utf-8")
        with pytest.raises(FilbertError, match=r"state.json is damaged.*--overwrite"):
            prepare(given, quiet=True)
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "o", damaged)
    state.write_text(json.dumps(whole_state), "utf-8")
    prepare(given, quiet=True)
    prepare(given.model_copy(update={"out": str(damaged), "overwrite": True}), quiet=True)
    assert content(tmp_path / "o") == content(damaged) == content(tmp_path / "whole")


def test_a_changed_corpus_or_option_is_refused(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of(500)
    corpus = write(tmp_path / "c.jsonl", texts)
    given = options(corpus, vocab, tmp_path / "o", shard_tokens=2000)
    interrupted(given, monkeypatch, after=200)
    with pytest.raises(UsageError, match="not finished"):
        open_shards(tmp_path / "o")
    with pytest.raises(UsageError, match="min_chars 1, now 9"):
        prepare(given.model_copy(update={"min_chars": 9}), quiet=True)
    write(tmp_path / "c.jsonl", [*texts[:-1], "other words"])
    with pytest.raises(UsageError, match=r"c.jsonl has other content"):
        prepare(given, quiet=True)
    write(tmp_path / "c.jsonl", texts)
    prepare(given, quiet=True)
    prepare(given.model_copy(update={"out": str(tmp_path / "p")}), quiet=True)
    assert content(tmp_path / "o") == content(tmp_path / "p")


def test_what_is_no_folder_of_ours_is_told_and_replaced(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "c.jsonl", texts_of(300))
    given = options(corpus, vocab, tmp_path / "whole", shard_tokens=3000)
    prepare(given, quiet=True)
    for name in (".work", "vocab", "train-00001", "manifest.json", ".work/state.json"):
        out = tmp_path / name.replace("/", "-").strip(".")
        given = options(corpus, vocab, out, shard_tokens=3000)
        interrupted(given, monkeypatch, after=100)
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if path.suffix == ".json":
            path.mkdir()
        else:
            path.write_text("mine", "utf-8")
        with pytest.raises(FilbertError, match=r"--overwrite"):
            prepare(given, quiet=True)
        prepare(given.model_copy(update={"overwrite": True}), quiet=True)
        assert content(out) == content(tmp_path / "whole"), name


def test_a_full_disk_is_told_and_the_same_call_goes_on(tmp_path: Path, vocab: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", texts_of(600))
    given = options(corpus, vocab, tmp_path / "o", shard_tokens=2000, holdout=0)
    prepare(given.model_copy(update={"out": str(tmp_path / "whole")}), quiet=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (3000, 4500, 9000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(FilbertError, match=r"could not write .* larger than"):
                prepare(given, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    prepare(given, quiet=True)
    assert content(tmp_path / "o") == content(tmp_path / "whole")


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path, vocab: Path) -> None:
    from filbert.atomic import locked

    corpus = write(tmp_path / "c.jsonl", texts_of(20))
    (tmp_path / "o").mkdir()
    with (
        locked(tmp_path / "o", doing="writes into"),
        pytest.raises(UsageError, match=f"another process \\({os.getpid()}\\)"),
    ):
        prepare(options(corpus, vocab, tmp_path / "o"), quiet=True)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "changes", "told"),
    [
        ([], {}, "no document of the corpus is left: it holds none"),
        (["", " \n"], {}, "2 empty"),
        (["the show"] * 3, {"min_chars": 100}, "3 short"),
        (["the show"] * 3, {"language": "zh"}, "3 language"),
    ],
)
def test_a_corpus_of_which_nothing_is_left(
    tmp_path: Path, vocab: Path, texts: list[str], changes: dict[str, Any], told: str
) -> None:
    corpus = write(tmp_path / "c.jsonl", texts)
    with pytest.raises(FilbertError, match=told):
        prepare(options(corpus, vocab, tmp_path / "o", **changes), quiet=True)
    # nothing is in the way of another try
    write(tmp_path / "c.jsonl", ["The show was good"])
    assert prepare(options(corpus, vocab, tmp_path / "o"), quiet=True).counts.documents == 1


def test_all_duplicates_and_more_processes_than_documents(tmp_path: Path, vocab: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", ["The film was good."] * 40)
    manifest = prepare(options(corpus, vocab, tmp_path / "o", processes=4), quiet=True)
    assert (manifest.counts.documents, manifest.counts.duplicates) == (1, 39)


def test_vocabularies_that_do_not_serve(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", ["The film was good."])
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "vocab.txt").write_text("the\nfilm\n", "utf-8")
    with pytest.raises(FilbertError, match=r"\[UNK\]"):
        prepare(options(corpus, tmp_path / "v", tmp_path / "o"), quiet=True)
    BertTokenizer(VOCABULARY[:4] + VOCABULARY[5:], mask_token=None).save_pretrained(tmp_path / "w")
    with pytest.raises(FilbertError, match="no mask token"):
        prepare(options(corpus, tmp_path / "w", tmp_path / "o"), quiet=True)
    assert not (tmp_path / "o").exists()


def test_places_that_are_not_for_shards(tmp_path: Path, vocab: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", ["The film was good."])
    with pytest.raises(UsageError, match="is a file"):
        prepare(options(corpus, vocab, corpus), quiet=True)
    with pytest.raises(UsageError, match="lies in --out"):
        prepare(options(corpus, vocab, tmp_path), quiet=True)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "letter.doc").write_text("dear", "utf-8")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"letter\.doc"):
            prepare(options(corpus, vocab, tmp_path / "o", overwrite=overwrite), quiet=True)
    assert (tmp_path / "o" / "letter.doc").exists()
    prepare(options(corpus, vocab, tmp_path / "p"), quiet=True)
    with pytest.raises(UsageError, match="would be deleted"):
        prepare(
            options(corpus, tmp_path / "p" / "vocab", tmp_path / "p", overwrite=True), quiet=True
        )


def test_missing_packages_are_named_before_anything_is_written(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "c.jsonl", ["The film was good."])
    find = importlib.util.find_spec
    for package, changes in (("rensa", {}), ("rjieba", {"words": "chinese", "near": 0})):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, hidden=package: None if name == hidden else find(name),
        )
        with pytest.raises(FilbertError, match=rf"'{package}'.*filbert\[pretrain\]"):
            prepare(options(corpus, vocab, tmp_path / "o", **changes), quiet=True)
    assert not (tmp_path / "o").exists()


def test_errors_of_reading_come_through_from_a_pool(tmp_path: Path, vocab: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"text": "The film"}\n{"text": 3}\n', "utf-8")
    with pytest.raises(FilbertError, match="row 2"):
        prepare(options(corpus, vocab, tmp_path / "o", processes=2), quiet=True)


def test_progress_is_told(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meter, "LINE_SECONDS", 0.0)
    corpus = write(tmp_path / "c.jsonl", ["The film was good.", "The book was bad."])
    prepare(options(corpus, vocab, tmp_path / "o"), quiet=False)
    told = capsys.readouterr()
    assert "prepare: 100% of 0.0 MB, 2 documents, 0.0 M tokens, " in told.err
    assert told.out == ""
    prepare(options(corpus, vocab, tmp_path / "p"), quiet=True)
    assert capsys.readouterr().err == ""


def test_options_are_checked() -> None:
    for values, told in (
        ({"corpus": []}, "corpus"),
        ({"corpus": ["a"], "vocab": "v", "out": "o", "nears": 1}, "Did you mean 'near'"),
        ({"corpus": ["a"], "vocab": "v"}, "'out' is required"),
        ({"corpus": ["a"], "vocab": "v", "out": "o", "near": 2}, "near"),
    ):
        with pytest.raises(UsageError, match=told):
            parse_options(values, PrepareOptions, source="prepare")


def test_numbers_of_a_manifest_match_its_arrays(tmp_path: Path, vocab: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", texts_of(100))
    manifest: Manifest = prepare(options(corpus, vocab, tmp_path / "o", holdout=0.3), quiet=True)
    shards = open_shards(tmp_path / "o").shards
    assert sum(len(shard.tokens) for shard in shards) == manifest.counts.tokens
    assert sum(len(shard.documents) - 1 for shard in shards) == manifest.counts.documents
    for shard in shards:
        assert not shard.joined(0, len(shard.tokens))[np.asarray(shard.sentences[:-1])].any()
