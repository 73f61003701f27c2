"""A model goes on with another vocabulary than its own: rows that stay, and means made by hand here."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import AutoModelForPreTraining, AutoTokenizer, BertConfig, BertForPreTraining

from data_prep.cli import InputError
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.wordpiece import write_tokenizer
from pretrain.export.command import ExportConfig
from pretrain.export.command import main as export
from pretrain.model import build_model
from pretrain.settings.config import TrainConfig

OLD = [*SPECIAL, "the", "car", "wind", "##mill", "##er", "##s", "m", "##i", "##l", "house", "."]
ROWS = 3  # that pad the embedding


def folder_of(folder: Path, entries: list[str] = OLD, cased: bool = False, **settings: int) -> Path:
    """A small BERT with every number its own, and a tokenizer of these entries."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    sizes |= dict(vocab_size=len(entries) + ROWS, max_position_embeddings=16) | settings
    model = BertForPreTraining(BertConfig(**sizes))
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(folder)
    write_tokenizer(folder, entries, cased)
    return folder


def vocab_of(folder: Path, entries: list[str], cased: bool = False) -> Path:
    folder.mkdir()
    write_tokenizer(folder, entries, cased)
    return folder


def begun(
    hf: Path, vocab: Path, size: int, vocab_from: Literal["same", "match"] = "same", pad_id: int = 0
) -> BertForPreTraining:
    return build_model(
        init_from=hf, vocab_size=size, dropout=0.0, seed=0, needs_nsp=True, vocab=vocab, vocab_from=vocab_from,
        pad_id=pad_id,
    )  # fmt: skip


def weights_of(hf: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model = BertForPreTraining.from_pretrained(hf)
    return model.bert.embeddings.word_embeddings.weight.detach(), model.cls.predictions.bias.detach()


def test_new_words_begin_as_the_mean_of_their_pieces(tmp_path, capsys):
    """Over the rows that padded the model, too: the folder has 19 rows for 16 entries."""
    hf = folder_of(tmp_path / "hf")
    entries = [*OLD, "windmill", "windmills", "mills", "\u4e2d"]
    model = begun(hf, vocab_of(tmp_path / "vocab", entries), len(entries))
    old, old_bias = weights_of(hf)
    found, bias = model.bert.embeddings.word_embeddings.weight.detach(), model.cls.predictions.bias.detach()
    assert len(found) == 64
    torch.testing.assert_close(found[: len(OLD)], old[: len(OLD)], rtol=0, atol=0)
    torch.testing.assert_close(bias[: len(OLD)], old_bias[: len(OLD)], rtol=0, atol=0)
    at = OLD.index
    by_hand = [
        [at("wind"), at("##mill")],
        [at("wind"), at("##mill"), at("##s")],
        [at("m"), at("##i"), at("##l"), at("##l"), at("##s")],
        [*range(len(OLD))],  # nothing spells it: the mean of all
    ]
    for row, pieces in enumerate(by_hand, len(OLD)):
        torch.testing.assert_close(found[row], old[pieces].mean(0))
        torch.testing.assert_close(bias[row], old_bias[pieces].mean())
    assert not found[len(entries) :].any()
    assert (bias[len(entries) :] == -1e4).all()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    said = capsys.readouterr().err
    assert "4 words added, each the mean of its pieces, but 1 that it cannot spell the mean of all" in said


def test_another_vocabulary_is_given_rows_by_text_only_where_asked(tmp_path, capsys):
    """Cased German for an uncased English model; other special ids, another case, pieces within a word."""
    hf = folder_of(tmp_path / "hf")
    entries = [
        "[CLS]",
        "[SEP]",
        "[UNK]",
        "[MASK]",
        "[PAD]",
        "wind",
        "Car",
        "##mill",
        "##mills",
        "mill",
        "##erl",
        "\u00df",
    ]
    vocab = vocab_of(tmp_path / "vocab", entries, cased=True)
    with pytest.raises(InputError, match=r"entry 0 of its vocabulary is '\[PAD\]', .*: --vocab_from match"):
        begun(hf, vocab, len(entries), pad_id=4)
    model = begun(hf, vocab, len(entries), "match", pad_id=4)
    old, old_bias = weights_of(hf)
    found, bias = model.bert.embeddings.word_embeddings.weight.detach(), model.cls.predictions.bias.detach()
    at = OLD.index
    by_hand = [*([at(name)] for name in ("[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]", "wind", "car", "##mill"))]
    by_hand += [[at("##mill"), at("##s")], [at("m"), at("##i"), at("##l"), at("##l")], [at("##er"), at("##l")]]
    by_hand += [[*range(len(OLD))]]
    for row, pieces in enumerate(by_hand):
        torch.testing.assert_close(found[row], old[pieces].mean(0))
        torch.testing.assert_close(bias[row], old_bias[pieces].mean())
    assert model.config.pad_token_id == model.bert.embeddings.word_embeddings.padding_idx == 4
    said = capsys.readouterr().err
    assert (
        "of 12 entries 7 (58.3 %) have the row of the same text, 4 (33.3 %) the mean of their pieces, 1 (8.3 %)" in said
    )


def loss_of(model: BertForPreTraining, ids: list[list[int]], labels: list[int], mask_id: int) -> torch.Tensor:
    inputs = torch.tensor(ids)
    logits = model(inputs).prediction_logits[inputs == mask_id]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels))


def test_the_first_loss_is_near_that_of_the_model(tmp_path):
    """A model that has learnt which word follows which pair of pieces; each pair becomes a word."""
    topics = [(f"p{row}", f"##q{row}", f"w{row}") for row in range(12)]
    entries = [*SPECIAL, *(part for topic in topics for part in topic), "x"]
    hf, at = folder_of(tmp_path / "hf", entries, hidden_dropout_prob=0, attention_probs_dropout_prob=0), entries.index
    model = BertForPreTraining.from_pretrained(hf)
    labels = [at(topic[2]) for topic in topics]
    frame = [at("[CLS]")], [at("[MASK]"), at("[SEP]")]

    def spelled(before: int) -> list[list[int]]:
        return [[*frame[0], *[at("x")] * before, at(first), at(second), *frame[1]] for first, second, _ in topics]

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(150):
        optimizer.zero_grad()
        loss_of(model, spelled(step % 3), labels, at("[MASK]")).backward()
        optimizer.step()
    model.save_pretrained(hf)
    base = loss_of(model.eval(), spelled(1), labels, at("[MASK]")).item()
    words = [f"p{row}q{row}" for row in range(12)]
    whole = [*entries, *words]
    begun_with = begun(hf, vocab_of(tmp_path / "vocab", whole), len(whole)).eval()
    begun_with.config._attn_implementation = "eager"  # the padded forward of transformers
    joined = [[*frame[0], at("x"), whole.index(word), *frame[1]] for word in words]
    means = loss_of(begun_with, joined, labels, at("[MASK]")).item()
    with torch.no_grad():
        begun_with.bert.embeddings.word_embeddings.weight[len(entries) : len(whole)].normal_(0, 0.02)
    random = loss_of(begun_with, joined, labels, at("[MASK]")).item()
    assert base < 0.1
    assert means - base < 0.25 * (random - base), (base, means, random)


@pytest.mark.parametrize(("before", "after"), [(16, 64), (16, 31), (7, 16)])
def test_positions_are_stretched_in_straight_lines(tmp_path, before, after):
    hf = folder_of(tmp_path / "hf", max_position_embeddings=before)
    make: dict[str, Any] = dict(init_from=hf, vocab_size=len(OLD), dropout=0.0, seed=0, needs_nsp=True, vocab=hf)
    old = BertForPreTraining.from_pretrained(hf).bert.embeddings.position_embeddings.weight.detach().numpy()
    model = build_model(**make, positions=after)
    found = model.bert.embeddings.position_embeddings.weight.detach().numpy()
    places = np.linspace(0, before - 1, after)
    by_hand = np.stack([np.interp(places, np.arange(before), column) for column in old.T], axis=1)
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-6)
    assert (found[0] == old[0]).all()
    assert (found[-1] == old[-1]).all()
    with pytest.raises(InputError, match=f"has {before} already"):
        build_model(**make, positions=before - 1)
    # As a folder, which transformers loads and runs at that length.
    saved = tmp_path / "saved"
    model.resize_token_embeddings(len(OLD), mean_resizing=False)
    model.config._attn_implementation = "eager"
    model.save_pretrained(saved)
    write_tokenizer(saved, OLD, cased=False)
    export(ExportConfig(saved, tmp_path / "out"))
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    assert loaded.config.max_position_embeddings == after
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(OLD)
    ids = torch.full((1, after), 5)
    torch.testing.assert_close(loaded(ids).prediction_logits, model.eval()(ids).prediction_logits)


def test_what_goes_with_one_start_is_refused_with_the_other(tmp_path):
    with pytest.raises(InputError, match="--vocab_from match goes with --init_from"):
        TrainConfig(data=("store",), out=tmp_path, model="bert-tiny", vocab_from="match")
    with pytest.raises(InputError, match="--positions 4 must lie"):
        TrainConfig(data=("store",), out=tmp_path, model="bert-tiny", positions=4)
    fresh = build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True, positions=1024)
    assert fresh.config.max_position_embeddings == 1024
