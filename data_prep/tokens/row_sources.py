"""Where the rows of an embedding come from, if a store has another vocabulary than the model that goes on with it.

    rows = find_rows(HF, store / "vocab", "match")      None where the vocabulary is the model's own

An entry that the model knows keeps its row. Another begins as the mean of the rows of its pieces: those by which the
model's own tokenizer spells its text, `##ung` as it would go on within a word. What it cannot spell begins as the mean
of all rows (Hewitt 2021: the model then finds the new entries no likelier than the old ones on average).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer, models

from data_prep.cli import InputError
from data_prep.tokens.contract import is_extension, same_tokenizer, tokenizer_of
from data_prep.tokens.encode import ROLES, Encoder

VocabFrom = Literal["same", "match"]  # what a model may make of a store's vocabulary
_WORD = "\u2581"  # SentencePiece's mark of what begins a word


class Rows(NamedTuple):
    """Where the rows of a vocabulary of V entries come from."""

    pieces: list[list[int]]  # [V] of each entry the model's rows whose mean it begins with; none: the mean of all
    is_same: np.ndarray  # [V] bool, entries that the model knows
    known: int  # entries of the model's own tokenizer; further rows pad its embedding
    pad_id: int
    old_pad_id: int

    @property
    def said(self) -> str:
        """Where they come from, in words."""
        unspelled = sum(not pieces for pieces in self.pieces)
        new = len(self.pieces) - int(self.is_same.sum())
        rest = f", but {unspelled:,} that it cannot spell the mean of all" if unspelled else ""
        if self.is_same[: self.known].all() and len(self.pieces) > self.known:
            return f"{new:,} word{'s' * (new > 1)} added, each the mean of its pieces{rest}"
        size = len(self.pieces)
        parts = {
            "have the row of the same text": size - new,
            "the mean of their pieces": new - unspelled,
            "the mean of all rows": unspelled,
        }
        shares = ", ".join(f"{count:,} ({100 * count / size:.1f} %) {what}" for what, count in parts.items())
        return f"another vocabulary: of {size:,} entries {shares}"


def find_rows(model: Path, vocab: Path, vocab_from: VocabFrom = "same") -> Rows | None:
    """Return where a model's rows for the entries of a tokenizer folder come from; None where all are its own.

    Raises
    ------
    InputError: a vocabulary that is neither the model's own nor has it as its beginning, unless `vocab_from` is match.
    """
    theirs, ours = tokenizer_of(model), Encoder.load(vocab, "tokenizers")
    if is_extension(theirs, ours):
        return _rows(theirs, ours, np.arange(ours.size) < theirs.size)
    try:
        same_tokenizer(model, vocab)
    except InputError:
        if vocab_from == "same":
            raise
        return _rows(theirs, ours, np.zeros(ours.size, bool))
    return None


def _rows(theirs: Encoder, ours: Encoder, is_same: np.ndarray) -> Rows:
    """Return the rows of `ours`, where those that `is_same` tells keep their place."""
    known = {_plain(theirs, token_id): token_id for token_id in range(theirs.size)}
    roles = {ours.special_ids[role]: theirs.special_ids[role] for role in ROLES}
    begins, continues = _speller(theirs), _inner_speller(theirs)
    pieces, found = [], is_same.copy()
    for token_id in range(ours.size):
        text, is_inner = plain = _plain(ours, token_id)
        if is_same[token_id]:
            pieces.append([token_id])
        elif (row := roles.get(token_id, known.get(plain))) is not None:
            found[token_id] = True
            pieces.append([row])
        else:
            pieces.append((continues if is_inner else begins)(text))
    return Rows(pieces, found, theirs.size, ours.special_ids["pad"], theirs.special_ids["pad"])


def _plain(encoder: Encoder, token_id: int) -> tuple[str, bool]:
    """Return the text of an entry, and whether it goes on with a word: ##ung, or ung without SentencePiece's mark."""
    entry = encoder.tokenizer.id_to_token(token_id) or ""
    if token_id in encoder.special_ids.values():
        return entry, False
    if _is_wordpiece(encoder.tokenizer):
        return (entry[2:], True) if entry.startswith("##") and len(entry) > 2 else (entry, False)
    return (entry[1:], False) if entry.startswith(_WORD) and len(entry) > 1 else (entry, True)


def _is_wordpiece(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer.model, models.WordPiece)


def _speller(encoder: Encoder) -> Callable[[str], list[int]]:
    """Return what spells the beginning of a word, without what is unknown or special."""
    special = {*encoder.special_ids.values()}

    def spell(text: str) -> list[int]:
        ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
        return [token_id for token_id in ids if token_id not in special]

    return spell


def _inner_speller(encoder: Encoder) -> Callable[[str], list[int]]:
    """Return what spells the rest of a word: WordPiece by its ## entries alone, as if they began one."""
    whole = _speller(encoder)
    if not _is_wordpiece(encoder.tokenizer):
        return whole  # SentencePiece has the same pieces there, but for the mark
    vocab = encoder.tokenizer.get_vocab(with_added_tokens=False)
    inner = {entry[2:]: token_id for entry, token_id in vocab.items() if entry.startswith("##") and len(entry) > 2}
    state = json.loads(encoder.tokenizer.to_str())
    unknown = state["model"]["unk_token"]
    state["model"] |= {"continuing_subword_prefix": "", "vocab": {unknown: encoder.special_ids["unk"], **inner}}
    state |= {"added_tokens": [], "post_processor": None}
    spell_inner = _speller(Encoder(Tokenizer.from_str(json.dumps(state)), encoder.special_ids, "tokenizers"))
    return lambda text: spell_inner(text) or whole(text)  # signs and Chinese characters have no ## entry
