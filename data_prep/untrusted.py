"""Hugging Face folders of others: what stands in them is read, never run, and numbers are numbers.

    content = read_object(folder / "config.json")
    refuse_code(folder)                     before transformers opens it
    check_model_config(path, content)       before a model is made of it
    weight_files(folder)                    the .safetensors of a folder, and nothing that is unpickled

transformers asks on standard input whether to run a folder's own code, and reads whatever file an index names. Neither
question comes up where these have looked first.
"""

import json
import math
from pathlib import Path
from typing import Any

from data_prep.calls import call
from data_prep.cli import InputError
from data_prep.json_types import JsonObject

CONFIGS = ("config.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
# Keys of config.json that lead to code, to other files or to weights that are not numbers of a plain model.
ELSEWHERE = {
    "auto_map": "names code of its own, which is never run; give a model of transformers' own classes",
    "custom_pipelines": "names code of its own, which is never run; take the key out",
    "transformers_weights": "names another file of weights; take the key out, the weights are model.safetensors",
    "quantization_config": "says that the weights are quantised; give a folder with plain weights",
}
# Each number of a BERT's configuration: the least and the largest value that make sense.
COUNTS = {
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 16),
    "num_hidden_layers": (1, 1 << 10),
    "num_attention_heads": (1, 1 << 12),
    "intermediate_size": (1, 1 << 20),
    "max_position_embeddings": (1, 1 << 20),
    "type_vocab_size": (1, 1 << 10),
    "num_labels": (1, 1 << 20),  # transformers makes a name for each
}
MAX_PARAMETERS = 1 << 36  # of a model; beyond it a number is wrong, and memory would end before a message comes
FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
POSITIVE = ("layer_norm_eps", "initializer_range")


def read_object(path: Path) -> JsonObject:
    """Return a JSON file that holds one object.

    Raises
    ------
    InputError: it cannot be read, is no JSON, or holds something else.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object; take it from its source again")
    return content


def read_objects(path: Path) -> list[JsonObject]:
    """Return a JSON file that holds a list of objects.

    Raises
    ------
    InputError: as read_object().
    """
    content = _read_json(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise InputError(f"{path} holds no JSON list of objects; take it from its source again")
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error) or "nested too deeply"
        raise InputError(f"{path} cannot be read as JSON: {what}; take the file from its source again") from error


def refuse_code(folder: Path, configs: tuple[str, ...] = CONFIGS) -> None:
    """Refuse a folder that wants code of its own to be run, or another folder's weights.

    Raises
    ------
    InputError: as said; naming file, key and value.
    """
    for name in configs:
        if not (folder / name).is_file():
            continue
        content = read_object(folder / name)
        # Both halves of an encoder-decoder have a configuration within that of the whole.
        for part in (content, *(content.get(half) for half in ("encoder", "decoder"))):
            if isinstance(part, dict):
                _refuse_elsewhere(folder / name, part)
    if "config.json" in configs and (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter (adapter_config.json) for weights that lie elsewhere; merge it into its model "
            "and save that"
        )


def _refuse_elsewhere(path: Path, content: JsonObject) -> None:
    for key, why in ELSEWHERE.items():
        if content.get(key):
            raise InputError(f"{path}: {key} {_shown(content[key])} {why}")
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if content.get(key) not in (None, "eager", "sdpa"):
            raise InputError(f"{path}: {key} {_shown(content[key])} names code to be fetched, or not here; take it out")


def weight_files(folder: Path) -> list[Path]:
    """Return the .safetensors files that hold a folder's weights; an index may name only such, and only in the folder.

    Raises
    ------
    InputError: there is none, one is missing, or the index names something else.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        raise InputError(
            f"{folder} has no weights (model.safetensors or {INDEX}); pickled weights are not read: convert them "
            f"first, where there are any: {call('export', folder, 'OUT')}"
        )
    entries = read_object(folder / INDEX).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{folder / INDEX} has no weight_map; take the file from its source again")
    for name in entries.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise InputError(
                f"{folder / INDEX} names {_shown(name)}: only .safetensors files beside it are read, and nothing is "
                "unpickled; convert the weights first"
            )
    files = [folder / name for name in sorted(set(entries.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{folder} lacks {missing[0]}, which {INDEX} names; copy the whole folder again")
    return files


def check_model_config(path: Path, content: JsonObject) -> None:
    """Refuse numbers from which no model can be made.

    Raises
    ------
    InputError: naming file, key, value and range.
    """
    for key, (least, most) in COUNTS.items():
        if key in content and not (_is_count(content[key]) and least <= content[key] <= most):
            raise InputError(f"{path}: {key} {_shown(content[key])} is not a whole number from {least} to {most:,}")
    for key in FRACTIONS:
        if content.get(key) is not None and not (_is_number(content[key]) and 0 <= content[key] < 1):
            raise InputError(f"{path}: {key} {_shown(content[key])} is not a number from 0 to below 1")
    for key in POSITIVE:
        if key in content and not (_is_number(content[key]) and 0 < content[key] <= 1):
            raise InputError(f"{path}: {key} {_shown(content[key])} is not a number above 0 and at most 1")
    sizes = {key: content.get(key, 1) for key in COUNTS}
    padding = content.get("pad_token_id")
    if padding is not None and not (_is_count(padding) and 0 <= padding < content.get("vocab_size", padding + 1)):
        raise InputError(f"{path}: pad_token_id {_shown(padding)} is not an entry of the vocabulary, nor null")
    if sizes["hidden_size"] % sizes["num_attention_heads"] and "embedding_size" not in content:
        raise InputError(
            f"{path}: hidden_size {sizes['hidden_size']} is not a multiple of num_attention_heads "
            f"{sizes['num_attention_heads']}"
        )
    hidden = sizes["hidden_size"]
    layers = sizes["num_hidden_layers"] * hidden * (4 * hidden + 2 * sizes["intermediate_size"])
    if (total := layers + (sizes["vocab_size"] + sizes["max_position_embeddings"]) * hidden) > MAX_PARAMETERS:
        raise InputError(f"{path}: these sizes make a model of {total:,} parameters; one of the numbers is wrong")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)[:80]
