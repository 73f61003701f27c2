"""A tokenizer with words of a corpus behind its own entries, whose ids stay as they are.

    base = tokenizer_of(HF)                             as transformers opens it (contract.py)
    words = most_useful(base.tokenizer, counts, 500, 2)     those that save most; counts: words.py
    write_extension(folder, HF, base, words, record)    tokenizer.json, vocab.txt, extension.json, ...

A word is what the tokenizer's own normalizer and pre-tokenizer make one: lower-cased where it lower-cases, a Chinese
character alone. Of letters and digits, at least one letter. It is useful where the vocabulary spells it in several
pieces, or not at all: a word of three pieces that stands in the text 100 times saves 200 tokens.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import regex
from tokenizers import Tokenizer

from data_prep.cli import InputError
from data_prep.files import sha256_of, write_json
from data_prep.json_types import JsonObject
from data_prep.tokens.contract import CONFIG, missing_settings
from data_prep.tokens.encode import Encoder
from data_prep.tokens.tokenizer_folder import TOKENIZER_FILES
from data_prep.untrusted import read_object

RECORD = "extension.json"
RULE = "words of letters and digits, spelled in several pieces or unknown, by the tokens that they save"
UNSPACED = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")  # scripts in which no spaces part words


class Word(NamedTuple):
    """A word that a vocabulary lacks."""

    text: str  # as the tokenizer normalizes it
    occurrences: int
    saves: int  # tokens in the text, were it an entry
    is_unknown: bool  # not spelled at all


class Spared(NamedTuple):
    """Tokens of the words of a text."""

    before: int
    after: int


def check_wordpiece(tokenizer: Tokenizer, named: Path) -> None:
    """Refuse a tokenizer other than WordPiece: in others words are no entries.

    Raises
    ------
    InputError: naming the folder and its kind.
    """
    kind = json.loads(tokenizer.to_str())["model"]["type"]
    if kind != "WordPiece":
        raise InputError(
            f"--extend {named}: its vocabulary is {kind}, and words can be added to WordPiece only; make "
            "a vocabulary from the text, and give the model its rows with train --vocab_from match"
        )


def most_useful(tokenizer: Tokenizer, words: Mapping[str, int], most: int, least: int) -> list[Word]:
    """Return at most so many words that occur at `least` so often, the most useful first."""
    model = json.loads(tokenizer.to_str())["model"]
    longest, unknown = int(model["max_input_chars_per_word"]), model["unk_token"]
    found = []
    for word, count in words.items():
        if count < least or not is_word(word) or len(word) > longest:
            continue
        pieces = [token.value for token in tokenizer.model.tokenize(word)]
        is_unknown = pieces == [unknown]
        if len(pieces) > 1 or is_unknown:  # an unknown word becomes one that is known: worth a token
            found.append(Word(word, count, count * max(len(pieces) - 1, 1), is_unknown))
    return sorted(found, key=lambda word: (-word.saves, word.text))[:most]


def tokens_spared(words: Mapping[str, int], tokenizer: Tokenizer, extended: Tokenizer) -> Spared:
    """Return how many tokens a text of these words has, and would have with `extended`."""
    return Spared(
        *(
            sum(count * len(each.model.tokenize(word)) for word, count in words.items())
            for each in (tokenizer, extended)
        )
    )


def is_word(text: str) -> bool:
    """Return whether a text is of letters, their marks, and digits, with a letter among them."""
    return any(map(str.isalpha, text)) and all(
        character.isalnum() or unicodedata.category(character)[0] == "M" for character in text
    )


def extended(base: Encoder, words: Sequence[str]) -> Tokenizer:
    """Return the tokenizer with words behind all of its entries."""
    state = json.loads(base.tokenizer.to_str())
    state["model"]["vocab"] = {entry: token_id for token_id, entry in enumerate([*entries_of(base.tokenizer), *words])}
    return Tokenizer.from_str(json.dumps(state))


def entries_of(tokenizer: Tokenizer) -> list[str]:
    """Return all entries in the order of their ids, added tokens among them. An id that none has, since another entry
    of the same text came later, gets a name of its own, as data_prep/tokens/wordpiece.py gives it."""
    by_id = {token_id: entry for entry, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    return [by_id.get(token_id, f"[repeated{token_id}]") for token_id in range(max(by_id) + 1)]


def write_extension(folder: Path, origin: Path, base: Encoder, words: Sequence[str], record: JsonObject) -> None:
    """Write a tokenizer folder: that of `origin` with `words` behind its entries, and `record` with the identity of
    what was extended, as extension.json."""
    tokenizer = extended(base, words)
    config = read_object(origin / CONFIG) if (origin / CONFIG).is_file() else {}
    write_json(folder / CONFIG, config | missing_settings(tokenizer, config))
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1), "utf-8"
    )
    (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries_of(tokenizer)), encoding="utf-8")
    write_json(folder / RECORD, {"base": identity_of(origin)} | record)


def identity_of(folder: Path) -> JsonObject:
    """Return the name of a tokenizer folder and the hashes of its files."""
    files = {name: sha256_of(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    return {"folder": folder.resolve().name, "sha256": files}
