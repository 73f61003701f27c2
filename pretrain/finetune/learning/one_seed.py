"""Fine-tune a model with one seed, and ask it.

tuned = fine_tune(work, seed, model, unfinished, stop)      the model is trained in place, and then measured
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from data_prep.cli import InputError, say
from data_prep.json_types import JsonObject
from data_prep.progress import Progress
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.examples import LabelScale
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.learning.best_epoch import BestEpoch
from pretrain.finetune.learning.checkpoints import Checkpoints, Course, FineTuner
from pretrain.finetune.learning.unfinished import Unfinished
from pretrain.finetune.tasks.label_sets import best_threshold, log_odds
from pretrain.finetune.tasks.task import Feature, Task
from pretrain.finetune.tasks.texts import undo_scale
from pretrain.stop import StopRequests

WARMUP = 0.1  # of all steps
WEIGHT_DECAY = 0.01
CLIP = 1.0  # norm of the gradient
NOTE_SECONDS = 5.0  # between two looks at the loss, for which a GPU must come to rest


class Encoded(NamedTuple):
    """Examples, and what the model is given of them."""

    examples: list[Example]
    features: list[Feature]


class Work(NamedTuple):
    """What is the same for every seed."""

    config: FinetuneConfig  # a settled one
    task: Task
    names: list[str]  # of the labels
    collator: Any
    training: Encoded
    evaluation: Encoded
    held: Encoded | None  # what is chosen by, and not learnt from
    scale: LabelScale | None  # on which the labels of training and held are


class Tuned(NamedTuple):
    """What a seed has led to; the model is trained in place."""

    loss: float  # mean of the training
    logits: Any  # [N, ...], of the evaluation features, or what else the task has for them
    notes: JsonObject  # for results.json
    earlier_seconds: float  # of attempts before this one


class OneDevice(TrainingArguments):
    """TrainingArguments that stay on one GPU where there are several: --batch_size means the same everywhere."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class Shown(TrainerCallback):
    """A bar on a terminal; in a log a line an epoch, and between them one now and then; all on stderr."""

    def __init__(self, seed: int, epochs: int, course: Course) -> None:
        self.seed, self.epochs, self.course = seed, epochs, course
        self.asking: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first = state.global_step
        what = f"seed {self.seed}" + (f" from step {first} on" if first else "")
        self.bar = Progress(total=state.max_steps - first, what=what, unit="step")
        self.noted = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (now := time.monotonic()) - self.noted >= NOTE_SECONDS:
            self.noted, self.bar.note = now, f"loss {self.course.mean:.4f}"
        self.bar.update()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = self.course.curve[-1]
        self.bar.note = f"loss {loss:.4f}"
        if not self.bar.is_drawn:
            say(f"seed {self.seed}, epoch {state.epoch:.0f} of {self.epochs}: training loss {loss:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kw: Any) -> None:
        if self.asking is None:
            self.asking = Progress(what=f"seed {self.seed}, measuring", unit="batch", total=len(eval_dataloader))
        self.asking.update()

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        if self.asking is not None:
            self.asking.close()
        self.asking = None


def fine_tune(work: Work, seed: int, model: PreTrainedModel, unfinished: Unfinished, stop: StopRequests) -> Tuned:
    """Train `model` in place, and ask it; the logits are in the unit of the file.

    Raises
    ------
    InputError: what an earlier attempt has saved is damaged.
    SystemExit: the training went wrong, or was asked to stop, and is saved.
    """
    config, task, held = work.config, work.task, work.held
    if config.precision == "bf16" and not torch.cuda.is_available():
        # There the backward pass of sdpa's kernel is three times as long (docs/log.md).
        model.set_attn_implementation("eager")
    learner = task.learner(model) if task.learner else model
    course, best = Course(), None
    with unfinished.scratch() as scratch:
        trainer = trainer_of(work, seed, learner, course, scratch)
        if config.patience is not None and held is not None:
            best = BestEpoch(lambda: score_held(work, held, seed, trainer), f"seed {seed}, epoch", config.patience)
            trainer.add_callback(best)
        checkpoints = Checkpoints(unfinished, seed, stop, course, best)
        trainer.add_callback(checkpoints)
        begun = checkpoints.restore()
        if begun:
            say(f"seed {seed} goes on at {begun.name.replace('-', ' ')}, saved in {begun.parent}")
        if course.is_over:
            assert begun is not None
            # Not strict: of weights that are tied one is there.
            loaded = learner.load_state_dict(load_file(begun / "model.safetensors"), strict=False)
            assert not loaded.unexpected_keys
        else:
            try:
                trainer.train(resume_from_checkpoint=str(begun) if begun else None)
            except UnpicklingError as error:  # of what was begun: Trainer reads nothing else
                raise InputError(f"{begun} holds what is not ours, and nothing of it was run; remove it") from error
        loss = course.total / max(1, course.steps)
        if not math.isfinite(loss):
            sys.exit(f"error: the training loss became {loss} with seed {seed}; try a lower --lr than {config.lr}")
        notes: JsonObject = {"curve": course.curve}
        if best:
            best.restore(learner)
            notes |= {"best_epoch": best.best, "held_back_curve": best.scores}
        offset = 0.0
        if task.by_threshold and held is not None:
            notes["threshold"] = threshold = best_threshold(ask(trainer, task, held), held.examples, work.names)
            model.config.zerobert_threshold = threshold
            offset = log_odds(threshold)
        if work.scale:
            undo_scale(model, work.scale)
        logits = ask(trainer, task, work.evaluation)
    if not task.answer:
        logits = logits - offset
        check_finite(logits, seed, config)
    return Tuned(loss, logits, notes, course.seconds)


def trainer_of(work: Work, seed: int, learner: Any, course: Course, folder: Path) -> FineTuner:
    """Return what trains `learner`, and writes checkpoints into `folder` where a callback asks for them."""
    config = work.config
    assert config.lr is not None
    assert config.epochs is not None
    arguments = OneDevice(
        output_dir=str(folder),
        seed=seed,
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        train_sampling_strategy="group_by_length",  # less padding: half the time on texts of mixed length
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = FineTuner(
        model=learner,
        args=arguments,
        data_collator=work.collator,
        train_dataset=work.training.features,
        callbacks=[course, Shown(seed, config.epochs, course)],
        compute_loss_func=balanced_loss(work.training.features, len(work.names)) if config.balance else None,
        course=course,
        is_narrow=config.precision == "bf16",
    )
    trainer.remove_callback(PrinterCallback)  # Shown speaks
    return trainer


def check_finite(logits: np.ndarray, seed: int, config: FinetuneConfig) -> None:
    """End where answers are no numbers."""
    if not np.isfinite(logits).all():
        sys.exit(f"error: some answers are not finite numbers with seed {seed}; try a lower --lr than {config.lr}")


def ask(trainer: Trainer, task: Task, encoded: Encoded) -> Any:
    """Return the logits of the model as it is, in the order of the features, or what else the task has for them."""
    if task.answer:
        assert isinstance(trainer.model, PreTrainedModel)
        return task.answer(trainer.model, encoded.examples)
    strategy = trainer.args.train_sampling_strategy
    trainer.args.train_sampling_strategy = "random"  # it governs prediction, too, which must keep the order
    logits = np.asarray(trainer.predict(encoded.features).predictions)  # type: ignore[arg-type]
    trainer.args.train_sampling_strategy = strategy
    return logits


def score_held(work: Work, held: Encoded, seed: int, trainer: Trainer) -> float:
    """Return the score of the model as it is, on the examples that are held back."""
    logits = ask(trainer, work.task, held)
    if not work.task.answer:
        check_finite(logits, seed, work.config)
    if work.task.by_threshold:
        logits = logits - log_odds(best_threshold(logits, held.examples, work.names))
    return work.task.score(logits, held.features, held.examples, work.names)[work.task.metric]


def balanced_loss(features: list[Feature], labels: int) -> Callable[..., torch.Tensor]:
    """Return a cross entropy in which all examples of a label weigh as much as those of any other.

    Of 90 examples of one label and 10 of another, each weighs 100 / 2 / 90 and 100 / 2 / 10.
    """
    counts = np.bincount([feature["labels"] for feature in features], minlength=labels)
    weights = torch.tensor(len(features) / labels / np.maximum(counts, 1), dtype=torch.float32)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits.float(), labels, weights.to(outputs.logits.device))

    return loss
