"""Vectors of lines and the lines nearest to a text, against the mean over transformers' own outputs, one at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertForPreTraining

from data_prep.cli import InputError
from pretrain.inference import embedding
from pretrain.predict import PredictConfig, main
from tests.tiny_hf import WORDS, tiny_bert


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("model") / "hf", BertForPreTraining)


def one_by_one(hf: Path, lines: list[str], at_cls: bool = False) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(hf), AutoModel.from_pretrained(hf).eval()
    rows = []
    for line in lines:
        hidden = model(**tokenizer(line, truncation=True, max_length=64, return_tensors="pt")).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(hidden[0] if at_cls else hidden.mean(0), dim=0).detach().numpy())
    return np.stack(rows)


def test_a_row_a_line_in_their_order(hf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedding, "BLOCK", 7)
    monkeypatch.setattr(embedding, "BATCH_TOKENS", 100)
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS, size)) for size in draw.integers(1, 90, size=30)]
    lines[4] = ""
    (tmp_path / "lines.txt").write_text("\ufeff" + "\r\n".join(lines[:20]) + "\r" + "\n".join(lines[20:]))
    out = tmp_path / "a folder that/is not there/v.npy"
    main(PredictConfig(hf, embed=tmp_path / "lines.txt", out=out, json=True))
    shown = capsys.readouterr()
    vectors = np.load(out)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, one_by_one(hf, lines), rtol=0, atol=1e-6)
    cut = sum(len(line.split()) > 62 for line in lines)
    assert json.loads(shown.out) == {
        "folder": str(hf), "kind": "embed", "out": str(out), "lines": 30, "size": 32, "cut": cut,
    }  # fmt: skip
    assert f"longer than the model's 64 tokens, and cut: {cut} of 30 lines" in shown.err
    assert "blank lines: 1;" in shown.err


def test_the_nearest_lines_by_cosine(hf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedding, "BLOCK", 4)
    lines = ["one two", "", "three four five", "one two .", "six", "one three", "seven eight nine"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    main(PredictConfig(hf, ("one two", "six"), nearest=tmp_path / "lines.txt", top=3, json=True))
    answers = json.loads(capsys.readouterr().out)["answers"]
    vectors = one_by_one(hf, lines)
    for answer, query in zip(answers, one_by_one(hf, ["one two", "six"]), strict=True):
        cosines = vectors @ query
        cosines[1] = -2  # blank
        assert [found["line"] - 1 for found in answer["nearest"]] == [*np.argsort(-cosines)[:3]]
        assert answer["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-5)
        assert answer["nearest"][0]["text"] == answer["text"]
    main(PredictConfig(hf, ("six",), nearest=tmp_path / "lines.txt", top=1))
    assert capsys.readouterr().out == "six\n  1.0000  5: six\n"


def test_pooling_is_what_the_folder_says(tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    (tmp_path / "lines.txt").write_text("one two\n")
    (hf / "1_Pooling").mkdir()
    for said, at_cls in (({"pooling_mode": "mean"}, False), ({"pooling_mode_cls_token": True}, True)):
        (hf / "1_Pooling/config.json").write_text(json.dumps(said))
        main(PredictConfig(hf, embed=tmp_path / "lines.txt", out=tmp_path / "v.npy"))
        np.testing.assert_allclose(np.load(tmp_path / "v.npy"), one_by_one(hf, ["one two"], at_cls), rtol=0, atol=1e-6)
    (hf / "sentence_bert_config.json").write_text('{"max_seq_length": 3}')  # sentence-transformers cuts here
    main(PredictConfig(hf, embed=tmp_path / "lines.txt", out=tmp_path / "v.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), one_by_one(hf, ["one"], at_cls=True), rtol=0, atol=1e-6)


def test_pooling_and_layers_that_are_not_known_are_refused(tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    (tmp_path / "lines.txt").write_text("one two\n")
    (hf / "1_Pooling").mkdir()
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "include_prompt": True}
    for said, message in (
        ({"pooling_mode": "max"}, "pooling by 'max'"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "pooling by 'max_tokens'"),
        (both, "pooling by 'cls_token and mean_tokens'"),
    ):
        (hf / "1_Pooling/config.json").write_text(json.dumps(said))
        with pytest.raises(InputError, match=message):
            main(PredictConfig(hf, embed=tmp_path / "lines.txt", out=tmp_path / "v.npy"))
    (hf / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    kinds = ("Transformer", "Pooling", "Dense")
    modules = [{"path": str(n), "type": f"sentence_transformers.models.{kind}"} for n, kind in enumerate(kinds)]
    (hf / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="'Dense' is not known here"):
        main(PredictConfig(hf, embed=tmp_path / "lines.txt", out=tmp_path / "v.npy"))
    assert not (tmp_path / "v.npy").exists()


def test_what_cannot_be_embedded_is_refused_and_nothing_written(hf, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_bytes("one\nGröße\n".encode("latin-1"))
    out = tmp_path / "v.npy"
    for config, message in (
        (PredictConfig(hf, embed=lines, out=out), r"lines\.txt: line 2 is not UTF-8"),
        (PredictConfig(hf, embed=tmp_path / "none", out=out), "no such file"),
        (PredictConfig(hf, embed=lines), "writes to --out"),
        (PredictConfig(hf, out=out), "give --embed FILE"),
        (PredictConfig(hf, embed=lines, out=lines), "choose another name"),
        (PredictConfig(hf, ("one",), embed=lines, out=out), "takes no texts"),
        (PredictConfig(hf, embed=lines, nearest=lines, out=out), "give --embed FILE"),
    ):
        with pytest.raises(InputError, match=message):
            main(config)
    assert [*tmp_path.iterdir()] == [lines]
