"""What a decoder remembers while it writes: keys and values of the source and of what is written.

A step computes one token of each text. The keys and values of a source are made once and serve all
its beams: the beams ask together, as several queries over the same keys. What the beams of a source
have written stands in one table, (rows, heads, steps * beams, head_size), to which each step only
adds. When beams are reordered nothing of it moves: `path` says which entries a beam descends from.
PyTorch computes all entries and masks the others; the native library, where it serves
(`filbert.model.native_write`), walks along the path. A row that is finished is overwritten by the
last one, so that the rows at work always stand at the front and no step computes anything for the
others.

    cache = Cache(model.decoder, model.encode(ids, lengths=lengths), lengths, beams=4)
    logits, totals = cache.words(tokens)   # (rows * beams,) -> (rows * beams, words) and (...,)
    cache.reorder(parents)                 # (rows, beams): which beam each one goes on from

tests/numerics/test_generate_parity.py holds it to computing everything again at each step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from filbert.model import native_write
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
        self.native = native_write.serve(decoder, states, lengths)
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
        # (rows, beams, steps): the entry of each step that a beam descends from
        self.path = lengths.new_zeros((self.rows, beams, self.room), dtype=torch.int64)
        self.lengths = lengths.to(torch.int64).clone()

    def words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read one more token of each text, (rows * beams,) int64; returns the logits of the words
        that may come next, (rows * beams, words) float32, good until the next call, and of each
        text the logarithm of the sum of their exponentials, (rows * beams,)."""
        if self.native is None or not self.native.whole:
            logits = self.decoder.cls.predictions(self.step(tokens)).float()
            if self.native is not None:
                return logits, self.native.totals(logits)
            return logits, torch.logsumexp(logits, -1)
        self._begin()
        hidden = self.decoder.bert.embed(tokens, torch.full_like(tokens, self.steps))
        made = self.native.step(
            hidden, self.own, self.source, self.path, self.lengths, step=self.steps
        )
        self.steps += 1
        return made

    def step(self, tokens: Tensor) -> Tensor:
        """The same without the word head: (rows * beams, hidden) states, from which the next word
        is predicted. The slow twin of the native library's step."""
        self._begin()
        rows, beams = self.rows, self.beams
        native = None if self.native is None or self.native.whole else self.native
        start, end = self.steps * beams, (self.steps + 1) * beams
        mask = None
        if beams > 1 and native is None:
            path = self.path[:rows, :, : self.steps + 1]
            mask = self.own[0].new_full((rows, beams, end), -torch.inf).scatter_(2, path, 0.0)
            mask = mask[:, None]
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
            if native is not None:
                flat = native.attend(
                    made[:, : heads * size], keys, values,
                    beams=beams, path=self.path, entries=self.steps + 1,
                )  # fmt: skip
            else:
                context = F.scaled_dot_product_attention(
                    query, keys[:, :, :end], values[:, :, :end], attn_mask=mask
                )  # (rows, heads, beams, head_size)
                flat = context.transpose(1, 2).reshape(len(hidden), -1)
            hidden = attend.output(flat, hidden)
            asked = look.self.query(hidden)
            keys, values = self.source[number]
            if native is not None:
                flat = native.attend(asked, keys, values, beams=beams, lengths=self.lengths)
            else:
                query = asked.view(rows, beams, heads, size).transpose(1, 2)
                context = F.scaled_dot_product_attention(
                    query, keys[:rows], values[:rows], attn_mask=across
                )
                flat = context.transpose(1, 2).reshape(len(hidden), -1)
            hidden = look.output(flat, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        self.steps += 1
        return hidden

    def reorder(self, parents: Tensor) -> None:
        """Let beam b of each row go on from beam parents[row, b]. parents: (rows, beams) int64."""
        if self.beams == 1:
            return
        path = self.path[: self.rows, :, : self.steps]
        self.path[: self.rows, :, : self.steps] = path.gather(
            1, parents[:, :, None].expand_as(path)
        )

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
            self.path[free] = self.path[movers]
            self.lengths[free] = self.lengths[movers]
            for own, source in zip(self.own, self.source, strict=True):
                own[:, free, :, :end] = own[:, movers, :, :end]
                for part in source:
                    part[free] = part[movers]
            if self.across is not None:
                self.across[free] = self.across[movers]
        return order

    def _begin(self) -> None:
        """Room for a step, in which each text sees itself."""
        if self.steps == self.room:
            self._grow()
        first, device = self.steps * self.beams, self.path.device
        self.path[:, :, self.steps] = torch.arange(first, first + self.beams, device=device)

    def _grow(self) -> None:
        """Twice the room, for the rows that are left."""
        used = self.room * self.beams
        self.room *= 2
        for number, old in enumerate(self.own):
            shape = (2, self.rows, old.shape[2], self.room * self.beams, old.shape[4])
            self.own[number] = old.new_empty(shape)
            self.own[number][:, :, :, :used] = old[:, : self.rows]
        path = self.path.new_zeros((self.rows, self.beams, self.room))
        path[:, :, : self.steps] = self.path[: self.rows]
        self.path = path
