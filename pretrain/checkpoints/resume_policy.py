"""What may be another thing where a run is continued, and what becomes of its place in the data: the one table of it.

    check_resume(config)                                 what a --resume names is there
    changes_of(before, now, step) -> (Change, ...)     two records, as run_folder.run_record() makes them, compared
    refuse_changes(folder, changes, allowed)           what makes no sense, unless it is asked for by --allow_change
    fresh_epoch_of(before, now, ...) -> int            where to go on in the data, if its order is another one

Model and tokenizer are not here: with others the weights mean nothing, and no option helps. What is neither here nor
there (intervals, time limits, folders) may change in silence. A value that one of the records does not have, because an
older version wrote it, is not compared.

The place in the data is (epoch, sample) of one order of samples. Other stores, weights, seeds or objectives make
another order, in which the same numbers are another place. Then the run goes on at the beginning of the first epoch
none of whose passes has begun: nothing comes a second time, and what was left of the old epoch is not trained on.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError
from data_prep.samples.mixture import fresh_epoch
from pretrain.checkpoints.format import MANIFEST, Manifest, list_checkpoints
from pretrain.run_record import RunRecord
from pretrain.settings.averaging import parse_average
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import DsConfig
from pretrain.settings.shape import model_in_words

Getter = Callable[[RunRecord, int], Any]


class Setting(NamedTuple):
    """One thing that is compared."""

    name: str
    value: Getter  # in a record, after so many steps of the run
    why_refused: str = ""  # empty: it may change, and is said
    moves: bool = False  # another value makes another order of samples
    text: Callable[[RunRecord], str] | None = None  # for people, where the value itself says nothing


class Change(NamedTuple):
    """A setting that is not what it was."""

    setting: str
    text: str  # "0.0001 -> 0.0005"
    why_refused: str
    moves: bool


def _of_train(name: str) -> Getter:
    return lambda record, step: record["train"][name]


def _of_phases(name: str, before: Getter | None = None) -> Getter:
    """Return a getter of the values of all phases; of one, where all have the same: more or fewer phases are told by
    their steps. `before`: where the value stood before phases had one of their own."""

    def values(record: RunRecord, step: int) -> list[Any]:
        found = [before(record, step) if before and name not in phase else phase[name] for phase in record["phases"]]
        return found if found.count(found[0]) < len(found) else found[:1]

    return values


def _under_way(name: str, before: Getter) -> Getter:
    """Return a getter of the value of the phase that is under way."""

    def value(record: RunRecord, step: int) -> Any:
        phase = record["phases"][_phase_trained_last(record, step)]
        return phase[name] if name in phase else before(record, step)

    return value


def _steps(record: RunRecord, step: int) -> list[int]:
    return [phase["steps"] for phase in record["phases"]]


def _of_optimizer(name: str) -> Getter:
    return lambda record, step: record["deepspeed"]["optimizer"]["params"][name]


def _phase_trained_last(record: RunRecord, step: int) -> int:
    """Return the phase of the steps up to `step`: at its end still itself, as the next one may be another at will."""
    end = 0
    for index, phase in enumerate(record["phases"]):
        end += phase["steps"]
        if step <= end:
            return index
    return len(record["phases"]) - 1


def _seq_len(record: RunRecord, step: int) -> int:
    return record["phases"][_phase_trained_last(record, step)]["seq_len"]


def _later_seq_lens(record: RunRecord, step: int) -> list[int]:
    return [phase["seq_len"] for phase in record["phases"][_phase_trained_last(record, step) + 1 :]]


def _stores(record: RunRecord, step: int) -> list[str]:
    return [store["identity"] for store in record["stores"]]


def _stores_in_words(record: RunRecord) -> str:
    return ", ".join(f"{store['folder']} ({store['identity'][:12]})" for store in record["stores"])


def _weights_of_data(record: RunRecord, step: int) -> list[float]:
    return [_weight(entry) for entry in record["train"]["data"]]


def _passes_of_data(record: RunRecord, step: int) -> list[float]:
    return [store["passes"] for store in record["stores"]]


def _later_mixtures(record: RunRecord, step: int) -> list[list[float]]:
    return [
        [*phase["weights"], phase["temperature"]] for phase in record["phases"][_phase_trained_last(record, step) + 1 :]
    ]


def _weight(entry: str) -> float:
    try:
        return float(entry.rpartition(":")[2])
    except ValueError:
        return 1.0


def _start(record: RunRecord, step: int) -> str:
    return record["init_sha256"] if record["train"]["init_from"] else ""


def _start_in_words(record: RunRecord) -> str:
    return str(record["train"]["init_from"] or f"--model {model_in_words(record['train'])}")


def _average(record: RunRecord, step: int) -> str:
    return str(parse_average(record["train"].get("average", "off")))  # an older version knew none


def _ranks(record: RunRecord, step: int) -> int:
    return DsConfig(record["deepspeed"]).ranks


PLACE = "the place in the data is one in the order of the other samples"
SETTINGS = (
    Setting(
        "optimizer",
        lambda record, step: DsConfig(record["deepspeed"]).optimizer,
        "the checkpoint's moments are the other one's",
    ),
    Setting("data", _stores, PLACE, moves=True, text=_stores_in_words),
    Setting("seed", _of_train("seed"), PLACE, moves=True),
    Setting("objective", _of_train("objective"), PLACE, moves=True),
    Setting("seq_len", _seq_len, "the phase that is under way has samples of that length"),
    Setting("init_from", _start, "weights come from the checkpoint, not from another start", text=_start_in_words),
    # All that follows makes sense, and is said.
    Setting("weights", _under_way("weights", _weights_of_data), moves=True),
    Setting("temperature", _under_way("temperature", _of_train("temperature")), moves=True),
    Setting("later_weights", _later_mixtures),
    Setting("samples_version", lambda record, step: record["samples_version"], moves=True),
    Setting("lr", _of_phases("lr")),
    Setting("schedule", _of_phases("schedule")),
    Setting("warmup", _of_phases("warmup")),
    Setting("steps", _steps),
    Setting("later_seq_len", _later_seq_lens),
    Setting("hours", _of_train("hours")),
    Setting("global_batch", _of_phases("global_batch")),
    Setting("micro_batch", _of_phases("micro_batch")),
    Setting("batch_warmup", _of_phases("batch_warmup")),
    Setting("weight_decay", _of_phases("weight_decay", _of_optimizer("weight_decay"))),
    Setting("mask_rate", _of_phases("mask_rate", _of_train("mask_rate"))),
    Setting("mask_rate_end", _of_phases("mask_rate_end", lambda record, step: None)),
    *(Setting(name, _of_optimizer(name)) for name in ("betas", "eps", "layer_decay", "variant")),
    Setting("clip", lambda record, step: DsConfig(record["deepspeed"]).clip),
    Setting("precision", lambda record, step: DsConfig(record["deepspeed"]).precision),
    Setting("zero", lambda record, step: DsConfig(record["deepspeed"]).stage),
    Setting("ranks", _ranks),
    *(Setting(name, _of_train(name)) for name in ("dropout", "mask_unit", "mask_split", "eval_samples")),
    Setting("eval_pairs", lambda record, step: record["eval_pairs_sha256"]),
    Setting("rollback", _of_train("rollback")),
    Setting("average", _average),  # another one begins where the run goes on (keep_average() of format.py)
    Setting("python", lambda record, step: record["python"]),
    *(
        Setting(name, lambda record, step, name=name: record["versions"][name])  # type: ignore[misc]
        for name in ("zerobert", "torch", "deepspeed", "transformers", "numpy")
    ),
)
REFUSED = tuple(setting.name for setting in SETTINGS if setting.why_refused)


def check_names(names: Collection[str]) -> None:
    """Refuse what --allow_change cannot allow.

    Raises
    ------
    InputError: naming what it can.
    """
    if unknown := [name for name in names if name not in REFUSED]:
        raise InputError(
            f"--allow_change {' '.join(unknown)}: what may be allowed is {', '.join(REFUSED)}; other settings need no "
            "permission, and another model or tokenizer is another run"
        )


def check_resume(config: TrainConfig) -> None:
    """Refuse a --resume that cannot be.

    Raises
    ------
    InputError: --resume never on a run with checkpoints, a PATH that is no checkpoint.
    """
    if config.resume == "never":
        if list_checkpoints(config.out):
            raise InputError(
                f"--resume never, but {config.out} holds checkpoints; choose another --out or --resume auto"
            )
    elif config.resume != "auto":
        folder = Path(config.resume)
        if not (folder / MANIFEST).exists() and (inside := list_checkpoints(folder)):
            raise InputError(
                f"--resume {folder} is a whole run, and not one of its checkpoints; the newest is {inside[0]}"
            )
        Manifest.read(folder)


def changes_of(before: RunRecord, now: RunRecord, step: int) -> tuple[Change, ...]:
    """Return what is different in `now`, for a run that has done `step` steps under `before`."""
    changes = []
    for setting in SETTINGS:
        try:
            values = [setting.value(record, step) for record in (before, now)]
        except (KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError):
            continue  # an older version did not record it
        if values[0] != values[1]:
            texts = [setting.text(record) for record in (before, now)] if setting.text else map(_text, values)
            changes.append(Change(setting.name, " -> ".join(texts), setting.why_refused, setting.moves))
    return tuple(changes)


def refuse_changes(folder: Path, changes: Collection[Change], allowed: Collection[str]) -> None:
    """Refuse to continue `folder` with changes that make no sense, but for those that are allowed.

    Raises
    ------
    InputError: naming what was and what would be, why not, and how to go on.
    """
    refused = [change for change in changes if change.why_refused and change.setting not in allowed]
    if refused:
        what = "; ".join(f"{change.setting} {change.text} ({change.why_refused})" for change in refused)
        names = " ".join(change.setting for change in refused)
        raise InputError(
            f"{folder} was trained with other settings: {what}. Give what it had, choose another --out, or say "
            f"--allow_change {names}"
        )


def fresh_epoch_of(before: RunRecord, now: RunRecord, step: int, epochs_begun: int) -> int:
    """Return the first epoch of `now` behind every pass that `epochs_begun` epochs of `before` have begun."""
    passes = _under_way("passes", _passes_of_data)
    try:
        had, have = (dict(zip(_stores(record, step), passes(record, step), strict=True)) for record in (before, now))
    except (KeyError, IndexError, TypeError, ValueError):
        return epochs_begun
    return fresh_epoch(epochs_begun, had, have)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
