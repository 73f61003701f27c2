"""The page of a run, or of several: index.html, which needs nothing but itself, and a PNG per chart.

page, images = write(out, histories, "step")
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from data_prep.fields import is_number
from data_prep.files import write_whole
from data_prep.json_types import JsonObject
from pretrain.formatting import counted, duration
from pretrain.report.charts import DARK, LIGHT, SERIES, Chart, charts_of
from pretrain.report.drawing import as_png, as_svg
from pretrain.report.history import Axis, History
from pretrain.report.page_text import NONE, Style, as_text, event_text, facts

TEMPLATE = "page.html.jinja"
SMALL, LARGE = (400, 244), (820, 556)  # pixels of a chart in the page; the first one is also drawn large


class Row(NamedTuple):
    """A row of a table of runs: a cell per run."""

    name: str
    cells: list[str]
    best: str = ""  # the cell of the best run, where one is best

    @property
    def differs(self) -> bool:
        """Return whether the runs differ in it."""
        return len(set(self.cells)) > 1


class Tile(NamedTuple):
    """A headline number."""

    name: str
    value: str
    about: str


def write(out: Path, histories: list[History], axis: Axis) -> tuple[Path, list[str]]:
    """Draw everything into the folder `out`: the page, and the names of the PNGs."""
    charts = charts_of(histories)
    out.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        write_whole(out / f"{chart.name}.png", [as_png(chart, histories, axis)], sync=False)
    page = out / "index.html"
    write_whole(page, [page_of(histories, charts, axis).encode(errors="replace")], sync=False)
    return page, [f"{chart.name}.png" for chart in charts]


def page_of(
    histories: list[History], charts: list[Chart], axis: Axis, template: Path | None = None, **more: Any
) -> str:
    """Return the whole page. `template` may extend page.html.jinja, and gets `more` beside what that has."""
    folders = [Path(__file__).parent, *([template.parent] if template else [])]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    drawings = [
        [as_svg(chart, histories, axis, *size) for size in ((SMALL, LARGE) if place == 0 else (SMALL,))]
        for place, chart in enumerate(charts)
    ]
    numbers = [history.summary() for history in histories]
    return environment.get_template(template.name if template else TEMPLATE).render(
        histories=histories,
        numbers=numbers,
        lead=lead_of(histories[0]),
        tiles=tiles_of(histories[0], numbers[0]),
        results=results_of(numbers) + by_source(histories),
        settings=settings_of(histories),
        sources=sources_of(histories[0]) if len(histories) == 1 else [],
        minimal_pairs=minimal_pairs_of(histories[0]) if len(histories) == 1 else [],
        charts=list(zip(charts, drawings, strict=True)),
        data=json.dumps(data_of(histories, charts, axis), separators=(",", ":")).replace("<", "\\u003c"),
        events=[[(event, event_text(event)) for event in history.events] for history in histories],
        notes=notes_of(histories, numbers, axis),
        light=LIGHT,
        dark=DARK,
        series_colours=SERIES,
        as_text=as_text,
        colour_of=lambda colour: f"var(--{colour})" if colour in LIGHT else colour,
        **more,
    )


def data_of(histories: list[History], charts: list[Chart], axis: Axis) -> JsonObject:
    """Return the numbers behind the charts, for the pointer, and for whoever wants them: name -> series."""
    return {
        chart.name: {
            "unit": chart.style,
            "series": [
                {
                    "label": line.label,
                    "steps": line.steps.tolist(),
                    "values": [_short(value) for value in line.values],
                }
                | ({"x": [_short(x) for x in histories[line.run].along(axis, line.steps)]} if axis != "step" else {})
                for line in chart.lines
            ],
        }
        for chart in charts
    }


def _short(value: float) -> float | int:
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded


def lead_of(history: History) -> tuple[str, str]:
    """Return the run in a sentence: the model, and the rest."""
    told = facts(history)
    size = f", {counted(history.parameters)} parameters" if history.parameters else ""
    batch = " of ".join(filter(None, (told.get("Batch", "").split(" = ")[0], told.get("Sample"))))
    phases = told.get("Phases", "").count("; ") + 1
    each = f" in {phases} phases" if phases > 1 else f" of {batch}" if batch else ""
    length = f"{history.hours:g} hours of steps" if history.hours else f"{told.get('Steps')} steps"
    words = [f"{length}{each}"] if "Steps" in told else []
    if {"Optimizer", "Learning rate"} <= set(told):
        words.append(f"{told['Optimizer']} at {told['Learning rate']}")
    words.append(f"{told['Precision']}, ZeRO {told['ZeRO']}")
    data = f" on {told['Data']}" if "Data" in told else ""
    return told.get("Model", "A model"), f"{size}{data}. {'; '.join(words)}."


def tiles_of(history: History, numbers: JsonObject) -> list[Tile]:
    """Return the headline numbers of one run."""
    where = f"{'held out' if numbers['held_out'] else 'training'}, step {numbers['scored_at']:,}{_best(history)}"
    tiles = [
        Tile("Masked-word loss", as_text(numbers["mlm_loss"], "nats"), where),
        Tile("Perplexity", as_text(numbers["perplexity"], "plain"), _against_unigrams(history, numbers)),
        Tile("Masked-word accuracy", as_text(numbers["mlm_acc"], "share"), "of masked tokens"),
    ]
    if "avg_mlm_loss" in numbers:
        about = f"loss, masked-word accuracy {as_text(numbers.get('avg_mlm_acc'), 'share')}"
        tiles.append(Tile("Averaged weights", as_text(numbers["avg_mlm_loss"], "nats"), about))
    if history.has_pairs:
        tiles.append(Tile("Pair accuracy", as_text(numbers["nsp_acc"], "share"), "chance is 50%"))
    tiles.append(Tile("Tokens per second", as_text(numbers["tokens_per_s"], "count"), "median, padding not counted"))
    about = "unknown: the machine was busy" if numbers["mfu"] is None else "median, of the matrix-product peak"
    tiles.append(Tile("MFU", as_text(numbers["mfu"], "share"), about))
    lost = f", {duration(numbers['lost_seconds'])} done twice" if numbers["lost_seconds"] else ""
    tiles.append(Tile("Time", duration(numbers["seconds"]), f"{counted(numbers['tokens'] or 0)} tokens{lost}"))
    return tiles


def _against_unigrams(history: History, numbers: JsonObject) -> str:
    entropy = history.unigram_entropy
    if entropy is None or numbers["mlm_loss"] is None:
        return "e to the loss"
    gained = entropy - numbers["mlm_loss"]
    return f"{abs(gained):.2f} nats {'below' if gained >= 0 else 'above'} the unigram entropy"


def _best(history: History) -> str:
    """Return where the held-out loss was lowest, when that was not at the end."""
    found = [line for line in history.evals if _is_finite(line.get("mlm_loss"))]
    same = [line for line in found if line.get("held_out") == found[-1].get("held_out")]  # others do not compare
    best = min(same, key=lambda line: line["mlm_loss"], default=None)
    if best is None or found[-1]["mlm_loss"] <= best["mlm_loss"]:
        return ""
    return f"; best {as_text(best['mlm_loss'], 'nats')} at {best['step']:,}"


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# What a comparison shows: name, key of the summary, how it is written, and whether more (+1) or less (-1) is better.
RESULTS: tuple[tuple[str, str, Style, int], ...] = (
    ("Masked-word loss", "mlm_loss", "nats", -1),
    ("Perplexity", "perplexity", "plain", -1),
    ("Masked-word accuracy", "mlm_acc", "share", 1),
    ("Loss of averaged weights", "avg_mlm_loss", "nats", -1),
    ("Accuracy of averaged weights", "avg_mlm_acc", "share", 1),
    ("Pair loss", "nsp_loss", "nats", -1),
    ("Pair accuracy", "nsp_acc", "share", 1),
    ("Minimal pairs", "pairs_acc", "share", 1),
    ("Tokens per second", "tokens_per_s", "count", 1),
    ("MFU", "mfu", "share", 1),
    ("Memory, GB per rank", "memory_gb", "plain", -1),
    ("Tokens", "tokens", "count", 0),
)
SCORES = ("mlm_loss", "perplexity", "mlm_acc", "avg_mlm_loss", "avg_mlm_acc", "nsp_loss", "nsp_acc")


def results_of(numbers: list[JsonObject]) -> list[Row]:
    """Return the results of several runs, the best of each marked: of scores where all were scored on the same
    samples."""
    is_one_set = len({(run["held_out"], run["held_out_set"]) for run in numbers}) == 1
    rows = [Row("Scored on", ["held out" if run["held_out"] else "training" for run in numbers])]
    rows.append(Row("At step", [f"{run['scored_at']:,}" for run in numbers]))
    for name, key, style, sign in RESULTS:
        values = [run.get(key) for run in numbers]
        known = [value for value in values if value is not None]
        if known:
            cells = [as_text(value, style) for value in values]
            best = as_text(max(known, key=lambda value: sign * value), style)
            compares = sign and (is_one_set or key not in SCORES)
            rows.append(Row(name, cells, best if compares and len(set(cells)) > 1 else ""))
    rows.append(Row("Time", [duration(run["seconds"]) for run in numbers]))
    return rows


def by_source(histories: list[History]) -> list[Row]:
    """Return the held-out loss of several runs on each source."""
    each = [{row["name"]: row["mlm_loss"] for row in sources_of(history)} for history in histories]
    is_one_set = len({history.evals[-1].get("held_out") for history in histories if history.evals}) == 1
    rows = []
    for name in sorted({name for losses in each for name in losses}):
        cells = [as_text(losses.get(name), "nats") for losses in each]
        best = as_text(min(losses[name] for losses in each if name in losses), "nats")
        rows.append(Row(f"Loss on {name}", cells, best if is_one_set and len(set(cells)) > 1 else ""))
    return rows


def settings_of(histories: list[History]) -> list[Row]:
    """Return what each run was asked to be; what only some of them say is left open for the others."""
    each = [facts(history) for history in histories]
    names = dict.fromkeys(name for told in each for name in told)
    rows = [Row(name, [told.get(name, NONE) for told in each]) for name in names]
    return [row for row in rows if set(row.cells) != {NONE}]


def sources_of(history: History) -> list[JsonObject]:
    """Return the newest evaluation of each source, the best known first; `width` is its loss as a share of the
    largest."""
    newest: dict[str, JsonObject] = {}
    for line in history.evals:
        newest |= {name: scores | {"step": line["step"]} for name, scores in line.get("by_source", {}).items()}
    known = {name: scores for name, scores in newest.items() if scores.get("mlm_loss") is not None}
    largest = max((scores["mlm_loss"] for scores in known.values()), default=1.0) or 1.0
    rows = [{"name": name, **scores, "width": scores["mlm_loss"] / largest} for name, scores in known.items()]
    return sorted(rows, key=lambda row: row["mlm_loss"])


def minimal_pairs_of(history: History) -> list[tuple[str, float]]:
    """Return the accuracy of each group of minimal pairs in the last evaluation that scored them, the best first."""
    scored = [line["pairs_by_group"] for line in history.evals if line.get("pairs_by_group")]
    groups = [(name, share) for name, share in (scored[-1] if scored else {}).items() if is_number(share)]
    return sorted(groups, key=lambda group: (-group[1], group[0]))


def notes_of(histories: list[History], numbers: list[JsonObject], axis: Axis) -> list[str]:
    """Return what a reader must know to read the numbers right."""
    several = len(histories) > 1
    notes = [f"{h.label}: {note}" if several else note for h in histories for note in h.notes]
    if any(run["lost_seconds"] for run in numbers):
        notes.append("Steps that were done again after a resume are drawn once, as the later process logged them.")
    batches = {
        (h.config.get("deepspeed", {}).get("train_batch_size"), h.config["train"].get("seq_len")) for h in histories
    }
    if len(batches) > 1 and axis == "step":
        notes.append("The runs take different batches: with --by tokens they are compared at equal data.")
    return notes
