"""What a run folder says about its run, beside checkpoints and metrics.

RUN/config.json      resolved settings and DeepSpeed JSON, identity of the stores, versions, state of the code;
                     from_step, where these settings began, and segments: the same of the settings before
RUN/vocab/           the tokenizer, for export

run_record(...)                                  the content of config.json
with RunLock(RUN): write_run_folder(...)         the first bytes that a run writes
"""

import hashlib
import math
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from data_prep.cli import ROOT, InputError, say
from data_prep.fields import read_fields, write_sealed
from data_prep.files import sha256_of, write_folder
from data_prep.json_types import JsonObject
from data_prep.samples.sample_index import VERSION
from data_prep.store import Store
from data_prep.tokens.tokenizer_folder import tokenizer_sha256
from data_prep.version import project_version
from pretrain.checkpoints.format import Manifest, list_checkpoints
from pretrain.checkpoints.resume import Start, is_of_run
from pretrain.data_coverage import data_coverage_of
from pretrain.likelihood.minimal_pairs import identity_of
from pretrain.run_record import RunRecord
from pretrain.setup import Setup


def run_record(setup: Setup, parameters: int) -> RunRecord:
    """Return what is needed to repeat the run: the content of config.json, but for what came before."""
    config, stores = setup.config, setup.stores
    record: RunRecord = {
        "train": config.to_json(),
        "phases": [phase.described() | {"passes": setup.passes(phase)} for phase in setup.phases],
        "parameters": parameters,
        "deepspeed": setup.ds_config.content,
        "outlook": data_coverage_of(config, stores)._asdict(),
        "stores": [
            {"folder": str(store.folder), "identity": store.identity, "passes": store_passes}
            for store, store_passes in zip(stores, setup.passes(setup.phases[0]), strict=True)
        ],
        "samples_version": VERSION,
        "vocab_sha256": stores[0].vocab_sha256,
        "vocab_size": stores[0].vocab_size,
        "versions": {"zerobert": project_version()}
        | {name: version(name) for name in ("torch", "deepspeed", "transformers", "numpy")},
        "python": platform.python_version(),
        "git": git_state(),
    }
    if config.init_from is not None:
        record["init_sha256"] = weights_sha256(config.init_from)
    if setup.minimal_pairs:
        record["eval_pairs_sha256"] = identity_of(setup.minimal_pairs)
    return record


def write_run_folder(run: Path, start: Start, stores: list[Store]) -> None:
    """Write the record, and the tokenizer that export will need; checkpoints of another way are put aside.

    Raises
    ------
    InputError: another process has written checkpoints since `start` was found.
    """
    folders = list_checkpoints(run)
    if tuple(folder.name for folder in folders) != start.checkpoints_seen:
        raise InputError(f"{run} has been written by another process just now; give the command again")
    run.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        # Else a rollback, or the next resume, would take them for later steps of this run.
        if start.checkpoint is not None and (
            not is_of_run(start.checkpoint, run) or folder.name > start.checkpoint.name
        ):
            _put_aside(folder)
    write_sealed(run / "config.json", {**start.record})

    def copy_vocab(folder: Path) -> None:
        shutil.copytree(stores[0].folder / "vocab", folder, dirs_exist_ok=True)

    write_folder(run / "vocab", copy_vocab)


def _put_aside(folder: Path) -> None:
    index = 1
    while (aside := folder.with_name(f"aside-{index}-{folder.name}")).exists():
        index += 1
    os.replace(folder, aside)
    say(f"{folder} is not on the way of the checkpoint that this run goes on from; it is now {aside.name}")


def disagreement(run: Path, manifest: Manifest) -> str:
    """Return what of a run folder is of another run than the checkpoint with this manifest; empty where nothing is.

    A command that an older version refused has left its tokenizer and its settings behind.
    """
    identity = manifest.identity
    wanted: JsonObject = {"vocab_sha256": identity.vocab_sha256, "vocab_size": identity.vocab_size}
    wanted["parameters"] = sum(math.prod(shape) for shape in manifest.parameters.values())
    if not (run / "vocab" / "tokenizer.json").is_file():
        return f"{run}/vocab/tokenizer.json is missing"
    found = tokenizer_sha256(run / "vocab")
    if found != wanted["vocab_sha256"]:
        return (
            f"{run / 'vocab'} is tokenizer {found[:12]}, and the model was trained with {wanted['vocab_sha256'][:12]}"
        )
    path = run / "config.json"
    try:
        record = read_fields(path, "").content
    except InputError:
        return ""  # damaged, or gone: what the checkpoint says itself is used, and whoever uses it says so
    different = [name for name, value in wanted.items() if record.get(name, value) != value]
    return ", ".join(f"{path} says {name} {record[name]}, the checkpoint {wanted[name]}" for name in different)


def weights_sha256(folder: Path) -> str:
    """Return the identity of a Hugging Face folder's model: its configuration and weights."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def git_state() -> JsonObject:
    """Return commit and cleanliness of the checkout that the code runs from; empty outside of one."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": head, "clean": not changes}
