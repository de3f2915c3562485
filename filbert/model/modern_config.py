"""ModernBertConfig: the numbers that define a ModernBERT, and which of the two kinds a folder has.

Fields are those of ModernBERT (Warner et al. 2024, arXiv 2412.13663) in Hugging Face Transformers.
Its configuration has been written in two ways: `global_attn_every_n_layers`, `global_rope_theta`
and `local_rope_theta` up to Transformers 4, `layer_types` and `rope_parameters` since 5. Both are
read, both are written. Needs no torch.

    >>> ModernBertConfig(num_hidden_layers=4).kinds
    ['full_attention', 'sliding_attention', 'sliding_attention', 'full_attention']
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from filbert.errors import FilbertError
from filbert.model.config import BOOKKEEPING, BertConfig, EncoderConfig, is_number, read_values

GLOBAL, LOCAL = "full_attention", "sliding_attention"
POOLINGS = ("cls", "mean")
_THETA = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}


@dataclass(kw_only=True)
class ModernBertConfig(EncoderConfig):
    """The shape of a ModernBERT. Defaults are ModernBERT-base (arXiv 2412.13663, table 4).

    Raises `FilbertError` for a value of the wrong type or out of range.
    """

    kind: ClassVar[str] = "modernbert"
    title: ClassVar[str] = "ModernBERT"
    dropouts: ClassVar[tuple[str, ...]] = (
        *("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"),
    )
    fractions: ClassVar[tuple[str, ...]] = ("initializer_range", "norm_eps")
    flags: ClassVar[tuple[str, ...]] = (
        *("norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias"),
    )
    # How other programs compute; what comes out is the same.
    bookkept: ClassVar[set[str]] = BOOKKEEPING | {
        *("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"),
        *("sparse_prediction", "sparse_pred_ignore_index"),
        *("layer_norm_eps", "position_embedding_type"),  # in the released files, read by nobody
    }

    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152  # of each half of the gated layer
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_cutoff_factor: float = 2.0  # weights are drawn within that many deviations
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pad_token_id: int | None = 50283
    global_attn_every_n_layers: int = 3  # layers 0, 3, 6 ... see the whole text
    layer_types: list[str] | None = None  # a pattern that "every n" cannot say
    local_attention: int = 128  # the others see this window: half of it to each side, and the token
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    mlp_bias: bool = False
    mlp_dropout: float = 0.0
    decoder_bias: bool = True
    classifier_pooling: str = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    model_type: str = "modernbert"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("global_attn_every_n_layers", "local_attention"):
            self._check_count(name)
        for name in ("hidden_activation", "classifier_activation"):
            self._check_activation(name)
        for name in (*_THETA.values(), "initializer_cutoff_factor"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise FilbertError(f"config: {name} must be a number over 0, got {value!r}")
        if self.head_size % 2:
            raise FilbertError(
                f"config: hidden_size / num_attention_heads is {self.head_size}; rotary positions "
                "turn pairs of numbers, so it must be even"
            )
        if self.classifier_pooling not in POOLINGS:
            raise FilbertError(
                f"config: classifier_pooling {self.classifier_pooling!r} is not one of "
                f"{', '.join(POOLINGS)}"
            )
        kinds = self.layer_types
        if kinds is not None and (
            not isinstance(kinds, list)
            or len(kinds) != self.num_hidden_layers
            or any(kind not in _THETA for kind in kinds)
        ):
            raise FilbertError(
                f"config: layer_types must list {GLOBAL!r} or {LOCAL!r} for each of the "
                f"{self.num_hidden_layers} layers, got {kinds!r:.200}"
            )

    @property
    def kinds(self) -> list[str]:
        """What each layer's attention sees: `full_attention` or `sliding_attention`."""
        if self.layer_types is not None:
            return self.layer_types
        return every(self.global_attn_every_n_layers, self.num_hidden_layers)

    def theta(self, kind: str) -> float:
        """The base of the rotary angles of layers of one kind."""
        return float(getattr(self, _THETA[kind]))

    def weight_sizes(self) -> dict[str, tuple[int, ...]]:
        """Ending of a tensor's name -> the shape that this configuration asks of it, for a few."""
        hidden = self.hidden_size
        return {
            "embeddings.tok_embeddings.weight": (self.vocab_size, hidden),
            "layers.0.attn.Wqkv.weight": (3 * hidden, hidden),
            "layers.0.mlp.Wi.weight": (2 * self.intermediate_size, hidden),
            f"layers.{self.num_hidden_layers - 1}.attn.Wqkv.weight": (3 * hidden, hidden),
        }

    @classmethod
    def translate(cls, values: dict[str, Any], *, source: str) -> dict[str, Any]:
        """The spelling of Transformers 5 as the fields above; refuses other rotary positions."""
        if values.get("model_type") != cls.kind:
            return values
        values = dict(values)
        if (scaling := values.pop("rope_scaling", None)) is not None:
            raise FilbertError(f"{source}: rope_scaling {scaling!r:.80} is not supported")
        if values.get("initializer_cutoff_factor", 0) is None:
            values["initializer_cutoff_factor"] = 3.0  # as Transformers reads it
        for kind, given in (values.pop("rope_parameters", None) or {}).items():
            plain = isinstance(given, dict) and given.get("rope_type", "default") == "default"
            if kind not in _THETA or not plain or set(given) - {"rope_type", "rope_theta"}:
                raise FilbertError(
                    f"{source}: rope_parameters of {kind!r:.40} are {given!r:.120}; supported are "
                    f"rope_type 'default' and rope_theta for {' and '.join(_THETA)}"
                )
            if "rope_theta" in given:
                values[_THETA[kind]] = given["rope_theta"]
        kinds, layers = values.get("layer_types"), values.get("num_hidden_layers", 22)
        if isinstance(kinds, list) and len(kinds) == layers:
            first = values.get("global_attn_every_n_layers", 3)
            for step in [first, *range(1, layers + 1)]:
                if isinstance(step, int) and step > 0 and every(step, layers) == kinds:
                    values.update(layer_types=None, global_attn_every_n_layers=step)
                    break
        return values

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, in both spellings, so that every Transformers reads it."""
        rope = {kind: {"rope_type": "default", "rope_theta": self.theta(kind)} for kind in _THETA}
        return {**super().to_dict(), "layer_types": self.kinds, "rope_parameters": rope}


def every(step: int, layers: int) -> list[str]:
    """Kinds of `layers` layers of which each `step`-th, from the first on, sees the whole text."""
    return [LOCAL if layer % step else GLOBAL for layer in range(layers)]


def read_any_config(folder: Path) -> BertConfig | ModernBertConfig:
    """The configuration of whichever encoder `folder` holds. Raises `FilbertError` for others."""
    values, source = read_values(folder)
    modern = isinstance(values, dict) and values.get("model_type") == ModernBertConfig.kind
    return (ModernBertConfig if modern else BertConfig).from_dict(values, source=source)
