"""How long this rank is in collectives: the transfer, and the wait for slower ranks.

    spent = CollectiveTime(device)
    with engine.timing_collectives(spent): ...      what DeepSpeed calls
    with spent.span(): ...                          a collective of our own
    spent.seconds()

On a CPU the host waits in them, and its clock tells. On a GPU they only enter a stream, which events in that stream
measure; they are read when somebody asks, so no step waits for them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Of DeepSpeed's backend, what training calls.
COLLECTIVES = (
    "all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast",
    "all_gather", "all_gather_into_tensor", "all_gather_coalesced", "barrier",
)  # fmt: skip


class CollectiveTime:
    """Seconds in collectives since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds, self._depth = 0.0, 0
        self._events: list[tuple[Any, Any]] = []  # of a GPU: before and after each, not read yet

    @contextmanager
    def span(self) -> Iterator[None]:
        """Count what is done within; spans within spans count once."""
        self._depth += 1
        began = self._now() if self._depth == 1 else None
        try:
            yield
        finally:
            self._depth -= 1
            if began is not None and self._is_cuda:
                self._events.append((began, self._now()))
            elif began is not None:
                self._seconds += self._now() - began

    def seconds(self) -> float:
        """Return the seconds so far; of a GPU waits until it has done what is in its streams."""
        for began, ended in self._events:
            ended.synchronize()
            self._seconds += began.elapsed_time(ended) / 1000
        self._events.clear()
        return self._seconds

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def timing(self, backend: Any) -> Iterator[None]:
        """Count the collectives of an object that has them as methods, and the waits for those that it only begins."""
        own = {name: getattr(backend, name) for name in COLLECTIVES if hasattr(backend, name)}
        for name, function in own.items():
            setattr(backend, name, self._timed(function))
        try:
            yield
        finally:
            for name in own:
                delattr(backend, name)  # its class has it

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.span():
                handle = function(*arguments, **options)
            return _Handle(handle, self) if hasattr(handle, "wait") else handle

        return timed


class _Handle:
    """What torch returns for a collective that has only begun."""

    def __init__(self, handle: Any, spent: CollectiveTime) -> None:
        self._handle, self._spent = handle, spent

    def wait(self, *arguments: Any, **options: Any) -> Any:
        """Wait for its end."""
        with self._spent.span():
            return self._handle.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
