"""Pseudo-log-likelihoods (Salazar et al. 2020): how likely a masked language model finds each token of a text, given
all others. In nats, summed over the tokens; [CLS] and [SEP] are not scored.

    scored = pseudo_log_likelihoods(model, tokenizer, ["The cats sleep."])     [Likelihood(-14.2, tokens=4, cut=0)]

A text of n tokens is n inputs, its masked copies, in each of which another token is to be told:

    [CLS] [MASK] cats sleep . [SEP]      log p(the)
    [CLS] the [MASK] sleep . [SEP]       log p(cats)

Copies lie end to end without padding, those of equal length beside each other, and the language-model head looks at
masked places only. The values are those of a loop over one copy at a time; only rounding differs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertForMaskedLM, BertForPreTraining, PreTrainedTokenizerBase

from data_prep.cli import InputError
from data_prep.progress import Progress
from data_prep.tokens import contract
from pretrain.attention import SeqLens, use_varlen_attention
from pretrain.hf_folder import positions
from pretrain.model import Batch, encode_head_rows

# Of the copies of a batch: on a CPU what its caches hold, on a GPU what keeps it busy.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 65_536
TEXTS_AT_ONCE = 1 << 14  # that the tokenizer is given


class Likelihood(NamedTuple):
    """A text as a model sees it."""

    log_likelihood: float  # nats, summed over the tokens
    tokens: int  # that are scored
    cut: int  # that lie beyond the model's positions, and are left out


class Encoded(NamedTuple):
    """The tokens of a text."""

    ids: np.ndarray  # [n + 2] int64, [CLS] and [SEP] included
    cut: int  # tokens that lie beyond the model's positions, and are left out

    @property
    def tokens(self) -> int:
        """Tokens to score."""
        return len(self.ids) - 2


class MaskedCopies:
    """The masked copies of texts, longest first, in batches of about so many tokens. Equal texts are there once."""

    def __init__(self, texts: Sequence[np.ndarray], *, mask_id: int, batch_tokens: int):
        """Lay the copies out. texts: ids, [CLS] and [SEP] included."""
        index: dict[bytes, int] = {}
        self.text_index = np.array([index.setdefault(ids.tobytes(), len(index)) for ids in texts], np.int64)
        unique = [np.frombuffer(content, np.int64) for content in index]
        self._mask_id = mask_id
        self._ids = np.concatenate([*unique, np.zeros(0, np.int64)])
        self._lengths = np.array([len(ids) for ids in unique], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        # Texts of 5 and 4 tokens (3 and 2 to score) have five copies:
        #     text     0 0 0 1 1
        #     place    1 2 3 1 2      what is masked
        order = np.argsort(-self._lengths, kind="stable")
        counts = self._lengths[order] - 2
        self._text = np.repeat(order, counts)
        self._place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        # A batch ends with the copy in which its tokens are complete.
        tokens = np.cumsum(self._lengths[self._text])
        firsts = np.unique((tokens - 1) // batch_tokens, return_index=True)[1]
        self._bounds = np.append(firsts, len(self._text))

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._bounds) - 1

    @property
    def copies(self) -> int:
        """Copies of all batches."""
        return len(self._text)

    def slice_of(self, index: int) -> slice:
        """Return which copies are in a batch."""
        return slice(int(self._bounds[index]), int(self._bounds[index + 1]))

    def batch(self, index: int) -> Batch:
        """Return a batch of C copies, whose head rows are the C masked tokens; no head looks at [CLS]."""
        text, place = self._text[self.slice_of(index)], self._place[self.slice_of(index)]
        lengths = self._lengths[text]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        ids = self._ids[np.repeat(self._starts[text], lengths) + places]
        masked = bounds[:-1] + place
        labels = ids[masked]
        ids[masked] = self._mask_id
        none = torch.zeros(0, dtype=torch.int64)
        return Batch(
            input_ids=torch.from_numpy(ids),
            token_types=torch.zeros(len(ids), dtype=torch.int64),
            positions=torch.from_numpy(places),
            head_rows=torch.from_numpy(masked),
            mlm_index=torch.arange(len(masked)),
            cls_index=none,
            mlm_labels=torch.from_numpy(labels),
            nsp_labels=none,
            seqlens=SeqLens.from_bounds(bounds),
            head_seqlens=SeqLens.from_bounds(np.arange(len(masked) + 1)),
        )

    def summed(self, losses: np.ndarray) -> np.ndarray:
        """Return the log-likelihood of each text, from the losses [copies] of all batches, in nats."""
        sums = np.bincount(self._text, losses, len(self._lengths)) if len(losses) else np.zeros(len(self._lengths))
        return -sums[self.text_index]


def load_vocab(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a store or a run, as it will be in an exported folder.

    Raises
    ------
    InputError: as contract.settled().
    """
    with contract.settled(folder) as vocab:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            vocab, trust_remote_code=False, local_files_only=True
        )
    return tokenizer


def mask_of(tokenizer: PreTrainedTokenizerBase, *, name: str = "the tokenizer") -> int:
    """Return the id of [MASK].

    Raises
    ------
    InputError: there is none.
    """
    mask_id: Any = tokenizer.mask_token_id
    if mask_id is None:
        raise InputError(f"{name} has no [MASK], so that no token can be scored; give a model with masked words")
    return int(mask_id)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int, *, name: str = "the tokenizer"
) -> Iterator[Encoded]:
    """Yield the tokens of each text, of which a model takes the `longest` first.

    Raises
    ------
    InputError: the tokenizer has no [MASK], or puts no [CLS] and [SEP] around a text.
    """
    mask_of(tokenizer, name=name)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        found: Any = tokenizer(
            list(texts[first : first + TEXTS_AT_ONCE]),
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for ids in found["input_ids"]:
            if ids[0] != cls or ids[-1] != sep:
                raise InputError(
                    f"{name} puts no [CLS] and [SEP] around a text; set the post_processor of tokenizer.json"
                )
            kept = [*ids[: longest - 1], sep] if len(ids) > longest else ids
            yield Encoded(np.array(kept, np.int64), len(ids) - len(kept))


@torch.inference_mode()
def masked_losses(model: BertForMaskedLM | BertForPreTraining, batch: Batch) -> Tensor:
    """Return the loss of each masked token [M], in nats."""
    logits = model.cls.predictions(encode_head_rows(model, batch)[batch.mlm_index]).float()
    return cross_entropy(logits, batch.mlm_labels, reduction="none")


def pseudo_log_likelihoods(
    model: BertForMaskedLM | BertForPreTraining, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[Likelihood]:
    """Return how likely a BERT finds each text. The model is left as it was, dropout and all.

    Raises
    ------
    InputError: as encode_texts() and log_likelihoods().
    """
    encoded = list(encode_texts(tokenizer, texts, positions(model.config)))
    sums = log_likelihoods(model, mask_of(tokenizer), encoded)
    return [Likelihood(float(nats), of.tokens, of.cut) for nats, of in zip(sums, encoded, strict=True)]


def log_likelihoods(
    model: BertForMaskedLM | BertForPreTraining,
    mask_id: int,
    encoded: Sequence[Encoded],
    *,
    quiet: bool = True,
) -> np.ndarray:
    """Return the log-likelihood of N texts, [N] float64 in nats; unless `quiet`, long work shows how far it is.

    Raises
    ------
    InputError: the model's numbers overflow.
    """
    batch_tokens = GPU_BATCH_TOKENS if model.device.type == "cuda" else CPU_BATCH_TOKENS
    copies = MaskedCopies([text.ids for text in encoded], mask_id=mask_id, batch_tokens=batch_tokens)
    losses = torch.zeros(copies.copies, dtype=torch.float64, device=model.device)
    with scoring(model):
        for index in Progress(range(len(copies)), "scoring", "batch", quiet=quiet):
            losses[copies.slice_of(index)] = masked_losses(model, copies.batch(index).to(model.device)).double()
    sums = copies.summed(losses.cpu().numpy())
    if not np.isfinite(sums).all():
        raise InputError("the model answers with nan or infinity: its weights are too large")
    return sums


@contextmanager
def scoring(model: BertForMaskedLM | BertForPreTraining) -> Iterator[None]:
    """Have a model attend within texts and drop nothing out; afterwards it is as it was."""
    attention, was_training = model.config._attn_implementation, model.training
    use_varlen_attention(model)
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)
