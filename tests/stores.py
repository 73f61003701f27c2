"""Token stores that fit in a test: documents of sentences of token ids, written as data_prep/shard.py would."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import sha256_of, write_json
from data_prep.store import HELD_OUT, Sections, Store, shard_name, write_shard
from data_prep.store_manifest import token_dtype
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.tokenizer_folder import tokenizer_sha256
from data_prep.tokens.wordpiece import write_tokenizer

Documents = list[list[list[int]]]  # documents of sentences of ids


def entries_of(vocab_size: int) -> list[str]:
    """The special tokens and made-up words."""
    return [*SPECIAL, *(f"w{number}" for number in range(vocab_size - len(SPECIAL)))]


def store_of(
    folder: Path,
    documents: Documents,
    vocab_size: int = 64,
    held_out: Collection[int] = (),
    shards: int = 1,
    sources: Sequence[str] = (),
) -> Store:
    """Write a finished store; `held_out` are numbers of documents, which come from the `sources` in turn."""
    (folder / "vocab").mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder / "vocab", entries_of(vocab_size), cased=False)
    sha256 = tokenizer_sha256(folder / "vocab")
    entries: list[dict[str, Any]] = []
    for number, part in enumerate(np.array_split(np.arange(len(documents)), shards)):
        chosen = [documents[row] for row in part]
        sentences = [sentence for document in chosen for sentence in document]
        sections = Sections(
            np.array([token for sentence in sentences for token in sentence], token_dtype(vocab_size)),
            np.array([len(sentence) for sentence in sentences]),
            np.array([len(document) for document in chosen]),
            part % max(len(sources), 1),
            np.array([HELD_OUT if row in held_out else 0 for row in part]),
        )
        path = folder / shard_name(number)
        write_shard(path, sections, sha256)
        sizes = {"tokens": len(sections.tokens), "sentences": len(sentences), "documents": len(chosen)}
        entries.append({"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} | sizes)
    special_ids = {name.strip("[]").lower(): row for row, name in enumerate(SPECIAL)}
    manifest = {
        "format": 1,
        "vocab": {"sha256": sha256, "size": vocab_size, "special_ids": special_ids},
        "sources": [{"path": path} for path in sources],
        "shards": entries,
        "counts": {name: sum(entry[name] for entry in entries) for name in ("documents", "sentences", "tokens")}
        | {"held_out_documents": len(held_out)},
    }
    write_json(folder / "manifest.json", manifest)
    return Store.open(folder)


def random_documents(count: int, seed: int = 0, vocab_size: int = 64, longest: int = 12) -> Documents:
    """Documents of 1 to 20 sentences of 1 to `longest` tokens, of frequent and rare words."""
    rng = np.random.default_rng(seed)
    words = vocab_size - len(SPECIAL)
    return [
        [
            (len(SPECIAL) + np.minimum(rng.geometric(0.1, rng.integers(1, longest + 1)), words) - 1).tolist()
            for _ in range(rng.integers(1, 21))
        ]
        for _ in range(count)
    ]
