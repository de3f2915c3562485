"""Inspect: what a BERT does to one text, station by station, with the formula each one computes.

    filbert inspect all-MiniLM-L6-v2 "The bank of the river." --layer 3 --head 5 --out attention.svg
    filbert inspect bert-base-uncased "Paris is the [MASK] of France."

Any BERT folder will do: a bundle of any task with an encoder, a classification head, a masked-word
head, or the bare encoder. The shapes are read off a real forward pass, the attention weights come
from the written-out attention
path. V17 is Vaswani et al. 2017 (arXiv 1706.03762), D19 Devlin et al. 2019 (arXiv 1810.04805),
B16 Ba et al. 2016 (arXiv 1607.06450), H16 Hendrycks and Gimpel 2016 (arXiv 1606.08415), L16 Lample
et al. 2016 (arXiv 1603.01360), LL19 Liu and Lapata 2019 (arXiv 1908.08345).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from filbert.bundle import MANIFEST, open_bundle, read_manifest
from filbert.errors import FilbertError, UsageError
from filbert.infer.predict import Classifier
from filbert.model.bert import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForTokenClassification,
    BertModel,
)
from filbert.model.config import BertConfig, read_config
from filbert.model.crf import BertCrfForTokenClassification
from filbert.model.sentence_head import BertForExtractiveSummary, means_from
from filbert.model.span_head import BertForQuestionAnswering
from filbert.model.weights import read_weights
from filbert.sources import resolve
from filbert.text.tokenizer import BertTokenizer

Model = BertModel | BertForMaskedLM | BertForPreTraining | nn.Module
OF_TOKENS = ("tag", "answer", "summarize")  # tasks whose head reads the states of tokens


@dataclass(frozen=True)
class Token:
    """One position of the input: the piece, its id, where it stands in the raw text."""

    position: int
    token: str
    id: int
    start: int  # characters into the text (segment 0) or the second text (segment 1)
    end: int
    segment: int
    special: bool
    mask: int


@dataclass(frozen=True)
class Station:
    """One step of the forward pass."""

    name: str
    formula: str
    source: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """All that `filbert inspect` shows. `attention` is (tokens, tokens) float32; rows sum to 1."""

    model: str
    kind: str
    text: str
    pair: str | None
    tokens: list[Token]
    stations: list[Station]
    layer: int
    head: int
    attention: NDArray[np.float32]
    prediction: dict[str, Any] | None
    notes: list[str]

    @property
    def parameters(self) -> int:
        """Of the whole model; a tied matrix counts once."""
        return sum(station.parameters for station in self.stations)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it."""
        return {
            **{
                name: getattr(self, name)
                for name in ("model", "kind", "text", "pair", "parameters")
            },
            "tokens": [asdict(token) for token in self.tokens],
            "stations": [
                {**asdict(station), "shape": list(station.shape)} for station in self.stations
            ],
            "attention": {
                "layer": self.layer,
                "head": self.head,
                "weights": [[round(float(weight), 6) for weight in row] for row in self.attention],
            },
            "prediction": self.prediction,
            "notes": self.notes,
        }


def inspect_text(
    name: str | PathLike[str], text: str, *, pair: str | None = None, layer: int = -1, head: int = 0
) -> Inspection:
    """Run one text, or pair of texts, through a model and keep what happens on the way.

    `name`: a folder, a hub name or an installed name. `layer` and `head` count from 0, negative
    ones from the end. Raises `FilbertError` for a name that cannot be opened and `UsageError` for
    a layer or a head that the model does not have.
    """
    folder = resolve(name)
    config = read_config(folder)
    layer = _within("layer", layer, config.num_hidden_layers)
    head = _within("head", head, config.num_attention_heads)
    notes: list[str] = []
    classifier: Classifier | None = None
    task = read_manifest(folder).task if (folder / MANIFEST).is_file() else None
    kind = _kind(config, set(read_weights(folder)), task=task)
    model: Any
    if kind == "classify":
        classifier = Classifier(open_bundle(folder), device=torch.device("cpu"))
        model, tokenizer = classifier.model, classifier.tokenizer
    elif kind in OF_TOKENS:
        bundle = open_bundle(folder)
        model, tokenizer = bundle.model, bundle.tokenizer
        notes.append(f"a model of the task {kind}: filbert predict gives its answers")
    else:
        tokenizer = BertTokenizer.from_pretrained(folder)
        model = {"masked words": BertForMaskedLM, "pre-training": BertForPreTraining}.get(
            kind, BertModel
        ).from_pretrained(folder)
        if kind == "encoder without pooler":
            model.pooler = None
    limit = config.max_position_embeddings
    encoding = tokenizer(
        text,
        pair,
        truncation=True,
        max_length=limit,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    tokens = _tokens(tokenizer, encoding)
    if len(tokens) == limit and len(tokenizer(text, pair)["input_ids"]) > limit:
        notes.append(f"the text is longer than the model: its first {limit} tokens are shown")
    stations, attentions, output = _walk(model, config, tokens, layer, head)
    prediction = None
    if classifier is not None:
        if classifier.manifest.pair and pair is None:
            notes.append("this model compares two texts: give --pair to see its prediction")
        elif pair is not None and not classifier.manifest.pair:
            notes.append("this model was trained on single texts: no prediction for a pair")
        else:
            prediction = classifier(text, pair, all_scores=True)
    elif kind in ("masked words", "pre-training"):
        prediction = _words(tokenizer, tokens, output)
        if prediction is None:
            notes.append(
                f"write {tokenizer.mask_token} in the text to see which words the model puts there"
            )
        if kind == "pre-training" and pair is not None:
            follows = torch.softmax(output.seq_relationship_logits[0], -1)[0]
            prediction = {**(prediction or {}), "second_text_follows": round(float(follows), 6)}
    return Inspection(
        model=str(name),
        kind=kind,
        text=text,
        pair=pair,
        tokens=tokens,
        stations=stations,
        layer=layer,
        head=head,
        attention=attentions,
        prediction=prediction,
        notes=notes,
    )


def _within(what: str, number: int, count: int) -> int:
    if not -count <= number < count:
        raise UsageError(
            f"--{what} {number}: this model has {count}, numbered 0 to {count - 1} (-1 is the last)"
        )
    return number % count


def _kind(config: BertConfig, weights: set[str], *, task: str | None) -> str:
    """What a folder holds: `task` of a bundle whose head is its own, else by the weights, as an
    architecture's name alone promises nothing."""
    if task in OF_TOKENS:
        return str(task)
    of_tokens = "BertForTokenClassification" in (config.architectures or [])
    headed = {"classifier.weight", "classifier.bias"} <= weights and not of_tokens
    if task in ("classify", "rank") or (task is None and headed):
        return "classify"
    if any(name.startswith("cls.predictions.") for name in weights):
        follows = any(name.startswith("cls.seq_relationship.") for name in weights)
        return "pre-training" if follows else "masked words"
    return "encoder" if any("pooler." in name for name in weights) else "encoder without pooler"


def _tokens(tokenizer: BertTokenizer, encoding: dict[str, Any]) -> list[Token]:
    ids = encoding["input_ids"]
    segments = encoding["token_type_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return [
        Token(
            position=i,
            token=str(pieces[i]),
            id=int(ids[i]),
            start=int(encoding["offset_mapping"][i][0]),
            end=int(encoding["offset_mapping"][i][1]),
            segment=int(segments[i]),
            special=bool(encoding["special_tokens_mask"][i]),
            mask=int(encoding["attention_mask"][i]),
        )
        for i in range(len(ids))
    ]


def _walk(
    model: Any, config: BertConfig, tokens: list[Token], layer: int, head: int
) -> tuple[list[Station], NDArray[np.float32], Any]:
    """A forward pass with the output of every module kept: stations, attention, output."""
    seen: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            seen[name] = result[0] if isinstance(result, tuple) else result
            if args and isinstance(args[0], Tensor):
                inputs[name] = args[0]

        return hook

    hooks = [
        module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name
    ]
    try:
        with torch.inference_mode():
            summary = isinstance(model, BertForExtractiveSummary)
            output = (model.bert if summary else model)(
                torch.tensor([[token.id for token in tokens]]),
                torch.tensor([[token.mask for token in tokens]]),
                torch.tensor([[token.segment for token in tokens]]),
                output_attentions=True,
            )
            if summary:  # the text as one sentence
                model.classifier(sentence_states(model.config, output.last_hidden_state[0]))
    finally:
        for hook in hooks:
            hook.remove()
    weights = output.attentions[layer][0]  # (heads, tokens, tokens)
    stations = _Stations(model, config, seen, inputs, weights).all(layer)
    return stations, weights[head].float().numpy(), output


def sentence_states(config: BertConfig, states: Tensor) -> Tensor:
    """(1, hidden) what stands for a text that is one sentence, as in `BertForExtractiveSummary`.
    states: (tokens, hidden)."""
    if config.sentence_pooling == "mean":
        return means_from(states, torch.zeros(1, dtype=torch.int64))
    return states[:1]


class _Stations:
    """Writes the table of stations from what the hooks saw; shapes are those of one text."""

    def __init__(
        self,
        model: Any,
        config: BertConfig,
        seen: dict[str, Any],
        inputs: dict[str, Tensor],
        weights: Tensor,
    ) -> None:
        self.model, self.config, self.seen, self.inputs, self.weights = (
            model,
            config,
            seen,
            inputs,
            weights,
        )
        self.prefix = "" if isinstance(model, BertModel) else "bert."
        self.modules = dict(model.named_modules())
        self.rows: list[Station] = []

    def all(self, layer: int) -> list[Station]:
        self.embeddings()
        self.layer(layer)
        others = [
            size(self.modules[f"{self.prefix}encoder.layer.{i}"])
            for i in range(self.config.num_hidden_layers)
            if i != layer
        ]
        last = f"{self.prefix}encoder.layer.{self.config.num_hidden_layers - 1}"
        if others:
            self.add(
                f"the other {len(others)} layers",
                "as above, each with weights of its own",
                "V17 3.1, N layers",
                self.seen[last].shape[1:],
                sum(others),
            )
        self.heads()
        return self.rows

    def add(self, name: str, formula: str, source: str, shape: Any, parameters: int) -> None:
        self.rows.append(Station(name, formula, source, tuple(int(n) for n in shape), parameters))

    def module(self, name: str, formula: str, source: str) -> None:
        """A row for a module that ran; its shape without the batch of one."""
        full = self.prefix + name
        self.add(full, formula, source, self.seen[full].shape[1:], size(self.modules[full]))

    def embeddings(self) -> None:
        self.module("embeddings.word_embeddings", "E_token[id]", "D19 figure 2")
        self.module("embeddings.position_embeddings", "E_position[i]", "D19 figure 2")
        self.module("embeddings.token_type_embeddings", "E_segment[s]", "D19 figure 2")
        self.module(
            "embeddings.LayerNorm",
            "g (x - mean) / sqrt(var + eps) + b, x = sum of the three",
            "B16 eq. 4",
        )
        if self.config.factorised:
            self.module(
                "embeddings.embedding_projection", "x W + b", "ALBERT 3.1 (arXiv 1909.11942)"
            )

    def layer(self, number: int) -> None:
        config, path = self.config, f"encoder.layer.{number}"
        attention = self.modules[f"{self.prefix}{path}.attention.self"]
        hidden = self.inputs[f"{self.prefix}{path}.attention.self"][0]  # (tokens, hidden)
        split = (hidden.shape[0], config.num_attention_heads, config.head_size)
        with torch.inference_mode():
            for letter, part in (("Q", "query"), ("K", "key"), ("V", "value")):
                linear = getattr(attention, part)
                values = linear(hidden).view(split).transpose(0, 1)  # (heads, tokens, head_size)
                name = f"{self.prefix}{path}.attention.self.{part}"
                self.add(
                    name,
                    f"{letter} = H W^{letter} + b, by head",
                    "V17 3.2.2",
                    values.shape,
                    size(linear),
                )
        place = f"{self.prefix}{path}.attention"
        weights = f"A = softmax(Q K^T / sqrt(d_k)), d_k = {config.head_size}"
        self.add(f"{place} weights", weights, "V17 eq. 1", self.weights.shape, 0)
        self.add(f"{place} heads", "head_i = A V", "V17 eq. 1", (self.weights @ values).shape, 0)
        self.module(
            f"{path}.attention.output.dense", "Concat(head_1 ... head_h) W^O + b", "V17 3.2.2"
        )
        norm = "LayerNorm(H + MultiHead(H))"
        self.module(f"{path}.attention.output.LayerNorm", norm, "V17 3.1")
        act = config.hidden_act
        source = "V17 eq. 2, H16" if act.startswith("gelu") else "V17 eq. 2"
        self.module(f"{path}.intermediate.dense", f"x W1 + b1, then {act}", source)
        self.module(f"{path}.output.dense", f"FFN(x) = {act}(x W1 + b1) W2 + b2", "V17 eq. 2")
        self.module(f"{path}.output.LayerNorm", "LayerNorm(x + FFN(x))", "V17 3.1")

    def heads(self) -> None:
        if f"{self.prefix}pooler" in self.seen:
            self.module("pooler", "tanh(W h_[CLS] + b)", "D19 3, C")
        for name in ("classifier", "qa_outputs"):
            if name in self.seen:
                formula, source = self.head_formula()
                shape = self.seen[name].shape[1:]
                self.add(name, formula, source, shape, size(self.modules[name]))
        if isinstance(self.model, BertCrfForTokenClassification):
            labels = self.config.num_labels
            formula = "A[y_i, y_i+1], added to the scores of a sequence y"
            self.add("head", formula, "L16 2.2", (labels, labels), size(self.modules["head"]))
        if "cls.predictions" in self.seen:
            words = self.modules["cls.predictions"]
            tied = self.modules[f"{self.prefix}embeddings.word_embeddings"].weight
            own = sum(weight.numel() for weight in words.parameters() if weight is not tied)
            shape = self.seen["cls.predictions"].shape[1:]
            formula = f"LayerNorm({self.config.hidden_act}(h W + b)) E_token^T + b, E_token tied"
            self.add("cls.predictions", formula, "D19 3.1, task 1", shape, own)
        if "cls.seq_relationship" in self.seen:
            follows = self.modules["cls.seq_relationship"]
            shape = self.seen["cls.seq_relationship"].shape[1:]
            self.add("cls.seq_relationship", "C W^T + b", "D19 3.1, task 2", shape, size(follows))

    def head_formula(self) -> tuple[str, str]:
        if isinstance(self.model, BertForQuestionAnswering):
            return "S T_i, E T_i: begin and end", "D19 4.2"
        if isinstance(self.model, BertForTokenClassification):
            return "T_i W^T + b", "D19 5.3"
        if isinstance(self.model, BertForExtractiveSummary):
            mean = self.config.sentence_pooling == "mean"
            return f"{'mean T' if mean else 'T_[CLS]'} W^T + b of each sentence", "LL19 3.1"
        return "C W^T + b", "D19 4.1"


def size(module: nn.Module) -> int:
    """Numbers that a module learns."""
    return sum(weight.numel() for weight in module.parameters())


def _words(
    tokenizer: BertTokenizer, tokens: list[Token], output: Any, count: int = 5
) -> dict[str, Any] | None:
    """The most probable words at each [MASK]."""
    logits = output.logits if "logits" in output else output.prediction_logits
    masks = [token.position for token in tokens if token.id == tokenizer.mask_token_id]
    found = []
    for position in masks:
        best = torch.softmax(logits[0, position].float(), -1).topk(count)
        pieces = tokenizer.convert_ids_to_tokens(best.indices.tolist())
        words = [
            {"token": str(piece), "score": round(float(score), 6)}
            for piece, score in zip(pieces, best.values, strict=True)
        ]
        found.append({"position": position, "words": words})
    return {"masks": found} if found else None


__all__ = ["FilbertError", "Inspection", "Station", "Token", "inspect_text"]
