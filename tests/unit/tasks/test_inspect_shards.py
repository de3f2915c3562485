"""`filbert prepare --inspect`: the samples it shows are those that training draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filbert.data.samples import Sampler
from filbert.tasks import pretrain
from filbert.tasks.inspect_shards import as_text, inspect_shards, line_of
from filbert.text import BertTokenizer
from tests.tiny_shards import tiny_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("inspect") / "shards")


def test_it_counts_the_corpus_and_shows_samples(shards: Path) -> None:
    found = inspect_shards(shards, count=4, max_length=32)
    assert found["counts"]["documents"] == 72
    assert found["sources"] == {"": found["counts"]["tokens"]}
    assert [sample["number"] for sample in found["samples"]] == [0, 1, 2, 3]
    text = as_text(found)
    assert "72 documents" in text
    assert "[MASK→" in text
    assert "sample 3:" in text


def test_what_is_hidden_is_what_stood_there(shards: Path) -> None:
    opened = pretrain.read(shards)
    tokenizer = BertTokenizer.from_pretrained(opened.vocab)
    sampler = Sampler(opened.split("train"), cls_id=2, sep_id=3, max_length=32)
    for shown in inspect_shards(shards, count=6, max_length=32)["samples"]:
        packed = sampler.pack(sampler.samples(np.array([shown["number"]])))
        plain = tokenizer.convert_ids_to_tokens(packed.input_ids.tolist())
        mended = [shown["hidden"].get(n, token) for n, token in enumerate(shown["tokens"])]
        assert mended == plain
        label = int(packed.labels[0])
        assert shown["pair_label"] == (None if label == -100 else label)


def test_a_line_tells_masks_from_replacements() -> None:
    sample = {
        "tokens": ["[CLS]", "a", "[MASK]", "##b", "c", "[SEP]", "d", "[SEP]"],
        "joins": [False, False, False, True, False, False, False, False],
        "segments": [0, 0, 0, 0, 0, 0, 1, 1],
        "hidden": {2: "x", 4: "y", 6: "d"},
    }
    assert line_of(sample) == "  [CLS] a [MASK→x]·##b [y→c] [SEP]\n  [d=] [SEP]"


def test_nothing_of_a_corpus_commands_the_terminal() -> None:
    """Names and tokens of shards that somebody else made: control characters are spelled out."""
    sample = {
        "number": 0, "tokens": ["[CLS]", "\x1b[31mred", "[MASK]", "[SEP]"],
        "joins": [False] * 4, "segments": [0] * 4, "hidden": {2: "a\x07"}, "pair_label": None,
    }  # fmt: skip
    found = {
        "folder": "s", "objective": "none", "vocab_size": 9, "shards": ["train-00000"],
        "counts": {"documents": 1, "sentences": 1, "tokens": 4},
        "sources": {"\x1b]0;title\x07\nsecond": 4}, "samples": [sample],
    }  # fmt: skip
    shown = as_text(found)
    assert r"\x1b]0;title\x07\nsecond: 4 tokens" in shown
    assert r"\x1b[31mred [MASK→a\x07]" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
