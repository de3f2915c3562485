"""Holding an exported model to its source: the same texts through both, and how far they differ.

The source computes packed, in PyTorch and float32; the export computes padded grids in its own
runtime. Compared are all real tokens (what stands at padding means nothing).

    batches = comparison_batches(bundle, options)
    found = compare(bundle.model, runtime, batches)
    found.outputs["logits"].difference          # <= TOLERANCE, or the export is refused

The texts are those of a file, or a few English and Chinese ones; to them come a single token and
as many as the model takes (at most `LONGEST`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.bundle import Bundle
from filbert.data.examples import stream_texts
from filbert.data.packing import Encoded
from filbert.errors import FilbertError
from filbert.infer.export_options import ExportOptions
from filbert.infer.predict import text_problem
from filbert.model.plain import OF_A_TEXT, PlainModel
from filbert.model.pretrained import PretrainedModel
from filbert.model.runtime import Arrays, Runtime

TOLERANCE = 1e-4
LONGEST = 1024  # tokens of the longest text that is compared; a longer one takes much memory
ROWS = 8  # texts of a batch

ENGLISH = (
    "Two hours I will never get back, but the ending made up for it.",
    "Who wrote it?",
    "The committee met on 14 March 2019 in Geneva and, after a long debate, put the question of "
    "the budget off until autumn; nobody was surprised, least of all the treasurer.",
    "I'd like to return these shoes: they are two sizes too small, and the left one squeaks.",
)
CHINESE = (
    "房间很干净,服务也热情,就是离地铁站有点远。",
    "退款什么时候到账?",
    "一九八四年,他随父母从成都搬到上海,在那里读完中学,后来考入复旦大学物理系。",
)
TEXTS = (*ENGLISH, *CHINESE)

Batch = list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # ids and token types of each text


@dataclass(frozen=True)
class Difference:
    """How far one output lies from that of the source.

    largest: of a single number. rms: the size of the source's numbers. relative: the norm of all
    differences over that of the numbers. measure: what `largest` is divided by before it is held
    to the tolerance: the rms for states, at least 1 for logits.
    """

    largest: float
    rms: float
    relative: float
    measure: float

    @property
    def difference(self) -> float:
        """What is held to the tolerance."""
        return self.largest / self.measure


@dataclass(frozen=True)
class Compared:
    """The differences by output, and on what they were found."""

    outputs: dict[str, Difference]
    texts: int
    tokens: int
    longest: int
    source: str

    @property
    def difference(self) -> float:
        """The largest of all outputs; NaN where one is no number."""
        return float(np.max([found.difference for found in self.outputs.values()]))

    def record(self) -> dict[str, Any]:
        """Plain data for `export.json`."""
        return {
            "texts": self.texts, "tokens": self.tokens, "longest": self.longest,
            "source": self.source, "difference": self.difference, "tolerance": TOLERANCE,
            "outputs": {
                name: {
                    "max_abs": found.largest, "relative_norm": found.relative, "rms": found.rms,
                }
                for name, found in self.outputs.items()
            },
        }  # fmt: skip


def comparison_batches(bundle: Bundle, options: ExportOptions) -> tuple[list[Batch], str]:
    """Batches of a few texts of different lengths, one of a single token and one of the longest
    text; and where the texts are from. Raises `FilbertError` for a row without a text."""
    tokenizer, manifest = bundle.tokenizer, bundle.manifest
    firsts, seconds, source = _texts(bundle, options)
    longest = min(manifest.max_length, bundle.model.config.max_position_embeddings)
    bound = min(longest, LONGEST)

    def encoded(first: list[str], second: list[str] | None) -> Batch:
        found = Encoded(
            *tokenizer.encode_flat(first, second, max_length=bound, windows=False, stride=0)
        )
        places = list(zip(found.window_starts[:-1], found.window_starts[1:], strict=True))
        return [
            (found.input_ids[a:b].astype(np.int64), found.token_type_ids[a:b].astype(np.int64))
            for a, b in places
        ]

    all_of_them = encoded(firsts, seconds)
    batches = [all_of_them[at : at + ROWS] for at in range(0, len(all_of_them), ROWS)]
    cls = tokenizer.cls_token_id
    assert cls is not None
    batches.append([(np.array([cls], np.int64), np.zeros(1, np.int64))])
    whole = np.concatenate([ids for ids, _ in all_of_them])
    filled = np.resize(whole, bound)  # over and over again
    half = (np.arange(bound) >= bound // 2).astype(np.int64) if manifest.pair else 0 * filled
    batches.append([(filled, half)])
    return batches, source


def _texts(bundle: Bundle, options: ExportOptions) -> tuple[list[str], list[str] | None, str]:
    pair = bundle.manifest.pair
    if options.data is None:
        firsts, seconds = list(TEXTS), list(TEXTS[1:] + TEXTS[:1])
        return firsts, seconds if pair else None, "built-in texts"
    rows = stream_texts(
        options.data, text_column=options.text_column, pair_column=options.pair_column,
        encoding=options.encoding, header=options.header,
    )  # fmt: skip
    first, second = [], []
    for row, text, other in islice(rows, options.limit):
        if not isinstance(text, str) or (pair and not isinstance(other, str)):
            what = "two texts; name the second one's column with --pair-column" if pair else "text"
            raise FilbertError(f"{options.data}, row {row.number}: expected {what}")
        if told := text_problem(text) or (text_problem(other) if pair else None):
            raise FilbertError(f"{options.data}, row {row.number}: {told}")
        first.append(text)
        second.append(other)
    return first, second if pair else None, options.data


def compare(model: PretrainedModel, runtime: Runtime, batches: Sequence[Batch], *,
            source: str) -> Compared:  # fmt: skip
    """Run all batches through both and measure. Raises `FilbertError` for an output that the
    runtime does not give."""
    outputs = PlainModel(model).outputs
    of_a_text = isinstance(model, OF_A_TEXT)
    mine: dict[str, list[NDArray[np.float64]]] = {name: [] for name in outputs}
    theirs: dict[str, list[NDArray[np.float64]]] = {name: [] for name in outputs}
    for batch in batches:
        arrays, real = padded(batch)
        expected = of_source(model, batch)
        given = runtime.run({name: arrays[name] for name in runtime.inputs})
        for name in outputs:
            if name not in given:
                raise FilbertError(f"the export gives {', '.join(given)}, and no {name}")
            values = given[name] if of_a_text else given[name][real]
            mine[name].append(expected[name].astype(np.float64).ravel())
            theirs[name].append(values.astype(np.float64).ravel())
    sizes = [len(ids) for batch in batches for ids, _ in batch]
    return Compared(
        {
            name: _difference(np.concatenate(mine[name]), np.concatenate(theirs[name]),
                              states=name == "last_hidden_state")
            for name in outputs
        },
        len(sizes), sum(sizes), max(sizes), source,
    )  # fmt: skip


@torch.no_grad()
def of_source(model: PretrainedModel, batch: Batch) -> Mapping[str, NDArray[Any]]:
    """The source's outputs of a batch, packed: (texts, ...) or (tokens, ...) each."""
    out = model(
        input_ids=torch.from_numpy(np.concatenate([ids for ids, _ in batch])),
        token_type_ids=torch.from_numpy(np.concatenate([types for _, types in batch])),
        lengths=torch.tensor([len(ids) for ids, _ in batch]),
    )
    found = {name: value.numpy() for name, value in out.items() if torch.is_tensor(value)}
    if "prediction_logits" in found:
        found["logits"] = found["prediction_logits"]
    return found


def padded(batch: Batch) -> tuple[Arrays, NDArray[np.bool_]]:
    """The inputs of a batch by name, each (texts, longest) int64, and where real tokens are."""
    sizes = np.array([len(ids) for ids, _ in batch])
    real = np.arange(int(sizes.max())) < sizes[:, None]
    arrays = {"attention_mask": real.astype(np.int64)}
    for place, name in enumerate(("input_ids", "token_type_ids")):
        arrays[name] = np.zeros(real.shape, np.int64)
        arrays[name][real] = np.concatenate([text[place] for text in batch])
    return arrays, real


def _difference(
    mine: NDArray[np.float64], theirs: NDArray[np.float64], *, states: bool
) -> Difference:
    apart = np.abs(mine - theirs)
    rms = float(np.sqrt(np.mean(mine**2)))
    norm = float(np.linalg.norm(mine))
    return Difference(
        largest=float(apart.max()),
        rms=rms,
        relative=float(np.linalg.norm(mine - theirs)) / max(norm, 1e-30),
        measure=max(rms, 1e-30) if states else max(1.0, rms),
    )
