"""The model that a pre-training run starts with: a new one, or one to go on from.

Going on from a model whose vocabulary the shards extend (`filbert vocab --extend MODEL`) gives each
new word the mean of the rows of the pieces that the old vocabulary would have cut it into.
"""

from __future__ import annotations

from typing import Any

import torch

from filbert.errors import FilbertError
from filbert.model.bert import BertForMaskedLM, BertForPreTraining
from filbert.model.config import BertConfig
from filbert.model.pretrained import PretrainedModel
from filbert.sources import resolve
from filbert.tasks import pretrain as task
from filbert.text import BertTokenizer
from filbert.train.pretrain_options import PretrainOptions


def build_model(
    options: PretrainOptions, tokenizer: BertTokenizer
) -> tuple[PretrainedModel, list[str]]:
    """The model, in training precision float32 on the CPU, and what is to be told about it.

    Raises `FilbertError` where the shards' vocabulary is not that of the base, nor extends it.
    """
    words = tokenizer.get_vocab()
    size = max(words.values()) + 1
    if options.base is None:
        return task.head(new_config(options, size, tokenizer), objective=options.objective), []
    base = resolve(options.base, revision=options.revision)
    changes: dict[str, Any] = {}
    if options.dropout is not None:
        changes = dict.fromkeys(
            ("hidden_dropout_prob", "attention_probs_dropout_prob"), options.dropout
        )
    architecture = BertForMaskedLM if options.objective == "none" else BertForPreTraining
    model: PretrainedModel = architecture.from_pretrained(base, **changes)
    before = BertTokenizer.from_pretrained(base)
    old = before.get_vocab()
    different = [word for word, number in old.items() if words.get(word) != number]
    if different:
        shown = ", ".join(repr(word) for word in different[:5])
        raise FilbertError(
            f"the shards in {options.data} were prepared with another vocabulary than that of "
            f"{options.base}: {len(different):,} words differ ({shown} ...). Prepare the corpus "
            f"with --vocab {options.base}, or with one that extends it (filbert vocab --extend)"
        )
    if size <= model.config.vocab_size:
        return model, []
    extend(model, size, before, tokenizer)
    return model, [f"{size - len(old):,} words were added to the vocabulary of {options.base}"]


def new_config(options: PretrainOptions, size: int, tokenizer: BertTokenizer) -> BertConfig:
    """The configuration of a new model, with the vocabulary of the shards."""
    dropout = 0.1 if options.dropout is None else options.dropout
    return BertConfig(
        vocab_size=size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        intermediate_size=options.intermediate_size or 4 * options.hidden_size,
        hidden_act=options.hidden_act,
        max_position_embeddings=options.max_position_embeddings,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def extend(
    model: PretrainedModel, size: int, before: BertTokenizer, tokenizer: BertTokenizer
) -> None:
    """Give the model `size` word rows. A new word starts as the mean of its old pieces."""
    assert isinstance(model, BertForMaskedLM | BertForPreTraining)
    old = model.bert.embeddings.word_embeddings
    count, width = old.weight.shape
    grown = torch.nn.Embedding(size, width, padding_idx=old.padding_idx)
    grown.weight[:count] = old.weight
    grown.weight[count:].normal_(std=model.config.initializer_range)
    bias = torch.zeros(size)
    bias[:count] = model.cls.predictions.bias
    for word, number in tokenizer.get_vocab().items():
        if number < count:
            continue
        text = word.removeprefix("##")
        pieces = before(text, add_special_tokens=False)["input_ids"]
        if pieces and before.unk_token_id not in pieces:
            grown.weight[number] = old.weight[pieces].mean(0)
            bias[number] = model.cls.predictions.bias[pieces].mean()
    model.bert.embeddings.word_embeddings = grown
    model.cls.predictions.decoder = torch.nn.Linear(width, size, bias=False)
    model.cls.predictions.bias = torch.nn.Parameter(bias)
    model.config = model.config.replace(vocab_size=size)
    model.bert.config = model.config
    model.tie_weights()
