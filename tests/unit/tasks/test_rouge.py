"""ROUGE: rouge-score's own numbers on English, calculation by hand on Chinese, the rule for several
references."""

from __future__ import annotations

import pytest

pytest.importorskip("rouge_score", reason="the package rouge-score is not installed")
from rouge_score.rouge_scorer import RougeScorer

from filbert.errors import FilbertError
from filbert.tasks.rouge import KINDS, RougeTokenizer, make_scorer, rouge_of, rouge_scores

ENGLISH = [
    ("The cats were sitting on the mat.", "A cat sat on the mats, quietly."),
    ("We propose state-of-the-art methods (v2.0) for naïve users.", "Methods; users"),
    ("Running runners ran.", "The runner runs daily: running!"),
]


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize(("target", "summary"), ENGLISH)
def test_english_gives_the_numbers_of_rouge_score(target: str, summary: str, stem: bool) -> None:
    reference = RougeScorer(list(KINDS), use_stemmer=stem).score(target, summary)
    got = rouge_scores([summary], [[target]], stem=stem)
    assert got == {kind: reference[kind].fmeasure for kind in KINDS}


def test_sentences_count_for_rouge_lsum_alone() -> None:
    target, summary = ["A b c.", "D e f."], ["D e x.", "A b y."]
    reference = RougeScorer(list(KINDS)).score("\n".join(target), "\n".join(summary))
    got = rouge_scores([summary], [[target]])
    assert got == {kind: reference[kind].fmeasure for kind in KINDS}
    assert got["rougeLsum"] > got["rougeL"]  # the sentences stand in another order


def test_chinese_by_characters_by_hand() -> None:
    # 我爱北京 against 我在北京: of 4 characters 3 are shared, of 3 pairs one (北京)
    got = rouge_scores(["我爱北京。"], [["我在北京！"]])
    assert got["rouge1"] == pytest.approx(3 / 4)
    assert got["rouge2"] == pytest.approx(1 / 3)
    assert got["rougeL"] == pytest.approx(3 / 4)


def test_mixed_text_keeps_words_and_characters() -> None:
    words = RougeTokenizer().tokenize("用BERT-base模型2024年，OK。한글 かな")
    assert words == [*"用", "bert", "base", *"模型", "2024", *"年", "ok", *"한글かな"]


def test_the_reference_with_the_highest_rouge_1_counts_for_all() -> None:
    # the first has both words but no pair of them, the second one word of two
    references = ["b a", "a c"]
    got = rouge_of("a b", references, scorer=make_scorer())
    assert got["rouge1"] == 1.0 and got["rouge2"] == 0.0
    # rouge-score's own score_multi would take the best of each measure
    assert RougeScorer(["rouge2"]).score_multi(["b a", "a b x y"], "a b")["rouge2"].fmeasure > 0
    assert rouge_of("a b", ["b a", "a b x y"], scorer=make_scorer())["rouge2"] == 0.0


def test_scitldr_is_scored_as_by_another_rouge(shared_data) -> None:
    """py-rouge 1.1 (max_n 2, alpha 0.5, no stems, each text as one sentence), first sentences of
    the first 100 test abstracts, the reference with the highest ROUGE-1."""
    from filbert.data.summaries import read_documents

    documents = read_documents(shared_data / "scitldr" / "test.jsonl").select(range(100))
    assert documents.references is not None
    got = rouge_scores([sentences[0] for sentences in documents.sentences], documents.references)
    assert got["rouge1"] == pytest.approx(0.286973, abs=1e-6)
    assert got["rouge2"] == pytest.approx(0.107561, abs=1e-6)
    assert got["rougeL"] == pytest.approx(0.226750, abs=1e-6)


def test_mean_over_summaries_and_an_empty_one() -> None:
    got = rouge_scores(["a b", ""], [["a b"], ["a b"]])
    assert got == dict.fromkeys(KINDS, 0.5)


def test_mistakes_are_told() -> None:
    with pytest.raises(FilbertError, match="2 summaries but references for 1"):
        rouge_scores(["a", "b"], [["a"]])
    with pytest.raises(FilbertError, match="summary 1 has no reference"):
        rouge_scores(["a", "b"], [["a"], []])
    with pytest.raises(FilbertError, match="no summary to score"):
        rouge_scores([], [])
