"""The peers of `filbert benchmark`: the same model in other programs, each used at its best.

Text in, vectors or logits out, on the threads that filbert has. All of them get texts sorted by
length, in padded batches of 8 and of 32, of which the faster one counts; ids come from the
`tokenizers` library, which all of them are used with.

    transformers            PyTorch, float32, and bfloat16 where the processor multiplies it
    sentence-transformers   its `encode`, or `CrossEncoder.predict` for pairs; the same two types
    onnxruntime             the exported graph, plain and fused by its `transformers.optimizer`;
                            float32, and dynamic int8
    openvino                the converted graph, float32, and bfloat16 hint where that is
                            multiplied; hints throughput and latency
    ctranslate2             its BERT encoder, float32 and int8

These packages are no part of filbert: each is imported when it is measured, and one that is not
installed, or refuses the model, is told and left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from filbert.infer.benchmark_measure import Arm, Call, Floats, Rows
from filbert.infer.benchmark_runtimes import ctranslate2_arms, onnxruntime_arms, openvino_arms
from filbert.infer.benchmark_subject import (
    SIZES,
    Grid,
    Subject,
    Unfit,
    Whole,
    batched,
    on_grids,
    opened,
    ways,
)

MODULES = {"sentence-transformers": "sentence_transformers"}  # where the import has another name
NEEDS = {  # beside the peer itself
    "onnxruntime": ("transformers", "onnx"), "openvino": ("transformers",),
    "ctranslate2": ("transformers",),
}  # fmt: skip


def arms_of(peer: str, subject: Subject) -> tuple[list[Arm], str | None]:
    """The arms of a peer that can run here, and why there are not more, if so, in one line."""
    for package in (MODULES.get(peer, peer), *NEEDS.get(peer, ())):
        if importlib.util.find_spec(package) is None:
            return [], f"{peer}: the package {package} is not installed"
    arms: list[Arm] = []
    try:
        with hushed():
            arms.extend(BUILDERS[peer](subject))
    except Unfit as error:
        return arms, f"{peer}: {error}"
    except Exception as error:  # noqa: BLE001 - foreign code fails as it likes; it is told
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return arms, f"{peer} fails on this model: {words[:300]}"
    return arms, None


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep back warnings and log lines of the peers; errors come through."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _types(subject: Subject) -> list[tuple[str, torch.dtype]]:
    both = [("float32", torch.float32), ("bf16", torch.bfloat16)]
    return both if subject.bf16 else both[:1]


def transformers_arms(subject: Subject) -> Iterator[Arm]:
    """The model as transformers has it, with PyTorch's fused attention."""
    for name, dtype in _types(subject):
        model = opened(subject, dtype)

        @torch.inference_mode()
        def run(grid: Grid, model: Whole = model) -> Floats:
            arrays = (torch.from_numpy(array).to(subject.device) for array in grid)
            found: Floats = model(*arrays).float().cpu().numpy()
            return found

        items = on_grids(subject, run)
        yield Arm(f"transformers {name}", ways(subject, items), batched(subject, items, SIZES[-1]))


def sentence_transformers_arms(subject: Subject) -> Iterator[Arm]:
    """Its own `encode` of sentences, its own `predict` of pairs."""
    if subject.settings is None and not subject.pair:
        raise Unfit("it has no classifier of single texts")
    import sentence_transformers

    for name, dtype in _types(subject):
        options: dict[str, Any] = {
            "device": str(subject.device), "model_kwargs": {"dtype": dtype},
        }  # fmt: skip
        folder, settings = str(subject.folder), subject.settings
        if settings is None:
            pairs = sentence_transformers.CrossEncoder(
                folder, max_length=subject.max_length, **options
            )
            given: dict[str, Any] = {"activation_fn": nn.Identity()}
            call: Callable[..., Any] = pairs.predict
        else:
            single = sentence_transformers.SentenceTransformer(folder, **options)
            single.max_seq_length = subject.max_length
            given, call = {"normalize_embeddings": settings.normalize}, single.encode
        given |= {"show_progress_bar": False, "convert_to_numpy": True}
        found = {f"batches of {size}": _sized(call, size, given) for size in SIZES}
        yield Arm(f"sentence-transformers {name}", found, _sized(call, SIZES[-1], given))


def _sized(call: Callable[..., Any], size: int, given: dict[str, Any]) -> Call:
    """A call for rows, (rows, d)."""

    def many(rows: Rows) -> Floats:
        found: Floats = call(list(rows), batch_size=size, **given).reshape(len(rows), -1)
        return found

    return many


BUILDERS: dict[str, Callable[[Subject], Iterator[Arm]]] = {
    "transformers": transformers_arms,
    "sentence-transformers": sentence_transformers_arms,
    "onnxruntime": onnxruntime_arms,
    "openvino": openvino_arms,
    "ctranslate2": ctranslate2_arms,
}
