"""A learned vocabulary in transformers: the same ids for the same texts as here."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from filbert.data.corpus import read_documents
from filbert.data.learn_vocab import learn_vocabulary
from filbert.data.vocab_options import VocabOptions
from filbert.text import BertTokenizer

TEXTS = [
    "The café's 3 naïve waiters, [MASK] and [SEP]; U.S. GDP rose 1.5%…",
    "今天天氣很好，我们去了 Starbucks 喝咖啡。",
    "",
    "ÀÉÎ ﬁ İstanbul ß \u200b\ufeff한국어 " + "x" * 120,
]


@pytest.mark.parametrize("kind", ["uncased", "cased", "chinese"])
def test_transformers_gives_the_same_ids(tmp_path: Path, kind: str) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text("\n".join(TEXTS * 3), "utf-8")
    out = tmp_path / "vocab"
    options = {"corpus": [str(corpus)], "out": str(out), "kind": kind, "size": 300, "unused": 99}
    learn_vocabulary(VocabOptions.model_validate(options), quiet=True)
    theirs, ours = AutoTokenizer.from_pretrained(out), BertTokenizer.from_pretrained(out)
    assert theirs(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"]
    assert (theirs.pad_token_id, theirs.unk_token_id) == (0, 100)
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (101, 102, 103)


def test_on_real_documents(tmp_path: Path, shared_data: Path) -> None:
    corpus = shared_data / "corpus_en.jsonl.xz"
    texts = [document.text for document in islice(read_documents(str(corpus)), 400)]
    (tmp_path / "a.txt").write_text("\n".join(text.replace("\n", " ") for text in texts), "utf-8")
    out = tmp_path / "vocab"
    result = learn_vocabulary(
        VocabOptions(corpus=[str(tmp_path / "a.txt")], out=str(out), size=4000), quiet=True
    )
    assert len(result.tokens) == 4000
    assert result.report["coverage"]["tokens_per_word"] < 1.4
    assert result.report["coverage"]["unknown_tokens"] < 0.001
    theirs, ours = AutoTokenizer.from_pretrained(out), BertTokenizer.from_pretrained(out)
    for text in texts[:50]:
        assert theirs(text, truncation=False)["input_ids"] == ours(text, verbose=False)["input_ids"]
