"""Pictures of a fine-tuning, beside its results.json: which labels are taken for which, and how the loss fell.

draw(folder, results, examples, answers)     confusion.png (classify, pair), curve.png
"""

import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from sklearn import metrics

from data_prep.json_types import JsonObject
from pretrain.finetune.files.labelled import Example

CONFUSION, CURVE = "confusion.png", "curve.png"
MOST_LABELS = 40  # beyond, nothing in the picture can be read
WITH_NUMBERS = 12  # labels up to which each square says its share
STYLE: dict[Any, Any] = {"font.family": ["DejaVu Sans"], "font.size": 9.5, "text.parse_math": False}


def draw(folder: Path, results: JsonObject, examples: list[Example], answers: list[Any]) -> None:
    """Write the pictures. answers: of the model that is kept."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font has not; results.json has them
        names = results["labels"]
        if results["task"] in ("classify", "pair") and len(names) <= MOST_LABELS:
            _save(_confusion([example.label for example in examples], answers, names), folder / CONFUSION)
        _save(_curve(results), folder / CURVE)


def _confusion(truth: list[str], answers: list[str], names: list[str]) -> Figure:
    """Return a square for each pair of labels: the share of the row's examples that were answered so."""
    counts = metrics.confusion_matrix(truth, answers, labels=names)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = max(4.0, 0.42 * len(names) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("answered")
    axes.set_ylabel("label")
    if len(names) <= WITH_NUMBERS:
        for row, column in ((row, column) for row in range(len(names)) for column in range(len(names))):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour)
    return figure


def _curve(results: JsonObject) -> Figure:
    """Return the training loss of each epoch, a line a seed; beside it the score on what was held back."""
    seeds = results["seeds"]
    measured = "held_back_curve" in seeds[0]
    figure = Figure(figsize=(9 if measured else 5, 3.4), layout="constrained")
    panels = figure.subplots(1, 1 + measured, squeeze=False)[0]
    titles = [("curve", "training loss"), ("held_back_curve", f"{results['metric']} on the part held back")]
    for axes, (key, title) in zip(panels, titles, strict=False):
        for seed in seeds:
            axes.plot(range(1, len(seed[key]) + 1), seed[key], marker="o", markersize=3, label=f"seed {seed['seed']}")
            if key != "curve":
                best = seed["best_epoch"]
                axes.plot([best], [seed[key][best - 1]], marker="o", markersize=9, fillstyle="none", color="black")
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if 1 < len(seeds) <= 10:
            axes.legend(frameon=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})
