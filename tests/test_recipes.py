"""Every command of docs/recipes.md, made small, passes --dry_run."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import BertForMaskedLM

from data_prep.cli import ROOT, parse
from data_prep.tokens.wordpiece import write_tokenizer
from pretrain.model import config_of
from pretrain.settings.config import TrainConfig
from pretrain.settings.shape import PRESETS
from pretrain.train import train
from tests.ranks import run_ranks
from tests.stores import entries_of, random_documents, store_of

TEXT = (ROOT / "docs/recipes.md").read_text()
COMMANDS = [shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)]
SMALL = {"bert-large": "bert-tiny", "bert-base": "bert-tiny", "bert-mini": "bert-tiny", "bert-small": "bert-tiny"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("recipes")
    store = store_of(folder / "store", random_documents(60), held_out={3, 17, 30}).folder
    BertForMaskedLM(config_of(PRESETS["bert-tiny"], 64, dropout=0.1)).save_pretrained(folder / "hf")
    write_tokenizer(folder / "hf", entries_of(64), cased=False)
    return {"STORE": str(store), "HF_FOLDER": str(folder / "hf")} | SMALL


def test_there_is_a_command_for_each_section():
    assert len(COMMANDS) == len(re.findall(r"^## ", TEXT, re.MULTILINE)) == 6


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[command.index("--out") + 1])
def test_recipes_pass_a_dry_run(command, paths, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = [paths.get(word, word) for word in command[command.index("launch/pretrain.sh") + 1 :]]
    arguments[arguments.index("--out") + 1] = str(tmp_path / "run")
    config = parse(TrainConfig, None, [*arguments, "--dry_run"])
    train(config)
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"] == 504_386
    assert not (tmp_path / "run").exists()


def test_two_phases_are_nvidias(paths, tmp_path, capsys):
    command = next(command for command in COMMANDS if "runs/large/run" in command)
    found = [dict(part.split("=") for part in text.split(",")) for name, text in pairwise(command) if name == "--phase"]
    told = [[float(phase[name]) for name in ("seq_len", "steps", "global_batch", "lr", "warmup")] for phase in found]
    assert told == [[128, 7038, 65536, 6e-3, 0.2843], [512, 1563, 32768, 4e-3, 0.128]]


@pytest.mark.slow
def test_the_recipe_of_an_hour_learns_in_seconds(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = (command for command in COMMANDS if "runs/mini/run" in command)
    words = [paths.get(word, word) for word in command[command.index("launch/pretrain.sh") + 1 :]]
    # The same in small: 20 steps of 8 samples for 4,000 of 64.
    for long, short in (
        ("steps=4000,global_batch=64,micro_batch=32,warmup=400", "steps=20,global_batch=8,micro_batch=8,warmup=4"),
        ("steps=6000,global_batch=64,micro_batch=32", "steps=10,global_batch=4,micro_batch=4"),
    ):
        (index,) = (index for index, word in enumerate(words) if long in word)
        words[index] = words[index].replace(long, short)
    words[words.index("--out") + 1] = str(tmp_path / "run")
    words += "--seed 1 --log_every 5 --eval_every 10 --eval_samples 64".split()
    run_ranks(1, train, parse(TrainConfig, None, words))

    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rates = [(line["step"], round(line["mask_rate"], 2)) for line in lines if line["kind"] == "train"]
    assert rates == [(5, 0.3), (10, 0.3), (15, 0.3), (20, 0.3), (25, 0.27), (30, 0.19)]
    first, second, _ = (line["mlm_loss"] for line in lines if line["kind"] == "eval")  # the last: of longer samples
    assert second < first


def test_files_that_recipes_name_are_there():
    for path in re.findall(r"(?:ds_configs|launch|data_prep|tests)/[\w./]+\w", TEXT):
        assert (ROOT / Path(path)).exists(), path
