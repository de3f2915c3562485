"""Text of a corpus made plain: what no reader sees is taken out, and documents of no use left out.

Always: line ends of any kind become a newline; control and format characters go (C0, C1, zero
width, byte order marks, directions, soft hyphens, U+FFFD, lone surrogates); Unicode is composed
(NFC); runs of white space become one blank, and blank lines go. With `markup`, HTML tags go before
(those of blocks leave a newline; an element `ref`, `script` or `style` goes with what is in it),
entities are resolved, and brackets that a template left empty go too. With `boilerplate`, lines go
that are navigation or notices: a phrase of `_NOTICES` in a line of at most 120 characters, or a
line without a letter; and a line that the document already had.

The language filter is a plain measure, not a language identifier: `zh` wants half of the letters of
the first 4,000 characters to be Chinese and fewer than one in ten kana or hangul; `en` wants nine
in ten to be of the Latin alphabet and one word in twenty to be a common English one.

    >>> clean_text("Caf\\u0065\\u0301\\u200b  is\\topen.\\r\\n\\r\\nBye")
    'Café is open.\\nBye'
"""

from __future__ import annotations

import html
import re
import unicodedata

from filbert.text.sentences import word_list
from filbert.text.words import HAN

_HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffd\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]{0,10})(?:[\s/][^<>]{0,2000})?>|<!--[^<>]{0,2000}-->")
_BLOCKS = word_list(
    "p br div li ul ol dl dt dd tr td th table h1 h2 h3 h4 h5 h6 hr section article header footer "
    "blockquote pre figure figcaption form body html head title"
)
_INLINE = word_list(
    "a abbr b big center cite code del em font i img ins mark nobr q s small span strike strong "
    "sub sup tt u video audio source iframe poem gallery nowiki math input label button tbody "
    "thead caption"
)
_WITH_CONTENT = frozenset(("ref", "script", "style"))
_LONGEST_CONTENT = 5000  # characters between <ref> and </ref>; beyond, the end tag is missing
_EMPTY = re.compile(r"([(（])(?:[\s,;，、；]+([)）])?|([)）]))")
_NOTICES = re.compile(
    r"cookie|all rights reserved|privacy policy|terms of (?:use|service)|sign in|sign up|log in|"
    r"subscribe|newsletter|click here|read more|share (?:this|on)|skip to|javascript|powered by|"
    r"copyright ©|版权所有|点击|扫码|二维码|关注公众号|责任编辑|登录|注册|转载|相关阅读",
    re.IGNORECASE,
)
_LONGEST_NOTICE = 120
_LOOKED_AT = 4000
_HAN_OR_KANA = re.compile(f"([{HAN}])|([\u3040-\u30ff\u1100-\u11ff\uac00-\ud7af])")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_LETTERS = re.compile(r"[^\W\d_]")
_WORDS = re.compile(r"[a-z']+")
_COMMON = word_list(
    "the of and to a in is that it was for on with as be at by this are from or his he an have not "
    "but you they i she her had were which we there been has their one all would will what so if "
    "about when who can more my do them some"
)


def clean_text(text: str, *, markup: bool = False, boilerplate: bool = False) -> str:
    """The plain text: lines without white space around them, none blank, parted by newlines."""
    if markup and ("<" in text or "&" in text or "(" in text or "（" in text):
        text = strip_markup(text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for number, line in enumerate(lines):
        if not line.isprintable():  # few are not, and looking is fast
            shown = unicodedata.normalize("NFC", _HIDDEN.sub("", line))
            lines[number] = " ".join(shown.split())
    if boilerplate:
        lines = strip_boilerplate(lines)
    return "\n".join(filter(None, lines))


def strip_markup(text: str) -> str:
    """Without HTML tags, entities and empty brackets; what looks like a tag of no known name
    stays."""
    if "<" in text:
        kept, place = [], 0
        for tag in _TAG.finditer(text):
            name = (tag[2] or "").lower()
            if tag.start() < place or (tag[2] and name not in _BLOCKS | _INLINE | _WITH_CONTENT):
                continue
            kept.append(text[place : tag.start()])
            if name in _BLOCKS:
                kept.append("\n")
            place = tag.end()
            if name in _WITH_CONTENT and not tag[1] and not tag[0].endswith("/>"):
                end = text.find(f"</{tag[2]}>", place, place + _LONGEST_CONTENT)
                place = end if end >= 0 else place
        text = "".join([*kept, text[place:]])
    return _EMPTY.sub(_without_rest, html.unescape(text) if "&" in text else text)


def _without_rest(bracket: re.Match[str]) -> str:
    """The opening bracket without the separators behind it, or nothing if it closes there."""
    return "" if bracket[2] or bracket[3] else bracket[1]


def strip_boilerplate(lines: list[str]) -> list[str]:
    """Without lines that are notices, hold no letter, or stood in this document before."""
    kept, seen = [], set()
    for line in lines:
        notice = len(line) <= _LONGEST_NOTICE and _NOTICES.search(line) is not None
        if line and not notice and line not in seen and _LETTERS.search(line):
            kept.append(line)
            seen.add(line)
    return kept


def speaks(text: str, language: str) -> bool:
    """Whether the text is taken for `language`, "en" or "zh", by the measure told above."""
    head = text[:_LOOKED_AT]
    letters = len(_LETTERS.findall(head))
    if language == "zh":
        found = [bool(han) for han, _ in _HAN_OR_KANA.findall(head)]
        han = sum(found)
        return han > 0 and 2 * han >= letters and 10 * (len(found) - han) < letters
    words = _WORDS.findall(head.lower())
    common = sum(word in _COMMON for word in words)
    return (
        common > 0 and 10 * len(_LATIN.findall(head)) >= 9 * letters and (20 * common >= len(words))
    )
