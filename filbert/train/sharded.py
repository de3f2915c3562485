"""Weights in parts: each process keeps a share of every weight, its gradient and its means.

    torchrun --nproc-per-node 8 -m filbert pretrain recipe.toml --parallel fsdp

For models whose state does not fit into one GPU: a weight costs 16 bytes there (float32 master, two
means, gradient), in parts 16 over the number of processes. PyTorch's FSDP2 (`fully_shard`) puts a
layer together before it computes and lets go of it after, and adds the gradients up by parts while
the backward pass goes on. The optimizer works on the parts as they are. Checkpoints hold whole
tensors, the same as without parts, so a run resumes on any number of processes, in parts or not.

Every process must do as many forward and backward passes as the others; `padded` sees to that.
tests/system/test_parallel.py holds it to runs without parts.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError, UsageError
from filbert.model.pretrained import PretrainedModel
from filbert.train.parallel import World

Item = TypeVar("Item")


def shard(model: nn.Module, *, world: World, dtype: torch.dtype) -> None:
    """Put `model`, whole and in float32, into parts on the device of `world`; in place. It computes
    in `dtype`; gradients are summed, not averaged, in float32. Every process must call it, with
    the same weights. Raises `UsageError` for a single process, `FilbertError` for an old PyTorch.
    """
    if world.size < 2 or world.device is None:
        raise UsageError(
            "--parallel fsdp shares the weights among several processes, and there is one; start "
            "them with torchrun --nproc-per-node N -m filbert pretrain ..., or leave it out"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise FilbertError(
            f"--parallel fsdp needs PyTorch 2.9 or newer, this is {torch.__version__}; update it, "
            "or leave the option out"
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotary angles stay float32
    )
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for layer in (layer for stack in stacks for layer in stack):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # the loss is divided by all samples already
            part.set_force_sum_reduction_for_comms(True)


def own_part(weight: Tensor) -> Tensor:
    """This process's part of a weight or gradient (some of its rows, maybe none); a whole one as it
    is. A view, not a copy."""
    local: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return local


def part_of(whole: Tensor, world: World) -> Tensor:
    """This process's part of a whole tensor, as `shard` divides it: rows (or elements) of equal
    number, the last processes fewer or none."""
    if world.size == 1:
        return whole
    rows = -(-len(whole) // world.size)
    return whole[world.rank * rows : (world.rank + 1) * rows]


def whole_of(part: Tensor, weight: Tensor, world: World) -> Tensor | None:
    """The parts of a tensor put together, float32 on the CPU, in the first process; None in the
    others. `weight` is the one it belongs to. Every process must call it; one whole tensor is in
    its device's memory for a moment."""
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(weight, DTensor)
    together = DTensor.from_local(
        part, weight.device_mesh, [Shard(0)], run_check=False,
        shape=weight.shape, stride=weight.stride(),
    ).full_tensor()  # fmt: skip
    return together.float().cpu() if world.first else None


def let_go(model: nn.Module) -> None:
    """Drop weights that an evaluation put together, which a later change of the parts would not
    reach."""
    from torch.distributed.fsdp import FSDPModule

    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def padded(items: list[Item], world: World) -> tuple[list[Item], int]:
    """As many batches as the process with the most has, and how many of them are this one's own;
    the last is repeated. A process with fewer would wait for the others meanwhile, so this costs
    no time. Every process must call it. Raises `FilbertError` where one has none."""
    counts = world.counts(len(items))
    if min(counts) == 0:
        raise FilbertError(
            f"process {counts.index(0)} has no samples in this step; raise --batch-size or start "
            "fewer processes"
        )
    return items + items[-1:] * (max(counts) - len(items)), len(items)


def whole_model(model: PretrainedModel) -> PretrainedModel:
    """A model of the same kind that is whole, on the CPU, with fresh weights."""
    kind = next(k for k in type(model).__mro__ if k.__module__.startswith("filbert."))
    assert issubclass(kind, PretrainedModel)
    return kind(model.config)
