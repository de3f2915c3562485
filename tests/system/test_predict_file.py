"""Prediction of files: answers in order, files that stop and go on, what is told of bad rows."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from filbert.errors import FilbertError, UsageError
from filbert.infer import predict_file as files
from filbert.infer.predict import Classifier
from filbert.infer.predict_file import predict_file
from tests.tiny_bundle import TEXTS


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    texts = [TEXTS[i % len(TEXTS)] for i in range(100)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def test_a_file_is_answered_in_order(classifier: Classifier, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    report = predict_file(classifier, source, out, window=8)
    assert (report.rows, report.answered, report.failures) == (100, 100, 0)
    assert "100 rows" in report.summary(out)
    rows, expected = rows_of(out), classifier(TEXTS)
    assert [row["row"] for row in rows] == list(range(1, 101))
    for index, row in enumerate(rows):
        right = expected[index % len(TEXTS)]
        assert row["label"] == right["label"]
        assert row["score"] == pytest.approx(right["score"], abs=1e-5)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl"]
    with pytest.raises(UsageError, match=r"exists already.*--overwrite"):
        predict_file(classifier, source, out)
    predict_file(classifier, source, out, overwrite=True)
    assert len(rows_of(out)) == 100


def test_csv_in_and_out(classifier: Classifier, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,text\n1,"free, ""prize""\ncall"\n2,lunch\n3," "\n', "utf-8")
    predict_file(classifier, source, out, all_scores=True)
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "label", "score", "score:ham", "score:spam", "error", "note"]
    assert [row["row"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["note"]) for row in rows] == [False, False, True]
    expected = classifier('free, "prize"\ncall')
    assert rows[0]["label"] == expected["label"]
    assert float(rows[0]["score:ham"]) + float(rows[0]["score:spam"]) == pytest.approx(1, abs=1e-6)


def test_rows_without_a_text_are_told_and_the_others_answered(
    classifier: Classifier, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a"}\n{"text": null}\n{"text": "b"}\n{"text": 4}\n', "utf-8")
    report = predict_file(classifier, source, out)
    rows = rows_of(out)
    assert (report.failures, report.failed) == (2, [2, 4])
    assert "2 rows could not be answered and carry an error: 2, 4" in report.summary(out)
    assert ["error" in row for row in rows] == [False, True, False, True]
    assert "None" in rows[1]["error"] and "int 4" in rows[3]["error"]
    assert rows[2]["score"] == pytest.approx(classifier("b")["score"], abs=1e-5)
    with pytest.raises(FilbertError, match=r"in\.jsonl: row 2"):
        predict_file(classifier, source, tmp_path / "strict.jsonl", strict=True)
    assert not list(tmp_path.glob("strict*"))  # nothing was answered: nothing is left lying about


class Stopped(Exception):
    """What the tests below throw in the middle of a file."""


def stop_after(rows: int, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    """Let the answering of every block behind the first `rows` rows raise `error`."""
    answer = files._answer

    def counted(model: Any, block: Any, *rest: Any) -> Any:
        if block[0][0].number > rows:
            raise error
        return answer(model, block, *rest)

    monkeypatch.setattr(files, "_answer", counted)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("torn", [b"", b'{"row": 49, "lab', b"49,ha"])
def test_an_interrupted_file_goes_on(
    classifier: Classifier,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    torn: bytes,
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    predict_file(classifier, source, whole, window=16)
    with monkeypatch.context() as patch:
        stop_after(48, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt, match=r"48 rows are safe.*--resume"):
            predict_file(classifier, source, out, window=16)
    partial = tmp_path / f"out{suffix}.partial"
    assert partial.is_file() and not out.exists()
    with open(partial, "ab") as file:
        file.write(torn)  # what a kill in the middle of a write leaves
    with pytest.raises(UsageError, match="unfinished run; --resume goes on"):
        predict_file(classifier, source, out, window=16)
    report = predict_file(classifier, source, out, window=16, resume=True)
    assert (report.rows, report.answered) == (100, 52)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("out*")) == [out.name]


def test_a_resume_with_another_input_or_model_is_refused(
    classifier: Classifier, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(20, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict_file(classifier, source, out, window=16)
    with pytest.raises(UsageError, match="another options"):
        predict_file(classifier, source, out, resume=True, all_scores=True)
    source.write_text(source.read_text("utf-8") + '{"text": "more"}\n', "utf-8")
    with pytest.raises(UsageError, match=r"another input file.*--overwrite"):
        predict_file(classifier, source, out, resume=True)
    report = predict_file(classifier, source, out, overwrite=True)
    assert report.answered == 101


def test_a_full_disk_keeps_what_was_answered(
    classifier: Classifier, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(48, patch, OSError(28, "No space left on device"))
        with pytest.raises(FilbertError, match="No space left on device; 48 rows are safe"):
            predict_file(classifier, source, out, window=16)
    assert predict_file(classifier, source, out, resume=True).answered == 52


def test_memory_does_not_grow_with_the_file(classifier: Classifier, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        source = tmp_path / f"{rows}.txt"
        source.write_text("free prize call now\n" * rows, "utf-8")
        tracemalloc.start()
        predict_file(classifier, source, tmp_path / f"{rows}.jsonl", window=64)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(100)  # first-call allocations
    assert peak(3000) < peak(300) + 200_000


def test_a_missing_column_leaves_nothing_behind(classifier: Classifier, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,body\n1,hello\n", "utf-8")
    with pytest.raises(UsageError, match="bodi"):
        predict_file(classifier, source, tmp_path / "out.jsonl", text_column="bodi")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]
    predict_file(classifier, source, tmp_path / "out.jsonl", text_column="body")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2\nhello,world\n", "utf-8")
    with pytest.raises(UsageError, match=r"look like pairs.*--text-column"):
        predict_file(classifier, pairs, tmp_path / "p.jsonl")
    with pytest.raises(UsageError, match="takes one text, not pairs"):
        predict_file(classifier, pairs, tmp_path / "p.jsonl", pair_column="sentence2")


def test_ctrl_c_in_a_real_process_leaves_a_file_that_goes_on(bundle: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("free prize call now lunch home the river bank\n" * 150_000, "utf-8")
    command = [
        *(sys.executable, "-m", "filbert", "predict", str(bundle), "--file", str(source)),
        *("--out", str(out), "--precision", "float32", "--threads", "1"),
    ]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    partial = tmp_path / "out.jsonl.partial"
    limit = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size > 100_000):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in told and "Traceback" not in told
    kept = len(partial.read_bytes().splitlines())
    assert 0 < kept < 150_000
    # the rest would take long: a shorter way to the end is to pretend that most was answered
    lines = partial.read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])
    padded = lines + [
        json.dumps({**last, "row": n}).encode() + b"\n" for n in range(kept + 1, 149_001)
    ]
    partial.write_bytes(b"".join(padded))
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "going on after row 149,000" in done.stderr
    with open(out, encoding="utf-8") as file:
        assert [json.loads(line)["row"] for line in file] == list(range(1, 150_001))


def test_the_progress_bar_counts_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("{}\n" * 7, "utf-8")
    assert files._count(path) == 7
    assert files._count(tmp_path / "x.parquet") is None


def test_the_model_is_never_replaced(bundle: Path, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(bundle, copy)
    before = (copy / "config.json").read_bytes()
    command = [sys.executable, "-m", "filbert", "predict", str(copy), "--file", str(source)]
    done = subprocess.run(
        [*command, "--out", str(copy / "config.json"), "--overwrite"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "is a file of the model" in done.stderr
    assert (copy / "config.json").read_bytes() == before
    done = subprocess.run([*command, "--out", str(copy / "answers.jsonl")], capture_output=True)
    assert done.returncode == 0 and (copy / "answers.jsonl").exists()


def test_the_input_is_never_replaced(classifier: Classifier, tmp_path: Path) -> None:
    source, link = tmp_path / "pp.csv", tmp_path / "link.csv"
    source.write_text("text\nfree\n", "utf-8")
    link.symlink_to(source)
    for out in (source, link):
        with pytest.raises(UsageError, match="is the input"):
            predict_file(classifier, source, out, overwrite=True)
    partial = tmp_path / "out.csv.partial"
    partial.write_text("text\nfree\n", "utf-8")
    with pytest.raises(UsageError, match="is the input"):
        predict_file(classifier, partial, tmp_path / "out.csv", format="csv", overwrite=True)
    assert source.read_text("utf-8") == partial.read_text("utf-8") == "text\nfree\n"
    with pytest.raises(UsageError, match="--out is empty"):
        predict_file(classifier, source, "")


def test_resume_of_a_finished_file_is_done(
    classifier: Classifier, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out.jsonl", "out.csv"):
        out = tmp_path / name
        predict_file(classifier, source, out)
        before = out.read_bytes()
        report = predict_file(classifier, source, out, resume=True)
        assert (report.rows, report.answered) == (100, 0)
        assert "is finished already" in capsys.readouterr().err
        assert out.read_bytes() == before


def test_a_file_of_which_no_row_is_answered_is_no_success(bundle: Path, tmp_path: Path) -> None:
    """The errors stand in the output all the same."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": null}\n{"text": 4}\n', "utf-8")
    command = [sys.executable, "-m", "filbert", "predict", str(bundle), "--file", str(source)]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith(
        "error: no row could be answered; is it the right file, column and --format?\n"
    )
    assert [row["row"] for row in rows_of(out) if "error" in row] == [1, 2]


def test_lines_that_are_no_json_have_errors_of_their_own(
    classifier: Classifier, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a"}\n{"text": \n[1]\n{"text": "b"}\n', "utf-8")
    report = predict_file(classifier, source, out)
    rows = rows_of(out)
    assert (report.rows, report.failed) == (4, [2, 3])
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert rows[1]["error"].startswith("line 2: no JSON (") and "line 3: list" in rows[2]["error"]
    alone = classifier(["a", "b"])
    assert [rows[0]["label"], rows[3]["label"]] == [answer["label"] for answer in alone]
    with pytest.raises(FilbertError, match="row 2: line 2: no JSON"):
        predict_file(classifier, source, tmp_path / "strict.jsonl", strict=True)
