"""What `load` does on request: a comparison with float32, and a warm-up; and evaluate's own one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert.errors import FilbertError, UsageError
from filbert.infer import evaluate as layer
from filbert.infer.engine import Engine
from filbert.infer.predict import Classifier, load
from filbert.infer.warm_up import warm_rows
from filbert.model.native import NativeEncoder, library
from filbert.tasks.calibrate import probabilities
from tests.tiny_bundle import tiny_bundle
from tests.tiny_tasks import TASKS, task_bundle

TEXTS = ["free prize", "lunch at home", "the river bank . " * 20, ""]
needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native encoder here: {library()}"
)
ANSWERED = [task for task in TASKS if task != "encode"]


def row_of(task: str) -> Any:
    pairs = {"rank": ("free", "prize"), "answer": ("who ?", "the river bank")}
    blank = "the [MASK] bank" if task in ("fill", "pretrain") else "the river bank ."
    return pairs.get(task, blank)


@needs_native
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_difference_is_that_of_two_models(
    tmp_path: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tiny_bundle(tmp_path / "sms")
    caplog.set_level(logging.INFO, "filbert")
    mine = load(bundle, device="cpu", precision=precision, compare=TEXTS)
    (told,) = (line for line in caplog.messages if "beside float32" in line)
    assert "on 4 rows: states by" in told and "probabilities by" in told
    exact = load(bundle, device="cpu", precision="float32")
    found = mine.difference
    assert found["precision"] == {"bf16": "bfloat16"}.get(precision, precision)
    assert found["rows"] == 4 and exact.difference is None
    logits = [model.logits(TEXTS).astype(np.float64) for model in (mine, exact)]
    chances = [probabilities(part, "single_label_classification", 1.5) for part in logits]
    for name, (one, other) in (("logits", logits), ("probabilities", chances)):
        apart = np.abs(one - other)
        assert found[name] == pytest.approx({"largest": apart.max(), "mean": apart.mean()})
        assert found[name]["largest"] > 0
    # the states of one text, by hand
    ids = torch.tensor(mine.tokenizer.encode(TEXTS[0]))
    given = {"input_ids": ids, "lengths": torch.tensor([len(ids)])}
    with torch.inference_mode():
        states = [model.model.bert(**given).last_hidden_state for model in (mine, exact)]
    apart = (states[0].float() - states[1]).abs()
    alone = load(bundle, device="cpu", precision=precision, compare=TEXTS[:1]).difference["states"]
    assert alone["largest"] == pytest.approx(float(apart.max()), rel=1e-4)
    assert alone["mean"] == pytest.approx(float(apart.mean()), rel=1e-4)
    assert alone["relative"] == pytest.approx(float(apart.norm() / states[1].norm()), rel=1e-4)


@pytest.mark.parametrize("task", ANSWERED)
def test_every_task_tells_of_its_states(tmp_path: Path, task: str) -> None:
    """float32 beside itself, so that this runs everywhere; the answers are as before."""
    bundle = task_bundle(tmp_path / task, task)
    row = row_of(task)
    model = load(bundle, device="cpu", precision="float32", compare=[row, row], warm_up=True)
    found = model.difference
    outputs = {
        "rank": "scores", "classify": "probabilities", "embed": "vectors", "tag": "probabilities",
        "answer": "logits",
    }.get(task)  # fmt: skip
    assert found["states"] == {"largest": 0.0, "mean": 0.0, "relative": 0.0}
    assert outputs is None or found[outputs] == {"largest": 0.0, "mean": 0.0}
    plain = load(bundle, device="cpu", precision="float32")
    assert model.answer_rows([row]) == plain.answer_rows([row])
    assert not {"logits", "vectors"} & vars(model).keys()  # nothing goes on being noted


def test_rows_that_cannot_be_compared(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "sms")
    for wrong in ("free prize", [], 7, {"text": "a"}):
        with pytest.raises(UsageError, match="compare: expected a list of texts, one or more, got"):
            load(bundle, compare=wrong)
    with pytest.raises(FilbertError, match="compare, item 1: expected a text"):
        load(bundle, compare=["free", None])


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("task", ANSWERED)
def test_texts_without_a_token_are_compared_or_refused_in_words(
    tmp_path: Path, task: str, text: str
) -> None:
    bundle = task_bundle(tmp_path / task, task)
    row = (text, text) if task in ("rank", "answer") else text
    if task in ("classify", "rank", "embed"):  # their marks are tokens
        assert load(bundle, device="cpu", compare=[row]).difference["states"]
        return
    with pytest.raises(FilbertError, match=r"^compare(: none of the texts has a token|, item 0:)"):
        load(bundle, device="cpu", compare=[row])


def test_a_core_of_exports_has_its_comparison_already(tmp_path: Path) -> None:
    from filbert.infer.difference import check_compared

    with pytest.raises(UsageError, match=r"the core openvino computes in float32 itself"):
        check_compared(TEXTS, "openvino")


def test_evaluate_compares_on_the_same_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 is computed by the core and the threads that were asked for."""
    asked: list[dict[str, Any]] = []

    def noting(name: Any, **options: Any) -> Any:
        asked.append(options)
        return load(name, **options)

    monkeypatch.setattr(layer, "load", noting)
    monkeypatch.setattr(layer, "REDUCED", ("float32",))
    data = tmp_path / "rows.csv"
    data.write_text("text,label\nfree prize,spam\nlunch,ham\n", "utf-8")
    before = torch.get_num_threads()
    try:
        layer.evaluate(
            tiny_bundle(tmp_path / "sms"), data, device="cpu", precision="float32", core="torch",
            threads=1,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    first, second = asked
    assert first == second and (second["core"], second["threads"]) == ("torch", 1)


@pytest.mark.parametrize("task", ANSWERED)
def test_warm_rows_fit_every_task(
    tmp_path: Path, task: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(task_bundle(tmp_path / task, task), device="cpu", precision="float32")
    caplog.set_level(logging.WARNING, "filbert")
    rows = list(warm_rows(model))
    assert [model.problem(row) for row, _ in rows] == [None, None]
    with Engine(model) as engine:
        assert engine.warm_up() > 0
    assert caplog.messages == []  # nothing was cut off


def test_warm_up_computes_before_anybody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = []
    answer = Classifier.answer_rows

    def noting(self: Classifier, given: Any, **options: Any) -> Any:
        rows.extend(given)
        return answer(self, given, **options)

    monkeypatch.setattr(Classifier, "answer_rows", noting)
    bundle = tiny_bundle(tmp_path / "sms")
    model = load(bundle, device="cpu", precision="float32")
    assert rows == []
    with pytest.raises(UsageError, match="warm_up: expected True or False, got str 'no'"):
        load(bundle, device="cpu", **{"warm_up": "no"})
    load(bundle, device="cpu", precision="float32", warm_up=True)
    assert [len(row.split()) for row in rows] == [1, 20]
    rows.clear()
    with Engine(model, workers=2) as engine:
        engine.warm_up()
    assert [len(row.split()) for row in rows] == [1, 1, 20, 20]


@needs_native
def test_the_first_call_packs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    pack = NativeEncoder.pack

    def noting(self: NativeEncoder, number: int, *rest: Any) -> None:
        packed.append(number)
        pack(self, number, *rest)

    monkeypatch.setattr(NativeEncoder, "pack", noting)
    model = load(tiny_bundle(tmp_path / "sms"), device="cpu", precision="int8")
    assert packed == [0, 1]
    model("free prize")
    assert packed == [0, 1]
