"""A checkpoint looked at by all ranks together: each of its files is opened by one of them, as for the reading of it.

led("run folder ...", function)        function(check) on rank 0, where all ranks do check(folder, manifest) together
index_together(folder, manifest)       what all files hold, on every rank

Of a checkpoint of as many ranks each looks at its own file. At 1,024 ranks that each opened all files there were a
million openings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch.distributed as dist

from pretrain.checkpoints.format import Manifest
from pretrain.checkpoints.slices import SliceTable, list_spans
from pretrain.checkpoints.verify import CheckFiles, check_files
from pretrain.distributed import all_ranks_or_none, gather_objects, led_by_rank_0

T = TypeVar("T")


def led(what: str, function: Callable[[CheckFiles], T]) -> T:
    """Return on all ranks what `function(check)` returns on rank 0; where it raises, all raise. Collective.

    `check` is check_files(), of which each rank does a part; a fault that any of them finds is raised by it.
    """

    def answer(asked: tuple[Path, Manifest]) -> np.ndarray:
        return check_files(*asked, _own_files(asked[1]))

    return led_by_rank_0(
        what, lambda ask: function(lambda folder, manifest: np.concatenate(ask((folder, manifest)))), answer
    )


def index_together(folder: Path, manifest: Manifest) -> SliceTable:
    """Return what all files of a checkpoint hold, each opened by one rank. Collective.

    Raises
    ------
    InputError: as list_spans() does.
    """
    with all_ranks_or_none(f"checkpoint {folder}"):
        own = list_spans(folder, manifest, _own_files(manifest))
    return SliceTable(folder, manifest, np.concatenate(gather_objects(own)))


def _own_files(manifest: Manifest) -> range:
    """Return the ranks whose files this rank looks at."""
    return range(dist.get_rank(), manifest.world_size, dist.get_world_size())
