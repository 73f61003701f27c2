"""What a run will be, before it runs: what --dry_run prints, and the look at the disk with which every run begins.

    make(config, phases, stores, model, resumed_from) -> Plan    .record() for scripts, .tables() for people
    check_disk(config, phases, parameters)

Numbers of three kinds. Known: steps, tokens, bytes of a checkpoint. By formula: memory of the state at each ZeRO stage
and bytes on the wire, as DeepSpeed 0.19.8 sends them (tests/test_plan.py counts its collectives). Measured in seconds
by a probe of a few samples on this machine (probe.py): activations and time; with --gpu the time is a data sheet's
(pretrain/advice/machine.py). Communication is not in the time: it depends on a network that nothing here knows.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text
from transformers import BertForPreTraining

from data_prep.cli import InputError
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.advice import cautions, rules
from pretrain.advice.machine import Machine, busy_cores, elsewhere, usable_cores
from pretrain.checkpoints.format import Manifest, ModelIdentity, check_identity, list_checkpoints
from pretrain.data import count_step
from pretrain.model import architecture_of
from pretrain.monitor.console import grid, name_values
from pretrain.monitor.probe import Probe, device_of, probe, probe_optimizer
from pretrain.outlook import Outlook, look_ahead
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import precision_of
from pretrain.settings.phases import Phase
from pretrain.sizes import STATE, Shape, state_bytes
from pretrain.state import DataPosition
from pretrain.wording import counted, duration

INDEXED = 20_000_000  # tokens of a store of which samples are looked at; the rest is taken to be like them
LOOKED_AT = 1 << 14  # samples whose lengths are averaged
STAGES = (0, 1, 2, 3)


def wire_bytes(stage: int, parameters: int, ranks: int, precision: str, accumulation: int) -> float:
    """Bytes that a rank sends in a step, in rings. A prediction; the collectives are those that DeepSpeed 0.19.8 calls.

    Stages 1 and 2 all-reduce gradients (no reduce-scatter, by default), stage 2 after every micro-batch, and gather
    weights after the step. Stage 3 gathers weights once a micro-batch, as long as they stay below
    stage3_max_live_parameters, and reduce-scatters gradients.
    """
    size = (4 if precision == "fp32" else 2) * parameters
    passed = size * (ranks - 1) / ranks  # a gather, or a scatter; an all-reduce is both
    return passed * {0: 2, 1: 2 + 1, 2: 2 * accumulation + 1, 3: 2 * accumulation}[stage]


def check_disk(config: TrainConfig, phases: list[Phase], parameters: int) -> dict[str, int]:
    """Room for the checkpoints that will be kept, and for the one being written.

    Raises
    ------
    InputError: there is less.
    """
    size = STATE * parameters
    saves = len(phases) + (phases[-1].end // config.save_every if config.save_every else 0)
    most = min(saves, config.keep + 1 + bool(config.eval_samples)) if config.keep else saves  # the best is kept too
    if config.hours and not config.keep:
        most = 1  # nobody knows how many steps the hours will hold
    there = len(list_checkpoints(config.out))
    needed = max(most - there, 0) * size
    folder = next(parent for parent in (config.out, *config.out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--out {config.out}: {most - there} more checkpoints of {_bytes(size)} each need {_bytes(needed)}, and "
            f"the disk has {_bytes(free)} free; make room, choose another --out, or keep fewer (--keep {config.keep}, "
            f"--save_every {config.save_every})"
        )
    return {"bytes": size, "at_once": most, "there": there, "needed_bytes": needed, "free_bytes": free}


class PhasePlan(NamedTuple):
    """One phase in numbers."""

    phase: Phase
    steps: int  # fewer than asked for where --hours end before
    samples: int  # that the steps take
    epoch_samples: float
    sample_tokens: float  # real tokens of a mean sample
    probe: Probe
    wire_bytes: float  # that a rank sends in a step
    activation_bytes: float  # a rank, for a micro-batch
    step_seconds: float  # once the batch has grown

    @property
    def step_tokens(self) -> float:
        """Real tokens of a step over all ranks."""
        return self.phase.global_batch * self.sample_tokens

    @property
    def seconds(self) -> float:
        """Of the whole phase."""
        return self.step_seconds * self.samples / self.phase.global_batch

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        span = self.phase.span
        return self.phase.described() | {
            "micro_batch": self.phase.micro_batch,
            "accumulation": self.phase.settings["gradient_accumulation_steps"],
            "warmup_steps": span.warmup_steps,
            "steps": self.steps,
            "samples": self.samples,
            "tokens": round(self.samples * self.sample_tokens),
            "step_tokens": round(self.step_tokens),
            "padding_saved": 1 - self.sample_tokens / span.seq_len,
            "epochs": self.samples / self.epoch_samples,
            "wire_bytes": round(self.wire_bytes),
            "activation_bytes": round(self.activation_bytes),
            "step_seconds": self.step_seconds,
            "seconds": self.seconds,
            "probe": self.probe._asdict(),
        }


class Plan(NamedTuple):
    """A run in numbers."""

    parameters: int
    ranks: int
    stage: int
    precision: str
    phases: list[PhasePlan]
    disk: dict[str, int]
    optimizer_seconds: float | None  # of all parameters; None where moments would not fit
    probe_device: str
    machine: Machine | None  # of --gpu; None: this one
    warnings: list[str]
    done: int  # steps that a checkpoint has
    outlook: Outlook

    @property
    def seconds(self) -> float:
        """What is left to do, without communication."""
        ends = [phase.phase.first + phase.steps for phase in self.phases]
        left = [min(max(end - self.done, 0), phase.steps) for end, phase in zip(ends, self.phases, strict=True)]
        return sum(phase.seconds * steps / phase.steps for phase, steps in zip(self.phases, left, strict=True))

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        activations = max(phase.activation_bytes for phase in self.phases)
        return {
            "ranks": self.ranks,
            "phases": [phase.record() for phase in self.phases],
            "state_bytes": {stage: round(self._state(stage)) for stage in STAGES},
            "activation_bytes": round(activations),
            "checkpoint": self.disk,
            "optimizer_seconds": self.optimizer_seconds,
            "probe_device": self.probe_device,
            "steps_done": self.done,
            "seconds": self.seconds,
            "tokens_seen": self.outlook.tokens_seen,
            "tokens_seen_10": self.outlook.tokens_seen_10,
            "warnings": [*self.outlook.warnings, *self.warnings],
        }

    def _fits(self) -> bool:
        kept = max(phase.activation_bytes for phase in self.phases)
        return self.machine is None or self._state(self.stage) + kept <= self.machine.memory

    def _state(self, stage: int) -> float:
        return state_bytes(stage, self.parameters, self.ranks, self.precision)

    def tables(self) -> Iterator[Table | Text | str]:
        """For people."""
        yield grid(
            "Phases",
            ("tokens a sample", "steps", "batch", "cut into", "lr", "tokens a step", "tokens", "epochs", "time"),
            [
                (
                    f"{phase.phase.span.seq_len}, mean {phase.sample_tokens:.0f}",
                    f"{phase.steps:,}",
                    f"{phase.phase.global_batch:,}",
                    _cut(phase.phase, self.ranks),
                    f"{phase.phase.described()['lr']:g}",
                    counted(phase.step_tokens),
                    counted(phase.samples * phase.sample_tokens),
                    f"{phase.samples / phase.epoch_samples:.3g}",
                    duration(phase.seconds),
                )
                for phase in self.phases
            ],
        )
        longest = max(self.phases, key=lambda phase: phase.activation_bytes)
        yield grid(
            f"Memory a rank, and bytes that it sends a step ({self.ranks} rank{'s' * (self.ranks > 1)}, "
            f"{self.precision})",
            ("ZeRO", "state", "activations", "together", "sent a step"),
            [
                (
                    f"{stage}{' (this run)' if stage == self.stage else ''}",
                    _bytes(self._state(stage)),
                    _bytes(longest.activation_bytes),
                    _bytes(self._state(stage) + longest.activation_bytes),
                    _bytes(self._wire(stage, longest.phase)),
                )
                for stage in STAGES
                if stage or self.precision == "fp32"
            ],
        )
        yield "State and bytes sent are predictions by formula; activations are counted in a probe of one micro-batch."
        yield name_values("", self._rest())
        for warning in self.warnings:
            yield Text.assemble(("warning: ", "yellow"), warning)

    def _wire(self, stage: int, phase: Phase) -> float:
        accumulation = phase.settings["gradient_accumulation_steps"]
        return wire_bytes(stage, self.parameters, self.ranks, self.precision, accumulation)

    def _rest(self) -> Iterator[tuple[str, str]]:
        disk, first = self.disk, self.phases[0].probe
        yield (
            "Checkpoint",
            f"{_bytes(disk['bytes'])}, up to {disk['at_once']} on disk at once ({_bytes(disk['free_bytes'])} free); "
            f"{_bytes(disk['bytes'] / self.ranks)} of host memory a rank while one is written",
        )
        optimizer = self.optimizer_seconds
        if self.machine is not None:
            phase = self.phases[0]
            yield (
                "Speed",
                f"{phase.step_tokens / phase.step_seconds:,.0f} tokens/s, predicted: {self.machine.in_words()}, of "
                f"which training reaches {self.machine.mfu:.2f} (MFU of BERT-large, assumed)",
            )
            longest = max(phase.activation_bytes for phase in self.phases) + self._state(self.stage)
            yield "Fits", f"{_bytes(longest)} into {_bytes(self.machine.memory)}: {'yes' if self._fits() else 'no'}"
        else:
            yield (
                "Speed",
                f"{first.tokens / first.seconds:,.0f} tokens/s a rank on {self.probe_device}"
                + (f", an optimizer step of all parameters {1e3 * optimizer:.0f} ms" if optimizer is not None else ""),
            )
        gradients = first.element_bytes * self.parameters
        yield (
            "Measured",
            f"{_bytes(first.peak_bytes)} above the weights for {first.tokens:,} tokens; "
            f"by formula {_bytes(first.kept_bytes + gradients)}, of which {_bytes(gradients)} are gradients",
        )
        yield "Time", f"{duration(self.seconds)} at this rate, without communication, evaluation and saving"


def make(
    config: TrainConfig, phases: list[Phase], stores: list[Store], model: BertForPreTraining, resumed_from: Path | None
) -> Plan:
    """Check what can be checked without starting, and probe.

    Raises
    ------
    InputError: no room on the disk, a checkpoint of another model or tokenizer.
    """
    parameters = model.num_parameters()
    disk = check_disk(config, phases, parameters)
    done = 0
    if resumed_from is not None:
        identity = ModelIdentity(architecture_of(model.config), stores[0].vocab_sha256, stores[0].vocab_size)
        manifest = Manifest.read(resumed_from)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        check_identity(resumed_from, manifest, identity, shapes)
        done = manifest.step
    settings = phases[0].settings
    ranks, precision = int(os.environ.get("WORLD_SIZE", "1")), precision_of(settings)
    stage = settings["zero_optimization"]["stage"]
    device = device_of(model, settings)
    machine = elsewhere(config.gpu, ranks) if config.gpu else None
    outlook = look_ahead(config, stores)
    found = [_looked_at(phase, config, stores, model) for phase in phases]
    optimizer_seconds = None if machine else probe_optimizer(model, settings)
    shape = Shape(model.config.num_hidden_layers, model.config.hidden_size)
    planned = []
    for phase, (epoch_samples, sample_tokens, probed) in zip(phases, found, strict=True):
        accumulation = phase.settings["gradient_accumulation_steps"]
        micro_tokens = phase.micro_batch * sample_tokens
        size = 4 if precision == "fp32" else 2
        if machine is None:
            step_seconds = accumulation * micro_tokens * probed.seconds / probed.tokens
            step_seconds += (optimizer_seconds or 0.0) / (ranks if stage else 1)
        else:
            speed = machine.tokens_per_second(
                shape, model.config.vocab_size, sample_tokens, config.mask_rate, micro_tokens
            )
            step_seconds = phase.global_batch * sample_tokens / speed
        hold = int(3600 * config.hours / step_seconds) if config.hours else phase.span.steps
        steps = max(1, min(hold, phase.span.steps))
        planned.append(
            PhasePlan(
                phase,
                steps,
                _samples_taken(phase, steps),
                epoch_samples,
                sample_tokens,
                probed,
                wire_bytes(stage, parameters, ranks, precision, accumulation),
                probed.kept_bytes * micro_tokens / probed.tokens * size / probed.element_bytes,
                step_seconds,
            )
        )
    name = config.gpu or ("this GPU" if device.type == "cuda" else "this CPU, fp32")
    plan = Plan(parameters, ranks, stage, precision, planned, disk, optimizer_seconds, name, machine, [], done, outlook)
    plan.warnings.extend(_warnings(plan, config, stores, shape, device.type == "cpu"))
    return plan


def _warnings(plan: Plan, config: TrainConfig, stores: list[Store], shape: Shape, on_cpu: bool) -> Iterator[str]:
    """What is absurd, with its remedy: a plan is asked for so that it is seen before the run."""
    steps = sum(phase.steps for phase in plan.phases)
    passes = sum(phase.samples / phase.epoch_samples for phase in plan.phases)
    found = [*cautions.many_passes(passes, _longer(config, steps, rules.MANY_PASSES / passes))]
    if on_cpu and plan.machine is None:
        tokens = sum(phase.samples * phase.sample_tokens for phase in plan.phases)
        length = plan.phases[0].sample_tokens
        one = elsewhere("a100").tokens_per_second(shape, stores[0].vocab_size, length, config.mask_rate)
        found += cautions.days_on_a_cpu(plan.seconds, tokens / one)
        if plan.ranks > usable_cores():
            found.append(
                f"the time is that of {plan.ranks} ranks of this CPU, on which it was probed: --gpu NAME plans for "
                "GPUs that are elsewhere"
            )
    if config.model:  # another model's training has left the plateau
        found += cautions.few_steps(steps, _longer(config, steps, rules.PLATEAU / steps))
    yield from found
    if found:
        yield "what fits a text, a machine and the hours: python -m pretrain.advice --corpus TEXTS --hours HOURS"
    if on_cpu and plan.machine is None:
        yield from cautions.busy(busy_cores(), usable_cores(), "the probe was slow for it, and the time is too long")
    uses = np.sum([_uses(store) for store in stores], axis=0)
    remedy = "make a smaller one (vocab --size), or give more text"
    yield from cautions.rare_entries(len(uses), float(np.median(uses)), remedy)


def _uses(store: Store) -> np.ndarray:
    """How often each entry of the vocabulary occurs [V], about: counted in the first shards of a large store."""
    head = _head_of(store)
    counts = sum(np.bincount(shard.tokens, minlength=store.vocab_size)[: store.vocab_size] for shard in head.shards)
    return np.asarray(counts) * (store.tokens / max(head.tokens, 1))


def _longer(config: TrainConfig, steps: int, factor: float) -> str:
    """The option for so many times the run; none where phases decide."""
    if config.phase:
        return ""
    return f"--hours {config.hours * factor:.2g}" if config.hours else f"--steps {max(1, round(steps * factor))}"


def _looked_at(
    phase: Phase, config: TrainConfig, stores: list[Store], model: BertForPreTraining
) -> tuple[float, float, Probe]:
    """Samples of an epoch, real tokens of a mean sample, and a probe; from the first shards of large stores."""
    seq_len = phase.span.seq_len
    samples = 0.0
    weights = config.passes([store.tokens for store in stores])
    for store, weight in zip(stores, weights, strict=True):
        head = _head_of(store)
        share = head.token_starts[-1] / store.token_starts[-1]
        samples += (
            weight
            * Mixture([head], [1.0], seq_len=seq_len, objective=config.objective, seed=config.seed).epoch(0).size
            / share
        )
    mixture = Mixture(
        [_head_of(store) for store in stores], weights, seq_len=seq_len, objective=config.objective, seed=config.seed
    )
    epoch = mixture.epoch(0)
    some = epoch.samples_at(np.arange(min(LOOKED_AT, epoch.size)))
    counts = count_step(some, config.masking, seq_len, DataPosition())
    probed = probe(model, mixture, config.masking, phase.micro_batch, config.checkpoint_activations)
    return samples, counts.tokens / counts.samples, probed


def _head_of(store: Store) -> Store:
    """The store itself, or of a large one its first shards, with at least INDEXED tokens."""
    count = int(np.searchsorted(store.token_starts, INDEXED))
    if count >= len(store.shards):
        return store
    return dataclasses.replace(store, shards=store.shards[:count], identity=f"{store.identity}-first-{count}")


def _samples_taken(phase: Phase, steps: int) -> int:
    """Samples of the first steps; they take fewer where the batch grows."""
    taken, growing = 0, min(steps, phase.span.batch_warmup)
    for _ in range(growing):
        taken += phase.batch_after(taken)
    return taken + (steps - growing) * phase.global_batch


def _cut(phase: Phase, ranks: int) -> str:
    accumulation = phase.settings["gradient_accumulation_steps"]
    return f"{ranks} x {accumulation} x {phase.micro_batch}"


def _bytes(value: float) -> str:
    size = 1000 ** min(int(math.log(max(value, 1), 1000)), 4)
    return f"{value / size:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][round(math.log(size, 1000))]}"
