"""What the native encoder does where a model is not what its configuration says, or is damaged."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from filbert.errors import FilbertError
from filbert.model.bert import BertLayer, BertModel
from filbert.model.config import BertConfig
from filbert.model.native import (
    NativeEncoder,
    attach,
    close,
    library,
    release,
    serves,
    why_not,
)

needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native encoder here: {library()}"
)


def encoder(activation: str = "gelu") -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, hidden_act=activation,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


GIVEN = {"input_ids": torch.arange(14), "lengths": torch.tensor([5, 9])}


class Adapted(torch.nn.Linear):
    """More than its weights say."""


def layer_of(model: BertModel, number: int = 1) -> Any:
    layer = model.encoder.layer[number]
    assert isinstance(layer, BertLayer)
    return layer


def hook(model: BertModel) -> None:
    layer_of(model).output.dense.register_forward_hook(lambda *given: 2 * given[2])


def adapt(model: BertModel) -> None:
    layer_of(model).attention.output.dense.__class__ = Adapted


def patch(model: BertModel) -> None:
    layer_of(model).intermediate.forward = lambda hidden: hidden.new_zeros(len(hidden), 128)


def activate(model: BertModel) -> None:
    layer_of(model).intermediate.activation = torch.tanh


def narrow(model: BertModel) -> None:
    layer_of(model).intermediate.dense = torch.nn.Linear(64, 96)
    layer_of(model).output.dense = torch.nn.Linear(96, 64)


def no_bias(model: BertModel) -> None:
    layer_of(model).attention.self.key = torch.nn.Linear(64, 64, bias=False)


def epsilon(model: BertModel) -> None:
    layer_of(model).output.LayerNorm.eps = 0.5


def few_words(model: BertModel) -> None:
    model.embeddings.word_embeddings = torch.nn.Embedding(98, 64)


def epsilon_below(model: BertModel) -> None:
    model.embeddings.LayerNorm.eps = 0.5


CHANGES: dict[Callable[[BertModel], None], str] = {
    hook: "hooks", adapt: "Adapted stands", patch: "BertIntermediate stands",
    activate: "activation", narrow: "layers differ in size", no_bias: "layers differ in size",
    epsilon: "layers differ in size or epsilon", few_words: "embeddings differ in size",
    epsilon_below: "embeddings differ in size or epsilon",
}  # fmt: skip


@needs_native
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_part_is_left_to_its_slow_twin(change: Callable[[BertModel], None]) -> None:
    model = encoder()
    change(model)
    assert CHANGES[change] in str(why_not(model))
    assert attach(model, torch.bfloat16) == why_not(model)
    with pytest.raises(FilbertError, match=f"no native encoder: .*{CHANGES[change]}"):
        NativeEncoder(model)
    with torch.no_grad():
        assert "forward" not in vars(model)
        if change is not no_bias:  # the slow twin wants one as well
            assert model(**GIVEN).last_hidden_state.shape == (14, 64)


@needs_native
@pytest.mark.parametrize("change", [hook, narrow])
def test_a_part_changed_later_is_left_to_its_slow_twin(
    change: Callable[[BertModel], None], caplog: pytest.LogCaptureFixture
) -> None:
    model = encoder()
    assert attach(model, torch.bfloat16) is None
    with torch.no_grad():
        before = model(**GIVEN).last_hidden_state
        change(model)
        model.bfloat16()
        with caplog.at_level(logging.WARNING, "filbert"):
            found = [model(**GIVEN).last_hidden_state for _ in range(2)]
        slow = BertModel.forward(model, **GIVEN).last_hidden_state
    assert all(torch.equal(each, slow) for each in found)
    assert not torch.equal(before, slow)
    assert caplog.text.count(CHANGES[change]) == (0 if change is hook else 1)


@needs_native
def test_hooks_that_went_and_copied_activations_do_not_matter() -> None:
    model = copy.deepcopy(encoder("gelu_new"))
    assert attach(model, torch.bfloat16) is None
    seen: list[int] = []
    handle = layer_of(model).register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model(**GIVEN)
        handle.remove()
        model(**GIVEN)
    assert seen == [1]


@needs_native
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["layer.1.output.dense.weight", "word_embeddings.weight"])
def test_int8_tells_of_damaged_weights(name: str, value: float) -> None:
    model = encoder()
    damaged = next(weight for full, weight in model.named_parameters() if full.endswith(name))
    with torch.no_grad():
        damaged[3, 7] = value
    what = "layer 1" if "layer" in name else "the embeddings"
    with pytest.raises(FilbertError, match=f"weights of {what} hold NaN or infinity"):
        NativeEncoder(model, [0, 8])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_put_in_place_twice_between_calls_are_seen(dtype: torch.dtype) -> None:
    """The memory of the first ones is free again, and the second may get the same address."""
    model = encoder()
    assert attach(model, dtype) is None
    weight = layer_of(model, 0).attention.self.query.weight
    with torch.no_grad():
        for turn in range(20):
            torch.manual_seed(turn)
            for _ in range(2):
                weight.data = torch.randn_like(weight)
            got = model(**GIVEN).last_hidden_state.float()
            wanted = BertModel.forward(model, **GIVEN).last_hidden_state.float()
            assert (got - wanted).norm() < 0.03 * wanted.norm(), turn


@needs_native
@pytest.mark.parametrize(("name", "value"), [("vocab_size", 10), ("max_position_embeddings", 6)])
def test_what_the_configuration_does_not_allow_is_refused(name: str, value: int) -> None:
    """Though the tables have rows for it."""
    model = encoder()
    assert attach(model, torch.bfloat16) is None
    setattr(model.config, name, value)
    with pytest.raises(FilbertError) as slow, torch.no_grad():
        BertModel.forward(model, **GIVEN)
    with pytest.raises(FilbertError) as fast, torch.no_grad():
        model(**GIVEN)
    assert str(fast.value) == str(slow.value)
    assert str(value) in str(fast.value)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_made_in_inference_mode_is_served(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        model = encoder()
    assert attach(model, dtype) is None
    with torch.no_grad():
        got = model(**GIVEN).last_hidden_state.float()
        wanted = encoder()(**GIVEN).last_hidden_state
    assert (got - wanted).norm() < 0.03 * wanted.norm()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_freed_while_others_compute(dtype: torch.dtype) -> None:
    model = encoder()
    assert attach(model, dtype) is None
    forward = vars(model)["forward"]
    with torch.inference_mode():
        release(model)
        wanted = model(**GIVEN).last_hidden_state  # of weights rounded once
    wrong: list[Any] = []
    ended = threading.Event()

    def ask() -> None:
        try:
            with torch.inference_mode():
                for _ in range(150):
                    if not torch.equal(model(**GIVEN).last_hidden_state, wanted):
                        wrong.append("other numbers")
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    def free() -> None:
        while not ended.is_set():
            release(model)

    callers = [threading.Thread(target=ask) for _ in range(3)]
    freeing = threading.Thread(target=free)
    for thread in (*callers, freeing):
        thread.start()
    for thread in callers:
        thread.join()
    ended.set()
    freeing.join()
    assert not wrong and serves(model)
    close(model)
    assert not serves(model) and forward.native is None
