"""Sentence vectors of the real MiniLM, and of a bundle of ours, against sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert import load
from filbert.bundle import Manifest, open_bundle, save_bundle
from filbert.model import sentence_folder
from filbert.model.sentence_folder import SentenceSettings
from tests.tiny_bundle import tiny_encoder

TEXTS = [
    "A man eats.",
    "  He is eating a bowl of noodles, slowly.  ",
    "",
    "你好,世界!我想退款。",
    "word " * 400,  # longer than the model's 256 tokens: cut off
    "Ünïcode, 'quotes' and\ttabs\nand lines",
]


def peer(folder: Path) -> Any:
    module = pytest.importorskip("sentence_transformers", reason="sentence-transformers is absent")
    return module.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def test_minilm_is_that_of_sentence_transformers(minilm: Path) -> None:
    theirs = peer(minilm).encode(TEXTS)
    embed = load("all-MiniLM-L6-v2", device="cpu", precision="float32")
    ours = embed(TEXTS)
    assert ours.shape == theirs.shape == (6, 384) and ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 1e-5
    assert np.abs(embed(TEXTS[0]) - theirs[0]).max() <= 1e-5
    assert embed.settings == SentenceSettings("mean", True, 256)
    quick = load("all-MiniLM-L6-v2", device="cpu")  # bfloat16 where the processor multiplies it
    assert np.abs(quick(TEXTS) - theirs).max() <= 4e-3
    assert (quick(TEXTS) * theirs).sum(1).min() > 0.9998


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_bundle_opens_in_sentence_transformers(
    tmp_path: Path, pooling: Any, normalize: bool
) -> None:
    base = open_bundle(tiny_encoder(tmp_path / "base"))
    settings = SentenceSettings(pooling, normalize, 24)
    manifest = Manifest(
        task="embed", max_length=24, settings={"pooling": pooling, "normalize": normalize}
    )
    out = tmp_path / "out"
    save_bundle(out, model=base.model, tokenizer=base.tokenizer, manifest=manifest)
    sentence_folder.write(out, settings, hidden_size=16)
    texts = ["call now", "the river bank like it", "你好", "a b c d e f g h i j k l m n o p " * 3]
    theirs = peer(out).encode(texts)
    ours = load(out, device="cpu", precision="float32")(texts)
    assert np.abs(ours - theirs).max() <= 1e-5
    (out / "filbert.json").unlink()  # what the folder says to everybody is enough
    again = load(out, device="cpu", precision="float32")
    assert again.settings == settings
    np.testing.assert_array_equal(again(texts), ours)
