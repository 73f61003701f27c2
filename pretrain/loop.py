"""The training loop, read from top to bottom: data -> step -> state -> what is due.

    train_loop -> train_phase -> train_step

A plain loop: what happens when is decided here; how, in the files that are imported.
"""

import enum
import time
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor

from data_prep.samples.counter_rng import random_bits
from pretrain.checkpoints.saver import Saver
from pretrain.clock import Clock
from pretrain.data import StepData, load_steps
from pretrain.divergence import Divergence
from pretrain.evaluation import HeldOutSet, evaluate, held_out_set
from pretrain.likelihood.minimal_pairs import PairScores
from pretrain.likelihood.pair_evaluation import PairSet, evaluate_pairs
from pretrain.monitor.gaps import gaps_in_words
from pretrain.monitor.meter import Meter
from pretrain.monitor.summary import end_summary
from pretrain.monitor.weights import weight_histograms
from pretrain.run_facts import OUT_OF_PATIENCE, OUT_OF_TIME
from pretrain.settings.phases import Phase, phase_at
from pretrain.setup import Setup
from pretrain.state import RunState
from pretrain.stop import StopRequests
from pretrain.timetable import Timetable
from pretrain.watchdog import Watchdog
from pretrain.zero.engine import Engine, StepResult


class Run(NamedTuple):
    """What stays the same from the first step to the last: the setup, and what acts on it, on every rank."""

    setup: Setup
    pairs: PairSet | None  # that each evaluation scores
    engine: Engine
    meter: Meter
    saver: Saver
    timetable: Timetable
    divergence: Divergence
    stop: StopRequests
    watchdog: Watchdog


class EndReason(enum.Enum):
    """Why the training of a phase came to an end."""

    DONE = enum.auto()
    STOPPED = enum.auto()  # as asked
    ROLLED_BACK = enum.auto()  # to a state that may belong to an earlier phase


class PhaseEnd(NamedTuple):
    """Where the training of a phase came to an end, and why."""

    state: RunState
    reason: EndReason


def train_loop(run: Run, state: RunState) -> RunState:
    """Train from `state` to the last step, or to a request to stop; every rank takes part in everything."""
    first, started = state, time.perf_counter()
    reason = EndReason.DONE
    while reason is not EndReason.STOPPED and not run.setup.is_finished(state):
        phase = phase_at(run.setup.phases, state.step)
        if state.position.phase != phase.index:
            details = {"number": phase.index + 1, "of": len(run.setup.phases)}
            run.meter.event(state.step, "phase", **details, **phase.described())
        state, reason = train_phase(run, phase, run.setup.entering(state, phase))
    with run.stop.answering("the checkpoint is written"), run.watchdog.working():
        run.saver.wait()
    say_exports(run)
    seconds, is_finished = time.perf_counter() - started, run.setup.is_finished(state)
    run.meter.print_tables(end_summary(run.setup.config, state, first, seconds, is_finished))
    return state


def train_phase(run: Run, phase: Phase, state: RunState) -> PhaseEnd:
    """Train to the end of a phase, to a request to stop, or to a rollback."""
    setup, engine, meter = run.setup, run.engine, run.meter
    engine.set_weight_decay(phase.weight_decay)
    with run.stop.answering("the index of the samples is made"), run.watchdog.working():
        loader = load_steps(setup, state.position, engine.device)
        held_out = held_out_set(setup, phase)
    held_out_loss: float | None = None
    clock = Clock(setup.config.hours, state.seconds)
    if why := run.timetable.stop_reason():  # asked for meanwhile; a checkpoint has this state, or there is none yet
        meter.event(state.step, "stop", reason=why)
        return PhaseEnd(state, EndReason.STOPPED)

    with closing(loader):
        for step_data in run.watchdog.working_on(loader):
            run.timetable.ask(clock.own_seconds())
            lr = phase.lr_at(state.step, clock.share)
            engine.set_lr(lr)
            result = train_step(run, step_data, state)
            with meter.collective_time.span():
                told = run.timetable.told()
            clock.seconds = told.seconds
            state = state.after_step(step_data.counts, is_skipped=result.is_skipped, seconds=clock.seconds)

            # Is it still training? A skipped step leaves the weights as they are; a spike leads back to a checkpoint.
            if result.is_skipped:
                skip_step(run, state)
            else:
                if setup.config.rollback:
                    loss = meter.step_loss(step_data.counts)
                    with run.watchdog.working():
                        earlier = run.divergence.on_loss(state, loss, step_data.counts.samples)
                    if earlier is not None:
                        clock.read()  # the way back took time, too
                        return PhaseEnd(earlier._replace(seconds=clock.seconds), EndReason.ROLLED_BACK)
                    state = state.after_loss(loss)
                run.divergence.on_step()
                state = add_to_average(run, state, clock.share)
                meter.add_step(step_data.counts)
                meter.show_place(state.step, state.seconds)

            # What is due, on all ranks alike: metrics, an evaluation, the end, a checkpoint.
            is_last = state.step == phase.end or setup.is_finished(state)
            due = run.timetable.due(told, state.step, is_last=is_last, is_skipped=result.is_skipped)
            if due.log:
                left = 3600 * setup.config.hours - state.seconds if setup.config.hours else None
                meter.write_interval(state.step, state.samples, state.tokens, lr, result.grad_norm(), left)
            if due.trust_ratios and (ratios := engine.trust_ratios()):
                meter.write_trust_ratios(state.step, ratios)
            asked = told.stop
            if due.evaluate and held_out is not None:
                held_out_loss = evaluate_held_out(run, held_out, state)
                state = state.after_evaluation(held_out_loss, held_out.identity)
                asked = asked or run.timetable.stop_reason()  # meanwhile
            end = why_ends(setup, phase, state, asked, is_out_of_time=clock.is_over)
            if end is not None and end.why:
                meter.event(state.step, "stop", reason=end.why)
            if due.save or end is not None:
                save(run, state, held_out_loss, export=due.export)
            if end is not None:
                return PhaseEnd(state, end.reason)
    raise AssertionError("the loader has no end")


class Ending(NamedTuple):
    """Why training does not go on after a step."""

    reason: EndReason
    why: str  # in words; empty where the phase has come to its last step


def why_ends(setup: Setup, phase: Phase, state: RunState, asked: str, *, is_out_of_time: bool) -> Ending | None:
    """Return why the phase ends with this state; None where it goes on. `asked`: why ranks were asked to stop."""
    is_early = state.step < phase.end and setup.is_finished(state)
    if not (asked or is_early or state.step >= phase.end):
        return None
    why = (OUT_OF_TIME if is_out_of_time else OUT_OF_PATIENCE) if is_early else asked
    return Ending(EndReason.STOPPED if asked else EndReason.DONE, why)


def train_step(run: Run, step_data: StepData, state: RunState) -> StepResult:
    """Compute the micro-batches of a step and let the optimizer act."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for index, batch in enumerate(run.watchdog.working_on(step_data.micro_batches)):
        torch.manual_seed(dropout_seed(run.setup.config.seed, state.step + state.steps_skipped, index, rank))
        losses = run.engine(batch.to(run.engine.device))
        # Divided by the counts of the whole step; times world, since DeepSpeed averages gradients over ranks.
        loss = losses.mlm / step_data.counts.masked + losses.nsp / max(step_data.counts.pairs, 1)
        run.engine.backward(loss * world, is_last=index == step_data.micro_batch_count - 1)
        run.meter.add_losses(losses)
        run.watchdog.heartbeat()
    return run.engine.step()


def dropout_seed(seed: int, attempt: int, micro_batch: int, rank: int) -> int:
    """Return the seed of torch's generator for a micro-batch of an attempted step, below 2 ** 63.

    Dropout is a function of these four: no generator state has to be saved.
    """
    return int(random_bits(seed, attempt, micro_batch, rank)[0] >> np.uint64(1))


def add_to_average(run: Run, state: RunState, share_of_hours: float | None) -> RunState:
    """Let the weights after a step enter their average; returns the state that counts them, if it is kept yet."""
    averaging, steps = run.setup.config.averaging, run.setup.config.total_steps
    count = averaging.count_after(state.averaged, step=state.step, steps=steps, share_of_hours=share_of_hours)
    if count:
        run.engine.partition.add_to_average(averaging.share_of_newest(count))
    return state._replace(averaged=count)


def skip_step(run: Run, state: RunState) -> None:
    """Say that a step was skipped: its losses may be no numbers."""
    scale = run.engine.loss_scale()
    run.meter.discard_step()
    run.meter.event(state.step, "skip", loss_scale=scale.value if scale else 1.0)
    run.divergence.on_skipped_step(scale)


def evaluate_held_out(run: Run, held_out: HeldOutSet, state: RunState) -> float:
    """Return the loss on the held-out samples, and write it with all that goes with it: what the average of the weights
    has, too, where there is one."""
    engine = run.engine

    def sums_of(weights: str) -> Tensor:
        return evaluate(
            partial(engine, by_sample=True),
            held_out,
            device=engine.device,
            title=f"evaluation{weights}, step {state.step}",
            on_batch=run.watchdog.heartbeat,
        )

    with run.meter.paused(), run.stop.answering("this evaluation"):
        engine.eval()
        sums, pairs = sums_of(""), score_minimal_pairs(run, state.step)
        of_average, pairs_of_average = None, None
        if state.averaged:
            with engine.partition.computing_with_average():
                of_average = sums_of(" of averaged weights")
                pairs_of_average = score_minimal_pairs(run, state.step)
        run.meter.log.show_histograms(state.step, weight_histograms(engine.partition))
        show_gaps(run, held_out, state.step)
        engine.train()
        line = run.meter.write_evaluation(
            state.step,
            sums,
            held_out.sources,
            held_out.identity,
            pairs,
            of_average=of_average,
            pairs_of_average=pairs_of_average,
        )
    run.timetable.evaluated()
    return line["mlm_loss"]


def show_gaps(run: Run, held_out: HeldOutSet, step: int) -> None:
    """Show what the model puts into the gaps of the first held-out samples. Collective."""
    batch = held_out.batches[0].batch.to(run.engine.device)
    answers = run.engine.answers(batch)
    if dist.get_rank() == 0:
        vocab = run.setup.vocab / "tokenizer.json"
        run.meter.log.show_text(step, "gaps", gaps_in_words(batch, answers, Tokenizer.from_file(str(vocab))))


def score_minimal_pairs(run: Run, step: int) -> PairScores | None:
    """Return how the model does on the minimal pairs; None where there are none."""
    if run.pairs is None:
        return None
    return evaluate_pairs(
        partial(run.engine, by_sample=True),
        run.pairs,
        device=run.engine.device,
        title=f"minimal pairs, step {step}",
        on_batch=run.watchdog.heartbeat,
    )


def save(run: Run, state: RunState, held_out_loss: float | None, *, export: bool) -> None:
    """Begin a checkpoint and say so; it is written while training goes on."""
    with run.meter.paused():
        with run.stop.answering("this checkpoint"), run.watchdog.working():
            folder = run.saver.save(state, held_out_loss, export=export)
        run.timetable.saved()
        say_exports(run)
        run.meter.event(state.step, "save", checkpoint=folder.name)


def say_exports(run: Run) -> None:
    """Write which Hugging Face folders have come since the last call, or why one has not."""
    for step, folder, failure in run.saver.exports.news():
        if failure:
            run.meter.say(f"warning: {folder} was not exported ({failure}); the run goes on")
        else:
            run.meter.event(step, "export", folder=str(folder.relative_to(run.setup.config.out)))
