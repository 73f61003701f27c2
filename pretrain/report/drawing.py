"""How a chart is drawn.

    as_svg(chart, ...) -> Drawing            for the page: transparent, colours are CSS variables, text is text
    as_png(chart, ...) -> bytes              for elsewhere: on white, with title and legend

Training lines are noisy: as logged they are thin, over them lies their running mean.
"""

import io
import re
import warnings
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pretrain.formatting import counted
from pretrain.report.charts import LIGHT, SERIES, Chart, Line
from pretrain.report.history import Axis, Event, History
from pretrain.report.page_text import ticked

EVENTS = {"resume": ("warn", (4, 2.5)), "restart": ("warn", (4, 2.5)), "rollback": ("bad", (4, 2.5)),
          "stop": ("bad", (1, 1.5)), "skip": ("bad", (1, 3)), "phase": ("muted", None)}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "path.simplify_threshold": 0.2,
}
TOO_NEAR = 0.03  # share of the axis: events that lie closer share a label
SMOOTHED = 60  # points from which on a training line is drawn with its running mean


class Drawing(NamedTuple):
    """An SVG, and where in it the axes lie: a reader's pointer becomes a place on the x axis."""

    svg: str
    left: float  # shares of the width
    right: float
    bottom: float  # of the height
    low: float  # what lies at left and right
    high: float


def running_mean(values: np.ndarray) -> np.ndarray:
    """[N] the mean over a window of a thirtieth of the series, centred, narrower at the ends."""
    half = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, len(values) - 1 - places), half)
    return (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)


def as_svg(chart: Chart, histories: list[History], axis: Axis, width: int, height: int) -> Drawing:
    """Draw for the page, in pixels."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{chart.name}-{width}"}):
        figure, axes = _figure(chart, histories, axis, width, height)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        place, (low, high) = axes.get_position(), axes.get_xlim()
    return Drawing(_for_page(out.getvalue(), chart.title), *map(float, (place.x0, place.x1, place.y0, low, high)))


def as_png(chart: Chart, histories: list[History], axis: Axis) -> bytes:
    """Draw for anywhere else: 1280 x 760 pixels on white."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(chart, histories, axis, 640, 380, top=34)
        about = f"  ({chart.about})" if chart.about else ""
        axes.set_title(chart.title + about, loc="left", fontsize=11.5, color=LIGHT["ink"], pad=12)
        if len(chart.lines) > 1:
            axes.legend(frameon=False, fontsize=9.5, labelcolor=LIGHT["muted"])
        out = io.BytesIO()
        faster = {"compress_level": 3}  # a fifth larger, and half of the time was spent on it
        with warnings.catch_warnings():  # of names in letters that the font has not; the page has them
            warnings.filterwarnings("ignore", "Glyph")
            figure.savefig(
                out, format="png", dpi=144, facecolor="white", metadata={"Software": None}, pil_kwargs=faster
            )
    return out.getvalue()


def _figure(
    chart: Chart, histories: list[History], axis: Axis, width: int, height: int, top: int = 12
) -> tuple[Figure, Axes]:
    """Return the chart in axes whose margins are the same number of pixels at every size. 72 dots are an inch."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes((46 / width, 36 / height, 1 - 58 / width, 1 - (36 + top) / height))
    _set_up(axes, chart, axis)
    for line in chart.lines:
        _draw_line(axes, line, histories[line.run].along(axis, line.steps), len(histories) > 1)
    # The same place is the same step on all charts, also where one ends earlier.
    end = max(history.along(axis, np.array([history.train[-1]["step"]]))[0] for history in histories)
    _set_limits(axes, chart, end)
    if chart.name == "mlm_loss":
        _leave_out_the_fall(axes, chart, [histories[line.run].along(axis, line.steps) for line in chart.lines])
    for value, what in chart.marks:
        _draw_mark(axes, value, what)
    for run, history in enumerate(histories):
        _draw_events(axes, history, axis, f"s{run % SERIES}" if len(histories) > 1 else None, height > 300)
    return figure, axes


def _set_up(axes: Axes, chart: Chart, axis: Axis) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["muted"])
    axes.tick_params(axis="both", which="both", length=0, colors=LIGHT["muted"], pad=5)
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.9)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.set_xlabel(axis, color=LIGHT["muted"], fontsize=9.5, loc="right", labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=axis == "step"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: counted(value)))
    if chart.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: ticked(value, chart.style)))


def _draw_line(axes: Axes, line: Line, places: np.ndarray, several: bool) -> None:
    colour = LIGHT.get(line.colour, line.colour)
    if line.band is not None:
        axes.fill_between(places, *line.band, color=colour, alpha=0.08 if several else 0.15, linewidth=0)
    if line.is_noisy and len(places) >= SMOOTHED:
        axes.plot(places, line.values, color=colour, linewidth=0.8, alpha=0.22 if several else 0.35)
        axes.plot(places, running_mean(line.values), color=colour, linewidth=1.9, label=_legend(line.label))
        return
    style: dict[str, Any] = {"linewidth": 1.7}
    if len(places) < 40 and not line.is_noisy:
        style |= {"marker": "o", "markersize": 3.6, "markeredgewidth": 0}
    axes.plot(places, line.values, color=colour, label=_legend(line.label), **style)


def _legend(label: str) -> str:
    """Return a name as a legend can show it: matplotlib leaves out those that begin with an underscore."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in label)
    return f" {shown}" if shown.startswith("_") else shown


def _set_limits(axes: Axes, chart: Chart, end: float) -> None:
    """From zero to the end of the longest run; a log axis of few decades is labelled at 1, 2, 5 of each."""
    axes.set_xlim(0, end * 1.015)
    low, high = axes.get_ylim()
    if chart.is_log:
        subs = (1.0,) if high / low > 300 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(10, subs, numticks=8))
    elif chart.style == "count" or chart.name in ("lr", "mfu", "padding_saved", "memory", "mlm_acc"):
        axes.set_ylim(0, high)


def _leave_out_the_fall(axes: Axes, chart: Chart, places: list[np.ndarray]) -> None:
    """End the y axis where the loss is after 5 % of the run, if the fall before that would fill most of the chart."""
    low, high = axes.get_ylim()
    begin = 0.05 * axes.get_xlim()[1]
    later = [line.values[at > begin] for line, at in zip(chart.lines, places, strict=True)]
    tops = [values.max() for values in later if len(values)] + [value for value, _ in chart.marks]
    tops += [line.values[-1] for line in chart.lines]  # a short run beside a long one stays in sight
    if tops and max(tops) - low < 0.7 * (high - low):
        axes.set_ylim(low, max(tops) + 0.06 * (max(tops) - low))


def _draw_mark(axes: Axes, value: float, what: str) -> None:
    """A horizontal line that gives the others a measure; it does not widen a chart to be seen."""
    low, high = axes.get_ylim()
    if not low <= value <= high:
        return
    axes.axhline(value, color=LIGHT["muted"], linewidth=1, dashes=(2, 2))
    axes.annotate(what, (0.995, value), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", va="bottom", fontsize=9, color=LIGHT["muted"])  # fmt: skip


def _draw_events(axes: Axes, history: History, axis: Axis, colour: str | None, is_named: bool) -> None:
    """A vertical line where something happened; saves, which are many and no news, are ticks on the axis."""
    shown: list[Event] = [event for event in history.events if not event.lost]
    places = history.along(axis, np.array([event.step for event in shown]))
    labels: list[tuple[float, list[str], str]] = []
    for event, place in zip(shown, places, strict=True):
        if event.name not in EVENTS:
            continue
        role, dashes = EVENTS[event.name]
        line = axes.axvline(place, color=LIGHT[colour or role], linewidth=1.1, alpha=0.55 if colour else 0.9)
        if dashes:
            line.set_dashes(dashes)
        low, high = axes.get_xlim()
        if labels and place - labels[-1][0] < TOO_NEAR * (high - low):
            labels[-1][1].append(event.name)
        else:
            labels.append((place, [event.name], role))
    for place, names, role in labels if is_named and not colour else []:
        axes.annotate(", ".join(names), (place, 1.0), (3, -1), xycoords=("data", "axes fraction"), ha="left", va="top",
                      textcoords="offset points", fontsize=9, color=LIGHT[role], rotation=90)  # fmt: skip


def _for_page(svg: str, title: str) -> str:
    """matplotlib's SVG as a part of a page: no prologue, no names that clash, colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', svg, count=1
    )
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))
    svg = re.sub(r'\sid="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
