"""A model as one plain graph on a padded grid: what exporters trace.

The models themselves look at their input (is it packed, are the ids in range, is a text too long),
which a graph for every batch cannot. `PlainModel` computes the same from the same modules, without
branches, packing or dropout:

    input_ids, attention_mask, token_type_ids      (batch, length) int64; ModernBERT has no types
    logits                                         (batch, labels), (batch, length, labels | words)
    start_logits, end_logits                       (batch, length)
    last_hidden_state                              (batch, length, hidden)

Names are those by which Optimum knows inputs and outputs of each task. Attention is written out, so
that runtimes find it and put their own kernel in its place.

    graph = PlainModel(model)
    graph.inputs, graph.outputs                    # names, in order
    graph(input_ids, attention_mask, token_type_ids)       # a tuple, as `outputs` names it
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.attention import PaddedLayout
from filbert.model.bert import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from filbert.model.crf import BertCrfForTokenClassification
from filbert.model.modern import (
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
    rotary_angles,
)
from filbert.model.modern_config import GLOBAL, LOCAL, ModernBertConfig
from filbert.model.pretrained import PretrainedModel
from filbert.model.span_head import BertForQuestionAnswering

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# class -> the names of what it answers
OUTPUTS: dict[type[PretrainedModel], tuple[str, ...]] = {
    BertForSequenceClassification: ("logits",),
    BertForTokenClassification: ("logits",),
    BertForQuestionAnswering: ("start_logits", "end_logits"),
    BertForMaskedLM: ("logits",),
    BertForPreTraining: ("logits",),  # of masked words alone
    BertModel: ("last_hidden_state",),
    ModernBertForSequenceClassification: ("logits",),
    ModernBertForMaskedLM: ("logits",),
    ModernBertModel: ("last_hidden_state",),
}
OF_A_TEXT = (BertForSequenceClassification, ModernBertForSequenceClassification)
OF_WORDS = (BertForMaskedLM, BertForPreTraining, ModernBertForMaskedLM)


class PlainModel(nn.Module):
    """The computation of `model`, which is put into evaluation mode, on a padded grid.

    Raises `FilbertError` for a model that has no plain form.
    """

    def __init__(self, model: PretrainedModel) -> None:
        super().__init__()
        if isinstance(model, BertCrfForTokenClassification):
            raise FilbertError(
                "a tagger with a CRF (--crf) cannot be exported: the graph would hold the scores "
                "of the labels and not the CRF that chooses among them. Train it without --crf"
            )
        if type(model) not in OUTPUTS:
            raise FilbertError(
                f"a {type(model).__name__} cannot be exported; these can: "
                f"{', '.join(kind.__name__ for kind in OUTPUTS)}"
            )
        self.model: Any = model.eval()
        self.modern = isinstance(model.config, ModernBertConfig)
        self.inputs = INPUTS[:2] if self.modern else INPUTS
        self.outputs = OUTPUTS[type(model)]
        self.longest = model.config.max_position_embeddings

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """All (batch, length) int64, the mask 1 at real tokens. See `outputs` for what comes back.

        What it gives at padding means nothing, as in every encoder.
        """
        mask = attention_mask.bool()[:, None, None, :]  # (batch, 1, 1, length)
        if self.modern:
            return self._modern_head(self._modern_states(input_ids, mask), attention_mask)
        assert token_type_ids is not None
        return self._bert_head(self._bert_states(input_ids, mask, token_type_ids))

    def _bert_states(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        bert = self.model.base_model
        places = torch.arange(ids.shape[1], device=ids.device)[None]  # (1, length)
        hidden = bert.embeddings(bert.embeddings.word_embeddings(ids), types, places)
        for layer in bert.encoder.layer:
            own = layer.attention.self
            query, key, value = (
                part(hidden).unflatten(-1, (own.num_heads, own.head_size)).transpose(1, 2)
                for part in (own.query, own.key, own.value)
            )  # each (batch, heads, length, head_size)
            scores = query @ key.transpose(-1, -2) / math.sqrt(own.head_size)
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            context = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(-2)
            hidden = layer.attention.output(context, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        out: Tensor = hidden  # (batch, length, hidden)
        return out

    def _bert_head(self, hidden: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        if isinstance(model, BertForSequenceClassification):
            assert model.bert.pooler is not None
            return (model.classifier(model.bert.pooler(hidden[:, 0])),)
        if isinstance(model, BertForTokenClassification):
            return (model.classifier(hidden),)
        if isinstance(model, BertForQuestionAnswering):
            both = model.qa_outputs(hidden)  # (batch, length, 2)
            return both[..., 0], both[..., 1]
        if isinstance(model, BertForMaskedLM | BertForPreTraining):
            return (model.cls.predictions(hidden),)
        return (hidden,)

    def _modern_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        model = self.model.base_model
        config = model.config
        places = torch.arange(ids.shape[1], device=ids.device)
        angles = {
            kind: rotary_angles(places[None], theta=config.theta(kind), head_size=config.head_size)
            for kind in set(config.kinds)
        }
        near = (places[:, None] - places).abs() <= config.local_attention // 2  # (length, length)
        seen = {
            GLOBAL: PaddedLayout(mask, "eager"),
            LOCAL: PaddedLayout(mask & near, "eager"),  # (batch, 1, length, length)
        }
        hidden = model.embeddings(model.embeddings.tok_embeddings(ids))
        for layer, kind in zip(model.layers, config.kinds, strict=True):
            hidden, _ = layer(hidden, seen[kind], angles[kind])
        out: Tensor = model.final_norm(hidden)  # (batch, length, hidden)
        return out

    def _modern_head(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        if isinstance(model, ModernBertForSequenceClassification):
            if model.config.classifier_pooling == "cls":
                pooled = hidden[:, 0]
            else:
                real = mask.to(hidden.dtype)[..., None]  # (batch, length, 1)
                pooled = (hidden * real).sum(1) / real.sum(1)
            return (model.classifier(model.head(pooled)),)
        if isinstance(model, ModernBertForMaskedLM):
            return (model.decoder(model.head(hidden)),)
        return (hidden,)
