"""Pooling by hand, losses against sentence-transformers, packed against padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from filbert.data.sentence_pairs import Sentences
from filbert.errors import FilbertError, UsageError
from filbert.model.sentence_folder import SentenceSettings
from filbert.tasks import embed
from filbert.tasks.vector_losses import cosent_loss, cosine_loss, negatives_loss, over_prefixes
from filbert.text import BertTokenizer
from tests.tiny_bundle import tiny_encoder

TEXTS = ["call now", "the river bank", "你好", "lunch like home", "free prize call"]


def test_pooling_by_hand() -> None:
    states = torch.tensor([[1.0, 2], [3, 0], [5, -1], [7, 7]])
    lengths = torch.tensor([3, 1])
    expected = {"mean": [[3, 1 / 3], [7, 7]], "max": [[5, 2], [7, 7]], "cls": [[1, 2], [7, 7]]}
    for pooling, rows in expected.items():
        torch.testing.assert_close(
            embed.pool(states, lengths, pooling), torch.tensor(rows, dtype=torch.float32)
        )


def test_mean_pooling_has_the_gradient_of_a_mean() -> None:
    states = torch.randn(5, 3, dtype=torch.float32, requires_grad=True)
    embed.pool(states, torch.tensor([2, 3]), "mean").sum().backward()
    expected = torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])[:, None].expand(5, 3)
    assert states.grad is not None
    torch.testing.assert_close(states.grad, expected)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, BertTokenizer]:
    folder = tiny_encoder(tmp_path_factory.mktemp("tiny") / "base")
    return embed.head(str(folder)).eval(), BertTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_packed_in_any_order_is_one_by_one(opened: Any, pooling: Any) -> None:
    model, tokenizer = opened
    settings = SentenceSettings(pooling, True, 16)
    encoded = embed.encode(tokenizer, TEXTS, max_length=16)
    together = embed.predict_vectors(model, encoded, settings)
    for path in ("sdpa", "eager"):
        model.set_attention(path)
        np.testing.assert_allclose(
            embed.predict_vectors(model, encoded, settings), together, atol=1e-5
        )
    model.set_attention("packed")
    alone = [
        embed.predict_vectors(model, embed.encode(tokenizer, [t], max_length=16), settings)[0]
        for t in TEXTS
    ]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    short = embed.predict_vectors(model, encoded, settings, dimensions=5)
    cut = together[:, :5]
    np.testing.assert_allclose(short, cut / np.linalg.norm(cut, axis=1)[:, None], atol=1e-5)


class Fixed(torch.nn.Module):
    """Stands for a sentence-transformers model whose vectors are given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


def vectors(*seeds: int, rows: int = 6) -> list[Tensor]:
    return [torch.randn(rows, 8, generator=torch.Generator().manual_seed(s)) for s in seeds]


@pytest.mark.parametrize("columns", [2, 3])
def test_in_batch_negatives_are_those_of_sentence_transformers(columns: int) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    parts = vectors(*range(columns))
    theirs = losses.MultipleNegativesRankingLoss(Fixed())(
        [{"vectors": part} for part in parts], None
    )
    ours = negatives_loss(parts[0], torch.cat(parts[1:])).mean()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_regressions_are_those_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    parts, gold = vectors(4, 5), torch.tensor([0.1, 0.9, 0.9, 0.0, 0.5, 1.0])
    given = [{"vectors": part} for part in parts]
    theirs = losses.CosineSimilarityLoss(Fixed())(given, gold)
    assert float(cosine_loss(*parts, gold).mean()) == pytest.approx(float(theirs), rel=1e-5)
    theirs = losses.CoSENTLoss(Fixed())(given, gold)
    ours = cosent_loss(*parts, gold)
    assert float(ours.mean()) == pytest.approx(float(theirs), rel=1e-5) and len(ours) == 6


def test_a_text_that_means_the_same_is_no_wrong_answer() -> None:
    first, second = vectors(0, 1, rows=3)
    second[2] = second[0]
    alike = torch.zeros(3, 3, dtype=torch.bool)
    alike[0, 2] = alike[2, 0] = True
    masked = negatives_loss(first, second, alike)
    alone = negatives_loss(first[:2], second[:2])
    assert float(masked[0]) == pytest.approx(float(alone[0]), rel=1e-5)
    # the row's own partner stays whatever the mask says
    assert torch.isfinite(negatives_loss(first, second, torch.ones(3, 3, dtype=torch.bool))).all()


def test_prefixes_are_the_mean_of_the_losses() -> None:
    parts, gold = vectors(4, 5), torch.rand(6, generator=torch.Generator().manual_seed(0))

    def loss(v: list[Tensor]) -> Tensor:
        return cosine_loss(v[0], v[1], gold)

    whole, short = loss(parts), loss([part[:, :3] for part in parts])
    torch.testing.assert_close(over_prefixes(loss, parts, []), whole)
    torch.testing.assert_close(over_prefixes(loss, parts, [8, 3]), (whole + short) / 2)


def test_scores_of_scored_pairs_are_scipys() -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(20, 6)).astype(np.float32)
    members = draw.integers(0, 10, (30, 2)) + np.array([0, 10])  # a text with itself would tie
    gold = draw.random(30)
    data = Sentences([str(n) for n in range(20)], members, gold, "x", list(range(30)))
    cosines = [
        np.dot(rows[a], rows[b]) / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b])
        for a, b in members
    ]
    scores = embed.score(rows * 3, data)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(cosines, gold).statistic, abs=1e-6)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(cosines, gold).statistic, abs=1e-6)


def test_scores_of_retrieval_by_hand() -> None:
    # query 0 has two answers (texts 1 and 2), query 3 one (text 4); 5 is a hard negative
    members = np.array([[0, 1, 5], [0, 2, 5], [3, 4, 5]])
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.6, 0.8], [0, -1], [0.9, 0.1]], np.float32)
    data = Sentences(list("abcdef"), members, None, "x", [1, 2, 3])
    scores = embed.score(rows, data)
    # query 0 finds 1 (.995), 5 (.994), 2 (0), 4 (0): its second answer counts as 4th, behind the
    # equal one; query 3 finds 2 (.8), 1, 5, 4 (-.8): its answer is the 4th
    assert scores["mrr@10"] == pytest.approx((1 + 1 / 4) / 2)
    assert scores["recall@1"] == 0.25 and scores["recall@5"] == 1.0


def test_settings_of_a_manifest_are_checked(tmp_path: Path, opened: Any) -> None:
    from filbert.bundle import Manifest

    manifest = Manifest(task="embed", settings={"pooling": "median", "normalize": True})
    with pytest.raises(FilbertError, match="median"):
        embed.settings_of(tmp_path, limit=40, tokenizer=opened[1], manifest=manifest)
    good = Manifest(task="embed", max_length=24, settings={"pooling": "max", "normalize": False})
    found = embed.settings_of(tmp_path, limit=40, tokenizer=opened[1], manifest=good)
    assert found == SentenceSettings("max", False, 24)


def test_dimensions_that_there_are_not() -> None:
    with pytest.raises(UsageError, match="from 1 to 16"):
        embed.check_dimensions([8, 17], hidden_size=16)
