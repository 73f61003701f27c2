"""Numbers, settings and events in words, as the page says them."""

from typing import Any, Literal

from pretrain.report.history import Event, History

Unit = Literal["nats", "share", "plain", "count"]
NONE = "\N{EN DASH}"  # where there is no number
TIMES = " \N{MULTIPLICATION SIGN} "


def counted(value: float) -> str:
    """12345 as 12.3k: for axes and headlines, three digits are enough."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{float(f'{value:.3g}'):g}"


def as_text(value: float | None, unit: Unit) -> str:
    """A value as a legend or a table says it: trailing zeros stay, so that columns and a moving pointer do not jump."""
    if value is None:
        return NONE
    if unit == "count":
        return counted(value)
    if unit == "share":
        return f"{100 * value:#.3g}".rstrip(".") + "%"
    return f"{value:#.4g}".rstrip(".") if unit == "nats" else _plain(value)


def ticked(value: float, unit: Unit) -> str:
    """A value as an axis says it."""
    if unit == "share":
        return f"{float(f'{100 * value:.3g}'):g}%"
    return counted(value) if unit == "count" else _plain(value)


def _plain(value: float) -> str:
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{float(f'{value:.3g}'):g}"


def duration(seconds: float) -> str:
    """Two units are enough: 2 d 3 h, 1 h 05 min, 3 min 20 s, 12 s."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def _length(history: History) -> str | None:
    if history.hours:
        return f"as many as {history.hours:g} hours hold"
    return f"{history.steps:,}" if history.steps else None


def facts(history: History) -> dict[str, str]:
    """A run in words, the most telling first."""
    train, deepspeed = history.config["train"], history.config.get("deepspeed", {})
    shape = history.checkpoint.identity.model if history.checkpoint else {}
    optimizer = deepspeed.get("optimizer", {})
    settings = {name: value for name, value in optimizer.get("params", {}).items() if value is not None}
    versions = history.config.get("versions", {}) | {"python": history.config.get("python")}
    git = history.config.get("git", {})
    in_phases = bool(train.get("phase"))
    told = {
        "Model": train.get("model") or (f"continues {train['init_from']}" if train.get("init_from") else None),
        "Shape": shape and f"{shape.get('num_hidden_layers')} layers of {shape.get('hidden_size')}",
        "Parameters": history.parameters and f"{history.parameters:,}",
        "Vocabulary": history.config.get("vocab_size") and f"{history.config['vocab_size']:,} entries",
        "Data": "; ".join(_data(history)),
        "Objective": {"nsp": "masked words, next sentence", "sop": "masked words, sentence order"}.get(
            train.get("objective", "nsp"), "masked words"
        ),
        "Steps": f"as many as {history.hours:g} hours hold"
        if history.hours
        else history.steps and f"{history.steps:,}",
        "Phases": "; ".join(train.get("phase", ())),
        "Sample": not in_phases and train.get("seq_len") and f"{train['seq_len']} tokens",
        "Batch": None if in_phases else _batch(deepspeed),
        "Optimizer": optimizer.get("type", "").replace("adamw", "AdamW").replace("lamb", "LAMB"),
        "Learning rate": None if in_phases else _schedule(train, settings),
        "Hyper-parameters": ", ".join(
            f"{name.replace('_', ' ')} {_setting(value)}" for name, value in settings.items() if name != "lr"
        ),
        "Clipping": deepspeed.get("gradient_clipping") and f"gradient norm {deepspeed['gradient_clipping']:g}",
        "Dropout": None if train.get("dropout") is None else f"{train['dropout']:g}",
        "Precision": next((name for name in ("bf16", "fp16") if deepspeed.get(name, {}).get("enabled")), "fp32"),
        "ZeRO": f"stage {deepspeed.get('zero_optimization', {}).get('stage', 0)}",
        "Seed": f"{train.get('seed', 0)}",
        "Software": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Code": git.get("commit") and git["commit"][:10] + ("" if git.get("clean") else ", with changes"),
    }
    return {name: str(value) for name, value in told.items() if value}


def _data(history: History) -> list[str]:
    sizes = [store.manifest.counts for store, _ in history.stores]
    entries = history.config["train"]["data"]
    if not sizes:
        return entries
    return [
        f"{entry} ({counted(size.tokens)} tokens, {counted(size.documents)} documents)"
        for entry, size in zip(entries, sizes, strict=True)
    ]


def _batch(deepspeed: dict[str, Any]) -> str | None:
    samples, micro = deepspeed.get("train_batch_size"), deepspeed.get("train_micro_batch_size_per_gpu")
    accumulation = deepspeed.get("gradient_accumulation_steps", 1)
    if not samples or not micro:
        return None
    ranks = samples // (micro * accumulation)
    parts = [f"{ranks} rank{'s' * (ranks > 1)}", f"{micro}", *([f"{accumulation} micro-batches"] * (accumulation > 1))]
    return f"{samples:,} samples = {TIMES.join(parts)}"


def _schedule(train: dict[str, Any], settings: dict[str, Any]) -> str | None:
    if "lr" not in settings:
        return None
    warmup = train.get("warmup", 0)
    of = "time" if train.get("hours") else "steps"
    rise = f"{100 * warmup:g}% of the {of}" if warmup < 1 else f"{warmup:g} steps"
    return f"{settings['lr']:g}, {train.get('schedule', 'constant')}, warm-up {rise}"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def event_text(event: Event) -> str:
    """What is known of an event, in words."""
    details = dict(event.details)
    if event.name == "phase" and {"number", "of"} <= details.keys():
        details = {"reason": f"{details.pop('number')} of {details.pop('of')}"} | details
    return "; ".join(
        f"{value}" if name in ("checkpoint", "reason") else f"{name.replace('_', ' ')} {value}"
        for name, value in details.items()
    )
