"""Native loss of words against its slow twin, `plain_word_loss`, in float32 on the same values.

Logits are float32 sums of bfloat16 products on both sides, so losses lie close together; gradients
are products of softmax weights rounded to bfloat16 and within its tolerance.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from filbert.model import native_words, word_loss
from filbert.model.native_library import library
from filbert.model.native_train import SWITCH
from filbert.model.native_words import words_backward, words_forward
from filbert.model.word_loss import WordLoss, plain_word_loss

needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native training here: {library()}"
)
TOLERANCE = 5e-3
WORDS = [1, 7, 33, 512, 1000, 16384]


def head(rows: int, words: int, width: int = 64) -> tuple[list[Tensor], Tensor]:
    """Hidden states, words' matrix, bias; labels, of which every other one is the likeliest."""
    draw = torch.Generator().manual_seed(rows + words)
    parts = [
        torch.randn(size, generator=draw) * scale
        for size, scale in (((rows, width), 1.0), ((words, width), 2 / width**0.5), (words, 1.0))
    ]
    halves = [part.bfloat16() for part in parts]
    labels = torch.randint(words, (rows,), generator=draw)
    labels[::2] = logits(halves).argmax(-1)[::2]
    return halves, labels


def logits(parts: list[Tensor]) -> Tensor:
    hidden, weight, bias = (part.double() for part in parts)
    return hidden @ weight.T + bias


def results(function: Any, parts: list[Tensor], labels: Tensor, smoothing: float) -> list[Tensor]:
    """Loss, number right and the gradients of -0.37 times the loss, float32."""
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    loss, right = function(*leaves, labels, smoothing=smoothing)
    (loss * -0.37).backward()
    return [loss.detach(), right, *(leaf.grad.float() for leaf in leaves)]


def compare(parts: list[Tensor], labels: Tensor, smoothing: float = 0.0) -> None:
    assert native_words.serves(*(part.clone().requires_grad_() for part in parts))
    mine = results(word_loss.word_loss, parts, labels, smoothing)
    exact = results(plain_word_loss, [part.float() for part in parts], labels, smoothing)
    what = (*parts[0].shape, len(parts[1]), smoothing)
    assert mine[0].dtype == torch.float32
    assert mine[0].item() == pytest.approx(exact[0].item(), rel=2e-6, abs=2e-5 * len(labels)), what
    top = logits(parts).topk(min(2, len(parts[1])), -1).values
    near = int((top[:, 0] - top[:, -1] < 1e-4).sum()) if len(parts[1]) > 1 else 0
    assert abs(int(mine[1]) - int(exact[1])) <= near, what
    for one, other in zip(mine[2:], exact[2:], strict=True):
        assert (one - other).norm() <= TOLERANCE * other.norm() + 1e-5 * len(labels), what


@needs_native
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_those_of_the_twin(words: int, smoothing: float) -> None:
    for rows, width in itertools.product((1, 15, 32, 33, 300), (32, 96)):
        compare(*head(rows, words, width), smoothing)


@needs_native
def test_more_rows_than_stay_near() -> None:
    compare(*head(1300, 700, 384))


@needs_native
def test_every_number_of_rows() -> None:
    for rows in range(1, 300, 7):
        compare(*head(rows, 40 + rows), 0.05 * (rows % 2))


@needs_native
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_logits(smoothing: float) -> None:
    """Up to hundreds apart, and rising from word to word so that every reference is too low."""
    for scale, shift in ((30.0, 0.0), (1.0, 3000.0), (1.0, -3000.0)):
        parts, labels = head(40, 1100)
        parts[1] = parts[1] * scale
        parts[2] = parts[2] + shift
        compare(parts, labels, smoothing)
        compare(parts, logits(parts).argmin(-1), smoothing)
    parts, labels = head(40, 1100)
    for order in (1, -1):
        parts[2] = (torch.arange(1100.0) * order * 2).bfloat16()
        compare(parts, labels, smoothing)


@needs_native
def test_words_that_are_ruled_out_and_no_numbers() -> None:
    parts, labels = head(40, 1100)
    parts[2][100:1000] = -torch.inf
    labels.fill_(5)
    compare(parts, labels)
    parts[2][:32] = -torch.inf
    assert results(word_loss.word_loss, parts, labels, 0.0)[0] == torch.inf
    parts, labels = head(40, 1100)
    parts[0][39, 63] = torch.nan
    loss, _, *gradients = results(word_loss.word_loss, parts, labels, 0.0)
    assert loss.isnan()
    assert gradients[0][39].isnan().all()
    assert gradients[0][:39].isfinite().all()


@needs_native
def test_the_same_bits_twice_and_by_several_threads() -> None:
    for rows, words in ((613, 1001), (3, 2000)):
        parts, labels = head(rows, words, 256)
        found = []
        for threads in (1, 1, 2, 3, 20):
            *out, kept = words_forward(*parts, labels, 0.1, threads=threads)
            tensors = [*parts, labels, kept]
            grads = words_backward(tensors, 0.1, 0.5, [True] * 3, threads=threads)
            found.append([*out, kept, *(grad for grad in grads if grad is not None)])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_native
def test_only_the_gradients_that_are_needed() -> None:
    parts, labels = head(40, 100)
    every = results(word_loss.word_loss, parts, labels, 0.0)
    for needed in ((True, False, False), (True, True, False), (True, False, True)):
        leaves = [
            part.detach().clone().requires_grad_(need)
            for part, need in zip(parts, needed, strict=True)
        ]
        (word_loss.word_loss(*leaves, labels)[0] * -0.37).backward()
        for leaf, need, wanted in zip(leaves, needed, every[2:], strict=True):
            assert (leaf.grad is not None) == need
            assert leaf.grad is None or torch.equal(leaf.grad.float(), wanted)


@needs_native
def test_a_gradient_may_be_asked_for_twice_but_not_of_changed_weights() -> None:
    parts, labels = head(40, 100)
    leaves = [part.requires_grad_() for part in parts]
    loss, _ = word_loss.word_loss(*leaves, labels)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True)
    )
    loss, _ = word_loss.word_loss(*leaves, labels)
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_native
def test_the_twin_where_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_words, "words_forward", None)  # it would fail
    parts, labels = head(5, 20)
    results(word_loss.word_loss, [part.float() for part in parts], labels, 0.0)
    results(word_loss.word_loss, *head(5, 20, 40), 0.0)
    results(word_loss.word_loss, [parts[0][:0], *parts[1:]], labels[:0], 0.0)
    word_loss.word_loss(*parts, labels)
    monkeypatch.setenv(SWITCH, "0")
    results(word_loss.word_loss, parts, labels, 0.0)
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(WordLoss, "forward", None)
    with pytest.raises(TypeError):
        results(word_loss.word_loss, parts, labels, 0.0)


@needs_native
@pytest.mark.parametrize("label", [-100, 20])
def test_labels_are_words(label: int) -> None:
    parts, labels = head(5, 20)
    labels[3] = label
    with pytest.raises(IndexError):
        results(word_loss.word_loss, parts, labels, 0.0)
