"""Models that others kept in pickles or in TensorFlow's checkpoints become the same weights; programs are refused."""

import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import BertForPreTraining

from data_prep.cli import InputError
from data_prep.tokens.wordpiece import write_tokenizer
from pretrain.export.command import ExportConfig
from pretrain.export.command import main as export
from pretrain.export.origin import check_origin
from pretrain.export.sources import find_source
from tests.tiny_hf import VOCABULARY, tiny_bert

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    """A folder of safetensors, with all files of a tokenizer."""
    folder = tiny_bert(tmp_path_factory.mktemp("other") / "hf", BertForPreTraining)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    write_tokenizer(folder, VOCABULARY, cased=False)
    return folder


@pytest.fixture
def copy(hf, tmp_path) -> Path:
    """The same without weights, as old as it may be: vocab.txt is its tokenizer."""
    shutil.copytree(hf, tmp_path / "copy")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "copy" / name).unlink()
    return tmp_path / "copy"


def weights_of(hf: Path) -> Weights:
    return load_file(hf / "model.safetensors")


def found_in(path: Path, scratch: Path, **more: Path | None) -> Weights:
    scratch.mkdir()
    asked: dict[str, Any] = {"config": None, "vocab": None} | more
    return dict(find_source(path, asked["config"], asked["vocab"], scratch=scratch).weights)


def same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


# pytorch_model.bin


@pytest.mark.parametrize("kind", ["archive", "before 1.6", "parts", "file", "wrapped"])
def test_pickled_weights_become_the_same_ones(hf, copy, tmp_path, kind):
    weights = weights_of(hf)
    path = copy / "pytorch_model.bin"
    if kind == "parts":
        names = sorted(weights)
        halves = {f"pytorch_model-0000{part + 1}-of-00002.bin": names[part::2] for part in range(2)}
        for file, part in halves.items():
            torch.save({name: weights[name] for name in part}, copy / file)
        index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
        (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif kind == "wrapped":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind != "before 1.6")
    same(found_in(path if kind == "file" else copy, tmp_path / "scratch"), weights)


class Hostile:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, made: Path):
        self.made = str(made)

    def __reduce__(self) -> tuple[Any, tuple]:
        return os.system, (f"touch {self.made}",)


@pytest.mark.parametrize("kind", ["archive", "before 1.6", "bare"])
def test_a_program_among_the_weights_is_refused_and_not_run(hf, copy, tmp_path, kind):
    made, path = tmp_path / "made", copy / "pytorch_model.bin"
    content = weights_of(hf) | {"bert.pooler.dense.bias": Hostile(made)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    message = r"is no file of torch\.save" if kind == "bare" else r"is refused: it calls posix\.system"
    with pytest.raises(InputError, match=message) as refusal:
        export(ExportConfig(copy, tmp_path / "out"))
    assert "\n" not in str(refusal.value)
    assert not made.exists()
    assert not (tmp_path / "out").exists()
    (pickle.loads(path.read_bytes()) if kind == "bare" else torch.load(path, weights_only=False))  # it is a real one
    assert made.exists()


def test_what_holds_no_weights_is_named(hf, copy, tmp_path):
    path = copy / "pytorch_model.bin"
    for content, message in (
        ({"model": {}, "epoch": 3}, r"holds no weights by name, .* \(epoch, model\)"),
        ([1, 2], r"\(list\)"),
        (
            {"bert.pooler.dense.weight": torch.zeros(2, 2), "bert.pooler.dense_act.weight": torch.zeros(2, 2)},
            "dense_act",
        ),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            found_in(path, tmp_path / f"scratch{len(message)}")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"is no file of torch\.save, or cut short"):
        check_origin(copy, None, None)
    (copy / "vocab.txt").unlink()
    torch.save(weights_of(hf), path)
    with pytest.raises(InputError, match=r"has no tokenizer\.json and no vocab\.txt"):
        check_origin(path, None, None)
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json and no bert_config\.json"):
        check_origin(path, None, None)


# NVIDIA's .pt


def test_a_checkpoint_of_nvidia_s_trainer(hf, copy, tmp_path, monkeypatch):
    """Fused layers have names of their own, the vocabulary is padded, and the data loader lies beside the weights."""
    weights = weights_of(hf)
    fused = re.compile(r"(intermediate|pooler|transform)\.dense\.")
    theirs = {fused.sub(r"\1.dense_act.", name): tensor for name, tensor in weights.items()}
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        theirs[name] = torch.cat([weights[name], torch.ones_like(weights[name][:8])])
    theirs["cls.predictions.decoder.weight"] = theirs["bert.embeddings.word_embeddings.weight"]

    class Samples(Dataset):
        def __init__(self) -> None:
            self.inputs, self.file = [np.arange(3)], "part_0.hdf5"

        def __len__(self) -> int:
            return 3

    Samples.__module__, Samples.__qualname__ = "__main__", "pretraining_dataset"
    monkeypatch.setattr(sys.modules["__main__"], "pretraining_dataset", Samples, raising=False)
    samples = Samples()
    content = {
        "model": theirs,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
        "master params": [torch.nn.Parameter(torch.ones(2))],
        "files": [0, "part_0.hdf5"],
        "epoch": 1,
        "data_loader": DataLoader(samples, sampler=RandomSampler(samples), batch_size=2, pin_memory=True),
    }
    torch.save(content, tmp_path / "ckpt_8601.pt")
    shutil.copyfile(copy / "config.json", copy / "bert_config.json")
    config, vocab = copy / "bert_config.json", copy
    found = found_in(tmp_path / "ckpt_8601.pt", tmp_path / "scratch", config=config, vocab=vocab)
    rows = {name: tensor[: len(VOCABULARY)] for name, tensor in found.items() if len(tensor) == len(VOCABULARY) + 8}
    assert len(rows) == 2
    same(found | rows, weights)
    export(ExportConfig(tmp_path / "ckpt_8601.pt", tmp_path / "out", config=config))
    same(weights_of(tmp_path / "out"), weights)


# Google's bert_model.ckpt


def remainders() -> list[int]:
    """Of each byte, bit by bit, by the polynomial of Castagnoli."""
    out = list(range(256))
    for _ in range(8):
        out = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in out]
    return out


REMAINDERS = remainders()


def crc32c(raw: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in raw:
        crc = crc >> 8 ^ REMAINDERS[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(raw: bytes) -> bytes:
    crc = crc32c(raw)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def message(**fields: int | bytes) -> bytes:
    """A protobuf message: f3=7 a number, f2=b"..." bytes, f6 a fixed32."""
    out = b""
    for name, value in fields.items():
        number = int(name[1:].split("_")[0])
        if isinstance(value, bytes):
            is_fixed = name.endswith("_fixed")
            out += varint(number << 3 | (5 if is_fixed else 2)) + (b"" if is_fixed else varint(len(value))) + value
        elif value:
            out += varint(number << 3) + varint(value)
    return out


def block(entries: list[tuple[bytes, bytes]], restart_every: int = 4) -> bytes:
    """A block of LevelDB's tables, its keys shortened by what they have in common."""
    out, restarts, last = b"", [], b""
    for number, (key, value) in enumerate(entries):
        shared = next((at for at, (one, other) in enumerate(zip(key, last, strict=False)) if one != other), len(last))
        if number % restart_every == 0:
            shared = 0
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + b"".join(at.to_bytes(4, "little") for at in [*restarts, len(restarts)])


def write_bundle(prefix: Path, tensors: dict[str, np.ndarray], shards: int = 1, endianness: int = 0) -> None:
    """The two kinds of files of a checkpoint, as tensorflow/core/util/tensor_bundle describes them."""
    types = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
    data = [b""] * shards
    entries = [(b"", message(f1=shards, f2=endianness, f3=message(f1=1)))]
    for number, name in enumerate(sorted(tensors)):
        array, shard = tensors[name], number % shards
        raw = array.tobytes()
        shape = b"".join(message(f2=message(f1=size)) for size in array.shape)
        place: dict[str, Any] = dict(f3=shard, f4=len(data[shard]), f5=len(raw), f6_fixed=masked(raw))
        entries.append((name.encode(), message(f1=types[str(array.dtype)], f2=shape, **place)))
        data[shard] += raw
    table, handles = b"", []

    def add(raw: bytes) -> bytes:
        nonlocal table
        handle = varint(len(table)) + varint(len(raw))
        table += raw + b"\0" + masked(raw + b"\0")
        return handle

    for first in range(0, len(entries), 10):
        part = entries[first : first + 10]
        handles.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(handles, restart_every=1))
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    prefix.with_name(f"{prefix.name}.index").write_bytes(table + footer.ljust(40, b"\0") + magic)
    for shard, raw in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)


def as_tensorflow(weights: Weights) -> dict[str, np.ndarray]:
    """The names of google-research/bert, kernels [in, out]; with moments of Adam beside each."""
    special = {
        "cls.predictions.bias": "cls/predictions/output_bias",
        "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
        "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    }
    out: dict[str, np.ndarray] = {"global_step": np.array(7, np.int64)}
    for name, tensor in weights.items():
        array = tensor.numpy()
        if name in special:
            theirs = special[name]
        else:
            theirs = re.sub(r"layer\.(\d+)", r"layer_\1", name)
            theirs = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", theirs)
            theirs = re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", theirs)
            theirs = re.sub(r"_embeddings\.weight$", "_embeddings", theirs)
            if theirs.endswith(".weight"):
                theirs, array = theirs.removesuffix("weight") + "kernel", array.T
            theirs = theirs.replace(".", "/")
        out[theirs] = np.ascontiguousarray(array)
        if len(out) < 20:  # enough of them
            out |= {f"{theirs}/adam_{moment}": np.zeros_like(out[theirs]) for moment in "mv"}
    return out


@pytest.fixture
def google(hf, tmp_path) -> Path:
    """uncased_L-2_H-32_A-2, as Google's archives are unpacked."""
    pytest.importorskip("google_crc32c")
    folder = tmp_path / "uncased_L-2_H-32_A-2"
    folder.mkdir()
    config = json.loads((hf / "config.json").read_text())
    keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    keys += ["hidden_act", "max_position_embeddings", "type_vocab_size", "initializer_range"]
    (folder / "bert_config.json").write_text(json.dumps({key: config[key] for key in keys}))
    shutil.copyfile(hf / "vocab.txt", folder / "vocab.txt")
    write_bundle(folder / "bert_model.ckpt", as_tensorflow(weights_of(hf)))
    return folder


def test_a_checkpoint_of_google_s_becomes_the_same_model(hf, google, tmp_path, capsys):
    export(ExportConfig(google / "bert_model.ckpt", tmp_path / "out"))
    same(weights_of(tmp_path / "out"), weights_of(hf))
    assert "uncased, as 0 of 26 entries have capitals" in capsys.readouterr().err
    made = json.loads((tmp_path / "out/config.json").read_text())
    assert (made["model_type"], made["layer_norm_eps"], made["architectures"]) == (
        "bert",
        1e-12,
        ["BertForPreTraining"],
    )
    for number, path in enumerate((google, google / "bert_model.ckpt.index")):
        same(found_in(path, tmp_path / f"scratch{number}"), weights_of(hf))
    for path in google.glob("bert_model.*"):
        path.unlink()
    halves = {name: array.astype(np.float16 if array.ndim == 2 else array.dtype) for name, array in
              as_tensorflow(weights_of(hf)).items()}  # fmt: skip
    write_bundle(google / "bert_model.ckpt", halves, shards=3)
    found = found_in(google, tmp_path / "halves")
    expected = {name: tensor.half().float() if tensor.ndim == 2 else tensor for name, tensor in weights_of(hf).items()}
    same(found, expected)


def test_a_checkpoint_that_is_damaged_or_of_another_kind_is_named(hf, google, tmp_path):
    index, data = google / "bert_model.ckpt.index", google / "bert_model.ckpt.data-00000-of-00001"
    whole = {path: path.read_bytes() for path in (index, data)}
    tensors = as_tensorflow(weights_of(hf))

    def flipped(raw: bytes, at: int) -> bytes:
        return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]

    scratch: Iterator[Path] = (tmp_path / f"scratch{number}" for number in range(99))
    for path, content, said in (
        (data, flipped(whole[data], 999), "the checksum of .* does not fit"),
        (data, whole[data][:-500], "is cut short"),
        (index, flipped(whole[index], 99), "the checksum of a block does not fit"),
        (index, whole[index][:-8], "is no whole index"),
        (index, whole[index][:40] + whole[index][-48:], "is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            found_in(google, next(scratch))
        path.write_bytes(whole[path])
    data.unlink()
    with pytest.raises(InputError, match=r"data-00000-of-00001 is missing|nor a Hugging Face folder"):
        found_in(google / "bert_model.ckpt", next(scratch))
    for more, options, said in (
        ({}, {"endianness": 1}, "big-endian"),
        ({"bert/embeddings/adapter/kernel": np.zeros((2, 2), np.float32)}, {}, "holds weights that BERT has not"),
        ({"bert/pooler/dense/bias": np.zeros(32, np.int32)}, {}, "is of TensorFlow's type 3"),
        ({"model/x/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(2, np.float32)}, {}, "a program of TensorFlow 2"),
    ):
        write_bundle(google / "bert_model.ckpt", tensors | more, **options)
        with pytest.raises(InputError, match=said):
            found_in(google, next(scratch))
    write_bundle(google / "model.ckpt-100", tensors)
    with pytest.raises(InputError, match="holds 2 checkpoints; give one of them"):
        check_origin(google, None, None)


# What the model's arithmetic is said to be


def test_another_activation_or_epsilon_stays_what_it_is(tmp_path):
    """Neither can be seen in the weights: a folder that left them out would be another model without a word."""
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}))
    export(ExportConfig(hf, tmp_path / "out"))
    made = json.loads((tmp_path / "out/config.json").read_text())
    assert (made["hidden_act"], made["layer_norm_eps"]) == ("gelu_new", 1e-5)
    for content, said in (({"hidden_act": "geglu"}, "hidden_act 'geglu'"), ({"layer_norm_eps": 2}, "layer_norm_eps 2")):
        (hf / "config.json").write_text(json.dumps(config | content))
        with pytest.raises(InputError, match=said):
            export(ExportConfig(hf, tmp_path / "none"))
