"""Parquet files, as `datasets` and pandas write them -> rows; a row is a line in messages.

Numbers that stand for names (ClassLabel of `datasets`: label 1 is "positive") are read as the names.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.cli import InputError, one_line
from data_prep.json_types import JsonObject
from pretrain.finetune.files.rows import Row, column_names, written_names

MAGIC = b"PAR1"


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (row, from 1, column -> value) of a Parquet file.

    Raises
    ------
    InputError: a damaged file, two columns of one name.
    """
    import pyarrow.parquet  # inside: only Parquet needs its memory

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        header = list(table.schema.names)
        columns = [column.to_pylist() for column in table.columns]
        number = table.num_rows
    except (OSError, ValueError, TypeError, ArithmeticError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {one_line(error)}; write the file again") from error
    names = column_names(path, 1, header)
    written = written_names(names, header)
    for index in range(number):
        yield index + 1, Row(names, (column[index] for column in columns), written)


def parquet_features(path: Path) -> JsonObject:
    """Return what `datasets` has written down about the columns of a file that parquet_rows() has read."""
    import pyarrow.parquet

    metadata: dict[bytes, bytes] = pyarrow.parquet.ParquetFile(path).schema_arrow.metadata or {}
    try:
        content: Any = json.loads(metadata.get(b"huggingface", b"{}"))
        features: Any = content["info"]["features"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}
