"""Draw the results beside what they are compared with: benchmarks/results/*.json(l) -> benchmarks/results/speed.png.

    python benchmarks/plot.py [--results benchmarks/results] [--out benchmarks/results/speed.png]

Of each claim the newest result counts (files begin with their date). A dark mark is the floor that the project has set
itself. Claims without a result are left out.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from data_prep.cli import ROOT, InputError, run, say
from pretrain.formatting import counted

INK, MUTED, OURS, GPU, FAINT = "#1a1d21", "#6b7280", "#1f6db5", "#23865a", "#e5e7eb"
MARGIN, LEFT, WIDTH = 0.02, 0.32, 0.41  # of the figure's width: headings and bars begin, bars are wide
STEP, MEMORY = "A training step, against transformers padded", "Its memory, times smaller"
SAVING, DATA = "Saving, against DeepSpeed", "Data, against Hugging Face's tools on one thread"
STEP_FLOORS = {(6, 512, 128): 2.0, (4, 256, 128): 2.8, (4, 256, 512): 4.0}  # by layers, hidden size, tokens per sample


@dataclass(frozen=True)
class PlotConfig:
    """Where from and where to."""

    results: Path = ROOT / "benchmarks/results"
    """folder of results"""
    out: Path = ROOT / "benchmarks/results/speed.png"
    """the picture"""


class Bar(NamedTuple):
    """One claim."""

    group: str
    label: str
    value: float
    floor: float | None
    detail: str  # the numbers behind it
    colour: str


def main(config: PlotConfig) -> None:
    """Read, choose the newest, draw."""
    results = read(config.results)
    ratios = [bar for result in results for bar in RATIOS.get(result["name"], _nothing)(result)]
    shares = [bar for result in results for bar in SHARES.get(result["name"], _nothing)(result)]
    if not ratios:
        raise InputError(f"{config.results} has no result to draw; run the scripts beside this one first")
    figure = draw(newest(ratios), newest(shares))
    figure.savefig(config.out, dpi=144, facecolor="white", metadata={"Software": None})
    say(f"{config.out}: {len(newest(ratios))} ratios, {len(newest(shares))} shares")


def read(folder: Path) -> list[dict[str, Any]]:
    """All results, oldest file first.

    Raises
    ------
    InputError: a file is no JSON.
    """
    found = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        except ValueError as error:
            raise InputError(
                f"{path} is not one JSON object a line ({error}); remove it, or run its script again"
            ) from error
        found += [line for line in lines if "name" in line]
    return found


def newest(bars: list[Bar]) -> list[Bar]:
    """The last bar of each label, groups together."""
    last = {(bar.group, bar.label): bar for bar in bars}
    groups = [STEP, MEMORY, SAVING, DATA, *sorted({bar.group for bar in last.values()})]
    return sorted(last.values(), key=lambda bar: (groups.index(bar.group), bar.label))


def _nothing(result: dict[str, Any]) -> Iterator[Bar]:
    yield from ()


def _where(result: dict[str, Any]) -> tuple[str, str]:
    gpu = result["hardware"].get("gpu")
    return (f", {gpu.removeprefix('NVIDIA ').split()[0]}", GPU) if gpu else ("", OURS)


def _shape(result: dict[str, Any]) -> tuple[tuple[int, int, int], str]:
    settings = result["settings"]
    shape = (settings["layers"], settings["hidden"], settings["seq_len"])
    where, _ = _where(result)
    text = ", a corpus" if settings.get("store") else ""
    text += ", bf16" if not where and settings.get("precision") == "bf16" else ""  # on a GPU it always is
    return shape, f"{shape[0]} \N{MULTIPLICATION SIGN} {shape[1]}, {shape[2]} tokens{text}{where}"


def _step(result: dict[str, Any]) -> Iterator[Bar]:
    shape, label = _shape(result)
    figures = result["figures"]
    where, colour = _where(result)
    ours, theirs = (counted(figures[f"{side}_tokens_per_s"]) for side in ("ours", "theirs"))
    detail = f"{ours} against {theirs} tokens/s"
    floor = None if where or result["settings"].get("store") else STEP_FLOORS.get(shape)  # set for the fixed lengths
    yield Bar(STEP, label, result["ratio"], floor, detail, colour)


def _memory(result: dict[str, Any]) -> Iterator[Bar]:
    _, label = _shape(result)
    figures, (_, colour) = result["figures"], _where(result)
    for side, words, ratio in (
        ("ours", "", result["ratio"]),
        ("ours_checkpointed", ", checkpointed", result["ratio_checkpointed"]),
    ):
        detail = f"{figures[f'{side}_mb']:,.0f} against {figures['theirs_mb']:,.0f} MB"
        yield Bar(MEMORY, label + words, ratio, None, detail, colour)


def _saving(result: dict[str, Any]) -> Iterator[Bar]:
    figures = result["figures"]
    ours, theirs = figures["ours_stall_ms"], figures["deepspeed_stall_ms"]
    detail = f"{ours:.0f} against {theirs:.0f} ms"
    yield Bar(SAVING, "training stands still", theirs / ours, None, detail, OURS)


def _loader(result: dict[str, Any]) -> Iterator[Bar]:
    ours, theirs = counted(result["token_samples_s"]), counted(result["collator_samples_s"])
    detail = f"{ours} against {theirs} samples/s"
    yield Bar(DATA, "loader: pairs and masks", result["ratio"], 12.0, detail, OURS)


def _shard(result: dict[str, Any]) -> Iterator[Bar]:
    theirs = result["hf_one_thread_mb_s"]
    for name, label, floor in (
        ("nanotoken", "shards, fast tokenizer", 8.0),
        ("pieces", "shards, tokenizers alone", 2.5),
    ):
        if name in result:
            detail = f"{result[name]['cpu_mb_s']:.1f} against {theirs:.1f} MB/s"
            yield Bar(DATA, label, result[name]["ratio"], floor, detail, OURS)


def _mfu(result: dict[str, Any]) -> Iterator[Bar]:
    shape, label = _shape(result)
    where, colour = _where(result)
    floor = 0.68 if shape[:2] == (6, 512) and not where else None
    theirs = result["figures"]["theirs_mfu"]
    yield Bar("Of the matrix-product peak", label, result["figures"]["ours_mfu"], floor, f"theirs {theirs:.2f}", colour)


def _trainer(result: dict[str, Any]) -> Iterator[Bar]:
    figures = result["figures"]
    group = f"The whole trainer ({result['settings']['model']})"
    yield Bar(
        group,
        "of the bare step's speed",
        result["ratio"],
        0.93,
        f"{counted(figures['trainer_tokens_per_s'])} tokens/s",
        OURS,
    )
    ratio = figures["two_ranks_ratio"]
    yield Bar(group, "two ranks, of twice one", ratio / 2, 0.8, f"{ratio:.2f} times one", OURS)


RATIOS: dict[str, Callable[[dict[str, Any]], Iterator[Bar]]] = {
    "step_time": _step,
    "step_memory": _memory,
    "checkpoint": _saving,
    "loader_throughput": _loader,
    "shard_throughput": _shard,
}
SHARES: dict[str, Callable[[dict[str, Any]], Iterator[Bar]]] = {"step_time": _mfu, "trainer_overhead": _trainer}


def draw(ratios: list[Bar], shares: list[Bar]) -> Figure:
    """Ratios above on a logarithmic axis that begins at the peer; shares of an ideal below."""
    rows = [len(bars) + len({bar.group for bar in bars}) for bars in (ratios, shares)]
    height = 0.31 * sum(rows) + 1.9
    figure = Figure(figsize=(9.6, height))
    unit = 0.31 / height
    upper = figure.add_axes((LEFT, 1 - 0.75 / height - rows[0] * unit, WIDTH, rows[0] * unit))
    top = max(max(bar.value, bar.floor or 0) for bar in ratios)
    upper.set_xscale("log")
    _bars(upper, ratios, 1.0, 10 ** (math.log10(top) * 1.04), "{:.3g}\N{MULTIPLICATION SIGN}")
    upper.set_xticks([tick for tick in (1, 2, 4, 8, 16, 32) if tick <= top * 1.1])
    upper.xaxis.set_minor_locator(NullLocator())
    upper.xaxis.set_minor_formatter(NullFormatter())
    upper.set_xticklabels([f"{tick:g}\N{MULTIPLICATION SIGN}" for tick in upper.get_xticks()])
    figure.text(MARGIN, 1 - 0.36 / height, "Times as good as the usual way", fontsize=13, weight="bold", color=INK)
    figure.text(0.98, 1 - 0.36 / height, "dark mark: the floor set beforehand", fontsize=9, color=MUTED, ha="right")
    if shares:
        lower = figure.add_axes((LEFT, 0.3 / height, WIDTH, rows[1] * unit))
        _bars(lower, shares, 0.0, 1.05, "{:.2f}")
        lower.set_xticks([0, 0.25, 0.5, 0.75, 1])
        place = (0.3 + 0.31 * rows[1] + 0.14) / height
        figure.text(MARGIN, place, "Shares of an ideal", fontsize=13, weight="bold", color=INK)
    return figure


def _bars(axes: Axes, bars: list[Bar], low: float, high: float, form: str) -> None:
    """Bars from `low`, each group under its name."""
    row, group = 0, ""
    for bar in bars:
        if bar.group != group:
            group = bar.group
            axes.annotate(
                group,
                ((MARGIN - LEFT) / WIDTH, row),
                xycoords=("axes fraction", "data"),
                fontsize=9.5,
                weight="bold",
                color=INK,
                va="center",
            )
            row += 1
        axes.barh(row, bar.value - low, 0.62, left=low, color=bar.colour, zorder=2)
        if bar.floor is not None:
            axes.plot(
                [bar.floor] * 2, [row - 0.43, row + 0.43], color=INK, linewidth=2.2, solid_capstyle="butt", zorder=3
            )
        axes.annotate(
            bar.label,
            (-0.02, row),
            xycoords=("axes fraction", "data"),
            fontsize=9.5,
            color=INK,
            ha="right",
            va="center",
        )
        axes.annotate(
            form.format(bar.value),
            (1.02, row),
            xycoords=("axes fraction", "data"),
            fontsize=9.5,
            weight="bold",
            color=INK,
            va="center",
        )
        axes.annotate(
            bar.detail, (1.145, row), xycoords=("axes fraction", "data"), fontsize=8.5, color=MUTED, va="center"
        )
        row += 1
    axes.set_xlim(low, high)
    axes.set_ylim(row - 0.4, -0.6)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8.5, colors=MUTED, length=0)
    axes.grid(axis="x", color=FAINT, zorder=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(MUTED)


if __name__ == "__main__":
    run(main, PlotConfig, __doc__)
