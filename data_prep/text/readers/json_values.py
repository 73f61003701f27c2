"""Files of JSON as records, streaming: an array, an object that holds one array of objects, or values in a row.

    shape = look(beginning, whole, "text")       # Shape("in data", {"title": ..., "text": ...})
    for place, record in records(source, stream, shape.layout, counts): ...

    values     the items of each array, and every other value: [{...}, {...}], ["...", "..."], {...} or {...} {...}
    in NAME    the items of the array in the field NAME of an object: {"version": 1, "data": [{...}, {...}]}

Memory: a value at a time, of at most MAX_VALUE_CHARS. What stands before a place that is no JSON, or before
the end of a file that was cut short, is read; the rest is lost, and counted (`damaged_parts`).
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from data_prep.cli import say
from data_prep.json_types import JsonObject
from data_prep.text.columns import BadRecordError, NoColumnError, find_column, missing, text_of
from data_prep.text.source import MAX_LINE_BYTES, DamagedError, Source, reading, record_damage

READ_CHUNK_BYTES = 1 << 18
MAX_VALUE_CHARS = MAX_LINE_BYTES
_WITHIN = "in "
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")


class Shape(NamedTuple):
    """How the records of a file lie in it."""

    layout: str
    first: Any  # the first record


class _Text:
    """A stream of JSON as text, of which a piece is held."""

    def __init__(self, source: Source, stream: BinaryIO, counts: Counter[str]):
        self.source, self.stream, self.counts = source, stream, counts
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text, self.at = "", 0
        self.dropped = 0  # characters before `text`
        self.ended = False

    @property
    def place(self) -> int:
        """Characters before the next one."""
        return self.dropped + self.at

    def peek(self) -> str:
        """Return the next character that is not blank; "" at the end."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            assert blank is not None
            self.at = blank.end()
            if self.at < len(self.text) or not self._fill():
                return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> str:
        """Return the next character that is not blank, one of those wanted.

        Raises
        ------
        DamagedError: it is another one, or there is none.
        """
        found = self.peek()
        if not found or found not in wanted:
            raise self._damaged("ends too early" if not found else f"has {found!r} where {' or '.join(wanted)} belongs")
        self.at += 1
        return found

    def value(self) -> Any:
        """Return the next value.

        Raises
        ------
        DamagedError: there is no whole one.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self._fill():  # a number at the end of the piece may go on
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.at > MAX_VALUE_CHARS:
                    raise self._damaged(f"has a value above {MAX_VALUE_CHARS:,} characters, or no JSON") from error
                if isinstance(error, RecursionError) or not self._fill():
                    raise self._damaged(f"is no JSON ({error})") from error

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError(f"{self.source.path} {what} at character {self.place:,}")

    def _fill(self) -> bool:
        """Read on, as much again as is held; False at the end."""
        if self.ended:
            return False
        if self.at > len(self.text) // 2:
            self.dropped, self.text, self.at = self.dropped + self.at, self.text[self.at :], 0
        size = max(READ_CHUNK_BYTES, len(self.text))
        with reading(self.source):
            raw = self.stream.read1(size)  # type: ignore[attr-defined]
        self.ended = not raw
        piece = self.decoder.decode(raw, final=self.ended)
        if "\ufffd" in piece and (wrong := piece.count("\ufffd") - raw.count(b"\xef\xbf\xbd")) > 0:
            self.counts["invalid_utf8"] += wrong
        self.text += piece if self.text or self.dropped else piece.removeprefix("\ufeff")
        return not self.ended or bool(piece)


def texts(source: Source, stream: BinaryIO, column: str, counts: Counter[str]) -> Iterator[tuple[int, str]]:
    """Yield (place, text) of the records of a file; those without text are left out and counted."""
    said = False
    for place, record in records(source, stream, source.layout, counts, column):
        try:
            yield place, text_of(record, column)
        except BadRecordError as error:
            counts["bad_lines"] += 1
            if not said:
                said = True
                where = f"{source.path}, at character {place:,}"
                say(f"warning: {where}: a record {error}; such are left out (--strict refuses)")


def records(
    source: Source, stream: BinaryIO, layout: str, counts: Counter[str], column: str = ""
) -> Iterator[tuple[int, Any]]:
    """Yield (place, record) of a file; places are characters. Records with the field `column` that lie in another array
    than that of the layout are left out and counted: the file's beginning did not show them.
    """
    text = _Text(source, stream, counts)
    try:
        if layout.startswith(_WITHIN):
            for name in _fields(text):
                if name == layout.removeprefix(_WITHIN):
                    yield from _items(text)
                elif text.peek() == "[":
                    _pass_over(text, name, column, counts)
                else:
                    text.value()
            return
        while first := text.peek():
            if first == "[":
                yield from _items(text)
            else:
                yield text.place, text.value()
            if text.peek() == ",":  # {...}, {...}: an array that lost its brackets
                text.take(",")
    except DamagedError as error:
        record_damage(error, counts)


def _pass_over(text: _Text, name: str, column: str, counts: Counter[str]) -> None:
    """Read an array for which nobody asks."""
    lost = sum(isinstance(record, dict) and column in record for _, record in _items(text))
    if lost:
        counts["bad_lines"] += lost
        what = f"a second array, {name!r}, of which {lost:,} records with a text are left out (--strict refuses)"
        say(f"warning: {text.source.path} holds {what}; give it a file of its own")


def _items(text: _Text) -> Iterator[tuple[int, Any]]:
    text.take("[")
    while text.peek() != "]":
        yield text.place, text.value()
        if text.take(",]") == "]":
            return
    text.take("]")


def _fields(text: _Text) -> Iterator[str]:
    """Yield the names of an object's fields; whoever asks for the next one has read the value."""
    text.take("{")
    while text.peek() != "}":
        name = text.value()
        text.take(":")
        yield str(name)
        if text.take(",}") == "}":
            return
    text.take("}")


def look(source: Source, beginning: BinaryIO, whole: bool, column: str) -> Shape:
    """Return the shape of a file, by its beginning; `whole` where that is all of it.

    Raises
    ------
    NoColumnError: nothing in it has such a field. DamagedError: it is no JSON.
    """
    text = _Text(source, beginning, Counter())
    try:
        if text.peek() == "{":
            return _look_into(text, whole, column)
        first = next(_items(text), (0, "no items"))[1] if text.peek() == "[" else text.value()
    except DamagedError:
        if whole:
            raise
        raise NoColumnError(f"{source.path} shows no field {column!r} in its beginning; see --column") from None
    if (isinstance(first, str) and (" " in first or not first.isascii())) or _has_text(first, column):
        return Shape("values", first)
    raise NoColumnError(f"{source.path} {missing(column, list(first) if isinstance(first, dict) else [])}")


def _look_into(text: _Text, whole: bool, column: str) -> Shape:
    """Return the shape of an object: a record itself, or around an array of records."""
    fields: JsonObject = {}
    arrays: JsonObject = {}
    try:
        for name in _fields(text):
            fields[name] = None
            if text.peek() == "[":
                items = _items(text)
                first = next(items, (0, None))[1]
                if _has_text(first, column):
                    arrays[name] = first
                for _ in items:
                    pass
            else:
                fields[name] = text.value()
    except DamagedError:
        if whole and not arrays:
            raise
    found = find_column(list(fields), column)
    if found is not None and isinstance(fields[found], str):
        return Shape("values", fields)
    if len(arrays) == 1:
        [(name, first)] = arrays.items()
        return Shape(f"{_WITHIN}{name}", first)
    if arrays:
        raise NoColumnError(
            f"{text.source.path} holds several arrays: {', '.join(arrays)}; give each a file of its own"
        )
    raise NoColumnError(f"{text.source.path} {missing(column, list(fields))}")


def _has_text(record: Any, column: str) -> bool:
    return isinstance(record, dict) and find_column(list(record), column) is not None
