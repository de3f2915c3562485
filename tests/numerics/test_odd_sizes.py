"""Every way of computing an encoder, on sizes that fit no tile, at every length from 1 to 512.

A vocabulary of 7, hidden states of 60 in three heads of 20, an inner size of 100. What all are held
to is the attention written out, text by text; tests/numerics/test_model_parity.py holds that to
Transformers.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from filbert.infer.export_compare import compare
from filbert.infer.export_formats import FORMATS, OPSET
from filbert.model.bert import BertForTokenClassification, BertModel
from filbert.model.native import NativeEncoder, library, library_float32
from filbert.model.plain import PlainModel
from tests.tiny_models import built

ODD = {"vocab_size": 7, "hidden_size": 60, "num_attention_heads": 3, "intermediate_size": 100,
       "max_position_embeddings": 512, "num_hidden_layers": 2,
       "initializer_range": 0.1}  # fmt: skip
EVERY = list(range(1, 513))
MIXED = [1, 512, 33, 2, 16, 257, 31]
FLOAT32 = 1e-5  # of the largest number, at unit rms
REDUCED = 2e-2  # relative norm; docs/architecture.md


def texts(lengths: list[int]) -> dict[str, Tensor]:
    """A packed batch; a text of a length is the same in every batch."""
    draws = [torch.Generator().manual_seed(length) for length in lengths]
    parts = [
        torch.cat([torch.randint(most, (n,), generator=draw) for n, draw in zip(lengths, draws)])  # noqa: B905
        for most in (7, 2)
    ]
    return {"input_ids": parts[0], "token_type_ids": parts[1], "lengths": torch.tensor(lengths)}


def encoder() -> BertModel:
    model = built(BertModel, **ODD)
    assert isinstance(model, BertModel)
    return model


@pytest.fixture(scope="module")
def alone() -> dict[int, Tensor]:
    """length -> (length, hidden): the states of each text, attention written out."""
    model, found = encoder(), {}
    model.set_attention("eager")
    with torch.no_grad():
        for length in EVERY:
            one = texts([length])
            found[length] = model(
                one["input_ids"][None], token_type_ids=one["token_type_ids"][None]
            ).last_hidden_state[0]
    return found


@pytest.fixture
def no_traces() -> Iterator[None]:
    """Keep PyTorch's record of its own tracing out of what pytest collects, which takes long."""
    logger = logging.getLogger("torch.__trace")
    logger.propagate, before = False, logger.propagate
    yield
    logger.propagate = before


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.square().mean().sqrt())


def drift(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def test_packed_and_padded(alone: dict[int, Tensor]) -> None:
    model = encoder()
    many = model(**texts(EVERY)).last_hidden_state.split(EVERY)
    for length, states in zip(EVERY, many, strict=True):
        assert apart(states, alone[length]) < FLOAT32, length
    packed = texts(MIXED)
    real = torch.arange(512) < packed["lengths"][:, None]
    ids, types = (
        real.long().masked_scatter(real, packed[name]) for name in ("input_ids", "token_type_ids")
    )
    for path in ("eager", "sdpa"):
        model.set_attention(path)
        grid = model(ids, real.long(), types).last_hidden_state
        for row, length in enumerate(MIXED):
            assert apart(grid[row, :length], alone[length]) < FLOAT32, (path, length)


@torch.no_grad()
def test_bfloat16_in_pytorch(alone: dict[int, Tensor]) -> None:
    model = encoder().to(torch.bfloat16)
    many = model(**texts(EVERY)).last_hidden_state.float().split(EVERY)
    for length, states in zip(EVERY, many, strict=True):
        assert drift(states, alone[length]) < REDUCED, length


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile makes C++; no g++ here")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # Dynamo's own
@torch.no_grad()
def test_compiled_parts(alone: dict[int, Tensor], no_traces: None) -> None:
    model = encoder()
    model.compile_parts()
    for lengths in (MIXED, EVERY, [1], [7]):
        many = model(**texts(lengths)).last_hidden_state.split(lengths)
        for length, states in zip(lengths, many, strict=True):
            assert apart(states, alone[length]) < FLOAT32, length


@pytest.mark.skipif(isinstance(library(), str), reason=f"no native encoder here: {library()}")
@pytest.mark.parametrize("int8", [0, 15])
def test_native(alone: dict[int, Tensor], int8: int) -> None:
    native = NativeEncoder(encoder(), int8)
    many = native(**texts(EVERY), threads=1).split(EVERY)
    for length, states in zip(EVERY, many, strict=True):
        assert drift(states, alone[length]) < REDUCED, length
    for length in MIXED:  # an odd row at the end takes sums in another order
        assert drift(native(**texts([length]), threads=1), many[length - 1]) < 1e-3, length


@pytest.mark.skipif(
    isinstance(library_float32(), str), reason=f"no native encoder here: {library_float32()}"
)
def test_native_in_float32(alone: dict[int, Tensor]) -> None:
    native = NativeEncoder(encoder(), float32=True)
    many = native(**texts(EVERY), threads=2).split(EVERY)
    for length, states in zip(EVERY, many, strict=True):
        assert apart(states, alone[length]) < FLOAT32, length
    for length in MIXED:
        assert torch.equal(native(**texts([length]), threads=1), many[length - 1]), length


@pytest.mark.parametrize("name", [*FORMATS, "compiled"])
def test_every_export(name: str, tmp_path: Path, no_traces: None) -> None:
    """One text at a time, and all of them in one padded batch."""
    format = FORMATS["torch" if name == "compiled" else name]
    for package in format.needs:
        pytest.importorskip(package, reason=f"{package} is not installed")
    if name == "compiled" and shutil.which("g++") is None:
        pytest.skip("AOTInductor compiles C++, and there is no g++")
    layers = 1 if name == "compiled" else 2  # C++ takes its time
    model = built(BertForTokenClassification, **{**ODD, "num_hidden_layers": layers})
    graph = PlainModel(model)
    format.write(graph, tmp_path, OPSET, name == "compiled")
    packed = texts(MIXED)
    rows: list[Any] = [
        (ids.numpy(), types.numpy())
        for ids, types in zip(
            packed["input_ids"].split(MIXED), packed["token_type_ids"].split(MIXED), strict=True
        )
    ]
    runtimes = format.open(tmp_path, graph, 1)
    assert len(runtimes) == (2 if name == "compiled" else 1)
    for runtime in runtimes:
        for batches in ([rows], [[row] for row in rows]):
            found = compare(model, runtime, batches, source="drawn")
            assert np.isfinite(found.difference) and found.difference <= 2e-5, runtime.name
