"""More words for a vocabulary that exists: its own keep their numbers, new ones stand behind them.

    counter = WordCounter(lower=base.do_lower_case, strip_accents=base.settings.strip_accents)
    for text in texts:
        counter.add(text)
    added = extend_pieces(counter.words(), base, size=len(base) + 2000)
    longer = with_words(base, added.tokens)

New words are learned where the old ones end. First come letters without which a word is [UNK] (for
Chinese: the characters that are missing), the most frequent first. Then each word is split as the
base splits it, and the most frequent pair of neighbouring pieces becomes a piece, again and again
(Sennrich et al. 2016, starting from pieces instead of letters), so that each new word is the one
that saves most tokens at its turn. Merging is done by the trainer of the tokenizers library, to
which every piece is shown as one letter.

Left aside: whole words of the corpus that the base lacks, as in Tai et al. 2020 (exBERT); families
of words (cardiomyopathy, cardiomyopathies) would then share nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from filbert.errors import FilbertError, UsageError
from filbert.text.tokenizer import BertTokenizer
from filbert.text.vocabulary import MAX_WORD, repeated

_FIRST_SIGN = 0x20000  # pieces are shown to the trainer as letters from here on; none is a space
_SIGNS = 0x110000 - _FIRST_SIGN
_CHINESE = 1000  # single Chinese characters from which a vocabulary counts as Chinese


@dataclass(frozen=True)
class Added:
    """New `tokens` in the order of their ids: `letters` of them (alone or as ## pieces), then
    pieces. `letters_left_out`: missing ones that were too rare; `words_left_out`: occurrences of
    words that stay unknown, of `words` in all."""

    tokens: list[str]
    letters: int
    letters_left_out: int
    words_left_out: int
    words: int


def is_chinese(tokenizer: BertTokenizer) -> bool:
    """Whether its vocabulary holds a thousand Chinese characters."""
    tokens = tokenizer.get_vocab()
    return sum(len(t) == 1 and "\u3400" <= t <= "\u9fff" for t in tokens) >= _CHINESE


def next_id(tokenizer: BertTokenizer) -> int:
    """The first number behind all of its words."""
    return max(tokenizer.get_vocab().values()) + 1


def check_plain(tokenizer: BertTokenizer, *, name: str) -> None:
    """Raise `FilbertError` unless text becomes words as in BERT; of other rules nobody could say
    which words a text has. `name`: what the person called it."""
    state = json.loads(tokenizer._full.to_str())
    normal, split, model = state["normalizer"] or {}, state["pre_tokenizer"] or {}, state["model"]
    plain = (
        (normal.get("type"), split.get("type")) == ("BertNormalizer", "BertPreTokenizer")
        and normal["clean_text"] and normal["handle_chinese_chars"]
        and model["continuing_subword_prefix"] == "##"
        and model["max_input_chars_per_word"] == MAX_WORD
    )  # fmt: skip
    if not plain:
        raise FilbertError(
            f"the tokenizer of {name} takes text apart in a way of its own, not as BERT does, so "
            "no words can be added to it; learn a new vocabulary, without --extend"
        )


def extend_pieces(
    words: Mapping[str, int],
    base: BertTokenizer,
    *,
    size: int,
    min_frequency: int = 2,
    max_letters: int | None = None,
) -> Added:
    """Words for the ids from `next_id(base)` to `size`, or as many as there are, learned from words
    (as the base's normalizer leaves them) and their counts.

    At most `max_letters` letters (None: no limit), no letter or piece seen less often than
    `min_frequency`. Raises `UsageError` where `size` leaves no room.
    """
    start = next_id(base)
    if size <= start:
        raise UsageError(
            f"--size {size:,} has no room behind the {start:,} tokens of the vocabulary that is "
            "extended; give a larger --size"
        )
    words = {word: count for word, count in sorted(words.items()) if count > 0}
    vocab = base.get_vocab()
    missing = _missing_letters(words, base)
    frequent = [piece for piece, count in missing.items() if count >= min_frequency]
    frequent.sort(key=lambda piece: (-missing[piece], piece))
    letters = frequent[: min(size - start, len(frequent) if max_letters is None else max_letters)]
    longer = {**vocab, **{piece: start + i for i, piece in enumerate(letters)}}
    split = models.WordPiece(longer, unk_token=base.unk_token, max_input_chars_per_word=MAX_WORD)
    splits: dict[tuple[str, ...], int] = {}
    lost = 0
    for word, count in words.items():
        pieces = tuple(token.value for token in split.tokenize(word))
        if pieces == (base.unk_token,):
            lost += count
        elif len(pieces) > 1:
            splits[pieces] = count
    merged = _merge(splits, longer, room=size - start - len(letters), min_frequency=min_frequency)
    return Added(
        tokens=[*letters, *merged],
        letters=len(letters),
        letters_left_out=len(missing) - len(letters),
        words_left_out=lost,
        words=sum(words.values()),
    )


def _missing_letters(words: Mapping[str, int], base: BertTokenizer) -> Counter[str]:
    """Of words that the base cannot split, how often each letter occurs that it lacks; a letter
    within a word has its ## before it."""
    vocab = base.get_vocab()
    split = models.WordPiece(vocab, unk_token=base.unk_token, max_input_chars_per_word=MAX_WORD)
    missing: Counter[str] = Counter()
    for word, count in words.items():
        if len(word) > MAX_WORD or split.tokenize(word)[0].value != base.unk_token:
            continue
        for piece in (word[0], *(f"##{letter}" for letter in word[1:])):
            if piece not in vocab:
                missing[piece] += count
    return missing


def _merge(
    splits: Mapping[tuple[str, ...], int],
    vocab: Mapping[str, int],
    *,
    room: int,
    min_frequency: int,
) -> list[str]:
    """At most `room` new pieces out of words that are split in pieces of `vocab`, and counted."""
    pieces = sorted({piece for split in splits for piece in split}, key=vocab.__getitem__)
    if len(pieces) > _SIGNS:
        raise FilbertError(
            f"the corpus uses {len(pieces):,} pieces of the vocabulary, more than {_SIGNS:,}; "
            "learn a new vocabulary, without --extend"
        )
    signs = {piece: chr(_FIRST_SIGN + number) for number, piece in enumerate(pieces)}
    shown = {"".join(signs[p] for p in split): count for split, count in splits.items()}
    asked = room
    while True:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.BpeTrainer(
            vocab_size=len(pieces) + asked,
            min_frequency=min_frequency,
            special_tokens=list(signs.values()),  # these get the first numbers, in this order
            show_progress=False,
        )
        tokenizer.train_from_iterator(repeated(shown), trainer)
        numbers = tokenizer.get_vocab()
        found: dict[str, None] = {}
        for letters in sorted(numbers, key=numbers.__getitem__)[len(pieces) :]:
            first, *rest = (pieces[ord(letter) - _FIRST_SIGN] for letter in letters)
            token = first + "".join(piece.removeprefix("##") for piece in rest)
            if token not in vocab:  # two ways of splitting may lead to the same piece
                found[token] = None
        if len(found) >= room or len(numbers) < len(pieces) + asked:
            return list(found)[:room]
        asked += room - len(found)


def with_words(base: BertTokenizer, tokens: list[str]) -> BertTokenizer:
    """The tokenizer with `tokens` behind its own words, and nothing else changed. Words that were
    added to the base stand in the vocabulary from here on, with their numbers."""
    state = json.loads(base._full.to_str())
    start = next_id(base)
    state["model"]["vocab"] = {
        **base.get_vocab(),
        **{token: start + number for number, token in enumerate(tokens)},
    }
    longer = BertTokenizer.__new__(BertTokenizer)
    settings = replace(base.settings, model_max_length=base.model_max_length)
    longer._adopt(Tokenizer.from_str(json.dumps(state)), settings)
    return longer
