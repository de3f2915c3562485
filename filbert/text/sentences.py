"""Sentences of English and Chinese text, by rules: where a sentence ends, and where a stop does not
end one.

Next-sentence prediction and sentence order need sentences; a stop alone does not make one ("Mr.
Smith", "3.14", "www.example.org", 《你好！》). A line is a paragraph, over whose end no sentence
reaches. Within it every run of stops is a candidate, kept or not by what stands before and behind
it; a quotation of a few sentences stays in one piece. Nothing is looked up but the short lists
below; wrong at times ("I met him at 5 p.m. Monday was dull"), the rules are the same everywhere and
never lose a character other than white space.

    >>> split_sentences('He said "No." Then Dr. Wu left at 3.15 p.m. 他说：“走吧！”我们走了。')
    ['He said "No."', 'Then Dr. Wu left at 3.15 p.m.', '他说：“走吧！”', '我们走了。']

Time is linear in the text: each candidate looks a bounded number of characters back and ahead.
Abbreviations and the idea of sentence starters: Kiss and Strunk 2006, "Unsupervised multilingual
sentence boundary detection", section 3; the lists are our own.
"""

from __future__ import annotations

import re

# A run of stops and the marks that close behind it.
_CANDIDATE = re.compile("([.!?…。！？；｡．]+)([\"'”’»」』）)\\]}】〕]*)")
_LINE = re.compile("[\n\r\u2028\u2029\x0b\x0c]")
_BLANKS = re.compile(r"\s*")
_WORD = re.compile(r"[^\W\d_]+")
_FULL_WIDTH = frozenset("。！？；｡．")
_OPENING = frozenset("\"'“‘«「『（([{【〔*-–—¿¡")
_BRACKETS = frozenset("（([{【〔《〈")
# Marks of a quotation: the closing one for each opening one. A straight one may be either.
_CLOSING = {"“": "”", "「": "」", "『": "』"}
_QUOTE = re.compile('["“”「」『』]')
_QUOTATION = 200  # characters between two marks up to which no sentence ends there
# A straight mark opens behind one of these (or a blank), if a word or one of the others follows.
_BEFORE_QUOTE = frozenset("(（[［{【《“‘「『:：，—–")
_IN_QUOTE = _OPENING | frozenset("《…$£€¥")
# Behind these a sentence goes on, whatever stop stands before them.
_GOING_ON = frozenset(",，、;:：》〉%/")


def word_list(text: str) -> frozenset[str]:
    """The words of a text, for tables that are easier to read in this form."""
    return frozenset(text.split())


_LONGEST = 24  # characters of a word before a stop; longer ones are no abbreviation

# Titles and the like: a name follows.
_BEFORE_NAMES = word_list(
    "mr mrs ms mx dr prof rev fr hon pres gov sen rep gen col maj capt cmdr lt sgt cpl pvt adm "
    "supt insp st ste mt messrs mme mlle esq vs cf al viz approx ca dept univ assn bros"
)
# A number follows; without one the word may end a sentence ("the answer was no.").
_BEFORE_NUMBERS = word_list(
    "no nos nr fig figs vol vols p pp ch chap sec sect eq eqs art pt op ed eds app para"
)
# These may end a sentence, but seldom do: only before a word that begins sentences.
_SELDOM_LAST = word_list(
    "etc inc ltd co corp jr sr bc ad am pm jan feb mar apr jun jul aug sep sept oct nov dec mon "
    "tue tues wed thu thurs fri sat sun ave blvd rd hwy sq ft in lb lbs oz min max est dist phd md "
    "ba ma bsc msc llc plc gmbh bldg cal calif conn fla ill mass mich minn okla pa tenn tex va "
    "wash wis"
)
_STARTERS = word_list(
    "The This That These Those There Then They Their He His She Her Hers It Its We Our You Your I "
    "My In On At By For From With Without After Before When While Where Although Though Because "
    "Since As If But And Or So Yet However Moreover Furthermore Meanwhile Instead Thus Hence "
    "Therefore Also What Who Why How Which Some Many Most Several Each Every All Both Another One "
    "Two Not No Yes During Until Once Under Over Here Now Today Later Even Only Just Such A An To "
    "Despite Unlike Like According Other Others Let Is Are Was Were Do Does Did Can Could"
)
_NUMBERING = re.compile(r"\(?(?:\d{1,3}|[ivxIVX]{1,4}|[a-zA-Z])")


def split_sentences(text: str) -> list[str]:
    """The sentences of `text` in order, without white space around them, none empty.

    Joined without white space they are the text without white space.
    """
    sentences = []
    for paragraph in _LINE.split(text):
        quotations = _quotations(paragraph)
        begin = passed = within = 0  # within: where the quotations that began so far have ended
        for found in _CANDIDATE.finditer(paragraph):
            while passed < len(quotations) and quotations[passed][0] < found.start():
                within = max(within, quotations[passed][1])
                passed += 1
            if found.end() >= within and _ends(paragraph, begin, found):
                if sentence := paragraph[begin : found.end()].strip():
                    sentences.append(sentence)
                begin = found.end()
        if sentence := paragraph[begin:].strip():
            sentences.append(sentence)
    return sentences


def _quotations(text: str) -> list[tuple[int, int]]:
    """Where quotations begin and end, with their marks, in order of their beginnings. A mark that
    opens takes the place of one like it that was never closed; what is long is left out."""
    opened: dict[str, int] = {}  # by closing mark
    found = []
    for mark in _QUOTE.finditer(text):
        sign, place = mark[0], mark.start()
        closing = _CLOSING.get(sign)
        if sign == '"':
            before, after = text[place - 1 : place], text[place + 1 : place + 2]
            free = not before or before.isspace()
            if (free or before in _BEFORE_QUOTE) and (after.isalnum() or after in _IN_QUOTE):
                closing = sign
            elif free:
                continue  # between blanks: it could be either
        if closing is not None:
            opened[closing] = place
        elif sign in opened and place - (begin := opened.pop(sign)) <= _QUOTATION:
            found.append((begin, place + 1))
    return sorted(found)


def _ends(text: str, begin: int, found: re.Match[str]) -> bool:
    """Whether the stop that was found ends the sentence that begins at `begin`."""
    start, end = found.span()
    if end == len(text):
        return True
    after = text[end]
    stops = found[1]
    if not _FULL_WIDTH.isdisjoint(stops) or "……" in stops:
        # what stands alone in brackets, as in （；）, or closes a title, as in 《走！》, is no end
        return after not in _GOING_ON and not (start > begin and text[start - 1] in _BRACKETS)
    if not after.isspace():
        # Chinese text with stops of half width has no blank behind them
        return (_is_han(after) or after in "“「『") and (
            _is_han(text[start - 1 : start]) or "!" in stops or "?" in stops
        )
    ahead = _BLANKS.match(text, end)
    assert ahead is not None, "the pattern matches the empty text"
    return ahead.end() == len(text) or _begins(text, begin, found, ahead.end())


def _begins(text: str, begin: int, found: re.Match[str], place: int) -> bool:
    """Whether a sentence begins at `place`, after a stop of half width and a blank."""
    first = place
    while first < len(text) and first < place + 3 and text[first] in _OPENING:
        first += 1
    if first == len(text):
        return False
    letter = text[first]
    if letter in _GOING_ON or letter.islower() or letter in ".!?…)]}":
        return False
    if found[1] != "." or found[2]:
        return True
    start = found.start()
    if start - begin < _LONGEST and _NUMBERING.fullmatch(text[begin:start].lstrip()):
        return False  # "1. Introduction": the number of a list, alone before its stop
    word = text[max(begin, start - _LONGEST) : start].rpartition(" ")[2]
    word = word.lstrip("\"'“‘«([{")
    plain = word.replace(".", "").lower()
    if plain in _BEFORE_NAMES and word[-1:] != ".":
        return False
    if plain in _BEFORE_NUMBERS and letter.isdigit():
        return False
    initial = len(word) == 1 and word.isalpha() and word.isupper()
    dotted = "." in word and all(len(p) < 3 and p.isalpha() for p in word.split("."))
    if initial or dotted or plain in _SELDOM_LAST:
        follower = _WORD.match(text, first)
        if not word[:1].isupper() and plain in {"in", "no", "sat", "sun", "mar", "max", "min"}:
            return True  # words as well: "he came in. Peter left."
        return (
            first > place or _is_han(letter) or (follower is not None and follower[0] in _STARTERS)
        )
    return True


def _is_han(character: str) -> bool:
    """Whether this is a Chinese character, as far as sentences care."""
    return "\u3400" <= character <= "\u9fff" or "\U00020000" <= character <= "\U0003ffff"
