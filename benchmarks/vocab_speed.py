"""How much processor time a WordPiece vocabulary takes, against the trainer of `tokenizers` reading the same text.

    python benchmarks/vocab_speed.py --corpus ../shared/data/corpus_en
    python benchmarks/vocab_speed.py --corpus ../shared/data/corpus_en --rounds 1 --baseline no

Runs data_prep/vocab.py as a user would, whole process with start, reading and writing, one worker and two; the peer is
a process that imports `tokenizers`, reads the same documents and calls `train_from_iterator` on one thread. User and
system time of a process and its children; the best of the rounds. The rate of one worker says what 50 GB would take:
above --sample_mb text is read and passed over (`read_mb_s`), the sample counted, and pieces joined once.
"""

import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from benchmarks.machine import machine
from data_prep.cli import ROOT, InputError, print_json, run, say

LARGE_MB = 50_000  # of text, for which the time is told from the rates
PEER = """
import sys
from collections import Counter
from tokenizers import trainers
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from data_prep.tokens.wordpiece import SPECIAL, bert_tokenizer

size, *corpus = sys.argv[1:]
documents = (each.text for source in find_sources(corpus) for each in read_documents(source, "text", Counter()))
trainer = trainers.WordPieceTrainer(
    vocab_size=int(size), min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
)
bert_tokenizer({}, cased=False).train_from_iterator(documents, trainer)
"""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured."""

    corpus: tuple[str, ...]
    """files, folders or globs"""
    size: int = 30528
    """entries"""
    rounds: int = 2
    """runs of each; the best counts"""
    baseline: Literal["yes", "no"] = "yes"
    """whether `tokenizers` trains, too"""


def main(config: BenchmarkConfig) -> None:
    """Measure and print one JSON line."""
    from data_prep.sample import Reading, Sample
    from data_prep.text.discovery import find_sources

    sample = Sample.of(find_sources(config.corpus), Reading("text", None, encoding_is_named=False), 1e9)
    megabytes = sample.count(None, 1, "characters").text_bytes / 1e6
    result: dict[str, Any] = {"name": "vocab_speed", "mb": round(megabytes, 1), "size": config.size}
    with tempfile.TemporaryDirectory(prefix="zerobert-") as folder:
        for workers in (1, 2):
            out = Path(folder) / f"vocab{workers}"
            command = [str(ROOT / "data_prep/vocab.py"), "--corpus", *config.corpus, "--out", str(out)]
            command += ["--size", str(config.size), "--workers", str(workers)]
            result[f"workers_{workers}"] = best(command, config.rounds, megabytes)
        names = ("tokenizer.json", "vocab.txt")
        written = [[(Path(folder) / f"vocab{workers}" / name).read_bytes() for name in names] for workers in (1, 2)]
        result["same_bytes"] = written[0] == written[1]
        # Of a sample of next to nothing what remains is to start, to read and to choose.
        command = [str(ROOT / "data_prep/vocab.py"), "--corpus", *config.corpus, "--out", f"{folder}/part"]
        command += ["--sample_mb", str(megabytes / 100), "--size", "4096", "--workers", "1"]
        passing = best(command, config.rounds, megabytes)
    result["read_mb_s"] = passing["mb_s"]
    if config.baseline == "yes":
        result["tokenizers"] = best(["-c", PEER, str(config.size), *config.corpus], config.rounds, megabytes)
        result["ratio"] = round(result["tokenizers"]["cpu_s"] / result["workers_1"]["cpu_s"], 2)
    result["core_minutes_of_50_gb"] = round(LARGE_MB / passing["mb_s"] / 60, 1)  # of them the sample is a small part
    print_json(result | machine("numpy", "tokenizers"))


def best(command: list[str], rounds: int, megabytes: float) -> dict[str, float]:
    """Processor seconds of a Python process and its children, the least of several runs, and the rate that this is."""
    seconds = min(once(command) for _ in range(rounds))
    say(f"{' '.join(map(ascii, command[-6:]))[:100]}: {seconds:.1f} s")
    return {"cpu_s": round(seconds, 2), "mb_s": round(megabytes / seconds, 2)}


def once(command: list[str]) -> float:
    """Processor seconds of one run.

    Raises
    ------
    InputError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise InputError(f"it failed: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run(main, BenchmarkConfig, __doc__)
