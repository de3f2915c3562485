"""The first answer's extra costs, paid before anybody waits for it.

    classify = load("runs/reviews", warm_up=True)
    Engine(classify).warm_up()                      # and the threads of an engine

Weights are laid out when a model is opened. What is left for the first call is memory, and what
libraries prepare when they first compute: kernels, and on a GPU their own workspace.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from filbert.model import graphs


def warm_up(predictor: Any) -> float:
    """Answer a short row and a longer one; the seconds that this took."""
    began = time.perf_counter()
    warm_graphs(predictor)
    for row, options in warm_rows(predictor):
        predictor.answer_rows([row], **options)
    return time.perf_counter() - began


def warm_graphs(predictor: Any) -> None:
    """On a GPU, record the graphs of small batches of all sizes. Of a model that reads pairs,
    passages or blanks they are recorded when a batch first asks for one."""
    manifest = predictor.manifest
    if manifest.task not in ("classify", "embed", "tag") or manifest.pair:
        return
    for texts, tokens in graphs.sizes(predictor.model, manifest.max_length):
        predictor.answer_rows(["a " * (tokens - 2)] * texts)


def warm_rows(predictor: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Rows that every model of this task can read without cutting them off, and options of their
    answering."""
    manifest, tokenizer = predictor.manifest, predictor.tokenizer
    blank = f"{tokenizer.mask_token} " if manifest.task in ("fill", "pretrain") else ""
    options = {"max_tokens": 2} if "max_tokens" in predictor.OPTIONS else {}  # enough of a writer
    for words in (1, min(32, manifest.max_length // 2)):
        text = blank + "a " * words
        yield ("a", text) if manifest.pair else text, options
