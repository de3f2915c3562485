"""Tagged text laid out for a model: windows of tokens, and the token at which each label is read.

A label is learned and read at *slots*: tokens that the option `slots` names.

    first   the first piece of each word, as in the BERT paper (section 5.3)
    parts   the first piece of each part of a word (Coca, -, Cola); the default: raw text is cut
            into parts, so a model asked about raw text was trained on what it sees there
    all     every piece

A word's answer is that of its first slot. A text longer than the model takes is read in windows
that share `stride` tokens; each slot is read in the window in which it has most context (as the
reference did for SQuAD), and learned there alone.

    laid = lay_out(parts_of_texts(tokenizer, texts), tokenizer, max_length=512, stride=64)
    batch, at = laid.gather(np.arange(8))        # a packed batch, and the slots' places in it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.data.packing import Batch, Encoded, Ids, runs
from filbert.data.tag_schemes import Span, bio_of, split_tag
from filbert.errors import FilbertError
from filbert.text import BertTokenizer
from filbert.text.parts import Pieces
from filbert.text.windows import assemble

SLOTS = ("parts", "first", "all")


@dataclass(frozen=True)
class Laid:
    """Examples as windows with slots.

    slot_tokens: (slots,) place of each in `encoded.input_ids`; slot_items: (slots,) its item,
    counted over all examples; first: (slots,) True at the first slot of an item; example_slots,
    example_items: (examples + 1,) where the slots and the items of each example begin; chars:
    (items, 2) places in the raw text, None where words were given.
    """

    encoded: Encoded
    slot_tokens: Ids
    slot_items: Ids
    first: NDArray[np.bool_]
    example_slots: Ids
    example_items: Ids
    chars: Ids | None

    def __len__(self) -> int:
        return len(self.encoded)

    def with_encoded(self, encoded: Encoded) -> Laid:
        """The same with other numbers for the tokens (see `filbert.train.trim`)."""
        return replace(self, encoded=encoded)

    def by_window(self) -> Laid:
        """The same slots in the same order, each window an example of its own. Its items are those
        of the examples before."""
        encoded = self.encoded.by_window()
        if encoded is self.encoded:
            return self
        # later pieces of a text have most context in later windows, so the slots are in order
        owner = np.searchsorted(encoded.window_starts, self.slot_tokens, side="right") - 1
        slots = _starts(np.bincount(owner, minlength=len(encoded)))
        return replace(self, encoded=encoded, example_slots=slots)

    def gather(self, examples: Ids) -> tuple[Batch, Ids]:
        """The packed batch of these examples, and the places of their slots in it, (slots,)."""
        starts = self.encoded.window_starts[self.encoded.example_windows]  # (examples + 1,)
        lengths = np.diff(starts)[examples]
        shift = np.cumsum(lengths) - lengths - starts[examples]  # to the place in the batch
        rows = self.rows(examples)
        counts = np.diff(self.example_slots)[examples]
        return self.encoded.gather(examples), self.slot_tokens[rows] + np.repeat(shift, counts)

    def rows(self, examples: Ids) -> Ids:
        """(slots,) the numbers of the slots of these examples, in their order."""
        return runs(self.example_slots[examples], np.diff(self.example_slots)[examples])


def lay_out(
    pieces: Pieces, tokenizer: BertTokenizer, *, max_length: int, stride: int, slots: str = "parts"
) -> Laid:
    """Windows of at most `max_length` tokens (special tokens included) with their slots.

    Raises `FilbertError` where the windows would not advance or `slots` is unknown.
    """
    if slots not in SLOTS:
        raise FilbertError(f"slots {slots!r}: expected one of {', '.join(SLOTS)}")
    room = max_length - 2
    if room < 1 or not 0 <= stride < room:
        raise FilbertError(
            f"max_length={max_length}, stride={stride}: windows hold {max(room, 0)} tokens beside "
            "[CLS] and [SEP], and the stride must be from 0 to less than that"
        )
    windows: dict[str, Any] = {
        "max_length": max_length,
        "windows": True,
        "stride": stride,
        "side": "right",
    }
    flat = assemble(
        pieces.ids, pieces.counts, None,
        cls_id=tokenizer.cls_token_id, sep_id=tokenizer.sep_token_id, **windows,
    )  # fmt: skip
    # the same layout of the pieces' numbers tells which piece each token is
    numbers = np.arange(len(pieces.ids), dtype=np.int32)
    source = assemble(numbers, pieces.counts, None, cls_id=-1, sep_id=-1, **windows).ids
    place = _best_places(source, flat.window_starts, len(pieces.ids))
    starts_item = np.diff(pieces.item, prepend=-1) > 0
    chosen = {"first": starts_item, "parts": pieces.begins | starts_item}.get(
        slots, np.ones(len(place), dtype=bool)
    )
    owner = np.repeat(np.arange(len(pieces.counts)), pieces.counts)
    return Laid(
        Encoded(*flat),
        place[chosen],
        pieces.item[chosen],
        starts_item[chosen],
        _starts(np.bincount(owner[chosen], minlength=len(pieces.counts))),
        _starts(pieces.items),
        pieces.chars,
    )


def _best_places(source: NDArray[np.int32], window_starts: Ids, pieces: int) -> Ids:
    """(pieces,) the token that shows each piece with most context on its poorer side; of equally
    good ones the first. source: (tokens,) piece of each token, -1 for special tokens."""
    tokens = np.flatnonzero(source >= 0)
    window = np.repeat(np.arange(len(window_starts) - 1), np.diff(window_starts))[tokens]
    context = np.minimum(tokens - window_starts[window], window_starts[window + 1] - 1 - tokens)
    order = np.lexsort((tokens, -context, source[tokens]))
    _, best = np.unique(source[tokens][order], return_index=True)
    place: Ids = tokens[order][best]
    assert len(place) == pieces
    return place


# --- labels for slots ----------------------------------------------------------------------------


def slot_targets(laid: Laid, tags: Sequence[Sequence[str]], labels: Sequence[str]) -> Ids:
    """(slots,) the number of each slot's label. tags: one for each item of each example.

    The later slots of a word whose tag is `B-X` have `I-X`: one entity begins once.
    Raises `FilbertError` for a tag that is not among `labels`, and where tags and items differ in
    number.
    """
    number = {label: place for place, label in enumerate(labels)}
    later = [
        number.get(f"I-{split_tag(label)[1]}", place) if split_tag(label)[0] == "B" else place
        for place, label in enumerate(labels)
    ]
    flat = [tag for sentence in tags for tag in sentence]
    if len(flat) != laid.example_items[-1]:
        raise FilbertError(f"{len(flat)} tags for {laid.example_items[-1]} words")
    try:
        of_items = np.fromiter((number[tag] for tag in flat), np.int64, len(flat))
    except KeyError as error:
        raise FilbertError(f"the tag {error.args[0]!r} is none of {', '.join(labels)}") from None
    found = of_items[laid.slot_items]
    return np.where(laid.first, found, np.asarray(later, dtype=np.int64)[found])


def tags_of_spans(laid: Laid, spans: Sequence[Sequence[Span]]) -> tuple[list[list[str]], int, int]:
    """BIO tags of the items of raw texts with these spans of characters, and how many spans had to
    be widened to whole items, and how many hold no item that is still free and are lost."""
    assert laid.chars is not None
    out, widened, lost = [], 0, 0
    for example, wanted in enumerate(spans):
        begin, end = laid.example_items[example], laid.example_items[example + 1]
        starts, ends = laid.chars[begin:end].T  # each (items,)
        found: list[Span] = []
        for start, stop, name in wanted:
            first = int(np.searchsorted(ends, start, side="right"))
            last = int(np.searchsorted(starts, stop, side="left"))
            if found:
                first = max(first, found[-1][1])
            if first >= last:
                lost += 1
                continue
            widened += bool(starts[first] < start or ends[last - 1] > stop)
            found.append((first, last, name))
        out.append(bio_of(found, int(end - begin)))
    return out, widened, lost


def _starts(lengths: Ids) -> Ids:
    """(n + 1,) where each of n runs begins, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
