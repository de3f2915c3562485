"""Texts laid out as arrays: the short way of texts that all fit, beside a plain statement."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from filbert.text.windows import assemble

CLS, SEP = 101, 102


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("lengths", [[], [0], [3], [6], [2, 0, 6, 1, 5, 6], [4, 7, 1], [7]])
def test_single_texts(lengths: list[int], windows: bool) -> None:
    """Texts of up to 6 tokens fit whole; with one of 7 all go the longer way."""
    draw = np.random.default_rng(3)
    texts = [draw.integers(0, 90, length).tolist() for length in lengths]
    body = np.asarray(list(itertools.chain.from_iterable(texts)), dtype=np.int32)
    flat = assemble(
        body, np.asarray(lengths, dtype=np.int64), None,
        cls_id=CLS, sep_id=SEP, max_length=8, windows=windows, stride=2, side="right",
    )  # fmt: skip
    wanted, owners = [], []
    for owner, text in enumerate(texts):
        rest, first = text, True
        while first or (windows and len(rest) > 2):  # a window repeats the 2 tokens before
            wanted.append([CLS, *rest[:6], SEP])
            owners.append(owner)
            rest, first = rest[4:] if len(rest) > 6 else [], False
    found = np.split(flat.ids, flat.window_starts[1:-1]) if len(texts) else []
    assert [window.tolist() for window in found] == wanted
    assert flat.ids.dtype == np.int32 and flat.token_type_ids.tolist() == [0] * len(flat.ids)
    counts = np.bincount(owners, minlength=len(texts)) if texts else []
    assert np.diff(flat.example_windows).tolist() == list(counts)
    assert flat.window_starts.dtype == flat.example_windows.dtype == np.int64
