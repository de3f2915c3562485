"""Rows out of files of every format, and the words for files that cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import random
import tracemalloc
from collections import Counter
from importlib import resources
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from filbert.data import tables
from filbert.data.tables import Row, has_header, read_rows
from filbert.errors import FilbertError, UsageError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(path, **options)]


def failure(path: Path | str, **options: Any) -> str:
    with pytest.raises(FilbertError) as caught:
        list(read_rows(path, **options))
    return str(caught.value)


# --- formats -------------------------------------------------------------------------------------


def test_csv_with_quotes_line_ends_and_blank_lines(tmp_path: Path) -> None:
    content = 'text,label\r\n"one, ""two""\nthree",a\r\n\r\nhe said "hi",b\r\n"",c'
    rows = list(read_rows(write(tmp_path / "a.csv", content)))
    assert rows == [
        Row(1, {"text": 'one, "two"\nthree', "label": "a"}),
        Row(2, {"text": 'he said "hi"', "label": "b"}),
        Row(3, {"text": "", "label": "c"}),
    ]


def test_tsv_leaves_quotes_as_text(tmp_path: Path) -> None:
    content = 'sentence\tlabel\r\n"a "" quote\t1\n\nplain\t0\n'
    assert values(write(tmp_path / "a.tsv", content)) == [
        {"sentence": '"a "" quote', "label": "1"},
        {"sentence": "plain", "label": "0"},
    ]


def test_jsonl_keeps_types_and_skips_blank_lines(tmp_path: Path) -> None:
    content = '{"text": "a", "label": [1, "x"], "n": 2.5}\n\n{"text": null}\n'
    assert list(read_rows(write(tmp_path / "a.jsonl", content))) == [
        Row(1, {"text": "a", "label": [1, "x"], "n": 2.5}),
        Row(2, {"text": None}),
    ]


def test_text_is_one_row_a_line_with_empty_ones_kept(tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path / "a.txt", "one\r\n\n three\ttabs,commas\n")))
    assert [row.values["text"] for row in rows] == ["one", "", " three\ttabs,commas"]
    assert [row.number for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("pack", [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_text(tmp_path: Path, pack: Any) -> None:
    suffix, compress = pack
    path = write(tmp_path / f"a.csv{suffix}", compress(b"text,label\nhello,x\n"))
    assert values(path) == [{"text": "hello", "label": "x"}]


def test_parquet_batches_and_types(tmp_path: Path) -> None:
    numbers = list(range(3000))
    table = pa.table({"text": [f"t{n}" for n in numbers], "label": numbers})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert len(rows) == 3000
    assert rows[2999] == Row(3000, {"text": "t2999", "label": 2999})


def test_parquet_classes_of_the_hub_get_their_names(tmp_path: Path) -> None:
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "text": {"dtype": "string"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"text": ["a", "b", "c", "d"], "label": [1, 0, -1, None]})
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert [row["label"] for row in values(tmp_path / "a.parquet")] == ["pos", "neg", None, None]


def test_glue_mrpc_layout_with_byte_order_mark(tmp_path: Path) -> None:
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    path = write(tmp_path / "a.tsv", header + '1\t7\t8\tHe said " no .\t" No .\n')
    wanted = {
        "Quality": "1",
        "#1 ID": "7",
        "#2 ID": "8",
        "#1 String": 'He said " no .',
        "#2 String": '" No .',
    }
    assert values(path) == [wanted]
    assert values(path, format="mrpc") == [wanted]


def test_glue_cola_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "gj04\t1\t\tIt sank.\nks08\t0\t*\tSank it.\n")
    assert values(path, format="cola")[1] == {"1": "ks08", "2": "0", "3": "*", "4": "Sank it."}
    assert values(path) == values(path, format="cola")
    assert "4 columns, the first row has 2" in failure(
        write(tmp_path / "b.tsv", "a\tb\n"), format="cola"
    )


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr(
            "sys.stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content)))
        )

    given(b"first\nsecond")
    assert values("-") == [{"text": "first"}, {"text": "second"}]
    given(b'{"text": "a"}\n')
    assert values("-", format="jsonl") == [{"text": "a"}]
    given(b"")
    assert failure("-").startswith("standard input is empty")
    assert "standard input" in failure("-", format="parquet")


def test_hub_files_are_read_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(tmp_path / "0.csv", "text,label\na,x\n")
    two = write(tmp_path / "1.jsonl", '{"text": "b", "label": "y"}\n')
    asked = []

    def dataset_files(name: str, *, config: str | None = None, split: str = "") -> list[Path]:
        asked.append((name, config, split))
        return [one, two]

    monkeypatch.setattr("filbert.sources.dataset_files", dataset_files)
    rows = list(read_rows("hub:owner/name/part:test"))
    assert rows == [Row(1, {"text": "a", "label": "x"}), Row(2, {"text": "b", "label": "y"})]
    list(read_rows("hub:owner/name"))
    assert asked == [("owner/name", "part", "test"), ("owner/name", None, "train")]
    assert "hub:owner/name[/config][:split]" in failure("hub:a/b/c/d")
    assert "names no data set" in failure("hub:/name")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("latin-1", "café £"), ("gb18030", "你好，世界"), ("utf-16", "naïve 你好")],
)
def test_other_encodings(tmp_path: Path, encoding: str, text: str) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{text},x\n".encode(encoding))
    assert values(path, encoding=encoding) == [{"text": text, "label": "x"}]


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
def test_csv_equals_arrow(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any cells, all quoted: what pyarrow's CSV reader (the reference) reads, we read."""

    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    lines = ["text,label", *(f"{quoted(one)},{quoted(two)}" for one, two in rows)]
    write(path, "\n".join(lines) + "\n")
    parse = arrow_csv.ParseOptions(newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(
        column_types={"text": pa.string(), "label": pa.string()}, strings_can_be_null=False
    )
    expected = arrow_csv.read_csv(path, parse_options=parse, convert_options=convert).to_pylist()
    assert (
        values(path, header=True)
        == expected
        == [dict(zip(("text", "label"), r, strict=True)) for r in rows]
    )


# --- headers -------------------------------------------------------------------------------------

LONG = "a text that is rather longer than a name would be"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["text", "label"], ["a", "b"]], True),  # two known names
        ([["label"], ["x"]], True),
        ([["Text", "is_spam"], ["a", "0"]], True),  # one known name, in any case
        ([["v1", "v2", "", ""], ["ham", LONG, "", ""], ["spam", LONG, "", ""]], True),  # long texts
        (
            [["height", "weight"], ["1.5", "b"], ["2", "c"]],
            True,
        ),  # a column of numbers below a name
        ([["文本", "标签"], ["很好", "正面"]], True),
        (
            [["gj04", "1", "", "The ship sank."], ["gj04", "0", "*", "Sank ship."]],
            False,
        ),  # a number
        ([["What a film!", "pos"], ["Bad.", "neg"]], False),  # a sentence
        ([["good film", "pos"], ["bad film", "neg"], ["nice", "pos"]], False),  # "pos" comes back
        ([["出栏一头猪亏损300元，究竟谁能笑到最后！", "news_finance"], ["好", "news_car"]], False),
        ([["good", "pos"], ["bad", "neg"]], None),
        ([["what is it", "question"], ["go away", "order"], ["who", "question"]], None),
        ([["good", "pos"]], None),
        ([["anchor", "positive", "negative"], ["a", "b", "c"]], True),
        ([["sent0", "sent1", "hard_neg"], ["a", "b", "c"]], True),
        ([["positive", "good film"], ["negative", "bad film"]], None),  # labels
    ],
)
def test_has_header(rows: list[list[str]], expected: bool | None) -> None:
    assert has_header(rows) is expected


def test_header_options_win(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "good,pos\nbad,neg\n")
    assert values(path, header=True) == [{"good": "bad", "pos": "neg"}]
    assert values(path, header=False) == [{"1": "good", "2": "pos"}, {"1": "bad", "2": "neg"}]
    message = failure(path)
    assert "'good', 'pos'" in message
    assert "--header if it is, --no-header if it is data" in message


def test_header_cells_without_a_name_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"v1,v2,,\nham,{LONG},,\n")
    assert list(values(path)[0]) == ["v1", "v2", "3", "4"]


# --- bad input -----------------------------------------------------------------------------------


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,b\n")
    with pytest.raises(UsageError) as caught:
        read_rows(tmp_path / "trian.csv")  # at once, not at the first row
    assert "no file" in str(caught.value)
    assert "Did you mean 'train.csv'?" in str(caught.value)
    assert caught.value.exit_code == 2
    assert "does not exist" in failure(tmp_path / "nowhere" / "train.csv")
    assert "There is: train.csv" in failure(tmp_path / "zzz.tsv")
    assert "name one file of it: train.csv" in failure(tmp_path)


def test_names_that_do_not_tell_the_format(tmp_path: Path) -> None:
    assert "end in .csv" in failure(write(tmp_path / "a.dat", "x"))
    assert "is jsonl" in failure(write(tmp_path / "a.json", "{}"))
    assert "end in .csv" in failure(write(tmp_path / "a.parquet.gz", "x"))
    assert "Did you mean 'jsonl'?" in failure(tmp_path / "a.dat", format="json")
    assert values(tmp_path / "a.json", format="text") == [{"text": "{}"}]
    assert "unknown --encoding 'utf-9'" in failure(
        tmp_path / "a.json", format="text", encoding="utf-9"
    )
    assert "unknown --encoding 'hex'" in failure(tmp_path / "a.json", format="text", encoding="hex")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.csv", b"\n\r\n\n", "holds no rows, only empty lines"),
        ("a.jsonl", b"\n\n", "holds no rows, only empty lines"),
        ("a.csv", b"text,label\n", "has a header ('text', 'label') but no rows"),
        (
            "a.csv",
            gzip.compress(b"text", mtime=0),
            "is compressed by gzip; let its name end in .gz",
        ),
        ("a.jsonl", lzma.compress(b"text"), "is compressed by xz"),
        ("a.csv", b"PK\x03\x04rest", "an Excel workbook"),
        ("a.csv", b"PAR1rest", "is a Parquet file"),
        ("a.csv", "text,label\n".encode("utf-16"), "add --encoding utf-16"),
        ("a.csv.gz", b"text,label\na,b\n", "broken or cut short after line 0"),
        ("a.csv.xz", b"text,label\na,b\n", "broken or cut short after line 0"),
        ("a.csv", b"text,label\na\0b,c\n", "line 2: a NUL character"),
        ("a.csv", b"text,text\na,b\n", "names ['text'] more than once"),
    ],
)
def test_files_that_are_not_what_they_seem(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    assert expected in failure(write(tmp_path / name, content))


@pytest.mark.parametrize("pack", [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_truncated_compressed_file(tmp_path: Path, pack: Any) -> None:
    suffix, compress = pack
    noise = random.Random(0)
    lines = "".join(f"{noise.getrandbits(200)},x\n" for _ in range(2000))
    whole = compress(f"text,label\n{lines}".encode())
    path = write(tmp_path / f"a.csv{suffix}", whole[: len(whole) // 2])
    rows = read_rows(path)
    assert next(rows).number == 1  # what can be read is read
    message = failure(path)
    line = int(message.split("after line ")[1].split()[0])
    assert "cut short" in message
    assert 500 < line < 1500


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    # 11 bytes of header, then "caf" and the byte: the 4th of line 2, the 15th of the file
    path = write(tmp_path / "a.csv", b"text,label\ncaf\xe9,x\n")
    message = failure(path)
    assert "line 2, byte 4 of the line (15 of the file): 0xE9 is not utf-8" in message
    assert "--encoding latin-1" in message
    assert "gb18030" not in message  # 0xE9 with a comma behind it is no Chinese character
    chinese = failure(write(tmp_path / "b.csv", "text,label\n你好,x\n".encode("gb18030")))
    assert "--encoding gb18030 (Chinese)" in chinese
    broken = failure(write(tmp_path / "c.csv", b"text,label\nok,x\n"), encoding="utf-16")
    assert "after line 0: not of that --encoding" in broken


def test_unbalanced_quote_names_the_line_where_it_opens(tmp_path: Path) -> None:
    lines = ["text,label", 'fine,"a"', '"multi', 'line",b', 'x,"never closed', "y,c", "z,d"]
    message = failure(write(tmp_path / "a.csv", "\n".join(lines) + "\n"))
    assert "line 5: the quote that opens a cell here is unbalanced" in message
    assert "reading came to line 7" in message
    # closed by the next quote, with text behind it
    lines[6] = 'z,"d"'
    message = failure(write(tmp_path / "b.csv", "\n".join(lines) + "\n"))
    assert "line 5: the quote" in message
    assert "line 7" in message
    # the quote opens in a later line of the record than the one in which the record begins
    message = failure(write(tmp_path / "c.csv", 'text,label\n"a\nb","c\nd,e\n'))
    assert "line 3: the quote" in message


def test_unbalanced_quote_does_not_swallow_a_big_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_CELL", 10_000)
    content = 'text,label\na,b\n"open,c\n' + "d,e\n" * 100_000
    message = failure(write(tmp_path / "a.csv", content), header=True)
    assert "line 3: the quote" in message
    assert "no end after 10,000 characters" in message


def test_long_cells_are_read(tmp_path: Path) -> None:
    long = "x" * 1_000_000  # the csv module alone stops at 131,072 characters
    assert values(write(tmp_path / "a.csv", f"text,label\n{long},a\n"))[0]["text"] == long


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    assert "line 2: longer than 1,000 bytes" in failure(
        write(tmp_path / "a.txt", "ok\n" + "x" * 5000)
    )


def test_rows_of_another_width(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.csv", 'text,label\n"a\nb",x\nc, d,y\n'))
    assert "line 4: 3 cells, the header has 2 ('text', 'label')" in message
    assert "needs quotes: 'c', ' d', 'y'" in message
    message = failure(write(tmp_path / "a.tsv", "text\tlabel\n\na\n"))
    assert "line 3: 1 cells" in message
    assert "missing" in message
    message = failure(write(tmp_path / "b.tsv", "Hi there.\tx\nHi.\tx\tx\n"))
    assert "line 2: 3 cells, the first row has 2" in message
    assert "a tab splits a text" in message


def test_carriage_returns_alone(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.csv", "text,label\ra,b\r"))
    assert "a carriage return in a cell without quotes" in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": }', "line 2: no JSON (Expecting value: line 1 column 10 (char 9))"),
        ('["a", "b"]', "line 2: list; each line must be one object"),
        ('"a"', "line 2: str; each line"),
        ("[" * 100_000, "line 2: no JSON"),
        ("1" * 10_000, "line 2: no JSON"),
        ('{"text": "\\ud83d"}', "line 2: half of a surrogate pair"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, expected: str) -> None:
    assert expected in failure(
        write(tmp_path / "a.jsonl", f'{{"text": "\\ud83d\\ude00"}}\n{line}\n')
    )


def test_bad_json_lines_behind_a_good_one_are_rows_where_asked(tmp_path: Path) -> None:
    bad = ['{"text": }', "[1]", "7", "[" * 100_000, '{"text": "\\ud83d"}']
    lines = ['{"text": "a"}', *bad, '{"text": "b"}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    rows = list(read_rows(path, lenient=True))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row.wrong is None for row in rows] == [True, False, False, False, False, True, True]
    assert rows[1].cell("text") == rows[1].cell("label") == rows[1].wrong
    assert str(rows[1].wrong).startswith("line 2: no JSON (Expecting value: line 1 column 10")
    assert str(rows[2].wrong) == (
        'line 3: list; each line must be one object, such as {"text": "...", "label": "..."}'
    )
    assert rows[6].cell("text") == "b" and rows[6].cell("label") is None
    # the first line says of what kind the file is
    other = write(tmp_path / "b.jsonl", "[1]\n" + lines[0])
    with pytest.raises(FilbertError, match=r"line 1: list; .* jq -c"):
        list(read_rows(other, lenient=True))


def test_broken_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": [str(n) * 50 for n in range(5000)]})
    parquet.write_table(table, tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    assert "cannot be read as Parquet" in failure(write(tmp_path / "a.parquet", whole[:-100]))
    assert "cannot be read as Parquet" in failure(write(tmp_path / "b.parquet", b"text,label\n"))
    damaged = bytearray(whole)
    damaged[200:400] = os.urandom(200)
    assert "cannot be read as Parquet" in failure(write(tmp_path / "c.parquet", bytes(damaged)))
    parquet.write_table(table.slice(0, 0), tmp_path / "d.parquet")
    assert "has columns ('text') but no rows" in failure(tmp_path / "d.parquet")


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    line = {
        ".csv": "some text of a row,x",
        ".tsv": "some text of a row\tx",
        ".txt": "some text of a row",
    }
    one = line.get(suffix, '{"text": "some text of a row", "label": "x"}') + "\n"
    path = write(tmp_path / f"a{suffix}", one * 25_000)  # about 0.5 to 1.2 MB
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_rows(path, header=False))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 25_000
    assert peak < 300_000, f"{peak:,} bytes"


# --- real data -----------------------------------------------------------------------------------


def test_real_quoted_line_ends(shared_data: Path) -> None:
    """The csv module on the whole file at once is the reference for our reading by the row."""
    path = shared_data / "banking77/train.csv"
    with open(path, encoding="utf-8", newline="") as file:
        reference = list(csv.reader(file))[1:]
    assert [list(row.values.values()) for row in read_rows(path)] == reference
    assert any("\n" in text for text, _ in reference)


def test_shipped_messages(shared_data: Path) -> None:
    """The file of the demo: all rows, the words of the original, no trace of its encoding."""
    packed = resources.files("filbert").joinpath("assets/sms_spam.csv.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0"  # no time in the gzip header: the same bytes each time
    rows = list(csv.reader(io.StringIO(gzip.decompress(packed).decode("utf-8"), newline="")))
    with open(shared_data / "sms_spam/spam.csv", encoding="latin-1", newline="") as file:
        original = list(islice(csv.reader(file), 1, None))
    assert rows[0] == ["label", "text"]
    assert Counter(row[0] for row in rows[1:]) == {"ham": 4825, "spam": 747}
    assert [row[0] for row in original] == [row[0] for row in rows[1:]]
    assert [",".join(row[1:]).rstrip(",") for row in original] == [
        row[1].rstrip(",") for row in rows[1:]
    ]


def test_a_long_row_is_not_told_as_a_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CELL", 1000)
    path = tmp_path / "a.csv"
    for cell in ("x" * 2000, '"' + "x" * 2000 + '"'):
        path.write_text(f"text,label\na,b\n{cell},c\n", "utf-8")
        with pytest.raises(FilbertError, match=r"line 3: the row is too long, 2,0\d\d characters"):
            list(read_rows(path))
    path.write_text('text,label\na,b\n"' + "x" * 2000 + ",c\n", "utf-8")
    with pytest.raises(FilbertError, match="line 3: the quote that opens a cell here"):
        list(read_rows(path))


def test_the_half_of_a_pair_that_is_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ude00 later"}\n', "utf-8")
    with pytest.raises(FilbertError, match=r"\(\\ude00 alone\)"):
        list(read_rows(path))


def test_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(FilbertError, match="standard input is closed"):
        list(read_rows("-"))
