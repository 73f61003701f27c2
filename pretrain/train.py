"""Pretrain a BERT from token stores.

    deepspeed launch/pretrain.sh --data STORE --out RUN --model bert-base           (clusters: --hostfile H)
    RANKS=2 bash launch/pretrain.sh --data runs/wiki/store --out runs/wiki/run --model bert-mini --steps 1000

One process a rank. Leaves in RUN: config.json (everything needed to repeat the run), metrics.jsonl, log.txt,
tensorboard/, vocab/ and checkpoints/. The same command again continues from the newest whole checkpoint.
"""

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from transformers import BertConfig, BertForPreTraining

from data_prep.cli import InputError, parse, print_json
from data_prep.samples.draws import draw
from data_prep.samples.pairs import Mixture
from data_prep.store import Store
from pretrain import checkpoint
from pretrain.checkpoint import Identity, RunState
from pretrain.clock import Clock
from pretrain.config import TrainConfig
from pretrain.console import for_stderr, what_came_out, what_runs
from pretrain.data import MicroBatch, Position, SampleStream, StepCounts, feed, prefetch
from pretrain.engine import apply_step, backward, check_precision, default_precision, join_ranks, quiet, start_engine
from pretrain.evaluation import Evaluation
from pretrain.guard import STOPPED, DivergedError, Guard
from pretrain.lamb import Lamb
from pretrain.meter import Meter
from pretrain.model import MAX_POSITIONS, Losses, build, compile_layers, identity_of
from pretrain.phases import Phase, engine_settings, phases_of
from pretrain.plan import check_disk
from pretrain.plan import make as make_plan
from pretrain.rollback import RECENT, TRIES, is_spike, roll_back
from pretrain.run_folder import RunLock, find_checkpoint, prepare_folder, record_of
from pretrain.saver import Saver
from pretrain.together import OtherRankFailed, agreed, told_by_first

TRUST_EVERY = 10  # intervals of metrics between two lines of trust ratios


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    phases: list[Phase]
    stores: list[Store]
    engine: Any
    meter: Meter
    saver: Saver
    guard: Guard
    lamb: Lamb | None  # the optimizer, where it has trust ratios to look at


def main(argv: list[str] | None = None) -> None:
    """Entry of every rank; only the first to meet an error speaks.

    Exit codes as in data_prep/cli.py, and STOPPED where the run was asked to stop, saved, and can be continued.
    """
    try:
        config = parse(TrainConfig, __doc__, argv)
        state = train(config)
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OtherRankFailed as error:
        sys.exit(error.exit_code)
    except DivergedError as error:  # on all ranks alike
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except OSError as error:  # the disk, of this rank
        print(f"error: {error}; checkpoints that were whole still are", file=sys.stderr, flush=True)
        sys.exit(1)
    code = 0 if is_finished(config, state) or config.dry_run else STOPPED
    # For launch/supervise.py: the launcher in between loses exit codes when it is killed or told to end.
    if os.environ.get("RANK", "0") == "0" and "ZEROBERT_OUTCOME" in os.environ:
        Path(os.environ["ZEROBERT_OUTCOME"]).write_text(str(code))
    sys.exit(code)


def train(config: TrainConfig) -> RunState:
    """Run, or continue, one pretraining. Collective over the ranks that the launcher started.

    Raises
    ------
    InputError: anything wrong with the stores, settings or the run folder; nothing has been written then.
    DivergedError: too many steps in a row did not happen.
    """
    quiet()
    stores = open_stores(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    phases = phases_of(config.spans, config.ds_config, config.flags, world_size, default_precision())
    settings = engine_settings(phases)
    check_precision(settings)
    needs_nsp, pad_id = config.objective == "nsp", stores[0].special_ids["pad"]
    model = build(config.model, config.init_from, stores[0].vocab_size, config.dropout, config.seed, needs_nsp, pad_id)
    check_lengths(phases, model.config)
    if config.compile and settings["zero_optimization"]["stage"] == 3:
        raise InputError("--compile goes with --zero 0 to 2: at stage 3 weights come and go inside the layers")
    samples_of(phases[0], config, stores)  # refuses stores without text before anything is written
    if config.dry_run:
        if os.environ.get("RANK", "0") == "0":
            dry_run(config, phases, stores, model)
        return RunState()
    check_disk(config, phases, model.num_parameters())
    if config.compile:
        compile_layers(model)

    record = record_of(config, phases, settings, stores, model.num_parameters())
    join_ranks()
    with ExitStack() as ending:
        resumed_from = None
        with agreed(f"run folder {config.out}"):
            if dist.get_rank() == 0:
                resumed_from = find_checkpoint(config)  # one rank reads all of it for its checksums
                ending.enter_context(RunLock(config.out))
                prepare_folder(config, record, stores)
        resumed_from = told_by_first(resumed_from)
        engine, partition = start_engine(
            model, settings, config.allow_untested_deepspeed, config.checkpoint_activations
        )
        identity = Identity(identity_of(model.config), stores[0].vocab_sha256, stores[0].vocab_size)
        state = RunState()
        if resumed_from is not None:
            state = checkpoint.load(resumed_from, partition, engine, identity)
        meter = Meter(config.out, model.config, config.total_steps, state.step, engine.device)
        ending.callback(meter.close)
        meter.show(what_runs(config, phases, record, devices(engine.device), resumed_from))
        if resumed_from is not None:
            meter.event(state.step, "resume", checkpoint=resumed_from.name)
        saver = Saver(config.out, partition, engine, identity, settings, config.keep)
        ending.callback(saver.close)
        guard = Guard(config.hang_timeout, config.stop_at(time.time()), config.max_skips)
        ending.callback(guard.close)
        lamb = partition.optimizer if isinstance(partition.optimizer, Lamb) else None
        return loop(Run(config, phases, stores, engine, meter, saver, guard, lamb), state)


def dry_run(config: TrainConfig, phases: list[Phase], stores: list[Store], model: BertForPreTraining) -> None:
    """Print the plan: for people on stderr, for scripts on stdout."""
    parameters, resumed_from = model.num_parameters(), find_checkpoint(config)
    settings = engine_settings(phases)
    record = record_of(config, phases, settings, stores, parameters)
    plan = make_plan(config, phases, stores, model, resumed_from)
    what = what_runs(config, phases, record, devices(next(model.parameters()).device), resumed_from)
    print(for_stderr(what, "", *plan.tables()), file=sys.stderr)
    first = {"settings": settings, "parameters": parameters, "resume": str(resumed_from or "")}
    print_json(first | plan.record())


def devices(device: torch.device) -> str:
    """What the ranks compute on, in words."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{ranks} rank{'s' * (ranks > 1)}, each on {name}"


def loop(run: Run, state: RunState) -> RunState:
    """Train from `state` to the last step, or to a request to stop; every rank takes part in everything."""
    first, started = state, time.perf_counter()
    for phase in run.phases:
        if state.step >= phase.end or is_finished(run.config, state):
            continue
        if state.position.phase != phase.number:
            run.meter.event(state.step, "phase", number=phase.number + 1, of=len(run.phases), **phase.described())
        before = run.phases[max(phase.number - 1, 0)]
        position = state.position.entering(phase.number, before.span.seq_len == phase.span.seq_len)
        if position != state.position:
            state = state._replace(position=position, best_loss=None, worse=0)
        state, stopped = train_phase(run, phase, state)
        if stopped:
            break
    run.saver.wait()
    seconds = time.perf_counter() - started
    run.meter.show(what_came_out(run.config, state, first, seconds, is_finished(run.config, state)))
    return state


def train_phase(run: Run, phase: Phase, state: RunState) -> tuple[RunState, bool]:
    """Train to the end of a phase, or to a request to stop: the state then, and whether it was a request."""
    config, guard = run.config, run.guard
    micro_batches = this_ranks_batches(run, phase, state)
    held_out = held_out_samples(phase, config, run.stores)
    held_out_loss: float | None = None
    clock = Clock(config.hours, state.seconds)
    while True:
        lr = phase.lr_at(state.step, clock.read())
        for group in run.engine.optimizer.param_groups:
            group["lr"] = lr
        counts, happened, grad_norm = one_step(run, state, micro_batches)
        state = state.after(counts, happened, clock.seconds)
        if happened and config.rollback:
            state, is_back = watch_for_spikes(run, phase, state, counts)
            if is_back:
                micro_batches, held_out_loss = this_ranks_batches(run, phase, state), None
                continue
        last = state.step == phase.end or is_finished(config, state)
        if happened:
            log_step(run, state, counts, lr, grad_norm, last)
            if held_out is not None and (last or is_due(config.eval_every, state.step)):
                held_out_loss = evaluate(run, held_out, state.step)["mlm_loss"]
                state = state.evaluated(held_out_loss)
                last = last or is_finished(config, state)
        else:
            skip_step(run, state)
        reason = guard.stop_reason()
        if last and state.step < phase.end:
            run.meter.event(state.step, "stop", reason="the hours are over" if clock.is_over else "out of patience")
        elif reason:
            run.meter.event(state.step, "stop", reason=reason)
        if (happened and (last or is_due(config.save_every, state.step))) or reason:
            save(run, state, held_out_loss)
        if last or reason:
            return state, bool(reason)


def watch_for_spikes(run: Run, phase: Phase, state: RunState, counts: StepCounts) -> tuple[RunState, bool]:
    """Look at the loss of a step: the state with it, or an earlier one to go on from, and whether it is that."""
    loss = run.meter.step_loss(counts)
    if is_spike(loss, state.recent, run.config.rollback):
        details = {"loss": loss, "median": statistics.median(state.recent), "spike": state.step}
        found = roll_back(run.saver, partial(stream_of, run, phase), state, counts.samples)
        if found is not None:
            first, end = found.state.passed_over[-1]
            run.meter.go_back(found.state.step)
            run.meter.event(
                found.state.step, "rollback", checkpoint=found.folder.name, **details, samples_passed_over=end - first
            )
            run.guard.rolled_back(found.state.step, TRIES)
            return found.state, True
        run.meter.event(state.step, "spike", **details)
    return state._replace(recent=(*state.recent, loss)[-RECENT:]), False


def is_finished(config: TrainConfig, state: RunState) -> bool:
    """Whether the run has come to its end: its steps, its hours, or its patience."""
    out_of_time = 0 < 3600 * config.hours <= state.seconds
    out_of_patience = 0 < config.patience <= state.worse
    return state.step >= config.total_steps or out_of_time or out_of_patience


def log_step(
    run: Run, state: RunState, counts: StepCounts, lr: float, grad_norm: Callable[[], float], last: bool
) -> None:
    """Count a step that happened, and write what is due."""
    run.guard.stepped()
    run.meter.add_step(counts)
    if last or is_due(run.config.log_every, state.step):
        left = 3600 * run.config.hours - state.seconds if run.config.hours else None
        run.meter.write(state.step, state.samples, state.tokens, lr, grad_norm(), left)
    if run.lamb is not None and (last or is_due(TRUST_EVERY * run.config.log_every, state.step)):
        run.meter.write_trust_ratios(state.step, run.lamb.trust_ratios())


def skip_step(run: Run, state: RunState) -> None:
    """Say that a step did not happen."""
    run.meter.drop_step()
    scaler = getattr(run.engine.optimizer, "loss_scaler", None)
    run.meter.event(state.step, "skip", loss_scale=getattr(scaler, "cur_scale", 1.0))
    run.guard.skipped(scaler)


def one_step(run: Run, state: RunState, micro_batches: Iterator[MicroBatch]) -> tuple[StepCounts, bool, Any]:
    """All micro-batches of a step and the optimizer: its counts, whether it happened, its gradient's norm."""
    engine, rank, world = run.engine, dist.get_rank(), dist.get_world_size()
    for number in itertools.count():
        batch, counts, is_last = next(micro_batches)
        # Dropout is a function of (seed, step, micro-batch, rank): no generator state has to be saved.
        torch.manual_seed(int(draw(run.config.seed, state.step + state.skipped, number, rank)[0] >> np.uint64(1)))
        losses: Losses = engine(batch.to(engine.device))
        # Divided by the counts of the whole step; times world, since DeepSpeed averages gradients over ranks.
        loss = losses.mlm / counts.masked + losses.nsp / max(counts.pairs, 1)
        backward(engine, loss * world, is_last)
        run.meter.add_losses(losses)
        run.guard.beat()
        if is_last:
            break
    happened, grad_norm = apply_step(engine)
    return counts, happened, grad_norm


def samples_of(phase: Phase, config: TrainConfig, stores: list[Store]) -> Mixture:
    """What a phase trains on."""
    weights = [weight for _, weight in config.weighted_stores]
    return Mixture(stores, weights, phase.span.seq_len, config.objective, config.seed)


def stream_of(run: Run, phase: Phase, position: Position) -> SampleStream:
    """The samples of a phase from a position on."""
    return SampleStream(samples_of(phase, run.config, run.stores), position)


def this_ranks_batches(run: Run, phase: Phase, state: RunState) -> Iterator[MicroBatch]:
    """The micro-batches of this rank from `state` on, made ahead."""
    stream = stream_of(run, phase, state.position)
    rank, world = dist.get_rank(), dist.get_world_size()
    micro_batches = feed(stream, run.config.masking, phase.batch_after, phase.micro_batch, rank, world)
    if run.engine.device.type == "cuda":
        micro_batches = map(MicroBatch.pin_memory, micro_batches)
    return prefetch(micro_batches)


def evaluate(run: Run, held_out: Evaluation, step: int) -> dict[str, Any]:
    """Losses and accuracies on the held-out samples, by source; sums in the order of batches, so that no world size
    changes them."""
    engine = run.engine
    run.meter.pause()
    shape = (held_out.batch_count, len(held_out.sources), len(Losses._fields))
    sums = torch.zeros(shape, dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for number, batch, source in held_out.batches:
            losses = engine(batch.to(engine.device), by_sample=True)
            run.guard.beat()
            if number < held_out.batch_count:
                sums[number].index_add_(0, source.to(engine.device), torch.stack(losses, 1).double())
    engine.train()
    dist.all_reduce(sums)
    line = run.meter.write_evaluation(step, sums.sum(0), held_out.sources)
    run.meter.unpause()
    return line


def save(run: Run, state: RunState, held_out_loss: float | None) -> None:
    """Begin a checkpoint and say so; it is written while training goes on."""
    run.meter.pause()
    folder = run.saver.save(state, held_out_loss)
    run.meter.event(state.step, "save", checkpoint=folder.name)
    run.meter.unpause()


def is_due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def open_stores(config: TrainConfig) -> list[Store]:
    """Open --data; all stores must share one tokenizer."""
    first, *others = [folder for folder, _ in config.weighted_stores]
    opened = [Store.open(first)]
    return opened + [Store.open(folder, opened[0].vocab_sha256) for folder in others]


def held_out_samples(phase: Phase, config: TrainConfig, stores: list[Store]) -> Evaluation | None:
    """The evaluation set; None where none is wanted, or no store holds out enough documents to make pairs of."""
    least = 2 if config.objective == "nsp" else 1
    evaluated = [store for store in stores if store.manifest["counts"]["held_out_documents"] >= least]
    if not config.eval_samples or not evaluated:
        return None
    mixture = Mixture(evaluated, [1.0] * len(evaluated), phase.span.seq_len, config.objective, seed=0, held_out=True)
    return Evaluation.of(mixture, config.eval_samples, phase.micro_batch, dist.get_rank(), dist.get_world_size())


def check_lengths(phases: list[Phase], model: BertConfig) -> None:
    """Refuse samples that are longer than the model's positions."""
    longest = max(phase.span.seq_len for phase in phases)
    if longest > model.max_position_embeddings:
        raise InputError(
            f"--seq_len {longest} is beyond the model's {model.max_position_embeddings} positions; "
            f"give at most {model.max_position_embeddings} (presets: {MAX_POSITIONS})"
        )


if __name__ == "__main__":
    main()
