"""Which charts a report has: what is in the metrics decides; a chart without data is not there.

    charts_of(histories) -> [Chart]          pretrain/report/drawing.py draws them

One run: a colour per role (training, held out). Several: a colour per run; held-out values are the ones with points.
"""

from os.path import commonprefix
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from pretrain.report.history import History
from pretrain.report.page_text import Style

# Roles of colours; the page has each as a CSS variable, light and dark. s0, s1, ... are for series.
LIGHT = {
    "s0": "#1f6db5", "s1": "#d4562a", "s2": "#23865a", "s3": "#8a4fc0", "s4": "#a97b12", "s5": "#c2366b",
    "ink": "#1b222c", "muted": "#69727e", "grid": "#e5e8ec", "warn": "#b97d11", "bad": "#c4302b", "paper": "#fdfdfc",
}  # fmt: skip
DARK = {
    "s0": "#6fb3f2", "s1": "#ff9468", "s2": "#5fcb98", "s3": "#c19cf8", "s4": "#e2bd5c", "s5": "#f584ab",
    "ink": "#e8ebef", "muted": "#98a2ae", "grid": "#2b323b", "warn": "#e7b04a", "bad": "#ff7b72", "paper": "#14181d",
}  # fmt: skip
SERIES = 6


class Line(NamedTuple):
    """One series of a chart."""

    label: str  # what it is; of which run where there are several
    role: str  # training, held out, ... : one run has a line for each
    run: int
    colour: str  # a name of LIGHT, or #rrggbb
    steps: np.ndarray  # [N]
    values: np.ndarray  # [N]
    is_noisy: bool = True
    band: tuple[np.ndarray, np.ndarray] | None = None  # [N] lowest, highest


class Chart(NamedTuple):
    """What is drawn into one pair of axes."""

    name: str  # of the PNG
    title: str
    lines: list[Line]
    style: Style = "plain"
    is_log: bool = False
    marks: tuple[tuple[float, str], ...] = ()  # horizontal lines: value, what it is
    about: str = ""


def charts_of(histories: list[History]) -> list[Chart]:
    """Return the charts that the metrics have numbers for, the most asked for first."""
    entropy = histories[0].unigram_entropy if len({str(h.config.get("stores")) for h in histories}) == 1 else None
    pairs = [history if history.has_pairs else None for history in histories]
    whole = list(histories)
    clips = {history.config.get("deepspeed", {}).get("gradient_clipping") for history in histories}
    clip = clips.pop() if len(clips) == 1 else None
    charts = [
        Chart("mlm_loss", "Masked-word loss", _train_and_held_out(whole, "mlm_loss"), "nats",
              marks=((entropy, "unigram entropy"),) if entropy else (), about="nats per masked token"),
        Chart("mlm_acc", "Masked-word accuracy", _train_and_held_out(whole, "mlm_acc"), "share"),
        Chart("pairs_acc", "Minimal pairs", _train_and_held_out(whole, "pairs_acc"), "share",
              marks=((0.5, "chance"),), about="the good sentence is likelier"),
        Chart("lr", "Learning rate", _lines(whole, "train", "lr", is_noisy=False)),
        Chart("nsp_loss", "Sentence-pair loss", _train_and_held_out(pairs, "nsp_loss"), "nats",
              marks=((float(np.log(2)), "chance"),), about="nats per pair"),
        Chart("nsp_acc", "Sentence-pair accuracy", _train_and_held_out(pairs, "nsp_acc"), "share",
              marks=((0.5, "chance"),)),
        Chart("grad_norm", "Gradient norm", _lines(whole, "train", "grad_norm"), is_log=True,
              marks=((clip, "clipped above"),) if clip else (), about="before clipping, log scale"),
        Chart("tokens_per_s", "Tokens per second", _lines(whole, "train", "tokens_per_s"), "count",
              about="real tokens over all ranks"),
        Chart("mfu", "Model FLOPs utilisation", _lines(whole, "train", "mfu"), "share",
              about="of the matrix-product peak"),
        Chart("padding_saved", "Padding saved", _lines(whole, "train", "padding_saved"), "share",
              about="of the slots of a padded batch"),
        Chart("collectives", "Time in collectives", _lines(whole, "train", "collectives"), "share",
              about="transfer and waiting, mean over ranks"),
        Chart("slowdown", "Slowest rank", _lines(whole, "train", "slowdown"), marks=((1.0, "as the others"),),
              about="its own work, in that of the others"),
        Chart("memory", "Memory", _lines(whole, "train", "memory_gb", is_noisy=False), about="GB per rank"),
        Chart("trust", "LAMB trust ratios", _trust(whole), is_log=True, about="median, from least to most, log scale"),
        *_by_group(whole),
    ]  # fmt: skip
    return [chart for chart in charts if chart.lines]


def _lines(
    histories: list[History | None] | list[History],
    kind: Literal["train", "evals", "trusts"],
    *path: str,
    role: str = "",
    shift: int = 0,
    is_noisy: bool = True,
) -> list[Line]:
    several = len(histories) > 1
    found = []
    for run, history in enumerate(histories):
        steps, values = history.series(kind, *path) if history else (np.empty(0), np.empty(0))
        if len(steps):
            label = ", ".join(filter(None, (history.label if several and history else "", role)))
            found.append(Line(label, role, run, f"s{(run if several else shift) % SERIES}", steps, values, is_noisy))
    return found


def _train_and_held_out(histories: list[History | None] | list[History], name: str) -> list[Line]:
    trained = _lines(histories, "train", name, role="training")
    held_out = _lines(histories, "evals", name, role="held out", shift=1, is_noisy=False)
    averaged = _lines(histories, "evals", f"avg_{name}", role="held out, averaged weights", shift=2, is_noisy=False)
    return trained + held_out + averaged


def _trust(histories: list[History]) -> list[Line]:
    found = []
    for line in _lines(histories, "trusts", "ratios", "median", role="median", is_noisy=False):
        ends = [histories[line.run].series("trusts", "ratios", end) for end in ("min", "max")]
        is_whole = all(np.array_equal(steps, line.steps) for steps, _ in ends)
        found.append(line._replace(band=(ends[0][1], ends[1][1]) if is_whole else None))
    return found


def _by_group(histories: list[History]) -> list[Chart]:
    """Return the charts with a line per source or layer: of one run; several would be a thicket, and have a table."""
    if len(histories) > 1:
        return []
    history = histories[0]
    sources = sorted({name for line in history.evals for name in line.get("by_source", {})})
    layers = list(dict.fromkeys(name for line in history.trusts for name in line.get("by_layer", {})))
    is_nested = any(isinstance(value, dict) for line in history.trusts for value in line.get("by_layer", {}).values())
    end = ("median",) if is_nested else ()

    def lines(
        kind: Literal["evals", "trusts"], colours: list[str], names: list[str], group: str, *path: str
    ) -> list[Line]:
        found = []
        for name, colour in zip(names, colours, strict=True):
            for line in _lines([history], kind, group, name, *path, is_noisy=False):
                found.append(line._replace(label=name, role=name, colour=colour))
        return found

    of_sources = lines("evals", _distinct(len(sources)), sources, "by_source", "mlm_loss")
    of_layers = lines("trusts", _gradual(len(layers)), layers, "by_layer", *end)
    shared = commonprefix(layers).rpartition(".")[0]  # noqa: RUF071 - of names, not of paths
    of_layers = [line._replace(label=line.label.removeprefix(shared + ".")) for line in of_layers]
    return [
        Chart("by_source", "Held-out loss by source", of_sources, "nats", about="nats per masked token"),
        Chart(
            "trust_by_layer", "Trust ratio by layer", of_layers, is_log=True, about=f"{shared}, log scale".lstrip(", ")
        ),
    ]


def _distinct(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)] if count <= SERIES else _gradual(count, "turbo")


def _gradual(count: int, scale: str = "viridis") -> list[str]:
    """Return the colours from first to last, as #rrggbb: none so light or dark that one of the two pages would hide
    it."""
    return [to_hex(colour) for colour in matplotlib.colormaps[scale](np.linspace(0.28, 0.8, count))]
