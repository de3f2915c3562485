"""Oracle labels: the sentences of a document that together come nearest to its summary, by ROUGE.

Extractive summarisation learns from them, and their ROUGE is the ceiling of what any choice of so
many sentences can reach (nearly: the search is greedy). Nallapati et al. 2017 (SummaRuNNer,
arXiv 1611.04230, section 2.3), in the form of Liu and Lapata 2019 (arXiv 1908.08345): beginning
with none, add the sentence that raises ROUGE-1 F + ROUGE-2 F most, until none raises it.

Bigrams do not reach over the end of a sentence. Of several references each is tried, and the one
with the highest score counts. Nothing is scored from scratch: all that a sentence can add to the
words and bigrams in common is counted at once for all sentences, with numpy, at each step.

    words = [["a", "cat", "sat"], ["it", "was", "late"], ["the", "cat", "slept"]]
    greedy_oracle(words, [["the", "cat", "slept", "late"]], most=2)        # [2]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Words = Sequence[str]
ORDERS = (1, 2)  # of the n-grams whose F-measures are summed


def ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs."""
    return Counter(zip(*(words[i:] for i in range(order)), strict=False))


class _Common:
    """N-grams of one order that sentences have in common with a reference, as arrays."""

    def __init__(self, sentences: Sequence[Words], reference: Words, order: int) -> None:
        gold = ngrams(reference, order)
        number = {gram: index for index, gram in enumerate(gold)}
        self.total = gold.total()
        self.sizes = np.asarray([max(0, len(words) - order + 1) for words in sentences], np.int64)
        self.wanted = np.fromiter(gold.values(), np.int64, len(gold))
        owners: list[int] = []
        grams: list[int] = []
        for owner, words in enumerate(sentences):
            for gram in zip(*(words[i:] for i in range(order)), strict=False):
                if gram in number:
                    owners.append(owner)
                    grams.append(number[gram])
        # (n,) sentence and n-gram of each pair that occurs, and how often it does
        width = max(1, len(gold))
        pairs, self.counts = np.unique(
            np.asarray(owners, np.int64) * width + np.asarray(grams, np.int64), return_counts=True
        )
        self.owners, self.grams = np.divmod(pairs, width)
        self.chosen = np.zeros(len(gold), np.int64)  # of each n-gram in what is chosen
        self.size = 0  # n-grams in what is chosen

    def f_if_added(self) -> NDArray[np.float64]:
        """(sentences,) the F-measure if that sentence were chosen too."""
        before = np.minimum(self.chosen, self.wanted)
        more = np.minimum(self.chosen[self.grams] + self.counts, self.wanted[self.grams])
        gains = np.bincount(
            self.owners, weights=more - before[self.grams], minlength=len(self.sizes)
        )
        sizes = self.size + self.sizes + self.total
        return 2 * (before.sum() + gains) / np.maximum(sizes, 1)

    def add(self, sentence: int) -> None:
        """Choose a sentence."""
        mine = self.owners == sentence
        self.chosen[self.grams[mine]] += self.counts[mine]
        self.size += int(self.sizes[sentence])


def greedy_oracle(
    sentences: Sequence[Words], references: Iterable[Words], *, most: int
) -> list[int]:
    """The numbers of the chosen sentences, in the order of the document; at most `most`.

    sentences: of a document, as words (`filbert.tasks.rouge.RougeTokenizer`); references: likewise.
    Equal gains: the earlier sentence; equal references: the first. Empty where no sentence has a
    word in common with a reference.
    """
    best: list[int] = []
    highest = 0.0
    for reference in references:
        chosen, reached = _greedy(sentences, reference, most)
        if reached > highest:
            best, highest = chosen, reached
    return sorted(best)


def _greedy(sentences: Sequence[Words], reference: Words, most: int) -> tuple[list[int], float]:
    parts = [_Common(sentences, reference, order) for order in ORDERS]
    chosen: list[int] = []
    reached = 0.0
    while len(chosen) < min(most, len(sentences)):
        scores = sum((part.f_if_added() for part in parts), np.zeros(len(sentences)))
        scores[chosen] = -1.0
        sentence = int(scores.argmax())
        if scores[sentence] <= reached:
            break
        chosen.append(sentence)
        reached = float(scores[sentence])
        for part in parts:
            part.add(sentence)
    return chosen, reached


def sentence_values(sentences: Sequence[Words], references: Iterable[Words]) -> NDArray[np.float64]:
    """(sentences,) float64, 0 to 1: how good each sentence alone would be as the summary, the mean
    of its ROUGE-1 F and ROUGE-2 F against the nearest reference."""
    best = np.zeros(len(sentences))
    for reference in references:
        parts = [_Common(sentences, reference, order).f_if_added() for order in ORDERS]
        best = np.maximum(best, sum(parts, np.zeros(len(sentences))) / len(ORDERS))
    return best
