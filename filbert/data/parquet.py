"""Rows of a Parquet file, a few at a time, with the names of its classes where it keeps them.

    for values in parquet_rows("reviews.parquet", columns=["text"]):
        print(values["text"])

pyarrow reads a row group page by page, so memory follows the rows at hand, not the file. Data sets
of the hub store a class as a number and its name in the file's metadata; rows here hold the name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from filbert.errors import FilbertError


def parquet_rows(
    name: str,
    *,
    columns: Sequence[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[dict[str, Any]]:
    """The cells of each row by column name; of `columns` alone if given.

    Columns that the file lacks are left out, unless it lacks them all: then every column is read.
    `progress` is told how many bytes lie behind, by the
    share of rows. Raises `FilbertError` for a file that is damaged or empty.
    """
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        size = os.path.getsize(name)
        with parquet.ParquetFile(name) as file:
            names = file.schema_arrow.names
            some = [column for column in columns or () if column in names] or None
            classes = _class_names(file.schema_arrow.metadata or {})
            # Whole documents are asked for by column, and are long.
            for batch in file.iter_batches(batch_size=64 if some else 1024, columns=some):
                here = batch.schema.names
                cells = [values.to_pylist() for values in batch.columns]
                for place in {here.index(column) for column in classes if column in here}:
                    there = classes[here[place]]
                    cells[place] = [_class_name(value, there) for value in cells[place]]
                for row in zip(*cells, strict=True):
                    number += 1
                    yield dict(zip(here, row, strict=True))
                if progress is not None:
                    progress(size * number // file.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FilbertError(
            f"{name} cannot be read as Parquet, after {number:,} rows ({error}). The file is "
            "damaged, cut short, or of another format than its name says"
        ) from None
    if not number:
        shown = ", ".join(map(repr, names[:6])) + ", ..." * (len(names) > 6)
        raise FilbertError(f"{name} has columns ({shown}) but no rows")


def column_names(name: str) -> list[str]:
    """The columns of a Parquet file that was read before."""
    from pyarrow import parquet

    return list(parquet.read_schema(name).names)


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of integer classes that data sets of the hub write beside their Parquet columns."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {column: feature.get("names") for column, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # not there, or another layout: the integers stay as they are
    return {column: names for column, names in found.items() if isinstance(names, list)}


def _class_name(value: Any, names: list[str]) -> Any:
    """The name of class `value`; -1 is how the hub marks a label that is withheld."""
    if type(value) is not int or not -1 <= value < len(names):
        return value
    return None if value == -1 else str(names[value])
