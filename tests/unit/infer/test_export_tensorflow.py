"""TensorFlow's SavedModel against the source, for every head; where TensorFlow is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filbert import load
from filbert.errors import FilbertError
from filbert.infer.export import export
from filbert.infer.export_compare import compare
from filbert.infer.export_options import ExportOptions
from filbert.infer.export_tensorflow import open_again, write
from filbert.model import bert
from filbert.model.modern import ModernBertModel
from filbert.model.plain import OUTPUTS, PlainModel
from filbert.model.pretrained import PretrainedModel
from tests.tiny_bundle import tiny_bundle
from tests.tiny_models import built, packed

pytest.importorskip("tensorflow", reason="TensorFlow is not installed (filbert[tensorflow])")

HEADS = [
    *((kind, {}) for kind in OUTPUTS if not kind.__name__.startswith("Modern")),
    (bert.BertModel, {"embedding_size": 8, "hidden_act": "gelu_new"}),
    (bert.BertForTokenClassification, {"hidden_act": "silu"}),
]


@pytest.mark.parametrize(("kind", "changes"), HEADS)
def test_every_head(tmp_path: Path, kind: type[PretrainedModel], changes: dict[str, Any]) -> None:
    model = built(kind, **changes)
    graph = PlainModel(model)
    write(graph, tmp_path / "saved_model/1")
    ids, types, lengths = packed()
    counts = lengths.tolist()
    texts = [
        (words.numpy(), kinds.numpy())
        for words, kinds in zip(ids.split(counts), types.split(counts), strict=True)
    ]
    runtime = open_again(tmp_path / "saved_model/1", graph)
    found = compare(model, runtime, [texts, texts[:1], texts[2:3]], source="drawn")
    assert set(found.outputs) == set(OUTPUTS[kind])
    assert found.difference <= 2e-5


def test_modern_bert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FilbertError, match="a ModernBERT is not written for TensorFlow"):
        write(PlainModel(built(ModernBertModel)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_whole_export(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "source")
    done = export(
        ExportOptions(
            bundle=str(tmp_path / "source"), out=str(tmp_path / "out"), format="tensorflow"
        )
    )
    assert done.compared["tensorflow"].difference <= 1e-4
    assert (tmp_path / "out/saved_model/1/saved_model.pb").is_file()
    with pytest.raises(FilbertError, match="an export for other programs"):
        load(tmp_path / "out")
