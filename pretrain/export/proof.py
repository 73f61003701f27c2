"""The proof that a folder is the trained model: its outputs, by transformers, against those of the trainer's own.

    probe = Probe.of(folder)                     texts and random tokens, by the folder's tokenizer
    ours = trained_outputs(source, probe, dtype) before; one model is in memory at a time
    theirs = folder_outputs(folder, head, probe)
    largest_difference(ours, theirs)

Names of weights cannot tell wrong arithmetic: another epsilon of LayerNorm, another activation, a padded vocabulary.
Weights in 16 bit are compared with the trained ones rounded likewise, so that the tolerance stays that of float32.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, PreTrainedModel

from data_prep.cli import InputError
from pretrain import hf_folder
from pretrain.attention import SeqLens
from pretrain.export.heads import CLASSES, TASKS
from pretrain.export.origin import Head
from pretrain.export.sources import ExportSource
from pretrain.model import Batch, encode_head_rows, model_around, model_from_weights

# Largest difference of an output, where the largest is above 1 as a share of it; padding-free and padded sums differ in
# rounding only.
TOLERANCE = 1e-4
LONGEST = 128
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1863 the war was not yet decided; 3,000 men had crossed the river at dawn.",
    "Größe, café, naïve; 北京的冬天很冷。 Привет, мир! مرحبا",
)

OPTIONS: Head = "multiple-choice"
OF_TEXTS: tuple[Head, ...] = ("sequence-classification", OPTIONS)  # the head reads what the pooler says

# By name, N tokens end to end, B texts: hidden [N, H], pooled [B, H], mlm [N, V], nsp [B, 2], task [N or B, labels].
Outputs = dict[str, Tensor]


class Probe(NamedTuple):
    """What both models are asked."""

    sequences: list[list[int]]
    padded: dict[str, Tensor]  # the same as transformers takes them
    mask: Tensor  # [B, L], of the tokens in `padded`

    @classmethod
    def of(cls, folder: Path, vocab_size: int, positions: int) -> "Probe":
        """Return three texts by the folder's tokenizer, and random tokens, which meet the whole vocabulary."""
        longest = min(positions, LONGEST)
        with hf_folder.silenced_libraries():
            tokenizer = hf_folder.open_tokenizer(folder, vocab_size)
        texts = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in PROBES]
        sequences = [*texts, np.random.default_rng(0).integers(0, vocab_size, size=longest).tolist()]
        padded = dict(tokenizer.pad({"input_ids": sequences}, return_tensors="pt"))
        return cls(sequences, padded, padded["attention_mask"].bool())


def trained_model(source: ExportSource, dtype: torch.dtype = torch.float32) -> BertForPreTraining:
    """Return the trainer's own model with the source's weights, rounded to `dtype`; a head that the source lacks, and
    nobody looks at, is 0."""
    identity = source.identity.model
    with torch.device("meta"):
        parameters = dict(BertForPreTraining(BertConfig(**identity)).named_parameters())
    weights = {
        name: source.weights[name].to(dtype).float() if name in source.weights else torch.zeros(parameter.shape)
        for name, parameter in parameters.items()
    }
    return model_from_weights(identity, weights)


@torch.no_grad()
def trained_outputs(source: ExportSource, probe: Probe, dtype: torch.dtype = torch.float32) -> Outputs:
    """Return what the trainer's model makes of the probe, padding-free, with weights rounded to `dtype`."""
    model, vocab_size = trained_model(source, dtype), source.identity.vocab_size
    hidden = encode_head_rows(model, _batch_of(probe.sequences))
    first = torch.tensor([0, *np.cumsum([len(ids) for ids in probe.sequences])[:-1]])
    pooled = model.bert.pooler(hidden[first, None])  # type: ignore[misc]  # None only where it is left out
    outputs = {
        "hidden": hidden,
        "pooled": pooled,
        "mlm": model.cls.predictions(hidden)[:, :vocab_size],
        "nsp": model.cls.seq_relationship(pooled),
    }
    for name in ("classifier", "qa_outputs"):
        if f"{name}.weight" in source.task_weights:
            weight, bias = (source.task_weights[f"{name}.{end}"].to(dtype).float() for end in ("weight", "bias"))
            saved_from = (source.labels.get("architectures") or [""])[0]
            of_texts = saved_from in (CLASSES[head].__name__ for head in OF_TEXTS)
            outputs["task"] = nn.functional.linear(pooled if of_texts else hidden, weight, bias)
    return outputs


@torch.no_grad()
def folder_outputs(folder: Path, head: Head, probe: Probe, new: list[str]) -> Outputs:
    """Return what transformers makes of the probe, padded, with the weights of a folder in float32.

    new: modules that the folder does not hold; nothing of theirs is returned

    Raises
    ------
    RuntimeError: the folder holds less, or more, than the model wants.
    """
    with hf_folder.silenced_libraries():
        model, report = CLASSES[head].from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    unwanted = [name for name in report["missing_keys"] if not name.startswith((*new, "pooler."))]
    if unwanted or report["unexpected_keys"] or report["mismatched_keys"]:
        raise RuntimeError(f"transformers does not take the folder for --head {head}: {report}; nothing was written")
    model, mask = model.eval(), probe.mask
    if head in ("causal", "encoder-decoder"):
        # A decoder looks back only; the same weights, looking both ways, are the trained model.
        both_ways = _looking_both_ways(model.decoder if head == "encoder-decoder" else model)
        outputs = {"mlm": both_ways(**probe.padded).logits[mask]}
        if head == "encoder-decoder":
            outputs["hidden"] = model.encoder(**probe.padded).last_hidden_state[mask]
        return outputs
    # Texts as the options of one row.
    output = model(**({name: ids[None] for name, ids in probe.padded.items()} if head == OPTIONS else probe.padded))
    if head == "pretraining":
        return {"mlm": output.prediction_logits[mask], "nsp": output.seq_relationship_logits}
    if head in ("mlm", "nsp"):
        return {head: output.logits[mask] if head == "mlm" else output.logits}
    encoded = output if head == "base" else model.base_model(**probe.padded)
    outputs = {"hidden": encoded.last_hidden_state[mask]}
    if encoded.pooler_output is not None and not any("pooler" in name for name in (*new, *report["missing_keys"])):
        outputs["pooled"] = encoded.pooler_output
    if head in TASKS and not new:
        outputs["task"] = _task_logits(output, head, mask)
    return outputs


def _task_logits(output: Any, head: Head, mask: Tensor) -> Tensor:
    if head == "question-answering":
        return torch.stack([output.start_logits, output.end_logits], -1)[mask]
    if head == OPTIONS:
        return output.logits.T
    return output.logits if head in OF_TEXTS else output.logits[mask]


def _looking_both_ways(decoder: PreTrainedModel) -> BertForMaskedLM:
    """Return a masked-word model of the weights of a decoder; what looks at an encoder is left out."""
    values = decoder.config.to_dict() | {"is_decoder": False, "add_cross_attention": False}
    weights = {name: weight.data for name, weight in decoder.named_parameters() if ".crossattention." not in name}
    return model_around(BertForMaskedLM, BertConfig.from_dict(values), weights)


def largest_difference(ours: Outputs, theirs: Outputs) -> float:
    """Return the largest difference of what both give.

    Raises
    ------
    RuntimeError: above TOLERANCE; the folder is not the trained model.
    """
    difference, scale = difference_of(ours, theirs)
    if not difference <= TOLERANCE * scale:
        raise RuntimeError(f"the exported model differs from the trained one by {difference:.2e}; nothing was written")
    return difference


def difference_of(ours: Outputs, theirs: Outputs) -> tuple[float, float]:
    """Return the largest difference of the outputs in `theirs`, and its measure: the largest output, or 1."""
    difference = max(float((ours[name] - output).abs().max()) for name, output in theirs.items())
    return difference, max(1.0, *(float(ours[name].abs().max()) for name in theirs))


def check_finite(source: ExportSource, outputs: Outputs, dtype: torch.dtype) -> None:
    """Refuse weights that a smaller type cannot hold.

    Raises
    ------
    InputError: as said.
    """
    if not all(output.isfinite().all() for output in outputs.values()):
        raise InputError(
            f"{source.origin}: its weights overflow as {str(dtype).removeprefix('torch.')}; take --dtype bf16 or fp32"
        )


def _batch_of(sequences: list[list[int]]) -> Batch:
    """Return sequences end to end, all of whose rows are head rows, with nothing to predict."""
    lengths = [len(ids) for ids in sequences]
    flat = torch.tensor([token for ids in sequences for token in ids])
    rows = torch.arange(len(flat))
    seqlens = SeqLens.from_bounds(np.cumsum([0, *lengths]))
    nothing = torch.zeros(0, dtype=torch.int64)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Batch(
        input_ids=flat,
        token_types=torch.zeros_like(flat),
        positions=positions,
        head_rows=rows,
        mlm_index=nothing,
        cls_index=nothing,
        mlm_labels=nothing,
        nsp_labels=nothing,
        seqlens=seqlens,
        head_seqlens=seqlens,
    )
