"""Documents of a corpus handed out in chunks, and their results in the order of the chunks.

Where a chunk ends depends on the texts alone, never on the processes that take it. A place in the
corpus is a file and how many of its documents lie behind: to go on from there the files before it
are not opened, and of this one the documents before it are read and dropped.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from filbert.data.corpus import Document, read_documents
from filbert.data.prepare_chunk import Chunk, ChunkPlan, ChunkWorker, run, start
from filbert.data.prepare_options import PrepareOptions
from filbert.errors import FilbertError

_DOCUMENTS = 5000  # at most, in a chunk
_ENDS = 1 << 16  # bytes of a file's beginning and end that tell it from another


class Place(NamedTuple):
    """The file, by number, and how many of its documents lie behind; `read` documents in all."""

    file: int
    documents: int
    read: int = 0


@dataclass(frozen=True, slots=True)
class Feed:
    """What is read: the files, how, and how many characters fill a chunk."""

    files: list[str]
    options: PrepareOptions
    characters: int

    def documents(self, file: str, progress: Callable[[int], object]) -> Iterator[Document]:
        """The documents of one file."""
        options = self.options
        return read_documents(
            file,
            text_column=options.text_column,
            source_column=options.source_column,
            document=options.document,
            encoding=options.encoding,
            progress=progress,
        )


class Pending(NamedTuple):
    """A chunk to be worked on: where it ends, bytes of the corpus up to there, its documents."""

    place: Place
    behind: int
    texts: list[str]
    sources: list[str]


def chunks_of(feed: Feed, place: Place) -> Iterator[Pending]:
    """The chunks from `place` on. A chunk never reaches over the end of a file."""
    sizes = [os.path.getsize(file) for file in feed.files]
    limit = feed.options.limit
    read = place.read
    for number in range(place.file, len(feed.files)):
        before, behind = sum(sizes[:number]), [0]  # bytes: of the files before, of this one
        skipped = place.documents if number == place.file else 0
        documents = feed.documents(feed.files[number], partial(behind.__setitem__, 0))
        texts: list[str] = []
        sources: list[str] = []
        characters, done = 0, skipped
        for document in itertools.islice(documents, skipped, None):
            if limit is not None and read >= limit:
                break
            read, done = read + 1, done + 1
            texts.append(document.text)
            sources.append(document.source)
            characters += len(document.text)
            if characters >= feed.characters or len(texts) >= _DOCUMENTS:
                yield Pending(Place(number, done, read), before + behind[0], texts, sources)
                texts, sources, characters = [], [], 0
        if texts:
            yield Pending(Place(number, done, read), before + sizes[number], texts, sources)
        if limit is not None and read >= limit:
            return


def results(
    chunks: Iterator[Pending], plan: ChunkPlan, processes: int
) -> Generator[tuple[Place, int, Chunk], None, None]:
    """(where it ends, bytes up to there, arrays) of each chunk, in order.

    With one process the work is done in this one. Few chunks are under way at a time.
    """
    if processes == 1:
        worker = ChunkWorker(plan)
        for chunk in chunks:
            yield chunk.place, chunk.behind, worker.run(chunk.texts, chunk.sources)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start,
        initargs=(plan,),
    )
    under_way: deque[tuple[Pending, Future[Chunk]]] = deque()
    try:
        for chunk in chunks:
            under_way.append((chunk, pool.submit(run, chunk.texts, chunk.sources)))
            if len(under_way) > processes + 2:
                first, future = under_way.popleft()
                yield first.place, first.behind, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first.place, first.behind, future.result()
    except BrokenProcessPool:
        raise FilbertError(
            f"one of the {processes} processes ended by itself, killed for memory perhaps; the "
            "same command goes on from where it was, with fewer --processes if need be"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fingerprints(files: list[str]) -> list[list[str | int]]:
    """[name, size, hash of both ends] of each file: enough to tell that a corpus was changed."""
    found: list[list[str | int]] = []
    for file in files:
        try:
            size = os.path.getsize(file)
            with open(file, "rb") as stream:
                digest = hashlib.sha256(stream.read(_ENDS))
                stream.seek(max(0, size - _ENDS))
                digest.update(stream.read(_ENDS))
        except OSError as error:
            raise FilbertError(f"could not read {file}: {error.strerror or error}") from error
        found.append([os.path.basename(file), size, digest.hexdigest()])
    return found
