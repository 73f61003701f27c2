"""Contracts of a run that is continued: what may change, what is refused, and that a refusal changes nothing."""

import contextlib
import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pretrain.settings.config
import tests.stores
from data_prep.cli import InputError
from data_prep.fields import write_sealed
from data_prep.files import sha256_of, write_json
from pretrain.checkpoints.format import (
    STATE,
    FileEntry,
    Manifest,
    ModelIdentity,
    best_checkpoint,
    checkpoint_dir,
    list_checkpoints,
    rank_file,
)
from pretrain.checkpoints.resume import Start, move_position, resolve_resume
from pretrain.checkpoints.resume_policy import REFUSED, changes_of, refuse_changes
from pretrain.checkpoints.verify import verify_checkpoint
from pretrain.export.sources import find_source
from pretrain.run_folder import write_run_folder
from pretrain.settings.config import TrainConfig
from pretrain.setup import prepare
from pretrain.state import DataPosition, RunState
from pretrain.train import train
from tests.ranks import run_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of

STEPS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another corpus with the same tokenizer."""
    return store_of(tmp_path_factory.mktemp("other"), random_documents(30, seed=5), held_out={1, 2}).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    settings = dict(steps=STEPS, warmup=1, global_batch=8, save_every=2, eval_every=2, eval_samples=8)
    return tiny_run(store, out, **settings | changes)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run_ranks(1, train, config(store, out))
    return out


@pytest.fixture
def cut(whole, tmp_path) -> Path:
    """The run as a crash after the checkpoint of step 2 leaves it."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(checkpoint_dir(out, STEPS))
    return out


def all_of(folder: Path) -> dict[str, str]:
    """Every name below a folder, with a hash of what is there."""
    return {
        str(path.relative_to(folder)): sha256_of(path) if path.is_file() else "folder" for path in folder.rglob("*")
    }


def answers(*commands: TrainConfig) -> list[str]:
    """What each command is refused with, one after another in one process; "" where it trains."""
    found = []
    for command in commands:
        try:
            train(command)
            found.append("")
        except InputError as error:
            found.append(str(error))
    return found


def rewritten(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """A checkpoint with another manifest or state, its checksums right."""
    manifest, content = (json.loads((folder / f"{name}.json").read_text()) for name in ("manifest", "state"))
    change(manifest, content)
    write_json(folder / "state.json", content)
    manifest["files"]["state.json"] = {
        "bytes": (folder / "state.json").stat().st_size,
        "sha256": sha256_of(folder / "state.json"),
    }
    write_sealed(folder / "manifest.json", manifest)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == kind]


def record(run: Path) -> dict[str, Any]:
    content = json.loads((run / "config.json").read_text())
    del content["sha256"]
    return content


def test_a_refused_command_leaves_the_run_byte_for_byte(store, other, whole, cut, tmp_path, monkeypatch):
    monkeypatch.setattr(tests.stores, "entries_of", lambda size: [*tests.stores.SPECIAL, *map(str, range(size - 5))])
    renamed = store_of(tmp_path / "renamed", random_documents(40), held_out={3, 17}).folder
    here, new = {"out": cut}, {"out": tmp_path / "new", "resume": str(checkpoint_dir(whole, 2))}
    broken = tmp_path / "broken"
    shutil.copytree(cut, broken)
    rewritten(checkpoint_dir(broken, 2), lambda manifest, content: content.pop("position"))
    refusals: dict[str, dict[str, Any]] = {
        "was trained with tokenizer": here | {"store": renamed},
        "another model: hidden_size": here | {"model": "bert-mini"},
        "optimizer adamw -> lamb": here | {"optimizer": "lamb"},
        "--allow_change data": here | {"store": other},
        "--allow_change data seed": here | {"data": (str(store), str(other)), "seed": 3},
        "seed 0 -> 1": here | {"seed": 1},
        "objective nsp -> mlm": here | {"objective": "mlm"},
        "seq_len 32 -> 24": here | {"seq_len": 24},
        "--allow_change seq_len": here | {"seq_len": 24, "seed": 1, "allow_change": ("seed",)},
        "another model: hidden_size, ": new | {"model": "bert-mini"},
        "tokenizer ": new | {"store": renamed},
        "nothing is left to train": {"out": tmp_path / "new", "resume": str(checkpoint_dir(whole, STEPS))},
        "none is whole": {"out": broken},
        "layer_decay 7": here | {"ds_config": tmp_path / "odd.json"},
    }
    write_json(tmp_path / "odd.json", {"optimizer": {"type": "AdamW", "params": {"layer_decay": 7}}})
    before = all_of(tmp_path)
    commands = [config(changes.pop("store", store), **changes) for changes in copy.deepcopy(refusals).values()]
    for (message, _), answer in zip(refusals.items(), run_ranks(1, answers, *commands)[0], strict=True):
        assert message in answer
        assert "\n" not in answer
    assert all_of(tmp_path) == before


def test_a_finished_run_is_left_as_it_is(store, whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = all_of(run)
    assert run_ranks(1, train, config(store, run, lr=5e-3))[0].step == STEPS
    assert all_of(run) == before
    assert "finished at step" in capfd.readouterr().err


@pytest.mark.slow
def test_other_settings_are_said_logged_and_kept_by_segment(store, cut):
    changes = {"lr": 5e-3, "weight_decay": 0.1, "mask_rate": 0.2, "steps": 5, "global_batch": 16}
    run_ranks(1, train, config(store, cut, **changes))
    (event,) = events(cut, "change")
    assert event == {
        "kind": "event", "step": 2, "event": "change", "lr": "0.001 -> 0.005", "weight_decay": "0.01 -> 0.1",
        "mask_rate": "0.15 -> 0.2", "steps": "4 -> 5", "global_batch": "8 -> 16",
        "micro_batch": "8 -> 16",
    }  # fmt: skip
    assert "change, step 2, lr 0.001 -> 0.005" in (cut / "log.txt").read_text()
    now = record(cut)
    assert (now["from_step"], now["train"]["lr"]) == (2, 5e-3)
    assert [(part["from_step"], part["train"]["lr"]) for part in now["segments"]] == [(0, 1e-3)]
    manifest = verify_checkpoint(checkpoint_dir(cut, 5))
    assert manifest.record == now
    run_ranks(1, train, config(store, cut, **changes | {"steps": 6, "eval_every": 1}))
    assert [part["train"]["steps"] for part in (*record(cut)["segments"], record(cut))] == [4, 5, 6]
    assert not any("segments" in part for part in record(cut)["segments"]), "each change would double the file"


@pytest.mark.slow
def test_other_data_that_is_allowed_begins_an_epoch(store, other, cut):
    both = config(store, cut, data=(str(store), str(other)), allow_change=("data",))
    assert run_ranks(1, train, both)[0].position[:2] == (1, 16)
    (event,) = events(cut, "change")
    assert event["data"].count(str(store)) == 2
    assert "the data goes on at epoch 1, sample 0" in (cut / "log.txt").read_text()


@pytest.mark.slow
def test_a_checkpoint_of_an_older_version_resumes(store, cut):
    def older(manifest: dict[str, Any], content: dict[str, Any]) -> None:
        del manifest["record"], manifest["held_out"], content["held_out"], content["position"]["seq_len"]

    def refusals(*commands: TrainConfig) -> list[str]:
        return answers(*commands)

    rewritten(checkpoint_dir(cut, 2), older)
    old = record(cut)
    write_json(
        cut / "config.json",
        {k: v for k, v in old.items() if k not in ("from_step", "from", "segments", "samples_version")},
    )
    commands = [config(store, cut, seed=1), config(store, cut, optimizer="lamb"), config(store, cut)]
    seed, optimizer, nothing = run_ranks(1, refusals, *commands)[0]
    assert "seed 0 -> 1" in seed
    assert "optimizer adamw -> lamb" in optimizer
    assert nothing == ""
    assert {name for event in events(cut, "change") for name in event} <= {"kind", "step", "event", "samples_version"}


@pytest.mark.slow
def test_checkpoints_of_another_way_are_put_aside(store, whole, tmp_path):
    """Else the next resume, or a rollback, would take the step 4 of before for one of this run."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    run_ranks(1, train, config(store, run, resume=str(checkpoint_dir(run, 2)), steps=3))
    assert [folder.name for folder in list_checkpoints(run)] == ["step-0000003", "step-0000002"]
    assert (run / "checkpoints/aside-1-step-0000004").is_dir()


def test_a_run_that_went_on_while_its_checkpoint_was_read_is_not_taken_back(store, cut):
    """The process before has saved and ended between the look at the folder and its lock."""
    command = config(store, cut)
    seen = Start({}, checkpoint=checkpoint_dir(cut, 2), state=RunState(2), checkpoints_seen=("step-0000002",))
    checkpoint_dir(cut, 3).mkdir()
    before = all_of(cut)
    with pytest.raises(InputError, match="has been written by another process just now"):
        write_run_folder(command.out, seen, [])
    assert all_of(cut) == before


RECORD: Any = {
    "train": {
        "seed": 0, "objective": "nsp", "init_from": None, "model": "bert-tiny", "data": ["a", "b:2"],
        "temperature": 1.0, "dropout": 0.1, "eval_samples": 8,
    },
    "phases": [{"seq_len": 128, "steps": 90, "lr": 1e-3}, {"seq_len": 512, "steps": 10, "lr": 1e-4}],
    "stores": [
        {"folder": "a", "identity": "1" * 64, "passes": 1.0}, {"folder": "b", "identity": "2" * 64, "passes": 2.0},
    ],
    "deepspeed": {"optimizer": {"type": "adamw", "params": {"weight_decay": 0.01}}},
}  # fmt: skip


def changed(**values: Any) -> Any:
    """The record with other settings of the run."""
    now = copy.deepcopy(RECORD)
    for name, value in values.items():
        (now if name in now else now["train"])[name] = value
    return now


def names(now: Any, step: int = 50) -> list[str]:
    return [change.setting for change in changes_of(RECORD, now, step)]


def test_what_phases_say_for_themselves_is_compared_with_what_the_whole_run_had():
    old = [phase | {"seq_len": 128} for phase in RECORD["phases"]]
    train = {"mask_rate": 0.15, "data": RECORD["train"]["data"], "temperature": 1.0}
    before = RECORD | {"phases": old, "train": RECORD["train"] | train}
    mixture = {"weights": [1.0, 2.0], "temperature": 1.0, "passes": [1.0, 2.0]}
    own = {"mask_rate": 0.15, "mask_rate_end": None, "weight_decay": 0.01} | mixture

    def of(first: Any, second: Any) -> list[str]:
        phases = [phase | own | more for phase, more in zip(old, (first, second), strict=True)]
        return [change.setting for change in changes_of(before, before | {"phases": phases}, 50)]

    assert of({}, {}) == []
    assert of({"mask_rate": 0.3}, {}) == ["mask_rate"]
    assert of({}, {"mask_rate_end": 0.1}) == ["mask_rate_end"]
    assert of({}, {"weight_decay": 0.1}) == ["weight_decay"]
    assert of({"weights": [1.0, 0.5]}, {}) == ["weights"], "of the phase that is under way"
    assert of({"temperature": 0.5}, {}) == ["temperature"]
    # A later phase moves nothing now: its samples are come to when it begins.
    now = before | {"phases": [old[0] | own, old[1] | own | {"weights": [0.0, 1.0]}]}
    changes = changes_of(before | {"phases": [phase | own for phase in old]}, now, 50)
    assert [(change.setting, change.moves) for change in changes] == [("later_weights", False)]
    # The first phase has begun 3 epochs of 2 passes of b: 6 passes, which end with epoch 12 where half a one is taken.
    half = [old[0] | own | {"weights": [1.0, 0.5], "passes": [1.0, 0.5]}, old[1] | own]
    slower = before | {"phases": half}
    state = RunState(50, position=DataPosition(2, 17, 0, 400, 128))
    moved = move_position(state, before, slower, changes_of(before, slower, 50))
    assert moved.position == DataPosition(12, 0, 0, 400, 128)


def test_a_phase_that_is_behind_or_ahead_may_change():
    def lengths(*phases: tuple[int, int]) -> Any:
        rows = [{"seq_len": seq_len, "steps": steps, "lr": 1e-3} for seq_len, steps in phases]
        return changed(phases=rows)

    assert "seq_len" in names(lengths((64, 90), (512, 10)))
    assert "seq_len" not in names(lengths((128, 50), (256, 10)))
    assert "later_seq_len" in names(lengths((128, 90), (256, 10)))
    assert "seq_len" not in names(lengths((128, 90), (512, 20)), 95)
    assert "seq_len" not in names(lengths((64, 90), (512, 10)), 95)
    assert "seq_len" in names(lengths((128, 100)), 95)
    assert names(RECORD) == names(changed(train=RECORD["train"] | {"keep": 7})) == []


def test_a_phase_more_with_the_same_rate_changes_no_rate():
    more = [RECORD["phases"][0] | {"steps": steps, "lr": 1e-3} for steps in (100, 50)]
    before = changed(phases=more[:1])

    def texts() -> dict[str, str]:
        return {change.setting: change.text for change in changes_of(before, changed(phases=more), 50)}

    assert texts()["steps"] == "100 -> 100, 50"
    assert "lr" not in texts()
    more[1]["lr"] = 1e-4
    assert texts()["lr"] == "0.001 -> 0.001, 0.0001"


def test_a_run_is_not_taken_for_a_checkpoint(store, whole):
    settings = tiny_run(store, whole.with_name("another"), resume=str(whole), steps=STEPS)
    with pytest.raises(
        InputError, match=rf"--resume {whole} is a whole run.* the newest is {checkpoint_dir(whole, STEPS)}"
    ):
        resolve_resume(settings)


def test_a_moved_store_is_the_same_store_and_an_empty_record_says_nothing():
    moved = changed(stores=[store | {"folder": f"/mnt/{store['folder']}"} for store in RECORD["stores"]])
    assert names(moved) == []
    assert changes_of({}, RECORD, 50) == ()
    assert changes_of({"deepspeed": {"imported_from": "x"}}, RECORD, 50) == ()


def test_a_place_in_other_samples_is_the_beginning_of_a_fresh_epoch():
    state = RunState(50, position=DataPosition(2, 17, 0, 400))

    def place(now: Any) -> DataPosition:
        return move_position(state, RECORD, now, changes_of(RECORD, now, 50)).position

    assert place(RECORD) == DataPosition(2, 17, 0, 400, 128)
    assert place(changed(dropout=0.0)) == DataPosition(2, 17, 0, 400, 128)
    assert place(changed(seed=1)) == DataPosition(3, 0, 0, 400, 128)
    assert place(changed(objective="mlm")) == DataPosition(3, 0, 0, 400, 128)
    # Half as many passes of b an epoch: it has begun 6 of its passes, which end with epoch 5.
    slower = changed(data=["a", "b"], stores=[RECORD["stores"][0], RECORD["stores"][1] | {"passes": 1.0}])
    assert place(slower) == DataPosition(6, 0, 0, 400, 128)
    third = {"folder": "c", "identity": "3" * 64, "passes": 1.0}
    assert place(changed(stores=[*RECORD["stores"], third])) == DataPosition(3, 0, 0, 400, 128)
    assert place(changed(stores=[third])) == DataPosition(0, 0, 0, 400, 128)


def test_other_lengths_begin_at_their_first_sample():
    position = DataPosition(2, 17, 0, 400, 128)
    assert position.entering(0, 128) == position
    assert position.entering(1, 128) == DataPosition(2, 17, 1, 0, 128)
    assert position.entering(1, 512) == DataPosition(0, 0, 1, 0, 512)
    assert position.entering(0, 512) == DataPosition(0, 0, 0, 400, 512)


def test_what_is_allowed_is_allowed_by_name(store, tmp_path):
    lamb = changed(deepspeed={"optimizer": {"type": "lamb", "params": {"weight_decay": 0.01}}}, seed=1)
    changes = changes_of(RECORD, lamb, 50)
    refuse_changes(tmp_path, changes, ("optimizer", "seed", "data"))
    with pytest.raises(InputError, match=r"seed 0 -> 1 .*or say --allow_change seed$"):
        refuse_changes(tmp_path, changes, ("optimizer",))
    with pytest.raises(InputError, match=f"--allow_change lr, model: .*{', '.join(REFUSED)}".replace("lr, ", "lr ")):
        prepare(config(store, tmp_path, allow_change=("lr", "model")), 1)
    help_text = Path(pretrain.settings.config.__file__).read_text()
    assert all(name in help_text.partition("allow_change:")[2].partition("hang_timeout")[0] for name in REFUSED)


def test_best_never_compares_losses_on_different_samples(tmp_path):
    state = RunState().after_evaluation(2.0, "short").after_evaluation(3.0, "short")
    assert (state.best_loss, state.evals_since_best) == (2.0, 1)
    state = state.after_evaluation(4.0, "long")
    assert (state.best_loss, state.evals_since_best) == (4.0, 0)
    assert state.after_evaluation(float("nan"), "long").evals_since_best == 1
    rows = [(1, 2.0, "short"), (2, 1.0, "short"), (3, 5.0, "long"), (4, 4.0, "long"), (5, 6.0, "long"), (6, None, "")]
    for step, loss, held_out in rows:
        folder = checkpoint_dir(tmp_path, step)
        folder.mkdir(parents=True)
        files = {name: FileEntry(1, "ab" * 32) for name in (STATE, rank_file(0, 1))}
        Manifest(
            step=step, world_size=1, zero_stage=0, held_out_loss=loss, identity=ModelIdentity({}, "ab" * 32, 5),
            ds_config={}, parameters={"weight": [1]}, files=files, held_out_identity=held_out,
        ).write(folder)  # fmt: skip
    best = best_checkpoint(list_checkpoints(tmp_path))
    assert best is not None
    assert best.folder == checkpoint_dir(tmp_path, 4)
    assert best_checkpoint([checkpoint_dir(tmp_path, 6)]) is best_checkpoint([]) is None


def test_the_held_out_set_is_known_by_what_decides_it(whole, store, tmp_path):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    sets = {line["held_out"] for line in lines if line["kind"] == "eval"}
    assert len(sets) == 1
    manifest = verify_checkpoint(checkpoint_dir(whole, STEPS))
    assert manifest.held_out_identity == sets.pop()
    assert (
        json.loads((checkpoint_dir(whole, STEPS) / "state.json").read_text())["held_out"] == manifest.held_out_identity
    )


def test_export_takes_no_other_tokenizer_or_settings(store, whole, tmp_path, monkeypatch):
    """As the refused commands of older versions left them."""
    monkeypatch.setattr(tests.stores, "entries_of", lambda size: [*tests.stores.SPECIAL, *map(str, range(size - 5))])
    renamed = store_of(tmp_path / "renamed", random_documents(40)).folder
    for number, source in enumerate((lambda run: run, lambda run: checkpoint_dir(run, STEPS))):
        run = tmp_path / f"run{number}"
        shutil.copytree(whole, run)
        assert find_source(source(run), None, None).step == STEPS
        shutil.rmtree(run / "vocab")
        shutil.copytree(renamed / "vocab", run / "vocab")
        with pytest.raises(InputError, match=r"vocab is tokenizer \w{12}, and the model was trained with \w{12}; "):
            find_source(source(run), None, None)
        shutil.rmtree(run / "vocab")
        with pytest.raises(InputError, match=r"vocab/tokenizer.json is missing"):
            find_source(source(run), None, None)
        shutil.copytree(whole / "vocab", run / "vocab")
        write_json(run / "config.json", record(run) | {"parameters": 11_000_000})
        with pytest.raises(InputError, match=r"config.json says parameters 11000000, the checkpoint \d+; "):
            find_source(source(run), None, None)


def test_a_spoilt_run_is_mended_by_its_own_command(store, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    write_json(run / "config.json", record(run) | {"parameters": 11_000_000})
    (run / "vocab/tokenizer_config.json").write_text("{}")
    run_ranks(1, train, config(store, run))
    assert find_source(run, None, None).step == STEPS
    assert all_of(run / "vocab") == all_of(whole / "vocab")


def test_a_card_tells_of_the_checkpoint_and_of_its_phases(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "config.json").write_text('{"train": {"se')
    assert find_source(run, None, None).story.endswith("4 steps of 8 samples of 32 tokens.")
    phases = [{"steps": 1, "seq_len": 16, "global_batch": 64}, {"steps": 9, "seq_len": 32, "global_batch": 8}]
    rewritten(checkpoint_dir(run, STEPS), lambda manifest, content: manifest["record"].update(phases=phases))
    story = find_source(run, None, None).story
    assert story.endswith("1 steps of 64 samples of 16 tokens, then 3 steps of 8 samples of 32 tokens.")
    before = {"from_step": 0, "phases": [{"steps": 4, "seq_len": 16, "global_batch": 64}]}
    changes = {"from_step": 2, "segments": [before]}
    rewritten(checkpoint_dir(run, STEPS), lambda manifest, content: manifest["record"].update(changes))
    story = find_source(run, None, None).story
    assert story.endswith("2 steps of 64 samples of 16 tokens, then 2 steps of 8 samples of 32 tokens.")


def test_a_card_tells_what_was_trained_in_its_order(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    short, long = ({"steps": 1, "seq_len": length, "global_batch": 8} for length in (16, 32))

    def course(changes: dict[str, Any]) -> Any:
        rewritten(checkpoint_dir(run, STEPS), lambda manifest, content: manifest["record"].update(changes))
        return find_source(run, None, None)

    # A length that comes again comes after the other one.
    story = course({"phases": [short, long, short, short]}).story
    of_16, of_32 = (f"of 8 samples of {length} tokens" for length in (16, 32))
    assert story.endswith(f"1 steps {of_16}, then 1 steps {of_32}, then 2 steps {of_16}.")
    # What is another thing since step 3 was not so before.
    record = json.loads((checkpoint_dir(run, STEPS) / "manifest.json").read_text())["record"]
    before = record | {
        "phases": [long | {"steps": 4}],
        "train": record["train"] | {"objective": "sop", "model": None, "init_from": "models/bert-of-others"},
        "stores": [{"folder": "stores/novels"}],
    }
    later = {"phases": [long | {"steps": 4}], "from_step": 3, "segments": [before]}
    found = course(later | {"train": record["train"] | {"objective": "mlm"}})
    own = Path(record["stores"][0]["folder"]).name
    assert found.story == (
        "pretrained with zerobert, starting from the weights of bert-of-others: masked language modelling and sentence "
        f"pairs (sop), 3 steps {of_32} with sop of novels, then 1 steps {of_32} with mlm of {own}."
    )
    assert found.title == f"bert-tiny, pretrained on novels, {own}"


def test_an_evaluation_that_was_done_again_or_cut_is_not_the_card_s(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    lines = [
        {"kind": "eval", "step": 3, "mlm_loss": 9.0}, {"kind": "event", "event": "resume", "step": 2},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "eval", "st'
    (run / "metrics.jsonl").write_text(text)
    with contextlib.redirect_stderr(io.StringIO()):
        evaluation = find_source(run, None, None).evaluation
    loss = Manifest.read(checkpoint_dir(run, STEPS)).held_out_loss
    assert evaluation is not None
    assert evaluation["mlm_loss"] == loss != 9.0  # that of the checkpoint itself
