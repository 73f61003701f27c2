"""What a run folder tells of its run, read once for a report.

    RUN/config.json                   what was asked for      -> .config
    RUN/metrics.jsonl                 what happened           -> .series(), .events, .summary()
    RUN/checkpoints/*/manifest.json   shapes of parameters, where a checkpoint is there
    the stores named by config.json   sizes and unigram entropy, where they still lie there

A run that crashed wrote steps after its last checkpoint, which the resumed run does again. Such a lost stretch counts
once: a resume takes back what was measured after it. A line that a crash cut short is left out; a line glued to its
remains is saved (pretrain/monitor/lines.py).
"""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from data_prep.cli import ROOT, InputError
from data_prep.fields import Fields, is_number, read_fields
from data_prep.json_types import JsonObject
from data_prep.samples.mixture import passes_by_temperature
from data_prep.store import Store
from pretrain.checkpoints.format import Manifest
from pretrain.monitor.lines import TrainLine, read_lines
from pretrain.run_facts import FAILED, FINISHED, OUT_OF_PATIENCE, OUT_OF_TIME, RUNNING, STOPPED
from pretrain.run_record import RunRecord

Axis = Literal["step", "tokens", "hours"]
CHEAP = 200_000_000  # tokens that are counted for the unigram entropy; about a second
ALIVE = 120.0  # seconds since the last heartbeat of lock.json after which a run is no longer believed to train
GOES_BACK = ("resume", "restart", "rollback")  # events that take back what was done after their step
MERGED = ("save", "skip")  # events of which an unbroken sequence is one row
NUMBER, TEXT = int | float | None, str | None
TYPES: dict[str, JsonObject] = {  # of what the report reads in config.json; all of it may be missing
    "": {"stores": list, "vocab_size": int | None, "parameters": int | None, "python": TEXT},
    "train": {
        "data": list, "phase": list, "model": TEXT, "init_from": TEXT, "objective": str, "schedule": str,
        "steps": int | None, "seq_len": int | None, "warmup": int | float, "dropout": NUMBER,
        "temperature": int | float, "hours": NUMBER, "layers": int | None, "hidden": int | None, "heads": int | None,
        "initializer_range": int | float, "mlm_bias": str,
    },
    "deepspeed": {
        "optimizer": dict, "bf16": dict, "fp16": dict, "zero_optimization": dict, "gradient_clipping": NUMBER,
        "train_batch_size": int | None, "train_micro_batch_size_per_gpu": int | None,
        "gradient_accumulation_steps": int,
    },
    "versions": {}, "git": {"commit": TEXT},
}  # fmt: skip


@dataclass
class Event:
    """Something that happened, or several of the same kind in a row."""

    first: int
    step: int
    name: str
    details: JsonObject
    count: int = 1
    lost: bool = False  # it lies in a stretch that was done again


@dataclass
class History:
    """One run. `train`, `evals` and `trusts` hold lines of metrics.jsonl, by ascending step, each step once."""

    folder: Path
    label: str
    config: RunRecord
    train: list[TrainLine] = field(default_factory=list)
    evals: list[JsonObject] = field(default_factory=list)
    trusts: list[JsonObject] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clock: float = 0.0  # seconds that the processes of this run have logged, lost stretches included
    lost_seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path, label: str = "") -> "History":
        """Read a run folder.

        Raises
        ------
        InputError: not a run folder, or no metrics yet.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; give the --out of a pretraining run")
        if not any((folder / name).is_file() for name in ("config.json", "metrics.jsonl")):
            raise InputError(f"{folder} is not a run folder (no config.json); give the --out of a pretraining run")
        history = cls(folder, label or folder.name, {})
        history._read_config(folder / "config.json")
        history._read_metrics(folder / "metrics.jsonl")
        if not history.train:
            raise InputError(f"{folder / 'metrics.jsonl'} has no training step yet; wait for the first --log_every")
        return history

    def _read_config(self, path: Path) -> None:
        """The settings; of a file that is damaged what the newest checkpoint says."""
        try:
            self.config = _checked(read_fields(path, "the settings are those that the newest checkpoint says"))
        except InputError as error:
            self.notes.append(f"{error}.")
            self.config = {"train": {"data": []}}
            if self.checkpoint is not None:
                told = self.checkpoint.record or {"train": {"data": []}, "deepspeed": self.checkpoint.ds_config}
                with suppress(InputError):
                    self.config = _checked(Fields(told, str(path), ""))

    def _read_metrics(self, path: Path) -> None:
        try:
            found = read_lines(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}): the run has not begun to train") from error
        offset = 0.0  # of the clock, at the start of the process that wrote the line
        for line in found.lines:
            if line["kind"] == "train" and self.clock > offset + line.get("seconds", math.inf):
                offset = self.clock  # a process counts its seconds from zero
            self._take(line, offset)
        self.events = _merged(self.events)
        if found.is_cut:
            self.notes.append("The last line of metrics.jsonl is cut short: the run crashed, or is writing.")
        if found.damaged:
            several = "s" * (found.damaged > 1)
            self.notes.append(f"{found.damaged} line{several} of metrics.jsonl cut short by a crash, or damaged.")
        if found.every > 1:
            self.notes.append(f"Of the many lines of training, one of {found.every} is drawn.")

    def _take(self, line: JsonObject, offset: float) -> None:
        kind, step = line["kind"], line["step"]
        if kind == "event":
            self._happened(Event(step, step, line["event"], _without(line, "kind", "step", "event")))
        elif kind == "train":
            if self.train and step <= self.train[-1]["step"]:
                self._take_back(step - 1)
            self.clock = offset + line.get("seconds", 0.0)
            if (line.get("mfu") or 0) > 1:  # of older versions: the peak was measured on a busy machine
                line = line | {"mfu": None}
            self.train.append(cast(TrainLine, line | {"clock": self.clock}))
        elif kind in ("eval", "trust"):
            lines = self.evals if kind == "eval" else self.trusts
            if lines and lines[-1]["step"] == step:  # the parts of one evaluation may come in several lines
                line = lines.pop() | line
            lines.append(line)

    def _happened(self, event: Event) -> None:
        if event.name in GOES_BACK:
            self._take_back(event.step, event.details)
        self.events.append(event)

    def _take_back(self, step: int, details: JsonObject | None = None) -> None:
        """Forget what was measured after `step`: it is done again."""
        lost = [line for line in self.train if line["step"] > step]
        self.train = [line for line in self.train if line["step"] <= step]
        self.evals = [line for line in self.evals if line["step"] <= step]
        self.trusts = [line for line in self.trusts if line["step"] <= step]
        for event in self.events:
            event.lost = event.lost or (event.step > step and event.name not in GOES_BACK)
        if lost:
            seconds = lost[-1]["clock"] - (self.train[-1]["clock"] if self.train else 0.0)
            self.lost_seconds += seconds
            if details is not None:
                details["done again"] = f"steps {step + 1:,} to {lost[-1]['step']:,}, {seconds:,.0f} s of work"

    def series(self, kind: Literal["train", "evals", "trusts"], *path: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and values of one number, where it is there and finite: series("trusts", "ratios",
        "median")."""
        found = [(line["step"], _at(line, path)) for line in getattr(self, kind)]
        pairs = [(step, value) for step, value in found if value is not None and math.isfinite(value)]
        return np.array([step for step, _ in pairs], int), np.array([value for _, value in pairs], float)

    def along(self, axis: Axis, steps: np.ndarray) -> np.ndarray:
        """Return where steps lie on an axis."""
        if axis == "step" or not len(steps):
            return steps.astype(float)
        known = [0, *(line["step"] for line in self.train)]
        tokens = axis == "tokens"
        places = [line["tokens"] if tokens else line["clock"] / 3600 for line in self.train]
        return np.interp(steps, known, [0.0, *places])

    @property
    def steps(self) -> int | None:
        """Return the optimizer steps that were asked for; None where the clock ends the run, and steps are a limit
        only."""
        return None if self.hours else self.config["train"].get("steps")

    @property
    def hours(self) -> float:
        """Return the hours that the run was to take; 0 where it goes by steps."""
        return float(self.config["train"].get("hours") or 0)

    @property
    def has_pairs(self) -> bool:
        """Return whether sentence pairs were an objective."""
        return self.config["train"].get("objective", "nsp") != "mlm"

    @property
    def status(self) -> str:
        """Return finished, running, stopped or failed; the last is also a run that was killed, which nobody could
        write."""
        last = next((event for event in reversed(self.events) if event.name in ("stop", FAILED)), None)
        ended = last is not None and last.step >= self.train[-1]["step"]
        by_itself = ended and last is not None and last.details.get("reason") in (OUT_OF_TIME, OUT_OF_PATIENCE)
        if by_itself or (self.steps and self.train[-1]["step"] >= self.steps):
            return FINISHED
        try:
            beat = read_fields(self.folder / "lock.json", "").number("heartbeat")
        except InputError:
            beat = 0.0
        if abs(time.time() - beat) < ALIVE:  # one from a later time is of a clock that was wrong
            return RUNNING
        return STOPPED if ended and last is not None and last.name == "stop" else FAILED

    @cached_property
    def stores(self) -> list[tuple[Store, float]]:
        """Return the stores of the run and their passes per epoch, where all still lie there unchanged; else none."""
        weights = [_weight(entry) for entry in self.config["train"]["data"]]
        try:
            recorded = [(entry["folder"], entry["identity"]) for entry in self.config["stores"]]
            found = [(_open(folder), identity) for folder, identity in recorded]
        except (InputError, OSError, KeyError, TypeError, ValueError):
            return []
        if any(store.identity != identity for store, identity in found) or len(weights) != len(found):
            return []
        stores = [store for store, _ in found]
        passes = passes_by_temperature(
            weights, [store.tokens for store in stores], self.config["train"].get("temperature", 1.0)
        )
        return list(zip(stores, passes, strict=True))

    @cached_property
    def unigram_entropy(self) -> float | None:
        """Return the loss in nats of a guess that knows nothing but how frequent tokens are; None where not cheap to
        say."""
        stores = self.stores
        if not stores or sum(store.tokens for store, _ in stores) > CHEAP:
            return None
        uses = np.zeros(stores[0][0].vocab_size)
        try:
            for store, weight in stores:
                uses += weight * store.token_uses()
        except OSError:  # a damaged store is no reason not to look at a run
            return None
        share = uses[uses > 0] / max(uses.sum(), 1)
        return float(-(share * np.log(share)).sum())

    @cached_property
    def checkpoint(self) -> Manifest | None:
        """Return the manifest of the newest checkpoint that can be read."""
        for path in sorted(self.folder.glob("checkpoints/step-*/manifest.json"), reverse=True):
            with suppress(InputError):
                return Manifest.read(path.parent)
        return None

    @property
    def parameters(self) -> int | None:
        """Return the parameters of the model; known once there is a checkpoint."""
        if self.config.get("parameters") or self.checkpoint is None:
            return self.config.get("parameters")
        return sum(math.prod(shape) for shape in self.checkpoint.parameters.values())

    def summary(self) -> JsonObject:
        """Return the numbers that one asks for first; held out where there was an evaluation, else of the last
        interval."""
        last, held_out = self.train[-1], [line for line in self.evals if line.get("mlm_loss") is not None]
        scored: Mapping[str, Any] = held_out[-1] if held_out else last
        numbers = {
            "run": str(self.folder),
            "label": self.label,
            "status": self.status,
            "step": last["step"],
            "steps": self.steps,
            "held_out": bool(held_out),
            "held_out_set": scored.get("held_out"),  # scores on another set do not compare; None: not told
            "scored_at": scored["step"],
            **{name: scored.get(name) for name in ("mlm_loss", "mlm_acc", "nsp_loss", "nsp_acc", "pairs_acc")},
            "perplexity": math.exp(min(scored["mlm_loss"], 700)),
            "tokens": last.get("tokens"),
            "seconds": self.clock,
            "lost_seconds": self.lost_seconds,
            **{name: self._median(name) for name in ("tokens_per_s", "mfu", "padding_saved")},
            "memory_gb": max(self.series("train", "memory_gb")[1].tolist(), default=None),
            "parameters": self.parameters,
            "skipped": sum(event.count for event in self.events if event.name == "skip"),
            "resumed": sum(event.name == "resume" for event in self.events),
        }
        numbers |= {name: scored[name] for name in ("avg_mlm_loss", "avg_mlm_acc") if is_number(scored.get(name))}
        if not self.has_pairs:
            numbers |= {"nsp_loss": None, "nsp_acc": None}
        # JSON has no infinity: what is no number is left open.
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}

    def _median(self, name: str) -> float | None:
        values = self.series("train", name)[1]
        return float(np.median(values)) if len(values) else None


def read_all(folders: tuple[Path, ...]) -> list[History]:
    """Read run folders; labels are as short as they can be and still differ."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("a run is named twice; give each run folder once")
    longest = max(len(path.parts) for path in paths)
    # A folder called "run" says nothing without the one above it.
    least = 2 if any(path.name == "run" for path in paths) else 1
    for depth in range(least, longest + 1):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return [History.read(folder, label) for folder, label in zip(folders, labels, strict=True)]


def _checked(fields: Fields) -> RunRecord:
    """Return the content of a config.json in which everything that is read has its type.

    Raises
    ------
    InputError: naming what has not.
    """
    fields.object("train").list("data")
    for part, types in TYPES.items():
        within = fields.object(part, default={}) if part else fields
        for name, kind in types.items():
            if name in within.content and not isinstance(within.content[name], kind):
                raise within.error(f"says {name} {within.content[name]!r:.40}")
            if kind is list and part and not all(isinstance(entry, str) for entry in within.list(name, default=[])):
                raise within.error(f"says {name} of other things than texts")
    deepspeed = fields.object("deepspeed", default={})
    optimizer = deepspeed.object("optimizer", default={})
    optimizer.text("type", default="")
    optimizer.object("params", default={}).number("lr", default=0.0)
    deepspeed.whole("gradient_accumulation_steps", least=1, default=1)
    return cast(RunRecord, fields.content)


def _merged(events: list[Event]) -> list[Event]:
    """Return one event for an unbroken sequence of saves, or of skips, with the details of the last."""
    merged: list[Event] = []
    for event in events:
        before = merged[-1] if merged else None
        if before and event.name in MERGED and (event.name, event.lost) == (before.name, before.lost):
            before.step, before.details, before.count = event.step, event.details, before.count + 1
        else:
            merged.append(event)
    return merged


def _at(line: Any, path: tuple[str, ...]) -> float | None:
    for name in path:
        line = line.get(name) if isinstance(line, dict) else None
    return float(line) if is_number(line) else None


def _without(line: JsonObject, *names: str) -> JsonObject:
    return {name: value for name, value in line.items() if name not in names}


def _weight(entry: str) -> float:
    try:
        return float(entry.rpartition(":")[2])
    except ValueError:
        return 1.0


def _open(folder: str) -> Store:
    """Return a store named relative to where the run was started: here, or the root of the project."""
    return Store.open(folder if Path(folder).is_dir() else ROOT / folder)
