"""Damage is found, named and survived: every byte of what a run lives on, flipped; and lies whose checksums fit."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.cli import InputError
from data_prep.files import write_json
from pretrain.checkpoints.format import (
    MANIFEST,
    STATE,
    Manifest,
    checkpoint_dir,
    list_checkpoints,
    rank_file,
    read_state,
)
from pretrain.checkpoints.slices import index_slices, read_weights
from pretrain.checkpoints.verify import check_file, latest_valid_checkpoint, verify_checkpoint
from tests.checkpoints import checkpoint_of, rewrite, rewrite_state
from tests.damage import MANIFESTS, MASKS, sweep


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 3 and 6."""
    run = tmp_path_factory.mktemp("made") / "run"
    for step in (3, 6):
        checkpoint_of(run, step)
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_a_flipped_byte_of_a_manifest_is_never_taken_for_another_content(run):
    folder = checkpoint_dir(run, 6)
    counts = sweep(folder / MANIFEST, lambda: Manifest.read(folder))
    assert counts["refused"] > 20 * counts["the same"]  # white space only


def test_a_flipped_byte_of_a_state_is_found_by_its_checksum(run):
    folder = checkpoint_dir(run, 6)
    sweep_state = sweep(folder / STATE, lambda: read_manifest_of_state(folder))
    assert not sweep_state["the same"]


def read_manifest_of_state(folder: Path) -> Any:
    """What verify_checkpoint() does, without the slices."""
    manifest = Manifest.read(folder)
    check_file(folder / STATE, manifest.files[STATE])
    return read_state(folder, manifest)


def test_a_flipped_byte_of_a_manifest_or_state_without_checksum_is_no_traceback(run):
    """Of a version that wrote no checksum into manifest.json: types and ranges are all that can be looked at."""
    folder = checkpoint_dir(run, 6)
    unsealed(folder)
    manifest = Manifest.read(folder)
    for name, read in ((MANIFEST, lambda: Manifest.read(folder)), (STATE, lambda: read_state(folder, manifest))):
        whole, lines = (folder / name).read_bytes(), []
        for place in range(len(whole)):
            flipped = whole[place] ^ MASKS[place % len(MASKS)]
            (folder / name).write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
            try:
                read()
            except InputError as error:
                lines.append(str(error))
        assert lines
        assert not [line for line in lines if len(line.splitlines()) > 1]
        (folder / name).write_bytes(whole)


def unsealed(folder: Path) -> None:
    """As format 1 was: without a checksum of its own."""
    content = json.loads((folder / MANIFEST).read_text())
    del content["sha256"]
    write_json(folder / MANIFEST, content | {"format": 1})


def test_a_checkpoint_of_the_format_before_is_read(run):
    expected = verify_checkpoint(checkpoint_dir(run, 6))
    unsealed(checkpoint_dir(run, 6))
    assert verify_checkpoint(checkpoint_dir(run, 6)) == expected
    # Format 2 without its checksum is none.
    content = json.loads((checkpoint_dir(run, 6) / MANIFEST).read_text())
    write_json(checkpoint_dir(run, 6) / MANIFEST, content | {"format": 2})
    with pytest.raises(InputError, match="lacks 'sha256'"):
        verify_checkpoint(checkpoint_dir(run, 6))


@pytest.mark.parametrize("name", [MANIFEST, STATE, rank_file(1, 2)])
def test_choosing_passes_over_flipped_bytes_by_name(run, capsys, name):
    path = checkpoint_dir(run, 6) / name
    whole = path.read_bytes()
    for place in range(5, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert latest_valid_checkpoint(run) == checkpoint_dir(run, 3)
        assert f"passing over {checkpoint_dir(run, 6)}: " in capsys.readouterr().err


@pytest.mark.parametrize("content", MANIFESTS, ids=range(len(MANIFESTS)))
@pytest.mark.parametrize("name", [MANIFEST, STATE])
def test_odd_json_is_passed_over(run, name, content):
    (checkpoint_dir(run, 6) / name).write_bytes(content)
    if name == STATE:
        rewrite(checkpoint_dir(run, 6))
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 3)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", [MANIFEST, STATE])
def test_what_is_no_file_is_not_waited_for(run, name, make):
    (checkpoint_dir(run, 6) / name).unlink()
    make(checkpoint_dir(run, 6) / name)
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 3)


def in_manifest(**changes: Any) -> Callable[[Path], None]:
    """A lie in the manifest; a dict is laid over what is there."""

    def lie(folder: Path) -> None:
        was = vars(Manifest.read(folder))
        for name, change in changes.items():
            if name == "model":
                identity = was["identity"]
                rewrite(folder, identity=identity._replace(model=identity.model | change))
            else:
                rewrite(folder, **{name: was[name] | change if isinstance(change, dict) and change else change})

    return lie


def in_state(**changes: Any) -> Callable[[Path], None]:
    """A lie in state.json, of which the manifest knows."""

    def lie(folder: Path) -> None:
        content = json.loads((folder / STATE).read_text())
        for name, change in changes.items():
            content[name] = content[name] | change if isinstance(change, dict) else change
        rewrite_state(folder, content)

    return lie


def in_slices(change: Callable[[dict[str, torch.Tensor]], None], rank: int = 0) -> Callable[[Path], None]:
    """A lie in the file of a rank, of which the manifest knows."""

    def lie(folder: Path) -> None:
        path = folder / rank_file(rank, 2)
        slices = load_file(path)
        change(slices)
        save_file(slices, path)
        rewrite(folder)

    return lie


POOLER = "bert.pooler.dense.bias|master"  # eight elements, four in the file of each rank
RANK0 = rank_file(0, 2)


def renamed(files: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: entry for name, entry in files.items()}


def gap_under_overlap(slices: dict[str, torch.Tensor]) -> None:
    """Elements 0..3 twice and 3 more: the count of elements is right, but 4 is not there."""
    slices[f"{POOLER}|0"] = torch.zeros(3)
    slices[f"{POOLER}|2"] = torch.zeros(1)


def with_a_pickle(folder: Path) -> None:
    (folder / RANK0).write_bytes(b"pickle")
    rewrite(folder)


LIES: dict[str, Callable[[Path], object]] = {
    "no files": in_manifest(files={}),
    "another step than the folder": in_manifest(step=5),
    "more ranks than files": in_manifest(world_size=3),
    "a file out of the folder": lambda folder: rewrite(
        folder, files=renamed(Manifest.read(folder).files, RANK0, f"../step-0000003/{RANK0}")
    ),
    "an absolute file": lambda folder: rewrite(
        folder, files=renamed(Manifest.read(folder).files, RANK0, str(folder.parent / "step-0000003" / RANK0))
    ),
    "without a state": lambda folder: rewrite(
        folder, files={name: entry for name, entry in Manifest.read(folder).files.items() if name != STATE}
    ),
    "a file of another save": lambda folder: shutil.copy(folder / RANK0, folder / rank_file(0, 1)),
    "a negative size": in_manifest(parameters={"bert.pooler.dense.bias": [-8]}),
    "an endless size": in_manifest(parameters={"bert.pooler.dense.bias": [1 << 60]}),
    "a transposed shape": in_manifest(parameters={"bert.pooler.dense.bias": [2, 4]}),
    "a parameter too many": in_manifest(parameters={"bert.pooler.dense.more": [8]}),
    "a shape of another type": in_manifest(parameters={"bert.pooler.dense.bias": "8"}),
    "no parameters": in_manifest(parameters={}),
    "a hidden size that is text": in_manifest(model={"hidden_size": "8"}),
    "layers without end": in_manifest(model={"num_hidden_layers": 10**9}),
    "another number of layers": in_manifest(model={"num_hidden_layers": 2}),
    "an activation that is none": in_manifest(model={"hidden_act": "exec"}),
    "heads that do not divide": in_manifest(model={"num_attention_heads": 3}),
    "no heads": in_manifest(model={"num_attention_heads": 0}),
    "a loss that is text": in_manifest(held_out_loss="3"),
    "a stage that is none": in_manifest(zero_stage=4),
    "a negative step": in_state(step=-6),
    "a step that is text": in_state(step="6"),
    "a step that is true": in_state(step=True),
    "a step of 30 digits": in_state(step=10**30),
    "another step": in_state(step=5),
    "samples that are half": in_state(samples=1.5),
    "negative tokens": in_state(tokens=-1),
    "a negative position": in_state(position={"sample": -1}),
    "a position beyond": in_state(position={"sample": 10**6}),
    "a position that is a list": in_state(position=[0, 0, 0, 0]),
    "an epoch that is text": in_state(position={"epoch": "0"}),
    "seconds that are no number": in_state(seconds=math.nan),
    "seconds without end": in_state(seconds=math.inf),
    "negative seconds": in_state(seconds=-1.0),
    "losses that are text": in_state(recent=["3.5"]),
    "losses that are one": in_state(recent=3.5),
    "a span that ends before it begins": in_state(passed_over=[[8, 0]]),
    "a span of three": in_state(passed_over=[[0, 8, 9]]),
    "a span that is text": in_state(passed_over=["08"]),
    "a best loss that is text": in_state(best_loss="3"),
    "a scaler that is text": in_state(loss_scaler={"cur_scale": "65536"}),
    "a scaler that is a list": in_state(loss_scaler=[1]),
    "a gap under an overlap": in_slices(gap_under_overlap),
    "slices over each other": in_slices(lambda slices: slices.update({f"{POOLER}|0": torch.zeros(5)})),
    "a slice too short": in_slices(lambda slices: slices.update({f"{POOLER}|0": torch.zeros(3)})),
    "a slice beyond the end": in_slices(lambda slices: slices.update({f"{POOLER}|4": torch.zeros(5)}), rank=1),
    "a negative offset": in_slices(lambda slices: slices.update({f"{POOLER}|-4": torch.zeros(4)})),
    "an offset with a sign": in_slices(lambda slices: slices.update({f"{POOLER}|+0": slices.pop(f"{POOLER}|0")})),
    "a slice without a name": in_slices(lambda slices: slices.update(x=torch.zeros(1))),
    "a slice of another kind": in_slices(lambda slices: slices.update({f"{POOLER[:-6]}mean|0": torch.zeros(1)})),
    "a slice of nothing that the model has": in_slices(lambda slices: slices.update({"more|master|0": torch.zeros(1)})),
    "half precision": in_slices(lambda slices: slices.update({f"{POOLER}|0": slices[f"{POOLER}|0"].half()})),
    "a matrix": in_slices(lambda slices: slices.update({f"{POOLER}|0": slices[f"{POOLER}|0"].view(2, 2)})),
    "no tensors": with_a_pickle,
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_whose_checksums_fit_is_passed_over_by_name(run, capsys, lie):
    LIES[lie](checkpoint_dir(run, 6))
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 3)
    told = capsys.readouterr().err
    assert told.startswith(f"passing over {checkpoint_dir(run, 6)}: ")
    assert len(told.splitlines()) == 1
    with pytest.raises(InputError):
        verify_checkpoint(checkpoint_dir(run, 6))


def test_what_is_whole_is_taken(run):
    manifest = verify_checkpoint(checkpoint_dir(run, 6))
    rewrite(checkpoint_dir(run, 6))
    assert verify_checkpoint(checkpoint_dir(run, 6)) == manifest
    (checkpoint_dir(run, 6) / "notes.txt").write_text("what a person puts beside does not matter")
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 6)
    weights = read_weights(checkpoint_dir(run, 6), manifest.parameters)
    slices = index_slices(checkpoint_dir(run, 6))
    assert sum(slice_.length for found in slices.values() for slice_ in found) == 3 * sum(
        map(torch.numel, weights.values())
    )
    state, scaler = read_state(checkpoint_dir(run, 6), manifest)
    assert json.loads((checkpoint_dir(run, 6) / STATE).read_text()) == json.loads(
        json.dumps(state.to_json() | {"loss_scaler": scaler})
    )


def test_losses_that_are_no_numbers_do_not_make_a_checkpoint_unreadable(run):
    """A version before wrote NaN where an evaluation had diverged."""
    in_state(best_loss=math.nan, recent=[math.nan, math.inf])(checkpoint_dir(run, 6))
    rewrite(checkpoint_dir(run, 6), held_out_loss=math.nan)
    assert verify_checkpoint(checkpoint_dir(run, 6)).held_out_loss is None
    state, _ = read_state(checkpoint_dir(run, 6), verify_checkpoint(checkpoint_dir(run, 6)))
    assert state.best_loss is None
    assert state.after_evaluation(math.nan, "").best_loss is None


def test_steps_beyond_seven_digits_are_found(tmp_path):
    for step in (9_999_999, 10_000_000):
        checkpoint_of(tmp_path, step)
    assert list_checkpoints(tmp_path) == [checkpoint_dir(tmp_path, 10_000_000), checkpoint_dir(tmp_path, 9_999_999)]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_takes_no_place_among_those_kept(run, keep):
    """Continued from step 3, as step 6 is damaged: what is saved at step 4 stays."""
    from pretrain.checkpoints.saver import Saver

    os.truncate(checkpoint_dir(run, 6) / RANK0, 7)
    written = checkpoint_of(run, 4)
    saver = Saver.__new__(Saver)
    saver.run, saver.keep = run, keep
    saver._remove_old(written)
    assert latest_valid_checkpoint(run) == written
