"""Input that cannot be read gets one sentence that names the place, the value and the way out."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import polars as pl
import pytest

from bertune.config import DataConfig, ReadConfig
from bertune.data import formats, sniff, sources
from bertune.data.read import read_chunks, read_table
from bertune.errors import ConfigError, DataError
from bertune.paths import cache_root

SNLI = '{"gold_label": "-", "sentence1": "a", "sentence2": "b"}\n'


def assert_fails(
    source: Any, message: str, options: ReadConfig | None = None, kind: type[Exception] = DataError
) -> None:
    """Reading raises one error whose text holds every part of `message` (parts stand between '...') in order."""
    with pytest.raises(kind) as caught:
        read_table(source, options)
    text = str(caught.value)
    assert re.search(".*".join(re.escape(part) for part in message.split("...")), text), text
    assert "\n" not in text
    with pytest.raises(kind):
        list(read_chunks(source, options, rows=2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "empty.csv: the file is empty."),
        ("blank.csv", b"\n \n", "blank.csv: the file is empty."),
        ("empty.jsonl", b"\n", "empty.jsonl: the file is empty."),
        ("head.csv", b"text,label\n", "head.csv: has a header (text, label) and no rows...pass --header no"),
        ("one.csv", b"text\na\n\n\nb,c\n", "one.csv row 4: has 2 cells where 1 is expected...'b'"),
        ("long.csv", b"text,label\na,1\nb,2,3\n", "long.csv row 2: has 3 cells where 2 are expected...'b'"),
        ("short.csv", b"text,label\n\na,1\nb\n", "short.csv row 2: has 1 cell where 2...pass --quoting literal"),
        ("ragged.tsv", b"text\tlabel\na\t1\nb\n", "ragged.tsv row 2: has 1 cell where...pass --quoting quoted"),
        ("nul.csv", b"text,label\na,1\nb,c\0d\n", "nul.csv row 2, column 'label': a NUL byte in 'c?d'. Remove it"),
        ("nul.tsv", b"te\0xt\tlabel\na\t1\n", "nul.tsv header, column 1: a NUL byte in 'te?xt'"),
        ("nul.jsonl", b'{"text": "a"}\n{"text": "b\0"}\n', "nul.jsonl line 2: a NUL byte"),
        ("nul.txt", b"a\nb\0\n", "nul.txt: neither its name nor its content tells its format; pass --format csv"),
        ("latin.csv", "text,label\na,1\ncafé,0\n".encode("latin-1"),
         "latin.csv row 2, column 'text': byte 0xE9 in 'caf?' is not utf-8. Pass the --encoding...latin-1."),
        ("latin.tsv", "größe\tlabel\na\t1\n".encode("latin-1"), "latin.tsv header, column 1: byte 0xF6 in 'gr??e'"),
        ("latin.jsonl", '{"text": "é"}\n'.encode("latin-1"), "latin.jsonl line 1: byte 0xE9"),
        ("latin.txt", "one\nzwölf\n".encode("latin-1"), "latin.txt line 2, column 'text': byte 0xF6"),
        ("odd.csv", "text,label\na,1\n".encode("utf-16") + b"x", "odd.csv: byte 0x78 is not utf-16"),
        ("twice.csv", b"text,label,text\na,1,b\n",
         "twice.csv header: 'text' names columns 1 and 3. Rename one, or name all with --header yes --columns A,B,C"),
        ("quote.csv", b'text,label\n"a" b,1\n', "quote.csv row 1: its quotes do not fit...--quoting literal"),
        ("open.csv", b'text,label\na,1\n"b,2\nc,3\n', "open.csv row 2: its quotes do not fit"),
        ("broken.jsonl", b'{"text": "a"}\n\n{"text": \n', "broken.jsonl line 3: is not JSON (...begins '{\"text\":'"),
        ("list.jsonl", b'{"text": "a"}\n["b"]\n', "list.jsonl line 2: expected an object {...}, found '[\"b\"]'."),
        ("array.json", b'[{"text": "a"}]', "array.json: holds one JSON array; write it as JSON lines"),
        ("keys.jsonl", b'{"a": 1, "a": 2}\n', "keys.jsonl row 1: key 'a' stands twice in an object"),
        ("none.jsonl", b"{}\n", "none.jsonl: its objects have no keys"),
        ("deep.jsonl", b'{"a":' + b"[" * 100_000 + b"\n", "deep.jsonl line 1: is nested too deeply"),
        ("half.jsonl", b'{"a": "b"}\n{"a": "\\ud83d"}\n', "half.jsonl row 2, column 'a': \\ud83d is half"),
        ("bad.parquet", b"PAR1 and so on", "bad.parquet: is not a readable Parquet file ("),
        ("bad.arrow", b"ARROW1 and so on", "bad.arrow: is not a readable Arrow file ("),
        ("fake.csv.gz", b"text,label\na,1\n", "fake.csv.gz: the packed file is damaged or cut off"),
        ("cut.csv.gz", gzip.compress(b"text,label\n" + b"a,b\n" * 9, mtime=0)[:-9], "cut.csv.gz: the packed file"),
        ("what.xyz", b"just some words\nand more, of them\n", "what.xyz: neither its name nor its content"),
        ("bad.zip", b"PK not a zip", "bad.zip: the packed file is damaged"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert_fails(tmp_path / name, message)


@pytest.mark.parametrize(
    ("name", "content", "options", "message", "kind"),
    [
        ("a.csv", "text,label\na,1\n", {"encoding": "utf8x"}, "--encoding: 'utf8x' is not a text", ConfigError),
        ("a.csv", "text,label\na,1\n", {"encoding": "base64"}, "--encoding: 'base64' is not a text", ConfigError),
        ("a.csv", "text,é\na,1\n", {"encoding": "ascii"}, "column 2: byte 0xC3 in '??' is not ascii", DataError),
        ("a.csv", "a,1\nb,2\n", {"columns": ["text"]},
         "a.csv row 1: has 2 cells, and --columns names 1 (text). Name every column", DataError),
        ("a.csv", "a,1\nb,2\n", {"columns": ["x", "x"]}, "a.csv header: 'x' names columns 1 and 2", DataError),
        ("a.txt", "a\nb\n", {"columns": ["x", "y"]}, "one text a line has 1 column, and --columns names 2", DataError),
        ("a.csv", "text,label\na,1\n", {"layout": "snli"}, "--layout snli expects columns gold_label", DataError),
        ("a.txt", "HUM:ind Who ?\nWho ?\n", {"layout": "trec"},
         "a.txt row 2: 'Who ?' is not 'COARSE:fine question', the TREC layout", DataError),
        ("a.csv", "text,kind\na,1\n", {"drop_label": ["1"]}, "no column 'label' among text, kind", ConfigError),
        ("a.jsonl", '{"label": ["x"]}\n', {"drop_label": ["x"]}, "--drop-label: column 'label' of", ConfigError),
        ("a.csv", "text,label\na,1\n", {"drop_label": ["1"]},
         "a.csv: no rows are left...left out 1 row whose label is '1'.", DataError),
        ("a.jsonl", SNLI, {}, "a.jsonl: no rows are left...whose gold_label is '-'.", DataError),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_the_file_is_one_clear_error(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], message: str, kind: type[Exception]
) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8"))
    assert_fails(tmp_path / name, message, ReadConfig(**options), kind)


def test_a_file_that_is_not_there_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"text\na\n")
    assert_fails(tmp_path / "trian.csv", "trian.csv: no such file; did you mean 'train.csv'?")
    assert_fails(tmp_path / "other.parquet", "other.parquet: no such file.")
    assert_fails(tmp_path / "nowhere" / "train.csv", "train.csv: no such file, and no folder '...nowhere'.")
    assert_fails(str(tmp_path / "*.tsv"), "*.tsv: no file matches this pattern.")
    assert_fails(tmp_path, "is a folder; it holds train.csv. Name a file, or a pattern such as .../*.csv.")
    assert_fails(f"{tmp_path}!trian.csv", "the folder has no file 'trian.csv'; did you mean 'train.csv'?")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_or_a_device_is_no_file_to_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    for name in (str(tmp_path / "rows.csv"), os.devnull):
        with pytest.raises(DataError) as caught:
            sources.find_sources(name)
        assert str(caught.value) == (
            f"{name}: is a pipe or a device, and a file is read more than once. Write it to a file first, and name "
            "that."
        )


def test_a_missing_label_column_is_left_to_those_who_need_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,kind\na,1\n")
    assert len(read_table(tmp_path / "a.csv", DataConfig(drop_label=["1"], label=["labl"]))) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\n{},2\n", "a.csv row 2, column 'text': the cell that begins 'xxx...more than 1,000"),
        ("b.csv", 'text,label\na,1\n2,"{}\n\n', "b.csv row 2, column 'label': ...never closed does this), or pass"),
        ("c.tsv", "text\tlabel\na\t1\n{}\t2\n", "c.tsv row 2, column 'text': the cell...more than 1,000"),
        ("d.jsonl", '{{"text": "a"}}\n{{"n": 1, "text": "{}"}}\n', "d.jsonl line 2, column 'text': the row has more"),
        ("e.txt", "a\n{}\n", "e.txt line 2, column 'text': 'xxx...' has more than 1,000 characters"),
    ],
)  # fmt: skip
def test_a_huge_cell_is_an_error_with_its_row_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, message: str
) -> None:
    monkeypatch.setattr(formats, "MAX_CELL", 1_000)
    (tmp_path / name).write_bytes(content.format("x" * 1_500).encode())
    assert_fails(tmp_path / name, message)


def test_a_first_row_longer_than_the_sample_is_still_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sniff, "_SAMPLE_BYTES", (100, 10_000))
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b"x" * 1_000 + b",1\ny,0\n")
    assert read_table(path).column("label") == ["1", "0"]
    path.write_bytes(b"text,label\n" + b"x" * 20_000 + b",1\ny,0\n")
    assert_fails(path, "a.csv row 1: has a cell of more than")


def test_cells_longer_than_the_csv_module_allows_by_itself_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + b"x" * 2_000_000 + b',1\n"y\n"' + b",0\n")
    assert [len(text) for text in read_table(tmp_path / "a.csv").column("text")] == [2_000_000, 2]


def test_files_with_other_columns_or_kinds_of_cells_are_not_put_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\na,1\n")
    (tmp_path / "b.csv").write_bytes(b"text,class\na,1\n")
    (tmp_path / "c.csv").write_bytes(b"text,label,id\na,1,2\n")
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "a", "label": ["1"]}\n')
    first, other, more, lists = (tmp_path / name for name in ("a.csv", "b.csv", "c.csv", "d.jsonl"))
    assert_fails([first, other], "b.csv: has no column 'label', which ...a.csv has; its columns: text, class")
    assert_fails([first, more], "a.csv: has no column 'id', which ...c.csv has")
    assert_fails([first, lists], "d.jsonl, column 'label': holds List(String), where ...a.csv holds String")


def test_tables_in_memory_that_are_none_are_clear_errors() -> None:
    assert_fails(
        {"a": [1, 2], "b": [1]}, "data frame: column 'b' has 1 values and column 'a' has 2; all columns must be"
    )
    assert_fails({"a": "text"}, "data frame, column 'a': expected a list of values, found 'text'")
    assert_fails([{"a": 1}, ("b", 2)], "data frame row 2: expected a dict by column, found ('b', 2)")
    assert_fails([], "data frame: has no rows (columns: none).")
    assert_fails(pl.DataFrame({"a": []}), "data frame: has no rows (columns: a).")
    assert_fails(42, "a table cannot be read from int; expected a file name or several")
    assert_fails({"a": ["b", "\ud83d"]}, "data frame row 2, column 'a': \\ud83d is half of a character")
    pandas = pytest.importorskip("pandas")
    assert_fails(pandas.DataFrame([[1, 2]], columns=["a", "a"]), "data frame: 'a' names two columns. Rename one.")
    arrow = pytest.importorskip("pyarrow")
    assert_fails(arrow.table([["a"], ["b"]], names=["a", "a"]), "data frame: 'a' names two columns. Rename one.")
    for column in (pandas.Series(["a"]), pl.Series(["a"]), arrow.chunked_array([["a"]])):
        assert_fails(column, f"a table cannot be read from {type(column).__name__}; expected a file name or several")
    with pytest.raises(ConfigError, match="a chunk has at least 1 row"):
        list(read_chunks({"a": [1]}, rows=0))


def test_a_parquet_file_without_rows_is_an_error(tmp_path: Path) -> None:
    pl.DataFrame({"text": []}).write_parquet(tmp_path / "a.parquet")
    assert_fails(tmp_path / "a.parquet", "a.parquet: has no rows (columns: text).")


def test_an_archive_that_is_no_single_table_a_bomb_or_locked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("one.csv", "text,label\na,1\n")
        packed.writestr("two.csv", "x" * 100_000)
    assert_fails(archive, "a.zip: the archive has several files; it holds one.csv, two.csv. Name one as a.zip!FILE.")
    assert_fails(f"{archive}!three.csv", "the archive has no file 'three.csv'")
    assert len(read_table(f"{archive}!one.csv")) == 1
    monkeypatch.setattr(sources, "MAX_UNPACKED", 50_000)
    assert_fails(f"{archive}!two.csv", "'two.csv' would unpack to 100,000 bytes, and the limit is 50,000")
    locked = bytearray(archive.read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(locked))
    assert_fails(f"{archive}!one.csv", "'one.csv' is encrypted")


class Hub:
    """What the hub's file system is asked for here."""

    def __init__(self, opened: Callable[[], io.BytesIO]) -> None:
        self.opened = opened

    def open(self, name: str, mode: str) -> io.BytesIO:
        assert name.startswith("hf://")
        assert mode == "rb"
        return self.opened()

    def glob(self, name: str) -> list[str]:
        self.opened()
        return ["datasets/a/b/y.csv", "datasets/a/b/x.csv"]


def test_hub_paths_are_read_through_the_hub_and_fail_with_one_sentence_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def use(opened: Callable[[], io.BytesIO]) -> None:
        monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: Hub(opened))

    def unreachable() -> io.BytesIO:
        raise ConnectionError("no route")

    def absent() -> io.BytesIO:
        raise FileNotFoundError("x.csv")

    name = "hf://datasets/a/b/x.csv"
    use(lambda: io.BytesIO(b"text,label\na,1\n"))
    assert read_table(name).files == (name,)
    assert read_table("hf://datasets/a/b/*.csv").files == (name, "hf://datasets/a/b/y.csv")
    lines = json.dumps({"text": "a"}).encode()
    use(lambda: io.BytesIO(gzip.compress(lines)))
    assert read_table("hf://datasets/a/b/x.jsonl.gz").column("text") == ["a"]
    use(unreachable)
    assert_fails(name, f"{name}: the hub cannot be reached (no route). Download the file, and give its local path.")
    assert_fails("hf://datasets/a/b/*.csv", "the hub cannot be reached (no route)")
    use(absent)
    assert_fails(name, f"{name}: the hub has no such file, or does not show it. Check the name, and HF_TOKEN.")


def test_a_member_packed_by_a_method_that_python_lacks_is_said_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("one.csv", "text,label\na,b\n")
    raw = (tmp_path / "a.zip").read_bytes()
    deflate64 = (9).to_bytes(2, "little")  # the method stands in the header of the member, and in the list at the end
    begin = raw.index(b"PK\x01\x02")
    raw = raw[:8] + deflate64 + raw[10 : begin + 10] + deflate64 + raw[begin + 12 :]
    (tmp_path / "a.zip").write_bytes(raw)
    assert_fails(
        tmp_path / "a.zip", "a.zip: 'one.csv' is packed by a method that Python cannot unpack. Unpack it yourself"
    )


def test_a_tilde_before_no_users_name_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fails("~nobody-here/x.csv", "~nobody-here/x.csv: no such file, and no folder '~nobody-here'.")
    Path("~backup.csv").write_text("text,label\na,b\n", encoding="utf-8")
    assert len(read_table("~backup.csv")) == 1
    monkeypatch.setenv("BERTUNE_CACHE", "~nobody-here/cache")
    assert cache_root() == Path("~nobody-here/cache")
