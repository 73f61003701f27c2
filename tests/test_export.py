"""The exported folder gives the trainer's outputs in plain transformers (invariant g)."""

import contextlib
import functools
import gc
import json
import logging
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
)

from data_prep.cli import InputError, run
from data_prep.store_manifest import read_manifest
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.checkpoints.slices import read_weights
from pretrain.checkpoints.verify import verify_checkpoint
from pretrain.export import heads, proof, sources
from pretrain.export import hf_writer as export
from pretrain.export.command import ExportConfig, main
from pretrain.export.origin import Dtype, Head
from pretrain.export.proof import TOLERANCE
from pretrain.train import train
from tests.corpora import files_of
from tests.ranks import run_ranks
from tests.runs import train_config
from tests.stores import random_documents, store_of
from tests.tiny_hf import tiny_bert

VOCAB = 90  # padded to 128 inside the model


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    store = store_of(
        folder / "store", random_documents(30, vocab_size=VOCAB), vocab_size=VOCAB, held_out={1, 2, 7}
    ).folder
    config = train_config(
        data=(str(store),), out=folder / "run", model="bert-tiny", seq_len=32, steps=4, warmup=1, lr=1e-3,
        global_batch=8, save_every=2, eval_samples=8, zero=3,
    )  # fmt: skip
    run_ranks(2, train, config)
    return folder / "run"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    main(ExportConfig(trained, out))
    return out


def loading(model_class: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model, and what transformers reports of loading it."""
    return model_class.from_pretrained(folder, output_loading_info=True)


def test_weights_are_the_checkpoint_s_without_the_padding(trained, exported):
    manifest = verify_checkpoint(checkpoint_dir(trained, 4))
    weights = read_weights(checkpoint_dir(trained, 4), manifest.parameters)
    stored = load_file(exported / "model.safetensors")
    assert stored.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(stored[name], weight[: len(stored[name])], rtol=0, atol=0)
    assert len(stored["bert.embeddings.word_embeddings.weight"]) == VOCAB
    assert len(weights["bert.embeddings.word_embeddings.weight"]) == 128


def test_the_folder_is_complete_and_loads_silently(exported, capfd):
    names = {path.name for path in exported.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "provenance.json",
    } <= names
    capfd.readouterr()
    model, report = loading(BertForPreTraining, exported)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(exported)) == VOCAB
    assert json.loads((exported / "provenance.json").read_text())["step"] == 4


def test_the_card_tells_of_data_training_and_use(trained, exported, tmp_path):
    text, metadata = (exported / "README.md").read_text(), ModelCard.load(exported / "README.md").data
    record = json.loads((exported / "provenance.json").read_text())
    store = read_manifest(Path(record["stores"][0]["folder"]))
    for said in (
        f"| store | not stated | {store.counts.documents} | {store.counts.tokens:,} | ",
        f"Held out of training: {store.counts.held_out_documents} documents",
        "Texts are cut at 32 tokens: of its 512 positions, those behind were never trained.",
        "| Learning rate | 0.001, linear, warm-up 1 steps |",
        "| Checkpoint | step 4, 20",
        "On held-out documents: MLM loss",
        'ask = pipeline("fill-mask", model="FOLDER")',
        "Not stated. Ask whoever trained the model",
        "![Masked-word loss](curve.png)",
    ):
        assert said in text, said
    assert metadata.license is None
    assert (exported / "curve.png").read_bytes().startswith(b"\x89PNG")
    main(ExportConfig(trained, tmp_path / "hf", head="encoder-decoder", license="apache-2.0"))
    assert ModelCard.load(tmp_path / "hf/README.md").data.license == "apache-2.0"
    assert "New, and random until it is trained: cross-attention." in (tmp_path / "hf/README.md").read_text()


def test_hello_my_dog_is_cute(exported):
    inputs = BertTokenizer.from_pretrained(exported)("Hello, my dog is cute", return_tensors="pt")
    logits = BertForSequenceClassification.from_pretrained(exported)(**inputs).logits
    assert logits.shape == (1, 2)


AUTO: dict[Head, Any] = {
    "pretraining": AutoModelForPreTraining,
    "mlm": AutoModelForMaskedLM,
    "base": AutoModel,
    "nsp": AutoModelForNextSentencePrediction,
    "causal": AutoModelForCausalLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


@pytest.mark.parametrize("head", AUTO)
def test_each_head_loads_in_its_class_with_nothing_said_but_what_is_new(trained, tmp_path, caplog, head):
    dtype: Dtype = "bf16" if head in ("base", "causal") else "fp32"
    main(ExportConfig(trained / "checkpoints/step-0000002", tmp_path / "hf", head=head, dtype=dtype))
    record = json.loads((tmp_path / "hf/provenance.json").read_text())
    assert record["largest_difference"] < TOLERANCE
    assert (record["rounding_difference"] is None) == (dtype == "fp32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.model_max_length == record["trained_length"] == 32  # of 512 positions
    with caplog.at_level(logging.INFO, "transformers"), warnings.catch_warnings():
        warnings.simplefilter("error")
        caplog.clear()
        model, report = loading(AUTO[head], tmp_path / "hf")
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    tasks = ("sequence-classification", "token-classification", "multiple-choice")
    new = dict.fromkeys(tasks, "classifier") | {"question-answering": "qa_outputs"}
    assert {name.split(".")[0] for name in report["missing_keys"]} == ({new[head]} if head in new else set())
    assert not report["unexpected_keys"]
    told = [line.message for line in caplog.records if line.levelno >= logging.WARNING]
    assert all("LOAD REPORT" in line and "MISSING" in line for line in told)
    assert bool(told) == (head in new)


def test_without_sentence_pairs_their_head_is_left_out(trained, hf):
    source = sources.find_source(trained, None, None)
    assert heads.default_head(source) == "pretraining"
    alone = source._replace(has_pairs=False)
    assert heads.default_head(alone) == "mlm"
    assert heads.parts(heads.skeleton(alone, "sequence-classification"), alone, "sequence-classification").new == [
        "bert.pooler",
        "classifier",
    ]
    assert not any("pooler" in name for name, _ in heads.skeleton(alone, "base").named_parameters())
    assert heads.default_head(sources.find_source(hf, None, None)) == "pretraining"
    shutil.rmtree(hf)
    assert heads.default_head(sources.find_source(tiny_bert(hf, BertForMaskedLM), None, None)) == "mlm"


def test_positions_are_those_of_the_phases_trained_so_far():
    phases = [{"steps": 3, "seq_len": 16}, {"steps": 5, "seq_len": 64}]
    for step, init, expected in ((3, None, 16), (4, None, 64), (3, "gone", 512)):
        record = {"train": {"init_from": init, "seq_len": 16}, "phases": phases, "segments": []}
        assert sources.trained_length(record, step, 512) == expected


@pytest.mark.parametrize(
    "kind",
    [BertForSequenceClassification, BertForTokenClassification, BertForQuestionAnswering, BertForMultipleChoice],
)
def test_a_fine_tuned_head_goes_along(tmp_path, kind):
    tuned = tiny_bert(tmp_path / "tuned", kind)
    main(ExportConfig(tuned, tmp_path / "hf", dtype="fp16"))
    model, report = loading(kind, tmp_path / "hf")
    assert not report["missing_keys"]
    theirs = kind.from_pretrained(tuned, dtype=torch.float16)
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=0, atol=0)


def embedded(hf: Path, text: str) -> torch.Tensor:
    """The mean over the tokens of a text, of unit length, by transformers alone."""
    inputs = AutoTokenizer.from_pretrained(hf)(text, return_tensors="pt")
    hidden = AutoModel.from_pretrained(hf)(**inputs).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(0), dim=0).detach()


@pytest.mark.parametrize("kind", [BertForPreTraining, BertForMaskedLM])
def test_a_folder_of_sentences_is_read_alike_by_old_and_new_readers(tmp_path, kind):
    """By rule: text-embeddings-inference, vLLM and llama.cpp are not installed."""
    with pytest.raises(InputError, match="holds the encoder alone; leave out --head"):
        main(ExportConfig(tmp_path, tmp_path / "hf", "mlm", format="sentence-transformers"))
    out = tmp_path / "out"
    for _ in range(2):  # an earlier one is replaced
        main(ExportConfig(tiny_bert(tmp_path / "hf", kind), out, format="sentence-transformers"))
    content = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    pooling = json.loads((out / "1_Pooling/config.json").read_text())
    assert [module["path"] for module in content["modules.json"]] == ["", "1_Pooling", "2_Normalize"]
    assert pooling["pooling_mode"] == "mean"
    assert (pooling["pooling_mode_mean_tokens"], pooling["pooling_mode_cls_token"]) == (True, False)
    model = json.loads((out / "config.json").read_text())
    assert pooling["embedding_dimension"] == pooling["word_embedding_dimension"] == model["hidden_size"] == 32
    assert model["architectures"] == ["BertModel"]
    assert {"pad_token_id", "initializer_range", "vocab_size"} <= model.keys()
    assert content["sentence_bert_config.json"]["max_seq_length"] == 64
    assert content["tokenizer_config.json"]["model_max_length"] == 64
    with contextlib.suppress(ImportError):
        from sentence_transformers import SentenceTransformer

        found = SentenceTransformer(str(out)).encode("one two")
        torch.testing.assert_close(torch.from_numpy(found), embedded(out, "one two"), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForMultipleChoice])
def test_a_graph_gives_the_numbers_of_the_model_at_any_shape(tmp_path, kind):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    tuned = tiny_bert(tmp_path / "tuned", kind)
    main(ExportConfig(tuned, tmp_path / "onnx", format="onnx", quantize="int8"))
    record = json.loads((tmp_path / "onnx/provenance.json").read_text())
    assert record["onnx_difference"] < TOLERANCE < record["int8_difference"] < 0.1
    assert {"model.onnx", "model_int8.onnx", "tokenizer.json", "config.json"} < {*record["files"]}
    assert not (tmp_path / "onnx/model.safetensors").exists()
    model = kind.from_pretrained(tuned).eval()
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    for shape in ((1, 1), (5, 64)):
        ids = torch.randint(5, 26, shape)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.ones_like(ids)}
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
        if kind is BertForMultipleChoice:  # to torch each text is the one option of a row
            inputs = {name: value[:, None] for name, value in inputs.items()}
        torch.testing.assert_close(torch.from_numpy(found), model(**inputs).logits, rtol=0, atol=1e-5)


def test_what_a_format_cannot_hold_is_refused_at_once(hf, tmp_path, monkeypatch):
    whole = ExportConfig(hf, tmp_path / "out")
    for config, message in (
        (replace(whole, format="onnx", dtype="bf16"), "--format onnx is fp32"),
        (replace(whole, format="onnx", head="causal"), "choose another head"),
        (replace(whole, quantize="int8"), "is of --format onnx"),
        (replace(whole, format="sentence-transformers", head="nsp"), "holds the encoder alone"),
    ):
        with pytest.raises(InputError, match=message):
            main(config)
    monkeypatch.setattr("pretrain.export.command.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package onnx: pip install 'zerobert\[onnx\]'"):
        main(ExportConfig(hf, tmp_path / "out", format="onnx"))


def test_wrong_arithmetic_is_noticed_and_nothing_is_written(trained, tmp_path, monkeypatch):
    """Keys cannot tell that LayerNorm's epsilon is another; outputs can."""
    write_model = export.write_model

    def with_another_epsilon(folder: Path, *arguments):
        found = write_model(folder, *arguments)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-2}))
        return found

    monkeypatch.setattr(export, "write_model", with_another_epsilon)
    with pytest.raises(RuntimeError, match="differs from the trained one"):
        main(ExportConfig(trained, tmp_path / "hf"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused(trained, tmp_path):
    for source, message in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "neither a run folder")):
        with pytest.raises(InputError, match=message):
            main(ExportConfig(source, tmp_path / "hf"))
    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    next(checkpoint_dir(damaged, 4).glob("rank-00000*")).write_bytes(b"")
    with pytest.raises(InputError, match="has 0 bytes"):
        main(ExportConfig(checkpoint_dir(damaged, 4), tmp_path / "hf"))
    main(ExportConfig(damaged, tmp_path / "hf"))  # falls back to the checkpoint that is whole
    assert json.loads((tmp_path / "hf/provenance.json").read_text())["step"] == 2


@pytest.fixture
def hf(tmp_path) -> Path:
    return tiny_bert(tmp_path / "hf", BertForPreTraining)


def test_nothing_but_an_earlier_export_is_replaced(hf, tmp_path):
    def refused(out: Path, message: str) -> None:
        before = files_of(tmp_path)
        with pytest.raises(InputError, match=message) as refusal:
            main(ExportConfig(hf, out, "mlm"))
        assert files_of(tmp_path) == before
        assert "\n" not in str(refusal.value)

    run = tmp_path / "run"  # which has a config.json, too
    (run / "checkpoints/step-0000002").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "checkpoints/step-0000002/manifest.json"):
        (run / name).write_text("{}")
    refused(run, r"holds checkpoints, which is of no earlier result")
    refused(hf, "would replace .*hf, which is read")
    refused(tmp_path, "would replace .*hf, which is read")
    refused(tiny_bert(tmp_path / "other", BertForPreTraining), r"holds config\.json, which is of no earlier result")
    refused(run / "config.json", r"config\.json is a file: choose a folder")
    refused(run / "config.json/hf", r"config\.json is a file: choose a folder")
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    for head in ("mlm", "base", "mlm"):
        main(ExportConfig(hf, out if head == "mlm" else tmp_path / "link", head))
        assert json.loads((out / "provenance.json").read_text())["head"] == head
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob("*.partial*"))
    (out / "thesis.txt").write_text("important")
    refused(out, r"holds thesis\.txt")
    (out / "thesis.txt").unlink()
    provenance = json.loads((out / "provenance.json").read_text())
    del provenance["files"]  # of an older version
    (out / "provenance.json").write_text(json.dumps(provenance))
    main(ExportConfig(hf, out))


def test_the_parameters_told_are_those_of_the_folder(hf, tmp_path):
    kinds: dict[Head, Any] = {"mlm": BertForMaskedLM, "pretraining": BertForPreTraining}
    for head, kind in kinds.items():
        main(ExportConfig(hf, tmp_path / head, head))
        told = json.loads((tmp_path / head / "provenance.json").read_text())["parameters"]
        assert told == kind.from_pretrained(tmp_path / head).num_parameters()


def test_one_model_is_in_memory_at_a_time(tmp_path, monkeypatch):
    def held() -> int:
        """Bytes of all tensors that are alive, each storage once, of mapped files too."""
        storages = [item.untyped_storage() for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
        return sum({one.data_ptr(): one.nbytes() for one in storages if one.device.type == "cpu"}.values())

    config = BertConfig(
        vocab_size=26, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=64,
    )  # fmt: skip
    tiny = tiny_bert(tmp_path / "source", BertForPreTraining)  # for its tokenizer
    BertForPreTraining(config).save_pretrained(tiny)
    size = sum(path.stat().st_size for path in tiny.glob("*.safetensors"))
    seen: dict[str, list[int]] = {}

    def watched(owner: Any, name: str) -> None:
        ask = getattr(owner, name)

        @functools.wraps(ask)
        def answer(*given: Any, **options: Any) -> Any:
            seen.setdefault(name, []).append(held() - before)
            return ask(*given, **options)

        monkeypatch.setattr(owner, name, answer)

    watched(export, "read_part")  # while the folder is written,
    watched(proof, "encode_head_rows")  # while the trainer's model answers,
    watched(BertModel, "forward")  # and while transformers' does
    gc.collect()
    before = held()
    main(ExportConfig(tiny, tmp_path / "out", "base"))
    assert max(seen["read_part"]) < 0.3 * size  # the largest weight is a twelfth
    assert 0.8 * size < max(seen["encode_head_rows"]) < 1.1 * size
    assert 0.8 * size < max(seen["forward"]) < 1.1 * size


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_record_of_where_a_folder_comes_from_is_left_out(hf, tmp_path, capsys, content):
    (hf / "provenance.json").write_bytes(content)
    main(ExportConfig(hf, tmp_path / "out"))
    assert f"warning: where {hf} comes from is not known" in capsys.readouterr().err


def test_large_numbers_are_compared_by_their_size(hf, tmp_path):
    weights = load_file(hf / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, hf / "model.safetensors", {"format": "pt"})
    main(ExportConfig(hf, tmp_path / "out", "mlm"))


def test_a_full_disk_is_one_line_and_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        monkeypatch.setattr(sys, "argv", ["export", str(trained), str(disk / "hf")])
        with pytest.raises(SystemExit, match="1"):
            run(main, ExportConfig, "")
        assert "error: " in (error := capsys.readouterr().err.splitlines()[-1])
        assert "disk" in error
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
