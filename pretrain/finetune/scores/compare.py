"""Say by how much one fine-tuning is better than another, on the same examples, and how sure that is.

    python -m pretrain.finetune --compare tuned raw

Both folders are results of pretrain.finetune on the same --eval. The difference of their scores has an interval of
95 %: examples are drawn anew 2,000 times, the same for both, and of several seeds the seeds, too. Two scores whose own
intervals overlap may still differ for sure, as both find the same examples hard.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.cli import InputError, print_json
from data_prep.json_types import JsonObject
from data_prep.untrusted import read_object
from pretrain.finetune.examples import PREDICTIONS, RESULTS
from pretrain.finetune.scores.squad_scores import script_of
from pretrain.inference.tag_spans import scheme_of, spans

COMPARED = ("classify", "pair", "multilabel", "regress", "tag", "qa", "choice")
DRAWS, AT_ONCE = 2000, 100
COVERED = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class CompareConfig:
    """Which results to compare."""

    compare: tuple[Path, Path]
    """Two folders that pretrain.finetune has written."""
    json: bool = False
    """Print one JSON object."""


class Outcome(NamedTuple):
    """What a folder holds: examples, and what was answered."""

    folder: Path
    task: str
    metric: str
    names: list[str]
    asked: list[tuple[Any, ...]]  # (line, text, pair, options, label) of each example
    answers: list[list[Any]]  # [seeds][N]


class Difference(NamedTuple):
    """By how much a score is higher, and between which ends that lies, with 95 %."""

    value: float
    low: float
    high: float


def main(config: CompareConfig) -> None:
    """Compare, and print.

    Raises
    ------
    InputError: a folder that holds no such results, or results of another task or on other examples.
    """
    first, second = (read_outcome(folder) for folder in config.compare)
    if first.task != second.task:
        raise InputError(f"{first.folder} is of --task {first.task}, {second.folder} of --task {second.task}")
    if first.asked != second.asked:
        raise InputError(
            f"{first.folder} and {second.folder} were not measured on the same examples; give both the same --eval"
        )
    if first.task not in COMPARED:
        raise InputError(f"{first.folder}: results of --task {first.task} are not compared; {first.metric} is no sum")
    counts = [counts_of(outcome) for outcome in (first, second)]
    scores = [float(score_of(first.task, each.sum(1)).mean()) for each in counts]
    difference = difference_of(first.task, *counts)
    better = "a" if difference.low > 0 else "b" if difference.high < 0 else None
    result: JsonObject = {
        "task": first.task,
        "metric": first.metric,
        "a": {"folder": str(first.folder), "score": scores[0], "seeds": len(first.answers)},
        "b": {"folder": str(second.folder), "score": scores[1], "seeds": len(second.answers)},
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "better": better,
        "examples": len(first.asked),
    }
    if config.json:
        print_json(result)
        return
    winner = {"a": first.folder, "b": second.folder}.get(better or "")
    verdict = f"{winner} is better" if winner else "neither is shown to be better"
    print(f"{first.metric} {scores[0]:.4f} of {first.folder}, {scores[1]:.4f} of {second.folder}")
    print(f"difference {difference.value:+.4f}, 95 %: {difference.low:+.4f} to {difference.high:+.4f}; {verdict}")
    print(f"over {len(first.asked)} examples; seeds: {len(first.answers)} and {len(second.answers)}")


def read_outcome(folder: Path) -> Outcome:
    """Return what a folder holds.

    Raises
    ------
    InputError: no results there, or none with predictions.
    """
    if not (folder / RESULTS).is_file() or not (folder / PREDICTIONS).is_file():
        missing = next(name for name in (RESULTS, PREDICTIONS) if not (folder / name).is_file())
        raise InputError(
            f"{folder} has no {missing}; give a folder that pretrain.finetune has written, or run it again"
        )
    results = read_object(folder / RESULTS)
    try:
        rows = [json.loads(line) for line in (folder / PREDICTIONS).read_text("utf-8").split("\n") if line]
        asked = [(row["line"], row["text"], row.get("pair"), row.get("options"), row["label"]) for row in rows]
        answers = [list(seed) for seed in zip(*(row["answers"] for row in rows), strict=True)]
        outcome = Outcome(folder, results["task"], results["metric"], results["labels"], asked, answers)
        if outcome.task in COMPARED:
            counts_of(outcome)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{folder / PREDICTIONS} is damaged; run pretrain.finetune again") from error
    return outcome


def counts_of(outcome: Outcome) -> np.ndarray:
    """Return [seeds, N, K]: what each example adds to the sums of which the score is made."""
    truth = [label for *_, label in outcome.asked]
    rows: list[list[tuple[float, ...]]]
    if outcome.task in ("multilabel", "tag"):
        as_set = _span_set(outcome.names) if outcome.task == "tag" else set
        wanted = [as_set(label) for label in truth]
        rows = [
            [
                (len(given & right), len(given), len(right))
                for given, right in zip(map(as_set, seed), wanted, strict=True)
            ]
            for seed in outcome.answers
        ]
    elif outcome.task == "regress":
        # From the mean of the labels, so that years lose no digits.
        middle = float(np.mean(truth))
        pairs = [[(x - middle, y - middle) for x, y in zip(seed, truth, strict=True)] for seed in outcome.answers]
        rows = [[(1, x, y, x * x, y * y, x * y) for x, y in seed] for seed in pairs]
    elif outcome.task == "qa":
        f1_of, expected = script_of(truth)
        rows = [
            [(max(f1_of(given, text) for text in texts), 1) for given, texts in zip(seed, expected, strict=True)]
            for seed in outcome.answers
        ]
    else:
        rows = [[(given == right, 1) for given, right in zip(seed, truth, strict=True)] for seed in outcome.answers]
    return np.array(rows, dtype=np.float64)


def _span_set(names: list[str]) -> Any:
    scheme = scheme_of([names])
    return lambda tags: spans(tags, scheme)


def score_of(task: str, sums: np.ndarray) -> np.ndarray:
    """Return the score of sums [..., K] over examples."""
    if task in ("multilabel", "tag"):
        hits, given, wanted = np.moveaxis(sums, -1, 0)
        return 2 * hits / np.maximum(given + wanted, 1)
    if task == "regress":
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
        return np.where(spread > 0, (n * xy - x * y) / np.sqrt(np.where(spread > 0, spread, 1)), 0)
    return sums[..., 0] / sums[..., 1]


def difference_of(task: str, first: np.ndarray, second: np.ndarray) -> Difference:
    """Return by how much the score of `first` [seeds, N, K] is higher than that of `second`, with its interval."""
    rng = np.random.default_rng(0)
    count = first.shape[1]
    drawn: list[np.ndarray] = []
    for _ in range(DRAWS // AT_ONCE):
        times = rng.multinomial(count, np.full(count, 1 / count), AT_ONCE).astype(np.float64)  # each example is drawn
        means = []
        for counts in (first, second):
            scores = score_of(task, np.einsum("dn,snk->dsk", times, counts))
            seeds = rng.integers(0, len(counts), (AT_ONCE, len(counts)))
            means.append(np.take_along_axis(scores, seeds, 1).mean(1))
        drawn.append(means[0] - means[1])
    value = score_of(task, first.sum(1)).mean() - score_of(task, second.sum(1)).mean()
    low, high = np.percentile(np.concatenate(drawn), COVERED)
    return Difference(float(value), float(low), float(high))
