"""Train a vocabulary on a corpus, wrap a published one, or add words to a model's; a folder that transformers loads.

    python data_prep/vocab.py --corpus wiki/ news.jsonl.gz --out vocab
    python data_prep/vocab.py --corpus zeitung/ --lang de --out vocab
    python data_prep/vocab.py --corpus wiki-zh/ wiki-th/ --size 8192 --cased --model unigram --out vocab
    python data_prep/vocab.py --from_vocab bert-base-uncased-vocab.txt --out vocab
    python data_prep/vocab.py --extend HF_FOLDER --corpus reports/ --add 500 --out vocab

    vocab/tokenizer.json          the fast tokenizer: what data_prep/shard.py encodes with
    vocab/tokenizer_config.json   from which transformers' BertTokenizer builds the same tokenizer again
    vocab/vocab.txt               one entry a line, its id being the line
    vocab/extension.json          of --extend: what was extended, and by what

The corpus is streamed by several processes; of a large one documents chosen by a hash are counted (--sample_mb), and it
is said how much that was. AutoTokenizer and BertTokenizer give the same ids for the folder. A size is rounded up to a
multiple of 64, which matrix units like; a corpus too small for it gives a smaller vocabulary; the model pads its own.
--extend adds the words that spare the corpus most tokens behind the entries of a model's vocabulary, whose ids stay: a
store made with it continues that model (train --init_from), and each new word begins as the mean of its pieces.
--lang says what is sensible for a language (data_prep/text/languages.py): case and accents are kept but where they
mean little, as in English; unigram where no spaces part words. Without it the vocabulary is uncased, and what is lost
is said.
The same corpus and options give the same vocabulary, byte for byte, with any number of workers.
"""

import gc
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    if not __package__:  # a plain script: data_prep/ itself is on the path, where its file names could hide others'
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
from tokenizers import Tokenizer

from data_prep.cli import InputError, printable, run, say
from data_prep.files import check_writable, write_folder
from data_prep.progress import still
from data_prep.ranges import WORKERS, Range, check_ranges
from data_prep.sample import Reading, Sample
from data_prep.sharding.worker_pool import WorkerError
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from data_prep.text.languages import Lost, defaults, what_uncased_loses
from data_prep.text.sentences import splitter
from data_prep.text.source import Source
from data_prep.tokens import sentencepieces
from data_prep.tokens.characters import alphabet_of
from data_prep.tokens.contract import tokenizer_of
from data_prep.tokens.extension import (
    RULE,
    UNSPACED,
    check_wordpiece,
    extended,
    most_useful,
    tokens_spared,
    write_extension,
)
from data_prep.tokens.fast_paths import Ids
from data_prep.tokens.joining import MAX_SIZE, PREFIX, join_pieces
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.unknown import UnknownCharacters, advice, characters_of
from data_prep.tokens.wordpiece import bert_tokenizer, finish_tokenizer, read_vocab, write_tokenizer
from data_prep.tokens.words import Counted, Cutter

SIZE_MULTIPLE = 64
LOOKED_AT_SOURCES, LOOKED_AT_CHARS = 100, 20_000  # sources, and characters of each, in which the unknown is counted
WARN_MARKS_SHARE = 0.003  # of characters with marks; in English it is a tenth of that


@dataclass(frozen=True)
class VocabConfig:
    """Where the vocabulary comes from and goes to."""

    out: Path
    """tokenizer folder to write; an existing one is replaced"""
    corpus: tuple[str, ...] = ()
    """files, folders or globs of .txt, .jsonl, .json, .csv, .tsv, .parquet, .tar, Wikipedia's .xml (.gz, .bz2, .zst)"""
    from_vocab: Path | None = None
    """wrap this published WordPiece vocab.txt instead of training"""
    extend: Path | None = None
    """Hugging Face folder whose vocabulary gets words of --corpus behind its own entries; it must be WordPiece"""
    add: Annotated[int | None, Range(1, 1e6)] = None
    """of --extend: how many words; None: 500. Those of letters and digits that the vocabulary spells in several pieces
    and that, as entries, spare the corpus most tokens"""
    size: Annotated[int, Range(256, MAX_SIZE)] = 30528
    """entries, rounded up to a multiple of 64"""
    model: Literal["auto", "wordpiece", "unigram", "bpe"] = "auto"
    """kind of vocabulary; unigram and bpe are SentencePiece's; auto: wordpiece, or unigram if --lang has no spaces"""
    lang: str = ""
    """language of the text (de, pt-BR, zh ...): decides what --cased, --uncased and --model do not"""
    cased: bool = False
    """keep case and accents"""
    uncased: bool = False
    """take them off, whatever --lang would have"""
    min_frequency: Annotated[int, Range(1, 1e9)] = 2
    """a word piece, or a word of --add, must occur this often"""
    txt: Literal["auto", "lines", "prose"] = "auto"
    """layout of .txt files"""
    column: str = "text"
    """field of .jsonl, .json, column of .csv, .tsv, .parquet; without "text" .json, .csv, .tsv take a likely one"""
    encoding: str | None = None
    """that of all text without a byte order mark, such as cp1252; by default found for each file, and said"""
    sample_mb: Annotated[float, Range(0, 1e9, low_open=True)] = 1000
    """MB of text that are counted, about; of a larger corpus documents chosen by a hash of their text, so the same in
    any order of files"""
    workers: Annotated[int, WORKERS] = 0
    """processes that count; 0: one a core"""
    max_damaged: Annotated[float | None, Range(0, 1)] = None
    """share of a source's characters that may be U+FFFD or controls: 0.01, but 0 with --encoding"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.extend is not None or self.add is not None:
            self._check_extension()
        if bool(self.corpus) == bool(self.from_vocab):
            raise InputError("give either --corpus PATH... to train a vocabulary or --from_vocab VOCAB.txt to wrap one")
        if self.cased and self.uncased:
            raise InputError("--cased and --uncased exclude each other; give one of them, or --lang CODE")
        if self.lang and self.from_vocab:
            raise InputError(
                "--lang is for a vocabulary that is trained; with --from_vocab give --cased, or leave it out"
            )
        if self.lang:
            defaults(self.lang)
        if self.from_vocab and self.model not in ("auto", "wordpiece"):
            raise InputError(f"--from_vocab wraps a WordPiece vocabulary, not --model {self.model}")
        if self.out.exists() and not (self.out.is_dir() and _is_ours(self.out)):
            raise InputError(f"{self.out} exists and is not a tokenizer folder; it stays; give another --out")

    def _check_extension(self) -> None:
        """Refuse what an extended vocabulary takes from the one that it extends."""
        if self.extend is None:
            raise InputError(f"--add {self.add} goes with --extend HF_FOLDER, whose vocabulary the words are added to")
        if not self.corpus or self.from_vocab:
            raise InputError(f"--extend {self.extend} takes words from --corpus PATH..., and goes without --from_vocab")
        usual = {field.name: field.default for field in fields(self)}
        for name in ("size", "model", "lang", "cased", "uncased"):
            if getattr(self, name) != usual[name]:
                raise InputError(
                    f"--{name} is of a new vocabulary; --extend {self.extend} keeps that of the folder: leave it out, "
                    "and give --add N"
                )


def _is_ours(folder: Path) -> bool:
    is_tokenizer = (folder / "tokenizer.json").exists() and not (folder / "config.json").exists()  # which is a model's
    return is_tokenizer or not any(folder.iterdir())


def main(config: VocabConfig) -> None:
    """Make the folder."""
    try:
        make_vocabulary(config)
    except WorkerError as error:
        sys.exit(f"error: {printable(error)}")


def make_vocabulary(config: VocabConfig) -> None:
    """Make the folder.

    Raises
    ------
    InputError: nothing to read, or a vocabulary that lacks special tokens. WorkerError: a worker died or failed.
    """
    check_writable(config.out)
    if config.extend is not None:
        extend_vocabulary(config, config.extend)
        return
    if config.from_vocab is not None:
        entries = read_vocab(config.from_vocab)
        _warn_of_case(config, entries)
        origin = config.from_vocab.name
    else:
        config, asked = settled(config), config
        size = -(-config.size // SIZE_MULTIPLE) * SIZE_MULTIPLE
        if size != config.size:
            say(f"size {config.size:,} rounded up to {size:,}, a multiple of {SIZE_MULTIPLE}")
        sources = _sources(config)
        if asked.lang:
            _say_settled(asked, config, sources)
        if config.model != "wordpiece":
            make_sentencepieces(sources, config, size)
            return
        entries = train_wordpiece(sources, config, size)
        origin = f"{len(sources)} source{'s' if len(sources) > 1 else ''}"
        _say_shortage(entries, size)
        ids = {entry: token_id for token_id, entry in enumerate(entries)}
        _warn_of_unknown(bert_tokenizer(ids, config.cased), sources, config)
    write_folder(config.out, lambda folder: write_tokenizer(folder, entries, config.cased))
    case = "cased" if config.cased else "uncased"
    say(f"{config.out}: {len(entries):,} entries, {case} WordPiece, from {origin}")


def _sources(config: VocabConfig) -> list[Source]:
    return find_sources(
        config.corpus,
        config.txt,
        column=config.column,
        encoding=config.encoding,
        max_damaged=config.max_damaged,
        out=config.out,
    )


def extend_vocabulary(config: VocabConfig, origin: Path) -> None:
    """Write the tokenizer of a model's folder with words of the corpus behind its entries.

    Raises
    ------
    InputError: no WordPiece tokenizer, a corpus without text or without a word that it lacks.
    """
    if config.out.resolve() == origin.resolve():
        raise InputError(f"--out {config.out} is the folder of --extend, which stays as it is; give another")
    most = 500 if config.add is None else config.add
    base = tokenizer_of(origin, "--extend")
    check_wordpiece(base.tokenizer, origin)
    sources = _sources(config)
    counts = _count(_sample(sources, config), config, Cutter(base.tokenizer), "words that may be added").words
    words = most_useful(base.tokenizer, counts, most, config.min_frequency)
    if not words:
        raise InputError(
            f"the vocabulary of {origin} spells no word in pieces that stands {config.min_frequency} times in "
            f"{', '.join(source.name for source in sources[:5])}; give more text, or lower --min_frequency"
        )
    added = [word.text for word in words]
    spared = tokens_spared(counts, base.tokenizer, extended(base, added))
    unknown = sum(word.is_unknown for word in words)
    record = {
        "entries": base.size,
        "added": len(added),
        "unknown": unknown,
        "rule": RULE,
        "min_frequency": config.min_frequency,
        "sources": [source.name for source in sources],
        "tokens": spared._asdict(),
    }
    write_folder(config.out, lambda folder: write_extension(folder, origin, base, added, record))
    if len(added) < most:
        say(f"the corpus has {len(added):,} such words, fewer than {most:,}")
    share = 1 - spared.after / spared.before
    say(
        f"{config.out}: {base.size + len(added):,} entries, the {base.size:,} of {origin} with their ids and "
        f"{len(added):,} words added ({', '.join(added[:5])}{', ...' * (len(added) > 5)}): the {RULE}; this text has "
        f"{100 * share:.1f} % fewer tokens" + (f", and {unknown:,} words more that are known" if unknown else "")
    )
    if phrases := [word for word in added if UNSPACED.search(word)]:
        say(
            f"warning: {len(phrases):,} of {len(added):,} words added are all that stands between two spaces, such as "
            f"{phrases[0]!r}, as no spaces part the words of their script; make a vocabulary from the text (--model "
            "unigram), and give the model its rows with train --vocab_from match"
        )


def settled(config: VocabConfig) -> VocabConfig:
    """Return the options with what --lang decides where they leave it open."""
    language = defaults(config.lang or "en")
    return replace(
        config,
        cased=config.cased or (language.cased and not config.uncased),
        model=language.vocab_kind if config.model == "auto" else config.model,
    )


def _say_settled(asked: VocabConfig, config: VocabConfig, sources: list[Source]) -> None:
    """Say what --lang has decided and why, with a word of the text that would be lost."""
    language, reasons, remedies = defaults(asked.lang), [], []
    if not (asked.cased or asked.uncased):
        lost = what_uncased_loses(_beginnings(sources, config)) if language.cased else Lost(0, ())
        reasons.append(language.why + (f" ({lost.example})" if lost.words else ""))
        remedies.append("--uncased" if language.cased else "--cased")
    if asked.model == "auto" and config.model == "unigram":
        reasons.append("no spaces part words")
        remedies.append("--model wordpiece")
    case = "cased" if config.cased else "uncased"
    why = f": {'; '.join(reasons)} ({' and '.join(remedies)} to say otherwise)" if reasons else ""
    say(f"{language.name}: {case} {config.model}{why}")


def make_sentencepieces(sources: list[Source], config: VocabConfig, size: int) -> None:
    """Train a SentencePiece vocabulary and write its folder.

    Raises
    ------
    InputError: the corpus holds no text, or too little of it.
    """
    assert config.model in ("unigram", "bpe")
    split = splitter("en")  # only so that no text is too long for the trainer
    # The trainer leaves out the rarest characters, which in German are q and x; as many stay as WordPiece would keep.
    sample = _sample(sources, config)
    counted = _count(sample, config, None, "characters")
    alphabet = alphabet_of(counted, partial(_compatible, config.cased)).at_least(config.min_frequency)[: size // 4]
    with still("joining pieces") as begin:
        batches = _then(sample.texts("pieces", counted.read_bytes), begin)
        texts = (sentences for batch in batches for sentences in split(batch))
        tokenizer = sentencepieces.train(chain.from_iterable(texts), config.model, size, config.cased, alphabet)
    finish_tokenizer(tokenizer)
    _say_shortage(tokenizer.get_vocab(), size)
    _warn_of_unknown(tokenizer, sources, config)
    write_folder(config.out, lambda folder: sentencepieces.write(folder, tokenizer))
    case = "cased" if config.cased else "uncased"
    say(f"{config.out}: {tokenizer.get_vocab_size():,} entries, {case} {config.model}, from {len(sources)} sources")


def _say_shortage(entries: Collection[str], size: int) -> None:
    if len(entries) < size:
        say(f"the corpus yields {len(entries):,} entries, fewer than {size:,}; the model pads its own embeddings")
    pieces = [entry.removeprefix("##").strip("▁") for entry in entries if entry not in SPECIAL]
    # A vocabulary of Chinese characters is as it should be: none of them joins another.
    if max(map(len, pieces), default=0) <= 1 and any(entry[:2] == "##" or entry[:1] == "▁" for entry in entries):
        say(
            "warning: all entries are single characters, so that every word is spelled; the corpus is too small, or "
            "--size leaves no room beside its characters: give more text or a larger --size"
        )


def _warn_of_unknown(tokenizer: Tokenizer, sources: list[Source], config: VocabConfig) -> None:
    """Say what share of the corpus its own vocabulary cannot spell, by the beginnings of its sources."""
    sample = _beginnings(sources, config)
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in sample]
    unknown_id = tokenizer.token_to_id("[UNK]")
    assert unknown_id is not None
    encoded = Ids(np.array([token_id for ids in found for token_id in ids], np.int64), np.array([*map(len, found)]))
    unknown = UnknownCharacters(tokenizer, unknown_id).count(sample, encoded)
    remedy = "give more text, a larger --size" + (" or a lower --min_frequency" if config.min_frequency > 1 else "")
    if config.model == "wordpiece":
        remedy = "where no spaces part words, as in Thai, give --model unigram; else " + remedy
    if warning := advice(unknown, characters_of(sample), remedy):
        say(warning)


def _beginnings(sources: list[Source], config: VocabConfig) -> list[str]:
    """Return lines from the beginnings of some sources."""
    lines: list[str] = []
    for source in sources[:LOOKED_AT_SOURCES]:
        left = LOOKED_AT_CHARS
        for document in read_documents(source, config.column, Counter()):
            lines += document.text[:left].split("\n")
            left -= len(document.text)
            if left <= 0:
                break
    return lines


def _compatible(cased: bool, text: str) -> str:
    """Return a text as SentencePiece's normalizer leaves it, nearly."""
    return unicodedata.normalize("NFKC", text if cased else text.casefold())


def train_wordpiece(sources: list[Source], config: VocabConfig, size: int) -> list[str]:
    """Return the entries of a WordPiece vocabulary trained on `sources`, the special tokens first.

    Raises
    ------
    InputError: the corpus holds no text.
    """
    tokenizer = bert_tokenizer({}, config.cased)
    # Chinese needs thousands of characters, but a small vocabulary must not spend most of its entries on rare ones.
    counted = _count(_sample(sources, config), config, Cutter(tokenizer), "words")
    counts = alphabet_of(counted, tokenizer.normalizer.normalize_str)
    characters = counts.at_least(config.min_frequency)
    alphabet, rare = sorted(characters[: size // 4]), characters[size // 4 :]
    if not (config.cased or config.uncased) and counts.marks > WARN_MARKS_SHARE:
        lost = what_uncased_loses(_beginnings(sources, config)).words
        examples = ", ".join(f"{word} -> {bare}" for word, bare in lost) or counts.example
        say(
            "warning: uncased WordPiece takes accents and vowel signs off, as BERT's does, here of "
            f"{100 * counts.marks:.1f} % of the characters ({examples}); "
            "--cased, --lang CODE or --model unigram keep them"
        )
    if not alphabet:
        names = ", ".join(source.name for source in sources[:5])
        if counts.seen:
            raise InputError(f"no character occurs {config.min_frequency} times in {names}; lower --min_frequency")
        raise InputError(f"the corpus holds no text: {names}")
    entries = join_pieces(
        counted.words,
        SPECIAL,
        alphabet,
        [PREFIX + character for character in alphabet if _joins(tokenizer, character)],
        size=size,
        least=config.min_frequency,
    )
    # Words of Chinese are its characters: where longer words leave room, rarer ones take it.
    alone = [character for character in rare if not _joins(tokenizer, character)]
    return entries + alone[: max(0, size - len(entries))]


def _joins(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a character can stand inside a word: punctuation and Chinese characters cannot."""
    normal = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(normal)) == 1


def _sample(sources: list[Source], config: VocabConfig) -> Sample:
    reading = Reading(config.column, config.max_damaged, encoding_is_named=config.encoding is not None)
    return Sample.of(sources, reading, config.sample_mb)


def _count(sample: Sample, config: VocabConfig, cutter: Cutter | None, what: str) -> Counted:
    """Return what the sample holds, and say how much of the corpus that was.

    Raises
    ------
    InputError: no document was chosen.
    """
    counted = sample.count(cutter, config.workers, what)
    if counted.read_bytes and not counted.text_bytes:
        raise InputError(f"no document is in a sample of {config.sample_mb:g} MB; give a larger --sample_mb")
    say(f"{what} counted: {sample.share_in_words(counted)} (--sample_mb {config.sample_mb:g})")
    return counted


def _then(batches: Iterator[list[str]], at_end: Callable[[], None]) -> Iterator[list[str]]:
    yield from batches
    at_end()


def _warn_of_case(config: VocabConfig, entries: list[str]) -> None:
    upper = sum(entry != entry.lower() for entry in entries if entry not in SPECIAL)
    if not config.cased and upper > len(entries) // 100:
        say(f"warning: {upper:,} of {len(entries):,} entries have capitals, which only --cased uses")
    if config.cased and upper == 0:
        say("warning: no entry has capitals, so that --cased makes every capitalised word unknown")


if __name__ == "__main__":
    gc.set_threshold(100_000)  # hardly anything here refers to itself
    run(main, VocabConfig, __doc__)
