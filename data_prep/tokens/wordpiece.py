"""WordPiece as BERT has it: a published vocab.txt is read, a tokenizer built, its folder written.

entries = read_vocab(path)                        whatever its encoding, line ends, blank and repeated lines
write_tokenizer(folder, entries, cased=False)     tokenizer.json, tokenizer_config.json, vocab.txt
"""

import codecs
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from data_prep.cli import InputError, say
from data_prep.files import write_json
from data_prep.tokens.contract import bert_template
from data_prep.tokens.sentencepieces import SPECIAL


def read_vocab(path: Path) -> list[str]:
    """Return the entries of a published vocab.txt, whatever its line ends and its byte order mark.

    Raises
    ------
    InputError: no such file, not UTF-8, a special token missing.
    """
    try:
        text = _decoded(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); give a WordPiece vocab.txt") from error
    if "\0" in text:
        raise InputError(f"{path} holds NUL characters, so that it is no UTF-8; save it as UTF-8")
    text = text.replace("\r\n", "\n")
    entries = text.split("\n" if "\n" in text else "\r")
    while entries and not entries[-1]:
        entries.pop()
    around = [entry for entry in entries if entry != entry.strip(" \t")]
    if around:
        say(f"{path.name}: white space around {len(around)} entries, such as {around[0]!r}, is left out")
        entries = [entry.strip(" \t") for entry in entries]
    if missing := [token for token in SPECIAL if token not in entries]:
        raise InputError(f"{path} lacks {', '.join(missing)}; give a WordPiece vocab.txt of a BERT")
    _check_words(path, [entry for entry in entries if entry and entry not in SPECIAL])
    if blank := [token_id for token_id, entry in enumerate(entries) if not entry]:
        say(f"{path.name}: {len(blank)} blank lines, such as line {blank[0] + 1}, are entries that no word has")
    for token_id in blank:
        entries[token_id] = f"[blank{token_id}]"
    return _name_apart(path, entries)


def _check_words(path: Path, words: list[str]) -> None:
    """Refuse entries that most words of a text could never be, and say what else seems to be no WordPiece."""
    if not words:
        raise InputError(f"{path} holds no entries but special tokens; give a WordPiece vocab.txt of a BERT")
    if parted := [word for word in words if any(map(str.isspace, word))]:
        what = f"{len(parted)} of {len(words)} entries hold white space, such as {parted[0]!r}, and no word does"
        if len(parted) > len(words) / 2:
            raise InputError(f"{path}: {what}; give one entry a line, and nothing beside it")
        say(f"{path.name}: {what}")
    if not any(word.startswith("##") for word in words):
        say(f"warning: {path.name}: no entry begins with ##: words that are no entries themselves will be unknown")


def _decoded(raw: bytes) -> str:
    """Return text of UTF-8, or of what a byte order mark says; the mark is no part of the first entry."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # before UTF-16, whose mark is the first half
        return raw.decode("utf-32")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    return raw.decode("utf-8-sig")


def _name_apart(path: Path, entries: list[str]) -> list[str]:
    """Give entries that occur again further down a name of their own. Published vocabularies have such entries, and
    readers let the last one win: this keeps every id, and the token_id of entries, as they are."""
    last = {entry: token_id for token_id, entry in enumerate(entries)}
    repeated = [token_id for token_id, entry in enumerate(entries) if last[entry] != token_id]
    if repeated:
        say(f"{path.name}: {len(repeated)} entries occur twice, such as {entries[repeated[0]]!r}; the last one counts")
    for token_id in repeated:
        entries[token_id] = f"[repeated{token_id}]"
    return entries


def bert_tokenizer(ids: dict[str, int], cased: bool) -> Tokenizer:
    """Return BERT's tokenizer over a vocabulary, exactly as transformers' BertTokenizer builds it from
    `do_lower_case`."""
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=not cased
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def finish_tokenizer(tokenizer: Tokenizer) -> None:
    """Make a tokenizer put BERT's special tokens around one text or two."""
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = bert_template(tokenizer, "[CLS]", "[SEP]")


def write_tokenizer(folder: Path, entries: list[str], cased: bool) -> None:
    """Write the files of a tokenizer folder into `folder`; `entries` in the order of their ids."""
    ids = {entry: token_id for token_id, entry in enumerate(entries)}
    tokenizer = bert_tokenizer(ids, cased)
    finish_tokenizer(tokenizer)
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1), "utf-8"
    )
    (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    # By hand: transformers rebuilds BertTokenizer from these values, ignoring the normalizer in tokenizer.json, and
    # model_input_names keeps token_type_ids where the folder is loaded as PreTrainedTokenizerFast.
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": not cased,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "model_max_length": 512,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
    )
