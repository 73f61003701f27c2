"""The plan of a run as tables for people.

print(for_stderr(*plan_tables(plan)))
"""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from pretrain.formatting import bytes_in_words, counted, duration
from pretrain.monitor.console import grid, name_values
from pretrain.monitor.plan import STAGES, PhasePlan, Plan, wire_bytes


def plan_tables(plan: Plan) -> Iterator[Table | Text | str]:
    """Yield phases, memory by ZeRO stage, what was measured, and warnings."""
    yield grid(
        "Phases",
        ("tokens per sample", "steps", "batch", "cut into", "lr", "tokens per step", "tokens", "epochs", "time"),
        [_phase_row(phase, plan.ranks) for phase in plan.phases],
    )
    several = "s" * (plan.ranks > 1)
    yield grid(
        f"Memory of a rank, and bytes that it sends per step ({plan.ranks} rank{several}, {plan.precision})",
        ("ZeRO", "state", "activations", "together", "sent per step"),
        [_stage_row(plan, stage) for stage in STAGES if stage or plan.precision == "fp32"],
    )
    yield "State and bytes sent are predictions by formula; activations are counted in a probe of one micro-batch."
    yield name_values("", _rest(plan))
    for warning in plan.warnings:
        yield Text.assemble(("warning: ", "yellow"), warning)


def _phase_row(phase: PhasePlan, ranks: int) -> tuple[str, ...]:
    return (
        f"{phase.phase.span.seq_len}, mean {phase.data.sample_tokens:.0f}",
        f"{phase.steps:,}",
        f"{phase.phase.global_batch:,}",
        f"{ranks} x {phase.accumulation} x {phase.phase.micro_batch}",
        f"{phase.phase.described()['lr']:g}",
        counted(phase.step_tokens),
        counted(phase.tokens),
        f"{phase.epochs:.3g}",
        duration(phase.seconds),
    )


def _stage_row(plan: Plan, stage: int) -> tuple[str, ...]:
    """Return what a rank would have and send at a ZeRO stage, in the phase of the largest micro-batch."""
    largest = max(plan.phases, key=lambda phase: phase.activation_bytes)
    sent = wire_bytes(stage, plan.parameters, plan.ranks, plan.precision, largest.accumulation)
    return (
        f"{stage}{' (this run)' if stage == plan.stage else ''}",
        bytes_in_words(plan.state_bytes(stage)),
        bytes_in_words(plan.activation_bytes),
        bytes_in_words(plan.state_bytes(stage) + plan.activation_bytes),
        bytes_in_words(sent),
    )


def _rest(plan: Plan) -> Iterator[tuple[str, str]]:
    disk, probe, machine = plan.disk, plan.phases[0].data.probe, plan.machine
    yield (
        "Checkpoint",
        f"{bytes_in_words(disk.bytes)}, up to {disk.at_once} on disk at once ({bytes_in_words(disk.free_bytes)} free); "
        f"{bytes_in_words(disk.bytes / plan.ranks)} of host memory per rank while one is written",
    )
    if disk.exports:
        yield "Exports", f"{disk.exports:,} Hugging Face folders of {bytes_in_words(disk.export_bytes)}, all kept"
    if machine is not None:
        phase = plan.phases[0]
        yield (
            "Speed",
            f"{phase.step_tokens / phase.step_seconds:,.0f} tokens/s over all ranks, predicted: {machine.in_words()}, "
            f"of which training reaches {machine.mfu:.2f} (MFU of BERT-large, assumed)",
        )
        together = bytes_in_words(plan.activation_bytes + plan.state_bytes(plan.stage))
        yield "Fits", f"{together} into {bytes_in_words(machine.memory)}: {'yes' if plan.fits else 'no'}"
    else:
        optimizer = plan.optimizer_seconds
        more = f", an optimizer step of all parameters {1e3 * optimizer:.0f} ms" if optimizer is not None else ""
        yield "Speed", f"{probe.tokens / probe.seconds:,.0f} tokens/s per rank on {plan.probe_device}{more}"
    gradients = probe.element_bytes * plan.parameters
    yield (
        "Measured",
        f"{bytes_in_words(probe.peak_bytes)} above the weights for {probe.tokens:,} tokens; by formula "
        f"{bytes_in_words(probe.kept_bytes + gradients)}, of which {bytes_in_words(gradients)} are gradients",
    )
    yield "Time", f"{duration(plan.seconds)} at this rate, without communication, evaluation and saving"
