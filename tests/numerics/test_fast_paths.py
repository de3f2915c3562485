"""The fast paths of training on a CPU against what they stand for, value and gradients.

`word_loss` against the logits written out, `ProductAttention` against the eager path, and models
that predict at some places of a packed batch against all words of a padded one.

Differences are held to 1e-5 at unit rms in float32. In bfloat16 (8 bits of mantissa, so one
rounding is off by at most 2^-9) both sides start from the same numbers, and the slow one computes
in float32.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model import attention as fast
from filbert.model import word_loss as words
from filbert.model.attention import PaddedLayout, ProductAttention, attention, pack_layout
from filbert.model.bert import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification
from filbert.model.config import BertConfig
from filbert.model.modern import ModernBertForMaskedLM
from filbert.model.modern_config import ModernBertConfig
from filbert.model.pretrained import PretrainedModel
from filbert.model.word_loss import plain_word_loss, word_loss

TOLERANCE = 1e-5
BF16 = 2.0**-7  # two roundings, at the largest of the numbers
LENGTHS = [[1], [7, 7, 5], [33, 1, 2, 33], [130, 3, 77], [257, 9]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def apart(mine: Tensor, other: Tensor) -> float:
    """Largest difference after scaling to unit rms."""
    assert mine.shape == other.shape
    scale = other.float().pow(2).mean().sqrt().clamp_min(1e-6)
    return float(((mine.float() - other.float()) / scale).abs().max())


@torch.no_grad()
def drift(mine: Tensor, other: Tensor) -> float:
    """Rms of the difference over the rms of the other: what roundings add up to."""
    assert mine.shape == other.shape
    return float((mine.float() - other.float()).norm() / other.float().norm())


# --- the loss of words ----------------------------------------------------------------------------


def head(masked: int, vocabulary: int, *, width: int = 24) -> tuple[list[Tensor], Tensor]:
    """Hidden states, words' matrix and bias, with logits of some nats; and labels, of which every
    other one is the likeliest word."""
    parts = [
        normal(masked, width), normal(vocabulary, width, seed=1) * 0.6, normal(vocabulary, seed=2)
    ]  # fmt: skip
    labels = torch.randint(vocabulary, (masked,), generator=torch.Generator().manual_seed(3))
    labels[::2] = F.linear(*parts).argmax(-1)[::2]
    return parts, labels


def with_gradients(function: Any, parts: list[Tensor], *rest: Tensor) -> list[Tensor]:
    """Loss, number right and the gradients of 0.37 times the loss."""
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    loss, right = function(*leaves, *rest)
    (loss * 0.37).backward()
    return [loss.detach(), right, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("vocabulary", [2, 37, 1001])
@pytest.mark.parametrize("masked", [1, 255, 256, 257, 613])
def test_word_loss_equals_the_plain_one(masked: int, vocabulary: int) -> None:
    parts, labels = head(masked, vocabulary)
    mine = with_gradients(word_loss, parts, labels)
    plain = with_gradients(plain_word_loss, parts, labels)
    assert mine[0].dtype == torch.float32
    assert mine[0].item() == pytest.approx(plain[0].item(), rel=TOLERANCE)
    assert mine[1].item() == plain[1].item()
    for one, other in zip(mine[2:], plain[2:], strict=True):
        # sums over hundreds of rows, added in another order: 1.1e-5 on some processors
        assert apart(one, other) < 2 * TOLERANCE


def test_word_loss_by_hand() -> None:
    """Two words with logits 0 and 1: the loss is log(1 + e) of the first, log(1 + 1/e) of the
    second, and the gradient of a logit is softmax minus one-hot."""
    hidden = torch.ones(2, 1, requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    loss, right = word_loss(hidden, torch.tensor([[0.0], [1.0]]), bias, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.e) + math.log(1 + 1 / math.e), rel=1e-6)
    assert right.item() == 1
    second = math.e / (1 + math.e)
    assert bias.grad is not None
    assert hidden.grad is not None
    assert bias.grad.tolist() == pytest.approx([1 - 2 * second, 2 * second - 1], rel=1e-5)
    assert hidden.grad.flatten().tolist() == pytest.approx([second, second - 1], rel=1e-5)


@pytest.mark.parametrize("masked", [1, 257, 600])
def test_word_loss_in_bfloat16(masked: int) -> None:
    parts, labels = head(masked, 301)
    half = [part.bfloat16() for part in parts]
    mine = with_gradients(word_loss, half, labels)
    exact = with_gradients(plain_word_loss, [part.float() for part in half], labels)
    assert mine[0].dtype == torch.float32
    # a logit of up to 16 is off by up to 2^-5, either way
    assert mine[0].item() == pytest.approx(exact[0].item(), abs=2.0**-5 * masked**0.5)
    assert exact[1] >= 0.48 * masked
    assert abs(int(mine[1]) - int(exact[1])) <= 2 + 0.02 * masked  # near ties
    for one, other in zip(mine[2:], exact[2:], strict=True):
        assert one.dtype == torch.bfloat16
        assert drift(one, other) < BF16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_word_that_was_ruled_out_costs_what_it_costs(dtype: torch.dtype) -> None:
    """Its probability is below the smallest float, its loss is not."""
    hidden = torch.tensor([[1.0], [1.0], [-1.0]], dtype=dtype)
    parts = [hidden, torch.tensor([[200.0], [0.0], [128.0]], dtype=dtype), torch.zeros(3).to(dtype)]
    mine = with_gradients(word_loss, parts, torch.tensor([1, 0, 2]))
    plain = with_gradients(plain_word_loss, parts, torch.tensor([1, 0, 2]))
    assert mine[0].item() == plain[0].item() == 328.0
    assert mine[1].item() == plain[1].item() == 1
    for one, other in zip(mine[2:], plain[2:], strict=True):
        assert torch.equal(one, other)


def test_no_words_and_no_numbers() -> None:
    parts, labels = head(0, 11)
    loss, right, *gradients = with_gradients(word_loss, parts, labels)
    assert (loss.item(), right.item()) == (0.0, 0)
    assert all(not gradient.any() for gradient in gradients)
    parts, labels = head(5, 11)
    parts[0][2, 3] = math.nan
    assert math.isnan(with_gradients(word_loss, parts, labels)[0].item())


def test_the_plain_way_where_no_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, labels = head(40, 11)
    leaves = [part.requires_grad_() for part in parts]
    expected = plain_word_loss(*leaves, labels)
    monkeypatch.setattr(words.WordLoss, "forward", None)  # it would fail
    with torch.no_grad():
        loss, right = word_loss(*leaves, labels)
    assert torch.equal(loss, expected[0])
    assert torch.equal(right, expected[1])


# --- attention by products ------------------------------------------------------------------------


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(sequences, heads, length, head_size), as `ProductAttention` takes them."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return attention(q, k, v, PaddedLayout(None, "eager"))[0].transpose(1, 2)


def with_gradients_of(function: Any, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    context = function(*leaves)
    (context.float() * weight).sum().backward()
    return [context.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 7, 8), (2, 3, 33, 5), (1, 2, 255, 16)])
def test_product_attention_equals_the_eager_path(shape: tuple[int, ...]) -> None:
    inputs = [normal(*shape, seed=seed) * 2 for seed in range(3)]
    weight = normal(*shape, seed=3)
    mine = with_gradients_of(ProductAttention.apply, inputs, weight)
    plain = with_gradients_of(eager, inputs, weight)
    for one, other in zip(mine, plain, strict=True):
        assert apart(one, other) < TOLERANCE


def test_its_gradient_by_differences() -> None:
    inputs = [normal(2, 2, 5, 3, seed=n).double().requires_grad_() for n in range(3)]
    assert torch.autograd.gradcheck(ProductAttention.apply, inputs)


@pytest.mark.parametrize("shape", [(3, 2, 7, 8), (1, 2, 129, 16)])
def test_product_attention_in_bfloat16(shape: tuple[int, ...]) -> None:
    inputs = [normal(*shape, seed=seed).bfloat16() for seed in range(3)]
    weight = normal(*shape, seed=3).bfloat16().float()
    mine = with_gradients_of(ProductAttention.apply, inputs, weight)
    exact = with_gradients_of(eager, [x.float() for x in inputs], weight)
    for one, other in zip(mine, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert drift(one, other) < BF16


def test_which_sequences_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of up to 256 tokens, in training, without dropout; every path gives the same."""
    served: list[int] = []
    apply = ProductAttention.apply

    def spy(*inputs: Tensor) -> Tensor:
        served.append(inputs[0].shape[2])
        return apply(*inputs)

    monkeypatch.setattr(ProductAttention, "apply", spy)
    lengths = torch.tensor([257, 256, 256, 31, 1])
    inputs = [normal(int(lengths.sum()), 2, 4, seed=seed) for seed in range(3)]
    weight, layout = normal(int(lengths.sum()), 2, 4, seed=3), pack_layout(lengths)

    def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, layout)[0]

    mine = with_gradients_of(packed, inputs, weight)
    assert served == [256, 31, 1]
    monkeypatch.setattr(fast, "LONGEST_PRODUCT", 0)
    kernel = with_gradients_of(packed, inputs, weight)
    for one, other in zip(mine, kernel, strict=True):
        assert apart(one, other) < TOLERANCE
    monkeypatch.setattr(fast, "LONGEST_PRODUCT", 256)
    packed(*inputs)  # no gradient is wanted
    query = inputs[0].clone().requires_grad_()
    attention(query, *inputs[1:], layout, dropout=0.1)
    attention(query[layout.first], *inputs[1:], pack_layout(lengths))
    assert served == [256, 31, 1, 1]  # the last: a query of one token, whose text is that token


# --- whole models ---------------------------------------------------------------------------------

KINDS = [BertForMaskedLM, BertForPreTraining, ModernBertForMaskedLM]


def small(kind: type[PretrainedModel], *, layers: int = 3) -> Any:
    """A model of odd sizes without dropout, every weight drawn, in training."""
    sizes: dict[str, Any] = {
        "vocab_size": 53, "hidden_size": 36, "num_hidden_layers": layers, "num_attention_heads": 3,
        "intermediate_size": 29, "max_position_embeddings": 300, "initializer_range": 0.1,
        "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(5)
    if kind is ModernBertForMaskedLM:
        model: PretrainedModel = kind(ModernBertConfig(**sizes, local_attention=32))
    else:
        drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = kind(BertConfig(**sizes, **drop))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight += 0.05 * normal(*weight.shape, seed=number)
    return model.train()


def texts(lengths: list[int]) -> dict[str, Tensor]:
    """A packed batch with about one word in five to predict, the first and the last token too; the
    places out of order."""
    generator = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    some = torch.randperm(total, generator=generator)[: total // 5]
    places = torch.cat([torch.tensor([total - 1, 0][: min(2, total)]), some]).unique()
    places = places[torch.randperm(len(places), generator=generator)]
    return {
        "input_ids": torch.randint(1, 53, (total,), generator=generator),
        "token_type_ids": torch.randint(2, (total,), generator=generator),
        "lengths": torch.tensor(lengths),
        "predict_at": places,
        "labels_at": torch.randint(53, (len(places),), generator=generator),
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


def in_training(model: PretrainedModel, batch: dict[str, Tensor]) -> list[Any]:
    """Loss, number right, pair logits and gradients, as a pre-training step computes them."""
    out = model(**batch)
    follows = out.get("seq_relationship_logits")
    total = out["word_loss"]
    if follows is not None:
        total = total + follows.float().square().sum()
    total.backward()
    return [out["word_loss"].item(), out["words_right"].item(), follows, gradients(model)]


def slowly(model: PretrainedModel, batch: dict[str, Tensor]) -> list[Any]:
    """The same from all words of a padded grid, attention written out."""
    lengths = batch["lengths"]
    real = torch.arange(int(lengths.max())) < lengths[:, None]  # (texts, length)
    ids, types = (real.long().masked_scatter(real, batch[name])
                  for name in ("input_ids", "token_type_ids"))  # fmt: skip
    model.set_attention("eager")
    out = model(input_ids=ids, token_type_ids=types, attention_mask=real.long())
    follows = out.get("seq_relationship_logits")
    logits = (out["logits"] if follows is None else out["prediction_logits"])[real].float()
    logits = logits[batch["predict_at"]]
    loss = F.cross_entropy(logits, batch["labels_at"], reduction="sum")
    total = loss if follows is None else loss + follows.float().square().sum()
    total.backward()
    right = (logits.argmax(-1) == batch["labels_at"]).sum()
    return [loss.item(), right.item(), follows, gradients(model)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_words_at_some_places_equal_all_words(
    kind: type[PretrainedModel], lengths: list[int], checkpointing: bool
) -> None:
    """Loss, number right, pair logits, and the gradient of every weight."""
    model, batch = small(kind), texts(lengths)
    model.gradient_checkpointing_enable(checkpointing)
    with torch.no_grad():  # every other word is to be guessed right
        shown = model(**{name: value for name, value in batch.items() if name != "labels_at"})
    likeliest = shown.get("logits", shown.get("prediction_logits")).argmax(-1)
    batch["labels_at"][::2] = likeliest[::2]
    mine, slow = in_training(model, batch), slowly(model, batch)
    assert mine[0] == pytest.approx(slow[0], rel=TOLERANCE)
    assert mine[1] == slow[1] >= len(likeliest) // 2
    assert (mine[2] is None) == (kind is not BertForPreTraining)
    if mine[2] is not None:
        assert apart(mine[2], slow[2]) < TOLERANCE
    assert mine[3].keys() == slow[3].keys()
    largest = max(gradient.abs().max().item() for gradient in slow[3].values())
    for name, gradient in mine[3].items():
        other = slow[3][name]
        met = max(1, other.count_nonzero().item())  # words that are not there have no gradient
        # that of a key's bias is zero but for roundings of larger numbers
        scale = max(other.norm().item() / met**0.5, 1e-3 * largest)
        assert (gradient - other).abs().max().item() / scale < 2 * TOLERANCE, name


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_and_every_word(kind: type[PretrainedModel]) -> None:
    """The first layer may be the last; and places that are all places give the whole."""
    model = small(kind, layers=1).eval()
    batch = texts([9, 4, 4])
    batch.pop("labels_at")
    every = {**batch, "predict_at": torch.arange(17)}
    whole = {name: value for name, value in batch.items() if name != "predict_at"}
    with torch.no_grad():
        all_words, all_at, some = model(**whole), model(**every), model(**batch)
    name = "prediction_logits" if kind is BertForPreTraining else "logits"
    assert apart(all_at[name], all_words[name]) < TOLERANCE
    assert apart(some[name], all_words[name][batch["predict_at"]]) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_in_bfloat16(kind: type[PretrainedModel]) -> None:
    model, batch = small(kind).bfloat16(), texts([130, 33, 33, 5])
    mine, exact = in_training(model, batch), slowly(model.float(), batch)
    words_ = len(batch["labels_at"])
    assert mine[0] / words_ == pytest.approx(exact[0] / words_, abs=0.02)
    for name, gradient in mine[3].items():
        assert torch.isfinite(gradient).all(), name
    word = next(name for name in mine[3] if "embeddings" in name)
    assert drift(mine[3][word], exact[3][word]) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_where_places_cannot_be_honoured(kind: type[PretrainedModel]) -> None:
    model, places = small(kind), torch.tensor([1])
    grid = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(FilbertError, match="give lengths"):
        model(input_ids=grid, predict_at=places)
    ends = {"input_ids": grid.flatten(), "lengths": torch.tensor([3, 3])}
    for other in ("first_only", "output_hidden_states"):
        with pytest.raises(FilbertError, match="neither first_only nor output_hidden_states"):
            model(**ends, predict_at=places, **{other: True})


def test_a_classifier_predicts_no_words() -> None:
    model = BertForSequenceClassification(small(BertForMaskedLM).config)
    with pytest.raises(FilbertError, match="predict_at"):
        model(
            input_ids=torch.ones(6, dtype=torch.int64), lengths=torch.tensor([3, 3]),
            predict_at=torch.tensor([1]),
        )  # fmt: skip
