"""What was written reads back equal, whole and in chunks, in bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertune.config import ReadConfig
from bertune.data import formats
from bertune.data.read import Table, read_chunks, read_table
from small_tables import rows, write

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
LITERAL = st.text(st.characters(codec="utf-8", exclude_characters="\0\t\r\n"), max_size=12)


def tables(cells: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    widths = st.integers(1, 4)
    return widths.flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=9))


@settings(deadline=None, max_examples=60)
@given(table=tables(CELLS), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_table_written_as_quoted_csv_or_tsv_reads_back_equal_whole_and_in_chunks(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], end: str
) -> None:
    # Minimal quoting leaves a line end alone that is not the file's own, so it is tried with CRLF only.
    style: Literal[0, 1] = csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL
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
@example(columns={"*": ["a"], "^.*$": ["b"], "": ["c"]}, kept=True)  # names that could be taken for patterns
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


def assert_chunks_equal(source: Path | pl.DataFrame, options: ReadConfig, whole: Table) -> None:
    for size in (1, 2, 5):
        chunks = list(read_chunks(source, options, rows=size))
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
    assert_chunks_equal(frame, ReadConfig(), whole)


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


