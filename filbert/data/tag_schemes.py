"""Tags of words and the spans they spell, whatever the scheme: BIO, IOB1, BIOES, BMES, BILOU.

A file says which words belong together by a letter before the type. filbert learns and answers in
BIO (IOB2: `B-` begins an entity, `I-` goes on with it, `O` is outside); the others are read:

    scheme_of([["O", "S-PER"], ["B-LOC", "E-LOC"]])       # "bio": every letter says its own part
    to_bio([["O", "S-PER"], ["B-LOC", "E-LOC"]], "bio")   # [["O", "B-PER"], ["B-LOC", "I-LOC"]]
    spans_of(["B-LOC", "I-LOC", "O"])                     # [(0, 2, "LOC")]

Labels without such letters (parts of speech) are "plain": each word has its own.

Ramshaw and Marcus 1995 (IOB1); Tjong Kim Sang and Veenstra 1999 (IOB2); Ratinov and Roth 2009
(BILOU). Spans are read from broken sequences as conlleval reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from filbert.errors import FilbertError

BEGINS = "BSU"  # an entity begins here: B of all, S and U of entities of one word
GOES_ON = "IEML"
ENDS = "ESLU"  # and the next word is not of this entity
OUTSIDE = "O"

Span = tuple[int, int, str]  # first word, end (exclusive), type


@dataclass
class Repairs:
    """How many tags broke BIO and were mended, and the first: (sentence, word, tag)."""

    count: int = 0
    first: tuple[int, int, str] | None = None


def split_tag(tag: str) -> tuple[str, str]:
    """(letter, type) of an entity tag, ("O", "") of the tag outside; ("", tag) of any other."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if len(tag) > 2 and tag[1] == "-" and tag[0] in BEGINS + GOES_ON:
        return tag[0], tag[2:]
    return "", tag


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """`bio` (each letter says what it means; BIOES, BMES and BILOU too), `iob1` or `plain`.

    In IOB1 an entity begins with `I-`, and `B-` stands only between two neighbours of one type.
    Tags are entity tags where one of them has such a letter; then all must: raises `FilbertError`
    naming the one that has not.
    """
    letters: Counter[str] = Counter()
    other: str | None = None
    iob1 = True
    opened = False  # whether some I- stands where BIO has a B-
    for tags in sentences:
        before = (OUTSIDE, "")
        for tag in tags:
            letter, name = split_tag(tag)
            letters[letter] += 1
            if not letter:
                other = other or tag
            same = before[0] != OUTSIDE and before[1] == name
            opened |= letter == "I" and not same
            iob1 &= letter != "B" or same
            before = letter, name
    found = {letter for letter in letters if letter not in ("", OUTSIDE)}
    if not found:
        return "plain" if other is not None or not letters[OUTSIDE] else "bio"
    if other is not None:
        raise FilbertError(
            f"the tag {other!r} has no letter before its type, but others have "
            f"({', '.join(sorted(f'{letter}-' for letter in found))}); write O, B-TYPE and I-TYPE, "
            "or labels without such letters throughout"
        )
    return "iob1" if iob1 and opened and found <= {"B", "I"} else "bio"


def to_bio(sentences: Sequence[Sequence[str]], scheme: str) -> tuple[list[list[str]], Repairs]:
    """The same entities in BIO. A tag that goes on with an entity which is not there begins one;
    in `bio` that is counted as a repair, in `iob1` it is how entities begin."""
    out, repairs = [], Repairs()
    for number, tags in enumerate(sentences):
        before = ""  # the type of the entity that the word before is in and that may go on
        mended: list[str] = []
        for place, tag in enumerate(tags):
            letter, name = split_tag(tag)
            goes_on = letter in GOES_ON and before == name
            if letter in GOES_ON and not goes_on and scheme == "bio":
                repairs.count += 1
                repairs.first = repairs.first or (number, place, tag)
            if letter == OUTSIDE:
                mended.append(OUTSIDE)
            else:
                mended.append(f"{'I' if goes_on else 'B'}-{name}")
            before = "" if letter == OUTSIDE or letter in ENDS else name
        out.append(mended)
    return out, repairs


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence in any scheme: (first word, end, type), in order."""
    spans: list[Span] = []
    start, open_type = 0, ""
    for place, tag in enumerate(tags):
        letter, name = split_tag(tag)
        goes_on = letter in GOES_ON and open_type == name
        if open_type and not goes_on:
            spans.append((start, place, open_type))
            open_type = ""
        if letter not in ("", OUTSIDE):
            if not goes_on:
                start, open_type = place, name
            if letter in ENDS:
                spans.append((start, place + 1, name))
                open_type = ""
    if open_type:
        spans.append((start, len(tags), open_type))
    return spans


def bio_of(spans: Iterable[Span], length: int) -> list[str]:
    """BIO tags of `length` words with these entities, which do not overlap."""
    tags = [OUTSIDE] * length
    for first, end, name in spans:
        tags[first:end] = [f"B-{name}"] + [f"I-{name}"] * (end - first - 1)
    return tags


def entity_labels(types: Iterable[str]) -> list[str]:
    """What a tagger of these types chooses from: O, and B- and I- of each, sorted by type."""
    return [OUTSIDE, *(f"{letter}-{name}" for name in sorted(set(types)) for letter in "BI")]
