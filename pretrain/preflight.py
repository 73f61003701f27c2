"""What can be refused before torch is imported, which takes seconds: the launch, the settings, the files.

    check_launch()                          variables of the launcher
    look(config, ranks) -> stores           everything that names, sizes and headers of files tell

What needs the model (its weights, a checkpoint's shapes) or a GPU is refused later, in pretrain/training.py.
"""

import os
from collections.abc import Mapping

from data_prep.cli import InputError, number_in
from data_prep.files import check_writable
from data_prep.store import Store
from pretrain.advice.machine import elsewhere
from pretrain.checkpoints.resume_policy import check_names, check_resume
from pretrain.hf_files import read_init
from pretrain.settings.config import TrainConfig
from pretrain.settings.limits import MAX_POSITIONS
from pretrain.settings.phases import Phase, engine_settings, phases_of


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what a launcher of ranks that train together cannot have meant.

    Raises
    ------
    InputError: naming the variable.
    """
    world = number_in(environment, "WORLD_SIZE", 1, least=1)
    number_in(environment, "RANK", 0, most=world - 1)
    number_in(environment, "LOCAL_RANK", 0, most=world - 1)
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):  # DeepSpeed's name, and torchrun's
        number_in(environment, name, 1, least=1)
    number_in(environment, "MASTER_PORT", 0, most=0xFFFF)


def ranks_in(environment: Mapping[str, str], default: int | None = 1) -> int | None:
    """The number of ranks, where the launcher says it."""
    return number_in(environment, "WORLD_SIZE", 1, least=1) if "WORLD_SIZE" in environment else default


def look(config: TrainConfig, ranks: int | None) -> list[Store]:
    """Open --data, and compare it and all settings with each other; `ranks` may not be known yet.

    Raises
    ------
    InputError: the first thing that is wrong.
    """
    check_names(config.allow_change)
    if config.gpu:
        elsewhere(config.gpu)
    stores = open_stores(config)
    if ranks is not None:
        # Without bf16, which a GPU may have: nothing is refused that would not be.
        phases = phases_of(config.spans, config.ds_config, config.flags, ranks, "fp32")
        if config.compile and engine_settings(phases)["zero_optimization"]["stage"] == 3:
            raise InputError("--compile goes with --zero 0 to 2: at stage 3 weights come and go inside the layers")
        check_lengths(phases, positions_of(config))
    check_resume(config)
    if not config.dry_run and not config.out.exists():
        check_writable(config.out)
    return stores


def open_stores(config: TrainConfig) -> list[Store]:
    """Open --data; all stores must share one tokenizer."""
    first, *others = [folder for folder, _ in config.weighted_stores]
    opened = [Store.open(first)]
    return opened + [Store.open(folder, opened[0].vocab_sha256) for folder in others]


def positions_of(config: TrainConfig) -> int:
    """The longest sample that the model can take."""
    if config.init_from is None:
        return MAX_POSITIONS
    return int(read_init(config.init_from).get("max_position_embeddings", MAX_POSITIONS))


def check_lengths(phases: list[Phase], positions: int) -> None:
    """Refuse samples that are longer than the model's positions."""
    longest = max(phase.span.seq_len for phase in phases)
    if longest > positions:
        raise InputError(
            f"--seq_len {longest} is beyond the model's {positions} positions; "
            f"give at most {positions} (presets: {MAX_POSITIONS})"
        )
