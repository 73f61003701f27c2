"""How fast a store becomes batches, against transformers' collator on ready-made pairs.

    python benchmarks/loader_throughput.py --store runs/en/store --vocab runs/en/vocab

One process, one thread, processor time. Ours is the whole way that a run takes: shuffle, pairs, reading, exact mask
counts, counts of the step, tensors (pretrain.data.train_steps). Theirs, DataCollatorForLanguageModeling, gets pairs
that are tokenized, cut and padded already, as lists in memory, and masks them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from benchmarks.machine import machine
from data_prep.cli import print_json, run, say
from data_prep.samples.assemble import gather_tokens, split_by_length
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from data_prep.samples.sample_index import Sentences, build_index
from data_prep.store import Store
from pretrain.data import SampleStream, train_steps
from pretrain.model import Batch
from pretrain.state import DataPosition

FIXED = 200  # batches measured at once


@dataclass(frozen=True)
class Config:
    """What is measured."""

    store: Path
    """a store of some million tokens"""
    vocab: Path
    """its tokenizer folder"""
    seq_len: int = 128
    """tokens in a sample"""
    batch: int = 256
    """samples in a batch"""
    rounds: int = 3
    """measurements of each; the best counts"""


def main(config: Config) -> None:
    """Measure and print one JSON line."""
    torch.set_num_threads(1)
    store = Store.open(config.store)
    result: dict[str, Any] = {"name": "loader_throughput", "seq_len": config.seq_len, "batch": config.batch}
    result["index_samples_s"] = round(index_rate(config, store))
    with tempfile.TemporaryDirectory(prefix="zerobert-") as cache:
        os.environ["ZEROBERT_CACHE"] = cache
        for unit in ("token", "word", "span", "ngram"):
            result[f"{unit}_samples_s"] = round(loader_rate(config, store, Masking(unit=unit)))
        result |= resume_seconds(config, store) | imbalance(config, store)
    result["collator_samples_s"] = round(collator_rate(config, store))
    result["ratio"] = round(result["token_samples_s"] / result["collator_samples_s"], 1)
    print_json(result | machine("numpy", "torch", "transformers"))


def best(config: Config, what: str, measure: Callable[[], float]) -> float:
    """The highest of some rates."""
    rates = [measure() for _ in range(config.rounds)]
    say(f"{what}: {', '.join(f'{rate:,.0f}' for rate in rates)} samples/s")
    return max(rates)


def index_rate(config: Config, store: Store) -> float:
    """Samples a second of the index, for nsp; passes differ."""
    sentences = Sentences.of(store)

    def measure() -> float:
        start, made = time.process_time(), 0
        for pass_number in range(3):
            made += len(
                build_index(sentences, seq_len=config.seq_len, objective="nsp", seed=0, pass_number=pass_number)
            )
        return made / (time.process_time() - start)

    return best(config, "index", measure)


def loader_rate(config: Config, store: Store, masking: Masking) -> float:
    """Samples per second of `train_steps` on one rank."""
    stream = SampleStream(Mixture([store], [1.0], seq_len=config.seq_len, objective="nsp", seed=0), DataPosition())
    batches = batches_of_a_step_each(config, stream, masking)
    next(batches)

    def measure() -> float:
        start = time.process_time()
        for _ in range(FIXED):
            next(batches)
        return FIXED * config.batch / (time.process_time() - start)

    return best(config, f"loader, {masking.unit}", measure)


def batches_of_a_step_each(config: Config, stream: SampleStream, masking: Masking) -> Iterator[Batch]:
    """The batches of steps of a single micro-batch on one rank."""
    batch = config.batch
    steps = train_steps(
        stream, masking_after=lambda taken: masking, batch_after=lambda taken: batch, micro_batch=batch, rank=0, world=1
    )
    return chain.from_iterable(step.micro_batches for step in steps)


def resume_seconds(config: Config, store: Store) -> dict[str, float]:
    """Seconds by the clock until the first batch in the middle of an epoch: of a new one, and of one in the cache."""
    found = {}
    for name in ("first_batch_new_index_s", "first_batch_cached_index_s"):
        start = time.perf_counter()
        stream = SampleStream(
            Mixture([store], [1.0], seq_len=config.seq_len, objective="nsp", seed=1), DataPosition(7, 100_000)
        )
        next(batches_of_a_step_each(config, stream, Masking()))
        found[name] = round(time.perf_counter() - start, 3)
        stream.mixture.epoch(8)  # waits for what is built ahead
    return found


def imbalance(config: Config, store: Store) -> dict[str, float]:
    """How many more tokens than the average the fullest of 8 ranks has in a step: dealt, or as samples come."""
    stream = SampleStream(Mixture([store], [1.0], seq_len=config.seq_len, objective="nsp", seed=0), DataPosition())
    dealt: list[float] = []
    plain: list[float] = []
    for _ in range(50):
        samples = stream.take(config.batch)
        lengths = samples.text_lengths + 3
        for found, sums in (
            (dealt, np.array([lengths[rows].sum() for rows in split_by_length(samples, 8)])),
            (plain, lengths.reshape(8, -1).sum(1)),
        ):
            found.append(float(sums.max() / sums.mean()) - 1)
    return {"imbalance_percent": round(100 * max(dealt), 3), "imbalance_undealt_percent": round(100 * max(plain), 2)}


def collator_rate(config: Config, store: Store) -> float:
    """Samples a second of transformers' collator."""
    tokenizer = AutoTokenizer.from_pretrained(config.vocab)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    samples = (
        Mixture([store], [1.0], seq_len=config.seq_len, objective="nsp", seed=0)
        .epoch(0)
        .samples_at(np.arange(config.batch * 8))
    )
    ids, types, _, lengths = gather_tokens((store,), samples)
    stops = np.cumsum(lengths)
    pad = tokenizer.pad_token_id
    padded = []
    for start, stop in zip(stops - lengths, stops, strict=True):
        room = config.seq_len - int(stop - start)
        padded.append(
            {
                "input_ids": [*ids[start:stop].tolist(), *[pad] * room],
                "token_type_ids": [*types[start:stop].tolist(), *[0] * room],
                "attention_mask": [1] * int(stop - start) + [0] * room,
            }
        )

    def measure() -> float:
        start = time.process_time()
        for first in range(0, len(padded), config.batch):
            collate(padded[first : first + config.batch])
        return len(padded) / (time.process_time() - start)

    return best(config, "collator", measure)


if __name__ == "__main__":
    run(main, Config, __doc__)
