"""Minimal pairs and texts by pseudo-log-likelihood: the values of a naive loop, ties, groups, files that are wrong."""

import copy
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, BertForPreTraining, BertModel

from data_prep.cli import InputError
from pretrain import score, scoring
from pretrain.checkpoints.format import list_checkpoints
from pretrain.export.hf_writer import Target, convert
from pretrain.likelihood.minimal_pairs import MinimalPair, choose_evenly, judge, read_pairs
from pretrain.likelihood.pair_evaluation import PairSet, encode_pairs, evaluate_pairs
from pretrain.likelihood.pseudo_likelihood import MaskedCopies, load_vocab, log_likelihoods, pseudo_log_likelihoods
from pretrain.model import PretrainingModule, build_model
from pretrain.setup import prepare
from pretrain.train import train
from pretrain.zero.engine import init_distributed
from tests.forked import fork_script
from tests.ranks import run_ranks
from tests.reference.pseudo_likelihood import pseudo_log_likelihood
from tests.runs import contents, lines_of, tiny_run
from tests.stores import random_documents, store_of
from tests.tiny_hf import VOCABULARY, tiny_bert, tiny_tokenizer

TEXTS = ["one two three", "four", "five six seven eight nine ten.", "one two three", "two onetwo threefour five six"]


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("score") / "hf", BertForPreTraining)


def lines(path, *rows):
    path.write_text("".join(f"{json.dumps(row) if isinstance(row, dict) else row}\n" for row in rows))
    return path


def pair(good, bad, **fields):
    return {"sentence_good": good, "sentence_bad": bad, **fields}


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForPreTraining])
def test_likelihoods_are_those_of_a_loop_over_one_copy_at_a_time(tmp_path, model_class):
    model = model_class.from_pretrained(tiny_bert(tmp_path / "hf", model_class)).train()
    tokenizer, attention = tiny_tokenizer(), model.config._attn_implementation
    found = pseudo_log_likelihoods(model, tokenizer, TEXTS)
    assert (model.training, model.config._attn_implementation) == (True, attention)
    expected = [pseudo_log_likelihood(copy.deepcopy(model), tokenizer, text) for text in TEXTS]
    assert [score.log_likelihood for score in found] == pytest.approx(expected, abs=1e-4)
    assert [score.tokens for score in found] == [3, 1, 7, 3, 7]
    assert found[0] == found[3]


@pytest.mark.parametrize("batch_tokens", [1, 7, 20, 1000])
def test_each_token_is_masked_once_whatever_the_batches(batch_tokens):
    texts = [np.array([2, *ids, 3]) for ids in ([5, 6, 7], [8], [5, 6, 7], [], [9, 8, 7, 6, 5])]
    copies = MaskedCopies(texts, mask_id=4, batch_tokens=batch_tokens)
    seen, losses = [], np.zeros(copies.copies)
    for index in range(len(copies)):
        batch = copies.batch(index)
        inputs = np.split(batch.input_ids.numpy(), np.cumsum(batch.seqlens.lengths)[:-1])
        for number, (ids, label) in enumerate(zip(inputs, batch.mlm_labels.tolist(), strict=True)):
            [place] = np.flatnonzero(ids == 4)
            seen.append((*ids[:place], label, *ids[place + 1 :], place))
            losses[copies.slice_of(index).start + number] = label
    unique = {tuple(ids.tolist()) for ids in texts}
    assert sorted(seen) == sorted((*ids, place) for ids in unique for place in range(1, len(ids) - 1))
    assert copies.summed(losses).tolist() == [-18, -8, -18, 0, -35]


def test_a_text_that_is_too_long_is_cut_and_a_pair_left_out():
    tokenizer = tiny_tokenizer()
    long = " ".join(["one"] * 70)
    pairs = [MinimalPair("one", "two", "a", "f, line 1"), MinimalPair(long, "one", "a", "f, line 2")]
    encoded = encode_pairs(tokenizer, pairs, 64)
    assert (len(encoded.groups), encoded.left_out) == (1, 1)
    with pytest.raises(InputError, match="f, line 2: this pair and all others are longer than"):
        encode_pairs(tokenizer, pairs[1:], 64)
    with pytest.raises(InputError, match=r"f, line 3: .* makes no token"):
        encode_pairs(tokenizer, [MinimalPair("one", "\u200b", "a", "f, line 3")], 64)


def test_a_tie_is_wrong_and_the_accuracy_is_the_mean_over_groups():
    scores = judge(["b", "a", "a", "a"], np.array([-1.0, -2, -3, -4]), np.array([-2.0, -2, -4, -3]))
    assert (scores.accuracy, scores.pairs, scores.ties) == ((1 + 1 / 3) / 2, 4, 1)
    assert list(scores.groups) == ["a", "b"]
    assert scores.groups["a"] == (3, 1, 1)


def test_pairs_of_each_group_are_chosen_evenly():
    pairs = [
        MinimalPair(str(number), "", group, "") for group, size in (("a", 100), ("b", 2)) for number in range(size)
    ]
    chosen = choose_evenly(pairs, 7)
    assert [found.good for found in chosen] == ["0", "33", "66", "0", "1"]
    assert choose_evenly(pairs, 1000) == pairs
    assert len(choose_evenly(pairs, 1)) == 2


def test_a_group_is_a_field_or_the_file(tmp_path):
    blimp = lines(tmp_path / "x.jsonl", pair("one", "two", UID="u", field="f"), "", pair("a", "b", UID="v", field="f"))
    assert [found.group for found in read_pairs(blimp)] == ["u", "v"]
    assert {found.group for found in read_pairs(blimp, "Field")} == {"f"}
    assert read_pairs(blimp)[1].where == f"{blimp}, line 3"
    (tmp_path / "y.csv").write_bytes('sentence_good;sentence_bad\r\n"eins; zwei";zwei\r\n'.encode("utf-16"))
    (tmp_path / "notes.md").write_text("no pairs")
    assert [found.group for found in read_pairs(tmp_path)] == ["u", "v", "y"]
    assert read_pairs(tmp_path / "y.csv")[0][:3] == ("eins; zwei", "zwei", "all")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pair("one", "  "), "x.jsonl, line 2: sentence_bad is empty"),
        ({"sentence_good": "one"}, "x.jsonl, line 2: no field sentence_bad; found 'sentence_good'"),
        (pair("one", 3), "x.jsonl, line 2: sentence_bad must be a text, not 3"),
        (pair("one", "two"), "x.jsonl, line 2: uid must name the group of the pair, not None"),
        ("{", "x.jsonl, line 2: not JSON"),
        (pair("one", "\ud800", UID="u"), "x.jsonl, line 2: half a surrogate pair"),
    ],
)
def test_a_wrong_row_is_one_line_that_names_it(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_pairs(lines(tmp_path / "x.jsonl", pair("one", "two", UID="u"), row))


def test_a_folder_without_pairs_or_a_wrong_field_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no file of minimal pairs"):
        read_pairs(tmp_path)
    file = lines(tmp_path / "x.jsonl", pair("one", "two", UID="u"))
    with pytest.raises(InputError, match="line 1: no field phenomenon; found"):
        read_pairs(file, "phenomenon")


def test_the_command_prints_what_a_loop_finds(hf, tmp_path, capsys):
    rows = [pair(TEXTS[0], TEXTS[1], group="a"), pair(TEXTS[2], TEXTS[4], group="a"), pair("one", "one", group="b")]
    file = lines(tmp_path / "pairs.jsonl", *rows)
    model, tokenizer = BertForPreTraining.from_pretrained(hf), tiny_tokenizer()

    def is_right(row):
        good, bad = (pseudo_log_likelihood(model, tokenizer, row[f"sentence_{side}"]) for side in ("good", "bad"))
        return good > bad

    share = sum(map(is_right, rows[:2])) / 2
    score.main(score.ScoreConfig(hf, pairs=file, json=True))
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["pairs"], found["groups"]) == (share / 2, 3, {"a": share, "b": 0.0})
    score.main(score.ScoreConfig(hf, pairs=file))
    table = capsys.readouterr().out.splitlines()
    assert table[-2].split() == ["b", "0.0%", "1", "100.0%"]
    assert table[-1].split() == ["mean", "of", "2", "groups", f"{share / 2:.1%}", "3", "33.3%"]


def test_texts_are_scored_line_by_line(hf, tmp_path, capsys):
    long = " ".join(["one"] * 70)
    (tmp_path / "t.txt").write_bytes(f"one two\r\n\r\n{long}\r\n".encode("utf-16"))
    score.main(score.ScoreConfig(hf, texts=tmp_path / "t.txt", json=True))
    out, said = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    expected = pseudo_log_likelihood(BertForPreTraining.from_pretrained(hf), tiny_tokenizer(), "one two")
    assert first == {
        "line": 1, "text": "one two", "pll": pytest.approx(expected, abs=1e-4), "tokens": 2,
        "per_token": pytest.approx(expected / 2, abs=1e-4),
    }  # fmt: skip
    assert (second["line"], second["tokens"], second["cut"]) == (3, 62, 8)
    assert "left out: 8 tokens (11.1%) of 1 texts longer than the model's 64 tokens" in said
    assert "blank lines, which have no score: 1" in said
    score.main(score.ScoreConfig(hf, texts=lines(tmp_path / "t.jsonl", {"text": "one two"})))
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == ["2", f"{expected / 2:.3f}", "one", "two"]


def test_weights_of_another_trainer_are_scored_where_config_and_vocabulary_lie_beside_them(hf, tmp_path):
    """As DeepSpeed's zero_to_fp32.py leaves them."""
    folder, weights = tmp_path / "merged", BertForPreTraining.from_pretrained(hf).state_dict()
    folder.mkdir()
    torch.save({f"module.{name}": weight for name, weight in weights.items()}, folder / "pytorch_model.bin")
    shutil.copyfile(hf / "config.json", folder / "config.json")
    with pytest.raises(InputError, match="s tokenizer to export, with --vocab"):
        scoring.load_scorer(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    found, expected = (scoring.load_scorer(path) for path in (folder, hf))
    for text in TEXTS:
        ids, wanted = (scorer.tokenizer(text)["input_ids"] for scorer in (found, expected))
        assert ids == wanted
    for one, other in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_models_that_cannot_score_are_refused(tmp_path):
    encoder = tiny_bert(tmp_path / "encoder", BertModel)
    with pytest.raises(InputError, match="has no language-model head"):
        scoring.load_scorer(encoder)
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(InputError, match=r"has no \[MASK\]"):
        encode_pairs(tokenizer, [MinimalPair("one", "two", "a", "f, line 1")], 64)


@pytest.mark.slow
def test_the_command_refuses_in_one_line_and_writes_nothing(hf, tmp_path):
    wrong = lines(tmp_path / "wrong.jsonl", pair("one", "two"), pair("one", ""))
    for arguments, message in (
        ([hf, "--pairs", wrong], f"error: {wrong}, line 2: sentence_bad is empty; fill it in or remove the row"),
        ([hf], "error: give one of --pairs FILE and --texts FILE: what to score"),
        ([hf, "--texts", tmp_path / "nix.txt"], f"error: {tmp_path / 'nix.txt'}: no such file"),
    ):
        ended = fork_script("pretrain.score", *arguments)
        assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (2, "", message)


@pytest.fixture(scope="module")
def run_inputs(tmp_path_factory):
    """A store, and a file of 24 pairs of its words in three groups."""
    folder = tmp_path_factory.mktemp("run")
    store = store_of(folder / "store", random_documents(60), held_out={2, 5, 6, 9})
    rng = np.random.default_rng(0)
    rows = [
        pair(
            *(" ".join(f"w{word}" for word in words) for words in rng.integers(0, 50, (2, length))), UID=f"u{index % 3}"
        )
        for index, length in enumerate(rng.integers(1, 30, 24))
    ]
    return store, lines(folder / "pairs.jsonl", *rows)


def evaluated_pairs(store, file):
    """What evaluate_pairs() finds on this rank, of a model with random weights, in batches of few tokens."""
    init_distributed()
    model = build_model(preset="bert-tiny", vocab_size=store.vocab_size, dropout=0.1, seed=0, needs_nsp=True).eval()
    encoded = encode_pairs(load_vocab(store.folder / "vocab"), read_pairs(file), 512)
    copies = MaskedCopies([text.ids for text in encoded.sentences], mask_id=store.special_ids["mask"], batch_tokens=500)
    forward, device = partial(PretrainingModule(model), by_sample=True), torch.device("cpu")
    found = PairSet(encoded, copies)
    scores = evaluate_pairs(forward, found, device=device, title="", on_batch=lambda: None)
    return scores, encoded.judge(log_likelihoods(model, store.special_ids["mask"], encoded.sentences))


@pytest.mark.slow
def test_ranks_share_the_batches_and_find_the_same(run_inputs):
    [(alone, by_command)] = run_ranks(1, evaluated_pairs, *run_inputs)
    assert alone == by_command
    assert 0 < alone.accuracy < 1
    assert [found for found, _ in run_ranks(3, evaluated_pairs, *run_inputs)] == [alone] * 3


def scored_by_command(capsys, source, **options):
    capsys.readouterr()
    score.main(score.ScoreConfig(source, **options, json=True))
    return json.loads(capsys.readouterr().out)


def run_with(out, store, pairs, zero):
    settings = dict(steps=4, global_batch=8, eval_samples=8, eval_every=2, dropout=0.1, zero=zero, average="ema=.5")
    train(tiny_run(store.folder, out, **settings, eval_pairs=pairs, eval_pairs_max=18))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_a_run_scores_pairs_as_the_command_does_and_trains_as_without(run_inputs, tmp_path, capsys, zero):
    store, file = run_inputs
    run_ranks(2, run_with, tmp_path / "with", store, file, zero)
    run_ranks(2, run_with, tmp_path / "without", store, None, zero)
    last, other = (list_checkpoints(tmp_path / name)[-1] for name in ("with", "without"))
    assert contents(last) == contents(other)
    first, found = lines_of(tmp_path / "with", "eval")
    assert set(first["pairs_by_group"]) == {"u0", "u1", "u2"}
    without = lines_of(tmp_path / "without", "eval")
    assert [line["mlm_loss"] for line in without] == [first["mlm_loss"], found["mlm_loss"]]
    assert "pairs_acc" not in without[0]

    convert(tmp_path / "with", tmp_path / "hf", Target("mlm"))
    chosen = lines(
        tmp_path / "chosen.jsonl", *(pair(p.good, p.bad, UID=p.group) for p in choose_evenly(read_pairs(file), 18))
    )
    for source in (tmp_path / "with", last, tmp_path / "hf"):
        said = scored_by_command(capsys, source, pairs=chosen)
        assert (said["accuracy"], said["groups"]) == (found["pairs_acc"], found["pairs_by_group"])
    assert scored_by_command(capsys, last, pairs=chosen, weights="averaged")["accuracy"] == found["avg_pairs_acc"]


def test_a_run_refuses_pairs_that_it_cannot_score(run_inputs, tmp_path):
    store, file = run_inputs
    wrong = lines(tmp_path / "wrong.jsonl", pair("w1", "w2"), pair("w1", ""))
    with pytest.raises(InputError, match=r"wrong.jsonl, line 2: sentence_bad is empty"):
        prepare(tiny_run(store.folder, tmp_path / "run", eval_samples=8, eval_pairs=wrong), 1)
    with pytest.raises(InputError, match=r"--eval_pairs .* goes with evaluations; give --eval_samples above 0"):
        tiny_run(store.folder, tmp_path / "run", eval_pairs=file)
    setup = prepare(tiny_run(store.folder, tmp_path / "run", eval_samples=8, eval_pairs=file, eval_pairs_max=7), 1)
    assert [found.group for found in setup.minimal_pairs] == ["u0", "u0", "u1", "u1", "u2", "u2"]
