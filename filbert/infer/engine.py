"""The engine: one model that answers many callers at once.

    from filbert import load
    from filbert.infer.engine import Engine

    with Engine(load("runs/reviews"), cache=10_000) as engine:
        engine("Great film.")                          # one answer, as the predictor gives it
        engine.submit("Great film.").result()          # a future
        await engine.ask("Great film.")                # in a coroutine
        for answer in engine.stream(texts): ...        # any length, in order, constant memory

Callers hand in rows (what the predictor takes: a text, a pair); workers take all that wait, at most
`window` of them, as one batch. So ten callers with a short text each cost one packed batch. With
two workers, the default, one tokenises and decodes while the other computes: the tokenizer and the
native encoder let go of the interpreter lock.

Answers do not depend on who shares the batch, beyond rounding. A bad row fails alone.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Self

from filbert.errors import FilbertError, UsageError
from filbert.infer.predict import MOST_THREADS, WINDOW, check_count
from filbert.model import native

Row = Any  # what the predictor takes
Answer = Any


class Engine:
    """A predictor behind a queue. Calls from any number of threads are safe."""

    def __init__(
        self, predictor: Any, *, window: int = WINDOW, workers: int = 2, cache: int = 0
    ) -> None:
        """predictor: what `filbert.load` gave. window: rows of a batch, at most. cache: answers
        kept, those used last; 0 keeps none. Raises `UsageError` for numbers out of range."""
        check_count("window", window)
        check_count("workers", workers, most=MOST_THREADS)
        if not isinstance(cache, int) or cache < 0:
            raise UsageError(f"cache must be a whole number of answers, 0 or more, got {cache!r}")
        self.predictor = predictor
        self._window, self._workers, self._cache_size = window, workers, cache
        self._cache: OrderedDict[Hashable, Answer] = OrderedDict()
        self._waiting: deque[tuple[Row, tuple[tuple[str, Any], ...], Future[Answer]]] = deque()
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._owner = 0  # the process that the threads belong to
        self._closed = False
        _alive.add(self)

    def __call__(self, row: Row, **options: Any) -> Answer:
        """The answer of one row. Raises `FilbertError` for a row that the model cannot read."""
        return self.submit(row, **options).result()

    def submit(self, row: Row, **options: Any) -> Future[Answer]:
        """A future for the answer of one row; options are those of the predictor's `answer_rows`.
        Raises `UsageError` for an option that it does not have, `FilbertError` once closed."""
        for name in options:
            if name not in self.predictor.OPTIONS:
                raise UsageError(
                    f"no option {name!r}; this model takes "
                    f"{', '.join(sorted(self.predictor.OPTIONS)) or 'none'}"
                )
        future: Future[Answer] = Future()
        problem = self.predictor.problem(row)
        if problem is not None:
            future.set_exception(FilbertError(problem))
            return future
        asked = tuple(sorted(options.items()))
        key = _key(row, asked) if self._cache_size else None
        with self._wake:
            if self._closed:
                raise FilbertError("this engine is closed")
            self._start()
            if key is not None and key in self._cache:
                self._cache.move_to_end(key)
                future.set_result(self._cache[key])
                return future
            self._waiting.append((row, asked, future))
            self._wake.notify()
        return future

    async def ask(self, row: Row, **options: Any) -> Answer:
        """As a call, for coroutines: others run while the answer is computed."""
        return await asyncio.wrap_future(self.submit(row, **options))

    def stream(
        self, rows: Iterable[Row], *, errors: str = "raise", **options: Any
    ) -> Iterator[Any]:
        """Answers of an iterable of any length, in order and in constant memory: a few windows are
        on their way at once. A row that cannot be read raises `FilbertError` naming its position;
        with `errors="answer"` it gives `{"error": ...}` in its place and the others go on."""
        if errors not in ("raise", "answer"):
            raise UsageError(f"errors must be raise or answer, got {errors!r}")
        if isinstance(rows, str | bytes | dict) or not isinstance(rows, Iterable):
            raise FilbertError(f"expected an iterable of rows, got {type(rows).__name__}")
        ahead: deque[Future[Answer]] = deque()
        done = 0

        def take() -> Any:
            nonlocal done
            future, place = ahead.popleft(), done
            done += 1
            try:
                return future.result()
            except FilbertError as error:
                if errors == "answer":
                    return {"error": f"item {place}: {error}"}
                raise FilbertError(f"item {place}: {error}") from None

        for row in rows:
            ahead.append(self.submit(row, **options))
            if len(ahead) >= self._window * (self._workers + 1):
                yield take()
        while ahead:
            yield take()

    def close(self) -> None:
        """Answer what waits, end the workers and free the native encoder's weights. May be called
        again; other calls then raise `FilbertError`."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads if self._owner == os.getpid() else []:
            thread.join()
        self._threads.clear()
        self._cache.clear()
        native.close(self.predictor.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forked(self) -> None:
        """In a forked child: the lock may be held by a thread that did not come along."""
        self._wake = threading.Condition()

    def _start(self) -> None:
        """Begin the workers, again in a forked child: it has none, and nobody there waits."""
        if self._owner == os.getpid():
            return
        if self._owner:
            self._waiting.clear()
        self._owner = os.getpid()
        self._threads = [
            threading.Thread(target=self._work, name=f"filbert-engine-{n}", daemon=True)
            for n in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def _take(self) -> tuple[list[tuple[Row, Future[Answer]]], tuple[tuple[str, Any], ...]] | None:
        """Rows with the same options, at most a window; None when the engine closes."""
        with self._wake:
            while not self._waiting:
                if self._closed:
                    return None
                self._wake.wait()
            asked = self._waiting[0][1]
            batch: list[tuple[Row, Future[Answer]]] = []
            while self._waiting and len(batch) < self._window and self._waiting[0][1] == asked:
                row, _, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    batch.append((row, future))
            return batch, asked

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            batch, asked = taken
            if not batch:
                continue
            try:
                answers = self.predictor.answer_rows([row for row, _ in batch], **dict(asked))
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                for _, future in batch:
                    future.set_exception(error)
                continue
            if self._cache_size:
                with self._wake:
                    for (row, _), answer in zip(batch, answers, strict=True):
                        self._cache[_key(row, asked)] = answer
                    while len(self._cache) > self._cache_size:
                        self._cache.popitem(last=False)
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


_alive: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_alive):
        engine._forked()


os.register_at_fork(after_in_child=_after_fork)


def _key(row: Row, asked: tuple[tuple[str, Any], ...]) -> Hashable:
    return (tuple(row) if isinstance(row, list) else row, repr(asked))
