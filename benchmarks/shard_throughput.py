"""How fast text becomes a token store, against `tokenizers` encoding the same text with one thread.

    python benchmarks/shard_throughput.py --corpus ../shared/data/corpus_en --vocab runs/en/vocab
    python benchmarks/shard_throughput.py --corpus ../shared/data/corpus_en --vocab runs/en/vocab --large_mb 0

Unpacks `--small_mb` of the corpus into one .jsonl file, runs data_prep/shard.py on it as a user would (whole process,
one worker, with each way to encode); then `--large_mb` with one worker and with two. Rates are MB of text by processor
time (`cpu`) and by the clock (`wall`). Take the ratios from one run: the machine is the same for all of its rows.

The baseline is `tokenizers` over the documents of the same file, a thousand at a time as `datasets.map` hands them out,
without special tokens: `encode_batch`, which is the call that transformers' tokenizers make ("ratio"), and
`encode_batch_fast`, which leaves out offsets ("ratio_to_fast"). One thread (checked), processor time. It is charged for
nothing else: no start-up, reading, sentences or writing, all of which shard.py's time includes.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from tokenizers import Tokenizer

from benchmarks.machine import machine
from data_prep.cli import (
    ROOT,
    InputError,
    print_json,
    run,
    say,
)
from data_prep.store import Store
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources

HF_MB = 12  # of the text that `tokenizers` encodes: its rate does not depend on how much
HF_BATCH = 1000  # documents: the default of datasets.map


@dataclass(frozen=True)
class Config:
    """What is measured."""

    corpus: tuple[str, ...]
    """files, folders or globs; repeated where they hold less than is asked for"""
    vocab: Path
    """tokenizer folder"""
    small_mb: float = 24
    """MB of text for one worker"""
    large_mb: float = 282
    """MB of text for one worker against two, so many that the third of a second in which a run starts is a small part;
    0: leave it out"""
    memory_mb: float = 0
    """MB of text, by repetition, for the peak memory of one worker on a large corpus; 0: leave it out"""
    rounds: int = 2
    """runs of each; the best counts"""


def main(config: Config) -> None:
    """Measure and print one JSON line."""
    with tempfile.TemporaryDirectory(prefix="zerobert-") as folder:
        small = write_corpus(config, Path(folder) / "small.jsonl", config.small_mb)
        result: dict[str, Any] = {"name": "shard_throughput", "small_mb": round(small[1] / 1e6, 1)}
        for name, call in (("hf_one_thread_mb_s", "encode_batch"), ("hf_fast_one_thread_mb_s", "encode_batch_fast")):
            result[name] = round(max(hf_rate(config, small[0], call) for _ in range(config.rounds)), 3)
        for path in ("nanotoken", "pieces"):
            options = ("--encode_with", path, "--workers", "1")
            row = best_of([once(config, small, options) for _ in range(config.rounds)])
            ratios = {
                "ratio": row["cpu_mb_s"] / result["hf_one_thread_mb_s"],
                "ratio_to_fast": row["cpu_mb_s"] / result["hf_fast_one_thread_mb_s"],
            }
            result[path] = row | {name: round(ratio, 2) for name, ratio in ratios.items()}
        if config.large_mb:
            large = write_corpus(config, Path(folder) / "large.jsonl", config.large_mb)
            pairs = [
                [once(config, large, ("--workers", str(workers))) for workers in (1, 2)] for _ in range(config.rounds)
            ]
            one, two = map(best_of, zip(*pairs, strict=True))  # in turn: the machine is not the same every minute
            result["large"] = {"mb": round(large[1] / 1e6, 1), "one_worker": one, "two_workers": two}
            result["two_workers_ratio"] = round(two["wall_mb_s"] / one["wall_mb_s"], 2)
        if config.memory_mb:
            huge = write_corpus(config, Path(folder) / "huge.jsonl", config.memory_mb)
            result["memory"] = {"mb": round(huge[1] / 1e6, 1)} | once(config, huge, ("--workers", "1"))
    print_json(result | machine("numpy", "tokenizers", "nanotoken"))


def write_corpus(config: Config, path: Path, megabytes: float) -> tuple[Path, int]:
    """One .jsonl file of about so much text, and its bytes of text."""
    from collections import Counter

    size = 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            before = size
            for source in find_sources(config.corpus):
                for document in read_documents(source, "text", Counter()):
                    file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                    size += len(document.text.encode())
                    if size >= megabytes * 1e6:
                        return path, size
            if size == before:
                raise InputError("the corpus holds no text")
    return path, size


def hf_rate(config: Config, corpus: Path, call: str) -> float:
    """MB a second of processor time of `tokenizers` alone, by a method of its Tokenizer."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(config.vocab / "tokenizer.json"))
    texts: list[str] = []
    size = 0
    with open(corpus, encoding="utf-8") as file:
        while size < HF_MB * 1e6 and (line := file.readline()):
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
    start, start_here = time.process_time(), time.thread_time()
    for first in range(0, len(texts), HF_BATCH):
        getattr(tokenizer, call)(texts[first : first + HF_BATCH], add_special_tokens=False)
    seconds, seconds_here = time.process_time() - start, time.thread_time() - start_here
    assert seconds < 1.05 * seconds_here, f"{seconds:.2f} s in all threads, {seconds_here:.2f} s in this one"
    return size / 1e6 / seconds


def best_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each rate the highest, of memory the most."""
    return {name: max(row[name] for row in rows) for name in rows[0]}


def once(config: Config, corpus: tuple[Path, int], options: tuple[str, ...]) -> dict[str, float]:
    """shard.py as a process of its own: rates, peak memory of the largest process, bytes per token."""
    path, size = corpus
    out = path.with_name("store")
    command = [sys.executable, str(ROOT / "data_prep/shard.py"), "--corpus", str(path), "--vocab", str(config.vocab)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with open(path.with_name("said"), "w") as said:
        process = subprocess.Popen([*command, "--out", str(out), *options], stderr=said)
        peaks = [0.0]
        watching = threading.Thread(target=watch, args=(process, peaks))
        watching.start()
        process.wait()
    wall = time.perf_counter() - start
    if process.returncode:
        raise InputError(f"shard.py failed: {path.with_name('said').read_text()}")
    watching.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    store = Store.open(out)
    stored = sum(entry.bytes for entry in store.manifest.shards) / store.manifest.counts.tokens
    shutil.rmtree(out)
    row = {
        "cpu_mb_s": round(size / 1e6 / cpu, 2),
        "wall_mb_s": round(size / 1e6 / wall, 2),
        "peak_mb": round(max(peaks), 1),
        "bytes_per_token": round(stored, 3),
    }
    say(f"{' '.join(options)}: {row}")
    return row


def watch(process: subprocess.Popen, peaks: list[float]) -> None:
    """Note a process' peak memory now and then; seldom, since it may have both cores."""
    while process.returncode is None:
        peaks.append(peak_mb(process.pid))
        time.sleep(0.1)


def peak_mb(pid: int) -> float:
    """Largest resident memory so far among a process and its children. (getrusage would count this process' own, which
    a child has before it becomes another program.)"""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        texts = [Path(f"/proc/{number}/status").read_text() for number in (pid, *children)]
    except OSError:  # it has just ended
        return 0.0
    return max(int(text.split("VmHWM:")[1].split()[0]) / 1024 if "VmHWM:" in text else 0.0 for text in texts)


if __name__ == "__main__":
    run(main, Config, __doc__)
