"""Inspection: shapes, parameter counts and attention against hand calculations; the picture."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from filbert.bundle import Manifest, open_bundle, save_bundle
from filbert.errors import UsageError
from filbert.infer.attention_picture import heat_map, shade, width, write_picture
from filbert.infer.inspect import Inspection, inspect_text
from filbert.infer.inspect_table import cell, show
from filbert.model.bert import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForTokenClassification,
    BertModel,
)
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.model.span_head import BertForQuestionAnswering
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_bundle, tiny_config, tiny_encoder

TEXT = "The bank, 你好!"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("inspect") / "bundle")


@pytest.fixture(scope="module")
def found(bundle: Path) -> Inspection:
    return inspect_text(bundle, TEXT, layer=1, head=2)


def printed(found: Inspection, columns: int = 100) -> str:
    told = io.StringIO()
    show(found, Console(width=columns, file=told))
    return told.getvalue()


def test_tokens_ids_and_offsets(found: Inspection, bundle: Path) -> None:
    names = ["[CLS]", "the", "bank", ",", "你", "好", "!", "[SEP]"]
    assert [token.token for token in found.tokens] == names
    vocabulary = open_bundle(bundle).tokenizer.get_vocab()
    assert [token.id for token in found.tokens] == [vocabulary[name] for name in names]
    spans = [TEXT[token.start : token.end] for token in found.tokens if not token.special]
    assert spans == ["The", "bank", ",", "你", "好", "!"]
    assert [token.special for token in found.tokens] == [True, *[False] * 6, True]
    assert all(token.mask == 1 and token.segment == 0 for token in found.tokens)


def test_shapes_and_parameters_by_hand(found: Inspection, bundle: Path) -> None:
    n, hidden, inner, heads, words = 8, 16, 24, 4, tiny_config().vocab_size
    layer = "bert.encoder.layer.1"
    square, norm = hidden * hidden + hidden, 2 * hidden
    expected = [
        ("bert.embeddings.word_embeddings", (n, hidden), words * hidden),
        ("bert.embeddings.position_embeddings", (n, hidden), 40 * hidden),
        ("bert.embeddings.token_type_embeddings", (n, hidden), 2 * hidden),
        ("bert.embeddings.LayerNorm", (n, hidden), norm),
        (f"{layer}.attention.self.query", (heads, n, 4), square),
        (f"{layer}.attention.self.key", (heads, n, 4), square),
        (f"{layer}.attention.self.value", (heads, n, 4), square),
        (f"{layer}.attention weights", (heads, n, n), 0),
        (f"{layer}.attention heads", (heads, n, 4), 0),
        (f"{layer}.attention.output.dense", (n, hidden), square),
        (f"{layer}.attention.output.LayerNorm", (n, hidden), norm),
        (f"{layer}.intermediate.dense", (n, inner), hidden * inner + inner),
        (f"{layer}.output.dense", (n, hidden), inner * hidden + hidden),
        (f"{layer}.output.LayerNorm", (n, hidden), norm),
        (
            "the other 1 layers",
            (n, hidden),
            4 * square + 2 * norm + hidden * inner + inner + inner * hidden + hidden,
        ),
        ("bert.pooler", (hidden,), square),
        ("classifier", (2,), 2 * hidden + 2),
    ]
    assert [(s.name, s.shape, s.parameters) for s in found.stations] == expected
    assert found.parameters == sum(p.numel() for p in open_bundle(bundle).model.parameters())
    assert all(station.formula and station.source for station in found.stations)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_every_parameter_is_told_once(tmp_path: Path, kind: Any) -> None:
    folder = tiny_encoder(tmp_path / "model", kind)
    found = inspect_text(folder, "the river")
    assert found.parameters == sum(p.numel() for p in kind.from_pretrained(folder).parameters())


def test_attention_is_equation_1(found: Inspection, bundle: Path) -> None:
    opened = open_bundle(bundle)
    ids = torch.tensor([[token.id for token in found.tokens]])
    with torch.no_grad():
        states = opened.model(ids, output_hidden_states=True).hidden_states
        attention = opened.model.bert.encoder.layer[1].attention.self  # type: ignore[union-attr,index]
        hidden = states[1][0].numpy()  # what layer 1 reads
    query, key = (
        hidden @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        for linear in (attention.query, attention.key)
    )
    part = slice(2 * 4, 3 * 4)  # head 2 of 4, each 4 wide
    scores = query[:, part] @ key[:, part].T / np.sqrt(4)
    powers = np.exp(scores - scores.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(found.attention, expected, atol=1e-5)
    np.testing.assert_allclose(found.attention.sum(1), 1, atol=1e-5)


def test_layers_and_heads_count_from_both_ends(bundle: Path, found: Inspection) -> None:
    again = inspect_text(bundle, TEXT, layer=-1, head=-2)
    assert (again.layer, again.head) == (1, 2)
    np.testing.assert_array_equal(again.attention, found.attention)
    with pytest.raises(UsageError, match=r"--layer 2: this model has 2, numbered 0 to 1"):
        inspect_text(bundle, TEXT, layer=2)
    with pytest.raises(UsageError, match=r"--head -5: this model has 4"):
        inspect_text(bundle, TEXT, head=-5)


def test_the_prediction_is_that_of_predict(bundle: Path, found: Inspection) -> None:
    from filbert.infer.predict import load

    expected = load(bundle, precision="float32")(TEXT, all_scores=True)
    assert found.prediction == expected
    assert found.kind == "classify"


def test_a_pair_has_two_segments(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "pairs", pair=True)
    alone = inspect_text(folder, "the bank")
    assert alone.prediction is None and "give --pair" in alone.notes[0]
    found = inspect_text(folder, "the bank", pair="lunch now")
    assert [token.segment for token in found.tokens] == [0, 0, 0, 0, 1, 1, 1]
    second = [token for token in found.tokens if token.segment == 1]
    assert [("lunch now"[t.start : t.end]) for t in second if not t.special] == ["lunch", "now"]
    assert found.prediction is not None and set(found.prediction) == {"label", "score", "scores"}


def test_masked_words_are_filled_in(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "mlm", BertForMaskedLM)
    found = inspect_text(folder, "the [MASK] like [MASK] .")
    model = BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([[token.id for token in found.tokens]])).logits[0]
    assert found.prediction is not None
    assert [mask["position"] for mask in found.prediction["masks"]] == [2, 4]
    for mask in found.prediction["masks"]:
        chances = torch.softmax(logits[mask["position"]], -1)
        assert mask["words"][0]["score"] == pytest.approx(float(chances.max()), abs=1e-5)
        scores = [word["score"] for word in mask["words"]]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert "prediction at 2:" in printed(found)
    plain = inspect_text(folder, "the river")
    assert plain.prediction is None and "[MASK]" in plain.notes[0]


def test_next_sentence_of_a_pre_training_model(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "pretrain", BertForPreTraining)
    found = inspect_text(folder, "the bank", pair="the river")
    model = BertForPreTraining.from_pretrained(folder)
    ids = torch.tensor([[token.id for token in found.tokens]])
    types = torch.tensor([[token.segment for token in found.tokens]])
    with torch.no_grad():
        logits = model(ids, token_type_ids=types).seq_relationship_logits
    assert found.prediction is not None
    expected = float(torch.softmax(logits[0], -1)[0])
    assert found.prediction["second_text_follows"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("task", "kind", "head"),
    [
        ("answer", BertForQuestionAnswering, ("qa_outputs", (8, 2))),
        ("tag", BertForTokenClassification, ("classifier", (8, 2))),
        ("summarize", BertForExtractiveSummary, ("classifier", (1,))),
        ("pretrain", BertForPreTraining, ("cls.seq_relationship", (2,))),
        ("fill", BertForMaskedLM, ("cls.predictions", (8, len(VOCABULARY)))),
        ("embed", BertModel, ("pooler", (16,))),
    ],
)
def test_a_bundle_of_any_task(tmp_path: Path, task: Any, kind: Any, head: Any) -> None:
    model = kind(tiny_config(id2label={0: "O", 1: "B-x"})).eval()
    labels = ["O", "B-x"] if task == "tag" else []
    manifest = Manifest(task=task, labels=labels, max_length=40, pair=task == "answer")
    folder = save_bundle(
        tmp_path / "b", model=model, tokenizer=BertTokenizer(VOCABULARY), manifest=manifest
    )
    found = inspect_text(folder, TEXT)
    assert len(found.tokens) == 8
    np.testing.assert_allclose(found.attention.sum(1), 1, atol=1e-5)
    assert (found.stations[-1].name, found.stations[-1].shape) == head
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert head[0] in printed(found)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_sentence_of_a_summary_is_what_its_model_takes(tmp_path: Path, pooling: str) -> None:
    model = BertForExtractiveSummary(tiny_config(sentence_pooling=pooling)).eval()
    manifest = Manifest(task="summarize", max_length=40)
    folder = save_bundle(
        tmp_path / "b", model=model, tokenizer=BertTokenizer(VOCABULARY), manifest=manifest
    )
    taken: list[torch.Tensor] = []
    seen = torch.nn.Linear.forward

    def forward(module: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
        if module.out_features == 1:
            taken.append(states)
        return seen(module, states)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", forward)
        found = inspect_text(folder, TEXT)
    ids = torch.tensor([token.id for token in found.tokens])
    with torch.inference_mode():
        states = model.bert(ids[None]).last_hidden_state[0]
    expected = states.mean(0) if pooling == "mean" else states[0]
    torch.testing.assert_close(taken[-1][0], expected, atol=1e-5, rtol=0)
    assert ("mean T" if pooling == "mean" else "T_[CLS]") in printed(found)


def test_an_encoder_without_a_pooler_shows_none(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "bare", BertModel, add_pooling_layer=False)
    found = inspect_text(folder, "the bank")
    assert found.kind == "encoder without pooler"
    assert not any("pooler" in station.name for station in found.stations)
    assert inspect_text(tiny_encoder(tmp_path / "full"), "the bank").kind == "encoder"


def test_a_long_text_is_cut_and_that_is_told(bundle: Path) -> None:
    found = inspect_text(bundle, "a " * 100)
    assert len(found.tokens) == 40 and found.attention.shape == (40, 40)
    assert "first 40 tokens" in found.notes[0]
    assert inspect_text(bundle, "").attention.shape == (2, 2)


def test_the_real_minilm(minilm: Path) -> None:
    found = inspect_text(minilm, "The bank of the river.", layer=2, head=5)
    assert found.parameters == 22_713_216  # the published count
    assert found.kind == "encoder" and found.attention.shape == (8, 8)
    np.testing.assert_allclose(found.attention.sum(1), 1, atol=1e-5)


def test_what_the_terminal_shows(found: Inspection) -> None:
    told = printed(found)
    for part in ("你", "attention.self.query", "softmax(Q K^T", "V17 eq. 1", "prediction: "):
        assert part in told
    assert f"{found.parameters:,}" in told
    assert f"{found.attention[1, 2] * 100:.0f}" in told
    narrow = printed(found, columns=40)
    assert "keys with the most weight" in narrow


def test_markup_in_a_text_is_text(bundle: Path) -> None:
    found = inspect_text(bundle, "[bold]<b>&")
    assert [token.token for token in found.tokens][1:3] == [
        "[UNK]",
        "b",
    ]  # "[" is not in the vocabulary
    told = printed(found)
    assert "[UNK]" in told and "<" in told


def test_json(found: Inspection) -> None:
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["attention"]["layer"] == 1 and len(data["attention"]["weights"]) == 8
    assert data["tokens"][2]["token"] == "bank" and data["stations"][0]["shape"] == [8, 16]


# --- the picture ---------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_has_every_token_and_weight(tmp_path: Path) -> None:
    weights = np.array([[0.75, 0.25, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]], np.float32)
    tokens = ["<b>", "银行", 'a&"']
    path = write_picture(tmp_path / "deep" / "a.svg", weights, tokens, title="T <1>", note="n")
    root = ElementTree.parse(path).getroot()
    texts = [element.text for element in root.iter(f"{SVG}text")]
    for token in tokens:
        assert texts.count(token) == 2  # in the row and in the column
    numbers = [text for text in texts if text and text.isdigit()]
    assert numbers == ["75", "25", "10", "20", "70", "100"]
    cells = sum((path.get("d") or "").count("z") for path in root.iter(f"{SVG}path"))
    assert cells == 6  # zeros are the background
    raw = path.read_text("utf-8")
    assert "http" not in raw.replace("http://www.w3.org/2000/svg", "")  # nothing is loaded


def test_the_deeper_the_more() -> None:
    depths = [sum(bytes.fromhex(shade(w / 10)[1:])) for w in range(11)]
    assert depths == sorted(depths, reverse=True) and len(set(depths)) == 11
    assert width("银行") > width("ab") and width("e\u0301") == 1


def test_512_tokens_stay_small(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).dirichlet(np.full(512, 0.05), 512).astype(np.float32)
    svg = heat_map(weights, [f"##t{i}" for i in range(512)], title="t")
    assert len(svg) < 6_000_000
    ElementTree.fromstring(svg)


def test_hostile_tokens_stay_text() -> None:
    svg = heat_map(
        np.eye(3, dtype=np.float32), ["</text><script>", "\x00\x1b[0m", "]]>" * 20], title="\x07"
    )
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(f"{SVG}script"))
    assert "</text><script>" in [element.text for element in root.iter(f"{SVG}text")]


def test_a_page_and_wrong_names(tmp_path: Path) -> None:
    weights = np.eye(2, dtype=np.float32)
    page = write_picture(tmp_path / "a.html", weights, ["a", "b"], title="T").read_text("utf-8")
    assert page.startswith("<!doctype html>") and "<svg" in page and "<script" not in page
    with pytest.raises(UsageError, match=r"\.svg or \.html, not '\.bmp'"):
        write_picture(tmp_path / "a.bmp", weights, ["a", "b"], title="T")


def test_cells_show_numbers_without_colour() -> None:
    assert cell(0.97).plain == " 97█"
    assert cell(0.0).plain == "  0 "
    assert cell(1.0).plain == "100█"
