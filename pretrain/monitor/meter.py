"""The sums of a run: losses, throughput, MFU and the time that is left, over all ranks, an interval at a time.

    meter = Meter(run, config, ...)         on every rank; rank 0 writes (run_log.py), the others only take part in sums
    meter.add_losses(losses)                after every micro-batch, without waiting for the device
    meter.add_step(counts)                  after every step
    meter.write_interval(step, ...)         every interval: sums over ranks, then one line everywhere

Losses are means over the masked tokens (pairs) of the interval, over all ranks. Tokens are real tokens, padding not
counted. MFU is the model's arithmetic for real tokens (Chowdhery et al. 2022, appendix B, with the head at masked
tokens only) as a share of the peak: the published one of a known GPU, the measured matrix product elsewhere. Where
other programs take the cores, it says nothing of this one and is unknown; so is a share above 1, of a peak that was
measured while the machine was busy.
"""

import math
import re
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from rich.text import Text
from torch import Tensor
from tqdm import tqdm
from transformers import BertConfig

from data_prep.json_types import JsonObject
from data_prep.progress import clock_time
from data_prep.safe_output import can_redraw
from pretrain.distributed import gather_objects
from pretrain.evaluation import EvalSource
from pretrain.likelihood.minimal_pairs import PairScores
from pretrain.model import Losses
from pretrain.monitor.core_wait import BUSY, CoreWait
from pretrain.monitor.flops import peak_flops, step_flops
from pretrain.monitor.lines import TrainLine
from pretrain.monitor.memory import peak
from pretrain.monitor.run_log import RunLog
from pretrain.monitor.stragglers import Pace, StragglerWatch, pace_of
from pretrain.settings.config import TrackerName
from pretrain.state import StepCounts
from pretrain.zero.collective_time import CollectiveTime


class Meter:
    """Collects on every rank, writes on rank 0."""

    def __init__(
        self,
        run: Path,
        config: BertConfig,
        *,
        steps: int,
        first_step: int,
        device: torch.device,
        limit: float = 0.0,
        spent: float = 0.0,
        track: TrackerName | None = None,
    ):
        """Begin at `first_step` of so many `steps`.

        limit: seconds of a run that goes by the clock, `spent` of them so far; its bar goes by them, too
        """
        self.config, self.steps, self.device, self.limit = config, steps, device, limit
        is_writer = dist.get_rank() == 0
        tqdm.monitor_interval = 0  # no thread of its own
        self.bar: tqdm[Any] = tqdm(
            total=limit or steps,
            initial=spent if limit else first_step,
            unit="step",
            disable=not (is_writer and can_redraw(sys.stderr)),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {desc}" if limit else None,
        )
        self.log = RunLog(run, first_step, self.bar, is_writer=is_writer, track=track)
        self.collective_time = CollectiveTime(device)
        self._collectives_before = 0.0  # seconds of it that are not of this interval
        self.peak = 0.0  # FLOP/s of all ranks
        self._measure_peak()
        self._core_wait = CoreWait()
        self._stragglers = StragglerWatch()
        self._hosts = gather_objects(socket.gethostname()) if dist.get_world_size() > 1 else []
        self.started = self.last_time = time.perf_counter()
        self.last_step = first_step
        self._reset()

    def _reset(self) -> None:
        """Begin an interval."""
        self.sums: Tensor = torch.zeros(len(Losses._fields), dtype=torch.float64, device=self.device)
        self.pending = torch.zeros_like(self.sums)  # of the step under way
        self.counts = {"masked": 0, "pairs": 0, "tokens": 0, "slots": 0}
        self.flops = 0.0

    # What a step adds

    def add_losses(self, losses: Losses) -> None:
        """Add a micro-batch of this rank; nothing waits for the device."""
        self.pending += torch.stack(losses).detach()

    def add_step(self, counts: StepCounts) -> None:
        """Add a step that happened, with its counts over all ranks."""
        self.sums += self.pending
        self.pending.zero_()
        for name in self.counts:
            self.counts[name] += getattr(counts, name)
        self.flops += step_flops(self.config, counts)

    def discard_step(self) -> None:
        """Forget the micro-batches of a step that did not happen: their losses may be no numbers."""
        self.pending.zero_()

    def step_loss(self, counts: StepCounts) -> float:
        """Return the loss, over all ranks, of the step that add_step() will add. Collective; the host waits for the
        device."""
        mlm, nsp, *_ = self._over_ranks(self.pending.clone()).tolist()
        return mlm / max(counts.masked, 1) + nsp / max(counts.pairs, 1)

    def rewind(self, step: int) -> None:
        """Go on from an earlier step: forget the interval, and what TensorBoard has drawn after it."""
        self._reset()
        self.last_time, self.last_step = time.perf_counter(), step
        self._collectives_before = self.collective_time.seconds()
        self.log.rewind(step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the throughput what is done within: an evaluation, a save."""
        began, in_collectives = time.perf_counter(), self.collective_time.seconds()
        yield
        self.last_time += time.perf_counter() - began
        self._collectives_before += self.collective_time.seconds() - in_collectives
        self._core_wait.share()  # from here on

    def show_place(self, step: int, spent: float) -> None:
        """Move the bar, after every step: by the clock, where that is the measure of the run."""
        if self.bar.disable:
            return
        place = min(spent, self.limit) if self.limit else step
        if self.limit:
            self.bar.set_description_str(f"step {step:,}, {clock_time(self.limit - place)} left", refresh=False)
        self.bar.update(place - self.bar.n)

    # Over all ranks

    def _over_ranks(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        with self.collective_time.span():
            dist.all_reduce(values)
        return values.cpu()

    def _measure_peak(self) -> None:
        """Keep the best of all measurements: a busy machine shows less than it has."""
        measured = torch.tensor([peak_flops(self.device)], dtype=torch.float64)
        self.peak = max(self.peak, self._over_ranks(measured).item())

    def _of_all_ranks(self, elapsed: float) -> tuple[float, float, Pace | None]:
        """Return of the rank with the most: bytes that it had in use at most since the run began, and the share of this
        interval, of so many seconds, in which it waited for a core (on a GPU it computes there, whoever has the cores).
        And the pace of several ranks. One message."""
        waited = self._core_wait.share() if self.device.type == "cpu" else 0.0
        in_collectives = self.collective_time.seconds() - self._collectives_before
        self._collectives_before += in_collectives
        # Behind the two whose maximum is wanted a place for each rank: only it fills it, and the maximum has all.
        rank, world = dist.get_rank(), dist.get_world_size()
        times = torch.zeros(2, world, dtype=torch.float64)
        times[:, rank] = torch.tensor([elapsed, in_collectives])
        most = torch.cat([torch.tensor([peak(self.device), waited], dtype=torch.float64), times.flatten()])
        most = most.to(self.device)
        with self.collective_time.span():
            dist.all_reduce(most, dist.ReduceOp.MAX)
        memory, waited, *each = most.tolist()
        return memory, waited, pace_of(each[:world], each[world:]) if world > 1 else None

    # What is written

    def write_interval(
        self, step: int, samples: int, tokens: int, lr: float, grad_norm: float, seconds_left: float | None = None
    ) -> TrainLine:
        """Close an interval that ends with `step`; collective. Return what was written.

        `seconds_left` of a run that goes by the clock; else it is estimated from the steps that are left.
        """
        mlm, nsp, mlm_correct, nsp_correct = self._over_ranks(self.sums).tolist()
        now = time.perf_counter()
        elapsed = now - self.last_time
        memory, waited, pace = self._of_all_ranks(elapsed)
        masked, pairs = max(self.counts["masked"], 1), max(self.counts["pairs"], 1)
        share = self.flops / elapsed / self.peak
        line: TrainLine = {
            "kind": "train",
            "step": step,
            "samples": samples,
            "tokens": tokens,
            "loss": mlm / masked + nsp / pairs,
            "mlm_loss": mlm / masked,
            "nsp_loss": nsp / pairs,
            "mlm_acc": mlm_correct / masked,
            "nsp_acc": nsp_correct / pairs,
            "mask_rate": self.counts["masked"] / max(self.counts["tokens"], 1),
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_s": self.counts["tokens"] / elapsed,
            "mfu": None if share > 1 or waited > BUSY else share,
            "padding_saved": 1 - self.counts["tokens"] / max(self.counts["slots"], 1),
            "memory_gb": memory / 1e9,
            "seconds": now - self.started,
        }
        if pace is not None:
            line["slowest_rank"], line["slowdown"], line["collectives"] = pace
        self.log.write_line({**line}, step, "train")
        self.log.say(self._in_words(line, elapsed, seconds_left))
        if pace is not None:
            self._say_straggler(pace)
        self.last_time, self.last_step = now, step
        self._reset()
        return line

    def _say_straggler(self, pace: Pace) -> None:
        """Name a rank for which the others have begun to wait, or wait no longer."""
        if (found := self._stragglers.look(pace)) is None:
            return
        who = f"rank {found.rank} on {self._hosts[found.rank]}"
        if found.is_over:
            self.say(f"{who} keeps pace again")
            return
        self.say(
            f"warning: {who} is slow: its own work takes {found.slowdown:.2f} times as long as that of the others, who "
            f"wait for it (all ranks together are in collectives for {pace.collectives:.0%} of the time)"
        )

    def _in_words(self, line: TrainLine, elapsed: float, seconds_left: float | None) -> str:
        """Return an interval of so many seconds as a line for people."""
        step, mfu = line["step"], line["mfu"]
        by_steps = (self.steps - step) * elapsed / max(step - self.last_step, 1)
        eta = by_steps if seconds_left is None else min(seconds_left, by_steps)
        of = f"/{self.steps}" if seconds_left is None else f" ({1 - max(seconds_left, 0) / self.limit:.0%} of the time)"
        parts, accuracy = "", f"{line['mlm_acc']:.3f}"
        if self.counts["pairs"]:
            parts = f" (mlm {line['mlm_loss']:.4f}, nsp {line['nsp_loss']:.4f})"
            accuracy += f"/{line['nsp_acc']:.3f}"
        return (
            f"step {step}{of}  loss {line['loss']:.4f}{parts}  "
            f"acc {accuracy}  lr {line['lr']:.2e}  |g| {line['grad_norm']:.2f}  "
            f"{line['tokens_per_s']:,.0f} tokens/s  MFU {'n/a' if mfu is None else f'{mfu:.2f}'}  "
            f"ETA {clock_time(max(eta, 0))}"
        )

    def write_evaluation(
        self,
        step: int,
        sums: Tensor,
        sources: list[EvalSource],
        held_out_identity: str = "",
        pairs: PairScores | None = None,
        *,
        of_average: Tensor | None = None,
        pairs_of_average: PairScores | None = None,
    ) -> JsonObject:
        """Write sums over the held-out samples [S, 4]: mlm loss, nsp loss, mlm correct, nsp correct of each source.
        Return what was written.

        `held_out_identity` says which samples they are: losses on others do not compare. `pairs`: how the model does on
        minimal pairs, where these are scored. `of_average` and `pairs_of_average`: the same with averaged weights,
        whose scores have the names of the others behind "avg_".
        """
        self._measure_peak()
        whole = EvalSource("all", *(sum(numbers) for numbers in list(zip(*sources, strict=True))[1:]))
        line: JsonObject = {"kind": "eval", "step": step} | _scores(sums.sum(0), whole)
        if of_average is not None:
            line |= _averaged(_scores(of_average.sum(0), whole))
        if held_out_identity:
            line["held_out"] = held_out_identity
        if len(sources) > 1:
            line["by_source"] = {
                source.name: _scores(sums[row], source) | {"samples": source.samples}
                for row, source in enumerate(sources)
            }
            if of_average is not None:
                for row, source in enumerate(sources):
                    line["by_source"][source.name] |= _averaged(_scores(of_average[row], source))
        if pairs is not None:
            line["pairs_acc"] = pairs.accuracy
            if pairs_of_average is not None:
                line |= _averaged({"pairs_acc": pairs_of_average.accuracy})
            line["pairs_by_group"] = {name: score.accuracy for name, score in pairs.groups.items()}
        self.log.write_line(line, step, "eval")
        for what, name in (("held out", ""), ("  averaged weights", "avg_"))[: 1 + (of_average is not None)]:
            self.log.say(
                f"{what}, step {step}: mlm loss {line[f'{name}mlm_loss']:.4f} (perplexity "
                f"{line[f'{name}perplexity']:.1f}, accuracy {line[f'{name}mlm_acc']:.3f})"
                + (f", nsp accuracy {line[f'{name}nsp_acc']:.3f}" if whole.pairs else "")
            )
        if "by_source" in line:
            each = (f"{name} {of['mlm_loss']:.3f} ({of['samples']})" for name, of in line["by_source"].items())
            self.log.say(f"  mlm loss (samples) by source: {', '.join(each)}")
        if pairs is not None:
            ties = f", {pairs.ties:,} ties" if pairs.ties else ""
            of = f"{pairs.pairs:,} pairs in {len(pairs.groups)} group{'s' * (len(pairs.groups) > 1)}"
            averaged = "" if pairs_of_average is None else f", of averaged weights {pairs_of_average.accuracy:.3f}"
            self.log.say(f"  minimal pairs: accuracy {pairs.accuracy:.3f}{averaged} ({of}{ties})")
        return line

    def write_trust_ratios(self, step: int, ratios: dict[str, float]) -> None:
        """Write LAMB's trust ratios: least, median and largest, of all parameters and by layer."""
        by_layer: dict[str, list[float]] = defaultdict(list)
        for name, ratio in ratios.items():
            match = re.search(r"layer\.\d+|embeddings", name)
            by_layer[match[0] if match else "heads"].append(ratio)
        summary = {layer: _spread(values) for layer, values in by_layer.items()}
        self.log.write_line(
            {"kind": "trust", "step": step, "ratios": _spread(list(ratios.values())), "by_layer": summary}, step
        )
        self.log.draw_together(step, {f"trust_ratio/{layer}": spread for layer, spread in summary.items()})

    def event(self, step: int, event: str, **details: Any) -> None:
        """Write that something happened: resume, restart, save, skip, stop."""
        self.log.event(step, event, **details)

    def fail(self, why: str) -> None:
        """Write that the run goes no further; the console hears of it where the error is met."""
        self.log.fail(self.last_step, why)

    def say(self, message: str) -> None:
        """Write a line for people."""
        self.log.say(message)

    def print_tables(self, *parts: Table | Text) -> None:
        """Write tables for people."""
        self.log.print_tables(*parts)

    def close(self) -> None:
        """End the bar and the curves."""
        self.log.close()


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _averaged(scores: dict[str, float]) -> dict[str, float]:
    return {f"avg_{name}": value for name, value in scores.items()}


def _scores(sums: Tensor, source: EvalSource) -> dict[str, float]:
    """Return means and shares, from the sums [4] over the samples of a source."""
    mlm, nsp, mlm_correct, nsp_correct = sums.tolist()
    masked, pairs = max(source.masked, 1), max(source.pairs, 1)
    return {
        "mlm_loss": mlm / masked,
        "mlm_acc": mlm_correct / masked,
        "perplexity": math.exp(min(mlm / masked, 700)),
        "nsp_loss": nsp / pairs,
        "nsp_acc": nsp_correct / pairs,
    }
