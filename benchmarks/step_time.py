"""Real tokens per second of a training step: ours beside transformers' padded BertForPreTraining.

    python benchmarks/step_time.py [--layers 6 --hidden 512 --vocab_size 30522 --seq_len 128 --batch 16]
    python benchmarks/step_time.py --layers 24 --hidden 1024 --seq_len 512 --batch 64 --compile       (on a GPU)

Both train the same model on the same batches in turn, in one process: forward, backward, clipping at 1, fused AdamW,
hidden dropout 0.1, attention dropout 0; in fp32 on a CPU and bf16 on a GPU, unless told. The baseline pads to seq_len
and computes logits at every position, with sdpa, as transformers' own examples do. Lengths are a fixed list with the
padding efficiency of sentence pairs from encyclopedia articles, 0.87 at 128 tokens, 0.60 at 512, or those of a --store.
One JSON line; "ratio" is ours over theirs. MFU credits the arithmetic of real tokens only, and neither side for what it
skips or wastes; its peak is the GEMM peak measured between the steps, and on a GPU also the data sheet's.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
import torch
from transformers import BertConfig, BertForPreTraining

from benchmarks.machine import machine
from data_prep.cli import parse
from data_prep.samples.counter_rng import random_bits
from data_prep.samples.masking import Masking, mask_tokens
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.attention import SeqLens, use_varlen_attention
from pretrain.data import collate
from pretrain.model import Batch, PretrainingModule, compile_layers, parameter_groups
from pretrain.monitor.flops import gemm_peak, peak_flops, step_flops
from pretrain.state import DataPosition, StepCounts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BenchmarkConfig:
    """The model and the batches."""

    layers: int = 6
    hidden: int = 512
    vocab_size: int = 30_522
    seq_len: int = 128
    batch: int = 16
    """samples of a step"""
    rounds: int = 7
    """steps of each side that count; two more go before"""
    store: Path | None = None
    """samples of a token store in place of the fixed list of lengths; its vocabulary is at most --vocab_size"""
    compile: bool = False
    """ours as with --compile: layers fused by torch.compile"""
    precision: Literal["fp32", "bf16"] = "bf16" if DEVICE.type == "cuda" else "fp32"
    """of both sides: weights, gradients and optimizer, too"""


class Sample:
    """One step's samples in both forms."""

    def __init__(self, config: BenchmarkConfig, number: int):
        self.ours = of_store(config, number) if config.store else of_list(config, number)
        self.theirs = padded(self.ours, config.seq_len)
        lengths = self.ours.seqlens.lengths
        self.tokens, self.masked = len(self.ours.input_ids), len(self.ours.mlm_labels)
        self.counts = StepCounts(
            config.batch, self.masked, config.batch, self.tokens, config.batch * config.seq_len,
            sum(length**2 for length in lengths), DataPosition(),
        )  # fmt: skip


def of_store(config: BenchmarkConfig, number: int) -> Batch:
    """Samples as a run takes them from a store."""
    assert config.store is not None
    mixture = Mixture([Store.open(config.store)], [1.0], seq_len=config.seq_len, objective="nsp", seed=0)
    places = np.arange(number * config.batch, (number + 1) * config.batch)
    return collate(mixture.stores, mixture.epoch(0).samples_at(places), Masking())


def of_list(config: BenchmarkConfig, number: int) -> Batch:
    """Samples of random words with lengths from the fixed list."""
    rng = np.random.default_rng(number)
    lengths = rng.permutation(fixed_lengths(config.seq_len, max(64, config.batch)))[: config.batch]
    lengths = np.sort(lengths)[::-1].copy()
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(999, config.vocab_size, bounds[-1])
    special = np.zeros(len(ids), bool)
    special[bounds[:-1]] = special[bounds[1:] - 1] = True
    keys = random_bits(number, np.arange(config.batch))
    ids, rows, labels = mask_tokens(ids, special, lengths, keys, mask_id=103, vocab_size=config.vocab_size)
    types = np.concatenate([np.arange(length) >= length // 2 for length in lengths]).astype(np.int64)
    kept = np.sort(np.concatenate([bounds[:-1], rows]))
    before = np.searchsorted(kept, bounds)
    positions = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
    nsp = rng.integers(0, 2, config.batch)
    arrays = (ids, types, positions, kept, np.searchsorted(kept, rows), before[:-1], labels, nsp)
    seqlens = (SeqLens.from_bounds(bounds), SeqLens.from_bounds(before))
    return Batch(*(torch.from_numpy(array) for array in arrays), *seqlens)  # type: ignore[arg-type,call-arg]


def fixed_lengths(seq_len: int, count: int) -> np.ndarray:
    """A fixed list of sample lengths, [count]: some full, the others spread evenly."""
    full, low, high = (0.70, 0.125, 1.0) if seq_len <= 128 else (0.35, 0.0625, 0.70)
    short = np.linspace(low * seq_len, high * seq_len, count - round(full * count)).astype(int)
    return np.concatenate([np.full(count - len(short), seq_len), short])


def padded(batch: Batch, seq_len: int) -> dict[str, torch.Tensor]:
    """The same samples as transformers' model takes them: padded, labels everywhere."""
    mask = torch.arange(seq_len) < torch.tensor(batch.seqlens.lengths)[:, None]
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.head_rows[batch.mlm_index]] = batch.mlm_labels
    fields = {"input_ids": (batch.input_ids, 0), "token_type_ids": (batch.token_types, 0), "labels": (labels, -100)}
    found = {"attention_mask": mask.long(), "next_sentence_label": batch.nsp_labels}
    for name, (flat, filler) in fields.items():
        found[name] = torch.full(mask.shape, filler)
        found[name][mask] = flat
    return found


def bert_config(config: BenchmarkConfig) -> BertConfig:
    """The model that is measured."""
    return BertConfig(
        vocab_size=config.vocab_size, num_hidden_layers=config.layers, hidden_size=config.hidden,
        num_attention_heads=config.hidden // 64, intermediate_size=4 * config.hidden, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def main(config: BenchmarkConfig) -> None:
    bert = bert_config(config)
    samples = [Sample(config, number) for number in range(config.rounds + 2)]
    dtype = DTYPES[config.precision]
    ours, theirs = our_step(bert, config.compile, dtype=dtype), their_step(bert, dtype)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    peaks = []
    for sample in samples:
        for name, step in (("theirs", theirs), ("ours", ours)):
            synchronize()
            start = time.perf_counter()
            step(sample)
            synchronize()
            times[name].append((time.perf_counter() - start) / sample.tokens)
        peaks.append(gemm_peak(DEVICE, dtype))
    per_token = {name: statistics.median(values[2:]) for name, values in times.items()}
    tokens = sum(sample.tokens for sample in samples)
    flops = sum(step_flops(bert, sample.counts) for sample in samples) / tokens
    figures: dict[str, Any] = {
        **{f"{name}_tokens_per_s": round(1 / seconds) for name, seconds in per_token.items()},
        "ours_sequences_per_s": round(config.batch * len(samples) / tokens / per_token["ours"], 1),
        **{f"{name}_mfu": round(flops / seconds / max(peaks), 3) for name, seconds in per_token.items()},
        "gemm_peak_gflops": round(max(peaks) / 1e9),
        "padding_efficiency": round(sum(s.tokens for s in samples) / sum(s.counts.slots for s in samples), 3),
    }
    if DEVICE.type == "cuda":
        sheet = peak_flops(DEVICE)
        figures["ours_mfu_of_data_sheet"] = round(flops / per_token["ours"] / sheet, 3)
    result = {
        "name": "step_time",
        "figures": figures,
        "ratio": round(per_token["theirs"] / per_token["ours"], 2),
        "settings": {
            **config.__dict__,
            "store": config.store and config.store.name,
            "threads": torch.get_num_threads(),
        },
    }
    print(json.dumps(result | machine("torch", "transformers")))


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def our_step(
    config: BertConfig, compiled: bool = False, checkpoint_activations: bool = False, dtype: torch.dtype = DTYPE
) -> Callable[[Sample], None]:
    """A step of ours: padding-free, logits at masked rows."""
    model = new_model(config, dtype=dtype)
    if compiled:
        compile_layers(model)
    module = PretrainingModule(model, checkpoint_activations).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-4, fused=True)

    def step(sample: Sample) -> None:
        losses = module(sample.ours.to(DEVICE))
        (losses.mlm / sample.masked + losses.nsp / sample.counts.pairs).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_step(config: BertConfig, dtype: torch.dtype = DTYPE) -> Callable[[Sample], None]:
    """A step of transformers' own model."""
    model = new_model(config, "sdpa", dtype).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-4, fused=True)

    def step(sample: Sample) -> None:
        model(**{name: field.to(DEVICE) for name, field in sample.theirs.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def new_model(config: BertConfig, attention: str | None = None, dtype: torch.dtype = DTYPE) -> BertForPreTraining:
    """The same weights for both sides; `attention` of transformers, or ours."""
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig.from_dict(config.to_dict()))
    if attention is None:
        use_varlen_attention(model)
    else:
        model.set_attn_implementation(attention)
    return model.to(DEVICE).to(dtype)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
