"""The native encoder in float32 against its slow twin, `BertModel.forward`.

Both compute in float32 and add up in another order: the tolerance is 1e-5 relative norm
(docs/architecture.md). A text's numbers do not depend on what stands beside it, on threads or on
chunks: those comparisons are to the bit.
"""

from __future__ import annotations

import copy
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert import load
from filbert.errors import FilbertError
from filbert.model import native_library
from filbert.model.bert import BertForMaskedLM, BertForSequenceClassification, BertModel
from filbert.model.config import BertConfig
from filbert.model.device import for_inference
from filbert.model.native import SWITCH, NativeEncoder, attach, close, serves, why_not
from filbert.model.native_library import NO_AVX512, NO_UNITS, TILES_SWITCH, VECTORS, library_float32
from tests.numerics.test_native import BATCHES, CPU, PLAIN, SHAPES, batch, distance, encoder

needs_native = pytest.mark.skipif(
    isinstance(library_float32(), str), reason=f"no native encoder here: {library_float32()}"
)
TOLERANCE = 1e-5


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_it_equals_its_slow_twin(shape: str, threads: int) -> None:
    model = encoder(**SHAPES[shape])
    native = NativeEncoder(model, float32=True)
    for lengths in BATCHES:
        given = batch(lengths, model.config.vocab_size)
        with torch.no_grad():
            wanted = model(**given).last_hidden_state
        first = torch.cumsum(given["lengths"], 0) - given["lengths"]
        means = torch.segment_reduce(wanted, "mean", lengths=given["lengths"], axis=0)
        for chunk in (32, 128):
            options = {"threads": threads, "chunk": chunk}
            assert distance(native(**given, **options), wanted) < TOLERANCE, (lengths, chunk)
            found = native(**given, first_only=True, **options)
            assert distance(found, wanted[first]) < TOLERANCE, (lengths, chunk)
            found = native(**given, mean=True, **options)
            assert distance(found, means) < TOLERANCE, (lengths, chunk)


@needs_native
@pytest.mark.parametrize("shape", ["plain", "odd sizes", "heads of 80"])
def test_a_text_is_the_same_to_the_bit_alone_and_in_a_batch(shape: str) -> None:
    model = encoder(**SHAPES[shape])
    native = NativeEncoder(model, float32=True)
    lengths = [17, 5, 64, 1, 33, 12, 13, 200]
    given = batch(lengths, model.config.vocab_size)
    together = native(**given, threads=2, chunk=64).split(lengths)
    ids, types = (given[name].split(lengths) for name in ("input_ids", "token_type_ids"))
    for text, length in enumerate(lengths):
        alone = native(ids[text], torch.tensor([length]), types[text], threads=1 + text % 3)
        assert torch.equal(alone, together[text]), length
        first = native(ids[text], torch.tensor([length]), types[text], first_only=True)
        assert torch.equal(first[0], together[text][0]), length


@needs_native
def test_activations_are_exact_far_out() -> None:
    """One layer whose inner half sees what the bias says: from -12 to 12."""
    for name in ("gelu", "gelu_new", "relu"):
        model = encoder(**{**PLAIN, "num_hidden_layers": 1, "hidden_act": name})
        layer = model.encoder.layer[0]
        with torch.no_grad():
            layer.intermediate.dense.weight.zero_()
            layer.intermediate.dense.bias.copy_(torch.linspace(-12, 12, 128))
            layer.output.dense.weight.copy_(torch.eye(64, 128) + torch.eye(64, 128).roll(64, 1))
            layer.output.dense.bias.zero_()
        given = batch([3], 99)
        with torch.no_grad():
            wanted = model(**given).last_hidden_state
        found = NativeEncoder(model, float32=True)(**given)
        assert float((found - wanted).abs().max()) < 2e-6, name


@needs_native
def test_numbers_that_are_none_stay_none() -> None:
    for value in (math.nan, math.inf):
        model = encoder(**PLAIN)
        with torch.no_grad():
            model.encoder.layer[0].attention.self.query.weight[3, 5] = value
        found = NativeEncoder(model, float32=True)(**batch([5, 9], 99))
        assert torch.isnan(found).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_an_activation_hides_no_damaged_weight(activation: str, dtype: torch.dtype) -> None:
    model = encoder(**{**PLAIN, "hidden_act": activation})
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.bias[7] = math.nan
    if (reason := attach(model, dtype)) is not None:
        pytest.skip(reason)
    with torch.no_grad():
        assert torch.isnan(model(**batch([5, 9], 99)).last_hidden_state).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_a_copy_of_the_model_computes_by_itself(way: Any, dtype: torch.dtype) -> None:
    model = encoder(**PLAIN)
    if (reason := attach(model, dtype)) is not None:
        pytest.skip(reason)
    given = batch([5, 9], 99)
    twin = way(model)
    with torch.no_grad():
        wanted = model(**given).last_hidden_state
        found = twin(**given).last_hidden_state
        if dtype == torch.float32:  # else it has the rounded weights alone
            assert torch.equal(found, wanted)
        assert distance(found.float(), wanted.float()) < 2e-2 and serves(twin)
        twin.encoder.layer[0].intermediate.dense.weight.mul_(2)
        assert torch.equal(model(**given).last_hidden_state, wanted)
        assert not torch.equal(twin(**given).last_hidden_state, wanted)
    close(way(model))  # before its first call


def test_a_copy_that_it_cannot_serve_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoder(**PLAIN)
    if (reason := attach(model, torch.float32)) is not None:
        pytest.skip(reason)
    twin, given = copy.deepcopy(model), batch([5, 9], 99)
    monkeypatch.setenv(SWITCH, "0")
    with torch.no_grad():
        for _ in range(3):
            twin(**given)
    assert caplog.text.count("no native encoder any more") == 1


@needs_native
def test_weights_may_be_put_in_place_of_others() -> None:
    model = encoder(**PLAIN)
    assert attach(model, torch.float32) is None
    given = batch([5, 9], 99)
    with torch.inference_mode():
        inside = encoder(**PLAIN)
        assert attach(inside, torch.float32) is None  # such tensors count no changes
        assert torch.equal(inside(**given).last_hidden_state, model(**given).last_hidden_state)
    with torch.no_grad():
        weight = model.encoder.layer[0].attention.self.query.weight
        weight.data = weight.data.clone() * 2
        slow = BertModel.forward(model, **given).last_hidden_state
        assert distance(model(**given).last_hidden_state, slow) < TOLERANCE
        vector = torch.nn.utils.parameters_to_vector(model.parameters())
        torch.nn.utils.vector_to_parameters(vector * 1.5, model.parameters())
        slow = BertModel.forward(model, **given).last_hidden_state
        assert distance(model(**given).last_hidden_state, slow) < TOLERANCE


@needs_native
def test_attached_to_a_model_it_serves_its_heads() -> None:
    torch.manual_seed(0)
    labels = {0: "a", 1: "b", 2: "c"}
    model = BertForSequenceClassification(BertConfig(**PLAIN, id2label=labels)).eval()
    given = batch([5, 9, 33], 99)
    with torch.no_grad():
        wanted = model(**given).logits
        model = for_inference(model, CPU, torch.float32, head="classifier")
        found = model(**given).logits
    assert serves(model.bert) and found.dtype == torch.float32
    assert distance(found, wanted) < TOLERANCE
    words = BertForMaskedLM(BertConfig(**PLAIN)).eval()
    places = torch.tensor([2, 30, 44])
    with torch.no_grad():
        wanted = words(**given, predict_at=places).logits
        assert attach(words, torch.float32) is None
        assert distance(words(**given, predict_at=places).logits, wanted) < TOLERANCE
        words.bert.encoder.layer[0].intermediate.dense.weight.mul_(2)  # is taken over
        changed = words(**given, predict_at=places).logits
        close(words)
        assert not serves(words.bert)
        assert distance(changed, words(**given, predict_at=places).logits) < TOLERANCE
    assert distance(changed, wanted) > 100 * TOLERANCE


@needs_native
def test_real_weights_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a", "free prize call now", "the river bank " * 80, "it is what it is"] * 3
    by_native = load("all-MiniLM-L6-v2", precision="float32")
    assert serves(by_native.model)
    found = by_native(texts)
    assert np.array_equal(found[:1], by_native(texts[:1]))
    monkeypatch.setenv(SWITCH, "0")
    slow = load("all-MiniLM-L6-v2", precision="float32")
    assert not serves(slow.model)
    assert np.abs(found - slow(texts)).max() < 2e-6
    without = load("all-MiniLM-L6-v2", precision="float32", core="torch")
    assert not serves(without.model)


@needs_native
def test_a_gradient_and_what_it_lacks_go_to_the_slow_twin() -> None:
    model = encoder(**PLAIN)
    assert attach(model, torch.float32) is None
    given = batch([5, 9], 99)
    model(**given).last_hidden_state.sum().backward()
    assert model.embeddings.word_embeddings.weight.grad is not None
    with torch.no_grad():
        assert len(model(**given, output_hidden_states=True).hidden_states) == 3
    assert "silu" in (why_not(encoder(**PLAIN, hidden_act="silu"), float32=True) or "")


def test_it_is_told_why_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("filbert.model.native.library_float32", lambda: "no AVX-512 here")
    model = encoder(**PLAIN)
    assert why_not(model, float32=True) == "no AVX-512 here"
    with pytest.raises(FilbertError, match="no AVX-512 here"):
        NativeEncoder(model, float32=True)
    with caplog.at_level(logging.INFO, "filbert"):
        assert for_inference(model, CPU, torch.float32).dtype == torch.float32
    assert "no native encoder: no AVX-512 here" in caplog.text


@pytest.mark.parametrize(
    ("tiles", "vectors", "switch", "chosen"),
    [
        (0, 0, None, NO_UNITS), (2, 2, None, NO_UNITS), (2, 3, None, "vectors"),
        (3, 3, None, "tiles"), (3, 3, "0", "vectors"), (3, 3, "1", "tiles"),
    ],
)  # fmt: skip
def test_what_a_processor_offers(
    tiles: int, vectors: int, switch: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def __init__(self, name: str, level: int) -> None:
            self.name, self.filbert_native_level = name, lambda: level

    libs = {"tiles": Library("tiles", tiles), "vectors": Library("vectors", vectors)}

    def opened(path: Path | None = None) -> Library:
        return libs["vectors" if path == VECTORS else "tiles"]

    monkeypatch.setattr(native_library, "opened", opened)
    if switch is not None:
        monkeypatch.setenv(TILES_SWITCH, switch)
    found = native_library.library.__wrapped__()
    assert found == libs.get(chosen, chosen)
    monkeypatch.setattr(native_library, "library", lambda: found)
    if found in libs.values():
        assert ("AMX" in native_library.units()) == (chosen == "tiles")
    single = native_library.library_float32.__wrapped__()
    assert single == (libs["tiles"] if tiles & 2 else NO_AVX512)
