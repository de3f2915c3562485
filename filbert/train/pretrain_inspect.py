"""The samples that a run draws, for `filbert prepare --inspect` (filbert/tasks/inspect_shards.py).

    filbert prepare --inspect shards/ --recipe runs/mini/recipe.toml --sample 123456

The sampler and the masks are made as a run with these options makes them, so sample 123456 is the
one that a run which passed over a bad step has named.
"""

from __future__ import annotations

from typing import Any

from filbert.errors import FilbertError
from filbert.tasks import pretrain
from filbert.tasks.inspect_shards import SAMPLES, inspect_shards
from filbert.text import BertTokenizer
from filbert.train.pretrain_options import InspectOptions
from filbert.train.pretrain_plan import sampler_of


def inspect_samples(options: InspectOptions, *, count: int = SAMPLES) -> dict[str, Any]:
    """What `inspect_shards` finds in the shards `options.data`, with `count` samples of training
    from number `options.sample` on.

    A single document is shown without pairs, unless an objective was typed. Raises `FilbertError`
    for shards that cannot be read, `UsageError` for options that they cannot serve.
    """
    shards = pretrain.read(options.data)
    tokenizer = BertTokenizer.from_pretrained(shards.vocab)
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise FilbertError(f"{shards.vocab}: this vocabulary has no [CLS] or no [SEP]")
    parts = shards.split("train")
    documents = sum(len(part.documents) - 1 for part in parts or shards.split("dev"))
    if documents < 2 and "objective" not in options._typed:
        options = options.model_copy(update={"objective": "none"})
    sampler = sampler_of(options, shards, tokenizer, "train" if parts else "dev", 0)
    rule = pretrain.mask_rule(tokenizer, rate=options.mask_rate, masking=options.masking)
    return inspect_shards(shards, sampler, rule, tokenizer, first=options.sample, count=count)
