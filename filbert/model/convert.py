"""`filbert convert DIR OUT`: a Google TensorFlow checkpoint becomes a Hugging Face model folder.

DIR holds what Google published (and what run_pretraining.py or run_classifier.py wrote):
`bert_config.json`, `vocab.txt` and a checkpoint `NAME.index` + `NAME.data-*`. OUT receives
`config.json`, `model.safetensors` and the tokenizer's files. TensorFlow is not needed.

    filbert convert uncased_L-12_H-768_A-12/ bert-base-uncased/
    >>> print(convert("uncased_L-12_H-768_A-12/", "bert-base-uncased/"))

Weights are written in float32, whatever the checkpoint holds. Variables of the optimizer are left
out, the model is checked against its configuration before anything is written, and OUT appears in
one step. Two things are good to know:

* `hidden_act: gelu` is read as x * Phi(x) by erf, as Transformers reads it and as Google's first
  models were trained. The code of google-research/bert computes the tanh approximation since 2019;
  for a model trained with that, put `gelu_new` into `bert_config.json` (the logits move by ~1e-3).
* Factorised embeddings (`embedding_size`, as in SimBERT and ALBERT-like checkpoints of bert4keras)
  open in filbert; the BERT of Transformers has no place for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from filbert.atomic import beside, replace_folder
from filbert.errors import FilbertError
from filbert.layout import plain
from filbert.model.bert import BertForPreTraining
from filbert.model.config import BertConfig, read_config
from filbert.model.names import from_google, is_training_state
from filbert.model.tensorflow import (
    TensorEntry,
    find_checkpoint,
    list_tensors,
    read_tensorflow_checkpoint,
)
from filbert.model.weights import write_weights
from filbert.text.tokenizer import BertTokenizer

# The heads, in the order in which they name the model: (prefix of their tensors, architecture).
_HEADS = (
    ("classifier.", "BertForSequenceClassification"),
    ("qa_outputs.", "BertForQuestionAnswering"),
    ("cls.seq_relationship.", "BertForPreTraining"),
    ("cls.predictions.", "BertForMaskedLM"),
    ("bert.", "BertModel"),
)
_LAYER = re.compile(r"^bert\.encoder\.layer\.([0-9]+)\.")
# Files that would speak of the model that was there before.
_STALE = ("config.json", "filbert.json", "model.safetensors*", "model*-of-*.safetensors")


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` did; `str()` tells it to a person."""

    checkpoint: Path  # the prefix of the checkpoint that was read
    folder: Path  # the folder that was written
    architecture: str
    tensors: int
    parameters: int
    training_state: int  # variables of the optimizer, left out
    unknown: list[str]  # variables that are no part of a BERT we know, left out
    notes: list[str]

    def __str__(self) -> str:
        lines = [
            f"{self.checkpoint} -> {self.folder}",
            f"{self.architecture}: {self.tensors} tensors, {self.parameters:,} parameters, float32",
        ]
        if self.training_state:
            lines.append(f"left out: {self.training_state} variables of the training")
        if self.unknown:
            more = f" and {len(self.unknown) - 10} more" if len(self.unknown) > 10 else ""
            names = ", ".join(plain(name) for name in self.unknown[:10])
            lines.append(f"left out, not known: {names}{more}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def convert(
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    overwrite: bool = False,
    lowercase: bool | None = None,
) -> ConvertReport:
    """Read the TensorFlow checkpoint `source` and write the Hugging Face folder `out`.

    `source` is the folder, or a checkpoint in it (`run/model.ckpt-1000`); `bert_config.json` and
    `vocab.txt` lie beside it. `lowercase` says whether the tokenizer lower-cases; by default it
    does if the vocabulary has no words with capitals, which is right for all of Google's models.
    With `overwrite` the files of a model that is already in `out` are replaced; others stay.

    Raises `FilbertError` if anything is missing, damaged or does not fit together; `out` is then
    as it was before.
    """
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise FilbertError(f"{target} is a file: give the name of a folder to write")
    fresh = not target.is_dir() or not any(target.iterdir())
    if not fresh and not overwrite:
        raise FilbertError(f"{target} is not empty: give another folder, or empty this one first")
    prefix = find_checkpoint(source)
    config = _read_config(prefix)
    vocabulary = prefix.parent / "vocab.txt"
    if not vocabulary.is_file():
        raise FilbertError(
            f"{prefix.parent} has no vocab.txt: copy it from the model that this checkpoint was "
            "trained from; without it the numbers of the words are unknown"
        )
    entries = list_tensors(prefix)
    weights = _model_weights(entries, prefix)
    config = _fit_config(config, weights, entries, prefix)
    tokenizer, notes = _open_tokenizer(vocabulary, config, lowercase)
    config = config.replace(pad_token_id=tokenizer.pad_token_id)
    if config.factorised:
        notes.append(
            f"embeddings are {config.embedding_size} wide and projected to {config.hidden_size}: "
            "this model opens in filbert, Transformers' BERT cannot represent it"
        )
    if not any(name.startswith("bert.pooler.") for name, _ in weights.values()):
        notes.append("there is no pooler: a head on top of it would start from fresh weights")

    tensors = _read_tensors(prefix, weights)
    with beside(target) as temp:
        write_weights(tensors, temp)
        tokenizer.save_pretrained(temp)
        config.save_pretrained(temp)
        if fresh:
            replace_folder(temp, target)
        else:
            _replace_files(temp, target)
    left_out = entries.keys() - weights.keys()
    return ConvertReport(
        checkpoint=prefix,
        folder=target,
        architecture=(config.architectures or ["BertModel"])[0],
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        training_state=sum(is_training_state(name) for name in left_out),
        unknown=sorted(name for name in left_out if not is_training_state(name)),
        notes=notes,
    )


def _read_config(prefix: Path) -> BertConfig:
    folder = prefix.parent
    if not any((folder / name).is_file() for name in ("bert_config.json", "config.json")):
        raise FilbertError(
            f"{folder} has no bert_config.json: copy it from the model that this checkpoint was "
            "trained from; the number of heads stands nowhere else"
        )
    return read_config(folder)


def _model_weights(entries: dict[str, TensorEntry], prefix: Path) -> dict[str, tuple[str, bool]]:
    """TensorFlow name -> (our name, transposed) for the variables that are weights of a BERT."""
    weights = {name: ours for name in entries if (ours := from_google(name)) is not None}
    if any(ours.startswith("bert.embeddings.") for ours, _ in weights.values()):
        return weights
    names = ", ".join(plain(name) for name in list(entries)[:5]) or "none"
    if any(name.endswith("/.ATTRIBUTES/VARIABLE_VALUE") for name in entries):
        raise FilbertError(
            f"{prefix} is a checkpoint of TensorFlow 2 objects (tf.train.Checkpoint, Keras), whose "
            f"names follow the Python objects and not the model: {names}. Expected Google's "
            "variables (bert/embeddings/word_embeddings, ...): load the model in TensorFlow and "
            "save those names with tf.compat.v1.train.Saver, or look for its TF1 release"
        )
    raise FilbertError(
        f"{prefix} holds no BERT: expected variables such as bert/embeddings/word_embeddings and "
        f"bert/encoder/layer_0/attention/self/query/kernel, found {names}"
    )


def _fit_config(
    config: BertConfig,
    weights: dict[str, tuple[str, bool]],
    entries: dict[str, TensorEntry],
    prefix: Path,
) -> BertConfig:
    """The configuration with its architecture and labels, once every shape is known to fit it."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (ours, transposed) in weights.items():
        shape = entries[name].shape
        found[ours] = shape[::-1] if transposed else shape
        if entries[name].dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise FilbertError(
                f"{prefix}: {name} is of type {entries[name].dtype}, expected floating point: a "
                "quantised checkpoint cannot be converted, use the original one"
            )
    # Counted before the model is built: a hostile number of layers would build for ever.
    numbers = {int(match.group(1)) for ours in found if (match := _LAYER.match(ours))}
    if len(numbers) != config.num_hidden_layers or max(numbers, default=0) != len(numbers) - 1:
        raise FilbertError(
            f"{prefix} holds {len(numbers)} encoder layers, its configuration says "
            f"num_hidden_layers {config.num_hidden_layers}: they do not belong together"
        )
    architecture = next(name for start, name in _HEADS if any(n.startswith(start) for n in found))
    labels = found.get("classifier.weight", (config.num_labels,))[0]
    config = config.replace(architectures=[architecture], num_labels=labels)

    with torch.device("meta"):  # shapes alone
        state = BertForPreTraining(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    del expected["cls.predictions.decoder.weight"]  # tied; the checkpoint has it once
    for head, rows in (("classifier", config.num_labels), ("qa_outputs", 2)):
        expected |= {f"{head}.weight": (rows, config.hidden_size), f"{head}.bias": (rows,)}
    optional = ("bert.pooler.", *(start for start, _ in _HEADS[:-1]))
    problems = []
    for name in sorted(expected | found):
        part = next((start for start in optional if name.startswith(start)), None)
        if name not in found and part and not any(n.startswith(part) for n in found):
            continue  # a head that this checkpoint does not have
        want, have = expected.get(name), found.get(name)
        if want != have:
            problems.append(f"  {name:60} {_shown(want):16} {_shown(have)}")
    if problems:
        table = "\n".join([f"  {'tensor':60} {'expected':16} found", *problems[:20]])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise FilbertError(
            f"{prefix} does not fit the configuration beside it; use the bert_config.json that it "
            f"was trained with:\n{table}{more}"
        )
    return config


def _shown(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(shape)


def _open_tokenizer(
    vocabulary: Path, config: BertConfig, lowercase: bool | None
) -> tuple[BertTokenizer, list[str]]:
    """The tokenizer of `vocabulary`, and what is worth telling about it."""
    choice: dict[str, Any] = {} if lowercase is None else {"do_lower_case": lowercase}
    tokenizer = BertTokenizer.from_pretrained(vocabulary.parent, **choice)
    # The largest id and not the count: a vocabulary may repeat a token.
    size = max(tokenizer.get_vocab().values()) + 1
    if size > config.vocab_size:
        raise FilbertError(
            f"{vocabulary} has {size} tokens, but the model's embedding has only "
            f"{config.vocab_size}: they do not belong together"
        )
    notes = [f"text is {'lower-cased' if tokenizer.do_lower_case else 'kept in its case'}"]
    if lowercase is None:
        notes[0] += f", judging by {vocabulary.name}"
    if size < config.vocab_size:
        notes.append(
            f"{vocabulary.name} has {size} tokens, the embedding {config.vocab_size}: the rows "
            "after them cannot be reached (fine if they are padding)"
        )
    return tokenizer, notes


def _read_tensors(prefix: Path, weights: dict[str, tuple[str, bool]]) -> dict[str, torch.Tensor]:
    """The weights under our names, (out, in), contiguous, float32."""
    raw = read_tensorflow_checkpoint(prefix, names=weights)
    tensors = {}
    for name, (ours, transposed) in weights.items():
        values = raw.pop(name)  # let go one by one, so that the model is in memory once
        values = np.ascontiguousarray(values.T if transposed else values, np.float32)
        tensors[ours] = torch.from_numpy(values)
    return tensors


def _replace_files(temp: Path, target: Path) -> None:
    """Put the files of `temp` into `target`, config.json last: without it there is no model."""
    for pattern in _STALE:
        for path in list(target.glob(pattern)):
            path.unlink()
    for path in sorted(temp.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(target / path.name)
