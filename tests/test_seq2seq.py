"""--task seq2seq: files, how both halves begin, training, what its folder is to plain transformers, and predict."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    EncoderDecoderModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

import pretrain.finetune.command as finetune
from data_prep.cli import InputError
from pretrain import predict
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.files.text_pairs import read_targets
from pretrain.finetune.learning.held_back import hold_back
from pretrain.finetune.learning.hyperparameters import settled
from pretrain.finetune.tasks import seq2seq
from pretrain.inference.encoder_decoder import spelled
from tests.tiny_hf import VOCABULARY, WORDS, tiny_bert

GERMAN = ["eins", "zwei", "drei", "vier", "fünf"]


def german(folder: Path) -> Path:
    """A folder with another vocabulary, which knows capitals."""
    tiny_bert(folder, BertForMaskedLM)
    entries = [*VOCABULARY[:5], *GERMAN, *(word.capitalize() for word in GERMAN), "."]
    entries += [f"[unused{number}]" for number in range(len(VOCABULARY) - len(entries))]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("halves")
    return tiny_bert(folder / "en", BertForPreTraining), german(folder / "de")


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    """Numbers in words, English and German."""
    rng = random.Random(0)
    rows = ["en\tde"]
    for _ in range(24):
        numbers = rng.choices(range(5), k=4)
        english, translated = (" ".join(words[number] for number in numbers) for words in (WORDS, GERMAN))
        rows.append(f"{english} .\t{translated[0].upper()}{translated[1:]}.")
    path = tmp_path_factory.mktemp("lines") / "en_de.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def config_of(halves: tuple[Path, Path], lines: Path, out: Path, **options) -> FinetuneConfig:
    given = {"decoder": halves[1], "seq_len": 16, "lr": 5e-3, "epochs": 40, "batch_size": 8, "beams": 2, **options}
    return FinetuneConfig(halves[0], "seq2seq", lines, lines, out, **given)


@pytest.fixture(scope="module")
def tuned(halves, lines, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    finetune.main(config_of(halves, lines, out))
    return out


def test_what_it_has_learnt_it_writes(tuned):
    results = json.loads((tuned / "results.json").read_text())
    assert (results["task"], results["metric"], results["majority"], results["labels"]) == ("seq2seq", "bleu", None, [])
    assert results["mean"] > 90
    assert results["seeds"][0]["scores"]["chrf"] > 90
    assert results["sacrebleu"] == {"tokenize": "13a", "lowercase": False}
    assert (results["settings"]["beams"], results["settings"]["max_new_tokens"]) == (2, 16)
    assert set(results["files"]) == {path.name for path in tuned.iterdir()} >= {"decoder_tokenizer"}


def test_predict_writes_what_plain_transformers_does(tuned, lines, capsys):
    import sacrebleu  # as there: it is not imported with the task

    rows = [line.split("\t") for line in lines.read_text().splitlines()[1:]]
    texts = [source for source, _ in rows]
    predict.main(predict.PredictConfig(tuned, tuple(texts), json=True))
    answers = json.loads(capsys.readouterr().out)
    assert (answers["kind"], [answer["text"] for answer in answers["answers"]]) == ("generated", texts)
    written = [answer["generated"] for answer in answers["answers"]]
    scores = json.loads((tuned / "results.json").read_text())["seeds"][0]["scores"]
    assert sacrebleu.corpus_bleu(written, [[target for _, target in rows]]).score == pytest.approx(scores["bleu"])

    model: Any = EncoderDecoderModel.from_pretrained(tuned)
    source, target = AutoTokenizer.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned / "decoder_tokenizer")
    for text, ours in zip(texts[:3], written, strict=False):
        tokens = model.generate(**source(text, return_tensors="pt"))[0]  # by the folder's own generation_config.json
        theirs = target.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        assert theirs == ours
    head, embedding = model.decoder.cls.predictions.decoder.weight, model.decoder.bert.embeddings.word_embeddings.weight
    assert head.data_ptr() == embedding.data_ptr()
    capsys.readouterr()
    # People see the text and what was written; options go before what the folder says.
    predict.main(predict.PredictConfig(tuned, (texts[0],), beams=1, max_new_tokens=2))
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.splitlines() == [texts[0], "  " + " ".join(rows[0][1].split()[:2])]


def test_both_halves_begin_as_their_folders_say(halves, lines, tmp_path):
    config = settled(config_of(halves, lines, tmp_path / "out"), 32, 24)
    sides = seq2seq.open_sides(config)
    assert not sides.share_a_tokenizer
    model: Any = seq2seq.build(config, sides=sides)
    english, translated = BertModel.from_pretrained(halves[0]), BertForMaskedLM.from_pretrained(halves[1])
    assert_same(model.encoder.state_dict(), english.state_dict())
    ours = model.decoder.state_dict()
    assert_same(ours, translated.state_dict())
    new = set(ours) - set(translated.state_dict())
    assert new
    assert all(".crossattention." in name for name in new)
    # Each layer's attention to the encoder is drawn by itself.
    first, second = (ours[f"bert.encoder.layer.{layer}.crossattention.self.query.weight"] for layer in (0, 1))
    assert float(first.std()) == pytest.approx(0.02, rel=0.2)
    assert not torch.equal(first, second)
    # The same folder twice: two halves with weights of their own, one tokenizer.
    alone = settled(config_of(halves, lines, tmp_path / "out", decoder=None), 32, 24)
    sides = seq2seq.open_sides(alone)
    model = seq2seq.build(alone, sides=sides)
    assert sides.share_a_tokenizer
    reading, writing = (half.embeddings.word_embeddings.weight for half in (model.encoder, model.decoder.bert))
    assert torch.equal(reading, writing)
    assert reading.data_ptr() != writing.data_ptr()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_labels_are_what_the_decoder_must_write(halves, lines, tmp_path):
    sides = seq2seq.open_sides(settled(config_of(halves, lines, tmp_path / "out"), 32, 24))
    [example] = read_targets(lines)[:1]
    [feature] = seq2seq.encode_targets(sides.source, [example], [], 16, sides=sides)
    wanted = sides.target.convert_ids_to_tokens(feature["labels"])
    assert (wanted[-1], len(wanted), "[CLS]" in wanted) == ("[SEP]", 6, False)
    assert sides.source.convert_ids_to_tokens(feature["input_ids"]) == ["[CLS]", *str(example.text).split(), "[SEP]"]


def test_columns_are_found_by_name_or_are_two_alone(tmp_path, capsys):
    for name, content in [
        ("a.tsv", "en\tde\nx\ty\n"),
        ("b.csv", "id,Source,Target\n1,x,y\n"),
        ("c.jsonl", '{"summary": "y", "text": "x", "url": "z"}\n'),
        ("d.jsonl", '{"translation": {"en": "x", "de": "y"}}\n'),
    ]:
        path = tmp_path / name
        path.write_text(content)
        [example] = read_targets(path)
        assert (example.text, example.pair, example.label) == ("x", None, "y")
    assert f"{tmp_path}/b.csv: Source is read, Target is to be written" in capsys.readouterr().err


def test_texts_to_write_are_held_back_though_each_is_there_once(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("en\tde\n" + "".join(f"x{number}\ty{number}\n" for number in range(40)))
    learnt, held = hold_back(read_targets(path), path, by_label=False)
    assert (len(learnt), len(held)) == (36, 4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "en\tde\tfr\nx\ty\tz\n", "cannot be told .*--text COLUMN --label COLUMN; found en, de, fr"),
        ("a.tsv", "en\tde\nx\t \n", "line 2: de is empty"),
        ("a.jsonl", '{"en": "x", "de": 5}\n', "line 1: de must be a text, not 5"),
        ("a.jsonl", '{"en": "x", "de": "y"}\n{"en": "x"}\n', "line 2: de must be a text, not None"),
        ("a.tsv", "en\tde\n", "holds no examples"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        read_targets(path)
    assert "\n" not in str(refused.value)


def test_chinese_is_scored_by_characters_and_no_capitals_are_asked_of_a_tokenizer_without(halves):
    uncased, cased = (AutoTokenizer.from_pretrained(half) for half in halves)
    assert seq2seq.bleu_settings(["北京是首都", "x"], cased) == {"tokenize": "zh", "lowercase": False}
    assert seq2seq.bleu_settings(["Eins zwei 三"], uncased) == {"tokenize": "13a", "lowercase": True}
    assert seq2seq.bleu_settings(["東京はにほんの", "สวัสดีครับ"], cased)["tokenize"] == "char"


def test_words_are_parted_by_spaces_where_their_script_does_so():
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "北", "京", "。", "is", "one", ".", "##ly"]
    tokenizer = BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)})
    for text in ("北京。", "one 北京 is onely.", "one. is"):
        assert spelled(tokenizer, tokenizer(text)["input_ids"]) == text


def test_what_does_not_fit_is_refused(halves, tuned, lines, tmp_path, capsys):
    roberta = tmp_path / "roberta"
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    RobertaForMaskedLM(
        RobertaConfig(vocab_size=30, pad_token_id=0, max_position_embeddings=65, **sizes)
    ).save_pretrained(roberta)
    shutil.copy(halves[0] / "tokenizer.json", roberta)
    for options, message in [
        ({"decoder": tmp_path / "none"}, "none: no such folder"),
        ({"decoder": roberta}, "is a 'roberta' model; a decoder is made of a BERT"),
        ({"max_new_tokens": 65}, "--max_new_tokens 65 is more than the 64 positions of .*de, which writes"),
        ({"pair": "en"}, "--pair en: --task seq2seq reads one text"),
        ({"stride": 3}, "--stride is for --task qa and --long stride, and this is --task seq2seq"),
    ]:
        with pytest.raises(InputError, match=message):
            finetune.main(config_of(halves, lines, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()
    broken = Path(shutil.copytree(tuned, tmp_path / "broken"))
    content = json.loads((broken / "config.json").read_text())
    damages: list[tuple[dict[str, Any], str]] = [
        ({"encoder": None}, r"config\.json has no encoder"),
        ({"decoder": {**content["decoder"], "num_hidden_layers": 3}}, "weights are missing or have no place"),
        ({"decoder": {**content["decoder"], "vocab_size": -1}}, "vocab_size -1 is not a whole number"),
        ({"encoder": {**content["encoder"], "auto_map": {"AutoModel": "x.Y"}}}, "auto_map .* names code of its own"),
    ]
    for change, message in damages:
        (broken / "config.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError, match=message):
            predict.main(predict.PredictConfig(broken, ("one",)))
    predict.main(predict.PredictConfig(tuned, ("one " * 20,)))
    assert "longer than the model's 16 tokens, and cut: one one" in capsys.readouterr().err
    with pytest.raises(InputError, match="--max_new_tokens 65 is more than the 64 positions"):
        predict.main(predict.PredictConfig(tuned, ("one",), max_new_tokens=65))
    with pytest.raises(InputError, match=r"--beams: .* answers fill, and writes no texts"):
        predict.main(predict.PredictConfig(halves[0], ("[MASK]",), beams=2))


def test_a_source_with_several_targets_is_one_with_several_references(halves, capsys):
    import sacrebleu

    rows = [("a dog runs home", "ein Hund läuft heim"), ("a cat sleeps", "eine Katze schläft jetzt")]
    rows += [("a dog runs home", "der Hund rennt nach Hause"), ("a dog runs home", "heim rennt ein Hund")]
    examples = [Example(line, source, None, target) for line, (source, target) in enumerate(rows, 2)]
    written = {"a dog runs home": "der Hund rennt nach Hause", "a cat sleeps": "eine Katze schläft"}
    sides = seq2seq.Sides(*halves, *(AutoTokenizer.from_pretrained(half) for half in halves))
    seq2seq.tell_targets(examples, examples, sides=sides)
    assert "4 targets of 2 sources to measure on" in capsys.readouterr().err
    scores = seq2seq.score_targets([written[str(e.text)] for e in examples], [], examples, [], sides=sides)
    references = [["ein Hund läuft heim", rows[1][1]], [rows[2][1], rows[1][1]], [rows[3][1], rows[1][1]]]
    wanted = sacrebleu.corpus_bleu(list(written.values()), references)  # a repeated reference adds nothing
    assert scores["bleu"] == pytest.approx(wanted.score)
    alone = sacrebleu.corpus_bleu([written[source] for source, _ in rows], [[target for _, target in rows]])
    assert scores["bleu"] > alone.score + 10
