"""How well a vocabulary covers texts: tokens a word, unknown words, words kept whole.

    report = coverage(tokenizer, words_of(texts, lower=True))
    print("\n".join(coverage_lines(report)))

Words are BERT's: what lies between spaces, punctuation marks and Chinese characters. Each distinct
word is encoded once and counts as often as it occurs. Chinese is read by tokens a character, since
its words are single characters here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from filbert.text.tokenizer import BertTokenizer

SHOWN = 12  # words in a list of the report
FREQUENT = 20_000  # words of the corpus among which the most split are looked for
_AT_ONCE = 8192


def coverage(tokenizer: BertTokenizer, words: Mapping[str, int]) -> dict[str, Any]:
    """Counts and rates over words with their counts, as BERT's pre-tokenizer gives them.

    `unknown_tokens`: share of tokens that are [UNK]; `unknown_characters`: share of characters that
    stand in such words; `whole_words`: share of words that are one token, and not [UNK].
    """
    total = tokens = characters = unknown = lost = whole = 0
    unknowns: list[tuple[int, str]] = []
    for word, count, pieces in _encoded(tokenizer, words):
        total += count
        tokens += count * len(pieces)
        characters += count * len(word)
        if tokenizer.unk_token in pieces:
            unknown += count
            lost += count * len(word)
            unknowns.append((-count, word))
        elif len(pieces) == 1:
            whole += count
    return {
        "words": total,
        "tokens": tokens,
        "characters": characters,
        "tokens_per_word": _share(tokens, total),
        "tokens_per_character": _share(tokens, characters),
        "unknown_tokens": _share(unknown, tokens),
        "unknown_characters": _share(lost, characters),
        "whole_words": _share(whole, total),
        "frequent_unknown": [word for _, word in sorted(unknowns)[:SHOWN]],
    }


def most_split(tokenizer: BertTokenizer, words: Mapping[str, int]) -> list[list[str]]:
    """Of the 20,000 most frequent words those with the most pieces, the pieces of each."""
    frequent = sorted(words, key=lambda word: (-words[word], word))[:FREQUENT]
    rank = {word: number for number, word in enumerate(frequent)}
    found = [
        (-len(pieces), rank[word], pieces)
        for word, _, pieces in _encoded(tokenizer, dict.fromkeys(frequent, 1))
        if len(pieces) > 1
    ]
    return [pieces for _, _, pieces in sorted(found)[:SHOWN]]


def longest_tokens(tokens: Iterable[str]) -> list[str]:
    """The longest whole words among tokens, those of equal length by their letters."""
    plain = (token for token in tokens if not token.startswith(("##", "[")))
    return sorted(plain, key=lambda token: (-len(token), token))[:SHOWN]


def _encoded(
    tokenizer: BertTokenizer, words: Mapping[str, int]
) -> Iterable[tuple[str, int, list[str]]]:
    names = list(words)
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        encoded = tokenizer(some, add_special_tokens=False, verbose=False).encodings
        for word, encoding in zip(some, encoded, strict=True):
            yield word, words[word], encoding.tokens


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def coverage_lines(report: Mapping[str, Any]) -> list[str]:
    """The report of a vocabulary as people read it; where one was extended, the old figures too."""
    found, before = report["coverage"], report.get("coverage_before")

    def told(name: str, form: str, unit: str = "") -> str:
        was = "" if before is None else f"  (before: {before[name]:{form}})"
        return f"{found[name]:{form}}{unit}{was}"

    new = f"{report['new_tokens']:,} of them new, " if "new_tokens" in report else ""
    rows = [
        ("tokens", f"{report['tokens']:,} ({new}{report['letters']:,} letters)"),
        ("read", f"{report['documents']:,} documents, {report['words']:,} words"),
        ("tokens a word", told("tokens_per_word", ".3f")),
        ("tokens a character", told("tokens_per_character", ".3f")),
        ("words kept whole", told("whole_words", ".2%")),
        ("unknown", told("unknown_tokens", ".3%", " of tokens")),
        ("", told("unknown_characters", ".3%", " of characters")),
        (
            "longest words" if before is None else "longest new",
            " ".join(report["longest_tokens"][:6]),
        ),
        ("most split", ", ".join(" ".join(pieces) for pieces in report["most_split"][:4])),
    ]
    if found["frequent_unknown"]:
        rows.append(("often unknown", " ".join(found["frequent_unknown"][:SHOWN])))
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:<{width}}{value}" for name, value in rows if value] + [
        f"measured on {report['sample']}"
    ]
