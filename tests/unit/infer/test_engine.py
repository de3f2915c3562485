"""The engine: many callers, one model."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from filbert.errors import FilbertError, UsageError
from filbert.infer import overlap
from filbert.infer.engine import Engine
from filbert.infer.overlap import workers_for
from filbert.infer.predict import load
from filbert.model import native


class Lengths:
    """A predictor without a model: the length of a text, and a note of each batch."""

    OPTIONS = frozenset({"times"})

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.seconds = seconds
        self.model = load_nothing()

    def problem(self, row: Any) -> str | None:
        return None if isinstance(row, str) else f"expected a text, got {row!r}"

    def answer_rows(self, rows: Sequence[str], *, times: int = 1) -> list[int]:
        self.batches.append(list(rows))
        time.sleep(self.seconds)
        if "boom" in rows:
            raise FilbertError("the model is damaged")
        return [len(row) * times for row in rows]


class Panic(BaseException):
    """What a library in another language raises: no `Exception`."""


class Words(Lengths):
    """Takes {"tokens": [...]}, as a tagger; the answer is a list that can be changed."""

    def problem(self, row: Any) -> str | None:
        return None

    def answer_rows(self, rows: Sequence[Any], *, times: int = 1) -> list[Any]:
        self.batches.append(list(rows))
        return [{"words": list(row["tokens"]) * times} for row in rows]


def load_nothing() -> Any:
    return torch.nn.Linear(1, 1)


def test_calls_futures_and_coroutines_give_the_same() -> None:
    with Engine(Lengths()) as engine:
        assert engine("four") == 4
        assert engine.submit("four", times=3).result() == 12

        async def many() -> list[int]:
            return await asyncio.gather(*(engine.ask("x" * n) for n in range(50)))

        assert asyncio.run(many()) == list(range(50))


def test_what_waits_is_one_batch_of_at_most_a_window() -> None:
    predictor = Lengths(seconds=0.05)
    with Engine(predictor, window=8, workers=1) as engine:
        futures = [engine.submit("x" * n) for n in range(20)]
        assert [future.result() for future in futures] == list(range(20))
    assert max(map(len, predictor.batches)) <= 8
    assert len(predictor.batches) <= 5  # the first few alone, then windows


def test_other_options_are_another_batch() -> None:
    predictor = Lengths(seconds=0.02)
    with Engine(predictor, workers=1) as engine:
        futures = [engine.submit("abc", times=1 + n % 2) for n in range(8)]
        assert [future.result() for future in futures] == [3, 6] * 4
        with pytest.raises(UsageError, match="no option 'time'; this model takes times"):
            engine.submit("abc", time=2)


def test_a_bad_row_fails_alone() -> None:
    with Engine(Lengths()) as engine:
        rows: list[Any] = ["a", None, "ccc", ["x"], "eeeee"]
        answers = list(engine.stream(rows, errors="answer"))
        assert answers[0::2] == [1, 3, 5]
        assert answers[1] == {"error": "item 1: expected a text, got None"}
        with pytest.raises(FilbertError, match="item 1: expected a text, got None"):
            list(engine.stream(rows))
        with pytest.raises(FilbertError, match="expected an iterable of rows, got str"):
            list(engine.stream("text"))
        with pytest.raises(UsageError, match="errors must be raise or answer"):
            list(engine.stream(rows, errors="ignore"))


def test_an_error_of_the_model_reaches_all_who_wait() -> None:
    with Engine(Lengths()) as engine:
        with pytest.raises(FilbertError, match="damaged"):
            engine("boom")
        assert engine("fine") == 4


def test_rows_of_a_batch_that_fails_have_their_own_answers() -> None:
    predictor = Lengths(seconds=0.1)
    with Engine(predictor, workers=1) as engine:
        first = engine.submit("x")  # while it is computed, the others gather
        time.sleep(0.03)
        futures = [engine.submit(row) for row in ("a", "boom", "ccc")]
        assert first.result() == futures[0].result() == 1
        assert futures[2].result() == 3
        with pytest.raises(FilbertError, match="damaged"):
            futures[1].result()
    assert predictor.batches == [["x"], ["a", "boom", "ccc"], ["a"], ["boom"], ["ccc"]]


def test_a_worker_outlives_whatever_is_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = Lengths(seconds=0.05)

    def answers(rows: Sequence[str]) -> list[int]:
        time.sleep(0.05)
        if rows[0] == "panic":
            raise Panic
        return [] if rows[0] == "none" else [len(row) for row in rows]

    def leave(_: Any) -> None:
        raise SystemExit("called back")

    monkeypatch.setattr(predictor, "answer_rows", answers)
    with Engine(predictor, workers=1, cache=2) as engine:
        assert isinstance(engine.submit("panic").exception(timeout=30), Panic)
        assert isinstance(engine.submit("none").exception(timeout=30), ValueError)
        future = engine.submit("four")
        future.add_done_callback(leave)
        assert engine.submit("seven77").result(timeout=30) == 7
        assert future.result() == 4
    assert "the callback of an answer failed" in caplog.text


def test_options_of_any_kind() -> None:
    """They cannot be compared, nor kept under a name: each is a batch of its own."""
    predictor = Lengths(seconds=0.02)
    with Engine(predictor, workers=1, cache=9) as engine:
        futures = [engine.submit("abc", times=np.array([1, n])) for n in (2, 3, 3)]
        found = [future.result(timeout=30).tolist() for future in futures]
        assert found == [[3, 6], [3, 9], [3, 9]]
    assert len(predictor.batches) == 3


def test_a_live_stream_is_answered_as_it_comes() -> None:
    seen: list[Any] = []
    behind = []

    def rows() -> Iterator[str]:
        for n in range(12):
            behind.append(n - len(seen))
            yield "x" * n
            time.sleep(0.05)

    with Engine(Lengths()) as engine:
        for answer in engine.stream(rows()):
            seen.append(answer)
    assert seen == list(range(12))
    assert max(behind) <= 4  # of thousands that fit into its windows


def test_two_workers_where_they_pay_and_no_pools_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Lengths()
    with Engine(predictor) as engine:
        assert engine._workers == 1  # PyTorch computes

    def answers(rows: Sequence[str]) -> list[int]:
        return [workers_for(predictor.model)] * len(rows)

    monkeypatch.setattr(overlap, "serves", lambda model: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(predictor, "answer_rows", answers)
    assert workers_for(predictor.model) == 2
    with Engine(predictor) as engine:
        assert engine._workers == 2
        assert engine("x") == 1
    with pytest.raises(UsageError, match="workers must be at least 1"):
        Engine(predictor, workers=0)


def test_a_stream_holds_few_rows_at_once() -> None:
    taken = 0

    def rows() -> Iterator[str]:
        nonlocal taken
        for _ in range(5000):
            taken += 1
            yield "x"

    with Engine(Lengths(), window=10, workers=2) as engine:
        answers = engine.stream(rows())
        next(answers)
        assert taken <= 31
        assert sum(answers) == 4999


def test_the_cache_keeps_what_was_used_last() -> None:
    predictor = Lengths()
    with Engine(predictor, cache=2) as engine:
        for row in ("a", "bb", "a", "ccc", "a", "bb"):  # bb made room for ccc
            engine(row)
        asked = [row for batch in predictor.batches for row in batch]
        assert asked == ["a", "bb", "ccc", "bb"]
        assert engine("a", times=2) == 2  # options belong to the question
    with pytest.raises(UsageError, match="cache must be a whole number"):
        Engine(predictor, cache=-1)


def test_the_cache_takes_every_row_and_gives_copies() -> None:
    predictor = Words()
    with Engine(predictor, cache=9) as engine:
        first = engine({"tokens": ["a", "b"], "id": 1})
        first["words"].append("mine")
        second = engine({"id": 1, "tokens": ["a", "b"]})  # the same, in another order
        assert second == {"words": ["a", "b"]}
        second["words"].clear()
        assert engine({"tokens": ["a", "b"], "id": 1}) == {"words": ["a", "b"]}
        assert len(predictor.batches) == 1
        assert engine({"tokens": ["a b"], "id": 1}) == {"words": ["a b"]}
        assert engine({"tokens": ["a", "b"], "id": 1}, times=2) == {"words": ["a", "b"] * 2}


def test_weights_go_with_the_last_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[Any] = []
    monkeypatch.setattr(native, "release", freed.append)
    predictor, other = Lengths(), Lengths()
    engines = [Engine(predictor), Engine(predictor), Engine(other)]
    for engine in engines:
        assert engine("four") == 4
    engines[0].close()
    engines[0].close()
    assert not freed
    engines[1].close()
    assert freed and all(model is predictor.model for model in freed)
    engines[2].close()
    assert freed[-1] is other.model


@pytest.mark.parametrize("workers", [1, 2])
def test_a_callback_may_close_the_engine(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[Any] = []
    monkeypatch.setattr(native, "release", freed.append)
    before = threading.active_count()
    engine = Engine(Lengths(seconds=0.05), window=1, workers=workers)
    told: list[str] = []

    def close(_: Any) -> None:
        try:
            engine.close()
            told.append("closed")
        except RuntimeError as error:
            told.append(str(error))

    futures = [engine.submit("x" * n) for n in range(5)]
    for future in futures[:2]:
        future.add_done_callback(close)
    assert [future.result(timeout=30) for future in futures] == [0, 1, 2, 3, 4]  # what waited, too
    end = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert told == ["closed", "closed"] and freed == [engine.predictor.model]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_callback_may_ask_the_engine(workers: int) -> None:
    """The worker that calls it would wait for itself."""
    found: list[Any] = []
    ended = threading.Event()

    def ask(future: Any) -> None:
        found.append(future.result())
        found.append(engine("four"))
        found.append(engine.submit("four", times=2).result())
        found.extend(engine.stream(["a", "bb"]))
        ended.set()

    with Engine(Lengths(seconds=0.02), workers=workers, cache=10) as engine:
        asked = engine.submit("seven77")
        asked.add_done_callback(ask)
        assert ended.wait(30) and engine("x" * 9) == 9  # the engine goes on
    assert found == [7, 4, 8, 1, 2]


def test_a_chain_of_callbacks_has_no_end_too_soon() -> None:
    """Each asks for the next when it is answered: nothing nests, and rows still share batches."""
    predictor, left, ended = Lengths(), [3000], threading.Event()

    def next_one(_: Any) -> None:
        left[0] -= 1
        if left[0]:
            engine.submit("x").add_done_callback(next_one)
        else:
            ended.set()

    with Engine(predictor, workers=1) as engine:
        engine.submit("x").add_done_callback(next_one)
        assert ended.wait(60) and left == [0]
        before = len(predictor.batches)
        more: list[Any] = []
        first = [engine.submit("first") for _ in range(50)]
        for future in first:
            future.add_done_callback(lambda _: more.append(engine.submit("second")))
        assert [future.result(30) for future in first] == [5] * 50
        end = time.monotonic() + 30
        while len(more) < 50 and time.monotonic() < end:
            time.sleep(0.005)
        assert [future.result(30) for future in more] == [6] * 50
        assert len(predictor.batches) - before < 60  # of 100 rows one by one it would be 100


def test_without_threads_the_next_call_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, left = threading.Thread.start, [0]

    def limited(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with Engine(Lengths(), workers=3) as engine:
        for _ in range(2):
            with pytest.raises(FilbertError, match=r"no thread for this engine.*ulimit -u"):
                engine.submit("four")
        left[0] = 2
        assert engine("four") == 4
        assert caplog.messages == ["2 of 3 workers: can't start new thread"]
        assert [engine("x" * n) for n in range(20)] == list(range(20))
    with Engine(Lengths()) as never:
        left[0] = 0
        with pytest.raises(FilbertError, match="no thread"):
            never("four")


def test_what_came_before_a_close_is_handed_out() -> None:
    def rows(engine: Engine) -> Iterator[str]:
        yield from ("a", "bb", "ccc")
        engine.close()
        yield "dddd"

    engine, found = Engine(Lengths(seconds=0.02)), []
    with pytest.raises(FilbertError, match="closed"):
        for answer in engine.stream(rows(engine)):
            found.append(answer)
    assert found == [1, 2, 3]


def test_what_is_no_predictor_is_told() -> None:
    for wrong in ("runs/reviews", None, torch.nn.Linear(1, 1)):
        with pytest.raises(UsageError, match=r"what filbert.load gave, got .*Engine\(load"):
            Engine(wrong)
    with pytest.raises(FilbertError, match="load the model in each of them"):
        pickle.dumps(Engine(Lengths()))


def test_closed_it_says_so_and_leaves_no_thread() -> None:
    before = threading.active_count()
    engine = Engine(Lengths(seconds=0.02))
    future = engine.submit("four")
    engine.close()
    engine.close()
    assert future.result() == 4  # what waited was answered
    assert threading.active_count() == before
    with pytest.raises(FilbertError, match="closed"):
        engine("x")


def test_a_forked_child_has_workers_of_its_own() -> None:
    with Engine(Lengths()) as engine:
        assert engine("four") == 4
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=lambda: theirs.send(engine("seven77")))
        process.start()
        assert ours.poll(60), "the child hangs"
        assert ours.recv() == 7
        process.join()


def test_a_fork_while_another_thread_is_inside() -> None:
    with Engine(Lengths()) as engine:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        with engine._wake:  # as a thread does that submits or takes
            process = context.Process(target=lambda: theirs.send(engine("seven77")))
            process.start()
        assert ours.poll(60), "the child hangs"
        assert ours.recv() == 7
        process.join()


def test_a_real_model_answers_sixteen_threads_alike() -> None:
    embed = load("all-MiniLM-L6-v2")
    texts = ["good film", "bad book", "dull hotel", "nice"] * 4
    wanted = embed(texts)
    found: dict[int, Any] = {}
    with Engine(embed) as engine:

        def ask(number: int) -> None:
            found[number] = engine(texts[number])["vector"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(16):  # bfloat16: who shares the batch may move a last bit
        assert np.abs(np.array(found[number]) - wanted[number]).max() < 5e-3
    assert np.abs(embed(texts[0]) - wanted[0]).max() < 5e-3  # closed, the model still answers


@pytest.mark.skipif(isinstance(native.library(), str), reason="no native encoder here")
@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
def test_what_a_closed_engine_freed_is_laid_out_again(precision: str) -> None:
    embed = load("all-MiniLM-L6-v2", precision=precision)
    texts = ["good film", "bad book", "A man eats a bowl of noodles, slowly."]
    wanted = embed(texts)
    forward = embed.model.forward
    near = {"float32": 1e-6, "bf16": 5e-3, "int8": 5e-3}[precision]
    for _ in range(2):
        with Engine(embed) as engine:
            found = [engine(text)["vector"] for text in texts]
            assert forward.native is not None
        assert (forward.native is None) == (precision != "int8") and native.serves(embed.model)
        assert np.abs(np.array(found) - wanted).max() < near
    assert np.abs(embed(texts) - wanted).max() < near
    assert forward.native is not None
