"""The engine: one model that answers many callers at once.

    from filbert import load
    from filbert.infer.engine import Engine

    with Engine(load("runs/reviews"), cache=10_000) as engine:
        engine("Great film.")                          # one answer, as the predictor gives it
        engine.submit("Great film.").result()          # a future
        await engine.ask("Great film.")                # in a coroutine
        for answer in engine.stream(texts): ...        # any length, in order, constant memory

Callers hand in rows (what the predictor takes: a text, a pair); workers take all that wait, at most
`window` of them, as one batch. So ten callers with a short text each cost one packed batch. Where
two workers pay (`filbert/infer/overlap.py`), one tokenises and decodes while the other computes.

Answers do not depend on who shares the batch, beyond rounding. A bad row fails alone, and rows that
cannot be answered together are answered one by one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from copy import deepcopy
from typing import Any, NamedTuple, Self

from filbert.errors import FilbertError, UsageError
from filbert.infer.overlap import mark_worker, until_failure, workers_for
from filbert.infer.predict import MOST_THREADS, WINDOW, check_count, shown
from filbert.infer.warm_up import warm_graphs, warm_rows
from filbert.model import graphs, native

Row = Any  # what the predictor takes
Answer = Any
logger = logging.getLogger("filbert")


class _Asked(NamedTuple):
    """A row that waits. Those of equal `group` share a batch; its answer is kept under `key`."""

    row: Row
    options: dict[str, Any]
    group: Hashable
    key: str | None
    future: Future[Answer]


class _Future(Future[Answer]):
    """One whose answer a worker of the same engine computes itself where it waits for it: in the
    callback of another answer. It would wait for itself."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = weakref.ref(engine)  # whoever keeps answers keeps no model

    def result(self, timeout: float | None = None) -> Answer:
        self._help()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._help()
        return super().exception(timeout)

    def _help(self) -> None:
        if (engine := self._engine()) is not None:
            engine._help(self)


class Engine:
    """A predictor behind a queue. Calls from any number of threads are safe."""

    def __init__(
        self,
        predictor: Any,
        *,
        window: int = WINDOW,
        workers: int | None = None,
        cache: int = 0,
    ) -> None:
        """predictor: what `filbert.load` gave. window: rows of a batch, at most. workers: two where
        that pays with this model, else one, unless said. cache: answers kept, those used last; 0
        keeps none. Raises `UsageError` for numbers out of range."""
        check_count("window", window)
        if not hasattr(predictor, "answer_rows"):
            raise UsageError(
                f"an engine is made of what filbert.load gave, got {shown(predictor)}; write "
                "Engine(load(...))"
            )
        if workers is None:
            workers = workers_for(predictor.model)
        check_count("workers", workers, most=MOST_THREADS)
        if not isinstance(cache, int) or cache < 0:
            raise UsageError(f"cache must be a whole number of answers, 0 or more, got {cache!r}")
        self.predictor = predictor
        self._window, self._workers, self._cache_size = window, workers, cache
        self._cache: OrderedDict[str, Answer] = OrderedDict()
        self._waiting: deque[_Asked] = deque()
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._running = 0  # workers that have not ended
        self._owner = 0  # the process that the threads belong to
        self._closed = False  # takes no more rows
        self._ended = False  # computes no more
        with _alive_lock:
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
        future: Future[Answer] = _Future(self)
        problem = self.predictor.problem(row)
        if problem is not None:
            future.set_exception(FilbertError(problem))
            return future
        group = _canonical(options) or object()  # what has no such form shares no batch
        key = _canonical([row, options]) if self._cache_size else None
        with self._wake:
            if self._closed:
                raise FilbertError("this engine is closed")
            self._start()
            if key is None or key not in self._cache:
                self._waiting.append(_Asked(row, options, group, key, future))
                self._wake.notify()
                return future
            self._cache.move_to_end(key)
            kept = self._cache[key]
        future.set_result(deepcopy(kept))  # a caller may change what it gets
        return future

    async def ask(self, row: Row, **options: Any) -> Answer:
        """As a call, for coroutines: others run while the answer is computed."""
        return await asyncio.wrap_future(self.submit(row, **options))

    def stream(
        self, rows: Iterable[Row], *, errors: str = "raise", **options: Any
    ) -> Iterator[Any]:
        """Answers of an iterable of any length, in order and in constant memory: a few windows are
        on their way at once, and what is answered is handed out after each row that is taken. A row
        that cannot be read raises `FilbertError` naming its position; with `errors="answer"` it
        gives `{"error": ...}` in its place and the others go on. What the iterable itself raises
        comes after the answers of the rows before it."""
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

        most = self._window * (self._workers + 1)
        failed: list[Exception] = []
        for row in until_failure(rows, failed):
            try:
                ahead.append(self.submit(row, **options))
            except FilbertError as error:  # closed meanwhile, say; what came before is answered
                failed.append(error)
                break
            while ahead and (len(ahead) >= most or ahead[0].done()):
                yield take()
        while ahead:
            yield take()
        if failed:
            raise failed[0]

    def warm_up(self) -> float:
        """Answer a short row and a long one with the threads of this engine, so that the first
        caller does not wait longer than those after; the seconds that it took."""
        began = time.perf_counter()
        warm_graphs(self.predictor)
        for row, options in warm_rows(self.predictor):
            for _ in range(self._workers):
                self.submit(row, **options).result()
        return time.perf_counter() - began

    def close(self) -> None:
        """Answer what waits, end the workers, and free the native encoder's weights, or the graphs
        of a GPU, unless another open engine has the same model; a later call of the predictor lays
        them out again. (Those in int8 go with the predictor.) May be called again; other calls then
        raise `FilbertError`.
        A future's callback, which is called by a worker, may call it too, and does not wait."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            threads = list(self._threads) if self._owner == os.getpid() else []
        if threading.current_thread() in threads:
            return  # the last worker ends the engine
        for thread in threads:
            thread.join()
        self._end()

    def __reduce__(self) -> Any:
        raise FilbertError(
            "an engine cannot be handed to another process: load the model in each of them"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        """Free what is no longer needed, once no worker runs."""
        self._cache.clear()
        model = self.predictor.model
        with _alive_lock:
            self._ended = True
            if all(other._ended or other.predictor.model is not model for other in list(_alive)):
                native.release(model)
                graphs.release(model)

    def _forked(self) -> None:
        """In a forked child: the lock may be held by a thread that did not come along."""
        self._wake = threading.Condition()

    def _start(self) -> None:
        """Begin the workers, again in a forked child: it has none, and nobody there waits. Raises
        `FilbertError` where there can be none; the next call tries again."""
        if self._owner == os.getpid():
            return
        if self._owner:
            self._waiting.clear()
        self._threads = []
        for number in range(self._workers):
            thread = threading.Thread(
                target=self._work, name=f"filbert-engine-{number}", daemon=True
            )
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:  # the system gives no more of them
                if not self._threads:
                    raise FilbertError(
                        f"no thread for this engine ({error}): end other work, or raise the limits "
                        "of threads and memory (ulimit -u, ulimit -v, or those of the container)"
                    ) from None
                logger.warning("%d of %d workers: %s", len(self._threads), self._workers, error)
                break
            self._threads.append(thread)
        self._owner, self._running = os.getpid(), len(self._threads)

    def _take(self) -> list[_Asked] | None:
        """Rows with the same options, at most a window; None when the engine closes."""
        with self._wake:
            while not self._waiting:
                if self._closed:
                    return None
                self._wake.wait()
            group = self._waiting[0].group
            batch: list[_Asked] = []
            while self._waiting and len(batch) < self._window and self._waiting[0].group == group:
                asked = self._waiting.popleft()
                if asked.future.set_running_or_notify_cancel():
                    batch.append(asked)
            return batch

    def _help(self, future: Future[Answer]) -> None:
        """In a worker, which waits for `future`: answer it, unless another one has taken it."""
        if future.done() or threading.current_thread() not in self._threads:
            return
        with self._wake:
            places = (n for n, one in enumerate(self._waiting) if one.future is future)
            place = next(places, None)
            if place is None:
                return
            asked = self._waiting[place]
            del self._waiting[place]
        if future.set_running_or_notify_cancel():
            self._answer([asked])

    def _work(self) -> None:
        mark_worker()
        while (batch := self._take()) is not None:
            if batch:
                self._answer(batch)
        with self._wake:
            self._running -= 1
            last = self._running == 0
        if last:
            self._end()

    def _answer(self, batch: list[_Asked]) -> None:
        """Hand each of these rows its answer; if they have none together, one by one, so that each
        has its own error."""
        try:
            answers = list(
                self.predictor.answer_rows([asked.row for asked in batch], **batch[0].options)
            )
            pairs = list(zip(batch, answers, strict=True))
            if self._cache_size:
                self._keep(pairs)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            failed = error
        else:
            for asked, answer in pairs:
                _tell(asked.future.set_result, answer)
            return
        if len(batch) == 1:
            _tell(batch[0].future.set_exception, failed)
            return
        for asked in batch:
            self._answer([asked])

    def _keep(self, pairs: list[tuple[_Asked, Answer]]) -> None:
        """Copies of these answers, in place of those that were used longest ago."""
        kept = {asked.key: deepcopy(answer) for asked, answer in pairs if asked.key is not None}
        with self._wake:
            self._cache.update(kept)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)


_alive: weakref.WeakSet[Engine] = weakref.WeakSet()
_alive_lock = threading.Lock()


def _after_fork() -> None:
    global _alive_lock
    _alive_lock = threading.Lock()
    for engine in list(_alive):
        engine._forked()


os.register_at_fork(after_in_child=_after_fork)


def _tell(hand_over: Callable[[Any], None], value: Any) -> None:
    """Set a future. What its callbacks raise concerns nobody else who waits: it is logged, as
    `Future` itself does with an `Exception`."""
    try:
        hand_over(value)
    except BaseException:
        logger.exception("the callback of an answer failed")


def _canonical(value: Any) -> str | None:
    """Equal texts for what means the same to a predictor; None for what JSON cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError):
        return None
