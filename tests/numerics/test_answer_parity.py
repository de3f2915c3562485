"""BertForQuestionAnswering against Transformers: logits, loss and gradients, padded and packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from filbert.data.packing import Encoded
from filbert.model.config import BertConfig
from filbert.model.span_head import BertForQuestionAnswering
from filbert.tasks import answer

SIZES = {
    "vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 64, "initializer_range": 0.1,
}  # fmt: skip
LENGTHS = [64, 17, 17, 5, 33, 1]


@pytest.fixture
def both(tmp_path: Path) -> tuple[BertForQuestionAnswering, transformers.BertForQuestionAnswering]:
    torch.manual_seed(3)
    theirs = transformers.BertForQuestionAnswering(transformers.BertConfig(**SIZES)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = BertForQuestionAnswering.from_pretrained(tmp_path / "theirs")
    assert set(ours.state_dict()) == set(theirs.state_dict())
    return ours, theirs


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    ids = [torch.randint(5, 90, (n,)) for n in LENGTHS]
    types = [(torch.arange(n) > n // 3).long() for n in LENGTHS]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    return pad(ids, batch_first=True), pad(types, batch_first=True), mask


def test_logits_loss_and_gradients(
    both: tuple[BertForQuestionAnswering, transformers.BertForQuestionAnswering],
) -> None:
    ours, theirs = both
    ids, types, mask = batch()
    gold = torch.tensor([[3, 9], [0, 0], [16, 16], [1, 2], [99, 5], [0, 0]])  # one lies outside
    given = {"start_positions": gold[:, 0], "end_positions": gold[:, 1]}
    want = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask, **given)
    mine = ours(input_ids=ids, token_type_ids=types, attention_mask=mask, **given)
    real = mask.bool()
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(mine[name][real], want[name][real], atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.loss, want.loss, atol=1e-5, rtol=0)
    packed = ours(ids[real], token_type_ids=types[real], lengths=torch.tensor(LENGTHS))
    torch.testing.assert_close(packed.start_logits, want.start_logits[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.end_logits, want.end_logits[real], atol=1e-5, rtol=0)
    want.loss.backward()
    mine.loss.backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if not name.endswith("key.bias"):  # cancels in the softmax
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=0, msg=name)


def test_packed_loss_is_that_of_transformers(
    both: tuple[BertForQuestionAnswering, transformers.BertForQuestionAnswering],
) -> None:
    ours, theirs = both
    ids, types, mask = batch()
    gold = torch.tensor([[3, 9], [0, 0], [16, 16], [1, 2], [30, 32], [0, 0]])
    real = mask.bool()
    packed = ours(ids[real], token_type_ids=types[real], lengths=torch.tensor(LENGTHS))
    losses = answer.loss(packed.start_logits, packed.end_logits, torch.tensor(LENGTHS), gold)
    for row, (length, places) in enumerate(zip(LENGTHS, gold, strict=True)):
        alone = theirs(
            input_ids=ids[row : row + 1, :length], token_type_ids=types[row : row + 1, :length],
            start_positions=places[:1], end_positions=places[1:],
        )  # fmt: skip
        torch.testing.assert_close(losses[row], alone.loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", ["packed", "sdpa", "eager"])
def test_logits_come_back_in_input_order(
    both: tuple[BertForQuestionAnswering, transformers.BertForQuestionAnswering], path: str
) -> None:
    ours, theirs = both
    ids, types, mask = batch()
    real = mask.bool()
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    encoded = Encoded(
        ids[real].numpy().astype(np.int32), types[real].numpy().astype(np.int8), starts,
        np.arange(len(LENGTHS) + 1),
    )  # fmt: skip
    ours.set_attention(path)
    found = answer.predict_logits(ours, encoded, batch_tokens=70)
    with torch.no_grad():
        want = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask)
    np.testing.assert_allclose(found[0], want.start_logits[real].numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], want.end_logits[real].numpy(), atol=1e-5)


def test_our_folder_opens_in_transformers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    ours = BertForQuestionAnswering(BertConfig(**SIZES)).eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(str(tmp_path))
    ids, types, mask = batch()
    real = mask.bool()
    with torch.no_grad():
        want = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask).start_logits
        mine = ours(input_ids=ids, token_type_ids=types, attention_mask=mask).start_logits
    torch.testing.assert_close(mine[real], want[real], atol=1e-5, rtol=0)
