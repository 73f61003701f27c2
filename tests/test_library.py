"""The code of docs/library.md does what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForMaskedLM

from tests.corpora import as_lines, texts, write
from tests.ranks import run_ranks
from tests.stores import random_documents, store_of
from tests.tiny_hf import tiny_bert

PAGE = Path(__file__).resolve().parent.parent / "docs/library.md"


def blocks() -> list[dict[str, Any]]:
    """What each block of the page defines."""
    found = []
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        space: dict[str, Any] = {"__name__": "page"}
        exec(compile(code, str(PAGE), "exec"), space)
        found.append(space)
    return found


def train(folder: str, steps: int, zero: int) -> dict[str, Any]:
    """The first block, with the weights that it leaves."""
    space = blocks()[0]
    kept: dict[str, Any] = {}
    build = space["build_model"]
    space["build_model"] = lambda *arguments, **options: kept.setdefault(
        "model", build(*arguments, **options | {"dropout": 0})
    )
    space |= {"SEQ_LEN": 32, "BATCH": 16, "MICRO_BATCH": 4}
    space["main"](folder, steps, zero)
    return {name: parameter.detach().clone().numpy() for name, parameter in kept["model"].named_parameters()}


@pytest.mark.slow
def test_lamb_in_a_script_of_ones_own_gives_the_same_weights_on_two_ranks(tmp_path, no_process_left):
    store_of(tmp_path / "s", random_documents(60))
    [alone] = run_ranks(1, train, str(tmp_path / "s"), 2, 0)
    first, second = run_ranks(2, train, str(tmp_path / "s"), 2, 2)
    for name, weights in alone.items():
        assert weights == pytest.approx(first[name], rel=1e-3, abs=2e-5), name
        assert (first[name] == second[name]).all(), name


def test_the_likelier_of_two_texts_is_told(tmp_path, capsys):
    folder = tiny_bert(tmp_path / "hf", BertForMaskedLM)
    assert blocks()[-1]["better"](str(folder), "one two three four five", "six") == "six"  # each token costs some nats
    assert "nats, 5 tokens, 0 beyond the model's positions: one two three four five" in capsys.readouterr().out


def test_stores_and_corpora_are_read_as_the_page_says(tmp_path, capsys):
    store_of(tmp_path / "s", random_documents(60))
    _, numpy_only, corpus, _ = blocks()
    numpy_only["look_at"](str(tmp_path / "s"))
    assert "64 entries, from 0 sources" in capsys.readouterr().out
    write(tmp_path / "a.txt", as_lines(texts(3)))
    corpus["documents"](str(tmp_path / "a.txt"), lang="de-AT")
    assert "a.txt txt utf-8 {}" in capsys.readouterr().out
