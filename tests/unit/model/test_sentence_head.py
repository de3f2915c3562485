"""The sentence head: states of [CLS] tokens and means of sentences, against transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers

from filbert.errors import FilbertError
from filbert.model.bert import BertConfig
from filbert.model.sentence_head import BertForExtractiveSummary, means_from

CONFIG = BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=40, initializer_range=0.3,
)  # fmt: skip


def make(
    pooling: str | None = None,
) -> tuple[BertForExtractiveSummary, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = BertForExtractiveSummary(CONFIG.replace(sentence_pooling=pooling)).eval()
    ids = torch.randint(5, 60, (21,))
    places = torch.tensor([0, 4, 9, 12])
    types = torch.tensor([0] * 4 + [1] * 5 + [0] * 3 + [0] * 9)
    return model, ids, places, types


@pytest.mark.parametrize("pooling", [None, "cls", "mean"])
def test_logits_are_those_of_transformers_states(pooling: str | None) -> None:
    model, ids, places, types = make(pooling)
    reference = transformers.BertModel(
        transformers.BertConfig(**{k: v for k, v in CONFIG.to_dict().items() if k != "id2label"}),
        add_pooling_layer=False,
    ).eval()
    reference.load_state_dict(model.bert.state_dict())
    with torch.no_grad():
        got = model(
            ids, token_type_ids=types, lengths=torch.tensor([12, 9]), sentence_at=places
        ).logits
        states = [
            reference(input_ids=run[None], token_type_ids=kind[None]).last_hidden_state[0]
            for run, kind in zip(ids.split([12, 9]), types.split([12, 9]), strict=True)
        ]
        pooled = torch.cat(states)[places]
        if pooling == "mean":
            pooled = torch.stack([part.mean(0) for part in torch.cat(states).split([4, 5, 3, 9])])
        expected = model.classifier(pooled).squeeze(-1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_loss_is_binary_cross_entropy_and_gradients_flow() -> None:
    model, ids, places, types = make()
    labels = torch.tensor([0, 1, 0, 1])
    out = model(
        ids, token_type_ids=types, lengths=torch.tensor([12, 9]), sentence_at=places, labels=labels
    )
    expected = -torch.where(labels == 1, F.logsigmoid(out.logits), F.logsigmoid(-out.logits)).mean()
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_means_by_hand() -> None:
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]], dtype=torch.bfloat16)
    got = means_from(states, torch.tensor([0, 2]))
    assert got.dtype == torch.float32 and got.tolist() == [[2.0, 3.0], [10.0, 0.0]]
    assert means_from(states[:1], torch.tensor([0])).tolist() == [[1.0, 2.0]]


def test_a_pooling_that_is_not_there_is_told() -> None:
    with pytest.raises(FilbertError, match="sentence_pooling 'max' is none of cls, mean"):
        CONFIG.replace(sentence_pooling="max")


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_saved_and_opened_again(tmp_path, pooling: str | None) -> None:
    model, ids, places, types = make(pooling)
    model.save_pretrained(tmp_path)
    again = BertForExtractiveSummary.from_pretrained(tmp_path)
    assert again.config.architectures == ["BertForExtractiveSummary"]
    assert again.config.sentence_pooling == pooling
    assert ("sentence_pooling" in (tmp_path / "config.json").read_text("utf-8")) == bool(pooling)
    options = {"token_type_ids": types, "lengths": torch.tensor([12, 9]), "sentence_at": places}
    assert torch.equal(again(ids, **options).logits, model(ids, **options).logits)
