"""A model whose numbers another runtime computes, behind the same class and the same call.

`model_on` gives an object of the architecture's own class (`BertForSequenceClassification` ...)
without a single weight: a packed batch that it is called with is padded, handed to the runtime and
packed again. So everything that reads a model's answers works unchanged.

    model = model_on(open_runtime("onnxruntime", folder), BertForSequenceClassification, config)
    model(input_ids=ids, token_type_ids=types, lengths=lengths).logits      # (sequences, labels)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.config import EncoderConfig
from filbert.model.inputs import check_ids
from filbert.model.outputs import ModelOutput
from filbert.model.plain import OF_A_TEXT, OF_WORDS, OUTPUTS
from filbert.model.pretrained import PretrainedModel
from filbert.model.runtime import Arrays, Runtime

CELLS = 4096  # of a padded grid that is computed at once
CELLS_OF_WORDS = 1024  # where every cell has a number for each word of the vocabulary
WASTE = 1.25  # the longest text of a grid over its shortest, at most, and 8 tokens more

Ids = NDArray[np.int64]


def model_on(
    runtime: Runtime, kind: type[PretrainedModel], config: EncoderConfig
) -> PretrainedModel:
    """A `kind` that `runtime` computes. Raises `FilbertError` for a kind that is never exported."""
    if kind not in OUTPUTS:
        raise FilbertError(
            f"a {kind.__name__} runs in PyTorch alone; leave --core out. Other cores run "
            f"{', '.join(known.__name__ for known in OUTPUTS)}"
        )
    with torch.device("meta"):  # shapes alone
        model = kind(config)
    for module in model.modules():
        module._parameters.clear()
        module._buffers.clear()
    # an empty one says where the model is and in what type it computes
    model.register_parameter("nothing", nn.Parameter(torch.empty(0), requires_grad=False))
    model.forward = PackedCall(runtime, kind, config)
    return model.eval()


class PackedCall:
    """The call of a model on packed batches, computed by a runtime on padded ones."""

    def __init__(
        self, runtime: Runtime, kind: type[PretrainedModel], config: EncoderConfig
    ) -> None:
        self.runtime, self.config = runtime, config
        self.outputs = OUTPUTS[kind]
        self.of_a_text = issubclass(kind, OF_A_TEXT)
        self.of_words = issubclass(kind, OF_WORDS)
        self.cells = CELLS_OF_WORDS if self.of_words else CELLS

    def __call__(
        self,
        input_ids: Tensor,
        *,
        lengths: Tensor,
        token_type_ids: Tensor | None = None,
        predict_at: Tensor | None = None,
        first_only: bool = False,
    ) -> ModelOutput:
        """What the model of this class returns for a packed batch, see `BertModel.forward`: one
        row a text, a token, or with `predict_at` or `first_only` one for each of those tokens.
        Raises `FilbertError` for ids outside the vocabulary or a text over the model's length."""
        check_ids(input_ids, vocab_size=self.config.vocab_size)
        sizes: Ids = lengths.numpy()
        longest = self.config.max_position_embeddings
        if int(sizes.max()) > longest:
            raise FilbertError(
                f"a text of {int(sizes.max())} tokens; this model takes at most {longest}: "
                "tokenize with truncation=True or windows"
            )
        starts = np.cumsum(sizes) - sizes
        if first_only:
            places = starts
        elif predict_at is not None:
            places = predict_at.numpy()
        else:
            places = np.arange(len(input_ids))
        owners = np.searchsorted(starts, places, side="right") - 1  # (places,) text of each
        ids = input_ids.numpy()
        types = np.zeros_like(ids) if token_type_ids is None else token_type_ids.numpy()
        found: Arrays = {}
        row = np.full(len(sizes), -1)  # (texts,) row of each in the grid, -1: not in it
        for texts in grids(sizes, self.cells):
            out = self.runtime.run(self._grid(ids, types, starts[texts], sizes[texts]))
            row[:] = -1
            row[texts] = np.arange(len(texts))
            here = np.flatnonzero(row[owners] >= 0)
            for name in self.outputs:
                values = self._checked(out, name, len(texts), int(sizes[texts].max()))
                if self.of_a_text:
                    rows, count = texts, len(sizes)
                else:
                    values = values[row[owners[here]], places[here] - starts[owners[here]]]
                    rows, count = here, len(places)
                if name not in found:
                    found[name] = np.empty((count, *values.shape[1:]), np.float32)
                found[name][rows] = values
        return ModelOutput(**{name: torch.from_numpy(found[name]) for name in self.outputs})

    def _checked(self, out: Arrays, name: str, texts: int, longest: int) -> NDArray[Any]:
        """The output of this name, of the shape that the configuration says."""
        wanted: tuple[int, ...] = (texts,) if self.of_a_text else (texts, longest)
        if name == "last_hidden_state":
            wanted += (self.config.hidden_size,)
        elif name == "logits":
            wanted += (self.config.vocab_size if self.of_words else self.config.num_labels,)
        values = out.get(name)
        if values is None or values.shape != wanted:
            got = "none" if values is None else str(values.shape)
            raise FilbertError(
                f"{self.runtime.name}: {name} of the shape {wanted} was expected of this model, as "
                f"config.json has it, and {got} came (outputs: {', '.join(out)}). The files of the "
                "folder do not belong together; export the model anew"
            )
        return values

    def _grid(self, ids: Ids, types: Ids, starts: Ids, sizes: Ids) -> Arrays:
        """The inputs of the runtime, each (texts, longest) int64, padded with 0."""
        column = np.arange(int(sizes.max()))
        real = column < sizes[:, None]  # (texts, longest)
        source = (starts[:, None] + column)[real]
        arrays = {"attention_mask": real.astype(np.int64)}
        for name, values in (("input_ids", ids), ("token_type_ids", types)):
            arrays[name] = np.zeros(real.shape, np.int64)
            arrays[name][real] = values[source]
        return {name: arrays[name] for name in self.runtime.inputs}


def grids(sizes: Ids, cells: int) -> Iterator[Ids]:
    """Numbers of texts of like lengths, so that a padded grid of them has at most `cells` cells (a
    longer text goes alone) and little padding. sizes: (texts,) tokens of each."""
    order = np.argsort(sizes, kind="stable")
    first = 0
    for place in range(1, len(order) + 1):
        if place < len(order):
            size = int(sizes[order[place]])
            full = (place + 1 - first) * size > cells
            if not full and size <= WASTE * int(sizes[order[first]]) + 8:
                continue
        yield order[first:place]
        first = place
