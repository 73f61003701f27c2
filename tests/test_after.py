"""The code of docs/after.md does what the page says, where its libraries are installed."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
    BertForSequenceClassification,
    pipeline,
)

from pretrain.export.command import ExportConfig
from pretrain.export.command import main as export
from tests.corpora import write
from tests.tiny_hf import WORDS, tiny_bert

PAGE = Path(__file__).resolve().parent.parent / "docs/after.md"


def block(name: str, *needs: str) -> Any:
    """A function of the page; the test is skipped where a library that its block imports is missing."""
    for library in needs:
        pytest.importorskip(library, reason=f"{library} is not installed, so its block of docs/after.md is not run")
    codes = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    [code] = [code for code in codes if f"def {name}(" in code]
    space: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), space)
    return space[name]


@pytest.fixture
def hf(tmp_path, monkeypatch) -> Path:
    """An export, as a run leaves it; what libraries write beside it goes into the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    export(ExportConfig(tiny_bert(tmp_path / "source", BertForPreTraining), tmp_path / "hf"))
    return tmp_path / "hf"


@pytest.mark.slow
def test_the_trainer_tunes_it_and_pipelines_answer(hf, tmp_path):
    labels = {word: "low" if row < 5 else "high" for row, word in enumerate(WORDS)}
    rows = "".join(f"{first} {second}\t{labels[first]}\n" for first in WORDS for second in WORDS)
    train, dev = (write(tmp_path / f"{name}.tsv", f"text\tlabel\n{rows}") for name in ("train", "dev"))
    accuracy = block("tune")(str(hf), train, dev, str(tmp_path / "tuned"), epochs=30, lr=5e-3)
    assert accuracy > 0.9
    classify = pipeline("text-classification", str(tmp_path / "tuned"), device="cpu")
    assert [classify(text)[0]["label"] for text in ("one two", "ten two")] == ["low", "high"]
    fill = pipeline("fill-mask", str(hf), device="cpu")
    assert len(fill("one [MASK] three", top_k=3)) == 3


@pytest.mark.slow
def test_onnx_runtime_gives_the_answers_of_torch(tmp_path):
    answers = block("answers", "onnxruntime", "onnxscript")
    tuned = tiny_bert(tmp_path / "tuned", BertForSequenceClassification)
    export(ExportConfig(tuned, tmp_path / "onnx", format="onnx"))
    texts = ["one two three", "ten", "four " * 90]
    model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    inputs = AutoTokenizer.from_pretrained(tuned)(texts, padding=True, truncation=True, return_tensors="pt")
    np.testing.assert_allclose(answers(tmp_path / "onnx", texts), model(**inputs).logits.detach(), rtol=0, atol=1e-5)


def test_sentence_transformers_finds_what_is_near(hf, tmp_path):
    nearest = block("nearest", "sentence_transformers")
    export(ExportConfig(hf, tmp_path / "st", format="sentence-transformers"))
    for folder in (tmp_path / "st", hf):
        found = nearest(str(folder), "one two", ["nine ten", "one two", "six"])
        assert found[0] == (pytest.approx(1, abs=1e-5), "one two")


@pytest.mark.slow
def test_sentence_transformers_learns_from_lines_alone(hf, tmp_path):
    adapt, ndcg = (block(name, "sentence_transformers") for name in ("adapt", "ndcg"))
    export(ExportConfig(hf, tmp_path / "st", format="sentence-transformers"))
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 6)) for _ in range(200)]
    pairs = [(" ".join(line.split()[:4]), line) for line in (" ".join(rng.choice(WORDS, 6)) for _ in range(60))]
    before = ndcg(str(tmp_path / "st"), pairs)
    adapt(str(tmp_path / "st"), lines, str(tmp_path / "adapted"), steps=30, batch=32, lr=1e-3)
    after = ndcg(str(tmp_path / "adapted"), pairs)
    assert 0 < before <= 1
    assert after > 0.1  # of chance: 0.08
    before_it, behind_it = (tmp_path / name / "model.safetensors" for name in ("st", "adapted"))
    assert before_it.read_bytes() != behind_it.read_bytes()


def test_spacy_takes_it(hf):
    vectors = block("vectors", "spacy", "spacy_transformers")
    assert np.asarray(vectors(hf, "one two three")).shape[-1] == 32


def test_the_page_names_what_was_not_run():
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert all("@" not in row for row in rows)
    for name in ("text-embeddings-inference", "vLLM", "llama.cpp"):
        [row] = [row for row in rows if name in row]
        assert "not run" in row
