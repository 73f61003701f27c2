"""--task choice: files as benchmarks have them, options of any number, training, and what predict chooses."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer, BertForMultipleChoice, BertForPreTraining

import pretrain.finetune.command as finetune
from data_prep.cli import InputError
from pretrain import predict
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.examples import rows_of
from pretrain.finetune.files.choices import Options, read_choices
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.learning.held_back import hold_back
from pretrain.finetune.scores import baseline, compare
from pretrain.finetune.tasks import choices
from pretrain.finetune.tasks.long_texts import WindowCollator
from pretrain.finetune.trainer import tell_shared
from pretrain.inference.choices import second_texts
from tests.tiny_hf import WORDS, tiny_bert, tiny_tokenizer


def written(path: Path, content: Any) -> Path:
    """A file of rows as JSONL, a table, or what is given."""
    if isinstance(content, pandas.DataFrame):
        writers = {".csv": content.to_csv, ".parquet": content.to_parquet}
        writers[path.suffix](path, index=False)
    else:
        path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return path


def table(**columns: Any) -> pandas.DataFrame:
    return pandas.DataFrame([columns])


FOUR = ("runs", "walks", "sits", "eats")
ENDINGS = {f"ending{place}": text for place, text in enumerate(FOUR)}
KEYED = [{"label": "C", "text": "runs"}, {"label": "D", "text": "walks"}]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # SWAG: as csv with more columns, without, and as datasets writes it.
        (
            "a.csv",
            table(startphrase="A man. He", sent1="A man.", sent2="He", **ENDINGS, label=2),
            ("A man.", "He", FOUR, 2),
        ),
        ("a.jsonl", [{"startphrase": "A man. He", **ENDINGS, "label": 3}], ("A man. He", None, FOUR, 3)),
        ("a.parquet", table(sent1="A man.", sent2="He", **ENDINGS, label=0), ("A man.", "He", FOUR, 0)),
        # RACE: letters, numbers, and a list in a cell.
        (
            "b.jsonl",
            [{"article": "x", "question": "Who?", "options": FOUR, "answer": "D"}],
            ("x", "Who?", FOUR, 3),
        ),
        ("b.parquet", table(context="x", question="Who?", options=FOUR, answer="a"), ("x", "Who?", FOUR, 0)),
        ("b.csv", table(passage="x", question="Who?", options=json.dumps(FOUR), answer=1.0), ("x", "Who?", FOUR, 1)),
        # COPA: a question of one word; the right one by its column, as ClassLabel of datasets calls it.
        (
            "c.jsonl",
            [{"premise": "x", "question": "effect", "choice1": "runs", "choice2": "walks", "label": "choice2"}],
            ("x", "What happened as a result?", FOUR[:2], 1),
        ),
        (
            "c.csv",
            table(premise="x", question="cause", choice1="runs", choice2="walks", label=0),
            ("x", "What was the cause of this?", FOUR[:2], 0),
        ),
        # CommonsenseQA: its own file, and that of datasets; labels are options' own.
        ("d.jsonl", [{"answerKey": "D", "question": {"stem": "Who?", "choices": KEYED}}], ("Who?", None, FOUR[:2], 1)),
        (
            "d.parquet",
            table(question="Who?", choices={"label": ["1", "2"], "text": ["runs", "walks"]}, answerKey="1"),
            ("Who?", None, FOUR[:2], 0),
        ),
        # Columns by letter, of which the last are empty.
        ("e.csv", "question,A,B,C,D,answer\nWho?,runs,walks,,,B\n", ("Who?", None, FOUR[:2], 1)),
        ("e.tsv", "Frage\toption_a\toption_b\tAntwort\nWho?\truns\twalks\tA\n", ("Who?", None, FOUR[:2], 0)),
    ],
)
def test_files_as_benchmarks_have_them(tmp_path, name, content, expected):
    [example] = read_choices(written(tmp_path / name, content))
    text, question, options, right = expected
    assert (example.text, example.pair, example.label) == (text, question, Options(options, right))


def asked(*rows: tuple[tuple[str, ...], object]) -> list[dict]:
    return [{"question": "Who?", "options": options, "answer": answer} for options, answer in rows]


def test_answers_that_are_the_texts_of_options(tmp_path):
    def places(name: str, rows: Any) -> list[int]:
        return [example.label.answer for example in read_choices(written(tmp_path / name, rows))]

    # 7 shows that 2 is no place, which would be that of 3.
    assert places("a.jsonl", asked((("1", "2", "3"), "2"), (("7", "8"), "7"))) == [1, 0]
    assert places("b.jsonl", asked((("walks", "runs"), "Runs "), (("b", "a"), "a"))) == [1, 1]
    assert places("c.csv", "question,A,B,answer\nWho?,runs,walks,walks\nWho?,2,1,1\n") == [1, 1]
    # Not all are texts: places, numbers of JSON, letters.
    assert places("d.jsonl", asked((("1", "2", "3"), "2"), (("7", "8"), "1"))) == [2, 1]
    assert places("e.jsonl", asked((("2", "1", "0"), 0))) == [0]
    assert places("f.jsonl", asked((("0", "1"), "0"), (("7", "1"), "1"))) == [0, 1]  # the same either way
    with pytest.raises(InputError, match=r"line 1: 'a' is the text of option 1 and a name of option 0; name right"):
        places("g.jsonl", asked((("b", "a"), "a")))


def test_columns_of_any_name(tmp_path):
    path = written(tmp_path / "a.csv", "Lesetext,Was,question,A,B,richtig\nx,Who?,no,runs,walks,b\n")
    named: dict[str, Any] = {"text": "Lesetext", "pair": "Was", "label": ("richtig",)}
    config = FinetuneConfig(tmp_path, "choice", path, path, tmp_path / "out", **named)
    assert read_choices(path, rows_of(config, path)) == [Example(2, "x", "Who?", Options(FOUR[:2], 1))]
    alone = FinetuneConfig(tmp_path, "choice", path, path, tmp_path / "out", text="Lesetext", label=("richtig",))
    assert read_choices(path, rows_of(alone, path))[0][1:3] == ("x", None)


@pytest.mark.parametrize("text", ["startphrase", "c"])
def test_a_column_that_is_named_is_the_text_and_no_option(tmp_path, text):
    path = written(tmp_path / "a.csv", f"{text},sent1,sent2,a,b,label\nx,p,q,runs,walks,1\n")
    config = FinetuneConfig(tmp_path, "choice", path, path, tmp_path / "out", text=text)
    assert read_choices(path, rows_of(config, path)) == [Example(2, "x", None, Options(FOUR[:2], 1))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"a\.jsonl, line 1: no options: give a list .* such as ending0, ending1; found question, answer"),
        ({"options": []}, "line 1: no options; give two or more, or remove the row"),
        ({"options": ["x"]}, "line 1: one option alone, 'x'; give two or more"),
        ({"options": "x"}, "line 1: options 'x' are no options that are read; give"),
        ({"options": ["x", 3]}, "line 1: option 1 must be a text, not 3"),
        ({"options": ["x", " "]}, "line 1: option 1 is empty; fill it in or remove the row"),
        ({"A": "x", "B": "", "C": "y"}, "line 1: option 1 is empty"),
        (
            {"A": "x", "B": "y", "D": "z", "n": "1"},
            "line 1: options A, B, and then D: give their columns names without a",
        ),
        ({"choice1": "x", "choice2": "y", "choice4": "z"}, "options choice1, choice2, and then choice4: give"),
        (
            {"options": FOUR, "answer": 4},
            "answer 4 names no option; these are called 0, 1, 2, 3, a, b, c, d \\(numbers count from 0 on\\); correct",
        ),
        ({"options": FOUR, "answer": "E"}, "answer 'E' names no option"),
        ({"options": FOUR, "answer": -1}, "answer -1 names no option"),
        ({"options": FOUR, "answer": None}, "answer None names no option"),
        ({"options": FOUR, "answer": True}, "answer True names no option"),
        ({"A": "x", "B": "y", "C": "", "answer": "C"}, "answer 'C' names no option; these are called 0, 1, a, b; "),
        ({"choices": KEYED, "answer": "A"}, "answer 'A' names no option; these are called c, d; correct"),
        ({"choices": KEYED[:1] * 2}, "choices: each option needs a label of its own; found c"),
        ({"choices": {"label": ["A", "B", "C"], "text": ["x", "y"]}}, "option 2 must be a text, not None"),
        ({"options": FOUR, "question": ""}, "line 1: question is empty"),
    ],
)
def test_a_damaged_row_is_one_line(tmp_path, row, message):
    with pytest.raises(InputError, match=message) as refused:
        read_choices(written(tmp_path / "a.jsonl", [{"question": "q", "answer": "A", **row}]))
    assert "\n" not in str(refused.value)


def test_a_file_without_a_question_or_an_answer_is_told(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"ask": "q", "options": FOUR}])
    with pytest.raises(InputError, match=r"no column of what is asked .*: --text COLUMN, .*; found ask, options"):
        read_choices(path)
    written(path, [{"question": "q", "options": FOUR}])
    with pytest.raises(InputError, match=r"no column label or answer .* which option is right; .*: --label COLUMN"):
        read_choices(path)
    assert read_choices(path, answered=False)[0].label == Options(FOUR, None)
    written(path, [{"ask": "q", "options": FOUR}])
    with pytest.raises(InputError, match="call it text, and question what is asked about it; found ask, options"):
        read_choices(path, answered=False)  # predict has no --text


def test_options_that_stand_for_none_are_said(tmp_path, capsys):
    path = written(tmp_path / "a.csv", "question,A,B,C,answer\nWho?,runs,walks,NaN,B\nWho?,runs,walks,sits,B\n")
    assert read_choices(path)[0].label == Options(("runs", "walks", "NaN"), 1)
    assert "1 of 2 rows (50.0%) have an option such as NaN" in capsys.readouterr().err


def test_what_is_read_of_an_option():
    assert second_texts(None, ["a", "b"]) == ["a", "b"]
    assert second_texts("Who?", ["a", "b"]) == ["Who? a", "Who? b"]
    assert second_texts(r"He is _ .", [r"a\1"]) == [r"He is a\1 ."]
    assert second_texts("What is snake_case?", ["a"]) == ["What is snake_case? a"]


def example_of(text: str, options: tuple[str, ...], answer: int) -> Example:
    return Example(1, text, None, Options(options, answer))


def test_rows_of_any_number_of_options_stand_in_one_batch(tmp_path):
    """The loss and logits are those of transformers' model, row by row, without options that are not there."""
    tokenizer = tiny_tokenizer()
    model = BertForMultipleChoice.from_pretrained(tiny_bert(tmp_path / "hf", BertForMultipleChoice)).eval()
    rows = [("one", ("two", "three four five"), 1), ("six seven", ("one", "two", "ten", "nine eight"), 2)]
    features = choices.encode_choices(tokenizer, [example_of(*row) for row in rows], [], 32)
    assert [feature["windows"] for feature in features] == [[5, 7], [6, 6, 6, 7]]
    with torch.no_grad():
        out = choices.Choosing(model)(**WindowCollator(tokenizer)(features))
        plain = []
        for text, options, right in rows:
            batch = tokenizer([text] * len(options), list(options), padding=True, return_tensors="pt")
            plain.append(model(**{name: ids[None] for name, ids in batch.items()}, labels=torch.tensor([right])))
    assert out.loss.item() == pytest.approx(np.mean([each.loss.item() for each in plain]), abs=1e-6)
    for logits, each in zip(out.logits, plain, strict=True):
        count = each.logits.shape[1]
        torch.testing.assert_close(logits[:count], each.logits[0], rtol=0, atol=1e-5)
        assert (logits[count:] == choices.NO_OPTION).all()
    # What Trainer pads with is never chosen, even below it.
    assert choices.chosen(np.array([[-900.0, -800, -100, -100], [1, 2, 3, 4]]), features) == [1, 3]


def test_options_that_are_one_to_the_model_are_said(capsys):
    rows = [
        ("one", ("two", "three"), 0),
        ("one", ("two", "two"), 1),
        ("one", ("unheard", "unseen"), 1),
        ("one", ("two three four five six", "two three four five seven"), 1),
    ]
    choices.encode_choices(tiny_tokenizer(), [example_of(*row) for row in rows], [], 8)
    said = capsys.readouterr().err
    assert "2 of 8 options with their texts (25.0%) are longer than --seq_len 8 tokens and were cut" in said
    assert "3 of 4 rows (75.0%) have options that are one to the model" in said


def test_results_on_other_options_are_not_compared(tmp_path):
    def outcome(name: str, options: tuple[str, ...]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        row = {"line": 1, "text": "x", "options": options, "label": 0, "answers": [0]}
        (folder / "predictions.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "results.json").write_text(json.dumps({"task": "choice", "metric": "accuracy", "labels": []}))
        return folder

    folders = outcome("a", FOUR[:2]), outcome("b", FOUR[2:])
    with pytest.raises(InputError, match="were not measured on the same examples"):
        compare.main(compare.CompareConfig(folders))


def test_floors_by_hand():
    learnt = [example_of("x", FOUR, place) for place in (2, 2, 0)]
    asked = [example_of("x", FOUR[:2], 1), example_of("x", FOUR, 1), example_of("x", FOUR, 2)]
    assert baseline.majority(learnt, asked) == pytest.approx(1 / 3)
    assert baseline.random_choice(asked)["accuracy"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert baseline.floors("choice", learnt, asked) == {"accuracy": pytest.approx(2 / 3)}


def test_one_question_above_all_rows_is_not_one_example(tmp_path, capsys):
    rows = [example_of("Which?", (word, other), 0) for word in WORDS for other in WORDS[:4]]
    learnt, held = hold_back(rows, tmp_path, by_label=False)
    assert (len(learnt), len(held)) == (36, 4)
    tell_shared(learnt, [*held, learnt[0]])
    assert capsys.readouterr().err.startswith("1 of 5 examples to measure on (20.0%) are also among those")


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("hf") / "hf", BertForPreTraining)


def toy(count: int, seed: int) -> list[dict]:
    """The right option alone has one of two words; two to four options a row."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        options = [rng.choices(WORDS[2:], k=rng.randrange(2, 6)) for _ in range(rng.randrange(2, 5))]
        right = rng.randrange(len(options))
        options[right].insert(rng.randrange(len(options[right])), rng.choice(WORDS[:2]))
        text = " ".join(rng.choices(WORDS[2:], k=4))
        rows.append({"article": text, "question": "ten", "options": [*map(" ".join, options)], "answer": "ABCD"[right]})
    return rows


@pytest.fixture(scope="module")
def tuned(hf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    train, dev = (written(folder / f"{n}.jsonl", toy(c, s)) for n, c, s in (("train", 240, 0), ("dev", 61, 1)))
    options: dict[str, Any] = {"seq_len": 24, "lr": 3e-3, "epochs": 8, "patience": 8, "seeds": 2}
    finetune.main(FinetuneConfig(hf, "choice", train, dev, folder / "out", **options))
    return folder / "out"


def test_choices_are_learnt(tuned):
    results = json.loads((tuned / "results.json").read_text())
    assert (results["task"], results["metric"]) == ("choice", "accuracy")
    assert min(seed["scores"]["accuracy"] for seed in results["seeds"]) > 0.85
    dev = toy(61, 1)
    assert results["baseline"]["name"] == "random guessing"
    assert results["baseline"]["accuracy"] == pytest.approx(np.mean([1 / len(row["options"]) for row in dev]))
    assert 0.2 < results["majority"] < 0.6
    assert results["beats_guessing"]
    assert results["examples"] == {"train": 216, "eval": 61, "held_back": 24}
    assert sum(results["label_shares"]["eval"].values()) == pytest.approx(1)
    rows = [json.loads(line) for line in (tuned / "predictions.jsonl").read_text().splitlines()]
    assert [(row["text"], row["pair"], row["options"]) for row in rows[:3]] == [
        (row["article"], "ten", row["options"]) for row in dev[:3]
    ]
    assert [row["label"] for row in rows] == ["ABCD".index(row["answer"]) for row in dev]
    outcome = compare.read_outcome(tuned)
    scores = compare.score_of("choice", compare.counts_of(outcome).sum(1))
    assert list(scores) == pytest.approx([seed["scores"]["accuracy"] for seed in results["seeds"]])
    assert json.loads((tuned / "config.json").read_text())["architectures"] == ["BertForMultipleChoice"]


def test_predict_chooses_as_plain_transformers_does(tuned, tmp_path, capsys):
    rows = toy(61, 1)
    file = written(tmp_path / "dev.jsonl", [{name: row[name] for name in row if name != "answer"} for row in rows])
    predict.main(predict.PredictConfig(tuned, choose=file, json=True, top=2))
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], len(found["answers"])) == ("choice", 61)
    predictions = [json.loads(line) for line in (tuned / "predictions.jsonl").read_text().splitlines()]
    assert [answer["choice"] for answer in found["answers"]] == [row["answer"] for row in predictions]
    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned)
    for row, answer in zip(rows[:5], found["answers"], strict=False):
        count = len(row["options"])
        batch = tokenizer(
            [row["article"]] * count, [f"ten {each}" for each in row["options"]], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            shares = model(**{name: ids[None] for name, ids in batch.items()}).logits[0].softmax(0)
        assert answer["probability"] == pytest.approx(float(shares.max()), abs=1e-5)
        assert answer["answer"] == row["options"][int(shares.argmax())] == answer["options"][0]["option"]
        assert len(answer["options"]) == 2
    # The same by tabs, for people.
    text, options = rows[0]["article"], rows[0]["options"]
    predict.main(predict.PredictConfig(tuned, ("\t".join([text, *options]),), question="ten"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [text, "  ten"]
    assert lines[2] == f"  {found['answers'][0]['probability']:.4f}  {found['answers'][0]['answer']}"


@pytest.mark.parametrize(("learnt", "question"), [(True, None), (False, "Who?"), (True, "cause"), (None, "Who?")])
def test_a_question_that_was_not_learnt_with_is_said(tmp_path, capsys, learnt, question):
    config = predict.PredictConfig(tmp_path, ("one\ttwo\tthree",), question=question)
    [row] = predict.rows_of_options(config, question, learnt_questions=learnt)
    assert row == ("one", {"cause": "What was the cause of this?"}.get(question or "", question), ["two", "three"])
    assert ("answers may mean little" in capsys.readouterr().err) == (learnt not in (None, question is not None))


def test_what_cannot_be_asked_is_refused(hf, tuned, tmp_path):
    file = written(tmp_path / "a.jsonl", toy(30, 0))
    single = written(tmp_path / "single.jsonl", [{"question": "x", "options": FOUR, "answer": "A"}])
    unfit: list[tuple[dict[str, Any], str]] = [
        ({"label_names": ("A", "B")}, "--label_names A B: options have no names with --task choice"),
        ({"long": "stride"}, "--long stride is for .*; and this is --task choice"),
        ({"balance": True}, "--balance is for .*, and this is --task choice"),
        ({"eval": single}, r"a\.jsonl holds pairs of texts and .*single\.jsonl single texts"),
    ]
    given: dict[str, Any] = {"hf": hf, "task": "choice", "train": file, "eval": file, "out": tmp_path / "o"}
    given["seq_len"] = 24
    for options, message in unfit:
        with pytest.raises(InputError, match=message):
            finetune.main(FinetuneConfig(**(given | options)))
    unanswered: list[tuple[Path, tuple[str, ...], dict[str, Any], str]] = [
        (hf, (), {"choose": file}, "--choose: .* answers fill, and chooses nothing"),
        (tuned, ("one",), {"choose": file}, "--choose FILE takes no texts and no --question"),
        (tuned, ("one\ttwo",), {}, "text 1: tabs must separate a text and two options or more, .* --choose FILE"),
        (tuned, ("one\ttwo\t ",), {}, "text 1: tabs must separate"),
        (tuned, (), {"choose": tmp_path / "none.csv"}, "no such file"),
    ]
    for folder, texts, asked, message in unanswered:
        with pytest.raises(InputError, match=message):
            predict.main(predict.PredictConfig(folder, texts, **asked))
    assert not (tmp_path / "o").exists()


def test_numbers_that_count_from_1_are_refused(tmp_path, capsys):
    rows = [{"sentence": f"text {n}", "option1": "x", "option2": "y", "answer": "1"} for n in range(8)]
    file = tmp_path / "winogrande.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"no row has option 0 as its answer.*subtract one, or name"):
        read_choices(file)
    file.write_text("\n".join(map(json.dumps, rows[:2])))
    assert [example.label.answer for example in read_choices(file)] == [1, 1]
    assert "they are taken so" in capsys.readouterr().err
    file.write_text("\n".join(json.dumps(row | {"answer": "a"}) for row in rows))
    assert [example.label.answer for example in read_choices(file)] == [0] * 8
