"""`filbert prepare --inspect`: the samples it shows are those that training draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert import cli
from filbert.data.samples import Sampler
from filbert.tasks import pretrain
from filbert.tasks.inspect_shards import as_text, line_of
from filbert.text import BertTokenizer
from filbert.train.parallel import World
from filbert.train.pretrain_inspect import inspect_samples
from filbert.train.pretrain_options import InspectOptions, PretrainOptions
from filbert.train.pretrain_plan import make, open_phases
from tests.tiny_shards import tiny_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("inspect") / "shards")


def inspected(shards: Path, *, count: int, **options: Any) -> dict[str, Any]:
    given = InspectOptions(data=str(shards), out="", steps=1, max_length=32, **options)
    return inspect_samples(given, count=count)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code, and what was told."""
    with pytest.raises(SystemExit) as left:
        cli.main(["prepare", *words])
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out + told.err


def test_it_counts_the_corpus_and_shows_samples(shards: Path) -> None:
    found = inspected(shards, count=4)
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
    sampler = Sampler(opened.split("train"), cls_id=2, sep_id=3, max_length=32, seed=7)
    for shown in inspected(shards, count=6, seed=7)["samples"]:
        packed = sampler.pack(sampler.samples(np.array([shown["number"]])))
        plain = tokenizer.convert_ids_to_tokens(packed.input_ids.tolist())
        mended = [shown["hidden"].get(n, token) for n, token in enumerate(shown["tokens"])]
        assert mended == plain
        label = int(packed.labels[0])
        assert shown["pair_label"] == (None if label == -100 else label)


def test_a_sample_that_a_run_named_is_found_again(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the options of the run, typed or out of its recipe; far beyond the first pass."""
    options = {
        "objective": "sentence_order", "masking": "span", "mask_rate": 0.4, "short_prob": 0.5,
        "max_length": 48, "seed": 5,
    }  # fmt: skip
    given = PretrainOptions(data=str(shards), out="o", budget="5m", **options)
    opened = pretrain.read(shards)
    tokenizer = BertTokenizer.from_pretrained(opened.vocab)
    phases, rule = open_phases(given, opened, tokenizer)
    batches = make(phases[0].sampler, rule, 123_456, 5, 1000, World())
    expected = [shown for batch in batches for shown in pretrain.decode(batch, tokenizer)]
    expected.sort(key=lambda sample: sample["number"])
    assert [sample["number"] for sample in expected] == list(range(123_456, 123_461))
    recipe = tmp_path / "recipe.toml"
    lines = {**options, "budget": "5m", "data": "elsewhere", "out": "o"}
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    typed = [
        word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)
    ]
    for words in (typed, ["--recipe", recipe]):
        code, told = run(
            capsys, "--inspect", str(shards), "--sample", "123456", "--json", *map(str, words)
        )  # fmt: skip
        assert code == 0, told
        # JSON has texts for keys
        assert json.loads(told)["samples"] == json.loads(json.dumps(expected))


def test_options_that_do_not_belong_together_are_told(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["--inspect", str(shards), "--near", "0.5"], "--near cannot stand beside --inspect"),
        (
            ["corpus/", "--inspect", str(shards)],
            "CORPUS cannot stand beside --inspect, which takes",
        ),
        (["--verify", str(shards), "--seed", "1"], "beside --verify, which takes no other option"),
        (
            ["corpus/", "--vocab", "v", "--out", "o", "--sample", "3"],
            "--sample goes with --inspect",
        ),
        (["--inspect", str(shards), "--mask-rate", "2"], "--mask-rate 2.0: Input should be less"),
        (["--inspect", str(shards), "--mix", "foo=2"], "no source 'foo'"),
    ):
        code, found = run(capsys, *words)
        assert code == 2
        assert told in " ".join(found.split())


def test_a_single_document_is_shown_without_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tiny_shards(tmp_path / "shards", documents=2, dev_documents=2)
    manifest = json.loads((shards / "manifest.json").read_text())
    gone = manifest["shards"].pop(1)  # one of the two training shards, of a document each
    for key in ("documents", "sentences", "tokens"):
        manifest["counts"][key] -= gone[key]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    code, told = run(capsys, "--inspect", str(shards))
    assert (code, told.count("one segment")) == (0, 5)
    code, told = run(capsys, "--inspect", str(shards), "--objective", "next_sentence")
    assert code == 2
    assert "there is 1 document" in " ".join(told.split())


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
