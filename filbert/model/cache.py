"""What a decoder remembers while it writes: keys and values of the source and of what is written.

A step computes one token of each text. The keys and values of a source are made once and serve all
its beams: the beams ask together, as several queries over the same keys. What the beams of a source
have written stands in one table, (rows, heads, steps * beams, head_size), to which each step only
adds. When beams are reordered nothing of it moves: `seen` says which entries a beam descends from,
and the others are masked. A row that is finished is overwritten by the last one, so that the rows
at work always stand at the front and no step computes anything for the others.

    cache = Cache(model.decoder, model.encode(ids, lengths=lengths), lengths, beams=4)
    hidden = cache.step(tokens)            # (rows * beams,) -> (rows * beams, hidden)
    cache.reorder(parents)                 # (rows, beams): which beam each one goes on from

tests/numerics/test_generate_parity.py holds it to computing everything again at each step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from filbert.model.decoder import BertDecoder, DecoderLayer, make_grid

FIRST_ROOM = 16  # steps that there is room for at the beginning; it doubles when they are full


class Cache:
    """Keys and values of `rows` sources and of the `beams` texts that are written for each.

    states: (source tokens, hidden) packed, in the decoder's width; lengths: (rows,) int64.
    """

    def __init__(
        self, decoder: BertDecoder, states: Tensor, lengths: Tensor, *, beams: int
    ) -> None:
        self.decoder, self.beams = decoder, beams
        self.rows, self.steps, self.room = len(lengths), 0, FIRST_ROOM
        grid, _, held = make_grid(lengths)
        self.layers: list[DecoderLayer] = [*decoder.bert.encoder.layer]
        self.source: list[tuple[Tensor, Tensor]] = []  # each (rows, heads, source, head_size)
        self.projections: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            pair = layer.crossattention.project(states, "key", "value")
            key, value = (grid.lay(one).transpose(1, 2).contiguous() for one in pair)
            self.source.append((key, value))
            own = layer.attention.self
            parts = (own.query, own.key, own.value)
            self.projections.append(
                (torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
            )
        hidden = (
            None if held is None else states.new_zeros(held.shape).masked_fill(~held, -torch.inf)
        )
        self.across = None if hidden is None else hidden[:, None, None, :]  # (rows, 1, 1, source)
        heads, size = decoder.config.num_attention_heads, decoder.config.head_size
        shape = (2, self.rows, heads, self.room * beams, size)
        self.own = [states.new_empty(shape) for _ in self.layers]  # keys and values
        # (rows, beams, steps * beams): 0 for entries that a beam descends from, -inf for others
        self.seen = states.new_full((self.rows, beams, self.room * beams), -torch.inf)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each text, (rows * beams,) int64; returns (rows * beams, hidden)
        states, from which the next word is predicted."""
        if self.steps == self.room:
            self._grow()
        rows, beams = self.rows, self.beams
        start, end = self.steps * beams, (self.steps + 1) * beams
        mask = None
        if beams > 1:
            itself = torch.full((beams, beams), -torch.inf, device=tokens.device).fill_diagonal_(0)
            self.seen[:rows, :, start:end] = itself
            mask = self.seen[:rows, None, :, :end]
        across = None if self.across is None else self.across[:rows]
        places = torch.full_like(tokens, self.steps)
        hidden = self.decoder.bert.embed(tokens, places)  # (rows * beams, hidden)
        for number, layer in enumerate(self.layers):
            attend, look = layer.attention, layer.crossattention
            heads, size = attend.self.num_heads, attend.self.head_size
            made = F.linear(hidden, *self.projections[number])
            query, key, value = made.view(rows, beams, 3, heads, size).permute(2, 0, 3, 1, 4)
            keys, values = self.own[number][:, :rows]
            keys[:, :, start:end], values[:, :, start:end] = key, value
            context = F.scaled_dot_product_attention(
                query, keys[:, :, :end], values[:, :, :end], attn_mask=mask
            )  # (rows, heads, beams, head_size)
            hidden = attend.output(context.transpose(1, 2).reshape(len(hidden), -1), hidden)
            query = look.self.query(hidden).view(rows, beams, heads, size).transpose(1, 2)
            keys, values = self.source[number]
            context = F.scaled_dot_product_attention(
                query, keys[:rows], values[:rows], attn_mask=across
            )
            hidden = look.output(context.transpose(1, 2).reshape(len(hidden), -1), hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        self.steps += 1
        return hidden

    def reorder(self, parents: Tensor) -> None:
        """Let beam b of each row go on from beam parents[row, b]. parents: (rows, beams) int64."""
        if self.beams == 1:
            return
        end = self.steps * self.beams
        seen = self.seen[: self.rows, :, :end]
        self.seen[: self.rows, :, :end] = seen.gather(1, parents[:, :, None].expand(-1, -1, end))

    def keep(self, staying: Tensor) -> Tensor:
        """Let rows go. staying: (rows,) bool. Returns the new order, (rows that stay,) int64: row
        order[i] of before is row i from now on; whoever holds more about rows follows it."""
        stay = int(staying.sum())
        order = torch.arange(stay, device=staying.device)
        places = torch.arange(self.rows, device=staying.device)
        free, movers = places[:stay][~staying[:stay]], places[stay:][staying[stay:]]
        order[free] = movers
        self.rows = stay
        if len(free):
            end = self.steps * self.beams
            self.seen[free, :, :end] = self.seen[movers, :, :end]
            for own, source in zip(self.own, self.source, strict=True):
                own[:, free, :, :end] = own[:, movers, :, :end]
                for part in source:
                    part[free] = part[movers]
            if self.across is not None:
                self.across[free] = self.across[movers]
        return order

    def _grow(self) -> None:
        """Twice the room, for the rows that are left."""
        used = self.room * self.beams
        self.room *= 2
        for number, old in enumerate(self.own):
            shape = (2, self.rows, old.shape[2], self.room * self.beams, old.shape[4])
            self.own[number] = old.new_empty(shape)
            self.own[number][:, :, :, :used] = old[:, : self.rows]
        seen = self.seen.new_full((self.rows, self.beams, self.room * self.beams), -torch.inf)
        seen[:, :, :used] = self.seen[: self.rows]
        self.seen = seen
