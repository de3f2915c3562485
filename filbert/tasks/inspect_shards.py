"""What is in a folder of shards, and a few samples as a reader sees them.

    filbert prepare --inspect shards/
    filbert prepare --inspect shards/ --recipe runs/mini/recipe.toml --sample 123456

A token that a mask hides is shown as [MASK→word], a replaced one as [word→other], one that was
chosen and left as [word=]; a dot joins the tokens of a whole word (`##` pieces, the characters of a
Chinese word).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from filbert.data.masking import MaskRule
from filbert.data.samples import Sampler
from filbert.data.shards import Shards
from filbert.layout import plain
from filbert.tasks import pretrain
from filbert.text import BertTokenizer

SAMPLES = 5


def inspect_shards(
    shards: Shards,
    sampler: Sampler,
    rule: MaskRule,
    tokenizer: BertTokenizer,
    *,
    first: int = 0,
    count: int = SAMPLES,
) -> dict[str, Any]:
    """Counts of the corpus and the `count` samples from number `first` on, as plain data."""
    samples = sampler.samples(np.arange(first, first + count))
    shown = pretrain.decode(pretrain.encode(sampler, samples, rule), tokenizer)
    return {
        "folder": str(shards.folder),
        "objective": sampler.objective,
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
