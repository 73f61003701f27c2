"""LAMB by its weights: against a float64 reference, unsharded and at every ZeRO stage and world size."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.checkpoints.format import checkpoint_dir, list_checkpoints
from pretrain.settings.config import TrainConfig
from pretrain.train import train
from pretrain.zero.lamb import VARIANTS, Lamb
from pretrain.zero.partition import Partition, unsharded_partition
from tests.lamb_runs import DECAY, STEPS, lamb_run, reference_weights, train_naively, undecayed
from tests.partitions import partition_of
from tests.ranks import run_ranks
from tests.reference.lamb import ReferenceLamb
from tests.runs import distance, weights
from tests.stores import random_documents, store_of


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40)).folder


@pytest.fixture(scope="module")
def reference(store) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return reference_weights(store)


CUTS = [(2, 1, 3)]
MORE_CUTS = [(1, 0, 12), (1, 2, 4), (4, 1, 3), (2, 0, 6), (3, 2, 2), (3, 3, 4)]


@pytest.mark.parametrize(
    ("world", "zero", "micro"), [*CUTS, *(pytest.param(*cut, marks=pytest.mark.slow) for cut in MORE_CUTS)]
)
def test_weights_equal_the_reference(reference, store, tmp_path, world, zero, micro):
    final, start = reference
    run_ranks(world, train, lamb_run(store, tmp_path / "run", zero=zero, micro_batch=micro))
    assert distance(weights(checkpoint_dir(tmp_path / "run", STEPS)), final, start) < 1e-5


@pytest.mark.parametrize(
    ("zero", "wrong"),
    [pytest.param(0, False, marks=pytest.mark.slow), (1, True), pytest.param(3, True, marks=pytest.mark.slow)],
)
def test_naive_lamb_passes_unsharded_and_fails_under_zero(reference, store, tmp_path, zero, wrong):
    """The test above can fail, and does for the LAMB that everybody writes, even on one rank."""
    final, start = reference
    run_ranks(1, train_naively, lamb_run(store, tmp_path / "run", zero=zero, micro_batch=12))
    error = distance(weights(checkpoint_dir(tmp_path / "run", STEPS)), final, start)
    assert (error > 1e-2) if wrong else (error < 1e-5)


@pytest.mark.slow
def test_stage_3_in_sub_groups(reference, store, tmp_path):
    """Of 5,000; else all is one, of at most a thousand million."""
    final, start = reference
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3, "sub_group_size": 5_000}}))
    run_ranks(2, train, lamb_run(store, tmp_path / "run", ds_config=tmp_path / "ds.json", micro_batch=6))
    assert distance(weights(checkpoint_dir(tmp_path / "run", STEPS)), final, start) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_offloaded_to_the_host(reference, store, tmp_path, zero):
    final, start = reference
    ds_config = {"zero_optimization": {"stage": zero, "offload_optimizer": {"device": "cpu"}}}
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    run_ranks(2, train, lamb_run(store, tmp_path / "run", ds_config=tmp_path / "ds.json", micro_batch=6))
    assert distance(weights(checkpoint_dir(tmp_path / "run", STEPS)), final, start) < 1e-5


@pytest.mark.slow
def test_save_and_resume(reference, store, tmp_path):
    final, start = reference
    run_ranks(2, train, lamb_run(store, tmp_path / "run", zero=3, save_every=5, schedule="linear"))
    for folder in list_checkpoints(tmp_path / "run"):
        if folder != checkpoint_dir(tmp_path / "run", 5):
            shutil.rmtree(folder)
    run_ranks(3, train, lamb_run(store, tmp_path / "run", zero=1))
    assert distance(weights(checkpoint_dir(tmp_path / "run", STEPS)), final, start) < 1e-5


def train_and_watch(settings: TrainConfig) -> list[dict[str, Any]]:
    """Train, and record of every call of step(): slices before, their gradients, and slices after."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: True  # all of it runs
    set_partition, step, calls = Lamb.set_partition, Lamb.step, []

    def watched_set_partition(self: Lamb, partition: Partition) -> None:
        self.watched = partition  # type: ignore[attr-defined]
        set_partition(self, partition)

    def watched_step(self: Lamb, closure: None = None) -> None:
        if not hasattr(self, "watched"):
            return step(self, closure)
        buffers = self.watched.fp32_buffers
        given = {id(buffer) for group in self.param_groups for buffer in group["params"]}
        slices = {(s.name, s.param_offset): s for s in self.watched.slices if id(buffers[s.buffer]) in given}
        before = {key: self.watched.view(s, "master").clone() for key, s in slices.items()}
        gradients = {key: s.of(buffers[s.buffer].grad).clone() for key, s in slices.items()}
        step(self, closure)
        after = {key: self.watched.view(s, "master").clone() for key, s in slices.items()}
        lr = self.param_groups[0]["lr"]
        calls.append({"before": before, "gradients": gradients, "after": after, "lr": lr})
        return None

    Lamb.set_partition, Lamb.step = watched_set_partition, watched_step  # type: ignore[method-assign]
    state = train(settings)
    calls.append({"skipped": state.steps_skipped})
    return [{key: _as_numpy(value) for key, value in call.items()} for call in calls]


def _as_numpy(value: Any) -> Any:
    return {key: tensor.numpy() for key, tensor in value.items()} if isinstance(value, dict) else value


def joined(ranks: list[dict[str, Any]], kind: str) -> dict[str, np.ndarray]:
    """Whole parameters, flat, from the slices of all ranks."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for rank in ranks:
        for (name, offset), values in rank[kind].items():
            parts.setdefault(name, {})[offset] = values
    return {name: np.concatenate([found[offset] for offset in sorted(found)]) for name, found in parts.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "zero"), [("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 1), ("fp16", 3)])
def test_in_16_bit_master_weights_follow_the_reference_on_the_same_gradients(store, tmp_path, precision, zero):
    """16-bit gradients differ with the cut of a step, so the optimizer is compared alone; fp16 skips steps at first."""
    ds_config = {
        "zero_optimization": {"stage": zero},
        precision: {"enabled": True} | ({"initial_scale_power": 22, "hysteresis": 1} if precision == "fp16" else {}),
    }
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    settings = lamb_run(store, tmp_path / "run", ds_config=tmp_path / "ds.json", steps=4, max_skips=40)
    ranks = run_ranks(2, train_and_watch, settings)
    assert (ranks[0].pop()["skipped"] > 3) == (ranks[1].pop()["skipped"] > 3) == (precision == "fp16")
    optimizers: dict[str, ReferenceLamb] = {}
    for calls in zip(*ranks, strict=True):
        before, gradients, after = (joined(list(calls), kind) for kind in ("before", "gradients", "after"))
        for name, weight in before.items():
            reference = optimizers.setdefault(name, ReferenceLamb(weight, 0.0 if undecayed(name) else DECAY))
            reference.weight = weight.astype(np.float64)
            reference.update(gradients[name], calls[0]["lr"])
            moved = np.linalg.norm(reference.weight - weight)
            assert np.linalg.norm(after[name] - reference.weight) <= 1e-5 * max(moved, np.linalg.norm(weight) * 1e-2), (
                name
            )
    assert len(optimizers) == 46


def alone(shapes: dict[str, tuple[int, ...]], seed: int, **settings: Any) -> tuple[Lamb, dict[str, torch.nn.Parameter]]:
    """An unsharded optimizer over random parameters."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    groups = [
        {"params": [p for n, p in parameters.items() if undecayed(n) == flag], "weight_decay": 0.0 if flag else 0.1}
        for flag in (False, True)
    ]
    optimizer = Lamb(groups, lr=0.01, **settings)
    lengths = [{name: parameter.numel()} for name, parameter in parameters.items()]
    optimizer.set_partition(partition_of(list(parameters.values()), lengths, optimizer))
    return optimizer, parameters


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_equal_the_reference(variant, monkeypatch):
    monkeypatch.setattr("pretrain.zero.lamb.CHUNK", 100)  # so that tensors are cut, and small ones share a chunk
    shapes = {"a.weight": (30, 20), "b.weight": (7, 3), "c.bias": (50,), "d.LayerNorm.weight": (16,)}
    optimizer, parameters = alone(shapes, 1, **VARIANTS[variant])
    references = {
        name: ReferenceLamb(parameter.detach().numpy(), 0.0 if undecayed(name) else 0.1, **VARIANTS[variant])
        for name, parameter in parameters.items()
    }
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        ratios = {}
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            ratios[name] = references[name].update(parameter.grad.numpy(), 0.01)
        optimizer.step()
        for name, ratio in optimizer.trust_ratios().items():
            assert ratio == pytest.approx(ratios[name], rel=1e-4)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.detach().numpy(), references[name].weight, rtol=2e-5, atol=2e-6)
    adapted = set(shapes) if VARIANTS[variant]["adapt_undecayed"] else {"a.weight", "b.weight"}
    assert optimizer.trust_ratios().keys() == adapted


def test_a_step_before_the_partition_is_known_is_an_error_unless_it_is_none():
    model = torch.nn.Linear(4, 1, bias=False)
    optimizer = Lamb(model.parameters(), lr=1.0)
    optimizer.step()
    model.weight.grad = torch.zeros(1, 4)  # as DeepSpeed has it while it starts
    before = model.weight.detach().clone()
    optimizer.step()
    model.weight.grad = torch.ones(1, 4)
    with pytest.raises(
        RuntimeError, match=r"does not know where the parameters lie.*optimizer\.set_partition\(map_partition\("
    ):
        optimizer.step()
    assert torch.equal(model.weight.detach(), before)
    assert not optimizer.state
    optimizer.set_partition(unsharded_partition(model, optimizer))
    optimizer.step()
    assert not torch.equal(model.weight.detach(), before)


def test_a_zero_weight_or_a_zero_step_has_ratio_one():
    optimizer, parameters = alone({"zero.weight": (3,), "still.weight": (3,)}, 0)
    with torch.no_grad():
        parameters["zero.weight"].zero_()
        parameters["still.weight"].zero_()
    parameters["zero.weight"].grad, parameters["still.weight"].grad = torch.ones(3), torch.zeros(3)
    optimizer.step()
    assert list(optimizer.trust_ratios().values()) == [1.0, 1.0]
    assert parameters["zero.weight"].detach().numpy() == pytest.approx(-0.01, rel=1e-4)
    assert not parameters["still.weight"].any()


class DevicesSeen(TorchDispatchMode):
    """Notes the devices of all tensors that go into operations and come out."""

    def __init__(self):
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.devices |= {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_cuda_a_step_never_waits_for_the_device(variant):
    """With tensors that have a device and no content, reading one (item, tolist) raises; host tensors are seen."""
    with FakeTensorMode():
        flat = torch.nn.Parameter(torch.empty(100, device="cuda"))
        optimizer = Lamb([{"params": [flat], "weight_decay": 0.1}], lr=torch.pi, **VARIANTS[variant])
        optimizer.set_partition(partition_of([flat], [{"a.weight": 40, "b.weight": 50}], optimizer))
        flat.grad = torch.empty_like(flat)
        with DevicesSeen() as seen:
            optimizer.step()
    assert seen.devices == {"cuda"}
