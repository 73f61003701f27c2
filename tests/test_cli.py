"""A plain command line is read without tyro, and as tyro reads it; the rest is left to tyro."""

import pytest

from data_prep import cli
from data_prep.shard import ShardConfig

PLAIN = [
    (ShardConfig, "--corpus a b*.txt --vocab v --out o --workers 2 --shard_mb 0.5 --strict --sentences lines --drop d"),
    (ShardConfig, "--dataset name:train --vocab v --out o --exclude a b --append --holdout 0"),
]
ODD = [
    (ShardConfig, ""),
    (ShardConfig, "--help"),
    (ShardConfig, "--corpus a --vocab v"),  # --out is missing
    (ShardConfig, "--corpus a --vocab v --out o --workers two"),
    (ShardConfig, "--corpus a --vocab v --out o --out p"),
    (ShardConfig, "--corpus a --vocab v --out o --sentences words"),
    (ShardConfig, "--corpus a --vocab v --out o --strict yes"),
    (ShardConfig, "--corpus a --vocab v --out o --min_chars -3"),
    (ShardConfig, "--corpus --vocab v --out o"),
    (ShardConfig, "--corpus a --vocab v --out=o"),
    (ShardConfig, "--corpus a --vocab v --out o --drop None"),
    (ShardConfig, "a --vocab v --out o"),
    (ShardConfig, "--corpus a --vocab v --out o --worker 2"),
]


@pytest.mark.parametrize(("config", "line"), PLAIN)
def test_plain_lines_mean_what_tyro_says(config, line, monkeypatch):
    values = cli.read_plainly(config, line.split())
    assert values is not None
    plainly = cli.parse(config, None, line.split())
    assert plainly == config(**values)
    monkeypatch.setattr(cli, "read_plainly", lambda *_: None)
    assert plainly == cli.parse(config, None, line.split())


@pytest.mark.parametrize(("config", "line"), ODD)
def test_what_is_odd_or_wrong_is_left_to_tyro(config, line):
    assert cli.read_plainly(config, line.split()) is None
