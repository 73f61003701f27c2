"""What two sides must share is compared, not guessed: a store's ids with those of its readers, a model's vocabulary
with the store's, a folder's weights with the model that is made of them."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from data_prep import shard
from data_prep.cli import InputError
from data_prep.store import Store
from data_prep.tokens import as_transformers, contract
from data_prep.tokens.encode import ADVERSARIAL_STRINGS, Encoder
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.tokenizer_folder import tokenizer_sha256
from data_prep.tokens.wordpiece import write_tokenizer
from pretrain import hf_folder, predict
from pretrain.export.command import ExportConfig
from pretrain.export.command import main as export
from pretrain.finetune.command import FinetuneConfig
from pretrain.finetune.command import main as finetune
from pretrain.inference import pipeline
from pretrain.model import build_model
from tests.corpora import tiny_vocab, write
from tests.forked import fork_script
from tests.stores import entries_of, store_of
from tests.tiny_hf import VOCABULARY, tiny_bert

N = normalizers
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "cased": lambda: N.BertNormalizer(True, True, None, False),
    "uncased": lambda: N.BertNormalizer(True, True, None, True),
    "cased without accents": lambda: N.BertNormalizer(True, True, True, False),
    "uncased with accents": lambda: N.BertNormalizer(True, True, False, True),
    "chinese in words": lambda: N.BertNormalizer(True, False, None, True),
    "control characters": lambda: N.BertNormalizer(False, True, None, True),
    "lowercase": lambda: N.Lowercase(),
    "nfc": lambda: N.NFC(),
    "sequence": lambda: N.Sequence([N.NFD(), N.StripAccents(), N.Lowercase()]),
    "none": lambda: None,
    "replace": lambda: N.Replace("e", "a"),
    "prepend": lambda: N.Prepend("a"),
}
CONFIGS: dict[str, dict[str, Any] | None] = {
    "no file": None,
    "lower": {"do_lower_case": True},
    "not lower": {"do_lower_case": False},
    "keeps accents": {"tokenizer_class": "BertTokenizer", "strip_accents": False},
    "chinese": {"tokenizer_class": "BertTokenizerFast", "tokenize_chinese_chars": False},
    "bert": {"tokenizer_class": "BertTokenizer"},
    "fast": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "unknown class": {"tokenizer_class": "TokenizerOfMine"},
    "another class": {"tokenizer_class": "AlbertTokenizer"},
}
LINES = ["Größe und Maß, é; 中文 hello Dog", "MY DOG"]


def tokenizer_of(kind: str, normalizer: Any, framed: bool) -> Tokenizer:
    """A tokenizer that spells ASCII and some more, of one of three kinds."""
    letters = [chr(code) for code in range(33, 127)] + list("éß中文ö")
    entries = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters if letter.isalnum()), "hello", "dog", "▁"]
    ids = {entry: number for number, entry in enumerate(entries)}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram([(entry, -float(n % 7)) for entry, n in ids.items()], unk_id=1))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        tokenizer = Tokenizer(models.BPE(ids, [], unk_token="[UNK]", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if framed:
        tokenizer.post_processor = contract.bert_template(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def folder_of(folder: Path, tokenizer: Tokenizer, config: dict[str, Any] | None) -> Path:
    """A tokenizer folder, perhaps without tokenizer_config.json."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def agrees(folder: Path, encoder: Encoder, texts: list[str]) -> bool:
    """Whether AutoTokenizer gives the encoder's ids of texts, and of a pair with its special tokens and segments."""
    theirs = AutoTokenizer.from_pretrained(folder)
    mine = [found.ids for found in encoder.tokenizer.encode_batch(texts, add_special_tokens=False)]
    if theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] != mine:
        return False
    pair = theirs(texts[-2], texts[-1])
    begin, end = [2, *mine[-2], 3], [*mine[-1], 3]
    return pair["input_ids"] == begin + end and pair["token_type_ids"] == [0] * len(begin) + [1] * len(end)


def matrix() -> Iterator[tuple[str, str, bool]]:
    return itertools.product(sorted(NORMALIZERS), CONFIGS, [False, True])


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.slow
def test_every_tokenizer_folder_is_refused_or_read_alike(tmp_path, kind):
    refusals: list[tuple[Path, str]] = []
    for number, (name, said, framed) in enumerate(matrix()):
        folder = folder_of(tmp_path / str(number), tokenizer_of(kind, NORMALIZERS[name](), framed), CONFIGS[said])
        try:
            with contract.settled(folder) as vocab:
                encoder = Encoder.load(vocab)
                contract.check(vocab, encoder, LINES, named=folder)
                write(vocab / "config.json", '{"model_type": "bert"}')  # as in an exported folder
                assert agrees(vocab, encoder, [*ADVERSARIAL_STRINGS, *LINES]), (name, said, framed)
                (vocab / "config.json").unlink()
                assert agrees(vocab, encoder, [*ADVERSARIAL_STRINGS, *LINES]), (name, said, framed)
        except InputError as error:
            refusals.append((folder, str(error)))
    for folder, message in refusals:
        assert "\n" not in message
        assert str(folder) in message
        assert "tokenizer_config.json" in message
    assert 0 < len(refusals) < len(list(matrix())) / 2


def test_a_contradiction_names_the_text_both_ids_and_the_setting(tmp_path):
    vocab = tiny_vocab(tmp_path / "v")
    config = (vocab / "tokenizer_config.json").read_text()
    write(vocab / "tokenizer_config.json", config.replace('"do_lower_case": true', '"do_lower_case": false'))
    text, wrong = ADVERSARIAL_STRINGS[0], Encoder.load(tiny_vocab(tmp_path / "cased", cased=True)).tokenizer
    assert text.startswith("H")
    assert wrong.encode(text).ids
    write(tmp_path / "corpus.txt", "Some text. And more of it.")
    with pytest.raises(InputError, match=r"'Hello, my dog is cute' becomes \d+.* and \d+.*set \"do_lower_case\": true"):
        shard.main(shard.ShardConfig(vocab, tmp_path / "store", (str(tmp_path / "corpus.txt"),), workers=1))
    assert not (tmp_path / "store").exists()


def test_a_line_of_the_corpus_alone_can_tell(tmp_path):
    """The adversarial strings do not hold every character; the corpus is what is trained on."""
    tokenizer = tokenizer_of("wordpiece", N.Sequence([N.Replace("ξ", "x"), N.BertNormalizer()]), True)
    vocab = folder_of(tmp_path / "v", tokenizer, {"tokenizer_class": "BertTokenizer"})
    contract.check(vocab)
    with pytest.raises(InputError, match=r"'aξ' becomes .*PreTrainedTokenizerFast"):
        contract.check(vocab, sentences=["a", "aξ"])


def test_other_ways_in_which_readers_differ_are_refused(tmp_path):
    def vocab(name: str, **settings: Any) -> Path:
        folder = tiny_vocab(tmp_path / name)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))
        return folder

    token = {"content": "covid", "special": False, "lstrip": False, "rstrip": False, "normalized": True}
    for folder, message in (
        (vocab("added", added_tokens_decoder={"400": token | {"single_word": False}}), "covid"),
        (vocab("left", padding_side="left"), "padding_side"),
        (vocab("mask", mask_token="[SEP]"), r"mask and sep are both entry 3"),
    ):
        with pytest.raises(InputError, match=message):
            contract.check(folder)
    folder = vocab("lists")
    entries = (folder / "vocab.txt").read_text().split("\n")
    (folder / "vocab.txt").write_text("\n".join([*entries[:5], entries[6], entries[5], *entries[7:]]))
    with pytest.raises(InputError, match=r"vocab\.txt and tokenizer\.json differ, first at entry 5"):
        contract.check(folder)


@pytest.mark.slow
def test_a_store_keeps_the_settled_folder_and_its_hash(tmp_path):
    """A cased tokenizer.json alone: transformers would lower-case, and the store's ids would be strangers'."""
    given = folder_of(tmp_path / "v", tokenizer_of("wordpiece", NORMALIZERS["cased"](), False), None)
    before = {path.name: path.read_bytes() for path in given.iterdir()}
    write(tmp_path / "corpus.txt", "Hello Dog. Some text.\n\nAnother Document. With Capitals.")
    run = fork_script("shard", "--corpus", tmp_path / "corpus.txt", "--vocab", given, "--out", tmp_path / "store")
    assert run.returncode == 0, run.stderr
    assert "leaves out what transformers needs" in run.stderr
    assert {path.name: path.read_bytes() for path in given.iterdir()} == before
    store = Store.open(tmp_path / "store")
    assert store.vocab_sha256 == tokenizer_sha256(store.folder / "vocab")
    assert store.verify() == []
    assert agrees(store.folder / "vocab", Encoder.load(given), [*ADVERSARIAL_STRINGS, *LINES])
    again = fork_script("shard", "--corpus", tmp_path / "corpus.txt", "--vocab", given, "--out", tmp_path / "store")
    assert "nothing to do" in again.stderr, again.stderr


def test_a_settled_folder_is_left_as_it_is(tmp_path, capsys):
    for cased in (False, True):
        folder = tiny_vocab(tmp_path / str(cased), cased)
        with contract.settled(folder) as vocab:
            assert tokenizer_sha256(vocab) == tokenizer_sha256(folder)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_process_aside_says_the_same(tmp_path):
    folder = tiny_vocab(tmp_path / "v")
    aside = subprocess.run(
        [sys.executable, "-m", "data_prep.tokens.as_transformers", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert as_transformers.Opened(**json.loads(aside.stdout)) == as_transformers.open_with_transformers(folder)


def test_export_compares_the_tokenizer_that_it_wrote(tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    export(ExportConfig(hf, tmp_path / "out"))
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["model_max_length"] == 64
    (hf / "tokenizer_config.json").unlink()
    cased = Tokenizer.from_file(str(hf / "tokenizer.json"))
    cased.normalizer = NORMALIZERS["cased"]()
    cased.save(str(hf / "tokenizer.json"))
    export(ExportConfig(hf, tmp_path / "cased"))
    assert agrees(tmp_path / "cased", Encoder.load(hf), [*ADVERSARIAL_STRINGS, "One two", "TWO"])
    assert json.loads((tmp_path / "cased/tokenizer_config.json").read_text())["model_max_length"] == 64
    (hf / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    with pytest.raises(InputError, match='set "do_lower_case": false'):
        export(ExportConfig(hf, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


# --init_from: the vocabulary of a model and of a store


def bert_folder(folder: Path, entries: list[str], cased: bool = False, rows: int = 0, **settings: Any) -> Path:
    """A small BERT with a tokenizer of these entries and `rows` more in its embedding."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = BertConfig(vocab_size=len(entries) + rows, max_position_embeddings=64, **sizes | settings)
    BertForPreTraining(config).save_pretrained(folder)
    write_tokenizer(folder, entries, cased)
    return folder


def init_from(hf: Path, store: Store, needs_nsp: bool = True) -> BertForPreTraining:
    return build_model(
        init_from=hf,
        vocab_size=store.vocab_size,
        dropout=0.0,
        seed=0,
        needs_nsp=needs_nsp,
        pad_id=store.special_ids["pad"],
        vocab=store.folder / "vocab",
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return store_of(tmp_path_factory.mktemp("store") / "store", [[[5, 6], [7]], [[8], [9]]])


def test_another_vocabulary_of_the_same_size_is_refused(tmp_path, store):
    entries = entries_of(64)
    entries[10], entries[11] = entries[11], entries[10]
    with pytest.raises(InputError, match=r"entry 10 of its vocabulary is 'w6', of the store's 'w5' \(2 entries differ"):
        init_from(bert_folder(tmp_path / "swapped", entries), store)
    hf = bert_folder(tmp_path / "cased", [*entries_of(64)[:-1], "hello"], cased=True)
    write_tokenizer(tmp_path, [*entries_of(64)[:-1], "hello"], cased=False)
    with pytest.raises(InputError, match=r"'Hello, my dog is cute' becomes 1, .* with its tokenizer and 63, "):
        contract.same_tokenizer(hf, tmp_path)


def test_an_old_folder_has_its_entries_in_vocab_txt(tmp_path, store):
    old = bert_folder(tmp_path / "old", entries_of(64))
    (old / "tokenizer.json").unlink()
    init_from(old, store)
    listed = (old / "vocab.txt").read_text()
    write(old / "vocab.txt", listed.replace("w5\n", "other\n"))
    with pytest.raises(InputError, match="entry 10 of its vocabulary is 'other', of the store's 'w5'"):
        init_from(old, store)
    (old / "vocab.txt").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json and no vocab\.txt"):
        init_from(old, store)


def test_entries_that_occur_twice_are_the_same(tmp_path):
    """vocab.py names the earlier one apart; transformers, which lets the last one win, has no name for it."""
    entries = [*entries_of(64)[:20], entries_of(64)[-1], *entries_of(64)[21:]]
    hf = bert_folder(tmp_path / "hf", entries)
    (hf / "tokenizer.json").unlink()
    entries[20] = "[repeated20]"
    write_tokenizer(tmp_path, entries, cased=False)
    contract.same_tokenizer(hf, tmp_path)


@pytest.mark.parametrize("rows", [0, 5, 64])
def test_a_padded_vocabulary_is_that_of_its_tokenizer(tmp_path, store, rows):
    hf = bert_folder(tmp_path / "hf", entries_of(64), rows=rows)
    model = init_from(hf, store)
    theirs = load_file(hf / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    found = model.bert.embeddings.word_embeddings.weight
    assert len(theirs) == 64 + rows
    assert len(found) == 64
    torch.testing.assert_close(found.detach(), theirs[:64], rtol=0, atol=0)


def test_rows_that_pad_are_neutral(tmp_path):
    small = store_of(tmp_path / "store", [[[5, 6], [7]], [[8], [9]]], vocab_size=60)
    model = init_from(bert_folder(tmp_path / "hf", entries_of(60), rows=20), small)
    assert not model.bert.embeddings.word_embeddings.weight[60:].any()
    assert (model.cls.predictions.bias[60:] == -1e4).all()
    more = store_of(tmp_path / "more", [[[5], [6]], [[7]]])  # 64 entries: those of the model, and 4 behind them
    longer = init_from(bert_folder(tmp_path / "less", entries_of(60)), more)
    assert (longer.cls.predictions.bias[60:64] > -1).all()
    with pytest.raises(InputError, match=r"entry 60 of its vocabulary is 'w55', of the store's None"):
        init_from(bert_folder(tmp_path / "longer", entries_of(64)), small)


# Weights and settings that a model would be another one without


def changed(hf: Path, weights: Callable[[dict[str, torch.Tensor]], Any] | None, **settings: Any) -> Path:
    """The same folder with other weights, or other values in config.json."""
    found = load_file(hf / "model.safetensors")
    if weights is not None:
        weights(found)
        save_file(found, hf / "model.safetensors", {"format": "pt"})
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | settings))
    return hf


SELF = "bert.encoder.layer.0.attention.self"
CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any] | None, dict[str, Any], str]] = {
    "relative positions": (
        lambda w: w.update({f"{SELF}.distance_embedding.weight": torch.zeros(127, 16)}),
        {},
        "distance_embedding",
    ),
    "another key": (None, {"position_embedding_type": "rotary"}, "position_embedding_type 'rotary'"),
    "an activation": (None, {"hidden_act": ["gelu"]}, "hidden_act"),
    "labels": (None, {"num_labels": 10**9}, "num_labels 1000000000 is not a whole number from 1"),
    "attention": (None, {"_attn_implementation": "flash_attention_9"}, "flash_attention_9"),
    "relative key": (None, {"position_embedding_type": "relative_key"}, "relative"),
    "layers beyond": (None, {"num_hidden_layers": 1}, "num_hidden_layers 1, but the weights have 2 layers"),
    "layers missing": (None, {"num_hidden_layers": 3}, "num_hidden_layers 3, but the weights have 2 layers"),
    "a decoder": (None, {"is_decoder": True}, "is_decoder"),
    "cross-attention": (
        lambda w: w.update({"bert.encoder.layer.0.crossattention.self.query.weight": torch.zeros(32, 32)}),
        {},
        "crossattention",
    ),
    "a prefix": (
        lambda w: [w.update({f"module.{name}": w.pop(name)}) for name in list(w)],
        {},
        "missing|no place|lacks",
    ),
    "a projection": (
        lambda w: w.update({"bert.embeddings_project.weight": torch.zeros(32, 32)}),
        {},
        "embeddings_project",
    ),
    "quantised": (None, {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    "other sizes": (None, {"vocab_size": 1 << 20}, "vocab_size 1048576"),
    "nan": (lambda w: w[f"{SELF}.query.weight"].view(-1)[:3].fill_(math.nan), {}, r"3 of the 1,024 numbers of .*query"),
    "infinity": (lambda w: w["bert.embeddings.word_embeddings.weight"][7].fill_(math.inf), {}, "32 of the .* infinite"),
    "whole numbers": (
        lambda w: w.update({name: (100 * weight).to(torch.int8) for name, weight in w.items()}),
        {},
        "is of type I8; weights must be floating-point numbers",
    ),
    "8 bits": (
        lambda w: w.update({name: weight.to(torch.float8_e4m3fn) for name, weight in w.items()}),
        {},
        "is of type F8_E4M3; weights must be floating-point numbers",
    ),
    "another shape": (lambda w: w.update({f"{SELF}.key.bias": torch.zeros(31)}), {}, "another shape"),
    "two of a LayerNorm": (
        lambda w: w.update({"bert.embeddings.LayerNorm.gamma": torch.zeros(32)}),
        {},
        "are one parameter",
    ),
    "two of a prefix": (lambda w: w.update({"pooler.dense.bias": torch.zeros(32)}), {}, "are one parameter"),
    "other positions": (None, {"max_position_embeddings": 128}, "max_position_embeddings 128"),
}


def by_init_from(hf: Path) -> None:
    build_model(init_from=hf, vocab_size=len(VOCABULARY), dropout=0.0, seed=0, needs_nsp=True, vocab=hf)


def by_predict(hf: Path) -> None:
    hf_folder.load_config(hf)
    pipeline.load(hf, "fill")


def by_finetune(hf: Path) -> None:
    data = write(hf.parent / "data.tsv", "text\tlabel\none two\ta\nthree\tb\n")
    finetune(FinetuneConfig(hf, "classify", data, data, hf.parent / "tuned", epochs=1, seq_len=16))


def by_export(hf: Path) -> None:
    export(ExportConfig(hf, hf.parent / "exported"))


COMMANDS = [by_init_from, by_predict, by_finetune, by_export]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("change", CHANGES)
def test_weights_without_a_place_are_refused(tmp_path, change, command) -> None:
    weights, settings, message = CHANGES[change]
    hf = changed(tiny_bert(tmp_path / "hf", BertForPreTraining), weights, **settings)
    if change == "a prefix" and command is by_export:
        command(hf)  # which takes wrappers' prefixes off
        return
    with pytest.raises(InputError) as refusal:
        command(hf)
    if command is not by_export:  # which matches names by its own rules
        assert refusal.match(message)
    assert "\n" not in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"hf", "data.tsv"}


@pytest.mark.parametrize("command", COMMANDS)
def test_old_names_and_buffers_are_read(tmp_path, command):
    def old(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            if "LayerNorm" in name:
                end = {"weight": "gamma", "bias": "beta"}[name.rpartition(".")[2]]
                weights[f"{name.rpartition('.')[0]}.{end}"] = weights.pop(name)
        weights["bert.embeddings.position_ids"] = torch.arange(64)[None]

    command(changed(tiny_bert(tmp_path / "hf", BertForPreTraining), old))


def test_a_decoder_of_its_own_is_refused_where_it_would_be_lost(tmp_path):
    def untied(weights: dict[str, torch.Tensor]) -> None:
        weights["cls.predictions.decoder.weight"] = 1 + weights["bert.embeddings.word_embeddings.weight"]

    hf = changed(tiny_bert(tmp_path / "hf", BertForPreTraining), untied, tie_word_embeddings=False)
    for command in (by_init_from, by_export):
        with pytest.raises(InputError, match=r"decoder\.weight differs from bert\.embeddings"):
            command(hf)

    def tied(weights: dict[str, torch.Tensor]) -> None:
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()

    by_init_from(changed(hf, tied))
    model = build_model(init_from=hf, vocab_size=len(VOCABULARY), dropout=0.0, seed=0, needs_nsp=True, vocab=hf)
    assert "cls.predictions.decoder.weight" not in dict(model.named_parameters())


def test_heads_of_other_tasks_are_named(tmp_path, capsys):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    by_finetune(hf)
    assert f"{hf}: not used: cls.predictions, cls.seq_relationship" in capsys.readouterr().err
    classifier = tiny_bert(tmp_path / "classifier", BertForSequenceClassification)
    by_init_from(classifier)
    assert "not used: classifier" in capsys.readouterr().err
    export(ExportConfig(classifier, tmp_path / "base", "base"))
    assert f"{classifier}: not converted: classifier (heads of other tasks)" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"lacks .*which --head mlm needs"):
        export(ExportConfig(classifier, tmp_path / "mlm", "mlm"))
    with pytest.raises(InputError, match=r"cls\.predictions\.adapter\.weight"):
        by_init_from(changed(hf, lambda weights: weights.update({"cls.predictions.adapter.weight": torch.zeros(2)})))


def test_the_padding_is_the_tokenizers(tmp_path, capsys):
    hf = changed(tiny_bert(tmp_path / "hf", BertForPreTraining), None, pad_token_id=7, chunk_size_feed_forward=3)
    model = build_model(init_from=hf, vocab_size=len(VOCABULARY), dropout=0.0, seed=0, needs_nsp=True, vocab=hf)
    assert (model.config.pad_token_id, model.bert.embeddings.word_embeddings.padding_idx) == (0, 0)
    assert "config.json says pad_token_id 7, its tokenizer pads with entry 0" in capsys.readouterr().err
    by_finetune(hf)  # entry 7 is learnt, and texts of five tokens are no multiple of the chunk
    assert json.loads((tmp_path / "tuned/config.json").read_text())["pad_token_id"] == 0


def of_vocab_txt(folder: Path, entries: list[str], raw: str = "", **settings) -> Path:
    """A model of old times, whose tokenizer is a vocab.txt alone."""
    hf = tiny_bert(folder, BertForMaskedLM)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (hf / name).unlink(missing_ok=True)
    (hf / "vocab.txt").write_text(raw + "\n".join(entries) + "\n", encoding="utf-8")
    if settings:
        (hf / "tokenizer_config.json").write_text(json.dumps(settings))
    return hf


def test_a_vocab_txt_alone_must_have_its_special_tokens(tmp_path, capsys):
    few = VOCABULARY[:-2]  # the model has rows for two tokens more
    assert "[MASK]" in hf_folder.load_tokenizer(of_vocab_txt(tmp_path / "good", few)).get_vocab()
    with pytest.raises(InputError, match=r"vocab.txt lacks \[PAD\], .* it begins with a byte order mark"):
        hf_folder.load_tokenizer(of_vocab_txt(tmp_path / "marked", few, "\ufeff"))
    with pytest.raises(InputError, match=r"vocab.txt lacks \[MASK\], so that nobody knows their numbers$"):
        hf_folder.load_tokenizer(of_vocab_txt(tmp_path / "maskless", [entry for entry in few if entry != "[MASK]"]))
    assert "have capitals" not in capsys.readouterr().err
    cased = [entry.title() if entry.isalpha() else entry for entry in few]
    hf_folder.load_tokenizer(of_vocab_txt(tmp_path / "cased", cased))
    assert "10 of 24 entries have capitals, which its tokenizer takes away" in capsys.readouterr().err
    hf_folder.load_tokenizer(of_vocab_txt(tmp_path / "told", cased, do_lower_case=False))
    assert "have capitals" not in capsys.readouterr().err


@pytest.mark.parametrize("length", [-1, 0, "512", True, None])
def test_a_length_that_makes_no_sense_is_refused(tmp_path, length):
    hf = of_vocab_txt(tmp_path / "hf", VOCABULARY, model_max_length=length)
    if length is None:
        hf_folder.load_tokenizer(hf)
        return
    with pytest.raises(InputError, match=r"model_max_length .* must be a number of tokens from 4 on"):
        hf_folder.load_tokenizer(hf)


def test_texts_are_padded_behind_whatever_the_folder_says(tmp_path, capsys):
    hf = of_vocab_txt(tmp_path / "hf", VOCABULARY, padding_side="left")
    assert hf_folder.load_tokenizer(hf).padding_side == "right"
    assert "padding_side 'left' is taken as 'right'" in capsys.readouterr().err
    by_finetune(hf)
    assert json.loads((tmp_path / "tuned/tokenizer_config.json").read_text())["padding_side"] == "right"


def test_one_segment_is_not_asked_for_two(tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertForMaskedLM)
    first = lambda w: w.update({(n := "bert.embeddings.token_type_embeddings.weight"): w[n][:1].clone()})  # noqa: E731
    changed(hf, first, type_vocab_size=1)
    with pytest.raises(InputError, match="--objective mlm"):
        build_model(init_from=hf, vocab_size=len(VOCABULARY), dropout=0.0, seed=0, needs_nsp=True, vocab=hf)
    build_model(init_from=hf, vocab_size=len(VOCABULARY), dropout=0.0, seed=0, needs_nsp=False, vocab=hf)
    pairs = write(tmp_path / "pairs.tsv", "text_a\ttext_b\tlabel\none\ttwo\ta\nthree\tfour\tb\n")
    finetune(FinetuneConfig(hf, "pair", pairs, pairs, tmp_path / "tuned", epochs=1, seq_len=16))
    predict.main(predict.PredictConfig(tmp_path / "tuned", ("one\ttwo",)))


def test_pairs_that_cannot_be_told_apart_are_not_learnt(tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertModel)
    write(hf / "tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", '
          '"sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}')  # fmt: skip
    pairs = write(tmp_path / "pairs.tsv", "text_a\ttext_b\tlabel\none\ttwo\ta\nthree\tfour\tb\n")
    with pytest.raises(InputError, match="both texts of a pair into segment 0"):
        finetune(FinetuneConfig(hf, "pair", pairs, pairs, tmp_path / "tuned", seq_len=16))
    tokenizer = json.loads((hf / "tokenizer.json").read_text())
    write(hf / "tokenizer.json", json.dumps(tokenizer | {"post_processor": None}))
    with pytest.raises(InputError, match=r"puts no \[CLS\] and \[SEP\]"):
        by_finetune(hf)


# Numbers in a config.json of others


NAN, HUGE = float("nan"), 10**23
WRONG: list[tuple[str, Any]] = [
    *((key, value) for key in ("vocab_size", "num_hidden_layers", "hidden_size") for value in (NAN, -1, "12", HUGE, 0)),
    *(("num_attention_heads", value) for value in (0, 3, 1.5, True, None, [2])),
    *(("intermediate_size", value) for value in (-64, float("inf"), {"a": 1})),
    *(("layer_norm_eps", value) for value in (NAN, -1e-12, "1e-12", 0)),
    *(("hidden_dropout_prob", value) for value in (NAN, -0.1, 1.5, "0.1")),
    *(("pad_token_id", value) for value in (-3, "0", HUGE, 0.5)),
    *(("type_vocab_size", value) for value in (0, "2", HUGE)),
    *(("hidden_act", value) for value in ("no_such", 5, None)),
]


def test_numbers_of_others_are_checked(tmp_path):
    hf = tiny_bert(tmp_path / "hf", BertForPreTraining)
    whole = (hf / "config.json").read_text()
    for key, value in WRONG:
        changed(hf, None, **{key: value})
        for command in COMMANDS:
            with pytest.raises(InputError) as refusal:
                command(hf)
            assert "\n" not in str(refusal.value), (key, value)
            assert "config.json" in str(refusal.value), (key, value)
        write(hf / "config.json", whole)
    for content in ("", "[]", "[" * 100_000, '"bert"', "{", "\ufeff{}", "null"):
        write(hf / "config.json", content)
        for command in COMMANDS:
            with pytest.raises(InputError):
                command(hf)
    (hf / "config.json").write_bytes(b"\xff\xfe{}")
    for command in COMMANDS:
        with pytest.raises(InputError, match=r"config\.json"):
            command(hf)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "data.tsv"}


def test_what_transformers_makes_of_a_folder_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROBERT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "vocab").mkdir()
    write_tokenizer(tmp_path / "vocab", entries_of(40), cased=False)
    contract.check(tmp_path / "vocab")
    (kept,) = (tmp_path / "cache").glob("tokenizer-*.json")
    asked: list[Path] = []
    now = as_transformers.open_with_transformers

    def noted(folder: Path) -> as_transformers.Opened:
        asked.append(folder)
        return now(folder)

    monkeypatch.setattr(as_transformers, "open_with_transformers", noted)
    contract.check(tmp_path / "vocab")
    assert not asked
    kept.write_text(kept.read_text()[:-100])  # damaged: asked again
    contract.check(tmp_path / "vocab")
    assert len(asked) == 1
    write_tokenizer(tmp_path / "vocab", entries_of(41), cased=False)
    contract.check(tmp_path / "vocab")
    assert len(asked) == 2
