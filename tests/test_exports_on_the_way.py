"""--export_every: Hugging Face folders while a run trains have the bytes that the export command gives."""

import json
from pathlib import Path

import pytest

from pretrain.checkpoints.exports import Exports
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.train import train
from tests.forked import fork_script
from tests.ranks import run_ranks
from tests.run_page import undescribed
from tests.runs import events, tiny_run
from tests.stores import random_documents, store_of


@pytest.mark.slow
def test_two_ranks_at_stage_2_leave_what_the_command_gives(tmp_path: Path):
    store = store_of(tmp_path / "store", random_documents(40), held_out={3}).folder
    settings = tiny_run(
        store, tmp_path / "run", steps=2, global_batch=8, zero=2, export_every=2, average="ema=.9", eval_samples=4
    )
    run_ranks(2, train, settings)
    assert undescribed(settings.out) == set()
    found = settings.out / "hf"
    assert [event["folder"] for event in events(settings.out, "export")] == [
        "hf/step-0000002",
        "hf/step-0000002-averaged",
    ]
    for weights, folder in (("raw", found / "step-0000002"), ("averaged", found / "step-0000002-averaged")):
        again = tmp_path / weights
        done = fork_script("pretrain.export", checkpoint_dir(settings.out, 2), again, "--weights", weights)
        assert done.returncode == 0, done.stderr
        names = sorted(path.name for path in again.iterdir())
        assert sorted(path.name for path in folder.iterdir()) == names
        assert not [name for name in names if (folder / name).read_bytes() != (again / name).read_bytes()]


def test_one_that_fails_is_told_in_its_own_words(tmp_path: Path):
    beats = []
    exports = Exports(tmp_path / "run", lambda: beats.append(1))
    (tmp_path / "run/checkpoints/step-0000007").mkdir(parents=True)
    exports.write(tmp_path / "run/checkpoints/step-0000007", has_average=False)
    (news,) = exports.news()
    assert (news.step, news.folder) == (7, tmp_path / "run/hf/step-0000007")
    assert "is neither a run folder" in news.failure
    assert beats
    assert exports.news() == []
    assert not (tmp_path / "run/hf").exists()


def test_the_plan_says_their_disk(tmp_path: Path, capsys):
    store = store_of(tmp_path / "store", random_documents(40)).folder
    train(tiny_run(store, tmp_path / "run", steps=10, global_batch=8, export_every=4, dry_run=True))
    said = capsys.readouterr()
    plan = json.loads(said.out)
    assert (plan["checkpoint"]["exports"], plan["checkpoint"]["export_bytes"]) == (3, 4 * plan["parameters"])
    assert "3 Hugging Face folders of" in said.err
