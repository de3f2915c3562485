"""Sentence vectors for people and programs: texts in, rows of float32 out.

    from filbert import load
    embed = load("all-MiniLM-L6-v2")
    embed("A man eats.")                         # (384,) float32
    embed(["A man eats.", "He is eating."])      # (2, 384), row by row as sentence-transformers
    embed(["你好"], dimensions=128)              # the first 128 alone, normalised again

Files: `write_vectors` makes a .npy of a file's texts in constant memory; JSONL comes through
`filbert/infer/predict_file.py`.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.atomic import atomic_path
from filbert.bundle import Bundle
from filbert.data.examples import stream_texts
from filbert.data.sentence_pairs import read_sentences
from filbert.errors import FilbertError, UsageError
from filbert.infer.cut_texts import tell_cut
from filbert.infer.empty_texts import empty_note, told
from filbert.infer.overlap import in_blocks, in_order, workers_for
from filbert.infer.predict import (
    WINDOW,
    check_rows,
    finite,
    is_pair,
    shown,
    text_problem,
    windows,
)
from filbert.model.bert import BertModel
from filbert.model.device import for_inference
from filbert.tasks import embed

Floats = NDArray[np.float32]
logger = logging.getLogger("filbert")


class Embedder:
    """A model of sentence vectors, ready to answer. Calls from several threads are safe.

    Attributes: `manifest`, `model`, `tokenizer`, `folder`, `device`, `dtype`, `reason`, and
    `settings` (pooling, normalize, max_length).
    """

    OPTIONS = frozenset({"dimensions"})

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        reason: str = "asked for",
        batch_tokens: int = 4096,
    ) -> None:
        self.folder = bundle.folder
        self.manifest = bundle.manifest
        self.tokenizer = bundle.tokenizer
        assert isinstance(bundle.model, embed.Encoder)
        self.settings = embed.settings_of(
            bundle.folder,
            limit=bundle.model.config.max_position_embeddings,
            tokenizer=bundle.tokenizer,
            manifest=bundle.manifest,
        )
        if isinstance(bundle.model, BertModel):
            bundle.model.pooler = None  # vectors are made of the tokens' states
        self.model = for_inference(bundle.model, device, dtype)
        self.device = device
        self.dtype = dtype
        self.reason = reason
        self.batch_tokens = batch_tokens
        self.told_cut = False  # see `tell_cut`

    def __call__(self, texts: str | Iterable[str], *, dimensions: int | None = None) -> Floats:
        """The vector of a text, (dimensions,) float32, or of a list of texts, (n, dimensions).

        A text over the model's length is cut off, which the log tells once. `dimensions` keeps the
        first numbers alone, for a model that was trained so. Raises `FilbertError` that names the
        position of an item that is not a text, `UsageError` for dimensions that there are not.
        """
        single = isinstance(texts, str)
        if not single and (isinstance(texts, bytes | dict) or not isinstance(texts, Iterable)):
            raise FilbertError(f"expected a text or a list of texts, got {shown(texts)}")
        rows = [texts] if isinstance(texts, str) else list(texts)
        check_rows(self, rows)
        vectors = self.vectors(rows, dimensions=dimensions)
        return vectors[0] if single else vectors

    def vectors(self, texts: Sequence[str], *, dimensions: int | None = None) -> Floats:
        """(n, dimensions) float32 of texts that are known to be texts; raises `FilbertError` where
        they are no finite numbers."""
        width = self.model.config.hidden_size
        if dimensions is not None:
            embed.check_dimensions([dimensions], hidden_size=width)
        longest = self.settings.max_length
        assert longest is not None

        def block(rows: range) -> Floats:
            cut = list(texts[rows.start : rows.stop])
            encoded = embed.encode(self.tokenizer, cut, max_length=longest)
            tell_cut(self, encoded, cut, None, longest=longest)
            found = embed.predict_vectors(
                self.model,
                encoded,
                self.settings,
                dimensions=dimensions,
                batch_tokens=self.batch_tokens,
            )
            return finite(found, self.folder)

        return in_blocks(block, len(texts), self.model, width=dimensions or width)

    def problem(self, row: Any) -> str | None:
        """What is wrong with a row, in words; None for a good one."""
        if is_pair(row):
            return "this model takes one text, got a pair"
        return text_problem(row)

    def answer_rows(
        self, rows: Sequence[str], *, dimensions: int | None = None
    ) -> list[dict[str, Any]]:
        """`{"vector": [...]}` of each of these texts, in order."""
        return embed.decode(self.vectors(rows, dimensions=dimensions))

    def line(self, answer: dict[str, Any], row: Any = None) -> str:
        """The numbers of a vector with spaces between, and the text it belongs to behind a tab."""
        numbers = " ".join(f"{number:.6g}" for number in answer["vector"])
        return numbers if row is None else f"{numbers}\t{row}"

    def evaluate(
        self,
        data: str | PathLike[str],
        *,
        text_column: str | None = None,
        pair_column: str | None = None,
        negative_column: str | None = None,
        score_column: str | None = None,
        format: str | None = None,
        encoding: str = "utf-8",
        header: bool | None = None,
        dimensions: int | None = None,
    ) -> dict[str, Any]:
        """Score the model on a file of pairs: with scores, how well the cosines follow them
        (pearson, spearman); without, how well the second text of a row is found among all of them
        (recall@1, @5, @10, mrr@10, ndcg@10). Returns `data`, `rows`, `kind`, `scores`, `seconds`,
        `notes`.
        """
        part = read_sentences(
            data, text_column=text_column, pair_column=pair_column,
            negative_column=negative_column, score_column=score_column,
            format=format, encoding=encoding, header=header,
        )  # fmt: skip
        if part.kind == "sentences":
            raise FilbertError(
                f"{part.source}: single texts; pairs were expected, with scores or without"
            )
        began = time.monotonic()
        vectors = self.vectors(part.texts, dimensions=dimensions)
        scores = embed.score(vectors, part)
        scores.pop("rows", None)
        seconds = round(time.monotonic() - began, 3)
        return {
            "data": part.source, "rows": len(part), "kind": part.kind, "scores": scores,
            "seconds": seconds, "notes": part.notes,
        }  # fmt: skip


def write_vectors(
    embedder: Embedder,
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    text_column: str | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    header: bool | None = None,
    dimensions: int | None = None,
    overwrite: bool = False,
) -> int:
    """Write the vectors of all texts of `source` to the .npy file `out`; returns how many.

    Row i of the array belongs to data row i, so a row without a text is an error here. The file is
    written whole or not at all, in constant memory. `UsageError` where `out` exists.
    """
    target = Path(out)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists already; name another --out, or add --overwrite")
    width = dimensions or embedder.model.config.hidden_size
    count = empty = 0
    rows = stream_texts(
        source, text_column=text_column, format=format, encoding=encoding, header=header
    )
    with atomic_path(target) as temp, open(temp, "wb") as file:
        file.write(npy_header(0, width))

        def vectors_of(block: list[Any]) -> Floats:
            for row, text, _ in block:
                if problem := embedder.problem(text):
                    raise FilbertError(
                        f"{source}: row {row.number}: {problem}. An array holds a vector of every "
                        "row; a .jsonl file takes errors"
                    )
            return embedder.vectors([text for _, text, _ in block], dimensions=dimensions)

        workers = workers_for(embedder.model)
        for block, vectors in in_order(vectors_of, windows(rows, WINDOW), workers=workers):
            file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            count += len(block)
            empty += sum(empty_note(text) is not None for _, text, _ in block)
        file.seek(0)
        file.write(npy_header(count, width))
    if empty:
        logger.warning("%s: %s", source, told(empty))
    return count


def npy_header(rows: int, width: int) -> bytes:
    """The first 128 bytes of a .npy file (format 1.0) of (rows, width) float32, row by row."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"
