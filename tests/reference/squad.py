"""SQuAD's evaluation, as its scripts of v1.1 and v2.0 describe it, question by question and in percent."""

import re
import string
from collections import Counter


def normalize(text: str) -> str:
    """Lower case, then no punctuation, then no articles, then single spaces."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_v1(guess: str, truth: str) -> float:
    guessed, wanted = normalize(guess).split(), normalize(truth).split()
    same = sum((Counter(guessed) & Counter(wanted)).values())
    if same == 0:
        return 0
    precision, recall = same / len(guessed), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def f1_v2(guess: str, truth: str) -> float:
    if not normalize(guess).split() or not normalize(truth).split():
        return int(normalize(guess).split() == normalize(truth).split())
    return f1_v1(guess, truth)


def evaluate_v1(truths: list[list[str]], guesses: list[str]) -> dict[str, float]:
    f1 = exact = 0.0
    for texts, guess in zip(truths, guesses, strict=True):
        exact += max(normalize(guess) == normalize(text) for text in texts)
        f1 += max(f1_v1(guess, text) for text in texts)
    return {"f1": 100 * f1 / len(truths), "exact": 100 * exact / len(truths)}


def evaluate_v2(truths: list[list[str]], guesses: list[str], na_scores: list[float], threshold: float) -> dict:
    """na_scores: how likely no answer is; above the threshold none is given."""
    raw: dict[str, list[float]] = {"f1": [], "exact": []}
    for texts, guess in zip(truths, guesses, strict=True):
        golds = [text for text in texts if normalize(text)] or [""]
        raw["exact"].append(max(int(normalize(guess) == normalize(gold)) for gold in golds))
        raw["f1"].append(max(f1_v2(guess, gold) for gold in golds))
    result = {}
    for name, scores in raw.items():
        final = [
            float(not texts) if na > threshold else score
            for texts, score, na in zip(truths, scores, na_scores, strict=True)
        ]
        result[name] = 100 * sum(final) / len(final)
        # Every threshold there is, from "never an answer" on.
        options = [-1e9, *sorted(na_scores)]
        sums = [
            sum(float(not t) if na > limit else s for t, s, na in zip(truths, scores, na_scores, strict=True))
            for limit in options
        ]
        result[f"best_{name}"] = 100 * max(sums) / len(final)
        result[f"best_{name}_thresh"] = options[sums.index(max(sums))]
    return result
