"""Peak memory of a training step: ours, ours with --checkpoint_activations, and transformers' padded step.

    python benchmarks/step_memory.py [--layers 6 --hidden 512 --vocab_size 30522 --seq_len 128 --batch 16]

The steps and samples of step_time.py, one side after another. What counts is the peak in a step above what lies there
between steps (weights and moments): activations, gradients, workspace. On a CPU it is the resident set, with malloc
told to give back what is freed; on a GPU torch.cuda.max_memory_allocated. One JSON line; "ratio" is theirs over ours.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    # Above 64 KB malloc maps memory of its own, which goes back when it is freed; it asks when a process begins.
    MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}
    if not MALLOC.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | MALLOC)

import torch

from benchmarks import step_time
from benchmarks.machine import machine
from benchmarks.step_time import DEVICE, DTYPE, Sample, bert_config, our_step, their_step
from data_prep.cli import parse
from pretrain.monitor.memory import peak, start_peak

Side = Literal["ours", "ours_checkpointed", "theirs"]
SIDES: tuple[Side, ...] = ("ours", "ours_checkpointed", "theirs")


@dataclass(frozen=True)
class BenchmarkConfig(step_time.BenchmarkConfig):
    """The model and the batches."""

    rounds: int = 3
    """steps of each side, of which the largest peak counts; one more goes before"""


def main(config: BenchmarkConfig) -> None:
    peaks = {side: peak_of(side, config) for side in SIDES}
    result = {
        "name": "step_memory",
        "figures": {f"{side}_mb": round(peak / 1e6, 1) for side, peak in peaks.items()},
        "ratio": round(peaks["theirs"] / peaks["ours"], 2),
        "ratio_checkpointed": round(peaks["theirs"] / peaks["ours_checkpointed"], 2),
        "settings": {**asdict(config), "threads": torch.get_num_threads(), "precision": str(DTYPE)},
    }
    print(json.dumps(result | machine("torch", "transformers")))


def peak_of(side: Side, config: BenchmarkConfig) -> int:
    """Return the peak of one side in bytes, above what lies there between steps."""
    bert = bert_config(config)
    step = (
        their_step(bert)
        if side == "theirs"
        else our_step(bert, config.compile, checkpoint_activations=side == "ours_checkpointed")
    )
    peaks = []
    for number in range(config.rounds + 1):
        sample = Sample(config, number)
        before = start_peak(DEVICE)
        step(sample)
        peaks.append(peak(DEVICE) - before)
    return max(peaks[1:])  # the first made the moments


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
