"""A BERT in TensorFlow's own operations, from its weights: a SavedModel for TensorFlow Serving.

The same steps as `filbert/model/plain.py`, with the names of the weights as they are there:

    signature serving_default
    input_ids, attention_mask, token_type_ids       (batch, length) int32
    logits, start_logits, end_logits, last_hidden_state      as there

TensorFlow is imported when a model is written; filbert itself never computes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from filbert.errors import FilbertError
from filbert.model.bert import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from filbert.model.config import BertConfig
from filbert.model.plain import PlainModel
from filbert.model.pretrained import PretrainedModel
from filbert.model.runtime import Arrays, Runtime
from filbert.model.span_head import BertForQuestionAnswering

MASKED = -3.4028234663852886e38  # the lowest float32, at what a query must not see


def write(graph: PlainModel, folder: Path) -> None:
    """Write the model of `graph` as a SavedModel into `folder`, any number of texts of any length.
    Raises `FilbertError` for a ModernBERT."""
    import tensorflow as tf

    if graph.modern:
        raise FilbertError(
            "a ModernBERT is not written for TensorFlow; export it with --format onnx"
        )
    compute = Computation(tf, graph.model)
    holder = tf.Module()
    holder.weights = list(compute.weights.values())  # what a module has is saved with it
    shape = tf.TensorSpec([None, None], tf.int32)

    def answer(input_ids: Any, attention_mask: Any, token_type_ids: Any) -> dict[str, Any]:
        found = compute(input_ids, attention_mask, token_type_ids)
        return dict(zip(graph.outputs, found, strict=True))

    specs = [tf.TensorSpec(shape.shape, shape.dtype, name=name) for name in graph.inputs]
    holder.answer = tf.function(answer, input_signature=specs, autograph=False)
    folder.mkdir(parents=True)
    tf.saved_model.save(holder, str(folder), signatures=holder.answer)


def open_again(folder: Path, graph: PlainModel) -> Runtime:
    """The SavedModel that was just written, as TensorFlow opens it."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))  # kept alive by the closure: it owns the weights
    signature = loaded.signatures["serving_default"]

    def run(arrays: Arrays) -> Arrays:
        given = {name: tf.constant(values.astype(np.int32)) for name, values in arrays.items()}
        return {name: value.numpy() for name, value in signature(**given).items()}

    return Runtime("tensorflow", graph.inputs, run)


class Computation:
    """The forward pass of a BERT with one of its heads; `weights`: those it uses, by name."""

    def __init__(self, tf: Any, model: PretrainedModel) -> None:
        assert isinstance(model.config, BertConfig)
        self.tf, self.model, self.config = tf, model, model.config
        self.prefix = "" if model.base_model is model else "bert."
        values = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        tied = "cls.predictions.decoder.weight"  # the embedding's own matrix
        self.weights = {
            name: tf.Variable(value, trainable=False, name=name.replace(".", "_"))
            for name, value in values.items()
            if name != tied
        }
        activations: dict[str, Callable[[Any], Any]] = {
            "gelu": lambda x: tf.nn.gelu(x, approximate=False),
            "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
            "gelu_pytorch_tanh": lambda x: tf.nn.gelu(x, approximate=True),
            "relu": tf.nn.relu,
            "silu": tf.nn.silu,
            "swish": tf.nn.silu,
            "tanh": tf.tanh,
        }
        self.activation = activations[self.config.hidden_act]

    def __call__(self, ids: Any, mask: Any, types: Any) -> tuple[Any, ...]:
        """The outputs of the head, in the order of `PlainModel.outputs`."""
        hidden = self.states(ids, mask, types)
        model = self.model
        if isinstance(model, BertForSequenceClassification):
            pooled = self.tf.tanh(self.linear(hidden[:, 0], "bert.pooler.dense"))
            return (self.linear(pooled, "classifier"),)
        if isinstance(model, BertForTokenClassification):
            return (self.linear(hidden, "classifier"),)
        if isinstance(model, BertForQuestionAnswering):
            both = self.linear(hidden, "qa_outputs")
            return both[..., 0], both[..., 1]
        if isinstance(model, BertForMaskedLM | BertForPreTraining):
            hidden = self.activation(self.linear(hidden, "cls.predictions.transform.dense"))
            hidden = self.norm(hidden, "cls.predictions.transform.LayerNorm")
            words = self.weights["bert.embeddings.word_embeddings.weight"]
            scores = self.tf.matmul(hidden, words, transpose_b=True)
            return (scores + self.weights["cls.predictions.bias"],)
        return (hidden,)

    def states(self, ids: Any, mask: Any, types: Any) -> Any:
        """(batch, length, hidden) the states after the last layer."""
        tf, config = self.tf, self.config
        name = f"{self.prefix}embeddings."
        tables = (f"{name}{kind}_embeddings.weight" for kind in ("word", "token_type", "position"))
        words, kinds, places = (self.weights[table] for table in tables)
        hidden = (
            tf.gather(words, ids)
            + tf.gather(kinds, types)
            + tf.gather(places, tf.range(tf.shape(ids)[1]))[None]
        )
        hidden = self.norm(hidden, f"{name}LayerNorm")
        if config.factorised:
            hidden = self.linear(hidden, f"{name}embedding_projection")
        hide = tf.where(mask[:, None, None, :] > 0, 0.0, MASKED)  # (batch, 1, 1, length)
        for number in range(config.num_hidden_layers):
            hidden = self.layer(hidden, hide, f"{self.prefix}encoder.layer.{number}.")
        return hidden

    def layer(self, hidden: Any, hide: Any, name: str) -> Any:
        """One block; see `BertLayer`."""
        tf, heads, size = self.tf, self.config.num_attention_heads, self.config.head_size
        shape = tf.shape(hidden)
        query, key, value = (
            tf.transpose(
                tf.reshape(
                    self.linear(hidden, f"{name}attention.self.{part}"),
                    [shape[0], shape[1], heads, size],
                ),
                [0, 2, 1, 3],
            )
            for part in ("query", "key", "value")
        )  # each (batch, heads, length, head_size)
        scores = tf.matmul(query, key, transpose_b=True) / float(np.sqrt(size))
        context = tf.matmul(tf.nn.softmax(scores + hide), value)
        context = tf.reshape(
            tf.transpose(context, [0, 2, 1, 3]), [shape[0], shape[1], heads * size]
        )
        update = self.linear(context, f"{name}attention.output.dense")
        hidden = self.norm(hidden + update, f"{name}attention.output.LayerNorm")
        inner = self.activation(self.linear(hidden, f"{name}intermediate.dense"))
        update = self.linear(inner, f"{name}output.dense")
        return self.norm(hidden + update, f"{name}output.LayerNorm")

    def linear(self, x: Any, name: str) -> Any:
        """x W^T + b; the weight is kept as PyTorch has it, (out, in)."""
        out = self.tf.matmul(x, self.weights[f"{name}.weight"], transpose_b=True)
        return out + self.weights[f"{name}.bias"]

    def norm(self, x: Any, name: str) -> Any:
        """Layer normalisation over the last axis."""
        tf = self.tf
        mean = tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axis=-1, keepdims=True)
        scaled = (x - mean) * tf.math.rsqrt(variance + self.config.layer_norm_eps)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
