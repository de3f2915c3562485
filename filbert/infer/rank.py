"""Rank texts for a query by a model that compares two texts.

    filbert rank runs/pairs "how do I reset my card" --file answers.txt --top 3
    filbert rank runs/pairs --data judged.tsv             # MRR, nDCG, recall

    ranker = Ranker(load("runs/pairs"))
    ranker("how do I reset my card", ["Call us.", "Choose reset in the menu."])

For many texts let `filbert search` find some tens of them first: here every text is read together
with the query, which is slower and more exact.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.bundle import what_fits
from filbert.data.examples import stream_texts
from filbert.errors import FilbertError, UsageError
from filbert.infer.predict import WINDOW, Classifier, check_rows, load, text_problem, windows
from filbert.infer.rank_options import RankOptions
from filbert.tasks import rank


class Ranker:
    """A classifier of pairs that puts texts in order. `label`: which of its labels says that a text
    fits; a regression has none, and of labels such as 0 and 1 it is plain."""

    def __init__(self, classifier: Classifier, *, label: str | None = None) -> None:
        if not isinstance(classifier, Classifier):
            raise UsageError(
                "ranking needs a model that compares two texts (filbert train classify "
                f"--pair-column), got one of the task {classifier.manifest.task}. "
                f"{what_fits(classifier.folder, classifier.manifest)}"
            )
        if not classifier.manifest.pair and (classifier.folder / "filbert.json").is_file():
            raise UsageError(
                f"{classifier.folder} was trained on single texts; ranking needs a model that "
                "compares two (filbert train classify --pair-column). "
                f"{what_fits(classifier.folder, classifier.manifest)}"
            )
        self.classifier = classifier
        self.column = rank.label_of(classifier.manifest, label)

    def __call__(self, query: str, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The texts in order, best first: `{"place", "score", "text"}`, `place` in `texts` from 0.

        Texts of equal score keep their order. Raises `FilbertError` for what is no text.
        """
        if told := text_problem(query):
            raise FilbertError(f"query: {told}")
        for place, text in enumerate(texts):
            if told := text_problem(text):
                raise FilbertError(f"item {place}: {told}")
        values = self.scores([(query, text) for text in texts])
        order = np.argsort(-values, kind="stable")
        return [{"place": int(i), "score": float(values[i]), "text": texts[i]} for i in order]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """(n,) the score of each (query, text)."""
        logits = self.classifier.logits([a for a, _ in pairs], [b for _, b in pairs])
        return rank.decode(logits, self.classifier.manifest, self.column)

    def evaluate(self, data: str | PathLike[str], **reading: Any) -> dict[str, Any]:
        """Recall, MRR and nDCG on judged rows (query, text, relevance); see `rank.score`."""
        judged = rank.read(data, **reading)
        began = time.monotonic()
        scores = rank.score(self.scores(judged.pairs), judged)
        seconds = round(time.monotonic() - began, 3)
        left_out = scores.pop("left_out")
        return {"data": judged.source, "rows": len(judged.pairs), "left_out": left_out,
                "scores": scores, "seconds": seconds}  # fmt: skip


def rank_file(ranker: Ranker, options: RankOptions) -> list[dict[str, Any]]:
    """The texts of a file in order: `{"row", "score", "text"}`, rows from 1; the best
    `options.top`, if that is set. Empty rows are left out. In memory are no more than `top` texts
    and a block of others."""
    assert options.query is not None and options.file is not None
    check_query(options)
    rows = stream_texts(
        options.file, text_column=options.text_column, format=options.format,
        encoding=options.encoding, header=options.header,
    )  # fmt: skip
    best: list[dict[str, Any]] = []
    for block in windows(rows, WINDOW):
        check_rows(_Texts(options.file), block)
        kept = [(row.number, text) for row, text, _ in block if text.strip()]
        values = ranker.scores([(options.query, text) for _, text in kept])
        best += [
            {"row": number, "score": float(value), "text": text}
            for (number, text), value in zip(kept, values, strict=True)
        ]
        best.sort(key=lambda item: -item["score"])  # stable: of equals the earlier row
        del best[options.top or len(best) :]
    if not best:
        raise FilbertError(f"{options.file}: no row has any text")
    return best


def check_query(options: RankOptions) -> None:
    """`UsageError` for a query that is no text, or without a word."""
    if options.query is None:
        return
    if told := text_problem(options.query):
        raise UsageError(f"the query: {told}")
    if not options.query.strip():
        raise UsageError("the query is empty; expected a few words or a question")


class _Texts:
    """What is wrong with a row of a file of texts, for `check_rows`."""

    def __init__(self, source: str) -> None:
        self.source = source

    def problem(self, row: Any) -> str | None:
        """In words, with the row's number; None for a text."""
        told = text_problem(row[1])
        return told and f"{self.source}, row {row[0].number}: {told}"


def run_rank(options: RankOptions, as_json: bool) -> None:
    """The verb `filbert rank`: open the bundle, rank or evaluate, print."""
    check_query(options)  # before a model is opened
    classifier = load(
        options.bundle, device=options.device, precision=options.precision, core=options.core,
        batch_tokens=options.batch_tokens, threads=options.threads,
    )  # fmt: skip
    ranker = Ranker(classifier, label=options.label)
    if options.data is not None:
        result = ranker.evaluate(
            options.data, text_column=options.text_column, pair_column=options.pair_column,
            label_column=options.label_column, format=options.format, encoding=options.encoding,
            header=options.header,
        )  # fmt: skip
        if as_json:
            print(json.dumps(result, indent=2))
            return
        from rich.console import Console

        from filbert.tasks.metrics import score_table

        Console().print(score_table(result["scores"]))
        print(f"{result['rows']:,} rows of {result['data']} in {result['seconds']:.1f} s")
        return
    found = rank_file(ranker, options)
    if as_json:
        print(json.dumps({"query": options.query, "ranked": found}, indent=2))
        return
    for item in found:
        print(f"{item['score']:.4f}\t{item['row']}\t{' '.join(item['text'].split())}")
