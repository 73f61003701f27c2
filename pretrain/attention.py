"""Attention inside sequences of unequal length that lie end to end, without padding.

    attend(q, k, v, queries, keys)      16 bit on CUDA: torch's varlen_attn; else one sdpa a run of equal lengths
    IMPLEMENTATION                      the same as an attention of transformers: config._attn_implementation = it

Dropout on attention weights is not offered: varlen_attn has none, and MosaicBERT trains as well without.
"""

from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

IMPLEMENTATION = "zerobert_varlen"


class Layout(NamedTuple):
    """Lengths of B sequences that lie end to end; known on the host, so that no kernel has to wait for the device."""

    lengths: tuple[int, ...]  # B
    longest: int
    cu_seqlens: Tensor  # [B + 1] int32, on the device of the tokens

    @classmethod
    def of(cls, bounds: np.ndarray) -> "Layout":
        """From the B + 1 places where sequences begin and end."""
        lengths = np.diff(bounds)
        return cls(tuple(lengths.tolist()), int(lengths.max()), torch.from_numpy(bounds.astype(np.int32)))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Layout":
        """Copy to a device."""
        return self._replace(cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Layout":
        """Move into memory from which a GPU can copy while the host goes on."""
        return self._replace(cu_seqlens=self.cu_seqlens.pin_memory())


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Layout, scale: float) -> Tensor:
    """softmax(q k' scale) v within each sequence. q [Tq, heads, d]; k, v [Tk, heads, d]; result [Tq, heads, d]."""
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):  # flash attention knows no other
        return varlen_attn(q, k, v, queries.cu_seqlens, keys.cu_seqlens, queries.longest, keys.longest, scale=scale)  # type: ignore[return-value]  # a tuple only with return_aux
    return _run_by_run(q, k, v, queries, keys, scale)


@torch.compiler.disable  # it would be compiled again for every list of lengths
def _run_by_run(q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Layout, scale: float) -> Tensor:
    runs = [
        (query, key, len(list(group)))
        for (query, key), group in groupby(zip(queries.lengths, keys.lengths, strict=True))
    ]
    q_runs = q.split([query * count for query, _, count in runs])
    k_runs = k.split([key * count for _, key, count in runs])
    v_runs = v.split([key * count for _, key, count in runs])
    mixed = []
    for q_run, k_run, v_run, (_, _, count) in zip(q_runs, k_runs, v_runs, runs, strict=True):
        q4, k4, v4 = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q_run, k_run, v_run))
        mixed.append(scaled_dot_product_attention(q4, k4, v4, scale=scale).transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


def _for_transformers(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    layout: Layout,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query, key, value (1, heads, T, d) -> (1, T, heads, d), no weights."""
    assert attention_mask is None, "padding-free batches have no mask"
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, layout, layout, scaling)[None], None


AttentionInterface.register(IMPLEMENTATION, _for_transformers)
