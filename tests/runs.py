"""Runs that fit in a test: bert-tiny on short samples."""

from pathlib import Path
from typing import Any

from pretrain.settings.config import TrainConfig


def tiny_run(store: Path, out: Path, **settings: Any) -> TrainConfig:
    """A run of bert-tiny that keeps every checkpoint, logs every step, and is otherwise as `settings` say."""
    common: dict[str, Any] = dict(model="bert-tiny", seq_len=32, lr=1e-3, keep=0, log_every=1, eval_samples=0)
    return TrainConfig(data=(str(store),), out=out, **common | settings)
