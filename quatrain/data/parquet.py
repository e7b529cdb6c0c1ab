"""Rows of Parquet files, a few at a time. pyarrow reads them; it is in the extra `data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import open_regular
from quatrain.data.records import Record

BATCH = 256
"""Rows that are held at once."""

ROWS_A_BYTE = 10_000
"""Rows that a byte of a file may stand for: run lengths make many rows of little, a damaged count makes more."""


def read_parquet(path: Path, column: str | None = None) -> Iterator[Record]:
    """The rows of a file, of the one column where it has that. Binary columns that hold UTF-8 are text.

    Raises InputError for a file that is not Parquet, that is damaged, or that has no column or one twice.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"{path}: Parquet files need pyarrow, which is not installed. Install it with: pip install 'quatrain[data]'"
        ) from error
    row = 0
    with open_regular(path) as handle:
        try:
            with pyarrow.parquet.ParquetFile(handle) as file:
                names = file.schema_arrow.names
                _check(path, names, file.metadata.num_rows, path.stat().st_size)
                columns = [column] if column in names else None
                for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                    for value in batch.to_pylist():
                        row += 1
                        yield Record(f"{path}:row {row}", {name: _plain(each) for name, each in value.items()})
        except (
            pyarrow.ArrowException,
            OSError,
            ValueError,
            ArithmeticError,
            KeyError,
            TypeError,
            MemoryError,
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            after = f" behind row {row:,}" if row else ""
            raise InputError(f"{path} is not a whole Parquet file{after}: {reason}") from error


def _check(path: Path, names: list[str], rows: int, size: int) -> None:
    if not names:
        raise InputError(f"{path} has no columns")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        said = ", ".join(map(repr, twice))
        raise InputError(f"{path} has the column {said} more than once; give each its own name")
    if rows > ROWS_A_BYTE * size:
        raise InputError(f"{path} says that its {size:,} bytes hold {rows:,} rows; it is damaged")


def _plain(value: Any) -> Any:
    """A value as JSON has it, as far as there is one: bytes of UTF-8 as text, pairs of a map as an object."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, list):
        if value and all(isinstance(each, tuple) and len(each) == 2 for each in value):
            return {str(key): _plain(each) for key, each in value}
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
