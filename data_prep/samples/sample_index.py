"""Which sentences make which sample: the index of one pass over a store, as a pure function.

    store -> Sentences -> build_index(...) -> samples [N] (SAMPLE): where A and B lie, and the label

The rules are those of BERT's reference (google-research/bert, create_pretraining_data.py): sentences fill A and B up to
seq_len - 3 tokens; half of the time B is replaced by sentences of another document and the unused true continuation
goes back into the stream; one sample in ten is short; what is too long loses tokens at its longer side. Four
departures, recorded in docs/design.md:

- A sentence that fills a sample alone is several sentences, cut at other places in every pass (`Pieces`): otherwise
  what lies beyond its beginning would never be seen, and it would have no true continuation.
- A random B starts at a sentence drawn uniformly from all other documents (not: a document, then a sentence), so that
  short documents are not over-represented. It starts within a sentence exactly where the true B would.
- The tokens that are cut go all from the front, all from the back, or from both, each in a third of the samples.
- A document of more than CHUNK_SAMPLES samples is taken in chunks, across whose borders no sample goes: otherwise the
  index of an epoch would wait for the walk along the longest document.

Without pairs (mlm) samples are whole sentences, and what is longer than a sample goes on in the next: no token is lost.
tests/reference/pairs.py has the same rules for one sample at a time.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from data_prep.cli import InputError
from data_prep.progress import Progress
from data_prep.rounding import ceil_div
from data_prep.samples.counter_rng import fold_in, randint, random_bits
from data_prep.store import HELD_OUT, Store

VERSION = 3  # counts changes of what `build_index` gives; part of the name of a cached index
Objective = Literal["nsp", "sop", "mlm"]
SHORT_SHARE = 0.1  # of the samples aim at a random, shorter length (BERT's short_seq_prob)
SAMPLE = np.dtype(
    [
        ("a_start", "<i8"),  # A's first token, as its place among all tokens of its store
        ("b_start", "<i8"),
        ("a_length", "<u2"),  # tokens
        ("b_length", "<u2"),  # 0: the sample has no B
        ("label", "u1"),  # 1 if B is random (nsp) or A and B are swapped (sop)
    ]
)
CHUNK_SAMPLES = 128  # a longer document is walked along in chunks of so many samples, all at once
BLOCK_SIZE = 1 << 14  # chunks, or samples, that are worked on together
QUIET_BLOCKS = 4  # of chunks, some seconds of work; more show how far they are
PIECES_PER_SAMPLE = 4  # in a sentence that fills one: about as many as English has sentences in 128 tokens
# What is drawn, as the last part of a key.
_RANDOM_B, _FRONT_CUT = range(2)
_PIECE_CUTS = 1 << 40  # the same, in the place of a chunk's index


class _BitField(NamedTuple):
    """Some of the 64 bits of a draw, as a number of their own."""

    shift: np.uint64
    mask: np.uint64
    width: int

    @classmethod
    def at(cls, first: int, width: int) -> "_BitField":
        return cls(np.uint64(first), np.uint64((1 << width) - 1), width)

    def of(self, bits: np.ndarray) -> np.ndarray:
        """Return int64, uniform in [0, 2 ** width)."""
        return (bits >> self.shift & self.mask).view(np.int64)

    def below(self, bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
        """Return int64, uniform in [0, bound)."""
        return self.of(bits) * bound >> self.width


# One draw of 64 bits decides all of a sample:  | split 24 | length 24 | label 1 | short 15 |  (the lowest bit last)
_SHORT, _LABEL, _LENGTH, _SPLIT = (_BitField.at(*bits) for bits in ((0, 15), (15, 1), (16, 24), (40, 24)))


class Sentences(NamedTuple):
    """The training (or the held-out) sentences of a store. S sentences, D documents, numbered among themselves."""

    token_starts: np.ndarray  # [S] int64, each sentence's first token, as its place among all tokens of the store
    ends: np.ndarray  # [S + 1] int64, tokens before each sentence, counting these sentences only
    documents: np.ndarray  # [D + 1] int64, first sentence of each document

    @classmethod
    def of(cls, store: Store, held_out: bool = False, shards: Iterable[int] | None = None) -> "Sentences":
        """Select the sentences of documents that are (or are not) held out, of all shards or some, by index."""
        starts, lengths, counts = [], [], []
        for index in range(len(store.shards)) if shards is None else shards:
            shard = store.shards[index]
            chosen = (shard.document_flags & HELD_OUT > 0) == held_out
            sentences = np.repeat(chosen, shard.document_sentences)
            of_shard = shard.sentence_lengths.astype(np.int64)
            starts.append((store.token_starts[index] + np.cumsum(of_shard) - of_shard)[sentences])
            lengths.append(of_shard[sentences])
            counts.append(shard.document_sentences[chosen].astype(np.int64))
        return cls(
            np.concatenate(starts),
            np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
            np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
        )


class Pieces(NamedTuple):
    """Sentences, those of `room` tokens or more cut into several. P pieces, numbered like sentences; K cuts.

    A piece begins a sentence, or it is an *inner* one, which begins within a sentence, at a cut.
    """

    sentences: Sentences  # the pieces
    documents: np.ndarray  # [D + 1] int64, first sentence of each document, before the cuts
    inner: np.ndarray  # [K] int64, ascending: the inner pieces
    is_inner: np.ndarray  # [P + 1] bool; what is after the last one is none

    @classmethod
    def cut(cls, sentences: Sentences, room: int, seed: int, pass_number: int) -> "Pieces":
        """Cut after a first piece of random length, then after every `room` / PIECES_PER_SAMPLE tokens."""
        starts, ends, documents = sentences
        lengths = np.diff(ends)
        long = np.flatnonzero(lengths >= room)
        # A sentence of 10 tokens, pieces of 4, a first piece of 3: it is cut before its tokens 3 and 7.
        length = max(room // PIECES_PER_SAMPLE, 1)
        first = 1 + randint(random_bits(seed, pass_number, _PIECE_CUTS, long), length)
        cuts = 1 + (lengths[long] - first - 1) // length
        # Of each cut: its sentence, its index within that (0, 1, ...), and the tokens of the sentence before it.
        owner, index = np.repeat(long, cuts), _ranges(cuts)
        tokens_before = np.repeat(first, cuts) + index * length
        # Sentences 0, 1 and 2, of which 1 has two cuts: pieces 0 and 1, the inner 2 and 3, and 4.
        inner = owner + np.arange(1, len(owner) + 1)
        is_inner = np.zeros(len(ends) + len(inner), bool)
        is_inner[inner] = True
        begins_sentence = ~is_inner[:-1]
        piece_starts, piece_ends = np.empty(len(begins_sentence), np.int64), np.empty(len(is_inner), np.int64)
        for of_pieces, of_sentences in ((piece_starts, starts), (piece_ends[:-1], ends[:-1])):
            of_pieces[begins_sentence] = of_sentences
            of_pieces[inner] = of_sentences[owner] + tokens_before
        piece_ends[-1] = ends[-1]
        piece_documents = documents + np.searchsorted(owner, documents)
        return cls(Sentences(piece_starts, piece_ends, piece_documents), documents, inner, is_inner)


class _RandomBs(NamedTuple):
    """Where a random B may begin and must end."""

    pieces: Pieces
    first_pieces: np.ndarray  # [S] int64, the piece that begins each sentence
    inner_documents: np.ndarray  # [D + 1] int64, the first inner piece of each document, numbered among themselves
    document_ends: np.ndarray  # [P] int64, after the last piece of the document of each

    @classmethod
    def of(cls, pieces: Pieces) -> "_RandomBs":
        """Make ready to draw."""
        documents = pieces.sentences.documents
        return cls(
            pieces,
            np.flatnonzero(~pieces.is_inner[:-1]),
            np.searchsorted(pieces.inner, documents),
            np.repeat(documents[1:], np.diff(documents)),
        )

    def draw(self, split: np.ndarray, document: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Return for each true B, which begins with the piece `split` of `document`, a piece drawn uniformly from all
        other documents: one that begins a sentence as it does, or one that begins within a sentence as it does, if any.
        """
        inner, documents = self.pieces.inner, self.inner_documents
        found = self.first_pieces[_from_others(self.pieces.documents, document, bits)]
        rows = np.flatnonzero(self.pieces.is_inner[split])
        rows = rows[documents[document[rows] + 1] - documents[document[rows]] < len(inner)]
        found[rows] = inner[_from_others(documents, document[rows], bits[rows])]
        return found


class _Chunks(NamedTuple):
    """Documents, long ones in several chunks, along each of which samples are taken one after another."""

    document: np.ndarray  # [C] int64, to which each belongs
    first: np.ndarray  # [C] int64, its first sentence
    stop: np.ndarray  # [C] int64

    @classmethod
    def of(cls, sentences: Sentences, tokens: int) -> "_Chunks":
        """Begin a chunk with every document, and wherever another `tokens` of it have been passed."""
        _, ends, documents = sentences
        # Chunks of 100 tokens, a document of sentences that begin at its tokens 0, 60, 130, 180, after others of 500:
        # one border, at 600; the sentence that begins there or next, at 630, is the first of the second chunk.
        begins = ends[documents[:-1]]
        borders = (ends[documents[1:] - 1] - begins) // tokens
        passed = np.repeat(begins, borders) + tokens * (1 + _ranges(borders))
        first = np.unique(np.concatenate([documents[:-1], np.searchsorted(ends, passed)]))
        stop = np.append(first[1:], documents[-1])
        return cls(np.searchsorted(documents, first, side="right") - 1, first, stop)


class _Splits(NamedTuple):
    """Where samples begin, are split into A and B, and end, as indices of sentences. N samples."""

    document: np.ndarray  # [N] int64
    key: np.ndarray  # [N] uint64
    first: np.ndarray  # [N] int64
    split: np.ndarray  # [N] int64, first sentence of the true B
    stop: np.ndarray  # [N] int64, after the true B
    target: np.ndarray  # [N] int64, tokens aimed at
    label: np.ndarray  # [N] bool


def build_index(
    sentences: Sentences,
    *,
    seq_len: int,
    objective: Objective,
    seed: int,
    pass_number: int,
    check_wanted: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the samples [N] (SAMPLE) of a pass: every sentence is used, none twice but as a random B.

    `check_wanted` is called in between, and gives up by raising.

    Raises
    ------
    InputError: where nsp has no second document to draw a random B from.
    """
    if objective == "nsp" and len(sentences.documents) == 2:
        raise InputError("next-sentence pairs need two documents or more; add text, or use --objective sop or mlm")
    if not len(sentences.token_starts):
        return np.zeros(0, SAMPLE)
    if objective == "mlm":
        chunks = _Chunks.of(sentences, CHUNK_SAMPLES * seq_len)
        parts: list[np.ndarray] = []
        for chosen in _blocks_of_chunks(len(chunks.first)):
            check_wanted()
            parts += _full_sentences(sentences, chunks, chosen, seq_len - 2)
        return np.concatenate(parts)
    room = seq_len - 3
    pieces = Pieces.cut(sentences, room, seed, pass_number)
    random_bs = _RandomBs.of(pieces) if objective == "nsp" else None
    parts = []
    for splits in _splits_of_pass(pieces.sentences, seq_len, objective, seed, pass_number):
        check_wanted()
        parts.append(_pairs(pieces.sentences, splits, room, random_bs))
    return np.concatenate(parts)


def usage_counts(
    sentences: Sentences, *, seq_len: int, objective: Objective, seed: int, pass_number: int
) -> np.ndarray:
    """Return [P] int64: how many samples of a pass take each sentence (of a long one, each piece) in its place, before
    they are cut to their length. It is 1 for all; a random B is not counted. Not for mlm, whose samples leave nothing
    out.
    """
    pieces = Pieces.cut(sentences, seq_len - 3, seed, pass_number).sentences
    change = np.zeros(len(pieces.token_starts) + 1, np.int64)
    for splits in _splits_of_pass(pieces, seq_len, objective, seed, pass_number):
        np.add.at(change, splits.first, 1)
        np.add.at(change, np.where(splits.label, splits.split, splits.stop) if objective == "nsp" else splits.stop, -1)
    return np.cumsum(change[:-1])


def single_sentence_share(
    sentences: Sentences, *, seq_len: int, objective: Objective, seed: int, pass_number: int
) -> float:
    """Return the share of a pass's samples that hold one sentence: nsp can only put a random B behind it, and sop has
    nothing to swap. Not for mlm."""
    pieces = Pieces.cut(sentences, seq_len - 3, seed, pass_number).sentences
    passes = _splits_of_pass(pieces, seq_len, objective, seed, pass_number)
    return float(np.concatenate([splits.stop - splits.first == 1 for splits in passes]).mean())


def _splits_of_pass(
    pieces: Sentences, seq_len: int, objective: Objective, seed: int, pass_number: int
) -> Iterator[_Splits]:
    """Yield the samples of a pass as splits, many at once."""
    chunks = _Chunks.of(pieces, CHUNK_SAMPLES * seq_len)
    for chosen in _blocks_of_chunks(len(chunks.first)):
        keys = random_bits(seed, pass_number, chosen)
        yield from _walk(pieces.ends, chunks, chosen, keys, room=seq_len - 3, objective=objective)


def _blocks(count: int) -> Iterator[np.ndarray]:
    """Yield range(count) in blocks, so that what is worked on stays in the cache."""
    return (np.arange(begin, min(begin + BLOCK_SIZE, count)) for begin in range(0, count, BLOCK_SIZE))


def _blocks_of_chunks(count: int) -> Iterable[np.ndarray]:
    """Yield the same of all chunks of a pass: of a large store that is work to be shown."""
    if count <= QUIET_BLOCKS * BLOCK_SIZE:
        return _blocks(count)
    return Progress(_blocks(count), "index of the samples", "block", total=ceil_div(count, BLOCK_SIZE))


def _walk(
    ends: np.ndarray, chunks: _Chunks, chunk: np.ndarray, chunk_key: np.ndarray, *, room: int, objective: Objective
) -> Iterator[_Splits]:
    """Walk along many chunks at once, a sample of each per round; yield the samples of some rounds together.

    Only what decides where the next sample begins is done here: a round is a dozen calls on short arrays, so every call
    counts.
    """
    document, first, chunk_stop = chunks.document[chunk], chunks.first[chunk], chunks.stop[chunk]
    waiting: list[tuple[np.ndarray, ...]] = []  # rounds, not yet as many samples as are worked on together
    waiting_count = 0
    for index in itertools.count():
        key = fold_in(chunk_key, index)
        # Sentences until so many tokens are reached: all that fit, or for one sample in ten a random 2 .. room.
        is_short = _SHORT.of(key) < round(SHORT_SHARE * (1 << _SHORT.width))
        target = np.where(is_short, 2 + _LENGTH.below(key, room - 1), room)
        goal = ends.take(first) + target
        stop = np.minimum(_last_before(ends, first, goal, room) + 1, chunk_stop)
        # Sentences 4 .. 7 of a sample: B begins at 5, 6 or 7. A sample of one sentence has no true B.
        sentences = stop - first
        split = first + 1 + _SPLIT.below(key, np.maximum(sentences - 1, 1))
        label = _LABEL.of(key) > 0
        if objective == "nsp":
            label |= sentences == 1
            following = np.where(label, split, stop)  # the unused true continuation goes back into the stream
        else:
            label &= sentences > 1
            following = stop
        waiting.append((document, key, first, split, stop, target, label))
        waiting_count += len(key)
        # Chunks that are at their end leave; the others begin their next sample.
        going_on = np.flatnonzero(following < chunk_stop)
        if waiting_count >= BLOCK_SIZE or not len(going_on):
            yield _Splits(*(np.concatenate(column) for column in zip(*waiting, strict=True)))
            waiting, waiting_count = [], 0
        if not len(going_on):
            return
        if len(going_on) < len(key):
            document, chunk_key, chunk_stop, following = (
                a[going_on] for a in (document, chunk_key, chunk_stop, following)
            )
        first = following


def _pairs(sentences: Sentences, splits: _Splits, room: int, random_bs: _RandomBs | None) -> np.ndarray:
    """Return samples made of splits: the random Bs (for nsp) or the swaps (for sop, without `random_bs`), and the
    truncation."""
    starts, ends, _ = sentences
    split, label = splits.split, splits.label
    a_length = ends[split] - ends[splits.first]
    b_first, b_stop = split.copy(), splits.stop.copy()
    if random_bs is not None:
        # Random Bs, from another place on as many sentences as the sample has room for.
        rows = np.flatnonzero(label)
        other = random_bs.draw(split[rows], splits.document[rows], fold_in(splits.key[rows], _RANDOM_B))
        b_first[rows] = other
        goal = ends[other] + (splits.target - a_length)[rows]
        b_stop[rows] = np.minimum(_last_before(ends, other, goal, room) + 1, random_bs.document_ends[other])
    b_length = ends[b_stop] - ends[b_first]
    # What is too long is cut; the first 32 bits of a draw say how much of it in front of A, the last of B.
    a_kept, b_kept = _truncate(a_length, b_length, room)
    cut = fold_in(splits.key, _FRONT_CUT)
    a_start = starts[splits.first] + _front_cut(cut >> np.uint64(32), a_length - a_kept)
    b_start = starts[np.minimum(b_first, len(starts) - 1)] + _front_cut(cut & np.uint64(0xFFFFFFFF), b_length - b_kept)
    if random_bs is None:
        a_start, b_start = np.where(label, b_start, a_start), np.where(label, a_start, b_start)
        a_kept, b_kept = np.where(label, b_kept, a_kept), np.where(label, a_kept, b_kept)
    return _pack(a_start, a_kept, b_start, b_kept, label)


def _full_sentences(sentences: Sentences, chunks: _Chunks, chunk: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """Yield samples of whole sentences that fit, without a B. One that is longer than a sample fills what is left of
    this one, and goes on in the next: every token is in one sample.

    room 10, sentences of 4, 5, 23 and 2 tokens: samples of 4 + 5 + 1 (of the third), 10, 10, and its last 2 + 2.
    """
    starts, ends, _ = sentences
    sentence, stop = chunks.first[chunk], chunks.stop[chunk]
    # Tokens before the sentence, before the sample and before the chunk's end, as `ends` counts, and how much later
    # they lie in the store.
    begin, position, chunk_end = ends[sentence], ends[sentence], ends[stop]
    shift = starts[sentence] - begin
    while len(sentence):
        # Whole sentences up to the first that does not fit.
        fits = np.minimum(_last_before(ends, sentence, position + room + 1, room), stop)
        fits_begin = ends.take(fits)
        length = fits_begin - position
        # Where that one is longer than a sample, its beginning fills this one.
        length[ends.take(np.minimum(fits + 1, stop)) - fits_begin > room] = room
        nothing = np.zeros_like(length)
        yield _pack(position + shift, length, begin + shift, nothing, nothing)
        sentence, begin, position = fits, fits_begin, position + length
        going_on = np.flatnonzero(position < chunk_end)
        if len(going_on) < len(position):
            state = (sentence, stop, begin, position, chunk_end, shift)
            sentence, stop, begin, position, chunk_end, shift = (column[going_on] for column in state)


def _last_before(ends: np.ndarray, first: np.ndarray, goal: np.ndarray, most: int) -> np.ndarray:
    """Return the last sentence before which there are fewer than `goal` tokens, or `first` if that is later; `most`
    tokens, or fewer, lie between.

    By halving steps from `first`: a sentence has a token or more, so it is near, and in memory too. A search through
    all sentences takes five times as long.
    """
    # At most 100 tokens: 64 sentences further, if they are not too many, then 32, 16, 8, 4, 2, 1.
    last = first
    step = 1 << (most.bit_length() - 1)
    while step:
        further = last + step
        last = np.where(ends.take(further, mode="clip") < goal, further, last)  # beyond the text is like its end
        step >>= 1
    return last


def _from_others(documents: np.ndarray, document: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return an index below documents[-1] drawn uniformly from all documents but `document`: draw among the others,
    skip over its own."""
    # Of 0 .. 9 all but 3 .. 5: of 0 .. 6, what is 3 or more is 6 or more.
    own_first, own_stop = documents[document], documents[document + 1]
    drawn = randint(bits, documents[-1] - (own_stop - own_first))
    return np.where(drawn < own_first, drawn, drawn + (own_stop - own_first))


def _front_cut(bits: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Return of `excess` tokens that must go, how many go from the front: none, all, or uniform in between, each in a
    third of the cases, from 32 bits. A share that is always in between would hardly ever leave the first and the last
    token."""
    # excess 4: drawn from 0 .. 12, less 4, so -4 .. 8, cut off at 0 and 4.
    drawn = ((bits * (3 * excess + 1).view(np.uint64)) >> np.uint64(32)).view(np.int64)
    return np.clip(drawn - excess, 0, excess)


def _truncate(a: np.ndarray, b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths after taking tokens one by one from the longer side (from B at a tie) until both fit in `room`."""
    # A side keeps what the other one leaves, but half at least. room 9: of 8 and 4 tokens 5 and 4, as of 8 and 7.
    a_kept = np.minimum(a, np.maximum(room - b, (room + 1) // 2))
    b_kept = np.minimum(b, np.maximum(room - a, room // 2))
    return a_kept, b_kept


def _ranges(counts: np.ndarray) -> np.ndarray:
    """Return 0 .. count - 1 for each count, end to end: [2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _pack(*columns: np.ndarray) -> np.ndarray:
    samples = np.empty(len(columns[0]), SAMPLE)
    for name, column in zip(("a_start", "a_length", "b_start", "b_length", "label"), columns, strict=True):
        samples[name] = column
    return samples
