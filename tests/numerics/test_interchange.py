"""Folders go both ways: others open what we save, and the reverse, with equal outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from filbert import BertForMaskedLM, BertForPreTraining, BertModel, BertTokenizer
from filbert.model.weights import write_weights
from tests.tiny import save_base

TEXTS = ["the film was superb", "a book", "good food and a weak hotel show was bad"]


def mean_vectors(model: BertModel, tokenizer: BertTokenizer) -> Tensor:
    """Mean over the real tokens, length one: what MiniLM's folder asks for."""
    grid = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**grid).last_hidden_state
    mask = grid["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def test_sentence_transformers_reads_what_we_save(minilm: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    BertModel.from_pretrained(minilm).save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu")  # adds mean pooling itself
    expected = theirs.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    mine = mean_vectors(
        BertModel.from_pretrained(tmp_path), BertTokenizer.from_pretrained(tmp_path)
    )
    assert (mine - expected).abs().max().item() < 1e-5


def test_we_read_what_sentence_transformers_reads(minilm: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    expected = library.SentenceTransformer(str(minilm), device="cpu").encode(
        TEXTS, convert_to_tensor=True
    )
    mine = mean_vectors(BertModel.from_pretrained(minilm), BertTokenizer.from_pretrained(minilm))
    assert (mine - expected).abs().max().item() < 1e-5


@pytest.mark.parametrize("shard", [5_000_000_000, 20_000])
@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_transformers_both_ways(tmp_path: Path, name: str, shard: int) -> None:
    """Ours opened by transformers and saved again by it: the same logits at each station."""
    transformers = pytest.importorskip("transformers")
    ours = {"BertForPreTraining": BertForPreTraining, "BertForMaskedLM": BertForMaskedLM}
    kind = ours.get(name, BertModel)
    save_base(tmp_path / "base")
    model = kind.from_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "ours", max_shard_bytes=shard)
    theirs, report = getattr(transformers, name).from_pretrained(
        str(tmp_path / "ours"), output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = kind.from_pretrained(tmp_path / "theirs")
    ids = torch.randint(5, 20, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stations = [m.eval()(ids)[0] for m in (model, theirs, again)]
    assert (stations[0] - stations[1]).abs().max().item() < 1e-5
    assert torch.equal(stations[0], stations[2])


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = BertForPreTraining.from_pretrained(save_base(tmp_path))
    words = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is words
    # a checkpoint that carries the same matrix under both names is fine
    write_weights({**model.state_dict()}, tmp_path)
    assert BertForPreTraining.from_pretrained(tmp_path).cls.predictions.decoder.weight.shape == (
        words.shape
    )
