"""What does not make a task is an error that says where, what, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from bertune.config import DataConfig
from bertune.data.read import read_table
from bertune.data.tasks import encode_labels, infer_task
from bertune.errors import ConfigError, DataError
from small_tables import csv, infer, papers, reviews, table

# What does not fit is an error that says where and what to do


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["txt"]}, r"no column 'txt'; did you mean 'text'\? Pass --text COLUMN; the columns are text, label"),
        ({"label": ["Label"]}, r"no column 'Label'; did you mean 'label'\?"),
        ({"text_pair": ["premise"], "text": ["text"]}, "no column 'premise'. Pass --text-pair"),
    ],
)
def test_a_missing_column_names_the_nearest(options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer(reviews(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["text"], "label": ["text"]}, "'text' is given as --text and as --label"),
        ({"text": ["text"], "text_pair": ["text"]}, "'text' is given as --text and as --text-pair"),
        ({"text": ["text", "text"]}, "--text text is given twice"),
        ({"label": ["label", "label"]}, "--label label is given twice"),
        ({"label": ["label"], "group": "label"}, "given as --group and as --label"),
        ({"text_pair": ["text"]}, "pass the first with --text"),
        ({"labels": ["neg", "neg", "pos", "neutral"]}, "label 'neg' is listed twice"),
        ({"labels": ["a", "b"], "label_names": "x.txt"}, "pass one of them"),
        ({"label_sep": ""}, "--label-sep is empty"),
    ],
)
def test_options_that_exclude_each_other_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        infer(reviews(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_sep": ","}, "--label-sep goes with one label column"),
        ({"label_names": "x.txt"}, "--label-names goes with one label column"),
        ({"labels": ["Physics", "Chemistry"]}, "names each of them once: Computer Science, Physics, Mathematics"),
    ],
)
def test_options_that_do_not_go_with_label_columns_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        infer(papers(), **options)


def test_a_separator_for_lists_is_an_error() -> None:
    with pytest.raises(ConfigError, match="lists of labels already"):
        infer({"text": ["a", "b"], "labels": [["x"], ["y"]]}, label_sep=",")


def test_columns_that_tell_nothing_are_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"which column is the label\? .*--label COLUMN.* the columns are foo, bar"):
        infer({"foo": ["a", "b"], "bar": ["c", "d"]})
    with pytest.raises(ConfigError, match=r"which column is the text\? Pass --text COLUMN; the columns are foo, bar"):
        infer({"foo": ["a", "b"], "bar": ["c", "d"], "label": ["e", "f"]})
    with pytest.raises(ConfigError, match=r"--columns a,b,c"):
        infer({"column_1": ["a", "b"], "column_2": ["c", "d"]})


def test_a_label_column_beside_zero_one_columns_is_a_question() -> None:
    with pytest.raises(ConfigError, match=r"is the label the column 'label', or are the 0/1 columns x, y the labels\?"):
        infer(reviews(x=["0", "1", "0"], y=["1", "0", "1"]))


def test_a_cell_that_is_not_zero_or_one_names_row_column_and_value(tmp_path: Path) -> None:
    data = csv(tmp_path, "text,x,y\na,1,0\nb,0,2\n")
    task, _ = infer_task(data, DataConfig(label=["x", "y"]))
    with pytest.raises(DataError, match=r"train.csv row 2, column 'y': '2' is not 0 or 1"):
        encode_labels(task, data)


def test_one_wrong_cell_does_not_make_a_found_label_column_disappear() -> None:
    columns: dict[str, list[Any]] = {"text": ["t"] * 20, "x": ["0", "1"] * 10, "y": ["1", "0"] * 9 + ["1", "O"]}
    with pytest.raises(DataError, match=r"row 20, column 'y': 'O' is neither 0 nor 1"):
        infer(columns)
    columns["y"][-1] = ""
    task, _ = infer(columns)
    with pytest.raises(DataError, match=r"row 20, column 'y': the label is missing; expected 0 or 1"):
        encode_labels(task, table(columns))


@pytest.mark.parametrize("cells", [["a", "", "b"], ["a", None, "b"], [1.0, float("nan"), 2.0], [["a"], None, ["b"]]])
def test_a_missing_label_names_the_row(cells: list[Any]) -> None:
    columns = {"text": ["x", "y", "z"], "label": cells}
    task, _ = infer(columns)
    with pytest.raises(DataError, match=r"row 2, column 'label': the label is missing"):
        encode_labels(task, table(columns))


def test_a_label_that_training_did_not_have_names_the_choices(tmp_path: Path) -> None:
    task, _ = infer(reviews())
    valid = csv(tmp_path, "text,label\na,pos\nb,postive\n", "valid.csv")
    with pytest.raises(DataError) as error:
        encode_labels(task, valid)
    assert str(error.value).endswith(
        "valid.csv row 2, column 'label': 'postive' is not a label of this task; expected one of neg, neutral, pos. "
        "Fix the row, or pass --labels."
    )


def test_a_label_that_is_not_listed_is_an_error() -> None:
    task, _ = infer(reviews(), labels=["neg", "pos"])
    with pytest.raises(DataError, match=r"row 3, column 'label': 'neutral' is not a label .* one of neg, pos"):
        encode_labels(task, table(reviews()))


@pytest.mark.parametrize("options", [{}, {"labels": ["a", "b"]}, {"task": "multi"}])
def test_a_single_class_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"every row has the label 'a'.* Add rows with other labels"):
        infer({"text": ["x", "y"], "label": ["a", "a"]}, **options)


def test_a_label_column_without_labels_is_an_error() -> None:
    with pytest.raises(DataError, match="column 'label': no row has a label"):
        infer({"text": ["x", "y"], "label": ["", ""]})


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (pd.Series([None, b"a b"]), r"bytes \(b'a b'\)"),
        (np.array(["x", "y"], dtype=bytes), r"bytes \(b'x'\)"),
        ([[b"x"], [b"y", b"z"]], r"bytes \(b'x'\)"),
        (pl.Series([{"a": 1}, {"a": 2}]), r"dict \({'a': 1}\)"),
        (pl.Series([object(), object()], dtype=pl.Object), r"object \(<object object at"),
    ],
    ids=["pandas", "numpy", "lists", "structs", "objects"],
)
def test_a_cell_that_is_no_label_names_row_and_column(cells: Any, found: str) -> None:
    frames: list[Any] = [pl.DataFrame({"text": ["x", "y"], "label": cells})] if isinstance(cells, pl.Series) else [
        {"text": ["x", "y"], "label": cells}, pd.DataFrame({"text": ["x", "y"], "label": cells})
    ]  # fmt: skip
    place = f"frame row {2 if isinstance(cells, pd.Series) else 1}, column 'label'"
    for frame in frames:
        with pytest.raises(DataError, match=rf"{place}: expected a label, found {found}.*--label"):
            infer(frame)


def test_bytes_and_objects_are_no_labels_that_could_be_left_out() -> None:
    for cells in (pl.Series([b"\xff", b"x"]), pl.Series([object(), object()], dtype=pl.Object)):
        data = DataConfig(drop_label=["x"])
        with pytest.raises(DataError, match="row 1, column 'label': expected a label, found"):
            infer_task(read_table(pl.DataFrame({"text": ["x", "y"], "label": cells}), data), data)


@pytest.mark.parametrize("options", [{}, {"task": "multi"}, {"labels": ["0", "1"]}])
@pytest.mark.parametrize("cells", [[[0, 1], [1, 0], [1, 1]], [[0.0, 1.0], None], [[True, False], [False, True]]])
def test_vectors_of_zeros_and_ones_do_not_become_the_labels_0_and_1(
    cells: list[Any], options: dict[str, Any], tmp_path: Path
) -> None:
    frame = pl.DataFrame({"text": ["x"] * len(cells), "labels": cells})
    frame.write_parquet(tmp_path / "lists.parquet")
    frame.with_columns(pl.col("labels").list.to_array(2)).write_parquet(tmp_path / "arrays.parquet")
    for data in (frame, tmp_path / "lists.parquet", tmp_path / "arrays.parquet"):
        with pytest.raises(DataError, match=r"'labels': every cell is a list of 2 zeros and ones, .* over 2 labels"):
            infer_task(read_table(data), DataConfig(**options))
