"""Minimal pairs through a model: of a folder, or of a run while it trains.

encoded = encode_pairs(tokenizer, pairs, longest)
encoded.judge(log_likelihoods(model, mask_id, encoded.sentences))      -> PairScores

found = PairSet.of(encoded, mask_id)                                     on every rank
evaluate_pairs(forward, found, ...)                                      -> PairScores, the same at any world size
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from data_prep.cli import InputError
from data_prep.progress import Progress
from data_prep.rounding import ceil_div
from pretrain.likelihood.minimal_pairs import MinimalPair, PairScores, judge
from pretrain.likelihood.pseudo_likelihood import CPU_BATCH_TOKENS, Encoded, MaskedCopies, encode_texts
from pretrain.model import Batch, Losses


class EncodedPairs(NamedTuple):
    """The tokens of N minimal pairs."""

    groups: list[str]  # N
    sentences: list[Encoded]  # 2 N: good, bad, good, bad, ...
    left_out: int  # pairs with a sentence that is longer than the model's positions

    def judge(self, log_likelihoods: np.ndarray) -> PairScores:
        """Return how often the good sentence is the likelier one, by the log-likelihoods [2 N] of the sentences."""
        return judge(self.groups, log_likelihoods[::2], log_likelihoods[1::2])


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[MinimalPair], longest: int, *, name: str = "the tokenizer"
) -> EncodedPairs:
    """Return the tokens of pairs; those with a sentence of more than `longest` are left out.

    Raises
    ------
    InputError: as encode_texts(); a sentence of which the tokenizer makes nothing; all pairs are too long.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    encoded = list(encode_texts(tokenizer, texts, longest, name=name))
    groups, sentences = [], []
    for pair, good, bad in zip(pairs, encoded[::2], encoded[1::2], strict=True):
        if not (good.tokens and bad.tokens):
            raise InputError(f"{pair.where}: {name} makes no token of a sentence; remove the pair")
        if not (good.cut or bad.cut):
            groups.append(pair.group)
            sentences += [good, bad]
    if not groups:
        raise InputError(f"{pairs[0].where}: this pair and all others are longer than the model's {longest} positions")
    return EncodedPairs(groups, sentences, len(pairs) - len(groups))


class PairSet(NamedTuple):
    """Minimal pairs in the fixed batches of an evaluation, which ranks take in turn."""

    pairs: EncodedPairs
    copies: MaskedCopies

    @classmethod
    def of(cls, pairs: EncodedPairs, mask_id: int) -> "PairSet":
        """Lay out the masked copies; the batches depend on nothing but the pairs."""
        ids = [sentence.ids for sentence in pairs.sentences]
        return cls(pairs, MaskedCopies(ids, mask_id=mask_id, batch_tokens=CPU_BATCH_TOKENS))


@torch.no_grad()
def evaluate_pairs(
    forward: Callable[[Batch], Losses],
    found: PairSet,
    *,
    device: torch.device,
    title: str,
    on_batch: Callable[[], None],
) -> PairScores:
    """Return how a model does on minimal pairs, the same at any world size. Collective.

    `forward` gives the losses of each sample of a batch.
    """
    rank, world, copies = dist.get_rank(), dist.get_world_size(), found.copies
    losses = torch.zeros(copies.copies, dtype=torch.float64, device=device)
    # 5 batches on 2 ranks: rank 0 has 0, 2 and 4; rank 1 has 1, 3 and 5, which is batch 0 again and is not counted.
    turns = range(rank, ceil_div(len(copies), world) * world, world)
    for index in Progress(turns, title, "batch", quiet=rank > 0):
        of_batch = forward(copies.batch(index % len(copies)).to(device)).mlm
        on_batch()
        if index < len(copies):
            losses[copies.slice_of(index)] = of_batch.double()
    dist.all_reduce(losses)  # each loss is of one rank: a sum with zeros
    return found.pairs.judge(copies.summed(losses.cpu().numpy()))
