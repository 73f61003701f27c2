"""What only a GPU can show: the kernels, the numbers, and that the host never waits inside a step. docs/gpu.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from data_prep.cli import ROOT
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from pretrain.attention import SeqLens, use_varlen_attention, varlen_attention
from pretrain.data import collate
from pretrain.model import Batch, PretrainingModule, compile_layers, parameter_groups
from pretrain.zero.lamb import Lamb
from tests.partitions import partition_of
from tests.stores import random_documents, store_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LENGTHS = (100, 100, 37, 5, 1)


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    store = store_of(tmp_path_factory.mktemp("store"), random_documents(60, vocab_size=128), vocab_size=128)
    epoch = Mixture([store], [1.0], seq_len=64, objective="nsp", seed=2).epoch(0)
    return collate((store,), epoch.samples_at(np.arange(24)), Masking())


def model(dtype: torch.dtype, device: str = "cuda", dropout: float = 0.0) -> BertForPreTraining:
    config = BertConfig(
        vocab_size=128, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=256,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(3)
    made = BertForPreTraining(config)
    use_varlen_attention(made)
    return made.to(device).to(dtype)  # type: ignore[arg-type]


def losses_and_gradients(made: BertForPreTraining, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    losses = PretrainingModule(made)(batch.to(made.device))
    (losses.mlm + losses.nsp).backward()
    gradients = {name: parameter.grad.double().cpu() for name, parameter in made.named_parameters()}  # type: ignore[union-attr]
    return torch.stack(losses).double().cpu(), gradients


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 2e-6)])
@pytest.mark.parametrize("dimensions", [64, 24, 26])  # of a head; flash attention knows no 26
def test_attention_follows_float64(dtype, bound, dimensions):
    generator = torch.Generator().manual_seed(1)
    total = sum(LENGTHS)
    inputs = [torch.randn(total, 2, dimensions, generator=generator).to(dtype) for _ in range(3)]
    weight = torch.randn(total, 2, dimensions, generator=generator).to(dtype)
    bounds = np.cumsum([0, *LENGTHS])

    def run(device: str, kind: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (x.to(device=device, dtype=kind).requires_grad_() for x in inputs)
        seqlens = SeqLens.from_bounds(bounds).to(torch.device(device))
        out = varlen_attention(q, k, v, seqlens, seqlens, 0.125)
        out.backward(weight.to(device=device, dtype=kind))
        return [out.detach(), q.grad, k.grad, v.grad]  # type: ignore[list-item]

    for found, expected in zip(run("cuda", dtype), run("cpu", torch.float64), strict=True):
        assert relative(found, expected) < bound


def test_float32_equals_the_cpu(batch):
    expected, expected_gradients = losses_and_gradients(model(torch.float32, "cpu"), batch)
    found, gradients = losses_and_gradients(model(torch.float32), batch)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-5, atol=0)
    for name, gradient in expected_gradients.items():
        if not name.endswith("attention.self.key.bias"):  # truly 0
            assert relative(gradients[name], gradient) < 1e-4, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_follows_float32(batch, dtype):
    expected, expected_gradients = losses_and_gradients(model(torch.float32, "cpu"), batch)
    found, gradients = losses_and_gradients(model(dtype), batch)
    torch.testing.assert_close(found[:2], expected[:2], rtol=2e-2, atol=0)
    for name, gradient in expected_gradients.items():
        if not name.endswith(("attention.self.key.bias", "seq_relationship.bias")):
            assert relative(gradients[name], gradient) < 0.1, name


def test_compiled_layers_follow_float32(batch):
    made = model(torch.float32)
    compile_layers(made)
    expected, expected_gradients = losses_and_gradients(model(torch.float32, "cpu"), batch)
    found, gradients = losses_and_gradients(made, batch)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-5, atol=0)
    for name, gradient in expected_gradients.items():
        if not name.endswith("attention.self.key.bias"):
            assert relative(gradients[name], gradient) < 1e-4, name


def test_the_host_never_waits_inside_a_step(batch):
    module = PretrainingModule(model(torch.bfloat16, dropout=0.1)).train()
    optimizer = torch.optim.AdamW(parameter_groups(module, 0.01), lr=1e-4, fused=True)

    def step() -> None:
        losses = module(batch.pin_memory().to(torch.device("cuda")))
        (losses.mlm / 7 + losses.nsp / 3).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # kernels are loaded, the optimizer's state is made
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def lamb_steps(device: str, steps: int = 4, quiet: bool = False) -> torch.Tensor:
    """Weights after LAMB over two slices of one flat buffer, with the same gradients on any device."""
    generator = torch.Generator().manual_seed(5)
    start, *gradients = (torch.randn(50_000, generator=generator) for _ in range(steps + 1))
    buffer = torch.nn.Parameter(start.to(device))
    optimizer = Lamb([{"params": [buffer]}], lr=1e-2)
    optimizer.set_partition(partition_of([buffer], [{"a": 30_000, "b": 20_000}], optimizer))
    for number, gradient in enumerate(gradients):
        buffer.grad = gradient.to(device)
        torch.cuda.set_sync_debug_mode("error" if quiet and number else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return buffer.detach().cpu()


def test_lamb_equals_the_cpu_and_never_waits():
    torch.testing.assert_close(lamb_steps("cuda", quiet=True), lamb_steps("cpu"), rtol=1e-5, atol=1e-7)


def trained(store: Path, out: Path, *flags: str) -> list[dict]:
    """metrics.jsonl of a run of the trainer on one GPU, without its evaluations."""
    words = f"--data {store} --out {out} --model bert-tiny --seq_len 64 --steps 30 --global_batch 32 "
    words += "--micro_batch 8 --eval_every 0 --eval_samples 64 --save_every 15 --log_every 1 --seed 1"
    command = [sys.executable, "-m", "pretrain.train", *words.split(), *flags]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}  # conftest.py's
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] != "eval"]


@pytest.mark.parametrize("zero", ["1", "2", "3"])
@pytest.mark.parametrize(("precision", "optimizer", "lr"), [("bf16", "lamb", "1e-2"), ("fp16", "adamw", "1e-3")])
def test_the_trainer_learns_and_resumes(tmp_path, zero, precision, optimizer, lr):
    documents = random_documents(200, vocab_size=128)
    store = store_of(tmp_path, documents, vocab_size=128, held_out=range(20)).folder
    flags = ["--zero", zero, "--precision", precision, "--optimizer", optimizer, "--lr", lr, "--dropout", "0"]
    lines = trained(store, tmp_path / "run", *flags)
    losses = [line["mlm_loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.3
    skips = [line for line in lines if line.get("event") == "skip"]
    assert len(skips) <= 3, "no more than the scale's first steps"

    again = trained(store, tmp_path / "again", *flags, "--resume", str(tmp_path / "run/checkpoints/step-0000015"))
    (last,) = (line["mlm_loss"] for line in again if line["kind"] == "train" and line["step"] == 30)
    assert last == pytest.approx(losses[-1], rel=1e-2)
