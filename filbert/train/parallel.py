"""Several processes that train one model: who am I, sums over all, the same decision everywhere.

    torchrun --nproc-per-node 8 -m filbert pretrain recipes/bert-base.toml

torchrun starts the processes and tells each its number through the environment; without it there is
one process and everything here does nothing. Each computes its share of a step's samples; gradients
are summed once a step, over the optimizer's flat tensors (see docs/decisions.md on why there is no
wrapper around the model). NCCL carries them between GPUs, gloo between CPUs.

If one process fails, all stop, with its error: it leaves its words in the store through which the
processes met, and `Watch` finds them there, or finds out who is gone without a word.
tests/system/test_parallel.py kills, corrupts and compares.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from filbert.errors import FilbertError, UsageError

PATIENCE = timedelta(minutes=10)  # how long a process waits for another that says nothing
BEAT = 1.0  # seconds between two signs of life
SILENCE = 300.0  # seconds without one after which a process counts as gone
ROLL_CALL = 8.0  # seconds to give one in, after a connection broke
GRACE = 10.0  # seconds to leave by oneself after another failed, before one is made to


@dataclass(frozen=True)
class World:
    """The processes of a run. `rank` is this one's number, `size` how many there are; `device` is
    where tensors that are to be summed must lie."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place; every process must call it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def counts(self, count: int) -> list[int]:
        """The number that each process gave, in their order; every process must call it."""
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = count  # the others leave zero there
        given: list[int] = self.sum(counts).tolist()
        return given

    def texts(self, text: str) -> list[str]:
        """What each process gave, in their order; every process must call it."""
        own = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)[:-1]
        sizes = self.counts(len(own))
        if not sum(sizes):
            return [""] * self.size
        line = torch.zeros(sum(sizes), dtype=torch.uint8, device=self.device)
        torch.split(line, sizes)[self.rank].copy_(own)
        parts = torch.split(self.sum(line).cpu(), sizes)
        return [bytes(part.tolist()).decode() for part in parts]

    def agree(self, what: str, value: str) -> None:
        """Raise `FilbertError` in every process unless all gave the same `value`. `what`: a name
        for it in words. Every process must call it."""
        given = self.texts(value)
        for rank, other in enumerate(given):
            if other != given[0]:
                raise FilbertError(
                    f"the processes do not agree on {what}: process 0 has {given[0]}, process "
                    f"{rank} has {other}; give all the same files, options and versions"
                )


def local_device(name: str) -> str:
    """The device for this process: with `auto` and several GPUs, the one of its local rank."""
    if name in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started a process number {local} on this machine, but PyTorch sees "
                f"{torch.cuda.device_count()} GPUs here; start as many processes as GPUs, or give "
                "--device cpu"
            )
        return f"cuda:{local}"
    return name


class Watch:
    """What became of the other processes. A thread gives a sign of life every second, looks for
    that of the next process, and for the word of one that failed; then this process has `GRACE`
    seconds to leave by itself: one that waits for a dead GPU never would."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="filbert-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The run is over, or this process is about to leave. Waits for the thread: one that is
        still in the store while Python shuts down takes the whole process with it (SIGABRT)."""
        self._over.set()
        self._thread.join(timeout=GRACE)

    def failed(self) -> tuple[int, int, str] | None:
        """Number, exit code and words of the process that failed first, if one did."""
        try:
            if not self.store.check(["failure"]):
                return None
            rank, code, words = self.store.get("failure").decode().split(" ", 2)
            return int(rank), int(code), words
        except RuntimeError:
            where = os.environ.get("MASTER_ADDR", "the first machine")
            return -1, 1, f"{where}, through which the processes met, does not answer any more"

    def tell(self, words: str, *, code: int, rank: int | None = None) -> tuple[int, int, str]:
        """Leave word of a failure, of this process's or of one that cannot speak; what was told
        first stands and is returned."""
        rank = self.rank if rank is None else rank
        with contextlib.suppress(RuntimeError):  # nobody is left to be told
            self.store.compare_set("failure", "", f"{rank} {code} {words}")
        return self.failed() or (rank, code, words)

    def ask(self) -> tuple[int, int, str]:
        """A connection broke: who failed? Those that give no more sign of life are gone."""
        end = time.monotonic() + ROLL_CALL
        before = [self._sign(rank) for rank in range(self.size)]
        missing = list(range(self.size))
        while missing and time.monotonic() < end:
            if found := self.failed():
                return found
            time.sleep(0.1)
            missing = [rank for rank in missing if self._sign(rank) == before[rank]]
        if not missing:
            return self.tell("the connection between the processes broke", code=1)
        return self._gone(missing[0])

    def _sign(self, rank: int) -> bytes | None:
        """The last sign of life of a process; None before the first, or if the store is gone."""
        with contextlib.suppress(RuntimeError):
            key = f"beat/{rank}"
            return bytes(self.store.get(key)) if self.store.check([key]) else None
        return None

    def _gone(self, rank: int) -> tuple[int, int, str]:
        return self.tell("it is gone without a word (killed, or its machine lost?)", code=1,
                         rank=rank)  # fmt: skip

    def _watch(self) -> None:
        following = (self.rank + 1) % self.size
        before, changed, beat, told_at = self._sign(following), time.monotonic(), 0, 0.0
        while not self._over.wait(BEAT):
            beat += 1
            found = self.failed()
            with contextlib.suppress(RuntimeError):  # `failed` finds out that the store is gone
                self.store.set(f"beat/{self.rank}", str(beat))
            if (sign := self._sign(following)) != before:
                before, changed = sign, time.monotonic()
            if found is None and time.monotonic() - changed > SILENCE:
                found = self._gone(following)
            if found is not None:
                told_at = told_at or time.monotonic()
                if time.monotonic() - told_at > GRACE and found[0] != self.rank:
                    print(f"error: {described(found)}", file=sys.stderr, flush=True)
                    os._exit(found[1])


def described(found: tuple[int, int, str]) -> str:
    """What a process that did not fail itself says of the one that did."""
    rank, code, words = found
    said = f"process {rank} failed: {words}" if rank >= 0 else words
    return said if code == 2 else f"{said}. Checkpoints are whole; go on with --resume"


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Meet the other processes that torchrun started, for the length of a block. An error in the
    block of one process ends those of all: the others raise `FilbertError` with its words and its
    exit code. Where all fail alike, one speaks and the others leave silently (`SystemExit`)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store, rank=rank, world_size=size, timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        watch = Watch(PrefixStore(f"filbert/{attempt}", store.clone()), rank, size)
    except (ValueError, RuntimeError) as error:
        raise FilbertError(
            f"the {size} processes of this run could not meet ({error}); start them with torchrun, "
            "which sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        ) from error
    restore = _heed_unless_failed(watch)
    try:
        yield World(rank, size, device)
    except BaseException as error:
        lost = isinstance(error, RuntimeError) and connection_broke(error)
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        words = (
            str(error) if isinstance(error, FilbertError) else f"{type(error).__name__}: {error}"
        )
        found = watch.ask() if lost else watch.tell(words, code=code)
        watch.stop()
        if found[0] == rank:
            raise
        if not lost and found[2] == words:  # all failed alike
            raise SystemExit(code) from error
        if not lost:  # two failed in two ways: each says its own
            raise
        other = FilbertError(described(found))
        other.exit_code = found[1]
        raise other from error
    else:
        watch.stop()
        restore()
        dist.destroy_process_group()


def _heed_unless_failed(watch: Watch) -> Callable[[], None]:
    """From now on SIGTERM ends this process unless another one failed: then torchrun sends it while
    this one still finds out who that was, and it has `GRACE` seconds to leave and say so. Returns
    what puts the former handler back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    first: list[float] = []  # when one was not heeded

    def restore() -> None:
        signal.signal(signal.SIGTERM, before)

    def heed(number: int, frame: Any) -> None:
        now = time.monotonic()
        if watch.failed() is None or (first and now - first[0] > GRACE):
            restore()
            signal.raise_signal(number)
        first.append(now)

    signal.signal(signal.SIGTERM, heed)
    return restore


def connection_broke(error: RuntimeError) -> bool:
    """Whether this error of torch says that another process cannot be reached."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    words = str(error).lower()
    return any(mark in words for mark in ("gloo", "connection closed", "connection reset"))
