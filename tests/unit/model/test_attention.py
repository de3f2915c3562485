"""Packed layouts and dropout: nothing lost, nothing mixed, the probabilities as asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filbert.model.attention import PaddedLayout, attention, pack_layout
from filbert.model.dropout import dropout, keep_mask


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_packed_equals_each_sequence_alone(counts: list[int]) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor(counts)
    q, k, v = (torch.randn(sum(counts), 2, 8) for _ in range(3))
    layout = pack_layout(lengths)
    together, _ = attention(q, k, v, layout)
    start = 0
    for count in counts:
        own = slice(start, start + count)
        alone, _ = attention(q[None, own], k[None, own], v[None, own], PaddedLayout(None, "eager"))
        assert (together[own] - alone[0]).abs().max().item() < 1e-5
        start += count
    asking, _ = attention(q[layout.first], k, v, layout)  # the first tokens' queries alone
    assert (asking - together[layout.first]).abs().max().item() < 1e-5
    assert [n for run in layout.runs for n in [run[1]] * run[0]] == counts


def test_runs_by_hand() -> None:
    layout = pack_layout(torch.tensor([5, 5, 5, 2, 5]))
    assert layout.runs == ((3, 5), (1, 2), (1, 5))
    assert layout.first.tolist() == [0, 5, 10, 15, 17]


def test_attention_weights_sum_to_one_over_visible_keys() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 6, 3, 4) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    _, weights = attention(q, k, v, PaddedLayout(mask[:, None, None, :], "eager"))
    assert weights is not None
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 6), atol=1e-6)
    assert weights[0, :, :, 3:].abs().max().item() == 0.0


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
def test_dropout_counts(prob: float) -> None:
    """The share of zeros within five standard deviations, the mean kept, the others scaled."""
    torch.manual_seed(0)
    count = 1_000_000
    mask = keep_mask(torch.empty(count), prob)
    zeros = (mask == 0).float().mean().item()
    assert abs(zeros - prob) < 5 * (prob * (1 - prob) / count) ** 0.5 + 1 / 65536
    assert mask.max().item() == pytest.approx(1 / (1 - prob), rel=1e-3)
    assert mask.mean().item() == pytest.approx(1.0, abs=0.02)
    pairs = (mask[:-1] == 0) & (mask[1:] == 0)
    assert pairs.float().mean().item() == pytest.approx(prob**2, abs=3e-3)  # neighbours independent


def test_dropout_follows_the_seed() -> None:
    x = torch.ones(1000)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(x, 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(dropout(x, 0.0), x)
