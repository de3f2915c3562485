"""The CRF against the sum, the best and the shares over every label sequence, written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from filbert.errors import FilbertError
from filbert.model import crf
from filbert.model.bert import BertForTokenClassification
from tests.tiny_bundle import tiny_config

LABELS = 3


def case(seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Emissions (4, 5, labels) with NaN-free junk beyond the lengths, and random moves."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2

    lengths = torch.tensor([5, 1, 3, 4])
    moves = {"transitions": draw(LABELS, LABELS), "start": draw(LABELS), "end": draw(LABELS)}
    return draw(4, 5, LABELS), lengths, moves


def score_of(path: tuple[int, ...], emissions: Tensor, moves: dict[str, Tensor]) -> float:
    """By the definition: start, emissions, transitions, end."""
    total = float(moves["start"][path[0]] + moves["end"][path[-1]])
    total += sum(float(emissions[place, label]) for place, label in enumerate(path))
    return total + sum(float(moves["transitions"][a, b]) for a, b in itertools.pairwise(path))


def every(emissions: Tensor, length: int, moves: dict[str, Tensor]) -> dict[tuple[int, ...], float]:
    paths = itertools.product(range(LABELS), repeat=length)
    return {path: score_of(path, emissions, moves) for path in paths}


@pytest.mark.parametrize("seed", range(5))
def test_partition_best_path_and_marginals_are_those_of_enumeration(seed: int) -> None:
    emissions, lengths, moves = case(seed)
    partition = crf.log_partition(emissions, lengths, **moves)
    best = crf.viterbi(emissions, lengths, **moves)
    likely = crf.marginals(emissions, lengths, **moves)
    for row, length in enumerate(lengths.tolist()):
        scores = every(emissions[row], length, moves)
        values = torch.tensor(list(scores.values()), dtype=torch.float64)
        expected = float(torch.logsumexp(values, 0))
        assert float(partition[row]) == pytest.approx(expected, abs=1e-9)
        assert tuple(best[row, :length].tolist()) == max(scores, key=scores.__getitem__)
        assert best[row, length:].eq(0).all()
        shares = torch.exp(values - expected)
        for place, label in itertools.product(range(length), range(LABELS)):
            mass = sum(
                float(share)
                for path, share in zip(scores, shares, strict=True)
                if path[place] == label
            )
            assert float(likely[row, place, label]) == pytest.approx(mass, abs=1e-5)
        assert likely[row, length:].eq(0).all()


def test_the_loss_is_minus_the_log_likelihood_and_its_gradient_is_right() -> None:
    emissions, lengths, moves = case(9)
    labels = torch.tensor([[0, 1, 2, 2, 1], [2, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 2, 1, 0, 0]])
    head = crf.LinearChainCrf(LABELS)
    with torch.no_grad():
        for name, value in moves.items():
            getattr(head, name).copy_(value)
    losses = head.loss(emissions.float(), labels, lengths).detach()
    for row, length in enumerate(lengths.tolist()):
        scores = every(emissions[row], length, moves)
        total = torch.logsumexp(torch.tensor(list(scores.values()), dtype=torch.float64), 0)
        own = scores[tuple(labels[row, :length].tolist())]
        assert float(losses[row]) == pytest.approx(float(total) - own, abs=1e-4)

    def of(e: Tensor, t: Tensor, s: Tensor, n: Tensor) -> Tensor:
        options = {"transitions": t, "start": s, "end": n}
        return crf.log_partition(e, lengths, **options) - crf.path_score(
            e, labels, lengths, **options
        )

    inputs = [x.requires_grad_() for x in (emissions, *moves.values())]
    assert torch.autograd.gradcheck(of, inputs)


def test_packed_sequences_give_what_each_gives_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 0, 7, 1, 7, 0, 2])
    scores = torch.randn(int(lengths.sum()), LABELS, generator=generator)
    moves = {
        "transitions": torch.randn(LABELS, LABELS, generator=generator),
        "start": torch.randn(LABELS, generator=generator), "end": torch.zeros(LABELS),
    }  # fmt: skip
    paths = crf.best_paths(scores, lengths, **moves)
    likely = crf.all_marginals(scores, lengths, **moves)
    for part, path, chances in zip(
        *(x.split(lengths.tolist()) for x in (scores, paths, likely)), strict=True
    ):
        if len(part):
            alone = torch.tensor([len(part)])
            assert torch.equal(crf.viterbi(part[None], alone, **moves)[0], path)
            assert torch.allclose(crf.marginals(part[None], alone, **moves)[0], chances, atol=1e-6)


def test_grids_are_cut_so_that_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf, "_CELLS", 64 * 10)
    lengths = torch.tensor([2, 9, 3, 20, 4])
    grids = crf.grids(lengths)
    assert sorted(i for chosen, _, _ in grids for i in chosen.tolist()) == [0, 1, 2, 3, 4]
    assert all(rows.numel() <= 10 or len(rows) == 1 for _, rows, _ in grids)
    places = torch.cat([rows[real] for _, rows, real in grids])
    assert sorted(places.tolist()) == list(range(38))


def test_allowed_moves_give_no_broken_bio() -> None:
    labels = ["O", "B-a", "I-a", "B-b", "I-b"]
    moves = crf.allowed_moves(labels)
    scores = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)) * 5
    scores[:, [2, 4]] += 3
    lengths = torch.tensor([100, 1, 150, 149])
    path = crf.best_paths(scores, lengths, **moves).split(lengths.tolist())
    for one in path:
        names = ["O", *(labels[i] for i in one.tolist())]
        for before, after in itertools.pairwise(names):
            assert not after.startswith("I-") or before[2:] == after[2:], (before, after)
    # where nothing is broken the best labels stay
    plain = torch.tensor([[0, 9, 0, 0, 0], [0, 0, 9, 0, 0], [9, 0, 0, 0, 0.0]])
    assert crf.best_paths(plain, torch.tensor([3]), **moves).tolist() == [1, 2, 0]


def test_the_model_is_the_token_classifier_with_a_chain(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = tiny_config(id2label=dict(enumerate("abc")))
    model = crf.BertCrfForTokenClassification(config)
    with torch.no_grad():
        model.head.transitions.normal_()
    ids = torch.tensor([[2, 7, 8, 3]])
    model.eval().save_pretrained(tmp_path)
    again = crf.BertCrfForTokenClassification.from_pretrained(tmp_path)
    assert torch.equal(again.head.transitions, model.head.transitions)
    plain = BertForTokenClassification(config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k[:5] != "head."})
    assert torch.equal(plain(ids).logits, model(ids).logits)
    with pytest.raises(FilbertError, match=r"head\.loss"):
        model(ids, labels=ids)
