"""An exported folder as a graph for ONNX Runtime, and the proof that it gives the same numbers.

    model.onnx         input_ids, attention_mask, token_type_ids, of any batch and length; outputs as transformers calls
                       them: last_hidden_state, logits, prediction_logits, start_logits, ...
    model_int8.onnx    with --quantize int8: the matrices in 8 bit, a quarter of the size

The graph is made of the folder that was just proved to be the trained model, by torch's exporter, and run beside it on
other shapes than those that it was made with.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from pretrain import hf_folder
from pretrain.export.heads import CLASSES
from pretrain.export.origin import Head
from pretrain.export.proof import OPTIONS, TOLERANCE, Probe

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS: dict[Head, tuple[str, ...]] = {
    "pretraining": ("prediction_logits", "seq_relationship_logits"),
    "base": ("last_hidden_state",),
    "question-answering": ("start_logits", "end_logits"),
}  # of any other head: logits; of multiple-choice [batch, 1], for a row of the batch is one option
LARGEST_FILE = 1_800_000_000  # bytes; protobuf ends at 2 GiB, and weights beyond lie in a file beside


class OnnxProof(NamedTuple):
    """Largest differences of an output."""

    difference: float  # to torch's
    quantized: float | None  # of int8, to torch's
    scale: float  # the largest output


class _ByName(nn.Module):
    """A model whose outputs are a tuple: those of these names. alone: each text is the one option of its row"""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...], *, alone: bool):
        super().__init__()
        self.model, self.outputs, self.alone = model, outputs, alone

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if self.alone:
            given = {name: None if ids is None else ids[:, None] for name, ids in given.items()}
        found = self.model(**given)
        return tuple(getattr(found, name) for name in self.outputs)


def write_onnx(folder: Path, head: Head, probe: Probe, *, quantize: bool) -> OnnxProof:
    """Write model.onnx of the folder's model, and model_int8.onnx, and compare both with it.

    Raises
    ------
    RuntimeError: the graph gives other numbers than the model.
    """
    with hf_folder.silenced_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about what it renames itself
        model = CLASSES[head].from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        asked = _ByName(model, OUTPUTS.get(head, ("logits",)), alone=head == OPTIONS).eval()
        names = INPUTS if model.config.type_vocab_size > 1 else INPUTS[:2]
        questions = [_inputs(probe.sequences, names), _inputs(probe.sequences[:1], names)]
        _export(folder / "model.onnx", asked, names)
        answers = _differences(asked, folder / "model.onnx", questions)
        if not answers.difference <= TOLERANCE * max(1.0, answers.scale):
            raise RuntimeError(
                f"model.onnx differs from torch's model by {answers.difference:.2e}; nothing was written"
            )
        if not quantize:
            return answers
        quantize_dynamic(folder / "model.onnx", folder / "model_int8.onnx", weight_type=QuantType.QInt8)
        return answers._replace(quantized=_differences(asked, folder / "model_int8.onnx", questions).difference)


def _export(path: Path, model: _ByName, names: tuple[str, ...]) -> None:
    config: Any = model.model.config
    # Only their types and axes count; each is a tensor of its own, since one given twice is taken for one input.
    shape = (2, min(9, config.max_position_embeddings))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=config.max_position_embeddings)
    torch.onnx.export(
        model,
        tuple(torch.full(shape, int(name == "attention_mask")) for name in names),
        path,
        dynamo=True,
        input_names=list(names),
        output_names=list(model.outputs),
        dynamic_shapes={name: {0: batch, 1: length} for name in names},
        external_data=sum(weight.nbytes for weight in model.parameters()) > LARGEST_FILE,
        verbose=False,
    )


def _inputs(sequences: list[list[int]], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return sequences as a batch; what is behind a shorter one, 0, is masked."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.zeros_like(mask)
    ids[mask.bool()] = torch.tensor([token for sequence in sequences for token in sequence])
    return dict(zip(names, (ids, mask, torch.zeros_like(ids)), strict=False))


@torch.no_grad()
def _differences(model: _ByName, path: Path, questions: list[dict[str, Tensor]]) -> OnnxProof:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference, scale = 0.0, 0.0
    for inputs in questions:
        mask = inputs["attention_mask"].bool()
        theirs = session.run(list(model.outputs), {name: value.numpy() for name, value in inputs.items()})
        for ours, found in zip(model(**inputs), theirs, strict=True):
            # What a padded token gets means nothing.
            kept = mask.numpy() if ours.shape[:2] == mask.shape else np.ones(len(mask), bool)
            difference = max(difference, float(np.abs(ours.numpy()[kept] - found[kept]).max()))
            scale = max(scale, float(np.abs(found[kept]).max()))
    return OnnxProof(difference, None, scale)
