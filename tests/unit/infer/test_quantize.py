"""The choice of int8 products: what is measured, written, taken up and refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from filbert import load
from filbert.bundle import Manifest, open_bundle, read_manifest, save_bundle
from filbert.errors import FilbertError, UsageError
from filbert.infer import quantize as module
from filbert.infer.quantize import _most_disturbing, quantize
from filbert.infer.quantize_options import QuantizeOptions
from filbert.model import native
from filbert.model.bert import BertForSequenceClassification, BertModel
from filbert.model.config import BertConfig
from filbert.text import BertTokenizer

needs_native = pytest.mark.skipif(
    isinstance(native.library(), str), reason=f"no native encoder here: {native.library()}"
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantize")
    (place / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=32, id2label={0: "no", 1: "yes"},
        architectures=["BertForSequenceClassification"],
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    manifest = Manifest(
        task="classify", problem_type="single_label_classification", labels=["no", "yes"],
        max_length=32, stride=4,
    )  # fmt: skip
    tokenizer = BertTokenizer(place / "vocab.txt")
    save_bundle(place / "whole", model=model, tokenizer=tokenizer, manifest=manifest)
    rows = [" ".join(WORDS[5 + (7 * n + k * k) % 10] for k in range(n % 9 + 2)) for n in range(40)]
    labels = [answer["label"] for answer in load(place / "whole", precision="float32")(rows)]
    lines = [f"{row}\t{label}\n" for row, label in zip(rows, labels, strict=True)]
    (place / "rows.tsv").write_text("text\tlabel\n" + "".join(lines), "utf-8")
    return place


def asked(place: Path, out: str, **changes: object) -> QuantizeOptions:
    values = {"bundle": str(place / "whole"), "data": str(place / "rows.tsv"),
              "out": str(place / out), **changes}  # fmt: skip
    return QuantizeOptions(**values)  # type: ignore[arg-type]


@needs_native
def test_a_choice_is_written_and_taken_up(place: Path) -> None:
    done = quantize(asked(place, "int8", max_loss=100))
    assert done.int8.layers == [list(native.PRODUCTS)] * 2 and "8 of 8 products" in str(done)
    assert (done.int8.metric, done.int8.float32, done.int8.rows) == ("accuracy", 1.0, 40)
    told = json.loads((place / "int8/filbert.json").read_text("utf-8"))
    assert told["int8"] == done.int8.model_dump()
    assert "# int8\n" in (place / "int8/README.md").read_text("utf-8")
    predictor = load(place / "int8")
    assert predictor.dtype == torch.int8 and predictor.reason == "chosen by filbert quantize"
    assert predictor.model.base_model.forward.native.int8 == [15, 15]
    assert load(place / "int8", precision="bf16").dtype == torch.bfloat16
    assert load(place / "int8", core="torch").dtype != torch.int8
    scores = predictor.evaluate(place / "rows.tsv")["scores"]
    assert scores["accuracy"] == done.int8.int8


@needs_native
def test_what_disturbs_goes_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a stand-in for the scores: int8 in the first layer's `inner` and `outer` loses 1 point each
    plain = module._scored

    def scored(bundle, dtype, options):  # type: ignore[no-untyped-def]
        if dtype == torch.float32:
            found = plain(bundle, dtype, options)
            return {**found, "scores": {"accuracy": 0.9}}
        masks = getattr(bundle.model, "int8_products", [0, 0])
        return {"scores": {"accuracy": 0.9 - 0.01 * (masks[0] & 4 > 0) - 0.01 * (masks[0] & 8 > 0)}}

    wanted = [(0, "outer"), (0, "inner"), (1, "inner"), (1, "outer"), (0, "output"),
              (1, "output"), (0, "projections"), (1, "projections")]  # fmt: skip
    monkeypatch.setattr(module, "_scored", scored)
    monkeypatch.setattr(module, "_most_disturbing", lambda bert, batch: wanted)
    for limit, left in ((2.1, 15), (1.1, 7), (0.3, 3)):
        done = quantize(asked(place, f"loses-{limit}", max_loss=limit))
        masks = [sum(native.PRODUCTS[name] for name in layer) for layer in done.int8.layers]
        assert masks == [left, 15]


@needs_native
def test_int8_by_name_is_the_choice_too(place: Path) -> None:
    whole, chosen = place / "whole", place / "chosen"
    quantize(asked(place, "chosen", max_loss=100))
    told = json.loads((chosen / "filbert.json").read_text("utf-8"))
    told["int8"]["layers"] = [["output"], []]
    (chosen / "filbert.json").write_text(json.dumps(told), "utf-8")
    for precision in ("auto", "int8"):
        predictor = load(chosen, precision=precision)
        assert predictor.model.base_model.forward.native.int8 == [2, 0]
    assert load(whole, precision="int8").model.base_model.forward.native.int8 == [15, 15]
    again = quantize(asked(place, "again", max_loss=100, bundle=str(chosen)))  # of all products
    assert again.int8.layers == [list(native.PRODUCTS)] * 2


@needs_native
def test_a_score_that_int8_leaves_undefined_is_no_choice(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module._scored

    def scored(bundle, dtype, options):  # type: ignore[no-untyped-def]
        found = plain(bundle, dtype, options)
        return {**found, "scores": {"accuracy": 0.9 if dtype == torch.float32 else None}}

    monkeypatch.setattr(module, "_scored", scored)
    with pytest.raises(FilbertError, match="with a single product in int8 it loses more"):
        quantize(asked(place, "undefined", max_loss=100))


@needs_native
def test_the_most_disturbing_products_come_first(place: Path) -> None:
    bert = open_bundle(place / "whole").model.base_model
    assert isinstance(bert, BertModel)
    with torch.no_grad():  # one large weight leaves few steps to the others of its column
        bert.encoder.layer[1].output.dense.weight[:, 0] = 30.0
    batch = {"input_ids": torch.tensor([2, 5, 6, 7, 3]), "lengths": torch.tensor([5]),
             "token_type_ids": torch.zeros(5, dtype=torch.int64)}  # fmt: skip
    order = _most_disturbing(bert, batch)
    assert len(order) == 8 and order[0] == (1, "outer")


@needs_native
def test_products_packed_anew_are_as_packed_at_first(place: Path) -> None:
    bert = open_bundle(place / "whole").model.base_model
    assert isinstance(bert, BertModel)
    one, other = native.NativeEncoder(bert, [5, 8]), native.NativeEncoder(bert, 15)
    for number, (layer, mask) in enumerate(zip(bert.encoder.layer, (5, 8), strict=True)):
        other.pack(number, layer, 0)
        other.pack(number, layer, mask)
    ids, lengths = torch.arange(2, 15), torch.tensor([4, 9])
    assert torch.equal(one(ids, lengths), other(ids, lengths)) and one.int8 == other.int8 == [5, 8]


def test_what_cannot_be_done_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="which is read"):
        quantize(asked(place, "whole", overwrite=True))
    if not isinstance(native.library(), str):
        with pytest.raises(UsageError, match="--metric 'rows': there are loss, accuracy"):
            quantize(asked(place, "out", metric="rows"))
        with pytest.raises(UsageError, match="--metric 'bleu': there are"):
            quantize(asked(place, "out", metric="bleu"))
        with pytest.raises(UsageError, match="--score-column: a model of the task classify has no"):
            quantize(asked(place, "out", score_column="score"))
    monkeypatch.setattr(native, "library", lambda: "this processor or kernel has no AMX")
    with pytest.raises(FilbertError, match=r"has no AMX\. Run this on a machine with AMX or"):
        quantize(asked(place, "out"))
    assert not (place / "out").exists()


def test_elsewhere_the_choice_is_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    bundle = open_bundle(place / "whole")
    int8 = {"layers": [["inner"], []], "metric": "accuracy", "float32": 0.9, "int8": 0.9,
            "rows": 1, "data": "rows.tsv"}  # fmt: skip
    manifest = Manifest(**{**bundle.manifest.model_dump(), "int8": int8})
    folder = tmp_path / "chosen"
    save_bundle(folder, model=bundle.model, tokenizer=bundle.tokenizer, manifest=manifest)
    monkeypatch.setattr(native, "why_not", lambda config, **_: "there is no AMX")
    with caplog.at_level(logging.INFO, "filbert"):
        assert load(folder).dtype != torch.int8
    assert "is left: there is no AMX" in caplog.text
    told = json.loads((folder / "filbert.json").read_text("utf-8"))
    told["int8"]["layers"].pop()
    (folder / "filbert.json").write_text(json.dumps(told), "utf-8")
    with pytest.raises(FilbertError, match=r"int8 names 1 layers, config.json 2"):
        read_manifest(folder)
    assert "int8" not in json.loads((place / "whole/filbert.json").read_text("utf-8"))
