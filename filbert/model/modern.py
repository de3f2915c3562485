"""ModernBERT: the encoder option beside `bert.py`, written to be read beside the paper.

Warner et al. 2024 (arXiv 2412.13663, section 2.1). What differs from BERT: rotary positions instead
of a table (Su et al. 2021, arXiv 2104.09864), a norm before each sublayer instead of after it, a
gated feed-forward layer (GeGLU, Shazeer 2020, arXiv 2002.05202), no biases, no token types, and
attention that sees the whole text in every third layer alone and a window of 128 tokens in the
others, up to 8,192 tokens. Module names follow Hugging Face Transformers.

Every model takes what those of `bert.py` take: a padded grid with `attention_mask`, or a packed
batch, `input_ids` (tokens,) with `lengths`. `token_type_ids` are accepted and have no effect.

    model = ModernBertForMaskedLM(ModernBertConfig(num_hidden_layers=4, hidden_size=256, ...))
    logits = model(input_ids, lengths=lengths).logits            # (tokens, vocabulary)

tests/numerics/test_modern_parity.py compares with `transformers`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from filbert.errors import FilbertError
from filbert.model.activation import ACTIVATION
from filbert.model.attention import PackedLayout, attention
from filbert.model.config import EncoderConfig
from filbert.model.dropout import dropout
from filbert.model.inputs import Layout as BatchLayout
from filbert.model.inputs import open_inputs
from filbert.model.losses import label_loss, token_loss
from filbert.model.modern_config import GLOBAL, LOCAL, ModernBertConfig
from filbert.model.outputs import ModelOutput
from filbert.model.pretrained import PretrainedModel
from filbert.model.window import LocalLayout, local_layout, window_attention
from filbert.model.word_loss import word_loss

__all__ = [
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "ModernBertModel",
]

Layout = BatchLayout | LocalLayout
Angles = tuple[Tensor, Tensor]  # cosines and sines, each (..., 1, head_size / 2) float32


def rotary_angles(places: Tensor, *, theta: float, head_size: int) -> Angles:
    """How far each pair of numbers turns at each place: place / theta^(2 i / head_size).

    places: (...) integers. Returns cosines and sines, (..., 1, head_size / 2) float32: one for all
    heads. Always float32, since bfloat16 cannot tell place 8,000 from 8,001.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=places.device) / head_size
    angles = places.unsqueeze(-1).float() * (1.0 / theta**exponents)
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(heads: Tensor, angles: Angles) -> Tensor:
    """Turn number i of each head together with number i + head_size / 2. (..., heads, head_size)"""
    cos, sin = angles
    a, b = heads.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(heads.dtype)


def norm(config: ModernBertConfig) -> nn.LayerNorm:
    """A layer norm as this model has them: a scale and, as a rule, no bias."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


class ModernBertEmbeddings(nn.Module):
    """Token embeddings, normalised. Positions come in by rotation, in every layer."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.norm = norm(config)
        self.dropout_prob = config.embedding_dropout

    def forward(self, words: Tensor) -> Tensor:
        return dropout(self.norm(words), self.dropout_prob if self.training else 0.0)


class ModernBertAttention(nn.Module):
    """Queries, keys and values of all heads in one matrix, rotated; then attention."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        self.Wqkv = nn.Linear(width, 3 * width, bias=config.attention_bias)
        self.Wo = nn.Linear(width, width, bias=config.attention_bias)
        self.dropout_prob = config.attention_dropout

    def forward(
        self, hidden: Tensor, layout: Layout, angles: Angles
    ) -> tuple[Tensor, Tensor | None]:
        drop = self.dropout_prob if self.training else 0.0
        heads = self.Wqkv(hidden).unflatten(-1, (3, self.num_heads, self.head_size))
        query, key, value = heads.unbind(-3)  # each (..., heads, head_size)
        query, key, weights = rotate(query, angles), rotate(key, angles), None
        if isinstance(layout, LocalLayout):
            context = window_attention(query, key, value, layout, dropout=drop)
        else:
            context, weights = attention(query, key, value, layout, dropout=drop)
        return dropout(self.Wo(context.flatten(-2)), drop), weights  # (..., hidden)


class ModernBertMLP(nn.Module):
    """The gated feed-forward layer: Wo(act(x W) * (x V)), W and V in one matrix."""

    each_token_alone = True

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.Wi = nn.Linear(config.hidden_size, 2 * inner, bias=config.mlp_bias)
        self.Wo = nn.Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACTIVATION[config.hidden_activation]
        self.dropout_prob = config.mlp_dropout

    def forward(self, hidden: Tensor) -> Tensor:
        inner, gate = self.Wi(hidden).chunk(2, dim=-1)  # each (..., intermediate)
        inner = dropout(self.activation(inner) * gate, self.dropout_prob if self.training else 0.0)
        out: Tensor = self.Wo(inner)  # (..., hidden)
        return out


class ModernBertLayer(nn.Module):
    """One block: x + attention(norm(x)), then x + feed-forward(norm(x)). The first block's input
    comes from the norm of the embeddings, so its attention needs none of its own."""

    def __init__(self, config: ModernBertConfig, number: int) -> None:
        super().__init__()
        self.attn_norm = norm(config) if number else nn.Identity()
        self.attn = ModernBertAttention(config)
        self.mlp_norm = norm(config)
        self.mlp = ModernBertMLP(config)

    def forward(
        self, hidden: Tensor, layout: Layout, angles: Angles, wanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`wanted`: (n,) places of the tokens whose result is needed, of a packed batch."""
        update, weights = self.attn(self.attn_norm(hidden), layout, angles)
        hidden = hidden + update
        if wanted is not None:  # from here on tokens no longer meet
            hidden = hidden.index_select(0, wanted)  # (n, hidden)
        return hidden + self.mlp(self.mlp_norm(hidden)), weights


class ModernBertPretrained(PretrainedModel):
    """What the three models share: their configuration, and how fresh weights are drawn."""

    config_class: ClassVar[type[EncoderConfig]] = ModernBertConfig
    words_name: ClassVar[str] = "tok_embeddings"
    config: ModernBertConfig

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw fresh weights as Transformers does: a truncated normal whose deviation shrinks with
        the depth where a residual is written (Megatron), zero biases; then tie what is tied."""
        config = self.config
        written = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
        deviation = {
            **dict.fromkeys(("tok_embeddings", "Wqkv", "Wi"), config.initializer_range),
            **dict.fromkeys(("Wo", "dense", "decoder"), written),
            "classifier": config.hidden_size**-0.5,
        }
        for name, module in self.named_modules():
            if name.startswith("model."):  # drawn by its own constructor
                continue
            if isinstance(module, nn.Linear | nn.Embedding):
                std = deviation[name.rpartition(".")[2]]
                far = config.initializer_cutoff_factor * std
                nn.init.trunc_normal_(module.weight, std=std, a=-far, b=far)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
        self.tie_weights()


class ModernBertModel(ModernBertPretrained):
    """The encoder."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(
            ModernBertLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.final_norm = norm(config)
        self.attention_path = "packed"  # "eager" or "sdpa" force that path for padded batches
        self.gradient_checkpointing = False
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
        """Encode a batch, padded or packed, as `BertModel.forward` describes it.

        `token_type_ids` have no effect. `position_ids` turn the rotation; the window of the local
        layers counts places in the batch. With `first_only` a packed batch gives
        `last_hidden_state` (sequences, hidden), of each first token; it saves nothing here.

        Returns `last_hidden_state` (batch, length, hidden) or (tokens, hidden), and if asked
        `hidden_states` (layers + 1, the last one after the final norm) and `attentions` (layers,
        each (batch, heads, length, length); padded batches only).
        Raises `FilbertError` for ids outside the vocabulary or a text over the model's length.
        """
        words, layout, places = open_inputs(
            self.embeddings.tok_embeddings, vocab_size=self.config.vocab_size,
            input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
            token_type_ids=None, position_ids=position_ids, lengths=lengths,
            predict_at=predict_at, first_only=first_only, path=self.attention_path,
            output_hidden_states=output_hidden_states, output_attentions=output_attentions,
            longest_allowed=self.config.max_position_embeddings,
        )  # fmt: skip
        shape, device = words.shape[:-1], words.device
        kinds = self.config.kinds
        angles = {
            kind: rotary_angles(
                places, theta=self.config.theta(kind), head_size=self.config.head_size
            )
            for kind in set(kinds)
        }
        reach = self.config.local_attention // 2
        seen: dict[str, Layout] = {GLOBAL: layout}
        if LOCAL in kinds:
            seen[LOCAL] = local_layout(layout, reach=reach, shape=shape, device=device)
        hidden = self.embeddings(words)  # (..., hidden)
        states, maps = [hidden], []
        for layer, kind in zip(self.layers, kinds, strict=True):
            wanted = predict_at if layer is self.layers[-1] else None
            inputs = (hidden, seen[kind], angles[kind], wanted)
            if self.gradient_checkpointing and self.training:
                hidden, weights = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                hidden, weights = layer(*inputs)
            maps.append(weights)
            states.append(hidden)
        hidden = states[-1] = self.final_norm(hidden)
        if first_only and isinstance(layout, PackedLayout):
            hidden = hidden.index_select(0, layout.first)  # (sequences, hidden)
        return ModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(maps) if output_attentions else None,
        )


class ModernBertHead(nn.Module):
    """Dense, activation, norm: before the words' matrix, and before a classifier."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense = nn.Linear(width, width, bias=config.classifier_bias)
        self.activation = ACTIVATION[config.classifier_activation]
        self.norm = norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(self.activation(self.dense(hidden)))
        return out


class ModernBertForMaskedLM(ModernBertPretrained):
    """Masked words, the one task that this model is pre-trained with."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.model = ModernBertModel(config)
        self.head = ModernBertHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        self.initialise()

    def tie_weights(self) -> None:
        """One matrix for reading words and for predicting them."""
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        labels_at: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Takes what `ModernBertModel.forward` takes, and `labels`, shaped as `input_ids`, -100
        where nothing is predicted. Returns `loss` if they are given, `logits` (..., vocabulary).
        With `predict_at` (masked,) int64, places in a packed batch, words are predicted there
        alone: `logits` (masked, vocabulary), and `labels` is (masked,). `labels_at`: as for
        `BertForPreTraining`."""
        out = self.model(*inputs, **options)
        hidden = self.head(out.last_hidden_state)
        if labels_at is not None:
            bias = self.decoder.bias
            if bias is None:
                bias = hidden.new_zeros(len(self.decoder.weight))
            loss, right = word_loss(hidden, self.decoder.weight, bias, labels_at)
            return ModelOutput(word_loss=loss, words_right=right)
        logits = self.decoder(hidden)  # (..., vocabulary)
        return ModelOutput(
            loss=None if labels is None else token_loss(logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class ModernBertForSequenceClassification(ModernBertPretrained):
    """A label, several or a number for each text, from its first token or the mean of all."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.model = ModernBertModel(config)
        self.head = ModernBertHead(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout_prob = config.classifier_dropout
        self.initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *inputs: Tensor,
        labels: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Takes what `ModernBertModel.forward` takes, and `labels` as
        `BertForSequenceClassification` does. Returns `loss` if they are given, `logits`
        (sequences, labels)."""
        options.pop("first_only", None)
        out = self.model(input_ids, attention_mask, *inputs, **options)
        pooled = self._pool(out.last_hidden_state, attention_mask, options.get("lengths"))
        pooled = dropout(self.head(pooled), self.dropout_prob if self.training else 0.0)
        logits = self.classifier(pooled)
        return ModelOutput(
            loss=None if labels is None else label_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    def _pool(self, hidden: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        """(sequences, hidden): each text's first token, or the mean of its tokens."""
        if self.config.classifier_pooling == "cls":
            if lengths is None:
                return hidden[:, 0]
            lengths = lengths.to(hidden.device)
            return hidden.index_select(0, torch.cumsum(lengths, 0) - lengths)
        if lengths is not None:
            lengths = lengths.to(hidden.device)
            owner = torch.repeat_interleave(
                torch.arange(len(lengths), device=hidden.device), lengths
            )
            total = hidden.new_zeros(len(lengths), hidden.shape[-1], dtype=torch.float32)
            total = total.index_add(0, owner, hidden.float())
            return (total / lengths[:, None]).to(hidden.dtype)
        if mask is None:
            return hidden.mean(1)
        if mask.dim() != 2:
            raise FilbertError(
                "the mean over a text needs an attention_mask (batch, length) that says which "
                f"tokens are real; got {tuple(mask.shape)}"
            )
        real = mask.to(torch.float32)[..., None]  # (batch, length, 1)
        mean = (hidden.float() * real).sum(1) / real.sum(1).clamp_min(1.0)
        return mean.to(hidden.dtype)
