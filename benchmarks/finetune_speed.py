"""Examples per processor second of pretrain.finetune's training, beside transformers' Trainer as run_glue drives it.

    python benchmarks/finetune_speed.py [--layers 4 --hidden 256 --examples 2000]
    python benchmarks/finetune_speed.py --hf HF --data train.tsv [--text COLUMN --label COLUMN]    a folder, and texts

    ours      texts of like length go together, padded to the longest of a batch
    padded    each text padded to --seq_len, in any order: run_glue's default
    dynamic   padded to the longest of a batch, in any order: run_glue --pad_to_max_length False

All train the same model on the same labelled texts for an epoch, in turn, with the same batch, threads and precision,
in one process. One JSON line; "ratio" is ours over padded, "ratio_dynamic" ours over dynamic: of processor time, which
other programs on the machine hardly change, on a GPU by the clock. Without --data the texts are random words of a fixed
list of lengths, and say nothing.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    default_data_collator,
    set_seed,
)

from benchmarks.machine import machine
from data_prep.cli import parse, print_json
from pretrain import hf_folder
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.examples import class_names, rows_of
from pretrain.finetune.files.labelled import read_texts
from pretrain.finetune.learning.checkpoints import Course
from pretrain.finetune.learning.hyperparameters import settled
from pretrain.finetune.learning.one_seed import Encoded, OneDevice, Work, trainer_of
from pretrain.finetune.tasks.table import task_of
from pretrain.finetune.trainer import build_model
from tests.tiny_hf import VOCABULARY, WORDS, tiny_tokenizer

# Words of sentences of film reviews (SST-2), from short to long, and a few of the length of paragraphs.
LENGTHS = (3, 5, 7, 9, 11, 14, 17, 20, 24, 30, 38, 90)


@dataclass(frozen=True)
class BenchmarkConfig:
    """The model and the texts."""

    hf: Path | None = None
    """Hugging Face folder; left out: a new BERT of --layers and --hidden"""
    data: Path | None = None
    """labelled file; left out: random words"""
    text: str | None = None
    label: str | None = None
    layers: int = 4
    hidden: int = 256
    seq_len: int = 128
    batch_size: int = 32
    examples: int = 2000
    """of an epoch, at most"""
    rounds: int = 3
    """of each side; a few batches go before"""
    threads: int = 1


class Seconds(NamedTuple):
    """What a training took."""

    processor: float  # of all threads
    clock: float


def main(config: BenchmarkConfig) -> None:
    """All sides in turn, then the line."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory(prefix="zerobert-") as folder, hf_folder.silenced_libraries():
        work = a_work(config, Path(folder))
        sides: dict[str, Callable[[Work], Trainer]] = {
            "ours": lambda work: ours(work, Path(folder)),
            "padded": lambda work: run_glue(work, Path(folder), padded=True),
            "dynamic": lambda work: run_glue(work, Path(folder), padded=False),
        }
        first, (examples, features) = 2 * config.batch_size, work.training
        few = work._replace(training=Encoded(examples[:first], features[:first]))
        for trainer_of_side in sides.values():
            trainer_of_side(few).train()
        seconds: dict[str, list[Seconds]] = {side: [] for side in sides}
        for _ in range(config.rounds):
            for side, trainer_of_side in sides.items():
                seconds[side].append(timed(trainer_of_side(work)))
    count = len(work.training.examples)
    by_processor = {side: count / statistics.median(each.processor for each in all_) for side, all_ in seconds.items()}
    by_clock = {side: count / statistics.median(each.clock for each in all_) for side, all_ in seconds.items()}
    speeds = by_clock if torch.cuda.is_available() else by_processor
    lengths = [len(feature["input_ids"]) for feature in work.training.features]
    print_json(
        {
            "name": "finetune_speed",
            "figures": {f"{side}_examples_per_processor_s": round(speed, 2) for side, speed in by_processor.items()}
            | {f"{side}_examples_per_s": round(speed, 2) for side, speed in by_clock.items()},
            "ratio": round(speeds["ours"] / speeds["padded"], 3),
            "ratio_dynamic": round(speeds["ours"] / speeds["dynamic"], 3),
            "mean_tokens": round(statistics.mean(lengths), 1),
            "settings": {
                name: value.name if isinstance(value, Path) else str(value) for name, value in config.__dict__.items()
            }
            | {"examples": count},
        }
        | machine("torch", "transformers")
    )


def timed(trainer: Trainer) -> Seconds:
    """Train, and say how long it took."""
    processor, clock = time.process_time(), time.perf_counter()
    trainer.train()
    return Seconds(time.process_time() - processor, time.perf_counter() - clock)


def a_work(config: BenchmarkConfig, folder: Path) -> Work:
    """Return what pretrain.finetune makes of the folder and the texts."""
    hf = config.hf or a_model(folder / "hf", config)
    data = config.data or some_texts(folder / "texts.tsv", config.examples)
    asked = FinetuneConfig(
        hf=hf, task="classify", train=data, eval=data, out=folder / "out", text=config.text,
        label=() if config.label is None else (config.label,), epochs=1, seq_len=config.seq_len,
        batch_size=config.batch_size,
    )  # fmt: skip
    examples = read_texts(data, rows_of(asked, data))
    names = class_names(examples, data)
    random.Random(0).shuffle(examples)
    examples = examples[: config.examples]
    done = settled(asked, hf_folder.load_config(hf).hidden_size, len(examples))
    task, tokenizer = task_of(done), hf_folder.load_tokenizer(hf)
    encoded = Encoded(examples, task.encode(tokenizer, examples, names, done.seq_len))
    return Work(done, task, names, task.collator(tokenizer), encoded, encoded, None, None)


def a_model(folder: Path, config: BenchmarkConfig) -> Path:
    """Write a new BERT with a vocabulary of a few words."""
    BertForPreTraining(
        BertConfig(
            vocab_size=len(VOCABULARY), hidden_size=config.hidden, num_hidden_layers=config.layers,
            num_attention_heads=max(1, config.hidden // 64), intermediate_size=4 * config.hidden,
            max_position_embeddings=max(512, config.seq_len),
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = max(512, config.seq_len)
    tokenizer.save_pretrained(folder)
    return folder


def some_texts(path: Path, count: int) -> Path:
    """Write labelled texts of random words."""
    rng = random.Random(0)
    lines = [f"{' '.join(rng.choices(WORDS, k=LENGTHS[n % len(LENGTHS)]))}\t{'ab'[n % 2]}" for n in range(count)]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return path


def a_classifier(work: Work) -> Any:
    """Return the same model each time."""
    set_seed(0)
    return build_model(work.config, work.task, work.names, pairs=False, pad_id=None)


def ours(work: Work, folder: Path) -> Trainer:
    """Return what pretrain.finetune trains with."""
    return trainer_of(work, 0, a_classifier(work), Course(), folder / "scratch")


def run_glue(work: Work, folder: Path, *, padded: bool) -> Trainer:
    """Return what run_glue of transformers trains with; rate, warm-up and clipping are those of ours."""
    tokenizer = hf_folder.load_tokenizer(work.config.hf)
    features: list[dict[str, Any]] = work.training.features
    if padded:
        # Of copies: it pads in place.
        features = [
            dict(tokenizer.pad(dict(feature), padding="max_length", max_length=work.config.seq_len))
            for feature in features
        ]
    theirs = ours(work, folder).args.to_dict() | {"output_dir": str(folder / "theirs"), "report_to": "none"}
    kept = ("output_dir", "seed", "num_train_epochs", "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm")
    more = ("per_device_train_batch_size", "logging_strategy", "save_strategy", "report_to", "disable_tqdm")
    trainer = Trainer(
        model=a_classifier(work),
        args=OneDevice(**{name: theirs[name] for name in (*kept, *more)}, dataloader_pin_memory=False),
        data_collator=default_data_collator if padded else DataCollatorWithPadding(tokenizer),
        train_dataset=features,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
