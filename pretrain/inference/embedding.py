"""Texts as vectors: the mean over a text's tokens, of unit length. pretrain/predict.py asks.

    embed_file(folder, lines, count, out, as_json=False)          OUT.npy, a row a line
    print_nearest(folder, lines, ["a text"], top=5, as_json=False)     the lines that lie nearest, by cosine

The same numbers as sentence-transformers gives of a folder that pretrain.export wrote for it; [CLS] in place of the
mean where the folder's 1_Pooling says so. Lines are read in blocks, and within one those of like length go together.
"""

import heapq
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from data_prep.cli import InputError, print_json, printable, say
from data_prep.files import write_whole
from data_prep.progress import Progress
from data_prep.untrusted import read_object, read_objects
from pretrain import hf_folder

BLOCK = 4096  # lines in memory
BATCH_TOKENS = 1 << 14  # padding included
# What sentence-transformers has in a folder, by names of before and since version 5.4.
MODULES = ("Transformer", "Pooling", "Normalize")
OLD_FLAGS = tuple(
    f"pooling_mode_{name}"
    for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
)
POOLS_CLS = {"cls": True, "cls_token": True, "mean": False, "mean_tokens": False}


class Embedder(NamedTuple):
    """A model that makes vectors."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    takes_cls: bool  # in place of the mean
    most: int  # tokens of a text, as its makers say

    @property
    def longest(self) -> int:
        """Tokens of a text, special ones included; what is longer is cut."""
        return min(hf_folder.positions(self.model.config), self.tokenizer.model_max_length, self.most)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Return vectors [N, H], float32, and how many texts were cut.

        Raises
        ------
        InputError: the model's numbers overflow.
        """
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.longest)
        cut = sum(bool(one.overflowing) for one in encoded.encodings)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        order, first = np.argsort(-lengths, kind="stable"), 0
        while first < len(order):
            rows = order[first : first + max(1, BATCH_TOKENS // int(lengths[order[first]]))]
            batch = {name: [values[row] for row in rows] for name, values in encoded.items()}
            inputs: Any = self.tokenizer.pad(batch, return_tensors="pt").to(self.model.device)
            hidden = self.model(**inputs).last_hidden_state.float()  # [B, L, H]
            mask = inputs["attention_mask"][..., None]
            pooled = hidden[:, 0] if self.takes_cls else (hidden * mask).sum(1) / mask.sum(1)
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
            first += len(rows)
        if not np.isfinite(vectors).all():
            raise InputError(f"{self.folder} answers with nan or infinity: its weights are too large")
        return vectors, cut


def load_embedder(folder: Path) -> Embedder:
    """Return the encoder of a folder, ready to answer, on the GPU if there is one.

    Raises
    ------
    InputError: a folder without a whole encoder, or with a pooling that is not known here.
    """
    takes_cls = pools_cls(folder)
    with hf_folder.silenced_libraries():
        tokenizer = hf_folder.load_tokenizer(folder)
        model, _ = hf_folder.load_model(AutoModel, folder)  # a pooler that is missing is not looked at
    return Embedder(
        folder,
        model.eval().to("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer,
        takes_cls,
        most_tokens(folder),
    )


def pools_cls(folder: Path) -> bool:
    """Return whether a folder's vectors are those of [CLS], and not the mean over tokens, by what sentence-transformers
    has written there: "pooling_mode", before its version 5.4 a flag for each way; the vectors of several are joined.

    Raises
    ------
    InputError: another pooling, or another layer behind it: the vectors would not be those that the folder is made for.
    """
    modules = folder / "modules.json"
    for module in read_objects(modules) if modules.is_file() else []:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in MODULES:
            raise InputError(f"{modules}: {kind!r} is not known here; open this folder in sentence-transformers")
    pooling = folder / "1_Pooling/config.json"
    said = read_object(pooling) if pooling.is_file() else {}
    flags = [name.removeprefix("pooling_mode_") for name, value in said.items() if value is True and name in OLD_FLAGS]
    mode = str(said.get("pooling_mode") or " and ".join(flags) or "mean")
    if mode not in POOLS_CLS:
        raise InputError(f"{pooling}: pooling by {mode!r} is not known here; open this folder in sentence-transformers")
    return POOLS_CLS[mode]


def most_tokens(folder: Path) -> int:
    """Return to how many tokens sentence-transformers cuts the texts that it gives to this folder."""
    path = folder / "sentence_bert_config.json"
    most = read_object(path).get("max_seq_length") if path.is_file() else None
    return most if isinstance(most, int) and most > 2 else sys.maxsize


def embed_file(folder: Path, lines: Iterable[str], count: int, out: Path, *, as_json: bool) -> None:
    """Write a float32 array [count, H], a row for each line, in numpy's format.

    Raises
    ------
    InputError: as load_embedder().
    OSError: from the disk; nothing is left then.
    """
    embedder = load_embedder(folder)
    hidden, cut = embedder.model.config.hidden_size, 0

    def content() -> Iterator[bytes]:
        nonlocal cut
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (count, hidden)})
        yield header.getvalue()
        for block in _blocks(lines, count):
            vectors, too_long = embedder.embed([line for _, line in block])
            cut += too_long
            yield vectors.astype("<f4", copy=False).tobytes()

    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, content())
    if cut:
        say(f"longer than the model's {embedder.longest} tokens, and cut: {cut:,} of {count:,} lines")
    if as_json:
        found = {"folder": str(folder), "kind": "embed", "out": str(out), "lines": count, "size": hidden, "cut": cut}
        print_json(found)
    else:
        print(f"{out}: {count:,} vectors of {hidden} numbers")


def _blocks(lines: Iterable[str], count: int | None) -> Iterator[list[tuple[int, str]]]:
    """Yield lines with their numbers, many at a time; how far they are is shown."""
    numbered = enumerate(lines, 1)
    with Progress(what="embedding", unit="line", total=count) as progress:
        while block := list(islice(numbered, BLOCK)):
            yield block
            progress.update(len(block))


def print_nearest(folder: Path, lines: Iterable[str], texts: Sequence[str], *, top: int, as_json: bool) -> None:
    """Print, for each text, the lines whose vectors have the largest cosine with its own, best first.

    Raises
    ------
    InputError: as load_embedder().
    """
    embedder = load_embedder(folder)
    wanted, _ = embedder.embed(texts)
    best: list[list[tuple[float, int, str]]] = [[] for _ in texts]  # cosine, number of the line, line
    for block in _blocks(lines, None):
        known = [(number, line) for number, line in block if line.strip()]
        if not known:
            continue
        vectors, _ = embedder.embed([line for _, line in known])
        for found, cosines in zip(best, wanted @ vectors.T, strict=True):
            nearest = [(float(cosines[at]), *known[at]) for at in np.argsort(-cosines, kind="stable")[:top]]
            found[:] = heapq.nsmallest(top, [*found, *nearest], key=lambda one: (-one[0], one[1]))
    if as_json:
        answers = [
            {"text": text, "nearest": [{"cosine": round(c, 6), "line": n, "text": line} for c, n, line in found]}
            for text, found in zip(texts, best, strict=True)
        ]
        print_json({"folder": str(folder), "kind": "nearest", "answers": answers})
        return
    for text, found in zip(texts, best, strict=True):
        print("\n".join([printable(text), *(f"  {c:.4f}  {n}: {printable(line)}" for c, n, line in found)]))
