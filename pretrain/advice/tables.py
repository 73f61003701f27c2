"""An advice as tables for people: what was found, what fits and why, the commands."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pretrain.advice.advice import Advice, pasteable
from pretrain.formatting import bytes_in_words, counted, duration
from pretrain.settings.shape import model_in_words

WIDTH = 118  # columns where there is no terminal to ask
SHOWN = (
    "lang", "cased", "vocab_kind", "vocab_size", "model", "objective", "seq_len", "global_batch", "micro_batch",
    "precision", "lr", "warmup", "mask_rate", "mlm_bias", "dropout", "steps",
)  # fmt: skip


def shown(advice: Advice) -> Iterator[Table | Text]:
    """Yield the plan for people."""
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
    by_name: Mapping[str, object] = {**advice.settings, "model": model_in_words({**advice.settings})}
    for name in SHOWN:
        table.add_row(name, in_words(by_name[name]), advice.reasons.get(name, ""))
    for phase in advice.settings["phases"]:
        table.add_row(
            "phase", phase, "nine tenths of the steps short, the rest long for the later positions (Devlin et al.)"
        )
    yield table
    for warning in advice.warnings:
        yield Text.assemble(("warning: ", "yellow"), warning)


def commands_shown(advice: Advice) -> Iterator[Text]:
    """Yield what to paste."""
    yield Text("\nThe commands", style="bold")
    for _, words in advice.commands:
        yield Text(pasteable(words, advice.settings))


def in_words(value: Any) -> str:
    """Return a value as the table says it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def found_in_words(advice: Advice) -> Iterator[tuple[str, str]]:
    """Yield text, machine, time and cost, by name."""
    text, machine = advice.found["text"], advice.found["machine"]
    cost, memory = advice.found["cost"], advice.found["memory"]
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
        f"{speed:,} tokens/s of {model_in_words({**advice.settings})}{together}: {speed / step_tokens:.3g} steps/s of "
        f"{counted(step_tokens)} tokens each, padding not counted; a pass over the text takes "
        f"{duration(3600 * cost['hours_a_pass'])}",
    )
    fits = "fits into" if memory["fits"] else "does not fit into"
    yield "Memory", f"{bytes_in_words(memory['together_bytes'])} per rank, {fits} {bytes_in_words(memory['has_bytes'])}"
    if "price" in cost:
        yield "Cost", f"{cost['price']:,.2f}; a pass over the text {cost['price_a_pass']:,.2f}"
