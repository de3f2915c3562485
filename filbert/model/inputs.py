"""What an encoder is handed: a padded grid or a packed batch, checked and laid out for attention.

    input_ids (batch, length) [+ attention_mask]        padded
    input_ids (tokens,) + lengths (sequences,)          packed: texts end to end, no padding

Both encoders accept the same and complain in the same words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filbert.errors import FilbertError
from filbert.model.attention import PackedLayout, PaddedLayout, pack_layout

Layout = PaddedLayout | PackedLayout


class Inputs(NamedTuple):
    """What an encoder begins with: `words` (..., embedding), the layout for attention, and each
    token's place in its text, (...) int64."""

    words: Tensor
    layout: Layout
    places: Tensor


def open_inputs(
    embedding: nn.Module,
    *,
    vocab_size: int,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    lengths: Tensor | None,
    predict_at: Tensor | None,
    first_only: bool,
    output_hidden_states: bool,
    output_attentions: bool,
    path: str,
    longest_allowed: int,
) -> Inputs:
    """The head of every encoder's `forward`, which names these arguments alike: look words up in
    `embedding`, lay the batch out, hold the rest to its shape. Places are `position_ids` where
    given. path, longest_allowed: as for `lay_out`. Raises `FilbertError`."""
    if (input_ids is None) == (inputs_embeds is None):
        raise FilbertError("give either input_ids or inputs_embeds")
    if input_ids is not None:
        check_ids(input_ids, vocab_size=vocab_size)
        inputs_embeds = embedding(input_ids)
    assert inputs_embeds is not None
    shape = inputs_embeds.shape[:-1]
    layout, places = lay_out(
        shape,
        inputs_embeds.device,
        lengths=lengths,
        attention_mask=attention_mask,
        output_attentions=output_attentions,
        path=path,
        longest_allowed=longest_allowed,
    )
    check_shape(token_type_ids, shape)
    check_shape(position_ids, shape)
    check_places(predict_at, lengths, others=first_only or output_hidden_states)
    return Inputs(inputs_embeds, layout, places if position_ids is None else position_ids)


def as_grid(input_ids: Tensor, token_type_ids: Tensor, lengths: Tensor) -> dict[str, Any]:
    """A packed batch, (tokens,) each and (sequences,), as the padded one that an encoder takes:
    `input_ids`, `token_type_ids` and `attention_mask`, each (sequences, longest) int64."""
    counts = lengths.tolist()
    rows = {
        "input_ids": input_ids, "token_type_ids": token_type_ids,
        "attention_mask": torch.ones_like(input_ids),
    }  # fmt: skip
    return {
        name: nn.utils.rnn.pad_sequence(list(row.split(counts)), batch_first=True)
        for name, row in rows.items()
    }


def check_ids(input_ids: Tensor, *, vocab_size: int) -> None:
    """Raise `FilbertError` for ids outside the vocabulary; on a GPU it would wait for the device,
    so there only emptiness is looked at."""
    if input_ids.numel() == 0:
        raise FilbertError("input_ids is empty: there is no token to encode")
    if input_ids.device.type == "cpu":
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocab_size:
            raise FilbertError(
                f"token id {low if low < 0 else high} is outside the model's vocabulary of "
                f"{vocab_size}: was the text tokenized with another vocabulary?"
            )


def lay_out(
    shape: torch.Size,
    device: torch.device,
    *,
    lengths: Tensor | None,
    attention_mask: Tensor | None,
    output_attentions: bool,
    path: str,
    longest_allowed: int,
) -> tuple[Layout, Tensor]:
    """The layout for attention, and each token's place in its text, (...) int64 as `shape`.

    shape: that of `input_ids`; path: the attention path for padded batches. Raises `FilbertError`
    for a batch that is neither padded nor packed, or a text over `longest_allowed` tokens.
    """
    layout: Layout
    if lengths is not None:
        if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
            kind = getattr(lengths, "dtype", type(lengths).__name__)
            raise FilbertError(f"lengths must be a tensor of int64 or int32, got {kind}")
        counts: list[int] = lengths.flatten().tolist()  # once: a GPU has to be waited for
        whole = len(shape) == lengths.dim() == 1 and sum(counts) == shape[0]
        whole = whole and min(counts, default=0) > 0
        if not whole or output_attentions or attention_mask is not None:
            raise FilbertError(
                "a packed batch is input_ids (tokens,) and positive lengths that sum to "
                "tokens, without attention_mask and output_attentions; got "
                f"{tuple(shape)} and lengths of sum {sum(counts)}"
            )
        lengths = lengths.to(device)
        layout, longest = pack_layout(lengths, counts), max(counts)
        places = torch.arange(shape[0], device=device)
        places = places - torch.repeat_interleave(
            layout.first,
            lengths,
            output_size=shape[0],  # known, so that a GPU need not be asked
        )
    else:
        if len(shape) != 2:
            raise FilbertError(
                f"input_ids: (batch, length), or (tokens,) with lengths; got {tuple(shape)}"
            )
        layout, longest = _padded(attention_mask, output_attentions, path), shape[1]
        places = torch.arange(longest, device=device).expand(shape)
    if longest > longest_allowed:
        raise FilbertError(
            f"a text of {longest} tokens; this model takes at most "
            f"{longest_allowed}: tokenize with truncation=True or windows"
        )
    return layout, places


def check_shape(given: Tensor | None, shape: torch.Size) -> None:
    """Raise `FilbertError` for token types or positions not shaped as the ids, or as one row."""
    if given is None or given.shape == shape:
        return
    if given.dim() != 2 or given.shape != (1, shape[-1]):
        raise FilbertError(
            f"token_type_ids and position_ids must be shaped as input_ids, "
            f"{tuple(shape)}; got {tuple(given.shape)}"
        )


def check_places(predict_at: Tensor | None, lengths: Tensor | None, *, others: bool) -> None:
    """Raise `FilbertError` where `predict_at` cannot be honoured. others: whether `first_only` or
    `output_hidden_states` ask for other tokens."""
    if predict_at is None:
        return
    if lengths is None:
        raise FilbertError("predict_at counts in a packed batch: give lengths as well")
    if others:
        raise FilbertError(
            "predict_at leaves the other tokens of the last layer out, so it goes with neither "
            "first_only nor output_hidden_states; leave one of them out"
        )


def _padded(attention_mask: Tensor | None, output_attentions: bool, path: str) -> PaddedLayout:
    path = "eager" if output_attentions or path == "eager" else "sdpa"
    if attention_mask is None:
        return PaddedLayout(None, path)
    mask = attention_mask.bool()
    if mask.dim() == 2:
        mask = mask[:, None, None, :]  # (batch, 1, 1, length)
    elif mask.dim() == 3:
        mask = mask[:, None, :, :]  # (batch, 1, length, length)
    return PaddedLayout(mask, path)
