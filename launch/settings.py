"""What `make` is asked for: its command line."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.ranges import HOURS, Range, check_ranges
from data_prep.text.languages import defaults
from launch.stages import go_on_elsewhere, read_settings
from pretrain.settings.limits import Preset


@dataclass(frozen=True)
class MakeConfig:
    """What a model is made of, for how long, and where it goes."""

    corpus: tuple[str, ...]
    """files, folders or globs of text, as data_prep/shard.py reads them"""
    out: Path
    """folder for everything"""
    hours: Annotated[float, HOURS._replace(or_zero=True)] = 0.0
    """hours of pretraining; the rest takes what it takes, and the whole is said at the start"""
    steps: Annotated[int | None, Range(1, 1e9)] = None
    """optimizer steps in place of --hours: the same on every machine"""
    lang: str = ""
    """language of the text, by a code of ISO 639; "": as it looks"""
    task: Path | None = None
    """labelled file (.csv, .tsv, .jsonl) to fine-tune on; what is asked and which columns are meant is found out"""
    eval: Path | None = None
    """labelled file to measure on; left out: a fifth of --task is held back"""
    model: Preset | None = None
    """size of the model in place of the advice"""
    size: Annotated[int | None, Range(256, 1e7)] = None
    """entries of the vocabulary in place of the advice"""
    cased: bool = False
    """keep case and accents, whatever is advised; to take them off, whatever is advised: --set vocab.cased=no"""
    set: tuple[str, ...] = ()
    """any other option of a stage, as STAGE.OPTION=VALUE: train.lr=1e-3 finetune.seeds=5 shard.holdout=0.05"""
    anew: bool = False
    """throw away what was made of other texts or settings; without it this is refused"""
    dry_run: bool = False
    """say what would run, and why, and run nothing"""
    json: bool = False
    """print one JSON object at the end instead of the page's path"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.lang:
            defaults(self.lang)  # refuses one that is not known
        if not self.corpus:
            raise InputError("--corpus needs files or folders of text")
        if (self.hours > 0) == (self.steps is not None):
            raise InputError("give one of --hours (of pretraining; 0.1 is six minutes) and --steps")
        if self.eval is not None and self.task is None:
            raise InputError(f"--eval {self.eval} measures a --task; give that too")
        if self.task is None and "finetune" in self.wanted:
            raise InputError("--set finetune... goes with a --task")
        if {"hours", "steps"} & {*self.wanted.get("train", {})}:
            raise InputError("--set train.hours and train.steps: give --hours or --steps itself")

    @staticmethod
    def elsewhere(option: str) -> str:
        """Return which commands go on from a model that is there; empty for other options."""
        return go_on_elsewhere() if option in ("init_from", "model") else ""

    @property
    def wanted(self) -> dict[str, dict[str, str]]:
        """Return what is wanted otherwise than advised: stage -> option -> value."""
        found = read_settings(self.set)
        named = (("train", "model", self.model), ("vocab", "size", self.size), ("vocab", "cased", self.cased))
        for stage, option, value in named:
            if value not in (None, False):
                if option in found.setdefault(stage, {}):
                    raise InputError(f"--{option} and --set {stage}.{option} say the same: give one")
                found[stage][option] = "yes" if value is True else str(value)
        return found

    @property
    def given(self) -> JsonObject:
        """Return what the command line says, as JSON values."""
        plain: JsonObject = json.loads(json.dumps(asdict(self), default=str))
        return {name: value for name, value in plain.items() if name not in ("out", "anew", "dry_run", "json")}
