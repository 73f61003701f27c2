"""Corpora as folders really are: tables, JSON of all shapes, encyclopedias by article, and strangers beside them."""

import csv
import io
import json
import os
import tarfile
from collections import Counter
from itertools import pairwise

import pytest

from data_prep import dedup
from data_prep.cli import InputError, parse
from data_prep.shard import ShardConfig, make_store
from data_prep.store import Store
from data_prep.text import corpus, discovery
from data_prep.text.cleaning import excluded_grams, grams_of
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from data_prep.text.readers import delimited, json_values
from data_prep.text.sentences import splitter
from tests.corpora import files_of, texts, tiny_vocab, write

TEXTS = [
    *(
        'He said "no", and left.\n\nA second, paragraph; with|signs.',
        '"Quoted" at its beginning',
        'and its end "quoted"',
    ),
    *("über naïve 中文 – 2026", "a\ttab and a \\ backslash", "", "the end"),
]


def read(path, column="text", counts=None, **options):
    """The texts of a file or folder, as every command reads them."""
    counts = Counter() if counts is None else counts
    sources = find_sources([str(path)], column=column, **options)
    return [document.text for source in sources for document in read_documents(source, column, counts)]


def table(rows, header=("id", "text", "year"), **how):
    out = io.StringIO()
    writer = csv.writer(out, **how)
    writer.writerow(header)
    writer.writerows([number, text, 1900][: len(header)] for number, text in enumerate(rows))
    return out.getvalue()


class TestTables:
    @pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
    @pytest.mark.parametrize(
        "how",
        [{}, *({"delimiter": sign} for sign in ";\t|"), {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_what_writers_of_csv_write_is_read_as_it_was(self, tmp_path, name, how, encoding):
        if name == "a.tsv":
            how = {**how, "delimiter": "\t"}
        path = write(tmp_path / name, table(TEXTS, **how).encode(encoding))
        counts: Counter[str] = Counter()
        assert read(path, counts=counts) == [text for text in TEXTS if text]
        assert counts == {"empty_documents": 1}

    def test_quotes_of_a_tsv_without_quoting_are_text(self, tmp_path):
        rows = ['"Quoted" at its beginning', '"half quoted', 'in the "middle" of it']
        path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{row}\t1\n" for row in rows))
        assert read(path) == rows

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("sep=;\r\nid;text\r\n1;one, two\r\n", ["one, two"]),  # Excel
            ('id, text\n1, "one, two"\n2, three\n', ["one, two", "three"]),
            ("text\nOne, two; three\n\n   \nfour\n", ["One, two; three", "four"]),  # a single column parts nothing
            ('text,\n"one",\ntwo,\n', ["one", "two"]),
            ("id,text\n1,one,,\n", ["one"]),
            ("id,text\r1,one\r2,two\r", ["one", "two"]),
            ("id,text\n1,no end of line", ["no end of line"]),
        ],
    )
    def test_habits_of_writers(self, tmp_path, content, expected):
        counts: Counter[str] = Counter()
        assert read(write(tmp_path / "a.csv", content), counts=counts) == expected
        assert not counts["bad_lines"]

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            ("7,a comma, unquoted,1900\n", "line 3 has 4 cells where the header has 3"),
            ("7,too short\n", "line 3 has 2 cells where the header has 3"),
            ("id,text,year\n", "line 3 repeats the header"),
            ('7,"he said "no" twice",1900\n', "line 3 has quotes that make no sense"),
            ('7,"a quote that nothing closes,1900\n', "line 3 has quotes that make no sense"),
        ],
    )
    def test_a_bad_row_costs_itself_only_and_is_counted(self, tmp_path, capsys, monkeypatch, bad, said):
        monkeypatch.setattr(delimited, "MAX_ROW_CHARS", 2000)  # characters of a row: the file is longer
        good = [f"Sentence {number}, as it stands." for number in range(200)]
        lines = table(good, quoting=csv.QUOTE_MINIMAL, lineterminator="\n").splitlines(keepends=True)
        path = write(tmp_path / "a.csv", "".join([*lines[:2], bad, *lines[2:]]))
        counts: Counter[str] = Counter()
        assert read(path, counts=counts) == good
        assert counts == {"bad_lines": 1}
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("header", "column", "found"),
        [
            *(("id,Text", "text", "Text"), ("id,content", "text", "content"), ("title,review,text", "text", "")),
            *(("Inhalt,text", "Inhalt", ""), ("inhalt,text", "INHALT", "inhalt"), ("id , body ", "text", "body")),
        ],
    )
    def test_the_column_is_found_and_said(self, tmp_path, capsys, header, column, found):
        at = [name.strip().lower() for name in header.split(",")].index((found.strip() or column).lower())
        row = ["no"] * header.count(",") + ["no"]
        row[at] = "This is the text."
        path = write(tmp_path / "a.csv", f"{header}\n{','.join(row)}\n")
        assert read(path, column) == ["This is the text."]
        assert find_sources([str(path)], column=column)[0].column == found
        assert (f"the text is taken from {found!r}: a.csv" in capsys.readouterr().err) == bool(found)

    def test_a_table_without_it_is_refused_by_name_and_left_out_of_a_folder(self, tmp_path, capsys):
        path = write(tmp_path / "c/metadata.csv", "file,title\na.txt,One\n")
        with pytest.raises(
            InputError, match=r"metadata.csv has no field 'text', only \['file', 'title'\]; see --column"
        ):
            read(path)
        with pytest.raises(InputError, match=r"metadata.csv has no field 'text'"):
            read(tmp_path / "c")
        write(tmp_path / "c/package.json", '{"name": "x"}')
        write(tmp_path / "c/tsconfig.json", '// {"text": "x"}')
        write(tmp_path / "c/a.txt", "The text.")
        assert read(tmp_path / "c") == ["The text."]
        said = capsys.readouterr().err
        assert "without text: .csv files: 1 (c/metadata.csv); .json files: 2 (c/package.json, c/tsconfig.json)" in said

    @pytest.mark.parametrize(
        ("name", "content", "expected", "said"),
        [
            (
                "a.csv",
                "id,review,text_de\nA,5,Hallo.\n",
                ["5"],
                "column 'review' holds no letter; is the text in another",
            ),
            ("a.tsv", "id\ttext\n1\tOne.\\nTwo.\n2\t\\N\n", ["One.\\nTwo."], "line breaks seem to be written as \\n"),
            ("a.tsv", "id\ttext\n1\tOf $\\nabla$.\n", ["Of $\\nabla$."], ""),
        ],
    )
    def test_what_hardly_is_the_text_is_said(self, tmp_path, capsys, name, content, expected, said):
        assert read(write(tmp_path / name, content)) == expected
        err = capsys.readouterr().err
        assert said in err
        assert ("warning" in err) == bool(said)

    def test_of_two_columns_of_one_name_none_is_chosen_unsaid(self, tmp_path):
        with pytest.raises(InputError, match=r"a.csv has 2 columns 'text'; write all but one under other names"):
            read(write(tmp_path / "a.csv", "text,id,text\nOne.,1,Two.\n"))


OBJECTS = [{"id": number, "text": text, "tags": ["a", {"text": "none"}]} for number, text in enumerate(TEXTS)]


class TestJson:
    @pytest.mark.parametrize("step", [7, 1 << 18])  # bytes read at once
    @pytest.mark.parametrize(
        ("content", "kind", "layout"),
        [
            (json.dumps(OBJECTS), "json", "values"),
            (json.dumps(OBJECTS, ensure_ascii=False, indent=2), "json", "values"),
            (json.dumps(TEXTS[:2] + TEXTS), "json", "values"),
            (
                json.dumps({"version": 1, "tags": ["x"], "meta": [{"a": 1}], "data": OBJECTS, "n": 12}),
                "json",
                "in data",
            ),
            ("\n".join(map(json.dumps, OBJECTS)), "jsonl", ""),
            ("\n".join(json.dumps(one, indent=1) for one in OBJECTS), "json", "values"),
            (",".join(map(json.dumps, OBJECTS)), "json", "values"),
        ],
        ids=["array", "indented", "strings", "wrapped", "lines", "in a row", "no brackets"],
    )
    def test_every_shape_is_read(self, tmp_path, monkeypatch, content, kind, layout, step):
        monkeypatch.setattr(json_values, "READ_CHUNK_BYTES", step)
        path = write(tmp_path / "a.json", content)
        source = find_sources([str(path)], column="text")[0]
        assert (source.kind, source.layout) == (kind, layout)
        assert read(path) == ([*TEXTS[:2], *filter(None, TEXTS)] if '["' in content[:2] else [*filter(None, TEXTS)])

    def test_an_article_a_file(self, tmp_path):
        write(tmp_path / "a.json", json.dumps({"entities": [{"text": "Anna", "label": "PER"}], "text": "Anna came."}))
        write(tmp_path / "b.json.gz", json.dumps({"title": "Two", "content": "She left.", "paragraphs": [{"x": 1}]}))
        assert read(tmp_path) == ["Anna came.", "She left."]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{'text': 'x'}", "a.json is no JSON"),
            ("[1, 2]", "a.json has no field 'text'"),
            (json.dumps({"a": [{"text": "x"}], "b": [{"text": "y"}]}), "a.json holds several arrays: a, b; give each"),
            ('{"data": [{"paragraphs": []}]}', r"a.json has no field 'text', only \['data'\]; see --column"),
        ],
    )
    def test_what_is_none_of_them_is_refused(self, tmp_path, content, message):
        with pytest.raises(InputError, match=message):
            read(write(tmp_path / "a.json", content))

    @pytest.mark.parametrize("cut", [-2, -20])
    def test_what_stands_before_damage_is_read(self, tmp_path, capsys, cut):
        counts: Counter[str] = Counter()
        assert read(write(tmp_path / "a.json", json.dumps(OBJECTS)[:cut]), counts=counts)[:4] == TEXTS[:4]
        assert counts["damaged_parts"] == 1
        assert "what stands before the damage is read (--strict refuses)" in capsys.readouterr().err

    def test_records_without_text_are_counted_and_memory_is_bounded(self, tmp_path, monkeypatch):
        monkeypatch.setattr(json_values, "MAX_VALUE_CHARS", 100)
        monkeypatch.setattr(json_values, "READ_CHUNK_BYTES", 16)
        counts: Counter[str] = Counter()
        path = write(tmp_path / "a.json", json.dumps([{"text": "one"}, {"x": 1}, {"text": 2}, {"text": "y" * 500}]))
        assert read(path, counts=counts) == ["one"]
        assert counts == {"bad_lines": 2, "damaged_parts": 1}

    def test_an_array_that_the_beginning_did_not_show_is_not_lost_unsaid(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(discovery, "HEAD_BYTES", 1000)
        content = {"train": [{"text": "One."}] * 200, "tags": [{"x": 1}], "test": [{"text": "Two."}] * 3}
        counts: Counter[str] = Counter()
        assert read(write(tmp_path / "a.json", json.dumps(content)), counts=counts) == ["One."] * 200
        assert counts == {"bad_lines": 3}
        assert "a second array, 'test', of which 3 records with a text are left out" in capsys.readouterr().err


WIKITEXT = """ \n = Valkyria = \n \n It cost 1 @,@ 000 in an up @-@ date . It was = 3 . \n = = Empty = =
 = = Plot = = \n = = = Below = = = \n She left . \n = = See also = = \n \n = Second = \n \n Robert is an actor . \n"""
EXTRACTED = """<doc id="12" url="https://x.org?curid=12" title="A &amp; B">\nA &amp; B\n\nOne &lt; two.\nThree.\n</doc>
<doc id="13" url="u" title="Stub">\nStub\n\n</doc>\n<doc id="25" url="u" title="C">\nC\n\nFour.\n\n</doc>\n"""
ARTICLES = {
    "wiki.train.tokens": (
        WIKITEXT,
        [
            "Valkyria\n\nIt cost 1,000 in an up-date . It was = 3 .\n\nPlot\n\nBelow\n\nShe left .",
            "Second\n\nRobert is an actor .",
        ],
    ),
    "wiki_00": (EXTRACTED, ["A & B\n\nOne < two.\n\nThree.", "C\n\nFour."]),
}


class TestArticles:
    @pytest.mark.parametrize("name", ARTICLES)
    @pytest.mark.parametrize("renamed", ["", "a.txt", "AA/wiki_00.gz"])
    def test_a_document_is_an_article_in_whatever_ranges_it_is_read(self, tmp_path, name, renamed):
        content, expected = ARTICLES[name]
        path = write(tmp_path / "c" / (renamed or name), content)
        assert read(tmp_path / "c") == expected
        [source] = find_sources([str(path)], column="text")
        size = len(content.encode())
        for parts in range(1, 40 if not source.is_stream else 1):
            borders = [part * size // parts for part in range(parts + 1)] if parts > 1 else [0, 1, size]
            found = [
                document.text
                for start, stop in pairwise(borders)
                for document in read_documents(source, "text", Counter(), start, stop)
            ]
            assert found == expected, parts
        assert read(path, txt="prose") != expected

    def test_sentences_of_wikitext_end_though_a_blank_precedes_the_stop(self):
        assert splitter("en")(["It was late . She left ."]) == [["It was late .", "She left ."]]

    def test_wikiextractor_may_write_json(self, tmp_path):
        write(tmp_path / "AA/wiki_00", '{"id": "1", "title": "T", "text": "One."}\n{"id": "2", "text": "Two."}\n')
        write(tmp_path / "AA/wiki_01", "something else of that name")
        assert read(tmp_path) == ["One.", "Two."]

    def test_no_text_is_taken_for_a_title(self, tmp_path, monkeypatch):
        untitled = '<doc id="1" url="u" title="T &amp; U">\nAll of it, below no title.\n</doc>\n'
        assert read(write(tmp_path / "wiki_00", untitled)) == ["All of it, below no title."]
        monkeypatch.setattr(corpus, "MAX_DOCUMENT_CHARS", 60)
        lines = [f"This is line number {number}." for number in range(5)]
        extracted = '<doc id="1" url="u" title="T">\nT\n\n' + "\n".join(lines) + "\n</doc>\n"
        assert read(write(tmp_path / "wiki_01", extracted)) == [
            *("T\n\n" + "\n\n".join(lines[:2]), "\n\n".join(lines[2:4]), lines[4])
        ]
        headed = (
            " = T = \n" + "".join(f" {line}\n = = Heading {at} = = \n" for at, line in enumerate(lines)) + " End .\n"
        )
        found = "\n\n".join(read(write(tmp_path / "a.txt", headed)))
        assert [one for one in found.split("\n\n") if one.startswith("Heading")] == [f"Heading {at}" for at in range(5)]

    def test_prose_that_begins_like_a_title_is_prose(self, tmp_path):
        for number, text in enumerate(["= a = b\n\nmore", "== Heading ==\ntext", "<doc> text", "a = b = c\n"]):
            path = write(tmp_path / f"{number}.txt", text)
            assert find_sources([str(path)])[0].layout in ("lines", "prose"), text


def test_what_can_be_made_text_is_named_with_the_tool(tmp_path, capsys):
    for name in ("a.pdf", "b.PDF", "c.html", "d.docx", "e.xyz"):
        write(tmp_path / name, "x")
    with pytest.raises(InputError, match=r"holds no \.txt"):
        read(tmp_path)
    said = capsys.readouterr().err
    assert ".pdf files: 2 (a.pdf, b.PDF)" in said
    assert "text can be made of .docx by pandoc, .html by trafilatura, .pdf by pdftotext: docs/corpora.md" in said
    with pytest.raises(InputError, match=r"a.pdf is of a kind we cannot read \(text can be made of it by pdftotext"):
        read(tmp_path / "a.pdf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One of each, with known documents."""
    folder = tmp_path_factory.mktemp("corpus") / "c"
    documents = [" ".join(document) for document in texts(70)]
    write(folder / "a.csv", table(documents[:10], header=("id", "content", "year")))
    write(folder / "b.tsv.gz", table(documents[10:20], delimiter="\t").encode("utf-16"))
    write(folder / "c.json", json.dumps([{"text": text} for text in documents[20:30]]))
    write(folder / "Übung/d.json", json.dumps({"data": [{"text": text} for text in documents[30:40]]}))
    write(folder / "AA/wiki_00", "".join(f'<doc id="1" url="u">\nT\n\n{text}\n</doc>\n' for text in documents[40:50]))
    write(folder / "f.txt", "".join(f" = T = \n\n {text} \n" for text in documents[50:60]))
    with tarfile.open(folder / "g.tar", "w") as archive:
        for name, content in {
            "x.csv": table(documents[60:65], header=("id", "Text")).encode("cp1252", "replace"),
            "y.json": json.dumps(documents[65:70]).encode(),
            "z.csv": b"a,b\n1,2\n",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder


def store_of(folder, out, *more):
    vocab = tiny_vocab(out.parent / "v")
    make_store(parse(ShardConfig, None, [*f"--vocab {vocab} --out {out} --corpus {folder}".split(), *more]))
    return Store.open(out)


def test_a_store_of_all_kinds_does_not_depend_on_who_makes_it(folder, tmp_path, capsys):
    store = store_of(folder, tmp_path / "one", "--workers", "1", "--shard_mb", "0.01")
    store_of(folder, tmp_path / "two", "--workers", "2", "--shard_mb", "0.01")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert store.manifest.counts.documents == 70
    sources = {source.path: source for source in store.manifest.sources}
    assert (sources["c/a.csv"].layout, sources["c/a.csv"].column) == ("commas", "content")
    assert (sources["c/b.tsv.gz"].encoding, sources["c/b.tsv.gz"].column) == ("utf-16-le", "")
    assert {sources[name].layout for name in ("c/AA/wiki_00", "c/f.txt")} == {"wikiextractor", "wikitext"}
    assert store.manifest.irregularities["c/g.tar"]["other_members"] == 1
    # A second run finds nothing to do, a new file is appended.
    capsys.readouterr()
    store_of(folder, tmp_path / "one", "--workers", "1", "--shard_mb", "0.01")
    assert "nothing to do" in capsys.readouterr().err
    more = write(tmp_path / "more.json", json.dumps([{"body": "Another one."}, {"body": "And one more."}]))
    appended = store_of(folder, tmp_path / "one", str(more), "--workers", "1", "--shard_mb", "0.01", "--append")
    assert appended.manifest.counts.documents == 72


def test_strict_refuses_what_is_left_out_of_them(tmp_path):
    write(tmp_path / "c/a.csv", "text,n\none,1\ntwo, three,2\n")
    with pytest.raises(InputError, match=r"a\.csv: bad_lines 1, which --strict refuses"):
        store_of(tmp_path / "c", tmp_path / "s", "--strict", "--workers", "1")
    write(tmp_path / "c/a.csv", "text,n\none,1\n")
    write(tmp_path / "c/b.json", '[{"text": "one"}, {"te')
    with pytest.raises(InputError, match=r"b\.json: damaged_parts 1, which --strict refuses"):
        store_of(tmp_path / "c", tmp_path / "t", "--strict", "--workers", "1")


def test_copies_and_tests_are_found_in_them(folder, tmp_path):
    for name in ("x.csv", "y.json"):
        text = texts(70)[0]
        content = table([" ".join(text)]) if name == "x.csv" else json.dumps({"a": [{"q": " ".join(text)}]})
        path = write(tmp_path / name, content)
        assert set(grams_of(" ".join(text))) <= excluded_grams([path])
    config = f"--corpus {folder / 'a.csv'} {folder / 'c.json'} {folder / 'c.json'} --out {tmp_path}/d.npz --similar 1"
    os.link(folder / "c.json", tmp_path / "copy.json")
    dedup.main(parse(dedup.DedupConfig, None, [*config.split()[:3], str(tmp_path / "copy.json"), *config.split()[4:]]))
    assert (tmp_path / "d.npz").is_file()
