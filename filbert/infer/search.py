"""Search a file by meaning: the rows whose vectors are nearest to that of a question.

    filbert search notes.txt "how do I get my money back" --bundle all-MiniLM-L6-v2
    filbert search faq.csv "退款" --bundle runs/vectors --index faq.safetensors

Every row is compared, exactly, in blocks, and only the best are kept; the texts of the hits are
read again at the end. Vectors are kept between searches only in a file that `--index` names, and
then all of them are in memory while it is made or read: it carries a digest of the searched file
and of the model, and a stale one is refused, not mended.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from filbert.atomic import atomic_path
from filbert.bundle import what_fits
from filbert.data.examples import stream_texts
from filbert.errors import FilbertError, UsageError
from filbert.infer.embed import Embedder
from filbert.infer.predict import WINDOW, windows
from filbert.infer.search_options import SearchOptions
from filbert.layout import MAX_HEADER, check_safetensors, strict_json
from filbert.tasks.embed import normalized
from filbert.tasks.retrieval import nearest

Floats = NDArray[np.float32]
Block = tuple[Floats, NDArray[np.int64]]  # (n, d) vectors, (n,) row numbers


@dataclass(frozen=True)
class Hit:
    """A row that was found: its number in the file, from 1, its cosine, its text."""

    row: int
    score: float
    text: str


def search(options: SearchOptions, embedder: Embedder) -> list[Hit]:
    """The `options.top` rows of a file that are nearest to the query, best first.

    Rows whose text is empty are never found. Raises `UsageError` for an index of another file or
    model, `FilbertError` for a row without a text.
    """
    if not options.query.strip():
        raise UsageError("the query is empty; expected a few words or a question")
    if options.file == "-":
        raise UsageError("a search reads its file twice; standard input can be read once. Save it")
    asked = normalized(embedder.vectors([options.query], dimensions=options.dimensions))
    blocks = iter([indexed(options, embedder)]) if options.index else encoded(options, embedder)
    wanted = best_of(asked, blocks, top=options.top)
    if not wanted:
        raise FilbertError(f"{options.file}: no row has any text")
    texts = texts_of(options, set(wanted))
    return [Hit(row, value, texts[row]) for row, value in wanted.items()]


def best_of(asked: Floats, blocks: Iterator[Block], *, top: int) -> dict[int, float]:
    """Row number and cosine of the `top` rows nearest to `asked` (1, d), best first; of equals the
    earlier comes first."""
    best_rows, best_scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for vectors, rows in blocks:
        places, scores = nearest(asked, vectors, top=top)
        best_rows = np.concatenate([best_rows, rows[places[0]]])
        best_scores = np.concatenate([best_scores, scores[0]])
        order = np.lexsort((best_rows, -best_scores))[:top]
        best_rows, best_scores = best_rows[order], best_scores[order]
    return dict(zip(best_rows.tolist(), best_scores.tolist(), strict=True))


def indexed(options: SearchOptions, embedder: Embedder) -> Block:
    """(n, d) the normalised vectors of a file's rows and (n,) the numbers of these rows: from the
    index, which is written first if there is none."""
    assert options.index is not None
    path = Path(options.index)
    stamp = stamp_of(options, embedder)
    if path.exists():
        return read_index(path, stamp)
    count = sum(1 for _ in texts_and_numbers(options, embedder))
    width = options.dimensions or embedder.model.config.hidden_size
    vectors, rows = np.empty((count, width), np.float32), np.empty(count, np.int64)
    done = 0
    for some, numbers in encoded(options, embedder):
        if done + len(some) > count:
            raise changed(options)
        vectors[done : done + len(some)], rows[done : done + len(some)] = some, numbers
        done += len(some)
    if done < count:
        raise changed(options)
    if not count:
        raise FilbertError(f"{options.file}: no row has any text")
    with atomic_path(path) as temp:
        save_file({"vectors": vectors, "rows": rows}, temp, metadata={"filbert": stamp})
    return vectors, rows


def encoded(options: SearchOptions, embedder: Embedder) -> Iterator[Block]:
    """The vectors of all rows that have a text, normalised, and the numbers of these rows, some
    rows at a time."""
    for block in windows(texts_and_numbers(options, embedder), WINDOW):
        vectors = embedder.vectors([text for _, text in block], dimensions=options.dimensions)
        yield normalized(vectors), np.array([number for number, _ in block], np.int64)


def texts_and_numbers(options: SearchOptions, embedder: Embedder) -> Iterator[tuple[int, str]]:
    """Row number and text of each row that has one."""
    rows = stream_texts(
        options.file, text_column=options.text_column, format=options.format,
        encoding=options.encoding, header=options.header,
    )  # fmt: skip
    for row, text, _ in rows:
        if problem := embedder.problem(text):
            raise FilbertError(f"{options.file}: row {row.number}: {problem}")
        if text.strip():
            yield row.number, text


def texts_of(options: SearchOptions, wanted: set[int]) -> dict[int, str]:
    """The texts of these rows; reading stops at the last of them."""
    found: dict[int, str] = {}
    rows = stream_texts(
        options.file, text_column=options.text_column, format=options.format,
        encoding=options.encoding, header=options.header,
    )  # fmt: skip
    for row, text, _ in rows:
        if row.number in wanted and isinstance(text, str):
            found[row.number] = text
            if len(found) == len(wanted):
                break
    if len(found) < len(wanted):
        raise changed(options)
    return found


def changed(options: SearchOptions) -> FilbertError:
    """A file that is not the same when it is read a second time."""
    return FilbertError(f"{options.file} changed while it was searched; search again")


def stamp_of(options: SearchOptions, embedder: Embedder) -> str:
    """What vectors belong to, as JSON: the file's and the model's content, and how they read."""
    settings = embedder.settings
    parts: dict[str, Any] = {
        "file": digest(Path(options.file)),
        "model": model_digest(embedder),
        "settings": [settings.pooling, settings.max_length, options.dimensions],
        "reading": [options.text_column, options.format, options.encoding, options.header],
    }
    return json.dumps(parts, sort_keys=True)


def model_digest(embedder: Embedder) -> str:
    """A sha256 of the files that vectors depend on."""
    model = hashlib.sha256()
    for name in sorted(path.name for path in embedder.folder.iterdir()):
        if name.endswith(".safetensors") or name in ("config.json", "tokenizer.json", "vocab.txt"):
            model.update(f"{name} {digest(embedder.folder / name)}\n".encode())
    return model.hexdigest()


def digest(path: Path) -> str:
    """The sha256 of a file. Raises `FilbertError`."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror or error}") from None


def read_index(path: Path, stamp: str) -> Block:
    """The vectors and row numbers of an index. `UsageError` where it belongs to something else,
    `FilbertError` where it is damaged."""
    try:
        shapes = check_safetensors(path)
    except FilbertError as error:
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise
        raise FilbertError(
            f"--index {path} is damaged, or no index that filbert search wrote. Remove it if it is "
            "one, and it is made anew, or name another"
        ) from error
    kinds = {name: dtype for name, (dtype, _) in shapes.items()}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = strict_json(file.read(min(length, MAX_HEADER)), what=f"the header of {path}")
    told = header.get("__metadata__", {}).get("filbert")
    if kinds != {"vectors": "F32", "rows": "I64"} or told is None:
        raise UsageError(f"--index {path}: this is no index that filbert search wrote")
    found, wanted = strict_json(str(told).encode(), what=f"the stamp of {path}"), json.loads(stamp)
    for part, words in (
        ("file", "the searched file has changed since"),
        ("model", "it was made with another model"),
        ("settings", "it was made with another length, pooling or --dimensions"),
        ("reading", "the file was read with other options"),
    ):
        if not isinstance(found, dict) or found.get(part) != wanted[part]:
            raise UsageError(
                f"--index {path} is stale: {words}. Remove it, and it is made anew, or name another"
            )
    tensors = load_file(path)
    vectors, rows = tensors["vectors"], tensors["rows"]
    if vectors.ndim != 2 or rows.shape != (len(vectors),):
        raise FilbertError(f"--index {path} is damaged: {vectors.shape} vectors, {rows.shape} rows")
    return vectors, rows


def hit_lines(hits: list[Hit]) -> list[str]:
    """The hits for people: place, cosine, row and text, a line each."""
    return [
        f"{place}\t{hit.score:.4f}\t{hit.row}\t{' '.join(hit.text.split())}"
        for place, hit in zip(count(1), hits, strict=False)
    ]


def run_search(options: SearchOptions, as_json: bool) -> None:
    """The verb `filbert search`: open the bundle, search, print."""
    from filbert.infer.predict import load

    embedder = load(
        options.bundle, device=options.device, precision=options.precision, core=options.core,
        batch_tokens=options.batch_tokens, threads=options.threads,
    )  # fmt: skip
    if not isinstance(embedder, Embedder):
        raise UsageError(
            f"--bundle {os.fspath(options.bundle)}: its task is {embedder.manifest.task}; a search "
            "needs a model of sentence vectors, such as all-MiniLM-L6-v2, or one of filbert train "
            f"embed. {what_fits(options.bundle, embedder.manifest)}"
        )
    hits = search(options, embedder)
    if as_json:
        shown = [{"row": hit.row, "score": hit.score, "text": hit.text} for hit in hits]
        print(json.dumps({"file": options.file, "query": options.query, "hits": shown}, indent=2))
    else:
        print("\n".join(hit_lines(hits)))
