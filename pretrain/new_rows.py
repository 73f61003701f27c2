"""Rows that a model gets beside those it was trained with: of entries of a vocabulary, and of positions.

give_rows(folder, model, rows)            as data_prep/tokens/row_sources.py found them
stretch_positions(folder, model, 1024)    its own positions, laid over a longer line
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from transformers import BertForPreTraining

from data_prep.cli import InputError, say_once
from data_prep.tokens.row_sources import Rows
from data_prep.untrusted import read_object


@torch.no_grad()
def give_rows(folder: Path, model: BertForPreTraining, rows: Rows) -> None:
    """Give the model of a folder rows for another vocabulary than its own: embedding and bias of each entry."""
    flat = torch.tensor([row for pieces in rows.pieces for row in pieces])
    lengths = torch.tensor([len(pieces) for pieces in rows.pieces])
    starts = lengths.cumsum(0) - lengths

    def means(old: Tensor) -> Tensor:
        """[V, D] of the rows of the model [R, D]."""
        new = embedding_bag(flat, old, starts, mode="mean")
        new[lengths == 0] = old[: rows.known].mean(0)
        return new

    embedding = model.bert.embeddings.word_embeddings
    weight, bias = embedding.weight.clone(), model.cls.predictions.bias.clone()
    embedding.padding_idx = None  # whose place is another one, below
    model.resize_token_embeddings(len(rows.pieces), mean_resizing=False)
    model.bert.embeddings.word_embeddings.weight.copy_(means(weight))
    model.cls.predictions.bias.copy_(means(bias[:, None])[:, 0])
    model.bert.embeddings.word_embeddings.padding_idx = model.config.pad_token_id = rows.pad_id
    say_once(f"{folder}: {rows.said}", about=f"rows {folder}")  # of the ranks of a node one says it


@torch.no_grad()
def stretch_positions(folder: Path, model: BertForPreTraining, positions: int) -> None:
    """Give a model more positions: its own rows, laid over the longer line so that both ends stay, and between them
    straight lines from row to row.

    Of 3 rows 5 become: 0, halfway to 1, 1, halfway to 2, 2.

    Raises
    ------
    InputError: it has more already.
    """
    embeddings: Any = model.bert.embeddings
    old = embeddings.position_embeddings.weight
    if positions < len(old):
        raise InputError(
            f"--positions {positions}: --init_from {folder} has {len(old)} already; leave it out: shorter samples need "
            "no fewer"
        )
    if positions == len(old):
        return
    # In float64, so that the place of a row that stays is a whole number.
    place = torch.arange(positions, dtype=torch.float64) * (len(old) - 1) / (positions - 1)
    below = place.floor().long().clamp(max=max(len(old) - 2, 0))
    above = (below + 1).clamp(max=len(old) - 1)
    rows = torch.lerp(old[below].double(), old[above].double(), (place - below)[:, None]).float()
    embeddings.position_embeddings = nn.Embedding.from_pretrained(rows, freeze=False)
    embeddings.position_ids = torch.arange(positions)[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    model.config.max_position_embeddings = positions
    said = f"{folder}: {len(old):,} positions stretched to {positions:,}, in straight lines from row to row"
    trained = _trained_length(folder)
    if trained is not None and trained < len(old):
        said += f"; warning: it was trained on {trained:,} tokens, and positions beyond mean nothing yet"
    say_once(said, about=said)


def _trained_length(folder: Path) -> int | None:
    """Return the most tokens that a folder's tokenizer lets through: as exports say how far a model was trained."""
    path = folder / "tokenizer_config.json"
    said = read_object(path).get("model_max_length") if path.is_file() else None
    return said if isinstance(said, int) and said > 0 else None
