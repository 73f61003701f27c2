"""Answers of tiny folders, against transformers' own pipelines; refusals."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    pipeline,
)

from data_prep.cli import InputError
from pretrain import predict
from pretrain.predict import PredictConfig
from tests.tiny_hf import tiny_bert

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("hf") / "pretrained", BertForPreTraining)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("hf") / "classifier", BertForSequenceClassification)


def answers_of(capsys: pytest.CaptureFixture, folder: Path, *texts: str, **options) -> dict:
    predict.main(PredictConfig(folder, texts, json=True, **options))
    return json.loads(capsys.readouterr().out)


def set_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_masks_are_filled_as_transformers_fills_them(pretrained, tmp_path, capsys):
    # The same weights in a folder with this head alone, for the pipeline.
    alone = tiny_bert(tmp_path / "alone", BertForMaskedLM)
    BertForMaskedLM.from_pretrained(pretrained).save_pretrained(alone)
    capsys.readouterr()
    text = "one [MASK] three [MASK] ."
    result = answers_of(capsys, pretrained, text, top=3)
    theirs: Any = pipeline("fill-mask", model=str(alone), device="cpu", top_k=3)(text)
    assert (result["kind"], len(result["answers"][0]["masks"])) == ("fill", 2)
    for ours, expected in zip(result["answers"][0]["masks"], theirs, strict=True):
        assert [word["token"] for word in ours] == [word["token_str"] for word in expected]
        assert [word["probability"] for word in ours] == pytest.approx([word["score"] for word in expected], abs=1e-5)
    assert answers_of(capsys, pretrained, text, top=3, fill=True) == result
    assert answers_of(capsys, alone, text, top=3)["answers"] == result["answers"]


def test_labels_as_transformers_gives_them(classifier, capsys):
    texts = ("one two", "three four five")
    result = answers_of(capsys, classifier, *texts)
    theirs: Any = pipeline("text-classification", model=str(classifier), device="cpu", top_k=None)(list(texts))
    assert result["kind"] == "labels"
    for ours, text, expected in zip(result["answers"], texts, theirs, strict=True):
        assert ours["text"] == text
        assert [label["label"] for label in ours["labels"]] == [label["label"] for label in expected]
        probabilities = [label["probability"] for label in ours["labels"]]
        assert probabilities == pytest.approx([label["score"] for label in expected], abs=1e-5)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_a_pair_is_two_texts_around_a_tab(tmp_path, capsys):
    folder = tiny_bert(tmp_path / "pair", BertForSequenceClassification)
    set_config(folder, zerobert_task="pair")
    ours = answers_of(capsys, folder, "one two\tthree")["answers"][0]["labels"][0]
    theirs: Any = pipeline("text-classification", model=str(folder), device="cpu")(
        {"text": "one two", "text_pair": "three"}
    )
    assert ours["probability"] == pytest.approx(theirs["score"], abs=1e-5)
    # All texts are looked at before one is answered.
    with pytest.raises(
        InputError, match="text 2: a tab must separate the two texts that this model answers: 'one two'"
    ):
        predict.main(PredictConfig(folder, ("one\ttwo", "one two")))
    with pytest.raises(InputError, match="text 3: 2 tabs, but one alone must separate the two texts"):
        predict.main(PredictConfig(folder, ("one\ttwo", "a\tb", "a\tb\tc")))
    assert capsys.readouterr().out == ""
    # A folder of another program, which does not say so itself, and one for numbers.
    set_config(folder, zerobert_task=None)
    assert answers_of(capsys, folder, "one two\tthree", pair=True)["answers"][0]["labels"][0] == ours
    set_config(folder, zerobert_task="regress", zerobert_pairs=True)
    assert answers_of(capsys, folder, "one two\tthree")["answers"][0]["labels"][0] == ours


def test_for_a_model_of_single_texts_a_tab_is_white_space(classifier, pretrained, capsys):
    texts = ("one\ttwo", "one\ttwo\tthree", "\tone\t\ttwo\t")
    tabs, spaces = (
        answers_of(capsys, classifier, *asked)["answers"]
        for asked in (texts, tuple(text.replace("\t", " ") for text in texts))
    )
    assert [answer["text"] for answer in tabs] == list(texts)
    assert [answer["labels"] for answer in tabs] == [answer["labels"] for answer in spaces]
    with pytest.raises(InputError, match=r"--pair: .* answers fill, and no pairs"):
        answers_of(capsys, pretrained, "one\t[MASK]", pair=True)


def stdin_of(monkeypatch: pytest.MonkeyPatch, raw: bytes, encoding: str = "utf-8") -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding=encoding))


def test_standard_input_is_utf8_whatever_the_locale_says(classifier, capsys, monkeypatch):
    stdin_of(monkeypatch, "\ufeffone é\u2028字\r\n\n \t\ntwo".encode(), "latin-1")
    predict.main(PredictConfig(classifier, json=True))
    told = capsys.readouterr()
    assert [answer["text"] for answer in json.loads(told.out)["answers"]] == ["one é\u2028字", "two"]
    assert "blank lines of standard input, which have no answer: 2" in told.err


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"one\n\ntwo \xff\n", "line 3 of standard input is not UTF-8; convert it"),
        ("one\ntwo\n".encode("utf-16"), "line 1 of standard input holds a zero byte, as in UTF-16"),
        ("北京\n".encode("utf-16"), "line 1 of standard input holds a byte order mark, as in UTF-16"),
        ("one\ntwo\n".encode("utf-16-le"), "line 1 of standard input holds a zero byte, as in UTF-16"),
        (b"", "no text: give one"),
        (b"\n \n", "no text: give one"),
    ],
)
def test_what_is_no_text_is_refused_before_anything_is_answered(classifier, capsys, monkeypatch, raw, message):
    stdin_of(monkeypatch, raw)
    with pytest.raises(InputError, match=message):
        predict.main(PredictConfig(classifier))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        predict.main(PredictConfig(classifier))
    for text, why in [("\udcff", "text 2 is not UTF-8"), ("", "text 2 is empty"), (" \t", "text 2 is empty")]:
        with pytest.raises(InputError, match=why):
            predict.main(PredictConfig(classifier, ("one", text)))
    assert capsys.readouterr().out == ""


def test_a_label_without_a_name_is_refused(tmp_path):
    for names in ({"0": "x", "5": "y"}, {"0": 3, "1": "y"}):
        folder = tiny_bert(tmp_path / "odd", BertForSequenceClassification)
        set_config(folder, id2label=names)
        with pytest.raises(InputError, match=r"id2label must name the labels 0, 1, \.\.\. by texts|field 'id2label'"):
            predict.main(PredictConfig(folder, ("one",)))


def test_an_answer_that_does_not_depend_on_the_text_is_told(classifier, capsys):
    predict.main(PredictConfig(classifier, ("北京 \u200b", "\u200b", "one 北京")))
    assert capsys.readouterr().err.count("the tokenizer knows nothing of this text") == 2


def test_no_text_and_no_label_acts_on_a_terminal(classifier, tmp_path, capsys):
    folder = Path(shutil.copytree(classifier, tmp_path / "hf"))
    set_config(folder, id2label={"0": "x\x1b[2J\ny", "1": "é"})
    predict.main(PredictConfig(folder, ("one \x1b[31m\ntwo\tthree",)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one \\x1b[31m\\x0atwo\tthree"
    assert len(lines) == 3
    assert any("x\\x1b[2J\\x0ay" in line for line in lines)


def test_a_number_and_tags(tmp_path, capsys):
    number = tiny_bert(tmp_path / "number", BertForSequenceClassification)
    config = BertConfig.from_pretrained(number, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(number)
    assert isinstance(answers_of(capsys, number, "one")["answers"][0]["score"], float)
    tagger = tiny_bert(tmp_path / "tagger", BertForTokenClassification)
    words = answers_of(capsys, tagger, "one twothree .")["answers"][0]["tags"]
    assert [word["word"] for word in words] == ["one", "twothree", "."]
    assert {word["tag"] for word in words} <= {"LABEL_0", "LABEL_1"}


def test_spans_of_tags_are_those_of_transformers(tmp_path, capsys):
    folder = tiny_bert(tmp_path / "tagger", BertForTokenClassification)
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    torch.manual_seed(1)
    model = BertForTokenClassification.from_pretrained(
        folder, num_labels=3, id2label=names, ignore_mismatched_sizes=True
    )
    model.classifier.weight.data *= 60  # so that tags differ
    model.save_pretrained(folder)
    text = "one two three onetwo four  five six seven eight nine ten . three nine one"
    answer = answers_of(capsys, folder, text)["answers"][0]
    theirs: Any = pipeline("token-classification", model=str(folder), device="cpu", aggregation_strategy="first")(text)
    assert {word["tag"] for word in answer["tags"]} == {*names.values()}
    assert [(span["start"], span["end"], span["label"]) for span in answer["spans"]] == [
        (span["start"], span["end"], span["entity_group"]) for span in theirs
    ]
    scores = [float(span["score"]) for span in theirs]
    assert [span["score"] for span in answer["spans"]] == pytest.approx(scores, abs=1e-5)
    assert all(span["text"] == text[span["start"] : span["end"]] for span in answer["spans"])
    predict.main(PredictConfig(folder, (text,)))
    first = answer["spans"][0]
    assert f"PER  {first['text']}  ({first['start']}-{first['end']})" in capsys.readouterr().out


def test_texts_come_from_stdin_and_answers_are_readable(pretrained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one [MASK]\n\ntwo [MASK] [MASK]\r\n"))
    predict.main(PredictConfig(pretrained, top=2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 + 1 + 2 * 3
    assert (lines[0], lines[3], lines[4]) == ("one [MASK]", "two [MASK] [MASK]", "  mask 1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(InputError, match="no text"):
        predict.main(PredictConfig(pretrained))


def test_what_cannot_be_answered_is_refused(pretrained, classifier, tmp_path, capsys):
    pairs_only = tiny_bert(tmp_path / "nsp", BertForNextSentencePrediction)
    no_tokenizer = tiny_bert(tmp_path / "bare", BertForPreTraining)
    for name in ("tokenizer.json", "vocab.txt"):
        (no_tokenizer / name).unlink(missing_ok=True)
    no_weights = tiny_bert(tmp_path / "weightless", BertForPreTraining)
    (no_weights / "model.safetensors").write_bytes(b"cut short")
    larger = tiny_bert(tmp_path / "larger", BertForPreTraining)
    set_config(larger, vocab_size=8)
    no_json = tiny_bert(tmp_path / "no_json", BertForPreTraining)
    (no_json / "config.json").write_text("{")
    for folder, text, options, message in [
        (pretrained, "one two", {}, r"mask token \[MASK\] is not in the text: 'one two'"),
        (pretrained, "one " * 80 + "[MASK]", {}, "only beyond the model's length"),
        (classifier, "one [MASK]", {"fill": True}, r"lacks weights needed to answer, such as cls\."),
        (pairs_only, "one", {}, "holds BertForNextSentencePrediction, which answers nothing here"),
        (no_tokenizer, "one", {}, "has no tokenizer"),
        (no_weights, "[MASK]", {}, "the weights cannot be loaded"),
        (larger, "[MASK]", {}, "but the model only 8 embeddings"),
        (no_json, "[MASK]", {}, r"config\.json cannot be read"),
        (tmp_path / "none", "[MASK]", {}, "no such folder"),
    ]:
        with pytest.raises(InputError, match=message):
            answers_of(capsys, folder, text, **options)


@pytest.mark.slow
def test_the_command_line_is_quiet_and_ends_with_2_for_wrong_input(pretrained):
    line = [sys.executable, "-m", "pretrain.predict", str(pretrained), "one [MASK]", "no mask here"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.splitlines()[0] == "one [MASK]"
    assert done.stderr.splitlines() == [
        f"{pretrained}: not used: cls.seq_relationship, pooler (heads of other tasks)",
        "error: the mask token [MASK] is not in the text: 'no mask here'",
    ]
