"""A tokenizer folder, held against what transformers makes of it: the ids of a store must be those of its readers.

    with settled(folder) as vocab:            a copy that says all it must; the store keeps it as vocab/
        check(vocab, encoder, sentences)      refuses where AutoTokenizer would give anything else
    same_tokenizer(hf, store / "vocab")       whether a model's own tokenizer made the store

transformers makes most of a tokenizer from tokenizer_config.json: the class it names, do_lower_case, model_input_names.
What that file leaves out is filled in, in the copy, so that it agrees with tokenizer.json, which data preparation
encodes with; what it says otherwise is refused. The copy is a function of the folder: its hash is the tokenizer's.
How transformers opens a folder is asked in as_transformers.py.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from data_prep.calls import call
from data_prep.cli import InputError, say
from data_prep.files import write_json
from data_prep.json_types import JsonObject
from data_prep.tokens.as_transformers import LONG_TEXT, Opened, open_with_transformers, opened_by_transformers
from data_prep.tokens.encode import ADVERSARIAL_STRINGS, ROLES, Encoder, special_names
from data_prep.tokens.tokenizer_folder import copy_tokenizer
from data_prep.untrusted import read_object, refuse_code

CONFIG = "tokenizer_config.json"
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast")
BERT_DEFAULTS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
# How tokenizer.json names what BertTokenizer takes from tokenizer_config.json.
NORMALIZER_KEYS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
PARTS = ("normalizer", "pre_tokenizer", "model")
PLAIN_CLASS = f'set "tokenizer_class": "PreTrainedTokenizerFast" in {CONFIG}'


@contextmanager
def settled(folder: Path) -> Iterator[Path]:
    """A copy of a tokenizer folder, in which tokenizer_config.json says all that transformers must know.

    Raises
    ------
    InputError: no tokenizer folder, damaged files, code of its own.
    """
    refuse_code(folder, (CONFIG,))
    tokenizer = Encoder.load(folder, "tokenizers").tokenizer
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    names, state = special_names(config), json.loads(tokenizer.to_str())
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "vocab"
        copy.mkdir()
        copy_tokenizer(folder, copy)
        if state["post_processor"] is None:
            tokenizer.post_processor = bert_template(tokenizer, names["cls"], names["sep"])
            tokenizer.save(str(copy / "tokenizer.json"))
            say(f"{folder / 'tokenizer.json'} puts no {names['cls']} and {names['sep']} around a text; the copy does")
        if missing := _missing(state, config, names):
            write_json(copy / CONFIG, config | missing, sync=False)
            said = ", ".join(f"{key} {json.dumps(value)}" for key, value in missing.items())
            say(f"{folder / CONFIG} leaves out what transformers needs; the copy says: {said}")
        yield copy


def bert_template(tokenizer: Tokenizer, cls: str, sep: str) -> processors.TemplateProcessing:
    """Return what puts BERT's special tokens around one text or two."""
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def missing_settings(tokenizer: Tokenizer, config: JsonObject) -> JsonObject:
    """Return what a tokenizer_config.json must say beside `config`, so that transformers makes this tokenizer."""
    return _missing(json.loads(tokenizer.to_str()), config, special_names(config))


def _missing(state: dict[str, Any], config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return what tokenizer_config.json leaves out and transformers would take for something else than tokenizer.json
    says."""
    wanted: dict[str, Any] = {}
    if config.get("tokenizer_class") is None:
        wanted["tokenizer_class"] = "BertTokenizer" if _is_built_by_bert(state) else "PreTrainedTokenizerFast"
    if (config | wanted)["tokenizer_class"] in BERT_CLASSES:
        normalizer = state["normalizer"] or {}
        told = {key: normalizer.get(NORMALIZER_KEYS[key], default) for key, default in BERT_DEFAULTS.items()}
        # With neither key, BERT takes accents off where it lower-cases: None and that value are the same.
        wanted |= {key: value for key, value in told.items() if key not in config and value != BERT_DEFAULTS[key]}
        wanted |= {f"{role}_token": name for role, name in names.items() if name != f"[{role.upper()}]"}
    else:
        wanted |= {f"{role}_token": name for role, name in names.items()} | {"model_input_names": INPUTS}
    return {key: value for key, value in wanted.items() if config.get(key) is None}


def _is_built_by_bert(state: dict[str, Any]) -> bool:
    """Whether BertTokenizer can build this tokenizer from a vocabulary and the settings of BERT_DEFAULTS."""
    normalizer, cutter, model = state["normalizer"] or {}, state["pre_tokenizer"] or {}, state["model"]
    return (
        (normalizer.get("type"), cutter.get("type"), model["type"])
        == ("BertNormalizer", "BertPreTokenizer", "WordPiece")
        and normalizer["clean_text"]
        and (model["continuing_subword_prefix"], model["max_input_chars_per_word"]) == ("##", 100)
    )


def check(
    folder: Path, encoder: Encoder | None = None, sentences: Iterable[str] = (), named: Path | None = None
) -> None:
    """Compare what `encoder` makes of adversarial strings and `sentences` with what transformers makes of `folder`.

    encoder: by default that of the folder
    named: what messages call the folder

    Raises
    ------
    InputError: naming a string, both ids, and what to change.
    """
    named, encoder = named or folder, encoder or Encoder.load(folder, "tokenizers")
    _check_vocab_txt(folder, named)
    try:
        theirs = opened_by_transformers(folder)
    except ValueError as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{named}: transformers cannot open this tokenizer ({why}); {PLAIN_CLASS}, or make the folder again with "
            + call("vocab")
        ) from error
    mine = json.loads(encoder.tokenizer.to_str())
    advice = f"; {advised}" if (advised := _advice(mine, json.loads(theirs.state), folder)) else ""
    _check_special_ids(theirs, encoder, named, advice)
    added = {token["content"] for state in (mine, json.loads(theirs.state)) for token in state["added_tokens"]}
    texts = [*ADVERSARIAL_STRINGS, *(f"a {content}b {content}" for content in sorted(added)), *sentences]
    reader = Tokenizer.from_str(theirs.state)
    reader.encode_special_tokens = True
    for text, ours, other in zip(texts, _ids(encoder.tokenizer, texts), _ids(reader, texts), strict=True):
        if ours != other:
            at = _first_difference(ours, other)
            raise InputError(
                f"{named}: {text[:60]!r} becomes {_part(ours, at)} in data preparation and {_part(other, at)} in "
                f"transformers ({theirs.kind}){advice or '; make the folder again with ' + call('vocab')}"
            )
    _check_entries(theirs, reader, encoder, named)
    _check_frame(theirs, encoder, named)


def _check_special_ids(theirs: Opened, encoder: Encoder, named: Path, advice: str) -> None:
    roles = {token_id: role for role, token_id in encoder.special_ids.items()}
    if twice := [role for role, token_id in encoder.special_ids.items() if roles[token_id] != role]:
        token_id = encoder.special_ids[twice[0]]
        raise InputError(
            f"{named}: {roles[token_id]} and {twice[0]} are both entry {token_id}; name two tokens in {CONFIG}"
        )
    for role, found in theirs.special_ids.items():
        if found != encoder.special_ids[role]:
            raise InputError(
                f"{named}: the {role} token is entry {encoder.special_ids[role]} in data preparation, {found} in "
                f"transformers ({theirs.kind}); write {role}_token into {CONFIG}{advice}"
            )


def _check_entries(theirs: Opened, reader: Tokenizer, encoder: Encoder, named: Path) -> None:
    if differing := _differing_entries(reader, encoder.tokenizer):
        token_id, (their_entry, entry) = differing[0]
        raise InputError(
            f"{named}: entry {token_id} is {entry!r} in tokenizer.json and {their_entry!r} in transformers "
            f"({theirs.kind}); take it out of {CONFIG}, or put it into tokenizer.json"
        )
    if theirs.size != encoder.size:
        raise InputError(
            f"{named}: tokenizer.json has {encoder.size} entries, transformers finds {theirs.size}; take the added "
            f"tokens out of {CONFIG}, or put them into tokenizer.json"
        )


def _check_frame(theirs: Opened, encoder: Encoder, named: Path) -> None:
    """What stands around texts: BERT's [CLS] a [SEP] b [SEP], in segments 0 and 1, padding at the end."""
    first, second, long = _ids(encoder.tokenizer, [ADVERSARIAL_STRINGS[0], ADVERSARIAL_STRINGS[2], LONG_TEXT])
    begin, end = [encoder.special_ids["cls"]], [encoder.special_ids["sep"]]
    framed = begin + first + end
    segments = [0] * len(framed) + [1] * (len(second) + 1)
    for what, found, wanted in (
        ("a text", theirs.one, framed),
        ("a long text", theirs.long, begin + long + end),
        ("a pair", theirs.two, framed + second + end),
    ):
        if found != wanted:
            at = _first_difference(found, wanted)
            raise InputError(
                f"{named}: {what} becomes {_part(found, at)} ({len(found)} tokens) in transformers ({theirs.kind}), "
                f"not BERT's [CLS] a [SEP] ({_part(wanted, at)}, {len(wanted)} tokens); set the post_processor of "
                "tokenizer.json to BERT's, or to null: the copy in the store then gets it"
            )
    if theirs.segments != segments:
        what = "all in segment 0" if theirs.segments and not any(theirs.segments) else "not told apart"
        raise InputError(
            f"{named}: the texts of a pair are {what} in transformers ({theirs.kind}); put "
            f'"model_input_names": {json.dumps(INPUTS)} into {CONFIG}, and segments 0 and 1 into the post_processor'
        )
    if theirs.padding_side != "right":
        raise InputError(f'{named / CONFIG}: padding_side "{theirs.padding_side}"; BERT is padded on the "right"')


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _first_difference(ids: list[int], others: list[int]) -> int:
    """Return where two lists begin to differ."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ids), len(others)))


def _part(ids: list[int], at: int) -> str:
    """Return some ids around the place `at`."""
    first = max(0, at - 1)
    inner = ", ".join(map(str, ids[first : at + 4]))
    return f"{'... ' * (first > 0)}{inner or 'nothing'}{' ...' * (len(ids) > at + 4)}"


def _advice(mine: dict[str, Any], theirs: dict[str, Any], folder: Path) -> str:
    """Return what to write into tokenizer_config.json, where transformers builds another tokenizer than tokenizer.json
    has."""
    ours, other = mine["normalizer"] or {}, theirs["normalizer"] or {}
    kinds = [[(state[part] or {}).get("type") for part in PARTS] for state in (mine, theirs)]
    if kinds[0] != kinds[1] or _frozen(mine["model"]) != _frozen(theirs["model"]):
        config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        said = config.get("tokenizer_class")
        return f"{PLAIN_CLASS} (it says {json.dumps(said)})"
    changes = []
    for key, name in NORMALIZER_KEYS.items():
        if name in ours and ours[name] != other.get(name):
            changes.append(f'"{key}": {json.dumps(ours[name])} (transformers: {json.dumps(other.get(name))})')
    if changes:
        return f"set {' and '.join(changes)} in {CONFIG}, as tokenizer.json has it, or make the folder again"
    if ours != other or mine["pre_tokenizer"] != theirs["pre_tokenizer"]:
        return PLAIN_CLASS
    return ""


def _frozen(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in ("vocab", "merges")}


def _check_vocab_txt(folder: Path, named: Path) -> None:
    """Readers that do not know tokenizer.json take vocab.txt for the vocabulary: it must be the same."""
    if not (folder / "vocab.txt").is_file():
        return
    entries = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"].get("vocab")
    if not isinstance(entries, dict):
        return
    lines = (folder / "vocab.txt").read_text("utf-8", errors="replace").removesuffix("\n").split("\n")
    listed = {line.removesuffix("\r"): token_id for token_id, line in enumerate(lines)}
    if listed != entries:
        entry, token_id = next(iter(sorted(set(entries.items()) ^ set(listed.items()), key=lambda pair: pair[1])))
        raise InputError(
            f"{named}: vocab.txt and tokenizer.json differ, first at entry {token_id} ({entry!r}); they are of two "
            "vocabularies: take both from one place, or take vocab.txt away"
        )


def same_tokenizer(model: Path, store_vocab: Path) -> None:
    """Refuse a model whose own tokenizer is not the one that a store was made with.

    Raises
    ------
    InputError: naming the first entries, or a text, that differ.
    """
    ours, theirs = Encoder.load(store_vocab, "tokenizers"), tokenizer_of(model)
    remedy = (
        f"make the store with this folder's tokenizer: {call('shard', '--vocab', model)}; or give the model rows for "
        "the store's entries, by their texts: --vocab_from match"
    )
    if differing := _differing_entries(theirs.tokenizer, ours.tokenizer):
        token_id, (other, mine) = differing[0]
        raise InputError(
            f"--init_from {model}: entry {token_id} of its vocabulary is {other!r}, of the store's {mine!r} "
            f"({len(differing):,} entries differ; the store has {ours.size:,}, the model's tokenizer {theirs.size:,}); "
            f"{remedy}"
        )
    for role in ROLES:
        if theirs.special_ids[role] != ours.special_ids[role]:
            raise InputError(
                f"--init_from {model}: its {role} token is entry {theirs.special_ids[role]}, the store's "
                f"{ours.special_ids[role]}; {remedy}"
            )
    texts = list(ADVERSARIAL_STRINGS)
    for text, read, made in zip(texts, _ids(theirs.tokenizer, texts), _ids(ours.tokenizer, texts), strict=True):
        if read != made:
            at = _first_difference(read, made)
            raise InputError(
                f"--init_from {model}: {text[:60]!r} becomes {_part(read, at)} with its tokenizer and "
                f"{_part(made, at)} with the store's (case, accents or cuts differ); {remedy}"
            )


def is_extension(theirs: Encoder, ours: Encoder) -> bool:
    """Return whether `ours` is a tokenizer with further entries behind those of `theirs`, and nothing else."""
    if ours.size <= theirs.size or ours.special_ids != theirs.special_ids:
        return False
    states = [json.loads(encoder.tokenizer.to_str()) for encoder in (theirs, ours)]
    if any(states[0][part] != states[1][part] for part in ("normalizer", "pre_tokenizer")):
        return False
    if _frozen(states[0]["model"]) != _frozen(states[1]["model"]):
        return False
    return all(token_id >= theirs.size for token_id, _ in _differing_entries(theirs.tokenizer, ours.tokenizer))


def tokenizer_of(model: Path, option: str = "--init_from") -> Encoder:
    """Return the tokenizer of a model's folder; of an old one, which has vocab.txt alone, as transformers builds it.

    option: by which the folder was given, for messages

    Raises
    ------
    InputError: no tokenizer, a damaged one, code of its own.
    """
    if (model / "tokenizer.json").is_file():
        with settled(model) as folder:
            return Encoder.load(folder, "tokenizers")
    if not (model / "vocab.txt").is_file():
        raise InputError(
            f"{option} {model} has no tokenizer.json and no vocab.txt: which ids are its model's cannot be told; put "
            "the files of its tokenizer there"
        )
    refuse_code(model, (CONFIG,))
    with tempfile.TemporaryDirectory() as scratch:
        copy_tokenizer(model, Path(scratch))
        write_json(Path(scratch) / "config.json", {"model_type": "bert"}, sync=False)
        try:
            opened = open_with_transformers(Path(scratch))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise InputError(
                f"{model}: the tokenizer cannot be loaded: {' '.join(str(error).split())[:200]}"
            ) from error
    tokenizer = Tokenizer.from_str(opened.state)
    tokenizer.encode_special_tokens = True
    ids = {role: -1 if token_id is None else token_id for role, token_id in opened.special_ids.items()}
    return Encoder(tokenizer, ids, "tokenizers")


def _differing_entries(theirs: Tokenizer, ours: Tokenizer) -> list[tuple[int, tuple[str | None, str | None]]]:
    """Return entries, by id, that are not the same in two vocabularies.

    Of two that are spelled alike the last one counts; data_prep/vocab.py gives the earlier one a name of its own.
    """
    size = max(theirs.get_vocab_size(), ours.get_vocab_size())
    pairs = ((token_id, (theirs.id_to_token(token_id), ours.id_to_token(token_id))) for token_id in range(size))
    return [
        (token_id, pair)
        for token_id, pair in pairs
        if pair[0] != pair[1]
        and not (pair[1] == f"[repeated{token_id}]" and (pair[0] is None or theirs.token_to_id(pair[0]) != token_id))
    ]
