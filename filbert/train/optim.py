"""The optimizer: AdamW, LAMB or Muon with float32 master weights, and averages of them.

The rules themselves are in `updates.py`. Which weight follows which is decided here, once:

    adamw   every weight; no decay on biases and norms (appendix A.3 of the BERT paper)
    lamb    matrices; biases and norms follow AdamW, as LAMB without trust ratio and decay is Adam
    muon    matrices of the layers; embeddings, heads, biases and norms follow AdamW

The model may compute in bfloat16: its weights are then rounded copies of the masters kept here.
tests/numerics/test_optim.py holds all three to their references.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError, UsageError
from filbert.train.options import TuneOptions
from filbert.train.parallel import World
from filbert.train.schedule import learning_rate
from filbert.train.sharded import own_part, part_of, whole_of
from filbert.train.updates import adamw_, muon_, trust_ratio

CHUNK = 1 << 20  # elements updated together: their states stay in the processor's cache
CHUNK_GPU = 1 << 24  # there a call costs more than memory
Matrix = tuple[int, int]  # rows, columns
BETAS = (0.9, 0.999)
EPS = 1e-8
LAYER = re.compile(r"(?:^|\.)layers?\.(\d{1,6})\.")
# Matrices that are several, one above the other: Muon makes each orthogonal by itself.
STACKED = {"Wqkv.weight": 3, "Wi.weight": 2}


@dataclass
class Group:
    """Weights with the same rule, decay and learning-rate factor, end to end in flat tensors."""

    rule: str  # adamw, lamb or muon
    names: list[str]
    weights: list[nn.Parameter]  # views of `compute`
    compute: Tensor  # (elements,) what the model computes with; in float32, `master` itself
    master: Tensor  # (elements,) float32
    first: Tensor  # (elements,) running mean of gradients
    second: Tensor | None  # (elements,) running mean of their squares; Muon has none
    grad: Tensor  # (elements,) gradients of a step, in the compute type
    decay: float
    lr_factor: float
    matrix: Matrix | None = None  # rows and columns of all of them, for Muon
    sums: Tensor | None = None  # (elements,) float32, gradients added up over batches
    gathered: bool = False  # whether `sums` holds batches of the step to come
    taken: Tensor | None = None  # (elements,) gradients of the step to come: `grad` or `sums`

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The weights of a flat tensor by name, each in its shape (that of this process's part)."""
        own = [own_part(weight) for weight in self.weights]
        parts = flat.split([weight.numel() for weight in own])
        return {
            name: part.view(weight.shape)
            for name, part, weight in zip(self.names, parts, own, strict=True)
        }


class Optimizer:
    """Updates a model's weights from their `.grad`. The model's weights are views of flat tensors,
    so that one pass over memory updates many of them. A weight without a gradient counts as one
    with a gradient of zero. `make_optimizer` makes one.

    `shards`: the processes among which each weight is divided (see `sharded.py`). The flat tensors
    then hold this process's parts, and the weights are set from them after each change."""

    def __init__(
        self,
        groups: list[Group],
        *,
        betas: tuple[float, float],
        eps: float,
        shards: World | None = None,
    ) -> None:
        self.steps, self.shards = 0, shards
        self.groups = groups
        self.betas, self.eps = betas, eps
        device = groups[0].master.device
        self._chunk = CHUNK if device.type == "cpu" else CHUNK_GPU
        matrices = [math.prod(group.matrix) for group in groups if group.matrix]
        self._scratch = torch.empty(max(self._chunk, *matrices, 0), device=device)
        lamb = [group for group in groups if group.rule == "lamb"]
        sizes = [own_part(weight).numel() for group in lamb for weight in group.weights]
        if shards is not None:  # the squares of all weights are summed at once
            sizes = [group.master.numel() for group in lamb]
        self._direction = torch.empty(max(sizes, default=0), device=device)

    @torch.no_grad()
    def gather(self, *, last: bool = False) -> None:
        """Add the model's gradients to the float32 sums of a step that has several batches. The
        only batch of a step (`last`, with none before) needs no sums; its gradients stay. Parts
        of weights add up their gradients by themselves."""
        for group in self.groups if self.shards is None else []:
            if not (last and not group.gathered):
                self._add_up(group)

    def _add_up(self, group: Group) -> None:
        if group.sums is None:
            group.sums = torch.empty_like(group.master)
        sums = group.views(group.sums).values()
        for weight, view in zip(group.weights, sums, strict=True):
            if group.gathered and weight.grad is not None:
                view.add_(weight.grad)
            elif weight.grad is not None:
                view.copy_(weight.grad)
            elif not group.gathered:
                view.zero_()
            weight.grad = None
        group.gathered = True

    def drop_gradients(self) -> None:
        """Let go of the model's gradients: those of a batch that broke off. The sums stay."""
        for group in self.groups:
            for weight in group.weights:
                weight.grad = None

    @torch.no_grad()
    def gradient_norm(self, world: World | None = None) -> float:
        """Take the gradients for a step, summed over the processes of `world`; return the Euclidean
        norm of all of them together. Every process must call it; all get the same number."""
        total = torch.zeros((), device=self._scratch.device)
        for group in self.groups:
            several = self.shards is None and world is not None and world.size > 1
            group.taken = self._take(group, several=several)
            if several and world is not None:
                world.sum(group.taken)
            for part in group.taken.split(self._chunk):
                part32 = self._float32(part)
                total += torch.dot(part32, part32)
        if self.shards is not None:
            self.shards.sum(total)
        return math.sqrt(float(total))

    def _take(self, group: Group, *, several: bool) -> Tensor:
        """The gradients end to end, the model's own let go: the sums, or without them the one
        batch's. Several processes add up in float32."""
        if group.gathered or several:
            if not group.gathered:
                self._add_up(group)
            group.gathered = False
            assert group.sums is not None
            return group.sums
        grads = [
            own_part(torch.zeros_like(weight) if weight.grad is None else weight.grad)
            for weight in group.weights
        ]
        torch.cat([grad.reshape(-1) for grad in grads], out=group.grad)
        for weight in group.weights:
            weight.grad = None
        return group.grad

    @torch.no_grad()
    def step(self, lr: float, *, clip: float, norm: float) -> None:
        """One update with learning rate `lr` by the gradients that `gradient_norm` took, scaled so
        that `norm` is at most `clip` (0: no clipping)."""
        self.steps += 1
        scale = clip / (norm + 1e-6) if clip and norm > clip else 1.0
        update = {"adamw": self._adamw, "lamb": self._lamb, "muon": self._muon}
        for group in self.groups:
            update[group.rule](group, lr * group.lr_factor, scale)
            group.taken = None
        self.set_parts()

    def set_parts(self) -> None:
        """Copy the flat tensors into the model's weights, where those are parts of their own."""
        for group in self.groups if self.shards is not None else []:
            for weight, view in zip(
                group.weights, group.views(group.compute).values(), strict=True
            ):
                own_part(weight).copy_(view)

    def _adamw(self, group: Group, lr: float, scale: float) -> None:
        assert group.taken is not None and group.second is not None
        flat = (group.taken, group.master, group.first, group.second, group.compute)
        for parts in zip(*(tensor.split(self._chunk) for tensor in flat), strict=True):
            grad, master, first, second, compute = parts
            adamw_(
                master, self._float32(grad, scale), first, second, steps=self.steps, lr=lr,
                decay=group.decay, betas=self.betas, eps=self.eps,
            )  # fmt: skip
            if compute.dtype != torch.float32:
                compute.copy_(master)

    def _lamb(self, group: Group, lr: float, scale: float) -> None:
        assert group.taken is not None and group.second is not None
        flat = (group.taken, group.master, group.first, group.second, group.compute)
        sizes = [own_part(weight).numel() for weight in group.weights]
        weights = list(zip(*(tensor.split(sizes) for tensor in flat), strict=True))
        at_once = 1 if self.shards is None else len(weights)
        for start in range(0, len(weights), at_once):
            some = weights[start : start + at_once]
            own = sizes[start : start + at_once]
            directions = self._direction[: sum(own)].zero_().split(own)
            pairs = list(zip(some, directions, strict=True))
            squares = torch.stack([self._lamb_direction(group, *pair, scale) for pair in pairs])
            if self.shards is not None:
                self.shards.sum(squares)
            for ((_, master, _, _, compute), direction), square in zip(pairs, squares, strict=True):
                master.addcmul_(direction, trust_ratio(square[0], square[1]), value=lr)
                if compute.dtype != torch.float32:
                    compute.copy_(master)

    def _lamb_direction(
        self, group: Group, weight: tuple[Tensor, ...], direction: Tensor, scale: float
    ) -> Tensor:
        """Set `direction`, zeros before; returns (2,) the squares of the weight and of it."""
        squares = torch.zeros(2, device=direction.device)
        chunks = (tensor.split(self._chunk) for tensor in (*weight[:4], direction))
        for grad, master, first, second, part in zip(*chunks, strict=True):
            # AdamW's step from zero with rate 1 is minus the direction of Adam
            adamw_(
                part, self._float32(grad, scale), first, second, steps=self.steps, lr=1.0,
                decay=0.0, betas=self.betas, eps=self.eps,
            )  # fmt: skip
            part.add_(master, alpha=-group.decay)
            squares[0] += torch.dot(master, master)
            squares[1] += torch.dot(part, part)
        return squares

    def _muon(self, group: Group, lr: float, scale: float) -> None:
        assert group.taken is not None and group.matrix is not None
        flat = (group.taken, group.master, group.first, group.compute)
        at_once = max(1, self._chunk // math.prod(group.matrix))
        batches = (tensor.view(-1, *group.matrix).split(at_once) for tensor in flat)
        for grad, master, first, compute in zip(*batches, strict=True):
            grad = self._float32(grad, scale)
            muon_(master, grad, first, lr=lr, decay=group.decay, dtype=compute.dtype)
            if compute.dtype != torch.float32:
                compute.copy_(master)

    def _float32(self, part: Tensor, scale: float = 1.0) -> Tensor:
        """`part` times `scale` in float32, in memory that is used again and so stays in the
        cache."""
        if part.dtype != torch.float32:
            part = self._scratch[: part.numel()].view(part.shape).copy_(part)
        return part if scale == 1.0 else part.mul_(scale)

    def weights(self) -> dict[str, Tensor]:
        """The float32 masters by name; views, not copies."""
        return {name: view for g in self.groups for name, view in g.views(g.master).items()}

    def state(self) -> dict[str, Tensor]:
        """Masters and running means by name, of this process's parts; views, not copies."""
        return {
            f"{part}/{name}": view
            for group in self.groups
            for part in ("master", "first", "second")
            if (flat := getattr(group, part)) is not None
            for name, view in group.views(flat).items()
        }

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `state`, `weights` or those of an average gave, for a checkpoint: as it is, or put
        together on the CPU of the first process (the others get nothing; all must call it)."""
        if self.shards is None:
            return tensors
        weights = {
            n: w for group in self.groups for n, w in zip(group.names, group.weights, strict=True)
        }
        whole = {}
        for key, part in tensors.items():
            together = whole_of(part, weights[key.rpartition("/")[2]], self.shards)
            if together is not None:
                whole[key] = together
        return whole

    def load_part(self, view: Tensor, whole: Tensor) -> None:
        """Set a tensor of this process from the whole one of a checkpoint."""
        view.copy_(whole if self.shards is None else part_of(whole, self.shards))

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Take back what `state` gave and `whole` put together, and set the model's weights from
        the masters. Raises `FilbertError` where a tensor is missing: the state is another
        optimizer's or model's."""
        own = self.state()
        if missing := [name for name in own if name not in tensors]:
            raise FilbertError(
                f"the checkpoint lacks {missing[0]} and {len(missing) - 1} more tensors of this "
                "optimizer; go on with the optimizer and the model that it was written with"
            )
        self.steps = steps
        for name, view in own.items():
            self.load_part(view, tensors[name])
        for group in self.groups:
            if group.compute.dtype != torch.float32:
                group.compute.copy_(group.master)
        self.set_parts()


def make_optimizer(
    model: nn.Module,
    *,
    name: str = "adamw",
    weight_decay: float,
    layer_decay: float = 1.0,
    betas: tuple[float, float] = BETAS,
    eps: float = EPS,
    shards: World | None = None,
) -> Optimizer:
    """`adamw`, `lamb` or `muon` for the trainable weights of `model`, which become views of flat
    tensors; weights that two modules share count once.

    weight_decay: of matrices and embeddings. layer_decay: factor of the learning rate for each
    layer down from the head. betas, eps: of AdamW and LAMB. shards: the processes among which
    `sharded.shard` divided the weights. Raises `UsageError` for another name, and for Muon, which
    needs whole matrices, where they are divided.
    """
    if name not in ("adamw", "lamb", "muon"):
        raise UsageError(f"unknown optimizer {name!r}; expected adamw, lamb or muon")
    if shards is not None and name == "muon":
        raise UsageError(
            "--optimizer muon works on whole matrices, which --parallel fsdp divides among the "
            "processes; give --parallel ddp, or --optimizer adamw or lamb"
        )
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
    members: dict[tuple[str, float, float, Matrix | None], list[tuple[str, nn.Parameter]]] = {}
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            rule = rule_of(key, weight, name=name)
            decay = weight_decay if decays(key) else 0.0
            factor = layer_decay ** depth_below_head(key, layers)
            matrix = matrix_of(key, weight) if rule == "muon" else None
            members.setdefault((rule, decay, factor, matrix), []).append((key, weight))
    groups = [_group(*key, pairs) for key, pairs in members.items()]
    return Optimizer(groups, betas=betas, eps=eps, shards=shards)


def _group(
    rule: str,
    decay: float,
    lr_factor: float,
    matrix: Matrix | None,
    pairs: list[tuple[str, nn.Parameter]],
) -> Group:
    names, weights = [name for name, _ in pairs], [weight for _, weight in pairs]
    compute = torch.cat([own_part(weight).detach().reshape(-1) for weight in weights])
    master = compute.float()  # float32 compute: the same tensor
    second = None if rule == "muon" else torch.zeros_like(master)
    group = Group(
        rule, names, weights, compute, master, torch.zeros_like(master), second,
        torch.empty_like(compute), decay, lr_factor, matrix,
    )  # fmt: skip
    for weight, view in zip(weights, group.views(compute).values(), strict=True):
        if own_part(weight) is weight:  # a whole one
            weight.data = view
    return group


def rule_of(key: str, weight: Tensor, *, name: str) -> str:
    """The rule that the optimizer `name` has for this weight."""
    if name == "lamb":
        return "lamb" if decays(key) else "adamw"
    if name == "muon":
        return "muon" if weight.ndim == 2 and LAYER.search(key) else "adamw"
    return name


def matrix_of(key: str, weight: Tensor) -> Matrix:
    """Rows and columns of the matrices that a weight consists of: its own shape, or that of a part
    where several stand one above the other."""
    parts = next((n for end, n in STACKED.items() if key.endswith(end)), 1)
    return weight.shape[0] // parts, weight.shape[1]


def decays(name: str) -> bool:
    """Whether weight decay falls on this weight: not on biases and norms."""
    return not (name.endswith("bias") or "norm" in name.lower())


def depth_below_head(name: str, layers: int) -> int:
    """0 for the head and pooler, 1 for the last layer ... layers + 1 for the embeddings."""
    found = LAYER.search(name)
    if found:
        return layers - int(found.group(1))
    return layers + 1 if "embeddings" in name else 0


def unused_row_factor(steps: int, *, total: int, options: TuneOptions, layers: int) -> float:
    """What `steps` updates make of an embedding row that never has a gradient: decay alone, as a
    factor; with EMA, of its average."""
    value = average = 1.0
    lr_factor = options.layer_decay ** (layers + 1)
    for step in range(steps):
        lr = learning_rate(
            step, total=total, peak=options.lr, warmup=options.warmup,
            schedule=options.schedule, decay=options.decay,
        )  # fmt: skip
        value *= 1 - lr * lr_factor * options.weight_decay
        average += (1 - options.ema) * (value - average)
    return average


class Average:
    """Exponential moving average of the masters (EMA), float32."""

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.decay, self.optimizer = decay, optimizer
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
        """Take back what `weights` gave and `Optimizer.whole` put together."""
        for name, view in self.weights().items():
            self.optimizer.load_part(view, tensors[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The averages in the model for the length of a block, then its own weights again."""
        with torch.no_grad():
            kept = [group.compute.clone() for group in self.groups]
            for group, average in zip(self.groups, self.flat, strict=True):
                group.compute.copy_(average)
            self.optimizer.set_parts()
            try:
                yield
            finally:
                for group, own in zip(self.groups, kept, strict=True):
                    group.compute.copy_(own)
                self.optimizer.set_parts()
