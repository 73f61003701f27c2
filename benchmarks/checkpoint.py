"""Saving and loading a checkpoint: this project's beside DeepSpeed's own, of one engine in one run.

    python benchmarks/checkpoint.py [--model bert-small] [--zero 1] [--ranks 2] [--rounds 5]

Ranks over gloo on the CPU, AdamW with both moments filled. Both save and load in turn; the median of rounds counts, and
the slowest rank. "stall" is how long training waits in save(), "disk" when everything is on disk and fsynced: Saver
writes in a thread, engine.save_checkpoint() in the loop and without fsync, so its files are synced here, and that time
told apart. Loading is from files that are in the page cache; "verify", the checksums, comes before ours, DeepSpeed has
none. "memory" is by how much a rank's peak grew. One JSON line; "ratio" is our stall over DeepSpeed's.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch
import torch.distributed as dist

from benchmarks.machine import machine
from data_prep.cli import ROOT, print_json, run
from data_prep.files import sync_tree
from pretrain.checkpoints.format import KINDS, ModelIdentity, checkpoint_dir
from pretrain.checkpoints.load import load_checkpoint
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.verify import verify_checkpoint
from pretrain.model import architecture_of, build_model
from pretrain.settings.ds_config import Flags, resolve
from pretrain.settings.limits import Preset
from pretrain.state import RunState
from pretrain.zero.engine import init_distributed, init_engine, silence_libraries
from pretrain.zero.partition import Partition
from tests.ranks import run_ranks

Figures = dict[str, list[float]]  # what was measured -> one number a round


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured."""

    model: Preset = "bert-small"
    """whose parameters"""
    vocab_size: int = 30_522
    """entries of its vocabulary"""
    zero: Literal[0, 1, 2, 3] = 1
    """ZeRO stage"""
    ranks: int = 2
    """processes"""
    rounds: int = 5
    """saves and loads of each, after one that does not count"""
    folder: Path | None = None
    """where to write; left out: the system's folder for temporary files"""


def main(config: BenchmarkConfig) -> None:
    """Measure on all ranks and print one JSON line."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=config.folder, prefix="checkpoint-") as folder:
        measured = run_ranks(config.ranks, measure, config, Path(folder), deadline=3600.0)
    parameters, _ = measured[0]
    # A step waits for the slowest rank; the first round pays for what is made once.
    figures = {
        name: round(statistics.median(max(numbers) for numbers in list(zip(*rounds, strict=True))[1:]), 1)
        for name, rounds in ((name, [found[name] for _, found in measured]) for name in measured[0][1])
    }
    result = {
        "name": "checkpoint",
        "model": config.model,
        "parameters": parameters,
        "zero": config.zero,
        "ranks": config.ranks,
        "rounds": config.rounds,
        "figures": figures,
        "ratio": round(figures["ours_stall_ms"] / figures["deepspeed_stall_ms"], 3),
    }
    print_json(result | machine("torch", "deepspeed", "safetensors"))


def measure(config: BenchmarkConfig, folder: Path) -> tuple[int, Figures]:
    """On every rank: the number of parameters, and this rank's figures."""
    silence_libraries()
    init_distributed()
    flags = Flags(global_batch=config.ranks, micro_batch=1, lr=1e-4, precision="fp32", zero=config.zero)
    ds_config = resolve(ROOT / "ds_configs/auto.json", flags, config.ranks, "fp32")
    model = build_model(preset=config.model, vocab_size=config.vocab_size, dropout=0.0, seed=0, needs_nsp=True)
    parameters = model.num_parameters()
    engine = init_engine(model, ds_config)
    fill_moments(engine.partition)
    identity = ModelIdentity(architecture_of(model.config), "0" * 64, config.vocab_size)
    saver = Saver(folder / "ours", engine, identity=identity, ds_config=ds_config.content, keep=1)
    figures: Figures = {}

    def note(name: str, action: Callable[[], Any], finish: Callable[[], Any] = lambda: None) -> None:
        """How long `action` takes, and with `finish` (which leaves the result on disk), and the memory for both."""
        dist.barrier()
        before = reset_peak()
        start = time.perf_counter()
        action()
        stalled = time.perf_counter() - start
        finish()
        dist.barrier()
        total = time.perf_counter() - start
        who, what = name.split("_")
        for ending, seconds in {"stall": stalled, "disk": total}.items() if what == "save" else [(what, total)]:
            figures.setdefault(f"{who}_{ending}_ms", []).append(1e3 * seconds)
        figures.setdefault(f"{name}_memory_mb", []).append((peak() - before) / 1e6)

    before = [buffer.detach().clone() for buffer in engine.partition.fp32_buffers]
    for step in range(1, config.rounds + 2):
        note("ours_save", partial(saver.save, RunState(step=step), None), saver.wait)
        note(
            "deepspeed_save",
            partial(engine.deepspeed_engine.save_checkpoint, str(folder / "theirs"), tag="tag"),
            partial(sync_tree, folder / "theirs"),
        )
        note("ours_verify", partial(verify_checkpoint, checkpoint_dir(saver.run, step)))
        note("ours_load", partial(load_checkpoint, checkpoint_dir(saver.run, step), engine, identity))
        note("deepspeed_load", partial(engine.deepspeed_engine.load_checkpoint, str(folder / "theirs"), tag="tag"))
        for name, place in (("ours", checkpoint_dir(saver.run, step)), ("deepspeed", folder / "theirs")):
            held = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            figures.setdefault(f"{name}_bytes_per_parameter", []).append(held / parameters)
    assert all(map(torch.equal, before, engine.partition.fp32_buffers)), "loading has changed the weights"
    saver.close()
    return parameters, figures


def fill_moments(partition: Partition) -> None:
    """As after a step of AdamW."""
    for buffer in partition.fp32_buffers:
        state = partition.optimizer.state[buffer]
        state["step"] = torch.tensor(1.0)
        state |= {kind: torch.rand_like(buffer) for kind in KINDS[1:]}


def reset_peak() -> float:
    """Forget the peak of this process's memory so far; bytes in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The most memory in bytes since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    run(main, BenchmarkConfig, __doc__)
