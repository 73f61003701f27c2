"""What a run says of itself at its start and at its end: on the console, and in log.txt."""

from pathlib import Path

from rich.text import Text

from data_prep.calls import call
from pretrain.checkpoints.format import best_checkpoint, list_checkpoints
from pretrain.formatting import counted, duration
from pretrain.monitor.console import name_values
from pretrain.run_facts import FINISHED, STOPPED, StoreSize, run_facts
from pretrain.run_record import RunRecord
from pretrain.settings.config import TrainConfig
from pretrain.settings.phases import Phase
from pretrain.setup import Setup
from pretrain.state import RunState


def start_summary(
    setup: Setup,
    record: RunRecord,
    *,
    devices: str,
    resumed_from: Path | None,
    lost: str = "",
) -> Text:
    """Return a run in words before it runs.

    record: the content of its config.json
    devices: what the ranks compute on
    lost: what a process that was killed did beyond `resumed_from`
    """
    config = setup.config
    sizes = [StoreSize(store.tokens, store.documents) for store in setup.stores]
    told = run_facts(record, parameters=record.get("parameters"), sizes=sizes)
    several = bool(config.phase)
    for name in ("Hyper-parameters", "Software", "Code", "Phases", *(("Sample", "Batch") if several else ())):
        told.pop(name, None)
    if several:
        told |= {"Learning rate": f"{config.schedule}, by phase"}
        told |= {f"Phase {phase.index + 1}": _phase_in_words(phase) for phase in setup.phases}
    shares = dict.fromkeys(_mask_rate(phase) for phase in setup.phases)
    masked = shares.popitem()[0] if len(shares) == 1 else "by phase a share"
    if config.hours:
        told["Steps"] = f"as many as {config.hours:g} hours hold, {config.total_steps:,} at most"
    outlook = record["outlook"]
    told |= {
        "Tokens seen": outlook["seen"],
        "Masking": f"{masked} of the tokens, by {config.mask_unit}",
        "Evaluation": f"{config.eval_samples} held-out samples "
        + (_rhythm(config.eval_every, config.eval_minutes) or "at the end")
        if outlook["is_evaluated"]
        else f"none: {outlook['no_evaluation']}"
        if config.eval_samples
        else "none",
        "Minimal pairs": f"{len(setup.minimal_pairs):,} of {config.eval_pairs}, with each evaluation"
        if setup.minimal_pairs
        else "",
        "Checkpoints": _rhythm(config.save_every, config.save_minutes) or "one at the end",
        "Warning": "; ".join(outlook["warnings"]) if outlook["is_evaluated"] else "",
        "Devices": devices,
        "Resume": (f"from {resumed_from}" if resumed_from else "a new run") + (f"; lost {lost}" if lost else ""),
        "Folder": str(config.out),
    }
    return name_values("What will run", told.items())


def _rhythm(steps: int, minutes: float) -> str:
    """Return how often something happens."""
    return " and ".join([f"every {steps:,} steps"] * (steps > 0) + [f"every {minutes:g} minutes"] * (minutes > 0))


def _mask_rate(phase: Phase) -> str:
    begin, end = phase.span.mask_rate, phase.span.mask_rate_end
    return f"{100 * begin:g}%" if end is None else f"{100 * begin:g}% to {100 * end:g}%"


def _phase_in_words(phase: Phase) -> str:
    span = phase.span
    weights = f", stores {':'.join(f'{weight:g}' for weight in span.weights)}" if len(span.weights) > 1 else ""
    return (
        f"{span.steps:,} steps of {phase.global_batch:,} samples of {span.seq_len} tokens, "
        f"lr {phase.lr:g}, warm-up {span.warmup_steps:,} steps, decay {phase.weight_decay:g}, "
        f"{_mask_rate(phase)} masked{weights}"
    )


def end_summary(config: TrainConfig, state: RunState, first: RunState, seconds: float, is_finished: bool) -> Text:
    """Return a run in words after it ran, from the state `first` on, and where to look next."""
    tokens = state.tokens - first.tokens
    best = best_checkpoint(list_checkpoints(config.out))
    source = config.out if best is None or not is_finished else best.folder
    of_all = "" if config.hours else f" of {config.total_steps:,}"
    rows = {
        "Status": f"{FINISHED if is_finished else STOPPED} at step {state.step:,}{of_all}, "
        f"{duration(seconds)} after step {first.step:,}",
        "Tokens": f"{counted(state.tokens)} in all, {tokens / max(seconds, 1e-9):,.0f} per second with all pauses",
        "Skipped": f"{state.steps_skipped:,} steps" if state.steps_skipped else "",
        "Averaged": f"{config.averaging.in_words(state.averaged)}; export it with --weights averaged"
        if state.averaged
        else "",
        "Best": "",
        "To go on": "" if is_finished else "the same command",
        "Export": call("export", source, config.out.parent / "hf"),
        "Report": call("report", config.out, "--out", config.out / "report"),
    }
    if best is not None:
        rows["Best"] = f"held-out loss {best.loss:.4f}, in {best.folder}"
    return name_values("What came out", rows.items())
