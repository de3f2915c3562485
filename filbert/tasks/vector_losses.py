"""Losses on sentence vectors: in-batch negatives, cosine regression, CoSENT; on several prefixes.

    negatives   Henderson et al. 2017 (arXiv 1705.00652), section 4.4, with a scale; with hard
                negatives, as supervised SimCSE. Unsupervised SimCSE is the same with a sentence's
                two drop-outs as its pair (Gao et al. 2021, arXiv 2104.08821)
    cosine      squared error of the cosine against the score, as Reimers and Gurevych 2019
                (arXiv 1908.10084), section 3
    cosent      Su 2022, https://kexue.fm/archives/8847: the order of cosines within the batch
    prefixes    Kusupati et al. 2022 (arXiv 2205.13147): Matryoshka

Tests hold them to the losses of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def negatives_loss(
    anchors: Tensor, others: Tensor, alike: Tensor | None = None, *, scale: float = 20.0
) -> Tensor:
    """(n,) cross-entropy of finding row i's own partner among all rows of `others`.

    anchors (n, d); others (n or more, d): the partners of the anchors in the same order, behind
    them hard negatives of any of them. alike (n, others) bool: others that are no negatives of a
    row although they are not its partner, for example because their text is the same.
    """
    similarity = F.normalize(anchors, dim=-1) @ F.normalize(others, dim=-1).T * scale
    partner = torch.arange(len(anchors), device=anchors.device)
    if alike is not None:
        own = F.one_hot(partner, len(others)).bool()
        similarity = similarity.masked_fill(alike & ~own, float("-inf"))
    return F.cross_entropy(similarity, partner, reduction="none")


def cosine_loss(first: Tensor, second: Tensor, gold: Tensor) -> Tensor:
    """(n,) squared error of the cosine. first, second (n, d); gold (n,), 1 for equal meaning."""
    return (F.cosine_similarity(first, second) - gold) ** 2


def cosent_loss(first: Tensor, second: Tensor, gold: Tensor, *, scale: float = 20.0) -> Tensor:
    """(n,), the same number n times: how far the batch's cosines are from the order of `gold`.

    log(1 + sum of exp(scale * (cos_i - cos_j)) over all pairs of rows with gold_i < gold_j).
    """
    cosine = F.cosine_similarity(first, second) * scale
    wrong = (cosine[:, None] - cosine[None, :]).masked_fill(
        gold[:, None] >= gold[None, :], float("-inf")
    )
    whole = torch.logsumexp(torch.cat([cosine.new_zeros(1), wrong.flatten()]), 0)
    return whole.expand(len(gold))


def over_prefixes(
    loss: Callable[[list[Tensor]], Tensor], vectors: list[Tensor], dimensions: Sequence[int]
) -> Tensor:
    """The mean of `loss` over the vectors cut to each of `dimensions`; without any, whole ones."""
    if not dimensions:
        return loss(vectors)
    losses = [loss([vector[:, :count] for vector in vectors]) for count in dimensions]
    return torch.stack(losses).mean(0)
