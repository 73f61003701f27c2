"""What a pretraining run has learnt, over the tokens it has seen: a picture, and its points as one JSON line.

    python benchmarks/learning_curve.py RUN [RUN ...] --out curve.png

Of each evaluation on held-out documents: the masked-word loss and accuracy, and where the run was given minimal pairs
(--eval_pairs) the share of them that it gets right. Several runs are drawn into one picture, by the names of their
folders.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.machine import machine
from data_prep.cli import InputError, run
from pretrain.report.history import History

CURVES = {  # name in metrics.jsonl -> what it is
    "mlm_loss": "held-out loss, nats a masked token",
    "mlm_acc": "share of masked tokens that are right",
    "pairs_acc": "share of minimal pairs that are right",
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Which runs, and where the picture goes."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders"""
    out: Path
    """the picture, .png or .svg"""


def main(config: BenchmarkConfig) -> None:
    """Read, draw, print."""
    histories = [History.read(folder) for folder in config.runs]
    if not any(history.evals for history in histories):
        raise InputError(f"{config.runs[0]} has no evaluation yet; --eval_every says how often there is one")
    shown = {name: words for name, words in CURVES.items() if any(len(h.series("evals", name)[0]) for h in histories)}
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    for column, (name, words) in enumerate(shown.items()):
        draw(figure.add_subplot(1, len(shown), column + 1), histories, name, words)
    figure.savefig(config.out, dpi=144, facecolor="white", metadata={"Software": None})
    print(json.dumps({"name": "learning_curve", "figures": {h.label: points(h) for h in histories}} | machine("torch")))


def draw(axes: Axes, histories: list[History], name: str, words: str) -> None:
    """Draw one number of all runs over the tokens that each has seen."""
    for history in histories:
        steps, values = history.series("evals", name)
        if len(steps):
            axes.plot(history.along("tokens", steps) / 1e6, values, marker="o", markersize=3, label=history.label)
    axes.set_xlabel("million tokens")
    axes.set_title(words, fontsize="medium")
    axes.grid(alpha=0.3)
    if len(histories) > 1:
        axes.legend()


def points(history: History) -> list[dict[str, Any]]:
    """Return one object an evaluation: step, million tokens, hours of the run's clock, and what was measured."""
    steps, _ = history.series("evals", "mlm_loss")
    tokens, hours = history.along("tokens", steps) / 1e6, history.along("hours", steps)
    return [
        {"step": int(step), "million_tokens": round(at, 2), "hours": round(clock, 2)}
        | {name: round(line[name], 4) for name in CURVES if name in line}
        for step, at, clock, line in zip(steps, tokens.tolist(), hours.tolist(), history.evals, strict=True)
    ]


if __name__ == "__main__":
    run(main, BenchmarkConfig, __doc__)
