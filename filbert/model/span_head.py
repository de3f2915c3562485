"""`BertForQuestionAnswering`: where in a text an answer begins and where it ends.

One layer gives each token two numbers, as a first and as a last token of the answer; [CLS] stands
for "not here". Names follow Hugging Face Transformers (`bert.*`, `qa_outputs.*`), so that its
checkpoints open here and ours there. Devlin et al. 2019, sections 4.2 and 4.3.

    model = BertForQuestionAnswering.from_pretrained(folder)
    out = model(input_ids, token_type_ids=types, lengths=lengths)      # packed
    out.start_logits, out.end_logits                                   # (tokens,) each
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from filbert.model.bert import BertModel
from filbert.model.config import BertConfig
from filbert.model.outputs import ModelOutput
from filbert.model.pretrained import PretrainedModel


class BertForQuestionAnswering(PretrainedModel):
    """A BERT without its pooler, and two numbers for each token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.initialise()

    def forward(
        self,
        *inputs: Tensor,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Takes what `BertModel.forward` takes, and for padded batches `start_positions` and
        `end_positions` (batch,) int64, which give `loss`, the mean of the two cross-entropies
        (places beyond the length count nothing). Returns `start_logits` and `end_logits`, shaped
        as `input_ids`: (batch, length) or, packed, (tokens,)."""
        out = self.bert(*inputs, **options)
        start, end = self.qa_outputs(out.last_hidden_state).unbind(-1)  # (..., 2) -> (...) each
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start.shape[-1]
            first, last = (
                F.cross_entropy(logits.float(), gold.view(-1).clamp(0, length), ignore_index=length)
                for logits, gold in ((start, start_positions), (end, end_positions))
            )
            loss = (first + last) / 2
        return ModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
