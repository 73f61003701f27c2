"""What a path to convert is, told from its names alone: without torch, so that the wrong path is refused at once.

check_origin(path, config, vocab) -> "checkpoint" | "run" | "deepspeed" | "hf" | "pickle" | "tensorflow"
"""

import re
import zipfile
from glob import escape as glob_escape
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.untrusted import check_model_config, read_object, refuse_code, weight_files
from pretrain.checkpoints.format import MANIFEST, Manifest, list_checkpoints
from pretrain.hf_files import TOKENIZER, refuse_store

Head = Literal[
    "pretraining",
    "mlm",
    "base",
    "nsp",
    "causal",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "encoder-decoder",
]
Dtype = Literal["fp32", "bf16", "fp16"]
Format = Literal["hf", "sentence-transformers", "onnx"]
Weights = Literal["raw", "averaged"]
Origin = Literal["checkpoint", "run", "deepspeed", "hf", "pickle", "tensorflow"]
PROVENANCE = "provenance.json"  # of an export
MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")  # of DeepSpeed
HF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
BIN_WEIGHTS, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"  # of transformers before safetensors
BIN_ENDINGS = (".bin", ".pt", ".pth")
# How torch before 1.6 begins a file: a pickle of its magic number.
OLD_TORCH = re.compile(rb"\x80[\x02-\x05]\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.")
CONFIG_NAMES = ("config.json", "bert_config.json")  # of transformers, of Google and NVIDIA
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")  # no default of BERT's will do


def check_origin(path: Path, config: Path | None, vocab: Path | None, weights: Weights = "raw") -> Origin:
    """Return what `path` holds, to judge by its names; "averaged" are weights that only a checkpoint has.

    Raises
    ------
    InputError: nothing that can be converted, or without what says what it means.
    """
    origin = _origin(path, config, vocab)
    if weights == "averaged" and origin not in ("run", "checkpoint"):
        raise InputError(
            f"{path} is no run of zerobert, and only such a run keeps averaged weights; leave out --weights"
        )
    return origin


def _origin(path: Path, config: Path | None, vocab: Path | None) -> Origin:
    if (found := tensorflow_prefix(path)) is not None:
        if find_spec("google_crc32c") is None:
            raise InputError(
                f"{path} is a checkpoint of TensorFlow, and to read it needs the package google-crc32c: "
                "pip install 'zerobert[tensorflow]'"
            )
        _check_meaning(path, config or found.parent, vocab or beside(config, found.parent))
        return "tensorflow"
    if path.is_file() and path.suffix in BIN_ENDINGS:
        _check_pickle(path)
        _check_meaning(path, config or path.parent, vocab or beside(config, path.parent))
        return "pickle"
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {what}; give a run folder, a checkpoint folder, a Hugging Face folder, a file of torch.save "
            f"({', '.join(BIN_ENDINGS)}) or a checkpoint of TensorFlow (bert_model.ckpt)"
        )
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
        _check_meaning(path, config or path, vocab or path)
        return "hf"
    if bins := [path / name for name in (BIN_WEIGHTS, BIN_INDEX) if (path / name).is_file()]:
        refuse_code(path)
        if bins[0].name == BIN_WEIGHTS:
            _check_pickle(bins[0])
        _check_meaning(path, config or path, vocab or beside(config, path))
        return "pickle"
    raise InputError(
        f"{path} is neither a run folder with checkpoints nor a checkpoint, of ours, of DeepSpeed or of TensorFlow, "
        "nor a Hugging Face folder"
    )


def _check_meaning(origin: Path, config: Path, vocab: Path) -> None:
    read_meaning(config)
    need_vocab(origin, vocab)


def beside(config: Path | None, folder: Path) -> Path:
    """Return where the tokenizer lies that nobody names: beside a configuration that somebody does."""
    return folder if config is None else config if config.is_dir() else config.parent


def _check_pickle(path: Path) -> None:
    """Refuse at once what is no file of torch.save, such as a bare pickle."""
    try:
        with open(path, "rb") as file:
            is_torch = OLD_TORCH.match(file.read(64)) is not None or zipfile.is_zipfile(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not is_torch:
        raise InputError(f"{path} is no file of torch.save, or cut short; nothing else is unpickled: copy it again")


def tensorflow_prefix(path: Path) -> Path | None:
    """Return the name that the files of a TensorFlow checkpoint begin with: `path` itself, without .index or
    .data-00000-of-00001, or the one checkpoint in a folder that has no other weights; None where it is none.

    Raises
    ------
    InputError: a folder with several.
    """
    if not path.is_dir():
        prefix = path.with_name(re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name))
        return prefix if prefix.with_name(f"{prefix.name}.index").is_file() else None
    if any((path / name).is_file() for name in (*HF_WEIGHTS, BIN_WEIGHTS, BIN_INDEX)):
        return None
    found = [file for file in sorted(path.glob("*.index")) if any(path.glob(f"{glob_escape(file.stem)}.data-*-of-*"))]
    if len(found) > 1:
        raise InputError(
            f"{path} holds {len(found)} checkpoints; give one of them, such as {found[-1].with_suffix('')}"
        )
    return found[0].with_suffix("") if found else None


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
    if not any((vocab / name).is_file() for name in TOKENIZER):
        raise InputError(
            f"{vocab} has no {' and no '.join(TOKENIZER)}; give the folder of {origin}'s tokenizer to export, with "
            "--vocab"
        )


def read_meaning(path: Path) -> tuple[Path, JsonObject]:
    """Return the configuration of a BERT, from a Hugging Face folder or a file such as config.json, and that file.

    Raises
    ------
    InputError: missing, damaged, or of another architecture.
    """
    if path.is_dir():
        path = next((path / name for name in CONFIG_NAMES if (path / name).is_file()), path)
    if path.is_dir():
        raise InputError(
            f"{path} has no {' and no '.join(CONFIG_NAMES)}; say of which model the weights are, to export: --config "
            "FOLDER, or the file itself"
        )
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
