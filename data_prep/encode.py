"""Sentences to token ids, exactly as transformers will encode them with the same tokenizer folder.

    encoder = Encoder.load(Path("vocab"))
    encoder.check(sentences)                    # compares the fast path with `tokenizers`, falls back and says so
    encoder.encode(["Hello there.", "Bye!"])    # -> [b"...", b"..."], little-endian ids of encoder.dtype

The reference is `tokenizers` itself. The fast path remembers what it has seen: BERT's normalizer and pre-tokenizer
never join what an ASCII space, a punctuation mark or a Chinese character parts, so a text's ids are the ids of these
pieces end to end, and most pieces of a text occurred before. Literal "[MASK]" or "[SEP]" in a text is text, never a
special id: otherwise a corpus could write the model's control signals.
"""
# ruff: noqa: RUF001

import json
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_prep.cli import InputError, say
from data_prep.store import token_dtype

ROLES = ("pad", "unk", "cls", "sep", "mask")
CACHE_ENTRIES = 1 << 18  # about 50 MB
CACHE_LENGTH = 32  # characters; longer pieces seldom come again

# Always words of their own in BERT's pre-tokenizer, whatever stands beside them. Not all such characters: those listed
# are the ones that occur often, the others stay inside their piece for `tokenizers` to part.
_ALONE = r"""!-/:-@\[-`{-~‐-‧‰-⁁、-〃〈-】〔-〟！-＃％-＊，-／：；？＠［-］＿｛｝｟-･一-鿿"""
_PIECES = re.compile(f"[{_ALONE}]|[^{_ALONE}]+")

HARD = (
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
    """Encodes sentences with the tokenizer of a folder. One per process: the cache is not shared."""

    def __init__(self, tokenizer: Tokenizer, special_ids: dict[str, int]):
        self.tokenizer = tokenizer
        self.special_ids = special_ids  # by name: pad, unk, cls, sep, mask
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.dtype = token_dtype(self.size)
        self._cache = _Cache(tokenizer, self.dtype) if _is_bert(tokenizer) else None

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """The encoder of a tokenizer folder.

        Raises
        ------
        InputError: no such folder, damaged files, no special tokens, or a configuration that contradicts the tokenizer.
        """
        files = _read_folder(folder)
        files.tokenizer.encode_special_tokens = True
        files.tokenizer.no_truncation()
        files.tokenizer.no_padding()
        names = {role: files.config.get(f"{role}_token", f"[{role.upper()}]") for role in ROLES}
        ids = {role: files.tokenizer.token_to_id(_content(name)) for role, name in names.items()}
        if missing := [str(names[role]) for role in ROLES if ids[role] is None]:
            raise InputError(f"{folder / 'tokenizer.json'} lacks {', '.join(missing)}; make it with data_prep/vocab.py")
        return cls(files.tokenizer, {role: int(number) for role, number in ids.items() if number is not None})

    @property
    def is_fast(self) -> bool:
        """Whether the fast path is in use."""
        return self._cache is not None

    def encode(self, sentences: list[str]) -> list[bytes]:
        """The ids of each sentence, without [CLS] and [SEP], as bytes of `dtype`."""
        if self._cache is None:
            return self.encode_slowly(sentences)
        look_up = self._cache.__getitem__
        return [b"".join(map(look_up, sentence.split(" "))) for sentence in sentences]

    def encode_slowly(self, sentences: list[str]) -> list[bytes]:
        """As `encode`, by `tokenizers` alone: the reference."""
        found = self.tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype).tobytes() for encoding in found]

    def check(self, sentences: Iterable[str] = ()) -> bool:
        """Compare the fast path with the reference on hard strings and on `sentences`; leave it, saying so, where they
        differ. Returns whether it is in use."""
        if self._cache is None:
            say("this tokenizer has no fast path: encoding with tokenizers")
            return False
        texts = [*HARD, *sentences]
        fast, slow = self.encode(texts), self.encode_slowly(texts)
        wrong = [text for text, mine, theirs in zip(texts, fast, slow, strict=True) if mine != theirs]
        if wrong:
            self._cache = None
            say(f"warning: the fast path errs on {len(wrong)} strings, such as {wrong[0][:60]!r}; encoding without it")
        return not wrong


class _Cache(dict[str, bytes]):
    """Ids by piece of text. What is missing is cut into smaller pieces; of these, plain ASCII words are looked up by
    WordPiece's own rule, the longest entry first, and all others encoded by `tokenizers`."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype):
        super().__init__()
        state = json.loads(tokenizer.to_str())
        self.tokenizer = tokenizer
        self.code = dtype.char
        self.lowercase = state["normalizer"]["lowercase"]
        self.prefix = state["model"]["continuing_subword_prefix"]
        self.longest_word = state["model"]["max_input_chars_per_word"]
        self.entries = {entry: self._pack([number]) for entry, number in state["model"]["vocab"].items()}
        self.longest_entry = max(map(len, self.entries))
        self.unknown = self.entries[state["model"]["unk_token"]]

    def __missing__(self, chunk: str) -> bytes:
        pieces = _PIECES.findall(chunk)
        if len(pieces) > 1:
            ids = b"".join([self[piece] for piece in pieces])
        elif chunk.isascii() and chunk.isalnum():
            ids = self._word(chunk.lower() if self.lowercase else chunk)
        else:
            ids = self._pack(self.tokenizer.encode(chunk, add_special_tokens=False).ids)
        if len(chunk) <= CACHE_LENGTH:
            if len(self) >= CACHE_ENTRIES:
                self.clear()  # crude, but what is frequent is back within a megabyte of text
            self[chunk] = ids
        return ids

    def _word(self, word: str) -> bytes:
        if len(word) > self.longest_word:
            return self.unknown
        entries, ids, start = self.entries, b"", 0
        prefix = ""
        while start < len(word):
            end = min(len(word), start + self.longest_entry)
            while (found := entries.get(prefix + word[start:end])) is None:
                end -= 1
                if end == start:
                    return self.unknown
            ids += found
            start, prefix = end, self.prefix
        return ids

    def _pack(self, ids: list[int]) -> bytes:
        return array(self.code, ids).tobytes()


class _Files(NamedTuple):
    tokenizer: Tokenizer
    config: dict[str, Any]


def _read_folder(folder: Path) -> _Files:
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} is not a tokenizer folder (no tokenizer.json); make one with data_prep/vocab.py")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{folder} cannot be loaded ({error}); make it again with data_prep/vocab.py") from error
    state = json.loads(tokenizer.to_str())["normalizer"] or {}
    lower = config.get("do_lower_case", state.get("lowercase"))
    if state.get("type") == "BertNormalizer" and lower != state["lowercase"]:
        raise InputError(
            f"{folder}: tokenizer_config.json says do_lower_case {lower}, tokenizer.json says {state['lowercase']}; "
            "transformers would give other ids than the store; make the folder again with data_prep/vocab.py"
        )
    return _Files(tokenizer, config)


def _content(token: Any) -> str:
    """A special token's text; configurations write it as a string or as an object."""
    return token["content"] if isinstance(token, dict) else str(token)


def _is_bert(tokenizer: Tokenizer) -> bool:
    """Whether the pieces of the fast path are pieces to this tokenizer."""
    state = json.loads(tokenizer.to_str())
    normalizer, pre_tokenizer = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and normalizer["handle_chinese_chars"]
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        and state["model"]["type"] == "WordPiece"
        and all(token["special"] for token in state["added_tokens"])  # another would be found inside words
    )
