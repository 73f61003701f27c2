import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from data_prep.cli import InputError, parse
from data_prep.samples.masking import Masking
from pretrain.settings.config import TrainConfig
from pretrain.settings.limits import Preset
from pretrain.settings.shape import PRESETS


def from_line(line: str) -> TrainConfig:
    return parse(TrainConfig, None, line.split())


BASE = "--data a b:2.5 --out run --model bert-tiny"


def test_stores_carry_weights():
    assert from_line(BASE).weighted_stores == [(Path("a"), 1.0), (Path("b"), 2.5)]


def test_a_folder_with_a_colon_in_its_name_is_no_weight(tmp_path):
    (tmp_path / "store:2").mkdir()
    config = from_line(f"--data {tmp_path}/store:2 {tmp_path}/store:2:3 --out run --model bert-tiny")
    assert config.weighted_stores == [(tmp_path / "store:2", 1.0), (tmp_path / "store:2", 3.0)]


def test_temperature_makes_the_shares_of_stores_more_equal():
    tokens = [100_000, 40_000]  # of weight 1 and 2.5: shares 1 : 1
    assert from_line(BASE).spans[0].passes(tokens) == [1.0, 2.5]
    line = "--data en:1 ur --out run --model bert-tiny --temperature"
    tokens = [900_000, 100_000]
    for power in (0.0, 0.3, 0.7):
        shares = [
            passes * count
            for passes, count in zip(from_line(f"{line} {power}").spans[0].passes(tokens), tokens, strict=True)
        ]
        assert sum(shares) == pytest.approx(1_000_000)  # an epoch is as long as before
        assert shares[0] / shares[1] == pytest.approx(9**power)
    assert from_line(f"{BASE} --temperature 0").spans[0].passes([100, 10]) == pytest.approx([0.625, 6.25])
    for wrong in ("-0.1", "1.1", "nan"):
        with pytest.raises(InputError, match="--temperature"):
            from_line(f"{line} {wrong}")


@pytest.mark.parametrize("weight", ["0", "-1", "heavy", "inf", "nan", ""])
def test_a_weight_is_a_number_above_0(weight):
    with pytest.raises(InputError, match="weight"):
        _ = from_line(f"--data a:{weight} --out run --model bert-tiny").weighted_stores


@pytest.mark.parametrize(("warmup", "steps"), [("0.1", 100), ("0", 0), ("25", 25), ("0.2843", 284)])
def test_warmup_is_steps_or_a_share(warmup, steps):
    assert from_line(f"{BASE} --steps 1000 --warmup {warmup}").spans[0].warmup_steps == steps


def test_the_json_s_flags_are_passed_on_untouched():
    config = from_line(f"{BASE} --global_batch 64 --zero 3 --deepspeed_config x.json")
    assert dataclasses.asdict(config.flags) == {
        "global_batch": 64, "micro_batch": None, "lr": None, "weight_decay": None, "clip": None, "precision": None,
        "zero": 3, "optimizer": None,
    }  # fmt: skip
    assert config.ds_config == Path("x.json")


def test_everything_is_recorded_as_json():
    import json

    assert json.loads(json.dumps(from_line(BASE).to_json()))["data"] == ["a", "b:2.5"]


def test_a_misspelt_option_is_refused_with_what_was_meant():
    with pytest.raises(InputError, match=r"^--warm_up is no option of this command; did you mean --warmup"):
        from_line(f"{BASE} --warm_up 3")


def test_masking_is_an_option():
    config = from_line(f"{BASE} --mask_unit word --mask_rate 0.4 --mask_split 1 0")
    assert config.masking(config.mask_rate) == Masking(0.4, 1.0, 0.0, "word")
    assert from_line(BASE).masking(0.15) == Masking()


@pytest.mark.parametrize(
    "wrong",
    [
        "--steps 0",
        "--seq_len 4",
        "--warmup 10000",
        "--dropout 1",
        "--log_every 0",
        "--keep -1",
        "--max_skips 0",
        "--mask_rate 1",
        "--mask_split 0.8 0.3",
    ],
)
def test_wrong_values_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=wrong.split()[0]):
        from_line(f"{BASE} {wrong}")


def test_every_preset_has_a_size():
    assert get_args(Preset) == tuple(PRESETS)
