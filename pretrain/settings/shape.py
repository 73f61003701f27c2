"""The shape of a new model: that of a preset, or another.

shape_of("bert-mini", layers=12, hidden=384)             Shape(layers=12, hidden=384, heads=6)
model_in_words({"model": "bert-mini", "layers": 12})     "bert-mini 12x256, 4 heads"
"""

from typing import NamedTuple

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from pretrain.settings.limits import HEADS, HIDDEN, LAYERS

HEAD_DIMENSIONS = 64  # of the presets, and where nobody says how many heads there are


class Shape(NamedTuple):
    """Size of a BERT; its feed-forward layer has four times the hidden size."""

    layers: int
    hidden: int
    heads: int


PRESETS: dict[str, Shape] = {  # Turc et al. 2019, table 1; Devlin et al. 2019
    "bert-tiny": Shape(2, 128, 2),
    "bert-mini": Shape(4, 256, 4),
    "bert-small": Shape(4, 512, 8),
    "bert-medium": Shape(8, 512, 8),
    "bert-base": Shape(12, 768, 12),
    "bert-large": Shape(24, 1024, 16),
}


def shape_of(preset: str, *, layers: int | None = None, hidden: int | None = None, heads: int | None = None) -> Shape:
    """Return the shape of a preset, with what is given in place of its own numbers. Another hidden size has heads of
    64 dimensions, where nobody says how many there are.

    Raises
    ------
    InputError: a number outside its range, a hidden size that the heads cannot share.
    """
    for name, value, allowed in (("layers", layers, LAYERS), ("hidden", hidden, HIDDEN), ("heads", heads, HEADS)):
        if value is not None and not allowed.holds(value):
            raise InputError(f"--{name} {value!r:.40} must {allowed}")
    own = PRESETS[preset]
    usual = own.heads if hidden is None else max(1, hidden // HEAD_DIMENSIONS)
    shape = Shape(layers or own.layers, hidden or own.hidden, heads or usual)
    if shape.hidden % shape.heads:
        fewer = next(count for count in range(shape.heads, 0, -1) if shape.hidden % count == 0)
        raise InputError(
            f"--hidden {shape.hidden} cannot be shared by {shape.heads} heads: give --heads {fewer}, or a multiple of "
            f"{shape.heads} as --hidden"
        )
    return shape


def model_in_words(settings: JsonObject) -> str | None:
    """Return which new model settings by the names of the command line ask for: "bert-mini", or where its shape is
    another one "bert-mini 12x384, 6 heads"; None where they ask for none."""
    preset = settings.get("model")
    given = {name: settings.get(name) for name in Shape._fields if settings.get(name) is not None}
    if not given or preset not in PRESETS:
        return preset
    try:
        shape = shape_of(preset, **given)
    except InputError:  # a record that was edited
        return preset
    if shape == PRESETS[preset]:
        return preset
    return f"{preset} {shape.layers}x{shape.hidden}, {shape.heads} head{'s' * (shape.heads > 1)}"
