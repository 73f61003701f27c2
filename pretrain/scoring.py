"""Scores of minimal pairs and of texts by a folder, a run or a checkpoint. pretrain/score.py asks.

score_pairs(Path("hf"), "raw", Path("blimp.jsonl"), pairs, as_json=False)
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from transformers import BertForPreTraining, PreTrainedTokenizerBase

from data_prep.cli import InputError, print_json, printable, say
from pretrain import hf_folder
from pretrain.export.origin import Weights, check_origin
from pretrain.export.proof import trained_model
from pretrain.export.sources import find_source
from pretrain.likelihood.minimal_pairs import MinimalPair, PairScores
from pretrain.likelihood.pair_evaluation import encode_pairs
from pretrain.likelihood.pseudo_likelihood import Encoded, encode_texts, load_vocab, log_likelihoods, mask_of

UNKNOWN = 0.005  # share of [UNK] among the tokens above which a score says little, and which is said


class Scorer(NamedTuple):
    """A model with a language-model head, and its tokenizer."""

    folder: Path
    model: BertForPreTraining
    tokenizer: PreTrainedTokenizerBase

    @property
    def longest(self) -> int:
        """Tokens that the model takes at once."""
        return hf_folder.positions(self.model.config)

    def log_likelihoods(self, encoded: Sequence[Encoded]) -> np.ndarray:
        """Return the log-likelihoods [N] of texts, showing how far it is; what the vocabulary does not know is said."""
        tokens = sum(text.tokens for text in encoded)
        unknown = sum(int((text.ids == self.tokenizer.unk_token_id).sum()) for text in encoded)
        if unknown > UNKNOWN * tokens:
            share = f"{unknown / tokens:.1%} of the tokens"
            say(f"warning: {share} are {self.tokenizer.unk_token}, letters or words that the vocabulary lacks")
        return log_likelihoods(self.model, mask_of(self.tokenizer), encoded, quiet=False)


def load_scorer(path: Path, weights: Weights = "raw") -> Scorer:
    """Return the model of a folder, a run or a checkpoint, ready to score, on the GPU if there is one.

    Raises
    ------
    InputError: as find_source(); no language-model head, or numbers that are none.
    """
    is_hf = check_origin(path, None, None) == "hf"
    with hf_folder.silenced_libraries(), TemporaryDirectory() as scratch:
        # Of a vocab.txt beside the weights of another trainer a tokenizer.json is made.
        source = find_source(path, None, None, weights, None if is_hf else Path(scratch))
        model = trained_model(source)
        tokenizer = hf_folder.load_tokenizer(path) if is_hf else load_vocab(source.tokenizer)
    head = {name for name, _ in model.named_parameters() if name.startswith("cls.predictions.")}
    if missing := sorted(head - source.weights.keys()):
        raise InputError(
            f"{source.origin} has no language-model head (it lacks {missing[0]}), and cannot tell a masked token; "
            "export it with --head pretraining or mlm"
        )
    hf_folder.check_finite(source.origin, source.weights.items())
    if source.step is not None:
        say(f"scoring with {source.origin} (step {source.step:,})")
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return Scorer(source.origin, model, tokenizer)


def score_pairs(source: Path, weights: Weights, file: Path, pairs: Sequence[MinimalPair], *, as_json: bool) -> None:
    """Score minimal pairs, and print the accuracy of each group and their mean.

    Raises
    ------
    InputError: as load_scorer() and encode_pairs().
    """
    scorer = load_scorer(source, weights)
    encoded = encode_pairs(scorer.tokenizer, pairs, scorer.longest, name=str(source))
    if encoded.left_out:
        share = f"{encoded.left_out:,} of {len(pairs):,} pairs ({encoded.left_out / len(pairs):.1%})"
        say(f"{file}: left out: {share} hold a sentence longer than the model's {scorer.longest} tokens")
    scores = encoded.judge(scorer.log_likelihoods(encoded.sentences))
    if as_json:
        print_json(
            {
                "accuracy": scores.accuracy,
                "pairs": scores.pairs,
                "ties": scores.ties,
                "left_out": encoded.left_out,
                "groups": {name: score.accuracy for name, score in scores.groups.items()},
                "folder": str(scorer.folder),
            }
        )
    else:
        print(pairs_table(scores))


def pairs_table(scores: PairScores) -> str:
    """Return the accuracies for people: a line a group, the best first, then their mean."""
    groups = sorted(scores.groups.items(), key=lambda item: (-item[1].accuracy, item[0]))
    rows = [(printable(name), score.accuracy, score.pairs, score.ties) for name, score in groups]
    rows.append(
        (f"mean of {len(groups)} groups" if len(groups) > 1 else "mean", scores.accuracy, scores.pairs, scores.ties)
    )
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'group':<{width}}  accuracy    pairs   ties"]
    lines += [f"{name:<{width}}  {share:8.1%}  {pairs:7,}  {ties / pairs:5.1%}" for name, share, pairs, ties in rows]
    return "\n".join(lines)


def score_texts(source: Path, weights: Weights, texts: Sequence[tuple[int, str]], *, as_json: bool) -> None:
    """Score texts, given with their lines, and print a line for each.

    Raises
    ------
    InputError: as load_scorer() and encode_texts().
    """
    scorer = load_scorer(source, weights)
    encoded = list(encode_texts(scorer.tokenizer, [text for _, text in texts], scorer.longest, name=str(source)))
    cut, tokens = sum(text.cut for text in encoded), sum(text.tokens for text in encoded)
    if cut:
        count = sum(1 for text in encoded if text.cut)
        say(
            f"left out: {cut:,} tokens ({cut / (cut + tokens):.1%}) of {count:,} texts longer than the model's "
            f"{scorer.longest} tokens"
        )
    sums = scorer.log_likelihoods(encoded).tolist()
    if not as_json:
        print("       PLL  tokens  per token  text")
    for (line, text), of, nats in zip(texts, encoded, sums, strict=True):
        per_token = nats / of.tokens if of.tokens else None
        if as_json:
            more = {"cut": of.cut} if of.cut else {}
            print_json({"line": line, "text": text, "pll": nats, "tokens": of.tokens, "per_token": per_token} | more)
        else:
            mean = "-" if per_token is None else f"{per_token:.3f}"
            print(f"{nats:10.2f}  {of.tokens:6,}  {mean:>9}  {printable(text)}")
    if tokens:
        say(f"{len(texts):,} texts, {tokens:,} tokens: {sum(sums) / tokens:.3f} nats per token")
