"""CoNLL files: a word and its tags a line, a blank line behind each sentence.

    -DOCSTART- -X- -X- O            left out, as are comments (# ...)
    Anna NNP B-NP B-PER             the first column is the word, the last the tag; others are columns 2, 3, ...
    left VBD B-VP O

    1	Anna	B-PER	O               words that are numbered in each sentence: columns 2 and 3 (GermEval 2014)

Between columns stand tabs (a word may then hold a blank), or white space.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.cli import InputError, say
from pretrain.finetune.files.rows import Row, shorten

MOST_COLUMNS = 4  # of more, which one is meant must be said
DOCUMENT = "-DOCSTART-"
_TAG = re.compile(r"O|[BIELSUM]-\S+")

Cells = list[str]
Sentence = list[tuple[int, Cells]]  # (line, columns) of each word


def looks_like_conll(lines: list[str]) -> bool:
    """Return whether lines can be nothing else: as many columns in each, and a tag of a span or O in the last."""
    words = [cells for sentence in _sentences(enumerate(lines, 1)) for _, cells in sentence]
    if not words or not 2 <= len(words[0]) <= MOST_COLUMNS or len({len(cells) for cells in words}) > 1:
        return False
    return all(_TAG.fullmatch(cells[-1]) for cells in words)


def conll_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Row]]:
    """Yield (line of the first word, row) of each sentence: columns tokens and tags, and all columns by number: 1, 2.

    lines: (number, line), blank ones included

    Raises
    ------
    InputError: a line of another number of columns than the other words have, a single column, an empty word.
    """
    sentences = list(_sentences(lines))
    if not sentences:
        return
    words = [word for sentence in sentences for word in sentence]
    width = Counter(len(cells) for _, cells in words).most_common(1)[0][0]
    for line, cells in words:
        if len(cells) != width or not all(cells):
            raise InputError(
                f"{path}, line {line}: {len(cells)} columns where other words have {width}, or an empty one, in "
                f"{shorten(' '.join(cells))}; each line must hold a word and its tags, and a blank line ends a sentence"
            )
    if width == 1:
        raise InputError(f"{path}, line {words[0][0]}: a word without a tag; write one behind each word")
    chosen = _words_and_tags(sentences, width)
    if width > 2:
        taken = f"words are column {chosen['tokens']}, tags column {chosen['tags']}" if chosen else "none is taken"
        say(f"{path}: of {width} columns {taken}; --text and --label take another by its number")
    if len(sentences) == 1 and len(words) > 1:
        say(f"{path}: all words are one sentence, as no blank line stands between them")
    names = {str(number): number for number in range(1, width + 1)} | chosen
    written = {name: str(number) for name, number in names.items()}
    for sentence in sentences:
        columns = [list(column) for column in zip(*(cells for _, cells in sentence), strict=True)]
        yield sentence[0][0], Row(names, (columns[number - 1] for number in names.values()), written)


def _sentences(lines: Iterable[tuple[int, str]]) -> Iterator[Sentence]:
    listed = [(number, line.strip("\r\n")) for number, line in lines]
    split = [(n, [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()) for n, line in listed]
    # A remark begins with #, as a word may: that one has a tag, as other words have.
    plain = [cells for _, cells in split if any(cells) and not cells[0].startswith("#")]
    shapes = {(len(cells), cells[-1]) for cells in plain}
    sentence: Sentence = []
    for number, cells in split:
        if any(cells) and cells[0] != DOCUMENT:
            if not cells[0].startswith("#") or (len(cells), cells[-1]) in shapes:
                sentence.append((number, cells))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _words_and_tags(sentences: list[Sentence], width: int) -> dict[str, int]:
    """Return the numbers of the columns that hold words and tags; of many columns none, as they could be any."""
    if width > MOST_COLUMNS:
        return {}
    counted = width > 2 and all(
        [cells[0] for _, cells in sentence] == [str(number) for number in range(1, len(sentence) + 1)]
        for sentence in sentences
    )
    return {"tokens": 2, "tags": 3} if counted else {"tokens": 1, "tags": width}
