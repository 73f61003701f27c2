"""Runs that fit in a test, bert-tiny on short samples, and what they have left: weights, files, lines of metrics."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoints.slices import index_slices, read_elements
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import Flags

# The gradient of a key's bias is 0 (softmax ignores it); optimizers that divide by its size amplify rounding noise.
NOISE = "attention.self.key.bias"
SAVING_STEPS = 16


def train_config(**options: Any) -> TrainConfig:
    """Return the settings that the command line makes of options by name."""
    flags = {field.name: options.pop(field.name) for field in dataclasses.fields(Flags) if field.name in options}
    return TrainConfig(**options, flags=Flags(**flags))


def tiny_run(store: Path, out: Path, **settings: Any) -> TrainConfig:
    """Return a run of bert-tiny that keeps every checkpoint, logs every step, and is otherwise as `settings` say."""
    common: dict[str, Any] = dict(model="bert-tiny", seq_len=32, lr=1e-3, keep=0, log_every=1, eval_samples=0)
    return train_config(**dict(data=(str(store),), out=out) | common | settings)


def saving_run(store: Path, out: Path, **changes: Any) -> TrainConfig:
    """Return a run that saves and evaluates often."""
    settings = dict(steps=SAVING_STEPS, global_batch=8, save_every=4, eval_samples=8, eval_every=8)
    return tiny_run(store, out, **settings | changes)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the float32 weights of a checkpoint by name, each flat, without NOISE."""
    found = {}
    for (name, kind), slices in index_slices(checkpoint).items():
        if kind == "master" and not name.endswith(NOISE):
            found[name] = torch.zeros(slices[-1].offset + slices[-1].length)
            read_elements(slices, found[name], 0)
    return found


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """Return the distance of two sets of weights, relative to how far the second has moved from its start."""
    assert a.keys() == b.keys() == start.keys()
    a, b, start = ({name: tensor.flatten() for name, tensor in found.items()} for found in (a, b, start))
    difference = torch.cat([a[name] - b[name] for name in a]).double().norm()
    update = torch.cat([b[name] - start[name] for name in a]).double().norm()
    return float(difference / update)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a checkpoint that hold its numbers, byte for byte."""
    return {path.name: path.read_bytes() for path in [*sorted(folder.glob("rank-*")), folder / "state.json"]}


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind in a run's metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == kind]


def steps_done(run: Path) -> int:
    """Return how many steps a run has logged."""
    path = run / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind in a run's metrics: train, eval, event."""
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == kind]
