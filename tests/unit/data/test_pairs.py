"""Pairs of texts: the layouts that people have, and what is wrong with a file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from filbert.data.pairs import Pairs, read_pairs, split_pairs, stream_sources
from filbert.errors import FilbertError, UsageError


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def test_two_parallel_files_also_compressed(tmp_path: Path) -> None:
    source = tmp_path / "train.en.gz"
    source.write_bytes(gzip.compress(b"A dog.\nTwo men.\n"))
    target = write(tmp_path / "train.de", "Ein Hund.\nZwei Männer.\n")
    pairs = read_pairs(str(source), target)
    assert pairs.sources == ["A dog.", "Two men."]
    assert pairs.targets == ["Ein Hund.", "Zwei Männer."]
    assert pairs.id(1) == "train.en.gz:2"
    assert pairs.references is None


def test_parallel_files_of_different_lengths_name_the_first_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", "one\ntwo\nthree\n")
    target = write(tmp_path / "a.de", "eins\nzwei\n")
    with pytest.raises(FilbertError, match=r"a\.de ends after 2 lines, and line 3 of .*a\.en"):
        read_pairs(source, target)
    with pytest.raises(FilbertError, match=r"a\.de ends after 2 lines"):
        read_pairs(target, source)


def test_a_table_without_header_and_with_attribution(tmp_path: Path) -> None:
    """Tatoeba's own layout: a byte-order mark, three columns, a name in .txt."""
    path = write(tmp_path / "cmn.txt", "\ufeffHi.\t嗨。\tCC-BY (a)\nRun.\t你用跑的。\tCC-BY (b)\n")
    pairs = read_pairs(path)
    assert pairs.sources == ["Hi.", "Run."]
    assert pairs.targets == ["嗨。", "你用跑的。"]
    assert read_pairs(path, source_column="2", target_column="1").sources == pairs.targets


def test_columns_by_name_and_by_guess(tmp_path: Path) -> None:
    text = "id\ttarget\tsource\n1\tHallo.\tHello.\n"
    path = write(tmp_path / "a.tsv", text)
    assert read_pairs(path).sources == ["Hello."]
    assert read_pairs(path, source_column="target", target_column="source").sources == ["Hallo."]
    with pytest.raises(UsageError, match=r"no column 'sourc'.*Did you mean 'source'"):
        read_pairs(path, source_column="sourc")
    other = write(tmp_path / "b.tsv", "id\tx\ty\n1\ta\tb\n")
    with pytest.raises(UsageError, match="--source-column and --target-column"):
        read_pairs(other)


def test_json_lines_nested_lists_and_references(tmp_path: Path) -> None:
    rows = [{"translation": {"en": "A dog.", "de": "Ein Hund."}}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(path, source_column="en", target_column="de")
    assert (pairs.sources, pairs.targets) == (["A dog."], ["Ein Hund."])
    # SciTLDR: sentences of an abstract, several summaries
    rows = [{"source": ["One.", "Two."], "target": ["Short.", "Shorter."]}]
    path = write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(path)
    assert pairs.sources == ["One. Two."]
    assert pairs.targets == ["Short."]
    assert pairs.all_references() == [["Short.", "Shorter."]]


def test_an_empty_side_is_refused_or_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "source\ttarget\nHi.\tHallo.\nYes.\t \n")
    with pytest.raises(FilbertError, match=r"a\.tsv, row 2: the target is empty"):
        read_pairs(path)
    pairs = read_pairs(path, empty="skip")
    assert len(pairs) == 1
    assert "1 pairs with an empty side left out" in pairs.notes[0]


def test_summaries_that_are_not_shorter_than_their_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tsummary\nIt rained.\tRain.\nWe left.\tWe  left.\n")
    assert read_pairs(path).notes == []  # a translation may be of any length
    assert read_pairs(path, task="summarize").notes == [
        f"{path}: the summary is not shorter than its text in row 2. Are the columns swapped? Name "
        "them with --source-column and --target-column"
    ]
    swapped = {"source_column": "summary", "target_column": "text"}
    with pytest.raises(FilbertError, match=r"in 2 rows \(1, 2\), of 2 in all\. Are the columns"):
        read_pairs(path, task="summarize", **swapped)
    sides = write(tmp_path / "a.txt", "It rained.\n"), write(tmp_path / "b.txt", "Rain.\n")
    assert read_pairs(*sides, task="summarize").notes == []
    with pytest.raises(FilbertError, match=r"the two files swapped\? The summaries .*a\.txt"):
        read_pairs(*reversed(sides), task="summarize")
    rows = [{"source": "Abc.", "target": ["Abcdefg.", "A."]}]  # one of the references is shorter
    several = write(tmp_path / "b.jsonl", json.dumps(rows[0]) + "\n")
    assert read_pairs(several, task="summarize").notes == []


def test_a_cell_that_is_no_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", '{"source": "a", "target": "b"}\n{"source": 3, "target": "c"}\n'
    )
    with pytest.raises(FilbertError, match="row 2: column 'source' holds int 3, not a text"):
        read_pairs(path)


def sources(path: str, **reading: str) -> list[object]:
    found = list(stream_sources(path, **reading))  # type: ignore[arg-type]
    assert [row.number for row, _, _ in found] == list(range(1, len(found) + 1))
    return [text for _, text, _ in found]


def test_sources_alone(tmp_path: Path) -> None:
    for name in ("a.txt", "test.en"):  # what is no table is lines
        assert sources(write(tmp_path / name, "one\n\ntwo\n")) == ["one", "", "two"]
    packed = tmp_path / "val.de.gz"
    packed.write_bytes(gzip.compress(b"eins\n"))
    assert sources(str(packed)) == ["eins"]
    path = write(tmp_path / "a.jsonl", '{"id": "1", "source": ["x", "z"]}\n{"source": 3}\n{}\n')
    assert sources(path) == ["x z", 3, None]  # each bad row is told by itself


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"id": "1", "target": "y", "source": "x"}, "x"),
        ({"title": "t", "source": ["x", "z"], "target": ["y"]}, "x z"),
        ({"highlights": "y", "article": "x"}, "x"),
        ({"summary": "y", "Dialogue": "x"}, "x"),
        ({"title": "y", "content": "x"}, "x"),
        ({"source": "a web site", "text": "x"}, "x"),
        ({"idx": 4, "headline": "x"}, "x"),
        ({"translation": {"en": "x"}, "id": 3}, "x"),
        ({"translation": {"de": "y", "en": "x"}}, "x"),  # German is written
    ],
)
def test_which_column_is_the_source(tmp_path: Path, row: dict[str, object], wanted: str) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(row) + "\n")
    assert sources(path, target="de") == [wanted]


def test_a_source_that_is_not_plain_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"translation": {"en": "x", "fr": "z"}}\n')
    with pytest.raises(UsageError, match="which of the columns en, fr is the text to write about"):
        sources(path, target="de")
    assert sources(path, text_column="fr") == ["z"]
    with pytest.raises(UsageError, match=r"no column 'frr'.*Did you mean 'fr'"):
        sources(path, text_column="frr")
    path = write(tmp_path / "b.jsonl", '{"title": "t", "body_text": "x"}\n')
    with pytest.raises(UsageError, match="which of the columns title, body_text"):
        sources(path)
    path = write(tmp_path / "cmn.txt", "Hi.\t嗨。\tCC-BY (a)\nRun.\t你用跑的。\tCC-BY (b)\n")
    assert sources(path, text_column="2") == ["嗨。", "你用跑的。"]


def test_the_split_depends_on_the_source_alone_and_leaks_nothing() -> None:
    sources = [f"Sentence number {i // 2}." for i in range(4000)]  # each twice
    targets = [f"Satz {i % 1500}." for i in range(4000)]
    pairs = Pairs(sources, targets, list(range(1, 4001)), "x.tsv")
    train, dev, test = split_pairs(pairs, dev=0.1, test=0.1)
    assert test is not None
    parts = (train, dev, test)
    for side in ("sources", "targets"):
        sets = [set(getattr(part, side)) for part in parts]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert 0.05 < len(test) / 4000 < 0.15
    # another order, other cases and marks: the same parts
    order = list(reversed(range(4000)))
    turned = Pairs([sources[i].upper() for i in order], [targets[i] for i in order], order, "x.tsv")
    again = split_pairs(turned, dev=0.1, test=0.1)
    assert {s.lower() for s in again[1].sources} == {s.lower() for s in dev.sources}
    assert "left out whose target" in train.notes[-1]


def test_real_files(shared_data: Path) -> None:
    folder = shared_data / "multi30k"
    pairs = read_pairs(str(folder / "val.en.gz"), str(folder / "val.de.gz"))
    assert len(pairs) == 1014
    tatoeba = read_pairs(str(shared_data / "tatoeba" / "cmn.txt"))
    assert len(tatoeba) > 29_000
    assert tatoeba.targets[0] == "嗨。"


def test_a_side_that_is_missing_or_there_twice(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "Hi.\nYes.\n")
    table = write(tmp_path / "a.tsv", "source\ttarget\nHi.\tHallo.\n")
    for path, other in ((table, text), (text, table)):
        with pytest.raises(UsageError, match=r"a\.tsv is a table, which holds both sides"):
            read_pairs(path, other)
    with pytest.raises(UsageError, match="is a table"):
        read_pairs(text, text, format="jsonl")
    assert len(read_pairs(text, text, format="text")) == 2
    with pytest.raises(UsageError, match=r"targets are missing: .* with --target-data"):
        read_pairs(text)
    with pytest.raises(UsageError, match=r"a\.en: the name is not that of a table.*--target-data"):
        read_pairs(write(tmp_path / "a.en", "Hi.\n"))
    with pytest.raises(UsageError, match="the same column, 'source'"):
        read_pairs(table, source_column="source", target_column="source")
