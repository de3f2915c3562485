"""The sentence head: the states of [CLS] tokens, against transformers and against one at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers

from filbert.model.bert import BertConfig
from filbert.model.sentence_head import BertForExtractiveSummary

CONFIG = BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=40, initializer_range=0.3,
)  # fmt: skip


def make() -> tuple[BertForExtractiveSummary, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = BertForExtractiveSummary(CONFIG).eval()
    ids = torch.randint(5, 60, (21,))
    places = torch.tensor([0, 4, 9, 12])
    types = torch.tensor([0] * 4 + [1] * 5 + [0] * 3 + [0] * 9)
    return model, ids, places, types


def test_logits_are_those_of_transformers_states() -> None:
    model, ids, places, types = make()
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
        expected = model.classifier(torch.cat(states)[places]).squeeze(-1)
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


def test_saved_and_opened_again(tmp_path) -> None:
    model, ids, places, types = make()
    model.save_pretrained(tmp_path)
    again = BertForExtractiveSummary.from_pretrained(tmp_path)
    assert again.config.architectures == ["BertForExtractiveSummary"]
    options = {"token_type_ids": types, "lengths": torch.tensor([12, 9]), "sentence_at": places}
    assert torch.equal(again(ids, **options).logits, model(ids, **options).logits)
