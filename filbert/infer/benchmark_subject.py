"""What the peers of a benchmark compute, and how texts become the padded batches they take.

`Subject` is the bundle as a peer sees it. `batched` makes, of something that computes one padded
batch, something that answers many texts: sorted by length, so that little is padding. `Whole` is
the model in transformers as one graph from ids to vectors or logits; other programs convert it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from filbert.infer.benchmark_measure import Call, Floats, Rows
from filbert.model.config import BertConfig, EncoderConfig
from filbert.model.sentence_folder import SentenceSettings

SIZES = (8, 32)  # texts of a padded batch
Grid = tuple[NDArray[np.int64], ...]  # (texts, longest) each: ids, mask, and types where there are
Items = list[Any]  # encodings of texts by the library `tokenizers`


@dataclass(frozen=True)
class Subject:
    """What the peers compute. folder: in the Hugging Face layout; settings: how states become a
    vector, None of a classifier; scratch: where exported graphs go. tokenizer: of the library
    `tokenizers`, cutting off at `max_length`, without padding."""

    folder: Path
    config: EncoderConfig
    pair: bool
    max_length: int
    settings: SentenceSettings | None
    tokenizer: Any
    scratch: Path
    device: torch.device
    threads: int
    bf16: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs of the model."""
        two = ("input_ids", "attention_mask")
        return (*two, "token_type_ids") if isinstance(self.config, BertConfig) else two


class Unfit(Exception):
    """A peer that does not compute this model here; the text says why."""


def encoded(subject: Subject, rows: Rows) -> Items:
    """The encoding of each row, cut off at the model's length."""
    return list(subject.tokenizer.encode_batch_fast(list(rows)))


def grid_of(subject: Subject, part: Items) -> Grid:
    """The padded arrays of some encodings, in the order of `Subject.names`."""
    longest = max(len(item) for item in part)
    arrays = tuple(np.zeros((len(part), longest), np.int64) for _ in subject.names)
    for row, item in enumerate(part):
        size = len(item)
        for array, values in zip(
            arrays, (item.ids, item.attention_mask, item.type_ids), strict=False
        ):
            array[row, :size] = values
    return arrays


def on_grids(subject: Subject, run: Callable[[Grid], Floats]) -> Callable[[Items], Floats]:
    """`run` for encodings."""
    return lambda part: run(grid_of(subject, part))


def batched(subject: Subject, run: Callable[[Items], Floats], size: int) -> Call:
    """Texts sorted by length, longest first, in batches of `size`: one after the other."""

    def many(rows: Rows) -> Floats:
        items, order = in_order(subject, rows)
        starts = range(0, len(order), size)
        blocks = [run([items[i] for i in order[start : start + size]]) for start in starts]
        return restored(blocks, order)

    return many


def in_order(subject: Subject, rows: Rows) -> tuple[Items, list[int]]:
    """The encodings of rows, and the numbers of the rows, longest first."""
    items = encoded(subject, rows)
    return items, sorted(range(len(items)), key=lambda i: -len(items[i]))


def restored(blocks: list[Floats], order: list[int]) -> Floats:
    """(rows, d) in the order of the rows, of blocks in the order `order`."""
    found = np.concatenate(blocks)
    out = np.empty_like(found)
    out[order] = found
    return out


def ways(subject: Subject, run: Callable[[Items], Floats], label: str = "") -> dict[str, Call]:
    """One way for each size of a batch."""
    return {f"{label}batches of {size}": batched(subject, run, size) for size in SIZES}


class Whole(nn.Module):
    """A model of transformers from ids to vectors or logits, (texts, d), as one graph."""

    def __init__(self, model: Any, subject: Subject) -> None:
        super().__init__()
        self.model, self.names, self.settings = model, subject.names, subject.settings

    def forward(self, *arrays: Tensor) -> Tensor:
        """arrays: (texts, longest) int64, in the order of `Subject.names`."""
        given = dict(zip(self.names, arrays, strict=True))
        out = self.model(**given)
        if self.settings is None:
            logits: Tensor = out.logits
            return logits
        states: Tensor = out.last_hidden_state  # (texts, longest, hidden)
        mask = given["attention_mask"][..., None]  # (texts, longest, 1)
        if self.settings.pooling == "cls":
            vectors = states[:, 0]
        elif self.settings.pooling == "max":
            vectors = states.masked_fill(mask == 0, -1e9).amax(1)
        else:
            vectors = (states * mask.to(states.dtype)).sum(1) / mask.sum(1).to(states.dtype)
        return nn.functional.normalize(vectors, dim=-1) if self.settings.normalize else vectors


def opened(subject: Subject, dtype: torch.dtype = torch.float32, **options: Any) -> Whole:
    """The folder in transformers."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind: Any = transformers.AutoModel
    if subject.settings is None:
        kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(subject.folder, dtype=dtype, use_safetensors=True, **options)
    return Whole(model, subject).eval().to(subject.device)
