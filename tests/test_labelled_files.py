"""Labelled files as people have them: quotes, encodings, line ends, holes, odd labels; pandas judges the quoting."""

import codecs
import csv
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
import pytest

from data_prep.cli import InputError
from pretrain.finetune.files import columns, labelled, tables


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pairs_in(path: Path) -> list[tuple[str, str]]:
    """(text, label) of a file of single texts."""
    return [(str(example.text), example.label) for example in labelled.read_texts(path)]


def as_table(rows: list[tuple[str, str]], **options) -> str:
    return pd.DataFrame(rows, columns=["text", "label"]).to_csv(index=False, **options)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_whatever_pandas_writes_is_read_back(tmp_path, suffix, delimiter, quoting):
    rng = random.Random(0)
    # Without a tab in a cell of several lines: such a cell alone could also be two rows with a quote each.
    signs = ["a", "b", " ", '"', "'", ",", ";", "\t", "\n", "é", "\u2028", "字"]
    for trial in range(60):
        rows = [
            ("x" + "".join(rng.choices(signs, k=rng.randrange(8))), rng.choice(["neg", 'a"b', "1"])) for _ in range(5)
        ]
        rows += [('"' + text, label) for text, label in rows[:2]]
        rows = [(text.replace("\t", "") if "\n" in text else text, label) for text, label in rows]
        content = as_table(rows, sep=delimiter, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"]))
        content = content.rstrip("\r\n") if trial % 3 == 0 else content
        assert pairs_in(write(tmp_path / f"t.{suffix}", content)) == rows, repr(content)


def test_a_table_without_quoting_keeps_its_quotes(tmp_path, capsys):
    rng = random.Random(0)
    for _ in range(200):
        texts = ["x" + "".join(rng.choices('ab ",', k=rng.randrange(6))) for _ in range(6)]
        # A quote that opens and never closes, as in GLUE; a second one that would swallow the rows between.
        texts[rng.randrange(3)] = '"' + rng.choice(["opens only", 'a word" in quotes', 'twice" and ""'])
        if rng.random() < 0.5:
            texts[5] = 'and closes later"'
        rows = [(text, rng.choice(["0", "1"])) for text in texts]
        content = "".join("\t".join(row) + "\n" for row in [("text", "label"), *rows])
        assert pairs_in(write(tmp_path / "t.tsv", content)) == rows, content
    assert "t.tsv: quotes are part of the texts, for " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ('"all"\t0\n"of"\t1\n"them"\t0\n', ["all", "of", "them"]),  # a whole column
        ('"as, a spreadsheet"\t0\nquotes only that\t1\n', ["as, a spreadsheet", "quotes only that"]),
        ('"no need"\t0\nplain\t1\n', ['"no need"', "plain"]),  # no writer does that
        ('"a, b"\t0\nc, d\t1\n', ['"a, b"', "c, d"]),  # nor that
        ('"a ""b"" c"\t0\nplain\t1\n', ['a "b" c', "plain"]),
        ('"a\tb"\t0\nplain\t1\n', ["a\tb", "plain"]),
        ('a "b" c\t0\n"d"\t1\n', ['a "b" c', '"d"']),
        ('"\t0\n"\t1\n', ['"', '"']),
    ],
)
def test_a_table_of_tabs_is_quoted_where_a_writer_left_its_signature(tmp_path, body, texts):
    path = write(tmp_path / "t.tsv", "text\tlabel\n" + body)
    assert [example.text for example in labelled.read_texts(path)] == texts


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
    ],
)
def test_encodings_and_line_ends(tmp_path, capsys, suffix, end, encoding, mark):
    rows = [("schön und gut", "ja"), ("字 \u2028 ไทย", "nein")]
    if suffix == "jsonl":
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    else:
        lines = [("," if suffix == "csv" else "\t").join(row) for row in [("text", "label"), *rows]]
    for last in ("", end, end + end):  # no line end at the end, one, and a blank line
        path = write(tmp_path / f"t.{suffix}", mark + (end.join(lines) + last).encode(encoding))
        assert pairs_in(path) == rows
    assert ("is read as UTF-16" in capsys.readouterr().err) == (encoding != "utf-8")


@pytest.mark.parametrize(("end", "line"), [("\n", 3), ("\r\n", 3), ("\r", 3)])
def test_other_encodings_are_refused_with_the_line_and_the_remedy(tmp_path, end, line):
    content = end.join(["text,label", "fine,1", "schön,0", ""]).encode("latin-1")
    told = rf"t\.csv, line {line}: not UTF-8 .*iconv -f WINDOWS-1252 -t UTF-8 \S*/t\.csv > utf8-t\.csv$"
    for raw in (content, codecs.BOM_UTF8 + content):
        with pytest.raises(InputError, match=told):
            labelled.read_texts(write(tmp_path / "t.csv", raw))
    cut = "text,label\na,1\n".encode("utf-16")[:-1]
    with pytest.raises(InputError, match=r"t\.csv, line 2: not UTF-16 \(truncated data\)"):
        labelled.read_texts(write(tmp_path / "t.csv", cut))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,label\na,1\nb\n", r"line 3: 1 columns where the header has 2"),
        ("t.csv", "text,label\na,1\n\nb,c,1\n", r"line 4: 3 columns .* must be quoted: 'b'"),
        ("t.csv", 'text,label\n"a\nb",1\nc\n', r"line 4: 1 columns"),
        ("t.csv", 'text,label\na,1\n"b,1\nc,0\n', r"line 3: a cell that begins with a double quote must end with one"),
        ("t.csv", 'text,label\n"a" b,1\n', r"line 2: a cell that begins with a double quote"),
        ("t.csv", "text,label\n,1\n", r"line 2: the text is empty; fill it in or remove the row"),
        ("t.csv", "text,label\na,\n", r"line 2: a label must be a name or an integer, not ''; fill it in"),
        ("t.csv", "text,label\na,  \u00a0\n", r"line 2: a label must be"),
        ("t.csv", "text,label,text\na,1,b\n", r"line 1: 2 columns are called 'text': keep one"),
        ("t.csv", "text,label,Label \na,1,b\n", r"line 1: 2 columns are called 'label'"),
        ("t.csv", "a fine film,1\na bad film,0\n", r"t\.csv: no column text .*; the first line must name the columns"),
        ("t.tsv", "text,label\na,1\n", r"t\.tsv: no column text .*found text,label"),
        ("t.csv", "text,label\na,1\ntext,label\nb,0\n", r"line 3 repeats the header"),
        ("t.csv", "text,label\n,\n", "no examples below its header line"),
        ("t.csv", "\n\n", "no examples"),
        ("t.jsonl", '{"text": "a", "label": "x", "label": "y"}\n', r"line 1: 2 columns are called 'label'"),
        ("t.jsonl", '{"text": "a"}\n', r"line 1: no column label or intent .*; found text; .*--label"),
        ("t.jsonl", '{"text": null, "label": 1}\n', r"line 1: a text must be a string, not None"),
        ("t.jsonl", '{"text": "\\ud800", "label": 1}\n', r"line 1: half a surrogate pair"),
        ("t.jsonl", '{"text": "a", "label": "\\udc00"}\n', r"line 1: half a surrogate pair"),
        ("t.jsonl", '{"text": "a", "label": true}\n', r"line 1: a label must be a name or an integer, not True"),
        ("t.jsonl", '{"text": "a", "label": ["neg", "film"]}\n', r"line 1: a label must be a name .*\['neg', 'film'\]"),
        ("t.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}\n", r"line 1: not JSON \(Exceeds the limit"),
        ("t.jsonl", "[" * 100_000 + "\n", r"line 1: not JSON"),
        ("t.conll", "Anna B-PER\n", r"no column label .*; words with a tag each are for --task tag"),
        ("t.dat", "Anna PER\n", r"must end in \.csv or \.tsv \(with a header line\) or \.jsonl, \.parquet or \.conll"),
        ("t.csv", b"PK\x03\x04...", r"t\.csv is a spreadsheet or a zip archive; save the table as \.csv"),
        ("t.jsonl", b"\x80\x04...", r"t\.jsonl is a pickle, which is never opened"),
        ("t.parquet", "text,label\n", r"t\.parquet is no Parquet"),
        ("t.parquet", b"PAR1.......PAR1", r"t\.parquet cannot be read as Parquet: .*; write the file again"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused_in_one_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as refusal:
        labelled.read_texts(write(tmp_path / name, content))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(tmp_path))


def test_headers_as_pandas_and_spreadsheets_leave_them(tmp_path):
    rows = [("one", "a"), ("two", "b")]
    for content in (
        ",text,label\n0,one,a\n1,two,b\n",  # an index
        "text,label,,\none,a,,\n,,,\ntwo,b,,\n",  # empty columns and rows
        "\ufeff\ufeffLabel; Sentence\na;one\nb;two\n",
        'text, label\n"one", a\ntwo, "b"\n',
        "Text\tLABEL\none\ta\ntwo\tb\n",
        "sep=;\r\ntext;label\r\none;a\r\ntwo;b\r\n",  # Excel's
    ):
        assert pairs_in(write(tmp_path / "t.csv", content)) == rows


def test_of_two_columns_the_one_that_is_read_is_said(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "sentence,text,intent,label\na,b,c,d\n")
    assert pairs_in(path) == [("b", "d")]
    said = capsys.readouterr().err
    assert "column text is read, sentence is not" in said
    assert "column label is read, intent is not" in said


def test_a_cell_may_be_longer_than_the_csv_module_expects(tmp_path):
    long = "word, " * 50_000
    assert pairs_in(write(tmp_path / "t.csv", as_table([(long, "a"), ("b", "b")]))) == [(long, "a"), ("b", "b")]


def test_white_space_is_no_part_of_a_label_and_its_share_is_said(tmp_path, capsys):
    rows = [
        "x\tneg ",
        "x\tneg",
        "x\t neg",
        "x\tvery  good",
        "x\tvery\u00a0good",
        "x\tvery good\u200b",
        "x\tpos",
        "x\tpos",
    ]
    path = write(tmp_path / "t.tsv", "\n".join(["text\tlabel", *rows]))
    assert {example.label for example in labelled.read_texts(path)} == {"neg", "pos", "very good"}
    assert "5 of 8 labels (62.5%) held white space" in capsys.readouterr().err
    path = write(tmp_path / "t.jsonl", json.dumps({"tokens": ["a", "b"], "tags": ["B-x ", "O"]}))
    assert labelled.read_tags(path)[0].label == ["B-x", "O"]
    assert "1 of 2 labels (50.0%)" in capsys.readouterr().err


def test_a_list_of_objects_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"line 1: not JSON .*one object a line, without a list around them"):
        labelled.read_texts(write(tmp_path / "t.jsonl", '[\n{"text": "a", "label": "b"}\n]\n'))


def test_letters_that_were_lost_before_are_said(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "text,label\nsch\ufffdn,1\nfine,0\n")
    assert len(pairs_in(path)) == 2
    assert "1 of 2 rows (50.0%) hold \ufffd (U+FFFD)" in capsys.readouterr().err


def test_labels_that_look_alike_are_said(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "text,label\na,Neg\nb,neg\nc,caf\u00e9\nd,cafe\u0301\ne,pos\n")
    assert len({example.label for example in labelled.read_texts(path)}) == 5
    said = capsys.readouterr().err
    assert "labels 'Neg', 'neg' are learnt as different ones" in said
    assert said.count("look alike") == 2
    path = write(tmp_path / "t.csv", "text,label\na,1.0\nb,1\nc,0.0\nd,x\u0000\ne,x\n")
    labelled.read_texts(path)
    said = capsys.readouterr().err
    assert "labels '1', '1.0' are learnt as different ones" in said
    assert said.count("look alike") == 2


def test_labels_that_stand_for_none_are_said(tmp_path, capsys):
    for none in ("NA", "-", "?", "None"):  # SNLI has - where annotators disagreed
        path = write(tmp_path / "t.csv", f"text,label\na,{none}\nb,good\nc,bad\nd,{none}\n")
        assert {example.label for example in labelled.read_texts(path)} == {none, "good", "bad"}
        assert f"2 of 4 labels (50.0%) are '{none}', which mostly means that there is none" in capsys.readouterr().err
    labelled.read_tags(write(tmp_path / "t.conll", "one NUM\n- -\n\ntwo NUM\n"))
    assert "mostly means" not in capsys.readouterr().err


def test_what_is_no_list_of_words_and_tags_is_refused(tmp_path):
    for name, content, message in [
        ("t.conll", "Anna B-PER\nleft\n", "line 2: 1 columns where other words have 2"),
        ("t.conll", "Anna\nleft\n", "line 1: a word without a tag"),
        (
            "t.conll",
            "".join(f"{at} a b c d\n" for at in "12"),
            "no column tokens .*; found 1, 2, 3, 4, 5; .*--text",
        ),
        ("t.tsv", "tokens\ttags\na\tO\n", r"tokens must be a list of strings.*--task tag reads \.jsonl or \.parquet"),
        ("t.jsonl", '{"tokens": ["a"], "ner_tags": [1]}', "which names the numbers stand for: --label_names"),
        ("t.jsonl", '{"tokens": ["a"], "tags": [" "]}', "line 1: a label must be"),
        ("t.jsonl", '{"tokens": ["\\ud800"], "tags": ["O"]}', "half a surrogate pair"),
    ]:
        with pytest.raises(InputError, match=message):
            labelled.read_tags(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content", "taken"),
    [
        # CoNLL-2003; # is a word where it has a tag, and else begins a remark.
        (
            "t.txt",
            "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n# NN O O\n# id 7\n\n\nit PRP B-NP O",
            "words are column 1, tags column 4",
        ),
        # GermEval 2014: numbered words, two levels of tags, tabs.
        (
            "t.tsv",
            "# source\t2012\n1\tEU\tB-ORG\tO\n2\t#\tO\tO\n\n1\tit\tO\tO\n",
            "words are column 2, tags column 3",
        ),
        ("t.bio", "EU B-ORG\r\n# O\r\n\r\nit O\r\n", ""),
    ],
)
def test_conll_files(tmp_path, capsys, name, content, taken):
    examples = labelled.read_tags(write(tmp_path / name, content))
    assert [(example.text, example.label) for example in examples] == [(["EU", "#"], ["B-ORG", "O"]), (["it"], ["O"])]
    said = capsys.readouterr().err
    assert taken in said
    assert ("is read as CoNLL" in said) == (name != "t.bio")


def chosen(path: Path, read: Callable, by_word: bool = False, **choice) -> list[tuple]:
    """(text, pair, label) of each example of the chosen columns."""
    rows = columns.choose(path, tables.read_rows(path), columns.Choice(**choice), by_word=by_word)
    return [(example.text, example.pair, example.label) for example in read(path, rows)]


def test_columns_of_any_name(tmp_path, capsys):
    table = write(tmp_path / "t.csv", "Betreff;Kategorie;Ampel;text\na;x;1;n\nb;y;2;n\n")
    colours: dict[str, Any] = {"text": "Betreff", "labels": ("AMPEL",), "label_names": ("rot", "gelb", "grün")}
    assert chosen(table, labelled.read_texts, **colours) == [("a", None, "gelb"), ("b", None, "grün")]
    assert chosen(table, labelled.read_texts, text="betreff") == [("a", None, "x"), ("b", None, "y")]
    assert "column Kategorie is read as the label" in capsys.readouterr().err
    assert chosen(table, labelled.read_pairs, text="Betreff", pair="text")[0] == ("a", "n", "x")
    with pytest.raises(InputError, match="line 2: no column Betref; found Betreff, Kategorie, Ampel, text"):
        chosen(table, labelled.read_texts, text="Betref")
    with pytest.raises(InputError, match=r"line 3: label '2' is no number from 0 to 1, .*: --label_names"):
        chosen(table, labelled.read_texts, **(colours | {"label_names": ("rot", "gelb")}))
    words = write(tmp_path / "t.jsonl", '{"tokens": ["a", "b"], "ner_tags": [1, 0]}\n')
    assert chosen(words, labelled.read_tags, by_word=True, label_names=("O", "B-x")) == [
        (["a", "b"], None, ["B-x", "O"])
    ]
    dependencies = write(tmp_path / "t.conllu", "1\ta\ta\tNOUN\t_\n2\tb\tb\tO\t_\n")
    with pytest.raises(InputError, match="must end in"):
        chosen(dependencies, labelled.read_tags, by_word=True)
    dependencies = dependencies.rename(tmp_path / "t.conll")
    assert chosen(dependencies, labelled.read_tags, by_word=True, text="2", labels=("4",)) == [
        (["a", "b"], None, ["NOUN", "O"])
    ]


@pytest.mark.parametrize(
    ("name", "content", "taken"),
    [
        ("t.csv", "text,label\nx,a | b\ny,\nz,b\n", "labels are separated by '|'"),
        ("t.csv", 'text;labels\nx;"[""a"", ""b""]"\ny;[]\nz;b\n', ""),
        ("t.csv", "text,a,b\nx,1,1\ny,0,0\nz,0,1\n", "columns of 0 and 1 are read as labels: 'a, b'"),
        (
            "t.jsonl",
            '{"text": "x", "label": ["a", "b"]}\n{"text": "y", "label": []}\n{"text": "z", "label": "b"}\n',
            "",
        ),
    ],
)
def test_several_labels_a_text(tmp_path, capsys, name, content, taken):
    path = write(tmp_path / name, content)
    rows = columns.gather_flags(path, tables.read_rows(path), ())
    assert [example[1:] for example in labelled.read_label_sets(path, rows)] == [
        ("x", None, ["a", "b"]),
        ("y", None, []),
        ("z", None, ["b"]),
    ]
    assert taken in capsys.readouterr().err


def test_columns_of_flags_are_refused_where_they_hold_something_else(tmp_path):
    path = write(tmp_path / "t.csv", "text,a,b,label\nx,1,2,x\n")
    rows = tables.read_rows(path)
    assert columns.gather_flags(path, rows, ()) == rows
    with pytest.raises(InputError, match="line 2: b must be 0 or 1, not '2'"):
        columns.gather_flags(path, rows, ("a", "b"))
    with pytest.raises(InputError, match="line 2: no column c; found text, a, b, label"):
        columns.gather_flags(path, rows, ("a", "c"))
    with pytest.raises(InputError, match=r"line 2: labels .* are no JSON list"):
        labelled.read_label_sets(write(tmp_path / "u.csv", "text,label\nx,\"['a']\"\n"))


def test_parquet_with_the_names_of_its_numbers(tmp_path, capsys):
    # As `datasets` describes columns, in a Parquet file, in a field and in a file beside.
    names = {"names": ["O", "B-x"], "_type": "ClassLabel"}
    features = {"ner_tags": {"feature": names, "_type": "List"}, "label": names, "tokens": {"_type": "List"}}
    fields = {"tokens": ["a", "b"], "ner_tags": [1, 0], "label": 1}
    table = pyarrow.Table.from_pylist([fields])
    described = json.dumps({"info": {"features": features}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": described}), tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl", json.dumps({**fields, "features": features}))
    (tmp_path / "beside").mkdir()
    write(tmp_path / "beside/c.jsonl", json.dumps(fields))
    write(tmp_path / "beside/dataset_info.json", json.dumps({"features": features}))
    for name in ("a.parquet", "b.jsonl", "beside/c.jsonl"):
        assert labelled.read_tags(tmp_path / name) == [(1, ["a", "b"], None, ["B-x", "O"])]
        assert labelled.read_texts(tmp_path / name) == [(1, "a b", None, "B-x")]
        assert "numbers of column ner_tags are read by their names: 'O, B-x'" in capsys.readouterr().err
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    assert labelled.read_texts(tmp_path / "d.parquet") == [(1, "a b", None, "1")]


@pytest.mark.parametrize(
    "label", ["", "nan", "inf", "-Infinity", "1e999", "1_000", "1,5", "0x10", "one", "1" * 400, "1e31"]
)
def test_what_is_no_finite_number_is_refused(tmp_path, label):
    path = write(tmp_path / "t.tsv", f"text\tlabel\nx\t1\ny\t{label}\n")
    with pytest.raises(InputError, match="line 3: "):
        labelled.read_numbers(path)


def test_a_decimal_comma_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="not '3,5'; write a point before decimals"):
        labelled.read_numbers(write(tmp_path / "t.csv", "text;label\nx;3,5\ny;4\n"))


@pytest.mark.parametrize("label", ["true", "NaN", "-Infinity", "null", "[1]", "1" * 400, '"1_0"'])
def test_what_is_no_finite_number_in_json_is_refused(tmp_path, label):
    with pytest.raises(InputError, match="line 1: a label of --task regress must be a number"):
        labelled.read_numbers(write(tmp_path / "t.jsonl", f'{{"text": "x", "label": {label}}}'))


def test_numbers_in_every_way_of_writing(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,1\nb, -2.5e-3 \nc,+.5\nd,7.\n")
    assert [example.label for example in labelled.read_numbers(path)] == [1.0, -0.0025, 0.5, 7.0]


def test_a_folder_or_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    (tmp_path / "folder.tsv").mkdir()
    for name in ("pipe.tsv", "folder.tsv"):
        with pytest.raises(InputError, match=f"{name}: not a regular file"):
            tables.read_rows(tmp_path / name)
