"""The best epoch of a fine-tuning, by a part of the training file that is held back; an end where none gets better."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from data_prep.cli import say


class BestEpoch(TrainerCallback):
    """Measures after each epoch, remembers the weights of the best one, and ends after `patience` worse ones."""

    def __init__(self, measure: Callable[[], float], what: str, patience: int) -> None:
        self.measure, self.what, self.patience = measure, what, patience
        self.scores: list[float] = []
        self.weights: dict[str, torch.Tensor] = {}

    @property
    def best(self) -> int:
        """Return the epoch, from 1, with the best score; the first of equal ones."""
        return self.scores.index(max(self.scores)) + 1

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.scores.append(self.measure())
        epoch = len(self.scores)
        if self.best == epoch:
            self.weights = {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}
        say(f"{self.what} {epoch}: {self.scores[-1]:.4f} on the part held back, best so far in epoch {self.best}")
        control.should_training_stop |= epoch - self.best >= self.patience

    def restore(self, model: Any) -> None:
        """Give a model the weights of the best epoch."""
        model.load_state_dict(self.weights)
