"""Files that are damaged on purpose: every byte flipped, and what no manifest may be."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.cli import InputError

MASKS = (0x01, 0x20, 0xFF)

MANIFESTS = [
    b"", b"[]", b"null", b"1", b'"x"', b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b'{"format": 2}',
    b'{"format": 1' + b"0" * 5000 + b"}", b'{"format": 1, "format": 1}', b'{"format": NaN}', b'{"format": true}',
    b'{"format": 1.0}', b'{"format": [1]}', b'{"format": {"1": 1}}', "\N{ZERO WIDTH NO-BREAK SPACE}{}".encode(),
]  # fmt: skip


def sweep(path: Path, read: Callable[[], Any], masks: int = 1) -> Counter[str]:
    """Flip each byte by so many of the masks, in turn: what is read is refused by an InputError that names the file, or
    is what it was. Counts of both."""
    whole, expected, counts = path.read_bytes(), read(), Counter[str]()
    for place in range(len(whole)):
        for mask in (MASKS[(place + turn) % len(MASKS)] for turn in range(masks)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            try:
                found = read()
            except InputError as error:
                counts["refused" if str(path) in str(error) else "refused without a name"] += 1
            else:
                assert found == expected, (place, mask, whole[max(place - 20, 0) : place + 20])
                counts["the same"] += 1
    path.write_bytes(whole)
    assert not counts["refused without a name"]
    print(f"{path.name}: {len(whole)} bytes, {dict(counts)}")
    return counts
