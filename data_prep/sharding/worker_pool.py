"""A pool of local processes that fails loudly.

    for result in map_processes(work, items, workers=4, name=str, report=progress.update): ...

Items go to processes as these become free. Where a process dies, or what it does fails, the item is named: a missing
part is never passed over.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

from data_prep.cli import InputError

T = TypeVar("T")
R = TypeVar("R")


class WorkerError(Exception):
    """A part of the work failed or its process died; the message names the part."""


def map_processes(
    work: Callable[[T, Callable[[Any], None]], R],
    items: Sequence[T],
    *,
    workers: int,
    name: Callable[[T], str],
    report: Callable[[Any], None],
) -> Iterator[R]:
    """Yield results of `work(item, report)` in the order in which they are ready; `report` is called in this process.

    `work` runs in forked processes and may close over whatever it needs; with one worker it runs right here.

    Raises
    ------
    InputError: as `work` raised it. WorkerError: `work` raised something else, or its process died.
    """
    if workers == 1 or len(items) <= 1:
        for item in items:
            try:
                yield work(item, report)
            except OSError as error:
                raise WorkerError(f"{name(item)}: {error}") from error
        return
    pool = WorkerPool(work, min(workers, len(items)))
    try:
        yield from pool.results(items, name, report)
    finally:
        pool.end()


class WorkerPool:
    """Forked processes, each with a pipe: an item goes in, reports and one result come out, then the next goes in."""

    def __init__(self, work: Callable[..., Any], workers: int):
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(workers)]
        self.ends = [ours for ours, _ in pipes]
        self.processes = {}
        for mine, (ours, theirs) in enumerate(pipes):
            # A copy of our end in a sibling would keep a worker alive, waiting, after this process was killed.
            foreign = [*self.ends, *(end for other, (_, end) in enumerate(pipes) if other > mine)]
            process = context.Process(target=_serve, args=(work, theirs, foreign), daemon=True)
            process.start()
            theirs.close()
            self.processes[ours] = process

    def results(self, items: Sequence[Any], name: Callable[[Any], str], report: Callable[[Any], None]) -> Iterator[Any]:
        """Yield the result of every item as it is ready."""
        waiting = list(reversed(items))
        doing: dict[Connection, Any] = {}
        for end in self.ends:
            doing[end] = waiting.pop()
            end.send(doing[end])
        while doing:
            for end in cast(list[Connection], wait(list(doing))):
                kind, content = self._receive(end, name(doing[end]))
                if kind == "report":
                    report(content)
                    continue
                del doing[end]
                if waiting:
                    doing[end] = waiting.pop()
                    end.send(doing[end])
                yield content

    def _receive(self, end: Connection, item: str) -> tuple[str, Any]:
        try:
            kind, content = end.recv()
        except (EOFError, ConnectionResetError) as error:
            self.processes[end].join(5)
            code = self.processes[end].exitcode
            how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            raise WorkerError(f"{item}: its worker process died ({how}); run the command again to continue") from error
        if kind == "input error":
            raise InputError(content)
        if kind == "failure":
            raise WorkerError(f"{item}: {content}")
        return kind, content

    def end(self) -> None:
        """End the processes, whatever they are doing."""
        for process in self.processes.values():
            process.terminate()
        for end, process in self.processes.items():
            process.join()
            end.close()


def _serve(work: Callable[..., Any], pipe: Connection, foreign: list[Connection]) -> None:
    """What a worker process does: items in, reports and results out, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which is how it decides, whatever it does itself on such a signal
    for end in foreign:
        end.close()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            item = pipe.recv()
            try:
                pipe.send(("result", work(item, lambda content: pipe.send(("report", content)))))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except InputError as error:
                pipe.send(("input error", str(error)))
            except OSError as error:
                pipe.send(("failure", str(error)))
            except Exception:
                pipe.send(("failure", traceback.format_exc()))
