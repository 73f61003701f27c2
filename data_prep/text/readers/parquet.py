"""Parquet files as documents: one a row, the text in the column `--column`."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_prep.cli import InputError
from data_prep.text.source import DamagedError, Source, decode, reading, record_damage

BATCH_ROWS = 64
BUFFER_BYTES = 1 << 20
_TEXTS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")


def size(source: Source, column: str) -> tuple[int, int]:
    """Return rows, and bytes of their text, from the file's footer.

    Raises
    ------
    InputError: not a parquet file, no such column, or not a column of text.
    """
    file = _open(source, column)
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    index = file.schema_arrow.get_field_index(column)
    is_flat = len(file.schema_arrow) == file.metadata.num_columns
    return file.metadata.num_rows, sum(
        group.column(index).total_uncompressed_size if is_flat else group.total_byte_size for group in groups
    )


def read(source: Source, counts: Counter[str], *, column: str, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """Yield (row, text) of the rows [start, stop).

    Raises
    ------
    InputError: not a parquet file, no such column, or not a column of text.
    """
    file = _open(source, column)
    next_group = 0
    for group in range(file.metadata.num_row_groups):
        row, next_group = next_group, next_group + file.metadata.row_group(group).num_rows
        if row >= stop or next_group <= start:
            continue
        batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False)
        try:
            for batch in _unless_damaged(source, batches):
                if row + len(batch) > start:
                    for at, text in enumerate(_texts_of(batch.column(0), counts, source.encoding or "utf-8"), row):
                        if start <= at < stop:
                            yield at, text or ""
                row += len(batch)
        except DamagedError as error:  # the next group of rows may be whole
            record_damage(error, counts)


def _unless_damaged(source: Source, batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with reading(source):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _texts_of(column: Any, counts: Counter[str], encoding: str) -> list[str | None]:
    try:
        texts: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # nobody checks texts when parquet is written
        plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
        texts, encoding = plain.cast("binary_view").to_pylist(), "utf-8"
    return [decode(text, counts, encoding) if isinstance(text, bytes) else text for text in texts]


def _open(source: Source, column: str) -> Any:
    import pyarrow.parquet  # inside: 60 MB of memory that only parquet needs

    with reading(source):
        file = pyarrow.parquet.ParquetFile(source.path, buffer_size=BUFFER_BYTES)
    if column not in file.schema_arrow.names:
        raise InputError(f"{source.path} has no column {column!r}, only {file.schema_arrow.names}; see --column")
    if (times := file.schema_arrow.names.count(column)) > 1:
        raise InputError(f"{source.path} has {times} columns {column!r}; write all but one under other names")
    kind = file.schema_arrow.field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not any(getattr(pyarrow.types, f"is_{name}")(kind) for name in _TEXTS):
        raise InputError(f"{source.path}: column {column!r} is of type {kind}, not text; see --column")
    return file
