"""BERT's sentence pairs, one document at a time, after create_instances_from_document of google-research/bert.

The draws are those of data_prep/samples/pairs.py (the same keys); everything done with them is written out plainly.
"""

import numpy as np

from data_prep.samples.draws import below, draw, draw_more


def _fraction_of(bits: int, width: int, bound: int) -> int:
    """An integer in [0, bound) from `width` random bits."""
    return bits * bound >> width


def nsp_samples(documents: list[list[list[int]]], seq_len: int, seed: int, pass_number: int, chain: int) -> list[tuple]:
    """All samples as (tokens of A, tokens of B, B is random), in no particular order; a document is taken in parts of
    about `chain` samples."""
    room = seq_len - 3
    samples = []
    parts = [
        (number, part) for number, sentences in enumerate(documents) for part in _parts(sentences, chain * seq_len)
    ]
    for part, (number, sentences) in enumerate(parts):
        position, made = 0, 0
        while position < len(sentences):
            key = int(draw(seed, pass_number, part, made)[0])
            target = room
            if key % 2**15 < 3277:  # one in ten
                target = 2 + _fraction_of(key >> 16 & 0xFFFFFF, 24, room - 1)
            chunk: list[list[int]] = []
            while position + len(chunk) < len(sentences) and sum(map(len, chunk)) < target:
                chunk.append(sentences[position + len(chunk)])
            split = 1 if len(chunk) == 1 else 1 + _fraction_of(key >> 40, 24, len(chunk) - 1)
            a = [token for sentence in chunk[:split] for token in sentence]
            is_random = len(chunk) == 1 or bool(key >> 15 & 1)
            if is_random:
                b = _random_b(documents, number, target - len(a), key)
                position += split  # the unused true continuation goes back
            else:
                b = [token for sentence in chunk[split:] for token in sentence]
                position += len(chunk)
            samples.append((*_truncated(a, b, room, key), is_random))
            made += 1
    return samples


def _parts(sentences: list[list[int]], tokens: int) -> list[list[list[int]]]:
    parts: dict[int, list[list[int]]] = {}
    passed = 0
    for sentence in sentences:
        parts.setdefault(passed // tokens, []).append(sentence)
        passed += len(sentence)
    return list(parts.values())


def _random_b(documents: list[list[list[int]]], own: int, target: int, key: int) -> list[int]:
    others = [
        (number, row) for number, sentences in enumerate(documents) if number != own for row in range(len(sentences))
    ]
    number, row = others[int(below(draw_more(np.array([key], np.uint64), 0), len(others))[0])]
    b: list[int] = []
    for sentence in documents[number][row:]:
        b += sentence
        if len(b) >= target:
            break
    return b


def _truncated(a: list[int], b: list[int], room: int, key: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    cut_a = cut_b = 0
    while len(a) - cut_a + len(b) - cut_b > room:
        if len(a) - cut_a > len(b) - cut_b:
            cut_a += 1
        else:
            cut_b += 1
    front = int(draw_more(np.array([key], np.uint64), 1)[0])
    front_a, front_b = _fraction_of(front >> 32, 32, cut_a + 1), _fraction_of(front % 2**32, 32, cut_b + 1)
    return tuple(a[front_a : len(a) - cut_a + front_a]), tuple(b[front_b : len(b) - cut_b + front_b])
