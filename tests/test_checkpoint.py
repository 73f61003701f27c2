"""Stop and go on: bit for bit at the same world size and stage, to rounding at another; nothing damaged is taken."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.cli import InputError
from pretrain.checkpoints import load, slices, verify
from pretrain.checkpoints.format import checkpoint_dir, list_checkpoints
from pretrain.checkpoints.resume import resolve_resume
from pretrain.checkpoints.slices import index_slices
from pretrain.checkpoints.together import led
from pretrain.checkpoints.verify import latest_valid_checkpoint, verify_checkpoint
from pretrain.settings.config import TrainConfig
from pretrain.train import train
from pretrain.zero.engine import init_distributed
from tests.checkpoints import checkpoint_of
from tests.ranks import run_ranks
from tests.runs import contents, distance, tiny_run, weights
from tests.stores import random_documents, store_of

STEPS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    return tiny_run(store, out, **dict(steps=STEPS, warmup=2, global_batch=12, save_every=3) | changes)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory) -> Path:
    """An uninterrupted run on two ranks at stage 1, with dropout; checkpoints after steps 3 and 6."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_ranks(2, train, config(store, out, zero=1))
    return out


def cut_after_three(whole: Path, out: Path) -> Path:
    """The run as a crash after the checkpoint of step 3 would leave it."""
    shutil.copytree(whole, out)
    shutil.rmtree(checkpoint_dir(out, STEPS))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_resume_is_bit_for_bit(store, tmp_path, zero):
    settings = config(store, tmp_path / "whole", zero=zero)
    run_ranks(2, train, settings)
    cut = cut_after_three(settings.out, tmp_path / "cut")
    run_ranks(2, train, config(store, cut, zero=zero))
    assert contents(checkpoint_dir(cut, STEPS)) == contents(checkpoint_dir(settings.out, STEPS))
    events = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in events if line.get("event") == "resume"] == [3]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "zero"), [(1, 0), (1, 3), (3, 1), (3, 3), (2, 0), (1, 2)])
def test_resume_at_another_world_size_and_stage(store, tmp_path, world, zero):
    """Saved at stage 1 on 2 ranks; continued elsewhere without dropout, which depends on the rank."""
    settings = config(store, tmp_path / "whole", zero=1, dropout=0.0)
    run_ranks(2, train, settings)
    cut = cut_after_three(settings.out, tmp_path / "cut")
    run_ranks(world, train, config(store, cut, zero=zero, dropout=0.0))
    expected, start = (weights(checkpoint_dir(settings.out, step)) for step in (STEPS, 3))
    assert distance(weights(checkpoint_dir(cut, STEPS)), expected, start) < 1e-5


def train_and_list_opened(settings: TrainConfig) -> dict[str, list[str]]:
    """Train, and return the ranks' files that this one has read: for checksums, for what they hold, for its slices."""
    opened: dict[str, list[str]] = {}

    def noting(module: Any, name: str) -> None:
        function, names = getattr(module, name), opened.setdefault(f"{module.__name__}.{name}", [])

        def note(path: Path, **options: Any) -> Any:
            names.extend([path.name] if path.suffix == ".safetensors" else [])
            return function(path, **options)

        setattr(module, name, note)

    for module, name in ((verify, "sha256_of"), (slices, "safe_open"), (load, "safe_open")):
        noting(module, name)
    train(settings)
    return opened


def test_a_rank_opens_its_own_file_alone(store, whole, tmp_path):
    cut = cut_after_three(whole, tmp_path / "cut")
    for rank, opened in enumerate(run_ranks(2, train_and_list_opened, config(store, cut, zero=1))):
        own = f"rank-{rank:05d}-of-00002.safetensors"
        assert list(opened.values()) == [[own], [own, own], [own]]  # to verify, then to load
    assert contents(checkpoint_dir(cut, STEPS)) == contents(checkpoint_dir(whole, STEPS))


@pytest.mark.slow
def test_other_ranks_open_the_files_that_overlap(store, whole, tmp_path):
    cut = cut_after_three(whole, tmp_path / "cut")
    by_rank = [list(opened.values()) for opened in run_ranks(4, train_and_list_opened, config(store, cut, zero=1))]
    files = [f"rank-{rank:05d}-of-00002.safetensors" for rank in range(2)]
    assert [checked for checked, _, _ in by_rank] == [[files[0]], [files[1]], [], []]
    # Ranks 0 and 1 have about the first half of each group of parameters, 2 and 3 the second one.
    reads = [read for _, _, read in by_rank]
    assert (reads[0], reads[3]) == ([files[0]], [files[1]])
    assert all(len(read) == len(set(read)) for read in reads)


def latest_found_together(run: Path) -> Path | None:
    init_distributed()
    return led("run", partial(latest_valid_checkpoint, run))


def test_ranks_that_share_the_checking_pass_over_what_any_of_them_finds(tmp_path, capfd):
    for step in (3, 6):
        checkpoint_of(tmp_path, step)
    assert run_ranks(3, latest_found_together, tmp_path) == 3 * [checkpoint_dir(tmp_path, 6)]
    damage_flip(checkpoint_dir(tmp_path, 6) / "rank-00001-of-00002.safetensors")
    assert run_ranks(3, latest_found_together, tmp_path) == 3 * [checkpoint_dir(tmp_path, 3)]
    damaged = checkpoint_dir(tmp_path, 6)
    assert f"passing over {damaged}: {damaged}/rank-00001-of-00002.safetensors is damaged" in capfd.readouterr().err


def test_a_damaged_file_of_another_rank_is_refused_in_one_line_before_a_step(store, whole, tmp_path):
    cut = cut_after_three(whole, tmp_path / "cut")
    damage_flip(checkpoint_dir(cut, 3) / "rank-00001-of-00002.safetensors")
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match=r"InputError: .*rank-00001-of-00002.safetensors is damaged"):
        run_ranks(2, train, config(store, cut, zero=1, resume=str(checkpoint_dir(cut, 3))))
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


def test_a_checkpoint_has_twelve_bytes_a_parameter_and_no_pickle(whole):
    folder = checkpoint_dir(whole, STEPS)
    manifest = verify_checkpoint(folder)
    parameters = sum(torch.Size(shape).numel() for shape in manifest.parameters.values())
    stored = sum(slice_.length for found in index_slices(folder).values() for slice_ in found)
    assert stored == 3 * parameters
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]


def test_keep_removes_the_oldest(store, tmp_path):
    run_ranks(1, train, config(store, tmp_path / "run", save_every=1, keep=2))
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-0000006", "step-0000005"]


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flip": damage_flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 7),
    "empty": lambda path: os.truncate(path, 0),
    "remove": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["rank-00001-of-00002.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_by_name(whole, tmp_path, capsys, damage, name):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    DAMAGES[damage](checkpoint_dir(run, STEPS) / name)
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 3)
    assert name in capsys.readouterr().err


def test_a_checkpoint_without_manifest_is_not_whole(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (checkpoint_dir(run, STEPS) / "manifest.json").unlink()
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 3)


@pytest.mark.parametrize("pointer", ["step-0000009\n", "", "\xff\x00../..", "step-0000003\n"])
def test_a_pointer_is_only_a_hint(whole, tmp_path, capsys, pointer):
    """Lost, emptied, damaged, or stale as a crash between the two renames leaves it: the newest whole one is used."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert (run / "checkpoints/latest").read_text() == "step-0000006\n"
    (run / "checkpoints/latest").write_bytes(pointer.encode("latin-1"))
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, STEPS)
    assert ("which is not there" in capsys.readouterr().err) == (pointer != "step-0000003\n")
    damage_flip(checkpoint_dir(run, STEPS) / "state.json")
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 3)


def test_a_run_whose_checkpoints_are_gone_never_starts_from_zero(store, whole, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints/latest", run / "checkpoints/latest")
    with pytest.raises(InputError, match=r"names 'step-0000006', and no checkpoint is there"):
        resolve_resume(config(store, run))


def test_a_run_with_only_damaged_checkpoints_never_starts_from_zero(store, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in list_checkpoints(run):
        (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="none is whole"):
        resolve_resume(config(store, run))


def test_resume_never_refuses_a_run_with_checkpoints(store, whole, tmp_path):
    with pytest.raises(InputError, match="holds checkpoints"):
        resolve_resume(config(store, whole, resume="never"))
    assert resolve_resume(config(store, tmp_path / "new", resume="never")) is None
    assert resolve_resume(config(store, tmp_path / "new")) is None
    assert resolve_resume(config(store, tmp_path / "new", resume=str(checkpoint_dir(whole, 3)))) == checkpoint_dir(
        whole, 3
    )


def test_another_model_or_tokenizer_is_refused(store, whole, tmp_path):
    with pytest.raises(RuntimeError, match=r"another model: hidden_size"):
        run_ranks(1, train, config(store, whole, model="bert-mini"))
    other = store_of(tmp_path / "store", random_documents(40, vocab_size=70), vocab_size=70).folder
    with pytest.raises(RuntimeError, match="was trained with tokenizer"):
        run_ranks(1, train, config(other, whole))
    assert [path.name for path in list_checkpoints(whole)] == ["step-0000006", "step-0000003"]


def test_a_failed_save_leaves_the_others_and_fails_all_ranks(store, whole, tmp_path):
    """A file stands where rank 1's slices should go: both ranks raise, the older checkpoint is untouched."""
    cut = cut_after_three(whole, tmp_path / "cut")

    def obstructed(settings: TrainConfig) -> str:
        from safetensors import torch as safetensors_torch

        def refuse(tensors: dict, path: Path) -> None:
            if "rank-00001" in str(path):
                raise OSError(28, "No space left on device")
            safetensors_torch.save_file(tensors, path)

        slices.save_file = refuse  # type: ignore[assignment]
        try:
            train(settings)
        except OSError as error:
            return str(error)
        return "saved"

    messages = run_ranks(2, obstructed, config(store, cut, zero=1))
    assert "rank 1 failed" in messages[0]
    assert "No space left" in messages[1]
    assert latest_valid_checkpoint(cut) == checkpoint_dir(cut, 3)
