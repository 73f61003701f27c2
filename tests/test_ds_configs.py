"""Every file of ds_configs/ is resolved, accepted by DeepSpeed, and takes an optimizer step on one CPU rank.

The step is AdamW's, for LAMB too: what counts is that DeepSpeed takes the settings. tests/test_lamb.py tests LAMB."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.settings.ds_config import Flags, resolve

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "ds_configs").glob("*.json"))
EXPECTED = {"auto", "base_128", "base_512", "cpu", "large_128", "large_512"}

# Stands alone, as DeepSpeed takes a process for itself: settings from stdin, a line with the weight's change each.
TAKE_A_STEP = """
import json, sys
import torch, deepspeed
from pretrain.zero.engine import import_muon_uncompiled, init_distributed

init_distributed()
import_muon_uncompiled()
for name, settings in json.load(sys.stdin).items():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    params = {name: settings["optimizer"]["params"][name] for name in ("betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **params)  # a step that bf16 weights can show
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    dtype = torch.bfloat16 if settings["bf16"]["enabled"] else torch.float32
    before = model.weight.detach().clone()
    for _ in range(settings["gradient_accumulation_steps"]):
        engine.backward(engine(torch.ones(settings["train_micro_batch_size_per_gpu"], 4, dtype=dtype)).square().mean())
        engine.step()
    change = (model.weight.detach() - before).float().abs().max().item()
    print(json.dumps([name, engine.global_steps, engine.zero_optimization_stage(), change]))
assert "torch._inductor.compile_fx" not in sys.modules, "a compiler that nobody asked for was loaded"
"""


def test_the_files_that_the_documentation_names_are_there():
    assert {path.stem for path in FILES} >= EXPECTED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("world_size", [1, 8, 64])
def test_files_resolve_on_any_usual_number_of_ranks(path, world_size):
    ds_config = resolve(path, Flags(), world_size, "bf16")
    assert ds_config.global_batch == ds_config.micro_batch * ds_config.accumulation * world_size
    assert ds_config.ranks == world_size
    assert "auto" not in json.dumps(ds_config.content)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_precision_is_open_except_on_cpu(path):
    open_to = {resolve(path, Flags(), 1, default).precision for default in ("fp32", "bf16", "fp16")}
    assert open_to == ({"fp32"} if path.stem == "cpu" else {"fp32", "bf16", "fp16"})


def test_auto_leaves_everything_to_the_command_line():
    flags = Flags(96, 8, 3e-4, 0.1, 0.5, "fp32", 2, "adamw")
    ds_config = resolve(ROOT / "ds_configs/auto.json", flags, 4, "bf16")
    assert (ds_config.global_batch, ds_config.micro_batch, ds_config.accumulation) == (96, 8, 3)
    assert (ds_config.lr, ds_config.weight_decay, ds_config.clip) == (3e-4, 0.1, 0.5)
    assert (ds_config.optimizer, ds_config.precision, ds_config.stage) == ("adamw", "fp32", 2)


def in_two_parts(path: Path) -> Flags:
    """Two micro-batches a step, however large the batch is."""
    return Flags(micro_batch=resolve(path, Flags(), 1, "fp32").global_batch // 2)


def test_large_models_have_the_published_recipe_of_lamb():
    for name, batch, lr in (("large_128", 65536, 6e-3), ("large_512", 32768, 4e-3)):
        ds_config = resolve(ROOT / f"ds_configs/{name}.json", Flags(), 64, "bf16")
        assert (ds_config.optimizer, ds_config.global_batch, ds_config.lr) == ("lamb", batch, lr)


@pytest.mark.slow
def test_deepspeed_accepts_them_and_takes_a_step():
    resolved = {
        f"{path.stem} {precision}": resolve(path, in_two_parts(path), 1, precision).content
        for path in FILES
        for precision in ("fp32", "bf16")
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", TAKE_A_STEP],
        input=json.dumps(resolved),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    steps = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('["')]
    assert [name for name, *_ in steps] == list(resolved)
    for name, taken, stage, change in steps:
        assert (taken, stage) == (1, 1), name
        assert 0.09 < change < 0.11, f"{name}: the first step of AdamW moves a weight by the learning rate"
