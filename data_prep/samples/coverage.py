"""What the samples of a run show of a store's training text: how much of it, and whether labels say anything; counted.

    look_over([store, ...], "nsp", 128) -> Coverage      None where the objective has nothing to work on
    why_not_evaluated([store, ...], "nsp")               which stores hold out too little to be evaluated on

Of a large store, documents from all over it stand for the rest.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_prep.samples.sample_index import Objective, Sentences, build_index, single_sentence_share
from data_prep.store import Store

PASSES = 10
SAMPLED_TOKENS = 400_000  # of a store, about, are counted
NEARLY_ALL_SHARE = 0.99  # of the tokens
FEW, MOST = 0.5, 0.9  # of the samples have no choice of label: worth a warning; no task at all


class Coverage(NamedTuple):
    """Shares. What is seen is what stands in a sample, be it in its place or in a random B."""

    objective: Objective
    seq_len: int
    tokens_seen: float  # of the training tokens, in one pass
    tokens_seen_10: float  # in ten passes
    without_choice: float  # of the samples: they hold one sentence, which decides their label
    looked_at: float  # of the training tokens, that were counted

    def to_json(self) -> dict[str, float]:
        """As JSON values."""
        names = ("tokens_seen", "tokens_seen_10", "without_choice", "looked_at")
        return {name: round(getattr(self, name), 6) for name in names}

    def in_words(self) -> str:
        """One line, with a remedy where tokens are lost."""
        told = f"{_percent(self.tokens_seen)} in a pass, {_percent(self.tokens_seen_10)} in ten"
        if self.objective != "mlm" and self.tokens_seen < NEARLY_ALL_SHARE:
            told += "; what pairs cut off differs from pass to pass, --objective mlm cuts nothing off"
        return told + (f" (counted on {_percent(self.looked_at)} of the text)" if self.looked_at < 1 else "")

    @property
    def warning(self) -> str:
        """What is wrong with the labels, and the remedy; empty where there are enough that say something."""
        if self.without_choice < FEW:
            return ""
        why = {
            "nsp": "B can only be random, and the label says nothing",
            "sop": "there is no order to tell",
        }
        return (
            f"{_percent(self.without_choice)} of the samples ({self.objective}, {self.seq_len} tokens) hold one "
            f"sentence: {why[self.objective]}; use --objective mlm, or documents of several sentences"
        )


def look_over(stores: Sequence[Store], objective: Objective, seq_len: int, seed: int = 0) -> Coverage | None:
    """Count over one store or several, each with the weight of its tokens."""
    weights, found = [], []
    for store in stores:
        sentences, tokens = some_sentences(store)
        if len(sentences.documents) > (2 if objective == "nsp" else 1):
            looked_at = float(sentences.ends[-1]) / max(tokens, 1)
            found.append((*_seen(sentences, objective, seq_len, seed), min(looked_at, 1.0)))
            weights.append(tokens)
    return Coverage(objective, seq_len, *np.average(found, axis=0, weights=weights).tolist()) if found else None


def some_sentences(store: Store) -> tuple[Sentences, float]:
    """Training sentences of documents from all over a store, as if they lay end to end, and about how many training
    tokens the store has."""
    step = max(1, min(store.tokens // (4 * SAMPLED_TOKENS), len(store.shards)))
    part = dataclasses.replace(store, shards=store.shards[::step])
    sentences = Sentences.of(part)
    share = part.tokens / max(store.tokens, 1)
    tokens = int(sentences.ends[-1])
    count = len(sentences.documents) - 1
    stride = max(1, min(math.ceil(tokens / SAMPLED_TOKENS), count // 2))
    chosen = np.repeat(np.arange(count) % stride == 0, np.diff(sentences.documents))
    lengths = np.diff(sentences.ends)[chosen]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    documents = np.concatenate([[0], np.cumsum(np.diff(sentences.documents)[::stride])])
    return Sentences(ends[:-1], ends, documents), tokens / share if share else 0.0


def evaluated(stores: Sequence[Store], objective: Objective) -> list[Store]:
    """Return the stores that hold out enough documents to be evaluated on; a random B needs a second one."""
    least = 2 if objective == "nsp" else 1
    return [store for store in stores if store.manifest.counts.held_out_documents >= least]


def why_not_evaluated(stores: Sequence[Store], objective: Objective) -> str:
    """Return which stores no evaluation looks at, why, and the remedy; empty where there is none such."""
    can = {store.folder for store in evaluated(stores, objective)}
    told = [
        f"{store.folder} holds out {counts.held_out_documents or 'none'} of {counts.documents:,} documents"
        for store, counts in ((store, store.manifest.counts) for store in stores if store.folder not in can)
    ]
    needs = f" ({objective} needs 2)" if objective == "nsp" else ""
    remedy = "make the store again with a larger --holdout, or of more documents (whole books can be cut into chapters)"
    return f"{', '.join(told)}{needs}; {remedy}" if told else ""


def _seen(sentences: Sentences, objective: Objective, seq_len: int, seed: int) -> tuple[float, float, float]:
    """Return the shares of tokens that one pass and PASSES passes show, and of samples without a choice."""
    tokens = int(sentences.ends[-1])
    ever, first = np.zeros(tokens, bool), 0.0
    for pass_number in range(PASSES):
        samples = build_index(sentences, seq_len=seq_len, objective=objective, seed=seed, pass_number=pass_number)
        change = np.zeros(tokens + 1, np.int64)
        for segment in ("a", "b"):
            starts, lengths = samples[f"{segment}_start"], samples[f"{segment}_length"].astype(np.int64)
            there = lengths > 0
            change += np.bincount(starts[there], minlength=tokens + 1)
            change -= np.bincount((starts + lengths)[there], minlength=tokens + 1)
        ever |= np.cumsum(change[:-1]) > 0
        first = first or float(ever.mean())
        if ever.all():
            break
    alone = (
        0.0
        if objective == "mlm"
        else single_sentence_share(sentences, seq_len=seq_len, objective=objective, seed=seed, pass_number=0)
    )
    return first, float(ever.mean()), alone


def _percent(share: float) -> str:
    """Rounded down: 100 % is all; what is there is more than 0 %."""
    return "less than 0.1 %" if 0 < share < 0.001 else f"{math.floor(1000 * share) / 10:g} %"
