"""Bytes on the wire and optimizer state of each rank, counted, beside the formulas that docs/cluster.md reckons with.

    python benchmarks/scale.py --ranks 1 2 4 8 16
    python benchmarks/scale.py --ranks 2 4 --zero 0 2 3

A small model on gloo ranks of this machine: bytes are counted, speed is not measured. One JSON line.
"""

import itertools
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")

import torch
import torch.distributed as dist

from benchmarks.machine import machine
from data_prep.cli import print_json, run, say
from pretrain import loop
from pretrain.monitor.plan import wire_bytes
from pretrain.settings.config import TrainConfig
from pretrain.sizes import STATE
from pretrain.train import train
from tests.ranks import run_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of

PASSES = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1, "broadcast": 0}  # over the data
SMALL_BYTES = 20_000  # of a message that is no weight and no gradient


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is counted."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    """how many, one run for each"""
    zero: tuple[int, ...] = (1,)
    """ZeRO stages, of each all runs"""


def main(config: BenchmarkConfig) -> None:
    """Count and print one JSON line."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="zerobert-") as folder:
        store = store_of(Path(folder) / "store", random_documents(60)).folder
        for zero, ranks in itertools.product(config.zero, config.ranks):
            (Path(folder) / "ds.json").write_text(json.dumps({"zero_optimization": zero_settings(zero)}))
            settings = tiny_run(
                store, Path(folder) / f"run-{zero}-{ranks}", ds_config=Path(folder) / "ds.json", steps=3, warmup=1,
                global_batch=2 * ranks, micro_batch=2,
            )  # fmt: skip
            found = run_ranks(ranks, count, settings, deadline=1800.0)
            rows.append({"zero": zero, "ranks": ranks} | compared(found, zero, ranks))
            say(f"ZeRO {zero}, {ranks} ranks: counted")
    print_json({"name": "scale", "precision": "fp32", "rows": rows} | machine("torch", "deepspeed"))


def zero_settings(stage: int) -> dict[str, int]:
    """Return DeepSpeed's settings; of a model as small as this one it would keep stage 3's parameters gathered."""
    return {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})


def compared(found: list[dict[str, int]], zero: int, ranks: int) -> dict[str, int]:
    """Return the counts of the rank that has most, beside what the formulas say."""
    most = {name: max(counts[name] for counts in found) for name in found[0]}
    parameters = most.pop("parameters")
    wire = wire_bytes(zero, parameters, ranks, "fp32", 1)
    state = parameters * (STATE / ranks if zero else STATE - 4)  # stage 0 in fp32: the weights are their own masters
    return most | {"wire_formula": round(wire), "state_formula": round(state)}


def count(settings: TrainConfig) -> dict[str, int]:
    """Train on this rank and return what its last step sent, and what its optimizer holds."""
    sent: Counter[str] = Counter()
    small: Counter[str] = Counter()
    for name in PASSES:
        setattr(dist, name, counting(getattr(dist, name), name, sent, small))
    train_step = loop.train_step
    found: dict[str, int] = {}

    def counted(run: loop.Run, *arguments: Any) -> Any:
        sent.clear()
        small.clear()
        result = train_step(run, *arguments)
        share = (dist.get_world_size() - 1) / dist.get_world_size()
        optimizer = run.engine.partition.optimizer
        moments = [value for entry in optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]
        masters = run.engine.partition.fp32_buffers if run.engine.partition.stage else []
        found.update(
            wire_bytes=round(sum(PASSES[name] * size * share for name, size in sent.items())),
            small_messages=small.total(),
            state_bytes=sum(tensor.nbytes for tensor in (*moments, *masters)),
            parameters=sum(torch.Size(shape).numel() for shape in run.engine.partition.shapes.values()),
        )
        return result

    loop.train_step = counted  # type: ignore[assignment]
    train(settings)
    return found


def counting(function: Callable[..., Any], name: str, sent: Counter[str], small: Counter[str]) -> Callable[..., Any]:
    """Return a collective that counts the bytes of its largest tensor; small ones as messages."""

    def counted(*arguments: Any, **named: Any) -> Any:
        tensors = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
        size = max((tensor.nbytes for tensor in tensors), default=0)
        if size > SMALL_BYTES:
            sent[name] += size
        else:
            small[name] += 1
        return function(*arguments, **named)

    return counted


if __name__ == "__main__":
    run(main, BenchmarkConfig, __doc__)
