"""Sentences to token ids, exactly as transformers will encode them with the same tokenizer folder.

    encoder = Encoder.load(Path("vocab"))
    encoder.check(sentences)                    # compares the fast path with `tokenizers`, leaves it where it errs
    encoder.encode(["Hello there.", "Bye!"])    # -> ids end to end, and tokens of each sentence

The reference is `tokenizers` itself. BERT's WordPiece has two faster paths (fast_paths.py); whichever is in use is
compared with the reference on adversarial strings and on sentences of the corpus at every start. Literal "[MASK]" or
"[SEP]" in a text is text, never a special id: otherwise a corpus could write the model's control signals.
"""
# ruff: noqa: RUF001

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_prep.calls import call
from data_prep.cli import InputError, say
from data_prep.json_types import JsonObject
from data_prep.store_manifest import token_dtype
from data_prep.tokens.fast_paths import Ids, Nanotoken, SentencePieceCache, WordPieceCache, is_bert, is_sentencepiece
from data_prep.tokens.tokenizer_folder import require_tokenizer
from data_prep.tokens.unknown import UnknownCharacters
from data_prep.untrusted import read_object

_FastPath = Nanotoken | WordPieceCache | SentencePieceCache
EncodeWith = Literal["auto", "nanotoken", "pieces", "tokenizers"]
ROLES = ("pad", "unk", "cls", "sep", "mask")

ADVERSARIAL_STRINGS = (
    "Hello, my dog is cute",
    "[MASK] [SEP][CLS] [PAD]x [UNK] mask]",
    "Ünïcödé naïve coöperate ÅNGSTRÖM İstanbul ΑΣ ς ﬁne Ⅷ ½ ﬀ",
    "e\u0301a\u0300 \u0301x .\u0301y 中\u0301文 n\u0303o",
    "a\u00a0b\u2003c\u3000d\te\rf\ng\u0085h\u200bi\u200dj\ufeffk\u2028l",
    "\x00nul\x01 \x7f\ufffd \ue000 \U0010ffff soft\u00adhyphen",
    "中文字符，混合English和123。《书》「引」！？",
    "日本語のテキスト、カタカナ。한국어 텍스트 ภาษาไทย ﷺ العربية؟ हिन्दी। עברית",
    "x" * 99 + " " + "x" * 100 + " " + "x" * 101 + " " + "é" * 100,
    "don't won't -- --- ... … ‘q’ “q” —dash– a_b a-b a/b #tag @me $5.00 50% 1,000.5 ~^`|<>{}\\",
    "🙂👨‍👩‍👧‍👦🇩🇪 ☃️ ♥ €£¥ № ™ © ≠ ∑ ⟨x⟩ 〇々〆 ㍿ 豈 \U00020000\U0002f800",
    "  leading  and   double spaces  ",
    "",
    " ",
)


class Encoder:
    """Encodes sentences with the tokenizer of a folder. One per process: what a fast path remembers is not shared."""

    def __init__(self, tokenizer: Tokenizer, special_ids: dict[str, int], encode_with: EncodeWith = "auto"):
        self.tokenizer = tokenizer
        self.special_ids = special_ids  # by name: pad, unk, cls, sep, mask
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.dtype = token_dtype(self.size)
        self._paths = _fast_paths(tokenizer, self.dtype, encode_with)  # the first one is used

    @classmethod
    def load(cls, folder: Path, encode_with: EncodeWith = "auto") -> "Encoder":
        """Return the encoder of a tokenizer folder. The ids do not depend on what they are encoded with.

        Raises
        ------
        InputError: no such folder, damaged files, or no special tokens. That transformers opens it alike: contract.py.
        """
        files = _read_folder(folder)
        files.tokenizer.encode_special_tokens = True
        files.tokenizer.no_truncation()
        files.tokenizer.no_padding()
        names = special_names(files.config)
        ids = {role: files.tokenizer.token_to_id(name) for role, name in names.items()}
        if missing := [names[role] for role in ROLES if ids[role] is None]:
            raise InputError(f"{folder / 'tokenizer.json'} lacks {', '.join(missing)}; make it with {call('vocab')}")
        return cls(
            files.tokenizer,
            {role: int(token_id) for role, token_id in ids.items() if token_id is not None},
            encode_with,
        )

    @property
    def backend(self) -> str:
        """What encodes: the name of the fast path in use, or of the reference."""
        return self._paths[0].name if self._paths else "tokenizers"

    @cached_property
    def unknown_characters(self) -> UnknownCharacters:
        """What counts the characters behind unknown tokens."""
        return UnknownCharacters(self.tokenizer, self.special_ids["unk"])

    def encode(self, sentences: list[str]) -> Ids:
        """Return the ids of sentences, without [CLS] and [SEP]."""
        return self._paths[0].encode(sentences) if self._paths else self.encode_by_reference(sentences)

    def encode_by_reference(self, sentences: list[str]) -> Ids:
        """As `encode`, by `tokenizers` alone: the reference."""
        found = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        return Ids(
            np.fromiter((token_id for ids in found for token_id in ids), self.dtype, int(lengths.sum())), lengths
        )

    def check(self, sentences: Iterable[str] = ()) -> bool:
        """Compare the fast path with the reference on adversarial strings and on `sentences`; leave it, and say so,
        where they differ. Return whether a fast path is in use."""
        if not self._paths:
            say("encoding with tokenizers: this tokenizer has no faster path")
            return False
        texts = [*ADVERSARIAL_STRINGS, *sentences]
        slow = _one_by_one(self.encode_by_reference(texts))
        while self._paths:
            fast = _one_by_one(self.encode(texts))
            wrong = [text for text, mine, theirs in zip(texts, fast, slow, strict=True) if mine != theirs]
            if not wrong:
                return True
            name = self._paths.pop(0).name
            say(
                f"warning: {name} errs on {len(wrong)} strings, such as {wrong[0][:60]!r}; encoding with {self.backend}"
            )
        return False


def _fast_paths(tokenizer: Tokenizer, dtype: np.dtype, wanted: EncodeWith) -> list[_FastPath]:
    """Return what may encode for this tokenizer beside the reference, the fastest first.

    Raises
    ------
    InputError: what is wanted cannot be had.
    """
    state = json.loads(tokenizer.to_str())
    paths: list[_FastPath] = []
    if wanted in ("auto", "nanotoken") and is_bert(state):
        with suppress(ImportError, ValueError):
            paths.append(Nanotoken(state, dtype))
    if wanted in ("auto", "pieces") and is_bert(state):
        paths.append(WordPieceCache(state, dtype, tokenizer))
    if wanted in ("auto", "pieces") and is_sentencepiece(state):
        paths.append(SentencePieceCache(dtype, tokenizer))
    if wanted in ("nanotoken", "pieces") and not paths:
        raise InputError(
            f"--encode_with {wanted}: not installed (pip install 'zerobert[fast]') or not for this kind of tokenizer"
        )
    return paths


def _one_by_one(encoded: Ids) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])]


class _Files(NamedTuple):
    tokenizer: Tokenizer
    config: JsonObject


def _read_folder(folder: Path) -> _Files:
    require_tokenizer(folder)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        path = folder / "tokenizer_config.json"
        config = read_object(path) if path.is_file() else {}
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{folder} cannot be loaded ({error}); make it again with {call('vocab')}") from error
    return _Files(tokenizer, config)


def special_names(config: JsonObject) -> dict[str, str]:
    """Return the special tokens by role, as tokenizer_config.json names them: by strings or by objects."""
    named = {role: config.get(f"{role}_token") or f"[{role.upper()}]" for role in ROLES}
    return {role: str(name["content"] if isinstance(name, dict) else name) for role, name in named.items()}
