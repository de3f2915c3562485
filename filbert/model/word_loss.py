"""The loss of masked words over a large vocabulary, without keeping the logits.

The plain way writes (masked, vocabulary) logits, their float32 copy, the softmax and the gradient,
each to memory and back. Here the logits of some rows at a time, few enough to stay in the cache,
turn at once into their own gradient, softmax minus the one-hot label (equation 4.108 of Bishop
2006), and that is all that is kept. Where the processor has AMX, `native_words.py` does better: it
keeps next to nothing and computes the logits twice. On a GPU, and where no gradient is wanted, the
plain way serves. tests/numerics/test_fast_paths.py holds the two to each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filbert.model import native_words

ROWS = 256  # of logits at a time
FAR = 1e-30  # a probability whose logarithm is better taken from the logits


def word_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of `hidden @ weight.T + bias` against labels, float32, and how many
    labels have the highest logit, int64.

    hidden: (masked, width); weight: (vocabulary, width); bias: (vocabulary,); labels: (masked,).
    smoothing: probability that the label gives up to all words alike (Szegedy et al. 2016,
    section 7).
    """
    if native_words.serves(hidden, weight, bias):
        return native_words.native_word_loss(hidden, weight, bias, labels, smoothing=smoothing)
    if hidden.device.type == "cpu" and torch.is_grad_enabled() and hidden.requires_grad:
        loss, right = WordLoss.apply(hidden, weight, bias, labels, smoothing)
        return loss, right
    return plain_word_loss(hidden, weight, bias, labels, smoothing=smoothing)


def plain_word_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The same, written out."""
    logits = F.linear(hidden, weight, bias).float()  # (masked, vocabulary)
    right = (logits.detach().argmax(-1) == labels).sum()
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing), right


class WordLoss(torch.autograd.Function):
    """`word_loss` with its gradient made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Keeps softmax minus the wanted probabilities, (masked, vocabulary) in the compute type.

        With smoothing s over V words the label is wanted with 1 - s + s/V and each other word with
        s/V, and the loss is (1 - s) * -log p[label] + s * (log sum exp - mean) of the logits.
        """
        count = len(hidden)
        spread = hidden.new_zeros(count)  # log sum exp of the logits less their mean
        grads = hidden.new_empty(count, len(weight))
        chosen = hidden.new_empty(count, 1)
        right = labels.new_zeros(())
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            part, label = grads[rows], labels[rows, None]
            logits = F.linear(hidden[rows], weight, bias)
            torch.softmax(logits, 1, out=part)
            torch.gather(part, 1, label, out=chosen[rows])
            right += (chosen[rows, 0] >= part.amax(1)).sum()
            if smoothing:
                top = logits.amax(1)  # its probability is no smaller than 1 / vocabulary
                spread[rows] = top - part.amax(1).log() - logits.mean(1)
                part.sub_(smoothing / len(weight))
                part.scatter_add_(1, label, (smoothing - 1.0) * torch.ones_like(chosen[rows]))
            else:
                part.scatter_(1, label, chosen[rows] - 1)
        ctx.save_for_backward(grads, hidden, weight)
        ctx.mark_non_differentiable(right)
        odds = chosen[:, 0].float()
        losses = -odds.clamp_min(FAR).log()
        far = (odds < FAR).nonzero()[:, 0]  # none, unless training went astray
        if len(far):
            logits = F.linear(hidden[far], weight, bias).float()
            losses[far] = F.cross_entropy(logits, labels[far], reduction="none")
        if smoothing:
            losses = (1.0 - smoothing) * losses + smoothing * spread.float()
        return losses.sum(), right

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Scaled by the gradient of the loss, a number."""
        grads, hidden, weight = ctx.saved_tensors
        by_hidden = torch.mm(grads, weight).mul_(grad[0])  # (masked, width)
        by_weight = torch.mm(grads.t(), hidden).mul_(grad[0])  # (vocabulary, width)
        return by_hidden, by_weight, grads.sum(0).mul_(grad[0]), None, None
