"""Forward and backward of the layers alone: native training beside PyTorch, on one thread.

Why: a step also holds embeddings, the word head and the optimizer; this shows what the layers take.

    python benchmarks/train_layers.py                      # mini, MiniLM and base, length 128
    python benchmarks/train_layers.py --size mini --length 64 --dropout 0.1

Both paths run in one process on the same weights (bfloat16) and states, in turns; the least
processor time of a pass is stated, which other programs on the machine disturb least. GFLOP/s count
the forward pass's multiplications three times over: products of the weights and of attention.
"""

from __future__ import annotations

import argparse
import os
import time

import torch

from filbert.model.attention import pack_layout
from filbert.model.bert import BertEncoder
from filbert.model.config import BertConfig
from filbert.model.native_train import SWITCH, why_not

SIZES = {"mini": (4, 256, 4, 4096), "minilm": (6, 384, 12, 2048), "base": (12, 768, 12, 1024)}


def measure(size: str, *, length: int, dropout: float, seconds: float) -> None:
    """Print the rates of both paths."""
    layers, width, heads, tokens = SIZES[size]
    torch.manual_seed(0)
    stack = BertEncoder(BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        intermediate_size=4 * width, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )).bfloat16().train()  # fmt: skip
    lengths = torch.full((max(1, tokens // length),), length)
    layout, tokens = pack_layout(lengths), int(lengths.sum())
    states = torch.randn(tokens, width).bfloat16().requires_grad_()
    given = torch.randn(tokens, width).bfloat16()
    flops = 3 * tokens * layers * (24 * width**2 + 4 * length * width)
    if (reason := why_not(stack)) is not None:
        raise SystemExit(f"no native training: {reason}")
    best = {name: [float("inf")] * 2 for name in ("native", "PyTorch")}
    end = time.perf_counter() + seconds
    while best["native"][0] == float("inf") or time.perf_counter() < end:
        for name, times in best.items():
            os.environ[SWITCH] = "1" if name == "native" else "0"
            start = time.thread_time()
            out, _, _ = stack(states, layout, keep_states=False, first=None, wanted=None)
            middle = time.thread_time()
            out.backward(given)
            took = (middle - start, time.thread_time() - middle)
            best[name] = [min(pair) for pair in zip(times, took, strict=True)]
            stack.zero_grad()
            states.grad = None
    del os.environ[SWITCH]
    for name, (forward, backward) in best.items():
        total = forward + backward
        print(
            f"{size:7} {name:8} forward {1e3 * forward:7.1f} ms, "
            f"backward {1e3 * backward:7.1f} ms: "
            f"{tokens / total:8,.0f} tokens/s, {flops / total / 1e9:6,.0f} GFLOP/s"
        )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description="Native training of the layers beside PyTorch.")
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in SIZES if options.size == "all" else (options.size,):
        measure(size, length=options.length, dropout=options.dropout, seconds=options.seconds)


if __name__ == "__main__":
    main()
