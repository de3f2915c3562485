"""Readers for sentence vectors: every layout, the columns that are found, what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from filbert.data.sentence_pairs import Sentences, read_sentences, split_off
from filbert.errors import FilbertError, UsageError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def rows(data: Sentences) -> list[list[str]]:
    return [[data.texts[place] for place in row] for row in data.members]


def test_sts_b_as_glue_gives_it(shared_data: Path) -> None:
    data = read_sentences(shared_data / "glue/STS-B/dev.tsv")
    assert data.kind == "scored" and len(data) == 1500  # as the GLUE paper counts
    assert data.scores is not None and (data.scores.min(), data.scores.max()) == (0.0, 5.0)
    assert rows(data)[0] == [
        "A man with a hard hat is dancing.",
        "A man wearing a hard hat is dancing.",
    ]
    assert len(read_sentences(shared_data / "glue/STS-B/train.tsv")) == 5749


def test_pairs_triples_and_sentences(tmp_path: Path) -> None:
    pairs = read_sentences(
        write(tmp_path / "p.tsv", "query\tanswer", "猫?\t一只猫。", "dog?\tA dog.")
    )
    assert pairs.kind == "pairs" and rows(pairs)[0] == ["猫?", "一只猫。"]
    # the layout of SimCSE's NLI file
    nli = write(tmp_path / "n.csv", "sent0,sent1,hard_neg", "a b,a c,d e", '"x, y",x,z')
    triples = read_sentences(nli, header=True)
    assert triples.kind == "triples" and rows(triples)[1] == ["x, y", "x", "z"]
    assert rows(read_sentences(nli, kind="pairs", header=True)) == [["a b", "a c"], ["x, y", "x"]]
    with gzip.open(tmp_path / "t.txt.gz", "wt", encoding="utf-8") as file:
        file.write("one\n\n二\none\n")
    lines = read_sentences(tmp_path / "t.txt.gz")
    assert lines.kind == "sentences" and lines.texts == ["one", "二"]
    assert lines.members.tolist() == [[0], [1], [0]] and lines.numbers == [1, 3, 4]
    assert any("row 2" in note for note in lines.notes)
    objects = [{"anchor": "a", "positive": "b", "negative": "c"}]
    js = write(tmp_path / "t.jsonl", *map(json.dumps, objects))
    assert read_sentences(js).kind == "triples"


def test_two_or_three_columns_without_names(tmp_path: Path) -> None:
    two = write(tmp_path / "a.tsv", "one thing\tanother", "this\tthat")
    assert rows(read_sentences(two, header=False)) == [["one thing", "another"], ["this", "that"]]
    three = write(tmp_path / "b.tsv", "one\tanother\t4.5", "this\tthat\t0")
    scored = read_sentences(three, header=False)
    assert scored.scores is not None and scored.scores.tolist() == [4.5, 0.0]
    texts = write(tmp_path / "c.tsv", "one\tanother\tno", "this\tthat\tnever")
    assert read_sentences(texts, header=False).kind == "triples"
    # who names two columns of three means a pair, whatever stands in the third
    named = read_sentences(texts, header=False, text_column="3", pair_column="2")
    assert named.kind == "pairs" and rows(named)[0] == ["no", "another"]
    numbered = read_sentences(three, header=False, text_column="1", pair_column="2")
    assert numbered.kind == "pairs"
    assert (
        read_sentences(three, header=False, text_column="1", pair_column="2", kind="scored").kind
        == "scored"
    )
    # nor is a column two things
    known = write(tmp_path / "d.tsv", "query\tnegative\tpositive", "one\tanother\tno")
    found = read_sentences(known, text_column="query", pair_column="negative")
    assert rows(found) == [["one", "another"]]


def test_a_label_of_words_is_no_score(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "sentence1\tsentence2\tlabel", "a\tb\tentailment")
    assert read_sentences(path).kind == "pairs"
    with pytest.raises(FilbertError, match="row 1: 'label' is 'entailment'"):
        read_sentences(path, kind="scored")


def test_scores_that_are_no_numbers_are_not_passed_over(tmp_path: Path) -> None:
    """As pairs alone, texts that do not fit would be learned as if they did."""
    path = write(tmp_path / "a.tsv", "sentence1\tsentence2\tscore", "a\tb\t5,0", "c\td\t0,2")
    with pytest.raises(FilbertError, match="column 'score' holds few numbers, as '5,0' in row 1"):
        read_sentences(path)
    assert read_sentences(path, kind="pairs").kind == "pairs"  # where that is what was asked


def test_named_columns_win(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,left,right,how", "1,a,b,3", "2,c,d,1")
    data = read_sentences(path, text_column="left", pair_column="right", score_column="how")
    assert rows(data) == [["a", "b"], ["c", "d"]] and data.kind == "scored"
    with pytest.raises(UsageError, match="which column is the text"):
        read_sentences(path)
    with pytest.raises(UsageError, match=r"no column 'lefft'.*left"):
        read_sentences(path, text_column="lefft")
    with pytest.raises(UsageError, match="which column is the negative"):
        read_sentences(path, kind="triples", text_column="left", pair_column="right")
    with pytest.raises(UsageError, match="either a score or a third text"):
        read_sentences(path, text_column="left", pair_column="right", score_column="how",
                       negative_column="id")  # fmt: skip


def test_bad_rows_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"anchor": "a", "positive": null}')
    with pytest.raises(FilbertError, match="row 1: 'positive' is NoneType"):
        read_sentences(path)
    scores = write(tmp_path / "b.tsv", "sentence1\tsentence2\tscore", "a\tb\t1", "c\td\tNaN")
    with pytest.raises(FilbertError, match="row 2"):
        read_sentences(scores, kind="scored")
    with pytest.raises(FilbertError, match="no row has any text"):
        read_sentences(write(tmp_path / "c.txt", "", " "))
    with pytest.raises(UsageError, match="unknown kind"):
        read_sentences(path, kind="quads")


def test_hold_out_never_shares_a_text() -> None:
    members = np.array([[0, 1], [1, 2], [3, 4], [5, 6], [7, 8], [9, 3], [10, 11], [12, 13]])
    texts = [f"t{n}" for n in range(14)]
    data = Sentences(texts, members, None, "x", list(range(1, 9)))
    train, dev = split_off(data, fraction=0.25, seed=3)
    assert len(train) + len(dev) == 8 and len(dev) == 2
    assert not set(train.texts) & set(dev.texts)
    again = split_off(data, fraction=0.25, seed=3)
    assert again[1].digest() == dev.digest() and again[0].digest() != dev.digest()
    with pytest.raises(FilbertError, match="nothing can be held out"):
        split_off(data.select([0, 1]), fraction=0.5)


def test_select_keeps_what_is_used() -> None:
    data = Sentences(["a", "b", "c"], np.array([[0, 2], [1, 2]]), np.array([1.0, 2.0]), "x", [1, 2])
    part = data.select([1])
    assert part.texts == ["b", "c"] and part.members.tolist() == [[0, 1]]
    assert part.scores is not None and part.scores.tolist() == [2.0] and part.id(0) == "x:2"


@pytest.mark.parametrize("bad", ["nan", "inf", "?", ""])
def test_a_score_that_is_no_number_is_told_with_its_row(tmp_path: Path, bad: str) -> None:
    """Also where the column has no name: it is no third text that is not meant."""
    lines = ["a cat\ta dog\t3.0", f"red\tblue\t{bad}", "one\ttwo\t2"]
    for name, head in (("bare.tsv", []), ("named.tsv", ["first\tsecond\tscore"])):
        with pytest.raises(FilbertError, match=r"no score in row [23]"):
            read_sentences(write(tmp_path / name, *head, *lines), kind=None)
