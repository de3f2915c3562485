"""What every model shares: from_pretrained, save_pretrained, the reference's initial weights."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from filbert.atomic import make_folder
from filbert.errors import FilbertError
from filbert.model.attention import PATHS
from filbert.model.config import BertConfig, EncoderConfig, read_values
from filbert.model.foreign import layout_of, read_tensors_as_bert
from filbert.sources import resolve

logger = logging.getLogger("filbert")


class PretrainedModel(nn.Module):
    """A model with its configuration, opened from and written to the Hugging Face folder layout."""

    config_class: ClassVar[type[EncoderConfig]] = BertConfig
    words_name: ClassVar[str] = "word_embeddings"  # among the embeddings
    may_go_native: bool = True  # whether `for_inference` looks for the native encoder

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config

    def __call__(self, *inputs: Any, return_dict: bool = True, **options: Any) -> Any:
        """Run `forward`; with `return_dict=False` the results come as a plain tuple."""
        output = super().__call__(*inputs, **options)
        return output if return_dict else output.to_tuple()

    def eval(self) -> Self:
        """As torch's, but it does not walk through all modules again where that was done: with one
        short text at a time this walk would take longer than the tokenizer."""
        return super().eval() if self.training else self

    def initialise(self) -> None:
        """Draw fresh weights as google-research/bert does: normal(0, initializer_range), zero
        biases, norms of one; then tie what is tied."""
        for module in self.children():
            if not isinstance(module, PretrainedModel):  # drawn by its own constructor
                module.apply(self._draw)
        self.tie_weights()

    def _draw(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()

    def tie_weights(self) -> None:
        """Share tensors between modules; models without tied weights have nothing to do."""

    def set_attention(self, path: str) -> None:
        """Choose the attention path for padded batches: `sdpa` (or `packed`) and `eager`."""
        if path not in PATHS:
            raise FilbertError(
                f"unknown attention path {path!r}; expected one of {', '.join(PATHS)}"
            )
        for module in self.modules():
            if "attention_path" in vars(module):
                vars(module)["attention_path"] = path

    def gradient_checkpointing_enable(self, enabled: bool = True) -> None:
        """Trade compute for memory: each layer is computed again in the backward pass."""
        for module in self.modules():
            if "gradient_checkpointing" in vars(module):
                vars(module)["gradient_checkpointing"] = enabled

    @property
    def base_model(self) -> PretrainedModel:
        """The encoder below the heads; an encoder is its own."""
        inner = (child for child in self.children() if isinstance(child, PretrainedModel))
        return next(inner, self)

    def get_input_embeddings(self) -> nn.Embedding:
        """The matrix that words are read with, whatever its name."""
        embeddings: Any = self.base_model.embeddings
        matrix: nn.Embedding = getattr(embeddings, self.words_name)
        return matrix

    def set_input_embeddings(self, matrix: nn.Embedding) -> None:
        """Read words with another matrix; `tie_weights` then lets the word head follow."""
        setattr(self.base_model.embeddings, self.words_name, matrix)

    def compile_parts(self) -> None:
        """Compile what works on each token alone (embeddings, projections with their activation,
        residual and norm), for any number of tokens. Attention, whose calls follow the lengths of
        the texts, stays as it is. Takes some 20 s at the first step, and a C++ compiler on a
        CPU."""
        for module in self.modules():
            if getattr(module, "each_token_alone", False):
                module.compile(dynamic=True)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        config: EncoderConfig | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        dtype: torch.dtype | None = None,
        new_head: bool = False,
        **changes: Any,
    ) -> Self:
        """Open a model: a folder, a name that an installed package carries, or a hub name.

        The classes of BERT read RoBERTa, DistilBERT and ELECTRA checkpoints too (their encoders,
        word heads and RoBERTa's classification head), see `filbert.model.foreign`.

        `changes` override fields of the configuration (`num_labels=3`, `hidden_dropout_prob=0`).
        Weights that the folder lacks are drawn afresh and told in one table through the log;
        `new_head=True` says that a new head is wanted, so that it is not told. The model is
        returned in evaluation mode, float32 unless `dtype` says otherwise.

        Raises `FilbertError` if the folder has no usable weights, the encoder does not fit, or the
        configuration is another kind of model's.
        """
        from filbert.model.weights import load_into, read_weights

        folder = resolve(name, revision=revision)
        values: dict[str, Any] = {}
        if config is None or (folder / "config.json").is_file():
            values, file = read_values(folder)
        config = cls.config_class.from_dict(values, source=file) if config is None else config
        if changes:
            config = config.replace(**changes)
        tensors = read_weights(folder)
        if layout_of(values) is not None:
            with torch.device("meta"):  # names alone
                wanted = set(cls(config.replace(num_hidden_layers=1)).state_dict())
            tensors = read_tensors_as_bert(
                values,
                tensors,
                hidden_act=getattr(config, "hidden_act", ""),
                wanted=wanted,
                new_head=new_head,
                source=str(name),
            )
        check_sizes(config, tensors, source=str(name))  # before memory is taken for them
        model = cls(config)
        report = load_into(
            model,
            tensors,
            source=str(name),
            may_be_missing=HEADS,
            ignore_unexpected=HEADS,
        )
        drawn = [n for n in (*report.missing, *report.mismatched) if not n.startswith(ENCODER)]
        if report and not (new_head and drawn == [*report.missing, *report.mismatched]):
            logger.warning("%s", report)
        model.tie_weights()
        if attn_implementation is not None:
            model.set_attention(attn_implementation)
        return model.to(dtype or torch.float32).eval()

    def save_pretrained(
        self, folder: str | PathLike[str], *, max_shard_bytes: int = 5_000_000_000
    ) -> None:
        """Write `config.json` and `model.safetensors` so that Transformers opens them unchanged."""
        from filbert.model.weights import write_weights

        target = Path(folder)
        make_folder(target)
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(target)
        write_weights(self.state_dict(), target, max_shard_bytes=max_shard_bytes)


ENCODER = (
    *("bert.embeddings.", "bert.encoder.", "embeddings.", "encoder."),
    *("model.", "layers.", "final_norm."),  # a ModernBERT's
)
HEADS = (
    *("classifier.", "cls.", "bert.pooler.", "pooler.", "qa_outputs.", "head.", "decoder."),
    *("discriminator_predictions.", "lm_head."),  # an ELECTRA's and a RoBERTa's
)


def check_sizes(config: EncoderConfig, tensors: dict[str, torch.Tensor], *, source: str) -> None:
    """Raise `FilbertError` where the configuration asks for another size than the weights have, so
    that a wrong number in a file is told instead of filling the memory."""
    for ending, size in config.weight_sizes().items():
        found = [tuple(tensor.shape) for name, tensor in tensors.items() if name.endswith(ending)]
        if not found:
            raise FilbertError(
                f"{source}: the weights have no {ending}, which the configuration "
                f"({config.num_hidden_layers} layers) asks for: the two do not belong together, or "
                f"this is not a {config.title}"
            )
        if found[0] != size:
            raise FilbertError(
                f"{source}: {ending} is {found[0]} in the weights, but the configuration asks for "
                f"{size}: the two do not belong together"
            )
