"""Shapes of new models: presets with other numbers, and what cannot be one."""

import pytest

from data_prep.cli import InputError, parse
from pretrain.model import build_model, config_of
from pretrain.run_facts import run_facts
from pretrain.settings.config import TrainConfig
from pretrain.settings.settings_file import with_settings
from pretrain.settings.shape import PRESETS, Shape, model_in_words, shape_of
from pretrain.sizes import parameters

BASE = "--data store --out run"
NEW, OLD = f"{BASE} --model bert-mini", f"{BASE} --init_from hf"


def from_line(line: str) -> TrainConfig:
    return parse(TrainConfig, None, line.split())


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ("", Shape(4, 256, 4), "bert-mini"),
        ("--layers 4 --hidden 256", Shape(4, 256, 4), "bert-mini"),
        ("--layers 12 --hidden 384", Shape(12, 384, 6), "bert-mini 12x384, 6 heads"),
        ("--hidden 48", Shape(4, 48, 1), "bert-mini 4x48, 1 head"),
        ("--heads 8", Shape(4, 256, 8), "bert-mini 4x256, 8 heads"),
        ("--hidden 312 --heads 12", Shape(4, 312, 12), "bert-mini 4x312, 12 heads"),
    ],
)
def test_what_is_given_stands_in_place_of_the_preset_s(options, shape, words):
    config = from_line(f"{NEW} {options}")
    assert config.shape == shape
    assert run_facts({"train": config.to_json()})["Model"] == words
    made = config_of(shape, 100, dropout=0.1)
    assert (made.num_hidden_layers, made.hidden_size, made.num_attention_heads) == shape
    assert made.intermediate_size == 4 * shape.hidden


def test_weights_of_any_shape_are_counted_as_transformers_has_them():
    shape = Shape(3, 96, 4)
    model = build_model(shape=shape, vocab_size=64, dropout=0.0, seed=0, needs_nsp=True, initializer_range=0.3)
    assert parameters(shape, 64) == model.num_parameters()
    (weight,) = (each for name, each in model.named_parameters() if name.endswith("layer.2.output.dense.weight"))
    assert weight.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{NEW} --hidden 200", "--hidden 200 cannot be shared by 3 heads: give --heads 2"),
        (f"{NEW} --heads 3", "--hidden 256 cannot be shared by 3 heads"),
        (f"{NEW} --layers 0", "--layers 0 must lie in"),
        (f"{NEW} --hidden -8", "--hidden -8 must lie in"),
        (f"{NEW} --initializer_range 0", "--initializer_range 0 must lie in"),
        (f"{NEW} --initializer_range nan", "--initializer_range nan must lie in"),
        (f"{NEW} --mlm_bias often", "mlm_bias"),
        (f"{OLD} --layers 2", "--layers 2 is of a new model"),
        (f"{OLD} --heads 2", "--heads 2 is of a new model"),
        (f"{OLD} --initializer_range .1", "--initializer_range 0.1 is of a new model"),
        (f"{OLD} --mlm_bias unigram", "--mlm_bias unigram is of a new model"),
    ],
)
def test_what_cannot_be_is_one_line(line, told):
    with pytest.raises(InputError, match=told) as raised:
        from_line(line)
    assert "\n" not in str(raised.value)


def test_the_shape_in_a_file_of_settings_is_that_of_its_own_model(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"model": "bert-mini", "layers": 12, "hidden": 384, "mlm_bias": "unigram"}')
    same, larger, other = (
        parse(TrainConfig, None, with_settings([*f"{line} --config {path}".split()]))
        for line in (f"{BASE} --heads 12", f"{BASE} --model bert-base", OLD)
    )
    assert (same.shape, same.mlm_bias) == (Shape(12, 384, 12), "unigram")
    assert (larger.shape, larger.mlm_bias) == (PRESETS["bert-base"], "unigram")
    assert (other.shape, other.mlm_bias) == (None, "zeros")


def test_a_record_that_nobody_could_have_made_still_has_a_name():
    assert model_in_words({"model": "bert-mini", "hidden": -3}) == "bert-mini"
    assert model_in_words({"model": None}) is None
    assert shape_of("bert-large", layers=1) == Shape(1, 1024, 16)
