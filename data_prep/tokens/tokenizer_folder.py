"""A tokenizer folder as files: its identity and its size, read without the tokenizers library."""

import hashlib
import shutil
from functools import lru_cache
from pathlib import Path

from data_prep.calls import call
from data_prep.cli import InputError
from data_prep.fields import parse
from data_prep.files import sha256_of
from data_prep.store_manifest import mend

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def require_tokenizer(folder: Path) -> None:
    """Refuse a folder without tokenizer.json, with the command that makes one of what it does hold.

    Raises
    ------
    InputError: it holds none.
    """
    if (folder / "tokenizer.json").is_file():
        return
    remedy = f"make one with {call('vocab')}"
    if (folder / "vocab.txt").is_file():
        is_model = (folder / "config.json").is_file()
        wrapped = call("vocab", "--from_vocab", folder / "vocab.txt", "--out", "VOCAB")
        remedy = f"{call('export', folder, 'OUT')} makes one beside its weights" if is_model else f"make one: {wrapped}"
    raise InputError(f"{folder} is not a tokenizer folder (no tokenizer.json); {remedy}")


def tokenizer_sha256(folder: Path) -> str:
    """Return the identity of a tokenizer folder: a hash of the files that decide which ids a text becomes.

    Raises
    ------
    InputError: where the folder holds no tokenizer.json.
    """
    require_tokenizer(folder)
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(f"{name} {sha256_of(folder / name)}\n".encode())
    return digest.hexdigest()


@lru_cache
def entry_count(vocab: Path, sha256: str) -> int:
    """Return the entries of a tokenizer folder whose files have this hash: those of the model, and added tokens beside
    them.

    Raises
    ------
    InputError: tokenizer.json cannot be read.
    """
    try:
        content = parse((vocab / "tokenizer.json").read_bytes())
        known = content["model"]["vocab"]
        added = {token["content"] for token in content["added_tokens"]}
        return len(known) + len(added - (known.keys() if isinstance(known, dict) else {entry for entry, _ in known}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{vocab / 'tokenizer.json'} cannot be loaded ({error!r}); {mend()}") from error


def copy_tokenizer(folder: Path, to: Path) -> None:
    """Copy the files that a folder has."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)
