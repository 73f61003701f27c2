"""Held-out evaluation: fixed samples in fixed batches, scored by the source that they come from.

    held_out_set(setup, phase) on every rank  ->  evaluate(...): its batches through the model  ->  sums by source

What a source is: with several stores in --data, each store. With one, its files, as data_prep/shard.py recorded them,
under the part of their path that tells them apart: numbers at the end of a name are dropped (books-00.jsonl.gz and
books-01.jsonl.gz are `books`), and what follows a number where another file begins alike (`Lydia 084 (copy)` is one of
`Lydia`); where that leaves more than MAX_SOURCES, the folders they lie in. Where even those are more, the store is one
source. A pair counts for the source of its first segment.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import PurePath
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
from data_prep.samples.pair_index import VERSION
from data_prep.store import Store
from pretrain.data import collate, order_by_length
from pretrain.model import Batch, Losses
from pretrain.settings.phases import Phase
from pretrain.setup import Setup

MAX_SOURCES = 12  # names that a person reads; more would be a thicket
_NUMBER = re.compile(r"([-_. ]?\d+([-_]of[-_]\d+)?)+$")  # of one file among many: -00, _12, -00003-of-00041
_INNER_NUMBER = re.compile(r"[-_ (]\d+")  # what begins with it may tell one file among many, too: "084 (copy)"


class EvalSource(NamedTuple):
    """What of the evaluation set comes from one source, over all ranks."""

    name: str
    samples: int
    masked: int  # tokens to predict
    pairs: int  # samples with a sentence-pair label


class EvalBatch(NamedTuple):
    """One batch of the held-out set, of B samples."""

    index: int  # in the whole set
    batch: Batch
    source: Tensor  # [B] int64, index of the source of each sample


class HeldOutSet(NamedTuple):
    """A fixed set of held-out samples in fixed batches, dealt to ranks in turn; the same at any world size."""

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
    stores = [(store.identity, weight) for store, weight in zip(mixture.stores, mixture.weights, strict=True)]
    settings = (VERSION, stores, mixture.seq_len, mixture.objective, mixture.seed, samples, Masking())
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _counts(names: list[str], owners: np.ndarray, chosen: Samples) -> list[EvalSource]:
    masked = mask_counts(chosen.lengths, chosen.n_special, Masking().rate)
    columns = [np.bincount(owners, column, len(names)) for column in (np.ones_like(masked), masked, chosen.has_b)]
    return [EvalSource(name, *map(int, numbers)) for name, *numbers in zip(names, *columns, strict=True)]


def sources_of(stores: Sequence[Store], chosen: Samples) -> tuple[list[str], np.ndarray]:
    """Names of the sources [S] of these samples, and the source [N] int64 of each."""
    if len(stores) > 1:
        labels = store_names([store.folder for store in stores])
        owners = chosen.store
    else:
        paths = [source.path for source in stores[0].manifest.sources]
        owners = stores[0].sources_at(chosen.spans["a_start"]) if paths else np.zeros(chosen.size, np.int64)
        used = np.unique(owners)
        groups = file_groups([paths[number] for number in used], paths) if paths else [""]
        labels = [""] * (int(used.max()) + 1)
        for number, group in zip(used, groups, strict=True):
            labels[number] = group or stores[0].folder.resolve().name
    names, numbers = np.unique([labels[owner] for owner in owners], return_inverse=True)
    return names.tolist(), numbers.astype(np.int64)


def store_names(folders: Sequence[PurePath]) -> list[str]:
    """Short names for stores: the last parts of their paths that tell them apart; en/store and zh/store: en, zh."""
    parts = _without_common_end([folder.parts for folder in folders])
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def file_groups(paths: Sequence[str], among: Sequence[str] = ()) -> list[str]:
    """Return for each path the name of its group; at most MAX_SOURCES differ, and all are empty where they cannot be
    told. What files have in common is seen `among` more of them."""
    shared = Counter(begin for path in {*paths, *among} for begin in {*_beginnings(PurePath(path).name)})
    keys = [(*path.parts[:-1], _group_name(path.name, shared)) for path in map(PurePath, paths)]
    keys = [tuple(filter(None, key)) for key in keys]  # of 00.txt only the folder remains
    keys = _without_common_end([key[_shared(keys) :] for key in keys])
    for depth in range(max(map(len, keys)), 0, -1):
        names = ["/".join(key[:depth]) for key in keys]
        if len(set(names)) <= MAX_SOURCES:
            return names
    return [""] * len(paths)


def _beginnings(name: str) -> list[str]:
    """Return a file's name without the number at its end; else what stands before each number in it, the longest first:
    `books` of books-00.txt, `Lydia Kapitel` of "Lydia Kapitel 084 (copy).txt"."""
    stem = name.partition(".")[0]
    if (found := _NUMBER.sub("", stem)) != stem:
        return [found.strip()]
    return [stem[: number.start()].strip() for number in reversed([*_INNER_NUMBER.finditer(stem)])]


def _group_name(name: str, shared: Counter[str]) -> str:
    """Return the beginning of a name that other files share, or all of it."""
    beginnings, stem = _beginnings(name), name.partition(".")[0]
    if _NUMBER.search(stem):
        return beginnings[0]
    return next((begin for begin in beginnings if begin and shared[begin] > 1), stem)


def _without_common_end(keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Keys without the parts at their end that all share; of equal keys the last part stays."""
    shared = _shared([key[::-1] for key in keys])
    return [key[: max(len(key) - shared, min(1, len(key)))] for key in keys]


def _shared(keys: list[tuple[str, ...]]) -> int:
    """How many parts at their beginning all keys have in common."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*keys, strict=False)))
