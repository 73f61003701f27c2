"""Chinese words: a segmenter's borders laid over tokens, kept in the store, and used when whole words are masked."""

import json

import numpy as np
import pytest
import rjieba

from data_prep.cli import InputError
from data_prep.files import sha256_of
from data_prep.samples.assemble import gather_tokens, word_continuations
from data_prep.samples.masking import Masking, mask_tokens
from data_prep.samples.mixture import Mixture
from data_prep.shard import ShardConfig, main
from data_prep.store import Sections, Store, write_shard
from data_prep.tokens.continuations import continuation_token_ids
from data_prep.tokens.encode import Encoder
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.word_borders import WordBorders
from data_prep.tokens.wordpiece import write_tokenizer
from data_prep.vocab import VocabConfig
from data_prep.vocab import main as make_vocab
from tests.corpora import files_of, write
from tests.stores import random_documents, store_of

TEXT = (
    "他买了T恤衫，提供了对不同管理程序虚拟化技术的支持。",
    "历史上,为了支持不同的虚拟机超级管理器 (hypervisor),需要不同的二进制内核。",
    "桌面环境GNOME running很好用，abc你好吗？",
    "No Chinese here, walked slowly.",
    "",
    "2026年10月，  北京大学生前来应聘。",
)


@pytest.fixture(scope="module", params=["wordpiece", "unigram"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    if request.param == "wordpiece":
        letters = sorted({character for text in TEXT for character in text.lower() if not character.isspace()})
        inside = [f"##{letter}" for letter in letters if letter.isalnum()]
        (folder / "v").mkdir()
        write_tokenizer(folder / "v", [*SPECIAL, *letters, *inside, "run", "##ning"], cased=False)
    else:
        make_vocab(
            VocabConfig(
                out=folder / "v",
                corpus=(str(write(folder / "a.txt", "\n".join(TEXT * 40))),),
                model="unigram",
                size=256,
                txt="lines",
            )
        )
    return folder / "v", Encoder.load(folder / "v")


def naive_borders(encoder: Encoder, sentence: str, by_vocabulary: np.ndarray) -> list[bool]:
    """Token by token: inside a word of jieba if it begins with a Chinese character, or after one; otherwise as ##."""
    begins, place = set(), 0
    for word in rjieba.cut(sentence):
        begins.add(place)
        place += len(word)
    found = []
    encoding = encoder.tokenizer.encode(sentence, add_special_tokens=False)
    for number, (first, _) in zip(encoding.ids, encoding.offsets, strict=True):
        here, before = ("\u4e00" <= sentence[at : at + 1] <= "\u9fff" for at in (first, first - 1))
        if here:
            found.append(first not in begins)
        else:
            found.append(bool(by_vocabulary[number]) and not (first > 0 and before and first in begins))
    return found


def test_borders_equal_the_naive_reference(encoder):
    folder, encoder = encoder
    by_vocabulary = continuation_token_ids(folder, encoder.size, encoder.special_ids.values())
    sentences = list(TEXT)
    borders = WordBorders(encoder.tokenizer, by_vocabulary)
    found = borders.continuations(sentences, encoder.encode(sentences))
    expected = [naive_borders(encoder, sentence, by_vocabulary) for sentence in sentences]
    assert found.tolist() == [flag for flags in expected for flag in flags]
    assert found.any()


def test_characters_join_to_the_words_of_the_segmenter(encoder):
    folder, encoder = encoder
    borders = WordBorders(encoder.tokenizer, np.zeros(encoder.size, bool))
    encoded = encoder.encode([TEXT[0]])
    words: list[str] = []
    for token, goes_on in zip(encoded.ids.tolist(), borders.continuations([TEXT[0]], encoded).tolist(), strict=True):
        piece = encoder.tokenizer.id_to_token(token).removeprefix("▁")
        words = [*words[:-1], words[-1] + piece] if goes_on else [*words, piece]
    if (folder / "vocab.txt").exists():  # pieces of SentencePiece may hold several words
        assert words == [word.lower() for word in rjieba.cut(TEXT[0])]
        assert "t恤衫" in words


def shard(folder, vocab, out, *, words="jieba", workers=1):
    main(ShardConfig(vocab=vocab, out=out, corpus=(str(folder),), words=words, workers=workers, txt="lines", holdout=0))


def test_a_store_keeps_them_whatever_the_number_of_workers(encoder, tmp_path):
    folder, encoder = encoder
    for number in range(5):
        write(tmp_path / f"c/{number}.txt", "\n\n".join("\n".join(TEXT[: number + 2]) for _ in range(3)))
    for workers in (1, 2):
        shard(tmp_path / "c", folder, tmp_path / f"store{workers}", workers=workers)
    assert files_of(tmp_path / "store1") == files_of(tmp_path / "store2")
    store = Store.open(tmp_path / "store1")
    assert store.manifest.format == 2
    assert {"words", "rjieba"} <= set(store.manifest.settings)
    size = np.array([int(store.token_starts[-1])])
    ids = store.read_spans(np.zeros(1, np.int64), size)
    expected = [
        flag
        for number in range(5)
        for sentence in TEXT[: number + 2] * 3
        for flag in naive_borders(encoder, sentence, store.continues)
    ]
    assert store.read_continues(ids, np.zeros(1, np.int64), size).tolist() == expected
    shard(tmp_path / "c", folder, tmp_path / "plain", words="vocab")
    plain = Store.open(tmp_path / "plain")
    assert plain.manifest.format == 1
    assert set(plain.manifest.settings) == set(store.manifest.settings) - {"words", "rjieba"}
    assert plain.read_continues(ids, np.zeros(1, np.int64), size).tolist() == plain.continues[ids].tolist()
    with pytest.raises(InputError, match="was made from something else: format 1, now 2"):
        shard(tmp_path / "c", folder, tmp_path / "plain")


def test_samples_of_several_shards_and_stores_know_their_words(tmp_path):
    """Bits that a vocabulary without pieces cannot know: every third token of the first store goes on with a word."""
    stores = [store_of(tmp_path / str(n), random_documents(40, seed=n), shards=n + 2) for n in (0, 1)]
    goes_on = np.arange(int(stores[0].token_starts[-1])) % 3 == 2
    manifest = json.loads((tmp_path / "0/manifest.json").read_text())
    for number, entry in enumerate(manifest["shards"]):
        part = goes_on[stores[0].token_starts[number] : stores[0].token_starts[number + 1]]
        sections = stores[0].shards[number]._replace(continues=np.packbits(part, bitorder="little"))
        path = tmp_path / "0" / entry["name"]
        write_shard(path, Sections(*map(np.array, sections)), stores[0].vocab_sha256)
        entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (tmp_path / "0/manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    stores[0] = Store.open(tmp_path / "0")
    samples = Mixture(stores, [1, 1], seq_len=64, objective="nsp", seed=0).epoch(0).samples_at(np.arange(30))
    assembled = gather_tokens(tuple(stores), samples)
    ids, _, is_special, lengths = assembled
    found = word_continuations(tuple(stores), samples, assembled)
    expected: list[bool] = []
    for number, sample in zip(samples.store, samples.spans, strict=True):
        for start, length in (("a_start", "a_length"), ("b_start", "b_length")):
            tokens = range(int(sample[start]), int(sample[start]) + int(sample[length]))
            expected += [False] * (start == "a_start") + [number == 0 and token % 3 == 2 for token in tokens] + [False]
    assert found.tolist() == expected
    _, rows, _ = mask_tokens(
        ids, is_special, lengths, samples.key, mask_id=4, vocab_size=64, masking=Masking(unit="word"), continues=found
    )
    hidden = np.zeros(len(ids) + 1, bool)
    hidden[rows] = True
    after = np.flatnonzero(found)
    torn = hidden[after] != hidden[after - 1]
    assert torn[~is_special[after - 1]].sum() <= 30  # at most one word of a sample is cut


def test_without_the_package_it_is_named(encoder, tmp_path, monkeypatch):
    folder, _ = encoder
    monkeypatch.setitem(__import__("sys").modules, "rjieba", None)
    write(tmp_path / "a.txt", TEXT[0])
    with pytest.raises(InputError, match=r"--words jieba needs the package rjieba: pip install 'zerobert\[zh\]'"):
        shard(tmp_path / "a.txt", folder, tmp_path / "store")
