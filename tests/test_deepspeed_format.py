"""DeepSpeed's own checkpoints, written here by real ranks, come back exact; nothing they hold is run."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.serialization import get_safe_globals
from transformers import BertForMaskedLM, BertForPreTraining, PreTrainedModel

from data_prep.cli import ROOT, InputError
from pretrain.export import sources
from pretrain.export.command import ExportConfig, main
from pretrain.export.deepspeed_format import DeepSpeedCheckpoint, read
from pretrain.export.origin import find_tag
from pretrain.zero.engine import init_distributed, silence_libraries
from tests.ranks import run_ranks
from tests.tiny_hf import VOCABULARY, tiny_bert

STEPS = 3


class Wrapper(nn.Module):
    """As trainers do it: the model inside, under a name of theirs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.bert_model = model

    def forward(self, **inputs: Any) -> Any:
        return self.bert_model(**inputs)


def settings(stage: int, precision: str = "fp32", **changes: Any) -> dict[str, Any]:
    chosen = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    return chosen | ({} if precision == "fp32" else {precision: {"enabled": True}}) | changes


def train(world: int, out: Path, *arguments: Any) -> tuple[list[str], dict[str, torch.Tensor]]:
    """What `trainer` returns, after `world` ranks of it."""
    tiny_bert(out.parent / "start", arguments[1] if len(arguments) > 1 else BertForPreTraining)
    return run_ranks(world, trainer, out, *arguments)[0]


def trainer(
    out: Path,
    chosen: dict[str, Any],
    model_class: type[PreTrainedModel] = BertForPreTraining,
    wrapped: bool = False,
    frozen: bool = False,
    client_state: dict[str, Any] | None = None,
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Another trainer: a few steps of AdamW over two groups. Returns names and logits of the trained module."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    silence_libraries()
    init_distributed()
    type(get_accelerator()).is_fp16_supported = lambda self: True  # else refused on a CPU, where it works
    model: Any = model_class.from_pretrained(out.parent / "start")
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(not frozen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    module = Wrapper(model) if wrapped else model
    engine, *_ = deepspeed.initialize(model=module, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=chosen)
    torch.manual_seed(int(os.environ["RANK"]))
    for _ in range(STEPS):
        ids = torch.randint(5, len(VOCABULARY), (2, 16))
        labels = {"labels": ids}
        if model_class is BertForPreTraining:
            labels["next_sentence_label"] = torch.tensor([0, 1])
        engine.backward(engine(input_ids=ids, **labels).loss)
        engine.step()
    engine.save_checkpoint(str(out), client_state=client_state or {})
    engine.eval()
    with torch.no_grad():
        output = engine(input_ids=probe())
    return list(module.state_dict()), {key: value.float() for key, value in output.items() if key.endswith("logits")}


def tag_of(folder: Path) -> Path:
    tag = find_tag(folder)
    assert tag is not None
    return tag


def whole(folder: Path) -> DeepSpeedCheckpoint:
    return read(tag_of(folder))


def probe() -> torch.Tensor:
    return torch.randint(5, len(VOCABULARY), (2, 24), generator=torch.Generator().manual_seed(7))


def theirs(folder: Path) -> dict[str, torch.Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(folder))


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # zero_to_fp32 leaves frozen weights in 16 bit.
        torch.testing.assert_close(found[name], tensor.float(), rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Stage 2, two ranks, fp32, the module wrapped: the one that most tests look at."""
    out = tmp_path_factory.mktemp("stage2") / "checkpoint"
    train(2, out, settings(2), BertForPreTraining, True)
    return out


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The Hugging Face folder that the trainers began with."""
    return tiny_bert(tmp_path_factory.mktemp("start") / "hf", BertForPreTraining)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


SLOW = pytest.mark.slow
CASES = [  # ranks, stage, precision, other settings, frozen embeddings
    pytest.param(2, 1, "bf16", {}, True),
    pytest.param(2, 1, "fp32", {}, True, marks=SLOW),
    pytest.param(2, 3, "bf16", {}, False, marks=SLOW),
    pytest.param(1, 2, "bf16", {}, False, marks=SLOW),
    pytest.param(1, 3, "fp32", {}, False, marks=SLOW),
    pytest.param(2, 2, "fp16", {}, True, marks=SLOW),
    pytest.param(2, 3, "fp16", {}, False, marks=SLOW),
    pytest.param(3, 3, "fp32", {}, True, marks=SLOW),
    pytest.param(3, 1, "bf16", {}, False, marks=SLOW),
    pytest.param(2, 2, "fp32", {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, False, marks=SLOW),
    pytest.param(2, 3, "bf16", {"zero_optimization": {"stage": 3, "sub_group_size": 5000}}, True, marks=SLOW),
]


@pytest.mark.parametrize(("world", "stage", "precision", "changes", "frozen"), CASES)
def test_weights_are_those_of_zero_to_fp32(tmp_path, world, stage, precision, changes, frozen):
    out = tmp_path / "checkpoint"
    names, _ = train(world, out, settings(stage, precision, **changes), BertForPreTraining, False, frozen)
    found = whole(out)
    assert (found.stage, found.ranks, found.step) == (stage, world, STEPS)
    assert found.weights.keys() == set(names)
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}
    expected = theirs(out)
    if stage == 1 and frozen:  # these it leaves out
        frozen_names = found.weights.keys() - expected.keys()
        assert {name.rsplit("embeddings.")[0] for name in frozen_names} <= {"bert.", "cls.predictions.decoder.weight"}
        start = BertForPreTraining.from_pretrained(tmp_path / "start").state_dict()
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        expected |= {name: start[name].to(dtype).float() for name in frozen_names}
    same(found.weights, expected)


def test_stage_0_is_the_module(tmp_path):
    out = tmp_path / "checkpoint"
    train(2, out, settings(0))
    found = whole(out)
    saved = torch.load(found.folder / "mp_rank_00_model_states.pt", weights_only=True)
    assert (found.stage, found.step) == (0, STEPS)
    same(found.weights, dict(saved["module"]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_what_zero_to_fp32_cannot_read(tmp_path, stage):
    """bf16 without ZeRO has 16-bit weights only; BF16_Optimizer (fp32 accumulation) names no stage, but has fp32."""
    out = tmp_path / "checkpoint"
    train(2, out, settings(stage, "bf16", data_types={"grad_accum_dtype": "fp32"} if stage else {}))
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        theirs(out)
    found = whole(out)
    saved = torch.load(found.folder / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    for name, tensor in saved.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(found.weights[name].bfloat16(), tensor, rtol=0, atol=0)
    finer = any(not torch.equal(found.weights[name], tensor.float()) for name, tensor in saved.items())
    assert finer == bool(stage)


@SLOW
def test_deepspeed_is_not_imported(folder):
    """By itself, in a process where no test has imported it."""
    program = (
        "import sys; from pathlib import Path; from pretrain.export.origin import find_tag;"
        "from pretrain.export.deepspeed_format import read;"
        "print(len(read(find_tag(Path(sys.argv[1]))).weights), 'deepspeed' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["48", "False"]


class Hostile:
    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple]:
        return self.call


HOSTILE: dict[str, tuple[Any, Any]] = {
    "posix.system": (os.system, "touch {}"),
    "eval": (eval, "open({!r}, 'w')"),
    "commands.Popen": (subprocess.Popen, ["touch", "{}"]),  # the name that pickle writes for Python 2
    "torch.hub.load": (torch.hub.load, "{}"),
    "data_prep.files.sync_folder": (None, "{}"),  # even our own
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("where", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_a_program_is_refused_by_name_and_not_run(copy, tmp_path, name, where):
    from data_prep.files import sync_folder

    made = tmp_path / "made"
    function, argument = HOSTILE[name]
    filled = [word.format(str(made)) for word in argument] if isinstance(argument, list) else argument.format(str(made))
    path = tag_of(copy) / where
    content = torch.load(path, weights_only=False)
    torch.save(content | {"lr_scheduler": Hostile(function or sync_folder, filled)}, path)
    before = set(get_safe_globals())
    with pytest.raises(InputError, match=rf"{re.escape(where)} is refused: it calls {re.escape(name)}"):
        whole(copy)
    assert not made.exists()
    assert set(get_safe_globals()) == before
    if name == "posix.system":  # it is a real one
        torch.load(path, weights_only=False)
        assert made.exists()


def test_a_bare_pickle_is_not_even_looked_into(copy, tmp_path):
    path = tag_of(copy) / "mp_rank_00_model_states.pt"
    path.write_bytes(pickle.dumps(Hostile(os.system, f"touch {tmp_path}/made")))
    with pytest.raises(InputError, match=r"model_states\.pt is not a whole file of torch\.save"):
        whole(copy)
    assert not (tmp_path / "made").exists()


def test_what_others_allow_for_themselves_is_not_allowed_here(copy):
    path = tag_of(copy) / "mp_rank_00_model_states.pt"
    torch.save(torch.load(path, weights_only=False) | {"client": Hostile(os.getcwd)}, path)
    with (
        torch.serialization.safe_globals([(Hostile, "posix.getcwd"), InputError]),
        pytest.raises(InputError, match=r"posix\.getcwd"),
    ):
        whole(copy)


@pytest.mark.slow
def test_ordinary_client_state_is_read_over(tmp_path):
    import argparse
    import random

    import numpy as np

    out = tmp_path / "checkpoint"
    client = {
        "args": argparse.Namespace(lr=1.0, path=Path("data")),
        "numpy": (np.random.get_state(), np.float64(1), np.arange(3)),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "step": 3,
    }
    train(2, out, settings(1), BertForPreTraining, False, False, client)
    same(whole(out).weights, theirs(out))


def test_a_missing_rank_is_named(copy):
    (tag_of(copy) / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(InputError, match=r"optim_states\.pt of rank 1 is missing \(1 of 2 are there\)"):
        whole(copy)
    (tag_of(copy) / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(InputError, match=r"has no .*which hold the fp32 weights"):
        whole(copy)
    (copy / "latest").write_text("global_step9")
    with pytest.raises(InputError, match="names 'global_step9', which is not there"):
        find_tag(copy)


def test_files_of_another_run_are_noticed(copy):
    tag = tag_of(copy)
    shutil.copy(tag / "zero_pp_rank_1_mp_rank_00_optim_states.pt", tag / "zero_pp_rank_2_mp_rank_00_optim_states.pt")
    with pytest.raises(InputError, match="of 3 ranks for 2"):
        read(tag)
    (tag / "zero_pp_rank_2_mp_rank_00_optim_states.pt").rename(tag / "zero_pp_rank_0_mp_rank_01_optim_states.pt")
    with pytest.raises(InputError, match="tensor-parallel"):
        read(tag)


def damage_flip(path: Path) -> None:
    """One bit in the middle of the largest record, which is a tensor's."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[record.header_offset + 200 + record.file_size // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flip": damage_flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut at the end": lambda path: os.truncate(path, path.stat().st_size - 9),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("weights"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(copy, damage):
    path = tag_of(copy) / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    DAMAGES[damage](path)
    with pytest.raises(InputError, match=r"rank_1_mp_rank_00_optim_states\.pt is (damaged|not a whole file)"):
        whole(copy)


def test_files_of_two_saves_are_noticed(copy):
    """What a crash between the files of one save leaves behind: every file is whole, but not of one step."""
    path = tag_of(copy) / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = torch.load(path, weights_only=False)
    for window in content["optimizer_state_dict"]["single_partition_of_fp32_groups"]:
        window.data += 0.01
    torch.save(content, path)
    with pytest.raises(InputError, match=r"the fp32 weights of .* are not the module's; files of two saves"):
        whole(copy)
    *windows, _ = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    for window in windows:
        window.data -= 0.01
    content["optimizer_state_dict"]["single_partition_of_fp32_groups"] = windows
    torch.save(content, path)
    with pytest.raises(InputError, match="not laid out as DeepSpeed does it"):
        whole(copy)


def test_numbers_that_do_not_fit_are_told(copy):
    path = tag_of(copy) / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=True)
    next(iter(content["param_shapes"]))["another"] = torch.Size([1000])
    torch.save(content, path)
    with pytest.raises(InputError, match=r"group 0 needs [\d,]+ elements for its shapes, the files hold [\d,]+"):
        whole(copy)
    torch.save({"module": {}}, path)
    with pytest.raises(InputError, match="not laid out as DeepSpeed does it"):
        whole(copy)
    torch.save([1], path)
    with pytest.raises(InputError, match="holds a list"):
        whole(copy)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_export_gives_the_trained_module_s_logits(tmp_path, start, stage):
    source, out = tmp_path / "checkpoint", tmp_path / "hf"
    _, logits = train(2, source, settings(stage), BertForPreTraining, True)
    main(ExportConfig(source, out, config=start))
    model = BertForPreTraining.from_pretrained(out).eval()
    with torch.no_grad():
        found = model(input_ids=probe())
    assert len(logits) == 2
    for name, expected in logits.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)


def test_export_of_a_wrapped_model_and_of_its_folder_again(folder, start, tmp_path):
    """The tag folder itself, a lone config.json, the vocabulary elsewhere; then from folder to folder."""
    shutil.copy(start / "config.json", tmp_path / "bert.json")
    main(ExportConfig(tag_of(folder), tmp_path / "hf", config=tmp_path / "bert.json", vocab=start))
    main(ExportConfig(tmp_path / "hf", tmp_path / "mlm", head="mlm"))
    weights = whole(folder).weights
    for name, parameter in BertForMaskedLM.from_pretrained(tmp_path / "mlm").named_parameters():
        torch.testing.assert_close(parameter.data, weights[f"bert_model.{name}"], rtol=0, atol=0)
    with pytest.raises(InputError, match=r"lacks bert\.pooler\.dense\.bias.*which --head pretraining needs"):
        main(ExportConfig(tmp_path / "mlm", tmp_path / "none", head="pretraining"))
    main(ExportConfig(tmp_path / "mlm", tmp_path / "base", head="base"))
    main(ExportConfig(tmp_path / "base", tmp_path / "again"))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_export_of_a_masked_lm(tmp_path, start):
    source = tmp_path / "checkpoint"
    _, logits = train(2, source, settings(2, "bf16"), BertForMaskedLM)
    shutil.copytree(start, source, dirs_exist_ok=True)  # as transformers' Trainer leaves it
    (source / "model.safetensors").unlink()
    main(ExportConfig(source, tmp_path / "hf", head="mlm"))
    with torch.no_grad():
        found = BertForMaskedLM.from_pretrained(tmp_path / "hf").eval()(input_ids=probe()).logits
    torch.testing.assert_close(found, logits["logits"], rtol=0, atol=3e-2)  # theirs computed in bf16


def test_what_a_checkpoint_cannot_say_is_asked_for(folder, start, tmp_path):
    shutil.copy(start / "config.json", tmp_path / "config.json")
    with pytest.raises(InputError, match="holds weights only; say of which model, to export: --config"):
        main(ExportConfig(folder, tmp_path / "hf"))
    with pytest.raises(InputError, match=r"no tokenizer\.json.*--vocab"):
        main(ExportConfig(folder, tmp_path / "hf", config=tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "vocab_size": 26}')
    with pytest.raises(InputError, match="only post-LayerNorm BERT"):
        main(ExportConfig(folder, tmp_path / "hf", config=tmp_path, vocab=start))
    with pytest.raises(InputError, match="neither a run folder with checkpoints"):  # config.json alone is no model
        main(ExportConfig(tmp_path, tmp_path / "hf"))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"pytorch_model\.bin is no file of torch\.save"):
        main(ExportConfig(tmp_path, tmp_path / "hf", vocab=start))


def changed(weights: dict[str, torch.Tensor], **changes: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}


def test_names_are_matched_strictly(start):
    model = BertForPreTraining.from_pretrained(start)
    weights, meaning = dict(model.state_dict()), sources.read_config(start)
    origin = Path("there")
    parameters = dict(model.named_parameters())
    for prefix in ("", "module.", "module.model.", "bert_model.", "bert."):
        prefixed = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
        same(sources.matched(origin, prefixed, meaning), parameters)
    encoder = {name.removeprefix("bert."): tensor for name, tensor in weights.items() if name.startswith("bert.")}
    assert len(sources.matched(origin, encoder, meaning)) == len(encoder)
    # The decoder's copies, the buffers and the names of older versions.
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for name, tensor in weights.items()}  # fmt: skip
    old |= {"bert.embeddings.position_ids": torch.arange(64)[None]}
    same(sources.matched(origin, old, meaning), parameters)
    bias_as_decoder = changed(weights, **{"cls.predictions.bias": None})
    same(sources.matched(origin, bias_as_decoder, meaning), parameters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls.predictions.decoder.weight": torch.zeros(26, 32)}, r"decoder\.weight differs from bert\.embeddings"),
        ({"cls.predictions.decoder.bias": torch.ones(26)}, r"decoder\.bias differs"),
        ({"classifier.weight": torch.zeros(2, 32), "lm.x": torch.zeros(1)}, r"has not: classifier\.weight, lm\.x"),
        ({"bert.encoder.layer.1.output.dense.bias": None}, r"lacks bert\.encoder\.layer\.1\.output\.dense\.bias"),
        ({"bert.encoder.layer.1.output.dense.bias": torch.zeros(33)}, r"dense\.bias is \[33\].*says \[32\]"),
        ({"bert.embeddings.word_embeddings.weight": None}, "holds 0 tensors called"),
        ({"more.embeddings.word_embeddings.weight": torch.zeros(26, 32)}, "holds 2 tensors called"),
    ],
)
def test_names_that_do_not_fit_are_told(start, changes, message):
    weights = dict(BertForPreTraining.from_pretrained(start).state_dict())
    with pytest.raises(InputError, match=message):
        sources.matched(Path("there"), changed(weights, **changes), sources.read_config(start))


def test_a_padded_vocabulary_is_cut(start, tmp_path):
    """Trainers round the embedding up; config.json and the tokenizer know the true size."""
    folder = tmp_path / "padded"
    model = BertForPreTraining.from_pretrained(start)
    model.resize_token_embeddings(32, mean_resizing=False)
    model.save_pretrained(folder)
    main(ExportConfig(folder, tmp_path / "hf", config=start, vocab=start))
    exported = BertForPreTraining.from_pretrained(tmp_path / "hf")
    same(dict(exported.named_parameters()), dict(BertForPreTraining.from_pretrained(start).named_parameters()))
