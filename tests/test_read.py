"""Tables of every format come in whole, in order, and with the place of every row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertune.config import DataConfig, ReadConfig
from bertune.data import formats
from bertune.data.read import Table, read_chunks, read_table
from bertune.data.sniff import consistently_quoted, looks_like_header
from bertune.errors import DataError

SNLI_NAMES = ("gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1", "sentence2", "pairID")
SNLI_ROWS = (
    ("neutral", "( A dog )", "( It 's tired )", "A dog", 'It\'s "tired"', "1"),
    ("-", "( A cat )", "( A pet )", "A cat", "A pet", "2"),
    ("entailment", "( A man )", "( A human )", "A man", "A human", "3"),
)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def rows(table: Table) -> list[tuple[object, ...]]:
    return table.frame.rows()


def snli_text() -> str:
    return "".join("\t".join(row) + "\n" for row in (SNLI_NAMES, *SNLI_ROWS))


def snli_jsonl() -> str:
    return "".join(json.dumps(dict(zip(SNLI_NAMES, row, strict=True))) + "\n" for row in SNLI_ROWS)


@pytest.fixture
def snli_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "snli_1.0"
    folder.mkdir()
    for part in ("train", "dev", "test"):
        write(folder / f"snli_1.0_{part}.txt", snli_text().replace("A man", f"A man of {part}"))
        write(folder / f"snli_1.0_{part}.jsonl", snli_jsonl())
    return folder


def test_a_csv_keeps_its_cells_as_they_are_written(tmp_path: Path) -> None:
    text = 'text,label\r\n"a, ""b""\r\nc\\n",NA\r\nnull,None\r\n 007 ,\r\n'
    table = read_table(write(tmp_path / "a.csv", text))
    assert table.columns == ["text", "label"]
    assert rows(table) == [('a, "b"\r\nc\\n', "NA"), ("null", "None"), (" 007 ", "")]
    assert table.column("label") == ["NA", "None", ""]
    assert table.place(1) == f"{tmp_path / 'a.csv'} row 2"
    assert table.file_index.dtype == np.int32
    assert table.row_numbers.tolist() == [1, 2, 3]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_a_missing_last_one_and_blank_lines_are_fine(tmp_path: Path, end: str) -> None:
    text = end.join(["text,label", "one,1", "", "two,2", "   ", "three,3"])
    expected = [("one", "1"), ("two", "2"), ("three", "3")]
    for tail in ("", end, end * 3 + "  " + end):
        table = read_table(write(tmp_path / "a.csv", text + tail))
        assert rows(table) == expected
        assert table.row_numbers.tolist() == [1, 2, 3]


def test_a_line_end_that_falls_between_two_blocks_of_the_stream_is_one_line_end(tmp_path: Path) -> None:
    for length in range(8170, 8194):
        table = read_table(write(tmp_path / "a.csv", "text,label\r\n" + "x" * length + ",1\r\ny,2\r\n"))
        assert rows(table) == [("x" * length, "1"), ("y", "2")]


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


def test_a_csv_between_semicolons_is_read_as_one(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", 'text;label\n"a; b, c";1\nd;0\n'))
    assert rows(table) == [("a; b, c", "1"), ("d", "0")]


def test_json_lines_keep_numbers_and_lists_and_fill_missing_keys(tmp_path: Path) -> None:
    lines = ['{"text": "a", "n": 1, "x": 1, "l": ["p", "q"], "m": 3}', "", '{"text": null, "n": 2, "x": 1.5, "m": "three"}']
    lines.append('{"text": "c", "late": true, "l": [], "m": {"k": [1]}}')
    table = read_table(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert table.columns == ["text", "n", "x", "l", "m", "late"]
    assert rows(table) == [
        ("a", 1, 1.0, ["p", "q"], "3", None),
        (None, 2, 1.5, None, "three", None),
        ("c", None, None, [], '{"k": [1]}', True),
    ]
    assert table.row_numbers.tolist() == [1, 2, 3]


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


def test_gzip_of_every_format_reads_as_the_format_itself(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["a b", "ç"], "label": ["1", "0"]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ipc(tmp_path / "a.arrow")
    frame.write_ndjson(tmp_path / "a.jsonl")
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    for name in ("a.parquet", "a.arrow", "a.jsonl", "a.csv", "a.tsv"):
        packed = write(tmp_path / f"{name}.gz", gzip.compress((tmp_path / name).read_bytes()))
        unnamed = write(tmp_path / f"gz_{name}", packed.read_bytes())
        for path in (tmp_path / name, packed, unnamed):
            assert read_table(path).frame.equals(frame), path


def test_several_files_or_a_pattern_are_one_table_that_knows_the_file_of_each_row(tmp_path: Path) -> None:
    one = write(tmp_path / "p1.csv", "text,label\na,1\nb,0\n")
    two = write(tmp_path / "p2.tsv", "label\ttext\n1\tc\n")
    three = write(tmp_path / "q.jsonl", '{"text": "d", "label": 7}\n')
    table = read_table([one, str(two), three])
    assert rows(table) == [("a", "1"), ("b", "0"), ("c", "1"), ("d", "7")]
    assert table.files == (str(one), str(two), str(three))
    assert [table.place(row) for row in (1, 2, 3)] == [f"{one} row 2", f"{two} row 1", f"{three} row 1"]
    assert rows(read_table(str(tmp_path / "p?.*"))) == rows(table)[:3]
    odd = write(tmp_path / "odd[1].csv", "text,label\nx,1\n")
    assert read_table(odd).files == (str(odd),)


def test_rows_taken_out_of_a_table_keep_their_places(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", "text,label\na,1\nb,0\nc,1\n")).take(np.array([2, 0]))
    assert rows(table) == [("c", "1"), ("a", "1")]
    assert table.row_numbers.tolist() == [3, 1]
    assert table.place(0).endswith("a.csv row 3")
    assert len(table.take([])) == 0
    assert read_table(table) is table


def test_data_frames_and_python_tables_are_taken_as_they_are() -> None:
    pandas = pytest.importorskip("pandas")
    columns = {"text": ["a", None], "label": [1, 0], "tags": [["x"], ["y", "z"]]}
    expected = [("a", 1, ["x"]), (None, 0, ["y", "z"])]
    records = [dict(zip(columns, row, strict=True)) for row in expected]
    frame = pl.DataFrame(columns)
    arrays = {"text": np.array(["a", None], dtype=object), "label": np.array([1, 0]), "tags": [("x",), {"z", "y"}]}
    for source in (columns, records, frame, frame.lazy(), frame.to_arrow(), pandas.DataFrame(columns), arrays):
        table = read_table(source)
        assert rows(table) == expected, type(source)
        assert table.place(1) == "data frame row 2"
    category = pandas.DataFrame({"label": pandas.Categorical(["b", "a"]), "n": [1.5, None]})
    assert rows(read_table(category)) == [("b", 1.5), ("a", None)]
    assert read_table(pl.DataFrame({"a": ["x"]}, schema={"a": pl.Categorical})).column("a") == ["x"]
    assert read_table([{"a": 1}, {"b": "x"}]).frame.rows() == [(1, None), (None, "x")]


def test_the_trec_layout_gives_coarse_and_fine_labels(tmp_path: Path) -> None:
    text = "HUM:ind Who was Galileo ?\nLOC:city Where is Malm\u00f6 ?\n".encode("latin-1")
    expected = [("HUM", "HUM:ind", "Who was Galileo ?"), ("LOC", "LOC:city", "Where is Malmö ?")]
    auto = read_table(write(tmp_path / "train_5500.label", text))
    assert auto.columns == ["label", "fine_label", "text"]
    assert rows(auto) == expected
    assert rows(read_table(write(tmp_path / "a.csv", text), ReadConfig(layout="trec"))) == expected


def test_snli_is_read_from_its_folder_its_archive_and_either_kind_of_file(snli_folder: Path) -> None:
    archive = snli_folder.parent / "snli_1.0.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("__MACOSX/snli_1.0/._snli_1.0_train.txt", "junk")
        for file in sorted(snli_folder.iterdir()):
            packed.write(file, f"snli_1.0/{file.name}")
    for source, part in ((snli_folder, "train"), (f"{snli_folder}!dev", "dev"), (archive, "train"), (f"{archive}!test", "test")):
        table = read_table(source)
        assert table.columns == list(SNLI_NAMES)
        assert table.column("sentence1") == ["A dog", f"A man of {part}"]
        assert table.column("sentence2")[0] == 'It\'s "tired"'
        assert table.row_numbers.tolist() == [1, 3]
        assert table.notes == [f"{table.files[0]}: left out 1 row whose gold_label is '-'."]
    inner = read_table(f"{archive}!snli_1.0/snli_1.0_dev.jsonl", ReadConfig(layout="snli"))
    assert rows(inner) == [SNLI_ROWS[0], SNLI_ROWS[2]]


def test_rows_without_an_agreed_label_stay_where_none_may_be_dropped(snli_folder: Path) -> None:
    table = read_table(snli_folder, keep_all=True)
    assert len(table) == 3
    assert table.notes == []
    assert len(read_table(snli_folder, DataConfig(label=["pairID"]))) == 3


def test_ocnli_drops_and_counts_rows_without_a_majority(tmp_path: Path) -> None:
    lines = [{"sentence1": "甲", "sentence2": "乙", "label": label, "label0": None} for label in ("neutral", "-", "-")]
    table = read_table(write(tmp_path / "dev.json", "\n".join(json.dumps(line) for line in lines)))
    assert rows(table) == [("甲", "乙", "neutral", None)]
    assert table.notes == [f"{tmp_path / 'dev.json'}: left out 2 rows whose label is '-'."]


def test_labels_named_for_dropping_are_left_out_and_counted_even_if_there_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,other\na,1,x\nb,?,y\nc,?,z\nd,x,x\n")
    table = read_table(path, ReadConfig(drop_label=["?", "none"]))
    assert table.column("text") == ["a", "d"]
    assert table.row_numbers.tolist() == [1, 4]
    assert table.notes == [
        f"{path}: left out 2 rows whose label is '?'.",
        f"{path}: left out 0 rows whose label is 'none'.",
    ]
    assert read_table(path, DataConfig(drop_label=["x"], label=["other"])).column("text") == ["b", "c"]
    chunks = list(read_chunks(path, ReadConfig(drop_label=["?", "none"]), rows=1))
    assert [chunk.row_numbers.tolist() for chunk in chunks] == [[1], [4]]
    assert [chunk.notes for chunk in chunks] == [[], table.notes]


CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
LITERAL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\t\r\n"), max_size=12)


def tables(cells: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    return st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=9))


@settings(deadline=None, max_examples=60)
@given(table=tables(CELLS), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_table_written_as_quoted_csv_or_tsv_reads_back_equal_whole_and_in_chunks(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], end: str
) -> None:
    # Minimal quoting leaves a line end alone that is not the file's own, so it is tried with CRLF only.
    style = csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL
    names = [f"name{index}" for index in range(len(table[0]))]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=style).writerows([names, *table])
        path = write(tmp_path_factory.getbasetemp() / f"quoted{suffix}", text.getvalue())
        options = ReadConfig(header="yes")
        whole = read_table(path, options)
        assert whole.columns == names
        assert rows(whole) == [tuple(row) for row in table]
        assert_chunks_equal(path, options, whole)


@settings(deadline=None, max_examples=60)
@given(table=tables(LITERAL.filter(bool)))
def test_a_literal_tsv_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, table: list[list[str]]) -> None:
    text = "".join("\t".join(row) + "\n" for row in table)
    path = write(tmp_path_factory.getbasetemp() / "literal.tsv", b"\xef\xbb\xbf" + text.encode("utf-8"))
    table = [row for row in table if len(row) > 1 or row[0].strip() or len(table[0]) == 1]
    if not text.strip():
        return
    read = read_table(path, ReadConfig(header="no", quoting="literal"))
    assert rows(read) == [tuple(row) for row in table]


VALUES = st.one_of(
    st.lists(CELLS, min_size=6, max_size=6),
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=6, max_size=6),
    st.lists(st.none() | st.floats(allow_nan=False), min_size=6, max_size=6),
    st.lists(st.none() | st.lists(CELLS, max_size=3), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)


@settings(deadline=None, max_examples=60)
@given(columns=st.dictionaries(CELLS, VALUES, min_size=1, max_size=4), kept=st.booleans())
def test_json_lines_read_back_equal_whole_and_in_chunks(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, list[object]], kept: bool
) -> None:
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path = write(tmp_path_factory.getbasetemp() / "a.jsonl", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_KEPT_CHARACTERS", 10**6 if kept else 0)
        whole = read_table(path)
        assert whole.frame.to_dicts() == records
        assert_chunks_equal(path, ReadConfig(), whole)


def assert_chunks_equal(path: Path, options: ReadConfig, whole: Table) -> None:
    for size in (1, 2, 5):
        chunks = list(read_chunks(path, options, rows=size))
        assert all(0 < len(chunk) <= size for chunk in chunks)
        assert pl.concat([chunk.frame for chunk in chunks]).equals(whole.frame)
        assert np.concatenate([chunk.row_numbers for chunk in chunks]).tolist() == whole.row_numbers.tolist()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_parquet_and_arrow_chunks_equal_the_whole(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"text": [str(n) for n in range(100)], "n": range(100), "l": [[n] for n in range(100)]})
    path = tmp_path / f"a{suffix}"
    frame.write_parquet(path, row_group_size=7) if suffix == ".parquet" else frame.write_ipc(path)
    whole = read_table(path)
    assert whole.frame.equals(frame)
    assert_chunks_equal(path, ReadConfig(), whole)
    assert_chunks_equal(frame, ReadConfig(), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["big.csv.gz", "big.jsonl.gz"])
def test_memory_for_chunks_does_not_grow_with_the_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_KEPT_CHARACTERS", 100_000)
    line = "x" * 2_000 + ",1\n" if "csv" in name else json.dumps({"text": "x" * 2_000, "label": 1}) + "\n"
    header = "text,label\n" if "csv" in name else ""
    path = write(tmp_path / name, gzip.compress((header + line * 10_000).encode(), 1))
    tracemalloc.start()
    count = sum(len(chunk) for chunk in read_chunks(path, rows=100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 10_000_000  # the file unpacks to 20 MB


@pytest.mark.parametrize(
    ("name", "count", "columns"),
    [
        ("ag_news/train_4000.csv", 4_000, ["column_1", "column_2", "column_3"]),
        ("ag_news/test.csv", 7_600, ["column_1", "column_2", "column_3"]),
        ("goemotions/dev.tsv", 5_426, ["column_1", "column_2", "column_3"]),
        ("snli/dev.tsv", 9_842, ["gold_label", "sentence1", "sentence2", "pairID"]),
        ("mrpc/msr_paraphrase_train.txt", 4_076, ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]),
        ("sst2/test.tsv", 1_821, ["sentence", "label"]),
        ("trec/train.txt", 5_452, ["label", "fine_label", "text"]),
        ("zh/waimai_10k.csv", 11_987, ["label", "review"]),
        ("papers/papers.csv", 17_972, None),
        ("imdb/test.jsonl.gz", 25_000, ["id", "rating", "label", "text"]),
    ],
)
def test_the_real_data_sets_are_readable_as_they_are(
    shared_data: Path, name: str, count: int, columns: list[str] | None
) -> None:
    table = read_table(shared_data / name)
    assert len(table) == count
    assert columns is None or table.columns == columns
    if name.startswith("goemotions"):
        assert table.column("column_1")[88].startswith('"I didn\'t learn')  # quoted where it must be, as programs write
    elif name.endswith((".tsv", "paraphrase_train.txt")):
        lines = (shared_data / name).read_text(encoding="utf-8-sig").splitlines()
        assert ["\t".join(row) for row in table.frame.rows()] == lines[1:]


def test_the_real_ocnli_loses_only_its_rows_without_a_majority(shared_data: Path) -> None:
    table = read_table(shared_data / "zh" / "dev.json")
    assert len(table) == 2_950
    assert "left out 50 rows whose label is '-'" in table.notes[0]
    assert table.column("sentence1")[0].startswith("身上裹一件")


def test_a_column_that_is_not_there_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", "text,label\na,1\n"))
    with pytest.raises(DataError, match=r"a\.csv: no column 'txt'; did you mean 'text'\?"):
        table.column("txt")
    bare = read_table(write(tmp_path / "b.csv", "3,a title\n4,other\n"))
    with pytest.raises(DataError, match="columns: column_1, column_2. No header was found: pass --header yes"):
        bare.column("text")
