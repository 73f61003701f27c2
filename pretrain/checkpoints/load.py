"""A checkpoint into an engine of any ZeRO stage and world size: each rank reads the slices that it needs."""

from pathlib import Path

from safetensors import SafetensorError

from data_prep.cli import InputError
from pretrain.checkpoints.format import KINDS, Manifest, ModelIdentity, check_identity, keep_average, read_state
from pretrain.checkpoints.slices import index_slices, read_elements
from pretrain.distributed import all_ranks_or_none
from pretrain.settings.averaging import OFF, Averaging
from pretrain.state import RunState
from pretrain.zero.engine import Engine


def load_checkpoint(folder: Path, engine: Engine, identity: ModelIdentity, averaging: Averaging = OFF) -> RunState:
    """Put a checkpoint that verify_checkpoint() has found whole into an engine; collective. Its average of the weights
    is left aside unless it is the one of `averaging`, and the state counts no step in it.

    Raises
    ------
    InputError: of another model or tokenizer.
    """
    partition = engine.partition
    with all_ranks_or_none(f"checkpoint {folder}"):
        manifest = Manifest.read(folder)
        check_identity(folder, manifest, identity, partition.shapes)
        state, scaler = read_state(folder, manifest)
        state = keep_average(state, manifest, averaging)
        stored = index_slices(folder)
    with partition.overwriting_master_weights(), all_ranks_or_none(f"checkpoint {folder}"):
        try:
            for slice_ in partition.slices:
                for kind in manifest.kinds if state.averaged else KINDS:
                    read_elements(stored[slice_.name, kind], partition.view(slice_, kind), slice_.param_offset)
        except SafetensorError as error:
            raise InputError(f"{folder}: {error}") from error
    engine.restore(step=state.step, steps_skipped=state.steps_skipped, samples=state.samples, scaler=scaler)
    return state
