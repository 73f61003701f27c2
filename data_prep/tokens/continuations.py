"""Which entries of a vocabulary go on with the word before them: ##ing of WordPiece, what has no ▁ of SentencePiece."""

import json
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from data_prep.json_types import JsonObject

# Entries of SentencePiece that go on with a word: with letters, without the mark of a space; but in scripts that put no
# spaces (Thai, Lao, Burmese, Khmer, Chinese, Japanese) every entry is a word.
_INSIDE = re.compile(
    r"^(?!▁)(?!.*[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]).*\w"
)


def is_continuation(entry: str, model: JsonObject) -> bool:
    """Whether an entry goes on with the word before it; `model` is that of tokenizer.json."""
    if model["type"] == "WordPiece":
        return entry.startswith(model["continuing_subword_prefix"])
    return _INSIDE.search(entry) is not None


def continuation_token_ids(tokenizer_folder: Path, size: int, special_ids: Collection[int]) -> np.ndarray:
    """Return [V] bool: by id, whether a token goes on with the word before it; punctuation and specials never do."""
    model = json.loads((tokenizer_folder / "tokenizer.json").read_text("utf-8"))["model"]
    entries = model["vocab"]
    if isinstance(entries, list):  # of SentencePiece: [entry, score] by id
        entries = {entry: index for index, (entry, _) in enumerate(entries)}
    continues = np.zeros(size, bool)
    for entry, index in entries.items():
        continues[index] = is_continuation(entry, model)
    continues[list(special_ids)] = False
    return continues
