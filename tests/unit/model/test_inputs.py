"""A batch that is none is told in words, by every encoder alike."""

from __future__ import annotations

import pytest
import torch

from filbert.errors import FilbertError
from filbert.model.bert import BertConfig, BertModel

IDS = torch.tensor([2, 5, 6, 3, 2, 7, 3])


@pytest.mark.parametrize(
    "lengths",
    [[4, 2], [4, 4], [7, 0], [8, -1], [], [[4, 3]], [[4], [3]]],
    ids=["few", "many", "an empty text", "negative", "none", "a row", "a column"],
)
def test_lengths_that_do_not_fit_the_tokens(lengths: list[int]) -> None:
    model = BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    wrong = torch.tensor(lengths, dtype=torch.int64)
    for training in (True, False):
        for other in (wrong.float(), wrong.bool(), wrong.to(torch.int16), lengths, wrong.numpy()):
            with pytest.raises(FilbertError, match="lengths must be a tensor of int64 or int32"):
                model.train(training)(IDS, lengths=other)
        with pytest.raises(FilbertError, match=r"a packed batch is .* got \(7,\) and lengths of"):
            model.train(training)(IDS, lengths=wrong)
    assert model.eval()(IDS, lengths=torch.tensor([4, 3])).last_hidden_state.shape == (7, 8)
