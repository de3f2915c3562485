"""Scores, decoding and answers of a tagger, on logits written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert.bundle import Manifest
from filbert.data.tag_layout import Laid
from filbert.data.tagged import Tagged
from filbert.errors import FilbertError
from filbert.model.bert import BertForTokenClassification
from filbert.model.crf import BertCrfForTokenClassification
from filbert.tasks import tag
from filbert.tasks.tag_examine import examine, judged
from filbert.tasks.tag_scores import (
    believed,
    entity_scores,
    fit_confidence,
    label_scores,
)
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
pytest.importorskip("seqeval")


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(VOCABULARY)


def model(kind: type[BertForTokenClassification] = BertForTokenClassification) -> Any:
    torch.manual_seed(0)
    return kind(tiny_config(id2label=dict(enumerate(LABELS)))).eval()


def encode(tokenizer: BertTokenizer, *texts: str) -> Laid:
    return tag.encode(tokenizer, texts=texts, max_length=40, stride=8, slots="parts")


def logits_for(*tags: str, margin: float = 4.0) -> np.ndarray:
    out = np.zeros((len(tags), len(LABELS)), np.float32)
    out[np.arange(len(tags)), [LABELS.index(name) for name in tags]] = margin
    return out


# --- scores --------------------------------------------------------------------------------------


def test_entity_scores_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O"], ["B-LOC", "B-LOC", "O"]]
    found = [["B-PER", "I-PER", "O"], ["B-LOC", "I-LOC", "B-PER"]]
    scores = entity_scores(gold, found)
    # 3 gold entities, 3 found, of which 1 right
    assert scores["precision"] == scores["recall"] == scores["f1"] == pytest.approx(1 / 3)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["per_class"]["LOC"] == {"precision": 0, "recall": 0, "f1": 0, "support": 2}
    per = scores["per_class"]["PER"]
    assert (per["precision"], per["recall"], per["support"]) == (0.5, 1.0, 1)
    assert scores["f1_macro"] == pytest.approx((0 + 2 / 3) / 2)
    assert (scores["rows"], scores["entities"]) == (2, 3)


def test_strict_counts_an_entity_that_does_not_begin() -> None:
    gold, found = [["B-PER", "I-PER"]], [["I-PER", "I-PER"]]
    assert entity_scores(gold, found)["f1"] == 1.0
    assert entity_scores(gold, found, strict=True)["f1"] == 0.0


def test_scores_of_nothing() -> None:
    scores = entity_scores([["O", "O"]], [["O", "O"]])
    assert (scores["f1"], scores["accuracy"], scores["per_class"]) == (0.0, 1.0, {})
    with pytest.raises(FilbertError, match="no sentences"):
        entity_scores([], [])
    with pytest.raises(FilbertError, match="sentence 0: 1 gold tags, 2 predicted"):
        entity_scores([["O"]], [["O", "O"]])
    with pytest.raises(FilbertError, match="no words"):
        label_scores([[]], [[]])


def test_label_scores_by_hand() -> None:
    scores = label_scores([["N", "V", "N"], ["P"]], [["N", "N", "N"], ["P"]])
    assert scores["accuracy"] == 0.75
    # F1: N 0.8, V 0, P 1
    assert scores["f1_macro"] == pytest.approx(0.6)
    assert scores["per_class"]["N"]["support"] == 2


def test_confidence_is_fitted_as_platt_does() -> None:
    """On answers of which a third is right whatever the model says, scores come near a third; on
    sound probabilities nothing changes much; and what cannot be learned from is left alone."""
    draw = np.random.Generator(np.random.PCG64(0))
    chances = draw.uniform(0.05, 0.999, 4000)
    scale, shift = fit_confidence(chances, draw.uniform(size=4000) < chances)
    assert scale == pytest.approx(1.0, abs=0.08)
    assert shift == pytest.approx(0.0, abs=0.08)
    third = np.tile([True, False, False], 400)
    sure = draw.uniform(0.98, 0.9999, 1200)
    mended = believed(sure, fit_confidence(sure, third))
    assert mended.mean() == pytest.approx(1 / 3, abs=0.02)
    assert fit_confidence(sure[:10], third[:10]) == (1.0, 0.0)
    assert fit_confidence(sure, np.ones(1200, bool)) == (1.0, 0.0)
    assert believed(np.array([0.0, 0.3, 1.0]), (1.0, 0.0)) == pytest.approx([0, 0.3, 1], abs=1e-8)


# --- decoding and answers ------------------------------------------------------------------------


def test_entities_with_exact_places(tokenizer: BertTokenizer) -> None:
    text = "call the  river-bank, 世界银行!"
    laid = encode(tokenizer, text)
    names = ["O", "O", "B-LOC", "I-LOC", "I-LOC", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "O"]
    logits = logits_for(*names)
    decoded = tag.decode(model(), logits, laid, labels=LABELS, scheme="bio")
    assert decoded.tags == [names]
    assert laid.chars is not None
    (answer,) = tag.answers(
        decoded, laid, [text], laid.chars, labels=LABELS, settings=tag.TagSettings()
    )
    found = [(s["start"], s["end"], s["text"], s["label"]) for s in answer["spans"]]
    assert found == [
        (10, 20, "river-bank", "LOC"),
        (22, 24, "世界", "PER"),
        (24, 26, "银行", "LOC"),
    ]
    # each word has its tag, and the next does not go on: p^3 (1 - q), of softmax(4, 0, 0, 0, 0)
    p, q = np.exp(4) / (np.exp(4) + 4), 1 / (np.exp(4) + 4)
    assert answer["spans"][0]["score"] == pytest.approx(p**3 * (1 - q), abs=1e-6)
    assert answer["spans"][1]["score"] == pytest.approx(p**2 * (1 - q), abs=1e-6)


def test_accents_after_the_last_piece_belong_to_the_word(tokenizer: BertTokenizer) -> None:
    text = "ab\u0301 c"
    laid = encode(tokenizer, text)
    decoded = tag.decode(model(), logits_for("B-LOC", "O"), laid, labels=LABELS, scheme="bio")
    assert laid.chars is not None
    settings = tag.TagSettings()
    (answer,) = tag.answers(decoded, laid, [text], laid.chars, labels=LABELS, settings=settings)
    assert answer["spans"][0]["text"] == "ab\u0301"


def test_broken_sequences_never_come_out_of_a_model_of_ours(tokenizer: BertTokenizer) -> None:
    laid = encode(tokenizer, "a b c")
    logits = logits_for("O", "I-PER", "I-PER")
    logits[1, LABELS.index("B-PER")] = 3.9
    ours = tag.decode(model(), logits, laid, labels=LABELS, scheme="bio")
    assert ours.tags == [["O", "B-PER", "I-PER"]]
    # one from elsewhere is taken at its word
    other = tag.decode(model(), logits, laid, labels=LABELS, scheme="any")
    assert other.tags == [["O", "I-PER", "I-PER"]]
    spans, _ = tag.found_spans(other, LABELS)
    assert spans == [[(1, 3, "PER")]]


def test_a_crf_decodes_by_its_moves_and_tells_marginals(tokenizer: BertTokenizer) -> None:
    crf = model(BertCrfForTokenClassification)
    with torch.no_grad():
        crf.head.transitions[LABELS.index("B-PER"), LABELS.index("I-PER")] = 5.0
    laid = encode(tokenizer, "a b", "c")
    logits = np.concatenate([logits_for("B-PER", "O"), logits_for("O")])
    decoded = tag.decode(crf, logits, laid, labels=LABELS, scheme="bio")
    assert decoded.tags == [["B-PER", "I-PER"], ["O"]]  # 4 + 0 + 5 beats 4 + 4
    assert decoded.chances.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert decoded.chances[1].argmax() == LABELS.index("I-PER")


def test_loss_of_a_crf_adds_up_over_sequences(tokenizer: BertTokenizer) -> None:
    crf = model(BertCrfForTokenClassification)
    laid = encode(tokenizer, "a b c", "d")
    examples = np.arange(2)
    batch, at = laid.gather(examples)
    logits = tag.logits_of(crf, batch, at)
    gold, counts = torch.tensor([1, 2, 0, 3]), torch.tensor([3, 1])
    losses = tag.loss(crf, logits, gold, counts)
    assert losses.shape == (2,)
    # with no moves learned yet, sequences are independent words
    plain = tag.loss(model(), logits, gold, counts)
    assert plain.shape == (4,)
    assert losses.sum().item() == pytest.approx(plain.sum().item(), abs=1e-4)


@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_padded_paths_give_the_packed_logits(tokenizer: BertTokenizer, path: str) -> None:
    tagger = model()
    laid = encode(tokenizer, "free prize call", "", "你好", "river " * 60)
    packed = tag.predict_logits(tagger, laid, batch_tokens=64)
    assert packed.shape == (65, len(LABELS))
    tagger.set_attention(path)
    assert np.abs(tag.predict_logits(tagger, laid) - packed).max() < 1e-5


def test_a_long_text_is_read_as_its_windows_are(tokenizer: BertTokenizer) -> None:
    """The logits of a word in a long text are those of the window that shows most around it."""
    tagger = model()
    words = ["river", "bank", "free", "prize"] * 20
    whole = tag.encode(
        tokenizer, words=[words], max_length=40, stride=10, slots="parts"
    )  # windows hold 38 words and go on by 28
    logits = tag.predict_logits(tagger, whole)
    second = tag.encode(tokenizer, words=[words[28:66]], max_length=40, stride=10, slots="parts")
    alone = tag.predict_logits(tagger, second)
    # word 33 (the 6th of the window) has 6 before it there, and 5 after it in the first window
    assert np.abs(logits[33:61] - alone[5:33]).max() < 1e-5
    assert np.abs(logits[30] - alone[2]).max() > 1e-3
    seen: list[int] = []
    tagger.bert.register_forward_pre_hook(
        lambda _, given, options: seen.append(len(options["input_ids"])), with_kwargs=True
    )
    by_and_by = tag.predict_logits(tagger, whole, batch_tokens=80)
    assert seen == [80, 26] and np.abs(by_and_by - logits).max() < 1e-5


def test_slots_of_windows_stand_in_order() -> None:
    """Of texts and windows of many sizes: what `Laid.by_window` rests on."""
    tokenizer = BertTokenizer(VOCABULARY)
    for words in (0, 1, 2, 7, 8, 9, 30, 61):
        for longest in (3, 4, 7, 12):
            for stride in range(longest - 2):
                laid = tag.encode(
                    tokenizer, words=[["river"] * 3, ["bank"] * words, ["free"]],
                    max_length=longest, stride=stride, slots="all",
                )  # fmt: skip
                parts = laid.by_window()
                rows = parts.rows(np.arange(len(parts)))
                assert (rows == np.arange(words + 4)).all()
                starts = parts.encoded.window_starts
                owner = np.repeat(np.arange(len(parts)), np.diff(parts.example_slots))
                inside = parts.slot_tokens - starts[owner]
                assert ((inside > 0) & (inside < np.diff(starts)[owner] - 1)).all()


def test_words_are_joined_as_people_write() -> None:
    text, places = tag.join_words(["在", "北", "京", "the", "iPhone", "，", "ok", "", "!"])
    assert text == "在北京the iPhone，ok !" or text == "在北京the iPhone，ok!"
    words = [text[start:end] for start, end in places]
    assert words == ["在", "北", "京", "the", "iPhone", "，", "ok", "", "!"]


# --- labels, settings, mistakes ------------------------------------------------------------------


def part(*tags: list[str], plain: bool = False) -> Tagged:
    words = [["a"] * len(row) for row in tags]
    return Tagged("t.conll", list(range(1, len(tags) + 1)), words, list(tags), plain=plain)


def test_an_unknown_type_is_told_with_its_place() -> None:
    found = part(["O"], ["B-LOCATION", "B-PER"])
    with pytest.raises(FilbertError, match=r"t\.conll:2: the type 'LOCATION' is unknown.*LOC, PER"):
        tag.check_labels(found, ["LOC", "PER"], plain=False)
    tag.check_labels(found, ["LOCATION", "PER"], plain=False)
    with pytest.raises(FilbertError, match=r"parts of entities.*but the model learns labels of"):
        tag.check_labels(found, ["NN"], plain=True)


def test_settings_are_closed_and_read_off_labels_elsewhere() -> None:
    ours = Manifest(task="tag", settings={"scheme": "plain", "slots": "all"})
    assert tag.settings_of(ours) == tag.TagSettings(scheme="plain", slots="all")
    with pytest.raises(FilbertError, match="not those of a tagger"):
        tag.settings_of(Manifest(task="tag", settings={"schema": "bio"}))
    assert tag.settings_of(Manifest(task="tag", labels=["O", "I-PER"])).scheme == "any"
    assert tag.settings_of(Manifest(task="tag", labels=["NOUN", "O"])).scheme == "plain"


def test_the_record_of_an_evaluation(tokenizer: BertTokenizer) -> None:
    found = Tagged("x.jsonl", [1, 2], texts=["call 世界", "river"], spans=[[(5, 7, "LOC")], []])
    laid = tag.encode_part(tokenizer, found, max_length=40, stride=8, slots="parts")
    gold, notes = tag.gold_tags(found, laid)
    assert (gold, notes) == ([["O", "B-LOC", "I-LOC"], ["O"]], [])
    logits = logits_for("O", "B-LOC", "I-LOC", "B-PER")
    decoded = tag.decode(model(), logits, laid, labels=LABELS, scheme="bio")
    chances, right = judged(decoded, gold, LABELS)
    assert right.tolist() == [True, False]
    record = examine(
        found, laid, gold, decoded, labels=LABELS, settings=tag.TagSettings(), temperature=1.0
    )
    assert record["scores"]["precision"] == 0.5
    assert record["scores"]["recall"] == 1.0
    assert record["rows"] == 2
    assert record["worst"] == [
        {"id": "x.jsonl:2", "text": "river", "pair": None, "gold": "(none)",
         "predicted": "river (PER)", "probability": pytest.approx(chances[1])}
    ]  # fmt: skip
    assert record["calibration"]["temperature"] == 1.0


def test_a_head_on_a_base_and_what_cannot_be_one(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "base")
    BertTokenizer(VOCABULARY).save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    plain = tag.head(str(tmp_path / "base"), labels=["O", "B-x", "I-x"])
    assert plain.config.id2label == {0: "O", 1: "B-x", 2: "I-x"}
    crf = tag.head(str(tmp_path / "base"), labels=["O", "B-x", "I-x"], crf=True)
    assert isinstance(crf, BertCrfForTokenClassification)
    assert crf.head.transitions.shape == (3, 3)
