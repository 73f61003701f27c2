"""The training loop, read from top to bottom.

    loop -> train_phase -> train_step -> (watch_for_spikes, log_step, evaluate, save)

A plain loop: DeepSpeed's engine is the engine. What happens when is decided here; how, in the files that are imported.
"""

import enum
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from data_prep.progress import Progress
from data_prep.samples.counter_rng import random_bits
from data_prep.samples.coverage import evaluated
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.checkpoints.rollback import RECENT, TRIES, is_spike, roll_back
from pretrain.checkpoints.saver import Saver
from pretrain.clock import Clock
from pretrain.data import PREFETCH_MICRO_BATCHES, SampleStream, Step, prefetch, train_steps
from pretrain.evaluation import Evaluation
from pretrain.guard import Guard
from pretrain.model import Losses
from pretrain.monitor.meter import Meter
from pretrain.monitor.summary import end_summary
from pretrain.settings.config import TrainConfig
from pretrain.settings.phases import Phase, phase_at
from pretrain.state import RunState, StepCounts
from pretrain.wording import OUT_OF_PATIENCE, OUT_OF_TIME
from pretrain.zero.engine import Engine, StepResult

TRUST_EVERY = 10  # intervals of metrics between two lines of trust ratios


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    phases: list[Phase]
    stores: list[Store]
    engine: Engine
    meter: Meter
    saver: Saver
    guard: Guard


class PhaseEnd(enum.Enum):
    """Why the training of a phase came to an end."""

    DONE = enum.auto()
    STOPPED = enum.auto()  # as asked
    ROLLED_BACK = enum.auto()  # to a state that may belong to an earlier phase


def loop(run: Run, state: RunState) -> RunState:
    """Train from `state` to the last step, or to a request to stop; every rank takes part in everything."""
    first, started = state, time.perf_counter()
    end = PhaseEnd.DONE
    while end is not PhaseEnd.STOPPED and not is_finished(run.config, state):
        phase = phase_at(run.phases, state.step)
        if state.position.phase != phase.number:
            run.meter.event(state.step, "phase", number=phase.number + 1, of=len(run.phases), **phase.described())
        state, end = train_phase(run, phase, entered(phase, state))
    with run.guard.working("the checkpoint is written"):
        run.saver.wait()
    seconds = time.perf_counter() - started
    run.meter.print_tables(end_summary(run.config, state, first, seconds, is_finished(run.config, state)))
    return state


def entered(phase: Phase, state: RunState) -> RunState:
    """The state at its place in the data of a phase; what it was best at in another phase does not count."""
    if state.position.phase != phase.number:
        state = state._replace(best_loss=None, evals_since_best=0)
    return state._replace(position=state.position.entering(phase.number, phase.span.seq_len))


def train_phase(run: Run, phase: Phase, state: RunState) -> tuple[RunState, PhaseEnd]:
    """Train to the end of a phase, to a request to stop, or to a rollback: the state then, and which it was."""
    config, guard = run.config, run.guard
    with guard.working("the index of the samples is made"):
        steps = this_ranks_steps(run, phase, state)
        held_out = held_out_samples(phase, config, run.stores)
    held_out_loss: float | None = None
    clock = Clock(config.hours, state.seconds)
    if reason := guard.at_boundary().stop:  # while the index was made; a checkpoint has this state, or there is none
        run.meter.event(state.step, "stop", reason=reason)
        return state, PhaseEnd.STOPPED
    while True:
        lr = phase.lr_at(state.step, clock.read())
        run.engine.set_lr(lr)
        with guard.working():
            step = next(steps)
        counts = step.counts
        result = train_step(run, state, step)
        state = state.after_step(counts, skipped=result.skipped, seconds=clock.seconds)
        if not result.skipped and config.rollback:
            state, is_back = watch_for_spikes(run, state, counts)
            if is_back:
                clock.read()  # the way back took time, too
                return state._replace(seconds=clock.seconds), PhaseEnd.ROLLED_BACK
        last = state.step == phase.end or is_finished(config, state)
        now = guard.at_boundary()
        if not result.skipped:
            log_step(run, state, counts, lr, result.grad_norm, last)
            if held_out is not None and (
                last or (now.evaluate and not now.stop) or is_due(config.eval_every, state.step)
            ):
                held_out_loss = evaluate(run, held_out, state.step)["mlm_loss"]
                state = state.after_evaluation(held_out_loss, held_out.identity)
                last = last or is_finished(config, state)
                now = now._replace(stop=now.stop or guard.at_boundary().stop)  # asked for meanwhile
        else:
            skip_step(run, state)
        reason = now.stop
        if last and state.step < phase.end:
            run.meter.event(state.step, "stop", reason=OUT_OF_TIME if clock.is_over else OUT_OF_PATIENCE)
        elif reason:
            run.meter.event(state.step, "stop", reason=reason)
        if (not result.skipped and (last or now.save or is_due(config.save_every, state.step))) or reason:
            save(run, state, held_out_loss)
        if last or reason:
            return state, PhaseEnd.STOPPED if reason else PhaseEnd.DONE


def watch_for_spikes(run: Run, state: RunState, counts: StepCounts) -> tuple[RunState, bool]:
    """Look at the loss of a step: the state with it, or an earlier one to go on from, and whether it is that."""
    loss = run.meter.step_loss(counts)
    if is_spike(loss, state.recent_losses, run.config.rollback):
        details = {"loss": loss, "median": statistics.median(state.recent_losses), "spike": state.step}

        def place(earlier: RunState) -> RunState:
            return entered(phase_at(run.phases, earlier.step), earlier)

        found = roll_back(run.saver, place, partial(stream_at, run), state, counts.samples)
        if found is not None:
            first, end = found.state.skipped_spans[-1]
            run.meter.rewind(found.state.step)
            run.meter.event(
                found.state.step, "rollback", checkpoint=found.folder.name, **details, samples_passed_over=end - first
            )
            run.guard.rolled_back(found.state.step, TRIES)
            return found.state, True
        run.meter.event(state.step, "spike", **details)
    return state._replace(recent_losses=(*state.recent_losses, loss)[-RECENT:]), False


def is_finished(config: TrainConfig, state: RunState) -> bool:
    """Whether the run has come to its end: its steps, its hours, or its patience."""
    out_of_time = 0 < 3600 * config.hours <= state.seconds
    out_of_patience = 0 < config.patience <= state.evals_since_best
    return state.step >= config.total_steps or out_of_time or out_of_patience


def log_step(
    run: Run, state: RunState, counts: StepCounts, lr: float, grad_norm: Callable[[], float], last: bool
) -> None:
    """Count a step that happened, and write what is due."""
    run.guard.stepped()
    run.meter.add_step(counts)
    run.meter.show_place(state.step, state.seconds)
    if last or is_due(run.config.log_every, state.step):
        left = 3600 * run.config.hours - state.seconds if run.config.hours else None
        run.meter.write_interval(state.step, state.samples, state.tokens, lr, grad_norm(), left)
    if (last or is_due(TRUST_EVERY * run.config.log_every, state.step)) and (ratios := run.engine.trust_ratios()):
        run.meter.write_trust_ratios(state.step, ratios)


def skip_step(run: Run, state: RunState) -> None:
    """Say that a step did not happen."""
    run.meter.discard_step()
    scale = run.engine.loss_scale()
    run.meter.event(state.step, "skip", loss_scale=scale.value if scale else 1.0)
    run.guard.skipped(scale)


def train_step(run: Run, state: RunState, step: Step) -> StepResult:
    """Compute all micro-batches of a step and let the optimizer act."""
    engine, rank, world = run.engine, dist.get_rank(), dist.get_world_size()
    for index, batch in enumerate(step.micro_batches):
        # Dropout is a function of (seed, step, micro-batch, rank): no generator state has to be saved.
        torch.manual_seed(dropout_seed(run.config.seed, state.step + state.skipped, index, rank))
        losses: Losses = engine(batch.to(engine.device))
        # Divided by the counts of the whole step; times world, since DeepSpeed averages gradients over ranks.
        loss = losses.mlm / step.counts.masked + losses.nsp / max(step.counts.pairs, 1)
        engine.backward(loss * world, is_last=index == len(step.micro_batches) - 1)
        run.meter.add_losses(losses)
        run.guard.beat()
    return engine.step()


def dropout_seed(seed: int, attempt: int, micro_batch: int, rank: int) -> int:
    """Return the seed of torch's generator for a micro-batch of an attempted step, below 2 ** 63."""
    return int(random_bits(seed, attempt, micro_batch, rank)[0] >> np.uint64(1))


def samples_of(phase: Phase, config: TrainConfig, stores: list[Store]) -> Mixture:
    """What a phase trains on."""
    passes = config.passes([store.tokens for store in stores])
    return Mixture(stores, passes, seq_len=phase.span.seq_len, objective=config.objective, seed=config.seed)


def stream_at(run: Run, state: RunState) -> SampleStream:
    """The samples from a state on, in the phase that it has entered."""
    return SampleStream(samples_of(run.phases[state.position.phase], run.config, run.stores), state.position)


def this_ranks_steps(run: Run, phase: Phase, state: RunState) -> Iterator[Step]:
    """The steps of this rank from `state` on, made ahead."""
    stream = stream_at(run, state)
    steps = train_steps(
        stream,
        masking=run.config.masking,
        batch_after=phase.batch_after,
        micro_batch=phase.micro_batch,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
    )
    if run.engine.device.type == "cuda":
        steps = map(Step.pin_memory, steps)
    ahead = -(-PREFETCH_MICRO_BATCHES // phase.settings["gradient_accumulation_steps"])
    return prefetch(steps, ahead=ahead, at_end=stream.mixture.abandon)


def evaluate(run: Run, held_out: Evaluation, step: int) -> dict[str, Any]:
    """Losses and accuracies on the held-out samples, by source; sums in the order of batches, so that no world size
    changes them."""
    engine = run.engine
    with run.meter.paused():
        shape = (held_out.batch_count, len(held_out.sources), len(Losses._fields))
        sums = torch.zeros(shape, dtype=torch.float64, device=engine.device)
        engine.eval()
        progress = Progress(held_out.batches, f"evaluation, step {step}", "batch", quiet=dist.get_rank() > 0)
        with torch.no_grad(), run.guard.doing("this evaluation"):
            for number, batch, source in progress:
                losses = engine(batch.to(engine.device), by_sample=True)
                run.guard.beat()
                if number < held_out.batch_count:
                    sums[number].index_add_(0, source.to(engine.device), torch.stack(losses, 1).double())
        engine.train()
        dist.all_reduce(sums)
        line = run.meter.write_evaluation(step, sums.sum(0), held_out.sources, held_out.identity)
    run.guard.evaluated()
    return line


def save(run: Run, state: RunState, held_out_loss: float | None) -> None:
    """Begin a checkpoint and say so; it is written while training goes on."""
    with run.meter.paused():
        with run.guard.working("this checkpoint"):
            folder = run.saver.save(state, held_out_loss)
        run.guard.saved()
        run.meter.event(state.step, "save", checkpoint=folder.name)


def is_due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def held_out_samples(phase: Phase, config: TrainConfig, stores: list[Store]) -> Evaluation | None:
    """The evaluation set; None where none is wanted, or no store holds out enough documents to make pairs of."""
    chosen = evaluated(stores, config.objective)
    if not config.eval_samples or not chosen:
        return None
    mixture = Mixture(
        chosen, [1.0] * len(chosen), seq_len=phase.span.seq_len, objective=config.objective, seed=0, held_out=True
    )
    return Evaluation.of(mixture, config.eval_samples, phase.micro_batch, dist.get_rank(), dist.get_world_size())
