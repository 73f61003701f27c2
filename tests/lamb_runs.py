"""Runs with LAMB that fit in a test, and what float64 and the usual code make of the same."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.data import SampleStream, train_steps
from pretrain.model import PretrainingModule, build_model
from pretrain.settings.config import TrainConfig
from pretrain.settings.schedule import lr_multiplier
from pretrain.state import DataPosition
from pretrain.train import train
from pretrain.zero.partition import Partition
from tests.reference.lamb import ReferenceLamb
from tests.runs import NOISE, train_config

STEPS, WARMUP, LR, GLOBAL, SEQ_LEN, DECAY = 9, 3, 4e-3, 12, 32, 0.01


def undecayed(name: str) -> bool:
    """Return whether a parameter has no weight decay."""
    return name.endswith(".bias") or "LayerNorm" in name


def reference_weights(
    store: Path, lr_scale: Callable[[str], float] = lambda name: 1.0, **settings: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return final and first weights of plain torch training with the float64 optimizer, of these settings."""
    opened = Store.open(store)
    model = build_model(preset="bert-tiny", vocab_size=opened.vocab_size, dropout=0.0, seed=0, needs_nsp=True)
    module, parameters = PretrainingModule(model), dict(model.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizers = {
        name: ReferenceLamb(parameter.detach().numpy(), 0.0 if undecayed(name) else DECAY, **settings)
        for name, parameter in parameters.items()
    }
    stream = SampleStream(Mixture([opened], [1.0], seq_len=SEQ_LEN, objective="nsp", seed=0), DataPosition())
    steps = train_steps(
        stream,
        masking_after=lambda taken: Masking(),
        batch_after=lambda taken: GLOBAL,
        micro_batch=GLOBAL,
        rank=0,
        world=1,
    )
    for index, (counts, _, [batch]) in enumerate(islice(steps, STEPS)):
        module.zero_grad()
        losses = module(batch)
        (losses.mlm / counts.masked + losses.nsp / counts.pairs).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            lr = LR * lr_multiplier("linear", index, WARMUP, STEPS) * lr_scale(name)
            optimizers[name].update(parameter.grad.numpy(), lr)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(optimizers[name].weight))
    final = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return tuple({n: t for n, t in found.items() if not n.endswith(NOISE)} for found in (final, start))  # type: ignore[return-value]


def lamb_run(store: Path, out: Path, **changes: Any) -> TrainConfig:
    """Return the settings of these runs, of which `changes` are others."""
    settings: dict[str, Any] = dict(
        data=(str(store),), out=out, model="bert-tiny", seq_len=SEQ_LEN, steps=STEPS, warmup=WARMUP, lr=LR, dropout=0.0,
        global_batch=GLOBAL, optimizer="lamb", weight_decay=DECAY, eval_samples=0, log_every=4, keep=0,
    )  # fmt: skip
    return train_config(**settings | changes)


class NaiveLamb(torch.optim.Optimizer):
    """LAMB as it is usually written: the norms are those of the tensors that it is given."""

    def __init__(self, params, lr, **_):
        super().__init__(params, dict(lr=lr, weight_decay=0.0))

    def step(self, closure=None):
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                state = self.state[tensor]
                reference = state.setdefault("reference", ReferenceLamb(tensor.detach().numpy(), group["weight_decay"]))
                reference.update(tensor.grad.numpy(), group["lr"])
                tensor.data.copy_(torch.from_numpy(reference.weight))
                state["exp_avg"], state["exp_avg_sq"] = (
                    torch.from_numpy(x).float() for x in (reference.m, reference.v)
                )

    def set_partition(self, partition: Partition) -> None:
        pass

    def trust_ratios(self) -> dict[str, float]:
        return {}


def train_naively(settings: TrainConfig) -> None:
    """Train with NaiveLamb in place of ours; in a process of its own, which ends with it."""
    import pretrain.zero.engine

    pretrain.zero.engine.Lamb = NaiveLamb  # type: ignore[misc,assignment]
    train(settings)
