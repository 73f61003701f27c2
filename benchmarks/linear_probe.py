"""What is in a model's layers before any fine-tuning: a linear probe on the mean of each, beside random weights.

    python benchmarks/linear_probe.py HF --train sst2/train.tsv --eval sst2/dev.tsv [--limit 5000]

Each text is the mean of its tokens' hidden states, layer by layer (0: the embeddings); logistic regression on the
standardised features. A minute for a small model. One JSON line: accuracy by layer, the same of random weights of the
same architecture (the mean of three), and of the bag of words.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
import torch
import tyro
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import BertModel, PreTrainedTokenizerBase

from benchmarks.machine import machine
from data_prep.cli import parse
from pretrain import hf_folder
from pretrain.finetune.examples import subset
from pretrain.finetune.files.labelled import Example, read_texts
from pretrain.finetune.scores.baseline import bag_of_words

BATCH = 64
RANDOM_SEEDS = 3


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is probed, on what."""

    hf: tyro.conf.Positional[Path]
    """folder of the pretrained model"""
    train: Path
    """labelled file to learn from"""
    eval: Path
    """labelled file to measure on"""
    limit: int = 5_000
    """examples to learn from"""
    seq_len: int = 128


def main(config: BenchmarkConfig) -> None:
    training, evaluation = subset(read_texts(config.train), config.limit), read_texts(config.eval)
    with hf_folder.silenced_libraries():
        tokenizer = hf_folder.load_tokenizer(config.hf)
        pretrained = BertModel.from_pretrained(config.hf, add_pooling_layer=False, local_files_only=True)
        by_seed = []
        for seed in range(RANDOM_SEEDS):
            torch.manual_seed(seed)
            random = BertModel(pretrained.config, add_pooling_layer=False)
            by_seed.append(probe(random, tokenizer, training, evaluation, config.seq_len))
        found = probe(pretrained, tokenizer, training, evaluation, config.seq_len)
    figures = {
        "pretrained": [round(accuracy, 4) for accuracy in found],
        "random": np.mean(by_seed, 0).round(4).tolist(),
        "words": round(bag_of_words(training, evaluation)["accuracy"], 4),
    }
    settings = {"model": config.hf.name, "train": str(config.train), "examples": len(training)}
    result = {"name": "linear_probe", "figures": figures, "ratio": None, "settings": settings}
    print(json.dumps(result | machine("torch", "transformers", "scikit-learn")))


def probe(
    model: BertModel,
    tokenizer: PreTrainedTokenizerBase,
    training: list[Example],
    evaluation: list[Example],
    seq_len: int,
) -> list[float]:
    """Return the accuracy of a linear classifier on each layer, the embeddings first."""
    known, asked = (features(model, tokenizer, examples, seq_len) for examples in (training, evaluation))
    labels, truth = ([example.label for example in examples] for examples in (training, evaluation))
    scores = []
    for layer in range(known.shape[0]):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        scores.append(float(classifier.fit(known[layer], labels).score(asked[layer], truth)))
    return scores


@torch.no_grad()
def features(model: BertModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example], seq_len: int) -> np.ndarray:
    """Return [layers + 1, N, hidden]: the mean of each text's tokens after each layer."""
    model.eval()
    encoded = tokenizer([str(example.text) for example in examples], truncation=True, max_length=seq_len)["input_ids"]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    shape = (model.config.num_hidden_layers + 1, len(encoded), model.config.hidden_size)
    found = np.empty(shape, np.float32)
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
        states = model(**batch, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"][..., None]
        for layer, hidden in enumerate(states):
            found[layer, rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return found


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
