"""JSON lines as documents: one object a line, the text in the field `--column`. Bad lines are left out and counted."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_prep.cli import InputError, say
from data_prep.text.columns import BadRecordError, text_of
from data_prep.text.source import Source, decode, is_part_of_line, lines_of

COUNT_CHUNK_BYTES = 1 << 18  # of a file, when its lines are counted


def read(
    source: Source,
    lines: Iterator[tuple[int, bytes]],
    counts: Counter[str],
    *,
    column: str,
    start: int,
    stop: int,
) -> Iterator[tuple[int, str]]:
    """Yield (place, text) of the lines that begin in bytes [start, stop)."""
    too_long = said = False
    first, number = -1, 0
    for place, line in lines:
        first = place if first < 0 else first
        number += not too_long
        continues, too_long = too_long, is_part_of_line(line)
        if place >= stop and not continues:
            return
        if continues or too_long or not line.strip():
            continue
        try:
            text = _field(decode(line, counts), column)
        except BadRecordError as error:
            counts["bad_lines"] += 1
            if not said:
                said = True
                say(f"warning: {_line_name(source, first, number)} {error}; such lines are left out (--strict refuses)")
            continue
        yield place, text


def check_first_line(source: Source, column: str) -> None:
    """Refuse a .jsonl whose first line has no such field: of a wrong --column, before hours are spent on it.

    Raises
    ------
    InputError: naming the line.
    """
    for number, (_, line) in enumerate(lines_of(source, 0, Counter()), 1):
        if line.strip():
            if not is_part_of_line(line):
                try:
                    _field(line.decode("utf-8", "replace"), column)
                except BadRecordError as error:
                    raise InputError(f"{source.path}, line {number} {error}") from error
            return


def fields_of_first(beginning: bytes) -> list[str] | None:
    """Return the fields of the first line of what is an object a line; None of other JSON."""
    lines = [line for line in beginning.split(b"\n")[:-1] if line.strip()][:2]
    try:
        objects = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return None
    return list(objects[0]) if len(objects) == 2 and all(isinstance(one, dict) for one in objects) else None


def _field(line: str, column: str) -> str:
    content = _parsed(line)
    if not isinstance(content, dict):
        raise BadRecordError(f"is not a JSON object: {line[:80]!r}")
    return text_of(content, column)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"is not JSON ({error}): {line[:80]!r}") from error


def _line_name(source: Source, first: int, number: int) -> str:
    """Return name the line `number` of those from byte `first` on, as "file, line 17"; counted only now that it is
    wanted."""
    if first > 0:
        with open(source.path, "rb") as file:
            while first > 0 and (block := file.read(min(first, COUNT_CHUNK_BYTES))):
                number += block.count(b"\n")
                first -= len(block)
    return f"{source.path}, line {number}"
