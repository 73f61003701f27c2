"""The whole trainer on this machine: a run killed with -9 in the middle, and the same command that continues it.

    python benchmarks/killed_run.py [--model bert-large --seq_len 512 --global_batch 256 --micro_batch 32 --steps 40]
    python benchmarks/killed_run.py --precision fp16 --optimizer adamw --zero 2

One process, on a store of made-up words; saved at a quarter of the steps and at every further one, killed once a step
beyond the half is logged. One JSON line: seconds from the command to its first five steps, tokens and sequences a
second and MFU (the best interval of five steps), the seconds that going on took, and the loss of the last steps before
the kill beside those of the same steps made again.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from benchmarks.machine import machine
from data_prep.cli import ROOT, parse, print_json, say
from pretrain.settings.limits import Preset
from tests.stores import random_documents, store_of

INTERVAL = 5  # steps of a line of metrics
PATIENCE = 300.0  # seconds without a line of metrics


@dataclass(frozen=True)
class BenchmarkConfig:
    """The run."""

    model: Preset = "bert-large"
    seq_len: int = 512
    global_batch: int = 256
    """samples of a step"""
    micro_batch: int = 32
    steps: int = 40
    precision: Literal["fp32", "fp16", "bf16"] = "bf16"
    optimizer: Literal["lamb", "adamw"] = "lamb"
    zero: int = 1
    compile: bool = False
    vocab_size: int = 30_522
    documents: int = 4000
    """documents of made-up words, of about 300 tokens"""


def main(config: BenchmarkConfig) -> None:
    with tempfile.TemporaryDirectory(prefix="zerobert-") as folder:
        documents = random_documents(config.documents, vocab_size=config.vocab_size, longest=60)
        store = store_of(Path(folder) / "store", documents, config.vocab_size, range(0, config.documents, 20)).folder
        run = Path(folder) / "run"
        first_step_seconds, killed_at = killed(config, store, run)
        first = train_lines(run)
        start = time.perf_counter()
        with (Path(folder) / "log").open("w") as log:
            subprocess.run(command(config, store, run), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
        resumed_seconds = time.perf_counter() - start
        lines = train_lines(run)
    again = [line for line in lines[len(first) :] if line["step"] <= killed_at]
    before = [line for line in first if line["step"] in {line["step"] for line in again}]
    tokens_per_sequence = first[-1]["tokens"] / (first[-1]["step"] * config.global_batch)
    fastest = max(lines[2:], key=lambda line: line["tokens_per_s"])
    result = {
        "name": "killed_run",
        "figures": {
            "first_steps_s": round(first_step_seconds, 1),
            "tokens_per_s": round(fastest["tokens_per_s"]),
            "sequences_per_s": round(fastest["tokens_per_s"] / tokens_per_sequence, 1),
            "mfu": fastest["mfu"] and round(fastest["mfu"], 3),
            "memory_gb": fastest.get("memory_gb"),
            "killed_at_step": killed_at,
            "resumed_s": round(resumed_seconds, 1),
            "loss_before": [line["mlm_loss"] for line in before],
            "loss_again": [line["mlm_loss"] for line in again],
            "last_loss": lines[-1]["mlm_loss"],
        },
        "settings": config.__dict__,
    }
    print_json(result | machine("torch", "deepspeed", "transformers"))


def command(config: BenchmarkConfig, store: Path, run: Path) -> list[str]:
    """The run's command."""
    save_every = max(1, config.steps // 4)
    flags = f"--data {store} --out {run} --model {config.model} --seq_len {config.seq_len} --steps {config.steps} "
    flags += f"--global_batch {config.global_batch} --micro_batch {config.micro_batch} --precision {config.precision} "
    flags += f"--optimizer {config.optimizer} --zero {config.zero} --lr 1e-3 --log_every {INTERVAL} --eval_every 0 "
    flags += f"--eval_samples 256 --save_every {save_every} --seed 1"
    return [sys.executable, "-m", "pretrain.train", *flags.split(), *["--compile"] * config.compile]


def killed(config: BenchmarkConfig, store: Path, run: Path) -> tuple[float, int]:
    """Start the run, and end it with -9 once it is past the half.

    Returns the seconds until its first line of metrics, and the last step that it logged.
    """
    start = time.perf_counter()
    log = (run.parent / "log").open("w+")
    process = subprocess.Popen(
        command(config, store, run), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        until, seen, first_step_seconds = time.monotonic() + PATIENCE, 0, 0.0
        while seen <= config.steps // 2:
            if process.poll() is not None or time.monotonic() > until:
                log.seek(0)
                raise SystemExit(f"the run ended or hung at step {seen}:\n{log.read()[-3000:]}")
            time.sleep(0.05)
            lines = train_lines(run)
            if lines and lines[-1]["step"] > seen:
                first_step_seconds = first_step_seconds or time.perf_counter() - start
                seen, until = lines[-1]["step"], time.monotonic() + PATIENCE
        say(f"kill -9 after step {seen}")
        return first_step_seconds, seen
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def train_lines(run: Path) -> list[dict[str, Any]]:
    """Return what a run has logged of its steps: whole lines only."""
    path = run / "metrics.jsonl"
    raw = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(line) for line in raw if line.endswith("\n")]
    return [line for line in lines if line["kind"] == "train"]


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
