"""`filbert predict --file` on the layouts that data sets come in, and what `--out` makes for other
programs: the text that is read is the one that is meant."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from filbert import cli, load
from filbert.data.pairs import read_pairs
from filbert.data.tables import Row
from filbert.data.tagged import read_tagged
from filbert.errors import UsageError
from filbert.infer.answer_files import write_layout
from filbert.infer.benchmark import read_rows
from filbert.infer.benchmark_options import BenchmarkOptions
from filbert.infer.predict_file import predict_file
from filbert.model.seq2seq import BertForSeq2SeqLM
from tests.tiny_tasks import task_bundle

SCITLDR = [
    {"title": "the river", "source": ["call now", "it like home"], "target": ["call"]},
    {"title": "lunch", "source": ["the bank. it", "free prize"], "target": ["a", "b"]},
]
NEWS = [{"id": "a1", "highlights": "lunch", "article": "The river. Call now! Free prize."}]
TALKS = [{"id": "b1", "summary": "lunch", "dialogue": "Call now! The bank. Like it."}]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of a bundle of each task; `short`: one that writes summaries."""
    root = tmp_path_factory.mktemp("bundles")
    tasks = ("summarize", "tag", "answer", "translate", "classify")
    made = {task: str(task_bundle(root / task, task)) for task in tasks}
    settings = {"max_tokens": 6, "beams": 1}
    short = task_bundle(root / "short", "summarize", kind=BertForSeq2SeqLM, settings=settings)
    plain = task_bundle(root / "plain", "tag", labels=["NOUN", "VERB", "X"])
    return {**made, "short": str(short), "plain": str(plain)}


def opened(bundles: dict[str, str], name: str) -> Any:
    return load(bundles[name], device="cpu", precision="float32")


def typed(*words: str) -> int:
    """The exit code of `filbert predict ...`."""
    with pytest.raises(SystemExit) as left:
        cli.main(["predict", *words, "--device", "cpu", "--precision", "float32"])
    return int(left.value.code or 0)


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- summaries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "documents"),
    [
        (SCITLDR, [row["source"] for row in SCITLDR]),
        (NEWS, [NEWS[0]["article"]]),
        (TALKS, [TALKS[0]["dialogue"]]),
    ],
)
def test_a_summary_is_of_the_document_not_of_its_title(
    bundles: dict[str, str], tmp_path: Path, rows: list[Any], documents: list[Any]
) -> None:
    source, out = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert typed(bundles["summarize"], "--file", source, "--out", str(out)) == 0
    wanted = opened(bundles, "summarize")(documents)
    assert rows_of(out) == [{"row": n, **answer} for n, answer in enumerate(wanted, 1)]
    # a model that writes reads the same column; sentences are joined, as in training
    assert typed(bundles["short"], "--file", source, "--out", str(out), "--overwrite") == 0
    texts = [text if isinstance(text, str) else " ".join(text) for text in documents]
    assert rows is TALKS or read_pairs(source).sources == texts
    wanted = opened(bundles, "short")(texts)
    assert rows_of(out) == [{"row": n, **answer} for n, answer in enumerate(wanted, 1)]


def test_a_text_file_is_one_document_and_lines_of_standard_input_are_many(
    bundles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = "The river. Call now!\n\nLike it. 世界银行。\n"
    source = tmp_path / "paper.txt"
    source.write_text(text, "utf-8")
    assert typed(bundles["summarize"], "--file", str(source), "--sentences", "2") == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer == {"row": 1, **opened(bundles, "summarize")(text.rstrip(), sentences=2)}
    found = [text[one["start"] : one["end"]] for one in answer["sentences"]]
    assert found == [one["text"] for one in answer["sentences"]] and len(found) == 2
    pipe = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(text.encode())))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert typed(bundles["summarize"], "--file", "-") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_real_papers(
    bundles: dict[str, str], shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    papers = shared_data / "scitldr" / "test.jsonl"
    head = papers.read_text("utf-8").splitlines(keepends=True)[:3]
    source = tmp_path / "head.jsonl"
    source.write_text("".join(head), "utf-8")
    assert typed(bundles["summarize"], "--file", str(source)) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, answer in zip(head, answers, strict=True):
        sentences = [" ".join(one.split()) for one in json.loads(line)["source"]]
        assert answer["sentences"][0]["text"] in sentences


def test_an_interrupted_file_of_documents_goes_on_in_constant_memory(
    bundles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = opened(bundles, "summarize")
    source = jsonl(tmp_path / "in.jsonl", SCITLDR * 30)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    predict_file(extractor, source, whole, window=8)
    answer_rows, taken, done = extractor.answer_rows, 0, 0
    rows = extractor.rows

    def counted(*args: Any, **options: Any) -> Iterator[Any]:
        nonlocal taken
        for row in rows(*args, **options):
            taken += 1
            yield row

    def stopped(block: list[Any], **options: Any) -> list[Any]:
        nonlocal done
        if done >= 16:
            raise KeyboardInterrupt
        done += len(block)
        return answer_rows(block, **options)

    monkeypatch.setattr(extractor, "rows", counted)
    with monkeypatch.context() as patch:
        patch.setattr(extractor, "answer_rows", stopped)
        with pytest.raises(KeyboardInterrupt, match="16 rows are safe"):
            predict_file(extractor, source, out, window=8)
    assert taken <= 48  # an iterator: what lies ahead has not been read
    report = predict_file(extractor, source, out, window=8, resume=True)
    assert (report.rows, report.answered) == (60, 44)
    assert out.read_bytes() == whole.read_bytes()


# --- words with tags -----------------------------------------------------------------------------


def test_words_come_from_conll_and_from_lists(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = [["call", "the", "bank"], ["river"], ["it", "like", "it"]]
    tag = opened(bundles, "tag")
    wanted = [{"row": n, **tag({"tokens": words})} for n, words in enumerate(sentences, 1)]
    lines = "\n\n".join("\n".join(f"{word}\tO" for word in words) for words in sentences)
    (tmp_path / "a.conll").write_text(f"-DOCSTART-\tO\n\n{lines}\n", "utf-8")
    (tmp_path / "b.txt").write_text(lines.replace("\tO", ""), "utf-8")  # words alone
    (tmp_path / "c.conllu").write_text(
        "\n\n".join("\n".join(f"{n}\t{w}\t_" for n, w in enumerate(s, 1)) for s in sentences),
        "utf-8",
    )
    jsonl(tmp_path / "d.jsonl", [{"id": "1", "tokens": s, "ner_tags": [0]} for s in sentences])
    for words in (["a.conll"], ["b.txt", "--format", "conll"], ["c.conllu", "--text-column", "2"],
                  ["d.jsonl"]):  # fmt: skip
        assert typed(bundles["tag"], "--file", str(tmp_path / words[0]), *words[1:]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert answers == wanted, words[0]
    # texts stay texts, and a text file a text a line
    texts = [" ".join(words) for words in sentences]
    (tmp_path / "e.txt").write_text("\n".join(texts), "utf-8")
    jsonl(tmp_path / "f.jsonl", [{"text": text, "tokens": ["x"]} for text in texts])
    for name in ("e.txt", "f.jsonl"):
        assert typed(bundles["tag"], "--file", str(tmp_path / name)) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert answers == [{"row": n, **tag(text)} for n, text in enumerate(texts, 1)]


def test_a_bad_sentence_is_answered_by_an_error_in_its_place(
    bundles: dict[str, str], tmp_path: Path
) -> None:
    source = jsonl(
        tmp_path / "a.jsonl",
        [{"tokens": ["it"]}, {"tokens": "it"}, {"tokens": ["it", 3]}, {"x": 1}, {"tokens": []}],
    )
    out = tmp_path / "out.conll"
    report = predict_file(opened(bundles, "tag"), source, out)
    assert (report.rows, report.failed) == (5, [2, 3, 4])
    # a line of a word, and an empty one after each of five sentences
    assert re.fullmatch(r"it\t(O|B-PER)\n\n\n\n\n\n", out.read_text("utf-8"))


def test_tags_are_written_as_conll(bundles: dict[str, str], tmp_path: Path) -> None:
    words = ["call", "the", "bank", "river", "it", "like", "home", "now"]
    sentences = [words[start:] + words[:start] for start in range(8)]
    source = jsonl(tmp_path / "in.jsonl", [{"tokens": sentence} for sentence in sentences])
    out = tmp_path / "out.conll"
    assert typed(bundles["tag"], "--file", source, "--out", str(out)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.conll"]
    part = read_tagged(out)
    assert part.words == sentences and part.notes == []
    tag, some = opened(bundles, "tag"), 0
    for sentence, tags in zip(sentences, part.tags, strict=True):
        wanted = ["O"] * len(sentence)
        for span in tag({"tokens": sentence})["spans"]:
            first, end = span["words"]
            wanted[first:end] = ["B-PER", *["I-PER"] * (end - first - 1)]
            some += 1
        assert tags == wanted
    assert some > 3
    report = predict_file(tag, source, out, resume=True)
    assert (report.rows, report.answered) == (8, 0)
    # plain labels, of words as they were given
    assert typed(bundles["plain"], "--file", source, "--out", str(out), "--overwrite") == 0
    part, plain = read_tagged(out), opened(bundles, "plain")
    assert part.words == sentences and part.plain
    for sentence, tags in zip(sentences, part.tags, strict=True):
        assert tags == [word["label"] for word in plain({"tokens": sentence})["words"]]


def test_tags_need_words(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.txt"
    source.write_text("call the bank\n", "utf-8")
    asked = ("--file", str(source), "--out", str(tmp_path / "out.conll"))
    assert typed(bundles["tag"], *asked) == 2
    assert "becomes words with their tags, but the rows are texts" in capsys.readouterr().err
    assert typed(bundles["classify"], *asked) == 2
    assert "answers of the task classify are no tags" in capsys.readouterr().err
    assert typed(bundles["tag"], *asked[:2], "--format", "conll", "--text-column", "text") == 2
    assert "the columns of CoNLL have numbers" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


# --- questions -----------------------------------------------------------------------------------

ASKED = {
    "version": "1.1",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {"context": "the river bank", "qas": [
                    {"id": "q1", "question": "who ?"},
                    {"id": "q2", "question": "now " * 60, "answers": []},
                ]},
                {"context": "lunch home now", "qas": [
                    {"id": "q3", "question": "call ?",
                     "answers": [{"text": "wrong", "answer_start": 2}]},
                ]},
            ],
        }
    ],
}  # fmt: skip


def test_questions_come_in_the_layout_of_squad_with_their_ids(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "dev-v1.1.json"
    source.write_text(json.dumps(ASKED), "utf-8")
    answer = opened(bundles, "answer")
    first, last = answer([("who ?", "the river bank"), ("call ?", "lunch home now")])
    assert typed(bundles["answer"], "--file", str(source)) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0] == {"row": 1, "id": "q1", **first}
    assert found[2] == {"row": 3, "id": "q3", **last}
    assert found[1]["id"] == "q2" and "the question has 60 tokens" in found[1]["error"]
    # for the scorers: ids and texts, and nothing of what has no answer
    out = tmp_path / "predictions.json"
    assert typed(bundles["answer"], "--file", str(source), "--out", str(out)) == 0
    assert json.loads(out.read_text("utf-8")) == {"q1": first["answer"], "q3": last["answer"]}
    report = predict_file(answer, source, out, resume=True)
    assert (report.rows, report.answered) == (2, 0)
    assert typed(bundles["answer"], "--file", str(source), "--text-column", "question") == 2
    assert "are for tables" in capsys.readouterr().err
    # a benchmark answers the same rows
    options = BenchmarkOptions(bundle=bundles["answer"], data=str(source))
    rows, told = read_rows(answer, options)
    assert rows == [("who ?", "the river bank"), ("call ?", "lunch home now")]
    assert told == ["1 rows that this model cannot answer"]


def test_a_bad_question_is_answered_by_an_error_in_its_place(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qas = [
        {"id": "q1", "question": "who ?"}, {"id": "q2", "question": ""}, {"id": "q3"},
        {"id": "q4", "question": "now " * 60}, {"id": "q5", "question": "call ?"},
    ]  # fmt: skip
    data = [{"title": "t", "paragraphs": [{"context": "the river bank", "qas": qas}]}]
    source, out = tmp_path / "dev.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"data": data}), "utf-8")
    assert typed(bundles["answer"], "--file", str(source), "--out", str(out)) == 0
    assert "3 rows could not be answered and carry an error: 2, 3, 4" in capsys.readouterr().err
    found, answer = rows_of(out), opened(bundles, "answer")
    first, last = answer(["who ?", "call ?"], "the river bank")
    assert (found[0], found[4]) == (
        {"row": 1, "id": "q1", **first}, {"row": 5, "id": "q5", **last}
    )  # fmt: skip
    assert found[1]["error"].startswith(
        "article 1, paragraph 1, question 2 (t): \"question\" is ''"
    )
    assert "question 3 (t)" in found[2]["error"] and "60 tokens" in found[3]["error"]
    texts = tmp_path / "out.json"
    assert typed(bundles["answer"], "--file", str(source), "--out", str(texts)) == 0
    assert list(json.loads(texts.read_text("utf-8"))) == ["q1", "q5"]
    assert typed(bundles["answer"], "--file", str(source), "--strict") == 1
    assert "dev.json: row 2: article 1, paragraph 1, question 2" in capsys.readouterr().err
    rows, told = read_rows(answer, BenchmarkOptions(bundle=bundles["answer"], data=str(source)))
    assert len(rows) == 2 and told == ["3 rows that this model cannot answer"]


def test_a_ragged_line_of_conll_is_answered_by_an_error(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.conll", tmp_path / "out.conll"
    # the bad sentence comes first in one file: the layout of --out is that of words all the same
    source.write_text("# a\ncall\tO\nit\n\nlike\tO\n\nhome\tO\tx\n\nnow\tO\n", "utf-8")
    assert typed(bundles["tag"], "--file", str(source)) == 0
    shown = capsys.readouterr()
    found, tag = [json.loads(line) for line in shown.out.splitlines()], opened(bundles, "tag")
    assert "2 rows could not be answered and carry an error: 1, 3" in shown.err
    assert found[0]["error"].startswith("line 3: 1 column, but line 2 has 2 (by tabs): 'it'")
    assert "line 7: 3 columns" in found[2]["error"]
    assert found[1] == {"row": 2, **tag({"tokens": ["like"]})} and "spans" in found[3]
    assert typed(bundles["tag"], "--file", str(source), "--out", str(out)) == 0
    assert re.fullmatch(r"\nlike\t\S+\n\n\nnow\t\S+\n\n", out.read_text("utf-8"))
    source.write_text("\n \n\n", "utf-8")
    assert typed(bundles["tag"], "--file", str(source)) == 1
    assert "in.conll has no sentence" in capsys.readouterr().err


def test_empty_texts_are_told(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source, out = jsonl(tmp_path / "a.jsonl", [{"text": t} for t in ("", "call", " \u3000")]), "o"
    told = "2 rows have an empty text and are answered all the same"
    for name in ("classify", "tag"):
        assert typed(bundles[name], "--file", source, "--out", str(tmp_path / f"{out}.jsonl"),
                     "--overwrite") == 0  # fmt: skip
        assert f"\n{told}: 1, 3\n" in capsys.readouterr().err
        found = rows_of(tmp_path / f"{out}.jsonl")
        assert ["note" in row for row in found] == [True, False, True]
        assert found[0]["note"] == "the row has no text; the answer rests on nothing"
    assert typed(bundles["classify"], "--file", source, "--out", str(tmp_path / "o.csv")) == 0
    assert f"{told}: 1, 3" in capsys.readouterr().err
    assert typed(bundles["tag"], "--file", jsonl(tmp_path / "b.jsonl", [{"tokens": []}])) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["note"].startswith("the list of words has no text")
    assert "1 row has an empty text and is answered all the same: 1" in shown.err
    # typed, and by a pipe
    assert typed(bundles["classify"], "", "call", " ") == 0
    assert capsys.readouterr().err == f"{told}\n"
    pipe = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"call\n\n")), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)
    assert typed(bundles["classify"], "--json") == 0
    shown = capsys.readouterr()
    assert ["note" in json.loads(line) for line in shown.out.splitlines()] == [False, True]
    assert shown.err == "1 row has an empty text and is answered all the same\n"


def test_flat_questions_and_ids(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, out = opened(bundles, "answer"), tmp_path / "out.json"
    row = {"question": "who ?", "context": "the river bank"}
    source = jsonl(tmp_path / "a.jsonl", [{"id": 7, **row}, {"id": "8", **row}])
    predict_file(answer, source, out)
    text = answer("who ?", "the river bank")["answer"]
    assert json.loads(out.read_text("utf-8")) == {"7": text, "8": text}
    out.unlink()
    with pytest.raises(UsageError, match="but the questions have no id"):
        predict_file(answer, jsonl(tmp_path / "b.jsonl", [row]), out)
    # the id of another one, or none: an error in its place, and the others are answered
    rows = [{"id": "7", **row}, {"id": 7, **row}, {"id": None, **row}, row, {"id": "8", **row}]
    source, lines = jsonl(tmp_path / "c.jsonl", rows), tmp_path / "out.jsonl"
    assert predict_file(answer, source, out).failed == [2, 3, 4]
    assert json.loads(out.read_text("utf-8")) == {"7": text, "8": text}
    assert predict_file(answer, source, lines).failed == [2]  # JSONL needs no ids
    found = rows_of(lines)
    assert found[1]["error"].startswith("the id '7' stands at row 1 too; scores need ids")
    assert ["id" in one for one in found] == [True, True, False, False, True]


def test_a_stopped_file_of_questions_goes_on(
    bundles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = opened(bundles, "answer")
    items = [{"id": f"q{n}", "question": "who ?"} for n in range(40)]
    paragraph = {"context": "the river bank", "qas": items}
    source, out = tmp_path / "a.json", tmp_path / "out.json"
    source.write_text(json.dumps({"data": [{"title": "", "paragraphs": [paragraph]}]}), "utf-8")
    answer_rows, done = answer.answer_rows, 0

    def stopped(rows: list[Any], **options: Any) -> list[Any]:
        nonlocal done
        if done >= 16:
            raise KeyboardInterrupt
        done += len(rows)
        return answer_rows(rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(answer, "answer_rows", stopped)
        with pytest.raises(KeyboardInterrupt, match="16 rows are safe"):
            predict_file(answer, source, out, window=8)
    report = predict_file(answer, source, out, window=8, resume=True)
    assert (report.rows, report.answered) == (40, 24)
    assert list(json.loads(out.read_text("utf-8"))) == [f"q{n}" for n in range(40)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "out.json"]


@pytest.mark.parametrize("name", ["squad/dev-v1.1.json.gz", "cmrc2018/dev.json.gz"])
def test_real_questions(bundles: dict[str, str], shared_data: Path, name: str) -> None:
    rows = list(islice(opened(bundles, "answer").rows(shared_data / name), 5))
    assert [row.number for row, _, _ in rows] == [1, 2, 3, 4, 5]
    assert len({row.values["id"] for row, _, _ in rows}) == 5
    assert all(question and context for _, question, context in rows)


# --- translations --------------------------------------------------------------------------------


def test_sources_come_nested_by_line_and_by_column(
    bundles: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["free prize", "the river bank"]
    nested = [{"translation": {"de": "lunch", "en": text}} for text in texts]
    jsonl(tmp_path / "a.jsonl", nested)
    jsonl(tmp_path / "b.jsonl", [{"translation": {"en": text}} for text in texts])
    (tmp_path / "test.en").write_text("\n".join(texts) + "\n", "utf-8")
    (tmp_path / "cmn.txt").write_text("".join(f"{text}\t你好\tCC\n" for text in texts), "utf-8")
    write = opened(bundles, "translate")
    wanted = [{"row": n, **answer} for n, answer in enumerate(write(texts), 1)]
    for words in (["a.jsonl", "--text-column", "en"], ["b.jsonl"], ["test.en"],
                  ["cmn.txt", "--text-column", "1"]):  # fmt: skip
        assert typed(bundles["translate"], "--file", str(tmp_path / words[0]), *words[1:]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == wanted
    for name, columns in (("a.jsonl", "de, en"), ("cmn.txt", "1, 2, 3")):
        assert typed(bundles["translate"], "--file", str(tmp_path / name)) == 2
        assert f"which of the columns {columns} is the text" in capsys.readouterr().err


def test_translations_are_written_a_text_a_line(bundles: dict[str, str], tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("free prize\n\nthe river bank\n", "utf-8")
    assert typed(bundles["translate"], "--file", str(source), "--out", str(out)) == 0
    first, last = opened(bundles, "translate")(["free prize", "the river bank"])
    lines = [" ".join(first["text"].split()), "", " ".join(last["text"].split())]
    assert out.read_text("utf-8") == "".join(f"{line}\n" for line in lines)
    papers = jsonl(tmp_path / "papers.jsonl", SCITLDR)
    assert typed(bundles["summarize"], "--file", papers, "--out", str(out), "--overwrite") == 0
    wanted = opened(bundles, "summarize")([row["source"] for row in SCITLDR])
    assert out.read_text("utf-8") == "".join(f"{one['summary']}\n" for one in wanted)


def test_a_text_of_several_lines_stays_one(tmp_path: Path) -> None:
    answers = jsonl(tmp_path / "a.jsonl", [{"row": 1, "text": "a\nb\u2028c"}, {"error": "no"}])
    write_layout(".txt", Path(answers), tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text("utf-8") == "a b c\n\n"


def test_alignments_are_shown(bundles: dict[str, str]) -> None:
    write = opened(bundles, "translate")
    answer = write("free prize", alignments=True)
    first, *rest = write.line(answer).splitlines()
    assert first == " ".join(answer["text"].split())
    found = answer["alignment"]
    assert len(rest) == len(found["written"]) > 0
    for line, piece, weights in zip(rest, found["written"], found["weights"], strict=True):
        assert line == f"  {piece} <- {found['source'][weights.index(max(weights))]}"
    by_hand = {"source": ["[CLS]", "dog", "[SEP]"], "written": ["Hund", "."],
               "weights": [[0.1, 0.7, 0.2], [0.2, 0.3, 0.5]]}  # fmt: skip
    shown = write.line({"text": "Hund.", "score": 0.0, "alignment": by_hand}, "dog")
    assert shown == "Hund.\tdog\n  Hund <- dog\n  . <- [SEP]"


def test_rows_have_numbers(bundles: dict[str, str], tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", NEWS)
    for name in ("summarize", "short", "translate"):
        ((row, text, pair),) = opened(bundles, name).rows(source)
        assert isinstance(row, Row) and row.number == 1 and pair is None
        assert text == NEWS[0]["article"]
