"""Training with only the embedding rows that occur in the data; the others cannot learn from it.

A row whose token is in no text has a zero gradient at every step. AdamW then leaves its moments
zero and only decays it: w <- w * (1 - lr * decay), the same factor for all such rows. So the rows
that occur are trained in a small matrix, the others are multiplied by the product of the factors
at the end, and the result is that of the whole matrix (up to the rounding of that product). For
MiniLM on a small data set this halves the weights that each step has to visit.
tests/numerics/test_optim.py holds it to the whole matrix.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from filbert.data.packing import Encoded, Ids
from filbert.model.pretrained import PretrainedModel


class TrimmedEmbedding:
    """Swaps a model's word embedding for the rows in use, and back."""

    def __init__(self, encoder: PretrainedModel, *data: Encoded) -> None:
        """Keep only the rows of tokens that occur in `data`."""
        seen = np.zeros(encoder.config.vocab_size, dtype=bool)
        for encoded in data:
            seen[encoded.input_ids] = True
        if encoder.config.pad_token_id is not None:
            seen[encoder.config.pad_token_id] = True
        self.used: Ids = np.flatnonzero(seen)  # (kept rows,) their numbers in the vocabulary
        self._place = np.cumsum(seen, dtype=np.int32) - 1  # (vocabulary,) number among the kept
        self._encoder, self._config = encoder, encoder.config
        self._whole = encoder.get_input_embeddings()
        padding = self._whole.padding_idx
        small = nn.Embedding(
            len(self.used), self._whole.embedding_dim,
            padding_idx=None if padding is None else int(self._place[padding]),
        )  # fmt: skip
        with torch.no_grad():
            small.weight.copy_(self._whole.weight[torch.from_numpy(self.used)])
        encoder.set_input_embeddings(small)
        encoder.config = encoder.config.replace(
            vocab_size=len(self.used), pad_token_id=small.padding_idx
        )

    def encode(self, encoded: Encoded) -> Encoded:
        """The same texts with the numbers of the kept rows."""
        return dataclasses.replace(encoded, input_ids=self._place[encoded.input_ids])

    @torch.no_grad()
    def restore(self, decayed: float) -> None:
        """Put the trained rows back into the whole matrix; multiply the others by `decayed`."""
        small = self._encoder.get_input_embeddings().weight.detach().float().cpu()
        self._whole.weight.mul_(decayed)
        self._whole.weight[torch.from_numpy(self.used)] = small
        self._encoder.set_input_embeddings(self._whole)
        self._encoder.config = self._config
