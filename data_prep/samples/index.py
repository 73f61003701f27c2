"""Which sentences make which sample: the sample index of one pass over a store, as a pure function.

    store -> Sentences -> build(...) -> samples [N] (SAMPLE): where A and B lie, and the label

The rules are those of BERT's reference (google-research/bert, create_pretraining_data.py): sentences fill A and B up to
seq_len - 3 tokens; half of the time B is replaced by sentences of another document and the unused true continuation
goes back into the stream; one sample in ten is short; what is too long loses tokens at its longer side. Four
departures, recorded in docs/design.md:

- A sentence that fills a sample alone is several sentences, cut at other places in every pass (`Pieces`): otherwise
  what lies beyond its beginning would never be seen, and it would have no true continuation.
- A random B starts at a sentence drawn uniformly from all other documents (not: a document, then a sentence), so that
  short documents are not over-represented. It starts within a sentence exactly where the true B would.
- The tokens that are cut go all from the front, all from the back, or from both, each in a third of the samples.
- A document of more than CHAIN samples is taken in parts, across whose borders no sample goes: otherwise the index of
  an epoch would wait for the walk along the longest document.

Without pairs (mlm) samples are whole sentences, and what is longer than a sample goes on in the next: no token is lost.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from data_prep.cli import InputError
from data_prep.progress import Progress
from data_prep.samples.draws import below, draw, draw_more
from data_prep.store import HELD_OUT, Store

VERSION = 3  # counts changes of what `build` gives; part of the name of a cached index
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
CHAIN = 128  # samples: a longer document is walked along in parts of so many, all at once
BLOCK = 1 << 14  # chains, or samples, that are worked on together
SHOWN = 4  # such blocks of chains, some seconds of work
PIECES = 4  # of a sample, in a sentence that fills it: about as many as English has sentences in 128 tokens
_OTHER, _FRONT = range(2)  # what is drawn, as the last part of a key
_PIECES = 1 << 40  # the same, in the place of a chain's number


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


class Pieces(NamedTuple):
    """Sentences, those of `room` tokens or more cut into several. P pieces, numbered like sentences; K cuts."""

    of: Sentences  # the pieces
    cut_sentences: np.ndarray  # [K] int64, ascending: the sentence in which each cut lies
    documents: np.ndarray  # [D + 1] int64, first sentence of each document, before the cuts
    inner: np.ndarray  # [K] int64, ascending: the pieces that begin within a sentence
    inner_documents: np.ndarray  # [D + 1] int64, the first of these in each document

    @classmethod
    def cut(cls, sentences: Sentences, room: int, seed: int, pass_number: int) -> "Pieces":
        """Cut after a first piece of random length, then after every `room` / PIECES tokens."""
        starts, ends, documents = sentences
        lengths = np.diff(ends)
        long = np.flatnonzero(lengths >= room)
        if not len(long):
            return cls(sentences, long, documents, long, np.zeros_like(documents))
        piece = max(room // PIECES, 1)
        first = 1 + below(draw(seed, pass_number, _PIECES, long), piece)
        cuts = 1 + (lengths[long] - first - 1) // piece
        owner, place = np.repeat(long, cuts), np.arange(cuts.sum()) - np.repeat(np.cumsum(cuts) - cuts, cuts)
        within = np.repeat(first, cuts) + place * piece
        before = np.searchsorted(owner, documents)  # cuts before each document
        of = Sentences(
            np.insert(starts, owner + 1, starts[owner] + within),
            np.insert(ends, owner + 1, ends[owner] + within),
            documents + before,
        )
        return cls(of, owner, documents, owner + np.arange(1, len(owner) + 1), before)

    def others(self, split: np.ndarray, document: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """For each true B, which begins with the piece `split` of `document`, a piece drawn uniformly from all other
        documents: one that begins a sentence as it does, or one that begins within a sentence as it does, if any."""
        sentence = _from_others(self.documents, document, bits)
        found = sentence + np.searchsorted(self.cut_sentences, sentence)
        if not len(self.cut_sentences):
            return found
        inner, documents = self.inner, self.inner_documents
        own = documents[document + 1] - documents[document]
        is_inner = inner[np.minimum(np.searchsorted(inner, split), len(inner) - 1)] == split
        rows = np.flatnonzero(is_inner & (own < len(inner)))
        found[rows] = inner[_from_others(documents, document[rows], bits[rows])]
        return found


class _Chains(NamedTuple):
    """Documents, long ones in parts, from each of which samples are taken one after another."""

    document: np.ndarray  # [C] int64, to which each belongs
    first: np.ndarray  # [C] int64, its first sentence
    stop: np.ndarray  # [C] int64

    @classmethod
    def of(cls, sentences: Sentences, tokens: int) -> "_Chains":
        """Part every document anew wherever another `tokens` of it have been passed."""
        _, ends, documents = sentences
        passed = (ends[:-1] - np.repeat(ends[documents[:-1]], np.diff(documents))) // tokens
        begins = passed[1:] != passed[:-1]
        begins[documents[1:-1] - 1] = True
        first = np.concatenate([[0], np.flatnonzero(begins) + 1])
        stop = np.concatenate([first[1:], [len(passed)]])
        return cls(np.searchsorted(documents, first, side="right") - 1, first, stop)


class _Cuts(NamedTuple):
    """Where samples begin, are parted and end, as sentence numbers. N samples."""

    chain: np.ndarray  # [N] int64
    key: np.ndarray  # [N] uint64
    first: np.ndarray  # [N] int64
    split: np.ndarray  # [N] int64, first sentence of the true B
    last: np.ndarray  # [N] int64, after the true B
    target: np.ndarray  # [N] int64, tokens aimed at
    label: np.ndarray  # [N] bool


def build(
    sentences: Sentences,
    seq_len: int,
    objective: Objective,
    seed: int,
    pass_number: int,
    go_on: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The samples [N] (SAMPLE) of one pass over the sentences: every sentence is used, none twice but as a random B.

    `go_on` is called in between, and gives up by raising.

    Raises
    ------
    InputError: where nsp has no second document to draw a random B from.
    """
    if objective == "nsp" and len(sentences.documents) == 2:
        raise InputError("next-sentence pairs need two documents or more; add text, or use --objective sop or mlm")
    if not len(sentences.token_starts):
        return np.zeros(0, SAMPLE)
    if objective == "mlm":
        chains = _Chains.of(sentences, CHAIN * seq_len)
        parts = []
        for chosen in _blocks_of_chains(len(chains.first)):
            go_on()
            parts.append(_full_sentences(sentences, chains, chosen, seq_len - 2))
        return np.concatenate(parts)
    room = seq_len - 3
    pieces = Pieces.cut(sentences, room, seed, pass_number)
    documents = pieces.of.documents
    document_ends = np.repeat(documents[1:], np.diff(documents)) if objective == "nsp" else None
    parts = []
    for document, cuts in _walk(pieces.of, seq_len, objective, seed, pass_number):
        go_on()
        for some in _blocks(len(cuts.key)):
            few = _Cuts(*(column[some[0] : some[-1] + 1] for column in cuts))
            parts.append(_pairs(pieces, document[some], few, room, document_ends))
    return np.concatenate(parts)


def times_taken(sentences: Sentences, seq_len: int, objective: Objective, seed: int, pass_number: int) -> np.ndarray:
    """[P] int64: how many samples of a pass take each sentence (of a long one, each piece) in its place, before they
    are cut to their length. It is 1 for all; a random B is not counted. Not for mlm, whose samples leave nothing out.
    """
    pieces = Pieces.cut(sentences, seq_len - 3, seed, pass_number).of
    change = np.zeros(len(pieces.token_starts) + 1, np.int64)
    for _, cuts in _walk(pieces, seq_len, objective, seed, pass_number):
        np.add.at(change, cuts.first, 1)
        np.add.at(change, np.where(cuts.label, cuts.split, cuts.last) if objective == "nsp" else cuts.last, -1)
    return np.cumsum(change[:-1])


def without_choice(sentences: Sentences, seq_len: int, objective: Objective, seed: int, pass_number: int) -> float:
    """The share of a pass's samples that hold one sentence: nsp can only put a random B behind it, and sop has nothing
    to swap. Not for mlm."""
    pieces = Pieces.cut(sentences, seq_len - 3, seed, pass_number).of
    alone = [cuts.last - cuts.first == 1 for _, cuts in _walk(pieces, seq_len, objective, seed, pass_number)]
    return float(np.concatenate(alone).mean())


def _walk(
    pieces: Sentences, seq_len: int, objective: Objective, seed: int, pass_number: int
) -> Iterator[tuple[np.ndarray, _Cuts]]:
    """The samples of a pass as cuts, many at once, and the document of each."""
    chains = _Chains.of(pieces, CHAIN * seq_len)
    for chosen in _blocks_of_chains(len(chains.first)):
        cuts = _cut(pieces, chains, chosen, seq_len - 3, objective, draw(seed, pass_number, chosen))
        yield chains.document[cuts.chain], cuts


def _blocks(count: int) -> Iterator[np.ndarray]:
    """range(count) in blocks, so that what is worked on stays in the cache."""
    return (np.arange(begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))


def _blocks_of_chains(count: int) -> Iterable[np.ndarray]:
    """The same of all chains of a pass: of a large store that is work to be shown."""
    if count <= SHOWN * BLOCK:
        return _blocks(count)
    return Progress(_blocks(count), "index of the samples", "block", total=-(-count // BLOCK))


def _cut(
    sentences: Sentences, chains: _Chains, chain: np.ndarray, room: int, objective: Objective, chain_key: np.ndarray
) -> _Cuts:
    """Walk along all chains at once, a sample of each a round. Only what decides where the next sample begins is done
    here: a round is a dozen calls on short arrays, so every call counts. One draw of 64 bits serves the whole round:
    15 bits say whether the sample is short, 1 is the label, 24 make the length aimed at, 24 the split."""
    first, stop = chains.first[chain], chains.stop[chain]
    rounds: list[tuple[np.ndarray, ...]] = []
    while len(chain):
        key = draw_more(chain_key, len(rounds))
        bits = key.view(np.int64)
        short = (bits & 0x7FFF) < round(SHORT_SAMPLES * 0x8000)
        target = np.where(short, 2 + (((bits >> 16 & 0xFFFFFF) * (room - 1)) >> 24), room)
        last = _reach(sentences.ends, first, target, stop)
        count = last - first
        split = first + 1 + (((key >> np.uint64(40)).view(np.int64) * np.maximum(count - 1, 1)) >> 24)
        label = (bits & 0x8000) > 0
        if objective == "nsp":
            label |= count == 1
            following = np.where(label, split, last)  # the unused true continuation goes back into the stream
        else:
            label &= count > 1
            following = last
        rounds.append((chain, key, first, split, last, target, label))
        going_on = np.flatnonzero(following < stop)
        if len(going_on) < len(chain):
            chain, chain_key, stop, following = (a[going_on] for a in (chain, chain_key, stop, following))
        first = following
    return _Cuts(*(np.concatenate(column) for column in zip(*rounds, strict=True)))


def _pairs(
    pieces: Pieces, document: np.ndarray, cuts: _Cuts, room: int, document_ends: np.ndarray | None
) -> np.ndarray:
    """Samples out of cuts: the random Bs (for nsp, with `document_ends`) or the swaps (for sop), and the truncation."""
    starts, ends, _ = pieces.of
    split, label = cuts.split, cuts.label
    a_length = ends[split] - ends[cuts.first]
    b_first, b_last = split.copy(), cuts.last.copy()
    if document_ends is not None:
        rows = np.flatnonzero(label)
        other = pieces.others(split[rows], document[rows], draw_more(cuts.key[rows], _OTHER))
        b_first[rows] = other
        b_last[rows] = _reach(ends, other, (cuts.target - a_length)[rows], document_ends[other])
    b_length = ends[b_last] - ends[b_first]
    a_kept, b_kept = _truncate(a_length, b_length, room)
    front = draw_more(cuts.key, _FRONT)
    a_start = starts[cuts.first] + _share(front >> np.uint64(32), a_length - a_kept)
    b_start = starts[np.minimum(b_first, len(starts) - 1)] + _share(front & np.uint64(0xFFFFFFFF), b_length - b_kept)
    if document_ends is None:
        a_start, b_start = np.where(label, b_start, a_start), np.where(label, a_start, b_start)
        a_kept, b_kept = np.where(label, b_kept, a_kept), np.where(label, a_kept, b_kept)
    return _pack(a_start, a_kept, b_start, b_kept, label)


def _full_sentences(sentences: Sentences, chains: _Chains, chain: np.ndarray, room: int) -> np.ndarray:
    """Whole sentences that fit, without a B. One that is longer than a sample fills what is left of this one, and goes
    on in the next: every token is in one sample."""
    starts, ends, _ = sentences
    sentence, stop = chains.first[chain], chains.stop[chain]
    begun, left = (
        np.zeros_like(sentence),
        ends[stop] - ends[sentence],
    )  # tokens of the first sentence that are taken; of all
    parts = []
    while len(sentence):
        fits = _reach(ends, sentence, begun + room + 1, stop + 1) - 1  # the first sentence that does not fit whole
        before = ends[fits]
        length = before - ends[sentence] - begun
        goes_on = ends[np.minimum(fits + 1, stop)] - before > room
        length[goes_on] = room
        nothing = np.zeros_like(length)
        parts.append(_pack(starts[sentence] + begun, length, starts[sentence], nothing, nothing))
        left = left - length
        begun = np.where(goes_on, begun + room - (before - ends[sentence]), 0)
        going_on = np.flatnonzero(left)
        if len(going_on) < len(left):
            fits, stop, begun, left = (column[going_on] for column in (fits, stop, begun, left))
        sentence = fits
    return np.concatenate(parts)


def _reach(ends: np.ndarray, first: np.ndarray, tokens: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Sentence after the one with which `tokens` are reached from `first` on; at least one, none from `stop` on.

    By halving steps from `first`: a sentence has a token or more, so the end is near, and in memory too. A search
    through all sentences takes five times as long.
    """
    goal, last = ends[first] + tokens, first
    step = 1 << max(int(np.max(tokens, initial=1)).bit_length() - 1, 0)
    while step:
        further = np.minimum(last + step, stop - 1)
        last = np.where(ends[further] < goal, further, last)
        step >>= 1
    return last + 1


def _from_others(documents: np.ndarray, document: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """A number below documents[-1] drawn uniformly from all documents but `document`: draw among the others, skip over
    its own."""
    own_first, own_stop = documents[document], documents[document + 1]
    drawn = below(bits, documents[-1] - (own_stop - own_first))
    return np.where(drawn < own_first, drawn, drawn + (own_stop - own_first))


def _share(bits: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Of `excess` tokens that must go, how many go from the front: none, all, or uniform in between, each in a third of
    the cases, from 32 bits. A share that is always in between would hardly ever leave the first and the last token."""
    drawn = ((bits * (3 * excess + 1).view(np.uint64)) >> np.uint64(32)).view(np.int64)
    return np.clip(drawn - excess, 0, excess)


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
