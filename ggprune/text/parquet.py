"""Rows of Parquet files, through pyarrow, which is an extra."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ggprune.errors import InputError

_BATCH = 256


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as dictionaries, a batch of them in memory at a time.

    Only ``columns`` are read, if given: a data set with pictures is large.

    Raises:
        InputError: pyarrow is not installed, the file is not Parquet, or a column is missing.
    """
    with _open(path) as file:
        present = list(file.schema_arrow.names)
        for name in columns or ():
            if name not in present:
                listed = ", ".join(map(repr, present))
                raise InputError(f"{path}: has no column {name!r}, it has {listed}")
        for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns or present)):
            yield from batch.to_pylist()


def count(path: Path) -> int:
    """Count the rows."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def _open(path: Path) -> Any:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow, which is not installed",
            remedy="pip install 'ggprune[parquet]'",
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError.
        raise InputError(f"{path}: is not a Parquet file: {str(error)[:200]}") from error
