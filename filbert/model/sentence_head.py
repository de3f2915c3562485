"""Extractive summaries: a score for each sentence of a document, BertSumExt of Liu and Lapata 2019
(arXiv 1908.08345, section 3).

A document is one sequence, with [CLS] before and [SEP] behind each sentence and token types that
alternate from sentence to sentence.

    [CLS] One sentence . [SEP] [CLS] Another one . [SEP]
      0    0     0     0   0     1      1     1  1   1       token_type_ids
      0                          5                           sentence_at

What stands for a sentence says `config.sentence_pooling`: `cls` the state of its [CLS], as in the
paper (and where nothing is said), `mean` the mean of the states from its [CLS] to its [SEP]. A
model that was pre-trained to average its tokens, as all-MiniLM-L6-v2, has hardly anything in its
[CLS] to begin with.

    model = BertForExtractiveSummary.from_pretrained(
        "all-MiniLM-L6-v2", new_head=True, sentence_pooling="mean"
    )
    model(input_ids, token_type_ids=types, lengths=lengths, sentence_at=places).logits   # (2,)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert.model.bert import BertModel
from filbert.model.config import BertConfig
from filbert.model.dropout import dropout
from filbert.model.outputs import ModelOutput
from filbert.model.pretrained import PretrainedModel


class BertForExtractiveSummary(PretrainedModel):
    """How much each sentence belongs into the summary: one layer on the state of its [CLS], or on
    the mean of its tokens."""

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
        the places of the [CLS] tokens in the row of all tokens, ascending; a sentence reaches to
        the next. Returns `logits` (sentences,), in that order; with `labels` (sentences,), 1 for a
        sentence of the summary, also `loss`, the mean binary cross-entropy."""
        if self.config.sentence_pooling == "mean":
            out = self.bert(*inputs, **options)
            states = means_from(out.last_hidden_state, sentence_at)  # (sentences, hidden)
            states = states.to(self.classifier.weight.dtype)
        else:
            out = self.bert(*inputs, predict_at=sentence_at, **options)
            states = out.last_hidden_state
        states = dropout(states, self.dropout_prob if self.training else 0.0)
        logits = self.classifier(states).squeeze(-1)  # (sentences, hidden) -> (sentences,)
        loss = None
        if labels is not None:
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return ModelOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )


def means_from(states: Tensor, begins: Tensor) -> Tensor:
    """(runs, hidden) float32 means of the rows begins[i] ... begins[i + 1] - 1 of `states`, the
    last run reaching to its end. states: (tokens, hidden); begins: (runs,) int64, the first 0."""
    sizes = torch.diff(begins, append=begins.new_tensor([len(states)]))
    owners = torch.repeat_interleave(sizes)  # (tokens,)
    sums = states.new_zeros((len(begins), states.shape[-1]), dtype=torch.float32)
    return sums.index_add(0, owners, states.float()) / sizes[:, None]
