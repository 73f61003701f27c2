"""What the whole trainer keeps of the bare step's speed, what the loader takes, and what a second rank gives.

    python benchmarks/trainer_overhead.py [--store runs/en/store] [--model bert-mini --global_batch 64 --micro_batch 8]

Each side in processes of its own, forked from this one, one thread and one core each, on the same samples:

    bare        model, clipping, fused AdamW, from batches that lie ready in memory
    trainer     pretrain.train through DeepSpeed at ZeRO stage 1, with loader, logging, evaluation and saving
    two ranks   the same as two processes over gloo

Logging is at its default interval. Evaluation and saving happen once, at the end, and are charged with their share of
a step at the default interval of 500 steps. "ratio" is the trainer's speed over the bare step's, by the clock, best
interval of each; "ratio_cpu" the same in processor time, which a busy machine disturbs less. One JSON line, about four
minutes.
"""

import os
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    # Of DeepSpeed, which looking for another accelerator says so on stdout, and of the threads that libraries start.
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

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
from tests.ranks import run_ranks
from tests.stores import random_documents, store_of

INTERVAL = TrainConfig.log_every  # steps
PER_SAVE, PER_EVALUATION = TrainConfig.save_every, TrainConfig.eval_every
Side = Literal["bare", "trainer"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured."""

    store: Path | None = None
    """token store; left out: one of random words"""
    documents: int = 4000
    """documents of random words, of about 200 tokens"""
    model: Preset = "bert-mini"
    seq_len: int = 128
    global_batch: int = 64
    """samples of a step"""
    micro_batch: int = 8
    """samples of a micro-batch"""
    steps: int = 30
    """steps of each side; the first interval of ten does not count"""


def main(config: BenchmarkConfig) -> None:
    """All sides one after another."""
    with tempfile.TemporaryDirectory(prefix="zerobert-") as folder:
        store = config.store or a_store(Path(folder) / "store", config.documents)
        sides: tuple[tuple[Side, int], ...] = (("bare", 1), ("trainer", 1), ("trainer", 2))
        bare, trainer, *two = (
            found
            for side, ranks in sides
            for found in measured(config, store, Path(folder) / f"run-{side}-{ranks}", side, ranks)
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
        "settings": {name: str(value) for name, value in config.__dict__.items()},
    }
    print_json(result | machine("torch", "deepspeed"))


def a_store(folder: Path, count: int) -> Path:
    """Write a store of so many documents of made-up words, a fifth of them held out; return its folder."""
    documents = random_documents(count, vocab_size=8192, longest=40)
    return store_of(folder, documents, 8192, held_out=range(0, count, 5)).folder


def best(found: dict[str, Any], clock: str) -> float:
    """The shortest interval but the first."""
    return min(found[f"interval_{clock}"][1:])


def measured(config: BenchmarkConfig, store: Path, run: Path, side: Side, ranks: int) -> list[dict[str, Any]]:
    """Return what each rank of one side found."""
    say(f"{side}, {ranks} rank{'s' * (ranks > 1)}")
    return run_ranks(ranks, measure, replace(config, store=store), run, side)


def measure(config: BenchmarkConfig, run: Path, side: Side) -> dict[str, Any]:
    """In a process of its own: measure one side, on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    return (bare if side == "bare" else trainer)(config, run).to_json()


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


def train_config(config: BenchmarkConfig, run: Path) -> TrainConfig:
    """The run; evaluation and saving at its end only."""
    return TrainConfig(
        data=(str(config.store),), out=run, model=config.model, seq_len=config.seq_len,
        steps=config.steps, eval_every=0, save_every=0,
        flags=Flags(global_batch=config.global_batch, micro_batch=config.micro_batch, zero=1, precision="fp32"),
    )  # fmt: skip


def trainer(config: BenchmarkConfig, run: Path) -> Times:
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

    def saved(run: Any, *arguments: Any, **options: Any) -> None:
        with times.measuring("saving"):
            save(run, *arguments, **options)
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
    loop.save, data.prefetch = saved, fetched
    train.train(train_config(config, run))
    return times


def bare(config: BenchmarkConfig, run: Path) -> Times:
    """The same steps without a trainer."""
    assert config.store is not None
    store = Store.open(config.store)
    settings = train_config(config, run)
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
    main(parse(BenchmarkConfig, __doc__))
