"""Articles of a MediaWiki dump as plain text; what is no article stays out."""

from collections import Counter
from importlib.metadata import PackageNotFoundError

import pytest

from data_prep.cli import InputError
from data_prep.store import Store
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from data_prep.text.readers import wikipedia
from tests.corpora import COMPRESSORS, shard, tiny_vocab, write
from tests.dumps import HEAD, page

PARIS = """{{Infobox Ort|Name=Paris|Bild={{x|y}}}}
'''Paris''' ({{IPA|x}}; {{lang|fr|y}}) ist die [[Hauptstadt|''Hauptstadt'']] von Rom.&lt;ref&gt;Quelle&lt;/ref&gt;
[[Frankreich]] hat&lt;!-- nein --&gt; 2&amp;nbsp;Millionen Menschen ({{x}}, [[Stand]]).
[[Datei:Eiffel.jpg|mini|Der [[Eiffelturm]] 1889|200px]]

== Geschichte ==
* Punkt '''eins'''
* Punkt zwei&lt;br /&gt;geht weiter

{| class="wikitable"
! A !! B
|-
| Zelle || Zelle
|}

=== Leer ===

== Einzelnachweise ==
{{reflist}}
[[Kategorie:Stadt]]
[[Category:City]]
"""
TEXT = (
    "Seite 7\n\nParis ist die Hauptstadt von Rom.\n\nFrankreich hat 2 Millionen Menschen (Stand).\n\n"
    "Geschichte\n\nPunkt eins\n\nPunkt zwei\n\ngeht weiter"
)


def read(path, counts=None):
    return [
        (document.id, document.text)
        for source in find_sources([str(path)])
        for document in read_documents(source, "text", Counter() if counts is None else counts)
    ]


@pytest.mark.parametrize("compression", ["", ".bz2", ".gz"])
def test_an_article_becomes_its_text(tmp_path, compression):
    path = write(tmp_path / f"w.xml{compression}", HEAD + page(7, PARIS) + "</mediawiki>")
    assert read(path) == [(f"w.xml{compression}:7", TEXT)]


def test_utf_16_and_the_rests_of_broken_tables(tmp_path):
    dump = HEAD + page(1, "Text.\n{| class=x\n| a || b\n\nEnd.\n|-\n! c") + "</mediawiki>"
    (tmp_path / "w.xml").write_bytes(dump.encode("utf-16"))
    assert read(tmp_path / "w.xml") == [("w.xml:1", "Seite 1\n\nText.\n\nEnd.")]


def test_what_is_no_article_is_left_out(tmp_path):
    pages = [
        page(1),
        page(2, ns=10),
        page(3, more='<redirect title="Seite 1" />'),
        page(4, model="json"),
        page(5, text=""),
        page(6, text="Sechs &amp; &lt;b&gt;fett&lt;/b&gt;."),
    ]
    assert read(write(tmp_path / "w.xml", HEAD + "".join(pages) + "</mediawiki>")) == [
        ("w.xml:1", "Seite 1\n\nText."),
        ("w.xml:6", "Seite 6\n\nSechs & fett."),
    ]


def test_of_a_dump_cut_short_the_whole_articles_are_kept(tmp_path, capsys):
    pages = [page(number, text=f"Text {number}. " * 50) for number in range(300)]
    whole = (HEAD + "".join(pages)).encode()  # without its end
    cut = len((HEAD + "".join(pages[:200])).encode()) + 100
    for name, raw in (
        ("a.xml", whole[:cut]),
        ("b.xml", (HEAD + "".join(pages[:200]) + "<page><title>a & b").encode()),
        ("c.xml.bz2", COMPRESSORS[".bz2"](whole[:cut])),
    ):
        (tmp_path / name).write_bytes(raw)
        counts: Counter[str] = Counter()
        assert [identity for identity, _ in read(tmp_path / name, counts)] == [f"{name}:{n}" for n in range(200)]
        assert counts == {"damaged_parts": 1}
        assert f"{name} is damaged or cut short (XML" in capsys.readouterr().err


def test_entities_that_multiply_and_giant_articles_take_no_memory(tmp_path, monkeypatch):
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha" * 50}">' for n in range(9))
    counts: Counter[str] = Counter()
    bomb = f"<!DOCTYPE m [{laughs}]>" + HEAD + page(1) + page(2, text="&l8;") + "</mediawiki>"
    assert [identity for identity, _ in read(write(tmp_path / "bomb.xml", bomb), counts)] == ["bomb.xml:1"]
    assert counts == {"damaged_parts": 1}
    monkeypatch.setattr(wikipedia, "MAX_ARTICLE_CHARS", 1000)
    counts = Counter()
    dump = HEAD + page(1, text="a" * 1001) + page(2) + "</mediawiki>"
    assert [identity for identity, _ in read(write(tmp_path / "long.xml", dump), counts)] == ["long.xml:2"]
    assert counts == {"long_lines": 1}


def test_other_xml_is_left_out_of_folders_and_refused_by_name(tmp_path):
    other = write(tmp_path / "c/other.xml", "<corpus><text>Nothing.</text></corpus>")
    write(tmp_path / "c/w.xml", HEAD + page(1) + "</mediawiki>")
    assert [identity for identity, _ in read(tmp_path / "c")] == ["c/w.xml:1"]
    with pytest.raises(InputError, match=r"other\.xml is no dump of MediaWiki"):
        read(other)


def test_the_extractor_stands_in_the_manifest_and_without_it_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "w.xml.bz2", HEAD + "".join(page(n, text=f"The river {n}.") for n in range(9)))
    assert shard(path, tiny_vocab(tmp_path / "v"), tmp_path / "store").returncode == 0
    manifest = Store.open(tmp_path / "store").manifest
    assert manifest.sources[0].layout.startswith("mwparserfromhell 0.")
    assert manifest.counts.documents == 9

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(InputError, match=r"pip install 'zerobert\[wiki\]'"):
        read(path)
