"""The floors below a fine-tuned score: counted words, and guessing."""

import random

import pytest

from pretrain.finetune.asked import FinetuneConfig
from pretrain.finetune.baseline import bag_of_words, beats_guessing, floors
from pretrain.finetune.labelled import Example
from pretrain.finetune.learning import nothing_learnt, settled


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


def test_rates_go_with_the_size_of_the_model_and_epochs_with_that_of_the_file(tmp_path):
    names = ("hf", "train", "eval", "out")
    config = FinetuneConfig(task="classify", **{name: tmp_path / name for name in names})
    assert [settled(config, hidden, 10_000).lr for hidden in (128, 256, 512, 768, 1024)] == [
        *(1e-3, 5e-4, 2e-4, 5e-5, 3e-5)
    ]
    assert [settled(config, 128, count).epochs for count in (10, 320, 1600, 9600)] == [20, 20, 6, 3]
    given = FinetuneConfig(task="classify", lr=1e-5, epochs=1, **{name: tmp_path / name for name in names})
    assert (settled(given, 128, 10).lr, settled(given, 128, 10).epochs) == (1e-5, 1)
    advice = nothing_learnt(given, 128, 1600, same=0.9999)
    assert all(part in advice for part in ("--lr 0.001", "--epochs 6", "pretrained for longer"))
    assert "pretrained" not in nothing_learnt(given, 128, 1600, same=0.5)
