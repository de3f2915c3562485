"""BertForSeq2SeqLM: an encoder that reads a text and a decoder that writes another one.

The encoder is `BertModel`; the decoder (`filbert.model.decoder`) is a BERT with causal
self-attention and attention over the encoder's states. Rothe et al. 2020 (arXiv 1907.12461) start
both sides from BERT checkpoints: BERT2BERT, BERT2RND, and BERTSHARE where they share weights.
Folders are those of `EncoderDecoderModel` of Hugging Face Transformers, in both directions.

    model = BertForSeq2SeqLM.from_pretrained("runs/en-de")
    model(input_ids=source, attention_mask=mask, labels=target).loss        # padded, -100 ignored
    model(input_ids=ids, lengths=n, decoder_input_ids=before, decoder_lengths=m, labels=after)

The second call is the packed one: texts end to end on both sides and no padding. Generation is in
`filbert.model.generate`.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert.atomic import make_folder
from filbert.errors import FilbertError
from filbert.model.bert import BertForMaskedLM, BertModel
from filbert.model.config import BertConfig, EncoderConfig
from filbert.model.decoder import BertDecoder, PairLayout, causal_mask, make_grid
from filbert.model.losses import token_loss
from filbert.model.outputs import ModelOutput
from filbert.model.pretrained import PretrainedModel, check_sizes
from filbert.model.seq2seq_config import Seq2SeqConfig
from filbert.sources import resolve

__all__ = ["BertForSeq2SeqLM", "EncoderDecoderModel", "Seq2SeqConfig"]

CROSS = ".crossattention."
_LEFT_OUT = ("encoder.pooler.", "decoder.bert.pooler.", "decoder.cls.predictions.decoder.bias",
             "decoder.cls.seq_relationship.")  # fmt: skip


class BertForSeq2SeqLM(PretrainedModel):
    """Encoder and decoder; a linear layer between them where their widths differ."""

    config_class: ClassVar[type[EncoderConfig]] = Seq2SeqConfig
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = BertModel(config.encoder, add_pooling_layer=False)
        self.decoder = BertDecoder(config.decoder)
        if config.encoder.hidden_size != config.decoder.hidden_size:
            self.enc_to_dec_proj = nn.Linear(config.encoder.hidden_size, config.decoder.hidden_size)
        self.attention_path = "packed"  # "eager" or "sdpa" force that path for the decoder
        self.initialise()

    def tie_weights(self) -> None:
        """The decoder's word matrix reads and predicts; with `tie_encoder_decoder` every module of
        the decoder that the encoder has too is the encoder's."""
        if self.config.tie_encoder_decoder:
            for name, module in self.encoder.named_modules():
                if not any(True for _ in module.children()) and any(
                    True for _ in module.parameters()
                ):
                    parent, _, last = name.rpartition(".")
                    setattr(self.decoder.get_submodule(f"bert.{parent}"), last, module)
        self.decoder.tie_weights()

    def encode(self, *inputs: Tensor | None, **options: Any) -> Tensor:
        """The source's states in the decoder's width. Takes what `BertModel.forward` takes."""
        states: Tensor = self.encoder(*inputs, **options).last_hidden_state
        return self.enc_to_dec_proj(states) if hasattr(self, "enc_to_dec_proj") else states

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        decoder_lengths: Tensor | None = None,
        label_smoothing: float = 0.0,
        output_attentions: bool = False,
    ) -> ModelOutput:
        """Score target texts word by word, each word from the source and the words before it.

        Padded: `input_ids` (texts, source), `decoder_input_ids` (texts, target) or, in their place,
        `labels` (texts, target), -100 where nothing is predicted, from which they are made by
        `shift_right`. Returns `loss`, a mean over labels, if they are given, `logits` (texts,
        target, vocabulary), and if asked `decoder_attentions`, `cross_attentions` (layers, each
        (texts, heads, target, target or source)) and the encoder's `encoder_last_hidden_state`.

        Packed: `input_ids` (source tokens,) with `lengths` (texts,), `decoder_input_ids` (target
        tokens,) with `decoder_lengths` (texts,); each text begins with the start token. With
        `labels` (target tokens,), the words that come next, it returns `word_loss`, their summed
        loss, and `words_right` in place of `logits` (target tokens, vocabulary), which are never
        kept whole. Raises `FilbertError` for what is neither.
        """
        if decoder_input_ids is None:
            if labels is None or decoder_lengths is not None:
                raise FilbertError("give decoder_input_ids, or labels of a padded batch")
            decoder_input_ids = self.shift_right(labels)
        packed = decoder_lengths is not None
        if packed != (lengths is not None) or decoder_input_ids.dim() != (1 if packed else 2):
            raise FilbertError(
                "a packed batch has lengths and decoder_lengths, a padded one neither; got "
                f"decoder_input_ids of shape {tuple(decoder_input_ids.shape)}"
            )
        states = self.encode(
            input_ids, attention_mask, token_type_ids=token_type_ids, lengths=lengths
        )
        if packed:
            assert lengths is not None and decoder_lengths is not None
            layout, places = packed_pair(lengths, decoder_lengths, decoder_input_ids)
        else:
            path = "eager" if output_attentions or self.attention_path == "eager" else "sdpa"
            layout, places = padded_pair(
                decoder_input_ids, attention_mask, decoder_attention_mask, path=path
            )
        longest = layout.own.shape[-1]
        self.decoder.check(decoder_input_ids, longest)
        hidden, own, across = self.decoder(decoder_input_ids, places, states, layout)
        head = self.decoder.cls.predictions
        if packed and labels is not None:
            loss, right = head.next_word_loss(hidden, labels, smoothing=label_smoothing)
            return ModelOutput(word_loss=loss, words_right=right)
        logits = head(hidden)
        loss_of_padded = None
        if labels is not None:
            loss_of_padded = token_loss(logits, labels)
            if label_smoothing:
                loss_of_padded = F.cross_entropy(
                    logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100,
                    label_smoothing=label_smoothing,
                )  # fmt: skip
        return ModelOutput(
            loss=loss_of_padded,
            logits=logits,
            decoder_attentions=tuple(own) if output_attentions else None,
            cross_attentions=tuple(across) if output_attentions else None,
            encoder_last_hidden_state=states,
        )

    def shift_right(self, labels: Tensor) -> Tensor:
        """What the decoder reads to predict `labels` (texts, target): the start token and all
        labels but the last; -100 becomes padding."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise FilbertError(
                "the configuration names no decoder_start_token_id or pad_token_id (BERT's are "
                "those of [CLS] and [PAD]); set model.config.decoder_start_token_id"
            )
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == -100, pad)

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
        """Open an encoder-decoder: a folder of filbert's or of `EncoderDecoderModel`'s.

        Every weight of both sides has to be there; poolers, which are of no use here, are left
        out. `changes` override fields of both sides (`hidden_dropout_prob=0`). Raises
        `FilbertError` for another kind of model, or weights that do not fit.
        """
        from filbert.model.weights import load_into, read_weights

        if new_head:
            raise FilbertError("an encoder-decoder has no head of its own to draw; see `build`")
        folder = resolve(name, revision=revision)
        config = Seq2SeqConfig.from_folder(folder) if config is None else config
        if changes:
            config = config.replace(**changes)
        assert isinstance(config, Seq2SeqConfig)
        tensors = read_weights(folder)
        if not config.tie_encoder_decoder:
            check_sizes(config, tensors, source=str(name))  # before memory is taken for them
        model = cls(config)
        load_into(model, tensors, source=str(name), ignore_unexpected=_LEFT_OUT)
        model.tie_weights()
        if attn_implementation is not None:
            model.set_attention(attn_implementation)
        return model.to(dtype or torch.float32).eval()

    @classmethod
    def build(
        cls,
        encoder: str | PathLike[str],
        *,
        decoder: str | PathLike[str] | BertConfig | None,
        decoder_start_token_id: int,
        eos_token_id: int,
        pad_token_id: int,
        revision: str | None = None,
        **changes: Any,
    ) -> Self:
        """A new encoder-decoder whose encoder is a BERT's.

        decoder: the name of another BERT (its layers, embeddings and, if it has one, word head; the
        same name as the encoder's makes a copy), a configuration (drawn at random from torch's
        seed), or None: the encoder's own weights, shared. Cross-attention is always drawn.
        `changes` override fields of the sides' configurations, such as dropouts.
        """
        from filbert.model.weights import load_into

        reader = BertModel.from_pretrained(encoder, revision=revision, **changes)
        writer: BertForMaskedLM | None = None
        if decoder is None:
            shape = reader.config
        elif isinstance(decoder, BertConfig):
            shape = decoder
        else:
            writer = BertForMaskedLM.from_pretrained(decoder, new_head=True, **changes)
            shape = writer.config
        assert isinstance(shape, BertConfig) and isinstance(reader.config, BertConfig)
        model = cls(
            Seq2SeqConfig(
                encoder=reader.config,
                decoder=shape.replace(),
                eos_token_id=eos_token_id,
                decoder_start_token_id=decoder_start_token_id,
                pad_token_id=pad_token_id,
                tie_encoder_decoder=decoder is None,
            )
        )
        load_into(
            model.encoder, reader.state_dict(), source=str(encoder),
            ignore_unexpected=("pooler.", "bert.pooler."),
        )  # fmt: skip
        if writer is not None:
            load_into(
                model.decoder, writer.state_dict(), source=str(decoder),
                may_be_missing=lambda name: CROSS in name,
            )  # fmt: skip
        model.tie_weights()
        return model.eval()

    def save_pretrained(
        self, folder: str | PathLike[str], *, max_shard_bytes: int = 5_000_000_000
    ) -> None:
        """Write `config.json`, `generation_config.json` and `model.safetensors` so that
        `EncoderDecoderModel` of Transformers opens them. Shared weights are written for each side:
        Transformers no longer ties sides."""
        from filbert.model.weights import write_weights

        target = Path(folder)
        make_folder(target)
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(target)
        tensors = self.state_dict()
        tensors.pop("decoder.cls.predictions.decoder.weight")  # the decoder's word matrix again
        if self.config.tie_encoder_decoder:
            tensors = {
                name: tensor.clone() if name.startswith("decoder.") else tensor
                for name, tensor in tensors.items()
            }
        write_weights(tensors, target, max_shard_bytes=max_shard_bytes)


EncoderDecoderModel = BertForSeq2SeqLM  # the name that stands in `config.json`


def packed_pair(
    lengths: Tensor, decoder_lengths: Tensor, decoder_input_ids: Tensor
) -> tuple[PairLayout, Tensor]:
    """The layout of packed pairs, and each target token's place in its text, (tokens,) int64."""
    right = len(lengths) == len(decoder_lengths) and int(decoder_lengths.min()) > 0
    if not right or int(decoder_lengths.sum()) != len(decoder_input_ids):
        raise FilbertError(
            f"packed pairs need as many decoder_lengths as lengths, positive, that sum to the "
            f"decoder's tokens; got {len(decoder_lengths)} for {len(lengths)} texts, of sum "
            f"{int(decoder_lengths.sum())} for {len(decoder_input_ids)} tokens"
        )
    target, places, _ = make_grid(decoder_lengths)
    source, _, held = make_grid(lengths)
    across = None if held is None else held[:, None, None, :]
    own = causal_mask(target.longest, decoder_input_ids.device)
    return PairLayout(own, across, target, source, "sdpa"), places


def padded_pair(
    decoder_input_ids: Tensor,
    attention_mask: Tensor | None,
    decoder_attention_mask: Tensor | None,
    *,
    path: str,
) -> tuple[PairLayout, Tensor]:
    """The layout of a padded batch, and the places of its target tokens, (texts, target) int64."""
    texts, length = decoder_input_ids.shape
    own = causal_mask(length, decoder_input_ids.device)
    if decoder_attention_mask is not None:  # each token sees itself, even padding
        itself = torch.eye(length, dtype=torch.bool, device=own.device)
        own = own & (decoder_attention_mask.bool()[:, None, None, :] | itself)
    across = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    places = torch.arange(length, device=decoder_input_ids.device).expand(texts, length)
    return PairLayout(own, across, None, None, path), places
