"""Go on from a checkpoint: its slices into an engine of any ZeRO stage and world size."""

from pathlib import Path

from safetensors import SafetensorError

from data_prep.cli import InputError
from pretrain.checkpoints.checkpoint import check_identity, read_parameter, read_state, stored_pieces
from pretrain.checkpoints.manifest import KINDS, Identity, Manifest
from pretrain.distributed import all_ranks_or_none
from pretrain.state import RunState
from pretrain.zero.engine import Engine


def load(folder: Path, engine: Engine, identity: Identity) -> RunState:
    """Put a checkpoint that read_manifest() has found whole into an engine; collective.

    Each rank reads the slices that it needs, and no more.

    Raises
    ------
    InputError: of another model or tokenizer.
    """
    partition = engine.partition
    with all_ranks_or_none(f"checkpoint {folder}"):
        manifest = Manifest.read(folder)
        check_identity(folder, manifest, identity, partition.shapes)
        state, scaler = read_state(folder, manifest)
        stored = stored_pieces(folder)
    with partition.overwriting_master_weights(), all_ranks_or_none(f"checkpoint {folder}"):
        try:
            for slice_ in partition.slices:
                for kind in KINDS:
                    read_parameter(stored[slice_.name, kind], partition.view(slice_, kind), slice_.param_offset)
        except SafetensorError as error:
            raise InputError(f"{folder}: {error}") from error
    engine.restore(step=state.step, skipped=state.skipped, samples=state.samples, scaler=scaler)
    return state
