"""Columns, labels and hold-outs: guesses against hand-made files, counts against real data."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filbert.data.examples import (
    MULTI,
    REGRESSION,
    SINGLE,
    Columns,
    Examples,
    check_known_labels,
    find_columns,
    infer_problem_type,
    label_names,
    read_examples,
    split_holdout,
    stream_texts,
)
from filbert.data.tables import Row
from filbert.errors import FilbertError, UsageError


def write(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


def table(path: Path, rows: list[list[str]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def failure(path: Path, **options: Any) -> str:
    with pytest.raises(FilbertError) as caught:
        read_examples(path, **options)
    return str(caught.value)


def made(
    labels: list[Any], texts: list[str] | None = None, pairs: list[str] | None = None
) -> Examples:
    texts = texts or [f"text {place}" for place in range(len(labels))]
    return Examples(texts, pairs, labels, "made.csv", list(range(1, len(labels) + 1)))


def test_plain_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "label,text\n ham ,One.\nspam,\nham,Three.\n")
    examples = read_examples(path)
    assert examples.texts == ["One.", "", "Three."]
    assert examples.pairs is None
    assert examples.labels == ["ham", "spam", "ham"]
    assert examples.numbers == [1, 2, 3]
    assert len(examples) == 3
    assert examples.id(2) == f"{path}:3"
    assert examples.notes == [
        f"{path}: text from column 'text', label from 'label'",
        f"{path}: empty text in row 2",
    ]
    some = examples.select([2, 0])
    assert (some.texts, some.labels, some.numbers) == (["Three.", "One."], ["ham", "ham"], [3, 1])
    assert some.id(0) == f"{path}:3"


def test_named_columns_leave_no_note(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "v1,v2,text\nham,One.,x\nspam,Two.,y\n")
    examples = read_examples(path, text_column="v2", label_column="v1")
    assert (examples.texts, examples.labels, examples.notes) == (
        ["One.", "Two."],
        ["ham", "spam"],
        [],
    )


def test_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n1,One.\n2,Two.\n")
    examples = read_examples(path, need_labels=False)
    assert (examples.texts, examples.labels) == (["One.", "Two."], None)
    assert "which column is the label?" in failure(path)


def test_json_labels_become_names(tmp_path: Path) -> None:
    labels = [True, False, 1, 2.0, "x"]
    lines = "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels)
    assert read_examples(write(tmp_path / "a.jsonl", lines)).labels == [
        "true",
        "false",
        "1",
        "2",
        "x",
    ]


def test_several_labels(tmp_path: Path) -> None:
    lines = '{"text": "a", "labels": ["x", "y", "x"]}\n{"text": "b", "labels": []}\n'
    examples = read_examples(write(tmp_path / "a.jsonl", lines))
    assert examples.labels == [["x", "y"], []]
    assert infer_problem_type(examples.labels) == MULTI
    assert label_names(examples.labels, MULTI) == ["x", "y"]
    path = write(tmp_path / "a.csv", "text,label\na,x| y\nb,\nc,y\n")
    assert read_examples(path, label_separator="|").labels == [["x", "y"], [], ["y"]]
    assert read_examples(path, label_separator="|", problem_type=MULTI).labels == [
        ["x", "y"],
        [],
        ["y"],
    ]
    assert "several labels of a row" in failure(path, label_separator="|", problem_type=SINGLE)
    assert "--label-separator ''" in failure(path, label_separator="")
    message = failure(tmp_path / "a.jsonl", problem_type=SINGLE)
    assert f"2 rows (1, 2): several labels need --problem-type {MULTI}" in message


def test_regression_labels_are_floats(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,score\na,0.5\nb,3\nc,1e1\n")
    examples = read_examples(path)
    assert examples.labels == [0.5, 3.0, 10.0]
    assert "3 different numbers, read as amounts" in examples.notes[1]
    assert read_examples(path, problem_type=SINGLE).labels == ["0.5", "3", "1e1"]
    bad = write(tmp_path / "b.csv", "text,score\na,0.5\nb,high\nc,inf\n")
    assert "2 rows (2, 3): 'high' is no number" in failure(bad, problem_type=REGRESSION)


@pytest.mark.parametrize("missing", ["", "  ", "nan", "NaN", "<NA>"])
def test_missing_labels(tmp_path: Path, missing: str) -> None:
    path = table(tmp_path / "a.csv", [["text", "label"], *[["a", "x"], ["b", missing]] * 7])
    message = failure(path)
    assert "column 'label' holds no label in 7 rows (2, 4, 6, 8, 10, ...) of 14" in message


def test_missing_labels_in_json(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n{"text": "c"}\n'
    lines += '{"text": "d", "label": NaN}\n{"text": "e", "label": {"a": 1}}\n'
    assert "4 rows (2, 3, 4, 5) of 5" in failure(write(tmp_path / "a.jsonl", lines))
    assert "1 rows" not in failure(write(tmp_path / "b.jsonl", '{"text": "a", "label": null}\n'))


def test_names_that_look_like_nothing_are_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,stance,label\na,x,none\nb,y,NA\nc,z,null\n")
    assert read_examples(path).labels == ["none", "NA", "null"]


def test_texts_that_are_no_strings(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": 1}\n{"text": null, "label": 1}\n{"text": 5, "label": 0}\n'
    message = failure(write(tmp_path / "a.jsonl", lines))
    assert "no text in 2 rows (2, 3): 'text' is NoneType" in message
    pairs = '{"text_a": "a", "text_b": "b", "label": 1}\n{"text_a": "a", "label": 1}\n'
    assert "no text in row 2: 'text_b'" in failure(write(tmp_path / "b.jsonl", pairs))


def test_a_swallowed_block_of_rows_is_told(tmp_path: Path) -> None:
    rows = ["text,label", 'a,"x"', '"open,y', *["b,y"] * 60, 'close",x', "c,y"]
    examples = read_examples(write(tmp_path / "a.csv", "\n".join(rows) + "\n"))
    assert len(examples) == 3
    assert "more than 50 lines of text in row 2" in examples.notes[1]


def test_a_label_column_of_identifiers_is_told(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", [["text", "url"], *[[f"t{n}", f"u{n}"] for n in range(30)]])
    assert "30 classes in 30 rows; is it the label?" in read_examples(path).notes[1]


QQP = Columns("question1", "question2", "is_duplicate")
MNLI = Columns("sentence1", "sentence2", "gold_label")
MRPC = Columns("#1 String", "#2 String", "Quality")


def columns(names: list[str], *rows: list[str], label: bool = True) -> Columns:
    head = [Row(n, dict(zip(names, row, strict=True))) for n, row in enumerate(rows, 1)]
    head = head or [Row(1, dict.fromkeys(names, "a"))]
    return find_columns(head, Columns(""), source="a.csv", need_label=label)[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("sentence,label", Columns("sentence", None, "label")),
        ("index,sentence1,sentence2,label", Columns("sentence1", "sentence2", "label")),
        ("index,question,sentence,label", Columns("question", "sentence", "label")),  # QNLI
        ("id,qid1,qid2,question1,question2,is_duplicate", QQP),
        ("index,genre,sentence1_parse,sentence1,sentence2,label1,gold_label", MNLI),
        ("Quality,#1 ID,#2 ID,#1 String,#2 String", MRPC),
        ("premise,hypothesis,label,idx", Columns("premise", "hypothesis", "label")),
        ("title,Text,Label", Columns("Text", None, "Label")),
        ("body of mail,label", Columns("body of mail", None, "label")),  # the one that is left
        ("id,text,is_spam", Columns("text", None, "is_spam")),
    ],
)
def test_columns_by_name(names: str, expected: Columns) -> None:
    assert columns(names.split(",")) == expected


def test_columns_of_tables_without_header() -> None:
    cola = [["gj04", "1", "", "It sank."], ["gj04", "0", "?*", "Sank it."]]
    assert columns(["1", "2", "3", "4"], *cola) == Columns("4", None, "2")
    text_first = [["a long text", "pos"], ["another text", "neg"], ["third", "pos"], ["4th", "neg"]]
    assert columns(["1", "2"], *text_first) == Columns("1", None, "2")
    assert columns(["1", "2"], *[row[::-1] for row in text_first]) == Columns("2", None, "1")
    assert columns(["1", "2"], ["0.25", "good"], ["0.5", "bad"]) == Columns("2", None, "1")
    assert columns(["1"], ["some text"], label=False) == Columns("1")
    for unclear in (
        (["1", "2"], ["good", "nice"], ["bad", "evil"]),
        (["1", "2"], ["1", "2"], ["3", "4"]),
        (["1", "2", "3"], ["to title", "a title", "an abstract"]),
        (["v1", "v2"], ["ham", "some text"], ["spam", "a text"]),
    ):
        with pytest.raises(UsageError, match="which column is the text"):
            columns(*unclear)


def test_wrong_column_names_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Text,Label\na,b\n")
    message = failure(path, text_column="text")
    assert message == (
        f"{path}: no column 'text'. There are: 'Text', 'Label'. Did you mean 'Text'? "
        "Say --text-column NAME"
    )
    assert "Did you mean 'Label'? Say --label-column" in failure(path, label_column="Lable")
    assert "--pair-column" in failure(path, pair_column="Pair")
    european = write(tmp_path / "b.csv", "text;label\na;b\n")
    assert "separated by ';'" in failure(european)


def test_a_pair_is_used_only_where_no_text_column_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sentence1,sentence2,label\na,b,x\nc,d,y\n")
    assert read_examples(path).pairs == ["b", "d"]
    assert read_examples(path, text_column="sentence1").pairs is None
    both = read_examples(path, text_column="sentence2", pair_column="sentence1")
    assert (both.texts, both.pairs) == (["b", "d"], ["a", "c"])
    assert read_examples(path, pair_column="sentence2").texts == ["a", "c"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["ham", "spam"], SINGLE),
        (["0", "1", "1"], SINGLE),
        (["0.0", "1.0"], SINGLE),  # whole numbers
        (["0", "1", "none"], SINGLE),
        (["nan", "inf", "1.5"], SINGLE),  # not finite: names
        (["5.000", "3.800", "4"], REGRESSION),
        ([0.5, 1.0], REGRESSION),
        ([str(n) for n in range(20)], SINGLE),  # 20 different whole numbers at most
        ([str(n) for n in range(21)], REGRESSION),  # each once
        ([str(n) for n in range(21)] * 2, SINGLE),  # 0..20 without a gap, twice each
        ([str(n) for n in range(1, 78)] * 2, SINGLE),
        ([str(n) for n in range(0, 100, 2)] * 3, REGRESSION),  # gaps
        ([["a"], "b"], MULTI),
    ],
)
def test_infer_problem_type(labels: list[Any], expected: str) -> None:
    assert infer_problem_type(labels) == expected


def test_many_whole_numbers_leave_a_note(tmp_path: Path) -> None:
    rows = [["text", "label"], *[[f"t{n}", str(n % 30)] for n in range(90)]]
    examples = read_examples(table(tmp_path / "a.csv", rows))
    assert (
        f"30 different numbers, read as classes; otherwise say --problem-type {REGRESSION}"
        in (examples.notes[1])
    )


def test_label_names_are_ordered() -> None:
    assert label_names(["10", "9", "-1", "9"], SINGLE) == ["-1", "9", "10"]
    assert label_names(["b", "a", "10"], SINGLE) == ["10", "a", "b"]
    assert label_names([["b"], ["a", "b"], []], MULTI) == ["a", "b"]
    assert label_names([["a"], []], MULTI) == ["a"]
    assert label_names([1.0, 2.0], REGRESSION) == ["score"]


@pytest.mark.parametrize(
    ("labels", "kind", "told"),
    [
        (["ham", "ham"], SINGLE, "'ham'"),
        ([["b", "a"], ["a", "b"]], MULTI, "'a' and 'b'"),
        ([[], []], MULTI, "nothing"),
        ([2.5, 2.5], REGRESSION, "2.5"),
    ],
)
def test_nothing_to_tell_apart(labels: list[Any], kind: str, told: str) -> None:
    with pytest.raises(FilbertError, match=f"same label, {told}; learning needs"):
        label_names(labels, kind)


def test_labels_seen_only_in_dev() -> None:
    check_known_labels(made(["a", "b"]), ["a", "b", "c"])
    check_known_labels(made([["a"], []]), ["a"])
    with pytest.raises(FilbertError) as caught:
        check_known_labels(made(["spam", "Ham", "x", "Ham"]), ["ham", "spam"])
    assert str(caught.value) == (
        "made.csv: 2 label(s) that the training data lacks: 'Ham' in 2 rows (2, 4); 'x' in row 3. "
        "Did you mean 'ham'? It has 2: 'ham', 'spam'. Label these rows anew, or take them out"
    )
    with pytest.raises(FilbertError, match="'b' in row 2"):
        check_known_labels(made([["a"], ["a", "b"]]), ["a"])


def test_holdout_is_stratified_and_deterministic() -> None:
    examples = made(["a"] * 600 + ["b"] * 300 + ["c"] * 90 + ["d"] * 9 + ["e"])
    train, dev = split_holdout(examples, fraction=0.1, seed=3, problem_type=SINGLE)
    assert train.labels is not None
    assert dev.labels is not None
    assert Counter(dev.labels) == {"a": 60, "b": 30, "c": 9, "d": 1}  # "e" has one row: training
    assert sorted(train.numbers + dev.numbers) == examples.numbers
    assert train.numbers == sorted(train.numbers)
    again = split_holdout(examples, fraction=0.1, seed=3, problem_type=SINGLE)
    assert again == (train, dev)
    assert split_holdout(examples, fraction=0.1, seed=4, problem_type=SINGLE)[1] != dev
    # frozen: a seed means the same rows in every release and on every machine
    listed = ",".join(map(str, dev.numbers)).encode()
    assert hashlib.sha256(listed).hexdigest()[:16] == "59b8c5b0ec1239ca"


def test_each_class_is_held_out_as_far_as_the_share_allows() -> None:
    rare = made(["a"] * 80 + [f"r{n // 2}" for n in range(20)])  # ten classes with two rows each
    _, dev = split_holdout(rare, fraction=0.11, seed=0, problem_type=SINGLE)
    assert set(dev.labels or []) == set(rare.labels or [])
    assert len(dev) == 11
    train, dev = split_holdout(rare, fraction=0.05, seed=0, problem_type=SINGLE)
    assert len(dev) == 5  # no more than asked for, though not every class fits
    assert set(train.labels or []) == set(rare.labels or [])


def test_copies_of_a_text_stay_on_one_side() -> None:
    texts = [
        f"Text  {n % 50}" if n % 2 else f" text {n % 50}" for n in range(200)
    ]  # even n: even text
    texts += [f"TEXT {n}" for n in range(50)]
    examples = made(["a" if int(t.split()[1]) % 5 else "b" for t in texts], texts)
    train, dev = split_holdout(examples, fraction=0.2, seed=1, problem_type=SINGLE)

    def sides(part: Examples) -> set[str]:
        return {text.split()[1] for text in part.texts}

    assert not sides(train) & sides(dev)
    assert len(dev) == 50
    assert Counter(dev.labels) == {"a": 40, "b": 10}


def test_copies_with_other_labels_stay_in_training() -> None:
    texts = ["same", "same", "Same"] + [f"t{n}" for n in range(20)]
    examples = made(["a", "b", "a"] + ["a", "b"] * 10, texts)
    for seed in range(10):
        train, _ = split_holdout(examples, fraction=0.5, seed=seed, problem_type=SINGLE)
        assert train.numbers[:3] == [1, 2, 3]


def test_the_second_text_tells_copies_apart() -> None:
    examples = made(["a", "b"] * 10, ["same"] * 20, [f"pair {n}" for n in range(20)])
    train, dev = split_holdout(examples, fraction=0.2, seed=0, problem_type=SINGLE)
    assert (len(train), len(dev)) == (16, 4)
    assert dev.pairs == [f"pair {number - 1}" for number in dev.numbers]


def test_holdout_of_regression_covers_the_range() -> None:
    examples = made([float(n) for n in range(1000)])
    train, dev = split_holdout(examples, fraction=0.1, seed=0, problem_type=REGRESSION)
    assert Counter(int(label) // 100 for label in dev.labels or []) == dict.fromkeys(range(10), 10)
    assert len(train) == 900


def test_holdout_of_several_labels_leaves_each_in_training() -> None:
    # found by hand: by rarest label alone, both rows with "x" could be held out
    labels = [["x", "y"], ["x", "z"], ["y"], ["z"], [], [], [], []]
    for seed in range(30):
        train, dev = split_holdout(made(labels), fraction=0.4, seed=seed, problem_type=MULTI)
        assert {name for row in train.labels or [] for name in row} == {"x", "y", "z"}
        assert 1 <= len(dev) <= 3


def test_nothing_to_hold_out() -> None:
    with pytest.raises(FilbertError, match="Give development data with --dev"):
        split_holdout(made(["a", "b"]), fraction=0.1, seed=0, problem_type=SINGLE)
    with pytest.raises(FilbertError, match="no class has two"):
        split_holdout(made(["a"] * 4, ["same"] * 4), fraction=0.5, seed=0, problem_type=SINGLE)
    with pytest.raises(UsageError, match="between 0 and 1"):
        split_holdout(made(["a", "b"]), fraction=1.0, seed=0, problem_type=SINGLE)


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.sampled_from("aaaabbc"), min_size=2, max_size=60),
    words=st.integers(1, 60),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 5),
)
def test_holdout_always_holds_its_promises(
    labels: list[str], words: int, fraction: float, seed: int
) -> None:
    texts = [f"text {(place * 7) % words}" for place in range(len(labels))]
    examples = made(labels, texts)
    try:
        train, dev = split_holdout(examples, fraction=fraction, seed=seed, problem_type=SINGLE)
    except FilbertError:
        return
    assert sorted(train.numbers + dev.numbers) == examples.numbers
    assert not set(train.texts) & set(dev.texts)
    assert set(train.labels or []) == set(labels)
    copies = max(Counter(texts).values())
    assert len(dev) <= max(1, round(fraction * len(labels))) + len(set(labels)) * copies


def test_stream_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "id": 1}\n{"text": null}\n{"id": 3}\n')
    got = [(row.number, text, pair) for row, text, pair in stream_texts(path)]
    assert got == [(1, "a", None), (2, None, None), (3, None, None)]
    pairs = write(tmp_path / "b.tsv", "index\tquestion1\tquestion2\n0\ta\tb\n")
    assert [row[1:] for row in stream_texts(pairs)] == [("a", "b")]
    assert [row[1:] for row in stream_texts(pairs, text_column="question2")] == [("b", None)]
    halves = write(tmp_path / "d.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n{"text": "b"}\n')
    assert [row[1] for row in stream_texts(halves)] == ["a", "\ud83d", "b"]  # told row by row
    plain = write(tmp_path / "c.txt", "one\n\ntwo\n")
    assert [row[1] for row in stream_texts(plain)] == ["one", "", "two"]
    with pytest.raises(UsageError, match="no column 'txet'"):
        stream_texts(plain, text_column="txet")


def test_stream_of_plain_lines_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.RawIOBase):
        """A writer that gives one line each time it is asked."""

        asked = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.asked += 1
            buffer[:5] = b"line\n"
            return 5

    pipe = Pipe()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(pipe)))
    first = next(stream_texts("-"))
    assert first[:2] == (Row(1, {"text": "line"}), "line")
    assert pipe.asked <= 2


REAL: list[tuple[str, int, int, Any]] = [  # rows of both files as published, classes
    ("glue/SST-2/train.tsv glue/SST-2/dev.tsv", 67349, 872, ["0", "1"]),
    ("glue/CoLA/train.tsv glue/CoLA/dev.tsv", 8551, 1043, ["0", "1"]),
    ("glue/MRPC/train.tsv glue/MRPC/dev.tsv", 3667, 408, ["0", "1"]),
    ("glue/RTE/train.tsv glue/RTE/dev.tsv", 2490, 277, ["entailment", "not_entailment"]),
    ("glue/STS-B/train.tsv glue/STS-B/dev.tsv", 5749, 1500, ["score"]),
    ("agnews/train.tsv agnews/test.tsv", 10001, 7600, ["Business", "Sci/Tech", "Sports", "World"]),
    ("banking77/train.csv banking77/test.csv", 10003, 3080, 77),
    ("chnsenticorp/train.tsv chnsenticorp/dev.tsv", 9600, 1200, ["negative", "positive"]),
    ("tnews/train.tsv tnews/dev.tsv", 53360, 10000, 15),
]


@pytest.mark.parametrize(("files", "train", "dev", "classes"), REAL)
def test_real_data_sets_read_as_they_come(
    shared_data: Path, files: str, train: int, dev: int, classes: Any
) -> None:
    for name, rows in zip(files.split(), (train, dev), strict=True):
        examples = read_examples(shared_data / name)
        assert examples.labels is not None
        assert examples.numbers == list(range(1, rows + 1))
        kind = infer_problem_type(examples.labels)
        assert kind == (REGRESSION if "STS-B" in name else SINGLE)
        names = label_names(examples.labels, kind)
        assert names == classes or len(names) == classes
        assert (examples.pairs is not None) == any(
            part in name for part in ("MRPC", "RTE", "STS-B")
        )
        assert len(examples.notes) == (2 if "STS-B" in name else 1)  # columns; amounts in STS-B


def test_real_cells(shared_data: Path) -> None:
    cola = read_examples(shared_data / "glue/CoLA/train.tsv", format="cola")
    assert cola.labels is not None
    assert cola.texts[0].startswith("Our friends won't buy this analysis")
    assert Counter(cola.labels) == {"1": 6023, "0": 2528}
    mrpc = read_examples(shared_data / "glue/MRPC/dev.tsv", format="mrpc")
    assert Counter(mrpc.labels) == {"1": 279, "0": 129}
    assert (mrpc.pairs or [])[0].startswith('" The foodservice pie business')
    test = read_examples(shared_data / "chnsenticorp/test.tsv", need_labels=False)
    assert len(test) == 1200
    path = shared_data / "sms_spam/spam.csv"
    spam = read_examples(path, encoding="latin-1", text_column="v2", label_column="v1")
    assert Counter(spam.labels) == {"ham": 4825, "spam": 747}
    assert "--encoding latin-1" in failure(path)


def test_real_reviews_are_streamed(shared_data: Path) -> None:
    rows = stream_texts(shared_data / "imdb/train.jsonl.gz")
    count = sum(isinstance(text, str) and pair is None for _, text, pair in rows)
    assert count == 25000


@pytest.mark.parametrize("large", ["1e999", "-1e999", "1" + "0" * 400])
def test_infinite_numbers_are_no_classes(tmp_path: Path, large: str) -> None:
    rows = [f'{{"text": "t{i}", "label": {i}.5}}' for i in range(4)]
    rows[2] = f'{{"text": "t2", "label": {large}}}'
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    with pytest.raises(
        FilbertError, match=r"column 'label' holds numbers, but not in row 3: .*too"
    ):
        read_examples(path)
    with pytest.raises(FilbertError, match="row 3"):
        read_examples(path, problem_type=REGRESSION)
    assert len(set(read_examples(path, problem_type=SINGLE).labels or [])) == 4
    names = write(tmp_path / "b.csv", "text,label\na,inf\nb,1\nc,word\n")
    assert read_examples(names).labels == ["inf", "1", "word"]


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("id", "context", "question", "answer"), ("question", "context")),
        (("question", "answer", "label"), ("question", "answer")),
        (("document", "query"), ("query", "document")),
        (("anchor", "positive", "negative"), ("anchor", "positive")),
        (("sent0", "sent1", "hard_neg"), ("sent0", "sent1")),
        (("prompt", "response"), ("prompt", "response")),
    ],
)
def test_more_names_of_pairs(
    tmp_path: Path, names: tuple[str, ...], columns: tuple[str, str]
) -> None:
    path = write(tmp_path / "a.csv", ",".join(names) + "\n" + ",".join(f"a {n}" for n in names))
    (found,) = stream_texts(path, need_pair=True)
    assert found[1:] == tuple(f"a {name}" for name in columns)
    alone = write(tmp_path / "b.csv", "text,other\na,b\n")
    with pytest.raises(UsageError, match=r"--text-column\), where is the other.*--pair-column"):
        stream_texts(alone, need_pair=True)


def test_similarity_is_a_label(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sentence1,sentence2,similarity\na,b,0.5\nc,d,1.5\n")
    assert read_examples(path).labels == [0.5, 1.5]
