"""--task qa: files, scores against SQuAD's rules, windows, training, and the answers of predict."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertForPreTraining, BertForQuestionAnswering

import pretrain.finetune.command as finetune
from data_prep.cli import InputError
from pretrain import predict
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files import squad
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.files.squad import Answers, read_questions
from pretrain.finetune.scores import squad_scores
from pretrain.finetune.scores.squad_scores import Guess, score_answers
from pretrain.finetune.tasks import question_answering
from pretrain.inference.answer_spans import Window, context_offsets, encode_windows, most_stride, read_spans
from tests.reference import squad as reference
from tests.tiny_hf import WORDS, tiny_bert, tiny_tokenizer

CONTEXT = "The 308 points — 🏈 — were just 308."


def nested(*qas: dict, context: str = CONTEXT) -> dict:
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": [*qas]}]}]}


def flat(**fields) -> dict:
    return {"id": "1", "question": "How many?", "context": CONTEXT, **fields}


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_every_form_of_a_file_gives_the_same_examples(tmp_path):
    answers = [{"text": "308", "answer_start": 31}, {"text": "just 308", "answer_start": 26}]
    question = {"id": "1", "question": "How many?", "answers": answers}
    columns = {"text": ["308", "just 308"], "answer_start": [31, 26]}
    expected = [Example(1, "How many?", CONTEXT, Answers("1", ["308", "just 308"], (31, 34)))]
    for name, content in [
        ("v1.json", nested(question)),
        ("hub.json", {"data": [flat(answers=columns)]}),
        ("list.json", [flat(answers=answers)]),
        ("list.jsonl", json.dumps(flat(answers=answers))),
        ("columns.jsonl", json.dumps(flat(answers=columns, title="t"))),
        ("one.json", flat(answers=answers)),
        ("lines.json", json.dumps(flat(answers=answers)) + "\n"),
    ]:
        assert read_questions(written(tmp_path / name, content)) == expected, name
    assert CONTEXT[31:34] == "308"


def table(**cells: object) -> str:
    return pd.DataFrame([{"id": "1", "question": "How many?", "context": CONTEXT, **cells}]).to_csv(index=False)


def test_the_place_of_an_answer_is_read_wherever_it_stands(tmp_path):
    expected = [Example(1, "How many?", CONTEXT, Answers("1", ["308"], (31, 34)))]
    assert CONTEXT.index("308") == 4  # another one, which is not meant
    for name, content in [
        ("beside.jsonl", json.dumps(flat(answer="308", answer_start=31))),
        ("list.jsonl", json.dumps(flat(answers=["308"], answer_start=[31]))),
        ("start.jsonl", json.dumps(flat(answers=[{"text": "308", "start": 31}]))),
        ("float.jsonl", json.dumps(flat(answers={"text": ["308"], "answer_start": [31.0]}))),
        ("cell.csv", table(answer="308", answer_start=31)),
        ("python.csv", table(answers={"text": ["308"], "answer_start": [31]})),
        ("json.csv", table(answers=json.dumps([{"text": "308", "answer_start": 31}]))),
    ]:
        read = read_questions(written(tmp_path / name, content))
        assert [example._replace(line=1) for example in read] == expected, name
    first = flat(answers={"text": ["nowhere", "308"], "answer_start": [1, 31]})
    [example] = read_questions(written(tmp_path / "first.jsonl", json.dumps(first)))
    assert example.label == Answers("1", ["nowhere", "308"], (31, 34))
    for brackets in ("[1]", "{n}"):  # a text
        [example] = read_questions(written(tmp_path / "text.jsonl", json.dumps(flat(answer=brackets))))
        assert example.label.texts == [brackets]


@pytest.mark.parametrize("no", ["TRUE", "True", "1", "1.0"])
def test_a_question_that_a_table_calls_impossible_is_so(tmp_path, no):
    for answer in ("308", ""):
        [example] = read_questions(written(tmp_path / "a.csv", table(answer=answer, is_impossible=no)))
        assert example.label.texts == []
    [example] = read_questions(written(tmp_path / "b.csv", table(answer="308", is_impossible="FALSE")))
    assert example.label.texts == ["308"]


def test_a_question_without_an_answer(tmp_path):
    plausible = [{"text": "308", "answer_start": 4}]
    asked: list[dict] = [
        {"id": "a", "question": "Who?", "answers": [], "is_impossible": True, "plausible_answers": plausible},
        {"id": "b", "question": "Who?", "answers": plausible, "is_impossible": True},
        {"id": "c", "question": "Who?", "answers": {"text": [], "answer_start": []}},
    ]
    read = read_questions(written(tmp_path / "v2.json", nested(*asked)))
    assert [example.label for example in read] == [Answers(name, [], None) for name in "abc"]
    assert all(map(squad.is_learnable, read))


def test_answers_that_stand_elsewhere_are_counted_and_told(tmp_path, capsys):
    # As in a file that counts bytes, or UTF-16 units: 🏈 is two of these.
    given = [("308", 32), ("308", 5), ("308", 31), ("309", 4), ("points", None)]
    rows = [
        flat(id=str(number), answers={"text": [text], "answer_start": [] if start is None else [start]})
        for number, (text, start) in enumerate(given)
    ]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    read = read_questions(path)
    assert [example.label.span for example in read] == [(31, 34), (4, 7), (31, 34), None, (8, 14)]
    assert [squad.is_learnable(example) for example in read] == [True, True, True, False, True]
    assert capsys.readouterr().err == (
        f"{path}: 3 of 5 answers are not where answer_start says, such as '308' (line 1): 2 are taken where they "
        "stand, 1 stand nowhere in the context and are not learnt from\n"
    )
    with pytest.raises(InputError, match="no answer stands in its context"):
        squad.no_labels(read[3:4], path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json cannot be read as JSON: "),
        ("a.json", '{"a": 1}\n{"a": 2}', r"a\.json, line 1: no field question; .* found a"),
        ("a.json", b"\xff{}", "cannot be read as JSON"),
        ("a.json", {"version": "v2.0"}, 'has a list of articles under "data"'),
        ("a.json", {"data": []}, "holds no questions"),
        ("a.json", {"data": ["x"]}, r"data\[0\] is not an object: 'x'"),
        ("a.json", {"data": [{"paragraphs": 5}]}, r"data\[0\]\.paragraphs must be a list of objects, not 5"),
        ("a.json", {"data": [{"paragraphs": [{"context": "x"}]}]}, r"paragraphs\[0\]\.qas must be a list of objects"),
        ("a.json", nested({"id": "7", "question": "?", "answers": []}, context=""), "question 7: context is empty"),
        ("a.json", nested({"id": "7", "question": 5, "answers": []}), "question 7: question must be a text, not 5"),
        ("a.jsonl", '{"question": "x", "answers": []}', "line 1: no field context; .* found question, answers"),
        ("a.jsonl", json.dumps({"question": "x", "context": "y"}), "line 1: no field answers"),
        ("a.jsonl", json.dumps(flat(answers=[{"text": 5}])), "line 1: answers .* are none that are read; give"),
        ("a.jsonl", json.dumps(flat(answers={"text": ["a", "b"], "answer_start": [1]})), "none that are read"),
        ("a.jsonl", json.dumps(flat(answers=[{"text": "a", "answer_start": "1"}])), "none that are read"),
        ("a.csv", table(answers="{'text': array(['308'], dtype=object)}"), "none that are read"),
        ("a.csv", table(answer="308", answer_start="far"), "none that are read"),
        ("a.csv", table(answer="308", is_impossible="maybe"), "is_impossible must be true or false, not 'maybe'"),
        ("a.jsonl", '{"question": "x\\ud800", "context": "y", "answers": []}', "half a surrogate pair"),
        ("a.txt", "x", r"a\.txt: the name must end in"),
        ("a.csv", "question,context\nx,y\n", r"a\.csv, line 2: no field answers; .* found question, context"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        written(path, content)
    with pytest.raises(InputError, match=message) as refused:
        read_questions(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("guess", "answer", "exact", "f1"),
    [
        ("The  Denver Broncos!", "denver broncos", 1, 1),
        ("Denver", "Denver Broncos", 0, 2 / 3),
        ("a cat, the cat", "cat", 0, 2 / 3),  # cat cat: precision 1/2, recall 1
        ("the-cat", "thecat", 1, 1),  # marks go before articles
        ("U.S.", "us", 1, 1),
        ("北京", "北京。", 0, 0),  # only ASCII's punctuation goes, and words end at spaces
        ("", "cat", 0, 0),
    ],
)
def test_two_texts_are_compared_by_squads_rules(guess, answer, exact, f1):
    assert (squad_scores.exact(guess, answer), squad_scores.f1(guess, answer)) == pytest.approx((exact, f1))
    assert (reference.f1_v1(guess, answer), reference.f1_v2(guess, answer)) == pytest.approx((f1, f1))


def test_scores_by_hand():
    guesses = [Guess("the cat", -1.0), Guess("a dog", 2.0), Guess("bird", -0.5), Guess("fish", 3.0)]
    assert score_answers([["dog", "cat sat"], ["dog"]], guesses[:2]) == {"f1": (2 / 3 + 1) / 2, "exact": 0.5}
    # v2.0: the second has its answer dropped, the third is given where there is none, the fourth rightly dropped.
    scores = score_answers([["cat"], ["dog"], [], []], guesses)
    rates = {"has_answer_": 0.5, "no_answer_": 0.5, "best_": 0.75, "": 0.5}
    expected = {f"{kind}{name}": rate for kind, rate in rates.items() for name in ("f1", "exact")}
    assert scores == {**expected, "threshold": -1.0}
    # Never an answer is the best there is.
    assert score_answers([[], ["dog"], []], [Guess("x", -3.0), Guess("y", -2.0), Guess("z", 1.0)])["threshold"] == -4.0


def test_scores_agree_with_the_scripts_on_random_files():
    rng = random.Random(0)
    words = ["a", "The", "cat", "cat's", "sat.", "—", "dog", "!", ""]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randrange(1, 4)))

    for _ in range(50):
        truths = [[text() for _ in range(rng.randrange(1, 4))] for _ in range(20)]
        guesses = [Guess(text(), round(rng.gauss(0, 2))) for _ in range(20)]
        theirs = reference.evaluate_v1(truths, [guess.text for guess in guesses])
        assert score_answers(truths, guesses) == pytest.approx({name: value / 100 for name, value in theirs.items()})
        truths = [rng.choice([texts, []]) for texts in truths]
        truths[0] = []
        ours = score_answers(truths, guesses)
        nulls = [guess.null_difference for guess in guesses]
        theirs = reference.evaluate_v2(truths, [guess.text for guess in guesses], nulls, 0.0)
        for name in ("f1", "exact", "best_f1", "best_exact"):
            assert ours[name] == pytest.approx(theirs[name] / 100)
        again = reference.evaluate_v2(truths, [guess.text for guess in guesses], nulls, ours["threshold"])
        assert again["f1"] == pytest.approx(100 * ours["best_f1"])


def test_windows_cover_a_long_context_and_know_where_the_answer_is():
    tokenizer = tiny_tokenizer()
    words = random.Random(0).choices(WORDS[2:], k=40)
    words[25:27] = ["one", "two"]
    context = " ".join(words)
    at = context.index("one two")
    example = Example(1, "three", context, Answers("1", ["one two"], (at, at + 7)))
    features = question_answering.encode_questions(tokenizer, [example], [], 16, stride=4)
    seen = {tuple(row) for feature in features for row in feature["offsets"] if row[0] >= 0}
    assert len(seen) == 40
    assert max(len(feature["input_ids"]) for feature in features) == 16
    holding = [feature for feature in features if feature["start_positions"]]
    assert 1 <= len(holding) < len(features)
    for feature in holding:
        start, end = feature["start_positions"], feature["end_positions"]
        assert tokenizer.decode(feature["input_ids"][start : end + 1]) == "one two"
        # What is learnt is what is read again.
        logits = np.zeros((2, len(feature["input_ids"])))
        logits[0, start] = logits[1, end] = 5
        starts, ends = logits
        best = read_spans([Window(starts, ends, feature["offsets"], feature["cls"])])
        assert (context[best.spans[0].start : best.spans[0].end], best.null_difference) == ("one two", -10)
    for feature in features:
        assert (feature["start_positions"] == 0) == (feature["end_positions"] == 0)


def test_an_answer_within_a_token_has_all_of_it():
    offsets = np.array([[-1, -1], [0, 3], [4, 9], [9, 12], [-1, -1]])
    assert question_answering.tokens_of(offsets, (5, 7), 0) == (2, 2)
    assert question_answering.tokens_of(offsets, (3, 10), 0) == (2, 3)
    assert question_answering.tokens_of(offsets, (9, 13), 0) == (0, 0)
    assert question_answering.tokens_of(offsets, None, 0) == (0, 0)


def test_the_best_of_all_windows_answers():
    offsets = np.array([[-1, -1], [0, 3], [4, 9], [-1, -1]])
    sure = Window(np.array([1.0, 0, 5, 9]), np.array([2.0, 0, 4, 9]), offsets, 0)
    backwards = Window(np.array([8.0, 0, 7, 0]), np.array([8.0, 7, 0, 0]), offsets + 10 * (offsets >= 0), 0)
    reading = read_spans([backwards, sure])
    assert reading.spans[0] == (4, 9, 9.0)
    assert reading.null_logit == 3.0
    assert all(span.start < span.end for span in reading.spans)


def test_a_long_question_leaves_room_for_its_context(capsys):
    tokenizer = tiny_tokenizer()
    batch = encode_windows(tokenizer, ["one " * 30, "two"], ["three " * 20] * 2, seq_len=16, stride=most_stride(16))
    assert "1 of 2 questions are longer than half of a window, 6 tokens" in capsys.readouterr().err
    for row in range(len(batch["input_ids"])):
        assert (context_offsets(batch, row) >= 0).any()


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("hf") / "hf", BertForPreTraining)


def toy(count: int, seed: int) -> list[dict]:
    """One of two words answers, where the context has it."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = rng.choices(WORDS[4:], k=rng.randrange(4, 30))
        answers = []
        if number % 4:
            place = rng.randrange(len(words))
            words[place] = rng.choice(WORDS[:2])
            answers = [{"text": words[place], "answer_start": len(" ".join([*words[:place], ""]))}]
        rows.append({"id": f"q{number}", "question": "three", "context": " ".join(words), "answers": answers})
    return rows


@pytest.fixture(scope="module")
def tuned(hf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    train, dev = (
        written(folder / f"{name}.jsonl", "\n".join(map(json.dumps, toy(count, seed))))
        for name, count, seed in (("train", 240, 0), ("dev", 60, 1))
    )
    finetune.main(FinetuneConfig(hf, "qa", train, dev, folder / "out", seq_len=20, stride=6, lr=5e-3, epochs=8))
    return folder / "out"


def test_answers_are_learnt(tuned):
    results = json.loads((tuned / "results.json").read_text())
    scores = results["seeds"][0]["scores"]
    assert (results["task"], results["metric"], results["mean"]) == ("qa", "f1", scores["f1"])
    assert scores["exact"] > 0.8
    assert scores["best_f1"] >= scores["f1"]
    assert results["without_answer"] == {"train": 60, "eval": 15}
    assert (results["labels"], results["settings"]["stride"]) == ([], 6)
    config = json.loads((tuned / "config.json").read_text())
    assert config["architectures"] == ["BertForQuestionAnswering"]
    assert (config["zerobert_null_threshold"], config["zerobert_seq_len"]) == (scores["threshold"], 20)


def test_predict_answers_with_places_and_plain_transformers_agrees(tuned, capsys):
    context = "five six\tseven two eight nine"
    predict.main(predict.PredictConfig(tuned, (context, "five six seven"), question="three", json=True, top=2))
    answers = json.loads(capsys.readouterr().out)
    found, none = answers["answers"]
    assert answers["kind"] == "answers"
    assert (found["question"], found["text"]) == ("three", context)
    assert (found["answer"], found["start"], found["end"]) == ("two", 15, 18)
    assert (len(found["spans"]), found["spans"][0]["answer"], found["spans"][0]["score"]) == (
        2,
        "two",
        found["score"],
    )
    assert 0.5 < found["score"] <= 1
    assert (none["answer"], none["start"], none["end"]) == ("", None, None)
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned)
    encoded = tokenizer("three", context, return_tensors="pt")
    with torch.no_grad():
        out = model(**encoded)
    start, end = int(out.start_logits.argmax()), int(out.end_logits.argmax())
    assert tokenizer.decode(encoded["input_ids"][0, start : end + 1]) == "two"
    # Without --question a tab parts both; people read the place.
    predict.main(predict.PredictConfig(tuned, ("three\tfive one six seven",)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["five one six seven", "  three"]
    assert lines[2].endswith("  one  (5-8)")


def test_what_cannot_be_asked_is_refused(hf, tuned, tmp_path):
    file = written(tmp_path / "a.jsonl", json.dumps(flat(answers=["308"])))
    unfit: list[tuple[dict[str, Any], str]] = [
        ({"seq_len": 15}, "--seq_len 15 holds no question and its context"),
        ({"seq_len": 32, "stride": 14}, "--stride 14 is more than two windows of --seq_len 32 can share .* at most 13"),
        (
            {"label": ("solution",)},
            "no column solution is read with --task qa: the fields are question, context and answers",
        ),
        ({"task": "classify", "stride": 3}, "--stride is for --task qa and --long stride, and this is --task classify"),
    ]
    for options, message in unfit:
        with pytest.raises(InputError, match=message):
            finetune.main(
                FinetuneConfig(
                    **{"hf": hf, "task": "qa", "train": file, "eval": file, "out": tmp_path / "o", **options}
                )
            )
    unanswered: list[tuple[Path, str, dict[str, Any], str]] = [
        (hf, "one", {"question": "two"}, "--question: .* answers fill, and no questions"),
        (tuned, "one two", {}, "text 1: a tab must separate"),
        (tuned, "one two", {"question": " "}, "--question is empty"),
    ]
    for folder, text, asked, message in unanswered:
        with pytest.raises(InputError, match=message):
            predict.main(predict.PredictConfig(folder, (text,), **asked))
    assert not (tmp_path / "o").exists()


def test_a_folder_of_another_program_answers_always(tmp_path, capsys):
    folder = tiny_bert(tmp_path / "theirs", BertForQuestionAnswering)
    predict.main(predict.PredictConfig(folder, ("one two three " * 60,), question="four", json=True))
    answer = json.loads(capsys.readouterr().out)["answers"][0]
    assert answer["text"][answer["start"] : answer["end"]] == answer["answer"] != ""
