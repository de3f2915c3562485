"""Exports: the folder, the answers of each runtime, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from filbert import load
from filbert.bundle import Manifest, open_bundle, read_manifest, save_bundle
from filbert.errors import FilbertError, UsageError
from filbert.infer import export_compare, export_formats
from filbert.infer.evaluate import evaluate
from filbert.infer.export import Exported, export
from filbert.infer.export_options import ExportOptions
from filbert.model.bert import BertForPreTraining, BertForTokenClassification, BertModel
from filbert.model.runtime import Arrays, Runtime
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.model.span_head import BertForQuestionAnswering
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_bundle, tiny_config, tiny_encoder
from tests.tiny_tasks import task_bundle

TEXTS = [
    "free prize", "call home now , i like it . " * 10, "lunch", "", "你好 世界", "the river bank",
]  # fmt: skip
ONNX = ("onnx", "onnxscript", "onnxruntime")


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed (filbert[export])")


def options(bundle: Path, out: Path, format: str, **changes: Any) -> ExportOptions:
    values = {"bundle": str(bundle), "out": str(out), "format": format}
    return ExportOptions.model_validate({**values, **changes})


def headed(folder: Path, task: str, kind: type, **settings: Any) -> Path:
    """A bundle of another task than classification."""
    torch.manual_seed(5)
    labels = ["B-PER", "I-PER", "O"] if task == "tag" else []
    config = tiny_config(**({"id2label": dict(enumerate(labels))} if labels else {}))
    manifest = Manifest(
        task=task, labels=labels, max_length=40, stride=8, settings=settings,
        pair=task == "answer",
    )  # type: ignore[arg-type]  # fmt: skip
    return save_bundle(
        folder, model=kind(config).eval(), tokenizer=BertTokenizer(VOCABULARY), manifest=manifest
    )


@pytest.fixture(scope="module", autouse=True)
def no_traces() -> Iterator[None]:
    """Keep PyTorch's record of its own tracing out of what pytest collects, which takes long."""
    logger = logging.getLogger("torch.__trace")
    logger.propagate, before = False, logger.propagate
    yield
    logger.propagate = before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    tiny_bundle(folder / "source")
    return folder


@pytest.fixture(scope="module")
def onnx(place: Path) -> Exported:
    needs(*ONNX)
    return export(options(place / "source", place / "onnx", "onnx"))


def test_onnx_holds_what_others_look_for(place: Path, onnx: Exported) -> None:
    import onnx as package

    names = {path.name for path in onnx.out.iterdir()}
    assert names == {
        *("model.onnx", "config.json", "filbert.json", "export.json", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"),
    }
    model = package.load(onnx.out / "model.onnx")
    package.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    shapes = {
        port.name: [size.dim_param or size.dim_value for size in port.type.tensor_type.shape.dim]
        for port in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "length"], "attention_mask": ["batch", "length"],
        "token_type_ids": ["batch", "length"], "logits": ["batch", 2],
    }  # fmt: skip
    config = json.loads((onnx.out / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["BertForSequenceClassification"]
    record = json.loads((onnx.out / "export.json").read_text("utf-8"))
    assert record == onnx.record
    found = record["compared"]["onnxruntime"]
    assert found["longest"] == 40 and found["texts"] == 9 and found["tolerance"] == 1e-4
    assert 0 < found["outputs"]["logits"]["max_abs"] <= 1e-4
    assert "largest difference" in str(onnx) and "model.onnx" in str(onnx)
    assert read_manifest(onnx.out).provenance["exported"] == {"format": "onnx", "from": "source"}
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_plain_onnx_runtime_gives_the_logits(place: Path, onnx: Exported) -> None:
    """By a program that knows nothing of filbert but the tokenizer's file."""
    import onnxruntime
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(onnx.out / "tokenizer.json"))
    tokenizer.enable_truncation(40)
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(TEXTS)
    session = onnxruntime.InferenceSession(
        str(onnx.out / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    inputs = {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
        "token_type_ids": np.array([row.type_ids for row in rows]),
    }
    logits = session.run(["logits"], inputs)[0]
    source = load(place / "source", device="cpu", precision="float32")
    short = [0, 2, 3, 4, 5]  # the long one comes in windows there
    expected = source.logits([TEXTS[number] for number in short])
    assert np.abs(logits[short] - expected).max() <= 2e-5


def test_the_core_answers_as_the_source(place: Path, onnx: Exported, tmp_path: Path) -> None:
    source = load(place / "source", device="cpu", precision="float32")
    core = load(onnx.out, core="onnxruntime", threads=1)
    assert core.reason == "that of the core onnxruntime" and core.device.type == "cpu"
    assert np.abs(source.logits(TEXTS) - core.logits(TEXTS)).max() <= 2e-5  # windows, too
    assert [a["label"] for a in core(TEXTS)] == [a["label"] for a in source(TEXTS)]
    rows = "".join(f"{text.strip()}\tham\n" for text in TEXTS if text)
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + rows, "utf-8")
    mine = evaluate(onnx.out, tmp_path / "rows.tsv", core="onnxruntime")["scores"]
    theirs = evaluate(place / "source", tmp_path / "rows.tsv", precision="float32")["scores"]
    assert mine["accuracy"] == theirs["accuracy"]


def test_files_that_do_not_belong_together_are_told(
    place: Path, onnx: Exported, tmp_path: Path
) -> None:
    for task, got in (("tag", r"and \(1, 4, 3\) came"), ("embed", "and none came")):
        other = export(options(task_bundle(tmp_path / task, task), tmp_path / f"{task}-o", "onnx"))
        mixed = tmp_path / f"{task}-mixed"
        shutil.copytree(onnx.out, mixed)
        shutil.copy(other.out / "model.onnx", mixed / "model.onnx")
        core = load(mixed, core="onnxruntime", threads=1)
        with pytest.raises(FilbertError, match=rf"logits of the shape .*{got}.*belong together"):
            core("free prize")


def test_an_export_says_how_it_is_opened(place: Path, onnx: Exported) -> None:
    with pytest.raises(FilbertError, match=r'Give --core onnxruntime, or core="onnxruntime"'):
        load(onnx.out)
    with pytest.raises(FilbertError, match=r"no openvino_model.xml.*--format openvino"):
        load(onnx.out, core="openvino")
    with pytest.raises(FilbertError, match=r"has no model.onnx, which the core onnxruntime opens"):
        load(place / "source", core="onnxruntime")
    with pytest.raises(UsageError, match="unknown core 'tvm'"):
        load(onnx.out, core="tvm")
    with pytest.raises(UsageError, match="precision bf16: the core onnxruntime computes in"):
        load(onnx.out, core="onnxruntime", precision="bf16")


@pytest.mark.parametrize("core", ["onnxruntime", "openvino"])
def test_answers_to_questions(tmp_path: Path, core: str) -> None:
    """Two outputs, pairs, and on OpenVINO the same graph in its own files."""
    needs(*ONNX, "openvino")
    format = {"onnxruntime": "onnx", "openvino": "openvino"}[core]
    headed(tmp_path / "source", "answer", BertForQuestionAnswering)
    done = export(options(tmp_path / "source", tmp_path / "out", format, threads=1))
    assert set(done.compared[core].outputs) == {"start_logits", "end_logits"}
    assert done.compared[core].difference <= 1e-4
    asked = ("who like it ?", "the river bank like it now , call home . " * 4)
    mine = load(tmp_path / "source", device="cpu", precision="float32")(*asked)
    theirs = load(tmp_path / "out", core=core)(*asked)
    assert mine["answer"] == theirs["answer"]
    assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)


def test_openvino_writes_float32(place: Path) -> None:
    needs(*ONNX, "openvino")
    done = export(options(place / "source", place / "openvino", "openvino"))
    names = {path.name for path in done.out.iterdir()}
    assert {"openvino_model.xml", "openvino_model.bin"} <= names and "model.onnx" not in names
    weights = open_bundle(place / "source").model
    floats = 4 * sum(weight.numel() for weight in weights.parameters())
    # equal constants are kept once; in half precision it would be half of it
    assert (done.out / "openvino_model.bin").stat().st_size > 0.75 * floats
    assert done.compared["openvino"].difference <= 1e-4


def test_torch_export_opens_by_itself(place: Path) -> None:
    done = export(options(place / "source", place / "torch", "torch"))
    assert list(done.compared) == ["torch.export"]
    assert done.compared["torch.export"].difference <= 1e-4
    with export_formats.silenced():
        program = torch.export.load(str(done.out / "model.pt2")).module()
    ids = torch.tensor([[2, 40, 3]])
    logits = program(ids, torch.ones_like(ids), torch.zeros_like(ids))[0]
    model = open_bundle(place / "source").model
    torch.testing.assert_close(logits, model(ids).logits, rtol=0, atol=1e-5)
    with pytest.raises(FilbertError, match=r"for other programs \(torch.export.load opens"):
        load(done.out)


def test_a_pretrained_model_fills_blanks(tmp_path: Path) -> None:
    needs(*ONNX)
    tiny_encoder(tmp_path / "source", BertForPreTraining)
    done = export(options(tmp_path / "source", tmp_path / "out", "onnx", opset=20))
    assert done.record["opset"] == 20 and done.compared["onnxruntime"].difference <= 1e-4
    assert read_manifest(tmp_path / "out").task == "fill"
    texts = ["the [MASK] bank", "[MASK] like it , " * 8 + "call [MASK] now"]
    source = load(tmp_path / "source", device="cpu", precision="float32")
    core = load(tmp_path / "out", core="onnxruntime")
    for mine, theirs in zip(source(texts), core(texts), strict=True):
        assert mine["text"] == theirs["text"]
    one, other = (model.perplexity(texts[0].replace("[MASK]", "river")) for model in (source, core))
    assert one["log_likelihood"] == pytest.approx(other["log_likelihood"], abs=1e-4)


# Formats that are stood in for: everything around them, without their seconds.


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A format that "exports" the plain graph itself; `shift` is added to what it answers."""
    given: dict[str, Any] = {"shift": 0.0, "wrote": 0}

    def write(graph: Any, folder: Path, opset: int, aot: bool) -> None:
        given["wrote"] += 1
        (folder / "model.onnx").write_bytes(b"stand-in")

    def reopen(folder: Path, graph: Any, threads: int | None) -> list[Runtime]:
        @torch.no_grad()
        def run(arrays: Arrays) -> Arrays:
            found = graph(*(torch.from_numpy(arrays[name]) for name in graph.inputs))
            shifted = [value.numpy() + np.float32(given["shift"]) for value in found]
            return dict(zip(graph.outputs, shifted, strict=True))

        return [Runtime("stand-in", graph.inputs, run)]

    format = export_formats.Format((), "export", "model.onnx", write, reopen)
    monkeypatch.setitem(export_formats.FORMATS, "onnx", format)
    return given


@pytest.mark.parametrize(
    ("task", "kind", "settings"),
    [
        ("tag", BertForTokenClassification, {"scheme": "bio"}),
        ("embed", BertModel, {"pooling": "cls", "normalize": True}),
    ],
)
def test_other_tasks(
    tmp_path: Path, stand_in: dict[str, Any], task: str, kind: type, settings: dict[str, Any]
) -> None:
    headed(tmp_path / "source", task, kind, **settings)
    done = export(options(tmp_path / "source", tmp_path / "out", "onnx"))
    assert done.compared["stand-in"].difference <= 1e-4
    assert done.record["task"] == task
    assert (tmp_path / "out/modules.json").is_file() == (task == "embed")
    if task == "embed":
        from filbert.model import sentence_folder

        found = sentence_folder.read(tmp_path / "out")
        assert found == sentence_folder.SentenceSettings("cls", True, 40)


@pytest.mark.parametrize("shift", [2e-4, float("nan")])
def test_another_answer_is_refused_and_nothing_left(
    place: Path, stand_in: dict[str, Any], shift: float, tmp_path: Path
) -> None:
    stand_in["shift"] = shift
    with pytest.raises(FilbertError, match=r"answers otherwise than the source: logits .*1e-04"):
        export(options(place / "source", tmp_path / "out", "onnx"))
    assert stand_in["wrote"] == 1 and list(tmp_path.iterdir()) == []


def test_a_failed_one_leaves_the_folder_that_was_there(
    place: Path, stand_in: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(options(place / "source", out, "onnx"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match="is not empty; --overwrite"):
        export(options(place / "source", out, "onnx"))
    stand_in["shift"] = 1.0
    with pytest.raises(FilbertError, match="answers otherwise"):
        export(options(place / "source", out, "onnx", overwrite=True))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    stand_in["shift"] = 0.0
    (out / "stray.txt").write_text("of the export before", "utf-8")
    export(options(place / "source", out, "onnx", overwrite=True))
    assert {path.name for path in out.iterdir()} == set(before)


KILLED = """
import os, signal, sys
from pathlib import Path
from filbert.infer import export, export_formats
from filbert.infer.export_options import ExportOptions

def write(graph, folder, opset, aot):
    (folder / "model.pt2").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

export_formats.FORMATS["torch"] = export_formats.Format((), "", "model.pt2", write, None)
export.export(ExportOptions(bundle=sys.argv[1], out=sys.argv[2], format="torch"))
"""


def test_a_kill_half_way_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(place / "source"), str(tmp_path / "out")]
    root = str(Path(__file__).resolve().parents[3])
    ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": root}, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


# What is refused


def test_packages_that_are_not_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats.importlib.util, "find_spec", lambda name: None)
    for format, extra in (("onnx", "export"), ("openvino", "export"), ("tensorflow", "tensorflow")):
        with pytest.raises(FilbertError, match=rf"Type: pip install 'filbert\[{extra}\]'") as told:
            export(options(place / "source", place / "refused", format))
        assert "\n" not in str(told.value)
    assert not (place / "refused").exists()


def test_tasks_and_models_that_are_not_exported(tmp_path: Path, place: Path) -> None:
    headed(tmp_path / "source", "summarize", BertForExtractiveSummary)
    with pytest.raises(FilbertError, match="a model of the task summarize is not exported; those"):
        export(options(tmp_path / "source", tmp_path / "out", "torch"))
    with pytest.raises(UsageError, match="source, which is read"):
        export(options(place / "source", place / "source", "torch", overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("words", "utf-8")
    with pytest.raises(UsageError, match="files that are not of a bundle"):
        export(options(place / "source", tmp_path / "mine", "torch", overwrite=True))
    assert not (tmp_path / "out").exists()


def test_options_of_other_formats(place: Path) -> None:
    for wrong, message in (
        ({"format": "torch", "opset": 18}, "--opset is for --format onnx"),
        ({"format": "onnx", "aot": True}, "--aot is for --format torch"),
        ({"format": "onnx", "opset": 17}, "greater than or equal to 18"),
        ({"format": "coreml"}, "'onnx', 'openvino', 'torch' or 'tensorflow'"),
    ):
        with pytest.raises(ValidationError, match=message):
            ExportOptions.model_validate({"bundle": "a", "out": "b", **wrong})


def test_no_compiler(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="--aot compiles C\\+\\+ and finds no compiler"):
        export(options(place / "source", place / "refused", "torch", aot=True))


def test_texts_of_a_file(place: Path, stand_in: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,other\n" + "call home,now\n" * 20, "utf-8")
    asked = options(place / "source", tmp_path / "out", "onnx", data=str(path), limit=11)
    found = export(asked).compared["stand-in"]
    assert found.texts == 11 + 2 and found.source == str(path)  # one token, and the longest
    assert found.tokens == 11 * 4 + 1 + 40
    for cell, told in (("3", "expected text"), (r'"\ud83d"', "half of a surrogate pair")):
        (tmp_path / "gap.jsonl").write_text(f'{{"text": "a"}}\n{{"text": {cell}}}\n', "utf-8")
        asked = options(place / "source", tmp_path / "no", "onnx", data=str(tmp_path / "gap.jsonl"))
        with pytest.raises(FilbertError, match=f"gap.jsonl, row 2: {told}"):
            export(asked)


def test_measure_of_a_difference() -> None:
    """Logits by themselves, states by their size: 1e-5 between states of 0.1 counts as 1e-4."""
    mine, theirs = np.full(4, 0.1), np.array([0.1, 0.1, 0.1, 0.10001])
    states = export_compare._difference(mine, theirs, states=True)
    assert states.difference == pytest.approx(1e-4) and states.largest == pytest.approx(1e-5)
    assert export_compare._difference(mine, theirs, states=False).difference == pytest.approx(1e-5)
    assert states.relative == pytest.approx(1e-5 / 0.2)


@pytest.mark.parametrize(
    ("kind", "by"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("torch", "torch.export")]
)
def test_real_weights(minilm: Path, tmp_path: Path, kind: str, by: str) -> None:
    """MiniLM by others: its sentence vectors are those of PyTorch."""
    needs(*ONNX, *(["openvino"] if kind == "openvino" else []))
    done = export(options(minilm, tmp_path / "out", kind, threads=1))
    assert done.compared[by].difference <= 1e-4
    assert done.compared[by].longest == 512
    if kind != "torch":  # whose programs filbert does not open
        texts = ["A man eats.", "你好,世界!我想退款。", "word " * 400, ""]
        mine = load(minilm, device="cpu", precision="float32")(texts)
        assert np.abs(load(tmp_path / "out", core=by)(texts) - mine).max() <= 1e-5
    shutil.rmtree(tmp_path / "out")
