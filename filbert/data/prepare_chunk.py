"""What `filbert prepare` does to a chunk of documents, in a process of its own: text to arrays.

Each document is cleaned, sifted, cut into sentences and encoded; its hash and sketch are taken, for
the process that gathers the chunks knows which documents came before. A pure function of the texts
and the plan: which process takes a chunk does not matter.
"""

from __future__ import annotations

import hashlib
import os
import signal
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.data.clean import clean_text, speaks
from filbert.data.duplicates import Sketch, sketch
from filbert.data.follow import follow_parent
from filbert.text import BertTokenizer
from filbert.text.pieces import Pieces, word_like
from filbert.text.sentences import split_sentences
from filbert.text.words import ChineseWords

MANY_UNKNOWN = 0.1  # share of the tokens of a document


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """What is done to every document. `rows` of a band of the sketch; 0: no near duplicates."""

    vocab: str
    markup: bool
    boilerplate: bool
    language: str
    min_chars: int
    words: bool
    rows: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Documents as arrays, those that were not filtered.

    `ids` (tokens,), `joins` (tokens,) bool, `lengths` (sentences,) tokens of each, `sentences`
    (documents,) sentences of each, `sources` (documents,) names, `sizes` (documents,) bytes,
    `unknown` (documents,) [UNK] tokens of each, `hashes` (documents, 2) uint64, `sketch` or None,
    `filtered` reason -> documents.
    """

    ids: NDArray[Any]
    joins: NDArray[np.bool_]
    lengths: NDArray[np.uint32]
    sentences: NDArray[np.uint32]
    sources: list[str]
    sizes: NDArray[np.int64]
    unknown: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    sketch: Sketch | None
    filtered: dict[str, int]


class ChunkWorker:
    """Carries a plan out; loads the tokenizer once."""

    def __init__(self, plan: ChunkPlan) -> None:
        self.plan = plan
        tokenizer = BertTokenizer.from_pretrained(plan.vocab)
        self._unknown = tokenizer.unk_token_id
        self._pieces = Pieces(tokenizer)
        self._words = ChineseWords() if plan.words else None

    def run(self, texts: list[str], sources: list[str]) -> Chunk:
        """The arrays of these documents."""
        plan, filtered = self.plan, Counter[str]()
        cleaned: list[str] = []
        names: list[str] = []
        for text, source in zip(texts, sources, strict=True):
            text = clean_text(text, markup=plan.markup, boilerplate=plan.boilerplate)
            if not text:
                filtered["empty"] += 1
            elif len(text) < plan.min_chars:
                filtered["short"] += 1
            elif plan.language != "none" and not speaks(text, plan.language):
                filtered["language"] += 1
            else:
                cleaned.append(text)
                names.append(source)
        split = [split_sentences(text) for text in cleaned]
        coded = self._pieces.encode([s for own in split for s in own], starts=self._starts(split))
        owners = np.repeat(np.arange(len(split)), [len(own) for own in split])
        told = coded.lengths > 0  # a sentence of characters that the tokenizer drops has no tokens
        sentences = np.bincount(owners[told], minlength=len(split))
        some = sentences > 0
        if not some.all():
            filtered["empty"] += int((~some).sum())
        raw = [text.encode() for text in cleaned]
        hashes = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in raw)
        tokens = np.bincount(owners, coded.lengths, minlength=len(split)).astype(np.int64)[some]
        unknown = np.bincount(
            np.repeat(np.arange(len(tokens)), tokens),
            coded.ids == self._unknown,
            minlength=len(tokens),
        ).astype(np.int64)
        found = None
        if plan.rows and len(tokens):
            left = [text for text, kept in zip(cleaned, some, strict=True) if kept]
            found = sketch(*self._likeness(coded.ids, tokens, unknown, left), plan.rows)
        return Chunk(
            ids=coded.ids,
            joins=coded.joins,
            lengths=coded.lengths[told].astype(np.uint32),
            sentences=sentences[some].astype(np.uint32),
            sources=[name for name, kept in zip(names, some, strict=True) if kept],
            sizes=np.fromiter(map(len, raw), np.int64, len(raw))[some],
            unknown=unknown,
            hashes=np.frombuffer(hashes, dtype="<u8").reshape(-1, 2)[some],
            sketch=found,
            filtered=dict(filtered),
        )

    def _likeness(
        self,
        ids: NDArray[Any],
        tokens: NDArray[np.int64],
        unknown: NDArray[np.int64],
        texts: list[str],
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """What the likeness of documents is measured on: numbers end to end, and how many each has.
        Their tokens without [UNK], which is the same for any word; of a document with many of them
        its words in their place. tokens, unknown: (documents,)."""
        if not unknown.any():
            return ids, tokens
        if not (strange := unknown > MANY_UNKNOWN * tokens).any():
            return ids[ids != self._unknown], tokens - unknown
        parts = np.split(ids, np.cumsum(tokens)[:-1])
        for document, part in enumerate(parts):
            if strange[document]:
                words = [zlib.crc32(word.encode()) for word in word_like(texts[document])]
                parts[document] = np.array(words, dtype=np.uint64)
            else:
                parts[document] = part[part != self._unknown].astype(np.uint64)
        return np.concatenate(parts), np.fromiter(map(len, parts), np.int64, len(parts))

    def _starts(self, split: list[list[str]]) -> NDArray[np.bool_] | None:
        """Where words begin in all sentences, joined by line ends; None if it is not asked for."""
        if self._words is None:
            return None
        line_end = np.ones(1, dtype=bool)
        parts = [line_end[:0]]
        for own in split:  # a document at a time: each has its own script
            if own:
                parts += [self._words.starts("\n".join(own)), line_end]
        return np.concatenate(parts[:-1]) if len(parts) > 1 else None


_worker: ChunkWorker | None = None


def start(plan: ChunkPlan) -> None:
    """Make this process a worker: one thread, deaf to Ctrl-C, gone when its parent is."""
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    _worker = ChunkWorker(plan)


def run(texts: list[str], sources: list[str]) -> Chunk:
    """`ChunkWorker.run` of this process's worker."""
    assert _worker is not None, "start() comes first"
    return _worker.run(texts, sources)
