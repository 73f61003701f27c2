"""The phases of a run: spans of steps with a sequence length, a batch and a learning rate of their own.

    --phase seq_len=128,steps=7038,global_batch=65536,lr=6e-3,warmup=.2843 --phase seq_len=512,steps=1563,...

    parse_span(text, defaults) -> Span          what one --phase says
    phases_of(spans, ...)      -> [Phase, ...]  with the DeepSpeed JSON of each; a run without --phase has one
    phase_at(phases, step)     -> Phase         which one a step belongs to

A phase begins its own schedule. It goes on in the data where the one before ended if it has the same sequence length;
with other weights of the stores, at the next epoch of which no pass has begun; another length makes other samples,
which begin at their first epoch.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.ranges import check_ranges
from data_prep.samples.mixture import passes_by_temperature
from pretrain.settings.ds_config import DsConfig, Flags, resolve
from pretrain.settings.limits import COUNT, MASK_RATE, PASSES, SEQ_LEN, STEPS, TEMPERATURE, WARMUP
from pretrain.settings.schedule import BATCH_STAGES, Schedule, batch_size, lr_multiplier, mask_rate

CLOCK_STEPS = 1_000_000  # a schedule by the clock is one of so many steps
INTEGERS = ("seq_len", "steps", "global_batch", "micro_batch", "batch_warmup")
NUMBERS = ("lr", "warmup", "weight_decay", "mask_rate", "mask_rate_end", "temperature")
NAMES = (*INTEGERS, *NUMBERS, "schedule", "weights")
OF_DEEPSPEED = ("global_batch", "micro_batch", "lr", "weight_decay")  # what a phase says in place of its JSON
WEIGHTS = PASSES._replace(low_open=False)  # a phase may leave a store out


class Span(NamedTuple):
    """A phase as the command line has it."""

    seq_len: Annotated[int, SEQ_LEN]  # tokens of a sample
    steps: Annotated[int, STEPS]
    warmup: Annotated[float, WARMUP]  # steps, or below 1 a share of the steps
    schedule: Schedule
    batch_warmup: Annotated[int, COUNT]  # steps over which the batch grows
    mask_rate: Annotated[float, MASK_RATE] = 0.15  # share of the tokens to predict, at its beginning
    mask_rate_end: Annotated[float | None, MASK_RATE] = None  # and at its end; None: the same
    weights: Annotated[tuple[float, ...], WEIGHTS] = (1.0,)  # passes an epoch over each store of --data
    temperature: Annotated[float, TEMPERATURE] = 1.0  # smooths these
    flags: Flags = Flags()  # its own batch sizes, learning rate and weight decay

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps in which the learning rate rises."""
        return round(self.warmup * self.steps) if self.warmup < 1 else round(self.warmup)

    @property
    def mean_mask_rate(self) -> float:
        """Share of the tokens to predict over all its steps."""
        return self.mask_rate if self.mask_rate_end is None else (self.mask_rate + self.mask_rate_end) / 2

    def passes(self, tokens: Sequence[int]) -> list[float]:
        """Return passes per epoch of the stores of --data, which hold so many tokens: their weights, smoothed."""
        return passes_by_temperature(self.weights, tokens, self.temperature)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase as it is run."""

    index: int
    first: int  # steps of the run before it
    span: Span
    ds_config: DsConfig

    @property
    def end(self) -> int:
        """Steps of the run when it is done."""
        return self.first + self.span.steps

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks, once the batch has grown."""
        return self.ds_config.global_batch

    @property
    def micro_batch(self) -> int:
        """Samples that a rank takes through the model at once."""
        return self.ds_config.micro_batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on each rank."""
        return self.ds_config.accumulation

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.ds_config.lr

    @property
    def weight_decay(self) -> float:
        """Of weights, not of biases and LayerNorm."""
        return self.ds_config.weight_decay

    def described(self) -> JsonObject:
        """Return its settings by name, as a record and a page have them."""
        span = {name: value for name, value in self.span._asdict().items() if name != "flags"}
        span["weights"] = list(self.span.weights)
        return span | {name: getattr(self, name) for name in OF_DEEPSPEED}

    def lr_at(self, step: int, share_of_hours: float | None = None) -> float:
        """Return the learning rate of the step after `step` of the run, or where a share of its hours is over."""
        assert self.first <= step < self.end, (
            f"step {step} is not one of phase {self.index}: {self.first} to {self.end}"
        )
        span = self.span
        if share_of_hours is None:
            place = (step - self.first, span.warmup_steps, span.steps)
        else:
            place = (int(share_of_hours * CLOCK_STEPS), round(span.warmup * CLOCK_STEPS), CLOCK_STEPS)
        return self.lr * lr_multiplier(span.schedule, *place)

    def batch_after(self, samples_in_phase: int) -> int:
        """Return the samples of the step that begins after so many samples of this phase."""
        return batch_size(samples_in_phase, self.global_batch, self.span.batch_warmup)

    def samples_in(self, steps: int) -> int:
        """Return the samples of its first `steps`; they take fewer where the batch grows."""
        taken, growing = 0, min(steps, self.span.batch_warmup)
        for _ in range(growing):
            taken += self.batch_after(taken)
        return taken + (steps - growing) * self.global_batch

    @cached_property
    def _samples(self) -> int:
        return self.samples_in(self.span.steps)

    def mask_rate_after(self, samples_in_phase: int) -> float:
        """Return the share of the tokens to predict in the step that begins after so many samples of this phase."""
        return mask_rate(samples_in_phase, self._samples, self.span.mask_rate, self.span.mask_rate_end)


def phase_at(phases: list[Phase], step: int) -> Phase:
    """Return the phase of the step after `step` of the run; behind the end the last one."""
    return next((phase for phase in phases if step < phase.end), phases[-1])


def parse_span(text: str, defaults: Span) -> Span:
    """Parse one --phase: NAME=VALUE, comma, ...; `steps` must be among them, what else is missing is as in `defaults`.

    Raises
    ------
    InputError: an unknown name, a value that is no number, or one that makes no sense.
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name not in NAMES or name in values:
            raise InputError(f"--phase {text}: {part!r} is not one of {'=, '.join(NAMES)}=, each once")
        values[name] = (
            value if name == "schedule"
            else _weights(text, value, len(defaults.weights)) if name == "weights"
            else _number(text, name, value)
        )  # fmt: skip
    if "steps" not in values:
        raise InputError(f"--phase {text} does not say how long it is: steps=N")
    own = Flags(**{name: values.pop(name, None) for name in OF_DEEPSPEED})
    return check_span(defaults._replace(**values, flags=own), f"--phase {text}: ")


def _number(text: str, name: str, value: str) -> int | float:
    try:
        return int(value) if name in INTEGERS else float(value)
    except ValueError as error:
        kind = "whole number" if name in INTEGERS else "number"
        raise InputError(f"--phase {text}: {name} {value!r} is not a {kind}") from error


def _weights(text: str, value: str, stores: int) -> tuple[float, ...]:
    """Return 1:0.5 as (1.0, 0.5)."""
    weights = tuple(_number(text, "weights", part) for part in value.split(":"))
    if len(weights) != stores or not any(weights):
        raise InputError(
            f"--phase {text}: weights {value} must be one number for each of the {stores} stores of --data, such as "
            f"{':'.join(['1'] * stores)}, and not all 0"
        )
    return weights


def parse_spans(texts: Sequence[str], whole: Span) -> list[Span]:
    """Return the phases that these --phase ask for; the `whole` run as one where there are none.

    Raises
    ------
    InputError: as parse_span() and check_span() do.
    """
    return [parse_span(text, whole) for text in texts] or [check_span(whole)]


def check_phases(texts: Sequence[str], whole: Span) -> None:
    """Refuse what parse_spans() does."""
    parse_spans(texts, whole)


def check_span(span: Span, option: str = "--") -> Span:
    """Return the span itself, if its values make sense; `option` is what stands before a name in a message.

    Raises
    ------
    InputError: naming the first value that does not.
    """
    check_ranges(span, option)
    check_ranges(span.flags, option)
    if not 0 <= span.warmup_steps < span.steps:
        raise InputError(f"{option}warmup {span.warmup:g} must lie in [0, steps {span.steps})")
    if span.schedule not in get_args(Schedule):
        raise InputError(f"{option}schedule {span.schedule!r}: choose one of {', '.join(get_args(Schedule))}")
    if not 0 <= span.batch_warmup <= span.steps:
        raise InputError(f"{option}batch_warmup {span.batch_warmup} must lie in [0, steps {span.steps}]")
    return span


def phases_of(spans: list[Span], path: Path, flags: Flags, world_size: int, default_precision: str) -> list[Phase]:
    """Return the phases of a run, with the DeepSpeed JSON at `path` resolved for each.

    Raises
    ------
    InputError: as ds_config.resolve does; a growing batch whose eighth is not a multiple of ranks x micro-batch.
    """
    phases: list[Phase] = []
    for span in spans:
        ds_config = resolve(path, flags, world_size, default_precision, span.flags)
        first = phases[-1].end if phases else 0
        phase = Phase(len(phases), first, span, ds_config)
        if span.batch_warmup and phase.global_batch % (BATCH_STAGES * phase.micro_batch * world_size):
            raise InputError(
                f"a batch that grows in {BATCH_STAGES} stages to {phase.global_batch} samples needs a multiple of "
                f"{BATCH_STAGES} x {world_size} ranks x micro-batch {phase.micro_batch}; change --global_batch or "
                "--micro_batch"
            )
        phases.append(phase)
    return phases


def engine_ds_config(phases: list[Phase]) -> DsConfig:
    """Return what DeepSpeed is started with: the phase of most micro-batches; offloading makes its buffers for them."""
    return max((phase.ds_config for phase in phases), key=lambda ds_config: ds_config.accumulation)
