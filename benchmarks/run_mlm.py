"""The peer: a BERT trained by transformers' Trainer in the way of its run_mlm.py, on the documents of a store.

    python benchmarks/run_mlm.py STORE --out RUN --steps 30000 [--layers 4 --hidden 256 --seq_len 128 --batch 32]
    torchrun --nproc-per-node 2 benchmarks/run_mlm.py ...            (each process half of --batch)

As run_mlm.py does: each document is [CLS] text [SEP], all are laid end to end and cut into blocks of --seq_len, which a
DataCollatorForLanguageModeling masks (15 %, 80/10/10) anew each time; AdamW, a linear schedule with warm-up, clipping
at 1. The store's held-out documents are left out. --out holds checkpoints, from which the same command goes on, and at
the end RUN/hf. One JSON line: tokens a second, tokens seen, and the loss on the held-out documents
(held_out_loss.py). With --probe so many steps are timed and nothing else is done.
"""

import json
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
import torch
import tyro
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.held_out_loss import held_out_score
from benchmarks.machine import machine
from data_prep.cli import parse
from data_prep.store import HELD_OUT, Store
from pretrain import hf_folder


@dataclass(frozen=True)
class BenchmarkConfig:
    """The model, and how it is trained."""

    store: tyro.conf.Positional[Path]
    out: Path
    steps: int
    layers: int = 4
    hidden: int = 256
    seq_len: int = 128
    batch: int = 32
    """blocks of a step, over all processes"""
    lr: float = 1e-3
    warmup: float = 0.05
    """share of the steps"""
    weight_decay: float = 0.01
    dropout: float = 0.1
    bf16: bool = False
    """Trainer's own option: products under autocast"""
    seed: int = 0
    probe: int = 0
    """steps to time, in place of training"""
    held_out_seq_len: int = 128
    """tokens of a held-out sample"""


class Blocks(torch.utils.data.Dataset):
    """All training documents of a store end to end, in blocks of seq_len tokens."""

    def __init__(self, store: Store, seq_len: int):
        self.tokens, self.seq_len = training_tokens(store), seq_len

    def __len__(self) -> int:
        return len(self.tokens) // self.seq_len

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[index * self.seq_len : (index + 1) * self.seq_len].tolist()}


def training_tokens(store: Store) -> np.ndarray:
    """Return [CLS] document [SEP] [CLS] document [SEP] ... of all documents that are not held out, [N] int32."""
    parts: list[Any] = []
    first, last = ([store.special_ids[name]] for name in ("cls", "sep"))
    for shard in store.shards:
        # A document's tokens: the lengths of its sentences, added up.
        ends = np.cumsum(shard.sentence_lengths, dtype=np.int64)[
            np.cumsum(shard.document_sentences, dtype=np.int64) - 1
        ]
        starts = np.concatenate([[0], ends[:-1]])
        for start, end, flags in zip(starts, ends, shard.document_flags, strict=True):
            if not flags & HELD_OUT:
                parts += [first, shard.tokens[start:end], last]
    return np.concatenate(parts).astype(np.int32)


class StepClock(TrainerCallback):
    """Seconds of the steps after the first ten."""

    def __init__(self) -> None:
        self.started, self.first = time.perf_counter(), 0

    def on_step_end(self, args, state, control, **rest) -> None:
        if state.global_step == self.first + 10:
            self.started = time.perf_counter()

    def on_train_begin(self, args, state, control, **rest) -> None:
        self.first = state.global_step


def main(config: BenchmarkConfig) -> None:
    with redirect_stdout(sys.stderr):  # what Trainer and DeepSpeed have to say
        result = train(config)
    if result is not None:
        print(json.dumps(result))


def train(config: BenchmarkConfig) -> dict[str, Any] | None:
    """Train, or time some steps; return the result on the first process."""
    store = Store.open(config.store)
    config.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(store.folder / "vocab", local_files_only=True)
    torch.manual_seed(config.seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=store.vocab_size, hidden_size=config.hidden, num_hidden_layers=config.layers,
            num_attention_heads=max(1, config.hidden // 64), intermediate_size=4 * config.hidden,
            hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout,
        )
    )  # fmt: skip
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = config.probe + 10 if config.probe else config.steps
    arguments = TrainingArguments(
        output_dir=str(config.out), use_cpu=not torch.cuda.is_available(), bf16=config.bf16,
        seed=config.seed, max_steps=steps,
        learning_rate=config.lr, lr_scheduler_type="linear", warmup_steps=config.warmup,
        weight_decay=config.weight_decay, max_grad_norm=1.0, per_device_train_batch_size=config.batch // processes,
        save_steps=1_000, save_total_limit=1, save_strategy="no" if config.probe else "steps", logging_steps=500,
        report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False, ddp_find_unused_parameters=False,
    )  # fmt: skip
    clock = StepClock()
    trainer = Trainer(
        model=model, args=arguments, callbacks=[clock], train_dataset=Blocks(store, config.seq_len),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=None if config.probe else get_last_checkpoint(str(config.out)))
    if not trainer.is_world_process_zero():
        return None
    done = trainer.state.global_step - clock.first
    seconds = time.perf_counter() - clock.started
    figures = {"tokens_per_s": round((done - 10) * config.batch * config.seq_len / seconds)}
    if not config.probe:
        hf = config.out / "hf"
        hf_folder.save_model(model, hf)
        tokenizer.save_pretrained(hf)
        score = held_out_score(hf, config.store, config.held_out_seq_len, 2_048, 32)
        figures |= {"tokens": steps * config.batch * config.seq_len} | score._asdict()
    settings = {name: value for name, value in config.__dict__.items() if name not in ("store", "out")}
    result = {"name": "run_mlm", "figures": figures, "ratio": None, "settings": settings | {"processes": processes}}
    return result | machine("torch", "transformers")


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
