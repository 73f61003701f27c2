"""Runs that begin with the settings of a file: a run's own record, or options by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import InputError
from data_prep.fields import read_fields, write_sealed
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import Flags
from pretrain.settings.phases import engine_ds_config, phases_of
from pretrain.train import parse_command, train
from tests.ranks import run_ranks
from tests.runs import tiny_run
from tests.stores import store_of

MEASURED = ("seconds", "tokens_per_s", "mfu", "memory_gb")  # of the machine


def record_of(config: TrainConfig, folder: Path, **more: object) -> Path:
    """A record as config.json has it, of what this is about."""
    ds_config = engine_ds_config(phases_of(config.spans, config.ds_config, config.flags, 2, "fp32"))
    folder.mkdir()
    write_sealed(folder / "config.json", {"train": config.to_json(), "deepspeed": ds_config.content, "seed": 7} | more)
    return folder / "config.json"


def test_a_record_stands_for_all_settings_and_what_is_given_goes_before_it(tmp_path):
    config = tiny_run(
        tmp_path / "store", tmp_path / "run", mask_split=(0.7, 0.2), compile=True, keep=1, hours=0.5, global_batch=64,
        resume="never",
    )  # fmt: skip
    path = record_of(config, tmp_path / "run")
    resolved: dict[str, Any] = {"weight_decay": 0.01, "clip": 1.0, "precision": "fp32", "zero": 1, "optimizer": "adamw"}
    again = dataclasses.replace(  # how to go on is of a command
        config, flags=dataclasses.replace(config.flags, **resolved), resume="auto", config=path
    )
    assert parse_command(["--config", str(path)]) == again
    changed = parse_command([f"--config={path.parent}", "--init_from", "hf", "--lr", "0.5", "--mask_split", "1", "0"])
    other: dict[str, Any] = {
        "model": None,
        "init_from": Path("hf"),
        "flags": dataclasses.replace(again.flags, lr=0.5),
        "mask_split": (1.0, 0.0),
        "config": path.parent,
    }
    assert changed == dataclasses.replace(again, **other)


def test_phases_keep_their_own_settings_and_replace_each_other(tmp_path):
    phases = ("seq_len=16,steps=3,lr=1e-4", "steps=2,lr=1e-3")
    path = record_of(tiny_run(tmp_path / "store", tmp_path / "run", phase=phases, lr=None), tmp_path / "run")
    again = parse_command(["--config", str(path)])
    assert (again.phase, again.flags.lr, again.flags.global_batch) == (phases, None, 256)
    assert parse_command(["--config", str(path), "--phase", "steps=9"]).phase == ("steps=9",)


def test_a_deepspeed_json_that_has_changed_since_is_said(tmp_path, capsys):
    ds_config = tmp_path / "ds.json"
    ds_config.write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.98]}}}))
    path = record_of(tiny_run(tmp_path / "store", tmp_path / "run", ds_config=ds_config), tmp_path / "run")
    ds_config.write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}}))
    parse_command(["--config", str(path)])
    assert "optimizer.params.betas was [0.9, 0.98], and is [0.9, 0.95]" in capsys.readouterr().err
    parse_command(["--config", str(path), "--deepspeed_config", str(ds_config)])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "data: store\nout: run\nmodel: bert-tiny\nlr: 1e-3\nphase: [steps=5]\nmask_split: [1, 0]\n"),
        ("a.toml", 'data=["store"]\nout = "run"\nmodel = "bert-tiny"\nlr = 1e-3\nphase = "steps=5"\nmask_split=[1,0]'),
        ("a.JSON", '{"data": "store", "out": "run", "model": "bert-tiny", "lr": 1e-3, "phase": ["steps=5"], '
         '"mask_split": [1.0, 0.0], "deepspeed_config": null}'),
    ],
)  # fmt: skip
def test_options_by_name_may_be_yaml_toml_or_json(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    if name == "a.JSON":  # null is no path
        with pytest.raises(InputError, match="ds_config None is not a path"):
            parse_command(["--config", str(path)])
        path.write_text(text.replace(', "deepspeed_config": null', ""))
    assert parse_command(["--config", str(path)]) == TrainConfig(
        ("store",),
        Path("run"),
        "bert-tiny",
        flags=Flags(lr=1e-3),
        phase=("steps=5",),
        mask_split=(1.0, 0.0),
        config=path,
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "stpes: 3", "unknown name 'stpes'; did you mean steps?"),
        ("a.yaml", "steps: 3.5", "steps 3.5 is not a whole number"),
        ("a.yaml", "steps: yes", "steps True is not a whole number"),
        ("a.yaml", "compile: 1", "compile 1 is not true or false"),
        ("a.yaml", "lr: fast", "lr 'fast' is not a number"),
        ("a.yaml", "zero: true", "zero True is not one of 0, 1, 2, 3"),
        ("a.yaml", "model: bert-huge", "model 'bert-huge' is not one of bert-tiny, "),
        ("a.yaml", "mask_split: [1]", r"mask_split \[1\] is not a list, each a number"),
        ("a.yaml", "data: [1]", r"data \[1\] is not a list, each a text"),
        ("a.yaml", "steps: [", "cannot be read: "),
        ("a.yaml", "steps: 1\nlr: 1\nsteps: 2", "cannot be read: steps stands there twice"),
        ("a.yaml", f"lr: 1{'0' * 400}", "is not a number"),
        ("a.yaml", "5", "must hold names with values"),
        ("a.toml", "steps =", "cannot be read: "),
        ("a.yaml", "train: {lr: 1, x: [{seed: 1, seed: 2}]}", "cannot be read: seed stands there twice"),
        ("a.json", '{"steps": 1, "steps": 2}', "the key 'steps' stands there twice"),
        ("a.json", '{"train": {"seed": 1, "seed": 2}}', "the key 'seed' stands there twice"),
        ("a.json", '{"train": {}}', "does not say what DeepSpeed had"),
        ("a.txt", "steps: 3", "must be a run's config.json, or end in "),
        ("a.yaml", "config: b.yaml", "unknown name 'config'"),
    ],
)
def test_what_is_no_setting_is_refused_by_name(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"--config {tmp_path / name}.*{message}"):
        parse_command(["--config", str(tmp_path / name)])


def test_a_record_that_is_damaged_is_refused_and_one_that_was_edited_on_purpose_is_not(tmp_path):
    path = record_of(tiny_run(tmp_path / "store", tmp_path / "run"), tmp_path / "run")
    path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 0.002'))
    with pytest.raises(InputError, match=r"its own sha256 does not fit; .*remove 'sha256'"):
        parse_command(["--config", str(path)])
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert parse_command(["--config", str(path)]).flags.lr == 0.002


@pytest.mark.slow
def test_a_run_repeated_from_its_record_has_the_same_metrics(tmp_path):
    store = store_of(tmp_path / "store", [[[n % 50 + 5, n % 7 + 5] * 4] * 6 for n in range(40)], held_out=(1, 2, 3, 4))
    first = tiny_run(
        store.folder, tmp_path / "run", steps=6, eval_samples=16, eval_every=3, global_batch=8, dropout=0.1
    )
    run_ranks(1, train, first)
    again = parse_command(["--config", str(tmp_path / "run"), "--out", str(tmp_path / "again")])
    run_ranks(1, train, again)
    lines = [
        [
            {name: value for name, value in json.loads(line).items() if name not in MEASURED}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
            if '"event"' not in line
        ]
        for run in ("run", "again")
    ]
    assert len(lines[0]) >= 8
    assert lines[0] == lines[1]
    records = [read_fields(tmp_path / run / "config.json", "").content["deepspeed"] for run in ("run", "again")]
    assert records[0] == records[1]
