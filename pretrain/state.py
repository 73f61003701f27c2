"""How far a run is: what a checkpoint's state.json holds. No torch here.

state.after_step(counts, is_skipped=False, seconds=...)   -> the state after a step
state.after_evaluation(loss, held_out)                    -> the state after an evaluation
state.to_json(), RunState.from_json(fields)               the names in the file are older than those in the code
"""

import math
from typing import NamedTuple

from data_prep.fields import Fields, is_number
from data_prep.json_types import JsonObject

# Of DeepSpeed's fp16 loss scaler, by its own names. They stand in state.json, beside the fields of RunState.
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

LOSS_WINDOW = 32  # steps whose losses are remembered, for --rollback


class DataPosition(NamedTuple):
    """Where the stream of samples goes on: the next one is number `sample` of epoch `epoch`."""

    epoch: int = 0
    sample: int = 0
    phase: int = 0  # of the run
    samples_in_phase: int = 0  # that this phase has had
    seq_len: int = 0  # of the samples that this is a place among; 0: not told
    window: int = 0  # of the epoch, from 1, in which `sample` is; 0: the epoch has none

    @classmethod
    def from_json(cls, fields: Fields) -> "DataPosition":
        """Return what to_json() has written, or a version that knew fewer fields.

        Raises
        ------
        InputError: a field of another type, or out of its range.
        """
        return cls(
            *(fields.whole(name, default=0) for name in ("epoch", "sample", "phase", "taken", "seq_len", "window"))
        )

    def to_json(self) -> dict[str, int]:
        """Return the position by the names in state.json."""
        epoch, sample, phase, taken, seq_len, window = self
        place = {"epoch": epoch, "sample": sample, "phase": phase, "taken": taken, "seq_len": seq_len}
        return place | ({"window": window} if window else {})

    @property
    def epochs_begun(self) -> int:
        """Epochs of which a sample has been drawn."""
        return self.epoch + (self.sample > 0 or self.window > 1)

    def entering(self, phase: int, seq_len: int, fresh_epoch: int | None = None) -> "DataPosition":
        """Return where a phase goes on: where it was, else where the one before ended, or where its samples come in
        another order at the beginning of `fresh_epoch`, else at the first of other samples."""
        had = self.samples_in_phase if phase == self.phase else 0
        if self.seq_len not in (0, seq_len):
            return DataPosition(phase=phase, samples_in_phase=had, seq_len=seq_len)
        place = {} if fresh_epoch is None else {"epoch": fresh_epoch, "sample": 0, "window": 0}
        return self._replace(phase=phase, samples_in_phase=had, seq_len=seq_len, **place)


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
    steps_skipped: int = 0  # steps that did not, for an overflow
    samples: int = 0
    tokens: int = 0
    position: DataPosition = DataPosition()
    seconds: float = 0.0  # of training, where --hours measures the run
    best_loss: float | None = None  # of the evaluations of this phase, on one held-out set
    held_out_identity: str = ""  # of the set that they were taken on
    evals_since_best: int = 0
    recent_losses: tuple[float, ...] = ()  # of the last steps, where --rollback watches them
    skipped_spans: tuple[tuple[int, int], ...] = ()  # [first, end) of spans of samples, in the order they are drawn
    averaged: int = 0  # steps in the average of the weights, where --average keeps one

    @classmethod
    def from_json(cls, fields: Fields) -> "RunState":
        """Return the state that a state.json holds, which may be of a version that knew fewer fields.

        Raises
        ------
        InputError: a field of another type, or out of its range.
        """
        position = fields.object("position")
        best_loss = fields.get("best_loss", None)
        state = cls(
            step=fields.whole("step"),
            steps_skipped=fields.whole("skipped", default=0),
            samples=fields.whole("samples", default=0),
            tokens=fields.whole("tokens", default=0),
            position=DataPosition.from_json(position),
            seconds=fields.number("seconds", least=0.0, default=0.0),
            best_loss=None if best_loss is None or best_loss != best_loss else fields.number("best_loss"),
            held_out_identity=fields.text("held_out", default=""),
            evals_since_best=fields.whole("worse", default=0),
            recent_losses=_losses(fields),
            skipped_spans=_spans(fields),
            averaged=fields.whole("averaged", default=0),
        )
        if max(state.position.sample, state.position.samples_in_phase) > state.samples_consumed:
            raise position.error(f"lies beyond the {state.samples_consumed:,} samples that the run has drawn")
        return state

    def to_json(self) -> JsonObject:
        """Return what from_json() reads."""
        return {
            "step": self.step,
            "skipped": self.steps_skipped,
            "samples": self.samples,
            "tokens": self.tokens,
            "position": self.position.to_json(),
            "seconds": self.seconds,
            "best_loss": self.best_loss,
            "held_out": self.held_out_identity,
            "worse": self.evals_since_best,
            "recent": self.recent_losses,
            "passed_over": self.skipped_spans,
        } | ({"averaged": self.averaged} if self.averaged else {})

    @property
    def samples_consumed(self) -> int:
        """Samples that were trained on or passed over: where `position` is, counted from the beginning."""
        return self.samples + sum(end - first for first, end in self.skipped_spans)

    def after_step(self, counts: StepCounts, *, is_skipped: bool, seconds: float) -> "RunState":
        """Return the state after a step, or after the attempt at one."""
        return self._replace(
            step=self.step + (not is_skipped),
            steps_skipped=self.steps_skipped + is_skipped,
            samples=self.samples + counts.samples,
            tokens=self.tokens + counts.tokens,
            position=counts.end,
            seconds=seconds,
        )

    def after_loss(self, loss: float) -> "RunState":
        """Return the state that remembers the loss of its step."""
        return self._replace(recent_losses=(*self.recent_losses, loss)[-LOSS_WINDOW:])

    def entering(self, phase: int, seq_len: int, fresh_epoch: int | None = None) -> "RunState":
        """Return the state at its place in the data of a phase; what it was best at in another phase does not count."""
        state = self if self.position.phase == phase else self._replace(best_loss=None, evals_since_best=0)
        return state._replace(position=self.position.entering(phase, seq_len, fresh_epoch))

    def after_evaluation(self, loss: float, held_out_identity: str) -> "RunState":
        """Return the state after an evaluation; losses of another held-out set are no measure for this one."""
        best_loss = self.best_loss if held_out_identity == self.held_out_identity else None
        if math.isfinite(loss) and (best_loss is None or loss < best_loss):
            return self._replace(best_loss=loss, held_out_identity=held_out_identity, evals_since_best=0)
        return self._replace(evals_since_best=self.evals_since_best + 1)


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
