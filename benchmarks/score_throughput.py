"""Masked copies per second of pretrain.score: ours beside two plain ways through transformers' BertForMaskedLM.

    python benchmarks/score_throughput.py [--layers 4 --hidden 256 --vocab_size 8192 --sentences 96]
    python benchmarks/score_throughput.py --pairs blimp.jsonl --vocab VOCAB       sentences of a file in place of a list

Every token of a sentence is masked by itself. Ours lays the copies end to end, sorted by length, and has the
language-model head look at the masked places. By sentence: the copies of one sentence are a batch. Padded: the copies
of all sentences, as they come, are batches of --batch. Both have logits everywhere, with sdpa, as scripts for minimal
pairs do. All score the same sentences in turn, fp32, in one process. One JSON line; "ratio" is ours over the faster of
the two.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.machine import machine
from data_prep.cli import parse
from pretrain.likelihood.minimal_pairs import read_pairs
from pretrain.likelihood.pseudo_likelihood import Encoded, encode_texts, load_vocab, log_likelihoods

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLS, SEP, MASK, FIRST_WORD = 2, 3, 4, 5
# Lengths of BLiMP's sentences in tokens of such a vocabulary, [CLS] and [SEP] included.
LENGTHS = (8, 10, 11, 12, 12, 13, 13, 14, 14, 15, 15, 16, 17, 18, 20, 24)


@dataclass(frozen=True)
class BenchmarkConfig:
    """The model and the sentences."""

    layers: int = 4
    hidden: int = 256
    vocab_size: int = 8192
    sentences: int = 96
    """of a round"""
    batch: int = 64
    """copies of a padded batch"""
    rounds: int = 5
    """of each side that count; one more goes before"""
    pairs: Path | None = None
    """minimal pairs whose sentences are scored, in place of random words of a fixed list of lengths; with --vocab"""
    vocab: Path | None = None
    """their tokenizer's folder, of at most --vocab_size entries"""


def main(config: BenchmarkConfig) -> None:
    torch.manual_seed(0)
    model = new_model(config)
    rounds = list(rounds_of(config))
    ways: dict[str, Callable[[list[Encoded]], np.ndarray]] = {
        "ours": lambda sentences: log_likelihoods(model, MASK, sentences),
        "by_sentence": lambda sentences: by_sentence(model, sentences),
        "padded": lambda sentences: padded(model, sentences, config.batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}  # where others have the cores, too
    difference = 0.0
    for sentences in rounds:
        found = {}
        for name, score in ways.items():
            copies = sum(text.tokens for text in sentences)
            begun, used = time.perf_counter(), time.process_time()
            found[name] = score(sentences)
            seconds[name].append((time.perf_counter() - begun) / copies)
            cpu_seconds[name].append((time.process_time() - used) / copies)
        difference = max(difference, *(float(np.abs(found["ours"] - found[name]).max()) for name in ways))
    per_copy = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    per_length = sum(text.tokens * len(text.ids) for of in rounds for text in of) / sum(
        t.tokens for of in rounds for t in of
    )
    figures: dict[str, Any] = {f"{name}_copies_per_s": round(1 / value, 1) for name, value in per_copy.items()}
    on_cpu = {name: statistics.median(values[1:]) for name, values in cpu_seconds.items()}
    figures["ours_copies_per_cpu_s"] = round(1 / on_cpu["ours"], 1)
    figures["ours_tokens_per_s"] = round(per_length / per_copy["ours"])
    figures["tokens_per_copy"] = round(per_length, 1)
    figures["largest_difference"] = float(f"{difference:.1e}")
    for name in ("by_sentence", "padded"):
        figures[f"ratio_{name}"] = round(per_copy[name] / per_copy["ours"], 2)
        figures[f"ratio_{name}_cpu"] = round(on_cpu[name] / on_cpu["ours"], 2)
    result = {
        "name": "score_throughput",
        "figures": figures,
        "ratio": min(figures["ratio_by_sentence"], figures["ratio_padded"]),
        "settings": {
            **config.__dict__,
            "pairs": config.pairs and config.pairs.name,
            "vocab": config.vocab and config.vocab.name,
            "threads": torch.get_num_threads(),
        },
    }
    print(json.dumps(result | machine("torch", "transformers")))


def new_model(config: BenchmarkConfig) -> BertForMaskedLM:
    """Random weights; what is computed takes as long with any."""
    bert = BertConfig(
        vocab_size=config.vocab_size, num_hidden_layers=config.layers, hidden_size=config.hidden,
        num_attention_heads=config.hidden // 64, intermediate_size=4 * config.hidden,
    )  # fmt: skip
    model = BertForMaskedLM(bert)
    model.set_attn_implementation("sdpa")
    return model.eval().to(DEVICE)


def rounds_of(config: BenchmarkConfig) -> Iterator[list[Encoded]]:
    """Yield the sentences of each round, no two alike."""
    rng = np.random.default_rng(0)
    if config.pairs is not None and config.vocab is not None:
        texts = list(dict.fromkeys(text for pair in read_pairs(config.pairs) for text in pair[:2]))
        chosen = [texts[index] for index in rng.permutation(len(texts))[: (config.rounds + 1) * config.sentences]]
        encoded = list(encode_texts(load_vocab(config.vocab), chosen, 512))
    else:
        lengths = np.resize(rng.permutation(LENGTHS), (config.rounds + 1) * config.sentences)
        words = [rng.integers(FIRST_WORD, config.vocab_size, length - 2) for length in lengths]
        encoded = [Encoded(np.array([CLS, *ids, SEP]), 0) for ids in words]
    for first in range(0, len(encoded) - config.sentences + 1, config.sentences):
        yield encoded[first : first + config.sentences]


def copies_of(sentence: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the masked copies of a sentence [C, L], and which token is masked in each [C]."""
    places = torch.arange(1, len(sentence.ids) - 1)
    ids = torch.from_numpy(sentence.ids).repeat(len(places), 1)
    ids[torch.arange(len(places)), places] = MASK
    return ids, places


@torch.inference_mode()
def by_sentence(model: BertForMaskedLM, sentences: list[Encoded]) -> np.ndarray:
    """Score the copies of a sentence at once."""
    sums = []
    for sentence in sentences:
        ids, places = copies_of(sentence)
        logits = model(input_ids=ids.to(DEVICE), attention_mask=torch.ones_like(ids).to(DEVICE)).logits
        labels = torch.from_numpy(sentence.ids)[places].to(DEVICE)
        chosen = logits[torch.arange(len(places)), places].log_softmax(-1).gather(1, labels[:, None])
        sums.append(float(chosen.double().sum()))
    return np.array(sums)


@torch.inference_mode()
def padded(model: BertForMaskedLM, sentences: list[Encoded], batch: int) -> np.ndarray:
    """Score so many copies at once, padded to the longest of them."""
    copies = [
        (number, ids, int(place), int(sentence.ids[place]))
        for number, sentence in enumerate(sentences)
        for ids, place in zip(*copies_of(sentence), strict=True)
    ]
    sums = np.zeros(len(sentences))
    for first in range(0, len(copies), batch):
        owners, rows, places, labels = zip(*copies[first : first + batch], strict=True)
        ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        logits = model(input_ids=ids.to(DEVICE), attention_mask=(ids != 0).long().to(DEVICE)).logits
        chosen = logits[torch.arange(len(rows)), list(places)].log_softmax(-1)[torch.arange(len(rows)), list(labels)]
        np.add.at(sums, list(owners), chosen.double().cpu().numpy())
    return sums


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
