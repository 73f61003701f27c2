"""A checkpoint becomes a Hugging Face folder, and is proved to be the same model. command.py asks.

convert(source, out, Target("mlm"), config=None, vocab=None)
"""

import ctypes
import gc
import json
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel

from data_prep.cli import InputError, print_json, say
from data_prep.files import write_folder, write_json
from data_prep.json_types import JsonObject
from data_prep.tokens import contract
from data_prep.tokens.tokenizer_folder import TOKENIZER_FILES
from data_prep.untrusted import read_object
from pretrain import hf_folder
from pretrain.export.card import About, write_card
from pretrain.export.heads import CLASSES, TASKS, Parts, default_head, parts, read_part, skeleton
from pretrain.export.origin import PROVENANCE, Dtype, Format, Head, Weights
from pretrain.export.proof import (
    Probe,
    check_finite,
    difference_of,
    folder_outputs,
    largest_difference,
    trained_outputs,
)
from pretrain.export.sentence_format import write_sentence_files
from pretrain.export.sources import ExportSource, find_source
from pretrain.export.tensors import write_safetensors

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Target(NamedTuple):
    """What is to be written."""

    head: Head | None = None  # None: what the source was trained for
    dtype: Dtype = "fp32"
    format: Format = "hf"
    quantize: bool = False  # of ONNX, a second graph in int8
    license: str | None = None  # for the model card


def convert(
    source_folder: Path,
    out: Path,
    target: Target,
    *,
    config: Path | None = None,
    vocab: Path | None = None,
    weights: Weights = "raw",
    as_json: bool = False,
) -> None:
    """Convert, compare, then put into place."""
    with TemporaryDirectory() as scratch:
        source = find_source(source_folder, config, vocab, weights, Path(scratch))
        _convert(source, out, target, as_json=as_json)


def _convert(source: ExportSource, out: Path, target: Target, *, as_json: bool) -> None:
    say(f"exporting {source.origin}" + ("" if source.step is None else f" (step {source.step})"))
    head = target.head or ("base" if target.format == "sentence-transformers" else default_head(source))
    if source.task_weights and head not in TASKS:
        left = sorted({name.partition(".")[0] for name in source.task_weights})
        say(f"{source.origin}: not converted: {', '.join(left)} (heads of other tasks)")
    target = target._replace(head=head)

    def fill(folder: Path) -> None:
        write_tokenizer(folder, source)
        found = write_model(folder, source, target)
        longest = read_object(folder / contract.CONFIG)["model_max_length"]
        if target.format == "sentence-transformers":
            hidden, has_pooler = source.identity.model["hidden_size"], "pooler.dense.weight" in found.stored
            write_sentence_files(folder, hidden=hidden, longest=longest, has_pooler=has_pooler)
        write_card(folder, source, About(head, target.format, found.new, longest, target.license))
        proof = prove(folder, source, target, found)
        if target.format == "onnx":
            proof |= _to_onnx(folder, source, target, found)
        files = sorted({PROVENANCE, *(path.name for path in folder.iterdir())})
        record = provenance(source, target) | proof | {"parameters": found.parameters, "files": files}
        write_json(folder / PROVENANCE, record)

    write_folder(out, fill)
    result = json.loads((out / PROVENANCE).read_text("utf-8"))
    rounding = result.get("rounding_difference")
    say(
        f"{out}: {head}, {result['parameters']:,} parameters, {source.identity.vocab_size} vocabulary "
        f"entries; largest difference to the trainer's outputs {result['largest_difference']:.1e}"
        + ("" if rounding is None else f", and {rounding:.1e} by rounding to {target.dtype}")
    )
    if as_json:
        told = ("step", "head", "largest_difference", "rounding_difference", "onnx_difference", "int8_difference")
        print_json({"out": str(out)} | {name: result[name] for name in told if name in result})


def write_model(folder: Path, source: ExportSource, target: Target) -> Parts:
    """Write config.json and model.safetensors, with the vocabulary's true size; return what the weights are.

    Raises
    ------
    InputError: the source lacks what the head needs, or holds numbers that are none.
    """
    assert target.head is not None
    model = skeleton(source, target.head)
    found = parts(model, source, target.head)
    shapes = {name: weight.shape for name, weight in model.named_parameters() if name not in found.absent}

    def read(name: str) -> torch.Tensor:
        tensor = read_part(name, shapes[name], source, found)
        hf_folder.check_finite(source.origin, [(name, tensor)])
        return tensor

    write_safetensors(folder / "model.safetensors", shapes, DTYPES[target.dtype], read)
    _write_config(folder, model, source, target)
    if found.new:
        say(f"new, and random until it is trained: {', '.join(found.new)}")
    return found


def _write_config(folder: Path, model: PreTrainedModel, source: ExportSource, target: Target) -> None:
    """Write config.json and, of a model that generates, generation_config.json."""
    assert target.head is not None
    config: Any = model.config
    config.architectures, config.dtype = [CLASSES[target.head].__name__], DTYPES[target.dtype]
    with hf_folder.silenced_libraries():
        if target.head in ("causal", "encoder-decoder"):
            # A text begins with [CLS] and ends with [SEP], as in training.
            tokenizer = hf_folder.open_tokenizer(folder, source.identity.vocab_size)
            ends = {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
            begins = {"bos_token_id": tokenizer.cls_token_id}
            if target.head == "encoder-decoder":
                config.decoder_start_token_id = tokenizer.cls_token_id
                begins["decoder_start_token_id"] = tokenizer.cls_token_id
            GenerationConfig(**begins, **ends).save_pretrained(folder)
        config.save_pretrained(folder)


def write_tokenizer(folder: Path, source: ExportSource) -> None:
    """Write the tokenizer of the source, opened as transformers will and compared with what made the ids.

    Readers cut a text at its `model_max_length`: the positions that were trained, of those that there are.

    Raises
    ------
    InputError: transformers would give other ids; naming a text, both ids and what to change.
    """
    with contract.settled(source.tokenizer) as vocab:
        for name in TOKENIZER_FILES:
            if (vocab / name).is_file():
                shutil.copyfile(vocab / name, folder / name)
    settings = read_object(folder / contract.CONFIG)
    positions = source.identity.model["max_position_embeddings"]
    longest = min(positions, source.trained_length or positions)
    if not 0 < (settings.get("model_max_length") or 0) <= longest:
        write_json(folder / contract.CONFIG, settings | {"model_max_length": longest})
    contract.check(folder, named=source.tokenizer)


def prove(folder: Path, source: ExportSource, target: Target, found: Parts) -> JsonObject:
    """Compare the folder with the trained model, one of them in memory at a time; return, for provenance.json, how far
    the same weights are from each other by transformers and by the trainer, and what 16 bit change of them.

    Raises
    ------
    InputError: the tokenizer does not fit the model, or 16 bit do not hold the weights.
    RuntimeError: the folder is not the trained model.
    """
    assert target.head is not None
    dtype = DTYPES[target.dtype]
    probe = _probe(folder, source)
    ours = trained_outputs(source, probe, dtype)
    _give_memory_back()
    check_finite(source, ours, dtype)
    theirs = folder_outputs(folder, target.head, probe, found.new)
    difference = largest_difference(ours, theirs)
    _give_memory_back()
    rounding = None
    if target.dtype != "fp32":
        rounding, _ = difference_of(trained_outputs(source, probe), {name: ours[name] for name in theirs})
    return {"largest_difference": difference, "rounding_difference": rounding}


def _give_memory_back() -> None:
    """Let go of a model that is not needed any more: glibc keeps what was freed for the thread that had it, and
    transformers loads the next one in other threads."""
    gc.collect()
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _probe(folder: Path, source: ExportSource) -> Probe:
    return Probe.of(folder, source.identity.vocab_size, source.identity.model["max_position_embeddings"])


def _to_onnx(folder: Path, source: ExportSource, target: Target, found: Parts) -> JsonObject:
    """Put a graph in the place of the weights, and return what it was measured to differ by.

    Raises
    ------
    InputError: a head that nobody has trained.
    """
    # onnx and its runtime are an extra.
    from pretrain.export.onnx_format import write_onnx

    assert target.head is not None
    if found.new:
        raise InputError(
            f"--head {target.head}: {', '.join(found.new)} is new, and answers nothing yet; fine-tune first"
        )
    proof = write_onnx(folder, target.head, _probe(folder, source), quantize=target.quantize)
    (folder / "model.safetensors").unlink()
    shares = {"onnx_difference": proof.difference, "int8_difference": proof.quantized, "largest_output": proof.scale}
    say(
        f"largest difference of model.onnx in ONNX Runtime to torch {proof.difference:.1e}"
        + ("" if proof.quantized is None else f", of model_int8.onnx {proof.quantized:.2g}")
        + f"; the largest output is {proof.scale:.3g}"
    )
    return {name: value for name, value in shares.items() if value is not None}


def provenance(source: ExportSource, target: Target) -> JsonObject:
    """Return what is known of where the folder comes from."""
    return source.record | {
        "step": source.step,
        "head": target.head,
        "dtype": target.dtype,
        "format": target.format,
        "vocab_sha256": source.identity.vocab_sha256,
        "trained_length": source.trained_length,
    }
