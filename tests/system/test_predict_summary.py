"""What the last lines of `filbert predict --file` say: counts, in words that hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filbert.errors import FilbertError
from filbert.infer.predict import load
from filbert.infer.predict_file import FileReport, predict_file
from tests.tiny_bundle import tiny_bundle
from tests.tiny_tasks import task_bundle


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        ([3], "\n1 row could not be answered and carries an error: 3"),
        ([3, 5], "\n2 rows could not be answered and carry an error: 3, 5"),
    ],
)
def test_rows_that_failed(failed: list[int], words: str) -> None:
    assert FileReport(9, 9, failed, len(failed), 1.0).summary(None) == "9 rows, 1.0 s, 9 rows/s" + (
        words
    )


def test_counts_of_a_resumed_file_are_of_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify = load(tiny_bundle(tmp_path / "sms"), device="cpu", precision="float32")
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": null}\n{"text": ""}\n{"text": "a"}\n{"text": "b"}\n' * 10, "utf-8")
    answers, calls = classify.answers, 0

    def stopped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if calls == 2:
            raise KeyboardInterrupt
        calls += 1
        return answers(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(classify, "answers", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict_file(classify, source, out, window=16)
    report = predict_file(classify, source, out, window=16, resume=True)
    lines = report.summary(out).splitlines()
    assert lines[0].startswith(f"{out}: in this session 8 rows, ")
    assert lines[1:] == [
        "in this session 2 rows could not be answered and carry an error: 33, 37",
        "in this session 2 rows have an empty text and are answered all the same: 34, 38",
    ]
    again = predict_file(classify, source, out, resume=True)
    assert again.summary(out).startswith(f"{out}: in this session 0 rows, ")


def test_an_id_of_null_and_a_wrong_encoding(tmp_path: Path) -> None:
    answer = load(task_bundle(tmp_path / "qa", "answer"), device="cpu", precision="float32")
    source = tmp_path / "dev.json"
    asked = '{"id": null, "question": "who é ?"}'
    text = '{"data": [{"paragraphs": [{"context": "the bank", "qas": [%s, %s]}]}]}'
    source.write_text(text % (asked, asked), "utf-8")
    ids = [row.values["id"] for row, _, _ in answer.rows(source)]
    assert ids == [f"article 1, paragraph 1, question {n}" for n in (1, 2)]
    source.write_text(text % (asked, asked), "latin-1")
    with pytest.raises(FilbertError, match=r"dev\.json, line 1, byte .* is not utf-8") as told:
        list(answer.rows(source))
    assert "no JSON" not in str(told.value) and str(told.value).endswith("(Western)")
