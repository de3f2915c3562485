"""An index that is kept between calls: read where it fits, made anew where it does not."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from filbert.data import kept_arrays
from filbert.data.documents import OF_MODELS, WORDS, read_documents
from filbert.data.kept_arrays import ForeignError, StaleError, keep, kept
from filbert.errors import FilbertError, UsageError


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("the guarantee lasts two years\n" * 40, "utf-8")
    (folder / "中文.md").write_text("退貨需要七天。" * 200, "utf-8")
    return folder


def no_building(monkeypatch: pytest.MonkeyPatch) -> None:
    bm25s = pytest.importorskip("bm25s")

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the index is built")

    monkeypatch.setattr(bm25s.BM25, "index", refuse)


def test_a_kept_index_answers_as_one_that_is_made(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bm25s")
    made = read_documents(docs)
    first = read_documents(docs, index=tmp_path / "kept")
    assert first.notes == made.notes == []
    no_building(monkeypatch)
    again = read_documents(docs, index=tmp_path / "kept")
    assert again.notes == []
    for question in ("how long is the guarantee", "退貨要幾天", "years 天", "zebra", "the"):
        wanted = made.search(question, count=9)
        assert again.search(question, count=9) == first.search(question, count=9) == wanted
    assert made.search("退貨要幾天", count=1) and not made.search("zebra", count=1)
    with pytest.raises(AssertionError, match="is built"):
        read_documents(docs)


def test_a_changed_text_is_noticed_whatever_its_date(docs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    read_documents(docs, index=tmp_path)
    path = docs / "a.txt"
    before = path.stat()
    path.write_text(path.read_text("utf-8").replace("years", "weeks"), "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    found = read_documents(docs, index=tmp_path)
    assert found.notes == [
        f"{tmp_path / WORDS} was made of other documents or settings; it is made anew"
    ]
    assert found.search("weeks", count=1) == [0] and not found.search("years", count=1)
    assert read_documents(docs, index=tmp_path).notes == []
    path.rename(docs / "b.txt")  # the answers name files
    assert len(read_documents(docs, index=tmp_path).notes) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_index_is_made_anew(docs: Path, tmp_path: Path, damage: str) -> None:
    pytest.importorskip("bm25s")
    wanted = read_documents(docs, index=tmp_path).search("two years", count=5)
    path = tmp_path / WORDS
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 255
    changed = {"flip": bytes(raw), "cut": bytes(raw[:-9]), "empty": b"", "text": b"hello " * 9}
    path.write_bytes(changed[damage])
    found = read_documents(docs, index=tmp_path)
    (note,) = found.notes
    assert f"{path} is damaged and is made anew (" in note and "\n" not in note
    assert found.search("two years", count=5) == wanted
    assert read_documents(docs, index=tmp_path).notes == []


def test_writers_at_once_do_no_harm(docs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.txt").write_text("another text of other words", "utf-8")
    index = tmp_path / "kept"

    def ask(number: int) -> list[int]:
        place, words = ((docs, "guarantee"), (other, "another"))[number % 2]
        found = read_documents(place, index=index)
        assert not any("damaged" in note for note in found.notes)
        return found.search(words, count=1)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(24))) == [[0]] * 24
    assert [path.name for path in index.iterdir()] == [WORDS]


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header and size are looked at one after the other: of two files they do not fit."""
    path, check, calls = tmp_path / "a.safetensors", kept_arrays.check_safetensors, 0
    kept_arrays.keep(path, {"x": np.zeros(4, np.float32)}, "stamp")

    def replaced(where: Path) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            kept_arrays.keep(path, {"x": np.ones(9, np.float32)}, "stamp")
            raise FilbertError("the file has another size than its header says")
        return check(where)

    monkeypatch.setattr(kept_arrays, "check_safetensors", replaced)
    found = kept_arrays.kept(path, "stamp", {"x": 1})
    assert found is not None and found["x"].tolist() == [1.0] * 9 and calls == 2


def test_what_an_index_cannot_be(docs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    with pytest.raises(UsageError, match=r"a\.txt is a file; name a folder"):
        read_documents(docs, index=docs / "a.txt")
    assert "guarantee" in (docs / "a.txt").read_text("utf-8")
    for name in OF_MODELS:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / name).write_text("{}")
        with pytest.raises(
            UsageError, match=rf"holds a model \({name}\); give a folder of its own"
        ):
            read_documents(docs, index=tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]


@pytest.mark.parametrize("size", [None, -9])
def test_a_file_of_another_program_is_not_replaced(
    docs: Path, tmp_path: Path, size: int | None
) -> None:
    pytest.importorskip("bm25s")
    path = tmp_path / WORDS
    save_file({"weight": np.ones((4, 4), np.float32)}, path, metadata={"format": "pt"})
    path.write_bytes(before := path.read_bytes()[:size])
    with pytest.raises(ForeignError, match="is not of filbert, so it is not replaced; move it"):
        read_documents(docs, index=tmp_path)
    assert path.read_bytes() == before


def test_an_index_that_lacks_an_array_is_made_anew(docs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    read_documents(docs, index=tmp_path)
    path = tmp_path / WORDS
    arrays = load_file(path)
    with safe_open(path, framework="numpy") as file:
        stamp = file.metadata()["stamp"]
    for changed in ({**arrays, "terms": arrays["terms"][None]}, {"data": arrays["data"]}):
        keep(path, changed, stamp)
        found = read_documents(docs, index=tmp_path)
        (note,) = found.notes
        assert "is damaged and is made anew (" in note and "it holds other arrays than data" in note
        assert found.search("two years", count=1) == [0]
        assert read_documents(docs, index=tmp_path).notes == []


def test_an_index_that_cannot_be_written_costs_a_line(docs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    (tmp_path / "a" / WORDS).mkdir(parents=True)
    for index in (tmp_path / "a", docs / "a.txt" / "below"):
        found = read_documents(docs, index=index)
        assert found.search("two years", count=1) == [0]
        assert found.notes == [found.unkept]
        assert found.unkept and found.unkept.startswith("the index could not be kept for the next")
    assert (tmp_path / "a" / WORDS).is_dir()


def test_a_question_without_a_word_finds_nothing(docs: Path) -> None:
    pytest.importorskip("bm25s")
    library = read_documents(docs)
    assert library.search("???", count=3) == library.search("\u3000", count=3) == []


def test_arrays_and_what_they_belong_to(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    wanted = {"a": 2, "b": 2}
    assert kept(path, "x", wanted) is None
    arrays = {"a": np.arange(6).reshape(2, 3).T, "b": np.zeros((0, 4), np.float32)}
    keep(path, arrays, "x")
    found = kept(path, "x", wanted)
    assert found is not None and sorted(found) == ["a", "b"]
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype
    with pytest.raises(StaleError):
        kept(path, "y", wanted)
    keep(path, {"a": np.zeros(2)}, "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(FilbertError, match="could not write"):
        keep(tmp_path / "file" / "a", arrays, "x")
