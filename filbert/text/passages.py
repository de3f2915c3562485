"""Questions beside long texts: windows that move through the text, with the way back to characters.

Each window is [CLS] question [SEP] part of the context [SEP]. The question is whole in every one
(up to half of the room; what is beyond is cut off and counted), the context moves, neighbouring
windows share `stride` tokens. A context is tokenised once, however many questions it has. No step
per token runs in Python, and for every token of a context its characters in the raw text are kept.

    flat = encode_passages(tokenizer, questions, contexts, owner, max_length=384, stride=128)
    flat.spans[flat.token_from[w]]          # the characters of the first context token of window w

Windows as in google-research/bert's run_squad.py and in Transformers' `only_second` truncation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from filbert.errors import FilbertError
from filbert.text.batch import check_texts, encoding_error
from filbert.text.tokenizer import BertTokenizer

Ints = NDArray[np.int64]

_CHUNK_CHARACTERS = 1_000_000  # the library's records take some 160 bytes a character
_CHUNK_TEXTS = 1000


@dataclass(frozen=True)
class Passages:
    """Windows of questions over contexts, end to end.

    ids (tokens,) int32, token_type_ids (tokens,) int8; window_starts (windows + 1,) places in them;
    question_windows (questions + 1,): question q has windows question_windows[q] to
    question_windows[q + 1] (exclusive). Of each window: context_at, the place within it of its
    first context token; token_from, that token's number among all context tokens; token_count.
    spans (context tokens, 2) int32: the characters that each token stands for, in its context;
    context_starts (contexts + 1,): where the tokens of each context begin in them. owner
    (questions,): the context of each. cut (questions,): tokens of the question that were left out.
    """

    ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int8]
    window_starts: Ints
    question_windows: Ints
    context_at: Ints
    token_from: Ints
    token_count: Ints
    spans: NDArray[np.int32]
    context_starts: Ints
    owner: Ints
    cut: Ints

    @property
    def questions(self) -> int:
        """How many."""
        return len(self.owner)

    @property
    def asked(self) -> Ints:
        """(windows,) the question of each."""
        return np.repeat(np.arange(self.questions), np.diff(self.question_windows))


def check_window(max_length: int, stride: int) -> None:
    """`FilbertError` unless a window of `max_length` can hold a question and move by its stride."""
    room = max_length - 3
    least = room - room // 2
    if room < 2 or not 0 <= stride < least:
        raise FilbertError(
            f"max_length={max_length}, stride={stride}: a window holds {max(least, 0)} tokens of "
            f"the context beside the longest question, so the stride must be from 0 to {least - 1}"
        )


def encode_passages(
    tokenizer: BertTokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    owner: Ints,
    *,
    max_length: int,
    stride: int,
) -> Passages:
    """Windows for each question over its context, `contexts[owner[q]]`.

    A context without any token (blank) has one window without context. Raises `FilbertError` for a
    window that is too short for its stride, and for text that is not Unicode.
    """
    check_window(max_length, stride)
    check_texts(questions, "questions")
    check_texts(contexts, "contexts")
    bare = tokenizer._bare  # adds no special tokens; same package
    asked_ids, asked, _ = _tokens(bare, questions, "questions", spans=False)
    body, counts, spans = _tokens(bare, contexts, "contexts", spans=True)
    room = max_length - 3
    question_starts, context_starts = starts_of(asked), starts_of(counts)

    # (questions,): what is kept of each, the slot that remains, and the windows that it takes
    kept = np.minimum(asked, room // 2)
    length = counts[owner]
    slot = room - kept
    step = slot - stride
    windows = 1 + -(-np.maximum(length - slot, 0) // step)

    # (windows,)
    question_windows = starts_of(windows)
    mine = np.repeat(np.arange(len(owner)), windows)
    offset = (np.arange(len(mine)) - question_windows[:-1][mine]) * step[mine]
    token_from = context_starts[:-1][owner][mine] + offset
    token_count = np.minimum(length[mine] - offset, slot[mine])
    head = kept[mine]
    window_starts = starts_of(head + token_count + 3)
    begin = window_starts[:-1]

    ids = np.full(window_starts[-1], tokenizer.sep_token_id, dtype=np.int32)
    ids[begin] = tokenizer.cls_token_id
    ids[ragged(begin + 1, head)] = asked_ids[ragged(question_starts[:-1][mine], head)]
    ids[ragged(begin + head + 2, token_count)] = body[ragged(token_from, token_count)]
    types = np.zeros(len(ids), dtype=np.int8)
    types[ragged(begin + head + 2, token_count + 1)] = 1
    return Passages(
        ids, types, window_starts, question_windows, head + 2, token_from, token_count,
        spans, context_starts, owner, asked - kept,
    )  # fmt: skip


def starts_of(lengths: Ints) -> Ints:
    """(n + 1,) where each of n runs begins, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def ragged(starts: Ints, lengths: Ints) -> Ints:
    """The numbers starts[i], starts[i] + 1, ... of all runs, end to end."""
    ends = starts_of(lengths)
    return np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])


def _tokens(
    bare: Tokenizer, texts: Sequence[str], name: str, *, spans: bool
) -> tuple[NDArray[np.int32], Ints, NDArray[np.int32]]:
    """Ids end to end (tokens,), the count of each text (texts,), characters (tokens, 2)."""
    ids, lengths, places = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    encode = bare.encode_batch if spans else bare.encode_batch_fast
    for begin, end in _chunks(texts):
        part = list(texts[begin:end])
        try:
            records = encode(part, add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            raise encoding_error(part, name, offset=begin) or error from None
        count = np.fromiter(map(len, records), np.int64, len(records))
        total = int(count.sum())
        lengths.append(count)
        ids.append(np.fromiter(chain.from_iterable(r.ids for r in records), np.int32, total))
        if spans:
            flat = chain.from_iterable(chain.from_iterable(r.offsets for r in records))
            places.append(np.fromiter(flat, np.int32, 2 * total))
    return np.concatenate(ids), np.concatenate(lengths), np.concatenate(places).reshape(-1, 2)


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(begin, end) of runs of texts that are encoded together."""
    begin = characters = 0
    for index, text in enumerate(texts):
        full = characters + len(text) > _CHUNK_CHARACTERS or index - begin == _CHUNK_TEXTS
        if index > begin and full:
            yield begin, index
            begin, characters = index, 0
        characters += len(text)
    if len(texts) > begin:
        yield begin, len(texts)
