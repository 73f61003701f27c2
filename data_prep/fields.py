"""JSON of our own that may have been damaged or edited since: read without surprises, fields by type and range.

    write_sealed(path, content)                  with a checksum of its own: the key "sha256" over all the others
    fields = read_fields(path, remedy)           InputError where it cannot be read, or is not what was written
    fields.whole("step"), fields.number("seconds"), fields.digest("sha256"), ...

The checksum is over the content, in canonical JSON, and not over the bytes: what is laid out anew is still the same.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from data_prep.cli import InputError
from data_prep.files import write_json
from data_prep.json_types import JsonObject

LARGEST = 1 << 53  # whole numbers up to here are exact in every JSON reader
SEAL = "sha256"
_REQUIRED: Any = object()


def parse(content: bytes | str) -> Any:
    """Return what a JSON text says.

    Raises
    ------
    ValueError: it is none, for whatever reason: not UTF-8, nested without end, a key twice.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text, object_pairs_hook=_once_each)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _once_each(pairs: list[tuple[str, Any]]) -> JsonObject:
    content: JsonObject = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the key {_shown(name)} stands there twice")
        content[name] = value
    return content


def seal_of(content: JsonObject) -> str:
    """Return the checksum of an object, without the seal that it may have."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(path: Path, content: JsonObject) -> None:
    """Write an object as JSON, whole or not at all, with its checksum."""
    write_json(path, content | {SEAL: seal_of(content)})


def read_fields(path: Path, remedy: str) -> "Fields":
    """Return the object in a file; a seal that it has must be right.

    Raises
    ------
    InputError: it cannot be read, is no object, or is not what was written.
    """
    try:
        if not path.is_file():
            path.stat()  # missing: says so
            # A folder, or a FIFO, which would be waited for without end.
            raise InputError(f"{path} cannot be read (it is no file); {remedy}")
        content = parse(path.read_bytes())
        found = Fields(content, str(path), remedy)
        is_changed = SEAL in content and content[SEAL] != seal_of(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error
    if is_changed:
        raise InputError(f"{path} is damaged, or was edited: its own sha256 does not fit; {remedy}")
    return found


class Fields:
    """The fields of an object, each asked for by its type and range; InputError names the one that does not fit.

    Where `default` is given, a field may be missing.
    """

    def __init__(self, content: Any, where: str, remedy: str):
        """`where` is what messages call the object; `remedy` is how they end."""
        self.where, self.remedy = where, remedy
        if not isinstance(content, dict):
            raise self.error(f"holds {_shown(content)}, not an object")
        self.content: JsonObject = content

    def error(self, what: str) -> InputError:
        """Return the error that something about the object is wrong."""
        return InputError(f"{self.where} {what}; {self.remedy}")

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a field of any type."""
        if name in self.content:
            return self.content[name]
        if default is _REQUIRED:
            raise self.error(f"lacks {name!r}")
        return default

    def _wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return self.error(f"says {name} {_shown(value)}, which is not {wanted}")

    def whole(self, name: str, least: int = 0, most: int = LARGEST, default: Any = _REQUIRED) -> int:
        """Return a whole number in least .. most."""
        value = self.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(name, value, f"a whole number from {least:,} to {most:,}")
        return value

    def number(self, name: str, least: float = -math.inf, most: float = math.inf, default: Any = _REQUIRED) -> float:
        """Return a finite number in least .. most."""
        value = self.get(name, default)
        if not is_number(value) or not math.isfinite(value) or not least <= value <= most:
            raise self._wrong(name, value, "a number" + (f" from {least:g} on" if least > -math.inf else ""))
        return value

    def text(self, name: str, allowed: Collection[str] = (), default: Any = _REQUIRED) -> str:
        """Return a string; one of `allowed`, where these are given."""
        value = self.get(name, default)
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise self._wrong(name, value, "one of " + ", ".join(allowed) if allowed else "a text")
        return value

    def digest(self, name: str) -> str:
        """Return a sha256 in hexadecimal."""
        value = self.text(name)
        if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise self._wrong(name, value, "a sha256")
        return value

    def list(self, name: str, default: Any = _REQUIRED) -> list[Any]:
        """Return a list."""
        value = self.get(name, default)
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        return value

    def object(self, name: str, default: Any = _REQUIRED) -> "Fields":
        """Return an object within."""
        return Fields(self.get(name, default), f"{self.where}: {name}", self.remedy)

    def each(self) -> Iterator[tuple[str, "Fields"]]:
        """Yield the objects of which this one consists, by name."""
        return ((name, self.object(name)) for name in self.content)

    def rows(self, name: str) -> Iterator["Fields"]:
        """Yield the objects of a list."""
        listed = self.list(name)
        return (Fields(row, f"{self.where}: {name}[{index}]", self.remedy) for index, row in enumerate(listed))


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number (true and false are none) that arithmetic can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= 1 << 1000)


def _shown(value: Any) -> str:
    """Return a value in a message: of a long one the beginning."""
    text = repr(value) if type(value) is not int or abs(value) < 1 << 64 else "with more than 19 digits"
    return text if len(text) <= 40 else f"{text[:40]}..."
