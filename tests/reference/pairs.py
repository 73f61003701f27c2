"""BERT's sentence pairs, one document at a time, after create_instances_from_document of google-research/bert.

The draws are those of data_prep/pairs.py (the same keys); everything done with them is written out plainly.
"""

from data_prep.draws import below, draw, fraction


def _integer(bound: int, *key: int) -> int:
    return int(below(draw(*key), bound)[0])


def _chance(*key: int) -> float:
    return float(fraction(draw(*key))[0])


def nsp_samples(documents: list[list[list[int]]], seq_len: int, seed: int, pass_number: int) -> list[tuple]:
    """All samples as (tokens of A, tokens of B, B is random), in no particular order."""
    room = seq_len - 3
    samples = []
    for number, sentences in enumerate(documents):
        position, made = 0, 1
        while position < len(sentences):
            key = int(draw(seed, pass_number, number, made)[0])
            target = room
            if _chance(key, 1) < 0.1:
                target = 2 + _integer(room - 1, key, 0)
            chunk = []
            while position + len(chunk) < len(sentences) and sum(map(len, chunk)) < target:
                chunk.append(sentences[position + len(chunk)])
            split = 1 if len(chunk) == 1 else 1 + _integer(len(chunk) - 1, key, 2)
            a = [token for sentence in chunk[:split] for token in sentence]
            is_random = len(chunk) == 1 or _chance(key, 3) < 0.5
            if is_random:
                b = _random_b(documents, number, target - len(a), key)
                position += split  # the unused true continuation goes back
            else:
                b = [token for sentence in chunk[split:] for token in sentence]
                position += len(chunk)
            samples.append((*_truncated(a, b, room, key), is_random))
            made += 1
    return samples


def _random_b(documents: list[list[list[int]]], own: int, target: int, key: int) -> list[int]:
    others = [
        (number, row) for number, sentences in enumerate(documents) if number != own for row in range(len(sentences))
    ]
    number, row = others[_integer(len(others), key, 4)]
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
    front_a, front_b = _integer(cut_a + 1, key, 5), _integer(cut_b + 1, key, 6)
    return tuple(a[front_a : len(a) - cut_a + front_a]), tuple(b[front_b : len(b) - cut_b + front_b])
