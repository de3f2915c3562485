"""Optimum opens an exported folder as it is, and gives the numbers of its source.

optimum-onnx 0.1 asks for transformers below 4.58, the other tests for 5 and later, so this one runs
in an environment of its own: pip install 'optimum-onnx[onnxruntime]' pytest filbert[export]
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert import load
from filbert.infer.export import export
from filbert.infer.export_options import ExportOptions
from tests.tiny_bundle import tiny_bundle
from tests.tiny_tasks import task_bundle

REASON = "optimum-onnx is not installed, or not for this version of transformers"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    optimum: Any = pytest.importorskip("optimum.onnxruntime", reason=REASON, exc_type=ImportError)

TEXTS = ["free prize", "call home now , i like it .", "", "你好 世界"]
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="no onnxscript"),
]


def opened(folder: Path, kind: str, source: Path) -> Any:
    """What Optimum computes of TEXTS with the folder that `source` is exported to."""
    from transformers import AutoTokenizer

    export(ExportOptions(bundle=str(source), out=str(folder), format="onnx"))
    model = getattr(optimum, kind).from_pretrained(folder)
    return model(**AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt"))


def test_a_classifier(tmp_path: Path) -> None:
    source = tiny_bundle(tmp_path / "sms")
    found = opened(tmp_path / "onnx", "ORTModelForSequenceClassification", source)
    wanted = load(source, device="cpu", precision="float32").logits(TEXTS)
    assert np.abs(found.logits.numpy() - wanted).max() <= 2e-5


@pytest.mark.parametrize(
    ("task", "kind", "output"),
    [
        ("embed", "ORTModelForFeatureExtraction", "last_hidden_state"),
        ("tag", "ORTModelForTokenClassification", "logits"),
        ("answer", "ORTModelForQuestionAnswering", "start_logits"),
        ("fill", "ORTModelForMaskedLM", "logits"),
    ],
)
def test_other_tasks(tmp_path: Path, task: str, kind: str, output: str) -> None:
    source = task_bundle(tmp_path / task, task)
    found = opened(tmp_path / "onnx", kind, source)[output].numpy()
    model = load(source, device="cpu", precision="float32")
    for number, text in enumerate(TEXTS):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        wanted = getattr(model.model(ids), output)[0].detach().numpy()
        assert np.abs(found[number, : len(wanted)] - wanted).max() <= 1e-4
