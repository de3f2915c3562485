"""LAMB against the paper's algorithm written out in float64, Muon against `torch.optim.Muon`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForPreTraining
from filbert.model.config import BertConfig
from filbert.train import optim
from filbert.train.optim import Optimizer, decays, make_optimizer, matrix_of, rule_of
from filbert.train.parallel import World
from filbert.train.updates import orthogonal

TINY = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
MATRIX = "bert.encoder.layer.1.intermediate.dense.weight"


def tiny() -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(TINY)


def gradients(model: nn.Module, step: int) -> None:
    """The same random gradients for every model of this shape."""
    draw = torch.Generator().manual_seed(step)
    for weight in model.parameters():
        grad = torch.randn(weight.shape, generator=draw)
        weight.grad = grad.to(weight.dtype)


def run(model: nn.Module, optimizer: Optimizer, steps: int, *, clip: float = 0.0) -> None:
    for _ in range(steps):
        gradients(model, optimizer.steps)
        norm = optimizer.gradient_norm()
        optimizer.step(1e-2 / (optimizer.steps + 1), clip=clip, norm=norm)


@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_muon_equals_torch(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Ten float32 steps: matrices of the layers by Muon, all else by AdamW."""
    # torch's Muon always iterates in bfloat16; here both do in float32
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    monkeypatch.setattr(optim, "CHUNK", chunk)
    mine, theirs = tiny(), tiny()
    own = make_optimizer(mine, name="muon", weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    hidden = {n: w for n, w in theirs.named_parameters() if ".layer." in n and w.ndim == 2}
    assert len(hidden) == 2 * 6  # query, key, value, output; up, down
    rest = {n: w for n, w in theirs.named_parameters() if n not in hidden}
    plain = [w for n, w in rest.items() if not decays(n)]
    references = [
        torch.optim.Muon(hidden.values(), weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [w for n, w in rest.items() if decays(n)], "weight_decay": 0.1},
                {"params": plain, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            eps=1e-6,
        ),
    ]
    for step in range(10):
        gradients(theirs, step)
        for reference in references:
            for group in reference.param_groups:
                group["lr"] = 1e-2 / (step + 1)
            reference.step()
    run(mine, own, 10)
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max().item() < 1e-5, name
    assert (mine.get_parameter(MATRIX) - tiny().get_parameter(MATRIX)).abs().mean().item() > 1e-3


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64), (2, 64, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_keeps_directions_and_levels_sizes(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """In the basis of the singular vectors the result is diagonal and near one."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, sizes, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ orthogonal(matrices, dtype=dtype) @ right.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    off = values - torch.diag_embed(diagonal)
    assert off.abs().max().item() < (1e-4 if dtype == torch.float32 else 0.06)
    large = diagonal[sizes > 0.02 * torch.linalg.vector_norm(matrices, dim=(-2, -1))[:, None]]
    assert large.min().item() > 0.6
    assert large.max().item() < 1.3


def test_muon_of_no_gradient_only_decays() -> None:
    model = tiny()
    before = model.get_parameter(MATRIX).detach().clone()
    optimizer = make_optimizer(model, name="muon", weight_decay=0.1)
    optimizer.step(0.5, clip=1.0, norm=optimizer.gradient_norm())
    assert torch.allclose(model.get_parameter(MATRIX), before * (1 - 0.5 * 0.1), rtol=1e-6)


def test_stacked_matrices_are_parted() -> None:
    assert matrix_of("layers.0.attn.Wqkv.weight", torch.empty(48, 16)) == (16, 16)
    assert matrix_of("layers.0.mlp.Wi.weight", torch.empty(48, 16)) == (24, 16)
    assert matrix_of("layers.0.mlp.Wo.weight", torch.empty(16, 24)) == (16, 24)
    matrix = torch.empty(2, 2)
    assert rule_of("layers.0.attn.Wo.weight", matrix, name="muon") == "muon"
    assert rule_of("bert.embeddings.word_embeddings.weight", matrix, name="muon") == "adamw"
    assert rule_of("cls.predictions.transform.dense.weight", matrix, name="muon") == "adamw"
    assert rule_of("layers.0.attn_norm.weight", torch.empty(2), name="muon") == "adamw"


def lamb_by_the_paper(
    model: nn.Module, steps: int, *, decay: float, clip: float, betas: tuple[float, float]
) -> dict[str, Tensor]:
    """Algorithm 2 of arXiv 1904.00962 in float64, phi the identity; gradients clipped together."""
    eps = 1e-6
    weights = {n: w.detach().double() for n, w in model.named_parameters()}
    m = {n: torch.zeros_like(x) for n, x in weights.items()}
    v = {n: torch.zeros_like(x) for n, x in weights.items()}
    for t in range(1, steps + 1):
        gradients(model, t - 1)
        g = {n: w.grad.double() for n, w in model.named_parameters() if w.grad is not None}
        norm = torch.cat([x.flatten() for x in g.values()]).norm()
        for n, x in weights.items():
            part = g[n] * min(1.0, clip / norm.item())
            m[n] = betas[0] * m[n] + (1 - betas[0]) * part
            v[n] = betas[1] * v[n] + (1 - betas[1]) * part**2
            r = (m[n] / (1 - betas[0] ** t)) / ((v[n] / (1 - betas[1] ** t)).sqrt() + eps)
            ratio = 1.0
            if not n.endswith("bias") and "LayerNorm" not in n:
                r = r + decay * x
                ratio = (x.norm() / r.norm()).item()
            weights[n] = x - 1e-2 / t * ratio * r
    return weights


@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_lamb_equals_the_paper(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(optim, "CHUNK", chunk)
    model = tiny()
    expected = lamb_by_the_paper(tiny(), 10, decay=0.1, clip=1.0, betas=(0.9, 0.98))
    own = make_optimizer(model, name="lamb", weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    run(model, own, 10, clip=1.0)
    for name, weight in model.named_parameters():
        assert (weight - expected[name]).abs().max().item() < 2e-6, name


def test_lamb_moves_a_weight_of_zero() -> None:
    """The trust ratio of a weight of norm zero is one: the step is Adam's, lr in size."""
    layer = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = make_optimizer(layer, name="lamb", weight_decay=0.1)
    layer.weight.grad = torch.full((2, 3), 5.0)
    optimizer.step(0.25, clip=0.0, norm=optimizer.gradient_norm())
    assert layer.weight.detach().numpy() == pytest.approx(-0.25, abs=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_tied_weights_count_once(name: str) -> None:
    model = tiny()
    optimizer = make_optimizer(model, name=name, weight_decay=0.1)
    embedding = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is embedding
    held = [weight for group in optimizer.groups for weight in group.weights]
    assert sum(weight is embedding for weight in held) == 1
    assert sum(w.numel() for w in held) == sum(w.numel() for w in model.parameters())
    run(model, optimizer, 2)
    assert torch.equal(optimizer.weights()["bert.embeddings.word_embeddings.weight"], embedding)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
@pytest.mark.parametrize("compute", [nn.Module.float, nn.Module.bfloat16])
def test_goes_on_to_the_same_bits(name: str, compute: Callable[[nn.Module], nn.Module]) -> None:
    """Seven steps, against four, a state taken up by a new model and optimizer, and three."""
    model, second = compute(tiny()), compute(BertForPreTraining(TINY))
    optimizer = make_optimizer(model, name=name, weight_decay=0.1)
    run(model, optimizer, 4, clip=1.0)
    kept = {key: value.clone() for key, value in optimizer.state().items()}
    run(model, optimizer, 3, clip=1.0)
    other = make_optimizer(second, name=name, weight_decay=0.1)
    other.load(kept, 4)
    run(second, other, 3, clip=1.0)
    for key, value in optimizer.state().items():
        assert torch.equal(value, other.state()[key]), key
    for key, value in model.named_parameters():
        assert torch.equal(value, second.get_parameter(key)), key
        assert torch.equal(value, optimizer.weights()[key].to(value.dtype)), key


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_accumulated_batches_equal_their_sum(name: str) -> None:
    results = []
    for parts in (1, 2):
        model = tiny()
        optimizer = make_optimizer(model, name=name, weight_decay=0.1)
        for part in range(parts):
            gradients(model, 0)
            for weight in model.parameters():
                assert weight.grad is not None
                weight.grad *= 1.0 if parts == 1 else (0.25, 0.75)[part]
            if parts > 1:
                optimizer.gather()
        optimizer.step(1e-2, clip=0.0, norm=optimizer.gradient_norm())
        results.append(model.get_parameter(MATRIX).detach().clone())
    assert (results[0] - results[1]).abs().max().item() < 1e-6


def test_a_broken_batch_and_a_skipped_step_leave_nothing() -> None:
    """Gradients of a batch that broke off, and those of a step not taken, have no effect."""
    results = []
    for disturbed in (False, True):
        model = tiny()
        optimizer = make_optimizer(model, name="muon", weight_decay=0.1)
        if disturbed:
            for weight in model.parameters():
                weight.grad = torch.full_like(weight, torch.inf)
            optimizer.gather()
            assert optimizer.gradient_norm() == torch.inf
            optimizer.drop_gradients()
        for step in (0, 1):
            gradients(model, step)
            optimizer.gather(last=step == 1)
            if disturbed and step == 0:
                gradients(model, 7)
                optimizer.drop_gradients()
        optimizer.step(1e-2, clip=0.0, norm=optimizer.gradient_norm())
        results.append({name: weight.detach() for name, weight in model.named_parameters()})
    for name, weight in results[0].items():
        assert torch.equal(weight, results[1][name]), name


@dataclass(frozen=True)
class Twins(World):
    """Two processes with equal gradients, without the processes."""

    size: int = 2

    def sum(self, values: Tensor) -> Tensor:
        return values.mul_(2)


@pytest.mark.parametrize("batches", [1, 2])
def test_several_processes_add_up(batches: int) -> None:
    """Two processes with a gradient each are one process with both, in its norm and in its step."""
    results = []
    for world in (None, Twins()):
        model = tiny().bfloat16()
        optimizer = make_optimizer(model, name="adamw", weight_decay=0.1)
        for batch in range(batches * (1 if world else 2)):
            gradients(model, batch % batches)
            optimizer.gather(last=batch + 1 == batches * (1 if world else 2))
        norm = optimizer.gradient_norm(world)
        optimizer.step(1e-2, clip=1.0, norm=norm)
        results.append((norm, optimizer.weights()[MATRIX]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert (results[0][1] - results[1][1]).abs().max().item() < 1e-6


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UsageError, match="unknown optimizer 'sgd'; expected adamw, lamb or muon"):
        make_optimizer(tiny(), name="sgd", weight_decay=0.0)
    muon = make_optimizer(tiny(), name="muon", weight_decay=0.0)
    adamw = make_optimizer(tiny(), name="adamw", weight_decay=0.0)
    with pytest.raises(FilbertError, match=r"lacks second/bert\.encoder\.layer"):
        adamw.load(muon.state(), 1)
