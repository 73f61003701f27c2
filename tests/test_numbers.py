"""Numbers that make no sense are refused by name wherever a user can write one: one line, code 2, nothing written.

Every field of every command's settings, every name of a --phase and every value of DeepSpeed's JSON is gone through, so
that a new one without a range fails here.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from data_prep.cli import ROOT, InputError, parse
from data_prep.dedup import DedupConfig
from data_prep.ranges import Range, check_ranges
from data_prep.shard import ShardConfig
from data_prep.show import ShowConfig
from data_prep.vocab import VocabConfig
from pretrain.export.command import ExportConfig
from pretrain.finetune.command import FinetuneConfig
from pretrain.import_universal import ImportConfig
from pretrain.predict import PredictConfig
from pretrain.report.command import ReportConfig
from pretrain.settings import ds_config, ds_values
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import Flags, resolve
from pretrain.settings.phases import INTEGERS, NUMBERS, Span, parse_span
from tests.corpora import files_of
from tests.forked import fork_script

COMMANDS = {
    TrainConfig: "--data s --out run --model bert-tiny",
    VocabConfig: "--corpus a.txt --out v",
    ShardConfig: "--corpus a.txt --vocab v --out s",
    ShowConfig: "store",
    DedupConfig: "--corpus a.txt --out list",
    ExportConfig: "run out",
    ImportConfig: "--universal u --data s --out run --model bert-tiny",
    ReportConfig: "run --out page",
    FinetuneConfig: "hf --task classify --train a.tsv --eval b.tsv --out tuned",
    PredictConfig: "hf",
}
ODD = ("nan", "inf", "-inf", "-1", "-0.5", "9" * 23, "1e400", "1e30", "", "many", "True", "0x10", "1,5")


def numeric_fields(command: type) -> dict[str, Any]:
    hints = get_type_hints(command)
    return {name: hint for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)}}


FIELDS = [(command, name, hint) for command in COMMANDS for name, hint in numeric_fields(command).items()]


def refusal(command: type, more: list[str]) -> str:
    """The message with which a command line is refused."""
    with pytest.raises(InputError) as refused:
        parse(command, None, COMMANDS[command].split() + more)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_numeric_option_of_every_command_declares_its_range():
    assert len(FIELDS) > 35
    for command, name, _ in FIELDS:
        hint = get_type_hints(command, include_extras=True)[name]
        assert any(isinstance(part, Range) for part in getattr(hint, "__metadata__", ())), (command, name)
        [field] = [field for field in dataclasses.fields(command) if field.name == name]
        check_ranges(dataclasses.make_dataclass("Default", [(name, hint, field.default)])())


@pytest.mark.parametrize(("command", "name", "hint"), FIELDS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_odd_numbers_are_refused_with_name_value_and_range(command, name, hint):
    count = len(get_args(hint)) if hint == tuple[float, float] else 1
    for value in ODD:
        for more in ([f"--{name}", *[value] * count], [f"--{name}={value}"]):
            said = refusal(command, more)
            assert said.startswith(f"--{name} {value}" if value else f"--{name} is followed by an empty value")
            assert not value or "lie in " in said


STRINGS = [
    (command, field.name)
    for command in COMMANDS
    for field in dataclasses.fields(command)
    if (command, field.name) not in {(command, name) for command, name, _ in FIELDS}
    and get_type_hints(command)[field.name] is not bool
]


@pytest.mark.parametrize(("command", "name"), STRINGS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_an_empty_value_is_refused_and_is_not_the_current_folder(command, name):
    for more in ([f"--{name}", ""], [f"--{name}="]):
        assert f"--{name} is followed by an empty value" in refusal(command, more)
    with pytest.raises(InputError, match="--corpus is followed by an empty value"):
        parse(ShardConfig, None, ["--vocab", "v", "--out", "s", "--corpus", "a.txt", ""])


def test_a_list_that_is_given_twice_is_not_halved_unsaid(capsys):
    found = parse(ShardConfig, None, ["--corpus", "a.txt", "--vocab", "v", "--out", "s", "--corpus=b.txt"])
    assert found.corpus == ("b.txt",)
    assert "--corpus is given twice: the last one counts" in capsys.readouterr().err
    phases = ["--phase", "steps=1", "--phase", "steps=2"]
    assert len(parse(TrainConfig, None, [*COMMANDS[TrainConfig].split(), *phases]).phase) == 2


def test_directly_made_settings_are_checked_too():
    for wrong in (math.nan, math.inf, -1.0):
        with pytest.raises(InputError, match=r"--hours .* must be 0 or lie in"):
            TrainConfig(data=("s",), out=Path("run"), model="bert-tiny", hours=wrong)
        with pytest.raises(InputError, match=r"--mask_split .* must lie in"):
            TrainConfig(data=("s",), out=Path("run"), model="bert-tiny", mask_split=(0.5, wrong))


def test_numbers_are_told_from_what_stands_behind_them():
    assert parse(ShowConfig, None, ["--samples", "2", "store"]).store == Path("store")
    assert parse(ShowConfig, None, ["--seq-len=16", "store"]).seq_len == 16
    for top in (["--top", "2"], ["--top=2"]):
        assert parse(PredictConfig, None, ["hf", *top, "one", "two", "three"]).texts == ("one", "two", "three")
    assert (
        parse(TrainConfig, None, [*COMMANDS[TrainConfig].split(), "--lr", "None", "--mask_split", "1", "0"]).flags.lr
        is None
    )


def test_a_refused_number_ends_with_2_in_one_line_and_writes_nothing(tmp_path):
    for script, line in (
        ("vocab", "--corpus a.txt --out v --size 99999999999999999999999"),
        ("shard", "--corpus a.txt --vocab v --out s --shard_mb inf"),
    ):
        done = fork_script(script, *line.split(), cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert line.split()[-2] in done.stderr
    assert files_of(tmp_path) == {}


WHOLE = Span(128, 1000, 0.1, "linear", 0)


@pytest.mark.parametrize("name", [*INTEGERS, *NUMBERS])
def test_odd_numbers_of_a_phase_are_refused(name):
    for value in ODD:
        text = f"{name}={value}" + ("" if name == "steps" else ",steps=10")
        with pytest.raises(InputError, match="--phase") as refused:
            parse_span(text, WHOLE)
        assert name in str(refused.value) or "'5'" in str(refused.value)  # of "1,5"
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("weight", ["inf", "nan", "1e300", "-1", "0", "9" * 23, "", "1e400"])
def test_odd_weights_of_stores_are_refused_at_once(weight):
    with pytest.raises(InputError, match=r"the weight .* must lie in"):
        parse(TrainConfig, None, ["--data", f"a:{weight}", "--out", "run", "--model", "bert-tiny"])


WRONG: tuple[Any, ...] = (
    *(math.nan, math.inf, -math.inf, -2, "1e-4", "nan", "", True, [], [1, 2], {}, 10**23, 1e300, None),
)
NAMES = [
    *(*ds_values.NUMBERS, *ds_values.PAIRS, *sorted(ds_values.YES_OR_NO)),
    *("optimizer.type", *sorted(ds_values.OBJECTS), *sorted(ds_values.CHOICES)),
]


def with_value(path: Path, name: str, value: Any) -> Path:
    """A DeepSpeed JSON that is as it should be but for one value."""
    content: dict[str, Any] = {"optimizer": {"type": "lamb"}}
    section = content
    *sections, last = name.split(".")
    for part in sections:
        section = section.setdefault(part, {})
    section[last] = value
    path.write_text(json.dumps(content).replace("1e+300", "1e400"))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_odd_values_of_the_deepspeed_json_are_refused(tmp_path, name):
    fine = {None: ds_values.MAY_BE_NULL, True: ds_values.YES_OR_NO, "nan": {"optimizer.type"}, "": {"optimizer.type"}}
    fine["1e-4"] = {"optimizer.type"}
    for value in WRONG:
        if name in ds_values.OBJECTS and value == {}:
            continue
        if isinstance(value, str | bool | None) and name in fine.get(value, ()):
            continue  # a kind of optimizer is looked up elsewhere
        if value == {} and name not in ds_values.OBJECTS:
            continue  # no value at all
        path = with_value(tmp_path / "ds.json", name, value)
        with pytest.raises(InputError, match=rf"ds\.json: .*{name.split('.')[-1]}") as refused:
            resolve(path, Flags(), 1, "fp32")
        assert "\n" not in str(refused.value)


def test_a_key_twice_in_the_deepspeed_json_is_refused(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1, "stage": 2}}')
    with pytest.raises(InputError, match=r"ds\.json .*'stage' stands there twice"):
        resolve(tmp_path / "ds.json", Flags(), 1, "fp32")


def test_every_name_of_the_json_that_holds_a_number_or_a_choice_has_a_rule():
    known = {*NAMES, *(name.rsplit(".", 1)[0] for name in NAMES)}
    for prefix, names in (
        ("", ds_config.TOP_LEVEL),
        *((f"{name}.", keys) for name, keys in ds_config.SECTIONS.items()),
    ):
        without = {name for name in names if f"{prefix}{name}" not in known}
        assert without <= set(ds_config.FIXED)
    for kind in ds_config.OPTIMIZERS.values():
        assert {f"optimizer.params.{name}" for name in kind} <= known | {"optimizer.params.variant"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation False must be True: without it"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op sum must be 'mean': gradients are means"),
        (
            {"optimizer": {"type": "lamb", "params": {"min_ratio": 5, "max_ratio": 1}}},
            "min_ratio 5 is above max_ratio 1",
        ),
        ({"communication_data_type": "fp8"}, "communication_data_type 'fp8' must be one of fp32, fp16, bf16"),
        ({"zero_optimization": {"offload_param": {"device": "moon"}}}, "device 'moon' must be one of none, cpu, nvme"),
        ({"flops_profiler": {"enabled": "no"}}, "flops_profiler.enabled 'no' must be true or false"),
    ],
)
def test_choices_that_would_train_otherwise_or_end_in_a_traceback_are_refused(tmp_path, content, message):
    (tmp_path / "ds.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        resolve(tmp_path / "ds.json", Flags(), 1, "fp32")


def test_numbers_without_a_rule_are_finite_at_least(tmp_path):
    for value in (math.nan, math.inf, -3, 10**30):
        path = with_value(tmp_path / "ds.json", "aio.pages", value)
        with pytest.raises(InputError, match=r"aio\.pages"):
            resolve(path, Flags(), 1, "fp32")


def test_what_is_fine_stays_fine(tmp_path):
    for file in (ROOT / "ds_configs").glob("*.json"):
        resolve(file, Flags(), 1, "fp32")
    for name, value in {
        "zero_optimization.reduce_bucket_size": 5e8,
        "zero_optimization.overlap_comm": None,
        "communication_data_type": None,
        "gradient_allreduce_op": "mean",
        "managed_gradient_accumulation": True,
        "flops_profiler.enabled": True,
        "optimizer.params.bias_correction": None,
        "optimizer.params.betas": [0.9, 0.98],
        "optimizer.params.lr": "auto",
        "gradient_clipping": 0,
        "flops_profiler.module_depth": -1,
        "activation_checkpointing.number_checkpoints": None,
    }.items():
        resolve(with_value(tmp_path / "ds.json", name, value), Flags(), 1, "fp32")
