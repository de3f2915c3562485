"""`filbert prepare`: a corpus becomes shards of token ids (filbert/data/shards.py).

    prepare(PrepareOptions(corpus=["corpus.jsonl.xz"], vocab="vocab/", out="shards/"))

One process reads documents and hands them out in chunks; others clean, split and encode them
(filbert/data/prepare_chunk.py); the first gathers the chunks in the order in which they were read,
leaves duplicates out, and writes (filbert/data/prepare_work.py). So the bytes are the same for any
number of processes, and after a kill at any moment followed by the same command. What --overwrite
replaces stays until the new shards are whole: they are made in `.NAME.new` beside it. Memory does
not grow with the corpus, but for what is remembered of documents to know their duplicates
(filbert/data/duplicates.py).

Which documents are held out is a function of their text and the seed, so a document stays on its
side whatever else is in the corpus.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import filbert
from filbert.atomic import clear_leftovers, locked, replace_folder, write_file
from filbert.data.corpus import corpus_files
from filbert.data.draws import key_of, mixed
from filbert.data.duplicates import VALUES, EqualDocuments, NearDuplicates, Sketch, rows_of_bands
from filbert.data.meter import Meter
from filbert.data.prepare_chunk import Chunk, ChunkPlan
from filbert.data.prepare_feed import Feed, Place, chunks_of, fingerprints, results
from filbert.data.prepare_folder import (
    beside,
    check_finished,
    check_folder,
    clear,
    clear_shards,
    goes_on,
    refuse_changes,
    remove,
)
from filbert.data.prepare_options import FREE, PrepareOptions
from filbert.data.prepare_work import WORK, Record, State, Streams, read_state, write_shard
from filbert.data.shards import (
    FORMAT,
    MANIFEST,
    SPLITS,
    VOCAB,
    Counts,
    Manifest,
    ShardEntry,
    Split,
    digest,
    open_shards,
    read_manifest,
    token_type,
)  # fmt: skip
from filbert.errors import FilbertError, UsageError, missing_extra
from filbert.stopping import stoppable
from filbert.text import BertTokenizer
from filbert.text.extend import is_chinese

COMMIT_SECONDS = 10.0  # between notes of how far it is
MANY_UNKNOWN = 0.05  # share of [UNK] among the tokens that is told
_BEGIN = Place(0, 0)
_CHUNK = 400_000  # characters that one process takes at a time


def prepare(options: PrepareOptions, *, quiet: bool = False) -> Manifest:
    """Write the shards of a corpus and return their manifest; goes on where a killed call was.

    A folder that is whole and was made with the same options is left as it is. `quiet`: show no
    progress. Raises `UsageError` for options that cannot be carried out, other options or another
    corpus than the unfinished work was begun with, `FilbertError` for what cannot be read, a full
    disk (the same call then goes on) or a corpus of which nothing is left.
    """
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    files = corpus_files(options.corpus)
    for file in files:
        if Path(file).resolve().is_relative_to(out.resolve()):
            raise UsageError(f"the corpus file {file} lies in --out {out}; choose another folder")
    tokenizer = _tokenizer(options.vocab)
    _check_packages(options, tokenizer)
    check_folder(out, options)
    out.mkdir(parents=True, exist_ok=True)
    with (
        stoppable("the same command goes on from there"),
        locked(out, doing="writes into"),
    ):
        if options.overwrite and (out / MANIFEST).is_file():
            manifest = _replace(options, out, files, tokenizer, quiet)
        else:
            if options.overwrite:
                clear(out)
            clear_leftovers(out)
            manifest = _prepare(options, out, files, tokenizer, quiet)
    if not quiet:
        _tell_doubts(manifest, options.vocab, tokenizer)
    return manifest


def _replace(
    options: PrepareOptions, out: Path, files: list[str], tokenizer: BertTokenizer, quiet: bool
) -> Manifest:
    """Make new shards beside those in `out`, and put them in their place when they are whole."""
    new = beside(out)
    check_folder(new, options)
    new.mkdir(exist_ok=True)
    try:
        if not goes_on(new, _begin(options, new, files, tokenizer)):
            clear(new)
        clear_leftovers(new)
        manifest = _prepare(options, new, files, tokenizer, quiet)
    except FilbertError:
        if read_state(new / WORK) is None:  # nothing to go on from
            shutil.rmtree(new, ignore_errors=True)
        raise
    replace_folder(new, os.path.realpath(out))
    return manifest


def _begin(
    options: PrepareOptions, out: Path, files: list[str], tokenizer: BertTokenizer
) -> dict[str, Any]:
    """Keep the tokenizer with the work, and return what decides on the bytes."""
    work = out / WORK
    work.mkdir(exist_ok=True)
    clear_leftovers(work)
    vocab = work / VOCAB
    remove(vocab)
    tokenizer.save_pretrained(vocab)
    return {
        "filbert": filbert.__version__,
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "vocab_sha256": digest(vocab / "vocab.txt"),
        "options": _told_options(options, files),
    }


def _prepare(
    options: PrepareOptions, out: Path, files: list[str], tokenizer: BertTokenizer, quiet: bool
) -> Manifest:
    record = _begin(options, out, files, tokenizer)
    work = out / WORK
    if (out / MANIFEST).is_file():
        shutil.rmtree(work)
        whole = read_manifest(out)
        refuse_changes(whole.model_dump(), record, out)
        open_shards(out, verify="index")
        if not quiet:
            print(
                f"{out} is finished already (checked: the sizes of all files, the checksums of the "
                "small ones; filbert prepare --verify reads them all)",
                file=sys.stderr,
            )
        return whole
    state = read_state(work)
    if state is None:
        clear_shards(out)  # of a call that was killed before it noted anything
    else:
        refuse_changes(state.record.model_dump(), record, out)
        check_finished(out, state)
    plan = ChunkPlan(
        vocab=str(work / VOCAB),
        markup=options.markup,
        boilerplate=options.boilerplate,
        language=options.language,
        min_chars=options.min_chars,
        words=_marks_chinese(options, tokenizer),
        rows=rows_of_bands(options.near) if options.near else 0,
    )
    gathered = _Gatherer(options, out, token_type(record["vocab_size"]), record, state)
    with closing(gathered.streams):
        _gather(gathered, plan, files, options, quiet)
        return _finish(gathered, out, record)


def _gather(
    gathered: _Gatherer, plan: ChunkPlan, files: list[str], options: PrepareOptions, quiet: bool
) -> None:
    """All that is left of the corpus into the streams and shards."""
    feed = Feed(files, options, characters=min(_CHUNK, options.shard_tokens))
    processes = options.processes or _usable_cores()
    last = time.monotonic()
    with (
        Meter("prepare", files, quiet=quiet, resumed=gathered.state is not None) as meter,
        closing(results(chunks_of(feed, gathered.place), plan, processes)) as finished,
    ):
        for place, behind, chunk in finished:
            gathered.take(chunk, place)
            wrote = gathered.write_full_shards()
            if wrote or time.monotonic() - last >= COMMIT_SECONDS:
                gathered.commit()
                last = time.monotonic()
            counts = gathered.counts
            found = f"{counts.documents:,} documents, {counts.tokens / 1e6:,.1f} M tokens"
            meter.at(behind, found=found)


@dataclass
class _Gatherer:
    """What is known of the chunks so far: the state that a resumed call begins with."""

    options: PrepareOptions
    out: Path
    token_type: str
    record: dict[str, Any]
    state: State | None
    place: Place = _BEGIN
    counts: Counts = field(default_factory=lambda: Counts())
    sources: dict[str, int] = field(default_factory=dict)
    shards: list[ShardEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.equal = EqualDocuments()
        state = self.state
        self.streams = Streams(self.out / WORK, state.streams if state else {})
        self.near: NearDuplicates | None = None
        if self.options.near:
            kept = partial(self.streams.rows, "near.values", "<u2", VALUES)
            self.near = NearDuplicates(self.options.near, kept)
        if state is None:
            return
        self.place = Place(*state.place)
        self.counts = state.counts
        self.sources = {name: number for number, name in enumerate(state.sources)}
        self.shards = state.shards
        if self.streams.length("hashes"):
            self.equal.remember(self.streams.read("hashes", "<u8").reshape(-1, 2))
        if self.near is not None and self.streams.length("near.keys"):
            keys_of_one = VALUES // self.near.rows
            for block in self.streams.blocks("near.keys"):
                keys = np.frombuffer(block, "<u8").reshape(-1, keys_of_one)
                self.near.remember(keys)

    def take(self, chunk: Chunk, place: Place) -> None:
        """Append the documents of a chunk that are no duplicates; `place`: where it ends."""
        kept = self.equal.keep(chunk.hashes)
        self.streams.append("hashes", chunk.hashes[kept])
        self.counts.duplicates += int((~kept).sum())
        if self.near is not None and chunk.sketch is not None and kept.any():
            keys, values = chunk.sketch
            own, remembered = self.near.keep(Sketch(keys[kept], values[kept]))
            self.streams.append("near.keys", remembered.keys)
            self.streams.append("near.values", remembered.values)
            self.counts.near_duplicates += int((~own).sum())
            kept[np.flatnonzero(kept)[~own]] = False
        held_out = _held_out(chunk.hashes, self.options)
        sources = self._number_sources(chunk, kept)
        self._append("train", chunk, kept & ~held_out, sources)
        self._append("dev", chunk, kept & held_out, sources)
        for reason, number in sorted(chunk.filtered.items()):
            self.counts.filtered[reason] = self.counts.filtered.get(reason, 0) + number
        self.place = place

    def _number_sources(self, chunk: Chunk, kept: NDArray[np.bool_]) -> NDArray[np.uint16]:
        """(documents,) the number of the source of each kept document, in order of appearance."""
        numbers = np.zeros(len(kept), dtype="<u2")
        for document in np.flatnonzero(kept):
            number = self.sources.setdefault(chunk.sources[document], len(self.sources))
            if number >= 1 << 16:
                raise UsageError(
                    "the corpus names more than 65,536 sources; name another --source-column"
                )
            numbers[document] = number
        return numbers

    def _append(
        self, split: Split, chunk: Chunk, kept: NDArray[np.bool_], sources: NDArray[np.uint16]
    ) -> None:
        """The documents that `kept` (documents,) marks, to the open shard of a split."""
        if not kept.any():
            return
        of_sentences = np.repeat(kept, chunk.sentences)
        of_tokens = np.repeat(of_sentences, chunk.lengths)
        append = self.streams.append
        append(f"{split}.tokens", chunk.ids[of_tokens])
        append(f"{split}.joins", chunk.joins[of_tokens])
        append(f"{split}.sentences", chunk.lengths[of_sentences])
        append(f"{split}.documents", chunk.sentences[kept])
        append(f"{split}.sources", sources[kept])
        self.counts.documents += int(kept.sum())
        self.counts.sentences += int(of_sentences.sum())
        self.counts.tokens += int(of_tokens.sum())
        self.counts.bytes += int(chunk.sizes[kept].sum())
        self.counts.unknown_tokens += int(chunk.unknown[kept].sum())

    def write_full_shards(self, *, last: bool = False) -> bool:
        """Write the open shards that are full (`last`: that hold something); whether any was."""
        wrote = False
        for split in SPLITS:
            tokens = self.streams.count(f"{split}.tokens", self.token_type)
            if tokens >= self.options.shard_tokens or (last and tokens):
                number = sum(entry.split == split for entry in self.shards)
                self.shards.append(
                    write_shard(
                        self.streams, self.out, split=split, number=number, tokens=self.token_type
                    )
                )
                wrote = True
        return wrote

    def commit(self) -> None:
        """Make all so far last."""
        self.streams.commit(
            State(
                record=Record(**self.record),
                place=list(self.place),
                counts=self.counts,
                sources=list(self.sources),
                shards=self.shards,
                streams=self.streams.noted,
            )
        )


def _finish(gathered: _Gatherer, out: Path, record: dict[str, Any]) -> Manifest:
    """Write what is open, the vocabulary and the manifest."""
    gathered.write_full_shards(last=True)
    counts = gathered.counts
    if not counts.documents:
        shutil.rmtree(out / WORK)
        left_out = ", ".join(f"{number} {reason}" for reason, number in counts.filtered.items())
        raise FilbertError(
            f"no document of the corpus is left: {left_out or 'it holds none'}. Give a corpus with "
            "text, or milder filters"
        )
    gathered.commit()
    replace_folder(out / WORK / VOCAB, out / VOCAB)
    manifest = Manifest(
        format=FORMAT,
        filbert=record["filbert"],
        vocab_size=record["vocab_size"],
        vocab_sha256=record["vocab_sha256"],
        options=record["options"],
        sources=list(gathered.sources),
        counts=counts,
        shards=sorted(gathered.shards, key=lambda entry: (SPLITS.index(entry.split), entry.name)),
    )
    text = json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False)
    write_file(out / MANIFEST, text + "\n")
    shutil.rmtree(out / WORK, ignore_errors=True)
    return manifest


def _held_out(hashes: NDArray[np.uint64], options: PrepareOptions) -> NDArray[np.bool_]:
    """(documents,) whether each is held out. hashes: (documents, 2)."""
    drawn = mixed(hashes[:, 0] ^ np.uint64(key_of(options.seed)))
    return (drawn >> np.uint64(11)) * 2.0**-53 < options.holdout


def _usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tokenizer(name: str) -> BertTokenizer:
    """The tokenizer, if a model can be pre-trained with it."""
    tokenizer = BertTokenizer.from_pretrained(name)
    if tokenizer.mask_token_id is None:
        raise FilbertError(
            f"the vocabulary {name} has no mask token, which pre-training needs; make one with "
            "filbert vocab"
        )
    return tokenizer


def _tell_doubts(manifest: Manifest, vocab: str, tokenizer: BertTokenizer) -> None:
    """On standard error, what makes it likely that the vocabulary is not the one for the text, or
    that a run cannot score itself."""
    counts, folder = manifest.counts, Path(vocab)
    if counts.unknown_tokens > MANY_UNKNOWN * counts.tokens:
        share = counts.unknown_tokens / counts.tokens
        print(
            f"note: {share:.0%} of the tokens are {tokenizer.unk_token}; is {vocab} the vocabulary "
            "for this text?",
            file=sys.stderr,
        )
    held_out = sum(entry.documents for entry in manifest.shards if entry.split == "dev")
    if held_out < 2:
        print(
            f"note: {held_out} of {counts.documents:,} documents are held out; filbert pretrain "
            "scores itself on them and wants 2 at least, better hundreds. Prepare again with "
            "--overwrite and a larger --holdout, such as 0.05 (a few documents want more)",
            file=sys.stderr,
        )
    beside_it = ("tokenizer.json", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in beside_it):
        case = "lower-cased" if tokenizer.do_lower_case else "taken as written"
        print(
            f"note: {vocab} has a vocab.txt alone, which does not say how text is read; it was "
            f"{case}. A tokenizer_config.json beside it decides",
            file=sys.stderr,
        )


def _check_packages(options: PrepareOptions, tokenizer: BertTokenizer) -> None:
    """What the processes need is installed; a process that finds out can only end."""
    needed = ["rensa"] if options.near else []
    if _marks_chinese(options, tokenizer):
        needed += ["rjieba", "opencc"]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "pretrain")


def _marks_chinese(options: PrepareOptions, tokenizer: BertTokenizer) -> bool:
    """Whether the words of Chinese text are marked."""
    if options.words != "auto":
        return options.words == "chinese"
    return is_chinese(tokenizer)


def _told_options(options: PrepareOptions, files: list[str]) -> dict[str, Any]:
    """The options that decide on the bytes; files by their names, wherever they lie."""
    told = {name: value for name, value in options.model_dump().items() if name not in FREE}
    del told["vocab"]  # its checksum stands beside
    return {**told, "corpus": fingerprints(files)}
