"""Tables of every format come in whole, in order, and with the place of every row."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bertune.config import DataConfig, ReadConfig
from bertune.data.read import read_chunks, read_table
from bertune.errors import DataError
from small_tables import rows, write

SNLI_NAMES = ("gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1", "sentence2", "pairID")
SNLI_ROWS = (
    ("neutral", "( A dog )", "( It 's tired )", "A dog", 'It\'s "tired"', "1"),
    ("-", "( A cat )", "( A pet )", "A cat", "A pet", "2"),
    ("entailment", "( A man )", "( A human )", "A man", "A human", "3"),
)


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


@pytest.mark.parametrize("header", ["text\n", "\n\ntext\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_where_a_row_is_one_cell_a_blank_line_between_others_is_an_empty_text(
    tmp_path: Path, name: str, header: str
) -> None:
    path = write(tmp_path / name, header + "one\n\n\n\ntwo\n\n\n")
    table = read_table(path)
    assert table.column("text") == ["one", "", "", "", "two"]
    assert table.row_numbers.tolist() == [1, 2, 3, 4, 5]
    for size in range(1, 6):
        chunks = list(read_chunks(path, rows=size))
        assert max(map(len, chunks)) <= size
        assert [text for chunk in chunks for text in chunk.column("text")] == table.column("text")


def test_a_line_end_that_falls_between_two_blocks_of_the_stream_is_one_line_end(tmp_path: Path) -> None:
    for length in range(8170, 8194):
        table = read_table(write(tmp_path / "a.csv", "text,label\r\n" + "x" * length + ",1\r\ny,2\r\n"))
        assert rows(table) == [("x" * length, "1"), ("y", "2")]


def test_json_lines_keep_numbers_and_lists_and_fill_missing_keys(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "n": 1, "x": 1, "l": ["p", "q"], "m": 3}',
        "",
        '{"text": null, "n": 2, "x": 1.5, "m": "three"}',
        '{"text": "c", "late": true, "l": [], "m": {"k": [1]}}',
    ]
    table = read_table(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert table.columns == ["text", "n", "x", "l", "m", "late"]
    assert rows(table) == [
        ("a", 1, 1.0, ["p", "q"], "3", None),
        (None, 2, 1.5, None, "three", None),
        ("c", None, None, [], '{"k": [1]}', True),
    ]
    assert table.row_numbers.tolist() == [1, 2, 3]


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
    named = {snli_folder: "train", f"{snli_folder}!dev": "dev", archive: "train", f"{archive}!test": "test"}
    for source, part in named.items():
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
    with pytest.raises(DataError, match=r"columns: column_1, column_2\. No header was found: pass --header yes"):
        bare.column("text")
