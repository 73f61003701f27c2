"""Learning rate, batch size and share of masked tokens as pure functions of how far a phase is."""

import math
from typing import Literal

Schedule = Literal["linear", "poly", "cosine", "constant", "wsd"]
POLY_POWER = 0.5  # NVIDIA's and bing_bert's BERT recipes with LAMB
BATCH_STAGES = 8  # equal stages in which a batch grows
WSD_DECAY = 0.2  # share of the steps in which warmup-stable-decay falls (Hu et al. 2024: 10 to 20 %)


def lr_multiplier(schedule: Schedule, step: int, warmup: int, total: int) -> float:
    """Return the fraction of the peak learning rate in optimizer step `step` = 0 .. total - 1.

    A linear rise over `warmup` steps that reaches the peak in step `warmup`, then the schedule, which would be 0 in
    step `total`: no step is spent at 0.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = max(0.0, (total - step) / max(total - warmup, 1))  # 1 at the end of the warm-up, 0 at `total`
    if schedule == "linear":
        return left
    if schedule == "poly":
        return left**POLY_POWER
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (1 - left)))
    if schedule == "wsd":
        return min(1.0, max(0.0, total - step) / max(WSD_DECAY * total, 1))
    return 1.0


def batch_size(samples_in_phase: int, full: int, warmup: int) -> int:
    """Return the samples of the step that begins after so many samples of the phase.

    The batch grows from an eighth of `full` to all of it in eight equal stages over `warmup` steps, as in Megatron's
    --rampup-batch-size. A function of samples, not of steps: a step skipped for an overflow changes nothing.
    """
    eighth, left = full // BATCH_STAGES, samples_in_phase
    for stage in range(1, BATCH_STAGES):
        steps = warmup * stage // BATCH_STAGES - warmup * (stage - 1) // BATCH_STAGES
        if left < steps * stage * eighth:
            return stage * eighth
        left -= steps * stage * eighth
    return full


def mask_rate(samples_in_phase: int, total: int, begin: float, end: float | None) -> float:
    """Return the share of the tokens to predict in a step that begins after so many of the `total` samples.

    From `begin` to `end` in a straight line; None: it stays. A function of samples, as the batch size is.
    """
    return begin if end is None else begin + (end - begin) * min(samples_in_phase / total, 1.0)
