"""CUDA graphs: the layers of a small batch as one start of the GPU.

A short text needs some hundred kernels of a few microseconds each, and Python starts them more
slowly than the GPU computes them. A graph is recorded once for each of a few sizes and replayed:
the batch is copied into its buffers, tokens and texts are filled up to the size with a text of
their own, and the filling is cut off again. Attention is the one call for any lengths of
`attention.py`, so the lengths may differ from replay to replay.

    attach(model)          # what `filbert.load` does on a GPU (not with core="torch"); BERT alone

The slow twin is the same encoder without graphs; tests/numerics/test_gpu.py holds one to the other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from filbert.model.attention import PackedLayout, why_no_varlen
from filbert.model.watch import Watch

logger = logging.getLogger("filbert")
TOKENS = (32, 64, 128, 256, 512, 1024)  # sizes that are recorded, when a batch first needs one;
TEXTS = (8, 64)  # above them the GPU, not Python, takes the time
WARM_UP = 3  # calls before recording, in which kernels are chosen and compiled
Run = Callable[[], Tensor]
Recorded = tuple[Callable[[], None], Tensor]  # replay, and where it leaves its result
_streams: dict[torch.device, torch.cuda.Stream] = {}  # for recording: cuBLAS keeps memory for each
_recording = threading.Lock()  # PyTorch records one graph of a process at a time


def record(run: Run, device: torch.device) -> Recorded:
    """Record what `run` starts on this GPU."""
    with _recording, torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
        if device not in _streams:
            _streams[device] = torch.cuda.Stream()
        stream = _streams[device]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # left again where recording fails
            for _ in range(WARM_UP):
                run()
            graph = torch.cuda.CUDAGraph()
            # other threads may go on computing meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                out = run()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, out


class Graph:
    """One size: buffers for a batch, and the recorded layers between them."""

    def __init__(
        self,
        layers: nn.ModuleList,
        hidden: Tensor,
        *,
        tokens: int,
        texts: int,
        record: Callable[[Run, torch.device], Recorded],
    ) -> None:
        """hidden: (n, width), whose width, type and device the buffers have."""
        with torch.inference_mode(False):  # buffers are written to from everywhere
            self.hidden = hidden.new_zeros(tokens, hidden.shape[1])
            self.bounds = torch.zeros(texts + 2, dtype=torch.int32, device=hidden.device)
            lengths = torch.zeros(texts + 1, dtype=torch.int64, device=hidden.device)
            self.bounds[-1] = tokens
        layout = PackedLayout(lengths, lengths, (), self.bounds, tokens)

        def run() -> Tensor:
            states = self.hidden
            for layer in layers:
                states, _ = layer(states, layout)
            return states

        self.replay, self.out = record(run, hidden.device)

    def __call__(self, hidden: Tensor, bounds: Tensor) -> Tensor:
        """The states (n, width) of a batch of at most this size, behind all layers."""
        count, texts = len(hidden), len(bounds)
        self.hidden[:count].copy_(hidden)
        self.bounds[:texts].copy_(bounds)
        # what is left of the tokens is one more text, and behind it are texts of no token
        self.bounds[texts:].fill_(len(self.hidden))
        self.replay()
        return self.out[:count].clone()


class Graphs:
    """The graphs of one encoder. Calls from several threads are safe: one at a time replays."""

    def __init__(
        self, head_size: int, record: Callable[[Run, torch.device], Recorded] = record
    ) -> None:
        self._head_size, self._record = head_size, record
        self._lock = threading.Lock()
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._seen: Watch | None = None  # the layers as they were when this was recorded
        self._read: torch.cuda.Event | None = None  # when the last result had been copied
        self._failed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())  # a copy of the encoder, or one in another process, has none

    def __call__(
        self, layers: nn.ModuleList, hidden: Tensor, layout: PackedLayout
    ) -> Tensor | None:
        """The states behind all `layers`, (tokens, width); None for a batch that no graph is for,
        or where something looks into the layers."""
        if self._failed or layout.bounds is None or torch.is_grad_enabled():
            return None
        tokens = next((size for size in TOKENS if size >= len(hidden)), None)
        texts = next((size for size in TEXTS if size >= len(layout.lengths)), None)
        served = why_no_varlen(hidden.device, hidden.dtype, self._head_size) is None
        if tokens is None or texts is None or not served:
            return None
        with self._lock:
            if self._seen is None or self._seen.changed():
                self._graphs.clear()
                self._seen = Watch(layers)
            if self._seen.hooked():
                return None
            graph = self._graphs.get((tokens, texts))
            if graph is None:
                try:
                    graph = Graph(layers, hidden, tokens=tokens, texts=texts, record=self._record)
                except RuntimeError as error:
                    self._give_up(error, hidden.device)
                    return None
                self._graphs[tokens, texts] = graph
            return self._replayed(graph, hidden, layout.bounds)

    def clear(self) -> None:
        """Free the graphs and their buffers, after a replay that is under way."""
        with self._lock:
            self._graphs.clear()

    def _replayed(self, graph: Graph, hidden: Tensor, bounds: Tensor) -> Tensor:
        """A caller may compute on another stream than the one before, which still reads."""
        if hidden.device.type != "cuda":
            return graph(hidden, bounds)
        stream = torch.cuda.current_stream(hidden.device)
        if self._read is not None:
            stream.wait_event(self._read)
        states = graph(hidden, bounds)
        self._read = stream.record_event()
        return states

    def _give_up(self, error: RuntimeError, device: torch.device) -> None:
        """Compute without graphs, from now on unless memory alone was short."""
        self._failed = not isinstance(error, torch.OutOfMemoryError)
        until = "" if self._failed else " this time"
        logger.warning("no CUDA graph%s, small batches are slower: %s", until, error)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def sizes(model: nn.Module, longest: int) -> list[tuple[int, int]]:
    """For each size that is recorded for `model` a batch that asks for it: how many texts, and the
    tokens of each, at most `longest`; none where it has no graphs."""
    if not any(isinstance(vars(module).get("graphs"), Graphs) for module in model.modules()):
        return []
    found = []
    for least, most in zip((0, *TEXTS), TEXTS, strict=False):
        for below, tokens in zip((0, *TOKENS), TOKENS, strict=False):
            texts = max(least, below // longest) + 1
            if texts <= most and texts <= tokens // 2:
                found.append((texts, min(tokens // texts, longest)))
    return found


def release(model: nn.Module) -> None:
    """Free what was recorded for `model`. A batch that still comes is recorded again."""
    for module in model.modules():
        if isinstance(graphs := vars(module).get("graphs"), Graphs):
            graphs.clear()


def attach(model: nn.Module) -> str | None:
    """Let small batches of every BERT encoder in `model` go through graphs. Returns why not, None
    if they do; one line of the log says the same."""
    encoders: list[Any] = [module for module in model.modules() if "graphs" in vars(module)]
    reason = None if encoders else "there is no BERT encoder in this model"
    for encoder in encoders:
        weight = next(encoder.parameters())
        reason = reason or why_no_varlen(weight.device, weight.dtype, encoder.config.head_size)
    if reason is None:
        for encoder in encoders:
            encoder.graphs = Graphs(encoder.config.head_size)
    logger.info("small batches: %s", "CUDA graphs" if reason is None else f"no graphs: {reason}")
    return reason
