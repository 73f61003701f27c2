"""metrics.jsonl, read as it is: lines that a crash cut short or a disk damaged are left out and counted.

    read_lines(path) -> Lines
    what_was_lost(path, 400) -> "37 steps since, when the process was killed"

Of a run with very many lines of training, only every so-manieth is taken apart, and those beside other lines: a chart
has a few hundred pixels.
"""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from data_prep.fields import LARGEST, is_number
from data_prep.json_types import JsonObject

MOST = 4_000  # lines of training that are read
TRAIN = b'{"kind": "train"'


class TrainLine(TypedDict):
    """An interval of steps, as metrics.jsonl has it; older versions wrote fewer fields."""

    kind: str  # train
    step: int
    mlm_loss: float
    tokens: int
    samples: NotRequired[int]
    loss: NotRequired[float]
    nsp_loss: NotRequired[float]
    mlm_acc: NotRequired[float]
    nsp_acc: NotRequired[float]
    mask_rate: NotRequired[float]
    lr: NotRequired[float]
    grad_norm: NotRequired[float]
    tokens_per_s: NotRequired[float]
    mfu: NotRequired[float | None]
    padding_saved: NotRequired[float]
    memory_gb: NotRequired[float]
    slowest_rank: NotRequired[int]  # this and the next two: of several ranks (monitor/stragglers.py)
    slowdown: NotRequired[float]
    collectives: NotRequired[float]
    seconds: NotRequired[float]  # since the process began
    clock: NotRequired[float]  # over all processes of the run; report/history.py reckons it


class Lines(NamedTuple):
    """What could be read."""

    lines: list[JsonObject]
    damaged: int  # lines, but for the last, that are not whole
    is_cut: bool  # the last one is not: a crash, or a run that is writing
    every: int  # of the lines of training, one of so many was read; 1: all


def read_lines(path: Path, most: int = MOST) -> Lines:
    """Read metrics.jsonl, and at most about `most` lines of training.

    Raises
    ------
    OSError: it is not there.
    """
    raw = path.read_bytes().splitlines()
    chosen, every = _chosen(raw, most)
    lines, damaged = [], sum(not (line.endswith(b"}") and line.startswith(b"{")) for line in raw[:-1])
    for index in chosen.tolist():
        text = raw[index].decode("utf-8", "replace")
        line = _parsed(text)
        is_whole = line is not None and text.count('{"kind"') == 1
        looks_whole = text.endswith("}") and text.startswith("{")
        damaged += not is_whole and looks_whole and index < len(raw) - 1
        if line is not None:
            lines.append(line)
    is_cut = bool(raw) and _parsed(raw[-1].decode("utf-8", "replace")) is None
    return Lines(lines, damaged, is_cut, every)


def what_was_lost(path: Path, step: int | None) -> str:
    """Return in words what is lost of a run whose process was killed: all that it did beyond `step`, the checkpoint
    from which it goes on (None: it had none). Steps are logged every now and then: more than are counted here."""
    logged = 0
    with suppress(OSError):  # nothing was logged
        for raw in reversed(path.read_bytes().splitlines()):
            line = _parsed(raw.decode("utf-8", "replace")) if raw.startswith(TRAIN) else None
            if line is not None:
                logged = line["step"]
                break
    count = logged - (step or 0)
    steps = f"{count:,} step{'s' * (count > 1)}" if count > 0 else "what it did"
    if step is None:
        return f"{steps}, when the process was killed before its first checkpoint"
    return f"{steps} since, when the process was killed"


def _chosen(raw: list[bytes], most: int) -> tuple[np.ndarray, int]:
    """Return the indices of the lines to read, and of how many lines of training one is among them."""
    is_train = np.fromiter((line.startswith(TRAIN) for line in raw), bool, len(raw))
    every = max(1, math.ceil(int(is_train.sum()) / most))
    beside = ~is_train
    for shifted in (np.roll(~is_train, 1), np.roll(~is_train, -1)):
        beside |= shifted
    if beside.sum() > 2 * most + (~is_train).sum():
        beside = ~is_train  # an evaluation after each step: there is no need for every neighbour
    chosen = beside | (np.arange(len(raw)) % every == 0)
    chosen[:1], chosen[-1:] = True, True
    return np.flatnonzero(chosen), every


def _parsed(text: str) -> JsonObject | None:
    """Return a line of metrics; of a cut line and the one glued to it, the latter."""
    for part in (text, text[max(text.rfind('{"kind"'), 0) :]):
        try:
            line = json.loads(part)
            if isinstance(line, dict) and _fits(line):
                return line
        except (ValueError, RecursionError):
            continue
    return None


def _fits(line: JsonObject) -> bool:
    """Return whether what readers rely on is there, and of its type."""
    check = KINDS.get(line.get("kind", "")) if isinstance(line.get("kind"), str) else None
    step = line.get("step")
    return check is not None and type(step) is int and 0 <= step <= LARGEST and check(line)


def _is_train(line: JsonObject) -> bool:
    needed = (line.get(name) for name in ("mlm_loss", "tokens"))
    seconds = line.get("seconds", 0.0)
    return all(map(is_number, needed)) and is_number(seconds) and 0 <= seconds < math.inf


def _is_eval(line: JsonObject) -> bool:
    sources = line.get("by_source", {})
    if not isinstance(line.get("pairs_by_group", {}), dict):
        return False
    scores = [line, *(sources.values() if isinstance(sources, dict) else [None])]
    return all(isinstance(score, dict) and _is_loss(score.get("mlm_loss")) for score in scores)


def _is_loss(value: Any) -> bool:
    return value is None or is_number(value)


def _is_event(line: JsonObject) -> bool:
    return isinstance(line.get("event"), str)


def _is_trust(line: JsonObject) -> bool:
    return all(isinstance(line.get(name, {}), dict) for name in ("ratios", "by_layer"))


KINDS: dict[str, Callable[[JsonObject], bool]] = {
    "train": _is_train,
    "eval": _is_eval,
    "event": _is_event,
    "trust": _is_trust,
}
