"""The task of translation: losses, texts, scores; and the traps of encoder-decoders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F

from filbert.errors import FilbertError, UsageError
from filbert.model.config import BertConfig
from filbert.model.generate import Written
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.tasks import translate as task
from filbert.tasks.translate import Sides, WritingSettings
from filbert.text import BertTokenizer
from filbert.text.spacing import learn_spacing
from tests.tiny import VOCABULARY, save_base

SOURCES = ["the good film", "bad", "a superb hotel was the great show", "nice food"]
TARGETS = ["好的电影", "坏", "很好", "好的食物很好"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"好的电影坏很食物"]


@pytest.fixture
def parts(tmp_path: Path) -> tuple[BertForSeq2SeqLM, BertTokenizer, BertTokenizer, Sides]:
    base = save_base(tmp_path / "base")
    reader, writer = BertTokenizer.from_pretrained(base), BertTokenizer(WORDS)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    model = task.head(str(base), decoder=config, tokenizer=writer)
    sides = Sides(
        task.encode(reader, SOURCES, max_length=32), task.encode(writer, TARGETS, max_length=16)
    )
    return model, reader, writer, sides


def test_the_loss_is_the_sum_over_words_and_ends_and_nothing_else(
    parts: tuple[BertForSeq2SeqLM, BertTokenizer, BertTokenizer, Sides],
) -> None:
    """One text at a time, without padding or packing, the words shifted by hand."""
    model, reader, writer, sides = parts
    examples = np.arange(4)
    total, words, right = task.loss(model, sides, examples)
    by_hand, hits = 0.0, 0
    with torch.no_grad():
        for source, target in zip(SOURCES, TARGETS, strict=True):
            ids = writer(target)["input_ids"]
            assert ids[0] == writer.cls_token_id and ids[-1] == writer.sep_token_id
            logits = model(
                reader(source, return_tensors="pt")["input_ids"],
                decoder_input_ids=torch.tensor([ids[:-1]]),
            ).logits[0]
            by_hand += float(F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
            hits += int((logits.argmax(-1) == torch.tensor(ids[1:])).sum())
    assert words == sum(len(target) + 1 for target in TARGETS)
    assert float(total.detach()) == pytest.approx(by_hand, abs=1e-4)
    assert int(right) == hits
    for path in ("sdpa", "eager"):  # padded grids give the same
        model.set_attention(path)
        padded = task.loss(model, sides, examples)
        assert float(padded[0].detach()) == pytest.approx(by_hand, abs=1e-4)
        assert (padded[1], int(padded[2])) == (words, hits)
    model.set_attention("packed")
    smooth = [task.loss(model, sides, examples, label_smoothing=0.2)[0]]
    model.set_attention("sdpa")
    smooth.append(task.loss(model, sides, examples, label_smoothing=0.2)[0])
    assert float(smooth[0].detach()) == pytest.approx(float(smooth[1].detach()), abs=1e-4)


def test_tokens_of_the_plan_are_those_that_are_computed(
    parts: tuple[BertForSeq2SeqLM, BertTokenizer, BertTokenizer, Sides],
) -> None:
    sides = parts[3]
    assert sides.tokens.tolist() == [3 + 2 + 4 + 1, 1 + 2 + 1 + 1, 7 + 2 + 2 + 1, 2 + 2 + 6 + 1]
    assert sides.words.tolist() == [5, 2, 3, 7]


def test_pieces_become_text() -> None:
    writer = BertTokenizer([*WORDS[:5], "T", "Shirt", "-", ",", "Hut", "##e", "."],
                           do_lower_case=False)  # fmt: skip
    ids = writer.convert_tokens_to_ids(["T", "-", "Shirt", ",", "Hut", "##e", ".", "[UNK]"])
    spacing = learn_spacing(["Ein T-Shirt, ja."] * 2)
    assert task.decode(Written(ids, 0.0, True), writer, spacing) == "T-Shirt, Hute."
    chinese = BertTokenizer(WORDS)
    ids = chinese.convert_tokens_to_ids([*"好的电影"])
    assert task.decode(Written(ids, 0.0, True), chinese, {}) == "好的电影"
    assert task.decode(Written([], 0.0, True), chinese, {}) == ""


def test_scores_are_sacrebleus_with_their_signatures() -> None:
    texts = ["Ein Hund rennt.", "Zwei Männer sitzen auf einer Bank."]
    references = [["Ein Hund rennt schnell."], ["Zwei Männer sitzen auf der Bank."]]
    scores, signatures = task.score(texts, references)
    columns = [[row[0] for row in references]]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, columns).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, columns).score)
    assert "tok:13a" in signatures["bleu"] and "version:" in signatures["chrf"]


def test_chinese_is_cut_into_characters() -> None:
    texts, references = ["我喜欢这部电影。", "天气很好。"], [["我喜欢那部电影。"], ["天气不好。"]]
    columns = [[row[0] for row in references]]
    want = sacrebleu.corpus_bleu(texts, columns, tokenize="zh").score
    for language in (None, "zh", "zh-Hans"):
        scores, signatures = task.score(texts, references, language=language)
        assert scores["bleu"] == pytest.approx(want)
        assert "tok:zh" in signatures["bleu"]
    assert not task.is_chinese(["Ein Hund", "好"])


def test_several_references() -> None:
    texts = ["Ein Hund rennt dort drüben.", "Zwei Männer sitzen hier."]
    references = [["x y z", "Ein Hund rennt dort drüben."], ["Zwei Männer sitzen hier."]]
    assert task.score(texts, references)[0]["bleu"] == pytest.approx(100.0)


def test_summaries_have_rouge() -> None:
    scores, _ = task.score(["the cat sat"], [["the cat ran", "a dog"]], task="summarize")
    assert scores["rouge1"] == pytest.approx(2 / 3)


def test_summaries_are_scored_on_stems_where_asked() -> None:
    """cats, running and runs are cat, run and run; else `the` alone is in both."""
    texts, references = ["the cats running"], [["the cat runs"]]
    for stem, wanted in ((False, 1 / 3), (True, 1.0)):
        scores, _ = task.score(texts, references, task="summarize", stem=stem)
        assert scores["rouge1"] == pytest.approx(wanted)
    task.check_stem(True, "summarize")
    with pytest.raises(UsageError, match="--stem: ROUGE scores summaries; translate has bleu"):
        task.check_stem(True, "translate")


def test_a_bundle_writes_as_its_settings_say() -> None:
    config = SimpleNamespace(decoder=SimpleNamespace(max_position_embeddings=20))
    settings = WritingSettings(beams=3, length_penalty=0.5, max_tokens=64)
    search = task.default_search(settings, config)  # type: ignore[arg-type]
    assert (search.beams, search.length_penalty, search.max_tokens) == (3, 0.5, 20)
    assert task.default_search(settings, config, beams=1).beams == 1  # type: ignore[arg-type]
    sampled = task.default_search(settings, config, sample=True)  # type: ignore[arg-type]
    assert sampled.beams == 1
    with pytest.raises(UsageError, match="temperature"):
        task.default_search(settings, config, temperature=0.0)  # type: ignore[arg-type]
    for wrong in ("x", [], {}, 2.5, True):
        with pytest.raises(UsageError, match="max_tokens must be a whole number from 1 to"):
            task.default_search(settings, config, max_tokens=wrong)  # type: ignore[arg-type]
    with pytest.raises(FilbertError, match="settings, 'beams'"):
        task.settings_of({"beams": 0}, source="runs/x")
    with pytest.raises(FilbertError, match="settings, 'code'"):
        task.settings_of({"code": "x"}, source="runs/x")


def test_a_decoder_with_another_vocabulary_keeps_the_rows_of_its_words(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    writer = BertTokenizer([*VOCABULARY[:5], "film", "new", "good"])
    model = task.head(str(base), decoder=str(base), tokenizer=writer)
    rows = model.decoder.get_input_embeddings().weight
    old = model.encoder.get_input_embeddings().weight
    assert rows.shape == (8, 32) and model.config.decoder.vocab_size == 8
    for word in ("film", "good", "[SEP]"):
        place = writer.convert_tokens_to_ids([word])[0]
        assert torch.equal(rows[place], old[VOCABULARY.index(word)])
    layer = model.decoder.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(layer, model.encoder.encoder.layer[0].output.dense.weight)
    model.save_pretrained(tmp_path / "out")
    assert BertForSeq2SeqLM.from_pretrained(tmp_path / "out").config.decoder.vocab_size == 8


def test_an_unknown_metric_is_named() -> None:
    task.check_metric("chrf", "translate")
    with pytest.raises(UsageError, match="for translate there are loss, bleu, chrf"):
        task.check_metric("rouge1", "translate")


def test_the_number_of_a_draw_depends_on_the_text_alone() -> None:
    """The first 8 bytes of BLAKE2b-64 of the text, without the last bit."""
    digest = hashlib.blake2b("好 film".encode(), digest_size=8).hexdigest()
    assert task.draw_number("好 film") == int(digest, 16) // 2 < 2**63
    assert task.draw_number("好 film ") != task.draw_number("好 film")


def test_texts_that_are_cut_off_are_counted() -> None:
    tokenizer = BertTokenizer(VOCABULARY)
    texts = ["good film", "good good good", "good " * 9]
    encoded = task.encode(tokenizer, texts, max_length=5)
    assert encoded.tokens.tolist() == [4, 5, 5]
    assert task.cut_off(tokenizer, texts, encoded, 5).tolist() == [2]
