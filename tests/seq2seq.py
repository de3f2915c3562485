"""Small encoder-decoders, filbert's and Transformers' with the same weights, for tests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from filbert.model.seq2seq import BertForSeq2SeqLM

START, END, PAD = 2, 3, 0
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,  # wide, so that no two words are nearly equal
}


def save_reference(folder: Path, *, seed: int, **decoder: Any) -> transformers.EncoderDecoderModel:
    """A random EncoderDecoderModel of Transformers, written to `folder`, in evaluation mode."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**SHAPE), transformers.BertConfig(**{**SHAPE, **decoder})
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = START, PAD, END
    model = transformers.EncoderDecoderModel(config=config).eval()
    for weight in model.parameters():  # biases and norms too
        if weight.dim() == 1:
            weight.data.add_(0.1 * torch.randn_like(weight))
    # feed-forward layers at random make all tokens alike, and a tied word matrix repeats itself:
    # let source and place weigh more, so that texts differ
    model.decoder.bert.embeddings.position_embeddings.weight.data.mul_(2.0)
    for layer in (*model.encoder.encoder.layer, *model.decoder.bert.encoder.layer):
        layer.output.dense.weight.data.mul_(0.1)
    for layer in model.decoder.bert.encoder.layer:
        layer.crossattention.output.dense.weight.data.mul_(2.0)
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD, bos_token_id=START
    )
    model.save_pretrained(folder)
    return model


def both(folder: Path, *, seed: int = 0, **decoder: Any) -> tuple[Any, BertForSeq2SeqLM]:
    """The reference, and what filbert opens from its folder."""
    reference = save_reference(folder, seed=seed, **decoder)
    return reference, BertForSeq2SeqLM.from_pretrained(folder)


def texts(seed: int, lengths: list[int], *, vocabulary: int = 60) -> list[torch.Tensor]:
    """Random ids from 4 on."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(4, vocabulary, (length,), generator=draw) for length in lengths]


def padded(rows: list[torch.Tensor], fill: int = PAD) -> torch.Tensor:
    """(texts, longest), filled behind each text."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
