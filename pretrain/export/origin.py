"""What a path to convert is, told from its names alone: without torch, so that the wrong path is refused at once.

check_origin(path, config, vocab) -> "checkpoint" | "run" | "deepspeed" | "hf"
"""

import re
from pathlib import Path
from typing import Literal

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.untrusted import check_model_config, read_object, refuse_code, weight_files
from pretrain.checkpoints.format import MANIFEST, Manifest, list_checkpoints
from pretrain.hf_files import refuse_store

Head = Literal[
    "pretraining",
    "mlm",
    "base",
    "nsp",
    "causal",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "encoder-decoder",
]
Dtype = Literal["fp32", "bf16", "fp16"]
Format = Literal["hf", "sentence-transformers", "onnx"]
Weights = Literal["raw", "averaged"]
Origin = Literal["checkpoint", "run", "deepspeed", "hf"]
PROVENANCE = "provenance.json"  # of an export
MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")  # of DeepSpeed
HF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the last to be refused
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")  # no default of BERT's will do


def check_origin(path: Path, config: Path | None, vocab: Path | None, weights: Weights = "raw") -> Origin:
    """Return what `path` holds, to judge by its names; "averaged" are weights that only a checkpoint has.

    Raises
    ------
    InputError: nothing that can be converted, or without what says what it means.
    """
    origin = _origin(path, config, vocab)
    if weights == "averaged" and origin in ("deepspeed", "hf"):
        raise InputError(
            f"{path} is no run of zerobert, and only such a run keeps averaged weights; leave out --weights"
        )
    return origin


def _origin(path: Path, config: Path | None, vocab: Path | None) -> Origin:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; give a run folder, a checkpoint folder or a Hugging Face folder")
    refuse_store(path)
    if (path / MANIFEST).is_file() or list_checkpoints(path) or (path / "checkpoints/latest").is_file():
        if config is not None or vocab is not None:
            raise InputError(f"{path} says what it is itself; leave out --config and --vocab")
        if not (path / MANIFEST).is_file():
            return "run"
        Manifest.read(path)
        return "checkpoint"
    if (path / "metrics.jsonl").is_file() or (path / "checkpoints").is_dir():
        raise InputError(f"{path} has no checkpoint yet: {_first_checkpoint(path)}")
    if find_tag(path):
        return "deepspeed"
    if (path / "config.json").is_file() and any((path / name).is_file() for name in HF_WEIGHTS):
        refuse_code(path)
        weight_files(path)
        read_meaning(config or path)
        need_vocab(path, vocab or path)
        return "hf"
    raise InputError(
        f"{path} is neither a run folder with checkpoints nor a checkpoint, of ours or of DeepSpeed, "
        "nor a Hugging Face folder"
    )


def _first_checkpoint(run: Path) -> str:
    """Return when a run saves, and what to do until then."""
    try:
        settings = read_object(run / "config.json")["train"]
        every, minutes = int(settings["save_every"]), float(settings["save_minutes"])
    except (InputError, KeyError, TypeError, ValueError):
        every, minutes = 0, 0.0
    times = [f"at step {every:,}"] * (every > 0) + [f"after {minutes:g} minutes"] * (minutes > 0)
    when = f"{' or '.join(times)}, whichever comes first" if len(times) == 2 else "".join(times) or "at the end"
    return (
        f"a run that goes on saves its first {when}, and where it is stopped (Ctrl-C); "
        "one that has ended goes on with the command that began it"
    )


def need_vocab(origin: Path, vocab: Path) -> None:
    """Refuse a folder that is to hold the tokenizer of `origin` and does not."""
    if not (vocab / "tokenizer.json").is_file():
        raise InputError(f"{vocab} has no tokenizer.json; give the folder of {origin}'s tokenizer with --vocab")


def read_meaning(path: Path) -> tuple[Path, JsonObject]:
    """Return the configuration of a BERT, from a Hugging Face folder or a file such as config.json, and that file.

    Raises
    ------
    InputError: missing, damaged, or of another architecture.
    """
    path = path / "config.json" if path.is_dir() else path
    content = read_object(path)
    if (kind := content.get("model_type", "bert")) != "bert":
        raise InputError(f"{path} is of a {kind!r} model; only post-LayerNorm BERT encoders are converted")
    if missing := [key for key in NEEDED if key not in content]:
        raise InputError(f"{path} lacks {', '.join(missing)}; only post-LayerNorm BERT encoders are converted")
    check_model_config(path, content)
    return path, content


def find_tag(folder: Path) -> Path | None:
    """Return the tag folder that `folder` is or whose name its `latest` holds; None where it is no such checkpoint.

    Raises
    ------
    InputError: `latest` names a folder that is not there.
    """
    if any(MODEL_FILE.fullmatch(path.name) for path in folder.iterdir()):
        return folder
    if not (folder / "latest").is_file():
        return None
    tag = folder / (folder / "latest").read_text(errors="replace").strip()
    if not tag.is_dir() or tag == folder:
        raise InputError(f"{folder}/latest names {tag.name!r}, which is not there; give one of its tag folders instead")
    return tag
