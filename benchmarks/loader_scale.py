"""What the loader of one rank of a thousand costs: processor time of a step, without the others.

    python benchmarks/loader_scale.py --store runs/en/store --world 1024 --global_batch 65536

One process plays one rank. What the other ranks of its node do for it, blocks of lengths (length_table.py), is done by
this process, too, but not counted. Beside it the way of few ranks, where each looks up all samples of the step.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks.machine import machine
from data_prep.cli import print_json, run, say
from data_prep.samples.length_table import NodeRanks
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain import data
from pretrain.data import SampleStream, train_steps
from pretrain.state import DataPosition


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured."""

    store: Path
    """a store of some million tokens"""
    world: int = 1024
    """ranks"""
    ranks_per_node: int = 8
    """of these, that share a node"""
    global_batch: int = 65_536
    """samples in a step, over all ranks"""
    micro_batch: int = 64
    """samples that a rank takes at once"""
    seq_len: int = 128
    """tokens in a sample"""
    steps: int = 30
    """measured; their mean counts, since a rank finds lengths in some steps only"""


def main(config: BenchmarkConfig) -> None:
    """Measure and print one JSON line."""
    torch.set_num_threads(1)
    result = {"name": "loader_scale"} | {
        name: getattr(config, name) for name in ("world", "ranks_per_node", "global_batch", "micro_batch", "seq_len")
    }
    with tempfile.TemporaryDirectory(prefix="zerobert-") as cache:
        os.environ["ZEROBERT_CACHE"] = cache
        result["own_samples_ms"] = round(1e3 * seconds_per_step(config, many_ranks=data.MANY_RANKS), 2)
        result["all_samples_ms"] = round(1e3 * seconds_per_step(config, many_ranks=config.world + 1), 2)
    print_json(result | machine("numpy", "torch"))


def seconds_per_step(config: BenchmarkConfig, *, many_ranks: int) -> float:
    """Return the mean processor time of a step of one rank; its micro-batches are made."""
    data.MANY_RANKS = many_ranks
    mixture = Mixture([Store.open(config.store)], [1.0], seq_len=config.seq_len, objective="nsp", seed=0)
    streams = [
        SampleStream(mixture, DataPosition(), NodeRanks(rank, config.ranks_per_node))
        for rank in range(config.ranks_per_node)
    ]
    mixture.epoch(1)  # waits for what is built ahead
    steps = train_steps(
        streams[0],
        masking_after=lambda taken: Masking(),
        batch_after=lambda taken: config.global_batch,
        micro_batch=config.micro_batch,
        rank=0,
        world=config.world,
    )
    spent = []
    for _ in range(config.steps + 3):
        start = time.process_time()
        for _ in next(steps).micro_batches:
            pass
        spent.append(time.process_time() - start)
        if config.world >= many_ranks:
            for stream in streams[1:]:  # the neighbours take the same step
                stream.draw(config.global_batch)
    say(f"ms a step: {', '.join(f'{1e3 * seconds:.1f}' for seconds in spent)}")
    return float(np.mean(spent[3:]))


if __name__ == "__main__":
    run(main, BenchmarkConfig, __doc__)
