"""A run as it is asked for: settings, stores and phases, compared with each other before torch is imported.

    prepare(config, ranks) -> Setup     refuses everything that names, sizes and headers of files tell
    setup.with_precision("bf16")        once torch has told what the device can do

What needs the model (its weights, a checkpoint's shapes) or a GPU is refused later, in trainer.py.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from data_prep.cli import InputError
from data_prep.files import check_writable
from data_prep.samples.coverage import evaluated, why_not_evaluated
from data_prep.samples.mixture import LARGE_SENTENCES, fresh_epoch
from data_prep.store import HELD_OUT, Store
from pretrain.advice.machine import machine_named
from pretrain.checkpoints.resume_policy import check_names, check_resume
from pretrain.hf_files import read_init
from pretrain.likelihood.minimal_pairs import MinimalPair, choose_evenly, read_pairs
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import DsConfig
from pretrain.settings.limits import MAX_POSITIONS
from pretrain.settings.phases import Phase, engine_ds_config, phases_of
from pretrain.state import RunState


class Setup(NamedTuple):
    """What a run is made of, the same on all ranks; nothing in it changes while it trains."""

    config: TrainConfig
    stores: list[Store]
    ranks: int
    phases: list[Phase]
    minimal_pairs: Sequence[MinimalPair] = ()  # that each evaluation scores

    @property
    def ds_config(self) -> DsConfig:
        """What the engine is started with."""
        return engine_ds_config(self.phases)

    @property
    def vocab(self) -> Path:
        """The stores' tokenizer folder."""
        return self.stores[0].folder / "vocab"

    def passes(self, phase: Phase) -> list[float]:
        """Return the passes per epoch over each store in a phase."""
        return phase.span.passes([store.tokens for store in self.stores])

    def entering(self, state: RunState, phase: Phase) -> RunState:
        """Return the state at its place in the data of a phase: where the stores have other weights than in the phase
        before, at the beginning of the first epoch of which no pass has begun."""
        position, fresh = state.position, None
        if position.phase < len(self.phases) and position.epochs_begun:
            had, have = (
                {store.identity: passes for store, passes in zip(self.stores, self.passes(each), strict=True)}
                for each in (self.phases[position.phase], phase)
            )
            fresh = fresh_epoch(position.epochs_begun, had, have) if had != have else None
        return state.entering(phase.index, phase.span.seq_len, fresh)

    def with_precision(self, default_precision: str) -> "Setup":
        """Return the same, with a precision in place of every "auto".

        Raises
        ------
        InputError: as prepare() does.
        """
        return self._replace(phases=_phases(self.config, self.ranks, default_precision))

    def is_finished(self, state: RunState) -> bool:
        """Return whether the run has come to its end: its steps, its hours, or its patience."""
        config = self.config
        out_of_time = 0 < 3600 * config.hours <= state.seconds
        out_of_patience = 0 < config.patience <= state.evals_since_best
        return state.step >= config.total_steps or out_of_time or out_of_patience


def prepare(config: TrainConfig, ranks: int) -> Setup:
    """Open --data, and compare it and all settings with each other.

    Raises
    ------
    InputError: the first thing that is wrong.
    """
    stores = open_named(config)
    # The precision without a GPU: nothing is refused that a GPU would not refuse.
    setup = Setup(config, stores, ranks, _phases(config, ranks, "fp32"), pairs_to_score(config, stores))
    check_compile(setup)
    check_lengths(setup)
    check_text(stores)
    return setup


def open_named(config: TrainConfig) -> list[Store]:
    """Open --data, whose stores must share one tokenizer, and look for what other options name; ranks are not needed.

    Raises
    ------
    InputError: the first thing that is not there, or not what it should be.
    """
    check_names(config.allow_change)
    if config.gpu:
        machine_named(config.gpu)
    first, *others = [folder for folder, _ in config.weighted_stores]
    most = None if config.dry_run else LARGE_SENTENCES  # the ranks look at larger ones together, when they have met
    opened = [Store.open(first, most=most)]
    stores = opened + [Store.open(folder, opened[0].vocab_sha256, most=most) for folder in others]
    check_resume(config)
    if config.track and find_spec(config.track) is None:
        raise InputError(f"--track {config.track} needs the package {config.track}: pip install 'zerobert[track]'")
    if config.eval_pairs is not None and not config.eval_pairs.exists():
        raise InputError(f"--eval_pairs {config.eval_pairs}: no such file")
    if not config.dry_run and not config.out.exists():
        check_writable(config.out)
    return stores


def pairs_to_score(config: TrainConfig, stores: list[Store]) -> list[MinimalPair]:
    """Return the minimal pairs of --eval_pairs that evaluations score; none without it.

    Raises
    ------
    InputError: as read_pairs(), or no evaluation that could score them.
    """
    if config.eval_pairs is None:
        return []
    if not evaluated(stores, config.objective):
        raise InputError(
            f"--eval_pairs {config.eval_pairs} goes with evaluations, and there is none: "
            + why_not_evaluated(stores, config.objective)
        )
    return choose_evenly(read_pairs(config.eval_pairs), config.eval_pairs_max)


def check_compile(setup: Setup) -> None:
    """Refuse --compile at stage 3."""
    if setup.config.compile and setup.ds_config.stage == 3:
        raise InputError("--compile goes with --zero 0 to 2: at stage 3 weights come and go inside the layers")


def check_lengths(setup: Setup) -> None:
    """Refuse samples that are longer than the model's positions."""
    positions, init_from = MAX_POSITIONS, setup.config.init_from
    if init_from is not None:
        positions = int(read_init(init_from).get("max_position_embeddings", MAX_POSITIONS))
    positions = setup.config.positions or positions
    longest = max(phase.span.seq_len for phase in setup.phases)
    if longest > positions:
        raise InputError(
            f"--seq_len {longest} is beyond the model's {positions} positions; "
            f"give at most {positions}, or --positions {longest}"
        )


def check_text(stores: list[Store]) -> None:
    """Refuse stores all of whose documents are held out."""
    if not any((shard.document_flags & HELD_OUT == 0).any() for store in stores for shard in store.shards):
        raise InputError(f"{', '.join(str(store.folder) for store in stores)}: no training text")


def _phases(config: TrainConfig, ranks: int, default_precision: str) -> list[Phase]:
    return phases_of(config.spans, config.ds_config, config.flags, ranks, default_precision)
