"""The model that a pre-training run starts with: a new one, or one to go on from.

A word that the base lacks starts as the mean of the rows of its old pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForMaskedLM, BertForPreTraining
from filbert.model.config import BertConfig, EncoderConfig, dropouts
from filbert.model.modern import ModernBertForMaskedLM
from filbert.model.modern_config import ModernBertConfig, read_any_config
from filbert.model.pretrained import PretrainedModel
from filbert.sources import resolve
from filbert.tasks import pretrain as task
from filbert.text import BertTokenizer
from filbert.train.pretrain_options import PretrainOptions

SHAPE = (
    "architecture", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    "hidden_act", "max_position_embeddings",
)  # fmt: skip


def build_model(
    options: PretrainOptions, tokenizer: BertTokenizer
) -> tuple[PretrainedModel, list[str]]:
    """The model, in training precision float32 on the CPU, and what is to be told about it.

    Raises `FilbertError` where the shards' vocabulary is not that of the base, nor extends it, and
    `UsageError` for a shape that was typed and is not that of the base.
    """
    words = tokenizer.get_vocab()
    size = max(words.values()) + 1
    if options.base is None:
        new = new_config(options, size, tokenizer)
        return task.head(new, objective=options.objective)(new), []
    base = resolve(options.base, revision=options.revision)
    config = read_any_config(base)
    kept = check_shape(options, config)
    if options.dropout is not None:
        config = config.replace(**dropouts(config, options.dropout))
    kind = task.head(config, objective=options.objective)
    model = kind.from_pretrained(base, config=config)
    before = BertTokenizer.from_pretrained(base)
    old = before.get_vocab()
    different = [word for word, number in old.items() if words.get(word) != number]
    if different:
        shown = ", ".join(repr(word) for word in different[:5])
        raise FilbertError(
            f"the shards in {options.data} were prepared with another vocabulary than that of "
            f"{options.base}: {len(different):,} words differ ({shown} ...). Prepare the corpus "
            f"with --vocab {options.base}, or with a vocabulary that has more words behind its own"
        )
    if not (added := words.keys() - old.keys()):
        return model, kept
    extend(model, size, before, tokenizer)
    told = f"{len(added):,} words were added to the vocabulary of {options.base}"
    return model, [told, *kept]


def check_shape(options: PretrainOptions, config: EncoderConfig) -> list[str]:
    """What is to be told of options that name another shape than the base has, which keeps it."""
    modern = isinstance(config, ModernBertConfig)
    there: dict[str, Any] = {
        **{name: getattr(config, name, None) for name in SHAPE},
        "architecture": "modernbert" if modern else "bert",
    }
    if isinstance(config, ModernBertConfig):
        there["hidden_act"] = config.hidden_activation
    other = [
        name
        for name in SHAPE
        if name in options.model_fields_set
        and (given := getattr(options, name)) is not None
        and given != there[name]
    ]
    for name in other:
        if name in options._typed:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: {options.base} has "
                f"{there[name]}, and a model to go on from keeps its shape; leave the option out"
            )
    if not other:
        return []
    shape = ", ".join(f"{name} {there[name]} (not {getattr(options, name)})" for name in other)
    return [f"{options.base} keeps its shape, whatever the recipe says: {shape}"]


def new_config(options: PretrainOptions, size: int, tokenizer: BertTokenizer) -> EncoderConfig:
    """The configuration of a new model, with the vocabulary of the shards. Without an option, the
    dropout is that of the paper: 0.1 in BERT, none in ModernBERT."""
    shape: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": options.hidden_size,
        "num_hidden_layers": options.num_hidden_layers,
        "num_attention_heads": options.num_attention_heads,
        "max_position_embeddings": options.max_position_embeddings,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if options.architecture == "modernbert":
        # the gated layer has two halves: 1.5 times the width in each, as in ModernBERT-base
        inner = options.intermediate_size or options.hidden_size * 3 // 2
        ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        # without them Transformers takes those of the released vocabulary, and tells of it
        ends |= {"bos_token_id": ends["cls_token_id"], "eos_token_id": ends["sep_token_id"]}
        modern = ModernBertConfig(
            **shape, intermediate_size=inner, hidden_activation=options.hidden_act,
            bookkeeping=ends,
        )  # fmt: skip
        return modern.replace(**dropouts(modern, options.dropout or 0.0))
    inner = options.intermediate_size or 4 * options.hidden_size
    config = BertConfig(**shape, intermediate_size=inner, hidden_act=options.hidden_act)
    return config.replace(**dropouts(config, 0.1 if options.dropout is None else options.dropout))


@torch.no_grad()
def extend(
    model: PretrainedModel, size: int, before: BertTokenizer, tokenizer: BertTokenizer
) -> None:
    """Give the model `size` word rows, if it has not more already (some have spare ones at the
    end). A word that `before` lacks starts as the mean of its old pieces."""
    known = before.get_vocab()
    old = model.get_input_embeddings()
    count, width = old.weight.shape
    size = max(size, count)
    grown = torch.nn.Embedding(size, width, padding_idx=old.padding_idx)
    grown.weight[:count] = old.weight
    grown.weight[count:].normal_(std=model.config.initializer_range)
    if isinstance(model, ModernBertForMaskedLM):
        old_bias: torch.Tensor | None = model.decoder.bias
    else:
        assert isinstance(model, BertForMaskedLM | BertForPreTraining)
        old_bias = model.cls.predictions.bias
    bias = torch.zeros(size)
    if old_bias is not None:
        bias[:count] = old_bias
    for word, number in tokenizer.get_vocab().items():
        if word in known:
            continue
        pieces = old_pieces(word, before, known)
        if pieces:
            grown.weight[number] = old.weight[pieces].mean(0)
            if old_bias is not None:
                bias[number] = old_bias[pieces].mean()
    model.set_input_embeddings(grown)
    matrix = torch.nn.Linear(width, size, bias=False)
    if isinstance(model, ModernBertForMaskedLM):
        model.decoder = matrix
        if old_bias is not None:
            model.decoder.bias = torch.nn.Parameter(bias)
    else:
        model.cls.predictions.decoder = matrix
        model.cls.predictions.bias = torch.nn.Parameter(bias)
    model.config = model.base_model.config = model.config.replace(vocab_size=size)
    model.tie_weights()


def old_pieces(word: str, before: BertTokenizer, known: Mapping[str, int]) -> list[int]:
    """The ids that a word of a longer vocabulary had in the shorter one, `known`; none if it was
    unknown. A `##` piece is split as it would be within a word, and as a word if that fails."""
    ids, start = [], 2
    while word.startswith("##") and start < len(word):  # the longest piece that is known, and on
        ends = range(len(word), start, -1)
        end = next((end for end in ends if f"##{word[start:end]}" in known), None)
        if end is None:
            break
        ids.append(known[f"##{word[start:end]}"])
        start = end
    else:
        if ids:
            return ids
    ids = before(word.removeprefix("##"), add_special_tokens=False)["input_ids"]
    return [] if before.unk_token_id in ids else ids
