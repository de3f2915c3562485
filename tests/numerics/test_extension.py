"""A vocabulary that was extended, the whole way: learned, a corpus prepared with it, pre-training
gone on with; and `transformers` gives the same ids."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizerFast

from filbert.bundle import open_bundle
from filbert.data.learn_vocab import learn_vocabulary
from filbert.data.prepare import prepare
from filbert.data.prepare_options import PrepareOptions
from filbert.data.vocab_options import VocabOptions
from filbert.model.bert import BertForPreTraining
from filbert.model.config import BertConfig
from filbert.text import BertTokenizer
from filbert.train.pretrain import pretrain
from filbert.train.pretrain_base import build_model, old_pieces
from filbert.train.pretrain_options import PretrainOptions

PLAIN = "the patient has a cold , they and the doctor know what to do : cardio graphs over cup s"
CLINICAL = "cardiography cardiographs of the patient : dyspnoea ? naïve hypertension , hypertensive"
CHINESE = "今天天气很好，我们去公园。"
CHINESE_CLINICAL = "患者今天咳嗽，心肌炎，CT检查很好。"


def corpus(path: Path, sentence: str, documents: int = 80) -> Path:
    """JSON lines of documents of four sentences of shuffled words."""
    draw = random.Random(0)
    parts = sentence.split() if " " in sentence else list(sentence)
    joint, end = (" ", " .") if " " in sentence else ("", "。")
    rows = []
    for _ in range(documents):
        sentences = [joint.join(draw.choices(parts, k=12)).capitalize() + end for _ in range(4)]
        rows.append(
            json.dumps({"text": (" " if joint else "").join(sentences)}, ensure_ascii=False)
        )
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def base_model(folder: Path, sentence: str, *, rows: int | None = None, **options: Any) -> Path:
    """A small BERT with a vocabulary learned from a sentence; `rows`: of its embedding."""
    given = {"size": 120, "min_frequency": 1, **options}
    text = corpus(folder.with_suffix(".jsonl"), sentence)
    learn_vocabulary(VocabOptions(corpus=[str(text)], out=str(folder), **given), quiet=True)
    size = len(BertTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=rows or size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("uncased", PLAIN, CLINICAL),
        ("cased", PLAIN, CLINICAL),
        ("chinese", CHINESE, CHINESE_CLINICAL),
    ],
)
def test_the_whole_way(tmp_path: Path, kind: str, old: str, new: str) -> None:
    pytest.importorskip("rensa", reason="pip install 'filbert[pretrain]'")
    base = base_model(tmp_path / "base", old, kind=kind)
    text = corpus(tmp_path / "new.jsonl", new)
    before = BertTokenizer.from_pretrained(base)
    size = len(before) + 12
    options = VocabOptions(
        corpus=[str(text)], extend=str(base), size=size, out=str(tmp_path / "longer"),
        kind="chinese" if kind == "chinese" else None,
    )  # fmt: skip
    report = learn_vocabulary(options, quiet=True).report
    now, then = report["coverage"], report["coverage_before"]
    if kind != "chinese":  # there, words of several tokens come in the place of [UNK]
        assert now["tokens_per_word"] < then["tokens_per_word"]
    assert now["unknown_tokens"] < then["unknown_tokens"]
    assert report["options"]["extend"] == "base"
    after = BertTokenizer.from_pretrained(tmp_path / "longer")
    assert len(after) == size
    words = before.get_vocab()
    assert {w: n for w, n in after.get_vocab().items() if n < len(before)} == words
    assert after.settings == before.settings

    shards = tmp_path / "shards"
    prepare(
        PrepareOptions(
            corpus=[str(text)], vocab=str(tmp_path / "longer"), out=str(shards), holdout=0.2,
            near=0, processes=1,
        ),
        quiet=True,
    )  # fmt: skip
    result = pretrain(
        PretrainOptions(
            base=str(base), data=str(shards), out=str(tmp_path / "run"), steps=3, lr=1e-4,
            max_length=32, batch_size=4, batch_tokens=128, precision="float32", tensorboard=False,
            eval_samples=8, threads=1,
        ),
        quiet=True,
    )  # fmt: skip
    assert result.notes[0] == f"12 words were added to the vocabulary of {base}"
    bundle = open_bundle(tmp_path / "run")
    assert bundle.model.config.vocab_size == size
    theirs = BertTokenizerFast.from_pretrained(tmp_path / "run")
    texts = [old, new, *map(str.upper, (old, new)), "Dyspnoea、患者：Naïve [MASK]", ""]
    assert theirs(texts)["input_ids"] == bundle.tokenizer(texts)["input_ids"]
    assert bundle.tokenizer(texts)["input_ids"] == after(texts)["input_ids"]
    assert max(map(max, theirs(texts)["input_ids"])) >= len(before)  # new words are in use


def test_rows_of_new_words(tmp_path: Path) -> None:
    """The mean of the old pieces, of a piece within words those within words; spare rows at the end
    of a base are taken first, and count as new words all the same."""
    base = base_model(tmp_path / "base", PLAIN, size=100)
    before = BertTokenizer.from_pretrained(base)
    count = len(before)
    old = before.get_vocab()
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=count + 2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertForPreTraining(config).save_pretrained(base)
    names = sorted(old, key=old.__getitem__)
    new = ["##atient", "cups", "鸟"]
    given = PretrainOptions(data="s", out="o", base=str(base), steps=1, max_length=32)
    was = BertForPreTraining.from_pretrained(base).state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    expected = {
        "##atient": old_pieces("##atient", before, old),
        "cups": before("cups", add_special_tokens=False)["input_ids"],
    }
    assert [names[i] for i in expected["##atient"]] != before.tokenize("atient")
    assert "".join(names[i].removeprefix("##") for i in expected["##atient"]) == "atient"
    assert all(names[i].startswith("##") for i in expected["##atient"])
    for added in (2, 3):  # two fit into the spare rows, three do not
        longer = BertTokenizer([*names, *new[:added]])
        model, told = build_model(given, longer)
        now = model.state_dict()
        assert told == [f"{added} words were added to the vocabulary of {base}"]
        assert now[name].shape[0] == now["cls.predictions.bias"].shape[0] == count + added
        assert torch.equal(now[name][:count], was[name][:count])
        for number, word in enumerate(new[:2]):
            mean = was[name][expected[word]].mean(0)
            assert torch.allclose(now[name][count + number], mean)
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_a_word_that_was_unknown_has_no_pieces(tmp_path: Path) -> None:
    before = BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "b", "é"])
    known = before.get_vocab()
    assert old_pieces("ab", before, known) == [5, 6]
    assert old_pieces("##bb", before, known) == [6, 6]
    assert old_pieces("##a", before, known) == [5]  # known as a word alone
    assert old_pieces("##ba", before, known) == []
    assert old_pieces("z", before, known) == old_pieces("##", before, known) == []
