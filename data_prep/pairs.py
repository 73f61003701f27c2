"""Which sentences make which sample: the sample index of an epoch and its order, as pure functions.

    store -> Sentences -> build(...) -> samples [N] of one pass over the store
    stores, weights    -> Mixture.epoch(e) -> Epoch.look_up(positions): the samples of an epoch in training order
    samples            -> assemble(...) -> [CLS] A [SEP] B [SEP] as token ids, end to end without padding

A sample is numbers only (SAMPLE): where A and B lie and the label. The rules are those of BERT's reference
(google-research/bert, create_pretraining_data.py): sentences fill A and B up to seq_len - 3 tokens; half of the time B
is replaced by sentences of another document and the unused true continuation goes back into the stream; one sample in
ten is short; what is too long loses tokens at its longer side. Two departures, recorded in docs/design.md: a random B
starts at a sentence drawn uniformly from all other documents (not: a document, then a sentence), so that short
documents are not over-represented; and the tokens cut from the front are a uniform share of those cut.

Weights are passes: a store of weight 2.5 enters an epoch two and a half times, each pass with pairs and masks of its
own; the half that one epoch leaves is what the next one begins with.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from data_prep.cli import InputError
from data_prep.draws import below, draw, fraction, permute
from data_prep.store import HELD_OUT, Store

Objective = Literal["nsp", "sop", "mlm"]
SHORT_SAMPLES = 0.1  # share of samples that aim at a random, shorter length (BERT's short_seq_prob)
SAMPLE = np.dtype(
    [
        ("a_start", "<i8"),  # number of A's first token in its store
        ("b_start", "<i8"),
        ("a_length", "<u2"),  # tokens
        ("b_length", "<u2"),  # 0: the sample has no B
        ("label", "u1"),  # 1 if B is random (nsp) or A and B are swapped (sop)
    ]
)
# What is drawn, as the last part of a key.
_TARGET, _SHORT, _SPLIT, _LABEL, _OTHER, _FRONT_A, _FRONT_B, _ORDER, _STORE = range(9)


class Sentences(NamedTuple):
    """The training (or the held-out) sentences of a store. S sentences, D documents, numbered among themselves."""

    token_starts: np.ndarray  # [S] int64, number of each sentence's first token in the store
    ends: np.ndarray  # [S + 1] int64, tokens before each sentence, counting these sentences only
    documents: np.ndarray  # [D + 1] int64, first sentence of each document

    @classmethod
    def of(cls, store: Store, held_out: bool = False) -> "Sentences":
        """Select the sentences of documents that are (or are not) held out."""
        lengths = np.concatenate([shard.sentence_lengths for shard in store.shards]).astype(np.int64)
        counts = np.concatenate([shard.document_sentences for shard in store.shards]).astype(np.int64)
        flags = np.concatenate([shard.document_flags for shard in store.shards])
        chosen = (flags & HELD_OUT > 0) == held_out
        sentences = np.repeat(chosen, counts)
        starts = np.cumsum(lengths) - lengths
        return cls(
            starts[sentences],
            np.concatenate([[0], np.cumsum(lengths[sentences])]),
            np.concatenate([[0], np.cumsum(counts[chosen])]),
        )


def build(sentences: Sentences, seq_len: int, objective: Objective, seed: int, pass_number: int) -> np.ndarray:
    """The samples [N] (SAMPLE) of one pass over the sentences: every sentence is used, none twice but as a random B.

    All documents advance together, one sample a round, so the work is a few array operations a round.

    Raises
    ------
    InputError: where nsp has no second document to draw a random B from.
    """
    document_count = len(sentences.documents) - 1
    if objective == "nsp" and document_count == 1:
        raise InputError("next-sentence pairs need two documents or more; add text, or use --objective sop or mlm")
    document = np.arange(document_count)
    position = sentences.documents[:-1]
    rounds = [np.zeros(0, SAMPLE)]
    while len(document):
        key = draw(seed, pass_number, document, len(rounds))
        samples, position = _next_samples(sentences, document, position, seq_len, objective, key)
        rounds.append(samples)
        going_on = position < sentences.documents[document + 1]
        document, position = document[going_on], position[going_on]
    return np.concatenate(rounds)


def _next_samples(
    sentences: Sentences, document: np.ndarray, first: np.ndarray, seq_len: int, objective: Objective, key: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One sample for each document from sentence `first` on, and the sentence where its next sample begins."""
    starts, ends, documents = sentences
    stop = documents[document + 1]
    room = seq_len - (2 if objective == "mlm" else 3)
    if objective == "mlm":
        # Whole sentences that fit; a sentence that alone is too long is cut.
        last = np.clip(np.searchsorted(ends, ends[first] + room, side="right") - 1, first + 1, stop)
        length = np.minimum(ends[last] - ends[first], room)
        return _pack(starts[first], length, starts[first], np.zeros_like(length), np.zeros_like(length)), last

    short = fraction(draw(key, _SHORT)) < SHORT_SAMPLES
    target = np.where(short, 2 + below(draw(key, _TARGET), room - 1), room)
    last = _reach(ends, first, target, stop)
    count = last - first
    split = first + np.where(count == 1, 1, 1 + below(draw(key, _SPLIT), np.maximum(count - 1, 1)))
    heads = fraction(draw(key, _LABEL)) < 0.5
    a_length = ends[split] - ends[first]
    if objective == "nsp":
        label = heads | (count == 1)
        other = _other_sentence(documents, document, draw(key, _OTHER))
        other_stop = documents[np.searchsorted(documents, other, side="right")]
        b_first = np.where(label, other, split)
        b_last = np.where(label, _reach(ends, other, target - a_length, other_stop), last)
        following = np.where(label, split, last)
    else:
        label = heads & (count > 1)
        b_first, b_last, following = split, last, last
    b_length = ends[b_last] - ends[np.minimum(b_first, b_last)]
    a_kept, b_kept = _truncate(a_length, b_length, room)
    a_start = starts[first] + below(draw(key, _FRONT_A), a_length - a_kept + 1)
    b_start = starts[np.minimum(b_first, len(starts) - 1)] + below(draw(key, _FRONT_B), b_length - b_kept + 1)
    if objective == "sop":
        a_start, b_start = np.where(label, b_start, a_start), np.where(label, a_start, b_start)
        a_kept, b_kept = np.where(label, b_kept, a_kept), np.where(label, a_kept, b_kept)
    return _pack(a_start, a_kept, b_start, b_kept, label), following


def _reach(ends: np.ndarray, first: np.ndarray, tokens: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Sentence after the one with which `tokens` are reached from `first` on; at least one, none from `stop` on."""
    return np.clip(np.searchsorted(ends, ends[first] + tokens), first + 1, stop)


def _other_sentence(documents: np.ndarray, document: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """A sentence drawn uniformly from all documents but `document`: draw among the others, skip over its own."""
    own_first, own_stop = documents[document], documents[document + 1]
    drawn = below(bits, documents[-1] - (own_stop - own_first))
    return np.where(drawn < own_first, drawn, drawn + (own_stop - own_first))


def _truncate(a: np.ndarray, b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths after taking tokens one by one from the longer side (from B at a tie) until both fit into `room`."""
    excess = np.maximum(a + b - room, 0)
    only_longer = excess <= np.abs(a - b)
    a_kept = np.where(only_longer, np.where(a > b, a - excess, a), (room + 1) // 2)
    b_kept = np.where(only_longer, np.where(a > b, b, b - excess), room // 2)
    fits = excess == 0
    return np.where(fits, a, a_kept), np.where(fits, b, b_kept)


def _pack(*columns: np.ndarray) -> np.ndarray:
    samples = np.empty(len(columns[0]), SAMPLE)
    for name, column in zip(("a_start", "a_length", "b_start", "b_length", "label"), columns, strict=True):
        samples[name] = column
    return samples


class Picked(NamedTuple):
    """Samples in training order, with what identifies each of them. N samples."""

    store: np.ndarray  # [N] int64, which store of the mixture
    key: np.ndarray  # [N] uint64, the sample's own key for draws (masks), a function of (seed, store, pass, number)
    samples: np.ndarray  # [N] SAMPLE


class _Part(NamedTuple):
    """The samples of one pass over one store that an epoch uses: positions [first, first + size) of its shuffle."""

    store: int
    pass_number: int
    first: int
    size: int
    samples: np.ndarray


class Epoch(NamedTuple):
    """One epoch of a mixture: its samples are numbered 0 .. size - 1 in the order in which they are trained on."""

    parts: tuple[_Part, ...]
    size: int
    seed: int
    number: int

    def look_up(self, positions: np.ndarray) -> Picked:
        """The samples at these positions [N] of the epoch's order."""
        place = permute(positions, self.size, int(draw(self.seed, self.number, _ORDER)[0]))
        picked = Picked(np.empty(len(place), np.int64), np.empty(len(place), np.uint64), np.empty(len(place), SAMPLE))
        bounds = np.cumsum([part.size for part in self.parts])
        owner = np.searchsorted(bounds, place, side="right")
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(owner == number)
            if not len(rows):
                continue
            within = place[rows] - (bounds[number] - part.size) + part.first
            shuffle = int(draw(self.seed, part.store, part.pass_number, _STORE)[0])
            sample = permute(within, len(part.samples), shuffle)
            picked.store[rows] = part.store
            picked.key[rows] = draw(self.seed, part.store, part.pass_number, sample)
            picked.samples[rows] = part.samples[sample]
        return picked


class Mixture:
    """Weighted stores as one stream of samples. Stores of one mixture share their tokenizer."""

    def __init__(
        self,
        stores: Sequence[Store],
        weights: Sequence[float],  # passes an epoch
        seq_len: int,
        objective: Objective,
        seed: int,
        held_out: bool = False,
    ):
        self.stores, self.weights = tuple(stores), tuple(weights)
        self.seq_len, self.objective, self.seed = seq_len, objective, seed
        self._sentences = [Sentences.of(store, held_out) for store in stores]
        self._passes: dict[tuple[int, int], np.ndarray] = {}
        if not any(len(sentences.token_starts) for sentences in self._sentences):
            kind = "held-out" if held_out else "training"
            raise InputError(f"{', '.join(str(store.folder) for store in self.stores)}: no {kind} text")

    def epoch(self, number: int) -> Epoch:
        """The index of epoch `number` = 0, 1, ...

        Raises
        ------
        InputError: where nsp has only one document.
        """
        parts = []
        for store, weight in enumerate(self.weights):
            begin, end = number * weight, (number + 1) * weight
            for pass_number in range(int(begin), math.ceil(end)):
                samples = self._samples(store, pass_number)
                first = round(max(begin - pass_number, 0) * len(samples))
                last = round(min(end - pass_number, 1) * len(samples))
                parts.append(_Part(store, pass_number, first, last - first, samples))
        # The next epoch may begin with what is left of a pass; older passes never come back.
        self._passes = {key: self._passes[key] for key in {(part.store, part.pass_number) for part in parts}}
        return Epoch(tuple(parts), sum(part.size for part in parts), self.seed, number)

    def _samples(self, store: int, pass_number: int) -> np.ndarray:
        key = (store, pass_number)
        if key not in self._passes:
            sentences = self._sentences[store]
            self._passes[key] = build(sentences, self.seq_len, self.objective, self.seed, pass_number)
        return self._passes[key]


def assemble(stores: tuple[Store, ...], picked: Picked) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of samples: [CLS] A [SEP] B [SEP], or [CLS] A [SEP] where there is no B, end to end.

    Returns ids [T] int64, token types [T] int64 (1 in B and its [SEP]), is_special [T] bool, lengths [N] int64.
    """
    a, b = picked.samples["a_length"].astype(np.int64), picked.samples["b_length"].astype(np.int64)
    lengths = a + b + np.where(b > 0, 3, 2)
    stops = np.cumsum(lengths)
    starts = stops - lengths
    special = stores[0].special_ids
    ids = np.full(int(stops[-1]), -1, np.int64)
    ids[starts] = special["cls"]
    ids[starts + a + 1] = special["sep"]
    ids[stops - 1] = special["sep"]
    is_special = ids >= 0

    spans = np.stack([picked.samples["a_start"], picked.samples["b_start"]], 1)
    sizes = np.stack([a, b], 1)
    body = np.flatnonzero(~is_special)
    owner = np.repeat(picked.store, a + b)
    for number in np.unique(picked.store):
        rows = picked.store == number
        ids[body[owner == number]] = stores[number].read_spans(spans[rows].ravel(), sizes[rows].ravel())

    in_b = np.zeros(len(ids) + 1, np.int64)
    in_b[starts + a + 2] += 1
    in_b[stops] -= 1
    return ids, np.cumsum(in_b[:-1]), is_special, lengths
