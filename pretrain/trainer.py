"""One pretraining, from a setup to the last checkpoint; the loop is loop.py's.

run_rank(setup, stop) -> exit code      an error becomes one line and a code
train(setup) -> RunState                the same for other programs

model -> record -> the ranks meet and compare themselves -> start -> engine -> run folder -> train_loop
"""

import os
import socket
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import BertForPreTraining

from data_prep.calls import call
from data_prep.cli import InputError, print_json, say, say_once
from data_prep.store import Store
from pretrain.advice.machine import machine_named
from pretrain.checkpoints.format import Manifest, ModelIdentity
from pretrain.checkpoints.load import load_checkpoint
from pretrain.checkpoints.resume import Start, find_start
from pretrain.checkpoints.run_lock import RunLock
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.together import led
from pretrain.distributed import OtherRankError, all_ranks_or_none, check_same_on_all_ranks, gather_objects, on_rank_0
from pretrain.divergence import DivergedError, Divergence
from pretrain.hf_folder import positions
from pretrain.likelihood.pair_evaluation import PairSet, encode_pairs
from pretrain.likelihood.pseudo_likelihood import load_vocab
from pretrain.loop import Run, train_loop
from pretrain.model import architecture_of, build_model, compile_layers, set_output_bias
from pretrain.monitor.console import for_stderr
from pretrain.monitor.disk import check_disk
from pretrain.monitor.lines import what_was_lost
from pretrain.monitor.meter import Meter
from pretrain.monitor.plan import estimate_run
from pretrain.monitor.plan_tables import plan_tables
from pretrain.monitor.summary import end_summary, start_summary
from pretrain.rank_checks import check_shared, what_ranks_share
from pretrain.run_facts import run_facts, settings_to_compare
from pretrain.run_folder import disagreement, run_record, write_run_folder
from pretrain.run_record import RunRecord
from pretrain.settings.shape import model_in_words
from pretrain.setup import Setup
from pretrain.state import RunState
from pretrain.stop import STOPPED, StopRequests
from pretrain.timetable import Timetable
from pretrain.unigram import unigram_bias
from pretrain.watchdog import Watchdog
from pretrain.zero.engine import (
    Engine,
    check_precision,
    default_precision,
    end_distributed,
    init_distributed,
    init_engine,
    silence_libraries,
)


def run_rank(setup: Setup, stop: StopRequests) -> int:
    """Train, and return this rank's exit code; an error becomes one line, of rank 0 or the first on its node."""
    with Watchdog(setup.config.hang_timeout) as watchdog:
        try:
            state = train(setup, stop, watchdog)
        except InputError as error:
            rank = os.environ.get("RANK", "0")
            if rank == "0":
                say(f"error: {error}")
            elif os.environ.get("LOCAL_RANK") == "0" and not dist.is_initialized():
                say(f"error: rank {rank} on {socket.gethostname()}: {error}")
            return 2
        except OtherRankError as error:
            return error.exit_code
        except DivergedError as error:  # on all ranks alike
            if is_rank_0():
                say(f"error: {error}")
            return 1
        except OSError as error:  # the disk, of this rank, and maybe of the others
            say_once(f"error: {error}; checkpoints that were whole still are", about=str(error))
            return 1
        end_distributed()
    return 0 if setup.is_finished(state) or setup.config.dry_run else STOPPED


def train(setup: Setup, stop: StopRequests | None = None, watchdog: Watchdog | None = None) -> RunState:
    """Run, or continue, one pretraining. Collective over the ranks that the launcher started.

    Raises
    ------
    InputError: anything wrong with the stores, settings or the run folder, which is then as it was.
    DivergedError: too many steps in a row did not happen.
    """
    config = setup.config
    with ExitStack() as ending:
        stop = stop or ending.enter_context(closing(StopRequests()))
        watchdog = watchdog or ending.enter_context(Watchdog(config.hang_timeout))
        silence_libraries()
        setup = setup.with_precision(machine_named(config.gpu).precision if config.gpu else default_precision())
        if not config.gpu:
            check_precision(setup.ds_config)

        # The model, and what the run folder will say of it.
        model = model_of(setup)
        pairs = pair_set_of(setup, positions(model.config))
        record = run_record(setup, model.num_parameters())
        identity = ModelIdentity(
            architecture_of(model.config), setup.stores[0].vocab_sha256, setup.stores[0].vocab_size
        )
        if config.dry_run:
            print_plan(setup, model, record, identity)
            return RunState()
        if config.compile:
            compile_layers(model)

        # The ranks meet. All is compared, and the checkpoint is read, before the first byte of RUN is written.
        with watchdog.joining():
            init_distributed()
        start = find_common_start(setup, model, record, identity, watchdog)
        if start.checkpoint is not None and setup.is_finished(start.state):
            on_rank_0(f"run folder {config.out}", partial(report_finished, setup, start))
            return start.state
        lost = on_rank_0(f"run folder {config.out}", lambda: lock_run_folder(config.out, start, ending))
        check_shared(config.out)

        # The engine, as the checkpoint left it.
        if start.checkpoint is None and config.mlm_bias == "unigram":
            with watchdog.working():
                set_output_bias(model, on_rank_0("stores of --data", partial(unigram_bias_of, setup)))
        engine = init_engine(
            model,
            setup.ds_config,
            allow_untested=config.allow_untested_deepspeed,
            checkpoint_activations=config.checkpoint_activations,
        )
        if start.checkpoint is not None:
            with watchdog.working():
                load_checkpoint(start.checkpoint, engine, identity, config.averaging)
        on_rank_0(f"run folder {config.out}", partial(write_run_folder, config.out, start, setup.stores))

        # What watches and keeps it, and the loop.
        meter = open_meter(setup, model, engine, start.state)
        ending.callback(meter.close)
        ending.enter_context(engine.timing_collectives(meter.collective_time))
        say_start(meter, setup, start, engine.device, lost)
        saver = Saver(
            config.out,
            engine,
            identity=identity,
            ds_config=setup.ds_config.content,
            keep=config.keep,
            record=start.record,
            averaging=config.averaging,
            heartbeat=watchdog.heartbeat,
        )
        ending.callback(saver.close)
        stop.hold()
        watchdog.dump_into(config.out)
        watchdog.tighten()
        run = Run(
            setup=setup,
            pairs=pairs,
            engine=engine,
            meter=meter,
            saver=saver,
            timetable=Timetable(config, stop),
            divergence=Divergence(setup, saver, meter),
            stop=stop,
            watchdog=watchdog,
        )
        try:
            return train_loop(run, start.state)
        except DivergedError as error:
            meter.fail(str(error))
            raise


def find_common_start(
    setup: Setup, model: BertForPreTraining, record: RunRecord, identity: ModelIdentity, watchdog: Watchdog
) -> Start:
    """Return where all ranks begin, once they are known to be alike; writes nothing. Collective."""
    with watchdog.working():
        check_stores(setup.stores)
    if setup.config.verify_store:
        with all_ranks_or_none("stores of --data"), watchdog.working():
            verify_stores(setup.stores)
    check_same_on_all_ranks(what_ranks_share(record, [phase.ds_config.content for phase in setup.phases], identity))
    with watchdog.working():  # all of a checkpoint is read, for its checksums
        on_rank_0(f"run folder {setup.config.out}", partial(check_disk, setup, model.num_parameters()))
        return led(
            f"run folder {setup.config.out}",
            partial(find_start, setup.config, record, identity, shapes_of(model)),
        )


def lock_run_folder(run: Path, start: Start, ending: ExitStack) -> str:
    """Hold the run folder until the end. Returns in words what a process that was killed did beyond the checkpoint."""
    lock = ending.enter_context(RunLock(run))
    step = start.state.step if start.checkpoint is not None else None
    return what_was_lost(run / "metrics.jsonl", step) if lock.was_stale else ""


def open_meter(setup: Setup, model: BertForPreTraining, engine: Engine, state: RunState) -> Meter:
    """Return the meter of a run that goes on from `state`."""
    return Meter(
        setup.config.out,
        model.config,
        steps=setup.config.total_steps,
        first_step=state.step,
        device=engine.device,
        limit=3600 * setup.config.hours,
        spent=state.seconds,
        track=setup.config.track,
    )


def model_of(setup: Setup) -> BertForPreTraining:
    """Return the model that the run begins with.

    Raises
    ------
    InputError: as build_model() does.
    """
    return build_model(
        shape=setup.config.shape,
        init_from=setup.config.init_from,
        vocab_size=setup.stores[0].vocab_size,
        dropout=setup.config.dropout,
        seed=setup.config.seed,
        needs_nsp=setup.config.objective != "mlm",
        pad_id=setup.stores[0].special_ids["pad"],
        initializer_range=setup.config.initializer_range,
        vocab=setup.vocab,
        vocab_from=setup.config.vocab_from,
        positions=setup.config.positions,
    )


def unigram_bias_of(setup: Setup) -> np.ndarray:
    """Return the output bias [V] of --mlm_bias unigram, for the mixture of stores that the run begins with."""
    return unigram_bias(setup.stores, setup.passes(setup.phases[0]))


def pair_set_of(setup: Setup, longest: int) -> PairSet | None:
    """Return the minimal pairs that evaluations score, by a model of `longest` positions; None where there are none.

    Raises
    ------
    InputError: as encode_pairs() does.
    """
    if not setup.minimal_pairs:
        return None
    name, vocab = f"--eval_pairs {setup.config.eval_pairs}", load_vocab(setup.vocab)
    pairs = encode_pairs(vocab, setup.minimal_pairs, longest, name=f"the tokenizer of {setup.stores[0].folder}")
    if pairs.left_out and is_rank_0():
        share = f"{pairs.left_out:,} of {len(setup.minimal_pairs):,} pairs"
        say(f"{name}: left out: {share} hold a sentence longer than the model's {longest} tokens")
    return PairSet.of(pairs, setup.stores[0].special_ids["mask"])


def shapes_of(model: BertForPreTraining) -> dict[str, torch.Size]:
    """Return the shape of each parameter."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def say_start(meter: Meter, setup: Setup, start: Start, device: torch.device, lost: str) -> None:
    """Write what will run, and what is not as it was; `lost` by a process that was killed."""
    state = start.state
    meter.print_tables(
        start_summary(setup, start.record, devices=devices(device), resumed_from=start.checkpoint, lost=lost)
    )
    facts = run_facts(start.record, parameters=start.record.get("parameters"))
    meter.log.show_settings(state.step, facts, settings_to_compare(start.record))
    if start.checkpoint is not None:
        meter.event(state.step, "resume", checkpoint=start.checkpoint.name, **({"lost": lost} if lost else {}))
    elif lost:
        meter.event(state.step, "restart", lost=lost)
    if start.changes:
        meter.event(state.step, "change", **{change.setting: change.text for change in start.changes})
        if any(change.moves for change in start.changes):
            place = f"epoch {state.position.epoch}, sample {state.position.sample}"
            meter.say(f"other samples than before: the data goes on at {place}, and no sample comes again")


def report_finished(setup: Setup, start: Start) -> None:
    """Say that a run is finished and leave its folder as it is; mend what an older version has spoilt."""
    config, folder = setup.config, start.checkpoint
    assert folder is not None
    if wrong := disagreement(config.out, Manifest.read(folder)):
        say(f"{wrong}; both are written anew")
        with RunLock(config.out):
            write_run_folder(config.out, start, setup.stores)
    print(for_stderr(end_summary(config, start.state, start.state, 0.0, True)), file=sys.stderr, flush=True)


def print_plan(setup: Setup, model: BertForPreTraining, record: RunRecord, identity: ModelIdentity) -> None:
    """Print what the run would be: for people on stderr, for scripts on stdout. By rank 0; others only verify.

    Raises
    ------
    InputError: as verify_stores() and find_start() do.
    """
    if setup.config.verify_store:
        verify_stores(setup.stores)
    if not is_rank_0():
        return
    start = find_start(setup.config, record, identity, shapes_of(model))
    plan = estimate_run(setup, model, resumed_from=start.checkpoint)
    where = plan.machine.in_words() if plan.machine else devices(next(model.parameters()).device)
    what = start_summary(setup, start.record, devices=where, resumed_from=start.checkpoint)
    print(for_stderr(what, "", *plan_tables(plan)), file=sys.stderr)
    first = {
        "settings": setup.ds_config.content,
        "model": model_in_words(setup.config.to_json()),
        "parameters": model.num_parameters(),
        "resume": str(start.checkpoint or ""),
        "changes": {change.setting: change.text for change in start.changes},
    }
    print_json(first | plan.to_json())


def is_rank_0() -> bool:
    """Return whether this is rank 0, by what the launcher says: also before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


def devices(device: torch.device) -> str:
    """Return in words what the ranks compute on."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{ranks} rank{'s' * (ranks > 1)}, each on {name}"


def check_stores(stores: list[Store]) -> None:
    """Look at the shards of stores that are too large for each rank to do so: those of a node share them. Collective.

    Raises
    ------
    InputError: as Store.open() does.
    """
    for store in stores:
        if not store.is_checked:
            part, parts = place_in_node()
            with all_ranks_or_none(f"store {store.folder}"):
                found = store.check_shards(part, parts)
            everyone = gather_objects((part, found))
            nodes = sum(part == 0 for part, _ in everyone)
            store.end_check(sum(found for _, found in everyone) // nodes)


def place_in_node() -> tuple[int, int]:
    """Return this rank's index among those of its node, and how many these are."""
    parts = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")
    return int(os.environ.get("LOCAL_RANK", "0")) % parts, parts


def verify_stores(stores: list[Store]) -> None:
    """Compare the files of all stores with their checksums, shared out among the ranks of a node.

    Raises
    ------
    InputError: naming what is damaged.
    """
    part, parts = place_in_node()
    report = say if is_rank_0() else lambda line: None
    damaged = [line for store in stores for line in store.verify(report, part, parts)]
    if damaged:
        message = f"stores of --data are damaged, make them again with {call('shard')}: {'; '.join(damaged)}"
        if not is_rank_0():
            say(f"error: {message}")  # of other errors only the first rank speaks
        raise InputError(message)
    if is_rank_0():
        say(f"verified: {', '.join(str(store.folder) for store in stores)}")
