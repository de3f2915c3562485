"""BERT: embeddings, encoder, pooler and heads, written to be read beside the paper.

Devlin et al. 2019 (arXiv 1810.04805) on the encoder of Vaswani et al. 2017 (arXiv 1706.03762,
section 3). Module names follow Hugging Face Transformers, so that its state dicts load as they are.

Every model takes a padded grid, `input_ids` (batch, length) with `attention_mask`, or a packed
batch, `input_ids` (tokens,) with `lengths` (sequences,): texts end to end and no padding anywhere.

    model = BertForSequenceClassification.from_pretrained("all-MiniLM-L6-v2", num_labels=3)
    logits = model(**tokenizer("An example.", return_tensors="pt")).logits   # (1, 3)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from filbert.model.activation import ACTIVATION
from filbert.model.attention import PackedLayout, PaddedLayout, attention
from filbert.model.config import BertConfig
from filbert.model.dropout import dropout
from filbert.model.graphs import Graphs
from filbert.model.inputs import Layout, open_inputs
from filbert.model.losses import label_loss, token_loss
from filbert.model.outputs import ModelOutput
from filbert.model.pretrained import PretrainedModel
from filbert.model.word_loss import word_loss

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
]


class BertEmbeddings(nn.Module):
    """Token + position + segment embeddings, normalised (BERT paper, figure 2)."""

    each_token_alone = True  # and may be compiled, see `compile_parts`

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(
            config.vocab_size, width, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout_prob = config.hidden_dropout_prob
        if config.factorised:
            self.embedding_projection = nn.Linear(width, config.hidden_size)

    def forward(self, words: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """words: (..., width) looked up already; the others: (...) int64. Returns (..., hidden)."""
        total = (
            words
            + self.token_type_embeddings(token_type_ids)
            + self.position_embeddings(position_ids)
        )
        hidden = dropout(
            self.LayerNorm(total), self.dropout_prob if self.training else 0.0
        )  # (..., width)
        if hasattr(self, "embedding_projection"):
            hidden = self.embedding_projection(hidden)  # (..., width) -> (..., hidden)
        return hidden


class BertSelfAttention(nn.Module):
    """Queries, keys and values of all heads, then attention (Vaswani et al., section 3.2.2)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_prob = config.attention_probs_dropout_prob

    def forward(
        self, hidden: Tensor, layout: Layout, asking: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`asking`: the tokens whose context is wanted, where it is not that of all."""
        parts = [self.key, self.value] if asking is not None else [self.query, self.key, self.value]
        # one multiplication for all projections: (..., hidden) -> (..., 3 * hidden)
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        heads = F.linear(hidden, weight, bias).unflatten(-1, (-1, self.num_heads, self.head_size))
        *query, key, value = heads.unbind(-3)  # each (..., heads, head_size)
        if asking is not None:
            query = [self.query(asking).unflatten(-1, (self.num_heads, self.head_size))]
        drop = self.dropout_prob if self.training else 0.0
        context, weights = attention(query[0], key, value, layout, dropout=drop)
        return context.flatten(-2), weights  # (..., heads, head_size) -> (..., hidden)


class AddAndNorm(nn.Module):
    """Linear, dropout, add the residual, normalise: LayerNorm(x + Sublayer(x)), section 3.1."""

    each_token_alone = True

    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_prob = config.hidden_dropout_prob

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        update = dropout(self.dense(inner), self.dropout_prob if self.training else 0.0)
        out: Tensor = self.LayerNorm(residual + update)  # (..., hidden)
        return out


class BertAttention(nn.Module):
    """Multi-head attention with its output projection W^O."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = AddAndNorm(config.hidden_size, config)

    def forward(
        self,
        hidden: Tensor,
        layout: Layout,
        asking: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        context, weights = self.self(hidden, layout, asking)
        if wanted is not None:  # from here on tokens no longer meet
            context, hidden = context.index_select(0, wanted), hidden.index_select(0, wanted)
        return self.output(context, hidden if asking is None else asking), weights


class BertIntermediate(nn.Module):
    """The inner half of the feed-forward network: act(x W1 + b1), section 3.3."""

    each_token_alone = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATION[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))  # (..., hidden) -> (..., intermediate)


class BertLayer(nn.Module):
    """One block: attention, then feed-forward, each with its residual and norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = AddAndNorm(config.intermediate_size, config)

    def forward(
        self,
        hidden: Tensor,
        layout: Layout,
        first: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`first`: (sequences,) places of first tokens; then only theirs are computed: what a head
        on the first token needs of the last layer. The others serve as keys and values.
        `wanted`: (n,) places of the tokens whose result is needed, all queries being asked."""
        asking = None if first is None else hidden.index_select(0, first)
        hidden, weights = self.attention(hidden, layout, asking, wanted)
        return self.output(self.intermediate(hidden), hidden), weights


class BertEncoder(nn.Module):
    """The stack of blocks. `gradient_checkpointing` recomputes each block in the backward pass."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.graphs: Graphs | None = None  # on a GPU, for answers alone

    def forward(
        self,
        hidden: Tensor,
        layout: Layout,
        *,
        keep_states: bool,
        first: Tensor | None,
        wanted: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor | None, ...]]:
        if self.training and not keep_states and isinstance(layout, PackedLayout):
            from filbert.model.native_train import run_stack, stack_of

            stack = stack_of(self, hidden, layout.lengths)
            if stack is not None:
                places = first if first is not None else wanted
                return run_stack(stack, self, hidden, layout.lengths, places), None, ()
        graphs = None if self.training or keep_states else self.graphs
        if graphs is not None and isinstance(layout, PackedLayout):
            out = graphs(self.layer, hidden, layout)
            if out is not None:
                places = first if first is not None else wanted
                return out if places is None else out.index_select(0, places), None, ()
        states, maps = [hidden], []
        for layer in self.layer:
            asked = (first, wanted) if layer is self.layer[-1] else (None, None)
            if self.gradient_checkpointing and self.training:
                hidden, weights = checkpoint(layer, hidden, layout, *asked, use_reentrant=False)
            else:
                hidden, weights = layer(hidden, layout, *asked)
            maps.append(weights)
            if keep_states:
                states.append(hidden)
        return hidden, tuple(states) if keep_states else None, tuple(maps)


class BertPooler(nn.Module):
    """The first token's state through a tanh layer: the vector that stands for the sequence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))  # (sequences, hidden)


class BertModel(PretrainedModel):
    """The encoder. Without a pooling layer (`add_pooling_layer=False`) `pooler_output` is None."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.attention_path = "packed"  # "eager" or "sdpa" force that path for padded batches
        self.initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        first_only: bool = False,
        predict_at: Tensor | None = None,
    ) -> ModelOutput:
        """Encode a batch.

        Padded: `input_ids` (batch, length) int64; `attention_mask` 1 for real tokens, (batch,
        length), or (batch, length, length) for a mask of each query's own.
        Packed: `input_ids` (tokens,) and `lengths` (sequences,) int64 that sum to tokens.
        `inputs_embeds` (..., embedding_size) may stand in for `input_ids`.

        Returns `last_hidden_state` (batch, length, hidden) or (tokens, hidden), `pooler_output`
        (sequences, hidden), and if asked `hidden_states` (layers + 1 of them) and `attentions`
        (layers, each (batch, heads, length, length); padded batches only). With `first_only` a
        packed batch gives `last_hidden_state` (sequences, hidden), of each first token, and the
        last layer is computed for them alone: 14 % less work in 6 layers, the same numbers.
        With `predict_at` (n,) int64, places in the row of a packed batch, `last_hidden_state` is
        (n, hidden), of those tokens, and the feed-forward part of the last layer is computed for
        them and for first tokens alone; it goes with neither of `first_only` and
        `output_hidden_states`.
        Raises `FilbertError` for ids outside the vocabulary or a text over the model's length.
        """
        words, layout, places = open_inputs(
            self.embeddings.word_embeddings, vocab_size=self.config.vocab_size,
            input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
            token_type_ids=token_type_ids, position_ids=position_ids, lengths=lengths,
            predict_at=predict_at, first_only=first_only, path=self.attention_path,
            output_hidden_states=output_hidden_states, output_attentions=output_attentions,
            longest_allowed=self.config.max_position_embeddings,
        )  # fmt: skip
        only, wanted = None, predict_at
        if isinstance(layout, PackedLayout):
            if first_only and not output_hidden_states:
                only = layout.first
            if wanted is not None and self.pooler is not None:
                wanted = torch.cat([layout.first, wanted])
        if token_type_ids is None:
            token_type_ids = torch.zeros(words.shape[:-1], dtype=torch.int64, device=words.device)
        hidden = self.embeddings(words, token_type_ids, places)  # (..., hidden)
        hidden, states, maps = self.encoder(
            hidden, layout, keep_states=output_hidden_states, first=only, wanted=wanted
        )
        pooled = None
        if self.pooler is not None:
            if isinstance(layout, PaddedLayout):
                heads = hidden[:, 0]
            elif wanted is not None:
                texts = len(layout.first)
                heads, hidden = hidden[:texts], hidden[texts:]
            else:
                heads = hidden if only is not None else hidden.index_select(0, layout.first)
            pooled = self.pooler(heads)  # (sequences, hidden)
        return ModelOutput(
            last_hidden_state=hidden,
            pooler_output=pooled,
            hidden_states=states,
            attentions=maps if output_attentions else None,
        )


class BertLMHead(nn.Module):
    """Masked-word predictions: dense, activation, norm, then the embedding matrix again (tied)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.transform = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, width),
                "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
            }
        )
        self.activation = ACTIVATION[config.hidden_act]
        self.decoder = nn.Linear(width, config.vocab_size, bias=False)  # weight tied by the model
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self._transformed(hidden)
        return F.linear(
            hidden, self.decoder.weight, self.bias
        )  # (..., hidden) -> (..., vocabulary)

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy of (masked, hidden) states against (masked,) words, float32, and
        how many words come out first; the logits are not kept where they need not be."""
        return word_loss(self._transformed(hidden), self.decoder.weight, self.bias, labels)

    def _transformed(self, hidden: Tensor) -> Tensor:
        return self.transform["LayerNorm"](self.activation(self.transform["dense"](hidden)))


class PreTrainingHeads(nn.Module):
    """`predictions` for masked words and, where asked for, `seq_relationship` for next sentence."""

    def __init__(self, config: BertConfig, *, next_sentence: bool) -> None:
        super().__init__()
        self.predictions = BertLMHead(config)
        if next_sentence:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


class BertForPreTraining(PretrainedModel):
    """Masked words and next sentence, the two tasks of section 3.1 of the BERT paper."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = PreTrainingHeads(config, next_sentence=True)
        self.initialise()

    def tie_weights(self) -> None:
        """One matrix for reading words and for predicting them."""
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        labels_at: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Takes what `BertModel.forward` takes, and `labels`, shaped as `input_ids`, -100 where
        nothing is predicted; `next_sentence_label`: (sequences,), 0 where B follows A, else 1.
        Returns `loss` (sum of the two means) if both are given, `prediction_logits`
        (..., vocabulary), `seq_relationship_logits` (sequences, 2). For training: `labels_at`
        (masked,) int64, the words at the places `predict_at`; then `word_loss`, their summed
        loss, and `words_right`, how many were guessed, come in place of `prediction_logits`."""
        out = self.bert(*inputs, **options)
        follows = self.cls.seq_relationship(out.pooler_output)
        if labels_at is not None:
            loss, right = self.cls.predictions.loss(out.last_hidden_state, labels_at)
            return ModelOutput(word_loss=loss, words_right=right, seq_relationship_logits=follows)
        words = self.cls.predictions(out.last_hidden_state)
        total = None
        if labels is not None and next_sentence_label is not None:
            total = token_loss(words, labels) + F.cross_entropy(
                follows.float(), next_sentence_label.view(-1)
            )
        return ModelOutput(
            loss=total,
            prediction_logits=words,
            seq_relationship_logits=follows,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class BertForMaskedLM(PretrainedModel):
    """Masked words alone."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = PreTrainingHeads(config, next_sentence=False)
        self.initialise()

    def tie_weights(self) -> None:
        """One matrix for reading words and for predicting them."""
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        labels_at: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Takes what `BertModel.forward` takes, and `labels`, shaped as `input_ids`, -100 where
        nothing is predicted. Returns `loss` if they are given, `logits` (..., vocabulary).
        `labels_at`: as for `BertForPreTraining`."""
        out = self.bert(*inputs, **options)
        if labels_at is not None:
            loss, right = self.cls.predictions.loss(out.last_hidden_state, labels_at)
            return ModelOutput(word_loss=loss, words_right=right)
        logits = self.cls.predictions(out.last_hidden_state)
        return ModelOutput(
            loss=None if labels is None else token_loss(logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class BertForSequenceClassification(PretrainedModel):
    """A label, several or a number for each text: dropout and one layer on the pooled vector."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        own = config.classifier_dropout
        self.dropout_prob = config.hidden_dropout_prob if own is None else own
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialise()

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **options: Any) -> ModelOutput:
        """Takes what `BertModel.forward` takes, and `labels`: (sequences,) int64 classes;
        (sequences, labels) 0/1 for several labels; (sequences,) float for regression
        (`config.problem_type` decides, else the labels' type). Returns `loss` if they are given,
        `logits` (sequences, labels)."""
        out = self.bert(*inputs, first_only=True, **options)
        logits = self.classifier(
            dropout(out.pooler_output, self.dropout_prob if self.training else 0.0)
        )
        return ModelOutput(
            loss=None if labels is None else label_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class BertForTokenClassification(PretrainedModel):
    """A label for each token: dropout and one layer on its state (BERT paper, section 5.3)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        own = config.classifier_dropout
        self.dropout_prob = config.hidden_dropout_prob if own is None else own
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialise()

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **options: Any) -> ModelOutput:
        """Takes what `BertModel.forward` takes, and `labels`, shaped as `logits` but for the last
        axis, -100 where nothing is learned. Returns `loss` if they are given, `logits`
        (..., labels): of all tokens, or with `predict_at` (n,) of those alone."""
        out = self.bert(*inputs, **options)
        states = dropout(out.last_hidden_state, self.dropout_prob if self.training else 0.0)
        logits = self.classifier(states)
        return ModelOutput(
            loss=None if labels is None else token_loss(logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
