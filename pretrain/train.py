"""Pretrain a BERT from token stores.

    deepspeed launch/pretrain.sh --data STORE --out RUN --model bert-base           (clusters: --hostfile H)
    RANKS=2 bash launch/pretrain.sh --data runs/wiki/store --out runs/wiki/run --model bert-mini --steps 1000

One process a rank. Leaves in RUN: config.json (everything needed to repeat the run), metrics.jsonl, log.txt,
tensorboard/, vocab/ and checkpoints/. The same command again continues from the newest whole checkpoint.
"""

import os
import platform
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from transformers import BertConfig, BertForPreTraining
from transformers.utils import logging as transformers_logging

from data_prep.cli import ROOT, InputError, parse, print_json  # first: it finds the project's packages
from data_prep.draws import draw
from data_prep.files import write_folder, write_json
from data_prep.masking import Masking
from data_prep.pairs import Mixture
from data_prep.store import Store
from pretrain import checkpoint
from pretrain.checkpoint import Identity, RunState
from pretrain.config import TrainConfig
from pretrain.data import Evaluation, SampleStream, feed, prefetch
from pretrain.ds_config import precision_of, resolve
from pretrain.lamb import VARIANTS, Lamb
from pretrain.meter import Meter
from pretrain.model import MAX_POSITIONS, Losses, Pretrainer, build, identity_of, parameter_groups
from pretrain.partition import Partition, bind, gradient_norm
from pretrain.schedule import lr_multiplier


def main(argv: list[str] | None = None) -> None:
    """Entry of every rank. Exit codes as in data_prep/cli.py; only rank 0 speaks."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        train(parse(TrainConfig, __doc__, argv))
    except InputError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def train(config: TrainConfig) -> RunState:
    """Run, or continue, one pretraining. Collective over the ranks that the launcher started.

    Raises
    ------
    InputError: anything wrong with the stores, settings or the run folder; nothing has been written then.
    """
    quiet()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    stores = open_stores(config)
    settings = resolve(config.ds_config, config.flags, world, default_precision())
    check_precision(settings)
    model = build(
        config.model, config.init_from, stores[0].vocab_size, config.dropout, config.seed, config.objective == "nsp"
    )
    check_lengths(config, model.config)
    weights = [weight for _, weight in config.weighted_stores]
    mixture = Mixture(stores, weights, config.seq_len, config.objective, config.seed)
    resumed_from = find_checkpoint(config)
    if config.dry_run:
        print_json({"settings": settings, "parameters": model.num_parameters(), "resume": str(resumed_from or "")})
        return RunState()

    join_ranks()
    rank = dist.get_rank()
    if rank == 0:
        prepare_folder(config, settings, stores)
    dist.barrier()
    engine, partition = start_engine(model, settings)
    identity = Identity(identity_of(model.config), stores[0].vocab_sha256, stores[0].vocab_size)
    state = RunState()
    if resumed_from is not None:
        state = checkpoint.load(resumed_from, partition, engine, identity)
    meter = Meter(config.out, model.config, config.steps, state.step, engine.device)
    try:
        if resumed_from is not None:
            meter.event(state.step, "resume", checkpoint=resumed_from.name)
        held_out = held_out_samples(config, stores, settings["train_micro_batch_size_per_gpu"])
        return loop(config, settings, engine, partition, mixture, held_out, state, meter, identity)
    finally:
        meter.close()


def loop(
    config: TrainConfig,
    settings: dict[str, Any],
    engine: Any,
    partition: Partition,
    mixture: Mixture,
    held_out: Evaluation | None,
    state: RunState,
    meter: Meter,
    identity: Identity,
) -> RunState:
    """Train from `state` to the last step; every rank takes part in everything."""
    rank, world = dist.get_rank(), dist.get_world_size()
    accumulation = settings["gradient_accumulation_steps"]
    peak_lr = settings["optimizer"]["params"]["lr"]
    micro_batches = prefetch(
        feed(
            SampleStream(mixture, state.position),
            Masking(),
            settings["train_batch_size"],
            settings["train_micro_batch_size_per_gpu"],
            rank,
            world,
        )
    )
    saved_at = state.step if checkpoint.present(config.out) else -1
    while state.step < config.steps:
        lr = peak_lr * lr_multiplier(config.schedule, state.step, config.warmup_steps, config.steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        for number in range(accumulation):
            batch, counts = next(micro_batches)
            # Dropout is a function of (seed, step, micro-batch, rank): no generator state has to be saved.
            torch.manual_seed(int(draw(config.seed, state.step + state.skipped, number, rank)[0] >> np.uint64(1)))
            losses: Losses = engine(batch.to(engine.device))
            # Divided by the counts of the whole step; times world, since DeepSpeed averages gradients over ranks.
            loss = losses.mlm / counts.masked + losses.nsp / max(counts.pairs, 1)
            engine.backward(loss * world, scale_wrt_gas=False)
            if number == accumulation - 1:
                grad_norm = gradient_norm(engine)
            engine.step()  # DeepSpeed acts on the last micro-batch only
            meter.add_losses(losses)
        meter.add_step(counts)
        happened = not getattr(engine.optimizer, "overflow", False)
        state = RunState(
            state.step + happened,
            state.skipped + (not happened),
            state.samples + counts.samples,
            state.tokens + counts.tokens,
            counts.end,
        )
        if not happened:
            meter.event(state.step, "skip", loss_scale=engine.optimizer.loss_scaler.cur_scale)
            continue
        last = state.step == config.steps
        if state.step % config.log_every == 0 or last:
            meter.write(state.step, state.samples, state.tokens, lr, grad_norm())
        if held_out is not None and (last or (config.eval_every and state.step % config.eval_every == 0)):
            evaluate(engine, held_out, meter, state.step)
        if last or (config.save_every and state.step % config.save_every == 0):
            save(config, settings, engine, partition, state, meter, identity)
            saved_at = state.step
    assert saved_at == state.step
    return state


def evaluate(engine: Any, held_out: Evaluation, meter: Meter, step: int) -> dict[str, Any]:
    """Losses and accuracies on the held-out samples; sums in the order of batches, so no world size changes them."""
    meter.pause()
    sums = torch.zeros(held_out.batch_count, len(Losses._fields), dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for number, batch in held_out.batches:
            losses = engine(batch.to(engine.device))
            if number < held_out.batch_count:
                sums[number] = torch.stack(losses)
    engine.train()
    dist.all_reduce(sums)
    line = meter.write_evaluation(step, sums.sum(0), held_out.masked, held_out.pairs)
    meter.unpause()
    return line


def save(
    config: TrainConfig,
    settings: dict[str, Any],
    engine: Any,
    partition: Partition,
    state: RunState,
    meter: Meter,
    identity: Identity,
) -> None:
    """Write a checkpoint and say so."""
    meter.pause()
    folder = checkpoint.save(config.out, partition, engine, state, identity, settings, config.keep)
    meter.event(state.step, "save", checkpoint=folder.name)
    meter.unpause()


def open_stores(config: TrainConfig) -> list[Store]:
    """Open --data; all stores must share one tokenizer."""
    first, *others = [folder for folder, _ in config.weighted_stores]
    opened = [Store.open(first)]
    return opened + [Store.open(folder, opened[0].vocab_sha256) for folder in others]


def held_out_samples(config: TrainConfig, stores: list[Store], batch_size: int) -> Evaluation | None:
    """The evaluation set; None where none is wanted, or no store holds out enough documents to make pairs of."""
    least = 2 if config.objective == "nsp" else 1
    evaluated = [store for store in stores if store.manifest["counts"]["held_out_documents"] >= least]
    if not config.eval_samples or not evaluated:
        return None
    mixture = Mixture(evaluated, [1.0] * len(evaluated), config.seq_len, config.objective, seed=0, held_out=True)
    return Evaluation.of(mixture, config.eval_samples, batch_size, dist.get_rank(), dist.get_world_size())


def find_checkpoint(config: TrainConfig) -> Path | None:
    """Where to continue; None for a new run. A folder that holds checkpoints is never trained from zero.

    Raises
    ------
    InputError: --resume never on a run with checkpoints, a PATH that is no checkpoint, none that is whole.
    """
    if config.resume == "never":
        if checkpoint.present(config.out):
            raise InputError(
                f"--resume never, but {config.out} holds checkpoints; choose another --out or --resume auto"
            )
        return None
    if config.resume == "auto":
        return checkpoint.newest_whole(config.out)
    checkpoint.read_manifest(Path(config.resume))
    return Path(config.resume)


def check_lengths(config: TrainConfig, model: BertConfig) -> None:
    """Refuse samples that are longer than the model's positions."""
    if config.seq_len > model.max_position_embeddings:
        raise InputError(
            f"--seq_len {config.seq_len} is beyond the model's {model.max_position_embeddings} positions; "
            f"give at most {model.max_position_embeddings} (presets: {MAX_POSITIONS})"
        )


def default_precision() -> str:
    """bf16 where the GPU has it, else fp32."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def check_precision(settings: dict[str, Any]) -> None:
    """Refuse fp16 where DeepSpeed's accelerator does."""
    if precision_of(settings) == "fp16" and not get_accelerator().is_fp16_supported():
        raise InputError("fp16 needs a GPU; use --precision bf16 or fp32 on this machine")


def quiet() -> None:
    """Leave the console to what a person wants to read."""
    deepspeed.utils.logger.setLevel("ERROR")
    # DeepSpeed 0.19.8 calls names that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*is deprecated")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def join_ranks() -> None:
    """Start torch.distributed: gloo on CPU, NCCL on GPUs. A single process needs no launcher."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")
    # Otherwise DeepSpeed compiles an inference-only kernel at every first start, and a killed build hangs the next run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = get_accelerator().communication_backend_name() if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)


def start_engine(model: BertForPreTraining, settings: dict[str, Any]) -> tuple[Any, Partition]:
    """DeepSpeed's engine around the model, with our optimizer, and where its slices lie."""
    optimizer = make_optimizer(model, settings["optimizer"])
    engine, *_ = deepspeed.initialize(
        model=Pretrainer(model),
        optimizer=optimizer,
        config={key: value for key, value in settings.items() if key != "optimizer"},
    )
    partition = bind(engine, model)
    if isinstance(optimizer, Lamb):
        optimizer.bind(partition)
    return engine, partition


def make_optimizer(model: BertForPreTraining, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW or LAMB over the parameter groups, as the resolved JSON has it.

    Raises
    ------
    InputError: an unknown variant of LAMB.
    """
    params = dict(settings["params"])
    groups = parameter_groups(model, params.pop("weight_decay"))
    if settings["type"] == "adamw":
        return torch.optim.AdamW(groups, **params, fused=True)
    variant = params.pop("variant")
    if variant not in VARIANTS:
        raise InputError(f"optimizer.params.variant {variant!r}; known: {', '.join(VARIANTS)}")
    given = {name: value for name, value in params.items() if value is not None}
    return Lamb(groups, **VARIANTS[variant] | given)


def prepare_folder(config: TrainConfig, settings: dict[str, Any], stores: list[Store]) -> None:
    """Write what is needed to repeat the run, and the tokenizer that export will need."""
    config.out.mkdir(parents=True, exist_ok=True)
    record = {
        "train": config.record(),
        "deepspeed": settings,
        "stores": [{"folder": str(store.folder), "identity": store.identity} for store in stores],
        "vocab_sha256": stores[0].vocab_sha256,
        "vocab_size": stores[0].vocab_size,
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers", "numpy")},
        "python": platform.python_version(),
        "git": git_state(),
    }
    write_json(config.out / "config.json", record)

    def copy_vocab(folder: Path) -> None:
        shutil.copytree(stores[0].folder / "vocab", folder, dirs_exist_ok=True)

    write_folder(config.out / "vocab", copy_vocab)


def git_state() -> dict[str, Any]:
    """Commit and cleanliness of the checkout that the code runs from; empty outside of one."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": head, "clean": not changes}


if __name__ == "__main__":
    main()
