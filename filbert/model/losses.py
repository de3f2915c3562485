"""The losses that heads compute themselves when they are handed labels, as Transformers does.

Training here takes its losses from `filbert.tasks`; these serve whoever calls a model directly.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from filbert.model.config import EncoderConfig


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the positions whose label is not -100.

    logits: (..., vocabulary); labels: (...) int64.
    """
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100)


def label_loss(logits: Tensor, labels: Tensor, config: EncoderConfig) -> Tensor:
    """The loss of a classification head. logits: (sequences, labels).

    labels: (sequences,) int64 classes, (sequences, labels) 0/1 for several, (sequences,) float for
    regression; `config.problem_type` decides, else their type.
    """
    kind, logits = config.problem_type, logits.float()
    if kind == "regression" or (kind is None and config.num_labels == 1):
        return F.mse_loss(logits.squeeze(-1), labels.float().view_as(logits.squeeze(-1)))
    if kind == "multi_label_classification" or (kind is None and labels.is_floating_point()):
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    return F.cross_entropy(logits, labels.view(-1))
