"""The texts of rows, from tables and from Python, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertune.data.tasks import Rows, Task, rows_from_python, rows_of
from bertune.errors import DataError
from small_tables import csv, table

# Texts of a table


SINGLE = Task("single", ("a", "b"), ("text",), (), ("label",))
JOINED = Task("single", ("a", "b"), ("title", "abstract"), (), ("label",))
PAIR = Task("single", ("a", "b"), ("premise",), ("hypothesis",), ("label",))


def test_texts_keep_their_order_and_numbers_become_text() -> None:
    assert rows_of(SINGLE, table({"text": ["b", "a", " NA "]}), allow_empty=False) == Rows((["b", "a", " NA "],))
    assert rows_of(SINGLE, table({"text": [3, 1]}), allow_empty=False).first == (["3", "1"],)


def test_sides_and_columns_stay_separate() -> None:
    columns = {"premise": ["p1", "p2"], "hypothesis": ["h1", "h2"]}
    assert rows_of(PAIR, table(columns), allow_empty=False) == Rows((["p1", "p2"],), (["h1", "h2"],))
    columns = {"title": ["t1", "t2"], "abstract": ["a1", ""]}
    assert rows_of(JOINED, table(columns), allow_empty=False).first == (["t1", "t2"], ["a1", ""])


def test_an_empty_text_names_the_row_unless_it_is_allowed(tmp_path: Path) -> None:
    data = csv(tmp_path, 'text,label\nx,a\n"  ",b\n')
    with pytest.raises(DataError, match=r"train.csv row 2, column 'text': the text is empty"):
        rows_of(SINGLE, data, allow_empty=False)
    assert len(rows_of(SINGLE, data, allow_empty=True)) == 2
    with pytest.raises(DataError, match=r"row 1, columns 'title', 'abstract': the text is empty"):
        rows_of(JOINED, table({"title": ["", "t"], "abstract": ["", ""]}), allow_empty=False)
    with pytest.raises(DataError, match=r"row 1, column 'hypothesis': the text is empty"):
        rows_of(PAIR, table({"premise": ["p", "q"], "hypothesis": ["", "h"]}), allow_empty=False)


def test_a_null_text_names_the_row_unless_it_is_allowed() -> None:
    data = table({"text": ["x", None]})
    with pytest.raises(DataError, match=r"row 2, column 'text': the text is missing"):
        rows_of(SINGLE, data, allow_empty=False)
    assert rows_of(SINGLE, data, allow_empty=True).first == (["x", ""],)


def test_a_list_in_a_text_column_is_an_error() -> None:
    with pytest.raises(DataError, match=r"row 1, column 'text': expected text, found list \(\['a', 'b'\]\)"):
        rows_of(SINGLE, table({"text": [["a", "b"], ["c"]]}), allow_empty=True)


def test_bytes_are_no_text() -> None:
    import pandas as pd

    for cells in ([None, b"a b"], np.array(["x", "a b"], dtype=bytes)):
        for data in ({"text": cells, "picture": [b"", b""]}, pd.DataFrame({"text": cells})):
            with pytest.raises(DataError, match=r"'text': expected text, found bytes \(b'.*'\). Name a column of"):
                rows_of(SINGLE, table(data), allow_empty=True)
    with pytest.raises(DataError, match=r"frame row 2, column 'text': expected text, found bytes \(b'a b'\). Decode"):
        table({"text": ["x", b"a b"]})


def test_rows_can_be_sliced() -> None:
    rows = Rows((["a", "b", "c"],), (["x", "y", "z"],))
    assert rows.slice(1, 3) == Rows((["b", "c"],), (["y", "z"],))
    with pytest.raises(ValueError, match="one length"):
        Rows((["a"],), (["x", "y"],))


# Rows from Python


@given(st.lists(st.tuples(st.text(), st.text()), max_size=20))
@settings(max_examples=50, deadline=None)
def test_python_rows_keep_length_and_order_in_every_form(pairs: list[tuple[str, str]]) -> None:
    first, second = [one for one, _ in pairs], [two for _, two in pairs]
    dicts = [{"premise": one, "hypothesis": two, "more": 1} for one, two in pairs]
    for rows in (pairs, [list(pair) for pair in pairs], dicts, iter(pairs), tuple(pairs)):
        assert rows_from_python(PAIR, rows) == Rows((first,), (second,))
    for texts in (first, tuple(first), [(text,) for text in first], [{"text": text} for text in first]):
        assert rows_from_python(SINGLE, texts) == Rows((first,))


def test_data_frames_dicts_of_columns_and_tables_are_read_by_column() -> None:
    import pandas as pd
    import polars as pl

    columns = {"more": [1, 2], "hypothesis": ["h1", "h2"], "premise": ["p1", "p2"]}
    for rows in (columns, pd.DataFrame(columns), pl.DataFrame(columns), table(columns)):
        assert rows_from_python(PAIR, rows) == Rows((["p1", "p2"],), (["h1", "h2"],))


def test_a_data_frame_loses_no_row_whatever_its_label() -> None:
    columns = {"gold_label": ["-", "a"], "sentence1": ["x", ""], "sentence2": ["z", "w"]}
    task = Task("single", ("a", "b"), ("sentence1",), ("sentence2",))
    assert rows_from_python(task, columns) == Rows((["x", ""],), (["z", "w"],))


def test_arrays_and_series_are_lists_of_texts() -> None:
    import pandas as pd
    import polars as pl

    texts = ["b", "a"]
    for rows in (np.array(texts), np.array(texts, dtype=object), pd.Series(texts, index=[7, 9]), pl.Series(texts)):
        assert rows_from_python(SINGLE, rows) == Rows((texts,))
    assert rows_from_python(PAIR, np.array([["p", "h"]], dtype=object)) == Rows((["p"],), (["h"],))


def test_a_plain_string_is_the_whole_text_of_several_columns() -> None:
    rows = rows_from_python(JOINED, ["whole", ("t", "a"), {"title": "t", "abstract": None}])
    assert rows == Rows((["whole", "t", "t"], ["", "a", ""]))


def test_a_pair_over_several_columns_takes_two_texts_or_one_per_column() -> None:
    task = Task("single", ("a", "b"), ("title", "abstract"), ("question",))
    rows = rows_from_python(task, [("whole", "q"), ("t", "a", "q")])
    assert rows == Rows((["whole", "t"], ["", "a"]), (["q", "q"],))


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (PAIR, ["a plain text"], r"rows\[0\]: this task reads pairs, \(first, second\); found one text \('a pla"),
        (PAIR, [("p", "h"), ("p", "h", "x")], r"rows\[1\]: expected 2 texts \(premise, hypothesis\), found 3"),
        (PAIR, [{"premise": "p", "hypotesis": "h"}], r"rows\[0\]: no column 'hypothesis'; did you mean 'hypotesis'\?"),
        (SINGLE, [{}], r"rows\[0\]: no column 'text'; it has none"),
        (SINGLE, [{"text": ["a"]}], r"rows\[0\]\['text'\]: expected text, found list"),
        (SINGLE, ["a", 3], r"rows\[1\]: expected a string or a dict by column, found int \(3\)"),
        (PAIR, [("p", None)], r"rows\[0\]\[1\]: expected text, found NoneType"),
        (SINGLE, "one text", r"expected a list of rows, found one str; write \['one text'\]"),
        (SINGLE, {"text": "one text"}, r"found one dict; write \[{...}\] for one row"),
        (SINGLE, 3, "expected a list of rows, found int"),
        (SINGLE, {"txt": ["a"]}, "'text'"),
    ],
)
def test_rows_that_do_not_fit_the_task_are_an_error(task: Task, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_from_python(task, rows)


