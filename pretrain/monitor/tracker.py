"""A run in a tracker of experiments: `--track trackio`, which needs no account, or `--track wandb`.

Nothing leaves this machine unless the user's own settings say so: W&B writes into RUN/wandb (`wandb sync` sends it;
WANDB_MODE=online does so at once), trackio into its folder (`trackio show`; TRACKIO_DIR). What goes wrong in a tracker
is said once and ends its curves, never the run.
"""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pretrain.monitor.sinks import Histogram, Values
from pretrain.settings.config import TrackerName

PROJECT = "zerobert"


def module_of(name: TrackerName) -> Any:
    """Return the package of a tracker; both are an extra."""
    if name == "wandb":
        import wandb

        return wandb
    import trackio

    return trackio


class Tracker:
    """A Sink that hands numbers on."""

    def __init__(self, name: TrackerName, run: Path, complain: Callable[[str], None]):
        """`complain` is told once, when it ends."""
        self._name, self._run, self._complain = name, run, complain
        self._module: Any = None
        self._handle: Any = None
        self._is_over = False

    def begin(self, step: int) -> None:
        """Do nothing: a tracker cannot take back what it has, and draws what is done again over it."""

    def settings(self, step: int, facts: dict[str, str], values: Values) -> None:
        """Begin the run there, under the name of its folder."""

        def start() -> None:
            self._module = module_of(self._name)
            title = "-".join(self._run.absolute().parts[-2:])
            where: dict[str, Any] = {}
            if self._name == "wandb":
                where = {"dir": str(self._run), "mode": os.environ.get("WANDB_MODE", "offline")}
            else:  # a run that begins anew under a name that is known is another one
                where = {"resume": "allow" if step else "never"}
            self._handle = self._module.init(project=PROJECT, name=title, config=values, **where)

        self._lasting(start)

    def draw(self, step: int, values: dict[str, float], together: dict[str, dict[str, float]] | None = None) -> None:
        """Hand on a point of each curve."""
        beside = {f"{name}/{curve}": value for name, all_ in (together or {}).items() for curve, value in all_.items()}
        if self._handle is not None:
            self._lasting(lambda: self._module.log(values | beside, step=step))

    def text(self, step: int, name: str, markdown: str) -> None:
        """Do nothing: TensorBoard has it."""

    def histograms(self, step: int, found: dict[str, Histogram]) -> None:
        """Do nothing: TensorBoard has them."""

    def close(self) -> None:
        """Tell it that the run has ended."""
        if self._handle is not None:
            self._lasting(lambda: self._module.finish())

    def _lasting(self, act: Callable[[], object]) -> None:
        """Let the tracker act, whatever it may raise; what it prints goes to stderr."""
        if self._is_over:
            return
        try:
            with redirect_stdout(sys.stderr):
                act()
        except Exception as error:  # of a library that speaks to disks and servers
            self._is_over = True
            why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self._complain(f"warning: --track {self._name} has failed ({why}); it ends here, the run goes on")
