"""What a corpus is, in seconds whatever its size: a sample from all over it, read as data_prep/shard.py reads it.

    text = survey(["wiki/", "news.jsonl.gz"])      Survey: megabytes, documents, sentences, scripts, language, words

Plain files are read in ranges spread over all of the corpus, compressed ones and archives from their beginning; what
they hold beyond is estimated from how far a piece of them goes. Sizes of compressed files are therefore estimates.
"""

import io
import re
import sys
import unicodedata
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from functools import cache
from itertools import accumulate, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.sharding.plan import ASSUMED_COMPRESSION_RATIO, LEAST_BYTES
from data_prep.text.compression import decompressed
from data_prep.text.corpus import Document, count_rows, read_documents
from data_prep.text.discovery import files_of, find_sources
from data_prep.text.languages import what_uncased_loses
from data_prep.text.sentences import lines_of, splitter
from data_prep.text.source import DamagedError, Source, open_raw, reading

READ_PLACES, READ_BYTES = 48, 1 << 17  # how many are read, and bytes at each
FILES, FILES_PER_PIECE = 480, 32  # at most: files of many whose encoding is found; that are read for a piece
LOOKED_INTO = 1 << 20  # bytes decompressed to see how far a compressed file goes
WHOLE = 1 << 25  # bytes of a table that is read to its end, where rows may be in an order of time
MARKUP = 0.5  # share of a dump of MediaWiki that is text, about
LONGEST = 1 << 20  # characters of a document that are looked at
TOLD_BY, TOLD = 2_000, 120  # characters of a document that tell its language; documents that are asked
SHOWN_IN = 300_000  # characters in which a word is looked for that an uncased vocabulary would change
LEAST_TOLD = 60  # characters below which a language is a guess
# Runs of anything but spaces and punctuation: marks of Hindi or Arabic belong to a word, which \w does not know.
_WORD = re.compile(r"[^\s!-/:-@\[-`{-~\u00a0-\u00bf\u2010-\u2027\u2030-\u205e\u3000-\u303f\uff00-\uff0f،؛؟।॥]+")
_SIGN = re.compile(r"[!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u303f\uff01-\uff0f،؛؟।॥]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# Scripts that put no space between words, Chinese apart, which BERT's WordPiece cuts into characters.
UNSPACED = ("Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Hiragana", "Katakana")
_BY_SCRIPT = {  # where nothing else tells a language
    "Han": "zh", "Hiragana": "ja", "Katakana": "ja", "Hangul": "ko", "Thai": "th", "Lao": "lo", "Khmer": "km",
    "Myanmar": "my", "Tibetan": "bo", "Arabic": "ar", "Hebrew": "he", "Greek": "el", "Cyrillic": "ru",
    "Devanagari": "hi", "Bengali": "bn", "Tamil": "ta", "Telugu": "te", "Georgian": "ka", "Armenian": "hy",
    "Ethiopic": "am",
}  # fmt: skip


class Survey(NamedTuple):
    """A corpus in numbers; those of a sample stand for all."""

    sources: int
    text_bytes: float  # in UTF-8
    documents: float
    sentences: float
    words: float
    document_chars: float  # of the median document
    sentence_chars: float  # of the median sentence
    sentence_words: float
    one_sentence: float  # share of the documents
    scripts: dict[str, float]  # shares of the letters, the largest first
    marks: float  # share of the letters that lose a mark when accents are stripped
    capitals: float  # share of the letters
    languages: dict[str, float]  # shares of the text, the largest first; empty where nothing tells
    told_by: str  # py3langid, or the script
    chars: float  # characters of all of it
    alphabet: int  # different characters, Chinese ones apart
    han: int  # different Chinese characters
    sample_bytes: int
    frequent: tuple[int, ...]  # counts of the sample's words, lower-cased, Chinese characters among them; descending
    lengths: tuple[int, ...]  # characters of the same words
    signs: float  # punctuation marks
    unspaced_chars: float  # letters of scripts without spaces
    uncased_loses: str = ""  # a word of the text that an uncased vocabulary changes, and what it becomes

    @property
    def megabytes(self) -> float:
        """Return the megabytes of text."""
        return self.text_bytes / 1e6

    @property
    def language(self) -> str:
        """Return the language of most of it; empty where nothing tells."""
        return next(iter(self.languages), "")

    @property
    def scale(self) -> float:
        """Return how many times the sample the corpus is."""
        return self.text_bytes / max(self.sample_bytes, 1)

    def to_json(self) -> JsonObject:
        """Return it as JSON values, without the words."""
        told = self._asdict()
        del told["frequent"], told["lengths"]
        whole = ("text_bytes", "documents", "sentences", "words", "chars", "signs", "unspaced_chars")
        return told | {name: round(told[name]) for name in whole}


def survey(
    corpus: Sequence[str], lang: str = "", column: str = "text", txt: str = "auto", encoding: str | None = None
) -> Survey:
    """Look at a corpus.

    Raises
    ------
    InputError: it cannot be read, as data_prep/shard.py says it.
    """
    heard = io.StringIO()
    with redirect_stderr(heard):  # what it says of files that are left out find_sources says, too
        files = files_of(corpus)
    if len(files) > FILES:  # of which only some become sources
        sys.stderr.write(heard.getvalue())
    sources, on_disk = _some_sources(corpus, files, txt, column, encoding)
    sizes = [_rough_size(source, column) for source in sources]
    # Each file above the border is looked into; of those below some, which stand for the others.
    border = sum(on_disk) / READ_PLACES
    documents: list[Document] = []
    text, count, looked_at = np.zeros((3, 2))
    for number, places in sorted(looked_into(sizes).items()):
        part = _look(sources[number], sizes[number], places, column)
        documents += part.documents
        group = int(sources[number].bytes >= border)
        text[group] += part.text_bytes
        count[group] += part.holds
        looked_at[group] += sources[number].bytes
    whole = np.array([sum(size for size in on_disk if (size >= border) is large) for large in (False, True)])
    scale = whole / np.maximum(looked_at, 1)
    return summed_up(documents, len(files), float(text @ scale), float(count @ scale), lang)


def _some_sources(
    corpus: Sequence[str], files: Sequence[Path], txt: str, column: str, encoding: str | None
) -> tuple[list[Source], list[int]]:
    """Return the files as shard.py sees them, and the bytes of all files: of very many only those that are looked into
    become sources, since finding an encoding takes milliseconds."""
    if len(files) > FILES:
        sizes = [file.stat().st_size for file in files]
        chosen = [str(files[number]) for number in sorted(looked_into(sizes, FILES // READ_PLACES))]
        try:
            found = find_sources(chosen, txt, column=column, encoding=encoding)
        except InputError:  # a stranger among them, or what is wrong with all: the reading of all of them tells
            found = []
        if some := [source for source in found if source.bytes]:
            return some, sizes
    some = [source for source in find_sources(corpus, txt, column=column, encoding=encoding) if source.bytes]
    return some, [source.bytes for source in some]


def looked_into(sizes: Sequence[float], files: int = FILES_PER_PIECE) -> dict[int, int]:
    """Return which files of such sizes are looked into, and at how many places: READ_PLACES spread evenly over all
    bytes, each of READ_BYTES or so; where files are small it goes on into the next ones, so many at most."""
    ends = list(accumulate(sizes))
    # All of it is less than what would be read of it.
    if len(sizes) <= FILES and sum(sizes) <= READ_PLACES * READ_BYTES:
        return {number: 1 + int(size / READ_BYTES) for number, size in enumerate(sizes)}
    found: Counter[int] = Counter()
    for piece in range(READ_PLACES if ends else 0):
        first = bisect(ends, ends[-1] * (piece + 0.5) / READ_PLACES)
        found[first] += 1
        size = sizes[first]
        for number in range(first + 1, min(first + files, len(sizes))):
            if size >= READ_BYTES:
                break
            found[number] = max(found[number], 1)
            size += sizes[number]
    return dict(found)


def summed_up(documents: list[Document], sources: int, text_bytes: float, count: float, lang: str = "") -> Survey:
    """Return what a sample of documents says of a corpus of so many bytes of text, and so many documents."""
    texts = [document.text[:LONGEST] for document in documents]
    whole = "\n".join(texts)
    sample = sum(len(document.text.encode()) for document in documents)
    seen = sum(len(text.encode()) for text in texts)
    scale = text_bytes / max(sample, 1) * sample / max(seen, 1)  # long documents are cut: the rest is like them
    characters = Counter(whole)
    letters = {one: times for one, times in characters.items() if unicodedata.category(one)[0] in "LM"}
    total = max(sum(letters.values()), 1)
    scripts: Counter[str] = Counter()
    for one, times in letters.items():
        scripts[script_of(one)] += times
    del scripts[""]
    shares = {name: times / total for name, times in scripts.most_common() if times > 0.001 * total}
    languages, told_by = _languages(texts, shares)
    split = splitter(lang or next(iter(languages), "") or "en")
    cut = [
        lines_of(text) if document.lines else split([text])[0] for document, text in zip(documents, texts, strict=True)
    ]
    lengths = [len(sentence) for sentences in cut for sentence in sentences]
    words = _words(whole)
    ordered = words.most_common()
    return Survey(
        sources=sources,
        text_bytes=text_bytes,
        documents=count,
        sentences=scale * len(lengths),
        words=scale * words.total(),
        document_chars=median([len(text) for text in texts] or [0]),
        sentence_chars=median(lengths or [0]),
        sentence_words=words.total() / max(len(lengths), 1),
        one_sentence=sum(len(sentences) == 1 for sentences in cut) / max(len(cut), 1),
        scripts=shares,
        marks=sum(times for one, times in letters.items() if _loses_a_mark(one)) / total,
        capitals=sum(times for one, times in letters.items() if one.isupper()) / total,
        languages=languages,
        told_by=told_by,
        chars=scale * len(whole),
        alphabet=sum(not _HAN.match(one) for one in characters),
        han=sum(bool(_HAN.match(one)) for one in characters),
        sample_bytes=seen,
        frequent=tuple(times for _, times in ordered),
        lengths=tuple(len(word) for word, _ in ordered),
        signs=scale * len(_SIGN.findall(whole)),
        unspaced_chars=scale * sum(times for one, times in letters.items() if script_of(one) in UNSPACED),
        uncased_loses=what_uncased_loses([whole[:SHOWN_IN]]).example,
    )


class _Part(NamedTuple):
    """What was read of a source, and what all of it holds."""

    documents: list[Document]
    text_bytes: float
    holds: float  # documents


def _rough_size(source: Source, column: str) -> float:
    """Return the bytes of text, before anything is decompressed."""
    if source.kind in ("parquet", "dataset"):
        return count_rows(source, column)[1]
    return source.bytes * (ASSUMED_COMPRESSION_RATIO if source.compression else 1)


def _look(source: Source, size: float, places: int, column: str) -> _Part:
    counts: Counter[str] = Counter()
    if source.kind in ("parquet", "dataset"):
        rows, _ = count_rows(source, column)
        every = max(1, int(size / (places * READ_BYTES))) if size <= WHOLE else 1
        found, is_whole = _until(islice(read_documents(source, column, counts), 0, None, every), places * READ_BYTES)
        if is_whole and every == 1:  # rows without text are no documents
            return _Part(found, _bytes(found), len(found))
        return _Part(found, size or _bytes(found) / max(len(found), 1) * rows, rows)
    if source.is_stream:
        found, is_whole = _until(read_documents(source, column, counts), places * READ_BYTES)
        read = _bytes(found)
        text = float(read) if is_whole else _decompressed_size(source) * _share_of_text(source, found)
        return _Part(found, text, len(found) * text / max(read, 1))
    if places * READ_BYTES < size:
        begins = [int(size * number / places) for number in range(places)]
        ranges = [(begin, begin + READ_BYTES) for begin in begins]
    else:  # all of it, cut where shard.py cuts: a document that goes on behind a cut is counted as two there, too
        length, parts = int(size), max(1, -(-int(size) // LEAST_BYTES))
        ranges = [(part * length // parts, (part + 1) * length // parts) for part in range(parts)]
    found = []
    for begin, end in ranges:
        found += list(read_documents(source, column, counts, begin, end))
    share = sum(end - begin for begin, end in ranges) / size
    return _Part(found, _bytes(found) / share, len(found) / share)


def _until(documents: Iterator[Document], most: int) -> tuple[list[Document], bool]:
    """Return the first documents, of about so many bytes, and whether these are all."""
    found, size = [], 0
    for document in documents:
        found.append(document)
        size += len(document.text.encode())
        if size >= most:
            return found, next(documents, None) is None
    return found, True


def _bytes(documents: Sequence[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def _decompressed_size(source: Source) -> float:
    """Return the bytes of a source in UTF-8 once it is decompressed, from how far its beginning goes."""
    with open_raw(source) as file:
        stream = decompressed(file, source.compression) if source.compression else file
        head = bytearray()
        with suppress(DamagedError), reading(source):  # what is left of it is what there is
            while len(head) < LOOKED_INTO and (block := stream.read(1 << 16)):
                head += block
        waiting = len(stream.peek()) if source.compression else 0  # type: ignore[attr-defined]
        grows = 1.0
        if source.kind not in ("tar", "xml") and source.encoding:
            grows = len(bytes(head).decode(source.encoding, "replace").encode("utf-8", "replace")) / max(len(head), 1)
        return source.bytes * grows * (len(head) + waiting) / max(file.tell(), 1)


def _share_of_text(source: Source, documents: Sequence[Document]) -> float:
    """Return the bytes of text in a byte of the decompressed source, from the places of the first and the last
    document."""
    if source.kind == "xml":
        return MARKUP
    first, last = (_place(document) for document in (documents[0], documents[-1]))
    if source.kind == "tar" or last <= first:
        return 1.0
    return min(1.0, _bytes(documents[:-1]) / (last - first))


def _place(document: Document) -> int:
    place = document.id.rsplit(":", 1)[-1].split("+")[0]
    return int(place) if place.isdecimal() else 0


def script_of(character: str) -> str:
    """Return the script that a letter is written in, by its name in Unicode; empty for a mark of no script."""
    if _HAN.match(character):
        return "Han"
    name = unicodedata.name(character, "").split(" ", 1)[0]
    return "" if name in ("COMBINING", "MODIFIER", "VARIATION", "") else name.split("-")[0].capitalize()


def _loses_a_mark(letter: str) -> bool:
    return any(unicodedata.category(part) == "Mn" for part in unicodedata.normalize("NFD", letter))


def _words(text: str) -> Counter[str]:
    lowered = text.lower()
    han = Counter(_HAN.findall(lowered))
    if han:
        lowered = _HAN.sub(" ", lowered)
    return Counter(_WORD.findall(lowered)) + han


def _languages(texts: Sequence[str], scripts: dict[str, float]) -> tuple[dict[str, float], str]:
    """Return the shares of the languages by their characters, and what told them."""
    try:
        identifier = _identifier()
    except ImportError:
        first = next(iter(scripts), "")
        return ({_BY_SCRIPT[first]: scripts[first]} if first in _BY_SCRIPT else {}), "its script"
    asked = [text for text in texts[:: max(1, len(texts) // TOLD)] if len(text) >= LEAST_TOLD] or list(texts[:TOLD])
    found: Counter[str] = Counter()
    for text in asked:
        begin = max(0, (len(text) - TOLD_BY) // 2)
        piece = text[begin : begin + TOLD_BY]
        found[str(identifier.classify(piece)[0])] += len(text)
    total = max(found.total(), 1)
    del found["zxx"]  # numbers and the like, which are no language
    return {name: size / total for name, size in found.most_common() if size > 0.01 * total}, "py3langid"


@cache
def _identifier() -> Any:
    from py3langid import langid  # inside: an extra

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
