"""`filbert vocab`: a corpus in, a tokenizer folder with a report of its coverage out.

    from filbert.data.learn_vocab import learn_vocabulary
    from filbert.data.vocab_options import VocabOptions

    print(learn_vocabulary(VocabOptions(corpus=["corpus/"], out="vocab/", size=16384)))
    learn_vocabulary(VocabOptions(corpus=["notes/"], out="longer/", extend="MODEL", size=32000))

One pass over the documents counts words; memory follows the number of distinct words, not the size
of the corpus. The same corpus and options give the same bytes, whatever the threads. The folder
opens in `transformers`; it is written beside its place and renamed, so it is whole or not there.
"""

from __future__ import annotations

import heapq
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, Final

from filbert import __version__
from filbert.atomic import beside, check_out, replace_folder, write_file
from filbert.data.corpus import corpus_files, read_documents
from filbert.data.meter import Meter
from filbert.data.vocab_options import VocabOptions
from filbert.data.vocab_report import coverage, coverage_lines, longest_tokens, most_split
from filbert.errors import FilbertError, UsageError
from filbert.text.extend import check_plain, extend_pieces, is_chinese, next_id, with_words
from filbert.text.tokenizer import BertTokenizer
from filbert.text.vocabulary import WordCounter, learn_pieces, special_tokens, words_of

REPORT: Final = "vocab_report.json"
FILES: Final = {
    REPORT, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
}  # fmt: skip
LETTERS: Final = 1000  # of texts in an alphabet; a few rare signs of other scripts are [UNK]
SAMPLE: Final = 4000  # documents that the report is measured on
SAMPLE_LETTERS: Final = 5000  # of each of them


@dataclass(frozen=True)
class VocabResult:
    """The folder `out` with its `tokens` in the order of their ids, and what was found."""

    out: Path
    tokens: list[str]
    report: dict[str, Any]
    seconds: float

    def __str__(self) -> str:
        """The report as lines of text."""
        lines = [*coverage_lines(self.report), *(f"note: {note}" for note in self.report["notes"])]
        return "\n".join([*lines, f"{self.out}: {self.seconds:.0f} s"])


@dataclass
class _Read:
    """What one pass over the corpus leaves, beside the words."""

    forgotten: int = 0  # occurrences of words
    documents: int = 0
    empty: int = 0
    passed_over: int = 0  # documents that are not in the sample
    letters: int = 0
    kept: list[tuple[int, int, str]] = field(default_factory=list)  # a heap, largest hash first


def learn_vocabulary(options: VocabOptions, *, quiet: bool = False) -> VocabResult:
    """Learn a vocabulary from `options.corpus` and write its tokenizer to `options.out`.

    Nothing is written before everything is learned. Raises `UsageError` for options that cannot be
    met, `FilbertError` for a corpus that cannot be read or has no words.
    """
    started = time.monotonic()
    base = None if options.extend is None else _base(options)
    options = options.model_copy(update={"kind": _kind(options, base)})
    special = _special(options) if base is None else []
    out = Path(options.out)
    files = corpus_files(options.corpus)
    check_out(out, "vocabulary", set(FILES).issuperset, overwrite=options.overwrite, reads=files)
    accents = None if base is None else base.settings.strip_accents
    counter = WordCounter(lower=options.kind != "cased", strip_accents=accents)
    read = _read(options, files, counter, quiet=quiet)
    words = counter.words()
    if not words and read.passed_over:
        raise FilbertError(
            f"--sample {options.sample:g} took {read.documents:,} of the "
            f"{read.documents + read.passed_over:,} documents that are not empty, and no word; "
            "give a larger share"
        )
    if not words:
        raise FilbertError(
            f"the corpus has no words: {len(files):,} files, {read.documents:,} documents, of "
            f"which {read.empty:,} are empty"
        )
    if base is None:
        tokenizer, counts = _learn(options, words, special)
    else:
        tokenizer, counts = _extend(options, words, base)
    report = _report(options, files, read, words, tokenizer, counts, base)
    _write(out, tokenizer, report)
    return VocabResult(out, _in_order(tokenizer), report, time.monotonic() - started)


def _learn(
    options: VocabOptions, words: Counter[str], special: list[str]
) -> tuple[BertTokenizer, dict[str, Any]]:
    """A tokenizer of new words, and the counts of its report."""
    most = options.limit_alphabet or (
        options.size * 3 // 4 if options.kind == "chinese" else LETTERS
    )
    learned = learn_pieces(
        words,
        size=options.size,
        special=special,
        min_frequency=options.min_frequency,
        max_letters=most,
    )
    tokenizer = BertTokenizer(
        learned.tokens,
        do_lower_case=options.kind != "cased",
        extra_special_tokens=options.special,
    )
    return tokenizer, {
        "words": learned.words,
        "words_left_out": learned.words_left_out,
        "tokens": len(learned.tokens),
        "letters": learned.letters,
        "letters_left_out": learned.letters_left_out,
    }


def _extend(
    options: VocabOptions, words: Counter[str], base: BertTokenizer
) -> tuple[BertTokenizer, dict[str, Any]]:
    """The tokenizer of the base with new words behind its own, and the counts of its report."""
    start = next_id(base)
    room = options.size - start
    share = 3 if options.kind == "chinese" or is_chinese(base) else 1
    most = options.limit_alphabet or max(1, room * share // 4)
    learn = partial(
        extend_pieces, words, base, size=options.size, min_frequency=options.min_frequency
    )
    added = learn(max_letters=most)
    if options.limit_alphabet is None and len(added.tokens) < room and added.letters == most:
        added = learn(max_letters=most + room - len(added.tokens))  # no piece wants their place
    if not added.tokens:
        raise FilbertError(
            f"the corpus has no new word that occurs {options.min_frequency:,} times "
            f"(--min-frequency): the vocabulary of {options.extend} covers it"
        )
    return with_words(base, added.tokens), {
        "words": added.words,
        "words_left_out": added.words_left_out,
        "tokens": start + len(added.tokens),
        "new_tokens": len(added.tokens),
        "letters": added.letters,
        "letters_left_out": added.letters_left_out,
    }


def _base(options: VocabOptions) -> BertTokenizer:
    """The tokenizer that is extended. Raises before the corpus is read where that cannot be."""
    assert options.extend is not None
    base = BertTokenizer.from_pretrained(options.extend)
    check_plain(base, name=options.extend)
    for name in ("unused", "special"):
        if getattr(options, name):
            raise UsageError(
                f"--{name} does not go with --extend: special tokens are those of "
                f"{options.extend}; leave it out"
            )
    if options.size <= (start := next_id(base)):
        raise UsageError(
            f"--size {options.size:,} has no room behind the {start:,} tokens of {options.extend}; "
            f"give a larger one, such as --size {start + max(100, start // 10):,}"
        )
    return base


def _kind(options: VocabOptions, base: BertTokenizer | None) -> str:
    """What becomes of letters: as asked for, and as in the base."""
    if base is None:
        return options.kind or "uncased"
    if options.kind is not None and (options.kind == "cased") == base.do_lower_case:
        case = "lower-cases text" if base.do_lower_case else "keeps capitals"
        raise UsageError(
            f"--kind {options.kind} contradicts {options.extend}, which {case}; leave --kind out"
        )
    if not base.do_lower_case:
        return "cased"
    return options.kind or ("chinese" if is_chinese(base) else "uncased")


def _in_order(tokenizer: BertTokenizer) -> list[str]:
    numbers = tokenizer.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def _special(options: VocabOptions) -> list[str]:
    for token in options.special:
        if len(token) < 2 or not token.isprintable() or " " in token:
            raise UsageError(
                f"--special {token!r}: a special token is two or more characters without spaces, "
                "such as [ENTITY]"
            )
    special = special_tokens(unused=options.unused, extra=options.special)
    if len(special) >= options.size:
        raise UsageError(
            f"--size {options.size:,} has no room beside {len(special):,} special and unused tokens"
        )
    return special


def _read(options: VocabOptions, files: list[str], counter: WordCounter, *, quiet: bool) -> _Read:
    read = _Read()
    numbers = count()
    limit = int(options.sample * 2**64)
    with Meter("counting words", files, quiet=quiet) as meter:
        for file in files:
            for document in read_documents(
                file,
                text_column=options.text_column,
                source_column="none",  # a vocabulary has no use for it
                document=options.document,
                encoding=options.encoding,
                progress=meter.at,
            ):
                text = document.text
                if not text.strip():
                    read.empty += 1
                    continue
                try:
                    digest = blake2b(text.encode(), digest_size=8).digest()
                except UnicodeEncodeError:  # Parquet holds bytes, JSON was checked: told with place
                    raise FilbertError(
                        f"{document.name}: half of a surrogate pair, which is no character; "
                        "mend the file"
                    ) from None
                key = int.from_bytes(digest, "big")
                if key >= limit:
                    read.passed_over += 1
                    continue
                read.documents += 1
                read.letters += len(text)
                counter.add(text)
                # The documents with the smallest hashes: spread evenly, and the same on each run.
                item = (-key, next(numbers), text[:SAMPLE_LETTERS])
                if len(read.kept) < SAMPLE:
                    heapq.heappush(read.kept, item)
                elif item > read.kept[0]:
                    heapq.heapreplace(read.kept, item)
            meter.next_file()
        distinct = len(counter.words())
        read.forgotten = counter.forgotten
        meter.message(f"learning pieces from {distinct:,} distinct words")
    return read


def _report(
    options: VocabOptions,
    files: list[str],
    read: _Read,
    words: Counter[str],
    tokenizer: BertTokenizer,
    counts: dict[str, Any],
    base: BertTokenizer | None,
) -> dict[str, Any]:
    accents = tokenizer.settings.strip_accents
    texts = (text for _, _, text in read.kept)
    sample = words_of(texts, lower=options.kind != "cased", strip_accents=accents)
    notes = []
    if counts["tokens"] < options.size:
        why = (
            f"the corpus has no more pieces that occur {options.min_frequency:,} times "
            "(--min-frequency)"
        )
        if counts["letters_left_out"] and counts["letters"] == options.limit_alphabet:
            why = (
                f"nothing is learned from the {counts['words_left_out']:,} words with another "
                f"letter than the {counts['letters']:,} of --limit-alphabet"
            )
        notes.append(f"{options.size:,} tokens were asked for; {why}")
    ideographs = sum(n for word, n in words.items() if "\u4e00" <= word[0] <= "\u9fff")
    if base is None and options.kind != "chinese" and 2 * ideographs > counts["words"]:
        notes.append("most words are Chinese characters; --kind chinese keeps more of them")
    if read.forgotten:
        notes.append(f"{read.forgotten:,} occurrences of rare words were forgotten to save memory")
    documents = min(read.documents, SAMPLE)
    tokens = _in_order(tokenizer)
    told = options.model_dump(exclude={"corpus", "out", "overwrite"})
    if options.extend is None:
        del told["extend"]
    else:
        told["extend"] = Path(options.extend).name
    return {
        "filbert": __version__,
        "options": told,
        # Names, not paths: the folder may be published, and the same corpus may lie elsewhere.
        "corpus": [path if path.startswith("hub:") else Path(path).name for path in options.corpus],
        "files": len(files),
        "documents": read.documents,
        "empty_documents": read.empty,
        "characters": read.letters,
        "distinct_words": len(words),
        "words_forgotten": read.forgotten,
        **counts,
        "coverage": coverage(tokenizer, sample),
        **({} if base is None else {"coverage_before": coverage(base, sample)}),
        "longest_tokens": longest_tokens(tokens[-counts.get("new_tokens", len(tokens)) :]),
        "most_split": most_split(tokenizer, words),
        "sample": f"{documents:,} documents of those learned from, chosen by a hash, the first "
        f"{SAMPLE_LETTERS:,} characters of each; none was held out",
        "notes": notes,
    }


def _write(out: Path, tokenizer: BertTokenizer, report: dict[str, Any]) -> None:
    out = Path(os.path.realpath(out))  # what a link leads to is replaced, not the link
    with beside(out) as temp:
        tokenizer.save_pretrained(temp)
        content = json.dumps(report, ensure_ascii=False, indent=2)
        write_file(temp / REPORT, content + "\n")
        replace_folder(temp, out)
