"""Sentences of a store with a gap in each, to see what a model makes of text that it has not read.

    for gap in gaps_of(Store.open("store"), 8): gap.text, gap.word

Held-out documents where there are any. The gap is one whole word that is one entry of the vocabulary, so that a model
can know it; which sentences and words are taken depends on the store alone.
"""

from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_prep.samples.sample_index import Sentences
from data_prep.store import Store

SHORTEST, LONGEST = 8, 30  # tokens of a sentence
LETTERS = 4  # of a word worth asking for
EAST_ASIAN = "\u3040"  # from here on scripts in which a sign or two are a word
TRIED = 40  # sentences that are looked at for each that is wanted


class Gap(NamedTuple):
    """A sentence with a mask in it."""

    text: str
    word: str  # what stood there
    is_held_out: bool  # whether training has not seen it


def gaps_of(store: Store, wanted: int) -> list[Gap]:
    """Return up to `wanted` gaps, spread over the documents."""
    sentences, is_held_out = Sentences.of(store, held_out=True), True
    if not len(sentences.token_starts):
        sentences, is_held_out = Sentences.of(store), False
    lengths = np.diff(sentences.ends)
    fitting = np.flatnonzero((lengths >= SHORTEST) & (lengths <= LONGEST))
    tokenizer = Tokenizer.from_file(str(store.folder / "vocab/tokenizer.json"))
    mask = str(tokenizer.id_to_token(store.special_ids["mask"]))
    found: dict[str, Gap] = {}  # by its word: each once
    # In strides over all of them, so that the first few already are spread.
    places = np.linspace(0, len(fitting) - 1, min(len(fitting), wanted * TRIED)).astype(int)
    stride = max(1, len(places) // wanted)
    for place in (place for first in range(stride) for place in places[first::stride]):
        start, length = int(sentences.token_starts[fitting[place]]), int(lengths[fitting[place]])
        ids = store.read_spans(np.array([start]), np.array([length])).tolist()
        gap = _gap(tokenizer, store, ids, mask, is_held_out)
        if gap is not None:
            found.setdefault(gap.word, gap)
        if len(found) == wanted:
            break
    return list(found.values())


def _is_worth_asking(word: str) -> bool:
    return word.isalpha() and len(word) >= (1 if word[0] >= EAST_ASIAN else LETTERS)


def _gap(tokenizer: Tokenizer, store: Store, ids: list[int], mask: str, is_held_out: bool) -> Gap | None:
    """Return the longest word of the second half of a sentence as a gap: by then something has been said."""
    if store.special_ids["unk"] in ids:
        return None
    goes_on = [bool(store.continues[number]) for number in ids] + [False]
    words = [str(tokenizer.decode([number])).strip() for number in ids]
    whole = [
        place
        for place in range(len(ids) // 2, len(ids) - 1)
        if _is_worth_asking(words[place]) and not goes_on[place] and not goes_on[place + 1]
    ]
    if not whole:
        return None
    place = max(whole, key=lambda place: len(words[place]))
    before, after = (str(tokenizer.decode(part)).strip() for part in (ids[:place], ids[place + 1 :]))
    if before.startswith("-"):  # of spoken words; on a command line it would be an option
        return None
    space = " " if after[:1].isalnum() else ""
    return Gap(f"{before} {mask}{space}{after}", words[place], is_held_out)
