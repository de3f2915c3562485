"""The encoder-decoder against `EncoderDecoderModel` of Transformers, and packed against padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.model.word_loss import plain_word_loss, word_loss
from tests.seq2seq import END, PAD, START, both, padded, save_reference, texts

SOURCES, TARGETS = [7, 3, 12, 1], [4, 9, 2, 6]


def inputs() -> dict[str, torch.Tensor]:
    sources, targets = texts(1, SOURCES), texts(2, TARGETS, vocabulary=50)
    grid = padded(sources)
    return {
        "input_ids": grid,
        "attention_mask": (grid != PAD).long(),
        "labels": padded([torch.cat([t, torch.tensor([END])]) for t in targets], fill=-100),
    }


@pytest.mark.parametrize(
    "decoder", [{}, {"hidden_size": 16, "vocab_size": 50, "num_hidden_layers": 1}]
)
def test_logits_and_loss_of_a_bert2bert_folder(tmp_path: Path, decoder: dict[str, Any]) -> None:
    reference, ours = both(tmp_path, **decoder)
    batch = inputs()
    with torch.no_grad(), pytest.warns(FutureWarning):
        want = reference(**batch)
    for path in ("sdpa", "eager"):
        ours.set_attention(path)
        got = ours(**batch)
        real = batch["labels"] != -100
        assert torch.allclose(got.logits[real], want.logits[real], atol=1e-5)
        assert got.loss.item() == pytest.approx(want.loss.item(), abs=1e-5)


def test_alignments_are_those_of_transformers(tmp_path: Path) -> None:
    reference, ours = both(tmp_path)
    reference.set_attn_implementation("eager")
    batch = inputs()
    with torch.no_grad(), pytest.warns(FutureWarning):
        want = reference(**batch, output_attentions=True)
        got = ours(**batch, output_attentions=True)
    real = batch["labels"] != -100
    for one, other in zip(got.cross_attentions, want.cross_attentions, strict=True):
        assert torch.allclose(one.transpose(1, 2)[real], other.transpose(1, 2)[real], atol=1e-5)


def packed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    real, held = batch["labels"] != -100, batch["attention_mask"].bool()
    before = batch["labels"].roll(1, 1)
    before[:, 0] = START
    return {
        "input_ids": batch["input_ids"][held],
        "lengths": held.sum(1),
        "decoder_input_ids": before[real],
        "decoder_lengths": real.sum(1),
    }


def test_packed_equals_padded_in_logits_loss_and_gradients(tmp_path: Path) -> None:
    _, ours = both(tmp_path, hidden_size=16, vocab_size=50)
    batch = inputs()
    real = batch["labels"] != -100
    with torch.no_grad():
        want = ours(**batch).logits[real]
        got = ours(**packed(batch)).logits
    assert torch.allclose(got, want, atol=1e-5)
    for smoothing in (0.0, 0.1):
        ours.zero_grad()
        loss = ours(**batch, label_smoothing=smoothing).loss
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in ours.named_parameters() if p.grad is not None}
        ours.zero_grad()
        out = ours(**packed(batch), labels=batch["labels"][real], label_smoothing=smoothing)
        (out.word_loss / real.sum()).backward()
        assert out.word_loss.item() / real.sum() == pytest.approx(loss.item(), abs=1e-5)
        for name, parameter in ours.named_parameters():
            if "key.bias" in name:  # cancels in the softmax
                continue
            assert parameter.grad is not None, name
            assert torch.allclose(parameter.grad, gradients[name], atol=1e-5), name


def test_padding_does_not_count(tmp_path: Path) -> None:
    """Traps: padding in the loss, and a source mask that cross-attention ignores."""
    _, ours = both(tmp_path)
    batch = inputs()
    wider = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 5), value=7),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 5)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 4), value=-100),
    }
    with torch.no_grad():
        assert ours(**wider).loss.item() == pytest.approx(ours(**batch).loss.item(), abs=1e-6)
        batch["attention_mask"][0, 2] = 0  # and a hidden word in the middle makes a difference
        changed = dict(batch, input_ids=batch["input_ids"].clone())
        changed["input_ids"][0, 2] = 9
        assert torch.equal(ours(**batch).logits, ours(**changed).logits)


def test_targets_are_shifted_by_one_and_begin_with_the_start_token(tmp_path: Path) -> None:
    _, ours = both(tmp_path)
    labels = torch.tensor([[11, 12, END], [13, END, -100]])
    shifted = ours.shift_right(labels)
    assert shifted.tolist() == [[START, 11, 12], [START, 13, END]]
    # a word is predicted from those before it alone: the last label changes no earlier logits
    batch = inputs()
    with torch.no_grad():
        before = ours(**{**batch, "labels": batch["labels"]}).logits[0, :3]
        batch["labels"][0, 3:4] = 30
        after = ours(**batch).logits[0]
    assert torch.allclose(after[:3], before, atol=1e-6)
    assert not torch.allclose(ours(**inputs()).logits[0, 4], after[4])


def test_saved_by_filbert_opens_in_transformers(tmp_path: Path) -> None:
    _, ours = both(tmp_path / "theirs", hidden_size=16, vocab_size=50)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "ours").eval()
    batch = inputs()
    with torch.no_grad(), pytest.warns(FutureWarning):
        want, got = again(**batch), ours(**batch)
    real = batch["labels"] != -100
    assert torch.allclose(got.logits[real], want.logits[real], atol=1e-5)
    assert again.generation_config.decoder_start_token_id == START
    assert again.generation_config.eos_token_id == END


def test_shared_weights_are_one_and_open_in_transformers(tmp_path: Path) -> None:
    reference = save_reference(tmp_path / "base", seed=3)
    reference.encoder.save_pretrained(tmp_path / "bert")
    tokens = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    shared = BertForSeq2SeqLM.build(tmp_path / "bert", decoder=None, **tokens)
    copied = BertForSeq2SeqLM.build(tmp_path / "bert", decoder=tmp_path / "bert", **tokens)
    one = shared.encoder.encoder.layer[1].output.dense.weight
    assert one is shared.decoder.bert.encoder.layer[1].output.dense.weight
    cross = [n for n, _ in shared.named_parameters() if n.startswith("decoder.bert.")]
    assert cross and all("crossattention" in name for name in cross)
    twin = copied.decoder.bert.encoder.layer[1].output.dense.weight
    assert (
        torch.equal(twin, one) and twin is not copied.encoder.encoder.layer[1].output.dense.weight
    )
    shared.save_pretrained(tmp_path / "shared")
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "shared").eval()
    reopened = BertForSeq2SeqLM.from_pretrained(tmp_path / "shared")
    assert reopened.decoder.bert.embeddings.word_embeddings is (
        reopened.encoder.embeddings.word_embeddings
    )
    batch = inputs()
    with torch.no_grad(), pytest.warns(FutureWarning):
        want, got = again(**batch), reopened(**batch)
    real = batch["labels"] != -100
    assert torch.allclose(got.logits[real], want.logits[real], atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_word_loss_equals_pytorchs(smoothing: float) -> None:
    torch.manual_seed(0)
    shapes = [(300, 8), (40, 8), (40,)]
    labels = torch.randint(40, (300,))
    results = []
    for function in (word_loss, plain_word_loss):
        torch.manual_seed(1)
        tensors = [torch.randn(*shape) for shape in shapes]
        tensors[0][5] *= 200.0  # a probability that underflows
        tensors = [tensor.requires_grad_() for tensor in tensors]
        loss, right = function(*tensors, labels, smoothing=smoothing)
        loss.backward()
        results.append([loss.detach(), right, *(tensor.grad for tensor in tensors)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-3, rtol=1e-5)
