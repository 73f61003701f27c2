"""Open a Hugging Face folder with transformers alone: nothing of the trainer, nothing fetched, nothing unpickled.

transformers reports every unused and every newly initialised weight in a table meant for people, and goes on. Here the
table is silenced and its content checked instead: an encoder that would silently start at random is an InputError.
"""

import os

# Before huggingface_hub is imported, which reads it once: a folder on this disk must never lead to the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_prep.cli import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "vocab.txt")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and bars of libraries, and nothing of theirs on stdout; what matters in them is checked here.

    DeepSpeed's logger writes there, and accelerate imports DeepSpeed below Trainer wherever it is installed.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(disabled)
        transformers.logging.enable_progress_bar()


def load_config(folder: Path) -> PreTrainedConfig:
    """The model's configuration.

    Raises
    ------
    InputError: `folder` is missing, is no Hugging Face folder, or its config.json is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    _need(folder, "model", ("config.json",))
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}/config.json cannot be read as a model configuration: {_line(error)}") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, checked to fit the model beside it.

    Raises
    ------
    InputError: tokenizer files are missing or damaged, or it has more entries than the model has embeddings.
    """
    # Without these files AutoTokenizer would make an empty vocabulary without a word.
    _need(folder, "tokenizer", TOKENIZER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        raise InputError(f"{folder}: the tokenizer cannot be loaded: {_line(error)}") from error
    entries = load_config(folder).vocab_size
    if len(tokenizer) > entries:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} entries but the model only {entries} embeddings; "
            "they are not of one model: export the folder again"
        )
    return tokenizer


def load_model(
    auto_class: Any, folder: Path, config: PreTrainedConfig | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """The model in float32, and the names of its weights that the folder lacks, which are now random.

    auto_class: one of transformers' AutoModelFor... classes
    config: in place of the folder's own, such as one with other labels

    Raises
    ------
    InputError: no safetensors file, a damaged one, or weights of the encoder below the task head are missing
        (the pooler excepted: a folder pretrained without sentence pairs has none).
    """
    _need(folder, "weights", WEIGHTS)
    try:
        model, info = auto_class.from_pretrained(
            folder,
            dtype=torch.float32,  # else a folder saved in 16 bit would be trained in 16 bit
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head of another number of labels starts afresh
            config=config or load_config(folder),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: the weights cannot be loaded: {_line(error)}") from error
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    lost = [name for name in fresh if name.startswith(body) and not name.startswith(f"{body}pooler.")]
    if lost:
        raise InputError(
            f"{folder}: {len(lost)} weights of the encoder are missing or of another shape, such as {lost[0]}; "
            "the folder is incomplete, or its names or config.json belong to another model: export it again"
        )
    return model, fresh


def positions(config: PreTrainedConfig) -> int:
    """The longest input in tokens, special tokens included."""
    return int(config.max_position_embeddings)


def _need(folder: Path, what: str, names: tuple[str, ...]) -> None:
    if not any((folder / name).is_file() for name in names):
        raise InputError(
            f"{folder} has no {what} ({' or '.join(names)}): it is not a whole Hugging Face folder; "
            "make one with: python -m pretrain.export RUN OUT"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
