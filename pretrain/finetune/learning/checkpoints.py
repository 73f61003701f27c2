"""Checkpoints of a seed under way: transformers' own, whole or not there, and what they leave out.

    SEED/step-120/   model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, trainer_state.json: Trainer's
                     course.json, course.safetensors, best.safetensors: losses, the order of the epoch, the best weights
                     manifest.json: a checksum of each

Trainer draws the order of an epoch from torch's generator when it begins, and would draw another one when it goes on.
So the state of the generator at that moment is kept. Its .pt and .pth are read by torch's restricted unpickler, which
makes tensors and numbers only; training_args.bin, a pickle that nobody reads, is not kept.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback

from data_prep.cli import InputError, say
from data_prep.files import sha256_of, sync_folder, sync_tree, write_json
from data_prep.untrusted import read_object
from pretrain.finetune.learning.best_epoch import BestEpoch
from pretrain.finetune.learning.unfinished import Unfinished
from pretrain.stop import STOPPED, StopRequests

MANIFEST, COURSE, TENSORS, BEST = "manifest.json", "course.json", "course.safetensors", "best.safetensors"
AT_THE_END = 60.0  # seconds since the last checkpoint from which on the end of training is one, too


class Course(TrainerCallback):
    """What a seed has been through: losses, since Trainer's own sums do not outlast a checkpoint, and time."""

    def __init__(self) -> None:
        self.curve: list[float] = []  # mean loss of each epoch
        self.total = 0.0  # sum of all losses of these epochs
        self.epoch_total = torch.tensor(0.0)  # of the epoch under way
        self.epoch_steps = 0
        self.steps = 0  # so far
        self.seconds = 0.0  # of earlier attempts
        self.is_over = False  # whether nothing is left to learn
        self._began = time.monotonic()

    def add(self, loss: torch.Tensor) -> None:
        """Count the loss of a step."""
        self.epoch_total = self.epoch_total.to(loss.device) + loss
        self.epoch_steps += 1
        self.steps += 1

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        total = self.epoch_total.item()
        self.curve.append(total / self.epoch_steps)
        self.total += total
        self.epoch_total, self.epoch_steps = torch.zeros_like(self.epoch_total), 0

    @property
    def mean(self) -> float:
        """Return the mean loss of the epoch under way."""
        return self.epoch_total.item() / max(1, self.epoch_steps)

    def to_json(self) -> dict[str, Any]:
        """Return all of it, exactly."""
        return {
            "curve": self.curve,
            "total": self.total,
            "epoch_total": self.epoch_total.item(),
            "epoch_steps": self.epoch_steps,
            "steps": self.steps,
            "seconds": self.seconds + time.monotonic() - self._began,
            "is_over": self.is_over,
        }

    def restore(self, said: dict[str, Any]) -> None:
        """Go on from what to_json() said."""
        self.curve, self.total, self.steps = said["curve"], said["total"], said["steps"]
        self.epoch_total, self.epoch_steps = torch.tensor(said["epoch_total"]), said["epoch_steps"]
        self.seconds, self.is_over = said["seconds"], said["is_over"]


class Checkpoints(TrainerCallback):
    """Saves a seed every few minutes, and when it is asked to stop: then it ends the process, too.

    The last of all callbacks: what the others do at the end of an epoch belongs to what is saved.
    """

    def __init__(self, unfinished: Unfinished, seed: int, stop: StopRequests, course: Course, best: BestEpoch | None):
        self.unfinished, self.seed, self.stop = unfinished, seed, stop
        self.course, self.best = course, best
        self.folder = unfinished.of_seed(seed)
        self.every = 60 * unfinished.config.save_minutes
        self._epoch_began: torch.Tensor | None = None  # torch's generator, when the epoch under way began
        self._is_restored = False
        self._saved = time.monotonic()

    def restore(self) -> Path | None:
        """Return the newest checkpoint, whose course and best weights are taken over; None where there is none.

        Raises
        ------
        InputError: it is damaged.
        """
        steps = sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        if not steps:
            return None
        newest = steps[-1]
        files = read_object(newest / MANIFEST)
        if any(not (newest / name).is_file() or sha256_of(newest / name) != files[name] for name in files):
            raise InputError(f"{newest} is damaged; remove {self.folder} to begin this seed anew")
        said = read_object(newest / COURSE)
        self.course.restore(said)
        self._epoch_began, self._is_restored = load_file(newest / TENSORS)["epoch_began"], True
        if self.best is not None:
            self.best.scores, self.best.weights = said["held_back"], load_file(newest / BEST)
        return newest

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop.hold()
        self._saved = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_restored and self._epoch_began is not None:
            torch.set_rng_state(self._epoch_began)  # the same order again
        self._is_restored = False
        self._epoch_began = torch.get_rng_state()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # The last step of an epoch is saved when the epoch has ended, with what that adds.
        if state.global_step % (state.max_steps // int(args.num_train_epochs)):
            control.should_save |= self._is_due(self.every, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._epoch_began = None  # the next one begins with the generator as it is saved
        self.course.is_over = control.should_training_stop or state.global_step >= state.max_steps
        control.should_save |= self._is_due(min(self.every, AT_THE_END) if self.course.is_over else self.every, model)

    def _is_due(self, seconds: float, model: Any) -> bool:
        """Return whether it is time to save, and there is room; where there is none, that is said."""
        if not self.stop.signal and time.monotonic() - self._saved < seconds:
            return False
        # Weights, two moments of each, the best weights.
        needed = 4 * sum(weight.numel() * weight.element_size() for weight in model.parameters())
        free = shutil.disk_usage(self.folder.parent).free
        if free >= needed:
            return True
        self._saved = time.monotonic()
        say(
            f"warning: not saved: a checkpoint takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in "
            f"{self.folder.parent}"
        )
        if self.stop.signal:
            raise SystemExit(STOPPED)
        return False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add what Trainer leaves out, and put the checkpoint in the place of the one before."""
        self.unfinished.begin()
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (written / "training_args.bin").unlink(missing_ok=True)
        held = {} if self.best is None else {"held_back": self.best.scores}
        write_json(written / COURSE, self.course.to_json() | held)
        began = torch.get_rng_state() if self._epoch_began is None else self._epoch_began
        save_file({"epoch_began": began}, written / TENSORS)
        if self.best is not None:
            save_file(self.best.weights, written / BEST)
        write_json(written / MANIFEST, {path.name: sha256_of(path) for path in sorted(written.iterdir())})
        sync_tree(written)
        self.folder.mkdir(parents=True, exist_ok=True)
        newest = self.folder / f"step-{state.global_step}"
        os.replace(written, newest)
        sync_folder(self.folder)
        for other in self.folder.glob("step-*"):
            if other != newest:
                shutil.rmtree(other, ignore_errors=True)
        self._saved = time.monotonic()
        if self.stop.signal:
            tell_stopped(
                f"seed {self.seed}, step {state.global_step} of {state.max_steps} is saved", self.folder.parent
            )
            raise SystemExit(STOPPED)


def tell_stopped(what: str, folder: Path) -> None:
    """Say how to go on."""
    say(f"stopped: {what} in {folder}; the same command goes on from there")


class FineTuner(Trainer):
    """transformers' Trainer, which tells its losses to a Course, and may learn in bf16.

    What it answers is in fp32 always, as predict answers: of numbers around 1,900 bf16 knows every eighth only.
    """

    def __init__(self, *args: Any, course: Course, is_narrow: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._course, self._is_narrow = course, is_narrow

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch."""
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._is_narrow and model.training):
            return super().compute_loss(model, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Learn from a batch; its loss is returned and counted."""
        loss = super().training_step(*args, **kwargs)
        self._course.add(loss)
        return loss
