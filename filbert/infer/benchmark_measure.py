"""Measuring of what answers texts: stages, latency, arrivals at a rate, and the machine's ceiling.

An `Arm` is something that answers. `rounds` lets all arms take turns, so that a machine that slows
down hurts none more than another; ratios are taken within a round. The stages of a predictor of
filbert's own are timed from outside, in a pass of their own by one worker (two would do several
stages at once), by hooks that are gone afterwards:

    pre     the tokenizer
    core    the encoder
    post    the rest: batches, head, pooling, decoding

What share of the machine is used: the operations that the encoder's products need
(`operations`), over the rate of the fastest products that this machine was seen to do (`ceiling`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.infer.overlap import alone
from filbert.model.config import BertConfig
from filbert.model.core import PackedCall
from filbert.model.device import matmul_rate
from filbert.model.modern_config import GLOBAL, ModernBertConfig
from filbert.model.native_library import library, units
from filbert.model.pretrained import PretrainedModel
from filbert.model.seq2seq_config import Seq2SeqConfig

Rows = Sequence[Any]
Call = Callable[[Rows], Any]
Floats = NDArray[np.float32]

TRIAL = 128  # rows on which the ways of an arm are compared
AT_ONCE = 32  # waiting texts that are answered together
TILE_STEPS, TILE_TRIES = 50_000, 40  # of the native library's measurement: milliseconds each
PARTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Arm:
    """Something that answers rows.

    ways: how it can be called for many rows, by name; the fastest counts. few: for one row or the
    few that wait. outputs: (rows, d) float32 for comparing, if other than what a way returns.
    """

    name: str
    ways: dict[str, Call]
    few: Call
    outputs: Call | None = None


@dataclass
class Timed:
    """What was seen of an arm. seconds: of all rows, each round; processor: the same as the time
    that processors worked, which others on the machine hurt less; singles: of one row; waits: from
    arrival to answer; busy: share of the time at that rate, each round. All in seconds."""

    way: str
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    singles: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def pick(arm: Arm, rows: Rows) -> str:
    """The name of the fastest way, after one call of each that warms it up."""
    if len(arm.ways) == 1:
        (name,) = arm.ways
        arm.ways[name](rows[:TRIAL])
        return name
    best: dict[str, float] = {}
    for call in arm.ways.values():
        call(rows[:TRIAL])
    for _ in range(2):
        for name, call in arm.ways.items():
            taken = seconds_of(call, rows[:TRIAL])
            best[name] = min(taken, best.get(name, taken))
    return min(best, key=lambda name: best[name])


def seconds_of(call: Call, rows: Rows) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    call(rows)
    return time.perf_counter() - began


def clocked(timed: Timed, call: Call, rows: Rows) -> None:
    """One call, noted in `timed`."""
    worked = time.process_time()
    timed.seconds.append(seconds_of(call, rows))
    timed.processor.append(time.process_time() - worked)


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names in the order of this turn: each stands in each place equally often."""
    turn %= max(len(names), 1)
    return [*names[turn:], *names[:turn]]


def spread(rows: Rows, count: int) -> list[Any]:
    """`count` rows, or all, evenly from first to last."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int).tolist()
    return [rows[place] for place in places]


def at_rate(call: Call, rows: Rows, *, rate: float, seed: int) -> tuple[list[float], float]:
    """Answer `rows` as they arrive: seconds from arrival to answer of each, and the share of the
    time in which it was busy.

    Arrivals do not wait for answers: the gaps between them are exponential with the mean 1 / rate
    (a Poisson process). Those that wait are answered together, at most `AT_ONCE`.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    arrivals = np.cumsum(draw.exponential(1 / rate, len(rows)))
    waits = np.empty(len(rows))
    done, busy, start = 0, 0.0, time.perf_counter()
    while done < len(rows):
        now = time.perf_counter() - start
        if arrivals[done] > now:
            time.sleep(arrivals[done] - now)
            now = time.perf_counter() - start
        waiting = int(np.searchsorted(arrivals, now, side="right"))
        last = min(max(waiting, done + 1), done + AT_ONCE)
        busy += seconds_of(call, rows[done:last])
        waits[done:last] = time.perf_counter() - start - arrivals[done:last]
        done = last
    return waits.tolist(), busy / (time.perf_counter() - start)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """`q1`, `median`, `q3`."""
    found = np.quantile(np.asarray(values), PARTS).tolist()
    return dict(zip(("q1", "median", "q3"), found, strict=True))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`p50`, `p95`, `p99` of seconds, in milliseconds."""
    found = np.quantile(1000 * np.asarray(values), (0.5, 0.95, 0.99)).tolist()
    return dict(zip(("p50", "p95", "p99"), found, strict=True))


def difference(found: Floats, truth: Floats) -> dict[str, float]:
    """How far two arrays of one shape lie apart: `largest`, and `relative` (norms)."""
    apart = found.astype(np.float64) - truth
    norm = float(np.linalg.norm(truth))
    return {
        "largest": float(np.abs(apart).max(initial=0.0)),
        "relative": float(np.linalg.norm(apart)) / (norm or 1.0),
    }


# --- the ceiling ---------------------------------------------------------------------------------


def ceiling(dtype: torch.dtype, device: torch.device, threads: int) -> dict[str, float]:
    """GFLOP/s of the fastest products seen now, by how they were made: PyTorch's square matrix
    products in `dtype`, and where the native encoder serves, its tiles alone on `threads` threads.

    An int8 model is held to bfloat16: some of its products are, and PyTorch has no fast int8 ones.
    """
    dtype = torch.bfloat16 if dtype == torch.int8 else dtype
    rates = {f"matrix products in PyTorch, {name_of(dtype)}": matmul_rate(dtype, device)}
    lib = library()
    if dtype == torch.bfloat16 and device.type == "cpu" and not isinstance(lib, str):
        rates[f"{units()}, bf16, operands from the first-level cache"] = tile_rate(lib, threads)
    return rates


def tile_rate(lib: Any, threads: int) -> float:
    """GFLOP/s of tile products on so many threads together, the best of short tries: a long one
    would hold moments in which others had the processor."""
    with ThreadPoolExecutor(threads) as pool:
        return max(
            sum(pool.map(lambda _: lib.filbert_tile_rate(TILE_STEPS, 1), range(threads)))
            for _ in range(TILE_TRIES)
        )


def name_of(dtype: torch.dtype) -> str:
    """`bf16`, `float32` or `int8`, as `--precision` has it."""
    return "bf16" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")


# --- the stages ----------------------------------------------------------------------------------


@dataclass
class Stages:
    """Seconds of all and of each stage, and what went through the encoder: tokens, the sum of the
    squares of their sequences' lengths, sequences; of first tokens alone in the last layer or not.
    """

    whole: float = 0.0
    pre: float = 0.0
    core: float = 0.0
    tokens: int = 0
    squares: int = 0
    sequences: int = 0
    first_only: bool = False
    _inside: bool = False
    _began: float = 0.0

    @property
    def post(self) -> float:
        """Seconds of the rest."""
        return self.whole - self.pre - self.core

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time is that of the tokenizer; what it calls in turn counts once."""

        def counted(*given: Any, **options: Any) -> Any:
            if self._inside:
                return call(*given, **options)
            self._inside, began = True, time.perf_counter()
            try:
                return call(*given, **options)
            finally:
                self._inside = False
                self.pre += time.perf_counter() - began

        return counted

    def enter(self, module: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Before the encoder: note what goes in."""
        ids = options.get("input_ids", given[0] if given else None)
        lengths = options.get("lengths")
        if lengths is None and ids is not None:  # a padded grid
            mask = options.get("attention_mask")
            lengths = (torch.ones_like(ids) if mask is None else mask).sum(-1)
        if lengths is not None:
            self.tokens += int(lengths.sum())
            self.squares += int((lengths * lengths).sum())
            self.sequences += len(lengths)
        self.first_only = bool(options.get("first_only"))
        _wait(module.device)
        self._began = time.perf_counter()

    def leave(self, module: Any, given: Any, output: Any) -> None:
        """Behind the encoder."""
        _wait(module.device)
        self.core += time.perf_counter() - self._began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Counted:
    """A tokenizer of the library `tokenizers` whose encoding is timed."""

    def __init__(self, inner: Any, stages: Stages) -> None:
        self._inner, self._stages = inner, stages

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._stages.timed(value) if name.startswith("encode") else value


@contextlib.contextmanager
def staged(predictor: Any) -> Iterator[Stages]:
    """Time the stages of whatever `predictor` answers inside the block, in this thread alone."""
    stages, tokenizer = Stages(), predictor.tokenizer
    other = of_another_core(predictor.model) is not None
    encoder = predictor.model if other else predictor.model.base_model
    hooks = [
        encoder.register_forward_pre_hook(stages.enter, with_kwargs=True),
        encoder.register_forward_hook(stages.leave),
    ]
    before = {name: getattr(tokenizer, name) for name in ("_full", "_bare")}
    for name, inner in before.items():
        setattr(tokenizer, name, _Counted(inner, stages))
    tokenizer.encode_flat = stages.timed(tokenizer.encode_flat)  # what surrounds `_bare` as well
    began = time.perf_counter()
    try:
        with alone():
            yield stages
    finally:
        stages.whole = time.perf_counter() - began
        del tokenizer.encode_flat
        for name, inner in before.items():
            setattr(tokenizer, name, inner)
        for hook in hooks:
            hook.remove()


def of_another_core(model: PretrainedModel) -> PackedCall | None:
    """The call of ONNX Runtime or OpenVINO, where one of them computes this model."""
    call = vars(model).get("forward")
    return call if isinstance(call, PackedCall) else None


def operations(model: PretrainedModel, stages: Stages) -> float | None:
    """Floating-point operations that the encoder's products need for what went through it: two for
    each weight that a token meets, 4 * hidden for each token that it looks at in each layer.

    Padding, look-ups, norms and activations are left out, as is what of the last layer nobody
    reads. None for models whose encoder is not all of their work (those that write), and for those
    of another core, whose weights are not here.
    """
    config = model.base_model.config
    hidden = config.hidden_size
    if isinstance(model.config, Seq2SeqConfig) or of_another_core(model) is not None:
        return None
    weights = sum(
        module.weight.numel()
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layer" in name and "pooler" not in name
    )
    seen = float(config.num_hidden_layers * stages.squares)
    if isinstance(config, ModernBertConfig):
        mean = stages.squares / max(stages.tokens, 1)
        near = stages.tokens * min(config.local_attention + 1, mean)
        seen = sum(float(stages.squares) if kind == GLOBAL else near for kind in config.kinds)
    total = 2.0 * weights * stages.tokens + 4.0 * hidden * seen
    if stages.first_only and isinstance(config, BertConfig):
        others = stages.tokens - stages.sequences
        unread = 2 * hidden * (hidden + config.intermediate_size)  # query, output, both wide ones
        total -= 2.0 * unread * others + 4.0 * hidden * (stages.squares - stages.tokens)
    return total
