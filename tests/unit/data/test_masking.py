"""Masks, by counting, and held to the rule written out."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filbert.data.draws import key_of, keys_of
from filbert.data.masking import (
    NGRAM_LENGTHS,
    SPAN_LENGTHS,
    Masked,
    MaskRule,
    choose,
    choose_by_hand,
    mask,
)
from filbert.errors import UsageError

MASK, CLS, SEP, FIRST, LAST = 4, 2, 3, 10, 5000
ORDINARY = np.arange(FIRST, LAST)


def batch(samples: int = 400, *, seed: int = 0) -> dict[str, Any]:
    """Pairs of segments of random words, of 1 to 4 tokens each."""
    draw = np.random.default_rng(seed)
    ids, joins, pieces, owners = [], [], [], []
    piece = 0
    for sample in range(samples):
        parts = [(CLS, False, -1)]
        for _ in range(2):
            for size in draw.choice([1, 1, 1, 2, 3, 4], size=draw.integers(10, 40)):
                tokens = draw.integers(FIRST, LAST, size=size)
                parts += [(int(t), n > 0, piece) for n, t in enumerate(tokens)]
            parts.append((SEP, False, -1))
            piece += 1
        ids += [p[0] for p in parts]
        joins += [p[1] for p in parts]
        pieces += [p[2] for p in parts]
        owners += [sample] * len(parts)
    return {
        "input_ids": np.array(ids), "joins": np.array(joins), "pieces": np.array(pieces),
        "owners": np.array(owners), "keys": keys_of(key_of(seed, 99), np.arange(samples)),
    }  # fmt: skip


def masked(given: dict[str, Any], **rule: Any) -> Masked:
    return mask(**given, rule=MaskRule(MASK, ORDINARY, **rule))


@pytest.mark.parametrize("masking", ["token", "whole_word", "span", "ngram"])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_rate_is_kept(masking: str, rate: float) -> None:
    given = batch()
    found = masked(given, rate=rate, masking=masking)
    lengths = np.bincount(given["owners"])
    wanted = np.maximum(1, np.rint(lengths * rate))
    taken = np.bincount(given["owners"][found.positions], minlength=len(lengths))
    assert np.all(taken <= wanted)  # the original's rule: never above
    # a run of words that no longer fits is passed over, so long runs leave a little more unused
    assert taken.sum() == pytest.approx(wanted.sum(), rel=0.04 if masking == "span" else 0.01)
    if masking == "token":
        assert np.array_equal(taken, wanted)


def test_eighty_ten_ten() -> None:
    given = batch(3000)
    found = masked(given, rate=0.15)
    now, was = found.input_ids[found.positions], found.labels
    count = len(was)
    sd = np.sqrt(0.8 * 0.2 / count)
    assert np.mean(now == MASK) == pytest.approx(0.8, abs=4 * sd)
    # one in 4,990 random tokens is the one that stood there
    assert np.mean(now == was) == pytest.approx(0.1, abs=4 * sd)
    others = now[(now != MASK) & (now != was)]
    assert len(others) / count == pytest.approx(0.1, abs=4 * sd)
    assert others.min() >= FIRST
    assert others.max() < LAST
    assert abs(others.mean() - ORDINARY.mean()) < 4 * ORDINARY.std() / np.sqrt(len(others))


def test_nothing_else_is_changed() -> None:
    given = batch()
    found = masked(given)
    untouched = np.setdiff1d(np.arange(len(given["input_ids"])), found.positions)
    assert np.array_equal(found.input_ids[untouched], given["input_ids"][untouched])
    assert np.array_equal(found.labels, given["input_ids"][found.positions])
    assert np.all(given["pieces"][found.positions] >= 0)  # never [CLS] or [SEP]
    assert np.all(np.diff(found.positions) > 0)


def test_words_are_masked_whole() -> None:
    given = batch()
    found = masked(given, rate=0.3)
    chosen = np.zeros(len(given["input_ids"]), dtype=bool)
    chosen[found.positions] = True
    inside = np.flatnonzero(given["joins"])
    assert np.array_equal(chosen[inside], chosen[inside - 1])
    by_token = masked(given, rate=0.3, masking="token")
    chosen[:] = False
    chosen[by_token.positions] = True
    assert not np.array_equal(chosen[inside], chosen[inside - 1])


@pytest.mark.parametrize(("masking", "shares"), [("span", SPAN_LENGTHS), ("ngram", NGRAM_LENGTHS)])
def test_runs_of_words_have_their_lengths(masking: str, shares: np.ndarray) -> None:
    """A segment of 3,000 one-token words: with a rate so low that two runs rarely touch, the
    lengths of masked runs are those of the distribution."""
    samples, words = 300, 3000
    ids = np.tile(np.r_[CLS, np.full(words, FIRST), SEP], samples)
    pieces = np.concatenate([np.r_[-1, np.full(words, n), -1] for n in range(samples)])
    given = {
        "input_ids": ids, "joins": np.zeros(len(ids), bool), "pieces": pieces,
        "owners": np.repeat(np.arange(samples), words + 2),
        "keys": keys_of(key_of(5), np.arange(samples)),
    }  # fmt: skip
    found = masked(given, rate=0.02, masking=masking)
    breaks = np.flatnonzero(np.diff(found.positions) > 1)
    lengths = np.diff(np.r_[-1, breaks, len(found.positions) - 1])
    expected = float((shares / shares.sum()) @ np.arange(1, len(shares) + 1))
    # runs that touch (about 2 % of them) blur it, and the last ones are short, so that they fit
    assert lengths.mean() == pytest.approx(expected, rel=0.05)
    seen = np.bincount(lengths, minlength=len(shares) + 1)[1 : len(shares) + 1] / len(lengths)
    assert np.abs(seen - shares / shares.sum()).max() < 0.03


def test_a_span_is_masked_replaced_or_left_as_a_whole() -> None:
    """SpanBERT, section 3.1: 80, 10 and 10 % of the spans, not of their tokens; what replaces a
    token is drawn for each. Segments so long, at a rate so low, that runs hardly ever touch."""
    samples, words = 400, 3000
    ids = np.tile(np.r_[CLS, np.full(words, FIRST), SEP], samples)
    given = {
        "input_ids": ids, "joins": np.zeros(len(ids), bool),
        "pieces": np.concatenate([np.r_[-1, np.full(words, n), -1] for n in range(samples)]),
        "owners": np.repeat(np.arange(samples), words + 2),
        "keys": keys_of(key_of(6), np.arange(samples)),
    }  # fmt: skip

    def runs(masking: str) -> list[np.ndarray]:
        """What stands at each run of neighbours that were chosen."""
        found = masked(given, rate=0.006, masking=masking)
        breaks = np.flatnonzero(np.diff(found.positions) > 1) + 1
        return np.split(found.input_ids[found.positions], breaks)

    def kinds(run: np.ndarray) -> set[str]:
        return {"mask" if t == MASK else "same" if t == FIRST else "other" for t in run.tolist()}

    spans = runs("span")
    assert len(spans) > 1500
    # 18 tokens of 3,000, in runs of 3.8: two of them touch in about 1 % of the cases, and a third
    # of those differ
    assert np.mean([len(kinds(run)) > 1 for run in spans]) < 0.01
    # of runs drawn token by token a third is mixed at two tokens (1 - 0.64 - 0.01 - 0.01 = 0.34),
    # and so it is with n-grams
    assert np.mean([len(kinds(run)) > 1 for run in runs("ngram") if len(run) == 2]) > 0.25
    whole = [next(iter(kinds(run))) for run in spans if len(kinds(run)) == 1]
    for kind, share in (("mask", 0.8), ("other", 0.1), ("same", 0.1)):
        sd = np.sqrt(share * (1 - share) / len(whole))
        assert np.mean([found == kind for found in whole]) == pytest.approx(share, abs=4 * sd)
    others = [run for run in spans if kinds(run) == {"other"} and len(run) > 2]
    assert all(len(set(run.tolist())) > 1 for run in others)


@pytest.mark.parametrize(
    ("masking", "expected", "places"),
    [
        ("token", "6d016f6c6ad4bdbe", "b4d98bf09786c259"),
        ("whole_word", "6c6eb093a17bbab2", "b9e3b9e2041fe8c0"),
        ("ngram", "d07d8575b2eeb07b", "50070d7ccced3315"),
        ("span", None, "ddc9d018723ea77e"),
    ],
)
def test_masks_stay_what_they_were(masking: str, expected: str | None, places: str) -> None:
    """A run that is resumed sees the masks that it was begun with: the sha256 of what the version
    of 2026-11-28 drew, before spans were replaced as a whole; their places stay too."""
    count, size = 40, 50
    number = np.arange(count * size).reshape(count, size)
    ids, pieces = FIRST + number * 7919 % 4990, np.repeat(np.arange(count)[:, None], size, 1)
    ids[:, 0], ids[:, -1], pieces[:, 0], pieces[:, -1] = CLS, SEP, -1, -1
    joins = (number % 3 == 1) & (pieces >= 0)
    joins[:, 1] = False
    given = {
        "input_ids": ids.ravel(), "joins": joins.ravel(), "pieces": pieces.ravel(),
        "owners": np.repeat(np.arange(count), size), "keys": keys_of(key_of(11), np.arange(count)),
    }  # fmt: skip
    found = masked(given, rate=0.3, masking=masking)
    everything = np.concatenate([found.input_ids, found.positions, found.labels])
    drawn = [
        hashlib.sha256(part.astype("<i8").tobytes()).hexdigest()[:16]
        for part in (everything, found.positions)
    ]
    assert drawn[1] == places
    assert expected is None or drawn[0] == expected


def test_runs_do_not_cross_segments() -> None:
    given = batch()
    found = masked(given, rate=0.3, masking="span")
    # both sides of a [SEP] are chosen together no more often than chance has it
    ends = np.flatnonzero((given["pieces"] == -1) & (np.roll(given["pieces"], -1) >= 0))
    ends = ends[given["input_ids"][ends] == SEP]
    chosen = np.zeros(len(given["input_ids"]), dtype=bool)
    chosen[found.positions] = True
    left, right = chosen[ends - 1], chosen[ends + 1]
    assert abs(np.corrcoef(left, right)[0, 1]) < 0.2


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    given = batch(50)
    together = masked(given)
    alone = given["owners"] == 17
    start = int(np.flatnonzero(alone)[0])
    one = {
        "input_ids": given["input_ids"][alone], "joins": given["joins"][alone],
        "pieces": np.where(given["pieces"][alone] < 0, -1, given["pieces"][alone] - 34),
        "owners": np.zeros(alone.sum(), dtype=np.int64), "keys": given["keys"][17:18],
    }  # fmt: skip
    by_itself = masked(one)
    here = (together.positions >= start) & (together.positions < start + alone.sum())
    assert np.array_equal(together.positions[here] - start, by_itself.positions)
    assert np.array_equal(together.input_ids[alone], by_itself.input_ids)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10**6)), min_size=1, max_size=30,
                     unique_by=lambda unit: unit[1]),
            st.integers(1, 40),
        ),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_all_at_once_is_the_rule_one_by_one(samples: Any) -> None:
    owners = np.concatenate([np.full(len(units), n) for n, (units, _) in enumerate(samples)])
    sizes = np.array([size for units, _ in samples for size, _ in units])
    priority = np.array([p / 1e6 for units, _ in samples for _, p in units])
    wanted = np.array([count for _, count in samples])
    expected = [
        taken
        for units, count in samples
        for taken in choose_by_hand([s for s, _ in units], [p / 1e6 for _, p in units], count)
    ]
    assert choose(owners, sizes, priority, wanted).tolist() == expected


def test_a_sample_of_specials_alone_masks_nothing() -> None:
    given = {
        "input_ids": np.array([CLS, SEP, CLS, 50, SEP]), "joins": np.zeros(5, dtype=bool),
        "pieces": np.array([-1, -1, -1, 0, -1]), "owners": np.array([0, 0, 1, 1, 1]),
        "keys": keys_of(key_of(0), np.arange(2)),
    }  # fmt: skip
    assert masked(given).positions.tolist() == [3]


def test_an_unknown_masking_is_told() -> None:
    with pytest.raises(UsageError, match="whole_word"):
        MaskRule(MASK, ORDINARY, masking="words")  # type: ignore[arg-type]
