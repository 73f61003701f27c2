"""Texts longer than --seq_len: cut, or read whole by windows that overlap."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForPreTraining,
    BertForSequenceClassification,
    DataCollatorWithPadding,
)

import pretrain.finetune.command as finetune
from data_prep.cli import InputError
from pretrain import predict
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.tasks.long_texts import PooledWindows, WindowCollator, windows_of
from pretrain.finetune.tasks.texts import encode_texts
from pretrain.inference.long_texts import encode_long
from tests.tiny_hf import WORDS, tiny_bert, tiny_tokenizer

SEQ_LEN, STRIDE = 16, 4


def write_long(path: Path, count: int, seed: int) -> Path:
    """Texts of 20 to 29 words, of which the last one decides the label: beyond the 14 that a model reads at once."""
    rng = random.Random(seed)
    lines = ["text\tlabel"]
    for _ in range(count):
        label = rng.randrange(2)
        words = rng.choices(WORDS[2:], k=rng.randrange(19, 29))
        lines.append(f"{' '.join([*words, WORDS[label]])}\t{('good', 'bad')[label]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_stands_beyond_the_length_is_learnt_by_windows_alone(tmp_path, capsys):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    train, dev = write_long(tmp_path / "train.tsv", 192, 0), write_long(tmp_path / "dev.tsv", 64, 1)

    def results_of(**options) -> dict:
        out = tmp_path / options["long"]
        finetune.main(FinetuneConfig(hf, "classify", train, dev, out, seq_len=SEQ_LEN, lr=5e-3, epochs=5, **options))
        return json.loads((out / "results.json").read_text())

    assert results_of(long="cut")["mean"] < 0.75
    assert (
        "192 of 192 texts (100.0%) are longer than --seq_len 16 tokens and were cut; --long str"
        in capsys.readouterr().err
    )
    results = results_of(long="stride", stride=STRIDE)
    assert results["mean"] > 0.9
    assert results["windows"]["eval"]["texts"] == 64
    assert 2 * 64 <= results["windows"]["eval"]["windows"] <= 3 * 64
    check_predict(tmp_path / "stride", dev.read_text().splitlines()[1].split("\t")[0], capsys)


def check_predict(out: Path, text: str, capsys) -> None:
    """The answer is that of the mean over windows, which are cut here by hand."""
    capsys.readouterr()
    predict.main(predict.PredictConfig(out, (text,), json=True))
    [answer] = json.loads(capsys.readouterr().out)["answers"]
    tokenizer, model = tiny_tokenizer(), AutoModelForSequenceClassification.from_pretrained(out)
    ids, inner = tokenizer(text, add_special_tokens=False)["input_ids"], SEQ_LEN - 2
    starts = [0]
    while starts[-1] + inner < len(ids):
        starts.append(starts[-1] + inner - STRIDE)
    with torch.no_grad():
        windows = [[tokenizer.cls_token_id, *ids[at : at + inner], tokenizer.sep_token_id] for at in starts]
        logits = torch.stack([model(torch.tensor([window])).logits[0] for window in windows])
    shares = logits.mean(0).softmax(0)
    expected = {model.config.id2label[index]: float(share) for index, share in enumerate(shares)}
    found = {each["label"]: each["probability"] for each in answer["labels"]}
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", [1, 0, 2]),
        ("regression", [0.5, -1.0, 3.0]),
        ("multi_label_classification", [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    ],
)
def test_windows_in_parts_have_the_gradient_of_all_at_once_and_one_window_is_a_plain_text(problem, labels, tmp_path):
    tokenizer = tiny_tokenizer()
    bert = tiny_bert(tmp_path / "hf", BertForPreTraining)
    model = BertForSequenceClassification.from_pretrained(
        bert, num_labels=1 if problem == "regression" else 3, problem_type=problem
    ).eval()
    texts = [" ".join(WORDS * 4), "one", " ".join(WORDS * 2)]
    examples = [Example(1, text, None, label) for text, label in zip(texts, labels, strict=True)]
    batch = WindowCollator(tokenizer)(encode_texts(tokenizer, examples, [], SEQ_LEN, stride=STRIDE))

    def gradient_of(most: int) -> torch.Tensor:
        model.zero_grad()
        PooledWindows(model, most=most)(**batch).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    assert torch.allclose(gradient_of(2), gradient_of(100), atol=1e-6)
    short = [example._replace(text="one two") for example in examples]
    plain = model(**DataCollatorWithPadding(tokenizer)(encode_texts(tokenizer, short, [], SEQ_LEN)))
    windows = WindowCollator(tokenizer)(encode_texts(tokenizer, short, [], SEQ_LEN, stride=STRIDE))
    pooled = PooledWindows(model, most=100)(**windows)
    assert torch.equal(pooled.logits, plain.logits)
    assert pooled.loss.item() == pytest.approx(plain.loss.item())


def test_of_a_pair_the_second_text_is_read_by_windows(capsys):
    tokenizer = tiny_tokenizer()

    def words_of(first: str, second: str) -> list[str]:
        [windows] = encode_long(tokenizer, [first], [second], seq_len=SEQ_LEN, stride=2).windows
        return [str(tokenizer.decode(window["input_ids"])) for window in windows]

    long = " ".join(WORDS)
    assert words_of("one two", "three") == ["[CLS] one two [SEP] three [SEP]"]
    assert words_of("one one one one one", long) == [
        "[CLS] one one one one one [SEP] one two three four five six seven eight [SEP]",
        "[CLS] one one one one one [SEP] seven eight nine ten [SEP]",
    ]
    assert words_of(long, "one") == [f"[CLS] {long} [SEP] one [SEP]"]  # fits as it is
    assert "cut" not in capsys.readouterr().err
    assert all(window.startswith("[CLS] one two three four five six [SEP]") for window in words_of(long, long))
    assert "1 of 1 first texts are longer than half of a window, 6 tokens, and were cut" in capsys.readouterr().err


def test_a_feature_holds_its_windows_end_to_end():
    tokenizer = tiny_tokenizer()
    [feature] = encode_texts(tokenizer, [Example(1, " ".join(WORDS * 2), None, 0)], [], SEQ_LEN, stride=STRIDE)
    assert feature["windows"] == [16, 12]
    assert len(feature["input_ids"]) == 28
    windows = windows_of(feature)
    assert [str(tokenizer.decode(window["input_ids"])).split()[1] for window in windows] == ["one", WORDS[0]]
    assert all(len(window["attention_mask"]) == len(window["input_ids"]) for window in windows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": "tag", "long": "stride"},
            "--long stride is for --task classify, pair, multilabel, regress; and this",
        ),
        ({"task": "qa", "long": "stride"}, "--long stride is for .*; long contexts are always read so"),
        ({"stride": 4}, "--stride is for --task qa and --long stride, and this is --task classify --long cut"),
        ({"long": "stride", "seq_len": 8}, "--seq_len 8 holds too little of a long text: try --seq_len 128"),
        ({"long": "stride", "seq_len": 16, "stride": 6}, "--stride 6 is more than two windows .* share: at most 5"),
    ],
)
def test_windows_that_make_no_sense_are_refused(options, message, tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    file = write_long(tmp_path / "train.tsv", 4, 0)
    with pytest.raises(InputError, match=message):
        finetune.main(
            FinetuneConfig(hf, **({"task": "classify"} | options), train=file, eval=file, out=tmp_path / "out")
        )
