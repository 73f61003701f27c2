"""How far a run is: what stands in state.json, and what a step adds to it. Numbers only, the same on all ranks.

RunState() -> .after(counts of a step) -> .evaluated(loss) -> ... -> .as_json() -> RunState.of(fields)
state.position                      where the next step begins in the data: all that a resume needs of it
"""

import math
from typing import Any, NamedTuple

from data_prep.fields import Fields, is_number


class DataPosition(NamedTuple):
    """Where the stream of samples goes on: the next one is number `sample` of epoch `epoch`."""

    epoch: int = 0
    sample: int = 0
    phase: int = 0  # of the run
    samples_in_phase: int = 0  # that this phase has had
    seq_len: int = 0  # of the samples that this is a place among; 0: not told

    @classmethod
    def from_json(cls, fields: Fields) -> "DataPosition":
        """Return what to_json() has written, or a version that knew fewer fields.

        Raises
        ------
        InputError: a field of another type, or out of its range.
        """
        return cls(*(fields.whole(name, default=0) for name in ("epoch", "sample", "phase", "taken", "seq_len")))

    def to_json(self) -> dict[str, int]:
        """Return the position by the names in state.json."""
        epoch, sample, phase, taken, seq_len = self
        return {"epoch": epoch, "sample": sample, "phase": phase, "taken": taken, "seq_len": seq_len}

    def entering(self, phase: int, seq_len: int) -> "DataPosition":
        """Return where a phase goes on: where it was, else where the one before ended, else at the first of other
        samples."""
        had = self.samples_in_phase if phase == self.phase else 0
        if self.seq_len in (0, seq_len):
            return self._replace(phase=phase, samples_in_phase=had, seq_len=seq_len)
        return DataPosition(phase=phase, samples_in_phase=had, seq_len=seq_len)


class StepCounts(NamedTuple):
    """What a whole step holds, over all ranks."""

    samples: int
    masked: int  # tokens to predict
    pairs: int  # samples with a sentence-pair label
    tokens: int
    slots: int  # tokens a padded batch would hold
    attended: int  # pairs of tokens that attend to each other
    end: DataPosition  # where the next step begins


class RunState(NamedTuple):
    """How far a run is, over all ranks."""

    step: int = 0  # optimizer steps that happened
    skipped: int = 0  # steps that did not, for an overflow
    samples: int = 0
    tokens: int = 0
    position: DataPosition = DataPosition()
    seconds: float = 0.0  # of training, where --hours measures the run
    best_loss: float | None = None  # of the evaluations of this phase, on one held-out set
    held_out: str = ""  # which set that is (Evaluation.identity)
    worse: int = 0  # evaluations since
    recent: tuple[float, ...] = ()  # losses of the last steps, where --rollback watches them
    passed_over: tuple[tuple[int, int], ...] = ()  # first and end of spans of samples, in the order they are drawn

    @classmethod
    def of(cls, fields: Fields) -> "RunState":
        """From a state.json, which may be of a version that knew fewer fields.

        Raises
        ------
        InputError: a field of another type, or out of its range.
        """
        at = fields.of("position")
        best = fields.get("best_loss", None)
        state = cls(
            fields.whole("step"),
            fields.whole("skipped", default=0),
            fields.whole("samples", default=0),
            fields.whole("tokens", default=0),
            DataPosition.from_json(at),
            fields.number("seconds", least=0.0, default=0.0),
            None if best is None or best != best else fields.number("best_loss"),
            fields.text("held_out", default=""),
            fields.whole("worse", default=0),
            _losses(fields),
            _spans(fields),
        )
        if max(state.position.sample, state.position.samples_in_phase) > state.drawn:
            raise at.error(f"lies beyond the {state.drawn:,} samples that the run has drawn")
        return state

    def as_json(self) -> dict[str, Any]:
        """What of() reads."""
        return self._asdict() | {"position": self.position.to_json()}

    @property
    def drawn(self) -> int:
        """Samples that were trained on or passed over: where `position` is, counted from the beginning."""
        return self.samples + sum(end - first for first, end in self.passed_over)

    def after(self, counts: StepCounts, happened: bool, seconds: float) -> "RunState":
        """The state after a step, or after the attempt at one."""
        return self._replace(
            step=self.step + happened,
            skipped=self.skipped + (not happened),
            samples=self.samples + counts.samples,
            tokens=self.tokens + counts.tokens,
            position=counts.end,
            seconds=seconds,
        )

    def evaluated(self, loss: float, held_out: str) -> "RunState":
        """The state after an evaluation; losses of another held-out set are no measure for this one."""
        best = self.best_loss if held_out == self.held_out else None
        if math.isfinite(loss) and (best is None or loss < best):
            return self._replace(best_loss=loss, held_out=held_out, worse=0)
        return self._replace(worse=self.worse + 1)


def _losses(fields: Fields) -> tuple[float, ...]:
    losses = fields.list("recent", default=[])
    if not all(map(is_number, losses)):
        raise fields.error("says recent, which are not losses")
    return tuple(losses)


def _spans(fields: Fields) -> tuple[tuple[int, int], ...]:
    spans = fields.list("passed_over", default=[])
    for span in spans:
        if not (isinstance(span, list) and [type(end) for end in span] == [int, int] and 0 <= span[0] <= span[1]):
            raise fields.error(f"says passed_over {span!r:.60}, which is not a span of samples")
    return tuple((first, end) for first, end in spans)
