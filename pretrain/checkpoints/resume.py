"""Where a run begins: a checkpoint to go on from, or the beginning.

    find_start(config, record, ...) -> Start      reads and compares all there is, and writes nothing

resume_policy.py says what may have changed since; load.py puts the checkpoint into an engine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.cli import InputError
from pretrain.checkpoints.format import (
    Manifest,
    ModelIdentity,
    check_identity,
    keep_average,
    list_checkpoints,
    read_state,
    record_under,
)
from pretrain.checkpoints.resume_policy import (
    Change,
    changes_of,
    check_resume,
    fresh_epoch_of,
    refuse_changes,
)
from pretrain.checkpoints.verify import CheckFiles, check_files, latest_valid_checkpoint, verify_checkpoint
from pretrain.run_record import RunRecord
from pretrain.settings.config import TrainConfig
from pretrain.state import RunState


class Start(NamedTuple):
    """Where a run begins."""

    record: RunRecord  # what config.json is to say
    checkpoint: Path | None = None  # None: a new run
    state: RunState = RunState()
    changes: tuple[Change, ...] = ()  # from the settings that the checkpoint was written under
    checkpoints_seen: tuple[str, ...] = ()  # names of those that the run folder held


def find_start(
    config: TrainConfig,
    record: RunRecord,
    identity: ModelIdentity,
    shapes: Mapping[str, Sequence[int]],
    check: CheckFiles = check_files,
) -> Start:
    """Return where to begin under the settings of `record`, with a model of these `shapes`; writes nothing. `check`
    reads the files of checkpoints.

    Raises
    ------
    InputError: as resolve_resume() does; a checkpoint of another model or tokenizer, or of settings that may not
        change; one at which nothing is left to train, in a folder of its own.
    """
    seen = tuple(folder.name for folder in list_checkpoints(config.out))
    checkpoint = resolve_resume(config, check)
    if checkpoint is None:
        return Start(record | {"from_step": 0, "from": None, "segments": []}, checkpoints_seen=seen)
    manifest = Manifest.read(checkpoint)
    check_identity(checkpoint, manifest, identity, shapes)
    state = keep_average(read_state(checkpoint, manifest).state, manifest, config.averaging)
    before = record_under(checkpoint, manifest)
    changes = changes_of(before, record, state.step)
    refuse_changes(checkpoint, changes, config.allow_change)
    if not is_of_run(checkpoint, config.out) and state.step >= config.total_steps:
        raise InputError(
            f"{checkpoint} is at step {state.step}, and there are {config.total_steps} steps: nothing is left to train "
            f"in {config.out}; give more --steps"
        )
    return Start(
        record | _history(checkpoint, before, state.step, changes),
        checkpoint=checkpoint,
        state=move_position(state, before, record, changes),
        changes=changes,
        checkpoints_seen=seen,
    )


def resolve_resume(config: TrainConfig, check: CheckFiles = check_files) -> Path | None:
    """Return the checkpoint to continue from; None for a new run. A folder that holds checkpoints is never trained from
    zero.

    Raises
    ------
    InputError: --resume never on a run with checkpoints, a PATH that is no checkpoint, none that is whole.
    """
    check_resume(config)
    if config.resume == "never":
        return None
    if config.resume == "auto":
        return latest_valid_checkpoint(config.out, check)
    verify_checkpoint(Path(config.resume), check)
    return Path(config.resume)


def move_position(state: RunState, before: RunRecord, now: RunRecord, changes: tuple[Change, ...]) -> RunState:
    """Return the state at a position that means something in the samples of `now`: where these come in another order,
    at the beginning of an epoch."""
    position = state.position
    if not position.seq_len:  # of a version that did not keep it
        phases = before.get("phases", [])
        if position.phase < len(phases):
            position = position._replace(seq_len=phases[position.phase]["seq_len"])
    if position.epochs_begun and any(change.moves for change in changes):
        epoch = fresh_epoch_of(before, now, state.step, position.epochs_begun)
        position = position._replace(epoch=epoch, sample=0, window=0)
    return state._replace(position=position)


def is_of_run(checkpoint: Path, run: Path) -> bool:
    """Return whether a checkpoint is one of a run."""
    return checkpoint.resolve().parent == (run / "checkpoints").resolve()


def _history(checkpoint: Path, before: RunRecord, step: int, changes: tuple[Change, ...]) -> RunRecord:
    """Return the part of a record that says how its run came here: settings that change begin a new segment."""
    segments = before.get("segments", [])
    known: RunRecord = {"from_step": before.get("from_step", 0), "from": before.get("from"), "segments": segments}
    if not changes:
        return known
    ended = known | before
    del ended["segments"]
    return {"from_step": step, "from": str(checkpoint), "segments": [*segments, ended]}
