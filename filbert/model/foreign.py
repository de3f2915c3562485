"""RoBERTa, DistilBERT and ELECTRA checkpoints, read as the BERT that each of them is inside.

All three compute BERT's equations and differ in what stands around them:

- RoBERTa (Liu et al. 2019, arXiv 1907.11692) counts positions from `pad_token_id + 1`, so the first
  rows of its position table belong to no token; they are left out. Its padding tokens have no
  position: pad after a text, never before it.
- DistilBERT (Sanh et al. 2019, arXiv 1910.01108) has no token types and no pooler; rows of zeros
  stand in for the former, and a pooler starts afresh.
- ELECTRA (Clark et al. 2020, arXiv 2003.10555) projects narrow embeddings up, as `embedding_size`
  does here. Its generator predicts words; its discriminator is an encoder without pooler.

Names of tensors are in `filbert.model.names`. What a BERT cannot represent is refused. What
`save_pretrained` writes afterwards is a BERT's folder.

    >>> read_values_as_bert({"model_type": "distilbert", "dim": 64})["hidden_size"]
    64

tests/numerics/test_foreign_checkpoints.py compares with `transformers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from filbert.errors import FilbertError
from filbert.model.names import LAYOUTS, from_layout

if TYPE_CHECKING:
    from torch import Tensor

# What Transformers means where a configuration leaves a key out, as far as it is not BERT's own.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "distilbert": {"num_hidden_layers": 6, "classifier_dropout": 0.2},
    "electra": {
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
}
_DISTILBERT_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "activation": "hidden_act",
    "seq_classif_dropout": "classifier_dropout",
}
# About heads that a BERT does not have, or about how a table was first filled.
_LEFT_OUT = {
    "qa_dropout", "sinusoidal_pos_embds", "tie_weights_", "summary_type", "summary_use_proj",
    "summary_activation", "summary_last_dropout",
}  # fmt: skip
_CLASS = {"roberta": "Roberta", "distilbert": "DistilBert", "electra": "Electra"}
# The classification head has an activation of its own where BERT's pooler has tanh.
_OTHER_HEAD = {"distilbert": "a layer with ReLU", "electra": "a layer with GELU"}
# The word head computes GELU whatever `hidden_act` says.
_GELU_HEAD = ("roberta", "electra")
_POSITIONS = "bert.embeddings.position_embeddings.weight"


def read_values_as_bert(values: dict[str, Any], *, source: str = "config") -> dict[str, Any]:
    """The parsed `config.json` of a RoBERTa, DistilBERT or ELECTRA as that of a BERT.

    Anything else comes back as it is. Raises `FilbertError` for a position table with no room.
    """
    layout = layout_of(values)
    if layout is None:
        return values
    kept = {key: value for key, value in values.items() if key not in _LEFT_OUT}
    if layout == "distilbert":
        kept = {_DISTILBERT_KEYS.get(key, key): value for key, value in kept.items()}
        kept.update(type_vocab_size=2, layer_norm_eps=1e-12)  # fixed in its code
    kept = {**_DEFAULTS[layout], **kept, "model_type": "bert"}
    if layout == "roberta":
        rows, unused = kept.get("max_position_embeddings", 512), _unused_positions(kept, source)
        if isinstance(rows, bool) or not isinstance(rows, int) or rows <= unused:
            raise FilbertError(
                f"{source}: max_position_embeddings must be an integer over {unused} (a RoBERTa "
                f"counts positions from pad_token_id + 1), got {rows!r}"
            )
        kept["max_position_embeddings"] = rows - unused
    if isinstance(names := kept.get("architectures"), list):
        kept["architectures"] = [_architecture(str(name), layout) for name in names]
    return kept


def layout_of(values: dict[str, Any]) -> str | None:
    """`roberta`, `distilbert` or `electra` if a parsed `config.json` says so, else None."""
    kind = values.get("model_type") if isinstance(values, dict) else None
    return kind if isinstance(kind, str) and kind in LAYOUTS else None


def read_tensors_as_bert(
    values: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    hidden_act: str,
    wanted: Iterable[str],
    new_head: bool,
    source: str,
) -> dict[str, Tensor]:
    """The tensors of such a checkpoint under our names, as a BERT computes with them.

    values: its parsed `config.json`; hidden_act: that of the BERT; wanted: names of the tensors of
    the model that will be filled; new_head: its classification head shall start afresh. Names that
    no table knows stay as they are. Raises `FilbertError` for a head that a BERT has no place for.
    """
    layout = layout_of(values)
    if layout is None:
        return tensors
    wanted = set(wanted)
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = from_layout(layout, name) or name
        if new in ours and name.startswith(f"{layout}.pooler."):
            continue  # an unused pooler beside a classification head, which has its place
        ours[new] = tensor
    _check_heads(layout, ours, wanted, hidden_act=hidden_act, new_head=new_head, source=source)
    if layout in _OTHER_HEAD:
        ours = {n: t for n, t in ours.items() if not n.startswith(("classifier.", "pre_class"))}
    if layout == "roberta" and _POSITIONS in ours:
        ours[_POSITIONS] = ours[_POSITIONS][_unused_positions(values, source) :]
    words = ours.get("bert.embeddings.word_embeddings.weight")
    if layout == "distilbert" and words is not None:
        types = words.new_zeros(2, words.shape[-1])
        ours["bert.embeddings.token_type_embeddings.weight"] = types
    return ours


def _check_heads(
    layout: str,
    ours: dict[str, Tensor],
    wanted: set[str],
    *,
    hidden_act: str,
    new_head: bool,
    source: str,
) -> None:
    classifies = any(name.startswith("classifier.") for name in ours)
    if layout in _OTHER_HEAD and classifies and "classifier.weight" in wanted and not new_head:
        raise FilbertError(
            f"{source}: the classification head of this {layout} has {_OTHER_HEAD[layout]} where a "
            "BERT has its tanh pooler, so its answers cannot be computed here. Pass new_head=True "
            "to train a new head on its encoder"
        )
    predicts = any(name.startswith("cls.predictions.transform.") for name in ours)
    predicts = predicts and any(name.startswith("cls.predictions.") for name in wanted)
    if layout in _GELU_HEAD and predicts and hidden_act != "gelu":
        raise FilbertError(
            f"{source}: this {layout} predicts words through GELU but its layers use "
            f"{hidden_act!r}; a BERT has one activation for both. Open it as BertModel"
        )


def _unused_positions(values: dict[str, Any], source: str) -> int:
    pad = values.get("pad_token_id", _DEFAULTS["roberta"]["pad_token_id"])
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise FilbertError(
            f"{source}: pad_token_id must be an integer from 0 (a RoBERTa counts positions from "
            f"pad_token_id + 1), got {pad!r}"
        )
    return pad + 1


def _architecture(name: str, layout: str) -> str:
    rest = name.removeprefix(_CLASS[layout])
    if rest == name:
        return name
    # ELECTRA's discriminator is called ForPreTraining: the encoder is what a BERT can take of it.
    return "BertModel" if rest == "ForPreTraining" else f"Bert{rest}"
