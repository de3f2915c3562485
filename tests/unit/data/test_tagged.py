"""Tagged files as people have them, and what is said of those that cannot be read."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from filbert.data.tables import BadRow
from filbert.data.tagged import read_tagged, split_holdout, stream_untagged
from filbert.errors import FilbertError, UsageError


def file(folder: Path, text: str, name: str = "a.conll") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def jsonl(folder: Path, *rows: Any) -> Path:
    return file(folder, "".join(json.dumps(row) + "\n" for row in rows), "a.jsonl")


def test_tabs_blanks_lines_of_nothing_and_docstart(tmp_path: Path) -> None:
    text = "-DOCSTART-\tO\n\nEmpire\tB-LOC\nState\tI-LOC\n\t\n\n\nEUR\u00a0USD\tO\n"
    part = read_tagged(file(tmp_path, text))
    assert part.words == [["Empire", "State"], ["EUR\u00a0USD"]]
    assert part.tags == [["B-LOC", "I-LOC"], ["O"]]
    assert [Path(part.id(i)).name for i in range(2)] == ["a.conll:3", "a.conll:8"]
    assert part.labels() == {"LOC"}


def test_any_column_of_conll_2003_and_iob1(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n"
    path = file(tmp_path, text)
    part = read_tagged(path)
    assert part.tags == [["B-ORG", "O"]]
    assert part.notes == []
    plain = read_tagged(path, tag_column=2)
    assert (plain.tags, plain.plain, plain.labels()) == ([["NNP", "VBZ"]], True, {"NNP", "VBZ"})
    assert read_tagged(path, word_column=2, tag_column=1).words == [["NNP", "VBZ"]]
    assert read_tagged(path, tag_column=-2).tags == [["B-NP", "B-VP"]]


def test_conll_u(tmp_path: Path) -> None:
    text = "# text = don't #\n1-2\tdon't\t_\n1\tdo\tAUX\n2\tn't\tPART\n3\t#\tSYM\n2.1\tx\tX\n\n"
    part = read_tagged(file(tmp_path, text), word_column=2)
    assert part.words == [["do", "n't", "#"]]
    assert part.tags == [["AUX", "PART", "SYM"]]


def test_chinese_one_character_a_line_with_bmes_and_windows_line_ends(tmp_path: Path) -> None:
    text = "我 O\r\n在 O\r\n北 B-LOC\r\n京 E-LOC\r\n  O\r\n\u3000 O\r\n\r\n好 O\r\n"
    path = tmp_path / "msra.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    part = read_tagged(path)
    assert part.words == [["我", "在", "北", "京", " ", "\u3000"], ["好"]]
    assert part.tags == [["O", "O", "B-LOC", "I-LOC", "O", "O"], ["O"]]


def test_broken_bio_is_mended_and_told_once_with_its_count(tmp_path: Path) -> None:
    part = read_tagged(file(tmp_path, "a O\nb I-X\n\nc I-X\nd B-X\n\ne O\nf B-X\n"))
    assert part.tags == [["O", "B-X"], ["B-X", "B-X"], ["O", "B-X"]]
    (note,) = part.notes
    assert "2 tags went on" in note
    assert "I-X of 'b' in the sentence of line 1" in note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", r"a\.conll, line 2: 1 column, but line 1 has 2.*Add what is missing"),
        ("a\tO\nb c O\n", r"line 2: 1 column, but line 1 has 2 \(by tabs\)"),
        ("a O\nb c O\n", r"line 2: 3 columns.*blank in a word"),
        ("a\n", r"line 1: 'a' has 1 column; a word and its tag"),
        ("a\tO\nb\t\n", r"line 2: no tag beside 'b'"),
        ("\n\n", r"has no sentence"),
        ("a B-X\nb X\n", r"a\.conll: the tag 'X' has no letter"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(FilbertError, match=message):
        read_tagged(file(tmp_path, text))


def test_columns_that_cannot_be(tmp_path: Path) -> None:
    path = file(tmp_path, "a x O\n")
    with pytest.raises(FilbertError, match="so there is no --tag-column 4"):
        read_tagged(path, tag_column=4)
    with pytest.raises(FilbertError, match="are the same one"):
        read_tagged(path, word_column=3)
    with pytest.raises(UsageError, match="count from 1"):
        read_tagged(path, word_column=0)
    with pytest.raises(UsageError, match="conll or jsonl"):
        read_tagged(path, format="csv")


def test_json_tokens(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"tokens": ["New York", "!"], "tags": ["S-LOC", "O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["x"], "tags": ["O"]},
    )
    part = read_tagged(path)
    assert part.words == [["New York", "!"], ["x"]]
    assert part.tags == [["B-LOC", "O"], ["O"]]
    assert part.numbers == [1, 3]
    assert "no word in row 2; left out" in part.notes[0]


def test_json_spans(tmp_path: Path) -> None:
    text = "Barack Obama in 北京"
    path = jsonl(
        tmp_path,
        {"text": text, "spans": [{"start": 16, "end": 18, "label": "LOC", "text": "北京"},
                                 {"start": 0, "end": 12, "label": "PER", "score": 0.9}]},
        {"text": "none", "spans": []},
        {"text": " ", "spans": []},
    )  # fmt: skip
    part = read_tagged(path)
    assert not part.split
    assert part.texts == [text, "none"]
    assert part.spans == [[(0, 12, "PER"), (16, 18, "LOC")], []]
    assert part.labels() == {"PER", "LOC"}
    doccano = read_tagged(jsonl(tmp_path, {"text": text, "label": [[0, 12, "PER"]]}))
    assert doccano.spans == [[(0, 12, "PER")]]


def test_of_overlapping_spans_the_longer_is_kept_and_told(tmp_path: Path) -> None:
    spans = [[0, 4, "A"], [2, 9, "B"], [8, 9, "C"], [9, 10, "D"]]
    part = read_tagged(jsonl(tmp_path, {"text": "0123456789", "spans": spans}))
    assert part.spans == [[(2, 9, "B"), (9, 10, "D")]]
    assert "overlapping spans in row 1" in part.notes[0]
    assert "first left out: 0 to 4, A" in part.notes[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "abc", "spans": [[1, 4, "A"]]}, r"row 1: the span 1 to 4 \(A\) is not inside"),
        ({"text": "abc", "spans": [[2, 2, "A"]]}, "not inside its text of 3"),
        ({"text": "abc", "spans": [[-1, 2, "A"]]}, "not inside"),
        ({"text": "北京", "spans": [{"start": 0, "end": 1, "label": "A", "text": "北京"}]},
         "is '北', but it says '北京'.*not bytes"),
        ({"text": "abc", "spans": [[0, 2]]}, "is no span"),
        ({"text": "abc", "spans": [[0.0, 2, "A"]]}, "is no span"),
        ({"text": "abc", "spans": [[True, 2, "A"]]}, "is no span"),
        ({"text": "abc"}, "no spans; write"),
        ({"text": 1, "spans": []}, "'text' is int"),
        ({"body": "abc"}, "has body; expected text and spans, or tokens and tags"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "1 words but 2 tags"),
        ({"tokens": ["a"], "ner_tags": [3]}, "write the names in place of their numbers"),
        ({"tokens": ["a"]}, "'tags' must be a list"),
    ],
)  # fmt: skip
def test_wrong_rows_are_told_by_number(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(FilbertError, match=message):
        read_tagged(jsonl(tmp_path, row))


def test_rows_of_two_kinds_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"tokens": ["a"], "tags": ["O"]}, {"text": "a", "spans": []})
    with pytest.raises(FilbertError, match="row 2 has text, spans; expected tokens and tags"):
        read_tagged(path)


def untagged(path: Path | str, **reading: Any) -> list[Any]:
    found = list(stream_untagged(path, **reading))
    assert [row.number for row, _, _ in found] == list(range(1, len(found) + 1))
    return [given["tokens"] if isinstance(given, dict) else given for _, given, _ in found]


def test_words_to_tag_need_no_tags(tmp_path: Path) -> None:
    with_tags = "-DOCSTART- O\n\nNew NNP B-LOC\nYork NNP I-LOC\n\n# NNP O\n"
    assert untagged(file(tmp_path, with_tags.replace("TART- O", "TART- -X- O"))) == [
        ["New", "York"], ["#"],
    ]  # fmt: skip
    alone = file(tmp_path, "# id = 1\n我\n是\n\n title\n\u3000\n\n\n", "words.bio")
    assert untagged(alone) == [["我", "是"], ["title", "\u3000"]]
    plain = file(tmp_path, "a\tO\n\nb\tO\n", "test.txt")
    assert untagged(plain, format="conll") == [["a"], ["b"]]
    assert untagged(plain) == ["a\tO", "", "b\tO"]  # a text a line, as the name says
    with pytest.raises(FilbertError, match=r"words\.bio, line 2: .* 1 column, so there is no --t"):
        untagged(alone, text_column="2")
    for column in ("0", "word"):
        with pytest.raises(UsageError, match=f"--text-column {column}: the columns of CoNLL have"):
            untagged(alone, text_column=column)


def test_a_ragged_line_spoils_its_sentence_alone(tmp_path: Path) -> None:
    path = file(tmp_path, "a O\nb O\n\nc\n\nd O\ne\nf O f\n\ng O\n")
    found = untagged(path)
    assert found[0] == ["a", "b"] and found[3] == ["g"] and len(found) == 4
    for wrong, line in ((found[1], "line 4: 1 column"), (found[2], "line 7: 1 column")):
        assert isinstance(wrong, BadRow)
        assert wrong.startswith(f"{line}, but line 1 has 2 (by blanks)") and "Add what is" in wrong
    (wide,) = untagged(file(tmp_path, "a\nb c\n"))
    assert "line 2: 2 columns, but line 1 has 1" in wide and "Is there a blank in a word?" in wide
    with pytest.raises(FilbertError, match=r"a\.conll, line 4: 1 column, but line 1 has 2"):
        read_tagged(file(tmp_path, "a O\nb O\n\nc\n", "a.conll"))  # nothing is learned of half


def test_lists_of_words_and_texts_to_tag(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "ner_tags": [0, 1]}, {"tokens": "c"}, {}]
    assert untagged(jsonl(tmp_path, *rows)) == [["a", "b"], "c", None]
    assert untagged(jsonl(tmp_path, {"words": ["a"]})) == [["a"]]
    assert untagged(jsonl(tmp_path, {"w": ["a"], "x": 1}), text_column="w") == [["a"]]
    assert untagged(jsonl(tmp_path, {"text": "a b", "tokens": ["a"], "spans": []})) == ["a b"]
    assert untagged(file(tmp_path, "id,text\n1,a b\n", "a.csv")) == ["a b"]
    ((_, _, pair),) = stream_untagged(file(tmp_path, "sentence1,sentence2\na,b\n", "b.csv"))
    assert pair == "b"  # which a tagger refuses


def test_a_pipe_of_lists_of_words_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"".join(b'{"tokens": ["a%d"]}\n' % number for number in range(3))
    piped = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(lines)))
    monkeypatch.setattr("sys.stdin", piped)
    assert untagged("-", format="jsonl", text_column="tokens") == [["a0"], ["a1"], ["a2"]]


def test_real_words_to_tag(shared_data: Path) -> None:
    for name in ("wnut17/emerging.test.annotated", "msra_ner/test.txt.gz"):
        path = shared_data / name
        assert untagged(path, format="conll") == read_tagged(path).words


def test_holdout_parts_and_digest(tmp_path: Path) -> None:
    part = read_tagged(file(tmp_path, "".join(f"w{i} O\n\n" for i in range(20))))
    kept, held = split_holdout(part, fraction=0.1, seed=0)
    assert (len(kept), len(held)) == (18, 2)
    assert sorted([*kept.numbers, *held.numbers]) == part.numbers
    assert split_holdout(part, fraction=0.1, seed=0)[1].words == held.words
    assert kept.digest() != part.digest() == part.select(range(20)).digest()
    with pytest.raises(FilbertError, match="one sentence"):
        split_holdout(part.select([0]), fraction=0.5, seed=0)


def test_real_files(shared_data: Path) -> None:
    """Counts of sentences and types as published (WNUT-17: Derczynski et al. 2017, table 1)."""
    test = read_tagged(shared_data / "wnut17" / "emerging.test.annotated")
    assert len(test) == 1287
    assert sum(tag.startswith("B-") for tags in test.tags for tag in tags) == 1079
    msra = read_tagged(shared_data / "msra_ner" / "test.txt.gz")
    assert len(msra) == 5000
    assert msra.labels() == {"LOC", "PER", "ORG"}


@pytest.mark.parametrize(
    "before",
    ["# id 1\n", "# id = 7\n# t = a b\n", "#\n", "-DOCSTART- -X- O\n\n", "-DOCSTART-\n# x y\n"],
)
@pytest.mark.parametrize("between", [" ", "\t"])
def test_comments_before_a_sentence(tmp_path: Path, before: str, between: str) -> None:
    text = f"{before}Rome{between}B-LOC\n!{between}O\n\n{before}Oslo{between}B-LOC\n"
    part = read_tagged(file(tmp_path, text))
    assert part.words == [["Rome", "!"], ["Oslo"]]
    assert part.tags == [["B-LOC", "O"], ["B-LOC"]]


def test_a_mark_may_be_a_word(tmp_path: Path) -> None:
    part = read_tagged(file(tmp_path, "# O\nRome B-LOC\n\n#1 O\n# O\n"))
    assert part.words == [["#", "Rome"], ["#1", "#"]]
    assert read_tagged(file(tmp_path, "# B-X\n#1 O\n")).words == [["#", "#1"]]


def test_a_table_is_told_what_a_file_for_tag_looks_like(tmp_path: Path) -> None:
    wanted = r"table.* a file for tag has lines such as 'word TAG'"
    with pytest.raises(UsageError, match=wanted):
        read_tagged(file(tmp_path, "text,label\nfine,1\n", "rows.csv"))
    with pytest.raises(FilbertError, match=wanted):
        read_tagged(file(tmp_path, "sentence\tlabel\na fine film\t1\n", "rows.tsv"))
    assert read_tagged(file(tmp_path, "a O\n", "b.csv"), format="conll").words == [["a"]]
