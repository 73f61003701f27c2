"""Look at a pretraining run, or compare several.

    python -m pretrain.report runs/wiki/run --out report/                # open report/index.html
    python -m pretrain.report runs/a runs/b runs/c --out report/         # laid over each other, and in a table
    python -m pretrain.report runs/a runs/b --out report/ --by tokens    # x axis: step, tokens or hours
    python -m pretrain.report --watch runs/wiki/run                      # as it goes, in the terminal

    RUN/config.json, metrics.jsonl -> history.py -> charts.py -> drawing.py -> DIR/index.html and DIR/*.png

The page needs nothing but itself: charts are drawn into it, and a reader's pointer reads values off all charts at once.
A run that is still training can be looked at; the same command again brings the page up to date.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from data_prep.calls import call
from data_prep.cli import InputError, print_json, say
from data_prep.ranges import check_ranges
from pretrain.report.history import Axis, read_all
from pretrain.settings.limits import SECONDS


@dataclass(frozen=True)
class ReportConfig:
    """What is looked at, and where the page goes."""

    runs: Positional[tuple[Path, ...]]
    """run folders, the --out of a pretraining"""
    out: Path | None = None
    """folder for index.html and the PNGs"""
    by: Axis = "step"
    """x axis: optimizer steps, real tokens, or hours of work"""
    watch: bool = False
    """show one run in the terminal until it ends, also one that has not begun; in a pipe a line per update"""
    every: Annotated[float, SECONDS] = 2.0
    """of --watch: seconds between looks"""
    json: bool = False
    """print one JSON object instead of the page's path"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError(f"name a run folder: {call('report', 'RUN', '--out', 'DIR')}")
        check_ranges(self)
        if self.watch and len(self.runs) > 1:
            raise InputError(f"--watch shows one run, not {len(self.runs)}; name one, or give --out DIR in its place")
        if self.watch and (self.out is not None or self.json):
            raise InputError("--watch writes into the terminal alone; leave out --out and --json")
        if self.out is None and not self.watch:
            raise InputError("give --out DIR, the folder for the page, or --watch, to look at the run in the terminal")


def main(config: ReportConfig) -> None:
    """Write the page and the PNGs, print where the page is.

    Raises
    ------
    InputError: not a run folder, a run without metrics, an --out that is a file or a run.
    """
    if config.watch:
        from pretrain.report.watch import watch

        watch(config.runs[0], max(config.every, 0.1))
        return
    assert config.out is not None
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out {config.out} is a file; name a folder")
    if (config.out / "config.json").exists():
        raise InputError(f"--out {config.out} is a run folder; name another, such as {config.out}/report")
    histories = read_all(config.runs)
    # Behind all that can be refused at once: what draws takes a second.
    from pretrain.report.page import write

    page, images = write(config.out, histories, config.by)
    for history in histories:
        for note in history.notes:
            say(f"{history.folder}: {note}")
    if config.json:
        print_json({"page": str(page), "images": images, "runs": [history.summary() for history in histories]})
    else:
        print(page)
