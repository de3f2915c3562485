"""Question answering from a file to answers: training, evaluation, prediction, a folder asked."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from filbert.bundle import Manifest, save_bundle
from filbert.cli import main
from filbert.data.documents import passages, read_documents, terms
from filbert.data.kept_arrays import keep
from filbert.errors import FilbertError, UsageError
from filbert.infer.answer import Answerer, read_context
from filbert.infer.ask import Asker, ask, line
from filbert.infer.ask_options import AskOptions
from filbert.infer.predict import load
from filbert.model.bert import BertModel
from filbert.model.span_head import BertForQuestionAnswering
from filbert.tasks.answer_scores import score_answers
from filbert.text import BertTokenizer
from filbert.train.answer import train_answer
from filbert.train.answer_options import AnswerOptions
from tests.tiny import save_base
from tests.tiny_bundle import VOCABULARY, tiny_config
from tests.tiny_questions import moods
from tests.tiny_tasks import task_bundle


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on questions some of which have no answer; texts are longer than a window."""
    folder = tmp_path_factory.mktemp("answer")
    base = save_base(folder / "base")
    options = AnswerOptions(
        data=str(moods(folder / "train.json", 300, silent=0.3, longest=40)),
        dev=str(moods(folder / "dev.json", 80, seed=1, silent=0.3, longest=40)),
        base=str(base), out=str(folder / "run"), max_length=24, stride=6, lr=3e-3, epochs=4,
        batch_tokens=512, precision="float32", device="cpu", tensorboard=False,
    )  # fmt: skip
    result = train_answer(options, quiet=True)
    assert result.scores["f1"] > 0.95, result.scores
    return folder


@pytest.fixture(scope="module")
def answerer(trained: Path) -> Answerer:
    found = load(trained / "run", device="cpu", precision="float32")
    assert isinstance(found, Answerer)
    return found


def test_the_bundle_says_what_it_is(trained: Path, answerer: Answerer) -> None:
    manifest = answerer.manifest
    assert manifest.task == "answer" and manifest.pair
    assert (manifest.max_length, manifest.stride) == (24, 6)
    assert answerer.settings.no_answer and np.isfinite(answerer.settings.threshold)
    config = json.loads((trained / "run/config.json").read_text("utf-8"))
    assert config["architectures"] == ["BertForQuestionAnswering"]
    record = json.loads((trained / "run/evaluation.json").read_text("utf-8"))
    assert record["scores"]["accuracy_unanswerable"] > 0.9


def test_evaluate_is_what_training_reported(trained: Path, answerer: Answerer) -> None:
    found = answerer.evaluate(trained / "dev.json", worst=2)
    assert found["rows"] == 80 and found["scoring"] == "squad" and len(found["worst"]) <= 2
    for name, value in answerer.manifest.scores.items():
        assert found["scores"][name] == pytest.approx(value, abs=1e-6), name
    # and what the answers of calls give
    data = json.loads((trained / "dev.json").read_text("utf-8"))["data"][0]["paragraphs"]
    rows = [(p["qas"][0]["question"], p["context"]) for p in data]
    answers = answerer(rows)
    golds = [[a["text"] for a in p["qas"][0]["answers"]] for p in data]
    _, f1 = score_answers([a["answer"] for a in answers], golds, rule="squad")
    assert f1.mean() == pytest.approx(found["scores"]["f1"])


def test_the_report_shows_calibration_and_the_surest_mistakes(trained: Path) -> None:
    record = json.loads((trained / "run/evaluation.json").read_text("utf-8"))
    told = record["calibration"]
    assert told["ece_after"] == pytest.approx(record["scores"]["ece"])
    assert sum(part["count"] for part in told["bins_before"]) == 80  # the questions of dev
    right = sum(p["count"] * p["accuracy"] for p in told["bins_after"] if p["count"])
    assert right / 80 == pytest.approx(record["scores"]["exact_match"])
    page = (trained / "run/report.html").read_text("utf-8")
    assert "<h2>Calibration</h2>" in page and "score of the answer" in page


def test_forms_of_a_call(answerer: Answerer) -> None:
    text = "the book was a hotel , the show was superb"
    one = answerer("was the film good ?", text)
    assert one["answer"] == "superb" == text[one["start"] : one["end"]]
    assert 0 < one["score"] <= 1 and "candidates" not in one
    assert answerer(["was the film good ?"], text) == [one]
    assert answerer([("was the film good ?", text)]) == [one]
    assert answerer(["was the film good ?"], [text]) == [one]
    assert list(answerer.stream([{"question": "was the film good ?", "context": text}])) == [one]
    silent = answerer("was the film good ?", "the book was a hotel the show")
    assert silent["answer"] == "" and silent["start"] is None
    never_silent = answerer("was the film good ?", "the book was a hotel", threshold=1e9)
    assert never_silent["answer"]
    several = answerer("was the film good ?", text, n_best=4)["candidates"]
    assert len(several) == 4 and several[0]["answer"] == "superb"
    assert answerer.line(one) == f"superb\t{one['start']}-{one['end']}\t{one['score']:.4f}"
    assert answerer.line(silent).startswith("(no answer)\t\t")
    assert answerer.answer_rows([]) == []


def test_a_long_text_has_its_answer_found_with_its_place(answerer: Answerer) -> None:
    text = "the book was a hotel " * 4_000 + "\0 awful " + "the show was a book " * 8_000
    assert len(text) > 240_000
    found = answerer("was the film good ?", text)
    assert found["answer"] == "awful" and found["start"] == text.index("awful")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("Who?", "  "), "item 0: the context is empty"),
        (("", "text"), "item 0: the question is empty"),
        (("Who?", None), "item 0: context: expected a text .* None"),
        ("Who?", "item 0: expected a pair"),
        ({"question": "Who?"}, "expected the keys question and context, got question"),
        (("the " * 30, "text"), "the question has 30 tokens; beside a context a window holds 10"),
    ],
)
def test_rows_that_cannot_be_read(answerer: Answerer, row: Any, message: str) -> None:
    with pytest.raises(FilbertError, match=message):
        answerer([row])


def test_lists_of_different_lengths(answerer: Answerer) -> None:
    with pytest.raises(FilbertError, match="2 questions but 1 contexts"):
        answerer(["a", "b"], ["c"])
    with pytest.raises(UsageError, match="scoring"):
        answerer.evaluate("x.json", scoring="rouge")


def test_a_run_is_resumed_and_repeated_alike(trained: Path) -> None:
    again = AnswerOptions(
        data=str(trained / "train.json"), base=str(trained / "base"), out=str(trained / "short"),
        max_length=24, stride=6, epochs=1, limit=60, batch_tokens=512, device="cpu",
        precision="float32", tensorboard=False, test=str(trained / "dev.json"), threads=1,
    )  # fmt: skip
    first = train_answer(again, quiet=True)  # no dev file: texts are held out
    weights = (trained / "short/model.safetensors").read_bytes()
    other = again.model_copy(update={"overwrite": True})
    second = train_answer(other, quiet=True)
    assert first.scores == second.scores
    assert weights == (trained / "short/model.safetensors").read_bytes()
    done = train_answer(again.model_copy(update={"resume": True}), quiet=True)
    assert "finished already" in done.notes[0]


def test_options_that_cannot_be(trained: Path) -> None:
    options = AnswerOptions(
        data=str(trained / "train.json"), base=str(trained / "base"), out=str(trained / "none"),
        metric="accuracy",
    )  # fmt: skip
    with pytest.raises(UsageError, match="there are f1, exact_match, loss"):
        train_answer(options, quiet=True)
    assert not (trained / "none").exists()


# --- a bundle without silence, and Chinese --------------------------------------------------------


def test_a_model_that_always_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(tiny_config()).eval()
    save_bundle(
        tmp_path, model=model, tokenizer=BertTokenizer(VOCABULARY),
        manifest=Manifest(task="answer", pair=True, max_length=40, stride=8),
    )  # fmt: skip
    answer = load(tmp_path, device="cpu", precision="float32")
    text = "你好，世界。銀行在河邊！" * 20
    found = answer("世界？", text, n_best=20)
    for item in found["candidates"]:
        assert text[item["start"] : item["end"]] == item["answer"] != ""
    with pytest.raises(UsageError, match="always answers"):
        answer("世界？", text, threshold=1.0)
    with torch.no_grad():
        answer.model.qa_outputs.bias.fill_(float("nan"))
    with pytest.raises(FilbertError, match="NaN"):
        answer("世界？", text)


def test_read_context(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一\r\n二".encode())
    assert read_context(tmp_path / "a.txt") == "一\r\n二"
    (tmp_path / "b.txt").write_bytes("一二".encode("gb18030"))
    with pytest.raises(FilbertError, match="--encoding"):
        read_context(tmp_path / "b.txt")
    assert read_context(tmp_path / "b.txt", encoding="gb18030") == "一二"
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(FilbertError, match="is empty"):
        read_context(tmp_path / "c.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_context(tmp_path / "none.txt")


# --- a folder of documents ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    (root / "sub").mkdir(parents=True)
    filler = "\n".join(["the book was a hotel"] * 80)
    (root / "film.md").write_text(f"{filler}\nthe film was superb\n{filler}\n", "utf-8")
    (root / "sub/food.txt").write_text("the food was a food\n", "utf-8")
    (root / "中文.txt").write_text("退貨需要七天。銀行在河邊。", "utf-8")
    (root / "binary.txt").write_bytes(b"\0\1\2")
    (root / "latin.txt").write_bytes("é".encode("latin-1"))
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / "empty.txt").write_text("\n")
    (root / "marks.txt").write_text("... !\n")
    (root / ".hidden.txt").write_text("the film was awful")
    return root


def test_documents_are_cut_and_found(folder: Path) -> None:
    pytest.importorskip("bm25s")
    library = read_documents(folder)
    assert library.names == ["film.md", "sub/food.txt", "中文.txt"]
    assert "left out 4 files" in library.notes[0] and "binary.txt holds NUL" in library.notes[0]
    assert (
        "empty.txt is empty" in library.notes[0] and "marks.txt holds no words" in library.notes[0]
    )
    assert "1 files are not of the kinds" in library.notes[1]
    whole = "".join(library.text(i) for i in range(len(library)) if library.file(i) == "film.md")
    assert whole.strip() == library.texts[0].strip() and len(library) > 4
    assert "film was superb" in library.text(library.search("which FILM", count=3)[0])
    assert library.file(library.search("退貨要幾天", count=1)[0]) == "中文.txt"
    assert library.search("zebra", count=5) == []
    with pytest.raises(UsageError, match="is no folder"):
        read_documents(folder / "none")
    with pytest.raises(FilbertError, match=r"no text to ask"):
        (folder / "sub2").mkdir()
        read_documents(folder / "sub2")


def test_passages_and_terms() -> None:
    text = "Word. " * 1000 + "\n" + "x" * 4000
    places = passages(text)
    assert places[0][0] == 0 and places[-1][1] == len(text)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(places))
    assert max(b - a for a, b in places) <= 1600
    assert text[places[0][0] : places[0][1]].endswith((". ", "."))
    assert passages(" \n … ") == []
    assert terms("ＡＢＣ's 退貨期 7天") == ["abc", "s", "退", "貨", "期", "退貨", "貨期", "7", "天"]


def test_a_folder_is_asked(
    trained: Path, answerer: Answerer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bm25s")
    library = read_documents(folder)
    asker = Asker(answerer, library)
    found = asker("was the film good ?")
    assert found and found[0]["answer"] == "superb" and found[0]["file"] == "film.md"
    for item in found:
        text = library.texts[library.names.index(item["file"])]
        assert text[item["start"] : item["end"]] == item["answer"]
    assert sum(item["score"] for item in found) <= 1 + 1e-9
    assert asker("zebra ?") == []
    with pytest.raises(FilbertError, match="the question has 30 tokens"):
        asker("the " * 30)
    options = AskOptions(
        documents=str(folder), question=["was the film good ?", "zebra ?"],
        bundle=str(trained / "run"), top_k=1,
    )  # fmt: skip
    capsys.readouterr()
    ask(options, False)
    shown = capsys.readouterr()
    assert line(found[0]).split("\t")[:2] == shown.out.splitlines()[1].split("\t")[:2]
    assert shown.out.splitlines()[2:] == ["zebra ?", "(no answer in these documents)"]
    assert "left out 4 files" in shown.err
    ask(options, True)
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["answers"][0]["answer"] == "superb"


def test_sentence_vectors_put_passages_in_order(answerer: Answerer, folder: Path) -> None:
    pytest.importorskip("bm25s")

    class Vectors:
        """Likes the texts that hold 'superb'."""

        def __call__(self, texts: Any) -> Any:
            if isinstance(texts, str):
                return np.array([0.0, 2.0], np.float32)
            return np.array([[1.0, 5.0 if "superb" in t else 0.1] for t in texts], np.float32)

    library = read_documents(folder)
    asker = Asker(answerer, library, embedder=Vectors(), passages=1)  # type: ignore[arg-type]
    (number,) = asker.find("the book was a hotel ?")
    assert "superb" in library.text(number)


def test_what_a_folder_was_asked_is_kept(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bm25s = pytest.importorskip("bm25s")
    vectors = task_bundle(tmp_path / "vectors", "embed")
    kept = tmp_path / "kept"
    options = AskOptions(
        documents=str(folder), question=["was the film good ?"], bundle=str(trained / "run"),
        embed=str(vectors), device="cpu", precision="float32",
    )  # fmt: skip
    ask(options, True)
    wanted = capsys.readouterr().out
    options = options.model_copy(update={"index": str(kept)})
    ask(options, True)
    assert capsys.readouterr().out == wanted
    assert sorted(p.name for p in kept.iterdir()) == ["vectors.safetensors", "words.safetensors"]

    def refuse(*args: Any, **others: Any) -> None:
        raise AssertionError("made anew")

    with monkeypatch.context() as patch:  # a second call makes neither
        patch.setattr(bm25s.BM25, "index", refuse)
        patch.setattr(Asker, "vectors_of", refuse)
        ask(options, True)
        shown = capsys.readouterr()
        assert shown.out == wanted and "anew" not in shown.err
    # vectors of other passages than it says, whatever wrote them
    path = kept / "vectors.safetensors"
    with safe_open(path, framework="numpy") as file:
        stamp, held = file.metadata()["stamp"], file.get_tensor("vectors")
    keep(path, {"rows": np.arange(len(held) + 1), "vectors": held}, stamp)
    ask(options, True)
    shown = capsys.readouterr()
    assert shown.out == wanted and f"{path} is damaged and is made anew" in shown.err
    # another model of vectors has other ones
    save_bundle(
        tmp_path / "other", model=BertModel(tiny_config()), tokenizer=BertTokenizer(VOCABULARY),
        manifest=Manifest(task="embed", settings={"pooling": "cls", "normalize": True}),
    )  # fmt: skip
    ask(options.model_copy(update={"embed": str(tmp_path / "other")}), True)
    assert f"{kept / 'vectors.safetensors'} was made of other documents or settings" in (
        capsys.readouterr().err
    )
    # an index that cannot be kept is one line, a question without a word has no answer
    for name in ("vectors.safetensors", "words.safetensors"):
        (kept / name).unlink()
        (kept / name).mkdir()
        ask(options.model_copy(update={"question": ["???", *options.question]}), True)
        shown = capsys.readouterr()
        assert shown.out == '{"question": "???", "answers": []}\n' + wanted
        assert shown.err.count("the index could not be kept for the next call: could not") == 1


# --- what people type -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def always(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with drawn weights that was trained without unanswerable questions."""
    torch.manual_seed(0)
    return save_bundle(
        tmp_path_factory.mktemp("always"), model=BertForQuestionAnswering(tiny_config()).eval(),
        tokenizer=BertTokenizer(VOCABULARY),
        manifest=Manifest(task="answer", pair=True, max_length=40, stride=8),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((None,), r"questions: expected .*list of pairs \(question, context\), got None"),
        ((3,), "questions: expected .* got int 3"),
        ((b"Who?",), "questions: expected .* got bytes"),
        (({"q": "Who?"},), "expected the keys question and context, got q"),
        (([3],), r"item 0: expected a pair \(question, context\), got int 3"),
        ((["Who?", "When?"],), r"item 0: expected a pair \(question, context\), got str"),
        ((["Who?"], 3), "contexts: expected .* got int 3"),
        (("Who?", 3), "item 0: context: expected a text"),
        (("Who?",), "item 0: context: expected a text .* None"),
    ],
)
def test_calls_that_are_no_question(always: Path, call: Any, message: str) -> None:
    with pytest.raises(FilbertError, match=message):
        load(always, device="cpu", precision="float32")(*call)


def test_questions_by_name(always: Path) -> None:
    answer = load(always, device="cpu", precision="float32")
    one = answer("who ?", "the river bank")
    assert answer(question="who ?", context="the river bank") == one
    assert answer("who ?", context="the river bank") == one
    assert answer({"question": "who ?", "context": "the river bank"}) == one
    assert answer(("who ?", "the river bank")) == one
    with pytest.raises(FilbertError, match="question is given twice"):
        answer("who ?", question="who ?", context="the bank")


def test_a_model_that_always_answers_needs_something_to_answer_with(
    always: Path, answerer: Answerer
) -> None:
    answer = load(always, device="cpu", precision="float32")
    with pytest.raises(FilbertError, match=r"item 1: the context .* nothing that can be read"):
        answer([("who ?", "..."), ("who ?", "\u200b\u200b")])
    assert answerer("was the film good ?", "\u200b\u200b")["answer"] == ""  # it may stay silent


def typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str,
    stdin: bytes = b"",
) -> tuple[int, list[str], str]:  # fmt: skip
    """Exit code, lines and messages of `filbert ...`."""
    pipe = SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)
    with pytest.raises(SystemExit) as left:
        main(list(words))
    shown = capsys.readouterr()
    return int(left.value.code or 0), shown.out.splitlines(), shown.err


def test_a_line_that_cannot_be_read_is_answered_in_its_place(
    always: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    context = tmp_path / "a.txt"
    context.write_text("the river bank")
    asked = ("predict", str(always), "--context", str(context), "--device", "cpu")
    code, lines, told = typed(capsys, monkeypatch, *asked, "--json", stdin=b"who ?\n\nhow ?\n")
    assert code == 0 and len(lines) == 3
    answers = [json.loads(line) for line in lines]
    assert answers[1] == {"error": "standard input, line 2: the question is empty"}
    assert [bool(a.get("answer")) for a in answers] == [True, False, True]
    assert (
        told == "1 line has no answer but an error. standard input, line 2: the question is empty\n"
    )
    code, lines, _ = typed(capsys, monkeypatch, *asked, stdin=b"who ?\n\n")
    assert code == 0 and lines[1] == "error: standard input, line 2: the question is empty"
    code, lines, told = typed(capsys, monkeypatch, *asked, stdin=b"\n")
    assert code == 1 and "standard input, line 1: the question is empty" in told
    code, lines, told = typed(capsys, monkeypatch, *asked, "--strict", stdin=b"who ?\n\n")
    assert code == 1 and len(lines) == 1 and "line 2: the question is empty" in told
    code, lines, told = typed(
        capsys, monkeypatch, "predict", str(always), stdin=b"who ?\tthe bank\n\nwho ?\tthe sea\n"
    )
    assert code == 0 and "line 2: this model compares two texts" in lines[1] and len(lines) == 3


def test_a_question_needs_a_text(
    always: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, told = typed(capsys, monkeypatch, "predict", str(always), "Who?")
    assert code == 2 and "--context" in told and "--pair" in told
    for top in ("0", "-1", "1001"):
        asked = ("predict", str(always), "Who?", "--pair", "the bank", "--top", top)
        code, _, told = typed(capsys, monkeypatch, *asked)
        assert code == 2 and told == f"error: --top must be from 1 to 1,000, got {top}\n"


def test_a_file_of_questions(
    always: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = tmp_path / "a.jsonl"
    rows.write_text(json.dumps({"id": 1, "context": "the river bank", "question": "who ?"}))
    table = tmp_path / "a.csv"
    table.write_text("question,context\nwho ?,the river bank\n")
    wanted = load(always, device="cpu", precision="float32")("who ?", "the river bank")
    for path, name in ((rows, {"id": 1}), (table, {})):
        asked = ("predict", str(always), "--file", str(path), "--device", "cpu")
        code, lines, _ = typed(capsys, monkeypatch, *asked, "--precision", "float32")
        assert code == 0
        assert json.loads(lines[0]) == {"row": 1, **name, **wanted}
    for name, content in (("b.csv", "text,label\na,b\n"), ("b.txt", "who ?\n")):
        path = tmp_path / name
        path.write_text(content)
        code, lines, told = typed(capsys, monkeypatch, "predict", str(always), "--file", str(path))
        assert code == 2 and not lines
        assert "--text-column" in told and "--pair-column" in told
