"""Plain text as documents, by its blank lines.

    lines     one sentence a line, a blank line between documents
    prose     a blank line between paragraphs, two or more between documents; the file's end ends a document

A document belongs to the range of bytes in which the last blank line before it begins; the first document to the first
range. Whoever reads a range therefore needs to look neither back nor at another range to know what is his.
"""

from collections import Counter
from collections.abc import Iterator

from data_prep.text.source import decode


def read(
    layout: str,
    lines: Iterator[tuple[int, bytes]],
    counts: Counter[str],
    *,
    start: int,
    stop: int,
    longest: int,
) -> Iterator[tuple[int, str]]:
    """Yield (place, text) of the documents of bytes [start, stop); above `longest` bytes they come in parts."""
    blocks: list[str] = []
    first = size = 0
    for place, blank_lines, block in _blocks(lines, counts, start=start, stop=stop, longest=longest):
        if blocks and (layout == "lines" or blank_lines > 1 or size > longest):
            yield first, "\n\n".join(blocks)
            blocks, size = [], 0
        first = first if blocks else place
        blocks.append(block)
        size += len(block)
    if blocks:
        yield first, "\n\n".join(blocks)


def _blocks(
    lines: Iterator[tuple[int, bytes]], counts: Counter[str], *, start: int, stop: int, longest: int
) -> Iterator[tuple[int, int, str]]:
    """Yield runs of lines between blank lines: (place, blank lines before it, text)."""
    blank_lines, last_blank = 0, (-1 if start == 0 else None)
    block: list[str] = []
    first = size = 0
    for place, line in lines:
        if not line.strip():
            if block:
                yield first, blank_lines, "\n".join(block)
                block, blank_lines, size = [], 0, 0
            blank_lines, last_blank = blank_lines + 1, place
            if place >= stop:
                return
            continue
        if last_blank is None:  # still in a block of the range before
            if place >= stop:
                return
            continue
        if size > longest:  # a file without blank lines
            yield first, blank_lines, "\n".join(block)
            counts["cut_documents"] += 1
            block, blank_lines, size = [], 0, 0
        first = first if block else place
        block.append(decode(line, counts).rstrip("\r\n"))
        size += len(line)
    if block:
        yield first, blank_lines, "\n".join(block)
