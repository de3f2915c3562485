"""The decoder: a BERT whose tokens look back at themselves and across at a source text.

Each layer has causal self-attention, attention over the encoder's states, then feed-forward
(Vaswani et al. 2017, section 3.1). Everything but the two attentions is the module of
`filbert.model.bert`, and names follow `BertLMHeadModel` of Hugging Face Transformers, so that its
state dicts load as they are (Rothe et al. 2020, "Leveraging pre-trained checkpoints for sequence
generation").

Packed batches hold the tokens of all texts end to end on both sides: embeddings, projections,
feed-forward layers, norms and the word head see no padding. Attention alone lays them out as a
grid (`Grid`), since source and target of a pair differ in length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from filbert.errors import FilbertError
from filbert.model.attention import PaddedLayout, attention
from filbert.model.bert import (
    AddAndNorm,
    BertEmbeddings,
    BertIntermediate,
    BertLMHead,
    BertSelfAttention,
)
from filbert.model.config import BertConfig
from filbert.model.inputs import check_ids
from filbert.model.pretrained import PretrainedModel
from filbert.model.word_loss import word_loss


@dataclass(frozen=True)
class Grid:
    """Where tokens that lie end to end stand in a (texts, longest) grid.

    places: (tokens,) int64 in the flattened grid, None where all texts are equally long, so that
    the grid is a view.
    """

    places: Tensor | None
    texts: int
    longest: int

    def lay(self, tokens: Tensor) -> Tensor:
        """(tokens, ...) -> (texts, longest, ...), zeros where a text is over."""
        if self.places is not None:
            room = tokens.new_zeros(self.texts * self.longest, *tokens.shape[1:])
            tokens = room.index_copy(0, self.places, tokens)
        return tokens.unflatten(0, (self.texts, self.longest))

    def take(self, grid: Tensor) -> Tensor:
        """(texts, longest, ...) -> (tokens, ...), the inverse of `lay`."""
        flat = grid.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


def make_grid(lengths: Tensor) -> tuple[Grid, Tensor, Tensor | None]:
    """The grid of texts of these lengths, each token's place in its text, (tokens,) int64, and
    which cells hold a token, (texts, longest) bool, None for all. lengths: (texts,) int64."""
    texts, longest = len(lengths), int(lengths.max())
    first = torch.cumsum(lengths, 0) - lengths
    owner = torch.repeat_interleave(torch.arange(texts, device=lengths.device), lengths)
    inside = torch.arange(len(owner), device=lengths.device) - first[owner]
    if int(lengths.min()) == longest:
        return Grid(None, texts, longest), inside, None
    held = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return Grid(owner * longest + inside, texts, longest), inside, held


@dataclass(frozen=True)
class PairLayout:
    """Who may look at whom. own: targets at targets, (texts or 1, 1, target, target) bool; across:
    targets at sources, (texts, 1, 1, source) bool, None for all; target, source: the grids of a
    packed batch, None where the batch is a padded grid already; path: of `attention`."""

    own: Tensor
    across: Tensor | None
    target: Grid | None
    source: Grid | None
    path: str


def causal_mask(length: int, device: torch.device) -> Tensor:
    """(1, 1, length, length) bool: a token sees itself and those before it."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril_()[None, None]


class DecoderAttention(nn.Module):
    """Multi-head attention over the target itself or, given `states`, over the source."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)  # its projections; the attention is done here
        self.output = AddAndNorm(config.hidden_size, config)

    def project(self, inputs: Tensor, *names: str) -> list[Tensor]:
        """(..., hidden) by each of `query`, `key`, `value` -> (..., heads, head_size), in one
        multiplication."""
        parts: list[nn.Linear] = [getattr(self.self, name) for name in names]
        if len(parts) == 1:
            made = parts[0](inputs)
        else:
            weight = torch.cat([part.weight for part in parts])
            made = F.linear(inputs, weight, torch.cat([part.bias for part in parts]))
        heads = made.unflatten(-1, (len(parts), self.self.num_heads, self.self.head_size))
        return list(heads.unbind(-3))

    def forward(
        self, hidden: Tensor, states: Tensor | None, layout: PairLayout
    ) -> tuple[Tensor, Tensor | None]:
        """hidden: (target tokens, hidden) or (texts, target, hidden); states: the source's, the
        same way. Returns hidden states and, on the eager path, the weights (texts, heads, target,
        keys)."""
        if states is None:
            query, key, value = self.project(hidden, "query", "key", "value")
            keys = layout.target
        else:
            (query,) = self.project(hidden, "query")
            key, value = self.project(states, "key", "value")
            keys = layout.source
        mask = layout.own if states is None else layout.across
        if layout.target is not None and keys is not None:
            query, key, value = layout.target.lay(query), keys.lay(key), keys.lay(value)
        drop = self.self.dropout_prob if self.training else 0.0
        context, weights = attention(
            query, key, value, PaddedLayout(mask, layout.path), dropout=drop
        )
        if layout.target is not None:
            context = layout.target.take(context)
        return self.output(context.flatten(-2), hidden), weights


class DecoderLayer(nn.Module):
    """Self-attention, attention over the source, feed-forward, each with its residual and norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = DecoderAttention(config)
        self.crossattention = DecoderAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = AddAndNorm(config.intermediate_size, config)

    def forward(
        self, hidden: Tensor, states: Tensor, layout: PairLayout
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Hidden states, and the weights of self- and cross-attention on the eager path."""
        hidden, own = self.attention(hidden, None, layout)
        hidden, across = self.crossattention(hidden, states, layout)
        return self.output(self.intermediate(hidden), hidden), own, across


class DecoderStack(nn.Module):
    """The layers one after another."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(
        self, hidden: Tensor, states: Tensor, layout: PairLayout
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
        """Hidden states, and the weights of self- and cross-attention of each layer."""
        own, across = [], []
        for layer in self.layer:
            if self.gradient_checkpointing and self.training:
                hidden, *maps = checkpoint(layer, hidden, states, layout, use_reentrant=False)
            else:
                hidden, *maps = layer(hidden, states, layout)
            own.append(maps[0])
            across.append(maps[1])
        return hidden, own, across


class DecoderBert(nn.Module):
    """Embeddings and layers of the decoder."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.encoder = DecoderStack(config)  # the name that Transformers gives it

    def embed(self, ids: Tensor, places: Tensor) -> Tensor:
        """(...) ids at `places` of their texts -> (..., hidden)."""
        words = self.embeddings.word_embeddings(ids)
        made: Tensor = self.embeddings(words, torch.zeros_like(ids), places)
        return made


class WordHead(BertLMHead):
    """The word head of a masked language model, here for the next word."""

    def next_word_loss(
        self, hidden: Tensor, labels: Tensor, *, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy of (tokens, hidden) states against (tokens,) words, float32, and
        how many words come out first. smoothing: probability that is spread over all words."""
        return word_loss(
            self._transformed(hidden), self.decoder.weight, self.bias, labels, smoothing=smoothing
        )


class WordHeads(nn.Module):
    """Holds the word head under the name it has in checkpoints."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = WordHead(config)


class BertDecoder(PretrainedModel):
    """A BERT that writes: next-word logits for target tokens, given the states of a source."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = DecoderBert(config)
        self.cls = WordHeads(config)
        self.initialise()

    def tie_weights(self) -> None:
        """One matrix for reading words and for predicting them."""
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    @property
    def base_model(self) -> PretrainedModel:
        """Itself: there is no encoder in it."""
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The matrix that target words are read with."""
        return self.bert.embeddings.word_embeddings

    def set_input_embeddings(self, matrix: nn.Embedding) -> None:
        """Read target words with another matrix; `tie_weights` lets the word head follow."""
        self.bert.embeddings.word_embeddings = matrix

    def check(self, ids: Tensor, longest: int) -> None:
        """Raise `FilbertError` for ids outside the vocabulary or a text over the limit."""
        check_ids(ids, vocab_size=self.config.vocab_size)
        most = self.config.max_position_embeddings
        if longest > most:
            raise FilbertError(
                f"a target of {longest} tokens; this decoder takes at most {most}: cut it off, or "
                "choose a decoder with more positions"
            )

    def forward(
        self, input_ids: Tensor, places: Tensor, states: Tensor, layout: PairLayout
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
        """input_ids, places: (target tokens,) or (texts, target) int64; states: (source tokens,
        hidden) or (texts, source, hidden). Returns hidden states and the weights of self- and
        cross-attention, layer by layer, on the eager path."""
        hidden = self.bert.embed(input_ids, places)
        hidden, own, across = self.bert.encoder(hidden, states, layout)
        return hidden, own, across
