"""The six functions of classification: losses, weights and windows by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from filbert.bundle import Manifest
from filbert.data.packing import Encoded
from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForSequenceClassification
from filbert.tasks import classify
from tests.tiny import save_base

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    base = save_base(tmp_path_factory.mktemp("base"))
    torch.manual_seed(0)
    return classify.head(str(base), labels=["a", "b", "c"], problem_type=SINGLE).eval()


def encoded(*examples: list[int]) -> Encoded:
    """Examples given as lists of window lengths."""
    lengths = [length for windows in examples for length in windows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.random.default_rng(0).integers(5, 20, starts[-1]).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum([len(windows) for windows in examples])])
    return Encoded(ids, np.zeros(len(ids), np.int8), starts, ends)


def test_windows_are_averaged(model: BertForSequenceClassification) -> None:
    long = encoded([7], [5, 3, 4], [2])
    parts = encoded([7], [5], [3], [4], [2])  # the same tokens, each window its own example
    together = classify.predict_logits(model, long)
    alone = classify.predict_logits(model, parts)
    assert together.shape == (3, 3)
    np.testing.assert_allclose(together[1], alone[1:4].mean(0), atol=1e-5)
    np.testing.assert_allclose(together[[0, 2]], alone[[0, 4]], atol=1e-5)


def test_windows_of_a_long_text_are_computed_by_and_by(
    model: BertForSequenceClassification,
) -> None:
    seen: list[int] = []
    hook = model.bert.register_forward_pre_hook(
        lambda _, given, options: seen.append(len(options["input_ids"])), with_kwargs=True
    )
    long = encoded([20] * 100, [7], [20] * 30)
    found = classify.predict_logits(model, long, batch_tokens=100)
    hook.remove()
    assert max(seen) == 100 and sum(seen) == 2607
    whole = classify.predict_logits(model, long, batch_tokens=10_000)
    np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_paths_and_batches_agree(model: BertForSequenceClassification, path: str) -> None:
    data = encoded(*[[length] for length in (3, 9, 1, 31, 12, 12, 5)], [8, 8])
    packed = classify.predict_logits(model, data, batch_tokens=1000)
    one_by_one = classify.predict_logits(model, data, batch_tokens=1)
    model.set_attention(path)
    padded = classify.predict_logits(model, data, batch_tokens=1000)
    model.set_attention("packed")
    np.testing.assert_allclose(packed, one_by_one, atol=1e-5)
    np.testing.assert_allclose(packed, padded, atol=1e-5)


def test_losses_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    gold = torch.tensor([0, 1])
    got = classify.loss(logits, gold, problem_type=SINGLE)
    assert got.tolist() == pytest.approx([math.log(2), math.log(4)])
    weighted = classify.loss(logits, gold, problem_type=SINGLE, weights=torch.tensor([1.0, 5.0]))
    assert weighted.tolist() == pytest.approx([math.log(2), 5 * math.log(4)])
    smooth = classify.loss(logits, gold, problem_type=SINGLE, label_smoothing=0.2)
    # 0.9 on the right label and 0.1 on the other: -log p = log 4 and log(4 / 3)
    assert smooth[1].item() == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))
    several = classify.loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), problem_type=MULTI)
    assert several.tolist() == pytest.approx([math.log(2)])
    squares = classify.loss(torch.tensor([[1.5]]), torch.tensor([3.0]), problem_type="regression")
    assert squares.tolist() == [2.25]


def test_class_weights() -> None:
    gold = np.array([0, 0, 0, 1])
    names = ["ham", "spam"]
    assert classify.class_weights("none", gold, names, SINGLE) is None
    balanced = classify.class_weights("balanced", gold, names, SINGLE)
    assert balanced is not None and balanced.tolist() == pytest.approx([4 / 6, 4 / 2])
    given = classify.class_weights("spam=5", gold, names, SINGLE)
    assert given is not None and given.tolist() == [1.0, 5.0]
    several = classify.class_weights("balanced", np.array([[1, 0], [1, 1], [1, 0]]), names, MULTI)
    assert several is not None and several.tolist() == pytest.approx([1e-3, 2.0])
    for wrong in ("spam", "spam=x", "spam=-1", "spam=0", "spam=nan", "=3"):
        with pytest.raises(UsageError):
            classify.class_weights(wrong, gold, names, SINGLE)
    with pytest.raises(UsageError, match="Did you mean 'spam'"):
        classify.class_weights("spma=2", gold, names, SINGLE)
    with pytest.raises(UsageError, match="regression"):
        classify.class_weights("balanced", gold, names, "regression")


def test_targets() -> None:
    assert classify.targets(["b", "a"], ["a", "b"], SINGLE).tolist() == [1, 0]
    assert classify.targets([["b"], []], ["a", "b"], MULTI).tolist() == [[0, 1], [0, 0]]
    assert classify.targets([2, 0.5], [], "regression").tolist() == [2.0, 0.5]
    with pytest.raises(FilbertError, match=r"label 'cat'.*Did you mean 'cats'"):
        classify.targets(["cat"], ["cats", "dogs"], SINGLE)


def test_decode() -> None:
    logits = np.array([[0.0, math.log(3)]], dtype=np.float32)
    one = Manifest(task="classify", problem_type=SINGLE, labels=["no", "yes"])
    assert classify.decode(logits, one)[0] == {"label": "yes", "score": pytest.approx(0.75)}
    cooler = one.model_copy(update={"temperature": 2.0})
    root = math.sqrt(3)
    assert classify.decode(logits, cooler)[0]["score"] == pytest.approx(root / (1 + root))
    everything = classify.decode(logits, one, all_scores=True)[0]["scores"]
    assert everything == {"no": pytest.approx(0.25), "yes": pytest.approx(0.75)}
    many = Manifest(
        task="classify", problem_type=MULTI, labels=["no", "yes"], thresholds=[0.5, 0.8]
    )
    assert classify.decode(logits, many)[0]["labels"] == ["no"]
    number = Manifest(task="classify", problem_type="regression")
    assert classify.decode(np.array([[2.5]], np.float32), number) == [{"score": 2.5}]


def test_head_is_drawn_from_the_seed(tmp_path: Path) -> None:
    base = str(save_base(tmp_path))
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made = classify.head(base, labels=["a", "b"], problem_type=SINGLE)
        heads.append(made.classifier.weight.detach().clone())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_packed_input_is_checked(model: BertForSequenceClassification) -> None:
    ids = torch.tensor([2, 5, 3])
    good = model(input_ids=ids, lengths=torch.tensor([3])).logits
    assert good.shape == (1, 3)
    for wrong in (
        {"lengths": torch.tensor([0, 3])},
        {"lengths": torch.tensor([4, -1])},
        {"lengths": torch.tensor([2])},
        {"lengths": torch.tensor([3]), "attention_mask": torch.ones(3)},
        {"lengths": torch.tensor([3]), "token_type_ids": torch.zeros(1, dtype=torch.int64)},
    ):
        with pytest.raises(FilbertError):
            model(input_ids=ids, **wrong)
    with pytest.raises(FilbertError, match="outside the model's vocabulary"):
        model(torch.tensor([[2, 99]]))
    with pytest.raises(FilbertError, match="40 tokens; this model takes at most 32"):
        model(torch.full((1, 40), 5))


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 10**9},
        {"hidden_size": 2 * 10**8},
        {"max_position_embeddings": 10**9},
        {"intermediate_size": 10**9},
        {"num_hidden_layers": 900},
    ],
)
def test_a_lying_configuration_is_told_before_memory_is_taken(
    tmp_path: Path, change: dict[str, int]
) -> None:
    import json

    base = save_base(tmp_path)
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(FilbertError, match="do not belong together"):
        BertForSequenceClassification.from_pretrained(base)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 1e-320},
        {"temperature": float("inf")},
        {"labels": ["a", "a"]},
        {"labels": []},
        {"problem_type": None},
        {"problem_type": "regression"},
        {"task": "fill"},
        {"thresholds": [float("nan"), 0.5]},
        {"surprise": 1},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    import json

    from filbert.bundle import read_manifest, save_bundle
    from filbert.text import BertTokenizer

    base = save_base(tmp_path / "base")
    head = classify.head(str(base), labels=["a", "b"], problem_type=SINGLE)
    manifest = Manifest(task="classify", problem_type=SINGLE, labels=["a", "b"])
    save_bundle(
        tmp_path / "run",
        model=head,
        tokenizer=BertTokenizer.from_pretrained(base),
        manifest=manifest,
    )
    assert read_manifest(tmp_path / "run") == manifest
    values = {**manifest.model_dump(), **change}
    (tmp_path / "run" / "filbert.json").write_text(json.dumps(values))
    with pytest.raises(FilbertError):
        read_manifest(tmp_path / "run")
