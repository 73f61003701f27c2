"""What a run says of itself: losses, throughput, MFU and ETA -> console, log.txt, metrics.jsonl, TensorBoard.

    meter = Meter(...)                      on every rank; rank 0 writes, the others only take part in the sums
    meter.add_losses(losses)                after every micro-batch, without waiting for the device
    meter.add_step(counts)                  after every step
    meter.write_interval(step, ...)         every interval: sums over ranks, then one line everywhere

Losses are means over the masked tokens (pairs) of the interval, over all ranks. Tokens are real tokens, padding not
counted. MFU is the model's arithmetic for real tokens (Chowdhery et al. 2022, appendix B, with the head at masked
tokens only) as a share of the peak: the published one of a known GPU, the measured matrix product elsewhere. Where
other programs take the cores, it says nothing of this one and is unknown; so is a share above 1, of a peak that was
measured while the machine was busy.
"""

import json
import math
import re
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

from data_prep.outlets import Journal, can_redraw, failure_of
from pretrain.advice.machine import sheet_of
from pretrain.evaluation import EvalSource
from pretrain.model import Losses
from pretrain.monitor.board import Board, scalars
from pretrain.monitor.console import for_stderr, rendered
from pretrain.monitor.core_wait import BUSY, CoreWait
from pretrain.monitor.memory import peak
from pretrain.report.history import FAILED
from pretrain.state import StepCounts

GEMM_SIZES = {"cuda": (8192,), "cpu": (384, 1024)}  # a small product fits between the turns of other programs


def step_flops(config: BertConfig, counts: StepCounts) -> float:
    """Floating-point operations of a step's forward and backward pass on real tokens."""
    hidden, inner = config.hidden_size, config.intermediate_size
    encoder = config.num_hidden_layers * (counts.tokens * (8 * hidden**2 + 4 * hidden * inner))
    attention = config.num_hidden_layers * 4 * hidden * counts.attended
    heads = counts.masked * (2 * hidden**2 + 2 * hidden * config.vocab_size) + counts.pairs * 2 * hidden**2
    return 3.0 * (encoder + attention + heads)


def peak_flops(device: torch.device) -> float:
    """Peak FLOP/s of this rank's device: known for GPUs, else measured here in a quarter of a second."""
    if device.type == "cuda" and (sheet := sheet_of(torch.cuda.get_device_name(device))):
        return sheet.peak
    return gemm_peak(device, torch.float32)


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on this device: the best in a quarter of a second."""
    sizes = GEMM_SIZES[device.type]
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, dtype=dtype, device=device)
        until = time.perf_counter() + 0.25 / len(sizes)
        while time.perf_counter() < until:
            start = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _scores(sums: Tensor, source: EvalSource) -> dict[str, float]:
    """Means and shares, from the sums [4] over the samples of a source."""
    mlm, nsp, mlm_correct, nsp_correct = sums.tolist()
    masked, pairs = max(source.masked, 1), max(source.pairs, 1)
    return {
        "mlm_loss": mlm / masked,
        "mlm_acc": mlm_correct / masked,
        "perplexity": math.exp(min(mlm / masked, 700)),
        "nsp_loss": nsp / pairs,
        "nsp_acc": nsp_correct / pairs,
    }


class Meter:
    """Collects on every rank, writes on rank 0."""

    def __init__(
        self,
        run: Path,
        config: BertConfig,
        steps: int,
        first_step: int,
        device: torch.device,
        limit: float = 0.0,
        spent: float = 0.0,
    ):
        """`limit`: seconds of a run that goes by the clock, and `spent` of them so far; its bar goes by them, too."""
        self.config, self.steps, self.device, self.limit = config, steps, device, limit
        self.is_writer = dist.get_rank() == 0
        self.metrics, self.log = Journal(run / "metrics.jsonl"), Journal(run / "log.txt")
        self._failing: set[str] = set()  # what has been complained about
        on_terminal = self.is_writer and can_redraw(sys.stderr)
        tqdm.monitor_interval = 0  # no thread of its own
        self.bar: tqdm[Any] = tqdm(
            total=limit or steps,
            initial=spent if limit else first_step,
            unit="step",
            disable=not on_terminal,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {desc}" if limit else None,
        )
        self.board = Board(run / "tensorboard", first_step, self.say) if self.is_writer else None
        self.peak = 0.0
        self._measure_peak()
        self._core_wait = CoreWait()
        self.started = self.last_time = time.perf_counter()
        self.last_step = first_step
        self._reset()

    def _reset(self) -> None:
        self.sums: Tensor = torch.zeros(len(Losses._fields), dtype=torch.float64, device=self.device)
        self.pending = torch.zeros_like(self.sums)
        self.counts = {"masked": 0, "pairs": 0, "tokens": 0, "slots": 0}
        self.flops = 0.0

    def add_losses(self, losses: Losses) -> None:
        """Add a micro-batch of this rank; nothing waits for the device."""
        self.pending += torch.stack(losses).detach()

    def discard_step(self) -> None:
        """Forget the micro-batches of a step that did not happen: their losses may be no numbers."""
        self.pending.zero_()

    def step_loss(self, counts: StepCounts) -> float:
        """Loss of the step that add_step() will add, over all ranks; collective, and the host waits for the device."""
        mlm, nsp, *_ = self._over_ranks(self.pending.clone()).tolist()
        return mlm / max(counts.masked, 1) + nsp / max(counts.pairs, 1)

    def rewind(self, step: int) -> None:
        """Training goes on from an earlier step: forget the interval, and what TensorBoard has drawn after it."""
        self._reset()
        self.last_time, self.last_step = time.perf_counter(), step
        if self.board is not None:
            self.board.begin(step)

    def add_step(self, counts: StepCounts) -> None:
        """Add a step that happened, with its counts over all ranks."""
        self.sums += self.pending
        self.pending.zero_()
        for name in self.counts:
            self.counts[name] += getattr(counts, name)
        self.flops += step_flops(self.config, counts)

    def show_place(self, step: int, spent: float) -> None:
        """Move the bar, after every step: by the clock, where that is the measure of the run."""
        if self.bar.disable:
            return
        place = min(spent, self.limit) if self.limit else step
        if self.limit:
            left = tqdm.format_interval(self.limit - place)
            self.bar.set_description_str(f"step {step:,}, {left} left", refresh=False)
        self.bar.update(place - self.bar.n)

    def _measure_peak(self) -> None:
        """The best of all measurements: a busy machine shows less than it has."""
        peak = self._over_ranks(torch.tensor([peak_flops(self.device)], dtype=torch.float64)).item()
        self.peak = max(self.peak, peak)

    def _over_ranks(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def _memory_and_wait(self) -> tuple[float, float]:
        """Return of the rank with the most: bytes that it had in use at most since the run began, and the share of this
        interval in which it waited for a core (on a GPU it computes there, whoever has the cores)."""
        waited = self._core_wait.share() if self.device.type == "cpu" else 0.0
        most = torch.tensor([peak(self.device), waited], dtype=torch.float64, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        memory, waited = most.tolist()
        return memory, waited

    def say(self, message: str) -> None:
        """A line for people, on rank 0: console (above the bar, if there is one) and log.txt."""
        if self.is_writer:
            self._tell(message, message)

    def print_tables(self, *parts: Table | Text) -> None:
        """Tables for people, on rank 0: console and log.txt."""
        if self.is_writer:
            self._tell(for_stderr(*parts), rendered(*parts))

    def _tell(self, on_console: str, in_log: str) -> None:
        self.bar.write(on_console, file=sys.stderr)
        self.log.write(in_log)
        self._complain("the console", failure_of(sys.stderr), 0)
        self._complain(self.log.path, self.log.failure, self.log.lost)

    def _complain(self, outlet: object, failure: OSError | None, lost: int) -> None:
        """Say once that an outlet fails, and once that it does no longer: to those that are left. The run goes on."""
        name = str(outlet)
        if failure is not None and name not in self._failing:
            self._failing.add(name)
            reason = failure.strerror or failure
            self.say(f"warning: {name} cannot be written ({reason}); the run goes on, and saves as it would")
        elif failure is None and name in self._failing:
            self._failing.remove(name)
            self.say(f"{name} is written again; " + (f"{lost:,} lines are lost" if lost else "nothing is lost"))

    def write_interval(
        self, step: int, samples: int, tokens: int, lr: float, grad_norm: float, seconds_left: float | None = None
    ) -> dict[str, Any]:
        """Close an interval that ends with `step`; collective. Returns what was written.

        `seconds_left` of a run that goes by the clock; else it is estimated from the steps that are left.
        """
        mlm, nsp, mlm_correct, nsp_correct = self._over_ranks(self.sums).tolist()
        now = time.perf_counter()
        masked, pairs = max(self.counts["masked"], 1), max(self.counts["pairs"], 1)
        elapsed = now - self.last_time
        memory, waited = self._memory_and_wait()
        share = self.flops / elapsed / self.peak
        mfu = None if share > 1 or waited > BUSY else share
        line = {
            "kind": "train",
            "step": step,
            "samples": samples,
            "tokens": tokens,
            "loss": mlm / masked + nsp / pairs,
            "mlm_loss": mlm / masked,
            "nsp_loss": nsp / pairs,
            "mlm_acc": mlm_correct / masked,
            "nsp_acc": nsp_correct / pairs,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_s": self.counts["tokens"] / elapsed,
            "mfu": mfu,
            "padding_saved": 1 - self.counts["tokens"] / max(self.counts["slots"], 1),
            "memory_gb": memory / 1e9,
            "seconds": now - self.started,
        }
        self._record(line, step, "train")
        by_steps = (self.steps - step) * elapsed / max(step - self.last_step, 1)
        eta = by_steps if seconds_left is None else min(seconds_left, by_steps)
        of = f"/{self.steps}" if seconds_left is None else f" ({1 - max(seconds_left, 0) / self.limit:.0%} of the time)"
        parts, accuracy = "", f"{line['mlm_acc']:.3f}"
        if self.counts["pairs"]:
            parts = f" (mlm {line['mlm_loss']:.4f}, nsp {line['nsp_loss']:.4f})"
            accuracy += f"/{line['nsp_acc']:.3f}"
        self.say(
            f"step {step}{of}  loss {line['loss']:.4f}{parts}  "
            f"acc {accuracy}  lr {lr:.2e}  |g| {grad_norm:.2f}  "
            f"{line['tokens_per_s']:,.0f} tokens/s  MFU {'n/a' if mfu is None else f'{mfu:.2f}'}  "
            f"ETA {tqdm.format_interval(max(eta, 0))}"
        )
        self.last_time, self.last_step = now, step
        self._reset()
        return line

    def write_evaluation(
        self, step: int, sums: Tensor, sources: list[EvalSource], held_out: str = ""
    ) -> dict[str, Any]:
        """Write sums over the held-out samples [S, 4]: mlm loss, nsp loss, mlm correct, nsp correct of each source.

        `held_out` says which samples they are: losses on others do not compare.
        """
        self._measure_peak()
        whole = EvalSource("all", *(sum(numbers) for numbers in list(zip(*sources, strict=True))[1:]))
        line: dict[str, Any] = {"kind": "eval", "step": step} | _scores(sums.sum(0), whole)
        if held_out:
            line["held_out"] = held_out
        if len(sources) > 1:
            line["by_source"] = {
                source.name: _scores(sums[row], source) | {"samples": source.samples}
                for row, source in enumerate(sources)
            }
        self._record(line, step, "eval")
        self.say(
            f"held out, step {step}: mlm loss {line['mlm_loss']:.4f} (perplexity {line['perplexity']:.1f}, "
            f"accuracy {line['mlm_acc']:.3f})" + (f", nsp accuracy {line['nsp_acc']:.3f}" if whole.pairs else "")
        )
        if "by_source" in line:
            each = (f"{name} {of['mlm_loss']:.3f} ({of['samples']})" for name, of in line["by_source"].items())
            self.say(f"  mlm loss (samples) by source: {', '.join(each)}")
        return line

    def write_trust_ratios(self, step: int, ratios: dict[str, float]) -> None:
        """Write LAMB's trust ratios: least, median and largest, of all parameters and by layer."""
        by_layer: dict[str, list[float]] = defaultdict(list)
        for name, ratio in ratios.items():
            match = re.search(r"layer\.\d+|embeddings", name)
            by_layer[match[0] if match else "heads"].append(ratio)
        summary = {layer: _spread(values) for layer, values in by_layer.items()}
        line = {"kind": "trust", "step": step, "ratios": _spread(list(ratios.values())), "by_layer": summary}
        self._record(line, step, None)
        if self.board is not None:
            self.board.draw(step, {}, {f"trust_ratio/{layer}": spread for layer, spread in summary.items()})

    def event(self, step: int, event: str, **details: Any) -> None:
        """Write that something happened: resume, save, skip, stop."""
        self._record({"kind": "event", "step": step, "event": event, **details}, step, None)
        self.say(f"{event}, step {step}" + "".join(f", {name} {value}" for name, value in details.items()))

    def fail(self, why: str) -> None:
        """Write that the run goes no further; the console hears of it where the error is met."""
        if self.is_writer:
            self._record(
                {"kind": "event", "step": self.last_step, "event": FAILED, "reason": why}, self.last_step, None
            )
            self.log.write(f"{FAILED}, after step {self.last_step}: {why}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the throughput what is done within: an evaluation, a save."""
        began = time.perf_counter()
        yield
        self.last_time += time.perf_counter() - began
        self._core_wait.share()  # from here on

    def _record(self, line: dict[str, Any], step: int, group: str | None) -> None:
        if self.board is None:
            return
        self.metrics.write(json.dumps(line))
        self._complain(self.metrics.path, self.metrics.failure, self.metrics.lost)
        if group is not None:
            self.board.draw(step, scalars(group, line))

    def close(self) -> None:
        """End the bar and the curves, and say what of the metrics is missing in the end."""
        self.bar.close()
        if self.board is not None:
            self.board.close()
        if missing := self.metrics.waiting + self.metrics.lost:
            self.say(
                f"warning: {self.metrics.path} lacks {missing:,} lines ({self.metrics.failure or 'too many waited'})"
            )
