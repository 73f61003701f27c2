"""Say what fits these texts, this machine and these hours: vocabulary, model, batch, rate, and the commands to paste.

    python -m pretrain.advice --corpus texts/ --hours 3
    python -m pretrain.advice --corpus texts/ --hours 3 --lang de --out runs/german --json
    python -m pretrain.advice --tokens 11e9 --hours 24 --gpu a100 --ranks 8 --price 2

It looks at a sample from all over the texts and at the machine, for seconds, and trains nothing. Every choice has its
reason beside it, every warning a remedy. With --gpu and --ranks it plans for a machine that is elsewhere, from data
sheets; with --tokens for a store that is.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.cli import InputError, print_json, run
from data_prep.ranges import HOURS, Range, check_ranges
from data_prep.text.languages import defaults
from pretrain.advice.advice import Advice, advise, pasteable
from pretrain.advice.rules import bytes_in_words
from pretrain.wording import counted, duration

WIDTH = 118  # columns where there is no terminal to ask
SHOWN = (
    "lang", "cased", "vocab_kind", "vocab_size", "model", "objective", "seq_len", "global_batch", "micro_batch", "lr",
    "warmup", "mask_rate", "dropout", "steps",
)  # fmt: skip


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
    """Print the plan: on stdout, as it is the result."""
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
        print_json(advice.record())
        return
    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, emoji=False, width=None if is_terminal else WIDTH)
    for part in (*shown(advice), *commands_shown(advice)):
        console.print(part, soft_wrap=isinstance(part, Text))


def shown(advice: Advice) -> Iterator[Table | Text]:
    """The plan for people."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="What was found", title_justify="left", title_style="bold",
                  show_header=False)  # fmt: skip
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in found_in_words(advice):
        table.add_row(name, value)
    yield table
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="What fits", title_justify="left", title_style="bold")
    for name in ("setting", "value", "because"):
        table.add_column(name, style="cyan" if name == "setting" else None, overflow="fold")
    for name in SHOWN:
        table.add_row(name, in_words(advice.settings[name]), advice.reasons.get(name, ""))
    for phase in advice.settings["phases"]:
        table.add_row(
            "phase", phase, "nine tenths of the steps short, the rest long for the later positions (Devlin et al.)"
        )
    yield table
    for warning in advice.warnings:
        yield Text.assemble(("warning: ", "yellow"), warning)


def commands_shown(advice: Advice) -> Iterator[Text]:
    """What to paste."""
    yield Text("\nThe commands", style="bold")
    for _, words in advice.commands:
        yield Text(pasteable(words, advice.settings))


def in_words(value: Any) -> str:
    """A value as the table says it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def found_in_words(advice: Advice) -> Iterator[tuple[str, str]]:
    """Text, machine, time and cost."""
    text, machine, cost, memory = (advice.found[name] for name in ("text", "machine", "cost", "memory"))
    if text["sources"]:
        scripts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(text["scripts"].items())[:4])
        yield (
            "Text",
            (
                f"{bytes_in_words(text['text_bytes'])} in {text['sources']:,} file{'s' * (text['sources'] > 1)}, "
                f"{counted(text['documents'])} document{'s' * (text['documents'] > 1)}, "
                f"{counted(text['sentences'])} sentences of {text['sentence_chars']:.0f} characters (median)"
            ),
        )
        yield "Letters", f"{scripts}; {100 * text['marks']:.2g} % with marks, {100 * text['capitals']:.2g} % capitals"
    yield "Tokens", f"{counted(advice.settings['text_tokens'])} in the text"
    each = f"{machine['memory'] / 1e9:.0f} GB each"
    if machine["is_gpu"]:
        peak = f"{machine['peak'] / 1e12:.0f} TFLOP/s in 16 bit ({machine['source']})"
        yield "Machine", f"{machine['ranks']} x {machine['name']}, {each}, {peak}; assumed MFU {machine['mfu']:.2f}"
    else:
        peak = f"{machine['peak'] * machine['ranks'] / 1e9:.0f} GFLOP/s of fp32, measured"
        yield "Machine", f"{machine['cores']} cores, {machine['ranks'] * machine['memory'] / 1e9:.0f} GB, {peak}"
    speed, step_tokens = advice.settings["tokens_per_second"], advice.settings["tokens"] / advice.settings["steps"]
    together = f" over all {machine['ranks']} GPUs" if machine["is_gpu"] and machine["ranks"] > 1 else ""
    yield (
        "Speed",
        f"{speed:,} tokens/s of {advice.settings['model']}{together}: {speed / step_tokens:.3g} steps/s of "
        f"{counted(step_tokens)} tokens each, padding not counted; a pass over the text takes "
        f"{duration(3600 * cost['hours_a_pass'])}",
    )
    fits = "fits into" if memory["fits"] else "does not fit into"
    yield "Memory", f"{bytes_in_words(memory['together_bytes'])} a rank, {fits} {bytes_in_words(memory['has_bytes'])}"
    if "price" in cost:
        yield "Cost", f"{cost['price']:,.2f}; a pass over the text {cost['price_a_pass']:,.2f}"


if __name__ == "__main__":
    run(main, AdviceConfig, __doc__)
