"""What kind of table a file is, told from its beginning."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import polars as pl
import pytest

from bertune.config import DataConfig, ReadConfig
from bertune.data.read import read_table
from bertune.data.sniff import consistently_quoted, looks_like_header
from small_tables import rows, write


def test_quotes_in_a_tsv_are_plain_unless_they_are_consistent(tmp_path: Path) -> None:
    literal = write(tmp_path / "literal.tsv", 'text\tlabel\n"Yes", he said\t1\n"No"\t0\nsay "a ""b""\t1\n')
    assert read_table(literal).column("text") == ['"Yes", he said', '"No"', 'say "a ""b""']
    quoted = write(tmp_path / "quoted.tsv", '"text"\t"label"\n"one\ttwo"\t"1"\n"say ""hi"""\t"0"\n')
    assert rows(read_table(quoted)) == [("one\ttwo", "1"), ('say "hi"', "0")]
    minimal = write(tmp_path / "minimal.tsv", 'text\tlabel\nplain\t1\n"say ""hi"""\t0\n')
    assert read_table(minimal).column("text") == ["plain", 'say "hi"']
    forced = read_table(minimal, ReadConfig(quoting="literal"))
    assert forced.column("text") == ["plain", '"say ""hi"""']


def test_whether_a_tsv_is_quoted_does_not_hang_on_where_the_sample_ends() -> None:
    text = "".join(f'"row {number}, ""x"""\t"{number}"\n' for number in range(50))
    assert all(consistently_quoted(text[:cut], complete=False) for cut in range(60, len(text)))
    assert not consistently_quoted('"open\t1\n' + text, complete=False)
    assert not consistently_quoted('a\t1\n"open\t1\n', complete=True)
    assert not consistently_quoted("no quotes\t1\n", complete=True)


def test_utf8_with_a_mark_utf16_with_a_mark_and_a_named_encoding_are_decoded(tmp_path: Path) -> None:
    text = "text,label\nnaïve café,1\nüber,0\n"
    for encoding, option in (("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("latin-1", "latin-1")):
        path = write(tmp_path / "a.csv", text.encode(encoding))
        assert rows(read_table(path, ReadConfig(encoding=option))) == [("naïve café", "1"), ("über", "0")]
    marked = read_table(write(tmp_path / "b.csv", text.encode("utf-8-sig")), ReadConfig(encoding="utf-8"))
    assert marked.columns == ["text", "label"]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("text,label\nfine film,1\npoor film,0\n", True),
        ("3,some title\n4,other title\n", False),
        ("label,review\npositive,a film that I would see again with anyone\nnegative,not a film for me at all\n", True),
        ("I like it,positive\nI hate it,negative\nAnd so on,positive\n", False),
        ("Quality,#1 ID\n1,12\n0,13\n", True),
        ("Good.,Bad.\nBetter.,Worse.\n", False),
        ("text\nthe first\nthe second\n", True),
        (",text\n0,a\n1,b\n", True),
    ],
)
def test_a_header_is_told_by_its_looks(tmp_path: Path, text: str, header: bool) -> None:
    path = write(tmp_path / "a.csv", text)
    first, *rest = csv.reader(io.StringIO(text))
    assert looks_like_header(first, rest) == header
    assert len(read_table(path)) == len(rest) + (not header)


def test_a_header_is_told_by_the_columns_asked_for_or_by_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1999,2000\nI like it,good\n")
    assert read_table(path).columns == ["column_1", "column_2"]
    assert read_table(path, DataConfig(text=["1999"])).columns == ["1999", "2000"]
    assert read_table(path, ReadConfig(header="yes")).columns == ["1999", "2000"]
    assert len(read_table(path, ReadConfig(columns=["text", "label"]))) == 2
    renamed = read_table(path, ReadConfig(header="yes", columns=["text", "label"]))
    assert rows(renamed) == [("I like it", "good")]
    named = write(tmp_path / "b.csv", "text,label\nI like it,good\n")
    assert len(read_table(named, ReadConfig(header="no"))) == 2
    assert len(read_table(named, ReadConfig(columns=["text", "label"]))) == 1


def test_names_for_a_file_that_seems_to_have_a_header_are_asked_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nthe cat sat on the old wall,1\nthe dog did not sit anywhere,0\n", encoding="utf-8")
    assert len(read_table(path, ReadConfig(columns=["a", "b"]))) == 3
    assert caplog.messages == [
        f"{path}: --columns is for files without a header, so the first row (text, label) is read as data; "
        "pass --header yes if it is a header."
    ]
    caplog.clear()
    for header in ("yes", "no"):
        read_table(path, ReadConfig(columns=["a", "b"], header=header))
    read_table(path, ReadConfig(columns=["text", "label"]))
    assert not caplog.messages


def test_a_csv_between_semicolons_is_read_as_one(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", 'text;label\n"a; b, c";1\nd;0\n'))
    assert rows(table) == [("a; b, c", "1"), ("d", "0")]


def test_files_are_told_by_content_where_the_name_does_not(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "a.dat", '{"text": "a"}\n')).columns == ["text"]
    assert read_table(write(tmp_path / "b.dat", "text\tlabel\na b\t1\nc d\t0\n")).columns == ["text", "label"]
    assert read_table(write(tmp_path / "c", "text,label\na b,1\nc d,0\n")).columns == ["text", "label"]
    assert rows(read_table(write(tmp_path / "d.txt", "Hello, you\n\nGood bye\n\n\n"))) == [
        ("Hello, you",), ("",), ("Good bye",),
    ]  # fmt: skip
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "e.bin")
    assert read_table(tmp_path / "e.bin").column("text") == ["a"]
    named = read_table(tmp_path / "d.txt", ReadConfig(columns=["body"], format="text"))
    assert named.columns == ["body"]


