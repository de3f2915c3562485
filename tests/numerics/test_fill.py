"""Blanks against the fill-mask pipeline of transformers, pseudo-perplexity against a plain loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from filbert import load
from filbert.bundle import open_bundle
from filbert.model.bert import BertForMaskedLM, BertForPreTraining
from filbert.model.modern import ModernBertForMaskedLM
from filbert.model.modern_config import ModernBertConfig
from filbert.model.native import serves
from filbert.model.native_library import library_float32
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config

TEXTS = [
    "the river [MASK] like it .",
    "[MASK]",
    "call now , [MASK] the bank & the river , free lunch at home !",
    "你好 [MASK] 界 , 银[MASK]。",
    "the [MASK] bank like [MASK] now [MASK] [MASK]",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fill") / "bert"
    torch.manual_seed(1)
    BertForMaskedLM(tiny_config()).save_pretrained(place)
    BertTokenizer(VOCABULARY).save_pretrained(place)
    return place


def pipeline(folder: Path) -> Any:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")


def compare(fill: Any, theirs: Any, texts: list[str], *, top_k: int) -> None:
    answers = fill(texts, top_k=top_k)
    for text, answer in zip(texts, answers, strict=True):
        expected = theirs(text, top_k=top_k)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert len(answer["blanks"]) == len(expected) == text.count("[MASK]")
        for blank, words in zip(answer["blanks"], expected, strict=True):
            assert text[blank["start"] : blank["end"]] == "[MASK]"
            for ours, their in zip(blank["words"], words, strict=True):
                assert ours["score"] == pytest.approx(their["score"], abs=1e-5)
            assert [w["word"] for w in blank["words"]] == [
                theirs.tokenizer.convert_ids_to_tokens(w["token"]) for w in words
            ]


def test_the_pipeline_gives_the_same_words_and_scores(folder: Path) -> None:
    compare(load(folder, precision="float32"), pipeline(folder), TEXTS, top_k=7)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("filbert-mini-en", ["The film was [MASK].", "She sat by the [MASK] of the [MASK]."]),
        ("filbert-mini-zh", ["北京是中国的[MASK]都。", "今天[MASK]气很[MASK]。"]),
    ],
)
def test_the_pipeline_on_real_weights(name: str, texts: list[str]) -> None:
    fill = load(name, precision="float32")
    compare(fill, pipeline(fill.folder), texts, top_k=5)


@pytest.mark.skipif(isinstance(library_float32(), str), reason="no native encoder here")
def test_float32_is_native_too(folder: Path) -> None:
    """So what is held to the pipeline here is the native encoder; and its twin:"""
    assert serves(load(folder, precision="float32").model.base_model)
    slow = load(folder, precision="float32", core="torch")
    assert not serves(slow.model.base_model)
    compare(slow, pipeline(folder), TEXTS, top_k=7)


def test_targets_of_one_piece_as_the_pipeline_scores_them(folder: Path) -> None:
    fill, theirs = load(folder, precision="float32"), pipeline(folder)
    targets = ["river", "bank", "free"]
    (blank,) = fill(TEXTS[0], targets=targets)["blanks"]
    expected = {a["token_str"]: a["score"] for a in theirs(TEXTS[0], targets=targets, top_k=3)}
    assert {w["word"]: w["score"] for w in blank["words"]} == pytest.approx(expected, abs=1e-6)
    assert [w["word"] for w in blank["words"]] == sorted(expected, key=lambda w: -expected[w])


def reference(folder: Path, ids: list[int], place: int) -> torch.Tensor:
    """(vocabulary,) log-probabilities at a place, from transformers."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, place], -1)


def test_a_target_of_several_pieces_is_spelled_from_left_to_right(folder: Path) -> None:
    fill = load(folder, precision="float32")
    number, mask = fill.tokenizer.convert_tokens_to_ids, fill.tokenizer.mask_token_id
    before, after = number(["[CLS]", "the"]), number(["now", "[SEP]"])
    pieces = number(["c", "##a", "##b"])
    total = 0.0
    for step in range(3):
        ids = [*before, *pieces[:step], *[mask] * (3 - step), *after]
        total += float(reference(folder, ids, 2 + step)[pieces[step]])
    (blank,) = fill("the [MASK] now", targets=["cab", "river"])["blanks"]
    found = {word["word"]: word for word in blank["words"]}
    assert found["cab"]["score"] == pytest.approx(math.exp(total), rel=1e-4)
    assert found["cab"]["pieces"] == ["c", "##a", "##b"]
    assert "pieces" not in found["river"]


def test_several_blanks_are_filled_the_surest_first(folder: Path) -> None:
    fill = load(folder, precision="float32")
    number, mask = fill.tokenizer.convert_tokens_to_ids, fill.tokenizer.mask_token_id
    ids = number(["[CLS]", "the", "[MASK]", "bank", "[MASK]", "now", "[SEP]"])
    special, total, open_places = fill.tokenizer.all_special_ids, 0.0, {2, 4}
    while open_places:
        rows = {place: reference(folder, ids, place) for place in open_places}
        for row in rows.values():
            row[special] = -torch.inf
        place = max(rows, key=lambda p: float(rows[p].max()))
        ids[place] = int(rows[place].argmax())
        total += float(rows[place].max())
        open_places.remove(place)
    answer = fill("the [MASK] bank [MASK] now")
    assert mask not in ids
    assert answer["score"] == pytest.approx(math.exp(total), rel=1e-4)
    shown = fill.tokenizer.convert_tokens_to_string(fill.tokenizer.convert_ids_to_tokens(ids[1:-1]))
    assert answer["text"] == shown


def plain_loop(folder: Path, text: str) -> float:
    """Salazar et al. 2020, equation 1, as a loop over one padded-free sequence at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = tokenizer(text)["input_ids"]
    total = 0.0
    for place in range(1, len(ids) - 1):
        hidden = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
        with torch.no_grad():
            logits = model(torch.tensor([hidden])).logits[0, place]
        total += float(torch.log_softmax(logits, -1)[ids[place]])
    return total


def test_pseudo_perplexity_is_that_of_a_plain_loop(folder: Path) -> None:
    texts = ["the river bank", "free lunch at home , call now !", "你好 世界"]
    answers = load(folder, precision="float32").perplexity(texts)
    for text, answer in zip(texts, answers, strict=True):
        assert answer["log_likelihood"] == pytest.approx(plain_loop(folder, text), abs=1e-4)
    first = answers[0]
    assert (first["tokens"], first["words"]) == (3, 3)
    assert first["perplexity"] == pytest.approx(math.exp(-first["log_likelihood"] / 3))


@pytest.mark.parametrize(
    ("name", "text"),
    [("filbert-mini-en", "The river flows into the sea."), ("filbert-mini-zh", "今天天气很好。")],
)
def test_pseudo_perplexity_on_real_weights(name: str, text: str) -> None:
    fill = load(name, precision="float32")
    answer = fill.perplexity(text, each=True)
    assert answer["log_likelihood"] == pytest.approx(plain_loop(fill.folder, text), abs=1e-3)
    assert sum(p["log_probability"] for p in answer["pieces"]) == pytest.approx(
        answer["log_likelihood"]
    )


@pytest.mark.parametrize("kind", ["pretrain", "modern"])
def test_the_other_models_of_masked_words(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    if kind == "modern":
        config = ModernBertConfig(
            vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=40, local_attention=6, pad_token_id=0,
            initializer_range=0.5,
        )  # fmt: skip
        model = ModernBertForMaskedLM(config)
    else:
        model = BertForPreTraining(tiny_config())
    model.save_pretrained(tmp_path)
    BertTokenizer(VOCABULARY).save_pretrained(tmp_path)
    fill = load(tmp_path, precision="float32")
    ids = fill.tokenizer(TEXTS[0])["input_ids"]
    model.eval()
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    logits = out.prediction_logits if kind == "pretrain" else out.logits
    expected = torch.softmax(logits[0, ids.index(fill.tokenizer.mask_token_id)], -1)
    (blank,) = fill(TEXTS[0], top_k=4)["blanks"]
    values, words = expected.topk(4)
    assert [w["score"] for w in blank["words"]] == pytest.approx(values.tolist(), abs=1e-6)
    assert [w["word"] for w in blank["words"]] == fill.tokenizer.convert_ids_to_tokens(
        words.tolist()
    )


def test_half_precision_keeps_the_words_apart(folder: Path) -> None:
    """The matrix of the vocabulary stays float32: scores agree with float32 to bfloat16's eight
    bits and no two words tie."""
    from filbert.tasks.fill import fill, for_inference, read_blanks

    bundle = open_bundle(folder)
    exact = load(folder, precision="float32")(TEXTS[0], top_k=9)["blanks"][0]["words"]
    model = for_inference(bundle.model, torch.device("cpu"), torch.bfloat16)  # type: ignore[arg-type]
    rows = [read_blanks(bundle.tokenizer, TEXTS[0])]
    words = fill(model, bundle.tokenizer, rows, max_length=40, top_k=9)[0]["blanks"][0]["words"]
    assert len({word["score"] for word in words}) == 9
    assert words[0]["score"] == pytest.approx(exact[0]["score"], rel=0.1)
    assert model.base_model.dtype == torch.bfloat16
