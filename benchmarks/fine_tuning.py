"""What pretraining is worth: a folder fine-tuned on several tasks, beside random weights and a bag of words.

    python benchmarks/fine_tuning.py HF --tasks FOLDER --out RUNS [--seeds 5] [--only sst2_1k qnli]

FOLDER holds sst2/, snips/, wnut17/, qnli_small/, xquad/, chnsenticorp_htl/ and tatoeba_en_de/ with train and dev files.
Every task is learnt with the same seeds from the folder's weights and from random ones of the same architecture; a seed
decides head, order and dropout, so that differences are taken seed by seed. One JSON line: means, the mean difference
with the half-width of its 95 % t-interval, and what counting words reaches (of translations: the target of the example
whose source is the most alike). RUNS keeps every fine-tuning: what is there is not made again.

chnsenticorp wants a model that reads Chinese. xquad and qnli hold sentences of the same articles: a model that was
fine-tuned on one says nothing about the other.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
import tyro
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.machine import machine
from data_prep.cli import ROOT, InputError, parse, say
from data_prep.files import sha256_of
from data_prep.ranges import Range
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.examples import read_examples
from pretrain.finetune.scores.baseline import BY_WORDS


class Task(NamedTuple):
    """One fine-tuning."""

    kind: str
    folder: str
    files: str  # {} stands for train and dev
    limit: int  # examples to learn from
    epochs: int
    options: tuple[str, ...] = ()


WRITING = tuple("--seq_len 32 --max_new_tokens 32 --beams 1".split())
TASKS = {
    "sst2_1k": Task("classify", "sst2", "{}.tsv", 1_000, 8),
    "sst2_10k": Task("classify", "sst2", "{}.tsv", 10_000, 3),
    "snips_intents_200": Task("classify", "snips", "{}.jsonl", 200, 20),
    "snips_intents": Task("classify", "snips", "{}.jsonl", 13_609, 2),
    "snips_slots_1k": Task("tag", "snips", "{}.jsonl", 1_000, 10),
    "wnut17": Task("tag", "wnut17", "{}.jsonl", 3_394, 5),
    "qnli": Task("pair", "qnli_small", "{}.tsv", 4_368, 5),
    "xquad_en": Task("qa", "xquad", "en.{}.jsonl", 918, 3),
    "chnsenticorp": Task("classify", "chnsenticorp_htl", "{}.tsv", 2_000, 3),
    "tatoeba_en_de": Task("seq2seq", "tatoeba_en_de", "{}.tsv", 4_000, 6, WRITING),
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is fine-tuned, on what."""

    hf: tyro.conf.Positional[Path]
    """folder of the pretrained model"""
    tasks: Path
    """folder of the tasks' folders"""
    out: Path
    """folder of the fine-tunings; those that are there are taken as they are"""
    seeds: Annotated[int, Range(2, 100, whole=True)] = 5
    only: tuple[str, ...] = ()
    """tasks, by name (default: all)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of both sides"""
    lr: float | None = None
    """peak learning rate of both sides (default: that of pretrain.finetune for the size)"""


def main(config: BenchmarkConfig) -> None:
    if unknown := set(config.only) - set(TASKS):
        raise InputError(f"--only {' '.join(sorted(unknown))}: known are {', '.join(TASKS)}")
    figures = {name: compare(config, name) for name in config.only or TASKS}
    result = {
        "name": "fine_tuning",
        "figures": figures,
        "ratio": None,
        "gains": sum(row["difference"] > row["ci95"] for row in figures.values()),
        "beats_words": sum(row["pretrained"] > row["words"] for row in figures.values() if row["words"] is not None),
        "settings": {
            "model": config.hf.name,
            "seeds": config.seeds,
            "precision": config.precision,
            "weights": sha256_of(weights_of(config.hf))[:12],
        },
    }
    print(json.dumps(result | machine("torch", "transformers", "scikit-learn")))


def weights_of(folder: Path) -> Path:
    """Return the file of a folder's weights."""
    return folder / "model.safetensors"


def compare(config: BenchmarkConfig, name: str) -> dict[str, Any]:
    """Fine-tune on one task from both kinds of weights, and compare seed by seed."""
    # Random weights are told by the architecture and the tokenizer alone.
    architecture = sha256_of(config.hf / "config.json")[:8] + sha256_of(config.hf / "tokenizer.json")[:8]
    pretrained = fine_tune(config, name, config.out / f"{name}-{sha256_of(weights_of(config.hf))[:12]}")
    scratch = fine_tune(config, name, config.out / f"{name}-random-{architecture}", "--from_scratch")
    metric = pretrained["metric"]
    one, other = ([seed["scores"][metric] for seed in results["seeds"]] for results in (pretrained, scratch))
    mean, half = paired(one, other)
    words = words_alone(config, name, pretrained)
    beside = f", words {words:.4f}" if words is not None else ""
    say(
        f"{name}: {metric} {np.mean(one):.4f}, random weights {np.mean(other):.4f}, "
        f"difference {mean:+.4f} +- {half:.4f}{beside}"
    )
    return {
        "metric": metric,
        "pretrained": round(float(np.mean(one)), 4),
        "random": round(float(np.mean(other)), 4),
        "difference": round(mean, 4),
        "ci95": round(half, 4),
        "words": words and round(words, 4),
        "majority": pretrained["majority"] and round(pretrained["majority"], 4),
        "scores": {"pretrained": one, "random": other},
    }


def words_alone(config: BenchmarkConfig, name: str, results: dict[str, Any]) -> float | None:
    """Return what counting words reaches on a task; None where words alone cannot answer."""
    task = TASKS[name]
    if task.kind in BY_WORDS:
        return results["baseline"][results["metric"]]
    if task.kind != "seq2seq":
        return None
    options = [str(config.hf), *options_of(config, name), "--out", str(config.out / "words")]
    return nearest_target(parse(FinetuneConfig, None, options))


def nearest_target(config: FinetuneConfig) -> float:
    """Return the BLEU of answering each source with the target of the example whose source has the most alike words."""
    # Here: transformers, which other tasks need in their own processes only.
    from pretrain.finetune.tasks.seq2seq import open_sides, score_targets

    training, evaluation, *_ = read_examples(config)
    counting: Any = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+")
    learnt = counting.fit_transform(str(example.text) for example in training)
    asked = counting.transform(str(example.text) for example in evaluation)
    # Products of one row with all: [examples to learn from], of which the greatest is the nearest.
    nearest = [int(np.argmax((learnt @ row.T).toarray())) for row in asked]
    written = [training[index].label for index in nearest]
    return score_targets(written, [], evaluation, [], sides=open_sides(config))["bleu"]


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference, and the half-width of its 95 % interval (Student's t over the pairs)."""
    differences = np.subtract(one, other)
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean()), float(half)


def options_of(config: BenchmarkConfig, name: str) -> list[str]:
    """Return what a fine-tuning on a task is told."""
    task = TASKS[name]
    train, dev = (str(config.tasks / task.folder / task.files.format(part)) for part in ("train", "dev"))
    rate = () if config.lr is None else ("--lr", str(config.lr))
    sizes = ("--limit", str(task.limit), "--epochs", str(task.epochs))
    return ["--task", task.kind, "--train", train, "--eval", dev, *sizes, *rate, *task.options]


def fine_tune(config: BenchmarkConfig, name: str, out: Path, *more: str) -> dict[str, Any]:
    """Return the results of a fine-tuning, made now where they are not there."""
    task = TASKS[name]
    results = out / "results.json"
    if not results.exists():
        say(f"{name}: {out.name}")
        command = [*options_of(config, name), "--out", str(out), "--seeds", str(config.seeds), *more]
        command += ["--precision", config.precision]
        subprocess.run(
            [sys.executable, "-m", "pretrain.finetune", str(config.hf), *command],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    found = json.loads(results.read_text())
    asked = {"task": task.kind, "seeds": config.seeds, "epochs": task.epochs, "limit": task.limit}
    asked |= {"precision": config.precision} | ({} if config.lr is None else {"lr": config.lr})
    if other := [f"{name} {found['settings'][name]}" for name in asked if found["settings"][name] != asked[name]]:
        raise InputError(f"{results} was made with {', '.join(other)}, asked for are {asked}; choose another --out")
    return found


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
