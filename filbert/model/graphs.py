"""CUDA graphs: the layers of a small batch as one start of the GPU.

A short text needs some hundred kernels of a few microseconds each, and Python starts them more
slowly than the GPU computes them. A graph is recorded once for each of a few sizes and replayed:
the batch is copied into its buffers, tokens and texts are filled up to the size with a text of
their own, and the filling is cut off again. Attention is the one call for any lengths of
`attention.py`, so the lengths may differ from replay to replay.

    attach(model)          # what `filbert.load` does on a GPU; BERT alone, under no_grad alone

The slow twin is the same encoder without graphs; tests/numerics/test_gpu.py holds one to the other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from filbert.model.attention import PackedLayout, why_no_varlen

if TYPE_CHECKING:
    from filbert.model.bert import BertEncoder

logger = logging.getLogger("filbert")
TOKENS = (32, 64, 128, 256, 512, 1024)  # sizes that are recorded, when a batch first needs one;
TEXTS = (8, 64)  # above them the GPU, not Python, takes the time
WARM_UP = 3  # calls before recording, in which kernels are chosen and compiled

Run = Callable[[], Tensor]
Recorded = tuple[Callable[[], None], Tensor]  # replay, and where it leaves its result


def record(run: Run, device: torch.device) -> Recorded:
    """Record what `run` starts on this GPU."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # another thread may use the GPU meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = run()
    return graph.replay, out


class Graph:
    """One size: buffers for a batch, and the recorded layers between them."""

    def __init__(
        self,
        encoder: BertEncoder,
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
            for layer in encoder.layer:
                states, _ = layer(states, layout)
            return states

        self.replay, self.out = record(run, hidden.device)
        self.read: torch.cuda.Event | None = None  # when the last result was copied

    def __call__(self, hidden: Tensor, bounds: Tensor) -> Tensor:
        """The states (n, width) of a batch of at most this size, behind all layers."""
        count, texts = len(hidden), len(bounds)
        if self.read is not None:
            self.read.wait()  # the caller may compute on another stream than the one before
        self.hidden[:count].copy_(hidden)
        self.bounds[:texts].copy_(bounds)
        # what is left of the tokens is one more text, and behind it are texts of no token
        self.bounds[texts:].fill_(len(self.hidden))
        self.replay()
        states = self.out[:count].clone()
        if states.device.type == "cuda":
            self.read = torch.cuda.current_stream(states.device).record_event()
        return states


class Graphs:
    """The graphs of one encoder. Calls from several threads are safe: one at a time replays."""

    def __init__(self, record: Callable[[Run, torch.device], Recorded] = record) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._weights: list[int] = []  # where they were when the graphs were recorded
        self._failed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())  # a copy of the encoder, or one in another process, has none

    def __call__(self, encoder: BertEncoder, hidden: Tensor, layout: PackedLayout) -> Tensor | None:
        """The states behind all layers, (tokens, width); None for a batch that no graph is for, or
        where something looks into the layers."""
        if self._failed or layout.bounds is None or torch.is_grad_enabled() or watched(encoder):
            return None
        tokens = next((size for size in TOKENS if size >= len(hidden)), None)
        texts = next((size for size in TEXTS if size >= len(layout.lengths)), None)
        if tokens is None or texts is None:
            return None
        with self._lock:
            weights = [weight.data_ptr() for weight in encoder.parameters()]
            if weights != self._weights:  # moved, cast or replaced
                self._graphs.clear()
                self._weights = weights
            if (tokens, texts) not in self._graphs:
                try:
                    self._graphs[tokens, texts] = Graph(
                        encoder, hidden, tokens=tokens, texts=texts, record=self._record
                    )
                except RuntimeError as error:
                    self._failed = True
                    logger.warning("no CUDA graphs, small batches are slower: %s", error)
                    return None
            return self._graphs[tokens, texts](hidden, layout.bounds)


def watched(encoder: nn.Module) -> bool:
    """Whether hooks wait inside the layers, which a replay would pass by."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())


def attach(model: nn.Module) -> str | None:
    """Let small batches of every BERT encoder in `model` go through graphs. Returns why not, None
    if they do."""
    from filbert.model.bert import BertEncoder

    encoders = [module for module in model.modules() if isinstance(module, BertEncoder)]
    if not encoders:
        return "there is no BERT encoder in this model"
    for encoder in encoders:
        weight = next(encoder.parameters())
        head_size = encoder.config.head_size
        if (reason := why_no_varlen(weight.device, weight.dtype, head_size)) is not None:
            return reason
    for encoder in encoders:
        encoder.graphs = Graphs()
    return None
