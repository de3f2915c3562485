"""ROUGE: how much of the reference summaries a summary repeats, counted by `rouge-score`.

The package is Google's port of Lin's ROUGE-1.5.5 and does all of the counting; this file decides
what the words are and which of several references counts.

- Words are those of rouge-score: lower case, runs of a-z and 0-9, everything else between words. It
  would so drop Chinese altogether and score it 0; here each Chinese, Japanese or Korean character
  is a word of its own. In text without them the words are exactly those of rouge-score.
- Of several references the one with the highest ROUGE-1 counts, for all measures, as Cachola et al.
  2020 score SciTLDR (https://github.com/allenai/scitldr, evaluate.py). That file runs ROUGE-1.5.5
  through their files2rouge, whole texts in lower case, so their ROUGE-L is `rougeL`; whether with
  stems (`stem=True`), see docs/summarize.md.
- A summary may be a list of its sentences; ROUGE-Lsum compares sentence by sentence.

    >>> scores = rouge_scores(["the cat sat"], [["the cat ran", "a dog"]])
    >>> round(scores["rouge1"], 4), round(scores["rouge2"], 4)
    (0.6667, 0.5)

Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from filbert.errors import FilbertError, missing_extra

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Summary = str | Sequence[str]  # a text, or its sentences


class RougeTokenizer:
    """The words that ROUGE counts, in the form in which rouge-score takes a tokenizer.

    stem: cut English endings off with Porter's stemmer, as ROUGE-1.5.5 does with `-m`.
    """

    def __init__(self, *, stem: bool = False) -> None:
        try:
            from rouge_score.tokenizers import DefaultTokenizer
        except ModuleNotFoundError:
            raise missing_extra("rouge-score", "tasks") from None
        self._words = DefaultTokenizer(stem)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in order."""
        if text.isascii():
            return list(self._words.tokenize(text))
        words: list[str] = []
        for alone, run in itertools.groupby(text, key=is_word_alone):
            part = list(run)
            words += part if alone else self._words.tokenize("".join(part))
        return words


def is_word_alone(character: str) -> bool:
    """Whether a character counts as a word: Han, kana and Hangul, not their punctuation."""
    return character >= "\u3040" and (
        "\u3040" <= character <= "\u30ff"
        or "\u3400" <= character <= "\u9fff"
        or "\uac00" <= character <= "\ud7a3"
        or "\uf900" <= character <= "\ufaff"
        or "\U00020000" <= character <= "\U0003ffff"
    )


def make_scorer(*, stem: bool = False) -> RougeScorer:
    """rouge-score's scorer of all `KINDS` with the words above; make it once for many texts.

    Raises `FilbertError` where the package is not installed.
    """
    tokenizer = RougeTokenizer(stem=stem)
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(KINDS), tokenizer=tokenizer)


def rouge_of(
    summary: Summary, references: Sequence[Summary], *, scorer: RougeScorer
) -> dict[str, float]:
    """F-measures (0 to 1) of one summary, by the reference whose ROUGE-1 is highest (the first of
    equals). Raises `FilbertError` if there is no reference."""
    if not references:
        raise FilbertError("a summary without a reference cannot be scored; give at least one")
    found: list[dict[str, Any]] = [
        scorer.score(_lines(reference), _lines(summary)) for reference in references
    ]
    best = max(found, key=lambda scores: scores["rouge1"].fmeasure)
    return {kind: float(best[kind].fmeasure) for kind in KINDS}


def rouge_scores(
    summaries: Sequence[Summary], references: Sequence[Sequence[Summary]], *, stem: bool = False
) -> dict[str, float]:
    """Mean F-measures, 0 to 1, of many summaries: `rouge1`, `rouge2`, `rougeL`, `rougeLsum`.

    references: one list for each summary, of one or several references. An empty summary scores 0.
    Raises `FilbertError` for lists of different lengths, none at all, or a summary without a
    reference (its number is named, from 0).
    """
    if len(summaries) != len(references):
        raise FilbertError(
            f"{len(summaries)} summaries but references for {len(references)}; each needs its own"
        )
    if not summaries:
        raise FilbertError("there is no summary to score")
    lacking = next((i for i, several in enumerate(references) if not several), None)
    if lacking is not None:
        raise FilbertError(f"summary {lacking} has no reference to be scored against")
    scorer = make_scorer(stem=stem)
    found = [
        rouge_of(summary, several, scorer=scorer)
        for summary, several in zip(summaries, references, strict=True)
    ]
    return {kind: statistics.fmean(scores[kind] for scores in found) for kind in KINDS}


def _lines(summary: Summary) -> str:
    """One sentence a line, which is where ROUGE-Lsum looks for sentences."""
    if isinstance(summary, str):
        return summary
    return "\n".join(" ".join(sentence.split()) for sentence in summary)
