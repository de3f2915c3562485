"""The engine: many callers, one model."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from filbert.errors import FilbertError, UsageError
from filbert.infer.engine import Engine
from filbert.infer.predict import load


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


def load_nothing() -> Any:
    import torch

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
