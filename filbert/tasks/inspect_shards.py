"""What is in a folder of shards, and a few samples as a reader sees them.

    filbert prepare --inspect shards/

A token that a mask hides is shown as [MASK→word], a replaced one as [word→other], one that was
chosen and left as [word=]; a dot joins the tokens of a whole word (`##` pieces, the characters of a
Chinese word).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from filbert.data.samples import Sampler
from filbert.data.shards import Shards
from filbert.errors import FilbertError
from filbert.layout import plain
from filbert.tasks import pretrain
from filbert.text import BertTokenizer

SAMPLES = 5


def inspect_shards(
    folder: str | Path,
    *,
    count: int = SAMPLES,
    seed: int = 0,
    objective: str = "next_sentence",
    masking: str = "whole_word",
    mask_rate: float = 0.15,
    max_length: int = 128,
) -> dict[str, Any]:
    """Counts of the corpus and `count` samples of the training documents, as plain data.

    A corpus of a single document is shown without pairs. Raises `FilbertError` for shards that
    cannot be read.
    """
    shards = pretrain.read(folder)
    tokenizer = BertTokenizer.from_pretrained(shards.vocab)
    parts = shards.split("train") or shards.split("dev")
    if sum(len(part.documents) - 1 for part in parts) < 2:
        objective = "none"
    cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    if cls_id is None or sep_id is None:
        raise FilbertError(f"{shards.vocab}: this vocabulary has no [CLS] or no [SEP]")
    sampler = Sampler(
        parts, cls_id=cls_id, sep_id=sep_id, max_length=max_length,
        objective=objective, seed=seed,  # type: ignore[arg-type]
        vocab_size=max(tokenizer.get_vocab().values()) + 1, origin=str(folder),
    )  # fmt: skip
    rule = pretrain.mask_rule(tokenizer, rate=mask_rate, masking=masking)
    samples = sampler.samples(np.arange(count))
    shown = pretrain.decode(pretrain.encode(sampler, samples, rule), tokenizer)
    return {
        "folder": str(folder),
        "objective": objective,
        "counts": shards.manifest.counts.model_dump(),
        "sources": shares(shards),
        "vocab_size": shards.manifest.vocab_size,
        "shards": [entry.name for entry in shards.manifest.shards],
        "samples": sorted(shown, key=lambda sample: sample["number"]),
    }


def shares(shards: Shards) -> dict[str, int]:
    """Tokens of each source."""
    found = dict.fromkeys(shards.manifest.sources, 0)
    for shard in shards.shards:
        tokens = np.diff(shard.sentences[shard.documents])
        totals = np.bincount(shard.sources, weights=tokens, minlength=len(found))
        for name, total in zip(found, totals, strict=True):
            found[name] += int(total)
    return found


def as_text(found: dict[str, Any]) -> str:
    """The same for people."""
    counts = found["counts"]
    lines = [
        f"{found['folder']}: {counts['documents']:,} documents, {counts['sentences']:,} sentences, "
        f"{counts['tokens']:,} tokens of a vocabulary of {found['vocab_size']:,}, "
        f"{len(found['shards'])} shards"
    ]
    total = max(1, counts["tokens"])
    lines += [
        f"  {plain(name) or 'no source'}: {tokens:,} tokens, {tokens / total:.1%}"
        for name, tokens in found["sources"].items()
    ]
    swapped = "B is from another document"
    if found["objective"] == "sentence_order":
        swapped = "A and B are swapped"
    for sample in found["samples"]:
        follows = {0: "B follows A", 1: swapped, None: "one segment"}
        hidden = len(sample["hidden"])
        lines += [
            "",
            f"sample {sample['number']}: {len(sample['tokens'])} tokens, {hidden} of them chosen, "
            f"{follows[sample['pair_label']]}",
            line_of(sample),
        ]
    return "\n".join(lines)


def line_of(sample: dict[str, Any]) -> str:
    """The tokens of a sample in one line, a segment B on a line of its own."""
    text = ""
    rows = zip(sample["tokens"], sample["joins"], sample["segments"], strict=True)
    before = 0
    for place, (token, joined, segment) in enumerate(rows):
        shown = token = plain(token)
        if place in sample["hidden"]:
            answer = plain(sample["hidden"][place])
            if token == "[MASK]":
                shown = f"[MASK→{answer}]"
            else:
                shown = f"[{answer}=]" if token == answer else f"[{answer}→{token}]"
        mark = "·" if joined else " "
        text += ("\n  " if segment != before or not place else mark) + shown
        before = segment
    return text.removeprefix("\n")
