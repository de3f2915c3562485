"""`filbert vocab`: the folder, its report, the same bytes again, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from filbert.data import learn_vocab, meter
from filbert.data.learn_vocab import FILES, learn_vocabulary
from filbert.data.meter import Meter
from filbert.data.vocab_options import VocabOptions
from filbert.data.vocab_report import coverage, longest_tokens, most_split
from filbert.errors import FilbertError, UsageError
from filbert.text import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENGLISH = "the good film was good . the bad film was not the best film , the end"
CHINESE = "今天天气很好，今天很好。明天天气不好。"


def corpus(folder: Path, *, documents: int = 60, sentence: str = ENGLISH) -> Path:
    """JSON lines of shuffled words of a sentence."""
    draw = random.Random(0)
    parts = sentence.split() if " " in sentence else list(sentence)
    joint = " " if " " in sentence else ""
    lines = [
        json.dumps({"text": joint.join(draw.choices(parts, k=30)).capitalize()}, ensure_ascii=False)
        for _ in range(documents)
    ]
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def learn(path: Path | str, out: Path | str, **options: Any) -> learn_vocab.VocabResult:
    given = {"corpus": [str(path)], "out": str(out), "size": 60, **options}
    return learn_vocabulary(VocabOptions(**given), quiet=True)


def refusal(path: Path | str, out: Path | str, **options: Any) -> str:
    with pytest.raises(FilbertError) as caught:
        learn(path, out, **options)
    return str(caught.value)


# --- what comes out ------------------------------------------------------------------------------


def test_a_folder_that_opens(tmp_path: Path) -> None:
    result = learn(corpus(tmp_path), tmp_path / "new" / "vocab", unused=3, special=["[E]"])
    assert {path.name for path in result.out.iterdir()} == FILES
    assert [path.name for path in result.out.parent.iterdir()] == ["vocab"]
    tokenizer = BertTokenizer.from_pretrained(result.out)
    start = ["[PAD]", "[unused1]", "[unused2]", "[unused3]", *SPECIAL[1:], "[E]", ",", ".", "a"]
    assert (result.out / "vocab.txt").read_text("utf-8").split("\n")[:12] == start
    assert tokenizer.convert_ids_to_tokens(list(range(12))) == start
    assert tokenizer.tokenize("The GOOD film [E].") == ["the", "good", "film", "[E]", "."]
    assert tokenizer.do_lower_case


def test_cased_and_chinese(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    cased = learn(path, tmp_path / "cased", kind="cased", size=100, min_frequency=1)
    assert BertTokenizer.from_pretrained(cased.out).do_lower_case is False
    assert any(token[0].isupper() for token in cased.tokens)
    assert not any(token[0].isupper() for token in learn(path, tmp_path / "uncased").tokens)
    path = corpus(tmp_path, sentence=CHINESE)
    chinese = learn(path, tmp_path / "zh", kind="chinese")
    assert set(chinese.tokens) == {*SPECIAL, *CHINESE}  # no ## pieces: each character is a word
    found = chinese.report["coverage"]
    assert found["tokens_per_character"] == found["tokens_per_word"] == found["whole_words"] == 1


def test_the_same_bytes_again_and_after_another(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    learn(path, tmp_path / "a")
    learn(path, tmp_path / "b", size=40)
    learn(path, tmp_path / "b", overwrite=True)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_report(tmp_path: Path) -> None:
    lines = [{"text": "ab ab ab ab abc q"}, {"text": ""}]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    result = learn(path, tmp_path / "v")
    report = json.loads((tmp_path / "v" / "vocab_report.json").read_text("utf-8"))
    assert report == result.report
    # ab 4, abc 1, q 1; letters seen twice: a, b; so abc and q are [UNK], and q is no letter
    assert result.tokens[5:] == ["a", "b", "##b", "ab"]
    counts = ("documents", "empty_documents", "words", "letters", "letters_left_out")
    assert [report[name] for name in counts] == [1, 1, 6, 2, 2]
    assert report["words_left_out"] == 2
    assert report["coverage"] == {
        **{"words": 6, "tokens": 6, "characters": 12, "tokens_per_word": 1.0},
        **{"tokens_per_character": 0.5, "unknown_tokens": round(2 / 6, 6)},
        **{"unknown_characters": round(4 / 12, 6), "whole_words": round(4 / 6, 6)},
        "frequent_unknown": ["abc", "q"],
    }
    assert "1 documents of those learned from" in report["sample"]
    assert "60 tokens were asked for" in report["notes"][0]
    shown = str(result)
    assert "33.333% of tokens" in shown
    assert "often unknown       abc q" in shown


def test_coverage_by_hand() -> None:
    tokenizer = BertTokenizer([*SPECIAL, "un", "##do", "##ing", "do", "x"])
    words = {"undoing": 2, "do": 5, "zz": 1, "undo": 1}
    found = coverage(tokenizer, words)
    assert (found["words"], found["tokens"]) == (9, 2 * 3 + 5 + 1 + 2)
    assert found["characters"] == 14 + 10 + 2 + 4
    assert found["tokens_per_word"] == round(14 / 9, 6)
    assert found["whole_words"] == round(5 / 9, 6)
    assert found["unknown_tokens"] == round(1 / 14, 6)
    assert most_split(tokenizer, words) == [["un", "##do", "##ing"], ["un", "##do"]]
    assert longest_tokens(["[CLS]", "##doing", "a", "bb", "ab"]) == ["ab", "bb", "a"]
    assert coverage(tokenizer, {})["tokens_per_word"] == 0


def test_a_sample_is_chosen_by_the_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = [f"word{number} and more" for number in range(2000)]
    path.write_text("\n".join(texts), "utf-8")
    part = learn(path, tmp_path / "a", sample=0.3)
    assert 500 < part.report["documents"] < 700  # 600 wanted, deviation 20
    path.write_text("\n".join(reversed(texts)), "utf-8")
    again = learn(path, tmp_path / "b", sample=0.3)
    assert again.tokens == part.tokens
    assert again.report == part.report


def test_notes(tmp_path: Path) -> None:
    path = corpus(tmp_path, sentence=CHINESE)
    notes = learn(path, tmp_path / "v").report["notes"]
    assert any("--kind chinese" in note for note in notes)


def test_letters_of_chinese_have_three_quarters_of_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(0x4E00 + i) * (60 - i) for i in range(50)), "utf-8")
    result = learn(path, tmp_path / "v", kind="chinese", size=40)
    assert result.tokens[5:] == [chr(0x4E00 + i) for i in range(30)]
    result = learn(path, tmp_path / "w", kind="chinese", size=40, limit_alphabet=5)
    assert result.tokens[5:] == [chr(0x4E00 + i) for i in range(5)]


# --- more words for a model -----------------------------------------------------------------------


def test_an_extended_vocabulary_begins_with_the_old_one(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    base = learn(path, tmp_path / "base", size=40, unused=3, special=["[E]"])
    more = corpus(tmp_path, sentence="the goodish filmgoer and bestest filmgoers , rebadge")
    result = learn(more, tmp_path / "v", size=50, extend=str(base.out))
    assert result.tokens[: len(base.tokens)] == base.tokens
    assert len(result.tokens) == result.report["tokens"] == 50
    assert result.report["new_tokens"] == 50 - len(base.tokens)
    assert result.report["options"]["extend"] == "base"
    assert result.report["options"]["kind"] == "uncased"
    opened = BertTokenizer.from_pretrained(result.out)
    assert opened.settings == BertTokenizer.from_pretrained(base.out).settings
    assert (
        opened("the [E]")["input_ids"]
        == (BertTokenizer.from_pretrained(base.out)("the [E]")["input_ids"])
    )
    found, before = result.report["coverage"], result.report["coverage_before"]
    assert found["unknown_tokens"] < before["unknown_tokens"]
    assert f"(before: {before['unknown_tokens']:.3%})" in str(result)
    again = learn(more, tmp_path / "w", size=50, extend=str(base.out))
    assert again.tokens == result.tokens
    for name in FILES:
        assert (again.out / name).read_bytes() == (result.out / name).read_bytes()


@pytest.mark.parametrize(
    ("base", "options", "told"),
    [
        ({}, {"kind": "cased"}, "contradicts .*base, which lower-cases text; leave --kind out"),
        ({"kind": "cased"}, {"kind": "uncased"}, "which keeps capitals"),
        ({"kind": "cased"}, {"kind": "chinese"}, "which keeps capitals"),
        ({}, {"size": 20}, "no room behind the .* tokens of .*base; give a larger one, such as"),
        ({}, {"unused": 5}, "--unused does not go with --extend"),
        ({}, {"special": ["[E]"]}, "--special does not go with --extend"),
        ({}, {"min_frequency": 100_000}, "covers it"),
        ({}, {"extend": "nowhere/model"}, "nowhere/model"),
    ],
)
def test_an_extension_that_cannot_be(
    tmp_path: Path, base: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    path = corpus(tmp_path)
    learn(path, tmp_path / "base", size=40, **base)
    with pytest.raises(FilbertError, match=told):
        learn(path, tmp_path / "v", **{"size": 80, "extend": str(tmp_path / "base"), **options})
    assert not (tmp_path / "v").exists()


# --- what is refused -----------------------------------------------------------------------------


def test_folders_that_are_not_written_to(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    assert "is a file" in refusal(path, path)
    learn(path, tmp_path / "v")
    before = (tmp_path / "v" / "vocab.txt").read_bytes()
    assert "--overwrite replaces" in refusal(path, tmp_path / "v")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.doc").write_text("years of work")
    assert "thesis.doc" in refusal(path, other, overwrite=True)
    assert "choose another folder" in refusal(path, tmp_path, overwrite=True)
    (tmp_path / "v" / "vocab.txt").write_bytes(before)
    assert [p.name for p in other.iterdir()] == ["thesis.doc"]
    learn(path, tmp_path / "v", overwrite=True, size=35)
    assert (tmp_path / "v" / "vocab.txt").read_bytes() != before


def test_the_vocabulary_in_place_is_not_read_and_replaced_at_once(tmp_path: Path) -> None:
    learn(corpus(tmp_path), tmp_path / "v")
    assert "which is read" in refusal(tmp_path / "v" / "vocab.txt", tmp_path / "v", overwrite=True)


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus(tmp_path)
    learn(path, tmp_path / "v")
    before = {p.name: p.read_bytes() for p in (tmp_path / "v").iterdir()}

    def full(*_: Any) -> None:
        raise FilbertError("the disk is full")

    monkeypatch.setattr(learn_vocab, "write_file", full)
    assert "disk is full" in refusal(path, tmp_path / "v", overwrite=True, size=35)
    assert {p.name: p.read_bytes() for p in (tmp_path / "v").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "v"]


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (b"", {}, "no words: 1 files, 0 documents, of which 0 are empty"),
        (b"\n \n", {"document": "line"}, "0 documents, of which 2 are empty"),
        (b"\x00\x01", {}, "a NUL character"),
        (b"\x80abc", {}, "not utf-8"),
        (b"a", {}, "none occurs 2 times"),
        (b"a b c a b c", {"size": 7}, "no room"),
        (b"a a", {"size": 6, "unused": 1}, "no room beside 6 special"),
        (b"a a", {"special": ["[MASK]"]}, "more than once: [MASK]"),
        (b"a a", {"special": ["a b"]}, "without spaces"),
        (b"a a", {"text_column": "text"}, "plain text, which has no columns"),
        (b"a a", {"encoding": "utf-99"}, "unknown --encoding"),
    ],
)
def test_a_corpus_that_gives_no_vocabulary(
    tmp_path: Path, content: bytes, options: dict[str, Any], told: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert told in refusal(path, tmp_path / "v", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_corpus_of_one_letter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a a a")
    result = learn(tmp_path / "a.txt", tmp_path / "v")
    assert result.tokens == [*SPECIAL, "a"]
    assert "60 tokens were asked for" in str(result)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"corpus": []}, {"kind": "latin"}, {"sample": 0}, {"sise": 9}]
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VocabOptions(**{"corpus": ["a"], "out": "b", **options})


# --- progress ------------------------------------------------------------------------------------


def test_progress_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meter, "LINE_SECONDS", 0.0)
    path = corpus(tmp_path)
    options = VocabOptions(corpus=[str(path)], out=str(tmp_path / "v"), size=60)
    learn_vocabulary(options, quiet=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "counting words: 100% of" in printed.err
    assert "learning pieces from 10 distinct words" in printed.err
    learn_vocabulary(options.model_copy(update={"overwrite": True}), quiet=True)
    assert capsys.readouterr().err == ""


def test_the_meter_goes_through_several_files(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    files[0].write_bytes(b"x" * 30)
    files[1].write_bytes(b"x" * 70)
    with Meter("reading", list(map(str, files)), quiet=True) as seen:
        seen.at(10)
        assert (seen.done, seen.total) == (10, 100)
        seen.next_file()
        assert seen.done == 30
        seen.at(20)
        assert seen.done == 50
        seen.next_file()
    assert seen.done == 100
    with pytest.raises(FilbertError, match="cannot read"):
        Meter("reading", [str(tmp_path / "none")], quiet=True)


def test_the_bar_of_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    bar = Meter("reading", [str(path)], quiet=False)
    bar._console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with bar:
        bar.at(500)
        bar.message("half of it")
        bar.next_file()
    shown = bar._console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.0/1.0 kB" in shown
    assert "half of it" in shown


def test_a_meter_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rate and time left are of this call: 2 MB in 2 s, and 4 MB of 10 are left."""
    path, now = tmp_path / "a", 100.0
    path.write_bytes(b"x" * 10_000_000)
    monkeypatch.setattr(meter.time, "monotonic", lambda: now)
    with Meter("prepare", [str(path)], quiet=False, resumed=True) as seen:
        now = 130.0
        seen.at(4_000_000, found="7 documents")
        now = 161.0
        seen._started = 159.0
        seen.at(6_000_000, found="9 documents")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "prepare: 40% of 10.0 MB, 7 documents, 0.0 MB/s, time left unknown"
    assert second == "prepare: 60% of 10.0 MB, 9 documents, 1.0 MB/s, 4 s left"
    bar = Meter("prepare", [str(path)], quiet=False, resumed=True)
    bar._console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with bar:
        bar.at(4_000_000, found="7 documents")
        bar.at(6_000_000, found="9 documents")
    assert "prepare: 9 documents" in bar._console.file.getvalue()  # type: ignore[attr-defined]


def test_a_link_is_followed(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    learn(path, tmp_path / "link")
    assert {p.name for p in (tmp_path / "real").iterdir()} == FILES
    assert (tmp_path / "link").is_symlink()


def test_usage_mistakes_leave_with_two() -> None:
    with pytest.raises(UsageError, match="no file, folder or glob nowhere"):
        learn("nowhere.txt", "out")


def test_the_report_names_no_folder(tmp_path: Path) -> None:
    report = learn(corpus(tmp_path), tmp_path / "v").report
    assert report["corpus"] == ["corpus.jsonl"]
    assert str(tmp_path) not in (tmp_path / "v" / "vocab_report.json").read_text("utf-8")


# --- what is to blame ----------------------------------------------------------------------------


def test_a_small_sample_is_blamed_for_an_empty_one(tmp_path: Path) -> None:
    told = refusal(corpus(tmp_path), tmp_path / "v", sample=1e-9)
    assert "--sample 1e-09 took 0 of the 60 documents" in told
    assert "larger share" in told


def test_a_limited_alphabet_is_blamed_for_few_pieces(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    (note,) = learn(path, tmp_path / "v", size=500, limit_alphabet=5).report["notes"]
    assert "than the 5 of --limit-alphabet" in note
    assert "--min-frequency" not in note
    (note,) = learn(path, tmp_path / "w", size=500).report["notes"]
    assert "--min-frequency" in note
    assert "(--limit-alphabet)" in refusal(path, tmp_path / "x", limit_alphabet=1)


def test_a_column_of_sources_is_no_matter(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    rows = [json.loads(line) | {"source": {"id": 3}} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert learn(path, tmp_path / "v").report["documents"] == 60
