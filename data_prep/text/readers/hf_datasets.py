"""Hugging Face datasets as sources of documents: one a row, the text in the column `--column`.

    a folder written by Dataset.save_to_disk      read in row ranges, so that several workers share it
    a name on the Hub, or a folder of data files  streamed by one worker from its beginning to its end

NAME may end in @CONFIG, and all splits but those called test or validation, or the like, count unless NAME ends in
:SPLIT, as in "wikimedia/wikipedia@20231101.en:train"; which are left out is said. Nothing is executed: `datasets` no
longer runs a dataset's own code.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.cli import InputError, printable, say
from data_prep.json_types import JsonObject
from data_prep.text.source import TO_THE_END

STREAM_TEXT_BYTES = 1 << 28  # that a stream is taken for when work is divided: nobody knows
# How splits begin that are there to measure on.
_NO_TRAINING = frozenset("test testing tests validation valid val dev development eval evaluation heldout".split())


def find(name: str) -> tuple[Path, int]:
    """Return where a dataset lies, as `read` wants it, and its bytes on disk (1 where they are not known).

    Raises
    ------
    InputError: no such folder.
    """
    path, _, _ = _parts(name)
    if path.is_dir():
        return Path(name), max(1, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    if path.is_absolute() or name.startswith("."):
        raise InputError(f"--dataset {name}: no such folder")
    return Path(name), 1


def folder_of(path: Path) -> Path:
    """Return the folder of a dataset, without configuration and split; no folder where it lies on the Hub."""
    return _parts(str(path))[0]


def size(path: Path, column: str) -> tuple[int, int]:
    """Return rows, or a number beyond all of them, and bytes of text, which may be a guess.

    Raises
    ------
    InputError: no dataset, no such column.
    """
    saved = _saved(str(path), column)
    if saved is None:
        return TO_THE_END, STREAM_TEXT_BYTES
    return sum(map(len, saved)), sum(part.data.nbytes for part in saved)


def read(path: Path, name: str, *, column: str, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """Yield (row, text) of the rows [start, stop).

    Raises
    ------
    InputError: no dataset, no such column, or a value that is not text.
    """
    saved = _saved(str(path), column)
    row = 0
    if saved is None:
        for content in _streamed(str(path), column):
            yield row, _text(content, column, name, row)
            row += 1
        return
    for part in saved:
        first, last = max(start - row, 0), min(stop - row, len(part))
        for at in range(first, last, 64):
            for offset, text in enumerate(part[at : min(at + 64, last)][column], row + at):
                yield offset, _text({column: text}, column, name, offset)
        row += len(part)


def is_streamed(path: Path) -> bool:
    """Whether a dataset can only be read from its beginning."""
    folder, _, _ = _parts(str(path))
    return not any((folder / file).is_file() for file in ("dataset_info.json", "dataset_dict.json"))


def _parts(name: str) -> tuple[Path, str | None, str | None]:
    """Return path or name, configuration, split; a folder may have either sign in its name."""
    if Path(name).is_dir():
        return Path(name), None, None
    path, _, split = name.rpartition(":") if ":" in name else (name, "", "")
    if Path(path).is_dir():
        return Path(path), None, split or None
    path, _, config = path.partition("@")
    return Path(path), config or None, split or None


def _saved(name: str, column: str) -> list[Any] | None:
    """Return the splits of a dataset that was saved to disk; None for one that has to be streamed."""
    if is_streamed(Path(name)):
        return None
    import datasets

    path, _, split = _parts(name)
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises what it likes
        raise InputError(f"--dataset {name} cannot be loaded ({error})") from error
    parts = _chosen(found, split, name) if isinstance(found, datasets.DatasetDict) else [found]
    for part in parts:
        _check_column(part.column_names, column, name)
    return [part.select_columns([column]) for part in parts]


def _streamed(name: str, column: str) -> Iterator[JsonObject]:
    import datasets

    path, config, split = _parts(name)
    try:
        found = datasets.load_dataset(str(path), config, streaming=True)
        for part in _chosen(found, split, name):
            if part.column_names is not None:
                _check_column(part.column_names, column, name)
            yield from part
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--dataset {name} cannot be read ({type(error).__name__}: {error})") from error


def _chosen(found: Any, split: str | None, name: str) -> list[Any]:
    if split is not None:
        if split not in found:
            raise InputError(f"--dataset {name} has no split {split!r}, only {sorted(found)}")
        return [found[split]]
    names = list(map(str, found))
    left_out = [key for key in names if re.split(r"[^a-z]", key.lower())[0] in _NO_TRAINING]
    if len(left_out) == len(names):
        raise InputError(f"--dataset {name} has no split to train on, only {sorted(names)}; name one: {name}:SPLIT")
    if left_out:
        _say_once(f"--dataset {printable(name)}: splits left out: {', '.join(left_out)} (name one to read it: :SPLIT)")
    return [found[key] for key in names if key not in left_out]


@cache
def _say_once(message: str) -> None:
    say(message)  # a dataset is opened by whoever plans, and by each worker


def _check_column(names: list[str], column: str, name: str) -> None:
    if column not in names:
        raise InputError(f"--dataset {name} has no column {column!r}, only {sorted(names)}; see --column")


def _text(content: JsonObject, column: str, name: str, row: int) -> str:
    text = content.get(column)
    if isinstance(text, bytes):  # a column of type binary; a surrogate stands for a wrong byte, and is counted
        text = text.decode("utf-8", "surrogateescape")
    if text is not None and not isinstance(text, str):
        raise InputError(f"--dataset {name}, row {row}: column {column!r} is not text but {str(text)[:80]!r}")
    return text or ""
