"""AdamW with float32 master weights, and the learning-rate schedules.

Loshchilov and Hutter 2019 (arXiv 1711.05101); settings of the BERT paper's appendix A.3: no decay
on biases and norms. The model may compute in bfloat16: its weights are then rounded copies of the
masters kept here. tests/numerics/test_optim.py holds this to `torch.optim.AdamW`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from filbert.train.options import ClassifyOptions

CHUNK = 1 << 19  # elements updated together: their states stay in the processor's cache
BETAS = (0.9, 0.999)
EPS = 1e-8
LAYER = re.compile(r"\.layer\.(\d{1,6})\.")


@dataclass
class Slot:
    """One weight: its compute copy in the model, its float32 master, its moments."""

    name: str
    weight: nn.Parameter
    master: Tensor
    first: Tensor  # running mean of gradients
    second: Tensor  # running mean of their squares
    decay: float
    lr_factor: float
    gathered: Tensor | None = None  # float32 sum of gradients over accumulated batches


class AdamW:
    """Updates a model's weights from their `.grad`."""

    def __init__(self, model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> None:
        self.steps = 0
        self.slots: list[Slot] = []
        self._scratch = torch.empty(CHUNK, device=next(model.parameters()).device)
        layers = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                master = weight.detach().float()  # float32: the weight itself
                self.slots.append(
                    Slot(
                        name, weight, master, torch.zeros_like(master), torch.zeros_like(master),
                        decay=weight_decay if decays(name) else 0.0,
                        lr_factor=layer_decay ** depth_below_head(name, layers),
                    )
                )  # fmt: skip

    def gather(self) -> None:
        """Add the gradients of one batch to the float32 sums, for accumulation over batches."""
        for slot in self.slots:
            if slot.weight.grad is not None:
                if slot.gathered is None:
                    slot.gathered = torch.zeros_like(slot.master)
                slot.gathered += slot.weight.grad
                slot.weight.grad = None

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """The Euclidean norm of all gradients together."""
        total = torch.zeros((), device=self._scratch.device)
        for slot in self.slots:
            if (grad := _gradient(slot)) is not None:
                for part in grad.reshape(-1).split(CHUNK):
                    part32 = self._float32(part)
                    total += torch.dot(part32, part32)
        return math.sqrt(float(total))

    def _float32(self, part: Tensor) -> Tensor:
        """`part` in float32, in memory that is used again and so stays in the cache."""
        return part if part.dtype == torch.float32 else self._scratch[: len(part)].copy_(part)

    @torch.no_grad()
    def step(self, lr: float, *, clip: float, norm: float) -> None:
        """One update with learning rate `lr`; gradients are scaled so that `norm` is at most `clip`
        (0: no clipping). Clears the gradients."""
        self.steps += 1
        scale = clip / (norm + 1e-6) if clip and norm > clip else 1.0
        for slot in self.slots:
            grad = _gradient(slot)
            if grad is None:
                continue
            flat = [
                x.view(-1).split(CHUNK)
                for x in (grad.contiguous(), slot.master, slot.first, slot.second, slot.weight.data)
            ]
            for g, master, first, second, weight in zip(*flat, strict=True):
                g32 = self._float32(g)
                if scale != 1.0:
                    g32.mul_(scale)
                _update(
                    g32,
                    master,
                    first,
                    second,
                    lr=lr * slot.lr_factor,
                    decay=slot.decay,
                    step=self.steps,
                )
                if weight.dtype != torch.float32:
                    weight.copy_(master)
            slot.weight.grad = None
            slot.gathered = None

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, for a checkpoint."""
        return {
            f"{part}/{slot.name}": getattr(slot, part)
            for slot in self.slots
            for part in ("master", "first", "second")
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Take back what `state` gave, and set the model's weights from the masters."""
        self.steps = steps
        for slot in self.slots:
            for part in ("master", "first", "second"):
                getattr(slot, part).copy_(tensors[f"{part}/{slot.name}"])
            if slot.weight.dtype != torch.float32:
                slot.weight.data.copy_(slot.master)


def _gradient(slot: Slot) -> Tensor | None:
    return slot.gathered if slot.gathered is not None else slot.weight.grad


def _update(
    grad: Tensor,
    master: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    lr: float,
    decay: float,
    step: int,
) -> None:
    """AdamW, algorithm 2 of the paper, on float32 tensors, in place."""
    adamw(
        [master], [grad], [first], [second], [], [torch.tensor(float(step - 1))],
        fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=lr, weight_decay=decay,
        eps=EPS, maximize=False,
    )  # fmt: skip


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

    def __init__(self, slots: Iterable[Slot], decay: float) -> None:
        self.decay = decay
        self.slots = list(slots)
        self.values = {slot.name: slot.master.clone() for slot in self.slots}

    @torch.no_grad()
    def update(self) -> None:
        """Move each average towards its master by 1 - decay."""
        for slot in self.slots:
            self.values[slot.name].lerp_(slot.master, 1 - self.decay)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The averages in the model for the length of a block, then its own weights again."""
        with torch.no_grad():
            kept = [slot.weight.detach().clone() for slot in self.slots]
            for slot in self.slots:
                slot.weight.copy_(self.values[slot.name])
            try:
                yield
            finally:
                for slot, weight in zip(self.slots, kept, strict=True):
                    slot.weight.copy_(weight)
