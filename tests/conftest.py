"""Tests run on the CPU, with one thread a process, and without a network."""

import os
from collections.abc import Iterator

import pytest

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

from tests.launched import none_left


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Whatever the test starts ends with it."""
    with none_left():
        yield
