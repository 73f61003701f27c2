"""One pretraining, from a setup to the last checkpoint; the loop is loop.py's.

exit_code(setup, stop)       of a rank: an error becomes one line and a code
train(setup)                 the same for other programs

model -> record -> the ranks meet and compare themselves -> start -> engine -> run folder -> train_loop
"""

import os
import socket
import sys
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
from pretrain.checkpoints.run_lock import RunLock
from pretrain.checkpoints.saver import Saver
from pretrain.distributed import OtherRankError, all_ranks_or_none, broadcast_object, check_same_on_all_ranks
from pretrain.divergence import DivergedError, Divergence
from pretrain.due import Timetable
from pretrain.loop import Run, train_loop
from pretrain.model import architecture_of, build_model, compile_layers
from pretrain.monitor.console import for_stderr
from pretrain.monitor.disk import check_disk
from pretrain.monitor.lines import what_was_lost
from pretrain.monitor.meter import Meter
from pretrain.monitor.plan import estimate_run
from pretrain.monitor.plan_tables import plan_tables
from pretrain.monitor.summary import end_summary, start_summary
from pretrain.run_folder import disagreement, run_record, write_run_folder
from pretrain.setup import Setup
from pretrain.state import RunState
from pretrain.stop import STOPPED, StopRequests
from pretrain.watchdog import Watchdog
from pretrain.zero.engine import (
    check_precision,
    default_precision,
    end_distributed,
    init_distributed,
    init_engine,
    silence_libraries,
)


def exit_code(setup: Setup, stop: StopRequests) -> int:
    """Train; an error becomes one line, of rank 0 or the first on its node, and a code."""
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
            if os.environ.get("RANK", "0") == "0":
                say(f"error: {error}")
            return 1
        except OSError as error:  # the disk, of this rank
            say(f"error: {error}; checkpoints that were whole still are")
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
        setup = setup.with_precision(elsewhere(config.gpu).precision if config.gpu else default_precision())
        if not config.gpu:
            check_precision(setup.deepspeed)
        model = model_of(setup)
        record = run_record(setup, model.num_parameters())
        identity = ModelIdentity(
            architecture_of(model.config), setup.stores[0].vocab_sha256, setup.stores[0].vocab_size
        )
        if config.dry_run:
            if config.verify_store:
                verify_stores(setup.stores)
            if os.environ.get("RANK", "0") == "0":
                print_plan(setup, model, find_start(config, record, identity, shapes_of(model)))
            return RunState()
        check_disk(setup, model.num_parameters())
        if config.compile:
            compile_layers(model)

        with watchdog.joining():
            init_distributed()
        if config.verify_store:
            with all_ranks_or_none("stores of --data"), watchdog.working():
                verify_stores(setup.stores)
        # Everything is compared, and the checkpoint is read, before the first byte of RUN is written.
        check_same_on_all_ranks(what_ranks_share(record, [phase.settings.content for phase in setup.phases], identity))
        start = Start(record)
        with all_ranks_or_none(f"run folder {config.out}"), watchdog.working():
            if dist.get_rank() == 0:  # one rank reads all of it for its checksums
                start = find_start(config, record, identity, shapes_of(model))
        start = broadcast_object(start)
        if start.checkpoint is not None and setup.is_finished(start.state):
            with all_ranks_or_none(f"run folder {config.out}"):
                if dist.get_rank() == 0:
                    leave(setup, start)
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
            setup.deepspeed,
            allow_untested=config.allow_untested_deepspeed,
            checkpoint_activations=config.checkpoint_activations,
        )
        if start.checkpoint is not None:
            with watchdog.working():
                load_checkpoint(start.checkpoint, engine, identity)
        with all_ranks_or_none(f"run folder {config.out}"):
            if dist.get_rank() == 0:
                write_run_folder(config.out, start, setup.stores)
        state = start.state
        meter = Meter(
            config.out,
            model.config,
            steps=config.total_steps,
            first_step=state.step,
            device=engine.device,
            limit=3600 * config.hours,
            spent=state.seconds,
        )
        ending.callback(meter.close)
        say_start(meter, setup, start, engine.device, lost)
        saver = Saver(
            config.out,
            engine,
            identity=identity,
            settings=setup.deepspeed.content,
            keep=config.keep,
            record=start.record,
        )
        ending.callback(saver.close)
        stop.hold()
        watchdog.tighten()
        run = Run(
            setup=setup,
            engine=engine,
            meter=meter,
            saver=saver,
            timetable=Timetable(config, stop),
            divergence=Divergence(setup, saver, meter),
            stop=stop,
            watchdog=watchdog,
        )
        try:
            return train_loop(run, state)
        except DivergedError as error:
            meter.fail(str(error))
            raise


def model_of(setup: Setup) -> BertForPreTraining:
    """Return the model that the run begins with.

    Raises
    ------
    InputError: as build_model() does.
    """
    return build_model(
        preset=setup.config.model,
        init_from=setup.config.init_from,
        vocab_size=setup.stores[0].vocab_size,
        dropout=setup.config.dropout,
        seed=setup.config.seed,
        needs_nsp=setup.config.objective != "mlm",
        pad_id=setup.stores[0].special_ids["pad"],
        vocab=setup.vocab,
    )


def shapes_of(model: BertForPreTraining) -> dict[str, torch.Size]:
    """Return the shape of each parameter."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def say_start(meter: Meter, setup: Setup, start: Start, device: torch.device, lost: str) -> None:
    """Write what will run, and what is not as it was; `lost` by a process that was killed."""
    state = start.state
    meter.print_tables(
        start_summary(setup, start.record, devices=devices(device), resumed_from=start.checkpoint, lost=lost)
    )
    if start.checkpoint is not None:
        meter.event(state.step, "resume", checkpoint=start.checkpoint.name, **({"lost": lost} if lost else {}))
    elif lost:
        meter.event(state.step, "restart", lost=lost)
    if start.changes:
        meter.event(state.step, "change", **{change.setting: change.text for change in start.changes})
        if any(change.moves for change in start.changes):
            place = f"epoch {state.position.epoch}, sample {state.position.sample}"
            meter.say(f"other samples than before: the data goes on at {place}, and no sample comes again")


def leave(setup: Setup, start: Start) -> None:
    """Say that a run is finished and leave its folder as it is; mend what an older version has spoilt."""
    config, folder = setup.config, start.checkpoint
    assert folder is not None
    if wrong := disagreement(config.out, Manifest.read(folder)):
        say(f"{wrong}; both are written anew")
        with RunLock(config.out):
            write_run_folder(config.out, start, setup.stores)
    print(for_stderr(end_summary(config, start.state, start.state, 0.0, True)), file=sys.stderr, flush=True)


def print_plan(setup: Setup, model: BertForPreTraining, start: Start) -> None:
    """Print what the run would be: for people on stderr, for scripts on stdout."""
    plan = estimate_run(setup, model, resumed_from=start.checkpoint)
    where = plan.machine.in_words() if plan.machine else devices(next(model.parameters()).device)
    what = start_summary(setup, start.record, devices=where, resumed_from=start.checkpoint)
    print(for_stderr(what, "", *plan_tables(plan)), file=sys.stderr)
    first = {
        "settings": setup.deepspeed.content,
        "parameters": model.num_parameters(),
        "resume": str(start.checkpoint or ""),
        "changes": {change.setting: change.text for change in start.changes},
    }
    print_json(first | plan.record())


def devices(device: torch.device) -> str:
    """Return in words what the ranks compute on."""
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
