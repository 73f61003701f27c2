"""What is wrong with a command line is one line: the option, what was written, and the nearest name that there is."""

import pytest

from data_prep import dedup, vocab
from data_prep.cli import InputError, parse
from data_prep.shard import ShardConfig
from launch.settings import MakeConfig
from pretrain.export.command import ExportConfig
from pretrain.finetune.command import FinetuneConfig
from pretrain.settings.config import TrainConfig

SHARD = "--corpus a.txt --vocab v --out s"
TRAIN = "--data s --out run --model bert-tiny"


@pytest.mark.parametrize(
    ("command", "line", "told"),
    [
        (ShardConfig, "--corpsu a --vocab v --out s", "--corpsu is no option of this command; did you mean --corpus?"),
        (ShardConfig, f"{SHARD} --workres=3", "--workres is no option of this command; did you mean --workers?"),
        (ShardConfig, f"{SHARD} -workers 3", "-workers is no option of this command; did you mean --workers?"),
        (
            TrainConfig,
            f"{TRAIN} --learning_rate 1",
            "--learning_rate is no option of this command; did you mean --lr? (",
        ),
        (TrainConfig, f"{TRAIN} --batch 1", "did you mean --batch_warmup or --global_batch or --micro_batch?"),
        (TrainConfig, f"{TRAIN} --xyzzy 1", "--xyzzy is no option of this command (--help lists all options)"),
        (ShardConfig, "--corpus a.txt --out s", "--vocab is missing: tokenizer folder, from data_prep/vocab.py ("),
        (ShardConfig, "", "--vocab and --out are missing (--help says what they are)"),
        (FinetuneConfig, "--task tag --out c", "HF, --train and --eval are missing (--help says what they are)"),
        (ExportConfig, "--haed mlm run out", "--haed is no option of this command; did you mean --head?"),
        (ExportConfig, "", "SOURCE and OUT are missing"),
        (TrainConfig, f"{TRAIN} --schedule liner", "--schedule liner is not one of linear, "),
        (TrainConfig, "--data s --out run --model bert-smal", "bert-large; did you mean bert-small?"),
        (TrainConfig, "--data s --out run --model models/hf", "bert-large; a Hugging Face folder to go on from is"),
        (MakeConfig, "--corpus a --out m --init_from hf", "no option of this command; make begins a new model"),
        (MakeConfig, "--corpus a --out m --model models/hf", "bert-large; make begins a new model; to go on from a"),
        (MakeConfig, "--corpus a --out m --hours 0,5", "--hours 0,5 must be a number, with a point (0.5), and be 0 or"),
        (TrainConfig, f"{TRAIN} --steps 1,000", "--steps 1,000 must be a whole number and lie in"),
        (TrainConfig, f"{TRAIN} --zero 7", "--zero 7 is not one of 0, 1, 2, 3"),
        (TrainConfig, f"{TRAIN} --steps", "--steps needs a value behind it: optimizer steps, not micro-batches ("),
        (TrainConfig, f"{TRAIN} --mask_split 1", "--mask_split needs 2 values behind it: shares of these that become"),
        (ShardConfig, f"{SHARD} --append yes", "yes stands behind --append, which takes no value"),
        (ShardConfig, f"{SHARD} --append=yes", "yes stands behind --append, which takes no value"),
        (ShardConfig, f"{SHARD} two", "two is one word too many, behind what --out takes: quote what holds spaces"),
        (ExportConfig, "run out three", "three is one word too many, behind all that this command takes"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_what_was_meant(command, line, told, capfd):
    with pytest.raises(InputError) as refused:
        parse(command, None, line.split())
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_what_is_given_is_looked_at_before_what_is_missing_is_asked_for(tmp_path):
    for command in (FinetuneConfig, ExportConfig):
        with pytest.raises(InputError, match=f"^{tmp_path}/nix"):
            parse(command, None, [f"{tmp_path}/nix"])
    (tmp_path / "made").mkdir()
    (tmp_path / "made/make.json").write_text("{}")
    with pytest.raises(InputError, match=r"made is what make has made; give its Hugging Face folder: .*made/hf$"):
        parse(FinetuneConfig, None, [f"{tmp_path}/made"])
    (tmp_path / "made/finetuned").mkdir()
    (tmp_path / "made/finetuned/config.json").write_text("{}")
    with pytest.raises(InputError, match=r"made/hf, or .*made/finetuned, which is fine-tuned$"):
        parse(FinetuneConfig, None, [f"{tmp_path}/made"])
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run is a pretraining run, not .*export .*/run OUT$"):
        parse(FinetuneConfig, None, [f"{tmp_path}/run"])
    (tmp_path / "run/config.json").write_text('{"train": {"save_every": 50, "save_minutes": 15.0}}')
    with pytest.raises(InputError, match=r"run has no checkpoint yet: .* at step 50 or after 15 minutes, whichever"):
        parse(ExportConfig, None, [f"{tmp_path}/run"])


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.files.os.access", lambda path, mode: path != tmp_path)
    place, told = str(tmp_path / "deep/er"), rf"^--out .*: {tmp_path} cannot be written to: choose another folder$"
    with pytest.raises(InputError, match=told):
        vocab.main(parse(vocab.VocabConfig, None, ["--corpus", "nix", "--out", place]))
    with pytest.raises(InputError, match=told):
        dedup.main(parse(dedup.DedupConfig, None, ["--corpus", "nix", "--out", place]))
