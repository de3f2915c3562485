"""Documents out of files of every layout, the files of a corpus, and what cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from filbert.data import corpus, tables
from filbert.data.corpus import Document, corpus_files, read_documents
from filbert.errors import FilbertError, UsageError


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(path: str, **options: Any) -> list[str]:
    return [document.text for document in read_documents(path, **options)]


def failure(path: str, **options: Any) -> str:
    with pytest.raises(FilbertError) as caught:
        list(read_documents(path, **options))
    return str(caught.value)


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}

# --- which files ---------------------------------------------------------------------------------


def test_folders_globs_and_files_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.jsonl.xz", "b/deep/er/3.parquet", "b/.hidden.txt", "b/.git/4.txt"):
        write(tmp_path / name, "x")
    for name in ("b/README.md", "a.txt.zst", "b/5.parquet.gz", "b/6.bin"):
        write(tmp_path / name, "x")
    os.symlink(tmp_path / "a.txt.zst", tmp_path / "again.txt.zst")
    at = str(tmp_path)
    folder = [f"{at}/b/1.jsonl.xz", f"{at}/b/2.txt", f"{at}/b/deep/er/3.parquet"]
    assert corpus_files([f"{at}/b"]) == folder
    assert corpus_files([f"{at}/b/2.txt", f"{at}/b"]) == [folder[1], folder[0], folder[2]]
    assert corpus_files([f"{at}/**/*.txt*"]) == [f"{at}/a.txt.zst", f"{at}/b/2.txt"]
    assert corpus_files([f"{at}/[b]"]) == folder
    assert corpus_files([f"{at}/again.txt.zst", f"{at}/a.txt.zst"]) == [f"{at}/again.txt.zst"]


def test_a_name_with_a_bracket_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", "x")
    assert corpus_files([path]) == [path]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("revews.txt", "Did you mean"),
        ("*.parquet", "leads to no file"),
        ("empty", "leads to no file"),
        ("notes.md", "does not tell the format"),
        ("-", "not standard input"),
        ("", "not standard input"),
        ("hub:", "names no data set"),
        ("hub:a/b/c/d", "names no data set"),
    ],
)
def test_a_path_that_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, told: str
) -> None:
    write(tmp_path / "reviews.txt", "x")
    write(tmp_path / "notes.md", "x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FilbertError, match=told):
        corpus_files([path])


def test_no_path() -> None:
    with pytest.raises(UsageError, match="no corpus"):
        corpus_files([])


def test_files_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def dataset_files(name: str, *, config: str | None, split: str) -> list[Path]:
        asked.append((name, config, split))
        return [tmp_path / "0.parquet"]

    monkeypatch.setattr("filbert.sources.dataset_files", dataset_files)
    assert corpus_files(["hub:owner/name/part:test"]) == [str(tmp_path / "0.parquet")]
    assert asked == [("owner/name", "part", "test")]


# --- plain text ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACKERS)
def test_lines_with_empty_lines_between_documents(tmp_path: Path, suffix: str) -> None:
    content = b"\n\none\ntwo\n \n\nthree\r\n\tfour\n"
    path = write(tmp_path / f"a.txt{suffix}", PACKERS[suffix](content))
    wanted = [
        Document("one\ntwo", "", f"{path}:3"),
        Document("three\n\tfour", "", f"{path}:7"),
    ]
    assert list(read_documents(path)) == wanted
    assert list(read_documents(path, document="lines")) == wanted


def test_other_layouts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    assert texts(path, document="line") == ["one", "two", "", "three"]
    assert texts(path, document="file") == ["one\ntwo\n\nthree"]
    assert texts(write(tmp_path / "b.txt", "one\ntwo\n")) == ["one", "two"]  # auto, no empty line
    assert texts(write(tmp_path / "c.txt", "\n \n")) == []
    assert texts(write(tmp_path / "d.txt", "")) == []
    message = failure(path, document="lnies")
    assert "auto, lines, line, file" in message
    assert "'lines'" in message


def test_auto_looks_at_the_first_mib_alone(tmp_path: Path) -> None:
    line = "x" * 1023 + "\n"
    late = write(tmp_path / "late.txt", line * 1024 + "\nend\n")
    assert len(texts(late)) == 1026  # each line a document, the empty one too
    early = write(tmp_path / "early.txt", line * 1023 + "\nend\n")
    assert [len(text) for text in texts(early)] == [1024 * 1023 - 1, 3]


def test_a_document_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_LINE", 1000)
    path = write(tmp_path / "a.txt", "short\n\n" + "x" * 99 + "\n" + ("y" * 99 + "\n") * 10)
    message = failure(path)
    assert "begins at line 3" in message
    assert "--document line" in message
    assert len(texts(path, document="line")) == 13


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACKERS)
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "a\nb", "source": "x"}, {"text": "", "source": None}, {"text": "c"}]
    content = "\n".join(map(json.dumps, rows)).encode()
    path = write(tmp_path / f"a.jsonl{suffix}", PACKERS[suffix](content))
    assert list(read_documents(path)) == [
        Document("a\nb", "x", f"{path}#1"),
        Document("", "", f"{path}#2"),
        Document("c", "", f"{path}#3"),
    ]


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "body,from\nhello,here\n")
    assert list(read_documents(path, text_column="body", source_column="from")) == [
        Document("hello", "here", f"{path}#1")
    ]
    message = failure(path)
    assert "no column 'text'; there are 'body', 'from'" in message
    assert "--text-column" in message
    assert "--source-column" in failure(path, text_column="body", source_column="form")
    assert "leave --text-column out" in failure(write(tmp_path / "a.txt", "x"), text_column="body")


def test_sources_that_are_no_strings(tmp_path: Path) -> None:
    """Numbers and booleans by their JSON text, null and nothing as none, other types refused; a
    name stands in one line; the column can be turned off."""
    rows: list[object] = [7, 1.5, True, None, " a\nb\x1b[31m\u200b c\t", "x=1, y"]
    lines = [json.dumps({"text": "a", "source": value}) for value in rows]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    found = [document.source for document in read_documents(path)]
    assert found == ["7", "1.5", "true", "", "a b[31m c", "x=1, y"]
    path = write(tmp_path / "b.jsonl", '{"text": "a", "source": {"name": "x"}}')
    assert "--source-column none" in failure(path)
    for off in ("", "none"):
        assert [document.source for document in read_documents(path, source_column=off)] == [""]


def test_parquet_reads_the_columns_that_are_wanted(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    rows = 300
    table = {"other": [b"\xff"] * rows, "text": [f"t{i}" for i in range(rows)]}
    parquet.write_table(pa.table(table | {"source": ["s", None] * (rows // 2)}), path)
    documents = list(read_documents(path))
    assert [d.text for d in documents] == table["text"]
    assert [d.source for d in documents[:2]] == ["s", ""]
    assert "'other', 'text', 'source'" in failure(path, text_column="txet")
    columns = {tuple(row.values) for row in tables.read_rows(path, columns=["source", "text"])}
    assert columns == {("source", "text")}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"text": 3}', "row 2: 'text' is int ('3')"),
        (b'{"text": ["a"]}', "row 2: 'text' is list"),
        (b'{"text": "a", "source": [1]}', "row 2: 'source' is list"),
        (b'{"txet": "a"}', "row 2: no column 'text'; there are 'txet'"),
        (b'{"text": "a"', "line 2: no JSON"),
        (b'{"text": "\\ud800"}', "line 2: half of a surrogate pair"),
        (b'{"text": "\xff"}', "line 2, byte 11"),
        (b'{"text": "a\x00b"}', "line 2: a NUL character"),
    ],
)
def test_rows_that_are_no_documents(tmp_path: Path, line: bytes, told: str) -> None:
    assert told in failure(write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b"\n"))


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    path = write(tmp_path / "a.txt.zst", zstd(b"x" * 2000))
    assert "line 1: longer than 1,000 bytes" in failure(path)


# --- compressed ----------------------------------------------------------------------------------


def test_zstd_in_several_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.zst", zstd(b"one\nt") + zstd(b"wo\n") + zstd(b""))
    assert texts(path) == ["one", "two"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_broken_compressed_data_is_told(tmp_path: Path, suffix: str) -> None:
    lines = b"".join(b"%d\n" % (i * 7919) for i in range(50_000))
    whole = PACKERS[suffix](lines)
    for name, content in {"cut": whole[: len(whole) // 2], "noise": b"no such format"}.items():
        message = failure(write(tmp_path / f"{name}.txt{suffix}", content))
        assert "broken or cut short" in message
        assert f"{name}.txt{suffix}" in message


def test_broken_parquet_is_told_without_an_option_that_is_not_there(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.parquet", b"PAR1 no such format"))
    assert "cannot be read as Parquet" in message
    assert "--format" not in message


def test_a_compressed_file_under_a_plain_name(tmp_path: Path) -> None:
    assert "let its name end in .zst" in failure(write(tmp_path / "a.txt", zstd(b"text")))
    assert "not utf-8" in failure(write(tmp_path / "b.txt", bz2.compress(b"text")))


# --- progress and memory -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACKERS)
def test_progress_ends_at_the_size_of_the_file(tmp_path: Path, suffix: str) -> None:
    lines = b"".join(b"%d\n" % (i * 7919) for i in range(400_000))
    path = write(tmp_path / f"a.txt{suffix}", PACKERS[suffix](lines))
    seen: list[int] = []
    assert sum(1 for _ in read_documents(path, progress=seen.append)) == 400_000
    assert seen == sorted(seen)
    assert seen[-1] == os.path.getsize(path)
    assert len(seen) == 1 + len(lines) // tables.MIB
    assert 0 < seen[0] <= seen[-1]


def test_progress_of_parquet(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"text": ["x"] * 200}), path)
    seen: list[int] = []
    assert len(list(read_documents(path, progress=seen.append))) == 200
    assert len(seen) == 4  # 64 rows at a time
    assert seen[-1] == os.path.getsize(path)


@pytest.mark.parametrize("name", ["a.jsonl.xz", "a.txt", "a.txt.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    row = json.dumps({"text": "a sentence of some words " * 8}) + "\n\n"
    packed = PACKERS[Path(name).suffix if Path(name).suffix != ".txt" else ""]
    path = write(tmp_path / name, packed((row * 80_000).encode()))  # 17 MB
    reader = read_documents(path)
    next(reader)
    tracemalloc.start()
    assert sum(1 for _ in reader) == 79_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
