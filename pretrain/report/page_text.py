"""Numbers, settings and events of a history in words, as the page says them."""

from typing import Literal

from pretrain.formatting import counted
from pretrain.report.history import Event, History
from pretrain.run_facts import StoreSize, run_facts

Style = Literal["nats", "share", "plain", "count"]  # how a number is written
NONE = "\N{EN DASH}"  # where there is no number


def as_text(value: float | None, style: Style) -> str:
    """Return a value as a legend or a table says it: trailing zeros stay, so that neither columns nor a legend under a
    moving pointer jump."""
    if value is None:
        return NONE
    if style == "count":
        return counted(value)
    if style == "share":
        return f"{100 * value:#.3g}".rstrip(".") + "%"
    return f"{value:#.4g}".rstrip(".") if style == "nats" else _plain(value)


def ticked(value: float, style: Style) -> str:
    """Return a value as an axis says it."""
    if style == "share":
        return f"{float(f'{100 * value:.3g}'):g}%"
    return counted(value) if style == "count" else _plain(value)


def _plain(value: float) -> str:
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{float(f'{value:.3g}'):g}"


def facts(history: History) -> dict[str, str]:
    """Return a run in words, the most telling first, with what its newest checkpoint and its stores tell."""
    shape = history.checkpoint.identity.model if history.checkpoint else {}
    layers = f"{shape.get('num_hidden_layers')} layers of {shape.get('hidden_size')}" if shape else ""
    sizes = [StoreSize(store.tokens, store.documents) for store, _ in history.stores]
    return run_facts(history.config, parameters=history.parameters, layers=layers, sizes=sizes)


def event_text(event: Event) -> str:
    """Return what is known of an event, in words."""
    details = dict(event.details)
    if event.name == "phase" and {"number", "of"} <= details.keys():
        details = {"reason": f"{details.pop('number')} of {details.pop('of')}"} | details
    return "; ".join(
        f"{value}" if name in ("checkpoint", "reason") else f"{name.replace('_', ' ')} {value}"
        for name, value in details.items()
    )
