"""What a run will be, before it runs: what --dry_run prints.

    estimate_run(setup, model, ...) -> Plan      .to_json() for scripts; for people plan_tables.py

Numbers of three kinds. Known: steps, tokens, bytes of a checkpoint. By formula: memory of the state at each ZeRO stage
and bytes on the wire, as DeepSpeed 0.19.8 sends them (tests/test_plan.py counts its collectives). Measured in seconds
by a probe of a few samples on this machine (probe.py): activations and time; with --gpu the time is a data sheet's
(pretrain/advice/machine.py). Communication is not in the time: it depends on a network that nothing here knows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import BertForPreTraining

from data_prep.json_types import JsonObject
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.advice import cautions, rules
from pretrain.advice.machine import Machine, busy_cores, machine_named, usable_cores
from pretrain.checkpoints.format import Manifest, ModelIdentity, check_identity
from pretrain.data import count_step
from pretrain.data_coverage import DataCoverage, data_coverage_of
from pretrain.formatting import two_digits
from pretrain.model import architecture_of
from pretrain.monitor.disk import DiskNeed, check_disk
from pretrain.monitor.probe import Probe, move_to_device, probe, probe_optimizer
from pretrain.settings.config import TrainConfig
from pretrain.settings.phases import Phase
from pretrain.settings.shape import Shape
from pretrain.setup import Setup
from pretrain.sizes import state_bytes
from pretrain.state import DataPosition

SAMPLED_TOKENS = 20_000_000  # of a store of which samples are looked at; the rest is taken to be like them
SAMPLED_SAMPLES = 1 << 14  # whose lengths are averaged
STAGES = (0, 1, 2, 3)


def wire_bytes(stage: int, parameters: int, ranks: int, precision: str, accumulation: int) -> float:
    """Return the bytes that a rank sends in a step, in rings. A prediction; the collectives are those that DeepSpeed
    0.19.8 calls.

    Stages 1 and 2 all-reduce gradients (no reduce-scatter, by default), stage 2 after every micro-batch, and gather
    weights after the step. Stage 3 gathers weights once a micro-batch, as long as they stay below
    stage3_max_live_parameters, and reduce-scatters gradients.
    """
    size = (4 if precision == "fp32" else 2) * parameters
    passed = size * (ranks - 1) / ranks  # a gather, or a scatter; an all-reduce is both
    return passed * {0: 2, 1: 2 + 1, 2: 2 * accumulation + 1, 3: 2 * accumulation}[stage]


@dataclass(frozen=True, kw_only=True)
class PhaseData:
    """What was found of a phase's samples, and a probe of them."""

    epoch_samples: float
    sample_tokens: float  # real tokens of a mean sample
    probe: Probe


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase in numbers."""

    phase: Phase
    data: PhaseData
    steps: int  # fewer than asked for where --hours end before
    samples: int  # that the steps take
    wire_bytes: float  # that a rank sends in a step
    activation_bytes: float  # of a rank, for a micro-batch
    step_seconds: float  # once the batch has grown

    @property
    def tokens(self) -> float:
        """Return the real tokens of the phase over all ranks."""
        return self.samples * self.data.sample_tokens

    @property
    def step_tokens(self) -> float:
        """Return the real tokens of a step over all ranks."""
        return self.phase.global_batch * self.data.sample_tokens

    @property
    def epochs(self) -> float:
        """Return the passes over the data."""
        return self.samples / self.data.epoch_samples

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole phase."""
        return self.step_seconds * self.samples / self.phase.global_batch

    @property
    def accumulation(self) -> int:
        """Return the micro-batches of a step on each rank."""
        return self.phase.accumulation

    def to_json(self) -> JsonObject:
        """Return the phase as JSON values."""
        span = self.phase.span
        return self.phase.described() | {
            "micro_batch": self.phase.micro_batch,
            "accumulation": self.accumulation,
            "warmup_steps": span.warmup_steps,
            "steps": self.steps,
            "samples": self.samples,
            "tokens": round(self.tokens),
            "step_tokens": round(self.step_tokens),
            "padding_saved": 1 - self.data.sample_tokens / span.seq_len,
            "epochs": self.epochs,
            "wire_bytes": round(self.wire_bytes),
            "activation_bytes": round(self.activation_bytes),
            "step_seconds": self.step_seconds,
            "seconds": self.seconds,
            "probe": self.data.probe._asdict(),
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in numbers."""

    parameters: int
    ranks: int
    stage: int
    precision: str
    has_average: bool  # of the weights
    phases: list[PhasePlan]
    disk: DiskNeed
    optimizer_seconds: float | None  # of all parameters; None where moments would not fit
    probe_device: str
    machine: Machine | None  # of --gpu; None: this one
    done: int  # steps that a checkpoint has
    coverage: DataCoverage
    warnings: list[str]

    @property
    def seconds(self) -> float:
        """Return the seconds of what is left to do, without communication."""
        ends = [phase.phase.first + phase.steps for phase in self.phases]
        left = [min(max(end - self.done, 0), phase.steps) for end, phase in zip(ends, self.phases, strict=True)]
        return sum(phase.seconds * steps / phase.steps for phase, steps in zip(self.phases, left, strict=True))

    @property
    def activation_bytes(self) -> float:
        """Return the bytes that a rank keeps for a backward pass, in the phase where these are most."""
        return max(phase.activation_bytes for phase in self.phases)

    @property
    def fits(self) -> bool:
        """Return whether state and activations fit into a GPU that is elsewhere; of this machine the probe tells."""
        together = self.state_bytes(self.stage) + self.activation_bytes
        return self.machine is None or together <= self.machine.memory

    def state_bytes(self, stage: int) -> float:
        """Return the bytes of weights, gradients, optimizer state and average that a rank has at a ZeRO stage."""
        return state_bytes(stage, self.parameters, self.ranks, self.precision, self.has_average)

    def to_json(self) -> JsonObject:
        """Return the plan as JSON values."""
        return {
            "ranks": self.ranks,
            "phases": [phase.to_json() for phase in self.phases],
            "state_bytes": {stage: round(self.state_bytes(stage)) for stage in STAGES},
            "activation_bytes": round(self.activation_bytes),
            "checkpoint": self.disk._asdict(),
            "optimizer_seconds": self.optimizer_seconds,
            "probe_device": self.probe_device,
            "steps_done": self.done,
            "seconds": self.seconds,
            "tokens_seen": self.coverage.tokens_seen,
            "tokens_seen_10": self.coverage.tokens_seen_10,
            "warnings": [*self.coverage.warnings, *self.warnings],
        }


def estimate_run(
    setup: Setup,
    model: BertForPreTraining,
    *,
    resumed_from: Path | None,
) -> Plan:
    """Check what can be checked without starting, probe, and reckon.

    Raises
    ------
    InputError: no room on the disk, a checkpoint of another model or tokenizer.
    """
    config, stores, ranks, phases = setup.config, setup.stores, setup.ranks, setup.phases
    parameters, ds_config = model.num_parameters(), phases[0].ds_config
    disk = check_disk(setup, parameters)
    done = _steps_done(resumed_from, stores[0], model)
    precision, stage = ds_config.precision, ds_config.stage
    device = move_to_device(model, ds_config)
    machine = machine_named(config.gpu, ranks) if config.gpu else None
    coverage = data_coverage_of(config, stores)
    data = [_measure_phase(phase, config, stores, model) for phase in phases]
    optimizer_seconds = None if machine else probe_optimizer(model, ds_config)
    plan = Plan(
        parameters=parameters, ranks=ranks, stage=stage, precision=precision,
        has_average=config.averaging.is_on,
        phases=[
            _plan_phase(phase, found, config, model, ranks=ranks, machine=machine, optimizer_seconds=optimizer_seconds)
            for phase, found in zip(phases, data, strict=True)
        ],
        disk=disk, optimizer_seconds=optimizer_seconds, machine=machine, done=done, coverage=coverage, warnings=[],
        probe_device=config.gpu or ("this GPU" if device.type == "cuda" else "this CPU, fp32"),
    )  # fmt: skip
    return replace(plan, warnings=list(_warnings(plan, config, stores, _shape_of(model), device.type == "cpu")))


def _steps_done(resumed_from: Path | None, store: Store, model: BertForPreTraining) -> int:
    """Return the steps of a checkpoint that the run goes on from."""
    if resumed_from is None:
        return 0
    identity = ModelIdentity(architecture_of(model.config), store.vocab_sha256, store.vocab_size)
    manifest = Manifest.read(resumed_from)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    check_identity(resumed_from, manifest, identity, shapes)
    return manifest.step


def _plan_phase(
    phase: Phase,
    data: PhaseData,
    config: TrainConfig,
    model: BertForPreTraining,
    *,
    ranks: int,
    machine: Machine | None,
    optimizer_seconds: float | None,
) -> PhasePlan:
    """Reckon a phase from what was measured of it."""
    stage, precision, accumulation = phase.ds_config.stage, phase.ds_config.precision, phase.accumulation
    micro_tokens = phase.micro_batch * data.sample_tokens
    # Seconds of a step: here by the probe, each rank with a share of the optimizer; elsewhere by the data sheet.
    if machine is None:
        step_seconds = accumulation * micro_tokens * data.probe.seconds / data.probe.tokens
        step_seconds += (optimizer_seconds or 0.0) / (ranks if stage else 1)
    else:
        speed = machine.tokens_per_second(
            _shape_of(model), model.config.vocab_size, data.sample_tokens, phase.span.mean_mask_rate, micro_tokens
        )
        step_seconds = phase.global_batch * data.sample_tokens / speed
    # Steps: those that were asked for, or as many as the hours hold.
    hold = int(3600 * config.hours / step_seconds) if config.hours else phase.span.steps
    steps = max(1, min(hold, phase.span.steps))
    # Activations: of the probe, for a whole micro-batch and in the precision of the run.
    element_bytes = 4 if precision == "fp32" else 2
    kept = data.probe.kept_bytes * micro_tokens / data.probe.tokens * element_bytes / data.probe.element_bytes
    return PhasePlan(
        phase=phase, data=data, steps=steps, samples=phase.samples_in(steps), activation_bytes=kept,
        wire_bytes=wire_bytes(stage, model.num_parameters(), ranks, precision, accumulation),
        step_seconds=step_seconds,
    )  # fmt: skip


def _shape_of(model: BertForPreTraining) -> Shape:
    config = model.config
    return Shape(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)


def _measure_phase(phase: Phase, config: TrainConfig, stores: list[Store], model: BertForPreTraining) -> PhaseData:
    """Count the samples of a phase and their tokens, and probe some; from the first shards of large stores."""

    def mixture_of(some: list[Store], weights: list[float]) -> Mixture:
        return Mixture(some, weights, seq_len=phase.span.seq_len, objective=config.objective, seed=config.seed)

    weights = phase.span.passes([store.tokens for store in stores])
    masking = config.masking(phase.span.mean_mask_rate)
    heads = [_head_of(store) for store in stores]
    # Samples of an epoch: those of the first shards, by their share of the store's tokens.
    epoch_samples = sum(
        weight * mixture_of([head], [1.0]).epoch(0).size * store.tokens / head.tokens
        for store, head, weight in zip(stores, heads, weights, strict=True)
    )
    mixture = mixture_of(heads, weights)
    epoch = mixture.epoch(0)
    some = epoch.samples_at(np.arange(min(SAMPLED_SAMPLES, epoch.size)))
    counts = count_step(some, masking, phase.span.seq_len, DataPosition())
    probed = probe(
        model, mixture, masking, micro_batch=phase.micro_batch,
        checkpoint_activations=config.checkpoint_activations,
    )  # fmt: skip
    return PhaseData(epoch_samples=epoch_samples, sample_tokens=counts.tokens / counts.samples, probe=probed)


def _head_of(store: Store) -> Store:
    """Return the store itself, or of a large one its first shards, with at least SAMPLED_TOKENS tokens."""
    count = int(np.searchsorted(store.token_starts, SAMPLED_TOKENS))
    if count >= len(store.shards):
        return store
    return replace(store, shards=store.shards[:count], identity=f"{store.identity}-first-{count}")


def _warnings(plan: Plan, config: TrainConfig, stores: list[Store], shape: Shape, on_cpu: bool) -> Iterator[str]:
    """Yield what is absurd, with its remedy: a plan is asked for so that it is seen before the run."""
    steps = sum(phase.steps for phase in plan.phases)
    passes = sum(phase.epochs for phase in plan.phases)
    found = [*cautions.many_passes(passes, _longer(config, steps, rules.MANY_PASSES / passes))]
    if on_cpu and plan.machine is None:
        tokens = sum(phase.tokens for phase in plan.phases)
        length, masked = plan.phases[0].data.sample_tokens, plan.phases[0].phase.span.mean_mask_rate
        one = machine_named("a100").tokens_per_second(shape, stores[0].vocab_size, length, masked)
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
    """Return how often each entry of the vocabulary occurs [V], about: counted in the first shards of a large store."""
    head = _head_of(store)
    counts = sum(np.bincount(shard.tokens, minlength=store.vocab_size)[: store.vocab_size] for shard in head.shards)
    return np.asarray(counts) * (store.tokens / max(head.tokens, 1))


def _longer(config: TrainConfig, steps: int, factor: float) -> str:
    """Return the option for so many times the run; none where phases decide."""
    if config.phase:
        return ""
    return (
        f"--hours {two_digits(config.hours * factor)}" if config.hours else f"--steps {max(1, round(steps * factor))}"
    )
