"""Held-out evaluation: fixed samples in fixed batches, scored by the source that they come from (source_names.py).

held_out_set(setup, phase) on every rank  ->  evaluate(...): its batches through the model  ->  sums by source
"""

import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.progress import Progress
from data_prep.rounding import ceil_div
from data_prep.samples.coverage import evaluated
from data_prep.samples.masking import Masking, mask_counts
from data_prep.samples.mixture import Mixture, Samples
from data_prep.samples.sample_index import VERSION
from pretrain.data import collate, order_by_length
from pretrain.model import Batch, Losses
from pretrain.settings.phases import Phase
from pretrain.setup import Setup
from pretrain.source_names import sources_of


class EvalSource(NamedTuple):
    """What of the evaluation set comes from one source, over all ranks."""

    name: str
    samples: int
    masked: int  # tokens to predict
    pairs: int  # samples with a sentence-pair label


class EvalBatch(NamedTuple):
    """One batch of the held-out set, of B samples."""

    batch_index: int  # in the whole set
    batch: Batch
    source: Tensor  # [B] int64, index of the source of each sample


class HeldOutSet(NamedTuple):
    """A fixed set of held-out samples in fixed batches, which ranks take in turn; the same at any world size."""

    batches: list[EvalBatch]  # of this rank; every rank has as many
    batch_count: int  # over all ranks; a batch of a higher index only keeps its rank in step with the others
    sources: list[EvalSource]
    identity: str = ""  # of the samples and their masks: losses compare where it is the same

    @classmethod
    def choose(cls, mixture: Mixture, *, samples: int, batch_size: int, rank: int, world: int) -> "HeldOutSet":
        """Choose up to `samples` of the mixture's first epoch, in batches that ranks take in turn."""
        epoch = mixture.epoch(0)
        chosen = epoch.samples_at(np.arange(min(samples, epoch.size)))
        names, owners = sources_of(mixture.stores, chosen)
        count = ceil_div(len(owners), batch_size)
        batches = []
        # 5 batches on 2 ranks: rank 0 has 0, 2 and 4; rank 1 has 1, 3 and 5, which is batch 0 again and is not counted.
        for index in range(rank, ceil_div(count, world) * world, world):
            start = index % count * batch_size
            share = chosen.take(slice(start, start + batch_size))
            order = order_by_length(share)
            share, owner = share.take(order), owners[start : start + batch_size][order]
            batches.append(EvalBatch(index, collate(mixture.stores, share, Masking()), torch.from_numpy(owner)))
        return cls(batches, count, _counts(names, owners, chosen), held_out_identity(mixture, len(owners)))


def held_out_set(setup: Setup, phase: Phase) -> HeldOutSet | None:
    """Return what a phase is evaluated on; None where no evaluation is wanted, or no store holds out enough documents
    to make pairs of."""
    config = setup.config
    chosen = evaluated(setup.stores, config.objective)
    if not config.eval_samples or not chosen:
        return None
    mixture = Mixture(
        chosen, [1.0] * len(chosen), seq_len=phase.span.seq_len, objective=config.objective, seed=0, held_out=True
    )
    return HeldOutSet.choose(
        mixture,
        samples=config.eval_samples,
        batch_size=phase.micro_batch,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
    )


@torch.no_grad()
def evaluate(
    forward: Callable[[Batch], Losses],
    held_out: HeldOutSet,
    *,
    device: torch.device,
    title: str,
    on_batch: Callable[[], None],
) -> Tensor:
    """Return sums over the held-out samples, by source [S, 4]: the fields of Losses. Collective.

    `forward` gives the losses of each sample of a batch. Sums are added in the order of the batches, so that no world
    size changes them.
    """
    shape = (held_out.batch_count, len(held_out.sources), len(Losses._fields))
    sums = torch.zeros(shape, dtype=torch.float64, device=device)
    for index, batch, source in Progress(held_out.batches, title, "batch", quiet=dist.get_rank() > 0):
        losses = forward(batch.to(device))
        on_batch()
        if index < held_out.batch_count:
            sums[index].index_add_(0, source.to(device), torch.stack(losses, 1).double())
    dist.all_reduce(sums)
    return sums.sum(0)


def held_out_identity(mixture: Mixture, samples: int) -> str:
    """Return a hash of all that decides which held-out samples there are, and what of them is masked."""
    stores = [(store.identity, passes) for store, passes in zip(mixture.stores, mixture.passes_per_epoch, strict=True)]
    settings = (VERSION, stores, mixture.seq_len, mixture.objective, mixture.seed, samples, Masking())
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _counts(names: list[str], owners: np.ndarray, chosen: Samples) -> list[EvalSource]:
    masked = mask_counts(chosen.lengths, chosen.n_special, Masking().rate)
    columns = [np.bincount(owners, column, len(names)) for column in (np.ones_like(masked), masked, chosen.has_b)]
    return [EvalSource(name, *map(int, numbers)) for name, *numbers in zip(names, *columns, strict=True)]
