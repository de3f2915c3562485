"""Native steps of a decoder that writes against their slow twin, `Cache.step`, in float32.

The twin computes with the same weights, in bfloat16 those already rounded, in float32. So a whole
step in bfloat16 differs by the rounding of activations, and may do so no more than PyTorch's does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model import native_write
from filbert.model.cache import Cache
from filbert.model.config import BertConfig
from filbert.model.decoder import BertDecoder
from filbert.model.native_library import library
from filbert.model.native_write import SWITCH, NativeWriter, why_not

needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native writing here: {library()}"
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2}


def decoder(seed: int = 0, **shape: Any) -> BertDecoder:
    """Of weights whose biases and norms count, so that nothing is left out unseen."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 96, "max_position_embeddings": 64, "initializer_range": 0.15,
    }  # fmt: skip
    model = BertDecoder(BertConfig(**values | shape)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def sources(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), width, generator=draw), torch.tensor(lengths)


@torch.no_grad()
def run(
    model: BertDecoder, lengths: list[int], *, beams: int, steps: int = 20, twin: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Logits and totals of each step, the beams thrown about and now and then a row let go."""
    states, counts = sources(lengths, model.config.hidden_size)
    cache = Cache(model, states.to(model.cls.predictions.bias.dtype), counts, beams=beams)
    assert (cache.native is None) == twin
    draw = torch.Generator().manual_seed(beams)
    made = []
    for step in range(steps):
        words = torch.randint(model.config.vocab_size, (cache.rows * beams,), generator=draw)
        made.append(tuple(part.clone() for part in cache.words(words)))
        cache.reorder(torch.randint(beams, (cache.rows, beams), generator=draw))
        if step % 6 == 4 and cache.rows > 1:
            staying = torch.ones(cache.rows, dtype=torch.bool)
            staying[int(torch.randint(cache.rows, (1,), generator=draw))] = False
            cache.keep(staying)
    return made  # type: ignore[return-value]


def compare(
    model: BertDecoder, lengths: list[int], beams: int, patch: pytest.MonkeyPatch, **how: Any
) -> None:
    dtype = model.cls.predictions.bias.dtype
    got = run(model, lengths, beams=beams, **how)
    patch.setenv(SWITCH, "0")
    plain = run(model, lengths, beams=beams, twin=True, **how)
    want = run(model.float(), lengths, beams=beams, twin=True, **how)
    patch.delenv(SWITCH)
    model.to(dtype)
    errors, theirs = 0.0, 0.0
    for step, ((logits, totals), (wanted, sums)) in enumerate(zip(got, want, strict=True)):
        error = float((logits - wanted).norm() / wanted.norm())
        assert error < TOLERANCE[dtype], (step, error)
        errors, theirs = (
            errors + error,
            theirs + float((plain[step][0] - wanted).norm() / wanted.norm()),
        )
        # the sum belongs to these logits, whatever they are
        assert torch.allclose(totals, torch.logsumexp(logits, -1), atol=2e-5, rtol=2e-6), step
        assert torch.allclose(totals, sums, atol=20 * TOLERANCE[dtype]), step
    assert dtype == torch.float32 or errors < 1.05 * theirs


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_attention_heads": 1, "hidden_act": "relu"},
        {"hidden_size": 96, "num_attention_heads": 1, "vocab_size": 128, "hidden_act": "gelu_new"},
        {"hidden_size": 128, "num_attention_heads": 2, "vocab_size": 31, "intermediate_size": 32},
    ],
)
def test_steps_equal_those_of_the_twin(
    dtype: torch.dtype, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(**shape).to(dtype)
    for lengths, beams in (([5, 17, 1, 33, 16], 4), ([3], 1), ([4, 4, 4], 3), ([2, 40], 17)):
        compare(model, lengths, beams, monkeypatch)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_texts_than_go_through_together(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder().to(dtype)
    compare(model, [1 + number * 7 % 23 for number in range(90)], 5, monkeypatch, steps=4)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_several_threads_and_alone(dtype: torch.dtype) -> None:
    model = decoder().to(dtype)
    lengths = [1 + number * 5 % 19 for number in range(33)]
    writer = NativeWriter(model)
    states, counts = sources(lengths, 64)
    with torch.no_grad():
        cache = Cache(model, states.to(dtype), counts, beams=3)
        for _ in range(3):
            cache.words(torch.arange(99) % 101)
            cache.reorder(torch.tensor([1, 1, 0]).repeat(33, 1))
        query = torch.randn(99, 64)
        hidden, found = query.to(dtype), []
        for threads in (1, 1, 2, 3, 9):
            if dtype == torch.bfloat16:
                cache._begin()
                logits, totals = writer.step(
                    hidden, cache.own, cache.source, cache.path, cache.lengths, step=3,
                    threads=threads,
                )  # fmt: skip
                found.append(torch.cat([logits, totals[:, None]], 1))
            else:
                keys, values = cache.own[1]
                found.append(writer.attend(query, keys, values, beams=3, path=cache.path,
                                           entries=3, threads=threads))  # fmt: skip
    assert all(torch.equal(one, other) for one, other in pairwise(found))


@needs_native
@torch.no_grad()
def test_a_text_does_not_depend_on_its_neighbours() -> None:
    model = decoder().bfloat16()
    states, counts = sources([1 + number * 5 % 19 for number in range(33)], 64)
    places = states.bfloat16().split(counts.tolist())
    words = torch.randint(101, (4, 33, 3), generator=torch.Generator().manual_seed(1))

    def written(rows: list[int]) -> Tensor:
        chosen = torch.cat([places[row] for row in rows])
        cache = Cache(model, chosen, counts[rows], beams=3)
        for step in words:
            cache.reorder(torch.tensor([[2, 0, 0]] * len(rows)))
            logits, totals = cache.words(step[rows].flatten())
        return torch.cat([logits, totals[:, None]], 1).view(len(rows), 3, 102)

    together = written(list(range(33)))
    assert torch.equal(together[[7]], written([7]))
    assert torch.equal(together[[20, 3, 9]], written([20, 3, 9]))


@needs_native
def test_best_words_and_totals_equal_those_of_the_twin() -> None:
    writer, draw = NativeWriter(decoder()), torch.Generator().manual_seed(3)
    for rows, beams, words in ((1, 1, 8), (3, 4, 1003), (40, 2, 31), (9, 3, 64), (5, 1, 17)):
        logits = torch.randn(rows, beams, words, generator=draw) * 5
        logits[0, :, : words // 2] = -torch.inf
        logits[-1, 0, 2::2] = -torch.inf
        offsets = torch.randn(rows, beams, generator=draw)
        offsets[:, 1:] -= 1e9 * (rows % 2)
        for count in (1, 8):
            wanted, place = (logits + offsets[:, :, None]).flatten(1).topk(count)
            found = [writer.best(logits, offsets, count=count, threads=n) for n in (1, 3)]
            for scores, beam, word in found:
                assert torch.equal(scores, wanted)
                there = wanted > -torch.inf
                assert torch.equal((beam * words + word)[there & (wanted > -1e8)],
                                   place[there & (wanted > -1e8)])  # fmt: skip
                assert all(len(set(row)) == count for row in (beam * words + word).tolist())
        flat = logits.flatten(0, 1)
        totals = writer.totals(flat)
        assert torch.allclose(totals, torch.logsumexp(flat, -1), rtol=1e-6, atol=1e-6)
        assert torch.equal(totals, writer.totals(flat, threads=3))
    assert writer.totals(torch.full((2, 40), -torch.inf)).tolist() == [-torch.inf] * 2
    # equal scores: the order of torch.topk, which transformers goes by
    for high in (2, 5, 300):
        ties = torch.randint(high, (7, 4, 700), generator=draw).float()
        place = ties.flatten(1).topk(8)[1]
        _, beam, word = writer.best(ties, torch.zeros(7, 4), count=8)
        assert torch.equal(beam * 700 + word, place), high


@needs_native
def test_extreme_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rising from word to word, so that every reference is too low; words that are ruled out."""
    model = decoder().bfloat16()
    bias = model.cls.predictions.bias
    for change in (torch.arange(101.0) * 40, torch.arange(101.0) * -40, torch.full((101,), 3e4)):
        before = bias.detach().clone()
        with torch.no_grad():
            bias.copy_(change)
            bias[3:40] = -torch.inf
        for logits, totals in run(model, [3, 5], beams=2, steps=2):
            assert (logits[:, 3:40] == -torch.inf).all()
            assert torch.allclose(totals, torch.logsumexp(logits, -1), rtol=1e-6)
        with torch.no_grad():
            bias.copy_(before)


@needs_native
def test_weights_may_change_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder().bfloat16()
    compare(model, [3, 5], 2, monkeypatch, steps=2)
    for weight in model.parameters():
        weight.data.mul_(0.7)  # which no version of the tensor tells
    compare(model, [3, 5], 2, monkeypatch, steps=2)


@needs_native
def test_the_twin_where_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_write, "NativeWriter", None)  # it would fail
    for shape in (
        {"hidden_size": 48, "intermediate_size": 64},
        {"hidden_size": 96, "num_attention_heads": 2},
        {"intermediate_size": 40},
    ):
        run(decoder(**shape).bfloat16(), [3, 2], beams=2, steps=2, twin=True)
    run(decoder().double(), [3, 2], beams=2, steps=2, twin=True)
    model = decoder().bfloat16()
    layer: Any = model.bert.encoder.layer[1]
    hook = layer.output.dense.register_forward_hook(lambda *_: None)
    run(model, [3, 2], beams=2, steps=2, twin=True)
    hook.remove()
    assert why_not(model, torch.bfloat16) is None
    head = model.cls.predictions
    head.activation = nn.ReLU()
    run(model, [3, 2], beams=2, steps=2, twin=True)
    model = decoder()
    layer = model.bert.encoder.layer[0]
    layer.output.LayerNorm.eps = 0.1
    run(model, [3, 2], beams=2, steps=2, twin=True)
    monkeypatch.setenv(SWITCH, "0")
    run(decoder(), [3, 2], beams=2, steps=2, twin=True)


def test_a_failure_is_put_into_words() -> None:
    with pytest.raises(FilbertError, match="fewer sources"):
        NativeWriter._check(1)
