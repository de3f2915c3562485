"""One reversible table between the names that tensors have elsewhere and the names they have here.

Ours are those of Hugging Face Transformers (`bert.encoder.layer.0.attention.self.query.weight`).
The foreign layouts are google-research/bert's TensorFlow variables
(`bert/encoder/layer_0/attention/self/query/kernel`, where a dense kernel is stored as (in, out) and
ours as (out, in)); older PyTorch files, which say `gamma` / `beta` for a LayerNorm's `weight` /
`bias` and may leave out the leading `bert.`; and the RoBERTa, DistilBERT and ELECTRA of
Transformers (`LAYOUTS`). Every foreign spelling of a tensor lives in this file and nowhere else, so
a new layout is a few new rows.

    >>> from_google("bert/encoder/layer_3/output/dense/kernel")
    ('bert.encoder.layer.3.output.dense.weight', True)
    >>> to_google("cls.seq_relationship.weight")
    ('cls/seq_relationship/output_weights', False)
    >>> from_pytorch("embeddings.LayerNorm.gamma")
    'bert.embeddings.LayerNorm.weight'
    >>> from_layout("distilbert", "distilbert.transformer.layer.3.ffn.lin1.bias")
    'bert.encoder.layer.3.intermediate.dense.bias'
"""

from __future__ import annotations

import re

# (ours, Google's); `#` stands for the number of the layer. Stored alike, never transposed.
_TENSORS = (
    ("bert.embeddings.word_embeddings.weight", "bert/embeddings/word_embeddings"),
    ("bert.embeddings.position_embeddings.weight", "bert/embeddings/position_embeddings"),
    ("bert.embeddings.token_type_embeddings.weight", "bert/embeddings/token_type_embeddings"),
    ("cls.predictions.bias", "cls/predictions/output_bias"),
    # Named like an output bias and weight made by tf.get_variable: (out, in) already.
    ("cls.seq_relationship.weight", "cls/seq_relationship/output_weights"),
    ("cls.seq_relationship.bias", "cls/seq_relationship/output_bias"),
    ("classifier.weight", "output_weights"),  # run_classifier.py's head has no scope
    ("classifier.bias", "output_bias"),
    ("qa_outputs.weight", "cls/squad/output_weights"),
    ("qa_outputs.bias", "cls/squad/output_bias"),
)
# weight / bias here, kernel / bias there, kernel transposed.
_DENSE = (
    # ALBERT's name for the projection of factorised embeddings; bert4keras (SimBERT) uses it too.
    ("bert.embeddings.embedding_projection", "bert/encoder/embedding_hidden_mapping_in"),
    ("bert.encoder.layer.#.attention.self.query", "bert/encoder/layer_#/attention/self/query"),
    ("bert.encoder.layer.#.attention.self.key", "bert/encoder/layer_#/attention/self/key"),
    ("bert.encoder.layer.#.attention.self.value", "bert/encoder/layer_#/attention/self/value"),
    ("bert.encoder.layer.#.attention.output.dense", "bert/encoder/layer_#/attention/output/dense"),
    ("bert.encoder.layer.#.intermediate.dense", "bert/encoder/layer_#/intermediate/dense"),
    ("bert.encoder.layer.#.output.dense", "bert/encoder/layer_#/output/dense"),
    ("bert.pooler.dense", "bert/pooler/dense"),
    ("cls.predictions.transform.dense", "cls/predictions/transform/dense"),
)
# weight / bias here, gamma / beta there.
_NORMS = (
    ("bert.embeddings.LayerNorm", "bert/embeddings/LayerNorm"),
    (
        "bert.encoder.layer.#.attention.output.LayerNorm",
        "bert/encoder/layer_#/attention/output/LayerNorm",
    ),
    ("bert.encoder.layer.#.output.LayerNorm", "bert/encoder/layer_#/output/LayerNorm"),
    ("cls.predictions.transform.LayerNorm", "cls/predictions/transform/LayerNorm"),
)

# (ours, Google's, transposed): the whole table.
TABLE: tuple[tuple[str, str, bool], ...] = (
    *((ours, google, False) for ours, google in _TENSORS),
    *((f"{ours}.weight", f"{google}/kernel", True) for ours, google in _DENSE),
    *((f"{ours}.bias", f"{google}/bias", False) for ours, google in _DENSE),
    *((f"{ours}.weight", f"{google}/gamma", False) for ours, google in _NORMS),
    *((f"{ours}.bias", f"{google}/beta", False) for ours, google in _NORMS),
)
_FROM_GOOGLE = {google: (ours, transposed) for ours, google, transposed in TABLE}
_TO_GOOGLE = {ours: (google, transposed) for ours, google, transposed in TABLE}

# (ours, theirs) of whole modules: a weight and a bias each.
_DISTILBERT = (
    ("bert.encoder.layer.#.attention.self.query", "distilbert.transformer.layer.#.attention.q_lin"),
    ("bert.encoder.layer.#.attention.self.key", "distilbert.transformer.layer.#.attention.k_lin"),
    ("bert.encoder.layer.#.attention.self.value", "distilbert.transformer.layer.#.attention.v_lin"),
    (
        "bert.encoder.layer.#.attention.output.dense",
        "distilbert.transformer.layer.#.attention.out_lin",
    ),
    (
        "bert.encoder.layer.#.attention.output.LayerNorm",
        "distilbert.transformer.layer.#.sa_layer_norm",
    ),
    ("bert.encoder.layer.#.intermediate.dense", "distilbert.transformer.layer.#.ffn.lin1"),
    ("bert.encoder.layer.#.output.dense", "distilbert.transformer.layer.#.ffn.lin2"),
    ("bert.encoder.layer.#.output.LayerNorm", "distilbert.transformer.layer.#.output_layer_norm"),
    ("cls.predictions.transform.dense", "vocab_transform"),
    ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
)
_ROBERTA = (
    ("cls.predictions.transform.dense", "lm_head.dense"),
    ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
    # Its classification head is BERT's pooler and classifier: dense, tanh, dense.
    ("bert.pooler.dense", "classifier.dense"),
    ("classifier", "classifier.out_proj"),
)
_ELECTRA = (
    ("bert.embeddings.embedding_projection", "electra.embeddings_project"),
    ("cls.predictions.transform.dense", "generator_predictions.dense"),
    ("cls.predictions.transform.LayerNorm", "generator_predictions.LayerNorm"),
)


def _with_prefix(prefix: str) -> dict[str, str]:
    """Ours -> theirs for the embeddings and layers of a layout that names them as a BERT does."""
    shared = ("bert.embeddings.", "bert.encoder.")
    return {ours: f"{prefix}{ours[4:]}" for ours, *_ in TABLE if ours.startswith(shared)}


def _whole(modules: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {f"{a}.{last}": f"{b}.{last}" for a, b in modules for last in ("weight", "bias")}


# model_type -> ours -> theirs; one name of theirs has one place here.
LAYOUTS: dict[str, dict[str, str]] = {
    "roberta": {
        **_with_prefix("roberta"),
        **_whole(_ROBERTA),
        "cls.predictions.decoder.weight": "lm_head.decoder.weight",
        "cls.predictions.bias": "lm_head.bias",
    },
    "distilbert": {
        **{o: t for o, t in _with_prefix("distilbert").items() if o.startswith("bert.embeddings.")},
        **_whole(_DISTILBERT),
        "cls.predictions.decoder.weight": "vocab_projector.weight",
        "cls.predictions.bias": "vocab_projector.bias",
    },
    "electra": {
        **_with_prefix("electra"),
        **_whole(_ELECTRA),
        "cls.predictions.decoder.weight": "generator_lm_head.weight",
        "cls.predictions.bias": "generator_lm_head.bias",
    },
}
_TO_LAYOUT = {
    layout: {ours: (theirs, False) for ours, theirs in rows.items()}
    for layout, rows in LAYOUTS.items()
}
_FROM_LAYOUT = {
    layout: {theirs: (ours, False) for ours, theirs in rows.items()}
    for layout, rows in LAYOUTS.items()
}
# A bare encoder's file leaves the model's name out; the pooler is not in the tables because
# RoBERTa's classification head takes its place.
_BARE = ("embeddings.", "encoder.", "transformer.", "embeddings_project.", "pooler.")

_GOOGLE_LAYER = re.compile(r"(?<=/layer_)(?:0|[1-9][0-9]{0,3})(?=/)")
_OUR_LAYER = re.compile(r"(?<=\.layer\.)(?:0|[1-9][0-9]{0,3})(?=\.)")

# Counters of TensorFlow's optimizers and of mixed-precision training, which belong to no variable.
_COUNTERS = (
    "global_step", "beta1_power", "beta2_power", "loss_scale", "current_loss_scale", "good_steps",
    "iteration", "save_counter",
)  # fmt: skip
_OLD_NORM = {"gamma": "weight", "beta": "bias"}
_NEW_NORM = {"weight": "gamma", "bias": "beta"}
_ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.")


def from_google(name: str) -> tuple[str, bool] | None:
    """Our name for a TensorFlow variable of google-research/bert, and whether it is transposed.

    None for a variable that is no weight of a BERT we know (see `is_training_state`).
    """
    return _look_up(name, _GOOGLE_LAYER, _FROM_GOOGLE)


def to_google(name: str) -> tuple[str, bool] | None:
    """The inverse of `from_google`: Google's name for one of ours, and whether it is transposed.

    None for a tensor that Google's layout has no place for.
    """
    return _look_up(name, _OUR_LAYER, _TO_GOOGLE)


def is_training_state(name: str) -> bool:
    """Whether a TensorFlow variable belongs to the training and not to the model.

    An optimizer names its slots after the variable they serve: `<variable>/adam_m`,
    `<variable>/AdamWeightDecayOptimizer_1`. So every child of a weight is one, whatever optimizer
    made it.
    """
    parent, _, child = name.rpartition("/")
    return child in _COUNTERS or from_google(parent) is not None


def from_pytorch(name: str) -> str:
    """Our full name for a PyTorch tensor: `gamma` / `beta` renamed, a missing `bert.` put before.

    A name that is already ours comes back as it is.
    """
    head, _, last = name.rpartition(".")
    if last in _OLD_NORM and head.endswith("LayerNorm"):
        name = f"{head}.{_OLD_NORM[last]}"
    return f"bert.{name}" if name.startswith(_ENCODER_PARTS) else name


def to_pytorch(name: str, *, prefix: bool = True, old_norm: bool = False) -> str:
    """The inverse of `from_pytorch`: as in a bare `BertModel`, with `gamma` / `beta`, or both."""
    head, _, last = name.rpartition(".")
    if old_norm and last in _NEW_NORM and head.endswith("LayerNorm"):
        name = f"{head}.{_NEW_NORM[last]}"
    return name if prefix else name.removeprefix("bert.")


def from_layout(layout: str, name: str) -> str | None:
    """Our name for a tensor of a RoBERTa, DistilBERT or ELECTRA (`layout`: a key of `LAYOUTS`).

    None for one that a BERT has no place for, or that it has no name for.
    """
    if name.startswith(_BARE):
        name = f"{layout}.{name}"
    if layout == "roberta" and name.startswith("roberta.pooler.dense."):
        return f"bert.{name.removeprefix('roberta.')}"
    found = _look_up(name, _OUR_LAYER, _FROM_LAYOUT[layout])
    return found and found[0]


def to_layout(layout: str, name: str) -> str | None:
    """The inverse of `from_layout`: their full name for one of ours, None if they have none."""
    found = _look_up(name, _OUR_LAYER, _TO_LAYOUT[layout])
    return found and found[0]


def _look_up(
    name: str, layer: re.Pattern[str], table: dict[str, tuple[str, bool]]
) -> tuple[str, bool] | None:
    # The number is taken out, the row found, the number put back: one row serves every layer.
    number = layer.search(name)
    if number is None:
        return None if "#" in name else table.get(name)
    row = table.get(f"{name[: number.start()]}#{name[number.end() :]}")
    return None if row is None else (row[0].replace("#", number.group()), row[1])
