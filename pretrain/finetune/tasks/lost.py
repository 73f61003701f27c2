"""What a model will not see of its texts, said before it learns from them."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from data_prep.cli import say

UNKNOWN = 0.01  # share of the tokens of which nothing is said


def tell_lost(
    batch: Any, seq_len: int, tokenizer: PreTrainedTokenizerBase, what: str = "texts", remedy: str = ""
) -> None:
    """Say how many texts of a tokenized batch are cut off, with a remedy, and what its tokenizer does not know."""
    cut, count = sum(bool(encoding.overflowing) for encoding in batch.encodings), len(batch.encodings)
    if cut:
        share = f"{cut} of {count} {what} ({cut / count:.1%})"
        say(f"{share} are longer than --seq_len {seq_len} tokens and were cut" + (f"; {remedy}" if remedy else ""))
    tell_unknown(batch, tokenizer)


def tell_unknown(batch: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say which share of a tokenized batch its tokenizer does not know."""
    words = sum(mask.count(0) for mask in (encoding.special_tokens_mask for encoding in batch.encodings))
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in batch["input_ids"])
    if unknown > UNKNOWN * words:
        share = f"{unknown:,} of {words:,} tokens ({unknown / max(1, words):.1%})"
        say(f"{share} are {tokenizer.unk_token}: letters that the tokenizer of this folder does not know")
