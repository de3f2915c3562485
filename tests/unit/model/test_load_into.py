"""A checkpoint's tensors find their place in a model by name; the rest is told in a table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.weights import check_vocabulary, load_into


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Head(nn.Module):
    """A model with names as ours: an encoder below `bert.`, a tied decoder, a classifier."""

    def __init__(self, labels: int = 2, prefix: bool = True) -> None:
        super().__init__()
        body = nn.Module()
        body.embeddings = nn.Module()
        body.embeddings.word_embeddings = nn.Embedding(6, 4)
        body.embeddings.LayerNorm = nn.LayerNorm(4)
        if prefix:
            self.bert = body
            self.decoder = nn.Linear(4, 6, bias=False)
            self.decoder.weight = body.embeddings.word_embeddings.weight
            self.classifier = nn.Linear(4, labels)
        else:
            self.embeddings = body.embeddings


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("spelling", ["ours", "bare", "old"])
def test_names_of_other_layouts_find_their_place(spelling: str) -> None:
    torch.manual_seed(0)
    source, target = Head(prefix=spelling == "ours"), Head()
    tensors = _state(source)
    tensors.pop("decoder.weight", None)
    if spelling == "old":
        renamed = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new, old in renamed:
            tensors[f"embeddings.{old}"] = tensors.pop(f"embeddings.{new}") + 3
    tensors["embeddings.position_ids"] = torch.arange(3)
    report = load_into(target, tensors, source="there", may_be_missing=("classifier.",))
    words = target.get_parameter("bert.embeddings.word_embeddings.weight")
    assert torch.equal(words, source.state_dict()[next(n for n in tensors if "word" in n)])
    assert words is target.get_parameter("decoder.weight")
    if spelling == "old":
        assert torch.equal(
            target.state_dict()["bert.embeddings.LayerNorm.bias"], torch.full((4,), 3.0)
        )
    assert report.missing == (
        [] if spelling == "ours" else ["classifier.weight", "classifier.bias"]
    )
    assert report.unexpected == [] and report.mismatched == []
    assert report.loaded == (5 if spelling == "ours" else 3)


def test_a_model_without_prefix_takes_a_checkpoint_with_one() -> None:
    source, target = Head(), Head(prefix=False)
    report = load_into(target, _state(source), source="x", ignore_unexpected=("classifier.",))
    # The decoder of the checkpoint has no place here.
    assert report.unexpected == ["decoder.weight"] and report.loaded == 3
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(target.state_dict()[words], source.state_dict()[f"bert.{words}"])


def test_the_report_is_one_aligned_table() -> None:
    model = Head(labels=3)
    before = _state(model)
    tensors = {**_state(Head(labels=2)), "bert.new": torch.zeros(1, dtype=torch.int8)}
    report = load_into(model, tensors, source="runs/x", may_be_missing=lambda n: "classifier" in n)
    assert report.mismatched == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.classifier.weight, before["classifier.weight"])
    assert str(report).splitlines() == [
        "runs/x: 3 tensors loaded; the others:",
        "tensor             in the checkpoint  in the model    what happens",
        "-----------------  -----------------  --------------  ------------------------",
        "bert.new           (1,) int8          -               left out",
        "classifier.weight  (2, 4) float32     (3, 4) float32  keeps its initial values",
        "classifier.bias    (2,) float32       (3,) float32    keeps its initial values",
    ]
    assert bool(report)


def test_a_wrong_encoder_is_refused_and_the_model_left_alone() -> None:
    model = Head()
    before = _state(model)
    tensors = _state(Head())
    del tensors["bert.embeddings.LayerNorm.bias"]
    with pytest.raises(FilbertError, match=r"do not fit Head: 1 of its 6 tensors .*LayerNorm.bias"):
        load_into(model, tensors, source="x", may_be_missing=("classifier.",))
    tensors["bert.embeddings.LayerNorm.bias"] = torch.zeros(5)
    with pytest.raises(FilbertError, match=r"\(5,\) float32 +\(4,\) float32"):
        load_into(model, tensors, source="x")
    tensors["bert.embeddings.LayerNorm.bias"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(FilbertError, match=r"\(4,\) int64"):  # never read as numbers of a weight
        load_into(model, tensors, source="x")
    assert _equal(_state(model), before)


def test_a_vocabulary_of_another_size_names_both_numbers() -> None:
    tensors = _state(Head())
    tensors["bert.embeddings.word_embeddings.weight"] = torch.zeros(9, 4)
    with pytest.raises(FilbertError, match=r"'x' has word embeddings of 9 tokens.*vocab_size 6"):
        load_into(Head(), tensors, source="x")
    for tokens, rows in ((30522, 30522), (30522, 30528), (21128, 21128)):
        check_vocabulary(tokens, rows, source="x")
    with pytest.raises(FilbertError, match="shorter than its word embeddings: 21128 tokens, 30522"):
        check_vocabulary(21128, 30522, source="x")
    with pytest.raises(FilbertError, match="longer than its word embeddings: 30523 tokens, 30522"):
        check_vocabulary(30523, 30522, source="x")


def test_types_are_converted_in_place() -> None:
    model = Head().to(torch.bfloat16)
    parameter = model.classifier.weight
    tensors = {name: tensor.double() for name, tensor in _state(Head()).items()}
    load_into(model, tensors, source="x")
    assert model.classifier.weight is parameter and parameter.dtype == torch.bfloat16
    assert torch.equal(parameter, tensors["classifier.weight"].to(torch.bfloat16))


def test_a_checkpoint_that_unties_what_the_model_ties_is_told() -> None:
    model = Head()
    tensors = _state(Head())
    tensors["decoder.weight"] = tensors["decoder.weight"] + 1
    report = load_into(model, tensors, source="x")
    assert report.unexpected == ["decoder.weight"]
    assert "the model shares bert.embeddings.word_embeddings.weight" in str(report)
    assert torch.equal(model.decoder.weight, tensors["bert.embeddings.word_embeddings.weight"])


def test_a_long_report_is_cut() -> None:
    tensors = {**_state(Head()), **{f"extra.{n}": torch.zeros(1) for n in range(100)}}
    lines = str(load_into(Head(), tensors, source="x")).splitlines()
    assert len(lines) == 44 and lines[-1] == "... and 60 more"
