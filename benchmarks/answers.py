"""How long it takes until a command says what is wrong: processor time of --help and of ten refusals each.

    python benchmarks/answers.py                         # all commands; a table on stderr
    python benchmarks/answers.py --commands train export
    python benchmarks/answers.py --root ../before        # of another checkout, with this Python

Prints one JSON line. Every refusal ends with code 2. Processor time is user and system time of the process and all that
it starts, so a busy machine changes little; the largest of a command is what one waits for.
"""

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
from safetensors.numpy import save_file

from benchmarks.machine import machine
from data_prep.cli import ROOT, print_json, run, say
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.wordpiece import write_tokenizer

STORE = "--data store --out new --model bert-tiny"
TUNE = "hf --task classify --train train.tsv --eval dev.tsv --out new"
# Command lines that are refused, of each command, in the folder that prepare() makes.
REFUSALS = {
    "vocab": [
        "--corpsu texts --out new",
        "--corpus texts",
        "--corpus nix --out new",
        "--corpus empty --out new",
        "--corpus texts --out new --model wordpeace",
        "--corpus texts --out new --size many",
        "--corpus texts --out new --size 3",
        "--corpus texts --out new --encoding utf-99",
        "--from_vocab nix.txt --out new",
        "--corpus texts --out ''",
    ],
    "shard": [
        "--corpsu texts --vocab vocab --out new",
        "--corpus texts --vocab vocab",
        "--corpus nix --vocab vocab --out new",
        "--corpus empty --vocab vocab --out new",
        "--corpus texts --vocab nix --out new",
        "--corpus texts --vocab texts --out new",
        "--corpus texts --vocab vocab --out new --holdout 2",
        "--corpus texts --vocab vocab --out new --txt poem",
        "--corpus texts --vocab vocab --out new --drop nix.npz",
        "--corpus texts --vocab vocab --out new --shard_mb nan",
    ],
    "show": [
        "--sampels 3 store",
        "",
        "nix",
        "texts",
        "texts/a.txt",
        "store --samples -1",
        "store --seq_len 1",
        "store --objective guess",
        "store --unit letter",
        "store --samples ''",
    ],
    "dedup": [
        "--corpsu texts --out new.npz",
        "--corpus texts",
        "--corpus nix --out new.npz",
        "--corpus empty --out new.npz",
        "--corpus texts --out new.npz --encoding utf-99",
        "--corpus texts --out texts",
        "--corpus texts --out new.npz --txt poem",
        "--corpus texts --out ''",
        "--corpus --out new.npz",
        "--out new.npz",
    ],
    "train": [
        f"{STORE} --stpes 100",
        "--out new --model bert-tiny",
        "--data nix --out new --model bert-tiny",
        "--data texts --out new --model bert-tiny",
        "--data store --out new",
        f"{STORE} --steps 0",
        f"{STORE} --ds_config nix.json",
        f"{STORE} --dry_run --precision bf16 --zero 0",
        f"{STORE} --dry_run --seq_len 1024",
        "--data store --out new --init_from texts",
        f"{STORE} --dry_run --global_batch 100 --micro_batch 64",
        f"{STORE} --resume nix",
        f"{STORE} --eval_pairs nix.jsonl",
        "--data store --out run --model bert-tiny --resume never",
    ],
    "export": [
        "--haed mlm run new",
        "run",
        "nix new",
        "texts new",
        "texts/a.txt new",
        "hf new --head brain",
        "hf texts",
        "roberta new",
        "pickled new",
        "hf hf",
    ],
    "finetune": [
        f"{TUNE} --epcohs 3",
        "hf --task classify --train train.tsv --eval dev.tsv",
        TUNE.replace("hf ", "nix "),
        TUNE.replace("hf ", "texts "),
        TUNE.replace("train.tsv", "nix.tsv"),
        TUNE.replace("train.tsv", "columns.tsv"),
        TUNE.replace("train.tsv", "one.tsv"),
        TUNE.replace("dev.tsv", "other.tsv"),
        TUNE.replace("classify", "regress"),
        f"{TUNE} --epochs 0",
        f"{TUNE} --seq_len 1000",
        TUNE.replace("--out new", "--out texts"),
    ],
    "predict": [
        "--flil hf text",
        "",
        "nix text",
        "texts text",
        "hf text --top 0",
        "hf ''",
        "hf",
        "pickled text",
        "encoder text",
        "hf text --pair",
    ],
    "score": [
        "hf --piars pairs.jsonl",
        "hf",
        "nix --pairs pairs.jsonl",
        "texts --pairs pairs.jsonl",
        "hf --pairs nix.jsonl",
        "hf --pairs train.tsv",
        "hf --pairs pairs.jsonl --texts texts/a.txt",
        "hf --pairs pairs.jsonl --group nix",
        "hf --texts texts/a.txt --group UID",
        "hf --texts texts",
    ],
    "report": [
        "run --otu new",
        "run",
        "--out new",
        "nix --out new",
        "texts --out new",
        "run --out new --by weeks",
        "run --out texts/a.txt",
        "run --out run",
        "damaged --out new",
        "texts/a.txt --out new",
    ],
}


@dataclass(frozen=True)
class AnswersConfig:
    """What is measured."""

    commands: tuple[str, ...] = tuple(REFUSALS)
    """commands"""
    root: Path = ROOT
    """checkout whose commands are called"""
    most: int = 20
    """refusals of a command, at most"""


def prepare(folder: Path) -> None:
    """What the refused command lines name: small, and whole enough to be looked into."""
    entries = [*SPECIAL, *(f"w{number}" for number in range(59))]
    for name in ("texts", "empty", "vocab", "run/checkpoints/step-0000001", "damaged"):
        (folder / name).mkdir(parents=True)
    (folder / "texts/a.txt").write_text("w1 w2 w3.\nw4 w5.\n\nw6 w7 w8.\nw9 w10.\n")
    (folder / "texts/b.txt").write_text("w1 w2.\nw3 w4.\n\nw5 w6.\nw7 w8.\n")
    (folder / "damaged/config.json").write_text("{")
    write_tokenizer(folder / "vocab", entries, cased=False)
    shape = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64}
    bert = shape | {"model_type": "bert", "vocab_size": 64, "max_position_embeddings": 128, "type_vocab_size": 2}
    for name, config in (
        ("hf", bert | {"architectures": ["BertForPreTraining"]}),
        ("encoder", bert | {"architectures": ["BertModel"]}),
        ("roberta", bert | {"model_type": "roberta"}),
        ("pickled", bert | {"architectures": ["BertForPreTraining"]}),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        write_tokenizer(folder / name, entries, cased=False)
        weights = {"bert.embeddings.word_embeddings.weight": np.zeros((64, 64), np.float32)}
        if name == "pickled":
            (folder / name / "pytorch_model.bin").write_bytes(b"\x80\x02.")
        else:
            save_file(weights, folder / name / "model.safetensors")
    rows = {
        "train": "text\tlabel\nw1 w2\ta\nw3\tb\nw4\ta\n",
        "dev": "text\tlabel\nw1\ta\nw2\tb\n",
        "one": "text\tlabel\nw1\ta\nw2\ta\n",
        "other": "text\tlabel\nw1\tc\nw2\tb\n",
        "columns": "words\tclass\nw1\ta\nw2\tb\n",
    }
    for name, text in rows.items():
        (folder / f"{name}.tsv").write_text(text)
    (folder / "pairs.jsonl").write_text('{"sentence_good": "w1 w2", "sentence_bad": "w2 w1", "UID": "order"}\n')
    command = [
        sys.executable,
        str(ROOT / "data_prep/shard.py"),
        "--corpus",
        "texts",
        "--vocab",
        "vocab",
        "--out",
        "store",
    ]
    subprocess.run([*command, "--workers", "1"], cwd=folder, check=True, capture_output=True)


def words_of(command: str, root: Path) -> list[str]:
    """How a command of a checkout is called."""
    if command == "train":
        return ["bash", str(root / "launch/pretrain.sh")]
    file = root / f"data_prep/{command}.py"
    return [sys.executable, str(file)] if file.exists() else [sys.executable, "-m", f"pretrain.{command}"]


def seconds_of(words: list[str], folder: Path, root: Path, code: int) -> float:
    """Processor time of a command that ends with `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(root), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode != code:
        say(f"code {ended.returncode}, not {code}: {shlex.join(words)}: {ended.stderr.strip()[-300:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(config: AnswersConfig) -> None:
    """Measure, print the table, then the JSON line."""
    found = {}
    root = config.root.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for command in config.commands:
            words = words_of(command, root)
            asked = seconds_of([*words, "--help"], folder, root, 0)
            lines = REFUSALS[command][: config.most]
            refused = [seconds_of([*words, *shlex.split(line)], folder, root, 2) for line in lines]
            found[command] = {
                "help": round(asked, 2),
                "refusals": len(refused),
                "median": round(statistics.median(refused), 2),
                "largest": round(max(refused), 2),
            }
            told = f"median {found[command]['median']:5.2f} s, largest {max(refused):5.2f} s"
            say(f"{command:9} --help {asked:5.2f} s; {len(refused)} refusals, {told}")
    largest = max(max(entry["help"], entry["largest"]) for entry in found.values())
    print_json(
        {
            "name": "answers",
            "seconds": found,
            "largest": largest,
            **machine("tyro", "torch", "transformers", "deepspeed"),
        }
    )


if __name__ == "__main__":
    run(main, AnswersConfig, __doc__)
