"""What the whole trainer keeps of the bare step's speed, what the loader takes, and what a second rank gives.

    python benchmarks/trainer_overhead.py [--store runs/en/store] [--model bert-mini --global_batch 64 --micro_batch 8]

Each side in processes of its own, one thread and one core each, on the same samples:

    bare        model, clipping, fused AdamW, from batches that lie ready in memory
    trainer     pretrain.train through DeepSpeed at ZeRO stage 1, with loader, logging, evaluation and saving
    two ranks   the same as two processes over gloo

Logging is at its default interval. Evaluation and saving happen once, at the end, and are charged with their share of
a step at the default interval of 500 steps. "ratio" is the trainer's speed over the bare step's, by the clock, best
interval of each; "ratio_cpu" the same in processor time, which a busy machine disturbs less. One JSON line, about four
minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed, looking for another, says so on stdout

import torch

from benchmarks.machine import machine
from data_prep.cli import parse, print_json, say
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain import data, loop, train
from pretrain.data import SampleStream, StepData, train_steps
from pretrain.model import PretrainingModule, build_model, parameter_groups
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import Flags
from pretrain.settings.limits import Preset
from pretrain.state import DataPosition
from tests.ranks import free_port
from tests.stores import random_documents, store_of

INTERVAL = TrainConfig.log_every  # steps
PER_SAVE, PER_EVALUATION = TrainConfig.save_every, TrainConfig.eval_every
Side = Literal["bare", "trainer"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured."""

    store: Path | None = None
    """token store; left out: one of random words"""
    model: Preset = "bert-mini"
    seq_len: int = 128
    global_batch: int = 64
    """samples of a step"""
    micro_batch: int = 8
    """samples of a micro-batch"""
    steps: int = 30
    """steps of each side; the first interval of ten does not count"""
    side: Side | None = None
    """measure this side, in this process"""


def main(config: BenchmarkConfig) -> None:
    """All sides one after another."""
    with tempfile.TemporaryDirectory(prefix="zerobert-") as folder:
        store = (
            config.store
            or store_of(
                Path(folder) / "store",
                random_documents(4000, vocab_size=8192, longest=40),
                8192,
                held_out=range(0, 4000, 5),
            ).folder
        )
        bare, trainer, *two = (
            found
            for side, ranks in (("bare", 1), ("trainer", 1), ("trainer", 2))
            for found in measured(store, Path(folder) / f"run-{side}-{ranks}", side, ranks)
        )
    slowest = min(two, key=lambda found: found["tokens_per_s"])
    kept = {clock: best(trainer, clock) / best(bare, clock) for clock in ("seconds", "cpu_seconds")}
    extra = trainer["evaluation_seconds"] / PER_EVALUATION + trainer["saving_seconds"] / PER_SAVE
    step_seconds = best(trainer, "seconds") / INTERVAL
    result = {
        "name": "trainer_overhead",
        "figures": {
            "bare_tokens_per_s": round(bare["tokens_per_s"]),
            "trainer_tokens_per_s": round(trainer["tokens_per_s"] * step_seconds / (step_seconds + extra)),
            "two_ranks_tokens_per_s": round(slowest["tokens_per_s"]),
            "evaluation_s": round(trainer["evaluation_seconds"], 2),
            "saving_s": round(trainer["saving_seconds"], 3),
            "step_s": round(step_seconds, 3),
            "loader_wait_share": round(trainer["loader_wait_seconds"] / trainer["all_seconds"], 4),
            "loader_cpu_share": round(trainer["loader_cpu_seconds"] / trainer["all_cpu_seconds"], 4),
            "two_ranks_ratio": round(slowest["tokens_per_s"] / trainer["tokens_per_s"], 2),
        },
        "ratio": round(1 / kept["seconds"] * step_seconds / (step_seconds + extra), 3),
        "ratio_cpu": round(1 / kept["cpu_seconds"] * step_seconds / (step_seconds + extra), 3),
        "settings": {name: str(value) for name, value in config.__dict__.items() if name != "side"},
    }
    print_json(result | machine("torch", "deepspeed"))


def a_store(folder: Path) -> Path:
    """About a million tokens of made-up words, a fifth of them held out."""
    documents = random_documents(4000, vocab_size=8192, longest=40)
    return store_of(folder, documents, 8192, held_out=range(0, len(documents), 5)).folder


def best(found: dict[str, Any], clock: str) -> float:
    """The shortest interval but the first."""
    return min(found[f"interval_{clock}"][1:])


def measured(store: Path, run: Path, side: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank of one side found, each in a process of its own, on a core of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--store", str(store), "--side", side]
    common = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "OVERHEAD_RUN": str(run)}
    common |= {"WORLD_SIZE": str(ranks), "MASTER_PORT": str(free_port())}
    say(f"{side}, {ranks} rank{'s' * (ranks > 1)}")
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(ranks)
    ]
    answers = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise SystemExit(f"{side} ended with {process.returncode}: {' '.join(command)}")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


class Times:
    """When intervals of steps ended, by both clocks, and what happened in them."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float, int]] = [(time.perf_counter(), time.process_time(), 0)]
        self.sums: dict[str, float] = {"evaluation": 0.0, "saving": 0.0, "loader_wait": 0.0, "loader_cpu": 0.0}
        self.steps = self.tokens = 0

    def add_step(self, tokens: int) -> None:
        """Count a step; the tenth closes an interval."""
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        if self.steps % INTERVAL == 0:
            self.ends.append((time.perf_counter(), time.process_time(), self.tokens))

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Add what passes inside to a sum."""
        start = time.perf_counter()
        yield
        self.sums[name] += time.perf_counter() - start

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        (start, cpu, _), *_, (stop, cpu_stop, _) = self.ends
        intervals = list(zip(self.ends, self.ends[1:], strict=False))
        return {
            "interval_seconds": [after[0] - before[0] for before, after in intervals],
            "interval_cpu_seconds": [after[1] - before[1] for before, after in intervals],
            "tokens_per_s": max((after[2] - before[2]) / (after[0] - before[0]) for before, after in intervals[1:]),
            "all_seconds": stop - start,
            "all_cpu_seconds": cpu_stop - cpu,
        } | {f"{name}_seconds": value for name, value in self.sums.items()}


def train_config(config: BenchmarkConfig) -> TrainConfig:
    """The run; evaluation and saving at its end only."""
    return TrainConfig(
        data=(str(config.store),), out=Path(os.environ["OVERHEAD_RUN"]), model=config.model, seq_len=config.seq_len,
        steps=config.steps, eval_every=0, save_every=0,
        flags=Flags(global_batch=config.global_batch, micro_batch=config.micro_batch, zero=1, precision="fp32"),
    )  # fmt: skip


def trainer(config: BenchmarkConfig) -> Times:
    """pretrain.train, with a clock around its parts."""
    times = Times()
    train_step, evaluate, save, prefetch = loop.train_step, loop.evaluate_held_out, loop.save, data.prefetch

    def timed_step(run: Any, step_data: StepData, state: Any) -> Any:
        if not times.steps:
            times.__init__()  # type: ignore[misc]  # the first step begins
        found = train_step(run, step_data, state)
        times.add_step(step_data.counts.tokens)
        return found

    def evaluated(*arguments: Any) -> Any:
        with times.measuring("evaluation"):
            return evaluate(*arguments)

    def saved(run: Any, *arguments: Any) -> None:
        with times.measuring("saving"):
            save(run, *arguments)
            run.saver.wait()  # on one core what the thread does is not for free

    def fetched(items: Iterator[Any], **options: Any) -> Generator[Any]:  # steps and their micro-batches
        ready = prefetch(made(items), **options)
        while True:
            with times.measuring("loader_wait"):
                item = next(ready)
            yield item

    def made(items: Iterator[Any]) -> Iterator[Any]:  # in the loader's thread
        while True:
            start = time.thread_time()
            item = next(items)
            times.sums["loader_cpu"] += time.thread_time() - start
            yield item

    loop.train_step, loop.evaluate_held_out = timed_step, evaluated  # type: ignore[assignment]
    loop.save, data.prefetch = saved, fetched  # type: ignore[assignment]
    train.train(train_config(config))
    return times


def bare(config: BenchmarkConfig) -> Times:
    """The same steps without a trainer."""
    assert config.store is not None
    store = Store.open(config.store)
    settings = train_config(config)
    stream = SampleStream(
        Mixture([store], [1.0], seq_len=config.seq_len, objective="nsp", seed=settings.seed), DataPosition()
    )
    steps = train_steps(
        stream,
        masking_after=lambda taken: settings.masking(settings.mask_rate),
        batch_after=lambda taken: config.global_batch,
        micro_batch=config.micro_batch,
        rank=0,
        world=1,
    )
    ready = [(step.counts, list(step.micro_batches)) for step in islice(steps, config.steps)]
    model = build_model(
        preset=config.model, vocab_size=store.vocab_size, dropout=settings.dropout, seed=0, needs_nsp=True
    )
    module = PretrainingModule(model).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-4, fused=True)
    times = Times()
    for counts, micro_batches in ready:
        for batch in micro_batches:
            losses = module(batch)
            (losses.mlm / counts.masked + losses.nsp / max(counts.pairs, 1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.add_step(counts.tokens)
    return times


if __name__ == "__main__":
    config = parse(BenchmarkConfig, __doc__)
    if config.side is None:
        main(config)
    else:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
        torch.set_num_threads(1)
        sys.stdout = sys.stderr  # the last line of stdout is the result's
        found = (bare if config.side == "bare" else trainer)(config)
        print(json.dumps(found.to_json()), file=sys.__stdout__)
