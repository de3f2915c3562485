"""The six functions of summarisation: windows, loss by hand, logits whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from filbert.data.packing import plan_once
from filbert.data.summaries import Documents
from filbert.errors import FilbertError
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.tasks import summarize
from filbert.tasks.select_sentences import Limits
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config

TOKENIZER = BertTokenizer(VOCABULARY)
CLS, SEP = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id
DOCUMENTS = [
    ["the river", "call now, call", "你好世界", "like it", "free prize now."],
    [],
    ["home " * 60, "lunch"],  # the first is longer than a window
    ["bank"],
]


def encode(max_length: int = 14, stride: int = 5, **options: bool) -> summarize.EncodedDocuments:
    return summarize.encode(TOKENIZER, DOCUMENTS, max_length=max_length, stride=stride, **options)


def test_each_sentence_has_its_marks_and_types_alternate() -> None:
    got = encode(max_length=40)
    first = got.encoded.input_ids[: got.encoded.window_starts[1]].tolist()
    expected: list[int] = []
    types: list[int] = []
    for place, sentence in enumerate(DOCUMENTS[0]):
        ids = TOKENIZER.encode(sentence)  # [CLS] ... [SEP]
        expected += ids
        types += [place % 2] * len(ids)
    assert first == expected
    assert got.encoded.token_type_ids[: len(types)].tolist() == types
    assert not encode(max_length=40, segments=False).encoded.token_type_ids.any()


def test_windows_hold_whole_sentences_within_the_limit() -> None:
    got = encode()
    encoded = got.encoded
    assert np.diff(encoded.window_starts).max() <= 14
    for window in range(len(encoded)):
        run = slice(got.window_places[window], got.window_places[window + 1])
        ids = encoded.input_ids[encoded.window_starts[window] : encoded.window_starts[window + 1]]
        places = got.sentence_at[run] - encoded.window_starts[window]
        assert (ids[places] == CLS).all() and (ids == CLS).sum() == len(places)
        assert ids[-1] == SEP
        numbers = got.numbers[run]
        assert (np.diff(numbers) == 1).all()
        owner = got.owners[window]
        ends = got.document_sentences
        assert ends[owner] <= numbers[0] and numbers[-1] < ends[owner + 1]
    assert sorted(set(got.numbers.tolist())) == list(range(8))  # no sentence is lost
    assert len(got.numbers) > 8  # and some stand in two windows
    assert 1 not in got.owners


def test_without_shared_tokens_each_sentence_stands_once() -> None:
    assert sorted(encode(stride=0).numbers.tolist()) == list(range(8))


def test_only_empty_documents() -> None:
    got = summarize.encode(TOKENIZER, [[], []], max_length=14, stride=5)
    assert len(got.encoded) == 0 and got.document_sentences.tolist() == [0, 0, 0]
    model = BertForExtractiveSummary(tiny_config())
    logits = summarize.predict_logits(model, got)
    assert logits.shape == (0,)
    assert summarize.decode(logits, [[], []], got, limits=Limits(sentences=2)) == [[], []]


def test_a_mark_that_is_typed_is_no_sentence() -> None:
    got = summarize.encode(TOKENIZER, [["like [CLS] it", "bank"]], max_length=40, stride=5)
    assert len(got.sentence_at) == 2


@pytest.fixture(scope="module")
def model() -> BertForExtractiveSummary:
    torch.manual_seed(5)
    return BertForExtractiveSummary(tiny_config()).eval()


def test_logits_do_not_depend_on_the_batch(model) -> None:
    encoded = encode()
    one_by_one = summarize.predict_logits(model, encoded, batch_tokens=1)
    together = summarize.predict_logits(model, encoded, batch_tokens=10_000)
    assert len(plan_once(encoded.encoded.tokens, batch_tokens=10_000)) == 1
    np.testing.assert_allclose(one_by_one, together, atol=1e-5)
    alone = summarize.predict_logits(
        model, summarize.encode(TOKENIZER, [["bank"]], max_length=14, stride=5)
    )
    np.testing.assert_allclose(together[-1], alone[0], atol=1e-5)


def test_a_sentence_in_two_windows_has_the_mean(model) -> None:
    encoded = encode()
    sums: dict[int, list[float]] = {}
    with torch.no_grad():
        for window in range(len(encoded.encoded)):
            batch = encoded.gather(np.asarray([window]))
            for number, logit in zip(
                batch.numbers, summarize.logits_of(model, batch).tolist(), strict=True
            ):
                sums.setdefault(int(number), []).append(logit)
    expected = [np.mean(sums[number]) for number in range(8)]
    np.testing.assert_allclose(summarize.predict_logits(model, encoded), expected, atol=1e-5)


def test_loss_by_hand() -> None:
    logits, marks = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, 1.0])
    got = summarize.loss(logits, marks, torch.tensor([2, 1]))
    # -ln(1/2) and -ln(1 - sigmoid(2)), their mean; -ln(sigmoid(-1))
    expected = torch.tensor([(0.693147 + 2.126928) / 2, 1.313262])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    smooth = summarize.loss(logits[:1], marks[:1], torch.tensor([1]), label_smoothing=0.2)
    torch.testing.assert_close(smooth, torch.tensor([0.693147]), atol=1e-5, rtol=0)


def test_listwise_loss_by_hand() -> None:
    # windows of two, one and three sentences. The first: aims softmax(5, 4) = 0.731059, 0.268941;
    # the model's chances 1/4 and 3/4. One sentence leaves no choice. Three equal ones: ln 3.
    logits = torch.tensor([0.0, 1.0986123, -7.0, 0.3, 0.3, 0.3], requires_grad=True)
    values = torch.tensor([0.5, 0.4, 0.9, 0.2, 0.2, 0.2])
    counts = torch.tensor([2, 1, 3])
    got = summarize.listwise_loss(logits, values, counts)
    torch.testing.assert_close(got, torch.tensor([1.090832, 0.0, 1.098612]), atol=1e-5, rtol=0)
    got.sum().backward()  # the model's chances less the aims
    wanted = torch.tensor([0.25 - 0.731059, 0.75 - 0.268941, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(logits.grad, wanted, atol=1e-5, rtol=0)
    # aims 0.8 x 0.731059 + 0.1 and the rest
    smooth = summarize.listwise_loss(logits, values, counts, label_smoothing=0.2)
    torch.testing.assert_close(smooth[0].detach(), torch.tensor(1.040063), atol=1e-5, rtol=0)


def test_listwise_loss_bears_any_logits() -> None:
    logits = torch.tensor([-2e4, 3e4, 1e4], requires_grad=True)
    got = summarize.listwise_loss(logits, torch.tensor([0.0, 1.0, 0.0]), torch.tensor([2, 1]))
    torch.testing.assert_close(got[1], torch.tensor(0.0))
    got.sum().backward()
    assert torch.isfinite(got).all() and torch.isfinite(logits.grad).all()


def test_values_by_hand() -> None:
    pytest.importorskip("rouge_score", reason="the package rouge-score is not installed")
    documents = Documents(
        [["the cat sat", "it was late"], [], ["天气很好", "下雨"]],
        [["the cat ran", "so late"], ["空"], ["下雨"]], "a", [1, 2, 3],
    )  # fmt: skip
    # words 2 x 2 / 6, pairs 2 x 1 / 4, their mean; words 2 x 1 / 5, no pair; nothing; all
    expected = [(2 / 3 + 1 / 2) / 2, (2 / 5) / 2, 0.0, 1.0]
    np.testing.assert_allclose(summarize.values(documents, stem=False), expected, atol=1e-6)


def test_damaged_weights_are_told(model) -> None:
    broken = BertForExtractiveSummary(tiny_config())
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    with pytest.raises(FilbertError, match="NaN or infinity"):
        summarize.predict_logits(broken, encode())


def test_targets_and_scores_in_chinese_by_hand() -> None:
    pytest.importorskip("rouge_score", reason="the package rouge-score is not installed")
    documents = Documents([["天气很好。", "我们下雨。"], []], [["我们下雨"], ["空"]], "a", [1, 2])
    marks, chosen = summarize.targets(documents, most=1, stem=False)
    assert marks.tolist() == [0.0, 1.0] and chosen == [[1], []]
    assert summarize.score(documents, [[1], []], stem=False)["rouge1"] == pytest.approx(0.5)
    found = summarize.baselines(documents, chosen, sentences=1, stem=False)
    assert found["oracle_rouge2"] == pytest.approx(0.5)
    assert found["lead_rouge1"] == 0.0


def test_another_architecture_is_refused(tmp_path) -> None:
    from filbert.model.modern import ModernBertModel
    from filbert.model.modern_config import ModernBertConfig

    ModernBertModel(
        ModernBertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=32, pad_token_id=0,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(FilbertError, match="is a ModernBERT"):
        summarize.head(str(tmp_path))
