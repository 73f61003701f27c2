"""conlleval, the scorer of the CoNLL shared tasks: its two tables and its walk over the words, as its script has them.

The script knows B, I and O (and E in a way that no scheme of today uses). For schemes that mark ends, the tables are
those of its later ports: an E or an S ends what it is in, and B and S begin something. L and U are other letters for E
and S, M for I.
"""

from typing import NamedTuple

Counts = tuple[int, int, int]  # spans that are right, guessed, true


class Tag(NamedTuple):
    prefix: str
    kind: str


def parsed(tag: str) -> Tag:
    if tag == "O":
        return Tag("O", "")
    prefix, _, kind = tag.partition("-")
    return Tag({"L": "E", "U": "S", "M": "I"}.get(prefix, prefix), kind)


def end_of_chunk(before: Tag, tag: Tag) -> bool:
    end = False
    if before.prefix == "E":
        end = True
    if before.prefix == "S":
        end = True
    if before.prefix == "B" and tag.prefix == "B":
        end = True
    if before.prefix == "B" and tag.prefix == "S":
        end = True
    if before.prefix == "B" and tag.prefix == "O":
        end = True
    if before.prefix == "I" and tag.prefix == "B":
        end = True
    if before.prefix == "I" and tag.prefix == "S":
        end = True
    if before.prefix == "I" and tag.prefix == "O":
        end = True
    if before.prefix != "O" and before.kind != tag.kind:
        end = True
    return end


def start_of_chunk(before: Tag, tag: Tag) -> bool:
    start = False
    if tag.prefix == "B":
        start = True
    if tag.prefix == "S":
        start = True
    if before.prefix == "E" and tag.prefix == "E":
        start = True
    if before.prefix == "E" and tag.prefix == "I":
        start = True
    if before.prefix == "S" and tag.prefix == "E":
        start = True
    if before.prefix == "S" and tag.prefix == "I":
        start = True
    if before.prefix == "O" and tag.prefix == "E":
        start = True
    if before.prefix == "O" and tag.prefix == "I":
        start = True
    if tag.prefix != "O" and before.kind != tag.kind:
        start = True
    return start


def conlleval(true: list[list[str]], guessed: list[list[str]]) -> Counts:
    """Counts over sentences, by the script's walk: a chunk is right if both sides begin and end it together."""
    right, found_guessed, found_true = 0, 0, 0
    outside = Tag("O", "")
    for true_tags, guessed_tags in zip(true, guessed, strict=True):
        in_correct = False
        last_true, last_guess = outside, outside
        # The script sees a boundary word, outside of any chunk, behind each sentence.
        for true_tag, guessed_tag in zip([*true_tags, "O"], [*guessed_tags, "O"], strict=True):
            now_true, now_guess = parsed(true_tag), parsed(guessed_tag)
            true_ends, guess_ends = end_of_chunk(last_true, now_true), end_of_chunk(last_guess, now_guess)
            if in_correct:
                if true_ends and guess_ends and last_true.kind == last_guess.kind:
                    in_correct = False
                    right += 1
                elif true_ends != guess_ends or now_true.kind != now_guess.kind:
                    in_correct = False
            true_starts, guess_starts = start_of_chunk(last_true, now_true), start_of_chunk(last_guess, now_guess)
            if true_starts and guess_starts and now_true.kind == now_guess.kind:
                in_correct = True
            found_true += true_starts
            found_guessed += guess_starts
            last_true, last_guess = now_true, now_guess
    return right, found_guessed, found_true
