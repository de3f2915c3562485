"""The update rules: what AdamW, LAMB and Muon make of weights, gradients and running means.

Functions on tensors that are updated in place; `optim.py` says which weights follow which rule and
keeps the tensors. All weights and means are float32.

AdamW: Loshchilov and Hutter 2019 (arXiv 1711.05101). LAMB: You et al. 2020 (arXiv 1904.00962).
Muon: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the scale of Liu et al.
2025 (arXiv 2502.16982). tests/numerics/test_optim.py holds each to its reference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.adamw import adamw

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
# The polynomial a x + b x^3 + c x^5 that lifts small singular values fastest; five rounds of it
# bring nearly all of them to 0.7 ... 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
# AdamW's updates have a root mean square of 0.2 to 0.4 in practice; Muon's are brought to 0.2, so
# that one learning rate serves both.
MATCHED_RMS = 0.2


def adamw_(
    weight: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    steps: int,
    lr: float,
    decay: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """AdamW's update number `steps` (1-based) of `weight`, `first` and `second`, in place."""
    # counts itself up by one: a new one for each call
    done = torch.full((), float(steps - 1), device=weight.device)
    adamw(
        [weight], [grad], [first], [second], [], [done],
        fused=True, amsgrad=False, beta1=betas[0], beta2=betas[1], eps=eps,
        lr=lr, weight_decay=decay, maximize=False,
    )  # fmt: skip


def trust_ratio(weight_square: Tensor, direction_square: Tensor) -> Tensor:
    """LAMB's factor of a weight's step, from the squared norms of the weight and of its direction:
    the one norm over the other, 1 where either is zero."""
    ratio = (weight_square / direction_square).sqrt()
    sound = (weight_square > 0) & (direction_square > 0)
    return torch.where(sound, ratio, torch.ones_like(ratio))


def muon_(
    weight: Tensor, grad: Tensor, first: Tensor, *, lr: float, decay: float, dtype: torch.dtype
) -> None:
    """Muon's update of matrices (count, rows, columns) and of their running mean `first`, in place.

    Nesterov momentum, made orthogonal in `dtype`; decoupled weight decay. The step has the root
    mean square `lr` * 0.2, whatever the shape.
    """
    first.lerp_(grad, 1 - MOMENTUM)
    update = orthogonal(grad.lerp(first, MOMENTUM), dtype=dtype)
    scale = MATCHED_RMS * math.sqrt(max(weight.shape[-2:]))
    weight.mul_(1 - lr * decay).add_(update, alpha=-lr * scale)


def orthogonal(matrices: Tensor, *, dtype: torch.dtype) -> Tensor:
    """About the nearest orthogonal matrix of each of (count, rows, columns): singular values go to
    about 1, by Newton-Schulz iteration. In and out float32, computed in `dtype`."""
    a, b, c = QUINTIC
    # Largest singular value at most 1, as the iteration needs it.
    size = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = (matrices / size.clamp(min=1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x.mT @ x if tall else x @ x.mT  # the smaller of the two
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, *((x, factor) if tall else (factor, x)), beta=a)
    return x.to(matrices.dtype)
