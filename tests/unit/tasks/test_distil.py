"""The losses of distillation, against calculation by hand and by PyTorch's own divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from filbert.bundle import Manifest
from filbert.data.packing import Batch
from filbert.errors import UsageError
from filbert.model.bert import BertForSequenceClassification
from filbert.model.modern import ModernBertForSequenceClassification
from filbert.model.modern_config import ModernBertConfig
from filbert.tasks import classify, distil
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"


def test_one_label_is_the_divergence_of_softened_answers() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    ours = distil.loss(student, teacher, problem_type=SINGLE, temperature=3.0)
    theirs = 9.0 * F.kl_div(
        F.log_softmax(student / 3, -1), F.softmax(teacher / 3, -1), reduction="none"
    ).sum(-1)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_by_hand() -> None:
    """Teacher (2/3, 1/3), student (1/2, 1/2): KL = log 2 - H(2/3)."""
    teacher, student = torch.tensor([[math.log(2.0), 0.0]]), torch.zeros(1, 2)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    found = distil.loss(student, teacher, problem_type=SINGLE, temperature=1.0)
    assert found.item() == pytest.approx(math.log(2) - entropy, abs=1e-6)


def test_several_labels_are_the_mean_of_their_divergences() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    pairs = [torch.stack([x / 2, torch.zeros_like(x)], -1) for x in (student, teacher)]
    each = F.kl_div(F.log_softmax(pairs[0], -1), F.softmax(pairs[1], -1), reduction="none").sum(-1)
    ours = distil.loss(student, teacher, problem_type=MULTI, temperature=2.0)
    assert torch.allclose(ours, 4.0 * each.mean(-1), atol=1e-6)


def test_a_regression_learns_the_value() -> None:
    found = distil.loss(
        torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]]), problem_type="regression",
        temperature=5.0,
    )  # fmt: skip
    assert found.tolist() == [4.0, 0.0]


@pytest.mark.parametrize("kind", [SINGLE, MULTI, "regression"])
def test_equal_answers_cost_nothing(kind: str) -> None:
    logits = torch.tensor([[30.0], [-40.0]] if kind == "regression" else [[30.0, -40.0]])
    found = distil.loss(logits, logits.clone(), problem_type=kind, temperature=2.0)
    assert found.abs().max().item() < 1e-6


def test_temperature_leaves_the_size_of_the_gradient() -> None:
    """For small logits the gradient tends to (student - teacher) / classes, whatever T is: Hinton
    et al. 2015, equation 4 (for logits of mean zero)."""
    teacher = torch.tensor([[0.02, -0.02]])
    for temperature in (1.0, 10.0):
        student = torch.zeros(1, 2, requires_grad=True)
        distil.loss(student, teacher, problem_type=SINGLE, temperature=temperature).sum().backward()
        assert student.grad is not None
        assert student.grad[0].tolist() == pytest.approx([-0.01, 0.01], rel=1e-3)


def test_without_a_label_the_teacher_alone_counts() -> None:
    hard, soft = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])
    mixed = distil.mix(hard, soft, torch.tensor([True, False]), weight=0.25)
    assert mixed.tolist() == [1.5, 3.0]


def test_layers_are_spread_evenly() -> None:
    assert distil.layer_map(4, 6) == [(1, 2), (2, 3), (3, 4), (4, 6)]
    assert distil.layer_map(2, 12) == [(1, 6), (2, 12)]
    assert distil.layer_map(3, 3) == [(1, 1), (2, 2), (3, 3)]
    with pytest.raises(UsageError, match="the student has 4 layers and the teacher 2"):
        distil.layer_map(4, 2)


def test_hidden_states_are_compared_as_unit_vectors() -> None:
    """Equal directions 0, right angles 2, opposite 4; the mean over layers."""
    student = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [0.0, 3.0]]])
    teacher = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [0.0, -9.0]]])
    match = distil.HiddenMatch(2, 2)
    assert match.projection is None
    assert match(student, teacher).tolist() == pytest.approx([1.0, 4.0])
    wider = distil.HiddenMatch(2, 3)
    assert wider(student, torch.randn(2, 2, 3)).shape == (2,)


def manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "task": "classify", "problem_type": SINGLE, "labels": ["b", "a"], "max_length": 40,
        "stride": 8,
    }  # fmt: skip
    return Manifest.model_validate({**values, **changes})


def columns(teacher: Manifest, **changes: object) -> list[int]:
    asked: dict[str, object] = {"labels": ["a", "b"], "problem_type": SINGLE, "pair": False}
    return distil.label_columns(teacher, source="runs/t", **{**asked, **changes})  # type: ignore[arg-type]


def test_the_order_of_labels_may_differ() -> None:
    assert columns(manifest()) == [1, 0]
    assert columns(manifest(problem_type="regression", labels=[]), problem_type="regression") == [0]


@pytest.mark.parametrize(
    ("teacher", "asked", "words"),
    [
        (manifest(labels=["a", "c"]), {}, "the teacher lacks b; the training file lacks c"),
        (manifest(labels=["a", "b", "c"]), {}, "the training file lacks c"),
        (manifest(problem_type=MULTI), {}, "answers with multi_label_classification"),
        (manifest(pair=True), {}, "reads pairs of texts"),
        (manifest(task="fill", problem_type=None, labels=[]), {}, "of the task fill"),
    ],
)
def test_another_question_is_refused(
    teacher: Manifest, asked: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        columns(teacher, **asked)


def small(kind: str) -> classify.Classifier:
    torch.manual_seed(5)
    if kind == "bert":
        return BertForSequenceClassification(tiny_config()).eval()
    config = ModernBertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=40, local_attention=6, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    return ModernBertForSequenceClassification(config).eval()


def three_texts() -> Batch:
    """The last of them in several windows."""
    texts = ["the river bank", "lunch", "free call now " * 6]
    encoded = classify.encode(
        BertTokenizer(VOCABULARY), texts, None, max_length=12, windows=True, stride=2
    )
    return encoded.gather(np.arange(3))


@pytest.mark.parametrize("kind", ["bert", "modern"])
def test_states_are_those_of_first_tokens(kind: str) -> None:
    """Against one text at a time on the padded path; a text of two windows has the mean of both."""
    model, batch = small(kind), three_texts()
    with torch.no_grad():
        logits, states = distil.logits_and_states(model, batch, [1, 2])
        assert torch.allclose(logits, classify.logits_of(model, batch), atol=1e-5)
        first = 0
        for example in range(3):
            rows = []
            for window in np.flatnonzero(batch.owners == example):
                first = int(batch.lengths[:window].sum())
                ids = batch.input_ids[first : first + batch.lengths[window]]
                out = model(torch.from_numpy(ids)[None], output_hidden_states=True)
                rows.append(torch.stack([out.hidden_states[layer][0, 0] for layer in (1, 2)]))
            assert torch.allclose(states[example], torch.stack(rows).mean(0), atol=1e-5)
    assert len(batch.owners) > 3  # some text has several windows


@pytest.mark.parametrize("kind", ["bert", "modern"])
def test_states_with_maps_are_those_without(kind: str) -> None:
    """On the padded grid as on the packed batch; a row of a map sums to 1, over real tokens."""
    model, batch = small(kind), three_texts()
    with torch.no_grad():
        logits, states = distil.logits_and_states(model, batch, [1, 2])
        again, same, maps = distil.states_and_maps(model, batch, [1, 2])
    assert torch.allclose(logits, again, atol=1e-5) and torch.allclose(states, same, atol=1e-5)
    longest = int(batch.lengths.max())
    assert maps.shape == (len(batch.lengths), 2, longest, longest)
    for window, length in enumerate(batch.lengths.tolist()):
        assert torch.allclose(maps[window, :, :length, :length].sum(-1), torch.ones(2, length))


def test_maps_are_compared_by_their_divergence() -> None:
    """By hand: of two tokens the first looks alike in both, the second does not; a text of one
    token can only look at itself."""
    batch = Batch(*(np.zeros(3, dtype=np.int64),) * 2, np.array([2, 1]), np.arange(2), np.arange(2))
    student = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]], [[[1.0, 0.0], [0.3, 0.7]]]])
    teacher = torch.tensor([[[[0.5, 0.5], [0.9, 0.1]]], [[[1.0, 0.0], [0.6, 0.4]]]])
    apart = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    found = distil.map_distance(student, teacher, batch)
    assert found.tolist() == pytest.approx([apart / 2, 0.0], abs=1e-6)


def test_the_teachers_answers_come_in_the_students_order() -> None:
    model, tokenizer = small("bert"), BertTokenizer(VOCABULARY)
    encoded = distil.encode(tokenizer, manifest(), ["the river", "call now"], None)
    plain = distil.teacher_logits(model, encoded, [0, 1])
    assert np.array_equal(distil.teacher_logits(model, encoded, [1, 0]), plain[:, ::-1])
