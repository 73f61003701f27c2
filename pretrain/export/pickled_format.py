"""Weights that others keep in pickles of torch.save: a folder with pytorch_model.bin, or one file, such as NVIDIA's.

    FOLDER/pytorch_model.bin                                       transformers before safetensors, also in parts with
           pytorch_model.bin.index.json                            an index
    ckpt_8601.pt     {"model": weights, "optimizer": ..., ...}     NVIDIA's DeepLearningExamples

read(path) gives the weights under the names that sources.py matches. The rest of such a file (moments, data loaders) is
passed over: pickles.py brings none of it to life.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.cli import InputError, say
from data_prep.untrusted import read_object
from pretrain.export.origin import BIN_INDEX, BIN_WEIGHTS
from pretrain.export.pickles import COMMON, Inert, load_any

KEYS = ("model", "state_dict", "model_state_dict")  # under which trainers keep the weights
# What NVIDIA's trainer saves of its data on the way, and apex of its loss scale.
NOT_NEEDED = """
    torch.utils.data.dataloader.DataLoader torch.utils.data.dataloader._DatasetKind
    torch.utils.data.sampler.RandomSampler torch.utils.data.sampler.SequentialSampler
    torch.utils.data.sampler.BatchSampler torch.utils.data._utils.collate.default_collate
    __main__.pretraining_dataset __main__.WorkerInitObj apex.amp.scaler.LossScaler
""".split()
ALLOWED: list[Any] = [(Inert, name) for name in (*COMMON, *NOT_NEEDED)]
REMEDY = "Loading it otherwise would run this; nothing of it was run. If the file is your own, save its weights alone"


def read(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file, or of a folder with pytorch_model.bin, as they are stored.

    Raises
    ------
    InputError: a file is missing, damaged, refused, or holds no weights by name.
    """
    weights: dict[str, Tensor] = {}
    for file in _files(path) if path.is_dir() else [path]:
        found = _weights_in(file, load_any(file, ALLOWED, remedy=REMEDY))
        if twice := sorted(weights.keys() & found.keys()):
            raise InputError(f"{path}: {twice[0]} is in two of its files; which one is meant cannot be told")
        weights |= found
    return weights


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights; an index may name only such, and only in the folder."""
    if (folder / BIN_WEIGHTS).is_file():
        return [folder / BIN_WEIGHTS]
    index = folder / BIN_INDEX
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} has no weight_map; take the file from its source again")
    for name in names.values():
        if not isinstance(name, str) or not name.endswith(".bin") or Path(name).name != name:
            raise InputError(f"{index} names {str(name)[:80]!r}: only .bin files beside it are read")
    files = [folder / name for name in sorted({*names.values()})]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{folder} lacks {missing[0]}, which {BIN_INDEX} names; copy the whole folder again")
    return files


def _weights_in(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the weights by name of what a file holds, NVIDIA's names of fused layers as BERT's own."""
    if isinstance(content, dict):
        for inner in (content, *(content.get(key) for key in KEYS)):
            if not isinstance(inner, dict) or not inner:
                continue
            if all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in inner.items()):
                if inner is not content:
                    rest = ", ".join(sorted(str(key) for key in content if content[key] is not inner))
                    say(f"{path}: the weights are taken" + (f", and not {rest}" if rest else ""))
                return _without_fused_names(path, inner)
    held = ", ".join(sorted(map(str, content))[:8]) if isinstance(content, dict) else type(content).__name__
    raise InputError(
        f"{path} holds no weights by name, itself or under {', '.join(KEYS)} ({held or 'nothing'}); give a file of a "
        "model's state_dict"
    )


def _without_fused_names(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`dense_act` is NVIDIA's name for a linear layer with its activation, which BERT calls `dense`."""
    renamed = {name.replace(".dense_act.", ".dense."): tensor.detach() for name, tensor in weights.items()}
    if len(renamed) < len(weights):
        raise InputError(f"{path} holds dense and dense_act of one layer; which one is meant cannot be told")
    return renamed
