"""Fine-tuning on toy tasks that a model of 32 units learns in seconds, and what it refuses."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    pipeline,
)

import pretrain.finetune.command as finetune
from data_prep.cli import InputError, parse
from pretrain import hf_folder, predict
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.examples import RESULTS, class_names, subset
from pretrain.finetune.files import labelled
from pretrain.finetune.learning.one_seed import balanced_loss
from pretrain.finetune.scores import compare
from pretrain.finetune.tasks import tags, texts
from pretrain.finetune.tasks.table import TASKS
from pretrain.finetune.trainer import print_score, summary, tell_shared
from tests.forked import fork_script
from tests.run_page import described
from tests.tiny_hf import VOCABULARY, WORDS, tiny_bert, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    """A pretraining folder, with weights at random."""
    return tiny_bert(tmp_path_factory.mktemp("hf") / "hf", BertForPreTraining)


def toy_texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of noise words with one word that decides the label."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        label = rng.choice(["good", "bad"])
        words = rng.choices(WORDS[2:], k=rng.randrange(2, 9))
        words.insert(rng.randrange(len(words)), WORDS[0] if label == "good" else WORDS[1])
        lines.append((" ".join(words), label))
    return lines


def write_tsv(path: Path, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return path


def write_jsonl(path: Path, objects: list[dict]) -> Path:
    path.write_text("".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in objects), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return write_tsv(folder / "train.tsv", toy_texts(256, 0)), write_tsv(folder / "dev.tsv", toy_texts(61, 1))


def config_of(hf: Path, files: tuple[Path, Path], out: Path, **options) -> FinetuneConfig:
    train, dev = files
    defaults = {"task": "classify", "seq_len": 16, "lr": 5e-3, "epochs": 4}
    return FinetuneConfig(hf=hf, train=train, eval=dev, out=out, **{**defaults, **options})


def results_of(config: FinetuneConfig) -> dict:
    finetune.main(config)
    return json.loads((config.out / RESULTS).read_text())


@pytest.fixture(scope="module")
def tuned(hf, toy, tmp_path_factory) -> Path:
    """The toy task, fine-tuned with two seeds."""
    out = tmp_path_factory.mktemp("tuned") / "tuned"
    finetune.main(config_of(hf, toy, out, seeds=2, seed=3))
    return out


def test_a_separable_task_is_learnt_and_results_say_all(tuned):
    results = json.loads((tuned / RESULTS).read_text())
    assert (results["task"], results["metric"]) == ("classify", "accuracy")
    assert [seed["seed"] for seed in results["seeds"]] == [3, 4]
    values = [seed["scores"]["accuracy"] for seed in results["seeds"]]
    assert min(values) > 0.9
    assert all(0.9 < seed["scores"]["f1"] <= 1 for seed in results["seeds"])
    assert results["mean"] == pytest.approx(np.mean(values))
    assert results["std"] == pytest.approx(np.std(values, ddof=1))
    assert 0.4 < results["majority"] < 0.7
    assert results["baseline"]["accuracy"] > 0.9
    assert (results["beats_guessing"], results["advice"]) == (True, "")
    assert results["labels"] == ["bad", "good"]
    assert results["examples"] == {"train": 256, "eval": 61, "held_back": 0}
    assert sum(results["label_shares"]["eval"].values()) == pytest.approx(1)
    assert len(results["seeds"][0]["curve"]) == 4
    assert results["settings"]["lr"] == 5e-3
    assert results.keys() <= described("## results.json of a fine-tuning")
    assert results["seeds"][0].keys() == {"seed", "scores", "train_loss", "seconds", "curve"}
    assert results["settings"]["seq_len"] == 16
    assert results["settings"]["from_scratch"] is False
    assert set(results["versions"]) >= {"torch", "transformers"}
    assert set(results["files"]) == {path.name for path in tuned.iterdir()}
    assert set(results["files"]) >= {"predictions.jsonl", "confusion.png", "curve.png"}
    check_predictions(tuned, results)


def check_predictions(out: Path, results: dict) -> None:
    """The score is that of the answers that are written down."""
    outcome = compare.read_outcome(out)
    sums = compare.counts_of(outcome).sum(1)
    expected = [seed["scores"][results["metric"]] for seed in results["seeds"]]
    assert list(compare.score_of(outcome.task, sums)) == pytest.approx(expected, abs=1e-4)


def test_two_results_are_compared_example_by_example(tuned, tmp_path, capsys):
    worse = Path(shutil.copytree(tuned, tmp_path / "worse"))
    path = worse / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::4]:
        row["answers"] = ["good" if row["label"] == "bad" else "bad"] * 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    for folders, better in [((tuned, worse), "a"), ((worse, tuned), "b"), ((worse, worse), None)]:
        compare.main(compare.CompareConfig(folders, json=True))
        result = json.loads(capsys.readouterr().out)
        assert result["better"] == better
        assert result["low"] <= result["difference"] <= result["high"]
        assert result["difference"] == pytest.approx(result["a"]["score"] - result["b"]["score"])
    compare.main(compare.CompareConfig((tuned, worse)))
    assert f"{tuned} is better" in capsys.readouterr().out
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(InputError, match="were not measured on the same examples"):
        compare.main(compare.CompareConfig((tuned, worse)))
    path.write_text("{}\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl is damaged"):
        compare.main(compare.CompareConfig((tuned, worse)))
    path.unlink()
    with pytest.raises(InputError, match=r"has no predictions\.jsonl; give a folder"):
        compare.main(compare.CompareConfig((tuned, worse)))


def test_plain_transformers_loads_the_folder_and_scores_the_same(tuned, toy):
    lines = [line.split("\t") for line in toy[1].read_text().splitlines()[1:]]
    classify = pipeline("text-classification", model=str(tuned), device="cpu")
    guesses = [answer["label"] for answer in classify([text for text, _ in lines])]
    accuracy = np.mean([guess == label for guess, (_, label) in zip(guesses, lines, strict=True)])
    first = json.loads((tuned / RESULTS).read_text())["seeds"][0]
    assert accuracy == pytest.approx(first["scores"]["accuracy"])
    config = AutoModelForSequenceClassification.from_pretrained(tuned).config
    assert (config.id2label, config.label2id) == ({0: "bad", 1: "good"}, {"bad": 0, "good": 1})
    assert AutoTokenizer.from_pretrained(tuned)("word")["token_type_ids"] == [0, 0, 0]


def test_the_tokenizer_is_that_of_the_folder_file_by_file(hf, toy, tmp_path):
    hf = Path(shutil.copytree(hf, tmp_path / "hf"))
    (hf / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    finetune.main(config_of(hf, toy, tmp_path / "out", epochs=1))
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (hf / name).read_bytes()
    assert "vocab.txt" in json.loads((tmp_path / "out/results.json").read_text())["files"]


def test_positions_behind_the_padding_are_not_counted(toy, tmp_path):
    hf = tmp_path / "hf"
    config = RobertaConfig(
        vocab_size=len(VOCABULARY),
        max_position_embeddings=17,
        pad_token_id=0,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    RobertaForMaskedLM(config).save_pretrained(hf)
    tiny_tokenizer().save_pretrained(hf)
    with pytest.raises(InputError, match="--seq_len 17 must lie between 4 and the 16 positions"):
        finetune.main(config_of(hf, toy, tmp_path / "out", seq_len=17))
    assert hf_folder.positions(config) == 16
    predict.main(predict.PredictConfig(hf, ("[MASK]" + " one" * 40,), fill=True))


def test_scores_follow_the_order_of_the_file_not_of_the_lengths(hf, tmp_path):
    # Trainer groups by length when it predicts too: with the labels of another order, a learnt task looks like chance.
    rows = [(" ".join([WORDS[at % 2]] * (1 + at * 7 % 12)), str(at % 2)) for at in range(96)]
    file = write_tsv(tmp_path / "train.tsv", rows)
    results = results_of(config_of(hf, (file, file), tmp_path / "out", batch_size=8, epochs=3))
    assert results["mean"] == 1.0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores(hf, toy, tmp_path):
    first, again, other = (
        results_of(config_of(hf, toy, tmp_path / name, seed=seed, epochs=1, limit=32))["seeds"][0]
        for name, seed in [("a", 7), ("b", 7), ("c", 8)]
    )
    assert first["scores"] == again["scores"]
    assert first["train_loss"] == again["train_loss"] != other["train_loss"]


@pytest.mark.slow
def test_a_rerun_replaces_its_own_folder_and_no_other(hf, toy, tmp_path):
    out = tmp_path / "out"
    options = {"limit": 32, "epochs": 1}
    assert results_of(config_of(hf, toy, out, **options))["settings"]["seed"] == 0
    assert results_of(config_of(hf, toy, out, **options, seed=1))["settings"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        finetune.main(config_of(hf, toy, out, **options))
    with pytest.raises(InputError, match="would replace"):
        finetune.main(config_of(hf, toy, toy[0].parent, **options))


def test_from_scratch_keeps_the_architecture_and_none_of_the_weights(hf, toy, tmp_path):
    out = tmp_path / "out"
    # Another seed than tiny_bert's, which would give the very same random weights.
    results = results_of(config_of(hf, toy, out, from_scratch=True, seed=5, limit=32, epochs=1, lr=1e-12))
    assert results["settings"]["from_scratch"] is True
    assert results["beats_guessing"] is False
    assert "--lr 0.0003" in results["advice"]
    fresh, old = (BertModel.from_pretrained(folder).embeddings.word_embeddings.weight.detach() for folder in (out, hf))
    assert fresh.shape == old.shape
    assert float(fresh.std()) == pytest.approx(0.02, rel=0.1)
    assert float((fresh - old).abs().mean()) > 0.01


def test_pairs_are_learnt(hf, tmp_path):
    rng = random.Random(0)
    pairs = [(rng.choice(WORDS[4:]), rng.choice(WORDS[:2])) for _ in range(200)]
    rows = [(a, b, "entailment" if b == WORDS[0] else "not_entailment") for a, b in pairs]
    file = write_tsv(tmp_path / "pairs.tsv", rows, ("question", "sentence", "label"))
    results = results_of(config_of(hf, (file, file), tmp_path / "out", task="pair"))
    assert results["mean"] > 0.9
    with pytest.raises(InputError, match="use --task pair"):
        finetune.main(config_of(hf, (file, file), tmp_path / "out2"))


def test_numbers_are_learnt(hf, tmp_path):
    # Far from 0 and in a unit of their own: the labels of a head as it starts lie around 0 and within 1.
    rows = [(" ".join([WORDS[0]] * (at % 5) + [WORDS[1]] * (4 - at % 5)), str(1850 + at % 5 * 25)) for at in range(200)]
    file = write_tsv(tmp_path / "numbers.tsv", rows, ("sentence", "label"))
    results = results_of(config_of(hf, (file, file), tmp_path / "out", task="regress", epochs=6))
    assert results["metric"] == "pearson"
    assert results["mean"] > 0.9
    assert results["majority"] is None
    assert results["unit"] == pytest.approx({"mean": 1900, "std": 50**0.5 * 5})
    check_predictions(tmp_path / "out", results)
    assert AutoConfig.from_pretrained(tmp_path / "out").zerobert_scale == results["unit"]
    rmse = results["seeds"][0]["scores"]["rmse"]
    assert rmse < 15
    # Plain transformers gives the same numbers, in the unit of the file.
    guess: Any = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu", function_to_apply="none")(
        [text for text, _ in rows[:5]]
    )
    errors = [answer["score"] - float(label) for answer, (_, label) in zip(guess, rows[:5], strict=True)]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(rmse, rel=1e-3)
    pairs = write_tsv(tmp_path / "pairs.tsv", [("a", "b", "1"), ("c", "d", "2")], ("text_a", "text_b", "label"))
    with pytest.raises(InputError, match=r"pairs\.tsv holds pairs of texts and .*numbers\.tsv single texts"):
        finetune.main(config_of(hf, (file, pairs), tmp_path / "out", task="regress"))


def test_what_is_learnt_in_bf16_is_measured_in_fp32(hf, tmp_path):
    """In bf16 an answer around 1,900 would be a multiple of 8, and another one than that of predict."""
    rows = [(" ".join([WORDS[0]] * (at % 5) + [WORDS[1]] * (4 - at % 5)), str(1880 + at % 5 * 10)) for at in range(200)]
    file, found = write_tsv(tmp_path / "numbers.tsv", rows, ("sentence", "label")), {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        found[precision] = results_of(config_of(hf, (file, file), out, task="regress", epochs=2, precision=precision))
    losses = [results["seeds"][0]["train_loss"] for results in found.values()]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.1)
    answers = [json.loads(line)["answer"] for line in (tmp_path / "bf16" / "predictions.jsonl").open()][:5]
    theirs: Any = pipeline("text-classification", model=str(tmp_path / "bf16"), device="cpu", function_to_apply="none")(
        [text for text, _ in rows[:5]]
    )
    assert answers == pytest.approx([answer["score"] for answer in theirs], rel=1e-5)


def test_several_labels_a_text_are_learnt(hf, tmp_path, capsys):
    # Each label has a word of its own.
    rng = random.Random(0)
    texts = [rng.choices(WORDS, k=4) for _ in range(300)]
    rows = [(" ".join(t), "|".join(label for word, label in (("one", "a"), ("two", "b")) if word in t)) for t in texts]
    file = write_tsv(tmp_path / "sets.tsv", rows)
    out = tmp_path / "out"
    options = {"epochs": 6, "patience": 6, "lr": 2e-3, "batch_size": 16}
    results = results_of(config_of(hf, (file, file), out, task="multilabel", **options))
    seed = results["seeds"][0]
    assert results["metric"] == "micro_f1"
    assert results["mean"] > 0.9
    assert results["examples"]["held_back"] == 30
    assert seed["held_back_curve"][seed["best_epoch"] - 1] == max(seed["held_back_curve"])
    check_predictions(out, results)
    assert AutoConfig.from_pretrained(out).zerobert_threshold == seed["threshold"]
    assert results["beats_guessing"]
    capsys.readouterr()
    asked = ("one two two one", "three four five six")
    predict.main(predict.PredictConfig(out, asked, json=True))
    answers = json.loads(capsys.readouterr().out)["answers"]
    for answer in answers:
        above = [label["label"] for label in answer["labels"] if label["probability"] >= seed["threshold"]]
        assert answer["given"] == above
    assert "a" in answers[0]["given"]
    assert answers[1]["given"] == []
    theirs: Any = pipeline("text-classification", model=str(out), device="cpu", top_k=None)([asked[0]])[0]
    ours = [label["probability"] for label in answers[0]["labels"]]
    assert ours == pytest.approx([label["score"] for label in theirs], abs=1e-5)


def test_the_best_epoch_is_kept_and_the_last_ones_are_left_out(hf, toy, tmp_path):
    # Of a rate far too high the weights get worse; the file to measure on has no say.
    results = results_of(config_of(hf, toy, tmp_path / "out", epochs=12, patience=2))
    seed = results["seeds"][0]
    assert len(seed["held_back_curve"]) == min(12, seed["best_epoch"] + 2) < 12
    assert results["mean"] > 0.9
    with pytest.raises(InputError, match="too few to hold a tenth back, by which to choose"):
        finetune.main(config_of(hf, toy, tmp_path / "out2", patience=2, limit=15))


def test_labels_that_are_balanced_weigh_the_same(hf, tmp_path, capsys):
    loss = balanced_loss([{"labels": label} for label in [0, 0, 0, 1]], 2)
    outputs = SimpleNamespace(logits=torch.tensor([[2.0, 0.0]] * 4))
    each = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 0, 0, 1]), reduction="none")
    assert float(loss(outputs, torch.tensor([0, 0, 0, 1]))) == pytest.approx(float(each[0] + each[3]) / 2)
    narrow = SimpleNamespace(logits=outputs.logits.bfloat16())
    assert loss(narrow, torch.tensor([0, 0, 0, 1])) == loss(outputs, torch.tensor([0, 0, 0, 1]))
    rows = [("one two" if at % 10 else "one", "often" if at % 10 else "rarely") for at in range(40)]
    file = write_tsv(tmp_path / "t.tsv", rows)
    options = {"epochs": 1, "lr": 1e-9}
    config = config_of(hf, (file, file), tmp_path / "out", balance=True, **options)
    assert results_of(config)["settings"]["balance"] is True
    assert "often 90.0% (90.0%), rarely 10.0% (10.0%)" in capsys.readouterr().err
    with pytest.raises(InputError, match="--balance is for --task classify or pair, and this is --task tag"):
        config_of(hf, (file, file), tmp_path / "out", task="tag", balance=True)


def test_tags_are_learnt(hf, tmp_path):
    rng = random.Random(0)
    objects = []
    for _ in range(200):
        words = rng.choices(WORDS, k=6)
        objects.append({"tokens": words, "tags": ["B-x" if word == WORDS[0] else "O" for word in words]})
    file = write_jsonl(tmp_path / "tags.jsonl", objects)
    results = results_of(config_of(hf, (file, file), tmp_path / "out", task="tag"))
    assert results["metric"] == "f1"
    check_predictions(tmp_path / "out", results)
    assert results["mean"] > 0.9


def test_words_without_a_token_count_as_outside():
    tokenizer = tiny_tokenizer()
    examples = [
        labelled.Example(1, [WORDS[0], "\u200b", WORDS[1] + WORDS[2], WORDS[3]], None, ["B-x", "B-x", "O", "B-x"])
    ]
    names = ["B-x", "O"]
    features = tags.encode_words(tokenizer, examples, names, 5)  # [CLS] one two ##three [SEP]; the last word is cut
    assert features[0]["words"] == [0, 2]
    logits = np.zeros((1, 8, 2))
    logits[0, [1], 0] = 1
    logits[0, [2], 1] = 1
    scores = tags.score_tags(logits, features, examples, names)
    assert scores == pytest.approx({"precision": 1.0, "recall": 1 / 3, "f1": 0.5, "accuracy": 0.5})


def test_texts_on_both_sides_are_said(capsys):
    learnt = [
        labelled.Example(1, "a b", None, "x"),
        labelled.Example(2, "c", "d", "x"),
        labelled.Example(3, ["e"], None, "x"),
    ]
    asked = [
        labelled.Example(1, "a b", None, "y"),
        labelled.Example(2, "c", None, "x"),
        labelled.Example(3, ["e"], None, "x"),
    ]
    tell_shared(learnt, asked)
    assert capsys.readouterr().err == "2 of 3 examples to measure on (66.7%) are also among those to learn from\n"
    tell_shared(learnt, asked[1:2])
    assert capsys.readouterr().err == ""


def test_letters_that_the_tokenizer_does_not_know_are_told(capsys):
    examples = [labelled.Example(2, "one 北京 two", None, "a")]
    texts.encode_texts(tiny_tokenizer(), examples, ["a"], 16)
    assert "2 of 4 tokens (50.0%) are [UNK]" in capsys.readouterr().err
    texts.encode_texts(tiny_tokenizer(), [examples[0]._replace(text="one two")], ["a"], 16)
    assert capsys.readouterr().err == ""


def test_a_score_that_the_commonest_label_has_is_no_success(capsys):
    config = FinetuneConfig(Path("hf"), "classify", Path("a"), Path("b"), Path("c"))
    results = {"metric": "accuracy", "mean": 0.9, "ci95": None, "majority": 0.9, "baseline": None}
    results |= {"decidable": True, "advice": "", "stuck_seeds": []}
    print_score(config, results)
    assert "accuracy 0.9000 does not beat always answering the commonest label (0.9000)" in capsys.readouterr().err
    print_score(config, {**results, "mean": 0.91})
    assert "does not beat" not in capsys.readouterr().err


def test_interval_of_students_t():
    assert summary([0.5]) == {"mean": 0.5, "std": None, "ci95": None}
    # Three values 1, 2, 3: mean 2, deviation 1, t(0.975, 2 degrees) = 4.3027, over the root of 3.
    assert summary([1.0, 2.0, 3.0]) == pytest.approx({"mean": 2.0, "std": 1.0, "ci95": 4.30265 / 3**0.5}, rel=1e-5)


def test_a_limit_draws_over_the_whole_file():
    examples = [labelled.Example(line, "", None, "x") for line in range(1000)]
    drawn = [example.line for example in subset(examples, 100)]
    assert drawn == sorted(set(drawn))
    assert 400 < np.mean(drawn) < 600
    assert subset(examples, 5000) == examples


def test_labels_are_sorted_as_numbers_where_they_are():
    def examples(*labels):
        return [labelled.Example(1, "", None, label) for label in labels]

    assert class_names(examples("10", "9", "-1"), Path("f")) == ["-1", "9", "10"]
    assert class_names(examples("b", "10", "a"), Path("f")) == ["10", "a", "b"]


def test_reading_columns_by_any_of_their_names(tmp_path):
    tsv = tmp_path / "a.tsv"
    tsv.write_bytes('\ufefflabel\tsentence\r\n1\t"quoted" text\r\n\r\n0\tline\u2028separator\r\n'.encode())
    assert labelled.read_texts(tsv) == [(2, '"quoted" text', None, "1"), (4, "line\u2028separator", None, "0")]
    jsonl = write_jsonl(tmp_path / "a.jsonl", [{"intent": "Play", "tokens": ["play", "it"], "tags": ["O", "O"]}])
    assert labelled.read_texts(jsonl) == [(1, "play it", None, "Play")]
    assert labelled.read_tags(jsonl) == [(1, ["play", "it"], None, ["O", "O"])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", r"a\.tsv holds no examples"),
        ("a.tsv", "text\tlabel\n", "no examples below its header"),
        ("a.tsv", "words\tlabel\nx\t1\n", "no column text or sentence or tokens or the like; found words, label"),
        ("a.tsv", "text\tcolour\nx\t1\n", "no column label or intent or labels .*; found text, colour"),
        ("a.tsv", "text\tlabel\nx\t1\ny\tz\t1\n", "line 3: 3 columns where the header has 2"),
        ("a.tsv", "text\tlabel\nx\t\n", "line 2: a label must be"),
        ("a.tsv", b"text\tlabel\nx\xff\t1\n", "line 2: not UTF-8"),
        ("a.jsonl", '{"text": "x"\n', "line 1: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("a.jsonl", '{"text": 5, "label": 1}\n', "line 1: a text must be a string, not 5"),
        ("a.jsonl", '{"text": "x", "label": 0.5}\n', "line 1: a label must be a name or an integer, not 0.5"),
        ("a.csv", "text,label\n", "no examples below its header"),
        ("a.txt", "text,label\n", r"must end in \.csv or \.tsv"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        labelled.read_texts(path)


def test_a_number_must_be_finite(tmp_path):
    with pytest.raises(InputError, match="line 2: a label of --task regress must be a number, not 'nan'"):
        labelled.read_numbers(write_tsv(tmp_path / "a.tsv", [("x", "nan")]))


def test_what_does_not_fit_is_refused_before_training(hf, toy, tmp_path):
    out = tmp_path / "out"
    unseen = write_tsv(tmp_path / "unseen.tsv", [("x", "good"), ("y", "ugly")])
    alone = write_tsv(tmp_path / "alone.tsv", [("x", "good"), ("y", "good")])
    more = write_tsv(tmp_path / "more.tsv", [("x", "vile"), ("y", "ugly"), ("y", "good")])
    header = write_tsv(tmp_path / "header.tsv", [])
    equal = write_tsv(tmp_path / "equal.tsv", [("x", "3"), ("y", "3.0")])
    (tmp_path / "empty").mkdir()
    for config, message in [
        (config_of(hf, (toy[0], unseen), out), r"unseen\.tsv, line 3: label 'ugly' does not occur in .*train\.tsv"),
        (config_of(hf, (toy[0], more), out), "line 2: labels 'ugly', 'vile' do not occur in .*known are bad, good"),
        (config_of(hf, (alone, toy[1]), out), "every label is 'good'"),
        (config_of(hf, toy, out, limit=1), "every label is '(good|bad)'; at least two"),
        (config_of(hf, (toy[0], header), out), r"header\.tsv holds no examples below its header"),
        (config_of(hf, (equal, equal), out, task="regress"), "every label is 3; at least two"),
        (config_of(hf, toy, alone / "out"), r"alone\.tsv is a file: choose a folder"),
        (config_of(hf, toy, out, seq_len=65), "--seq_len 65 must lie between 4 and the 64 positions"),
        (config_of(tmp_path / "none", toy, out), "no such folder"),
        (config_of(tmp_path / "empty", toy, out), r"has no model \(config\.json\)"),
    ]:
        with pytest.raises(InputError, match=message):
            finetune.main(config)
    assert not out.exists()


def test_an_encoder_that_would_start_at_random_is_refused(hf, toy, tmp_path):
    # Saved from a wrapped model: transformers loads it with every weight at random, and only a table says so.
    broken = tiny_bert(tmp_path / "broken", BertForPreTraining)
    weights = load_file(broken / "model.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, broken / "model.safetensors")
    with pytest.raises(InputError, match="weights of the encoder are missing"):
        finetune.main(config_of(broken, toy, tmp_path / "out"))


@pytest.mark.slow
def test_the_command_line(hf, toy, tmp_path):
    files = ("--train", toy[0], "--eval", toy[1], "--out", tmp_path / "out", "--seq_len", 16)
    done = fork_script("pretrain.finetune", hf, "--task", "classify", *files, "--limit", 32, "--epochs", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / RESULTS).read_text())
    assert not [word for word in ("Warning", "WARNING", "REPORT") if word in done.stderr]
    wrong = fork_script("pretrain.finetune", tmp_path / "none", "--task", "classify", *files)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: {tmp_path}/none: no such folder\n"


def test_the_tasks_offered_are_the_tasks_there_are():
    assert get_args(get_type_hints(FinetuneConfig)["task"]) == tuple(TASKS)
    with pytest.raises(
        InputError,
        match=r"^--task translate is not one of classify, pair, multilabel, regress, tag, qa, choice, seq2seq$",
    ):
        parse(FinetuneConfig, None, ["hf", "--task", "translate", "--train", "a", "--eval", "b", "--out", "c"])


def test_the_last_seed_is_one_of_numpys():
    with pytest.raises(InputError, match="--seed 4294967295 and the 1 after it must lie in"):
        config_of(Path("hf"), (Path("a"), Path("b")), Path("c"), seed=2**32 - 1, seeds=2)


def test_positions_that_were_never_trained_are_warned_of(toy, tmp_path, capsys):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    path = hf / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 16}))
    finetune.main(config_of(hf, toy, tmp_path / "out", seq_len=32, epochs=1))
    assert f"--seq_len 32 is beyond the 16 tokens that {hf} was trained on" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["model_max_length"] == 32
