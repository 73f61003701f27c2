"""One pretraining, from settings and stores that have been looked at to the last checkpoint; the loop is loop.py's.

exit_code(config, stores, watch)       of a rank: an error becomes one line and a code
train(config, stores, watch)           the same for other programs
"""

import os
import socket
import sys
import time
from contextlib import ExitStack, closing

import torch
import torch.distributed as dist
from transformers import BertForPreTraining

from data_prep.calls import call
from data_prep.cli import InputError, print_json, say
from data_prep.store import Store
from pretrain.advice.machine import elsewhere
from pretrain.alike import check_shared, what_ranks_share
from pretrain.checkpoints.format import Manifest, ModelIdentity
from pretrain.checkpoints.load import load_checkpoint
from pretrain.checkpoints.resume import Start, find_start
from pretrain.checkpoints.run_folder import disagreement, run_record, write_run_folder
from pretrain.checkpoints.run_lock import RunLock
from pretrain.checkpoints.saver import Saver
from pretrain.distributed import OtherRankError, all_ranks_or_none, broadcast_object, check_same_on_all_ranks
from pretrain.guard import DivergedError, Guard
from pretrain.loop import Run, is_finished, loop, samples_of
from pretrain.model import architecture_of, build_model, compile_layers
from pretrain.monitor.console import for_stderr
from pretrain.monitor.lines import what_was_lost
from pretrain.monitor.meter import Meter
from pretrain.monitor.plan import check_disk
from pretrain.monitor.plan import make as make_plan
from pretrain.monitor.summary import end_summary, start_summary
from pretrain.settings.config import TrainConfig
from pretrain.settings.phases import Phase, engine_settings, phases_of
from pretrain.state import RunState
from pretrain.watch import STOPPED, Watch
from pretrain.zero.engine import (
    check_precision,
    default_precision,
    end_distributed,
    init_distributed,
    init_engine,
    silence_libraries,
)


def exit_code(config: TrainConfig, stores: list[Store], watch: Watch) -> int:
    """Train; an error becomes one line, of the first rank or the first on its node, and a code."""
    try:
        state = train(config, stores, watch)
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
        if os.environ.get("RANK", "0") == "0":
            say(f"error: {error}")
        return 1
    except OSError as error:  # the disk, of this rank
        say(f"error: {error}; checkpoints that were whole still are")
        return 1
    end_distributed()
    return 0 if is_finished(config, state) or config.dry_run else STOPPED


def train(config: TrainConfig, stores: list[Store], watch: Watch | None = None) -> RunState:
    """Run, or continue, one pretraining. Collective over the ranks that the launcher started.

    `watch` may stand already; it then goes on after this function's end, to that of the process.

    Raises
    ------
    InputError: anything wrong with the stores, settings or the run folder, which is then as it was.
    DivergedError: too many steps in a row did not happen.
    """
    if watch is None:
        with closing(Watch()) as own:
            return train(config, stores, own)
    watch.expect(config.hang_timeout)
    silence_libraries()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    precision = elsewhere(config.gpu).precision if config.gpu else default_precision()
    phases = phases_of(config.spans, config.ds_config, config.flags, world_size, precision)
    settings = engine_settings(phases)
    if not config.gpu:
        check_precision(settings)
    model = build_model(
        preset=config.model,
        init_from=config.init_from,
        vocab_size=stores[0].vocab_size,
        dropout=config.dropout,
        seed=config.seed,
        needs_nsp=config.objective != "mlm",
        pad_id=stores[0].special_ids["pad"],
        vocab=stores[0].folder / "vocab",
    )
    samples_of(phases[0], config, stores)  # refuses stores without text before anything is written
    record = run_record(config, phases, settings, stores, model.num_parameters())
    identity = ModelIdentity(architecture_of(model.config), stores[0].vocab_sha256, stores[0].vocab_size)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if config.dry_run:
        if config.verify_store:
            verify_stores(stores)
        if os.environ.get("RANK", "0") == "0":
            dry_run(config, phases, stores, model, find_start(config, record, identity, shapes))
        return RunState()
    check_disk(config, phases, model.num_parameters())
    if config.compile:
        compile_layers(model)

    with watch.joining():
        init_distributed()
    with ExitStack() as ending:
        if config.verify_store:
            with all_ranks_or_none("stores of --data"), watch.working():
                verify_stores(stores)
        # Everything is compared, and the checkpoint is read, before the first byte of RUN is written.
        check_same_on_all_ranks(what_ranks_share(record, [phase.settings for phase in phases], identity))
        start = Start(record)
        with all_ranks_or_none(f"run folder {config.out}"), watch.working():
            if dist.get_rank() == 0:
                start = find_start(config, record, identity, shapes)  # one rank reads all of it for its checksums
        start = broadcast_object(start)
        if start.checkpoint is not None and is_finished(config, start.state):
            with all_ranks_or_none(f"run folder {config.out}"):
                if dist.get_rank() == 0:
                    leave(config, start, stores)
            return start.state
        lost = ""  # in words: what a process that was killed did beyond the checkpoint
        with all_ranks_or_none(f"run folder {config.out}"):
            if dist.get_rank() == 0:
                lock = ending.enter_context(RunLock(config.out))
                step = start.state.step if start.checkpoint is not None else None
                lost = what_was_lost(config.out / "metrics.jsonl", step) if lock.was_stale else ""
        check_shared(config.out)
        engine = init_engine(
            model,
            settings,
            allow_untested=config.allow_untested_deepspeed,
            checkpoint_activations=config.checkpoint_activations,
        )
        state = start.state
        if start.checkpoint is not None:
            with watch.working():
                load_checkpoint(start.checkpoint, engine, identity)
        with all_ranks_or_none(f"run folder {config.out}"):
            if dist.get_rank() == 0:
                write_run_folder(config.out, start, stores)
        meter = Meter(
            config.out, model.config, steps=config.total_steps, first_step=state.step, device=engine.device,
            limit=3600 * config.hours, spent=state.seconds,
        )  # fmt: skip
        ending.callback(meter.close)
        meter.print_tables(
            start_summary(
                config, phases, record, stores=stores, devices=devices(engine.device), resumed_from=start.checkpoint,
                lost=lost,
            )
        )  # fmt: skip
        if start.checkpoint is not None:
            meter.event(state.step, "resume", checkpoint=start.checkpoint.name, **({"lost": lost} if lost else {}))
        elif lost:
            meter.event(state.step, "restart", lost=lost)
        if start.changes:
            meter.event(state.step, "change", **{change.setting: change.text for change in start.changes})
            if any(change.moves for change in start.changes):
                place = f"epoch {state.position.epoch}, sample {state.position.sample}"
                meter.say(f"other samples than before: the data goes on at {place}, and no sample comes again")
        saver = Saver(config.out, engine, identity=identity, settings=settings, keep=config.keep, record=start.record)
        ending.callback(saver.close)
        guard = Guard(watch, config.stop_at(time.time()), config.max_skips, config.save_minutes, config.eval_minutes)
        try:
            return loop(Run(config, phases, stores, engine, meter, saver, guard), state)
        except DivergedError as error:
            meter.fail(str(error))
            raise


def leave(config: TrainConfig, start: Start, stores: list[Store]) -> None:
    """Say that a run is finished and leave its folder as it is; mend what an older version has spoilt."""
    folder = start.checkpoint
    assert folder is not None
    if wrong := disagreement(config.out, Manifest.read(folder)):
        say(f"{wrong}; both are written anew")
        with RunLock(config.out):
            write_run_folder(config.out, start, stores)
    print(for_stderr(end_summary(config, start.state, start.state, 0.0, True)), file=sys.stderr, flush=True)


def dry_run(
    config: TrainConfig, phases: list[Phase], stores: list[Store], model: BertForPreTraining, start: Start
) -> None:
    """Print the plan: for people on stderr, for scripts on stdout."""
    settings = engine_settings(phases)
    plan = make_plan(config, phases, stores, model, start.checkpoint)
    where = plan.machine.in_words() if plan.machine else devices(next(model.parameters()).device)
    what = start_summary(config, phases, start.record, stores=stores, devices=where, resumed_from=start.checkpoint)
    print(for_stderr(what, "", *plan.tables()), file=sys.stderr)
    first = {
        "settings": settings,
        "parameters": model.num_parameters(),
        "resume": str(start.checkpoint or ""),
        "changes": {change.setting: change.text for change in start.changes},
    }
    print_json(first | plan.record())


def devices(device: torch.device) -> str:
    """What the ranks compute on, in words."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{ranks} rank{'s' * (ranks > 1)}, each on {name}"


def verify_stores(stores: list[Store]) -> None:
    """Compare the files of all stores with their checksums, shared out among the ranks of a node.

    Raises
    ------
    InputError: naming what is damaged.
    """
    parts = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")
    part, is_first = int(os.environ.get("LOCAL_RANK", "0")) % parts, os.environ.get("RANK", "0") == "0"
    damaged = [line for store in stores for line in store.verify(say if is_first else lambda line: None, part, parts)]
    if damaged:
        message = f"stores of --data are damaged, make them again with {call('shard')}: {'; '.join(damaged)}"
        if not is_first:
            say(f"error: {message}")  # of other errors only the first rank speaks
        raise InputError(message)
    if is_first:
        say(f"verified: {', '.join(str(store.folder) for store in stores)}")
