"""A vocabulary is made of the same documents whatever the order of files and the number of processes."""

import re

import pytest

from data_prep.cli import InputError, parse
from data_prep.sample import Reading, Sample
from data_prep.sharding.held_out import digest_of
from data_prep.text.discovery import find_sources
from data_prep.vocab import VocabConfig, main
from tests.corpora import as_jsonl, as_lines, files_of, texts, write

READING = Reading("text", None, encoding_is_named=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "a.jsonl.gz", as_jsonl(texts(200)))
    write(folder / "b.jsonl", as_jsonl(texts(200, seed=1)))
    write(folder / "c.txt", as_lines(texts(100, seed=2)))
    return [str(path) for path in sorted(folder.iterdir())]


def test_the_same_bytes_for_any_order_and_any_number_of_workers(files, tmp_path, capsys):
    half = sum(unit.text_bytes for unit in Sample.of(find_sources(files), READING, 1e9).plan.units) / 2e6
    for name, corpus, workers in (("one", files, "1"), ("three", files[::-1], "3")):
        options = ["--size", "256", "--workers", workers, "--sample_mb", f"{half:.6f}", "--min_frequency", "1"]
        main(parse(VocabConfig, None, ["--corpus", *corpus, "--out", str(tmp_path / name), *options]))
        share = re.search(r"MB of text \((\d+) %\), documents chosen by a hash \(--sample_mb", capsys.readouterr().err)
        assert share, name
        assert 35 < int(share[1]) < 65
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")


def test_documents_of_the_highest_hashes_are_chosen(files):
    """Those that a store holds out have the lowest."""
    sources = find_sources(files)
    sample = Sample.of(sources, READING, 1e9)
    every = [paragraph for batch in sample.texts("pieces", 0) for paragraph in batch]
    part = Sample(sources, READING, sample.plan, share=0.5)
    chosen = [paragraph for batch in part.texts("pieces", 0) for paragraph in batch]
    assert 0.3 * len(every) < len(chosen) < 0.7 * len(every)
    assert set(chosen) < set(every)
    assert part.count(None, 1, "characters").read_bytes == sample.count(None, 1, "characters").text_bytes
    lowest, *_, highest = sorted((str(number).encode() for number in range(50)), key=digest_of)
    assert [each.takes(raw) for each in (part, sample) for raw in (lowest, highest)] == [False, True, True, True]


def test_a_sample_of_nothing_is_named(files, tmp_path):
    with pytest.raises(InputError, match=r"no document is in a sample of 1e-09 MB; give a larger --sample_mb"):
        main(parse(VocabConfig, None, ["--corpus", *files, "--out", str(tmp_path / "v"), "--sample_mb", "1e-9"]))
    assert not list(tmp_path.iterdir())
