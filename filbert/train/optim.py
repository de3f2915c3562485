"""AdamW with float32 master weights, and the learning-rate schedules.

Loshchilov and Hutter 2019 (arXiv 1711.05101); settings of the BERT paper's appendix A.3: no decay
on biases and norms. The model may compute in bfloat16: its weights are then rounded copies of the
masters kept here. tests/numerics/test_optim.py holds this to `torch.optim.AdamW`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from filbert.train.options import ClassifyOptions

CHUNK = 1 << 20  # elements updated together: their states stay in the processor's cache
BETAS = (0.9, 0.999)
EPS = 1e-8
LAYER = re.compile(r"\.layer\.(\d{1,6})\.")


@dataclass
class Group:
    """Weights with the same decay and the same learning-rate factor, end to end in flat tensors."""

    names: list[str]
    weights: list[nn.Parameter]  # views of `compute`
    compute: Tensor  # (elements,) what the model computes with; in float32, `master` itself
    master: Tensor  # (elements,) float32
    first: Tensor  # (elements,) running mean of gradients
    second: Tensor  # (elements,) running mean of their squares
    grad: Tensor  # (elements,) gradients of a step, in the compute type
    decay: float
    lr_factor: float
    gathered: Tensor | None = None  # (elements,) float32 sum over accumulated batches

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The weights of a flat tensor by name, each in its shape."""
        parts = flat.split([weight.numel() for weight in self.weights])
        return {
            name: part.view(weight.shape)
            for name, part, weight in zip(self.names, parts, self.weights, strict=True)
        }


class AdamW:
    """Updates a model's weights from their `.grad`. The model's weights become views of flat
    tensors, so that one pass over memory updates many of them. A weight without a gradient counts
    as one with a gradient of zero."""

    def __init__(self, model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> None:
        self.steps = 0
        layers = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
        members: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                decay = weight_decay if decays(name) else 0.0
                factor = layer_decay ** depth_below_head(name, layers)
                members.setdefault((decay, factor), []).append((name, weight))
        self.groups: list[Group] = []
        for (decay, factor), pairs in members.items():
            names, weights = [name for name, _ in pairs], [weight for _, weight in pairs]
            compute = torch.cat([weight.detach().reshape(-1) for weight in weights])
            master = compute.float()  # float32 compute: the same tensor
            group = Group(
                names, weights, compute, master, torch.zeros_like(master),
                torch.zeros_like(master), torch.empty_like(compute), decay, factor,
            )  # fmt: skip
            for weight, view in zip(weights, group.views(compute).values(), strict=True):
                weight.data = view
            self.groups.append(group)
        self._scratch = torch.empty(CHUNK, device=self.groups[0].master.device)

    def gather(self) -> None:
        """Add the gradients of one batch to the float32 sums, for accumulation over batches."""
        for group in self.groups:
            if group.gathered is None:
                group.gathered = torch.zeros_like(group.master)
            group.gathered += self._collect(group)

    def _collect(self, group: Group) -> Tensor:
        """The gradients end to end; the model's own are let go."""
        grads = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad
            for weight in group.weights
        ]
        torch.cat([grad.reshape(-1) for grad in grads], out=group.grad)
        for weight in group.weights:
            weight.grad = None
        return group.grad

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Take the model's gradients; return the Euclidean norm of all of them together."""
        total = torch.zeros((), device=self._scratch.device)
        for group in self.groups:
            if group.gathered is None:
                self._collect(group)
            for part in self._gradient(group).split(CHUNK):
                part32 = self._float32(part)
                total += torch.dot(part32, part32)
        return math.sqrt(float(total))

    @torch.no_grad()
    def step(self, lr: float, *, clip: float, norm: float) -> None:
        """One update with learning rate `lr` by the gradients that `gradient_norm` took, scaled so
        that `norm` is at most `clip` (0: no clipping)."""
        self.steps += 1
        scale = clip / (norm + 1e-6) if clip and norm > clip else 1.0
        for group in self.groups:
            flat = (self._gradient(group), group.master, group.first, group.second, group.compute)
            for parts in zip(*(tensor.split(CHUNK) for tensor in flat), strict=True):
                grad, master, first, second, compute = parts
                grad = self._float32(grad)
                if scale != 1.0:
                    grad.mul_(scale)
                # counts itself up by one: a new one for each call
                done = torch.tensor(float(self.steps - 1), device=master.device)
                adamw(
                    [master], [grad], [first], [second], [], [done],
                    fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], eps=EPS,
                    lr=lr * group.lr_factor, weight_decay=group.decay, maximize=False,
                )  # fmt: skip
                if compute.dtype != torch.float32:
                    compute.copy_(master)
            group.gathered = None

    @staticmethod
    def _gradient(group: Group) -> Tensor:
        return group.grad if group.gathered is None else group.gathered

    def _float32(self, part: Tensor) -> Tensor:
        """`part` in float32, in memory that is used again and so stays in the cache."""
        return part if part.dtype == torch.float32 else self._scratch[: len(part)].copy_(part)

    def weights(self) -> dict[str, Tensor]:
        """The float32 masters by name; views, not copies."""
        return {name: view for g in self.groups for name, view in g.views(g.master).items()}

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, for a checkpoint."""
        return {
            f"{part}/{name}": view
            for group in self.groups
            for part in ("master", "first", "second")
            for name, view in group.views(getattr(group, part)).items()
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Take back what `state` gave, and set the model's weights from the masters."""
        self.steps = steps
        for name, view in self.state().items():
            view.copy_(tensors[name])
        for group in self.groups:
            if group.compute.dtype != torch.float32:
                group.compute.copy_(group.master)


def decays(name: str) -> bool:
    """Whether weight decay falls on this weight: not on biases and norms."""
    return not (name.endswith("bias") or "LayerNorm" in name)


def depth_below_head(name: str, layers: int) -> int:
    """0 for the head and pooler, 1 for the last layer ... layers + 1 for the embeddings."""
    found = LAYER.search(name)
    if found:
        return layers - int(found.group(1))
    return layers + 1 if "embeddings" in name else 0


def learning_rate(step: int, *, total: int, peak: float, warmup: float, schedule: str) -> float:
    """The rate of update `step` (0-based) of `total`: linear warm-up over the share `warmup`, then
    `linear` or `cosine` to zero, or `constant`."""
    warm = math.ceil(total * warmup)
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    left = (total - step) / max(1, total - warm)
    if schedule == "linear":
        return peak * left
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (1 - left)))
    return peak


def unused_row_factor(steps: int, *, total: int, options: ClassifyOptions, layers: int) -> float:
    """What `steps` updates make of an embedding row that never has a gradient: decay alone, as a
    factor; with EMA, of its average."""
    value = average = 1.0
    lr_factor = options.layer_decay ** (layers + 1)
    for step in range(steps):
        lr = learning_rate(
            step, total=total, peak=options.lr, warmup=options.warmup, schedule=options.schedule
        )
        value *= 1 - lr * lr_factor * options.weight_decay
        average += (1 - options.ema) * (value - average)
    return average


class Average:
    """Exponential moving average of the masters (EMA), float32."""

    def __init__(self, optimizer: AdamW, decay: float) -> None:
        self.decay = decay
        self.groups = optimizer.groups
        self.flat = [group.master.clone() for group in self.groups]

    @torch.no_grad()
    def update(self) -> None:
        """Move each average towards its master by 1 - decay."""
        for group, average in zip(self.groups, self.flat, strict=True):
            average.lerp_(group.master, 1 - self.decay)

    def weights(self) -> dict[str, Tensor]:
        """The averages by name; views, not copies."""
        pairs = zip(self.groups, self.flat, strict=True)
        return {name: view for g, flat in pairs for name, view in g.views(flat).items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `weights` gave."""
        for name, view in self.weights().items():
            view.copy_(tensors[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The averages in the model for the length of a block, then its own weights again."""
        with torch.no_grad():
            kept = [group.compute.clone() for group in self.groups]
            for group, average in zip(self.groups, self.flat, strict=True):
                group.compute.copy_(average)
            try:
                yield
            finally:
                for group, own in zip(self.groups, kept, strict=True):
                    group.compute.copy_(own)
