"""Checkpoints that fit in a test, made without training: a BERT of one layer of eight, in the files of two ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForPreTraining

from data_prep.files import sha256_of, write_json
from pretrain.checkpoints.format import (
    KINDS,
    STATE,
    Manifest,
    ModelIdentity,
    checkpoint_dir,
    finalize,
    rank_file,
    slice_key,
    staging_dir,
)
from pretrain.checkpoints.slices import write_slices
from pretrain.model import architecture_of
from pretrain.state import DataPosition, RunState

RECORD = {
    "train": {
        "data": ["stores/en:2"], "model": "bert-tiny", "init_from": None, "objective": "nsp", "steps": 6, "seq_len": 8,
        "phase": [], "warmup": 0.1, "schedule": "linear", "dropout": 0.1, "seed": 0,
    },
    "deepspeed": {"train_batch_size": 8, "optimizer": {"type": "lamb", "params": {"lr": 1e-3}}},
    "stores": [{"folder": "stores/en", "identity": "ab" * 32}],
    "versions": {"torch": "2"}, "git": {"commit": "0123456789abcdef", "clean": True}, "python": "3.11",
    "vocab_size": 8,
}  # fmt: skip


DS_CONFIG = {"train_batch_size": 8, "gradient_clipping": 1.0, "optimizer": {"type": "adamw", "params": {"lr": 1e-4}}}


def tiny_model(seed: int = 0) -> BertForPreTraining:
    """The least BERT there is."""
    torch.manual_seed(seed)
    return BertForPreTraining(
        BertConfig(
            vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            max_position_embeddings=8,
        )
    )  # fmt: skip


def checkpoint_of(run: Path, step: int, vocab_sha256: str = "ab" * 32, model: BertForPreTraining | None = None) -> Path:
    """Write a whole checkpoint of a run, each parameter cut in two."""
    model = model or tiny_model(step)
    target = checkpoint_dir(run, step)
    staged = staging_dir(target)
    staged.mkdir(parents=True)
    parameters = dict(model.named_parameters())
    for rank in range(2):
        slices = {}
        for name, parameter in parameters.items():
            half = parameter.numel() // 2
            begin, end = (0, half) if rank == 0 else (half, parameter.numel())
            for kind in KINDS:
                slices[slice_key(name, kind, begin)] = parameter.detach().flatten()[begin:end].clone()
        write_slices(staged / rank_file(rank, 2), slices)
    state = RunState(
        step,
        steps_skipped=1,
        samples=8 * step + 8,
        tokens=900 * step,
        position=DataPosition(0, 8 * step + 8, 0, 8 * step, 32),
        seconds=2.5,
        best_loss=3.25,
        held_out_identity="ab",
        evals_since_best=1,
        recent_losses=(3.5, 3.25),
        skipped_spans=((0, 8),),
    )
    identity = ModelIdentity(architecture_of(model.config), vocab_sha256, model.config.vocab_size)
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    scaler = {"cur_scale": 65536.0, "cur_iter": 3, "last_overflow_iter": -1, "cur_hysteresis": 2}
    manifest = Manifest(
        step=step, world_size=2, zero_stage=1, held_out_loss=3.25, identity=identity, ds_config=DS_CONFIG,
        parameters=shapes, files={},
    )  # fmt: skip
    finalize(staged, target, state=state, scaler=scaler, manifest=manifest)
    return target


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the manifest as somebody would who knows the format: checksums of files and of itself fit again."""
    manifest = Manifest.read(folder)
    files = {
        name: entry._replace(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name, entry in manifest.files.items()
    }
    replace(manifest, **{"files": files} | changes).write(folder)


def rewrite_state(folder: Path, content: dict[str, Any]) -> None:
    """Change state.json, and let the manifest agree with it."""
    write_json(folder / STATE, content)
    rewrite(folder)
