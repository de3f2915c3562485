"""What `filbert evaluate` tells beside the scores, task by task, and options of writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from filbert import load
from filbert.cli import main
from filbert.cli_predict import task_options
from filbert.errors import UsageError
from filbert.infer.fill import Filler
from filbert.infer.predict_options import PredictOptions
from filbert.infer.translate import Translator
from tests.tiny_tasks import task_bundle

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Exit code, output and messages of `filbert ...`, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "500")

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_answers_at_the_wrong_place_and_long_questions(tmp_path: Path, typed: Typed) -> None:
    bundle = task_bundle(tmp_path / "qa", "answer")
    questions = [
        {"id": "a", "question": "who ?", "answers": [{"text": "river", "answer_start": 9}]},
        {"id": "b", "question": "the " * 30, "answers": [{"text": "bank", "answer_start": 10}]},
    ]
    paragraphs = [{"context": "the river bank", "qas": questions}]
    content = {"version": "1.1", "data": [{"title": "x", "paragraphs": paragraphs}]}
    path = write(tmp_path / "dev.json", json.dumps(content))
    code, told, _ = typed("evaluate", bundle, "--data", path)
    assert code == 0 and "exact_match" in told
    assert "note: 1 of 2 answers do not stand where answer_start says" in told
    assert f"note: {path}: 1 questions are longer than half a window (18 tokens)" in told
    code, told, _ = typed("evaluate", bundle, "--data", path, "--json")
    assert len(json.loads(told)["notes"]) == 2


def test_tags_that_break_their_scheme(tmp_path: Path, typed: Typed) -> None:
    pytest.importorskip("seqeval")
    bundle = task_bundle(tmp_path / "ner", "tag")
    path = write(tmp_path / "dev.conll", "the\tO\nriver\tI-PER\n\ncall\tB-PER\nnow\tO\n")
    code, told, _ = typed("evaluate", bundle, "--data", path)
    assert code == 0
    assert f"note: {path}: 1 tag went on with an entity that had not begun" in told


def test_texts_that_are_empty(tmp_path: Path, typed: Typed) -> None:
    data = write(tmp_path / "dev.csv", "text,label\nfree,spam\n,ham\n")
    code, told, _ = typed("evaluate", task_bundle(tmp_path / "a", "classify"), "--data", data)
    assert code == 0 and f"note: {data}: empty text in row 2" in told
    pairs = write(tmp_path / "dev.tsv", "query\tanswer\nfree\tprize\ncall\t\nlunch\thome\n")
    code, told, _ = typed("evaluate", task_bundle(tmp_path / "b", "embed"), "--data", pairs)
    assert code == 0 and f"note: {pairs}: left out, as a text is empty: row 2" in told


def test_summaries_and_sentences_over_the_window(tmp_path: Path, typed: Typed) -> None:
    pytest.importorskip("rouge_score")
    bundle = task_bundle(tmp_path / "sum", "summarize")
    fits, longer = " ".join("a" * 38), " ".join("a" * 39)  # 38 and two marks fill a window
    rows = [
        {"text": [fits, longer, longer], "summary": "a"},
        {"text": "It is.", "summary": "now it"},
    ]
    path = write(tmp_path / "dev.jsonl", "\n".join(map(json.dumps, rows)))
    code, told, _ = typed("evaluate", bundle, "--data", path)
    assert code == 0 and "lead_rouge1" in told
    assert f"note: {path}: documents from 'text', summaries from 'summary'" in told
    assert f"note: {path}: the summary is not shorter than its text in row 2. Are the" in told
    assert f"note: {path}: 2 sentences have more than the 40 tokens of a window" in told


def test_translations_with_signatures_examples_and_limits(tmp_path: Path, typed: Typed) -> None:
    pytest.importorskip("sacrebleu")
    bundle = task_bundle(tmp_path / "writer", "translate")
    rows = "".join(f"call {word}\tlunch {word}\n" for word in "abcdefg")
    path = write(tmp_path / "dev.tsv", f"source\ttarget\n{rows}home\t\n")
    asked = ("evaluate", bundle, "--data", path, "--beams", "2", "--device", "cpu")
    code, _, told = typed(*asked)
    assert code == 1 and "row 8: the target is empty" in told and "--empty skip" in told
    code, told, _ = typed(*asked, "--empty", "skip", "--max-tokens", "3")
    assert code == 0 and "7 rows of" in told
    assert "bleu: nrefs:1|case:mixed" in told and "chrf: nrefs:1|" in told
    assert f"note: {path}: 1 pairs with an empty side left out" in told
    assert "examples" in told and "call a" in told and "lunch c" in told  # rows 1, 3, 5, 7
    options = ("--max-tokens", "4", "--min-tokens", "4", "--length-penalty", "0.5",
               "--no-repeat-ngram", "2")  # fmt: skip
    code, told, _ = typed(*asked, "--empty", "skip", *options, "--json")
    model = load(bundle, device="cpu")
    wanted = model("call a", beams=2, max_tokens=4, min_tokens=4, length_penalty=0.5,
                   no_repeat_ngram=2)  # fmt: skip
    assert code == 0 and json.loads(told)["examples"][0]["written"] == wanted["text"]
    code, _, told = typed(*asked, "--empty", "skip", "--stem")
    assert code == 2 and "--stem: ROUGE scores summaries; translate has bleu, chrf" in told


def test_a_third_text_that_is_not_meant(tmp_path: Path) -> None:
    """It is the query itself, so nothing is nearer: the answer comes second at best."""
    rows = "query\tanswer\twrong\tnote\nfree prize\tcall now\tfree prize\tx\n"
    path = write(tmp_path / "dev.tsv", rows + "the river\tlike it\tthe river\ty\n")
    embed = load(task_bundle(tmp_path / "embed", "embed"), device="cpu", precision="float32")
    scores = embed.evaluate(path, negative_column="wrong")["scores"]
    assert scores["recall@1"] == 0.0 and scores["mrr@10"] <= 0.5


def test_the_next_best_texts_are_shown(tmp_path: Path, typed: Typed) -> None:
    bundle = task_bundle(tmp_path / "writer", "translate")
    asked = ("predict", bundle, "call a", "--beams", "3", "--max-tokens", "5", "--device", "cpu")
    code, told, _ = typed(*asked, "--best", "2", "--early-stopping", "true")
    wanted = load(bundle, device="cpu")(
        "call a", beams=3, max_tokens=5, best=2, early_stopping=True
    )
    assert code == 0
    assert told.splitlines() == [wanted["text"], "  " + wanted["others"][0]["text"]]
    code, _, told = typed(*asked, "--early-stopping", "perhaps")
    assert code == 2 and "'true', 'false' or 'never'" in told
    code, _, told = typed(*asked, "--best", "4")
    assert code == 2 and "best must be from 1 to beams, 3, got 4" in told


def test_options_of_writing_reach_the_model_and_no_other() -> None:
    def given(kind: Any, task: str, **options: Any) -> dict[str, Any]:
        model = SimpleNamespace(OPTIONS=kind.OPTIONS, manifest=SimpleNamespace(task=task))
        return task_options(PredictOptions(bundle="b", **options), model)

    asked = {"best": 2, "top_k": 5, "early_stopping": "never"}
    assert given(Translator, "translate", **asked) == asked
    assert given(Translator, "summarize", early_stopping="false") == {"early_stopping": False}
    assert given(Filler, "fill", top=5) == {"top_k": 5}
    with pytest.raises(UsageError, match="--top-k is not for a model of the task fill"):
        given(Filler, "fill", top_k=5)
