"""Go on with a run of plain DeepSpeed: weights, Adam's moments and the step, as a checkpoint of a new run.

    python -m deepspeed.checkpoint.ds_to_universal --input_folder THEIRS/global_step100 --output_folder UNIVERSAL
    python -m pretrain.import_universal --universal UNIVERSAL --data STORE --model bert-base --out RUN
    RANKS=8 bash launch/pretrain.sh --data STORE --model bert-base --out RUN --steps ...

    UNIVERSAL/zero/NAME/fp32.pt, exp_avg.pt, exp_avg_sq.pt, step.pt      one folder a parameter, whole

The run then continues at their step, at any ZeRO stage and world size, with the first samples of the store: where their
data was, only they know. That the ids of the store are theirs cannot be seen in weights; the size of the vocabulary is
compared. Files are pickles and are read by the allow-list of deepspeed_format.py: nothing they hold is run.
"""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    from pretrain.hf_files import forbid_network

    forbid_network()  # transformers, below, looks once

import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from data_prep.calls import call
from data_prep.cli import InputError, run, say
from data_prep.ranges import check_ranges
from data_prep.store import Store
from pretrain import hf_folder
from pretrain.checkpoints.format import (
    KINDS,
    Manifest,
    ModelIdentity,
    checkpoint_dir,
    finalize,
    list_checkpoints,
    rank_file,
    slice_key,
    staging_dir,
)
from pretrain.checkpoints.slices import write_slices
from pretrain.export.deepspeed_format import load
from pretrain.export.sources import matched
from pretrain.model import architecture_of, build_model, strip_vocab_padding
from pretrain.settings.limits import HEADS, HIDDEN, LAYERS, Preset
from pretrain.settings.shape import Shape, shape_of
from pretrain.state import RunState

FILES = {"master": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


@dataclass(frozen=True)
class ImportConfig:
    """What to import and where to."""

    universal: Path
    """folder that DeepSpeed's ds_to_universal wrote; it holds zero/"""
    data: Path
    """token store that the run will train on"""
    out: Path
    """run folder, without checkpoints"""
    model: Preset | None = None
    """as the run will have it (this or --init_from), with --layers, --hidden and --heads"""
    layers: Annotated[int | None, LAYERS] = None
    """as the run will have it"""
    hidden: Annotated[int | None, HIDDEN] = None
    """as the run will have it"""
    heads: Annotated[int | None, HEADS] = None
    """as the run will have it"""
    init_from: Path | None = None
    """as the run will have it: a Hugging Face folder, of which only the configuration counts (this or --model)"""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init_from is None):
            raise InputError("give one of --model and --init_from, as the run will have it")
        check_ranges(self)
        if self.model is None and (self.layers or self.hidden or self.heads):
            raise InputError("--layers, --hidden and --heads go with --model; an --init_from says its own")
        _ = self.shape

    @property
    def shape(self) -> Shape | None:
        """The shape of the model; None with --init_from."""
        if self.model is None:
            return None
        return shape_of(self.model, layers=self.layers, hidden=self.hidden, heads=self.heads)


def main(config: ImportConfig) -> None:
    """Read, compare with the model, and write RUN/checkpoints/step-N."""
    if list_checkpoints(config.out):
        raise InputError(f"{config.out} holds checkpoints already; choose another --out")
    store = Store.open(config.data)
    pad_id, vocab = store.special_ids["pad"], store.folder / "vocab"
    model = build_model(
        shape=config.shape,
        init_from=config.init_from,
        vocab_size=store.vocab_size,
        dropout=0.0,
        seed=0,
        needs_nsp=True,
        pad_id=pad_id,
        vocab=vocab,
    )
    step = read_step(config.universal)
    target = write_checkpoint(config, store, model, step)
    say(f"{target}: {model.num_parameters():,} parameters with their moments, after step {step}")


def write_checkpoint(config: ImportConfig, store: Store, model: BertForPreTraining, step: int) -> Path:
    """Write what a run on one rank at stage 0 would have saved, and return its folder.

    Raises
    ------
    InputError: as read_values() does.
    """
    tensors = {
        slice_key(name, kind, 0): tensor.flatten()
        for kind in KINDS
        for name, tensor in read_values(config.universal, kind, model, store.vocab_size).items()
    }
    target = checkpoint_dir(config.out, step)
    staged = staging_dir(target)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    write_slices(staged / rank_file(0, 1), tensors)
    manifest = Manifest(
        step=step,
        world_size=1,
        zero_stage=0,
        held_out_loss=None,
        identity=ModelIdentity(architecture_of(model.config), store.vocab_sha256, store.vocab_size),
        ds_config={"imported_from": str(config.universal)},
        parameters={name: list(parameter.shape) for name, parameter in model.named_parameters()},
        files={},
    )
    finalize(staged, target, state=RunState(step=step), scaler={}, manifest=manifest)
    return target


def list_files(universal: Path, name: str) -> dict[str, Path]:
    """Return the files called `name` of all parameters; another name for a tied parameter has weights only.

    Raises
    ------
    InputError: there is none.
    """
    files = {path.parent.name: path for path in sorted((universal / "zero").glob(f"*/{name}.pt"))}
    if not files:
        raise InputError(
            f"{universal} holds no zero/NAME/{name}.pt; it must be what deepspeed.checkpoint.ds_to_universal makes of "
            f"a run with ZeRO 1 or 2 and an optimizer of the Adam family (weights alone: {call('export')})"
        )
    return files


def read_step(universal: Path) -> int:
    """Return Adam's step, the same for all parameters.

    Raises
    ------
    InputError: there is none, or parameters differ.
    """
    steps = {name: int(load(path)) for name, path in list_files(universal, "step").items()}
    least, most = (choose(steps, key=steps.__getitem__) for choose in (min, max))
    if steps[least] != steps[most]:
        raise InputError(f"{universal}: {least} is at step {steps[least]}, {most} at step {steps[most]}")
    return steps[least]


def read_values(universal: Path, kind: str, model: BertForPreTraining, vocab_size: int) -> dict[str, Tensor]:
    """Return the weights or one of the moments, by the model's names and in its padded shapes.

    Raises
    ------
    InputError: names or shapes that are not the model's, a file that is damaged or refused.
    """
    found = {name: read_tensor(path) for name, path in list_files(universal, FILES[kind]).items()}
    theirs: BertConfig = copy.copy(model.config)
    theirs.vocab_size = vocab_size
    tensors = matched(universal, found, theirs)
    hf_folder.check_finite(universal, [(f"{FILES[kind]} of {name}", tensor) for name, tensor in tensors.items()])
    values = {}
    for name, parameter in model.named_parameters():
        if name not in tensors:
            raise InputError(f"{universal} lacks {name}; both heads of BERT's pretraining are needed to go on")
        # Rows that pad the vocabulary are the model's own, and do not move.
        values[name] = parameter.detach().clone() if kind == "master" else torch.zeros_like(parameter)
        strip_vocab_padding(name, values[name], vocab_size)[:] = strip_vocab_padding(name, tensors[name], vocab_size)
    return values


def read_tensor(path: Path) -> Tensor:
    """Return the tensor of a file of DeepSpeed's universal format.

    Raises
    ------
    InputError: there is none.
    """
    content = load(path)
    tensor = content.get("param") if isinstance(content, dict) else None
    if not isinstance(tensor, Tensor):
        raise InputError(f"{path} holds no tensor called param: it is not of DeepSpeed's universal format")
    return tensor.detach()


if __name__ == "__main__":
    run(main, ImportConfig, __doc__)
