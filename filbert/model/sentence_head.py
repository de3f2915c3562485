"""Extractive summaries: a score for each sentence of a document, BertSumExt of Liu and Lapata 2019
(arXiv 1908.08345, section 3).

A document is one sequence, with [CLS] before and [SEP] behind each sentence and token types that
alternate from sentence to sentence. The state of each [CLS] stands for its sentence.

    [CLS] One sentence . [SEP] [CLS] Another one . [SEP]
      0    0     0     0   0     1      1     1  1   1       token_type_ids
      0                          5                           sentence_at

    model = BertForExtractiveSummary.from_pretrained("all-MiniLM-L6-v2", new_head=True)
    model(input_ids, token_type_ids=types, lengths=lengths, sentence_at=places).logits   # (2,)
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from filbert.model.bert import BertModel
from filbert.model.config import BertConfig
from filbert.model.dropout import dropout
from filbert.model.outputs import ModelOutput
from filbert.model.pretrained import PretrainedModel


class BertForExtractiveSummary(PretrainedModel):
    """How much each sentence belongs into the summary: one layer on the state of its [CLS]."""

    config: BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        own = config.classifier_dropout
        self.dropout_prob = config.hidden_dropout_prob if own is None else own
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.initialise()

    def forward(
        self,
        *inputs: Tensor,
        sentence_at: Tensor,
        labels: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Takes a packed batch as `BertModel.forward` does, and `sentence_at` (sentences,) int64,
        the places of the [CLS] tokens in the row of all tokens. Returns `logits` (sentences,), in
        that order; with `labels` (sentences,), 1 for a sentence of the summary, also `loss`, the
        mean binary cross-entropy."""
        out = self.bert(*inputs, predict_at=sentence_at, **options)
        states = dropout(out.last_hidden_state, self.dropout_prob if self.training else 0.0)
        logits = self.classifier(states).squeeze(-1)  # (sentences, hidden) -> (sentences,)
        loss = None
        if labels is not None:
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return ModelOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )
