"""Write checkpoints while training goes on.

    saver = Saver(run, engine, identity=..., ds_config=..., keep=..., record=...)
    saver.save(state, held_out_loss)        training stops for a copy to memory only
    saver.wait()                            the newest checkpoint is on disk, or this raises

A thread of each rank writes its slices into a folder aside; all ranks agree that theirs are whole and fsynced, then
rank 0 writes the manifest, renames the folder and names it in the pointer. A crash at any moment leaves the earlier
checkpoints and at most a `.partial` folder. A failed save raises at the next save, or at wait(). Kept are the newest
few and the one with the best held-out loss. Costs 12 bytes per parameter of host memory, 16 with an average of the
weights, divided among the ranks.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from data_prep.json_types import JsonObject
from pretrain.checkpoints.exports import Exports
from pretrain.checkpoints.format import (
    AVERAGE,
    KINDS,
    Manifest,
    ModelIdentity,
    best_checkpoint,
    checkpoint_dir,
    finalize,
    list_checkpoints,
    rank_file,
    slice_key,
    staging_dir,
    step_of,
)
from pretrain.checkpoints.slices import write_slices
from pretrain.distributed import all_ranks_or_none, gloo_group
from pretrain.run_record import RunRecord
from pretrain.settings.averaging import OFF, Averaging
from pretrain.state import RunState
from pretrain.zero.engine import Engine
from pretrain.zero.partition import Slice


class Saver:
    """Saves the state of one run; every rank has one and calls it alike."""

    def __init__(
        self,
        run: Path,
        engine: Engine,
        *,
        identity: ModelIdentity,
        ds_config: JsonObject,
        keep: int,
        record: RunRecord | None = None,
        averaging: Averaging = OFF,
        heartbeat: Callable[[], None] = lambda: None,
    ):
        """`ds_config`: the DeepSpeed JSON; `record`: what config.json says of the run; `averaging`: the average of the
        weights that the engine keeps, saved once there is a step in it; `heartbeat`: called while one is exported."""
        self.exports = Exports(run, heartbeat)
        self.run, self.engine, self.keep, self.averaging = run, engine, keep, averaging
        self.identity, self.ds_config, self.record = identity, ds_config, record
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        gloo_group("saver")  # made here, by all ranks together, and used by the thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._writing: Future[None] | None = None

    def save(self, state: RunState, held_out_loss: float | None, *, export: bool = False) -> Path:
        """Begin to write the checkpoint of `state.step`, and what is exported of it; collective. Waits for the one
        before.

        Raises
        ------
        OSError: on every rank, if the save before could not be written on one of them.
        """
        self.wait()
        kinds = (*KINDS, AVERAGE) if state.averaged else KINDS
        tensors, scaler = self._snapshot(kinds), self.engine.scaler_state()
        self._writing = self._thread.submit(self._write, state, tensors, scaler, held_out_loss, export)
        return checkpoint_dir(self.run, state.step)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises
        ------
        OSError: as save() does.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Finish, whether or not the last save went well."""
        self._thread.shutdown(wait=True)

    def _snapshot(self, kinds: tuple[str, ...]) -> dict[str, Tensor]:
        """Copy the slices that this rank writes into host memory."""
        view = self.engine.partition.view
        return {
            slice_key(slice_.name, kind, slice_.param_offset): view(slice_, kind).to("cpu", copy=True)
            for slice_ in self._slices_to_write()
            for kind in kinds
        }

    def _slices_to_write(self) -> Iterator[Slice]:
        """Yield this rank's slices; at stage 0, where all ranks hold all, an equal share of every parameter."""
        for slice_ in self.engine.partition.slices:
            if self.engine.partition.stage:
                yield slice_
                continue
            first, last = (slice_.length * rank // self.world for rank in (self.rank, self.rank + 1))
            if first < last:
                yield slice_.part(first, last - first)

    def _write(
        self,
        state: RunState,
        tensors: dict[str, Tensor],
        scaler: dict[str, float],
        held_out_loss: float | None,
        export: bool,
    ) -> None:
        """Write a checkpoint, in the thread. Every block is left well by all ranks or by none."""
        target = checkpoint_dir(self.run, state.step)
        staged = staging_dir(target)
        with all_ranks_or_none(f"checkpoint {target}", "saver"):
            if self.rank == 0:
                shutil.rmtree(staged, ignore_errors=True)
                staged.mkdir(parents=True)
        try:
            with all_ranks_or_none(f"checkpoint {target}", "saver"):
                write_slices(staged / rank_file(self.rank, self.world), tensors)
            with all_ranks_or_none(f"checkpoint {target}", "saver"):
                if self.rank == 0:
                    manifest = self._manifest(staged, state, held_out_loss)
                    finalize(staged, target, state=state, scaler=scaler, manifest=manifest)
                    self._remove_old(target)
        except OSError:
            if self.rank == 0:
                shutil.rmtree(staged, ignore_errors=True)  # room for whoever cleans up a full disk
            raise
        if export and self.rank == 0:  # its checkpoint stays at least until the next save, which waits for this
            self.exports.write(target, has_average=bool(state.averaged))

    def _manifest(self, staged: Path, state: RunState, held_out_loss: float | None) -> Manifest:
        """Return the manifest, but for the files."""
        found = len(list(staged.iterdir()))
        if found != self.world:
            raise OSError(f"{staged}: {found} rank files for {self.world} ranks; all nodes must share the folder --out")
        return Manifest(
            step=state.step,
            world_size=self.world,
            zero_stage=self.engine.partition.stage,
            held_out_loss=held_out_loss if held_out_loss is not None and math.isfinite(held_out_loss) else None,
            identity=self.identity,
            ds_config=self.ds_config,
            parameters={name: list(shape) for name, shape in self.engine.partition.shapes.items()},
            files={},
            held_out_identity=state.held_out_identity,
            record=self.record,
            average=str(self.averaging) if state.averaged else "",
        )

    def _remove_old(self, written: Path) -> None:
        """Keep the newest few up to the one just written. What lies beyond it was passed over when the run was resumed,
        as damaged or by --resume PATH: it takes no other's place, and is replaced when the run gets there."""
        folders = [folder for folder in list_checkpoints(self.run) if step_of(folder) <= step_of(written)]
        if self.keep:
            best = best_checkpoint(folders)
            for folder in folders[self.keep :]:
                if best is None or folder != best.folder:
                    shutil.rmtree(folder)
