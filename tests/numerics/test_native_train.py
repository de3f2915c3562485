"""Native training of the layers against its slow twin, `BertEncoder`'s own loop in float32.

Results lie within the tolerance of bfloat16 (docs/architecture.md), 2e-2 relative norm. Gradients
may on average lie no further from float32 than those of PyTorch's own bfloat16 path, up to a tenth,
and none may lie far out alone: few tokens, or a ReLU that a rounding switched, take both paths
beyond the tolerance, and which of them further is chance. A gradient that is small beside those of
its kind is measured by their size: where the exact one is zero (queries and keys of a text of one
token) both paths give rounding noise.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from filbert.errors import FilbertError
from filbert.model.attention import pack_layout
from filbert.model.bert import BertEncoder, BertForMaskedLM, BertForSequenceClassification
from filbert.model.config import BertConfig
from filbert.model.device import training_path
from filbert.model.native_library import library, units
from filbert.model.native_train import (
    SWITCH,
    NativeStack,
    dropped,
    kept_elements,
    weights_of,
    why_not,
)
from filbert.train.optim import make_optimizer

needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native training here: {library()}"
)
TOLERANCE, FURTHER, ALONE = 2e-2, 1.1, 4.0
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
    "heads of 64": {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 96},
    "head of 96, tanh": {"hidden_size": 96, "num_attention_heads": 1, "intermediate_size": 160,
                         "hidden_act": "gelu_new"},
    "relu": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64,
             "hidden_act": "relu"},
}  # fmt: skip
BATCHES = [
    [1], [2] * 16, [31], [32], [33], [5, 1, 33, 64, 7, 16, 31, 32], [300, 3, 3], [512], [1] * 40,
    [511, 1, 257], [128] * 10,
]  # fmt: skip


def encoder(dropout: float = 0.0, layers: int = 2, **values: Any) -> BertEncoder:
    """In training, bfloat16, its weights scaled so that nothing stays in its flat part."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, **{**SHAPES["plain"], **values},
    )  # fmt: skip
    stack = BertEncoder(config)
    with torch.no_grad():
        for name, weight in stack.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=1.2 / math.sqrt(weight.shape[1]))
            else:
                weight.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    return stack.bfloat16().train()


def batch(lengths: list[int], hidden_size: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(sum(lengths), hidden_size, generator=draw).bfloat16()
    return states, torch.tensor(lengths)


def passes(
    stack: BertEncoder, states: Tensor, lengths: Tensor, ask: str | Tensor = "all"
) -> dict[str, Tensor]:
    """The result and all gradients, float32. ask: all, first, or places."""
    stack.zero_grad(set_to_none=True)
    states = states.detach().clone().requires_grad_()
    layout = pack_layout(lengths)
    out, _, _ = stack(
        states, layout, keep_states=False, first=layout.first if ask == "first" else None,
        wanted=ask if isinstance(ask, Tensor) else None,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(2)
    out.backward(torch.randn(out.shape, generator=draw).bfloat16().to(out.dtype))
    found = {"out": out.detach().float()}
    for name, weight in (("states", states), *stack.named_parameters()):
        if weight.grad is not None:
            found[name] = weight.grad.float()
    return found


def by_torch(stack: BertEncoder, monkeypatch: pytest.MonkeyPatch, *given: Any) -> dict[str, Tensor]:
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "0")
        return passes(stack, *given)


def distances(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Relative norms of the differences. The keys' bias cancels in the softmax: its gradient is
    rounding alone. Each other gradient counts at least a twentieth of the largest of its kind."""
    assert found.keys() == wanted.keys()
    rms = {name: float(value.square().mean().sqrt()) for name, value in wanted.items()}
    largest = {
        dims: max([size for name, size in rms.items() if wanted[name].dim() == dims], default=0.0)
        for dims in (1, 2)
    }
    return {
        name: float((found[name] - value).square().mean().sqrt())
        / max(rms[name], 0.05 * largest[value.dim()])
        for name, value in wanted.items()
        if not name.endswith("key.bias")
    }


def compare(
    stack: BertEncoder, monkeypatch: pytest.MonkeyPatch, lengths: list[int], ask: str | Tensor
) -> None:
    given = (*batch(lengths, stack.config.hidden_size), ask)
    twin = copy.deepcopy(stack).float()
    exact = passes(twin, given[0].float(), *given[1:])
    theirs = distances(by_torch(stack, monkeypatch, *given), exact)
    ours = distances(passes(stack, *given), exact)
    assert ours["out"] < TOLERANCE, lengths
    assert sum(ours.values()) < FURTHER * sum(theirs.values()), (lengths, ours, theirs)
    for name, distance in ours.items():
        assert distance < ALONE * max(theirs[name], 1e-2), (lengths, name, distance, theirs[name])


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_equal_those_of_the_twin(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = encoder(**SHAPES[shape])
    for lengths in BATCHES:
        compare(stack, monkeypatch, lengths, "all")


@needs_native
@pytest.mark.parametrize("layers", [1, 3])
def test_only_some_tokens_may_be_wanted(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = encoder(layers=layers)
    for lengths in BATCHES:
        compare(stack, monkeypatch, lengths, "first")
        draw = torch.Generator().manual_seed(3)
        # unsorted, some twice, and not from every text
        places = torch.randint(0, sum(lengths), (1 + sum(lengths) // 6,), generator=draw)
        compare(stack, monkeypatch, lengths, places)


@needs_native
@pytest.mark.parametrize("layers", [1, 3])
def test_no_token_may_be_wanted(layers: int) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    found = passes(encoder(layers=layers), *batch([5, 300, 9], 64), none)
    assert found.pop("out").shape == (0, 64)
    assert len(found) == 1 + 16 * layers
    assert not any(value.any() for value in found.values())


@needs_native
@pytest.mark.parametrize("place", [-1, 29])
def test_places_are_those_of_tokens(place: int) -> None:
    with pytest.raises(IndexError):
        passes(encoder(), *batch([9, 20], 64), torch.tensor([3, place]))


@needs_native
def test_the_twin_itself_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = NativeStack.forward
    monkeypatch.setattr(NativeStack, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    stack = encoder()
    passes(stack, *batch([9, 40], 64))
    assert calls == [1]
    by_torch(stack, monkeypatch, *batch([9, 40], 64))
    passes(copy.deepcopy(stack).float(), batch([9, 40], 64)[0].float(), torch.tensor([9, 40]))
    stack.eval()
    passes(stack, *batch([9, 40], 64))
    stack.train()
    long, lengths = batch([513], 64)
    passes(stack, long, lengths)
    assert calls == [1]


def masked(stack: BertEncoder, states: Tensor, lengths: Tensor, seed: int) -> Tensor:
    """The stack written out in float32, with the masks that the library says it uses."""
    own = stack.layer[0].attention.self
    assert isinstance(own.dropout_prob, float)
    lost = dropped(own.dropout_prob, own.dropout_prob)[0]
    scale = 65536 / (65536 - lost)
    starts = (torch.cumsum(lengths, 0) - lengths).tolist()

    def mask(layer: int, site: int, tokens: range, count: int, head: int = 0) -> Tensor:
        rows = [
            kept_elements(
                seed, layer=layer, site=site, head=head, token=token, dropped=lost, count=count
            )
            for token in tokens
        ]
        return torch.stack(rows).float() * scale

    for number, layer in enumerate(stack.layer):
        own, size = layer.attention.self, layer.attention.self.head_size
        q, k, v = own.query(states), own.key(states), own.value(states)
        texts = []
        for start, length in zip(starts, lengths.tolist(), strict=True):
            rows, heads = slice(start, start + length), []
            for head in range(own.num_heads):
                part = (rows, slice(head * size, (head + 1) * size))
                odds = torch.softmax(q[part] @ k[part].T / math.sqrt(size), -1)
                odds = odds * mask(number, 0, range(start, start + length), length, head)
                heads.append(odds @ v[part])
            texts.append(torch.cat(heads, 1))
        every, hidden = range(len(states)), states.shape[1]
        out = layer.attention.output
        update = out.dense(torch.cat(texts)) * mask(number, 1, every, hidden)
        states = out.LayerNorm(states + update)
        update = layer.output.dense(layer.intermediate(states)) * mask(number, 2, every, hidden)
        states = layer.output.LayerNorm(states + update)
    return states


@needs_native
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_with_the_same_masks(dropout: float) -> None:
    stack = encoder(dropout)
    lengths = [5, 1, 33, 64, 7, 100]
    states, counts = batch(lengths, 64)
    torch.manual_seed(7)
    seed = int(torch.randint(2**62, (), dtype=torch.int64))  # the one draw of a forward pass
    twin = copy.deepcopy(stack).float()
    inputs = states.float().requires_grad_()
    out = masked(twin, inputs, counts, seed)
    draw = torch.Generator().manual_seed(2)
    out.backward(torch.randn(out.shape, generator=draw).bfloat16().float())
    wanted = {"out": out.detach(), "states": inputs.grad}
    wanted |= {name: weight.grad for name, weight in twin.named_parameters()}
    torch.manual_seed(7)
    for name, distance in distances(passes(stack, states, counts), wanted).items():
        assert distance < TOLERANCE, name
    torch.manual_seed(7)
    some = torch.tensor([0, 5, 6, 38, 209])
    assert torch.allclose(passes(stack, states, counts, some)["out"], out[some], atol=0.1)


@needs_native
def test_dropout_drops_as_much_as_it_should() -> None:
    lost = dropped(0.1, 0.1)[0]
    rows = torch.stack([
        kept_elements(seed, layer=layer, site=site, head=head, token=token, dropped=lost, count=256)
        for seed in (0, 2**61 + 1) for layer in (0, 5) for site in (0, 1, 2) for head in (0, 3)
        for token in range(100)
    ]).float()  # fmt: skip
    kept = 1 - lost / 65536
    deviation = math.sqrt(kept * (1 - kept))
    assert abs(float(rows.mean()) - kept) < 5 * deviation / math.sqrt(rows.numel())
    # of each place over rows, of each row over places; and rows and neighbours are unrelated
    for axis, count in ((0, len(rows)), (1, 256)):
        assert float((rows.mean(axis) - kept).abs().max()) < 5 * deviation / math.sqrt(count)
    centred = (rows - kept) / deviation
    for related in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(float(related.mean())) < 5 / math.sqrt(related.numel())


@needs_native
def test_the_same_bits_twice_and_by_two_threads() -> None:
    stack = encoder(0.1)
    states, counts = batch([200, 5, 128, 300, 77, 512, 33], 64)
    lengths, weights = counts.to(torch.int32), weights_of(stack)
    needed = [True] * (1 + len(weights))
    native = NativeStack(stack)
    native.dropped = dropped(0.1, 0.1)
    found = []
    for threads in (1, 1, 2, 3):
        out, kept = native.forward(states, weights, lengths, None, 5, threads=threads)
        kept.shape = states.shape
        grads = native.backward(kept, weights, out, needed, threads=threads)
        found.append([out, *(grad for grad in grads if grad is not None)])
        kept.release()
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@needs_native
def test_two_forwards_before_a_backward() -> None:
    stack = encoder(0.1)
    first, second = batch([40, 3], 64), batch([7, 90, 90], 64)

    def result(states: Tensor, lengths: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        states = states.clone().requires_grad_()
        layout = pack_layout(lengths)
        return states, stack(states, layout, keep_states=False, first=None, wanted=None)[0]

    alone = []
    for seed, given in enumerate((first, second)):
        states, out = result(*given, seed)
        out.float().square().sum().backward()
        alone.append(states.grad)
    pairs = [result(*given, seed) for seed, given in enumerate((first, second))]
    for _, out in pairs:
        out.float().square().sum().backward()
    for (states, _), wanted in zip(pairs, alone, strict=True):
        assert states.grad is not None and wanted is not None
        assert torch.equal(states.grad, wanted)


@needs_native
def test_a_forked_child_lets_go_of_a_stack_that_had_helpers() -> None:
    stacks = [NativeStack(encoder())]
    states, lengths = batch([300, 200, 100], 64)
    weights = weights_of(encoder())
    stacks[0].forward(states, weights, lengths.int(), None, 0, threads=2)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        stacks.clear()
        theirs.send("gone")

    process = context.Process(target=child)
    process.start()
    try:
        assert ours.poll(20), "the child hangs"
    finally:
        process.kill()
        process.join()


@needs_native
def test_a_gradient_is_asked_for_once() -> None:
    stack = encoder()
    states, lengths = batch([20], 64)
    layout = pack_layout(lengths)
    out, _, _ = stack(states, layout, keep_states=False, first=None, wanted=None)
    out.float().sum().backward(retain_graph=True)
    with pytest.raises(FilbertError, match="twice"):
        out.float().sum().backward()
    states.requires_grad_()
    out, _, _ = stack(states, layout, keep_states=False, first=None, wanted=None)
    (slope,) = torch.autograd.grad(out.float().square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.float().sum().backward()


@needs_native
def test_a_weight_changed_before_the_backward_pass_is_told() -> None:
    stack = encoder()
    states, lengths = batch([20], 64)
    out, _, _ = stack(states, pack_layout(lengths), keep_states=False, first=None, wanted=None)
    with torch.no_grad():
        weights_of(stack)[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.float().sum().backward()


@needs_native
def test_frozen_weights_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = encoder(layers=3)
    given = batch([33, 5, 60], 64)
    every = passes(stack, *given)
    frozen = ("layer.0.", "layer.1.attention", "layer.2.output.dense.weight", "key")
    for name, weight in stack.named_parameters():
        weight.requires_grad_(not any(part in name for part in frozen))
    some = passes(stack, *given)
    assert some.keys() == by_torch(stack, monkeypatch, *given).keys()
    assert 0 < len(some) < len(every)
    assert all(torch.equal(value, every[name]) for name, value in some.items())
    layout = pack_layout(given[1])  # nothing below the layers is trained either
    out, _, _ = stack(given[0], layout, keep_states=False, first=None, wanted=None)
    stack.zero_grad()
    draw = torch.Generator().manual_seed(2)
    out.backward(torch.randn(out.shape, generator=draw).bfloat16())
    for name, weight in stack.named_parameters():
        assert (weight.grad is None) == (name not in some), name
        assert weight.grad is None or torch.equal(weight.grad.float(), every[name])


@needs_native
def test_what_it_does_not_do_it_refuses_with_a_reason() -> None:
    stack = encoder()
    assert why_not(stack) is None
    for values, reason in (
        ({"hidden_size": 60, "num_attention_heads": 3}, "multiples of 32"),
        ({"intermediate_size": 100}, "multiples of 32"),
        ({"num_attention_heads": 4}, "multiples of 32"),
        ({"hidden_act": "silu"}, "activation 'silu'"),
    ):
        refused = encoder(**values)
        assert reason in str(why_not(refused))
        passes(refused, *batch([9, 20], refused.config.hidden_size))
    assert "float32" in str(why_not(encoder().float()))
    hooked = encoder()
    hooked.layer[1].register_forward_hook(lambda *_: None)
    assert "hooks" in str(why_not(hooked))
    hooked = encoder()
    part: Any = hooked.layer[1]
    part.output.dense.register_full_backward_pre_hook(lambda *_: None)
    assert "hooks" in str(why_not(hooked))
    still = encoder()
    still.layer[0].eval()  # without dropout there
    assert "some are not" in str(why_not(still))

    class Adapted(torch.nn.Linear):
        """More than its weights say."""

    other = encoder()
    part = other.layer[0]
    part.output.dense.__class__ = Adapted
    assert "Adapted stands" in str(why_not(other))
    narrow = encoder()
    part = narrow.layer[1]
    part.intermediate.dense = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
    part.output.dense = torch.nn.Linear(32, 64, dtype=torch.bfloat16)
    assert "differ in size" in str(why_not(narrow))
    passes(narrow, *batch([9, 20], 64))
    checkpointed = encoder()
    checkpointed.gradient_checkpointing = True
    assert "checkpointing" in str(why_not(checkpointed))
    passes(checkpointed, *batch([9, 20], 64))


@needs_native
def test_the_log_says_which_path_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(vocab_size=50, num_hidden_layers=1, **SHAPES["plain"])
    model = BertForSequenceClassification(config)
    assert "no native training" in str(training_path(model))
    assert f"native forward and backward ({units()})" in str(training_path(model.bfloat16()))
    monkeypatch.setattr(model.bert.encoder.layer[0].output, "_compiled_call_impl", len)
    assert "--compile" in str(training_path(model))
    monkeypatch.setenv(SWITCH, "0")
    assert f"{SWITCH}=0" in str(training_path(model))


@needs_native
def test_a_model_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(
        vocab_size=60, num_hidden_layers=2, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **SHAPES["plain"],
    )  # fmt: skip

    def losses() -> list[float]:
        torch.manual_seed(0)
        model = BertForMaskedLM(config).bfloat16().train()
        optimizer = make_optimizer(model, weight_decay=0.0)
        draw, curve = torch.Generator().manual_seed(4), []
        for _ in range(30):
            ids = torch.randint(1, 9, (16, 1), generator=draw).expand(16, 20)  # look at the others
            labels = torch.full_like(ids, -100)
            labels[:, 5::4] = ids[:, 5::4]
            inputs = torch.where(labels >= 0, 0, ids).flatten()
            out = model(input_ids=inputs, lengths=torch.full((16,), 20), labels=labels.flatten())
            loss = F.cross_entropy(out.logits.float(), labels.flatten())
            loss.backward()
            optimizer.step(5e-3, clip=1.0, norm=optimizer.gradient_norm())
            curve.append(loss.item())
        return curve

    ours = losses()
    monkeypatch.setenv(SWITCH, "0")
    theirs = losses()
    assert ours[-1] < 0.8 * ours[0]
    for mine, other in zip(ours, theirs, strict=True):
        assert abs(mine - other) < 0.03 * other
