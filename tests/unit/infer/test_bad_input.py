"""What the engine is given in practice: no text at all, far too much of it, other types, and a
machine without what was asked for. Each of four tasks, alone and in the middle of a stream."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from filbert.errors import FilbertError, UsageError
from filbert.infer.engine import Engine
from filbert.infer.predict import load
from filbert.model import device
from filbert.model.runtime import open_runtime
from tests.tiny_bundle import tiny_bundle
from tests.tiny_tasks import task_bundle

TASKS = ("classify", "embed", "tag", "answer")
NO_TEXTS: list[tuple[Any, str]] = [
    (None, "expected a text (str), got None (a missing value)"),
    (5, "expected a text (str), got int 5"),
    (b"abc", "expected a text (str), got bytes b'abc'"),
    (["a", ["b"]], "list"),
    ({"a": 1}, "got dict {'a': 1}"),
    ("a \udc00", "half of a surrogate pair (U+DC00, character 3) is no character"),
]


@pytest.fixture(scope="module", params=TASKS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = task_bundle(tmp_path_factory.mktemp("bad") / request.param, request.param)
    return load(folder, device="cpu", precision="float32")


def row(model: Any, text: Any) -> Any:
    return ("who ?", text) if model.manifest.pair else text


def test_one_wrong_row_in_the_middle_of_a_stream(model: Any) -> None:
    good = [row(model, text) for text in ("free prize", "lunch at home", "the river")]
    wanted = model.answer_rows(good)
    for wrong, told in NO_TEXTS:
        with Engine(model) as engine:
            rows = [*good[:2], row(model, wrong), good[2]]
            found = list(engine.stream(rows, errors="answer"))
        problem = found.pop(2)["error"]
        assert problem.startswith("item 2: ") and told in problem, (wrong, problem)
        assert "pair" not in problem or "surrogate" in problem
        assert [answer.keys() for answer in found] == [answer.keys() for answer in wanted]
        with pytest.raises(FilbertError, match="item 2: "):
            model(rows)


class Nameless:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


def test_a_row_that_cannot_be_shown(model: Any) -> None:
    with Engine(model) as engine:
        rows = [row(model, "free"), row(model, Nameless()), row(model, "the river")]
        found = list(engine.stream(rows, errors="answer"))
    assert ["error" in answer for answer in found] == [False, True, False]
    assert "Nameless" in found[1]["error"]


def test_a_source_that_fails_loses_no_answer(model: Any) -> None:
    """A file that ends in the middle, say: the rows before it are answered, then it is told."""

    def rows() -> Iterator[Any]:
        for text in ("free prize", "lunch at home", "the river"):
            yield row(model, text)
        raise OSError("the disk went away")

    found = []
    with Engine(model) as engine, pytest.raises(OSError, match="the disk went away"):
        for answer in engine.stream(rows()):
            found.append(answer)
    assert len(found) == 3
    if hasattr(model, "stream"):  # the predictor itself
        alone = []
        with pytest.raises(OSError, match="the disk went away"):
            for answer in model.stream(rows()):
                alone.append(answer)
        assert len(alone) == 3


def test_texts_without_a_word(model: Any) -> None:
    """Answered like any other, alone and among others; a question has to have a text."""
    for text in ("", " \t\n", "\u3000", "\u200b"):
        if model.manifest.task == "answer":
            with pytest.raises(FilbertError, match="item 0: the context"):
                model(*row(model, text))
            continue
        alone, among = model.answer_rows([text])[0], model.answer_rows(["free", text])[1]
        if model.manifest.task == "tag":
            assert alone == among == {"spans": []}
        else:
            value = "score" if model.manifest.task == "classify" else "vector"
            assert alone[value] == pytest.approx(among[value], abs=1e-5)


def test_a_very_long_text(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Windows read it to its end, or the log says that they did not."""
    caplog.set_level(logging.WARNING, "filbert")
    text = "free prize now . " * 62_000 + "lunch"  # a megabyte
    (answer,) = model.answer_rows([row(model, text)])
    told = [line for line in caplog.messages if "cut off" in line]
    if model.manifest.task in ("tag", "answer"):
        found = answer.get("spans", [answer])
        assert all(text[one["start"] : one["end"]] for one in found)
        assert told == [] and (model.manifest.task == "answer" or found[-1]["end"] > 1_000_000)
    else:
        windows = model.manifest.task == "classify" and model.manifest.windows
        assert len(told) == (0 if windows else 1)


def test_bf16_and_int8_that_the_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "sms")
    monkeypatch.setattr(device, "native_bf16", lambda _: (False, "no bfloat16 units"))
    with pytest.raises(UsageError, match=r"precision bf16: this cpu has no bfloat16 units.*auto"):
        load(bundle, device="cpu", precision="bf16")
    assert load(bundle, device="cpu").dtype == torch.float32
    with pytest.raises(UsageError, match="unknown precision 'fp8'; expected auto, float32, bf16"):
        load(bundle, device="cpu", precision="fp8")


@pytest.mark.parametrize(
    ("core", "file"), [("onnxruntime", "model.onnx"), ("openvino", "openvino_model.xml")]
)
def test_a_runtime_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, core: str, file: str
) -> None:
    (tmp_path / file).write_bytes(b"a graph")
    monkeypatch.setitem(sys.modules, core, None)  # importing it fails
    with pytest.raises(FilbertError, match=rf"{core}.*pip install 'filbert\[export\]'"):
        open_runtime(core, tmp_path)
