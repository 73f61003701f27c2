"""The look at the disk with which every run begins: whether its checkpoints will have room."""

import shutil
from typing import NamedTuple

from data_prep.cli import InputError
from pretrain.checkpoints.format import list_checkpoints
from pretrain.formatting import bytes_in_words
from pretrain.setup import Setup
from pretrain.sizes import STATE


class _Exports(NamedTuple):
    folders: int
    bytes: int  # each


def _exports(setup: Setup, parameters: int) -> _Exports:
    """Return the Hugging Face folders to come: at multiples of --export_every, and at the end of each phase."""
    every, phases = setup.config.export_every, setup.phases
    if not every:
        return _Exports(0, 0)
    steps = {*range(every, phases[-1].end + 1, every), *(phase.end for phase in phases)}
    count = 1 if setup.config.hours else len(steps)  # nobody knows how many steps the hours will hold
    there = len(list((setup.config.out / "hf").glob("step-*")))
    return _Exports(max(count - there, 0), 4 * parameters * (1 + setup.config.averaging.is_on))


class DiskNeed(NamedTuple):
    """What the checkpoints of a run need; the names are those of a plan's JSON."""

    bytes: int  # of one checkpoint
    at_once: int  # checkpoints that lie there together, at most
    there: int  # that lie there already
    needed_bytes: int  # for those that are to come
    free_bytes: int
    exports: int = 0  # Hugging Face folders that are to come
    export_bytes: int = 0  # of one of them, with that of the averaged weights


def check_disk(setup: Setup, parameters: int) -> DiskNeed:
    """Return the room for the checkpoints that will be kept, and for the one being written.

    Raises
    ------
    InputError: there is less.
    """
    config, phases = setup.config, setup.phases
    size = (STATE + 4 * config.averaging.is_on) * parameters
    saves = len(phases) + (phases[-1].end // config.save_every if config.save_every else 0)
    saves += phases[-1].end // config.export_every if config.export_every else 0
    most = min(saves, config.keep + 1 + bool(config.eval_samples)) if config.keep else saves  # the best is kept too
    if config.hours and not config.keep:
        most = 1  # nobody knows how many steps the hours will hold
    there = len(list_checkpoints(config.out))
    needed = max(most - there, 0) * size
    exports = _exports(setup, parameters)
    needed += exports.folders * exports.bytes
    folder = next(parent for parent in (config.out, *config.out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        each, all_of_them, has = map(bytes_in_words, (size, needed, free))
        beside = f" and {exports.folders} exports of {bytes_in_words(exports.bytes)}" if exports.folders else ""
        raise InputError(
            f"--out {config.out}: {most - there} more checkpoints of {each} each{beside} need "
            f"{all_of_them}, and the disk has {has} free; make room, choose another --out, or keep fewer (--keep "
            f"{config.keep}, --save_every {config.save_every})"
        )
    return DiskNeed(
        bytes=size,
        at_once=most,
        there=there,
        needed_bytes=needed,
        free_bytes=free,
        exports=exports.folders,
        export_bytes=exports.bytes,
    )
