"""Tests run on the CPU, with one thread a process, and without a network."""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

from tests.launched import none_left


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep what is imported out of every later search for garbage: a million objects, which forked ranks would copy."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that two workers, which take a file at a time, end together. Tests of
    two nodes are run where they are asked for."""
    if "nodes" not in (config.getoption("markexpr") or ""):
        for item in filter(lambda item: item.get_closest_marker("nodes"), items):
            item.add_marker(pytest.mark.skip("two nodes: pytest -m nodes tests/test_nodes.py"))
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="session")
def no_peak_is_measured() -> None:
    """A rank's peak takes a quarter of a second at every evaluation. Where nothing trains, nothing is imported."""
    meter: Any = sys.modules.get("pretrain.monitor.meter")
    if meter is not None:
        meter.peak_flops = lambda device: 1e11


@pytest.fixture(autouse=True)
def handlers_of_signals() -> Iterator[None]:
    """What a command answers to signals until its process ends goes with the test that called it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Whatever the test starts ends with it."""
    with none_left():
        yield
