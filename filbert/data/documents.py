"""A folder of documents, cut into passages, with a search by words (BM25) over them.

A passage is some paragraphs of one file, about 800 characters; where it stands in the file is
known to the character. Words are compared in lower case and one width (NFKC); of Chinese text the
characters and their pairs. The scores are those of the library bm25s (Robertson et al. 1994).

    library = read_documents("docs/")
    numbers = library.search("How long is the guarantee?", count=20)
    library.text(numbers[0]), library.file(numbers[0]), library.begin[numbers[0]]
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.errors import FilbertError, UsageError, missing_extra
from filbert.text.words import HAN

Ids = NDArray[np.int64]

SUFFIXES = (".txt", ".md", ".rst", ".text")
PASSAGE = 800  # characters from which on a passage ends with its line
LONGEST = 1600  # and with which it ends in any case
_HAN_RUNS = re.compile(f"([{HAN}]+)")
_WORD = re.compile(r"\w+")
_STOPS = re.compile(r"[.!?。！？；\s]")


@dataclass
class Documents:
    """Texts of files, and their passages. names: (files,) relative paths; texts: their raw text;
    owner, begin, end (passages,) int64: file and characters of each; notes: what was left out."""

    names: list[str]
    texts: list[str]
    owner: Ids
    begin: Ids
    end: Ids
    notes: list[str] = field(default_factory=list)
    index: Any = None

    def __len__(self) -> int:
        return len(self.owner)

    def text(self, passage: int) -> str:
        """The raw text of a passage."""
        return self.texts[self.owner[passage]][self.begin[passage] : self.end[passage]]

    def file(self, passage: int) -> str:
        """The name of the file that a passage is from."""
        return self.names[self.owner[passage]]

    def search(self, question: str, *, count: int) -> list[int]:
        """The numbers of the passages that share words with the question, the best first, at most
        `count` of them."""
        scores = np.asarray(self.index.get_scores(list(dict.fromkeys(terms(question)))))
        order = np.argsort(-scores, kind="stable")[:count]
        return [int(place) for place in order if scores[place] > 0]


def read_documents(folder: str | os.PathLike[str], *, encoding: str = "utf-8") -> Documents:
    """Read the text files of a folder and those below it, and index them.

    Files of other kinds, unreadable and empty ones are told in `notes`. Raises `UsageError` for a
    folder that is not there, `FilbertError` where nothing in it can be read.
    """
    try:
        import bm25s
    except ImportError:
        raise missing_extra("bm25s", "tasks") from None
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; name one with text files ({', '.join(SUFFIXES)})")
    names, texts, bad, others = [], [], [], 0
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        if path.suffix.lower() not in SUFFIXES:
            others += 1
            continue
        try:
            raw = path.read_bytes()
            text = raw.decode(encoding)
        except LookupError:
            raise UsageError(f"unknown --encoding '{encoding}'; try utf-8, gb18030") from None
        except UnicodeError:
            bad.append(f"{inside} is not {encoding}")
            continue
        except OSError as error:
            bad.append(f"{inside}: {error.strerror or error}")
            continue
        if "\0" in text:
            bad.append(f"{inside} holds NUL bytes, so it is no text")
        elif not any(map(str.isalnum, text)):
            bad.append(f"{inside} {'holds no words' if text.strip() else 'is empty'}")
        else:
            names.append(str(inside))
            texts.append(text)
    notes = [f"left out {len(bad):,} files: {'; '.join(bad[:5])}"] if bad else []
    if others:
        notes.append(f"{others:,} files are not of the kinds that are read ({', '.join(SUFFIXES)})")
    if not texts:
        raise FilbertError(f"{root}: no text to ask. {' '.join(notes) or 'The folder is empty'}")
    places = [(number, a, b) for number, text in enumerate(texts) for a, b in passages(text)]
    owner, begin, end = np.asarray(places, dtype=np.int64).T
    found = Documents(names, texts, owner, begin, end, notes)
    found.index = bm25s.BM25()
    found.index.index([terms(found.text(i)) for i in range(len(found))], show_progress=False)
    return found


def passages(text: str) -> list[tuple[int, int]]:
    """(begin, end) of the passages of a text, in order; together they hold all of it but passages
    of marks alone."""
    found, begin, size = [], 0, len(text)
    while begin < size:
        end = min(size, begin + LONGEST)
        line = text.find("\n", min(begin + PASSAGE, size), end)
        if line >= 0:
            end = line + 1
        elif end < size:  # a long paragraph: behind the last stop or blank
            stops = [stop.end() for stop in _STOPS.finditer(text, begin + PASSAGE, end)]
            end = stops[-1] if stops else end
        if any(map(str.isalnum, text[begin:end])):
            found.append((begin, end))
        begin = end
    return found


def terms(text: str) -> list[str]:
    """What is compared: words in lower case and one width; Chinese characters and their pairs."""
    plain = unicodedata.normalize("NFKC", text).lower()
    found: list[str] = []
    for number, part in enumerate(_HAN_RUNS.split(plain)):
        if number % 2:
            found += part
            found += [part[i : i + 2] for i in range(len(part) - 1)]
        else:
            found += _WORD.findall(part)
    return found
