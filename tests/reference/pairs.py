"""BERT's sentence pairs, one document at a time, after create_instances_from_document of google-research/bert, those of
ALBERT, and samples without pairs.

The draws are those of data_prep/samples/sample_index.py (the same keys); all that is done with
them is written out plainly.
"""

from typing import NamedTuple

import numpy as np

from data_prep.samples.counter_rng import fold_in, randint, random_bits

Tokens = tuple[int, ...]


class Piece(NamedTuple):
    """A sentence, or a piece of one that is as long as a sample."""

    tokens: list[int]
    is_inner: bool  # begins within a sentence


def _fraction_of(bits: int, width: int, bound: int) -> int:
    """An integer in [0, bound) from `width` random bits."""
    return bits * bound >> width


def nsp_samples(documents: list[list[list[int]]], seq_len: int, seed: int, pass_number: int, chain: int) -> list[tuple]:
    """All samples as (tokens of A, tokens of B, B is random), in no particular order; a document is taken in parts of
    about `chain` samples."""
    room = seq_len - 3
    samples = []
    pieces = _in_pieces(documents, room, seed, pass_number)
    others = [_others(pieces, number) for number in range(len(documents))]
    for part, (number, begin, stop) in enumerate(_parts(pieces, chain * seq_len)):
        position, made = begin, 0
        while position < stop:
            key, target, chunk, split = _chunk(pieces[number][position:stop], room, seed, pass_number, part, made)
            a = _tokens(chunk[:split])
            is_random = len(chunk) == 1 or bool(key >> 15 & 1)
            position += split if is_random else len(chunk)  # the unused true continuation goes back
            if is_random:
                following = pieces[number][position : position + 1]
                within = bool(following) and following[0].is_inner
                b = _random_b(pieces, others[number][within] or others[number][False], target - len(a), key)
            else:
                b = _tokens(chunk[split:])
            samples.append((*_truncated(a, b, room, key), is_random))
            made += 1
    return samples


def sop_samples(documents: list[list[list[int]]], seq_len: int, seed: int, pass_number: int, chain: int) -> list[tuple]:
    """The same for sentence order: (tokens of A, tokens of B, they are swapped); B is empty where one piece is left."""
    room = seq_len - 3
    samples = []
    pieces = _in_pieces(documents, room, seed, pass_number)
    for part, (number, begin, stop) in enumerate(_parts(pieces, chain * seq_len)):
        position, made = begin, 0
        while position < stop:
            key, _, chunk, split = _chunk(pieces[number][position:stop], room, seed, pass_number, part, made)
            position += len(chunk)
            a, b = _truncated(_tokens(chunk[:split]), _tokens(chunk[split:]), room, key)
            is_swapped = len(chunk) > 1 and bool(key >> 15 & 1)
            samples.append((b, a, True) if is_swapped else (a, b, False))
            made += 1
    return samples


def mlm_samples(documents: list[list[list[int]]], seq_len: int, chain: int) -> list[tuple]:
    """Samples without B: sentences as long as they fit whole; one that is too long for any sample fills this one, and
    goes on in the next."""
    room = seq_len - 2
    samples: list[tuple] = []
    whole = [[Piece(sentence, False) for sentence in sentences] for sentences in documents]
    for number, begin, stop in _parts(whole, chain * seq_len):
        a: list[int] = []
        for sentence in documents[number][begin:stop]:
            if len(sentence) <= room < len(a) + len(sentence):
                samples.append((tuple(a), (), False))
                a = []
            for token in sentence:
                if len(a) == room:
                    samples.append((tuple(a), (), False))
                    a = []
                a.append(token)
        samples.append((tuple(a), (), False))
    return samples


def _in_pieces(documents: list[list[list[int]]], room: int, seed: int, pass_number: int) -> list[list[Piece]]:
    pieces: list[list[Piece]] = []
    number = 0  # of the sentence
    for sentences in documents:
        pieces.append([])
        for sentence in sentences:
            stops = [len(sentence)]
            if len(sentence) >= room:
                most = max(room // 4, 1)
                first = 1 + int(randint(random_bits(seed, pass_number, 1 << 40, number), most)[0])
                stops = [*range(first, len(sentence), most), len(sentence)]
            starts = [0, *stops[:-1]]
            pieces[-1] += [Piece(sentence[i:j], i > 0) for i, j in zip(starts, stops, strict=True)]
            number += 1
    return pieces


def _parts(documents: list[list[Piece]], tokens: int) -> list[tuple[int, int, int]]:
    """(document, first piece, after the last) of the parts in which documents are walked along."""
    parts = []
    for number, pieces in enumerate(documents):
        passed = begin = 0
        part = 0
        for row, piece in enumerate(pieces):
            if passed // tokens > part:
                parts.append((number, begin, row))
                begin, part = row, passed // tokens
            passed += len(piece.tokens)
        parts.append((number, begin, len(pieces)))
    return parts


def _chunk(
    pieces: list[Piece], room: int, seed: int, pass_number: int, part: int, made: int
) -> tuple[int, int, list[Piece], int]:
    """Key of the next sample, the tokens that it aims at, its pieces, and how many of them are A."""
    key = int(random_bits(seed, pass_number, part, made)[0])
    target = room
    if key % 2**15 < 3277:  # one in ten
        target = 2 + _fraction_of(key >> 16 & 0xFFFFFF, 24, room - 1)
    chunk: list[Piece] = []
    while len(chunk) < len(pieces) and len(_tokens(chunk)) < target:
        chunk.append(pieces[len(chunk)])
    return key, target, chunk, 1 if len(chunk) == 1 else 1 + _fraction_of(key >> 40, 24, len(chunk) - 1)


def _tokens(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.tokens]


def _others(documents: list[list[Piece]], own: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where a random B may begin, in documents other than `own`: with a sentence, and within one."""
    others = [(number, row) for number, pieces in enumerate(documents) if number != own for row in range(len(pieces))]
    return (
        [(number, row) for number, row in others if not documents[number][row].is_inner],
        [(number, row) for number, row in others if documents[number][row].is_inner],
    )


def _random_b(documents: list[list[Piece]], others: list[tuple[int, int]], target: int, key: int) -> list[int]:
    number, row = others[int(randint(fold_in(np.array([key], np.uint64), 0), len(others))[0])]
    b: list[int] = []
    for piece in documents[number][row:]:
        b += piece.tokens
        if len(b) >= target:
            break
    return b


def _truncated(a: list[int], b: list[int], room: int, key: int) -> tuple[Tokens, Tokens]:
    cut_a = cut_b = 0
    while len(a) - cut_a + len(b) - cut_b > room:
        if len(a) - cut_a > len(b) - cut_b:
            cut_a += 1
        else:
            cut_b += 1
    front = int(fold_in(np.array([key], np.uint64), 1)[0])
    front_a, front_b = _front(front >> 32, cut_a), _front(front % 2**32, cut_b)
    return tuple(a[front_a : len(a) - cut_a + front_a]), tuple(b[front_b : len(b) - cut_b + front_b])


def _front(bits: int, cut: int) -> int:
    """Of the tokens that are cut, how many at the front: none, all or some, each in a third of the samples."""
    return min(max(_fraction_of(bits, 32, 3 * cut + 1) - cut, 0), cut)
