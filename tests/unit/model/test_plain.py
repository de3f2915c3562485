"""The plain graph of every kind of model against the model itself, and a model on another core."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from filbert.errors import FilbertError, UsageError
from filbert.model import bert, modern
from filbert.model.core import grids, model_on
from filbert.model.crf import BertCrfForTokenClassification
from filbert.model.plain import OF_A_TEXT, OUTPUTS, PlainModel
from filbert.model.pretrained import PretrainedModel
from filbert.model.runtime import Arrays, Runtime, check_core, open_runtime
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.model.span_head import BertForQuestionAnswering
from tests.tiny_models import VOCABULARY, built, packed


def on_a_graph(model: PretrainedModel, calls: list[tuple[int, ...]] | None = None) -> Runtime:
    """A runtime that is the plain graph in PyTorch."""
    graph = PlainModel(model)

    @torch.no_grad()
    def run(arrays: Arrays) -> Arrays:
        if calls is not None:
            calls.append(arrays["input_ids"].shape)
        found = graph(*(torch.from_numpy(arrays[name]) for name in graph.inputs))
        return {name: value.numpy() for name, value in zip(graph.outputs, found, strict=True)}

    return Runtime("graph", graph.inputs, run)


CASES = [
    *((kind, {}) for kind in OUTPUTS),
    (bert.BertModel, {"embedding_size": 8, "hidden_act": "gelu_new"}),
    (modern.ModernBertForSequenceClassification, {"classifier_pooling": "mean"}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_graph_and_core_are_the_model(kind: type[PretrainedModel], changes: dict[str, Any]) -> None:
    """The graph computes padded, the model packed; the core in between packs again."""
    model = built(kind, **changes)
    ids, types, lengths = packed()
    with torch.no_grad():
        expected = model(input_ids=ids, token_type_ids=types, lengths=lengths)
    ours = model_on(on_a_graph(model), kind, model.config)
    assert isinstance(ours, kind) and not any(weight.numel() for weight in ours.parameters())
    assert ours.device.type == "cpu" and ours.dtype == torch.float32
    found = ours(input_ids=ids, token_type_ids=types, lengths=lengths)
    for name in OUTPUTS[kind]:
        wanted = expected["prediction_logits" if kind is bert.BertForPreTraining else name]
        assert found[name].shape == wanted.shape
        scale = max(1.0, float(wanted.square().mean().sqrt()))
        assert float((found[name] - wanted).abs().max()) <= 1e-5 * scale, name
    if not issubclass(kind, OF_A_TEXT):
        at = torch.tensor([3, 0, 40, 41])  # out of order, of three texts
        chosen = ours(input_ids=ids, token_type_ids=types, lengths=lengths, predict_at=at)
        for name in OUTPUTS[kind]:
            torch.testing.assert_close(chosen[name], found[name][at], rtol=0, atol=1e-5)


def test_first_tokens_alone() -> None:
    model = built(bert.BertModel)
    ids, types, lengths = packed()
    ours = model_on(on_a_graph(model), bert.BertModel, model.config)
    whole = ours(input_ids=ids, token_type_ids=types, lengths=lengths).last_hidden_state
    first = ours(input_ids=ids, token_type_ids=types, lengths=lengths, first_only=True)
    at = torch.cumsum(lengths, 0) - lengths
    torch.testing.assert_close(first.last_hidden_state, whole[at], rtol=0, atol=0)


def test_grids_hold_like_lengths_under_their_budget() -> None:
    sizes = np.random.default_rng(0).integers(1, 300, 500)
    seen = []
    for texts in grids(sizes, 1024):
        longest = int(sizes[texts].max())
        assert len(texts) == 1 or longest * len(texts) <= 1024
        assert longest <= 1.25 * int(sizes[texts].min()) + 8
        seen += texts.tolist()
    assert sorted(seen) == list(range(500))
    assert [texts.tolist() for texts in grids(np.array([5000]), 1024)] == [[0]]


def test_what_a_core_refuses() -> None:
    model = built(BertForQuestionAnswering)
    ours = model_on(on_a_graph(model), BertForQuestionAnswering, model.config)
    with pytest.raises(FilbertError, match=f"token id {VOCABULARY} is outside"):
        ours(input_ids=torch.tensor([1, VOCABULARY]), lengths=torch.tensor([2]))
    with pytest.raises(FilbertError, match="a text of 33 tokens; this model takes at most 32"):
        ours(input_ids=torch.ones(33, dtype=torch.int64), lengths=torch.tensor([33]))
    with pytest.raises(FilbertError, match="runs in PyTorch alone; leave --core out"):
        model_on(on_a_graph(model), BertForExtractiveSummary, model.config)


def test_models_without_a_plain_form() -> None:
    with pytest.raises(FilbertError, match="a tagger with a CRF"):
        PlainModel(built(BertCrfForTokenClassification))
    with pytest.raises(FilbertError, match="a BertForExtractiveSummary cannot be exported"):
        PlainModel(built(BertForExtractiveSummary))


def test_cores_by_name(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="unknown core 'onnx'; expected auto, torch, onnxruntime"):
        check_core("onnx")
    with pytest.raises(FilbertError, match=r"has no model.onnx.*--format onnx --out FOLDER"):
        open_runtime("onnxruntime", tmp_path)


@pytest.mark.parametrize(
    ("core", "package", "file"),
    [("onnxruntime", "onnxruntime", "model.onnx"), ("openvino", "openvino", "openvino_model.xml")],
)
def test_a_damaged_file_is_told(tmp_path: Any, core: str, package: str, file: str) -> None:
    pytest.importorskip(package)
    (tmp_path / file).write_bytes(b"no model")
    with pytest.raises(FilbertError, match=f"cannot open .*{file}: .*export it anew"):
        open_runtime(core, tmp_path)
