"""The floors below a fine-tuned score: counted words, and guessing."""

import random

import pytest

from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.learning.hyperparameters import nothing_learnt, settled
from pretrain.finetune.scores.baseline import MOST, bag_of_words, beats_guessing, can_tell, floors, majority


def examples(rows):
    return [Example(line, text, pair, label) for line, (text, pair, label) in enumerate(rows)]


def texts_of(words: dict[str, list[str]], count: int, seed: int, glue: str = " "):
    rng = random.Random(seed)
    labels = [rng.choice(sorted(words)) for _ in range(count)]
    return examples([(glue.join(rng.choices(words[label], k=6)), None, label) for label in labels])


@pytest.mark.parametrize(
    ("words", "glue", "name"),
    [
        ({"sea": ["wave", "salt", "the"], "land": ["field", "soil", "the"]}, " ", "bag of words"),
        ({"海": ["波浪", "海水", "的"], "地": ["田野", "泥土", "的"]}, "", "bag of characters"),
    ],
)
def test_words_are_counted_and_characters_where_no_spaces_part_them(words, glue, name):
    if not glue:
        words = {label: [word * 2 for word in some] for label, some in words.items()}
    found = bag_of_words(texts_of(words, 200, 0, glue), texts_of(words, 100, 1, glue))
    assert found["name"] == name
    assert found["accuracy"] > 0.95
    assert found["f1"] > 0.95
    again = bag_of_words(texts_of(words, 200, 0, glue), texts_of(words, 100, 1, glue))
    assert {**found, "seconds": 0} == {**again, "seconds": 0}


@pytest.mark.parametrize("words", [("好看", "难看"), ("ดี", "ไม่"), ("🙂", "🙁"), ("!!!", "???")])
def test_short_texts_without_spaces_and_texts_without_words_are_counted_by_characters(words):
    side = examples([(f"{word}{word}", None, str(label)) for label, word in enumerate(words)] * 4)
    found = bag_of_words(side, side)
    assert (found["name"], found["accuracy"]) == ("bag of characters", 1.0)


def test_labels_that_take_turns_in_a_large_file_are_all_learnt_from(monkeypatch):
    monkeypatch.setattr("pretrain.finetune.scores.baseline.MOST", 100)
    assert MOST > 100
    side = examples([("a", None, "x"), ("b", None, "y")] * 100)
    found = bag_of_words(side, side)
    assert (found["examples"], found["accuracy"]) == (100, 1.0)
    rare = examples([("a", None, "x")] * 1000 + [("b", None, "y")])
    monkeypatch.setattr("pretrain.finetune.scores.baseline.MOST", 2)
    assert bag_of_words(rare, rare)["accuracy"] > 0.99  # the other label is not among two that are drawn


def test_of_pairs_their_likeness_counts():
    rng = random.Random(0)
    names = [f"w{number}" for number in range(300)]
    rows = []
    for _ in range(400):
        first, other = rng.sample(names, 5), rng.sample(names, 5)
        is_alike = rng.random() < 0.5
        rows.append((" ".join(first), " ".join(rng.sample(first, 5) if is_alike else other), str(is_alike)))
    found = bag_of_words(examples(rows[:300]), examples(rows[300:]))
    assert found["accuracy"] > 0.9


def test_what_is_no_better_than_guessing_is_known():
    side = examples([("a", None, "x")] * 90 + [("b", None, "y")] * 10)
    floor = floors("classify", side, side)
    assert floor == {"accuracy": 0.9, "f1": 0.5}
    assert not beats_guessing(floor, [{"accuracy": 0.9, "f1": 0.47}], 100)
    assert not beats_guessing(floor, [{"accuracy": 0.93, "f1": 0.55}], 100)  # chance, of 100 examples
    assert beats_guessing(floor, [{"accuracy": 0.9, "f1": 0.7}], 100)  # the rare label is found
    assert not beats_guessing(floor, [{"accuracy": 0.98, "f1": 0.9}, {"accuracy": 0.9, "f1": 0.47}], 10_000)  # one seed
    assert not beats_guessing(floors("regress", side, side), [{"pearson": 0.1, "spearman": 0.1}], 100)
    assert beats_guessing(floors("regress", side, side), [{"pearson": 0.3, "spearman": 0.1}], 100)


def test_any_constant_answer_is_guessing_and_what_cannot_be_told_is_known():
    training = examples([("a", None, "x")] * 60 + [("b", None, "y")] * 40)
    other = examples([("a", None, "x")] * 20 + [("b", None, "y")] * 80)
    floor = floors("classify", training, other)
    assert (floor["accuracy"], majority(training, other)) == (0.8, 0.2)
    assert not beats_guessing(floor, [{"accuracy": 0.8, "f1": 0.44}], 100)
    assert can_tell(floor, 100)
    for some in (other[:20], other[20:], other[19:22]):  # one label alone; three examples
        assert not can_tell(floors("classify", training, some), len(some))
    assert not can_tell(floors("regress", training, other), 3)
    # The interval of two seeds is 12.7 standard errors wide; each of them beats guessing by far.
    assert beats_guessing(floors("classify", training, training), [{"accuracy": a, "f1": a} for a in (0.8, 0.97)], 200)


def test_rates_go_with_the_size_of_the_model_and_epochs_with_that_of_the_file(tmp_path):
    names = ("hf", "train", "eval", "out")
    config = FinetuneConfig(task="classify", **{name: tmp_path / name for name in names})
    assert [settled(config, hidden, 10_000).lr for hidden in (128, 256, 512, 768, 1024)] == [
        *(3e-4, 3e-4, 1e-4, 5e-5, 3e-5)
    ]
    assert [settled(config, 128, count).epochs for count in (10, 320, 1600, 9600)] == [20, 20, 6, 3]
    given = FinetuneConfig(task="classify", lr=1e-5, epochs=1, **{name: tmp_path / name for name in names})
    assert (settled(given, 128, 10).lr, settled(given, 128, 10).epochs) == (1e-5, 1)
    advice = nothing_learnt(given, 128, 1600, 0.9999, [0])
    assert all(part in advice for part in ("--lr 0.0003", "--epochs 6", "pretrained for longer"))
    assert "pretrained" not in nothing_learnt(given, 128, 1600, 0.5, [0])
