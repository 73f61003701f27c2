"""Samples as text for people: the words of a sample, and what becomes of those that are masked.

    renderer = SampleRenderer(store, in_colour=False)
    renderer.render(range(start, stop), assembled, masked, continues)

    [CLS] the [MASK:cat] sat [shown:on] the [mat] [SEP]        hidden; a random token shown; to predict, as it is

On a terminal colours say the same, and which segment a word is of.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_prep.samples.assemble import Assembled
from data_prep.samples.masking import Masked
from data_prep.store import Store

COLOURS = {"a": "36", "b": "32", "special": "90", "mask": "1;41", "random": "1;45", "kept": "1;44"}


class _Token(NamedTuple):
    """A token of a sample."""

    shown: int  # id, as the model sees it
    label: int | None  # its true id, where it is to be predicted
    segment: int  # 0 for A, 1 for B
    is_special: bool
    continues: bool  # the word of the token before it


class SampleRenderer:
    """Writes the samples of a store as text."""

    def __init__(self, store: Store, *, in_colour: bool):
        self.tokenizer = Tokenizer.from_file(str(store.folder / "vocab/tokenizer.json"))
        self.mask_id, self.in_colour = store.special_ids["mask"], in_colour

    @property
    def legend(self) -> str:
        """Return the names of the colours, each in its own."""
        return "  ".join(self._paint(name, name) for name in COLOURS)

    def render(self, rows: range, assembled: Assembled, masked: Masked, continues: np.ndarray) -> str:
        """Return the sample that has these rows of the assembled tokens."""
        text = ""
        for row, label in zip(rows, self._labels(rows, masked), strict=True):
            segment, is_special = int(assembled.token_types[row]), bool(assembled.is_special[row])
            token = _Token(int(masked.ids[row]), label, segment, is_special, bool(continues[row]))
            word = self._word(token)
            text += word if self._joins(token) else f" {word}"
        return text.strip()

    @staticmethod
    def _labels(rows: range, masked: Masked) -> list[int | None]:
        labels: list[int | None] = [None] * len(rows)
        first, last = np.searchsorted(masked.rows, (rows.start, rows.stop)).tolist()
        for row, label in zip(masked.rows[first:last].tolist(), masked.labels[first:last].tolist(), strict=True):
            labels[row - rows.start] = label
        return labels

    @cached_property
    def _marks_spaces(self) -> bool:
        return self.tokenizer.token_to_id("▁") is not None  # SentencePiece does

    def _entry(self, token: _Token) -> str:
        """Return the entry of the vocabulary that stood in the text."""
        return self.tokenizer.id_to_token(token.shown if token.label is None else token.label) or "?"

    def _joins(self, token: _Token) -> bool:
        """Whether no space stands before a token."""
        entry = self._entry(token)
        is_inside = self._marks_spaces and not token.is_special and not entry.startswith("▁")
        return token.continues or entry.startswith("##") or is_inside

    def _word(self, token: _Token) -> str:
        was = self._entry(token).removeprefix("##").removeprefix("▁")
        if token.label is None:
            return self._paint("special" if token.is_special else "ab"[token.segment], was)
        if token.shown == self.mask_id:
            return self._paint("mask", was) if self.in_colour else f"[MASK:{was}]"
        if token.shown == token.label:
            return self._paint("kept", was) if self.in_colour else f"[{was}]"
        shown = self.tokenizer.id_to_token(token.shown)
        return self._paint("random", f"{shown}:{was}") if self.in_colour else f"[{shown}:{was}]"

    def _paint(self, kind: str, text: str) -> str:
        return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m" if self.in_colour else text
