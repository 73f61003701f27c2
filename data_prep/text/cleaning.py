"""What is done to documents before they are cut into sentences, where it is asked for; everything is counted.

    clean = cleaner_of(CleaningConfig(ftfy=True, min_chars=200))
    document = clean(document, counts)        # None: left out

    mended_texts          changed by ftfy: mojibake, HTML entities, odd line ends
    control_characters    taken out, with NUL among them
    dropped_lines         on the drop list of data_prep/dedup.py: seen before
    dropped_documents     on the drop list: exact or near copies of an earlier one
    short_documents       of fewer characters than asked for
    other_languages       of a language that was not asked for, as py3langid sees it
    excluded_documents    share a run of 8 words with a file of --exclude: test sets stay out of training

A document's fate depends on itself and the settings only, so that stores do not depend on who reads what. Copies are
found by a pass of its own over the whole corpus (dedup.py), whose list is a setting here.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_prep.calls import call
from data_prep.cli import InputError
from data_prep.files import sha256_of
from data_prep.json_types import JsonObject
from data_prep.ranges import Range, check_ranges
from data_prep.text.corpus import Document, read_documents
from data_prep.text.discovery import find_sources
from data_prep.text.readers import delimited, json_values
from data_prep.text.source import Source, lines_of, open_text, reading

LANGUAGE_CHARS = 2_000  # of a document, from which its language is told
GRAM_WORDS = (
    8  # in a row, that two texts must share to be called contaminated (GPT-3 took 13, BERT-era tests are short)
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class CleaningConfig:
    """What is done to documents before they are cut into sentences."""

    ftfy: bool = False
    """mend mojibake and the like (extra [text])"""
    control: bool = False
    """take control characters out"""
    min_chars: Annotated[int, Range(0, 1e12)] = 0
    """leave out documents of fewer characters"""
    only_lang: tuple[str, ...] = ()
    """leave out documents of other languages than these, by two-letter codes (extra [text])"""
    exclude: tuple[Path, ...] = ()
    """files of tests: documents that share 8 words in a row with them are left out"""
    drop: Path | None = None
    """list of copies, from data_prep/dedup.py: they are left out"""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Cleaning:
    """The same, ready to be done: files are read."""

    ftfy: bool = False
    control: bool = False
    min_chars: int = 0
    exclude: frozenset[int] = frozenset()  # hashes of runs of words
    drop_documents: frozenset[int] = frozenset()  # hashes of identities
    drop_lines: frozenset[int] = frozenset()  # hashes of texts of lines
    languages: frozenset[str] = frozenset()  # two-letter codes of those wanted; none: all


class Cleaner:
    """Applies a Cleaning to documents.

    Raises
    ------
    InputError: a package is needed and not installed; a language that py3langid does not know.
    """

    def __init__(self, cleaning: Cleaning):
        self.cleaning = cleaning
        self._mend = _ftfy() if cleaning.ftfy else None
        self._language = _identifier(cleaning.languages) if cleaning.languages else None

    def __call__(self, document: Document, counts: Counter[str]) -> Document | None:
        """Return the document as it shall be, or None."""
        wanted, text = self.cleaning, document.text
        if wanted.drop_documents and identity_of(document) in wanted.drop_documents:
            counts["dropped_documents"] += 1
            return None
        if self._mend is not None and (mended := self._mend(text)) != text:
            counts["mended_texts"] += 1
            text = mended
        if wanted.control:
            text, removed = _CONTROL.subn("", text)
            counts["control_characters"] += removed
        if wanted.drop_lines:
            text = self._without_lines(text, counts)
        if len(text) < wanted.min_chars or not text or text.isspace():
            counts["short_documents"] += 1
            return None
        if self._language is not None and self._language(_middle(text)) not in wanted.languages:
            counts["other_languages"] += 1
            return None
        if wanted.exclude and not wanted.exclude.isdisjoint(grams_of(text)):
            counts["excluded_documents"] += 1
            return None
        return document if text is document.text else document._replace(text=text)

    def _without_lines(self, text: str, counts: Counter[str]) -> str:
        lines = text.split("\n")
        kept = [line for line in lines if not line.strip() or hash_of(line.strip()) not in self.cleaning.drop_lines]
        counts["dropped_lines"] += len(lines) - len(kept)
        return text if len(kept) == len(lines) else "\n".join(kept)


def cleaner_of(config: CleaningConfig) -> Cleaner | None:
    """Return what cleans documents; None where nothing is to be done.

    Raises
    ------
    InputError: a package is needed and not installed, a file cannot be read, a language is not known.
    """
    documents, lines = read_drop_list(config.drop) if config.drop else (frozenset[int](), frozenset[int]())
    cleaning = Cleaning(
        ftfy=config.ftfy,
        control=config.control,
        min_chars=config.min_chars,
        exclude=excluded_grams(config.exclude),
        drop_documents=documents,
        drop_lines=lines,
        languages=frozenset(config.only_lang),
    )
    return None if cleaning == Cleaning() else Cleaner(cleaning)


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise InputError("--ftfy needs the package ftfy: pip install 'zerobert[text]'") from error
    # Only what is broken: quotes and dashes stay as they are, since the models that others trained have seen them too.
    config = ftfy.TextFixerConfig(
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        explain=False,
        normalization=None,
        max_decode_length=1 << 24,
    )
    return lambda text: ftfy.fix_text(text, config)


def _identifier(wanted: frozenset[str]) -> Callable[[str], str]:
    try:
        from py3langid import langid
    except ImportError as error:
        raise InputError("--only_lang needs the package py3langid: pip install 'zerobert[text]'") from error
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    if unknown := sorted(wanted - set(identifier.labels)):
        raise InputError(f"--only_lang {' '.join(unknown)}: py3langid knows {' '.join(sorted(identifier.labels))}")
    return lambda text: identifier.classify(text)[0]


def _middle(text: str) -> str:
    """Return enough of a text to tell its language by, where no title and no licence stands."""
    start = max(0, (len(text) - LANGUAGE_CHARS) // 2)
    return text[start : start + LANGUAGE_CHARS]


def hash_of(text: str) -> int:
    """Return 64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_hash_of_word = lru_cache(maxsize=1 << 17)(hash_of)


def identity_of(document: Document) -> int:
    """Return 64 bits that stand for a document's place in its source: two copies differ."""
    return hash_of(document.id)


def grams_of(text: str) -> Iterable[int]:
    """Return hashes of all runs of GRAM_WORDS words, in lower case and without punctuation. Python's own hash of a
    tuple of strings differs from process to process; this one does not."""
    words = np.array([_hash_of_word(word) for word in _WORD.findall(text.lower())], np.uint64)
    if len(words) < GRAM_WORDS:
        return ()
    # A polynomial of eight hashes, evaluated for all runs at once: the first words of all, then the second ones, ...
    mixed = np.zeros(len(words) - GRAM_WORDS + 1, np.uint64)
    for place in range(GRAM_WORDS):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + words[place : len(mixed) + place]
    return mixed.tolist()


def excluded_grams(paths: Iterable[Path]) -> frozenset[int]:
    """Return the runs of words in files that must not be trained on: .txt, .csv, .tsv, .json, .jsonl (all texts in it).

    Raises
    ------
    InputError: a file that cannot be read.
    """
    found: set[int] = set()
    for path in paths:
        for text in _texts_of(path):
            found.update(grams_of(text))
    return frozenset(found)


def _texts_of(path: Path) -> Iterable[str]:
    for source in find_sources([str(path)], "prose"):
        if source.kind in ("csv", "tsv"):
            rows = delimited.rows(lines_of(source, 0, Counter()), source.layout, Counter())
            yield from (cell for row in rows for cell in row.cells)  # the first as well: it need not be a header
        elif source.kind == "json":
            yield from _values_of(source)
        elif source.kind == "jsonl":
            yield from _fields_of(source)
        else:
            yield from (document.text for document in read_documents(source, "text", Counter()))


def _values_of(source: Source) -> Iterable[str]:
    counts: Counter[str] = Counter()
    with open_text(source) as stream:
        for _, record in json_values.records(source, stream, source.layout, counts):
            yield from _strings(record)
    if counts["damaged_parts"]:
        raise InputError(
            f"--exclude {source.path} is not JSON to its end, so that some of its texts would not be excluded"
        )


def _strings(value: Any) -> Iterable[str]:
    """Yield all strings in a value of JSON; those of a list are words of one text, as in _fields_of."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield " ".join(value)
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _fields_of(source: Source) -> Iterable[str]:
    with open_text(source) as file, reading(source):
        while line := file.readline():
            try:
                content = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                raise InputError(f"--exclude {source.path} has a line that is not JSON: {line[:80]!r}") from error
            yield from _strings(content)


def read_drop_list(path: Path) -> tuple[frozenset[int], frozenset[int]]:
    """Return documents and lines to leave out, from a file that data_prep/dedup.py wrote.

    Raises
    ------
    InputError: no such file, or not of that kind.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return frozenset(content["documents"].tolist()), frozenset(content["lines"].tolist())
    except (OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"--drop {path} is not a list of {call('dedup')} ({error})") from error


def settings_of(config: CleaningConfig) -> JsonObject:
    """Return what decides about documents, as the manifest says it; only what is asked for.

    Raises
    ------
    InputError: a file cannot be read, a package is not installed.
    """
    named: JsonObject = {}
    drop = [("drop", config.drop)] if config.drop is not None else []
    for option, path in (*(("exclude", path) for path in config.exclude), *drop):
        if not path.is_file() or not os.access(path, os.R_OK):
            raise InputError(f"--{option} {path} is no file that can be read")
    if config.ftfy:
        named["ftfy"] = _version("ftfy")
    if config.control:
        named["control"] = True
    if config.min_chars:
        named["min_chars"] = config.min_chars
    if config.exclude:
        named["exclude"] = [sha256_of(path) for path in sorted(config.exclude)]
    if config.drop is not None:
        named["drop"] = sha256_of(config.drop)
    if config.only_lang:
        named |= {"only_lang": sorted(config.only_lang), "py3langid": _version("py3langid")}
    return named


def _version(package: str) -> str:
    import importlib.metadata  # inside: 15 ms of every start

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"the package {package} is needed: pip install 'zerobert[text]'") from error
