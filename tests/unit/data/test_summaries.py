"""Documents with summaries: the layouts that there are, what is told, exact places of sentences."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filbert.data.summaries import (
    LONGEST,
    document_problem,
    hold_out,
    read_documents,
    sentence_spans,
    sentences_of,
    stream_documents,
)
from filbert.errors import FilbertError, UsageError


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


def test_texts_and_lists_one_summary_and_several(tmp_path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"text": "It rained. We left.", "summary": "Rain."},
        {"text": ["Es  regnete ", " ", "Wir gingen."], "summary": ["Regen.", "Weg."]},
        {"text": "天下雨了。我们走了。", "summary": "下雨"},
    )
    got = read_documents(file)
    assert got.sentences == [
        ["It rained.", "We left."],
        ["Es regnete", "Wir gingen."],
        ["天下雨了。", "我们走了。"],
    ]
    assert got.references == [["Rain."], ["Regen.", "Weg."], ["下雨"]]
    assert got.id(2) == f"{file}:3"
    assert got.notes == [f"{file}: documents from 'text', summaries from 'summary'"]


def test_scitldr_as_it_comes(shared_data) -> None:
    got = read_documents(shared_data / "scitldr" / "test.jsonl")
    assert len(got) == 618
    assert got.references is not None
    assert sum(map(len, got.references)) == 1967  # as the paper counts them
    assert got.sentences[0][0].startswith("Incremental class learning")


def test_chinese_table_without_a_header(shared_data) -> None:
    got = read_documents(
        shared_data / "csl_title" / "dev.tsv", text_column="2", summary_column="3", header=False
    )
    assert len(got) == 1000
    assert sum(map(len, got.sentences)) > 2000


def test_what_is_wrong_is_told_with_its_row(tmp_path) -> None:
    good = {"text": "A. B.", "summary": "A."}
    for bad, message in (
        ({"text": 5, "summary": "A."}, r"a.jsonl: row 2: 'text': expected a text or a list .* int"),
        ({"text": ["A.", None], "summary": "A."}, "row 2: 'text': sentence 1 is NoneType"),
        ({"text": "A."}, "row 2: 'summary' is NoneType; expected a summary"),
        ({"text": "A.", "summary": ""}, "row 2: 'summary' is empty"),
        ({"text": "A.", "summary": []}, "row 2: 'summary' is empty"),
        ({"text": "A.", "summary": ["a", 3]}, "row 2: 'summary' is list"),
    ):
        with pytest.raises(FilbertError, match=message):
            read_documents(write(tmp_path / "a.jsonl", good, bad))


def test_empty_documents_are_kept_and_told(tmp_path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"text": " \n", "summary": "A."}, {"text": [], "summary": "B."},
        {"text": "C.", "summary": "C"},
    )  # fmt: skip
    got = read_documents(file)
    assert got.sentences == [[], [], ["C."]]
    assert f"{file}: 2 rows (1, 2) without text" in got.notes


def test_summaries_that_are_not_shorter_than_their_texts(tmp_path) -> None:
    good = {"text": "It rained. We left.", "summary": "Rain."}
    same = {"text": ["It rained.", " We  left."], "summary": "It rained. We left."}
    longer = {"text": "天下雨了。", "summary": ["天下雨了，我们走了。", "天正在下雨了。"]}
    one_is_shorter = {"text": "天下雨了。", "summary": ["天下雨了，我们走了。", "下雨"]}
    nothing = {"text": "", "summary": "Rain."}
    rows = [good, same, one_is_shorter, longer]
    file = write(tmp_path / "a.jsonl", *rows)
    assert read_documents(file).notes[-1] == (
        f"{file}: the summary is not shorter than its text in 2 rows (2, 4). Are the columns "
        "swapped? Name them with --text-column and --summary-column"
    )
    file = write(tmp_path / "a.jsonl", good, one_is_shorter, nothing)
    assert not any("shorter" in note for note in read_documents(file).notes)
    file = write(tmp_path / "a.jsonl", longer, *rows)
    with pytest.raises(FilbertError, match=r"shorter than its text in 3 rows \(1, 3, 5\), of 5 in"):
        read_documents(file)
    with pytest.raises(FilbertError, match=r"in row 1, of 1 in all\. Are the columns swapped\?"):
        read_documents(write(tmp_path / "a.jsonl", good), text_column="summary",
                       summary_column="text")  # fmt: skip


def test_columns_by_name_or_given(tmp_path) -> None:
    file = write(tmp_path / "a.jsonl", {"doc": "It is. So.", "tl": "A.", "id": 1})
    with pytest.raises(UsageError, match=r"there are doc, tl, id.*--text-column"):
        read_documents(file)
    with pytest.raises(UsageError, match=r"no column 'docs'.*Did you mean 'doc'"):
        read_documents(file, text_column="docs")
    got = read_documents(file, text_column="doc", summary_column="tl")
    assert got.sentences == [["It is.", "So."]] and got.notes == []


def test_prediction_needs_no_summaries_and_a_text_file_is_one_document(tmp_path) -> None:
    file = write(tmp_path / "a.jsonl", {"source": ["A.", "B."], "title": "t"}, {"source": "C."})
    assert [text for _, text, _ in stream_documents(file)] == [["A.", "B."], "C."]
    plain = tmp_path / "doc.txt"
    plain.write_text("First line.\n\nSecond 句子。\n", "utf-8")
    [(row, text, pair)] = stream_documents(plain)
    assert (row.number, text, pair) == (1, "First line.\n\nSecond 句子。", None)


def test_documents_are_found_beside_their_titles_and_summaries(tmp_path) -> None:
    for row, wanted in (
        ({"title": "t", "source": ["A.", "B."], "target": ["s"]}, ["A.", "B."]),
        ({"highlights": "s", "article": "A."}, "A."),
        ({"id": "1", "dialogue": "A.", "summary": "s"}, "A."),
    ):
        file = write(tmp_path / "a.jsonl", row, {**row, "title": None})
        assert [text for _, text, _ in stream_documents(file)] == [wanted, wanted]
    with pytest.raises(UsageError, match=r"there are title, link\. .*--text-column"):
        next(stream_documents(write(tmp_path / "a.jsonl", {"title": "t", "link": "l"})))


def test_lines_are_summarised_as_they_come_in(monkeypatch) -> None:
    pipe = io.BufferedReader(io.BytesIO(b"A.\n" * 300))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=pipe))
    (row, text, _) = next(rows := stream_documents("-"))
    assert (row.number, text) == (1, "A.")
    assert pipe.tell() == 3  # the lines behind it have not been asked for
    assert sum(1 for _ in rows) == 299


def test_places_are_exact_in_mixed_text() -> None:
    text = "  He said “No.”\tThen he left.\n\n他说：“走吧！”我们走了。 OK? No end"
    spans = sentence_spans(text)
    assert [text[a:b] for a, b in spans] == [
        "He said “No.”", "Then he left.", "他说：“走吧！”", "我们走了。", "OK?", "No end",
    ]  # fmt: skip


@given(st.text(alphabet="ab .。！\n\t,，“”\u3000\x85", max_size=60) | st.text(max_size=60))
def test_between_sentences_is_white_space_alone(text: str) -> None:
    place = 0
    for start, end in sentence_spans(text):
        assert start < end and not text[place:start].strip()
        assert text[start:end] == text[start:end].strip()
        place = end
    assert not text[place:].strip()


@pytest.mark.parametrize("unit", ["word ", "word, ", "字", "很长的话，", "x"])
def test_without_end_marks_sentences_stay_bounded_in_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    spans = sentence_spans(text)
    assert time.process_time() - begin < 5
    assert max(end - start for start, end in spans) <= LONGEST
    assert "".join(text[a:b] for a, b in spans).replace(" ", "") == text.replace(" ", "")
    if unit == "word, ":
        assert all(text[a:b].endswith(",") for a, b in spans[:-1])


def test_hold_out_keeps_copies_together(tmp_path) -> None:
    rows = [{"text": f"Text {i % 40}. More.", "summary": "x"} for i in range(80)]
    documents = read_documents(write(tmp_path / "a.jsonl", *rows))
    train, dev = hold_out(documents, fraction=0.1)
    assert len(train) + len(dev) == 80 and 6 <= len(dev) <= 10
    assert not {*map(tuple, train.sentences)} & {*map(tuple, dev.sentences)}
    again = hold_out(documents, fraction=0.1)
    assert again[1].numbers == dev.numbers != hold_out(documents, fraction=0.1, seed=1)[1].numbers
    with pytest.raises(FilbertError, match="nothing can be held out of 1 rows"):
        hold_out(documents.select([0]), fraction=0.5)


def test_what_is_a_document() -> None:
    assert document_problem("") is None and document_problem(["a"]) is None
    assert document_problem(None) == "expected a text or a list of sentences, got NoneType"
    assert sentences_of("一。二。") == ["一。", "二。"]


def test_text_and_summary_are_two_columns(tmp_path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "It rained. We left.", "summary": "Rain."})
    with pytest.raises(UsageError, match="the same column, 'text'"):
        read_documents(file, summary_column="text")
