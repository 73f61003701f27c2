"""Say what fits these texts, this machine and these hours: vocabulary, model, batch, rate, and the commands to paste.

    python -m pretrain.advice --corpus texts/ --hours 3
    python -m pretrain.advice --corpus texts/ --hours 3 --lang de --out runs/german --json
    python -m pretrain.advice --tokens 11e9 --hours 24 --gpu a100 --ranks 8 --price 2

It looks at a sample from all over the texts and at the machine, for seconds, and trains nothing. Every choice has its
reason beside it, every warning a remedy. With --gpu and --ranks it plans for a machine that is elsewhere, from data
sheets; with --tokens for a store that is.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text

from data_prep.cli import InputError, print_json
from data_prep.ranges import HOURS, Range, check_ranges
from data_prep.text.languages import defaults
from pretrain.advice.advice import advise
from pretrain.advice.tables import WIDTH, commands_shown, shown


@dataclass(frozen=True)
class AdviceConfig:
    """What to plan for."""

    corpus: tuple[str, ...] = ()
    """files, folders or globs of text, as data_prep/shard.py takes them"""
    hours: Annotated[float, HOURS] = 3.0
    """for which the machine is to train"""
    lang: str = ""
    """language of the text, a two-letter code; by default found"""
    task: Path | None = None
    """labelled file to fine-tune on afterwards"""
    gpu: str = ""
    """a GPU that is elsewhere: a100, h100, h200, l4, rtx4090, ...; by default this machine"""
    ranks: Annotated[int, Range(0, 100_000)] = 0
    """how many of them, or ranks of this machine; 0: all that are here, or 1"""
    tokens: Annotated[float, Range(0, 1e15)] = 0
    """of a store that is elsewhere, in place of those of --corpus"""
    price: Annotated[float, Range(0, 1e6)] = 0
    """of a GPU for an hour"""
    out: Path = Path("runs/mine")
    """folder in the commands that are proposed; nothing is written"""
    json: bool = False
    """print one JSON object"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.lang:
            defaults(self.lang)  # refuses one that is not known
        if not self.corpus and not self.tokens:
            raise InputError("nothing to plan for: give --corpus PATH..., or --tokens N of a store that is elsewhere")


def main(config: AdviceConfig) -> None:
    """Print the plan, on stdout, as it is the result."""
    advice = advise(
        config.corpus,
        config.hours,
        lang=config.lang,
        task=config.task,
        gpu=config.gpu,
        ranks=config.ranks,
        tokens=config.tokens,
        price=config.price,
        out=config.out,
    )
    if config.json:
        print_json(advice.to_json())
        return
    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, emoji=False, width=None if is_terminal else WIDTH)
    for part in (*shown(advice), *commands_shown(advice)):
        console.print(part, soft_wrap=isinstance(part, Text))
