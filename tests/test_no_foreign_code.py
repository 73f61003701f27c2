"""Nothing that a folder brings along is run or unpickled, whatever stands on standard input."""

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import BertForPreTraining, BertForSequenceClassification

from data_prep import shard, vocab
from data_prep.calls import ROOT
from data_prep.cli import InputError
from pretrain import predict
from pretrain.export.command import ExportConfig
from pretrain.export.command import main as export
from pretrain.finetune.command import FinetuneConfig
from pretrain.finetune.command import main as finetune
from pretrain.import_universal import ImportConfig
from pretrain.import_universal import main as import_universal
from pretrain.settings.config import TrainConfig
from pretrain.train import train
from tests.corpora import write
from tests.stores import store_of
from tests.tiny_hf import tiny_bert

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast
Path({marker!r}).write_text("run")
class Config(BertConfig):
    model_type = "mine"
class Model(BertForPreTraining):
    config_class = Config
class Tokens(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "mine.Config", "AutoModelForMaskedLM": "mine.Model", "AutoTokenizer": [None, "mine.Tokens"]}
AUTO_MAP |= {"AutoModelForSequenceClassification": "mine.Model", "AutoModel": "mine.Model"}


@pytest.fixture(autouse=True)
def _yes(monkeypatch) -> None:
    """As in `yes | command`."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))


class Shell:
    """What a hostile pickle holds."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def said(folder: Path, name: str, **settings: Any) -> None:
    """Add to one of a folder's JSON files."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | settings))


def code_of_its_own(hf: Path, marker: Path) -> None:
    write(hf / "mine.py", CODE.format(marker=str(marker)))
    said(hf, "config.json", model_type="mine", auto_map=AUTO_MAP)
    said(hf, "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Tokens")


def code_of_a_known_type(hf: Path, marker: Path) -> None:
    code_of_its_own(hf, marker)
    said(hf, "config.json", model_type="bert")


def code_of_the_tokenizer(hf: Path, marker: Path) -> None:
    write(hf / "mine.py", CODE.format(marker=str(marker)))
    said(hf, "tokenizer_config.json", auto_map=["mine.Tokens", "mine.Tokens"], tokenizer_class="Tokens")


def index_of(name: str) -> Callable[[Path, Path], None]:
    """A folder whose index names a file of this name, a pickle that runs something."""

    def make(hf: Path, marker: Path) -> None:
        (hf / "model.safetensors").unlink()
        (hf / name).write_bytes(pickle.dumps(Shell(marker)))
        weights = {"bert.embeddings.word_embeddings.weight": name}
        said(hf, "model.safetensors.index.json", metadata={}, weight_map=weights)

    return make


def adapter(hf: Path, marker: Path) -> None:
    said(hf, "adapter_config.json", base_model_name_or_path="elsewhere", peft_type="LORA")


def weights_elsewhere(hf: Path, marker: Path) -> None:
    (hf / "adapter_model.bin").write_bytes(pickle.dumps(Shell(marker)))
    said(hf, "config.json", transformers_weights="adapter_model.bin")


def fetched_attention(hf: Path, marker: Path) -> None:
    said(hf, "config.json", attn_implementation="somebody/kernel")


HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "code": (code_of_its_own, r"auto_map|'mine' model"),
    "code of a known type": (code_of_a_known_type, "auto_map .* never run"),
    "code of the tokenizer": (code_of_the_tokenizer, "auto_map .* never run"),
    "an index of a pickle": (index_of("pytorch_model.bin"), r"names \"pytorch_model\.bin\".*nothing is unpickled"),
    "an index of a .pt": (index_of("weights.pt"), r"names \"weights\.pt\""),
    "an index that leads out": (index_of("../outside.safetensors"), r"names \"\.\./outside\.safetensors\""),
    "an adapter": (adapter, "adapter"),
    "weights elsewhere": (weights_elsewhere, "transformers_weights"),
    "attention to be fetched": (fetched_attention, "attn_implementation .* fetched"),
}


def by_predict(hf: Path, place: Path) -> None:
    predict.main(predict.PredictConfig(hf, ("one two [MASK]",), fill=True))


def by_finetune(hf: Path, place: Path) -> None:
    data = write(place / "data.tsv", "text\tlabel\none two\ta\nthree\tb\n")
    finetune(FinetuneConfig(hf, "classify", data, data, place / "out", seq_len=16))


def by_finetune_from_scratch(hf: Path, place: Path) -> None:
    data = write(place / "data.tsv", "text\tlabel\none two\ta\nthree\tb\n")
    finetune(FinetuneConfig(hf, "classify", data, data, place / "out", seq_len=16, epochs=1, from_scratch=True))


def by_export(hf: Path, place: Path) -> None:
    export(ExportConfig(hf, place / "out"))


def by_init_from(hf: Path, place: Path) -> None:
    store = store_of(place / "store", [[[5, 6], [7]], [[8], [9]]], vocab_size=26)
    train(TrainConfig(data=(str(store.folder),), out=place / "out", init_from=hf, seq_len=16, steps=1))


def by_import(hf: Path, place: Path) -> None:
    store = store_of(place / "store", [[[5, 6], [7]], [[8], [9]]], vocab_size=26)
    import_universal(ImportConfig(place / "universal", store.folder, place / "out", init_from=hf))


COMMANDS = [by_predict, by_finetune, by_export, by_init_from, by_import]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_command_runs_nothing_of_a_folder(tmp_path, hostile, command):
    make, message = HOSTILE[hostile]
    hf, marker = tiny_bert(tmp_path / "hf", BertForPreTraining), tmp_path / "marker"
    make(hf, marker)
    with pytest.raises(InputError, match=message) as refusal:
        command(hf, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    assert sys.stdin.read() == "y\n" * 100, "nobody was asked"


@pytest.mark.parametrize("hostile", ["code", "code of a known type", "code of the tokenizer"])
def test_code_is_not_run_for_a_model_from_scratch(tmp_path, hostile):
    hf, marker = tiny_bert(tmp_path / "hf", BertForPreTraining), tmp_path / "marker"
    HOSTILE[hostile][0](hf, marker)
    with pytest.raises(InputError, match="auto_map"):
        by_finetune_from_scratch(hf, tmp_path)
    assert not marker.exists()


def test_a_tokenizer_of_its_own_makes_no_store(tmp_path):
    hf, marker = tiny_bert(tmp_path / "hf", BertForPreTraining), tmp_path / "marker"
    code_of_the_tokenizer(hf, marker)
    write(tmp_path / "corpus.txt", "one two three. four five.\n\nsix seven. eight.")
    with pytest.raises(InputError, match=r"auto_map .* never run"):
        shard.main(shard.ShardConfig(hf, tmp_path / "out", (str(tmp_path / "corpus.txt"),), workers=1))
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_is_text(tmp_path):
    hf, marker = tiny_bert(tmp_path / "hf", BertForPreTraining), tmp_path / "marker"
    code_of_its_own(hf, marker)
    with pytest.raises(InputError, match="cannot be read"):
        vocab.main(vocab.VocabConfig(tmp_path / "out", from_vocab=hf))
    (tmp_path / "vocab.txt").write_bytes(pickle.dumps(Shell(marker), protocol=0))
    with pytest.raises(InputError, match="lacks"):
        vocab.main(vocab.VocabConfig(tmp_path / "out", from_vocab=tmp_path / "vocab.txt"))
    assert not marker.exists()


def test_only_the_safetensors_of_the_folder_are_read(tmp_path, capsys):
    """Pickles beside them, or hints at them that nobody follows, harm nothing."""
    hf, marker = tiny_bert(tmp_path / "hf", BertForSequenceClassification), tmp_path / "marker"
    for name in ("pytorch_model.bin", "training_args.bin", "vocab.pkl"):
        (hf / name).write_bytes(pickle.dumps(Shell(marker)))
    (hf / "model.safetensors").rename(hf / "model-00001-of-00001.safetensors")
    with safe_open(hf / "model-00001-of-00001.safetensors", "pt") as file:
        names = dict.fromkeys(file.keys(), "model-00001-of-00001.safetensors")
    said(hf, "model.safetensors.index.json", metadata={}, weight_map=names)
    predict.main(predict.PredictConfig(hf, ("one two",)))
    assert "one two" in capsys.readouterr().out
    assert not marker.exists()
    (hf / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model-00001-of-00001\.safetensors"):
        predict.main(predict.PredictConfig(hf, ("one two",)))


def test_libraries_are_kept_from_the_network():
    asked = "from pretrain.hf_files import forbid_network; forbid_network(); import huggingface_hub.constants as hub"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", f"{asked}; assert hub.HF_HUB_OFFLINE"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
