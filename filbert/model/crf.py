"""A linear-chain CRF: the best sequence of labels, and how likely each is.

The score of a sequence is the sum of its labels' scores (`emissions`, from the encoder) and of a
score for each pair of neighbours (`transitions`). Sums over all sequences cost length x labels^2
(Lafferty, McCallum and Pereira 2001; Rabiner 1989, sections III.A and III.B). Everything works on a
grid of sequences at once; what lies beyond a sequence's length is never looked at.

    paths = best_paths(scores, lengths, **allowed_moves(labels))     # BIO that cannot be broken
    model = BertCrfForTokenClassification.from_pretrained(base, id2label=..., new_head=True)
    model.head.loss(emissions, labels, lengths)

tests/unit/model/test_crf.py holds each function to the sum, or the best, over all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.bert import BertForTokenClassification
from filbert.model.config import BertConfig
from filbert.model.outputs import ModelOutput

FORBIDDEN = -1e4  # added to the score of a move that must not be; finite, so that nothing is NaN
_CELLS = 1 << 20  # of a grid that is computed at once


def log_partition(
    emissions: Tensor, lengths: Tensor, *, transitions: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """(sequences,) the logarithm of the sum of exp(score) over all label sequences.

    emissions: (sequences, longest, labels); lengths: (sequences,) from 1; transitions: (labels,
    labels), from row to column; start, end: (labels,).
    """
    alpha = start + emissions[:, 0]  # (sequences, labels)
    for step in range(1, emissions.shape[1]):
        onward = torch.logsumexp(alpha[:, :, None] + transitions, dim=1) + emissions[:, step]
        alpha = torch.where((step < lengths)[:, None], onward, alpha)
    return torch.logsumexp(alpha + end, dim=1)


def path_score(
    emissions: Tensor, labels: Tensor, lengths: Tensor, *, transitions: Tensor, start: Tensor,
    end: Tensor,
) -> Tensor:  # fmt: skip
    """(sequences,) the score of `labels` (sequences, longest) int64; see `log_partition`."""
    inside = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
    own = emissions.gather(2, labels[:, :, None]).squeeze(2)  # (sequences, longest)
    moves = transitions[labels[:, :-1], labels[:, 1:]]  # (sequences, longest - 1)
    last = labels.gather(1, lengths[:, None] - 1).squeeze(1)
    total = (own * inside).sum(1) + (moves * inside[:, 1:]).sum(1)
    return total + start[labels[:, 0]] + end[last]


@torch.no_grad()
def viterbi(
    emissions: Tensor, lengths: Tensor, *, transitions: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """(sequences, longest) int64: the labels of the highest score, 0 beyond each length."""
    best = start + emissions[:, 0]  # (sequences, labels)
    came_from = []
    for step in range(1, emissions.shape[1]):
        onward, before = (best[:, :, None] + transitions).max(dim=1)
        best = torch.where((step < lengths)[:, None], onward + emissions[:, step], best)
        came_from.append(before)
    label = (best + end).argmax(dim=1)  # (sequences,) of the last place of each
    path = torch.zeros(emissions.shape[:2], dtype=torch.int64, device=emissions.device)
    for step in range(emissions.shape[1] - 1, -1, -1):
        path[:, step] = torch.where(step < lengths, label, 0)
        if step:
            back = came_from[step - 1].gather(1, label[:, None]).squeeze(1)
            label = torch.where(step < lengths, back, label)
    return path


def marginals(
    emissions: Tensor, lengths: Tensor, *, transitions: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """(sequences, longest, labels): how likely each label is at each place, over all sequences.

    It is the gradient of the log-partition by the emissions (Wainwright and Jordan 2008, section
    3.6), which is what the forward-backward algorithm computes.
    """
    with torch.enable_grad():
        wanted = emissions.detach().float().requires_grad_()
        total = log_partition(
            wanted, lengths, transitions=transitions.detach(), start=start.detach(),
            end=end.detach(),
        )  # fmt: skip
        return torch.autograd.grad(total.sum(), wanted)[0]


class LinearChainCrf(nn.Module):
    """The scores of moves from label to label, learned; all 0 at first."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(labels, labels))  # from row to column
        self.start = nn.Parameter(torch.zeros(labels))
        self.end = nn.Parameter(torch.zeros(labels))

    def moves(self) -> dict[str, Tensor]:
        """The three tensors as the functions above take them, float32."""
        return {
            "transitions": self.transitions.float(), "start": self.start.float(),
            "end": self.end.float(),
        }  # fmt: skip

    def loss(self, emissions: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """(sequences,) minus the log-likelihood of `labels`; arguments as for `path_score`."""
        moves = self.moves()
        emissions = emissions.float()
        return log_partition(emissions, lengths, **moves) - path_score(
            emissions, labels, lengths, **moves
        )


class BertCrfForTokenClassification(BertForTokenClassification):
    """A label for each token, chosen together: the token classifier with a CRF, `head`, on top.

    Transformers opens its folder as the same classifier without the CRF."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.head = LinearChainCrf(config.num_labels)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **options: Any) -> ModelOutput:
        """`logits` as of the class below: the emissions. For the loss call `head.loss`, which
        needs to know where sequences end. Raises `FilbertError` if `labels` are given."""
        if labels is not None:
            raise FilbertError("a CRF's loss needs sequences: call model.head.loss on the logits")
        return super().forward(*inputs, **options)


def allowed_moves(labels: Sequence[str]) -> dict[str, Tensor]:
    """Scores of moves that let through what BIO allows alone: `I-X` follows `B-X` or `I-X`."""
    count = len(labels)
    transitions, start = torch.zeros(count, count), torch.zeros(count)
    for column, label in enumerate(labels):
        if label.startswith("I-"):
            start[column] = FORBIDDEN
            for row, before in enumerate(labels):
                if before not in (f"B-{label[2:]}", label):
                    transitions[row, column] = FORBIDDEN
    return {"transitions": transitions, "start": start, "end": torch.zeros(count)}


def grids(lengths: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Packed sequences as grids of like lengths: (sequences, rows, real) of each grid.

    lengths: (sequences,), 0 allowed and left out. sequences: (n,) their numbers; rows: (n, longest)
    places in the packed row, of the last one beyond a sequence's end; real: (n, longest) bool.
    """
    starts = torch.cumsum(lengths, 0) - lengths
    order = torch.argsort(lengths, stable=True)
    order = order[lengths[order] > 0]
    out, begin = [], 0
    counts = lengths[order].tolist()
    while begin < len(order):
        stop = begin + 1
        while stop < len(order) and (stop + 1 - begin) * counts[stop] <= _CELLS // 64:
            stop += 1
        chosen = order[begin:stop]
        column = torch.arange(counts[stop - 1], device=lengths.device)
        real = column < lengths[chosen][:, None]
        rows = starts[chosen][:, None] + torch.minimum(column, lengths[chosen][:, None] - 1)
        out.append((chosen, rows, real))
        begin = stop
    return out


def best_paths(scores: Tensor, lengths: Tensor, **moves: Tensor) -> Tensor:
    """(tokens,) int64: `viterbi` for packed sequences. scores: (tokens, labels); lengths:
    (sequences,) that sum to tokens, 0 allowed."""
    out = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    for chosen, rows, real in grids(lengths):
        out[rows[real]] = viterbi(scores[rows].float(), lengths[chosen], **moves)[real]
    return out


def all_marginals(scores: Tensor, lengths: Tensor, **moves: Tensor) -> Tensor:
    """(tokens, labels) float32: `marginals` for packed sequences; arguments as of `best_paths`."""
    out = torch.zeros(scores.shape, device=scores.device)
    for chosen, rows, real in grids(lengths):
        out[rows[real]] = marginals(scores[rows].float(), lengths[chosen], **moves)[real]
    return out
