"""The greedy oracle against a slow twin that scores every choice from scratch, and rouge-score."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from filbert.tasks.oracle import greedy_oracle, ngrams, sentence_values

Words = Sequence[str]


def f_measure(chosen: Sequence[Words], reference: Words, order: int) -> float:
    """ROUGE-N F by its definition (Lin 2004), n-grams within sentences, clipped counts."""
    have: Counter[tuple[str, ...]] = Counter()
    for words in chosen:
        for i in range(len(words) - order + 1):
            have[tuple(words[i : i + order])] += 1
    gold = Counter(tuple(reference[i : i + order]) for i in range(len(reference) - order + 1))
    hits = sum(min(count, have[gram]) for gram, count in gold.items())
    return 2 * hits / max(1, sum(have.values()) + sum(gold.values()))


def slow_oracle(sentences: Sequence[Words], references: Sequence[Words], most: int) -> list[int]:
    best: list[int] = []
    highest = 0.0
    for reference in references:
        chosen: list[int] = []
        reached = 0.0
        while len(chosen) < most:
            tried = [
                (sum(f_measure([sentences[j] for j in [*chosen, i]], reference, n) for n in (1, 2)))
                if i not in chosen
                else -1.0
                for i in range(len(sentences))
            ]
            if not tried or max(tried) <= reached:
                break
            chosen.append(tried.index(max(tried)))
            reached = max(tried)
        if reached > highest:
            best, highest = chosen, reached
    return sorted(best)


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_slow_twin(seed: int) -> None:
    draw = random.Random(seed)
    letters = "abcdefgh"[: draw.randint(2, 8)]

    def words(low: int) -> list[str]:
        return [draw.choice(letters) for _ in range(draw.randint(low, 9))]

    sentences = [words(0) for _ in range(draw.randint(0, 9))]
    references = [words(1) for _ in range(draw.randint(1, 3))]
    for most in (1, 2, 5):
        expected = slow_oracle(sentences, references, most)
        assert greedy_oracle(sentences, references, most=most) == expected


def test_real_abstracts_equal_the_slow_twin(shared_data) -> None:
    from filbert.data.summaries import read_documents

    documents = read_documents(shared_data / "scitldr" / "dev.jsonl").select(range(40))
    assert documents.references is not None
    for sentences, references in zip(documents.sentences, documents.references, strict=True):
        words = [sentence.lower().split() for sentence in sentences]
        gold = [reference.lower().split() for reference in references]
        assert greedy_oracle(words, gold, most=3) == slow_oracle(words, gold, 3)


def test_values_are_those_of_rouge_score(shared_data) -> None:
    pytest.importorskip("rouge_score", reason="the package rouge-score is not installed")
    from filbert.data.summaries import read_documents
    from filbert.tasks.rouge import RougeTokenizer, make_scorer

    documents = read_documents(shared_data / "scitldr" / "dev.jsonl").select(range(15))
    tokenizer, scorer = RougeTokenizer(stem=True), make_scorer(stem=True)
    assert documents.references is not None
    for sentences, references in zip(documents.sentences, documents.references, strict=True):
        got = sentence_values([tokenizer.tokenize(s) for s in sentences],
                              [tokenizer.tokenize(r) for r in references])  # fmt: skip
        found = [[scorer.score(r, s) for r in references] for s in sentences]
        best = [
            max((x["rouge1"].fmeasure + x["rouge2"].fmeasure) / 2 for x in several)
            for several in found
        ]
        np.testing.assert_allclose(got, best, atol=1e-12)


def test_by_hand() -> None:
    words = [["a", "cat", "sat"], ["it", "was", "late"], ["the", "cat", "slept"]]
    # the third alone: 3 of 3 + 4 words, 2 of 2 + 3 pairs: 6/7 + 4/5 = 1.657
    # with the second: 4 of 6 + 4 words, 2 of 4 + 3 pairs: 8/10 + 4/7 = 1.371, which is less
    assert greedy_oracle(words, [["the", "cat", "slept", "late"]], most=2) == [2]
    assert greedy_oracle(words, [["it", "was", "late", "the", "cat", "slept"]], most=3) == [1, 2]
    assert greedy_oracle(words, [["nothing", "alike"]], most=3) == []
    assert greedy_oracle([], [["a"]], most=3) == []


def test_chinese_characters_and_duplicates() -> None:
    sentences = [list("今天下雨"), list("今天下雨"), list("我们在家")]
    assert greedy_oracle(sentences, [list("今天下雨")], most=3) == [0]  # the copy adds nothing
    assert greedy_oracle(sentences, [list("下雨我们在家")], most=3) == [0, 2]


def test_ngrams_are_counted() -> None:
    assert ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}


def test_long_documents_are_fast() -> None:
    import time

    draw = random.Random(1)
    sentences = [[str(draw.randint(0, 500)) for _ in range(25)] for _ in range(2000)]
    begin = time.process_time()
    assert len(greedy_oracle(sentences, [sentences[7] + sentences[900]], most=10)) >= 2
    assert time.process_time() - begin < 2  # 50,000 words; from scratch it takes minutes
