"""Which average of the weights a run keeps beside them: the `--average` of the command line. No torch here.

    averaging = parse_average("ema=.999")
    count = averaging.count_after(count, ...)      after each step: how many steps are in the average now, 0: none
    averaging.share_of_newest(count)               average += share * (weights - average)

    ema=D       exponential moving average. The n-th step's weights enter with the share 1 - d, d = min(D, (n - 1) /
                (n + 8)): the first average is the weights after the first step, not the initial ones, an early one goes
                back over about a ninth of the steps so far, and d is D from step 9 D / (1 - D) on (8,991 for .999).
                TensorFlow's ExponentialMovingAverage and diffusers' EMAModel have the same rise.
    last=S      mean of the weights after each step in the last share S of the run: of its steps, over all phases, or
                of its clock under --hours. Before that there is no average.

Steps that are skipped, as their gradient is not finite, are not counted.
"""

from typing import Literal, NamedTuple, cast

from data_prep.cli import InputError
from data_prep.ranges import Range

Kind = Literal["off", "ema", "last"]
RANGES = {
    "ema": Range(0, 1, low_open=True, high_open=True, why="how much of the average a step keeps, .999 say"),
    "last": Range(0, 1, low_open=True, why="the share of the run that the mean is over, .2 say"),
}


class Averaging(NamedTuple):
    """An average of the weights after each step."""

    kind: Kind = "off"
    value: float = 0.0  # decay of "ema", share of the run of "last"

    def __str__(self) -> str:
        return f"{self.kind}={self.value}" if self.is_on else self.kind

    @property
    def is_on(self) -> bool:
        """Return whether there is one."""
        return self.kind != "off"

    def count_after(self, count: int, *, step: int, steps: int, share_of_hours: float | None) -> int:
        """Return how many steps are in the average after `step` of so many, `count` of them before it; 0: none.

        share_of_hours: what of the clock was spent before the step; None for a run that goes by steps
        """
        if self.kind == "ema":
            return count + 1
        if not self.is_on:
            return 0
        if share_of_hours is not None:
            return count + 1 if share_of_hours >= 1 - self.value else 0
        first = steps - max(1, round(self.value * steps))  # 10 steps, last=.2: it is 8, and steps 9 and 10 are in
        if step <= first:
            return 0
        # It begins anew where it holds more steps than the share has had: --steps was another number before a resume.
        return count + 1 if count < step - first else 1

    def share_of_newest(self, count: int) -> float:
        """Return the share with which the newest weights enter an average of so many steps, themselves included."""
        if self.kind == "last":
            return 1 / count
        return 1 - min(self.value, (count - 1) / (count + 8))

    def in_words(self, count: int) -> str:
        """Return what an average of so many steps is."""
        steps = f"{count:,} step{'s' * (count > 1)}"
        if self.kind == "last":
            return f"mean of the weights after each of the last {steps}"
        return f"exponential moving average of the weights, decay {self.value:g}, over {steps}"


OFF = Averaging()


def parse_average(text: str) -> Averaging:
    """Return what an --average asks for.

    Raises
    ------
    InputError: neither off nor ema=D or last=S, or a number outside its range.
    """
    if text == str(OFF):
        return OFF
    kind, equals, value = text.partition("=")
    if not equals or kind not in RANGES:
        raise InputError(
            f"--average {text!r:.40} must be ema=DECAY (ema=.999), last=SHARE (last=.2: the mean over the last fifth "
            "of the run) or off"
        )
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not RANGES[kind].holds(number):
        raise InputError(f"--average {text:.40}: {value!r:.20} must {RANGES[kind]}")
    return Averaging(cast(Kind, kind), number)
