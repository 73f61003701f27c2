"""Answers to questions as spans of a context, which may be longer than a model reads at once.

    batch = encode_windows(tokenizer, questions, contexts, seq_len=128, stride=32)
    reading = read_spans([Window(start_logits, end_logits, context_offsets(batch, row), cls), ...])

A long context is read in windows that overlap by `stride` tokens: [CLS] question [SEP] part of the context [SEP]. Each
window names its likeliest spans; the best over all windows is the answer. How likely no answer is, the window says that
is least sure of it, by its [CLS] (Devlin et al. 2019, section 4.3).

L tokens of a window.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_prep.cli import say

if TYPE_CHECKING:  # options are checked against most_stride() before transformers is imported
    from transformers import PreTrainedTokenizerBase

LEAST_WINDOW = 16  # tokens of a question, of some of its context and special ones
MOST_TOKENS = 30  # of an answer, as in SQuAD's baselines
NO_SPAN = 1e9  # null_difference of a context without a token
CANDIDATES = 20  # ends that are tried on either side, and spans that are kept


class Window(NamedTuple):
    """What a model says of one window."""

    start_logits: np.ndarray  # [L], or longer by padding
    end_logits: np.ndarray  # [L]
    offsets: np.ndarray  # [L, 2] first character of each token in the context and the one after it; -1: none of it
    cls: int  # place of [CLS]


class Span(NamedTuple):
    """A piece of a context."""

    start: int  # first character
    end: int  # the one after the last
    logit: float


class Reading(NamedTuple):
    """What a model says of a question and its context."""

    spans: list[Span]  # the likeliest, best first; none where the context has no token
    null_logit: float  # that there is no answer

    @property
    def null_difference(self) -> float:
        """Return by how much no answer is likelier than the best span, in logits."""
        return self.null_logit - self.spans[0].logit if self.spans else NO_SPAN


def default_stride(seq_len: int) -> int:
    """Return how many tokens two windows share where nobody says so."""
    return seq_len // 4


def most_stride(seq_len: int) -> int:
    """Return the largest stride: a question takes up to half of a window, and the next one must go on."""
    return max(0, (seq_len - 4) // 2 - 1)


def encode_windows(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    seq_len: int,
    stride: int,
) -> Any:
    """Return transformers' batch of all windows, unpadded; batch["overflow_to_sample_mapping"] says of which question.

    A question longer than half of a window is cut, and that is said.
    """
    most = (seq_len - tokenizer.num_special_tokens_to_add(pair=True)) // 2
    encoded = tokenizer(
        list(questions), add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
    )
    lasting = [
        question[: offsets[most - 1][1]] if len(offsets) > most else question
        for question, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]
    if cut := sum(len(offsets) > most for offsets in encoded["offset_mapping"]):
        say(f"{cut} of {len(lasting)} questions are longer than half of a window, {most} tokens, and were cut")
    return tokenizer(
        lasting,
        list(contexts),
        truncation="only_second",
        max_length=seq_len,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def context_offsets(batch: Any, row: int) -> np.ndarray:
    """Return the characters [L, 2] of the context's tokens in a window; -1 at all other tokens."""
    offsets = np.array(batch["offset_mapping"][row], dtype=np.int32)
    is_context = np.array([sequence == 1 for sequence in batch.sequence_ids(row)])
    return np.where(is_context[:, None], offsets, -1)


def read_spans(windows: Sequence[Window]) -> Reading:
    """Return the likeliest answers over the windows of one context."""
    best: dict[tuple[int, int], float] = {}
    for window in windows:
        for start, end, logit in _spans(window):
            best[start, end] = max(logit, best.get((start, end), -np.inf))
    spans = sorted((Span(*place, logit) for place, logit in best.items()), key=lambda span: -span.logit)
    null = min(float(window.start_logits[window.cls] + window.end_logits[window.cls]) for window in windows)
    return Reading(spans[:CANDIDATES], null)


def _spans(window: Window) -> list[Span]:
    """Return the likeliest spans of one window, of at most MOST_TOKENS tokens."""
    tokens = np.flatnonzero(window.offsets[:, 0] >= 0)
    # Each end is looked for among the likeliest alone: 20 x 20 pairs in place of L x L.
    starts = tokens[np.argsort(-window.start_logits[tokens], kind="stable")[:CANDIDATES]]
    ends = tokens[np.argsort(-window.end_logits[tokens], kind="stable")[:CANDIDATES]]
    lengths = ends[None, :] - starts[:, None] + 1
    first, last = np.nonzero((lengths >= 1) & (lengths <= MOST_TOKENS))
    return [
        Span(
            int(window.offsets[start, 0]),
            int(window.offsets[end, 1]),
            float(window.start_logits[start] + window.end_logits[end]),
        )
        for start, end in zip(starts[first], ends[last], strict=True)
    ]


def probabilities(reading: Reading, with_null: bool) -> np.ndarray:
    """Return the share of each span among all that are kept, and with_null last that of no answer."""
    logits = np.array([span.logit for span in reading.spans] + [reading.null_logit] * with_null)
    shares = np.exp(logits - logits.max(initial=-np.inf)) if len(logits) else logits
    return shares / shares.sum()
