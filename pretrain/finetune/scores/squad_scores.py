"""Exact match and F1 of answers by the rules of SQuAD's official scripts (v1.1 and v2.0), as shares from 0 to 1.

    exact(guess, answer), f1(guess, answer)       one answer against one
    score_answers(answers, guesses)               a file, and for v2.0 the threshold that would be best

Both scripts compare without case, punctuation (ASCII's), English articles and double spaces, and take the best over all
answers of a question. The scripts differ in two things: in v2.0 a question may have no answer, which only an empty
guess meets; and two texts of which nothing is left (as "the" and "a") are the same in v2.0, and have no F1 in v1.1.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_MARKS = str.maketrans("", "", string.punctuation)


class Guess(NamedTuple):
    """What a model answers: a span of the context, and by how much it would rather give none."""

    text: str
    null_difference: float  # score of no answer less that of the text, in logits


def normalised(text: str) -> str:
    """Return what is compared: "The  cat's" -> "cats"."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_MARKS)).split())


def exact(guess: str, answer: str) -> float:
    """Return 1 where both are the same when normalised, else 0."""
    return float(normalised(guess) == normalised(answer))


def f1(guess: str, answer: str, empty_is_same: bool = True) -> float:
    """Return the harmonic mean of the shares of words in common.

    empty_is_same: two texts without words are the same, as in v2.0; v1.1 has 0 for them
    """
    guessed, wanted = normalised(guess).split(), normalised(answer).split()
    if not guessed or not wanted:
        return float(empty_is_same and guessed == wanted)
    common = sum((Counter(guessed) & Counter(wanted)).values())
    return 2 * common / (len(guessed) + len(wanted))


def score_answers(answers: list[list[str]], guesses: list[Guess]) -> dict[str, float]:
    """Return `f1` and `exact` of a file [N]; `answers` are all texts of each question, none where it has no answer.

    Where a question has no answer, a guess is dropped whose null_difference is above 0, and there are more: the scores
    of both kinds of questions, and `best_f1` at the `threshold`, `best_exact` at its own, that would have been best.
    """
    f1_of, wanted = script_of(answers)
    if all(answers):
        return {
            "f1": _mean([_best(f1_of, guess.text, texts) for texts, guess in zip(wanted, guesses, strict=True)]),
            "exact": _mean([_best(exact, guess.text, texts) for texts, guess in zip(wanted, guesses, strict=True)]),
        }
    scores: dict[str, float] = {}
    for name, measure in (("f1", f1_of), ("exact", exact)):
        kept = [_best(measure, guess.text, texts) for texts, guess in zip(wanted, guesses, strict=True)]
        dropped = [float(not texts) for texts in answers]
        given = [d if g.null_difference > 0 else k for k, d, g in zip(kept, dropped, guesses, strict=True)]
        scores[name] = _mean(given)
        scores[f"has_answer_{name}"] = _mean([s for s, texts in zip(given, answers, strict=True) if texts])
        scores[f"no_answer_{name}"] = _mean([s for s, texts in zip(given, answers, strict=True) if not texts])
        scores[f"best_{name}"], threshold = best_threshold(kept, dropped, guesses)
        if name == "f1":
            scores["threshold"] = threshold
    return scores


def script_of(answers: list[list[str]]) -> tuple[Callable[[str, str], float], list[list[str]]]:
    """Return F1 by the script that is for such a file, and the texts with which it compares the guess of each question:
    v1.1 where every question has an answer, else v2.0."""
    if all(answers):
        return f1_of_v1, answers
    # Answers of which normalising leaves nothing count as none that are to be met; a question of which none is left
    # wants an empty guess.
    return f1, [[text for text in texts if normalised(text)] or [""] for texts in answers]


def f1_of_v1(guess: str, answer: str) -> float:
    """Return F1 as the script of v1.1 has it."""
    return f1(guess, answer, empty_is_same=False)


def best_threshold(kept: list[float], dropped: list[float], guesses: list[Guess]) -> tuple[float, float]:
    """Return the best mean score, and the null_difference up to which guesses are kept for it.

    kept, dropped: score of each question when its guess is given, and when it is not [N]
    """
    order = sorted(range(len(guesses)), key=lambda index: guesses[index].null_difference)
    total = best = sum(dropped)
    threshold = guesses[order[0]].null_difference - 1 if order else 0.0  # below all: no guess is kept
    for place, index in enumerate(order):
        total += kept[index] - dropped[index]
        # Guesses of one difference are kept or dropped together.
        is_last = place + 1 == len(order)
        if not is_last and guesses[order[place + 1]].null_difference == guesses[index].null_difference:
            continue
        if total > best:
            best, threshold = total, guesses[index].null_difference
    return best / max(1, len(order)), threshold


def _best(measure: Callable[[str, str], float], guess: str, texts: list[str]) -> float:
    return max(measure(guess, text) for text in texts)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
