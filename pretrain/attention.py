"""Attention inside sequences of unequal length that lie end to end, without padding.

    varlen_attention(q, k, v, ...)      16 bit on CUDA, heads of 8, 16, ... 256 dimensions: torch's varlen_attn (flash
                                        attention knows no other); else per run of equal lengths one call of sdpa, or
                                        on a CPU in 16 bit of plain products
    use_varlen_attention(model)         the same as the attention of a model of transformers

Dropout on attention weights is not offered: varlen_attn has none, and MosaicBERT trains as well without.
"""

from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

FLASH_MULTIPLE, FLASH_MOST = 8, 256  # dimensions of a head
PRODUCTS_MOST = 256  # tokens of a sequence whose attention weights are kept: a third of what its layer keeps besides
_IMPLEMENTATION = "zerobert_varlen"  # the name under which transformers knows it


class SeqLens(NamedTuple):
    """Lengths of B sequences that lie end to end; known on the host, so that no kernel has to wait for the device."""

    lengths: tuple[int, ...]  # B
    max_seqlen: int
    cu_seqlens: Tensor  # [B + 1] int32, where sequences begin and end, on the device of the tokens

    @classmethod
    def from_bounds(cls, bounds: np.ndarray) -> "SeqLens":
        """Return the lengths of sequences that begin and end at B + 1 places."""
        lengths = np.diff(bounds)
        return cls(tuple(lengths.tolist()), int(lengths.max()), torch.from_numpy(bounds.astype(np.int32)))

    def to(self, device: torch.device, non_blocking: bool = False) -> "SeqLens":
        """Copy to a device."""
        return self._replace(cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "SeqLens":
        """Move into memory from which a GPU can copy while the host goes on."""
        return self._replace(cu_seqlens=self.cu_seqlens.pin_memory())


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, queries: SeqLens, keys: SeqLens, scale: float) -> Tensor:
    """Return softmax(q k' scale) v within each sequence.

    q [Tq, heads, d]; k, v [Tk, heads, d]; result [Tq, heads, d].
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and is_for_flash(q.size(-1)):
        return varlen_attn(
            q, k, v, queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen, scale=scale
        )  # type: ignore[return-value]  # a tuple only with return_aux
    return _attend_per_length(q, k, v, queries, keys, scale)


def is_for_flash(dimensions: int) -> bool:
    """Return whether the kernels of flash attention take heads of so many dimensions."""
    return dimensions % FLASH_MULTIPLE == 0 and dimensions <= FLASH_MOST


@torch.compiler.disable  # it would be compiled again for every list of lengths
def _attend_per_length(q: Tensor, k: Tensor, v: Tensor, queries: SeqLens, keys: SeqLens, scale: float) -> Tensor:
    """The same with attention that wants a batch of one length: a call per run of equal lengths."""
    is_narrow_on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    # Lengths 9 9 9 5 5 -> [(9, 9, 3), (5, 5, 2)]: length of the queries, of the keys, how many sequences.
    runs = [
        (query, key, len(list(group)))
        for (query, key), group in groupby(zip(queries.lengths, keys.lengths, strict=True))
    ]
    q_runs = q.split([query * count for query, _, count in runs])
    k_runs = k.split([key * count for _, key, count in runs])
    v_runs = v.split([key * count for _, key, count in runs])
    mixed = []
    for q_run, k_run, v_run, (_, length, count) in zip(q_runs, k_runs, v_runs, runs, strict=True):
        is_by_products = is_narrow_on_cpu and length <= PRODUCTS_MOST
        attend = _attention_by_products if is_by_products else scaled_dot_product_attention
        # [count * length, heads, d] -> [count, heads, length, d], and back
        q4, k4, v4 = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q_run, k_run, v_run))
        mixed.append(attend(q4, k4, v4, scale=scale).transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


def _attention_by_products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same as sdpa, softmax(q k' scale) v of [B, heads, length, d], by plain products of matrices.

    For 16 bit on a CPU, where the backward pass of sdpa's own kernel takes three times as long (docs/log.md). It keeps
    the weights of each pair of tokens, so not for long sequences.
    """
    return (q @ k.transpose(2, 3) * scale).softmax(-1) @ v


def use_varlen_attention(model: PreTrainedModel) -> None:
    """Let the layers of a model attend within sequences; their forward pass is then given `seqlens`, and no mask."""
    AttentionInterface.register(_IMPLEMENTATION, _hf_attention_forward)
    model.set_attn_implementation(_IMPLEMENTATION)


def _hf_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    seqlens: SeqLens,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query, key, value (1, heads, T, d) -> (1, T, heads, d), no weights."""
    assert attention_mask is None, "padding-free batches have no mask"
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen_attention(q, k, v, seqlens, seqlens, scaling)[None], None
