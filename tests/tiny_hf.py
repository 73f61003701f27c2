"""Hugging Face folders of two layers of 32 units, made on the spot."""

from pathlib import Path

import torch
from transformers import BertConfig, BertTokenizer, PreTrainedModel

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{word}" for word in WORDS), "."]


def tiny_tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer over VOCABULARY."""
    return BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, model_max_length=64)


def tiny_bert(folder: Path, model_class: type[PreTrainedModel]) -> Path:
    """A folder of `model_class` with random weights, the same in every test."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model_class(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
