"""Seq2SeqConfig: the `config.json` of an encoder-decoder, as `EncoderDecoderModel` of Hugging Face
Transformers reads and writes it: one BERT's configuration under `encoder`, one under `decoder`,
and the tokens that begin, end and pad what is generated.

What is asked of a model as a whole (`vocab_size`, `hidden_size`, `max_position_embeddings` ...) is
answered for the encoder, the side that reads. The schema is closed, as in `filbert.model.config`.

    >>> config = Seq2SeqConfig(encoder=BertConfig(), decoder=BertConfig(vocab_size=8000))
    >>> config.decoder.vocab_size
    8000
"""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from filbert.atomic import write_file
from filbert.errors import FilbertError, did_you_mean
from filbert.model.config import BertConfig, EncoderConfig, check_names, read_values

logger = logging.getLogger("filbert")

GENERATION = "generation_config.json"
TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
_SIDES = ("encoder", "decoder")
# Defaults of `generate` that older Transformers wrote into every configuration, a BERT's included.
_OF_GENERATE = {
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
    "temperature", "top_k",
    "top_p", "typical_p", "decoder_start_token_id", "task_specific_params", "tokenizer_class",
    "use_bfloat16", "pruned_heads",
}  # fmt: skip


class Seq2SeqConfig(EncoderConfig):
    """Both sides of an encoder-decoder. Raises `FilbertError` for a value that cannot be.

    decoder_start_token_id: what the decoder reads first, [CLS]; eos_token_id: what ends a text,
    [SEP]; pad_token_id: what fills padded labels. Ids are those of the decoder's vocabulary.
    tie_encoder_decoder: one set of weights serves both sides (cross-attention apart).
    """

    kind: ClassVar[str] = "encoder-decoder"
    title: ClassVar[str] = "encoder-decoder"
    dropouts: ClassVar[tuple[str, ...]] = BertConfig.dropouts

    def __init__(
        self,
        *,
        encoder: BertConfig,
        decoder: BertConfig,
        decoder_start_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        tie_encoder_decoder: bool = False,
        architectures: list[str] | None = None,
        bookkeeping: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.decoder_start_token_id = decoder_start_token_id
        self.eos_token_id = eos_token_id
        self.tie_encoder_decoder = tie_encoder_decoder
        for field in fields(EncoderConfig):  # what the side that reads says of itself
            setattr(self, field.name, getattr(encoder, field.name))
        self.pad_token_id = pad_token_id
        check_names(architectures)
        self.architectures = architectures
        self.model_type = self.kind
        self.bookkeeping, self.extra = bookkeeping or {}, extra or {}
        for name in TOKENS:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and (not whole or not 0 <= value < decoder.vocab_size):
                raise FilbertError(
                    f"config: {name} {value!r} is outside the decoder's vocabulary of "
                    f"{decoder.vocab_size}"
                )
        if not isinstance(tie_encoder_decoder, bool):
            raise FilbertError(
                f"config: tie_encoder_decoder must be true or false, got {tie_encoder_decoder!r}"
            )
        if tie_encoder_decoder and (different := differences(encoder, decoder)):
            raise FilbertError(
                "config: one set of weights for both sides asks for sides of the same shape; they "
                f"differ in {', '.join(different)}"
            )

    def weight_sizes(self) -> dict[str, tuple[int, ...]]:
        """Ending of a tensor's name -> its shape, for a few of each side."""
        own: dict[str, tuple[int, ...]] = {}
        for prefix, config in (("encoder.", self.encoder), ("decoder.bert.", self.decoder)):
            for name, size in config.weight_sizes().items():
                inner = "encoder." if name.startswith("layer.") else ""
                own[f"{prefix}{inner}{name}"] = size
        return own

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "config") -> Self:
        """Read a parsed `config.json`. Raises `FilbertError` for another kind of model, or for
        sides that are no BERT."""
        kind = values.get("model_type") if isinstance(values, dict) else None
        if kind != cls.kind:
            raise FilbertError(
                f"{source}: model_type {kind!r} is no encoder-decoder; expected {cls.kind!r}"
            )
        sides: dict[str, BertConfig] = {}
        for side in _SIDES:
            of_side = values.get(side)
            if not isinstance(of_side, dict) or of_side.get("model_type", "bert") != "bert":
                what = of_side.get("model_type") if isinstance(of_side, dict) else of_side
                raise FilbertError(
                    f"{source}: the {side} is {what!r:.60}; supported are two BERTs (BERT2BERT)"
                )
            other = {*_OF_GENERATE, "is_decoder", "add_cross_attention"}
            plain = {key: value for key, value in of_side.items() if key not in other}
            sides[side] = BertConfig.from_dict(plain, source=f"{source}, {side}")
        decoder = values["decoder"]
        tokens = {name: values.get(name) for name in TOKENS}
        for name, value in tokens.items():  # older files say it of the decoder alone
            tokens[name] = decoder.get(name) if value is None else value
        known = {*_SIDES, *TOKENS, "architectures", "tie_encoder_decoder", "model_type"}
        rest = {key: value for key, value in values.items()
                if key not in known and key not in _OF_GENERATE}  # fmt: skip
        carried = {*cls.bookkept, "vocab_size", "id2label", "label2id", "num_labels"}
        extra = {key: value for key, value in rest.items() if key not in carried}
        if extra:
            logger.warning(
                "%s: keys kept as data and not acted on: %s", source, ", ".join(sorted(extra))
            )
        try:
            return cls(
                encoder=sides["encoder"], decoder=sides["decoder"], **tokens,
                tie_encoder_decoder=values.get("tie_encoder_decoder") or False,
                architectures=values.get("architectures") or ["EncoderDecoderModel"],
                bookkeeping={key: value for key, value in rest.items() if key in cls.bookkept},
                extra=extra,
            )  # fmt: skip
        except FilbertError as error:
            raise FilbertError(f"{source}: {error}") from None

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], *, revision: str | None = None) -> Self:
        """Read the configuration of a folder, an installed name or a hub name; the tokens may
        stand in `generation_config.json`, as Transformers 5 has them."""
        from filbert.sources import resolve

        return cls.from_folder(resolve(name, revision=revision, weights=False))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """`config.json` of `folder`, with the tokens that only `generation_config.json` names."""
        values, source = read_values(folder)
        if isinstance(values, dict) and (folder / GENERATION).is_file():
            try:
                theirs = json.loads((folder / GENERATION).read_text("utf-8"))
            except (ValueError, RecursionError) as error:
                raise FilbertError(f"{folder / GENERATION} is not valid JSON: {error}") from None
            for name in TOKENS:
                if values.get(name) is None and isinstance(theirs, dict):
                    one = theirs.get(name)
                    values = {**values, name: one[0] if isinstance(one, list) and one else one}
        return cls.from_dict(values, source=source)

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, in the layout that Transformers reads."""
        sides = {"encoder": self.encoder.to_dict(), "decoder": self.decoder.to_dict()}
        for side, flag in (("encoder", False), ("decoder", True)):
            sides[side] |= {"is_decoder": flag, "add_cross_attention": flag}
        return {
            **self.extra,
            **self.bookkeeping,
            "architectures": ["EncoderDecoderModel"],
            "model_type": self.kind,
            "is_encoder_decoder": True,
            "tie_encoder_decoder": self.tie_encoder_decoder,
            "tie_word_embeddings": self.bookkeeping.get("tie_word_embeddings", True),
            **sides,
            **{name: getattr(self, name) for name in TOKENS},
            "dtype": "float32",
        }

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. A field of a BERT (`hidden_dropout_prob`) is changed on
        both sides; `encoder` and `decoder` replace a side."""
        own = {name: getattr(self, name) for name in (*_SIDES, *TOKENS, "tie_encoder_decoder",
               "architectures", "bookkeeping", "extra")}  # fmt: skip
        on_both = {key: value for key, value in changes.items() if key not in own}
        known = {field.name for field in fields(BertConfig)}
        for key in on_both:
            if key not in known:
                raise FilbertError(
                    f"unknown option {key!r} for an encoder-decoder."
                    f"{did_you_mean(key, known | set(own))}"
                )
        own |= {key: value for key, value in changes.items() if key in own}
        if on_both:
            own |= {side: own[side].replace(**on_both) for side in _SIDES}
        return type(self)(**own)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json`, and `generation_config.json` with the tokens."""
        super().save_pretrained(folder)
        tokens = {name: getattr(self, name) for name in TOKENS if getattr(self, name) is not None}
        if self.decoder_start_token_id is not None:
            tokens["bos_token_id"] = self.decoder_start_token_id
        write_file(Path(folder) / GENERATION, json.dumps(tokens, indent=2, sort_keys=True) + "\n")


def differences(encoder: BertConfig, decoder: BertConfig) -> list[str]:
    """Names of the fields that keep two BERTs from sharing weights."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "intermediate_size", "max_position_embeddings", "type_vocab_size", "embedding_size",
             "hidden_act", "layer_norm_eps")  # fmt: skip
    return [name for name in names if getattr(encoder, name) != getattr(decoder, name)]
