"""Open a Hugging Face folder with transformers alone: nothing of the trainer, nothing fetched, unpickled or run.

transformers reports every unused and every newly initialised weight in a table meant for people, and goes on. Here the
table is silenced and its content checked instead: an encoder that would silently start at random, or weights that the
model has no place for, are an InputError; only heads of other tasks are left aside, and said.
"""

import codecs
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from data_prep.cli import InputError, one_line, say
from data_prep.files import write_json
from data_prep.json_types import JsonObject
from data_prep.untrusted import read_object, weight_files
from pretrain.hf_files import OFFSET, TOKENIZER, need_tokenizer, read_config

TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Heads of transformers' encoders: what a folder made for one task holds and another task does not use.
HEADS = (
    *("cls.predictions", "cls.seq_relationship", "classifier", "pre_classifier", "qa_outputs", "score", "lm_head"),
    *("vocab_transform", "vocab_layer_norm", "vocab_projector", "predictions", "sop_classifier", "lm_predictions"),
    *("discriminator_predictions", "generator_predictions", "generator_lm_head", "pooler"),
)
LEAST_LENGTH = 4  # tokens: two words between special tokens
BUFFERS = ("position_ids", "token_type_ids")  # of older versions: 0, 1, 2, ...
PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # no quantised ones
OLD_ENDS = {"gamma": "weight", "beta": "bias"}  # of LayerNorms, of TensorFlow's time
# Sizes that config.json and the weights of a BERT must agree on: rows of an embedding.
ROWS = {
    "embeddings.word_embeddings.weight": "vocab_size",
    "embeddings.position_embeddings.weight": "max_position_embeddings",
    "embeddings.token_type_embeddings.weight": "type_vocab_size",
}


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """Hush warnings and bars of libraries, and keep stdout free of them; what matters in them is checked here.

    DeepSpeed's logger writes there, and accelerate imports DeepSpeed below Trainer wherever it is installed.
    """
    disabled, had_bars = logging.root.manager.disable, transformers.logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(disabled)
        if had_bars:
            transformers.logging.enable_progress_bar()


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the model's configuration.

    Raises
    ------
    InputError: `folder` is missing, is no Hugging Face folder, or its config.json is damaged.
    """
    content, path = read_config(folder), folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{path} cannot be read as a model configuration: {one_line(error)}") from error
    check_architecture(path, content)
    # What a model returns is the caller's business, not the folder's.
    config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
    config.chunk_size_feed_forward = 0  # memory saved at the price of texts of odd lengths; the numbers are the same
    return config


def check_architecture(path: Path, content: JsonObject) -> None:
    """Refuse what transformers' BERT would take for a plain encoder, or run as none.

    Raises
    ------
    InputError: a decoder, positions that transformers no longer knows, an activation that it does not know.
    """
    if (activation := content.get("hidden_act", "gelu")) not in [*ACT2FN]:
        raise InputError(f"{path}: hidden_act {activation!r} is none that transformers knows, such as 'gelu'")
    for key in ("is_decoder", "add_cross_attention"):
        if content.get(key):
            raise InputError(
                f"{path}: {key} is {content[key]!r}: a decoder, which sees no words ahead; give an encoder"
            )
    if content.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"{path}: position_embedding_type {content['position_embedding_type']!r}: relative positions are no longer "
            "in transformers, which would leave them out; give a model with absolute ones"
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer, checked to fit the model beside it.

    Raises
    ------
    InputError: tokenizer files are missing or damaged, or it has more entries than the model has embeddings.
    """
    need_tokenizer(folder)
    return tokenizer_for(folder, load_config(folder))


def tokenizer_for(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, checked to fit a model of `config`.

    Raises
    ------
    InputError: as load_tokenizer().
    """
    tokenizer = open_tokenizer(folder, config.vocab_size)
    if getattr(config, "type_vocab_size", 2) < 2:  # the model knows no second segment
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def open_tokenizer(folder: Path, entries: int) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder whose model has embeddings for this many entries.

    Raises
    ------
    InputError: as load_tokenizer().
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        raise InputError(f"{folder}: the tokenizer cannot be loaded: {one_line(error)}") from error
    _check_vocabulary(folder, tokenizer)
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= LEAST_LENGTH:
        raise InputError(
            f"{folder / TOKENIZER_SETTINGS[0]}: model_max_length {length!r} must be a number of tokens from "
            f"{LEAST_LENGTH} on; mend it, or take it out"
        )
    if tokenizer.padding_side != "right":  # positions of a text would depend on its neighbours
        _say_once(f"{folder}: padding_side {tokenizer.padding_side!r} is taken as 'right', where BERT is padded")
        tokenizer.padding_side = "right"
    if len(tokenizer) > entries:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} entries but the model only {entries} embeddings; "
            "they are not of one model: export the folder again"
        )
    return tokenizer


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a vocab.txt, alone, that lacks special tokens: transformers would give them numbers behind its entries.
    Say where the capitals of a cased one can never be met.

    Raises
    ------
    InputError: naming the tokens.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = folder / "vocab.txt"
    if backend is None or not vocabulary.is_file():
        return
    entries = backend.get_vocab(with_added_tokens=False)
    special = set(tokenizer.all_special_tokens)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "added_tokens.json")):
        with open(vocabulary, "rb") as file:
            mark = "; it begins with a byte order mark, which must go" if file.read(3) == codecs.BOM_UTF8 else ""
        if missing := sorted(token for token in special if token not in entries):
            raise InputError(f"{vocabulary} lacks {', '.join(missing)}, so that nobody knows their numbers{mark}")
    capitals, total = sum(entry != entry.lower() for entry in entries if entry not in special), len(entries)
    if capitals > total // 100 and backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a":
        _say_once(
            f"warning: {folder}: {capitals:,} of {total:,} entries have capitals, which its tokenizer takes away; "
            'if the model was trained with them, write "do_lower_case": false into tokenizer_config.json'
        )


def copy_tokenizer(source: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model made from `source` the very files of its tokenizer: transformers would write others, without
    vocab.txt. `tokenizer` is what `load_tokenizer` made of them."""
    for name in {*TOKENIZER, *TOKENIZER_SETTINGS, *tokenizer.vocab_files_names.values()}:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    path = folder / TOKENIZER_SETTINGS[0]
    settings = read_object(path) if path.is_file() else {}
    changed: JsonObject = {}  # so that other readers know it, too
    if "token_type_ids" not in tokenizer.model_input_names:
        changed["model_input_names"] = tokenizer.model_input_names
    if settings.get("model_max_length", tokenizer.model_max_length) != tokenizer.model_max_length:
        changed["model_max_length"] = tokenizer.model_max_length
    if settings.get("padding_side", "right") != tokenizer.padding_side:
        changed["padding_side"] = tokenizer.padding_side
    if changed:
        write_json(path, settings | changed)


def check_frame(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, pairs: bool) -> None:
    """Refuse to fine-tune a BERT on texts without its special tokens, or on `pairs` that it cannot tell apart.

    Raises
    ------
    InputError: as said, with what to change in the tokenizer's files.
    """
    if config.model_type != "bert":
        return
    one = tokenizer("a")["input_ids"]
    if tokenizer.cls_token_id is None or one[:1] != [tokenizer.cls_token_id] or one[-1:] != [tokenizer.sep_token_id]:
        raise InputError(
            f"{folder}: its tokenizer puts no [CLS] and [SEP] around a text; set the post_processor of tokenizer.json, "
            'or "tokenizer_class": "BertTokenizer" in tokenizer_config.json'
        )
    if pairs and config.type_vocab_size > 1 and 1 not in tokenizer("a", "b").get("token_type_ids", []):
        raise InputError(
            f"{folder}: its tokenizer puts both texts of a pair into segment 0; put "
            '"model_input_names": ["input_ids", "token_type_ids", "attention_mask"] into tokenizer_config.json'
        )


def settle_padding(folder: Path, config: PreTrainedConfig, pad_id: int | None) -> None:
    """Set a BERT's padding to the tokenizer's: the entry that config.json names would never be learnt."""
    if config.model_type == "bert" and None not in (pad_id, config.pad_token_id) and config.pad_token_id != pad_id:
        _say_once(
            f"{folder}: config.json says pad_token_id {config.pad_token_id}, its tokenizer pads with entry {pad_id}, "
            "which is taken"
        )
        config.pad_token_id = pad_id


class Loaded(NamedTuple):
    """A model in float32, and by name what of it its folder did not say."""

    model: Any
    missing: set[str]  # weights that the folder lacks, now random
    mismatched: set[str]  # weights of another shape there, now random
    unexpected: set[str]  # weights there that the model has no place for


def open_model(auto_class: Any, folder: Path, config: PreTrainedConfig) -> Loaded:
    """Return the model of a folder, built as `config` says; the caller decides what may be missing or left over.

    Raises
    ------
    InputError: no safetensors file, a damaged one, shapes that contradict `config`, numbers that are none.
    """
    check_shapes(folder, config, shapes_in(folder))
    try:
        with silenced_libraries():  # what the report says is checked by the caller
            model, report = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # else a folder saved in 16 bit would be trained in 16 bit
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by name; a head of another number of labels starts afresh
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"{folder}: the weights cannot be loaded: {one_line(error)}") from error
    check_finite(folder, model.named_parameters())
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    return Loaded(model, set(report["missing_keys"]), mismatched, set(report["unexpected_keys"]))


def load_model(
    auto_class: Any, folder: Path, config: PreTrainedConfig | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model in float32, and the names of its weights that the folder lacks, which are now random.

    auto_class: one of transformers' AutoModelFor... classes
    config: in place of the folder's own, such as one with other labels

    Raises
    ------
    InputError: as open_model(); weights that the model has no place for, or weights of the encoder below the task head
        are missing (the pooler excepted: a folder pretrained without sentence pairs has none).
    """
    model, missing, mismatched, unexpected = open_model(auto_class, folder, config or load_config(folder))
    fresh = sorted(missing | mismatched)
    body = f"{model.base_model_prefix}."
    lost = [name for name in fresh if name.startswith(body) and not name.startswith(f"{body}pooler.")]
    if lost:
        raise InputError(
            f"{folder}: {len(lost)} weights of the encoder are missing or of another shape, such as {lost[0]}; "
            "the folder is incomplete, or its names or config.json belong to another model: export it again"
        )
    report_unused(folder, unexpected, body)
    return model, fresh


def weight_readers(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what reads each weight of a folder, as it is stored, into memory of its own: a file that is mapped would
    stay there as a second copy of the model.

    Raises
    ------
    InputError: there are none, a file is damaged, or holds numbers of another type than weights have.
    """
    shapes_in(folder)
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            readers |= {name: partial(_read_weight, path, name) for name in file.keys()}  # noqa: SIM118
    return readers


def _read_weight(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt", backend="pread") as file:
        return file.get_tensor(name)


def shapes_in(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of a folder's weights by name, from the headers of its .safetensors files.

    Raises
    ------
    InputError: there is none, one is damaged, or holds numbers of another type than weights have.
    """
    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes |= {name: list(found.get_shape()) for name, found in slices.items()}
                types = {name: PLAIN.get(found.get_dtype(), found.get_dtype()) for name, found in slices.items()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: the weights cannot be loaded: {one_line(error)}") from error
        check_types(path, types)
    return shapes


def check_types(origin: Path, types: Mapping[str, object]) -> None:
    """Refuse weights that are whole numbers or of 8 bits: as floating-point numbers they would mean something else.

    Raises
    ------
    InputError: naming a tensor and its type.
    """
    for name, dtype in types.items():
        if dtype not in PLAIN.values() and name.rpartition(".")[2] not in BUFFERS:
            raise InputError(
                f"{origin}: {name} is of type {dtype}; weights must be floating-point numbers of 16, 32 or 64 bits: "
                "save the model without quantisation"
            )


def check_finite(origin: Path, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse a model in which a training that diverged, or 16 bits, left nan or infinity: it has no answers.

    Raises
    ------
    InputError: naming a tensor and how many of its numbers.
    """
    for name, weight in weights:
        if wrong := weight.numel() - int(weight.isfinite().sum()):
            raise InputError(
                f"{origin}: {wrong:,} of the {weight.numel():,} numbers of {name} are nan or infinite; take an earlier "
                "checkpoint, or the folder from its source again"
            )


def check_logits(logits: torch.Tensor, text: str) -> None:
    """Refuse answers that are no numbers.

    Raises
    ------
    InputError: as said.
    """
    if not logits.isfinite().all():
        raise InputError(
            f"the model answers with nan or infinity: its weights are too large; the text was {text[:60]!r}"
        )


def check_shapes(folder: Path, config: PreTrainedConfig, shapes: dict[str, list[int]]) -> None:
    """Compare a BERT's configuration with its weights before memory is spent on either.

    Raises
    ------
    InputError: naming the key and both numbers; two tensors for one parameter, of which transformers would take either.
    """
    if config.model_type != "bert":
        return
    known: dict[str, str] = {}
    for name in shapes:
        stem, _, end = name.removeprefix("bert.").rpartition(".")
        other = known.setdefault(f"{stem}.{OLD_ENDS.get(end, end)}", name)
        if other != name:
            raise InputError(f"{folder}: {other} and {name} are one parameter; which one is meant cannot be told")
    for name, shape in shapes.items():
        for ending, key in ROWS.items():
            wanted = [getattr(config, key), config.hidden_size]
            if f".{name}".endswith(f".{ending}") and shape != wanted:
                raise InputError(
                    f"{folder}: config.json says {key} {wanted[0]} and hidden_size {wanted[1]}, but {name} is {shape}; "
                    "weights and config.json are not of one model: take both from its source again"
                )
    layers = {int(match[1]) for name in shapes if (match := re.search(r"(?:^|\.)encoder\.layer\.(\d+)\.", name))}
    if layers and max(layers) + 1 != config.num_hidden_layers:
        raise InputError(
            f"{folder}: config.json says num_hidden_layers {config.num_hidden_layers}, but the weights have "
            f"{max(layers) + 1} layers; take both from their source again"
        )


def report_unused(folder: Path, unexpected: set[str], body: str, heads: tuple[str, ...] = HEADS) -> None:
    """Say which heads of a folder are left aside.

    unexpected: names of weights that the model has no place for
    body: the prefix of the encoder's names

    Raises
    ------
    InputError: weights that are of no head: the model would be another one without them.
    """
    names = {name: name.removeprefix(body) for name in unexpected if name.rpartition(".")[2] not in BUFFERS}
    used = {name: next((head for head in heads if inner.startswith(f"{head}.")), None) for name, inner in names.items()}
    if foreign := sorted(name for name, head in used.items() if head is None):
        raise InputError(
            f"{folder}: {len(foreign)} weights have no place in the model, such as {foreign[0]}: without them it would "
            "be another model; only plain encoders are read (no relative positions, cross-attention, adapters)"
        )
    if left := sorted({head for head in used.values() if head is not None}):
        _say_once(f"{folder}: not used: {', '.join(left)} (heads of other tasks)")


@cache
def _say_once(message: str) -> None:
    say(message)  # a folder is loaded once for each seed


def positions(config: PreTrainedConfig) -> int:
    """Return the longest input in tokens, special tokens included."""
    unused = config.pad_token_id + 1 if config.model_type in OFFSET else 0
    return int(config.max_position_embeddings) - unused


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors.

    Raises
    ------
    OSError: from the disk; safetensors has an error of its own for a full one.
    """
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from error
