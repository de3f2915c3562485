"""Texts that are too long for a model are cut off, or read in windows; what is lost is told, once.

Of a single text in windows nothing is lost. Of a pair the longer text moves through the windows,
and the other stands in each of them, up to half of the room (`filbert/text/windows.py`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from filbert.data.packing import Encoded, Ids

logger = logging.getLogger("filbert")


def tell_cut(
    predictor: Any, encoded: Encoded, texts: list[str], pairs: list[str] | None, *, longest: int,
    windows: bool = False,
) -> None:  # fmt: skip
    """Log, once for a predictor, that some of these texts had more tokens than `longest`, or in
    `windows` than a window has room for, and were cut off. `encoded`: their ids."""
    if predictor.told_cut:
        return
    if not windows:
        if int(encoded.tokens.max(initial=0)) < longest:
            return
        full = np.flatnonzero(encoded.tokens == longest)  # cut off, or just as long
        lost = (
            _lengths(predictor, texts, pairs, full).sum(1) + (2 if pairs is None else 3)
        ) > longest
        what = f"a text has more than the {longest} tokens that the model reads"
    elif pairs is not None:
        half = (longest - 3) // 2
        full = np.flatnonzero(_in_each_window(encoded) == half)
        lost = _lengths(predictor, texts, pairs, full).min(1) > half if len(full) else np.zeros(0)
        what = (
            f"both texts of a pair are long: the shorter one stands in every window with "
            f"{half} tokens"
        )
    else:
        return
    if lost.any():
        predictor.told_cut = True
        logger.warning(
            "%s: %s; what is beyond them was cut off. Give it in parts (told once)",
            predictor.folder, what,
        )  # fmt: skip


def _in_each_window(encoded: Encoded) -> Ids:
    """(examples,) tokens of the shorter text in the first window of a pair, -1 for pairs of a
    single window."""
    counts = np.diff(encoded.example_windows)
    found = np.full(len(counts), -1)
    for example in np.flatnonzero(counts > 1):
        start, end = encoded.window_starts[encoded.example_windows[example] + np.arange(2)]
        second = int(encoded.token_type_ids[start:end].sum()) - 1  # without its [SEP]
        found[example] = min(second, int(end - start) - 3 - second)
    return found


def _lengths(predictor: Any, texts: list[str], pairs: list[str] | None, which: Ids) -> Ids:
    """(some, 1 or 2) tokens that these texts have if nothing is cut off, without special ones."""
    whole = predictor.tokenizer.encode_flat(
        [texts[place] for place in which], pairs and [pairs[place] for place in which],
        max_length=2**20, windows=False, stride=0,
    )  # fmt: skip
    sizes = np.diff(whole.window_starts)
    if pairs is None:
        return (sizes - 2)[:, None]
    seconds = np.add.reduceat(whole.token_type_ids.astype(np.int64), whole.window_starts[:-1]) - 1
    return np.stack([sizes - 3 - seconds, seconds], axis=1)
