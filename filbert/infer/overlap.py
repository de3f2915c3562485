"""Blocks of texts answered by two workers: one tokenises and decodes while the other computes.

A block goes through three stages: pre (tokenising, packing), core (the encoder) and post (head,
pooling, decoding). The native encoder lets go of the interpreter lock and takes one call at a time,
so two workers with a block each make a pipeline of these stages: while the core computes one block,
the other is decoded and the one after it prepared.

    for answers in in_order(answer, blocks, workers=workers_for(predictor.model)):
        ...                                    # of each block, in order

It pays on two cores and more, with the native encoder or a GPU: on a CPU PyTorch's own threads
would be in each other's way.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from filbert.model.native import rouse, serves
from filbert.model.plain import OF_WORDS
from filbert.model.seq2seq_config import Seq2SeqConfig

FEW = 8  # texts that are over so soon that its threads are woken before they are tokenised
WIDE = 1024  # texts of a block of one worker, or of a GPU
BLOCK = 256  # texts of a block where many are at hand: enough of them for two workers to share
Block = TypeVar("Block", bound=Sized)
Answers = TypeVar("Answers")
Item = TypeVar("Item")
_here = threading.local()


def workers_for(model: nn.Module) -> int:
    """How many blocks are worth having on the way at once: 2, or 1 where that does not pay, or in
    a thread that is such a worker itself."""
    if getattr(_here, "working", False):
        return 1
    if isinstance(model, OF_WORDS) or isinstance(getattr(model, "config", None), Seq2SeqConfig):
        return 1  # what they do beside the encoder is PyTorch's
    encoder = getattr(model, "base_model", model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if getattr(encoder, "device", torch.device("cpu")).type == "cuda":
        return min(cores, 2)
    return 2 if serves(encoder) and min(cores, torch.get_num_threads()) >= 2 else 1


def mark_worker() -> None:
    """Say that this thread is a worker, which starts no others; see `workers_for`."""
    _here.working = True


def expect(count: int, model: nn.Module) -> None:
    """Say that so many texts are about to be tokenised for this model. Of few, tokenising and
    computing take about as long as the threads of the native encoder take to wake."""
    if count <= FEW:
        rouse(model)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this thread answers its blocks itself, one after the other."""
    before = getattr(_here, "working", False)
    _here.working = True
    try:
        yield
    finally:
        _here.working = before


def until_failure(given: Iterable[Item], failed: list[Exception]) -> Iterator[Item]:
    """What is given. An error of the iterable ends it and is put into `failed`, to be raised when
    what came before it is answered."""
    try:
        yield from given
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller raises it
        failed.append(error)


def in_order(
    work: Callable[[Block], Answers], blocks: Iterable[Block], *, workers: int, full: int = 1
) -> Iterator[tuple[Block, Answers]]:
    """Each block with what `work` makes of it, in order; at most `workers` blocks are held beyond
    the one that is handed out. An error comes at the place of its block.

    The first blocks that have fewer than `full` rows are answered before the next is asked for, so
    that answers begin to flow early."""
    if workers < 2:
        for block in blocks:
            yield block, work(block)
        return
    ahead: deque[tuple[Block, Future[Answers]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="filbert-block", initializer=mark_worker)
    failed: list[Exception] = []
    try:
        for block in until_failure(blocks, failed):
            if not ahead and len(block) < full:
                yield block, work(block)
                continue
            ahead.append((block, pool.submit(work, block)))
            if len(ahead) > workers:
                done, future = ahead.popleft()
                yield done, future.result()
        while ahead:
            done, future = ahead.popleft()
            yield done, future.result()
        if failed:
            raise failed[0]
    finally:
        pool.shutdown(cancel_futures=True)


def in_blocks(
    work: Callable[[range], NDArray[np.float32]], count: int, model: nn.Module, *, width: int
) -> NDArray[np.float32]:
    """(count, width): what `work` makes of the rows of each block, overlapped where that pays."""
    expect(count, model)
    if count <= BLOCK:
        return work(range(count))
    workers = workers_for(model)
    size = BLOCK if workers > 1 and serves(getattr(model, "base_model", model)) else WIDE
    out = np.empty((count, width), np.float32)
    blocks = (range(start, min(start + size, count)) for start in range(0, count, size))
    for rows, found in in_order(work, blocks, workers=workers if count > size else 1):
        out[rows.start : rows.stop] = found
    return out
