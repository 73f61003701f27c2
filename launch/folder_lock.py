"""One make at a time in a folder; a second one is told at once, and waits only for what is ending.

    with alone_in(folder) as alone:
        subprocess.Popen(..., pass_fds=[alone.of_folder])      a stage keeps the folder's lock to its own end
        alone.note_ending()                                    this make was told to stop

Two locks of the kernel, which go with the processes that hold them, however those end. One is on the folder itself and
is inherited by the stages, one on DIR/.make.lock is make's own and says whose it is. Where only the first is held, a
make was killed, and what it had started is saving.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.cli import InputError, say
from launch.make_record import LOCK

PATIENCE = 60.0  # seconds for what is ending to end
ENDING = "ending"


class Alone:
    """The locks of a folder, held by this process."""

    def __init__(self, of_folder: int, own: int):
        self.of_folder, self._own = of_folder, own

    def note_ending(self) -> None:
        """Write that this make was told to stop: the next one waits for it."""
        os.write(self._own, f"{ENDING}\n".encode())


@contextmanager
def alone_in(out: Path) -> Iterator[Alone]:
    """Keep another make out of a folder, which is made.

    Raises
    ------
    InputError: another one is at work there.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    own = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    of_folder = os.open(out, os.O_RDONLY)
    is_held = False
    try:
        _wait_for(own, lambda: _another(out))
        _wait_for(of_folder, lambda: f"what a make that was killed had started in {out} is still ending")
        is_held = True
        os.ftruncate(own, 0)
        os.pwrite(own, f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
        os.lseek(own, 0, os.SEEK_END)
        yield Alone(of_folder, own)
    finally:
        if is_held:
            os.ftruncate(own, 0)
            if {path.name for path in out.iterdir()} == {LOCK} and is_new:  # nothing has been made
                (out / LOCK).unlink()
                out.rmdir()
        os.close(own)
        os.close(of_folder)


def _wait_for(descriptor: int, what_holds: Callable[[], str]) -> None:
    """Take a lock: at once, or from one who is ending, who gets a minute."""
    until, is_told = time.monotonic() + PATIENCE, False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held = what_holds()
            if time.monotonic() >= until:
                raise InputError(f"{held}, and has not ended in {PATIENCE:g} s; try again later") from error
            if not is_told:
                say(f"{held}: waiting for it, {PATIENCE:g} s at most")
                is_told = True
            time.sleep(0.2)


def _another(out: Path) -> str:
    """Return who holds make's own lock, if it is ending.

    Raises
    ------
    InputError: it is at work.
    """
    who, *more = (out / LOCK).read_text().splitlines() or ["one that has just begun"]
    if ENDING in more:
        return f"another make ({who}) is stopping in {out}"
    number = who.partition(",")[0].removeprefix("process ")
    stop = f"stop it (kill {number})" if number.isdecimal() else "stop it"
    raise InputError(f"another make ({who}) is at work in {out}: wait for it, {stop}, or choose another --out")
