"""Scores against their definitions: spans against conlleval, F1 over what occurs, numbers in the unit of the file."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import BertForSequenceClassification

from data_prep.cli import InputError
from pretrain.finetune import examples
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.learning.held_back import hold_back
from pretrain.finetune.scores import compare
from pretrain.finetune.scores.squad_scores import Guess, score_answers
from pretrain.finetune.tasks import label_sets, texts
from pretrain.finetune.tasks.tags import score_tags, tell_tags
from pretrain.inference.tag_spans import scheme_of, spans
from tests.reference.conlleval import conlleval
from tests.tiny_hf import tiny_bert

SCHEMES = {"BIO": "BI", "IOB1": "IB", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}


def score_of_tags(true: list[list[str]], guessed: list[list[str]]) -> dict[str, float]:
    """The scores of --task tag for these answers, by way of logits."""
    names = sorted({tag for tags in [*true, *guessed] for tag in tags})
    examples = [Example(1, ["x"] * len(tags), None, tags) for tags in true]
    features = [{"labels": [names.index(tag) for tag in tags], "words": list(range(len(tags)))} for tags in true]
    logits = np.zeros((len(true), max(map(len, true)), len(names)))
    for row, tags in enumerate(guessed):
        for at, tag in enumerate(tags):
            logits[row, at, names.index(tag)] = 1
    return score_tags(logits, features, examples, names)


@pytest.mark.parametrize("name", SCHEMES)
def test_spans_are_those_of_conlleval(name):
    # Tags at random break every rule of the scheme, as answers do; each letter occurs, so that the scheme is known.
    rng = random.Random(name)
    tags = ["O", "O", *(f"{letter}-{kind}" for letter in SCHEMES[name] for kind in ("x", "y-z"))]
    for _ in range(300):
        true = [rng.choices(tags, k=rng.randrange(1, 9)) for _ in range(4)]
        guessed = [[rng.choice([tag, rng.choice(tags)]) for tag in sentence] for sentence in true]
        right, found, wanted = conlleval([*true, tags], [*guessed, tags])
        scores = score_of_tags([*true, tags], [*guessed, tags])
        assert scores["precision"] == pytest.approx(right / found)
        assert scores["recall"] == pytest.approx(right / wanted)
        assert scores["f1"] == pytest.approx(2 * right / (found + wanted))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-a I-a O B-a B-a I-b I-b", {(1, 3, "a"), (4, 5, "a"), (5, 6, "a"), (6, 8, "b")}),
        ("I-a I-a O I-a B-a I-a I-b", {(0, 2, "a"), (3, 4, "a"), (4, 6, "a"), (6, 7, "b")}),
        ("B-a I-a E-a S-a B-b E-b E-b O I-a", {(0, 3, "a"), (3, 4, "a"), (4, 6, "b"), (6, 7, "b"), (8, 9, "a")}),
        ("B-a I-a L-a U-a B-b L-b L-b O I-a", {(0, 3, "a"), (3, 4, "a"), (4, 6, "b"), (6, 7, "b"), (8, 9, "a")}),
        ("B M E S B E", {(0, 3, ""), (3, 4, ""), (4, 6, "")}),
        ("NOUN NOUN VERB O", {(0, 1, "NOUN"), (1, 2, "NOUN"), (2, 3, "VERB")}),
        ("b-per i-per o b-per", {(0, 2, "per"), (3, 4, "per")}),
        ("B_PER I_PER O B_LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("PER-B PER-I O LOC-B", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("b:a e:a _ s:b", {(0, 2, "a"), (3, 4, "b")}),
        ("B-a I-a 0 0 B-b none", {(0, 2, "a"), (2, 3, "0"), (3, 4, "0"), (4, 5, "b"), (5, 6, "none")}),  # which is O?
        ("B-a I-a 0 0 B-b", {(0, 2, "a"), (4, 5, "b")}),
        ("B-a I-a NONE O 0 B-b", {(0, 2, "a"), (2, 3, "NONE"), (5, 6, "b")}),
        ("B-a I-a None B-b", {(0, 2, "a"), (3, 4, "b")}),
        ("PER PER o", {(0, 1, "PER"), (1, 2, "PER")}),
        ("b i o b", {(0, 2, ""), (3, 4, "")}),
        ("e_x s_y i_z", {(0, 1, "e_x"), (1, 2, "s_y"), (2, 3, "i_z")}),
        ("S-NP E-mail X-ray", {(0, 1, "S-NP"), (1, 2, "E-mail"), (2, 3, "X-ray")}),
        ("", set()),
    ],
)
def test_spans_of_each_scheme(tags, expected):
    assert spans(tags.split(), scheme_of([tags.split()])) == expected


@pytest.mark.parametrize(
    ("sentences", "name"),
    [
        (["B-x I-x I-x O", "B-y B-y"], "BIO"),
        (["I-x I-x O I-y", "I-x B-x I-x"], "IOB1"),
        (["I-x I-x O"], "IOB1"),
        (["I-x I-x O", "O B-x I-x"], "BIO"),  # a B- where IOB1 has none
        (["B-x E-x O S-y"], "BIOES"),
        (["S-x O"], "BIOES"),
        (["B-x L-x O U-y"], "BILOU"),
        (["B-x M-x E-x S-x"], "BMES"),
        (["B M M E S"], "BMES"),
        (["B I O O"], "BIO"),
        (["NOUN VERB O"], "none"),
        (["N V S E"], "none"),
        (["O O"], "none"),
        (["B-x L-x S-x"], "none"),
        (["i_x i_x o", "b_y i_y"], "BIO"),
        (["x-I x-I x-B", "x-I O"], "IOB1"),
    ],
)
def test_the_scheme_is_known_by_its_letters(sentences, name):
    assert scheme_of([tags.split() for tags in sentences]).name == name


@pytest.mark.parametrize("end", ["B-a I-a", "B-a E-a", "B-a L-a"])
def test_an_entity_cut_short_is_wrong_in_every_scheme(end):
    one = {"I": "B-a", "E": "S-a", "L": "U-a"}[end[4]]
    true = [end.split(), [one, "O"]]
    assert score_of_tags(true, true)["f1"] == 1
    assert score_of_tags(true, [["B-a", "O"], [one, "O"]])["f1"] == pytest.approx(0.5)


def test_a_file_without_spans_says_so(capsys):
    outside = [Example(1, ["x"], None, ["O"])]
    inside = [Example(1, ["x", "y", "z"], None, ["B-PER", "E-PER", "S-LOC"])]
    assert tell_tags(inside, outside) == {"scheme": "BIOES", "not_in_eval": ["LOC", "PER"]}
    assert capsys.readouterr().err.splitlines() == [
        "tags: BIOES; 2 kinds (LOC, PER)",
        "nothing but O in the file to measure on: f1 is 0 whatever the answers; look at accuracy",
    ]


def test_what_stands_for_words_outside_is_said(capsys):
    files = [Example(1, ["x", "y"], None, ["b-per", "0"])], [Example(1, ["x", "y"], None, ["0", "0"])]
    tell_tags(*files)
    assert "tags: BIO, with '0' for words outside; 1 kinds (per)" in capsys.readouterr().err


def score_of_classes(true: list[int], guess: list[int], names: list[str]) -> dict[str, float]:
    features = [{"labels": label} for label in true]
    return texts.score_classes(np.eye(len(names))[guess], features, [], names)


def test_perfect_answers_have_an_f1_of_1_whatever_is_absent():
    assert score_of_classes([0, 2, 2], [0, 2, 2], ["neg", "neutral", "pos"]) == {"accuracy": 1.0, "f1": 1.0}
    # An absent label that is answered counts, as an answer that is wrong.
    wrong = score_of_classes([0, 2, 2], [0, 2, 1], ["neg", "neutral", "pos"])
    assert wrong["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    for names in (["a", "b"], ["b", "a"]):
        assert set(score_of_classes([0, 0], [0, 0], names).values()) == {1.0}
        assert score_of_classes([0, 0], [0, 1], names)[f"f1_{names[1]}"] == 0.0


def test_scores_do_not_depend_on_the_order_of_labels():
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    order = rng.permutation(4)
    scores = score_of_classes(list(true), list(guess), list("abcd"))
    assert score_of_classes(list(order[true]), list(order[guess]), list("abcd")) == pytest.approx(scores)
    assert scores["f1"] == pytest.approx(f1_score(true, guess, average="macro"))


def test_labels_of_one_side_are_named(capsys):
    def side(*labels):
        return [Example(1, "", None, label) for label in labels]

    assert texts.tell_classes(side("neg", "pos", "neutral"), side("neg", "pos"))["not_in_eval"] == ["neutral"]
    assert "not in the file to measure on: neutral; f1 is the mean over what occurs" in capsys.readouterr().err
    texts.tell_classes(side("neg"), side("neg", "pos"))
    assert "not among the examples to learn from: pos" in capsys.readouterr().err
    texts.tell_classes(side("1.5", "2.5", "3", "3"), side("3"))
    assert "2 of 3 labels occur only once; are they numbers, for --task regress" in capsys.readouterr().err
    assert examples.class_names(side("01", "1", "10", "2"), Path("f")) == ["01", "1", "2", "10"]


@pytest.mark.parametrize(
    ("true", "guess"), [([1, 2, 3], [5, 5, 5]), ([2, 2, 2], [1, 2, 3]), ([1e-200, 2e-200, 3e-200], [1, 2, 3])]
)
def test_no_score_of_numbers_is_ever_undefined(true, guess, capsys):
    features = [{"labels": float(number)} for number in true]
    scores = texts.score_numbers(np.array(guess, dtype=np.float32)[:, None], features, [], [])
    assert np.isfinite(list(scores.values())).all()
    assert ("one number for all texts" in capsys.readouterr().err) == (guess == [5, 5, 5])


def numbers(*labels: float) -> list[Example]:
    return [Example(1, "", None, label) for label in labels]


def test_numbers_are_learnt_around_0_and_answered_in_their_unit(tmp_path):
    folder = tiny_bert(tmp_path / "hf", BertForSequenceClassification)
    labels = [1850.0, 1993.5, 1999.9, 1851.25]
    scale = examples.label_scale(numbers(*labels), Path("f"))
    assert scale == pytest.approx((np.mean(labels), np.std(labels)))
    learnt = [example.label for example in examples.on_scale(numbers(*labels), scale)]
    assert (np.mean(learnt), np.std(learnt)) == pytest.approx((0, 1), abs=1e-12)

    model = BertForSequenceClassification.from_pretrained(folder, num_labels=1, ignore_mismatched_sizes=True).eval()
    ids = torch.arange(5, 13)[None].repeat(3, 1)
    ids[1, 3:], ids[2, 1:] = 7, 9
    with torch.no_grad():
        before = model(input_ids=ids).logits.double()
        texts.undo_scale(model, scale)
        after = model(input_ids=ids).logits.double()
    # As exact as float32 is where the labels lie.
    torch.testing.assert_close(
        after, before * scale.std + scale.mean, rtol=0, atol=2 * float(np.spacing(np.float32(2000)))
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((3.5, 3.5, 3.5), "every label is 3.5; at least two different ones"),
        ((7.0,), "every label is 7"),
        ((1e9, 1e9 + 0.001), r"labels of 1e\+09 ± 0\.0005 differ by less than float32 tells apart; subtract"),
        ((1e-40, 2e-40), "differ by less than float32"),
    ],
)
def test_numbers_that_cannot_be_learnt_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        examples.label_scale(numbers(*labels), Path("f"))


def test_scales_far_from_1_are_learnt():
    for low, high in [(1e-20, 3e-20), (-1e29, 1e30), (1.7e9, 1.8e9), (0.0, 1.0)]:
        scale = examples.label_scale(numbers(low, high), Path("f"))
        assert (scale.mean, scale.std) == pytest.approx(((high + low) / 2, (high - low) / 2), abs=0)


def test_sets_of_labels_as_scikit_learn_scores_them():
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "never"]
    truth = np.pad(rng.integers(0, 2, (60, 3)), ((0, 0), (0, 1)))
    sets = [Example(1, "", None, [name for name, has in zip(names, row, strict=True) if has]) for row in truth]
    logits = rng.normal(truth * 2 - 3.0)
    logits[:, 3] = -9
    scores = label_sets.score_label_sets(logits, [], sets, names)
    assert scores["micro_f1"] == pytest.approx(f1_score(truth, logits >= 0, average="micro"))
    assert scores["macro_f1"] == pytest.approx(f1_score(truth[:, :3], logits[:, :3] >= 0, average="macro"))
    # Few logits are above 0: a lower threshold is better, and no other is better still.
    threshold = label_sets.best_threshold(logits, sets, names)
    by_threshold = {
        at: label_sets.score_label_sets(logits - label_sets.log_odds(at), [], sets, names)["micro_f1"]
        for at in (*label_sets.THRESHOLDS, threshold)
    }
    assert threshold < 0.5
    assert by_threshold[threshold] == max(by_threshold.values()) > scores["micro_f1"]


def test_what_is_held_back_is_learnt_from_in_no_other_row():
    texts = [Example(at, f"text {at // 2}", None, "rare" if at < 2 else "often") for at in range(200)]
    learnt, held = hold_back(texts, Path("f"))
    assert (len(learnt), len(held)) == (180, 20)
    assert not {example.text for example in learnt} & {example.text for example in held}
    assert {example.label for example in learnt} == {"rare", "often"}
    assert hold_back(texts, Path("f")) == (learnt, held)
    with pytest.raises(InputError, match="f: 19 examples are too few to hold a tenth back"):
        hold_back(texts[:19], Path("f"))


def test_the_interval_of_a_difference_is_that_of_pairs():
    # Both fail on the same half, and differ on a few: far narrower than the interval of either score.
    first = np.zeros((1, 400, 2))
    first[..., 1] = 1
    first[0, :200, 0] = 1
    second = first.copy()
    second[0, 190:200, 0] = 0
    found = compare.difference_of("classify", first, second)
    share = 10 / 400
    expected = 1.96 * (share * (1 - share) / 400) ** 0.5
    assert found.value == pytest.approx(share)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.15)
    # Of several seeds the seeds count, too.
    unsteady = np.concatenate([first, second * [0, 1], first])
    wide = compare.difference_of("classify", unsteady, second)
    assert wide.high - wide.low > 5 * (found.high - found.low)


@pytest.mark.parametrize("answers", [[["The"], ["a cat"], ["dog"]], [["The", "one"], [], ["dog"]]])
def test_a_comparison_counts_answers_by_the_script_that_counted_the_results(answers):
    given = ["a", "", "the dog"]
    guesses = [Guess(text, -1.0) for text in given]
    asked = [(line, "", "", right) for line, right in enumerate(answers)]
    outcome = compare.Outcome(Path("x"), "qa", "f1", [], asked, [given])
    found = compare.score_of("qa", compare.counts_of(outcome).sum(1))
    assert found == pytest.approx([score_answers(answers, guesses)["f1"]])
