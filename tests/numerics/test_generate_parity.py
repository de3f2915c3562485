"""Generation against `generate` of Transformers, and the cache against computing all anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from filbert.errors import FilbertError, UsageError
from filbert.model import generate as module
from filbert.model.cache import Cache
from filbert.model.generate import Search, allowed, best_words, draw_numbers, generate, pick
from filbert.model.seq2seq import BertForSeq2SeqLM
from tests.seq2seq import END, PAD, START, both, padded, texts

SOURCES = [5, 9, 2, 7, 1, 12]


def theirs(model: Any, sources: list[torch.Tensor], **options: Any) -> list[list[int]]:
    grid = padded(sources)
    out = model.generate(input_ids=grid, attention_mask=(grid != PAD).long(), **options)
    rows = []
    for row in out[:, 1:].tolist():
        rows.append(row[: row.index(END)] if END in row else row)
    return rows


def ours(model: BertForSeq2SeqLM, sources: list[torch.Tensor], **options: Any) -> list[list[int]]:
    lengths = torch.tensor([len(source) for source in sources])
    written = generate(model, torch.cat(sources), lengths, search=Search(**options))
    return [text.tokens for row in written for text in row]


def ready(folder: Path, *, seed: int, end_bias: float = 8.0, **decoder: Any) -> tuple[Any, Any]:
    """Both models, made to end texts now and then: random ones rarely do."""
    reference, model = both(folder, seed=seed, **decoder)
    with torch.no_grad():
        for one in (reference, model):
            one.decoder.cls.predictions.bias[END] += end_bias
            one.decoder.cls.predictions.bias[PAD] = -50.0  # tells a text's end in their output
    return reference, model


@pytest.mark.parametrize("seed", range(5))
def test_beam_search_writes_what_transformers_writes(tmp_path: Path, seed: int) -> None:
    lengths, written = set(), set()
    for bias in (2.0, 6.0, 8.0):
        size = [60, 700][seed % 2]
        reference, model = ready(tmp_path / str(bias), seed=seed, end_bias=bias, vocab_size=size)
        sources = texts(seed, SOURCES)
        want = theirs(reference, sources, num_beams=4, max_new_tokens=15)
        got = ours(model, sources, beams=4, max_tokens=15)
        assert got == want
        lengths |= {len(row) for row in got}
        written |= {tuple(row) for row in got}
    assert len(lengths) > 1  # some ended early, some did not
    assert len(written) > 3  # trap: one output for every input


@pytest.mark.parametrize(
    ("their_options", "our_options"),
    [
        ({"length_penalty": 0.3}, {"length_penalty": 0.3}),
        ({"length_penalty": 2.0, "early_stopping": "never"},
         {"length_penalty": 2.0, "early_stopping": "never"}),
        ({"length_penalty": -1.0, "early_stopping": "never"},
         {"length_penalty": -1.0, "early_stopping": "never"}),
        ({"early_stopping": True}, {"early_stopping": True}),
        ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram": 1}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram": 2}),
        ({"min_new_tokens": 6}, {"min_tokens": 6}),
        ({"num_return_sequences": 3}, {"best": 3}),
    ],
)  # fmt: skip
def test_rules_of_the_search(
    tmp_path: Path, their_options: dict[str, Any], our_options: dict[str, Any]
) -> None:
    for seed in range(3):
        reference, model = ready(tmp_path / str(seed), seed=seed, end_bias=7.0)
        sources = texts(seed + 50, SOURCES)
        want = theirs(reference, sources, num_beams=4, max_new_tokens=12, **their_options)
        assert ours(model, sources, beams=4, max_tokens=12, **our_options) == want


@pytest.mark.parametrize("rules", [{}, {"no_repeat_ngram_size": 2, "min_new_tokens": 4}])
def test_greedy_writes_what_transformers_writes(tmp_path: Path, rules: dict[str, int]) -> None:
    names = {"no_repeat_ngram_size": "no_repeat_ngram", "min_new_tokens": "min_tokens"}
    written = set()
    for seed in range(3):
        reference, model = ready(tmp_path / str(seed), seed=seed, end_bias=3.0, hidden_size=16)
        sources = texts(seed + 10, SOURCES)
        want = theirs(reference, sources, max_new_tokens=20, num_beams=1, do_sample=False, **rules)
        mine = {names[name]: value for name, value in rules.items()}
        got = ours(model, sources, beams=1, max_tokens=20, **mine)
        assert got == want
        written |= {tuple(row) for row in got}
    assert len(written) > 2


def test_a_folder_of_filbert_writes_the_same_in_transformers(tmp_path: Path) -> None:
    _, model = ready(tmp_path / "theirs", seed=1)
    model.save_pretrained(tmp_path / "ours")
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "ours").eval()
    sources = texts(3, SOURCES)
    want = theirs(again, sources, num_beams=1, do_sample=False, max_new_tokens=15)
    assert ours(model, sources, beams=1, max_tokens=15) == want


def test_the_cache_gives_what_computing_anew_gives(tmp_path: Path) -> None:
    """With random reorderings of the beams and rows that leave, over more steps than the cache has
    room for at first."""
    _, model = both(tmp_path, seed=5, hidden_size=16)
    beams, sources = 3, texts(7, SOURCES)
    lengths = torch.tensor([len(source) for source in sources])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        states = model.encode(torch.cat(sources), lengths=lengths)
        cache = Cache(model.decoder, states, lengths, beams=beams)
        owner = torch.arange(len(sources))
        tokens = torch.full((len(sources), beams, 1), START)
        for step in range(25):
            got = model.decoder.cls.predictions(cache.step(tokens[:, :, -1].flatten()))
            chosen = padded([sources[int(i)] for i in owner.repeat_interleave(beams)])
            want = model(chosen, (chosen != PAD).long(), tokens.flatten(0, 1)).logits[:, -1]
            assert torch.allclose(got, want, atol=1e-4), step
            parents = torch.randint(beams, (len(owner), beams), generator=draw)
            tokens = tokens.gather(1, parents[:, :, None].expand_as(tokens))
            cache.reorder(parents)
            new = torch.randint(4, 60, (len(owner), beams, 1), generator=draw)
            tokens = torch.cat([tokens, new], -1)
            if step in (3, 9, 20):
                staying = torch.ones(len(owner), dtype=torch.bool)
                staying[{3: [1], 9: [0, 4], 20: [2]}[step]] = False
                keep = cache.keep(staying)
                owner, tokens = owner[keep], tokens[keep]
        assert len(owner) == 2


def test_a_text_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    _, model = ready(tmp_path, seed=2)
    sources = texts(4, SOURCES)
    for options in ({"beams": 4}, {"beams": 1}, {"beams": 1, "sample": True, "seed": 9}):
        search = Search(max_tokens=15, **options)  # type: ignore[arg-type]
        lengths = torch.tensor([len(source) for source in sources])
        together = generate(model, torch.cat(sources), lengths, search=search)
        for number, source in enumerate(sources):
            alone = generate(
                model, source, torch.tensor([len(source)]), search=search, numbers=[number]
            )
            assert alone[0][0].tokens == together[number][0].tokens
            assert alone[0][0].score == pytest.approx(together[number][0].score, abs=1e-4)


def test_the_best_words_of_a_large_vocabulary() -> None:
    torch.manual_seed(0)
    logits, offsets = torch.randn(3, 4, 1003), torch.randn(3, 4)
    scores, beams, words = best_words(logits, offsets, count=8)
    want, place = (logits + offsets[:, :, None]).flatten(1).topk(8)
    assert torch.equal(scores, want)
    assert torch.equal(beams * 1003 + words, place)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.8), (5, 1.0), (20, 0.5), (0, 1.0)])
def test_sampling_chooses_from_the_words_that_transformers_allows(top_k: int, top_p: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, 50) * 3
    warpers = [transformers.TemperatureLogitsWarper(0.7)]
    if top_k:
        warpers.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(top_p))
    want = logits.clone()
    for warper in warpers:
        want = warper(None, want)
    search = Search(beams=1, sample=True, temperature=0.7, top_k=top_k, top_p=top_p)
    kept, words = allowed(logits, search)
    got = torch.full_like(logits, -torch.inf).scatter(1, words, kept)
    assert torch.allclose(got, want)


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log().expand(20_000, 3)
    draws = draw_numbers(3, list(range(20_000)), 1)[:, 0]
    words = pick(logits, draws, Search(beams=1, sample=True))
    shares = torch.bincount(words, minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.2, 0.3]), atol=0.015)  # 4 deviations


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sampling writes one text"):
        Search(beams=4, sample=True)
    with pytest.raises(UsageError, match="top_p must be over 0"):
        Search(top_p=0.0)
    _, model = both(tmp_path)
    source, length = torch.tensor([5, 6]), torch.tensor([2])
    with pytest.raises(UsageError, match="positions for 40"):
        module.generate(model, source, length, search=Search(max_tokens=41))
    model.config.eos_token_id = None
    with pytest.raises(FilbertError, match="eos_token_id"):
        module.generate(model, source, length)
