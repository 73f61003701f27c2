"""What counting words gives on the same two files, and what guessing gives: the floors below a fine-tuned score.

    bag_of_words(training, evaluation)       TF-IDF of words and pairs of words, logistic regression
    majority(training, evaluation)           what the commonest label gives, or the commonest place of a right option
    random_choice(evaluation)                what guessing among options gives
    floors(task, training, evaluation)       the best that guessing reaches

A score means little by itself: words alone may solve a task, and a model that has learnt nothing still answers. The
settings are fixed and nothing is chosen by the evaluation file, so the figure is a floor and not a record. Texts in a
script without spaces, or without words (emoji), are counted by characters. Of a pair, the words of either text count,
and how alike the two are.
"""

import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import regex
from scipy import sparse, stats
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from data_prep.json_types import JsonObject
from pretrain.finetune.files.choices import Options
from pretrain.finetune.files.labelled import Example

CORRELATIONS = ("pearson", "spearman")
BY_WORDS = ("classify", "pair")  # tasks that counting words can do
OF_FEW = (*BY_WORDS, "choice")  # tasks of one answer out of a few
MOST = 50_000  # examples that are learnt from: seconds, not minutes
FEATURES = 200_000  # the most frequent ones
C = 10.0  # inverse of the penalty; scikit-learn's 1 is too much for rows of length 1
ROUNDS = 300  # of the solver
LONG_WORD = 20  # mean letters between spaces from which on there are none to speak of; German has 6
CONFIDENCE = 1.96  # standard errors of 95 %

_word: Callable[[str], list[str]] = regex.compile(r"[\w\p{M}]+").findall  # vowel signs of Hindi are within words
_unspaced = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]").findall


def bag_of_words(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Return the accuracy and F1 of counted words, for results.json; both sides as for the model."""
    started = time.monotonic()
    # Drawn, and not every second one: labels may take turns in a file.
    learnt = training if len(training) <= MOST else random.Random(0).sample(training, MOST)
    by_characters = _has_no_words([text for example in learnt[:1000] for text in _texts(example)])
    counting: Any = (
        {"analyzer": "char", "ngram_range": (1, 2)}
        if by_characters
        else {"tokenizer": _word, "token_pattern": None, "ngram_range": (1, 2)}
    )
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=FEATURES, **counting)
    vectorizer.fit(text for example in learnt for text in _texts(example))
    labels = [example.label for example in learnt]
    # Of a label so rare that it was not drawn nothing is learnt.
    model: Any = LogisticRegression(C=C, max_iter=ROUNDS) if len(set(labels)) > 1 else DummyClassifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a floor need not be the last word
        model.fit(_counted(vectorizer, learnt), labels)
    truth, guess = [example.label for example in evaluation], model.predict(_counted(vectorizer, evaluation))
    return {
        "name": f"bag of {'characters' if by_characters else 'words'}",
        **_scores(truth, guess),
        "examples": len(learnt),
        "seconds": time.monotonic() - started,
    }


def majority(training: list[Example], evaluation: list[Example]) -> float:
    """Return the accuracy of the commonest label of the training file, or place of a right option."""
    commonest = Counter(map(_answer, training)).most_common(1)[0][0]
    return sum(_answer(example) == commonest for example in evaluation) / len(evaluation)


def random_choice(evaluation: list[Example]) -> JsonObject:
    """Return the accuracy to expect of guessing among the options of each row, for results.json."""
    shares = [1 / len(example.label.texts) for example in evaluation]
    return {"name": "random guessing", "accuracy": sum(shares) / len(shares)}


def _answer(example: Example) -> Any:
    return example.label.answer if isinstance(example.label, Options) else example.label


def floors(task: str, training: list[Example], evaluation: list[Example]) -> dict[str, float]:
    """Return the best that guessing reaches, by the name of the score; scores that are not among them are no measure of
    it."""
    if task == "multilabel":
        return {"micro_f1": _best_constant_set(evaluation)}
    if task == "choice":
        return {"accuracy": max(majority(evaluation, evaluation), random_choice(evaluation)["accuracy"])}
    if task not in BY_WORDS:
        if task == "qa":  # never an answer
            return {"f1": sum(not example.label.texts for example in evaluation) / len(evaluation)}
        return {"regress": dict.fromkeys(CORRELATIONS, 0.0), "tag": {"f1": 0.0}}.get(task, {})
    # Whoever knows nothing says one label always, and that may be another than the commonest of the training file.
    luckiest = Counter(example.label for example in evaluation).most_common(1)[0][0]
    always = _scores([example.label for example in evaluation], [luckiest] * len(evaluation))
    # Guesses that are as frequent as the labels have a mean F1 of one in so many.
    return {**always, "f1": max(always["f1"], 1 / len({example.label for example in training}))}


def _best_constant_set(examples: list[Example]) -> float:
    """Return the best micro-F1 of giving all texts the same labels: the most frequent one, two, three, ..."""
    counts = Counter(name for example in examples for name in example.label)
    hits = np.cumsum([count for _, count in counts.most_common()])
    given = len(examples) * np.arange(1, len(hits) + 1)
    return float(max(2 * hits / (given + hits[-1]))) if len(hits) else 0.0


def can_tell(floor: dict[str, float], examples: int) -> bool:
    """Return whether so many examples tell a perfect score from guessing: three do not, nor do any of one label
    alone."""
    return beats_guessing(floor, [dict.fromkeys(floor, 1.0)], examples)


def beats_guessing(floor: dict[str, float], scores: list[dict[str, float]], examples: int) -> bool:
    """Return whether any score is better than guessing by more than chance explains: that of every seed, or else the
    mean of them, whose interval is wide for two or three."""
    if len(scores) > 1 and all(beats_guessing(floor, [score], examples) for score in scores):
        return True
    for name, least in floor.items():
        values = [score[name] for score in scores]
        spread = 1.0 if name in CORRELATIONS else least * (1 - least)
        if beats(float(np.mean(values)), _half_width(values), least, examples, spread):
            return True
    return not floor


def beats(score: float, ci95: float, floor: float, examples: int, spread: float) -> bool:
    """Return whether a score of `examples`, of each of which it has a variance of `spread`, lies above a floor by more
    than chance explains: that of the seeds, or that of the examples."""
    return score - floor > max(ci95, CONFIDENCE * (spread / examples) ** 0.5)


def _half_width(values: list[float]) -> float:
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1)) / n**0.5 if n > 1 else 0.0


def _scores(truth: list[Any], guess: Any) -> dict[str, float]:
    return {
        "accuracy": float(metrics.accuracy_score(truth, guess)),
        "f1": float(metrics.f1_score(truth, guess, average="macro", zero_division=0)),
    }


def _texts(example: Example) -> list[str]:
    return [text for text in (example.text, example.pair) if isinstance(text, str)]


def _counted(vectorizer: TfidfVectorizer, examples: list[Example]) -> Any:
    """Return [N, features], of pairs [N, 2 features + 1]: of either text, and how alike the two are."""
    first, *second = (vectorizer.transform(side) for side in zip(*map(_texts, examples), strict=True))
    return sparse.hstack([first, second[0], first.multiply(second[0]).sum(axis=1)], "csr") if second else first


def _has_no_words(texts: list[str]) -> bool:
    """Return whether words cannot be told by spaces, as in Chinese, Japanese and Thai, or there are none, as of
    emoji."""
    letters = sum(map(len, texts))
    is_spaced = letters <= LONG_WORD * max(1, sum(len(text.split()) for text in texts))
    return not is_spaced or 2 * sum(len(_unspaced(text)) for text in texts) > letters or not any(map(_word, texts))
