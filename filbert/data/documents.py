"""A folder of documents, cut into passages, with a search by words (BM25) over them.

A passage is some paragraphs of one file, about 800 characters; where it stands in the file is
known to the character. Words are compared in lower case and one width (NFKC); of Chinese text the
characters and their pairs. The scores are those of the library bm25s (Robertson et al. 1994).

    library = read_documents("docs/")                          # or with index=Path("kept/")
    numbers = library.search("How long is the guarantee?", count=20)
    library.text(numbers[0]), library.file(numbers[0]), library.begin[numbers[0]]
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.data.kept_arrays import ForeignError, StaleError, keep, kept
from filbert.errors import FilbertError, UsageError, missing_extra
from filbert.text.words import HAN

Ids = NDArray[np.int64]

SUFFIXES = (".txt", ".md", ".rst", ".text")
PASSAGE = 800  # characters from which on a passage ends with its line
LONGEST = 1600  # and with which it ends in any case
WORDS = "words.safetensors"  # what an index of words is called in its folder
IN_WORDS = {"data": 1, "indices": 1, "indptr": 1, "terms": 1}  # its arrays and their dimensions
OF_MODELS = ("config.json", "filbert.json", "model.safetensors")  # no folder for an index
_HAN_RUNS = re.compile(f"([{HAN}]+)")
_WORD = re.compile(r"\w+")
_STOPS = re.compile(r"[.!?。！？；\s]")


@dataclass
class Documents:
    """Texts of files, and their passages. names: (files,) relative paths; texts: their raw text;
    owner, begin, end (passages,) int64: file and characters of each; notes: what was left out;
    unkept: why the index could not be kept, in words, where that was asked for."""

    names: list[str]
    texts: list[str]
    owner: Ids
    begin: Ids
    end: Ids
    notes: list[str] = field(default_factory=list)
    index: Any = None
    unkept: str | None = None

    def __len__(self) -> int:
        return len(self.owner)

    def digest(self) -> str:
        """A sha256 of all names and texts, and of how they are cut and compared."""
        found = hashlib.sha256(f"1 {PASSAGE} {LONGEST}\n".encode())  # 1: `passages`, `terms`
        for name, text in zip(self.names, self.texts, strict=True):
            for part in (name, text):
                raw = part.encode("utf-8", "surrogatepass")
                found.update(len(raw).to_bytes(8, "little") + raw)
        return found.hexdigest()

    def text(self, passage: int) -> str:
        """The raw text of a passage."""
        return self.texts[self.owner[passage]][self.begin[passage] : self.end[passage]]

    def file(self, passage: int) -> str:
        """The name of the file that a passage is from."""
        return self.names[self.owner[passage]]

    def search(self, question: str, *, count: int) -> list[int]:
        """The numbers of the passages that share words with the question, the best first, at most
        `count` of them; none of a question without a word."""
        asked = list(dict.fromkeys(terms(question)))
        if not asked:
            return []
        scores = np.asarray(self.index.get_scores(asked))
        order = np.argsort(-scores, kind="stable")[:count]
        return [int(place) for place in order if scores[place] > 0]


def read_documents(
    folder: str | os.PathLike[str], *, encoding: str = "utf-8", index: Path | None = None
) -> Documents:
    """Read the text files of a folder and those below it, and index them.

    `index`: a folder that keeps the index for the next call; where the documents have changed
    since, or it is damaged, it is made anew. That, files of other kinds, unreadable and empty ones
    are told in `notes`; so is an index that cannot be written. Raises `UsageError` for a folder
    that is not there, an `index` that is a file or holds a model or a file of another program in
    the index's place, `FilbertError` where nothing in the folder can be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; name one with text files ({', '.join(SUFFIXES)})")
    if index is not None:
        _check_index(index)
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
    found.index = _indexed(found, None if index is None else index / WORDS)
    return found


def _check_index(index: Path) -> None:
    """Raise `UsageError` for a folder that is no place for an index."""
    if os.path.exists(index) and not os.path.isdir(index):
        raise UsageError(f"--index {index} is a file; name a folder, which is made if need be")
    for name in OF_MODELS:
        if os.path.exists(index / name):
            raise UsageError(
                f"--index {index} holds a model ({name}); give a folder of its own, which is made "
                "if need be"
            )


def _indexed(documents: Documents, path: Path | None) -> Any:
    """The BM25 index of these documents: from the file, or made, and kept in it."""
    try:
        import bm25s
    except ImportError:
        raise missing_extra("bm25s", "tasks") from None
    made = bm25s.BM25()
    stamp = f"{documents.digest()} bm25s {bm25s.__version__}"
    if path is not None and (arrays := kept_or_told(path, stamp, IN_WORDS, documents.notes)):
        names = bytes(arrays.pop("terms")).decode().split("\n")
        made.scores = {**arrays, "num_docs": len(documents)}
        made.vocab_dict = {name: number for number, name in enumerate(names)}
        made.nonoccurrence_array = None  # of kinds of BM25 that are not used here
        return made
    made.index([terms(documents.text(i)) for i in range(len(documents))], show_progress=False)
    if path is not None:
        names = sorted(made.vocab_dict, key=made.vocab_dict.__getitem__)
        arrays = {name: made.scores[name] for name in ("data", "indices", "indptr")}
        arrays["terms"] = np.frombuffer("\n".join(names).encode(), np.uint8)
        documents.unkept = keep_or_tell(path, arrays, stamp)
        documents.notes += [documents.unkept] if documents.unkept else []
    return made


def keep_or_tell(path: Path, arrays: Mapping[str, NDArray[Any]], stamp: str) -> str | None:
    """Write the arrays; where that fails, why, in words: answers do not need it."""
    try:
        keep(path, arrays, stamp)
    except FilbertError as error:
        return f"the index could not be kept for the next call: {error}"
    return None


def kept_or_told(
    path: Path, stamp: str, wanted: Mapping[str, int], notes: list[str]
) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file, or None where they are to be made; why they are made anew is noted.
    Raises `ForeignError`."""
    try:
        return kept(path, stamp, wanted)
    except ForeignError:
        raise
    except StaleError:
        notes.append(f"{path} was made of other documents or settings; it is made anew")
    except FilbertError as error:
        notes.append(f"{path} is damaged and is made anew ({error})")
    return None


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
