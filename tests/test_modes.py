"""Files have the mode that the umask says, whatever library wrote them: others must read what is meant for them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertForPreTraining

from data_prep.files import set_umask_mode, write_folder, write_whole
from data_prep.vocab import VocabConfig
from data_prep.vocab import main as make_vocab
from pretrain.export.command import ExportConfig
from pretrain.export.command import main as export
from pretrain.finetune.command import FinetuneConfig
from pretrain.finetune.command import main as finetune
from pretrain.train import train
from tests.corpora import write
from tests.runs import tiny_run
from tests.stores import random_documents, store_of
from tests.tiny_hf import tiny_bert

UMASKS = [0o022, 0o077, 0o027]


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> set[str]:
    return {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("value", UMASKS)
def test_a_folder_is_written_by_the_umask(tmp_path, value):
    secret = write(tmp_path / "secret", "")
    secret.chmod(0o400)

    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        save_file({"a": torch.zeros(2)}, folder / "inner/model.safetensors")
        (folder / "copied").write_bytes(secret.read_bytes())
        (folder / "copied").chmod(0o400)
        write_whole(folder / "whole", [b""])

    with umask(value):
        write_folder(tmp_path / "out", fill)
    assert modes(tmp_path / "out") == {oct(0o666 & ~value)}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~value
    with umask(value):
        (tmp_path / "new").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "new/model.safetensors")
    set_umask_mode(tmp_path / "new/model.safetensors")
    assert modes(tmp_path / "new") == {oct(0o666 & ~value)}


def test_models_and_tokenizers(tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    assert (hf / "model.safetensors").stat().st_mode & 0o777 == 0o600, "safetensors does otherwise now"
    data = write(tmp_path / "data.tsv", "text\tlabel\none two\ta\nthree\tb\n")
    words = write(tmp_path / "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na")
    with umask(0o027):
        export(ExportConfig(hf, tmp_path / "out/exported"))
        finetune(FinetuneConfig(hf, "classify", data, data, tmp_path / "out/tuned", seq_len=16, epochs=1))
        make_vocab(VocabConfig(tmp_path / "out/vocab", from_vocab=words))
    assert modes(tmp_path / "out") == {oct(0o666 & ~0o027)}


@pytest.mark.slow
@pytest.mark.parametrize("value", [0o022, 0o077])
def test_runs_and_their_checkpoints(tmp_path, value):
    from tests.ranks import run_ranks

    store = store_of(tmp_path / "store", random_documents(30)).folder
    with umask(value):
        run_ranks(1, train, tiny_run(store, tmp_path / "run", steps=2, warmup=0, global_batch=4, save_every=1))
    assert len(list((tmp_path / "run").rglob("rank-*.safetensors"))) == 2
    assert modes(tmp_path / "run") == {oct(0o666 & ~value)}
