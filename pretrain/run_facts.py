"""A run in words: what it was asked to be, and how it stands, as consoles and pages say it. Standard library only.

run_facts(record, ...) -> {"Model": "bert-mini", ...}       from the content of its config.json
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from data_prep.json_types import JsonObject
from pretrain.formatting import counted
from pretrain.run_record import RunRecord
from pretrain.settings.limits import BERT_INITIALIZER_RANGE
from pretrain.settings.shape import model_in_words

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"  # a run's status, wherever it is said
OUT_OF_TIME, OUT_OF_PATIENCE = "the hours are over", "out of patience"  # a stop for these reasons is the end
COMPARED = (  # options by which runs differ that one lays beside each other
    "model", "layers", "hidden", "heads", "init_from", "objective", "seq_len", "steps", "hours", "schedule", "warmup",
    "dropout", "mask_rate", "mask_unit", "average", "temperature", "mlm_bias", "seed",
)  # fmt: skip
TIMES = " \N{MULTIPLICATION SIGN} "


class StoreSize(NamedTuple):
    """What of a store is told beside its name."""

    tokens: int
    documents: int


def run_facts(
    record: RunRecord, *, parameters: int | None = None, layers: str = "", sizes: Sequence[StoreSize] = ()
) -> dict[str, str]:
    """Return a run in words, the most telling first; what is not known is left out.

    record: the content of its config.json
    layers: the shape of its model in words; sizes: of its stores, in the order of --data
    """
    train, deepspeed = record["train"], record.get("deepspeed", {})
    optimizer = deepspeed.get("optimizer", {})
    settings = {name: value for name, value in optimizer.get("params", {}).items() if value is not None}
    versions = record.get("versions", {}) | {"python": record.get("python")}
    git = record.get("git", {})
    in_phases = bool(train.get("phase"))
    told = {
        "Model": model_in_words(train) or (f"continues {train['init_from']}" if train.get("init_from") else None),
        "Shape": layers,
        "Initial weights": _start(train),
        "Parameters": parameters and f"{parameters:,}",
        "Vocabulary": record.get("vocab_size") and f"{record['vocab_size']:,} entries",
        "Data": "; ".join(_data(train["data"], sizes)),
        "Objective": {"nsp": "masked words, next sentence", "sop": "masked words, sentence order"}.get(
            train.get("objective", "nsp"), "masked words"
        ),
        "Steps": _steps(train),
        "Phases": "; ".join(train.get("phase", ())),
        "Sample": not in_phases and train.get("seq_len") and f"{train['seq_len']} tokens",
        "Batch": None if in_phases else _batch(deepspeed),
        "Optimizer": optimizer.get("type", "").replace("adamw", "AdamW").replace("lamb", "LAMB"),
        "Learning rate": None if in_phases else _schedule(train, settings),
        "Hyper-parameters": ", ".join(
            f"{name.replace('_', ' ')} {_setting(value)}" for name, value in settings.items() if name != "lr"
        ),
        "Clipping": deepspeed.get("gradient_clipping") and f"gradient norm {deepspeed['gradient_clipping']:g}",
        "Averaged weights": train.get("average", "off") != "off" and train["average"],
        "Dropout": None if train.get("dropout") is None else f"{train['dropout']:g}",
        "Precision": next((name for name in ("bf16", "fp16") if deepspeed.get(name, {}).get("enabled")), "fp32"),
        "ZeRO": f"stage {deepspeed.get('zero_optimization', {}).get('stage', 0)}",
        "Seed": f"{train.get('seed', 0)}",
        "Software": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Code": git.get("commit") and git["commit"][:10] + ("" if git.get("clean") else ", with changes"),
    }
    return {name: str(value) for name, value in told.items() if value}


def settings_to_compare(record: RunRecord) -> dict[str, int | float | str | bool]:
    """Return settings by which runs are compared, those of DeepSpeed's JSON as they were resolved."""
    deepspeed = record.get("deepspeed", {})
    params = deepspeed.get("optimizer", {}).get("params", {})
    resolved = {
        "lr": params.get("lr"),
        "weight_decay": params.get("weight_decay"),
        "optimizer": deepspeed.get("optimizer", {}).get("type"),
        "global_batch": deepspeed.get("train_batch_size"),
        "micro_batch": deepspeed.get("train_micro_batch_size_per_gpu"),
        "zero": deepspeed.get("zero_optimization", {}).get("stage", 0),
        "precision": next((name for name in ("bf16", "fp16") if deepspeed.get(name, {}).get("enabled")), "fp32"),
    }
    return {
        name: value
        for name, value in ({name: record["train"].get(name) for name in COMPARED} | resolved).items()
        if isinstance(value, int | float | str | bool)
    }


def _start(train: JsonObject) -> str:
    """Return how a new model begins, where that is not as BERT did."""
    deviation, bias = train.get("initializer_range", BERT_INITIALIZER_RANGE), train.get("mlm_bias", "zeros")
    parts = [f"deviation {deviation:g}"] * (deviation != BERT_INITIALIZER_RANGE)
    return ", ".join(parts + ["output bias by the frequency of tokens"] * (bias == "unigram"))


def _steps(train: JsonObject) -> str | None:
    if train.get("hours"):
        return f"as many as {train['hours']:g} hours hold"
    return f"{train['steps']:,}" if train.get("steps") else None


def _data(entries: list[str], sizes: Sequence[StoreSize]) -> list[str]:
    if not sizes:
        return entries
    return [
        f"{entry} ({counted(size.tokens)} tokens, {counted(size.documents)} documents)"
        for entry, size in zip(entries, sizes, strict=True)
    ]


def _batch(deepspeed: JsonObject) -> str | None:
    samples, micro = deepspeed.get("train_batch_size"), deepspeed.get("train_micro_batch_size_per_gpu")
    accumulation = deepspeed.get("gradient_accumulation_steps", 1)
    if not samples or not micro:
        return None
    ranks = samples // (micro * accumulation)
    parts = [f"{ranks} rank{'s' * (ranks > 1)}", f"{micro}", *([f"{accumulation} micro-batches"] * (accumulation > 1))]
    return f"{samples:,} samples = {TIMES.join(parts)}"


def _schedule(train: JsonObject, settings: JsonObject) -> str | None:
    if "lr" not in settings:
        return None
    warmup = train.get("warmup", 0)
    whole = "time" if train.get("hours") else "steps"
    rise = f"{100 * warmup:g}% of the {whole}" if warmup < 1 else f"{warmup:g} steps"
    return f"{settings['lr']:g}, {train.get('schedule', 'constant')}, warm-up {rise}"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
