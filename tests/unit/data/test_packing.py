"""Plans of batches: every example once, within the budget, a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filbert.data.packing import Encoded, plan_epoch, plan_once


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=200),
    st.integers(1, 500),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_every_example_once_within_the_budget(
    lengths: list[int], budget: int, size: int | None
) -> None:
    tokens = np.array(lengths)
    plan = plan_epoch(tokens, batch_tokens=budget, batch_size=size, seed=3, epoch=1)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    for batch in plan:
        assert tokens[batch].sum() <= budget or len(batch) == 1
        assert size is None or len(batch) <= size


def test_plan_is_a_function_of_seed_and_epoch() -> None:
    tokens = np.random.default_rng(0).integers(3, 60, 1000)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        made = plan_epoch(tokens, batch_tokens=300, batch_size=None, seed=seed, epoch=epoch)
        return [batch.tolist() for batch in made]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)


def test_buckets_hold_nearly_equal_lengths_in_shuffled_order() -> None:
    tokens = np.random.default_rng(0).integers(3, 60, 20_000)
    plan = plan_epoch(tokens, batch_tokens=1000, batch_size=None, seed=0, epoch=0)
    assert np.mean([len(set(tokens[b].tolist())) for b in plan]) < 1.3  # runs for the attention
    longest = np.array([tokens[b].max() for b in plan])
    assert abs(np.corrcoef(np.arange(len(plan)), longest)[0, 1]) < 0.1  # not short to long


def test_evaluation_takes_the_longest_first() -> None:
    plan = plan_once(np.array([5, 9, 1, 7]), batch_tokens=10)
    assert [batch.tolist() for batch in plan] == [[1], [3], [0, 2]]


def test_gather_by_hand() -> None:
    encoded = Encoded(
        input_ids=np.arange(10, dtype=np.int32),
        token_type_ids=np.array([0] * 5 + [1] * 5, dtype=np.int8),
        window_starts=np.array([0, 3, 5, 6, 10]),
        example_windows=np.array([0, 1, 3, 4]),  # the second example has two windows
    )
    assert len(encoded) == 3
    assert encoded.tokens.tolist() == [3, 3, 4]
    batch = encoded.gather(np.array([2, 1]))
    assert batch.input_ids.tolist() == [6, 7, 8, 9, 3, 4, 5]
    assert batch.token_type_ids.tolist() == [1, 1, 1, 1, 0, 0, 1]
    assert batch.lengths.tolist() == [4, 2, 1]
    assert batch.owners.tolist() == [0, 1, 1]
    assert batch.input_ids.dtype == batch.lengths.dtype == np.int64


@pytest.mark.parametrize("budget", [1, 10**9])
def test_extreme_budgets(budget: int) -> None:
    tokens = np.array([4, 4, 9])
    plan = plan_epoch(tokens, batch_tokens=budget, batch_size=None, seed=0, epoch=0)
    assert len(plan) == (3 if budget == 1 else 1)
