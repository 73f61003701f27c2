"""A checkpoint into an engine of any ZeRO stage and world size: each rank reads the slices that it needs."""

from collections import defaultdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_prep.cli import InputError
from pretrain.checkpoints.format import KINDS, Manifest, ModelIdentity, check_identity, keep_average, read_state
from pretrain.checkpoints.slices import Part, SliceTable, parts_of
from pretrain.checkpoints.together import index_together
from pretrain.distributed import all_ranks_or_none, on_rank_0
from pretrain.settings.averaging import OFF, Averaging
from pretrain.state import RunState
from pretrain.zero.engine import Engine
from pretrain.zero.partition import Partition


def load_checkpoint(folder: Path, engine: Engine, identity: ModelIdentity, averaging: Averaging = OFF) -> RunState:
    """Put a checkpoint that verify_checkpoint() has found whole into an engine; collective. Its average of the weights
    is left aside unless it is the one of `averaging`, and the state counts no step in it.

    Raises
    ------
    InputError: of another model or tokenizer.
    """
    what, partition = f"checkpoint {folder}", engine.partition

    def read_head() -> tuple[Manifest, RunState, dict[str, float]]:
        manifest = Manifest.read(folder)
        check_identity(folder, manifest, identity, partition.shapes)
        state, scaler = read_state(folder, manifest)
        return manifest, keep_average(state, manifest, averaging), scaler

    manifest, state, scaler = on_rank_0(what, read_head)
    table = index_together(folder, manifest)
    with partition.overwriting_master_weights(), all_ranks_or_none(what):
        try:
            _read_slices(table, partition, manifest.kinds if state.averaged else KINDS)
        except SafetensorError as error:
            raise InputError(f"{folder}: {error}") from error
    engine.restore(step=state.step, steps_skipped=state.steps_skipped, samples=state.samples, scaler=scaler)
    return state


def _read_slices(table: SliceTable, partition: Partition, kinds: tuple[str, ...]) -> None:
    """Fill the slices of this rank, of all `kinds`; each file that has a part of them is opened once."""
    parts_in: dict[Path, list[tuple[Part, Tensor]]] = defaultdict(list)
    for slice_ in partition.slices:
        for kind in kinds:
            first, out, at = slice_.param_offset, partition.view(slice_, kind), 0
            for part in parts_of(table.overlapping(slice_.name, kind, first, len(out)), first, len(out)):
                length = part.end - part.begin
                parts_in[part.stored.file].append((part, out[at : at + length]))
                at += length
    for path, parts in parts_in.items():
        with safe_open(path, framework="pt") as file:
            for part, out in parts:
                part.read(file, out)
