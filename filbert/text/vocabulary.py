"""A WordPiece vocabulary out of texts: words are counted first, then pieces are learned from them.

    counter = WordCounter(lower=True)
    for text in texts:
        counter.add(text)
    learned = learn_pieces(counter.words(), size=30522, special=special_tokens(unused=99))
    BertTokenizer(learned.tokens).save_pretrained("vocab/")

Words are what BERT's normalizer and pre-tokenizer make of a text (a Chinese character is a word);
pieces are learned by the trainer of the tokenizers library, which merges the most frequent pair of
pieces until the vocabulary is full (Sennrich et al. 2016, with WordPiece's "##").

**The same texts give the same bytes**, whatever the threads. Left to itself the trainer numbers the
letters in the order of a hash table, and breaks ties between equally frequent pairs by number. Here
it is given all letters, sorted, with their numbers, so that nothing is left to the hash table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from filbert.errors import FilbertError, UsageError

MAX_WORD: Final = 100  # characters; WordPiece makes a longer word [UNK]
MAX_UNUSED: Final = 99  # of them stand before [UNK], which is 100 in the released models
_MAX_CHUNKS: Final = 1 << 20  # kept before they are taken apart
_MAX_WORDS: Final = 1 << 22  # distinct ones kept: about half a GB
_MAX_TAUGHT: Final = 100_000_000  # words handed to the trainer, which is told each occurrence
_TOLD_AT_ONCE: Final = 1000

# Spaces that every reader agrees on, and the main block of ideographs, each a word of its own;
# other spaces and ideographs are the normalizer's business.
_CHUNK = re.compile("[\u4e00-\u9fff]|[^ \n\r\t\u4e00-\u9fff]+")
_ASCII_WORD = re.compile("[0-9A-Za-z]+|[^0-9A-Za-z]")


def special_tokens(*, unused: int = 0, extra: Sequence[str] = ()) -> list[str]:
    """[PAD], up to 99 [unusedN], [UNK], [CLS], [SEP], [MASK], further [unusedN], then `extra`.

    With 99 or more unused tokens the ids are those of the released models: [PAD] 0, [UNK] 100,
    [CLS] 101, [SEP] 102, [MASK] 103.
    """
    spare = [f"[unused{number}]" for number in range(1, unused + 1)]
    named = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = ["[PAD]", *spare[:MAX_UNUSED], *named, *spare[MAX_UNUSED:], *extra]
    if twice := [token for token, count in Counter(tokens).items() if count > 1]:
        raise UsageError(f"special tokens are named more than once: {', '.join(twice)}")
    return tokens


class WordCounter:
    """How often each word occurs, words being those of BERT's pre-tokenizer.

    Texts are cut at spaces and around Chinese characters, and equal chunks are taken apart once
    for all; that gives the same words as taking whole texts apart, many times faster. Memory
    follows the number of distinct words; beyond `max_words` of them the rarest are forgotten, and
    `forgotten` tells how many occurrences.
    """

    def __init__(
        self, *, lower: bool, strip_accents: bool | None = None, max_words: int = _MAX_WORDS
    ) -> None:
        """`strip_accents`: None as `lower`."""
        self.lower = lower
        self.max_words = max_words
        self.forgotten = 0
        self._normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lower
        )
        self._splitter = pre_tokenizers.BertPreTokenizer()
        self._chunks: Counter[str] = Counter()
        self._words: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Count the words of a text. Raises `FilbertError` for half a surrogate pair."""
        if not text.isascii():
            _check(text)
        self._chunks.update(_CHUNK.findall(text))
        if len(self._chunks) >= _MAX_CHUNKS:
            self._take_apart()

    def words(self) -> Counter[str]:
        """The counts so far."""
        self._take_apart()
        return self._words

    def _take_apart(self) -> None:
        words = self._words
        for chunk, count in self._chunks.items():
            for word in self._words_of(chunk):
                words[word] += count
        self._chunks.clear()
        least = 1
        while len(words) > self.max_words:
            rare = [word for word, count in words.items() if count <= least]
            self.forgotten += sum(words.pop(word) for word in rare)
            least *= 2

    def _words_of(self, chunk: str) -> list[str]:
        if chunk.isascii() and chunk.isprintable():
            return _ASCII_WORD.findall(chunk.lower() if self.lower else chunk)
        normal = self._normalizer.normalize_str(chunk)
        return [word for word, _ in self._splitter.pre_tokenize_str(normal)]


def _check(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FilbertError(
            f"character {error.start + 1} of a text is half of a surrogate pair "
            f"(U+{ord(text[error.start]):04X}), which is no character; mend the file"
        ) from None


@dataclass(frozen=True)
class Learned:
    """A vocabulary and what was left out of it.

    `tokens` stand in the order of their ids: special ones, letters, letters within a word, pieces
    from the first learned to the last. `letters_left_out` are distinct letters too rare to be kept,
    `words_left_out` occurrences of words with such a letter or of more than 100 letters.
    """

    tokens: list[str]
    letters: int
    letters_left_out: int
    words_left_out: int
    words: int


def learn_pieces(
    words: Mapping[str, int],
    *,
    size: int,
    special: Sequence[str],
    min_frequency: int = 2,
    max_letters: int = 1000,
) -> Learned:
    """Learn `size` tokens, or as many as there are, from words and their counts.

    The `max_letters` most frequent letters that occur `min_frequency` times are always in; a word
    with another letter would be [UNK], so nothing is learned from it. Pieces seen less often than
    `min_frequency` are not made. Raises `UsageError` where `size` has no room for the letters.
    """
    words = {word: count for word, count in words.items() if count > 0}
    total = sum(words.values())
    usable = {word: count for word, count in words.items() if len(word) <= MAX_WORD}
    counts: Counter[str] = Counter()
    for word, count in usable.items():
        for letter in word:
            counts[letter] += count
    frequent = [letter for letter, count in counts.items() if count >= min_frequency]
    frequent.sort(key=lambda letter: (-counts[letter], letter))
    letters = set(frequent[:max_letters])
    usable = {word: count for word, count in usable.items() if letters.issuperset(word)}
    inner = {f"##{letter}" for letter in set().union(*(word[1:] for word in usable))}
    start = [*special, *sorted(letters - set(special)), *sorted(inner - set(special))]
    if not usable and len(frequent) > max_letters:
        raise FilbertError(
            f"no word is left to learn from: each has another letter than the {max_letters:,} most "
            "frequent ones (--limit-alphabet)"
        )
    if not usable:
        raise FilbertError(
            f"no word is left to learn from: of {len(counts):,} letters none occurs "
            f"{min_frequency:,} times (the minimum frequency), or every word is longer than "
            f"{MAX_WORD}"
        )
    if len(start) > size:
        raise UsageError(
            f"--size {size:,} has no room for {len(special):,} special tokens, {len(letters):,} "
            f"letters and {len(inner):,} letters within words ({len(start):,} tokens). Give a "
            "larger --size, a smaller --limit-alphabet or a larger --min-frequency"
        )
    return Learned(
        tokens=_train(usable, start, size=size, min_frequency=min_frequency),
        letters=len(letters),
        letters_left_out=len(counts) - len(letters),
        words_left_out=total - sum(usable.values()),
        words=total,
    )


def _train(
    words: Mapping[str, int], start: list[str], *, size: int, min_frequency: int
) -> list[str]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=start,  # these get the first numbers, in this order
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(repeated(words), trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Each word as often as it was counted, in the order of their letters, thousands in a string.

    The library's trainers take no counts. Those of a very large corpus are divided by one number,
    rounded, for which the choice of pieces does not matter.
    """
    share = -(-sum(words.values()) // _MAX_TAUGHT)
    batch: list[str] = []
    for word in sorted(words):
        left = (words[word] + share // 2) // share
        while left:
            more = min(left, _TOLD_AT_ONCE - len(batch))
            batch += [word] * more
            left -= more
            if len(batch) == _TOLD_AT_ONCE:
                yield " ".join(batch)
                batch = []
    yield " ".join(batch)


def words_of(
    texts: Iterable[str], *, lower: bool, strip_accents: bool | None = None
) -> Counter[str]:
    """The counted words of a few texts."""
    counter = WordCounter(lower=lower, strip_accents=strip_accents)
    for text in texts:
        counter.add(text)
    return counter.words()
