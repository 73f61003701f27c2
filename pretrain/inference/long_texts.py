"""Texts longer than a model reads at once, as windows that overlap; what it says of one is the mean over its windows.

    windows = encode_long(tokenizer, ["a long text"], None, seq_len=128, stride=32).windows      [[{input_ids}, ...]]
    logits = pooled_logits(model, batch, counts, most=32)

A pair of texts is windows of the second, each behind the whole first one. Fine-tuning and predicting go by these alike.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from data_prep.cli import say

Window = dict[str, list[int]]  # input_ids, token_type_ids, attention_mask: [L]


class LongTexts(NamedTuple):
    """Windows of texts."""

    windows: list[list[Window]]  # of each text
    batch: Any  # transformers' batch of all windows


def encode_long(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str] | None, *, seq_len: int, stride: int
) -> LongTexts:
    """Return texts, or pairs, as windows of at most `seq_len` tokens, of which two neighbours share `stride`.

    A first text that leaves no room for windows of the second is cut to half of one, and that is said.
    """
    how = {"max_length": seq_len, "stride": stride, "return_overflowing_tokens": True}
    if second is None:
        batch = tokenizer(list(first), truncation=True, **how)
    else:
        batch = tokenizer(
            _leaving_room(tokenizer, first, second, seq_len), list(second), truncation="only_second", **how
        )
    inputs = [name for name in tokenizer.model_input_names if name in batch]
    windows: list[list[Window]] = [[] for _ in first]
    for row, index in enumerate(batch["overflow_to_sample_mapping"]):
        windows[index].append({name: batch[name][row] for name in inputs})
    return LongTexts(windows, batch)


def _leaving_room(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str], seq_len: int
) -> list[str]:
    """Return the first texts, cut to half of a window where they are longer and the pair does not fit into one."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    most = (seq_len - special) // 2
    offsets, others = (
        tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        for texts in (first, second)
    )
    kept = [
        text[: places[most - 1][1]] if len(places) > most and len(places) + len(ids) + special > seq_len else text
        for text, places, ids in zip(first, offsets["offset_mapping"], others["input_ids"], strict=True)
    ]
    if cut := sum(one != other for one, other in zip(first, kept, strict=True)):
        say(f"{cut} of {len(kept)} first texts are longer than half of a window, {most} tokens, and were cut")
    return kept


def pooled_logits(model: Any, inputs: dict[str, torch.Tensor], counts: Sequence[int], *, most: int) -> torch.Tensor:
    """Return the mean logits [N, labels] of the windows of N texts.

    inputs: [windows, L]
    counts: how many windows each text has
    most: windows that go through the model at once. Where there are more, and a gradient is asked for, what they leave
        for it is not kept but computed again: however long a text is, memory is that of so many windows.
    """
    total = sum(counts)
    again = torch.is_grad_enabled() and total > most
    parts = []
    for start in range(0, total, most):
        some = {name: values[start : start + most] for name, values in inputs.items()}
        ask = partial(model, **some)
        out: Any = checkpoint(ask, use_reentrant=False) if again else ask()
        parts.append(out.logits)
    return torch.stack([windows.mean(0) for windows in torch.cat(parts).split(list(counts))])
