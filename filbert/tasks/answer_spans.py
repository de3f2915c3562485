"""The best spans of text for each question, over all its windows, from start and end logits.

In each window the `n_best` likeliest first and last tokens are paired; a pair counts if both lie in
the context, in order, and not too far apart. The best pairs of all windows of a question compete;
a span that two windows share counts once, with its better score. Everything is computed for many
windows at a time. The rule is that of Transformers' question-answering scripts, to which
tests/unit/tasks/test_answer.py holds it on random logits.

    spans = best_spans(passages, logits, n_best=20, max_answer_tokens=30)
    spans.begin[q, 0], spans.end[q, 0]      # characters of the best answer of question q
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from filbert.data.packing import cut
from filbert.text.passages import Passages, ragged

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_CELLS = 4_000_000  # of the grids that are alive at one time


class AnswerSettings(BaseModel):
    """What a bundle knows beyond the common manifest: `Manifest.settings`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    no_answer: bool = False  # whether it may say that nothing answers
    threshold: float = 0.0  # it says so where [CLS] beats the best span by more than this
    max_answer_tokens: int = Field(default=30, ge=1, le=512)


@dataclass(frozen=True)
class Spans:
    """Spans of each question, the best first. score (questions, n_best) float64, -inf where there
    are fewer; begin, end (questions, n_best) int64 characters of the context, -1 likewise; null
    (questions,) the score of "no answer"."""

    score: Floats
    begin: Ids
    end: Ids
    null: Floats

    @property
    def gap(self) -> Floats:
        """(questions,) by how much "no answer" beats the best span; infinite without a span."""
        return self.null - self.score[:, 0]

    def silent(self, settings: AnswerSettings) -> NDArray[np.bool_]:
        """(questions,) where no answer is given: no span, or the gap is above the threshold."""
        nothing = self.begin[:, 0] < 0
        return nothing | (self.gap > settings.threshold) if settings.no_answer else nothing


def best_spans(
    passages: Passages, logits: NDArray[np.float32], *, n_best: int, max_answer_tokens: int
) -> Spans:
    """The `n_best` spans of at most `max_answer_tokens` tokens. logits: (2, tokens)."""
    lengths = np.diff(passages.window_starts)
    cls = logits[:, passages.window_starts[:-1]].astype(np.float64).sum(0)  # (windows,)
    null = np.minimum.reduceat(cls, passages.question_windows[:-1]) if len(cls) else cls
    parts = []
    cells = np.maximum(lengths, n_best**2)  # of the grids that a window needs
    order = np.argsort(lengths, kind="stable")
    for windows in cut(order, cells, batch_tokens=_CELLS, batch_size=None):
        parts.append(
            _pairs(passages, logits, windows, n_best=n_best, max_answer_tokens=max_answer_tokens)
        )
    window, first, last, score = (
        np.concatenate(column) if parts else np.empty(0, np.int64)
        for column in (zip(*parts, strict=True) if parts else [()] * 4)
    )
    question = passages.asked[window]
    a = passages.spans[first, 0].astype(np.int64)
    b = passages.spans[last, 1].astype(np.int64)
    # of equal spans the best one, then the best of each question
    order = np.lexsort((-score, b, a, question))
    question, a, b, score = question[order], a[order], b[order], score[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(question) != 0) | (np.diff(a) != 0) | (np.diff(b) != 0)
    question, a, b, score = question[new], a[new], b[new], score[new]
    order = np.lexsort((-score, question))
    question, a, b, score = question[order], a[order], b[order], score[order]
    count = passages.questions
    starts = np.searchsorted(question, np.arange(count))
    rank = np.arange(len(question)) - starts[question]
    kept = rank < n_best
    shape = (count, n_best)
    out = Spans(np.full(shape, -np.inf), np.full(shape, -1), np.full(shape, -1), null)
    where = question[kept], rank[kept]
    out.score[where], out.begin[where], out.end[where] = score[kept], a[kept], b[kept]
    return out


def _pairs(
    passages: Passages,
    logits: NDArray[np.float32],
    windows: Ids,
    *,
    n_best: int,
    max_answer_tokens: int,
) -> tuple[Ids, Ids, Ids, Floats]:
    """The best pairs of these windows: window, first and last context token, score (n,) each."""
    start_of = passages.window_starts[windows]
    lengths = passages.window_starts[windows + 1] - start_of
    longest = int(lengths.max())
    rows = np.repeat(np.arange(len(windows)) * longest, lengths)
    cells = rows + ragged(np.zeros(len(windows), np.int64), lengths)
    places = ragged(start_of, lengths)
    keep = min(n_best, longest)
    tops, values = [], []
    for side in logits:
        grid = np.full((len(windows), longest), -np.inf, dtype=np.float32)
        grid.reshape(-1)[cells] = side[places]
        top = np.argpartition(-grid, keep - 1, axis=1)[:, :keep]  # (windows, keep), in no order
        tops.append(top)
        values.append(np.take_along_axis(grid, top, axis=1).astype(np.float64))
    low = passages.context_at[windows][:, None]
    high = low + passages.token_count[windows][:, None]
    inside = [(top >= low) & (top < high) for top in tops]
    far = tops[1][:, None, :] - tops[0][:, :, None]  # (windows, first, last)
    fits = inside[0][:, :, None] & inside[1][:, None, :] & (far >= 0) & (far < max_answer_tokens)
    score = np.where(fits, values[0][:, :, None] + values[1][:, None, :], -np.inf)
    score = score.reshape(len(windows), -1)  # (windows, keep * keep)
    taken = min(n_best, score.shape[1])
    best = np.argpartition(-score, taken - 1, axis=1)[:, :taken]
    found = np.take_along_axis(score, best, axis=1)
    row, column = np.nonzero(np.isfinite(found))
    pair = best[row, column]
    shift = passages.token_from[windows][row] - passages.context_at[windows][row]
    first = tops[0][row, pair // keep] + shift
    last = tops[1][row, pair % keep] + shift
    return windows[row], first, last, found[row, column]


def probabilities(spans: Spans, settings: AnswerSettings, *, temperature: float) -> Floats:
    """(questions, 1 + n_best) chances that sum to 1: of "no answer", then of each span.

    "No answer" has its score less the threshold, so that what is answered is what is likeliest; of
    a model that always answers it has the chance 0, and 1 where there is no span at all."""
    nothing = spans.begin[:, 0] < 0
    null = spans.null - settings.threshold if settings.no_answer else -np.inf
    null = np.where(nothing, 0.0, null)
    scores = np.concatenate([null[:, None], spans.score], axis=1) / temperature
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    total: Floats = powers / powers.sum(axis=1, keepdims=True)
    return total
