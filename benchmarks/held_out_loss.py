"""The loss of a Hugging Face folder on a store's held-out documents, measured as a run measures its own.

    python benchmarks/held_out_loss.py HF --store STORE [--seq_len 128 --samples 2048]

The same samples and masks (15 % of the tokens, 80/10/10) for every model whose tokenizer is the store's, whoever
trained it: losses compare. One JSON line: nats a masked token, accuracy, tokens.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import torch
import tyro

from benchmarks.machine import machine
from data_prep.cli import parse
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.evaluation import HeldOutSet
from pretrain.model import PretrainingModule, build_model


@dataclass(frozen=True)
class BenchmarkConfig:
    """Which model, on which documents."""

    hf: tyro.conf.Positional[Path]
    """folder of the model"""
    store: Path
    """store whose held-out documents are asked"""
    seq_len: int = 128
    samples: int = 2_048
    batch: int = 32


class HeldOutScore(NamedTuple):
    """What a model makes of the held-out documents."""

    mlm_loss: float  # nats a masked token
    mlm_acc: float
    masked: int  # tokens


def main(config: BenchmarkConfig) -> None:
    score = held_out_score(config.hf, config.store, config.seq_len, config.samples, config.batch)
    settings = {"model": config.hf.name, "seq_len": config.seq_len, "samples": config.samples}
    result = {"name": "held_out_loss", "figures": score._asdict(), "ratio": None, "settings": settings}
    print(json.dumps(result | machine("torch", "transformers")))


@torch.no_grad()
def held_out_score(hf: Path, store_folder: Path, seq_len: int, samples: int, batch: int) -> HeldOutScore:
    """Return the score on the samples that an evaluation of a run of objective mlm has."""
    store = Store.open(store_folder)
    mixture = Mixture([store], [1.0], seq_len=seq_len, objective="mlm", seed=0, held_out=True)
    held_out = HeldOutSet.choose(mixture, samples=samples, batch_size=batch, rank=0, world=1)
    model = build_model(
        init_from=hf, vocab_size=store.vocab_size, dropout=0.0, seed=0, needs_nsp=False,
        pad_id=store.special_ids["pad"], vocab=store.folder / "vocab",
    )  # fmt: skip
    module = PretrainingModule(model).eval()
    loss = correct = 0.0
    for part in held_out.batches:
        losses = module(part.batch)
        loss, correct = loss + float(losses.mlm), correct + float(losses.mlm_correct)
    masked = sum(source.masked for source in held_out.sources)
    return HeldOutScore(round(loss / masked, 4), round(correct / masked, 4), masked)


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
