"""What a Hugging Face folder must hold before transformers opens it: looked at without transformers or torch, at once.

content = read_config(folder)          its config.json, refused where no model can be made of it
need_tokenizer(folder)
forbid_network()                       before transformers is imported
positions_in(content)                  the longest input, where config.json says so
"""

import os
from pathlib import Path
from typing import Literal

from data_prep.calls import call
from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.untrusted import check_model_config, read_object, refuse_code, weight_files

Kind = Literal["fill", "labels", "tags", "answers", "choice", "generated"]  # what a folder answers

TOKENIZER = ("tokenizer.json", "vocab.txt")
# Models whose positions are counted from behind the number of the padding.
OFFSET = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "camembert",
    "mpnet",
    "longformer",
    "xmod",
)


def forbid_network() -> None:
    """Keep the libraries of this process, and what it starts, from the network: a folder on this disk must never lead
    there. Before transformers is imported, which looks once."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def read_config(folder: Path) -> JsonObject:
    """Return the content of config.json.

    Raises
    ------
    InputError: `folder` is missing, is no Hugging Face folder, wants code of its own to be run, or its config.json is
        damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: " + ("a file, not a Hugging Face folder" if folder.exists() else "no such folder"))
    _refuse_ours(folder)
    _need(folder, "model", ("config.json",))
    path = folder / "config.json"
    content = read_object(path)
    refuse_code(folder)
    check_model_config(path, content)
    return content


def read_init(folder: Path) -> JsonObject:
    """Return the content of the config.json of a BERT that a run may begin with; its weights are there.

    Raises
    ------
    InputError: as read_config(), another architecture, or weights that would have to be unpickled.
    """
    _refuse_ours(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"--init_from {folder} is not a Hugging Face folder (no config.json)")
    if (kind := read_object(folder / "config.json").get("model_type", "bert")) != "bert":
        refuse_code(folder)
        raise InputError(f"--init_from {folder} is a {kind!r} model; only post-LayerNorm BERT is supported")
    content = read_config(folder)
    weight_files(folder)
    return content


def need_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer: AutoTokenizer would make an empty vocabulary without a word."""
    _need(folder, "tokenizer", TOKENIZER)


def positions_in(content: JsonObject) -> int | None:
    """Return the longest input in tokens, special tokens included; None where config.json leaves it to the library."""
    longest, padding = content.get("max_position_embeddings"), content.get("pad_token_id")
    if longest is None or content.get("model_type") not in OFFSET:
        return longest
    return None if padding is None else longest - padding - 1


def _refuse_ours(folder: Path) -> None:
    """Refuse what this project has made on the way to a Hugging Face folder, with the way that is left."""
    is_checkpoint = folder.parent.name == "checkpoints"
    if is_checkpoint or (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        what = "a checkpoint of a run" if is_checkpoint else "a pretraining run"
        raise InputError(
            f"{folder} is {what}, not a Hugging Face folder; make one of it, and give that: "
            f"{call('export', folder, 'OUT')}"
        )
    if (folder / "make.json").is_file():
        tuned = folder / "finetuned"
        others = f", or {tuned}, which is fine-tuned" if (tuned / "config.json").is_file() else ""
        raise InputError(f"{folder} is what make has made; give its Hugging Face folder: {folder / 'hf'}{others}")
    refuse_store(folder)


def refuse_store(folder: Path) -> None:
    """Refuse a token store in place of a model.

    Raises
    ------
    InputError: as said.
    """
    if (folder / "manifest.json").is_file() and (folder / "vocab").is_dir():
        train = call("train", "--data", folder, "--out", "RUN")
        raise InputError(f"{folder} is a token store, not a model; train one on it first: {train} --model bert-small")


def _need(folder: Path, what: str, names: tuple[str, ...]) -> None:
    if not any((folder / name).is_file() for name in names):
        raise InputError(
            f"{folder} has no {what} ({' or '.join(names)}): it is not a whole Hugging Face folder; "
            f"make one with: {call('export', 'RUN', 'OUT')}"
        )
