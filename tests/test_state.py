"""Files of checkpoints, by their names: older versions wrote these, and outside scripts read them."""

import json

from data_prep.fields import read_fields
from data_prep.files import write_json
from pretrain.checkpoints.format import FileEntry, Manifest, ModelIdentity, rank_file
from pretrain.state import DataPosition, RunState

STATE = RunState(
    step=7, steps_skipped=1, samples=64, tokens=900, position=DataPosition(1, 5, 0, 64, 32), seconds=2.5,
    best_loss=3.25, held_out_identity="ab", evals_since_best=2, recent_losses=(3.5, 3.25), skipped_spans=((8, 16),),
)  # fmt: skip
IN_FILE = {
    "step": 7, "skipped": 1, "samples": 64, "tokens": 900,
    "position": {"epoch": 1, "sample": 5, "phase": 0, "taken": 64, "seq_len": 32},
    "seconds": 2.5, "best_loss": 3.25, "held_out": "ab", "worse": 2, "recent": [3.5, 3.25], "passed_over": [[8, 16]],
}  # fmt: skip


def test_a_state_has_the_same_names_in_its_file_as_ever(tmp_path):
    write_json(tmp_path / "state.json", STATE.to_json())
    assert (tmp_path / "state.json").read_text() == json.dumps(IN_FILE, indent=1) + "\n"
    assert RunState.from_json(read_fields(tmp_path / "state.json", "")) == STATE
    write_json(tmp_path / "state.json", {"step": 3, "position": {}})
    assert RunState.from_json(read_fields(tmp_path / "state.json", "")) == RunState(step=3)


def test_a_manifest_has_the_same_names_in_its_file_as_ever(tmp_path):
    files = {name: FileEntry(bytes=4, sha256="cd" * 32) for name in (rank_file(0, 1), "state.json")}
    manifest = Manifest(
        step=7, world_size=1, zero_stage=2, held_out_loss=3.25, identity=ModelIdentity({"a": 1}, "ab" * 32, 9),
        ds_config={"b": 2}, parameters={"weight": [2, 3]}, files=files, held_out_identity="ab",
        record={"parameters": 3},
    )  # fmt: skip
    manifest.write(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert list(content) == [
        "format", "step", "world_size", "zero_stage", "held_out_loss", "identity", "settings", "parameters", "files",
        "held_out", "record", "sha256",
    ]  # fmt: skip
    assert content["identity"] == {"model": {"a": 1}, "vocab_sha256": "ab" * 32, "vocab_size": 9}
    assert content["files"]["rank-00000-of-00001.safetensors"] == {"bytes": 4, "sha256": "cd" * 32}
    assert Manifest.read(tmp_path) == manifest
